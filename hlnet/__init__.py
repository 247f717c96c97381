"""hlnet: hierarchy-aware image classifiers that can be cut, cued and costed.

The public names, all of them. Each is imported when first used, so that ``import hlnet`` and ``hlnet --help`` do not
wait for torch. Once timm is imported too, the presets are registered there.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wrapt import when_imported

from hlnet.presets import register_with_timm

if TYPE_CHECKING:
    from hlnet.attention import gains_for, other_classes
    from hlnet.checkpoint import load_checkpoint, save_checkpoint
    from hlnet.data import TreeData, eval_transform, load_data, loader, train_transform
    from hlnet.errors import (
        BackboneError,
        CheckpointError,
        DataError,
        HlnetError,
        RunError,
        SelectionError,
        TreeError,
        UsageError,
    )
    from hlnet.evaluation import evaluate
    from hlnet.expert import cut_expert, verify_expert
    from hlnet.features import CachedFeatures
    from hlnet.clustering import class_means, cluster_tree
    from hlnet.network import HierarchicalNet, NetworkConfig
    from hlnet.plain import PlainConfig, PlainNet
    from hlnet.prediction import predict
    from hlnet.presets import PRESETS, create_model, network_config
    from hlnet.profiling import profile
    from hlnet.selection import select_classes
    from hlnet.training import TrainConfig, train
    from hlnet.tree import ClassTree, Node
    from hlnet.tree_io import read_tree, write_tree
    from hlnet.trunk import InputTransform, Trunk

__version__ = "0.1.0"

_MODULES = {
    "attention": ("gains_for", "other_classes"),
    "checkpoint": ("load_checkpoint", "save_checkpoint"),
    "data": ("TreeData", "eval_transform", "load_data", "loader", "train_transform"),
    "errors": (
        "BackboneError",
        "CheckpointError",
        "DataError",
        "HlnetError",
        "RunError",
        "SelectionError",
        "TreeError",
        "UsageError",
    ),
    "evaluation": ("evaluate",),
    "expert": ("cut_expert", "verify_expert"),
    "features": ("CachedFeatures",),
    "clustering": ("class_means", "cluster_tree"),
    "network": ("HierarchicalNet", "NetworkConfig"),
    "plain": ("PlainConfig", "PlainNet"),
    "prediction": ("predict",),
    "presets": ("PRESETS", "create_model", "network_config"),
    "profiling": ("profile",),
    "selection": ("select_classes",),
    "training": ("TrainConfig", "train"),
    "tree": ("ClassTree", "Node"),
    "tree_io": ("read_tree", "write_tree"),
    "trunk": ("InputTransform", "Trunk"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hlnet' has no attribute '{name}'")
    return getattr(import_module(f"hlnet.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


when_imported("timm")(register_with_timm)
