"""hlnet: hierarchy-aware image classifiers that can be cut, cued and costed.

The public names, all of them. Each is imported when first used, so that ``import hlnet`` and ``hlnet --help`` do not
wait for torch. Once timm is imported too, the presets are registered there.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wrapt import when_imported

from hlnet.model.presets import register_with_timm
from hlnet.version import __version__

if TYPE_CHECKING:
    from hlnet.cues.certain import certain_logits
    from hlnet.cues.cue import Cue, cue_evidence
    from hlnet.cues.effect import cue_effect, gains_for
    from hlnet.cues.embedding import cues_from_embedding, load_encoder
    from hlnet.cues.files import parse_cue, read_cues
    from hlnet.cues.oracle import label_cues, wrong_classes
    from hlnet.cues.policy import CuePolicy
    from hlnet.cues.prior import prior_shift, read_prior
    from hlnet.cues.table import CueTable
    from hlnet.cues.words import cues_from_text
    from hlnet.data.feature_cache import cached_features
    from hlnet.data.features import CachedFeatures
    from hlnet.data.sources import load_data
    from hlnet.data.tree_data import TreeData, eval_transform, loader, train_transform
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
    from hlnet.evaluation.calibration import calibrate, calibrate_paths
    from hlnet.evaluation.cue_report import attend
    from hlnet.evaluation.evaluate import compare_evaluations, evaluate, evaluate_beside
    from hlnet.evaluation.metrics.accuracy import confusion_matrix
    from hlnet.evaluation.metrics.comparison import mcnemar, paired_bootstrap
    from hlnet.evaluation.metrics.confusion import confusion_figure, write_confusion
    from hlnet.evaluation.metrics.hierarchy import lca_heights, measure_hierarchy
    from hlnet.evaluation.prediction import predict
    from hlnet.expert.cut import cut_checkpoint, cut_expert
    from hlnet.expert.graft import graft, graft_config
    from hlnet.expert.merge import merge_experts
    from hlnet.expert.verify import verify_expert
    from hlnet.model.cost import profile, unit_costs
    from hlnet.model.fast.optimize import InferenceNet, optimize
    from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
    from hlnet.model.plain import PlainConfig, PlainNet
    from hlnet.model.presets import PRESETS, create_model, network_config
    from hlnet.model.split_points import sweep_split_points
    from hlnet.model.transform import InputTransform
    from hlnet.model.trunk import Trunk
    from hlnet.store.checkpoint import load_checkpoint, save_checkpoint
    from hlnet.store.export.export_model import export_model
    from hlnet.store.export.quantize import quantize_onnx
    from hlnet.store.export.runtimes import open_exported
    from hlnet.store.hub import push_to_hub, write_model_folder
    from hlnet.store.locate import locate_model
    from hlnet.store.model_card import make_model_card
    from hlnet.training.loop import train
    from hlnet.training.losses import make_loss
    from hlnet.training.run_config import RunConfig, read_run_config, shipped_recipes
    from hlnet.training.run_parts import build_network
    from hlnet.training.train_config import TrainConfig
    from hlnet.tree.class_tree import ClassTree
    from hlnet.tree.construct.budget import Budget, expert_costs, fit_counts, tree_for_budget
    from hlnet.tree.construct.cluster import (
        class_means,
        classifier_rows,
        cluster_tree,
        dendrogram,
        merge_confusions,
        merge_features,
    )
    from hlnet.tree.construct.controls import balanced_tree, random_tree
    from hlnet.tree.construct.levels import condense, even_counts
    from hlnet.tree.construct.wordnet import wordnet_outline
    from hlnet.tree.dictionary import WordNet
    from hlnet.tree.hierarchy import Outline
    from hlnet.tree.io import read_tree, shipped_trees, write_tree
    from hlnet.tree.llm.nest import nest_with_llm, tree_prompt
    from hlnet.tree.llm.server import ask_server
    from hlnet.tree.measures import check_tree, compare_trees
    from hlnet.tree.nodes import Node
    from hlnet.tree.picture import draw_tree, tree_figure, tree_page
    from hlnet.tree.selection import read_selections, select_classes
    from hlnet.view.branch_maps import feature_maps
    from hlnet.view.class_activation import activation_maps

_MODULES = {
    "cues.certain": ("certain_logits",),
    "cues.cue": (
        "Cue",
        "cue_evidence",
    ),
    "cues.effect": (
        "cue_effect",
        "gains_for",
    ),
    "cues.embedding": (
        "cues_from_embedding",
        "load_encoder",
    ),
    "cues.files": (
        "parse_cue",
        "read_cues",
    ),
    "cues.oracle": (
        "label_cues",
        "wrong_classes",
    ),
    "cues.policy": ("CuePolicy",),
    "cues.prior": (
        "prior_shift",
        "read_prior",
    ),
    "cues.table": ("CueTable",),
    "cues.words": ("cues_from_text",),
    "data.feature_cache": ("cached_features",),
    "data.features": ("CachedFeatures",),
    "data.sources": ("load_data",),
    "data.tree_data": (
        "TreeData",
        "eval_transform",
        "loader",
        "train_transform",
    ),
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
    "evaluation.calibration": (
        "calibrate",
        "calibrate_paths",
    ),
    "evaluation.cue_report": ("attend",),
    "evaluation.evaluate": (
        "compare_evaluations",
        "evaluate",
        "evaluate_beside",
    ),
    "evaluation.metrics.accuracy": ("confusion_matrix",),
    "evaluation.metrics.comparison": (
        "mcnemar",
        "paired_bootstrap",
    ),
    "evaluation.metrics.confusion": (
        "confusion_figure",
        "write_confusion",
    ),
    "evaluation.metrics.hierarchy": (
        "lca_heights",
        "measure_hierarchy",
    ),
    "evaluation.prediction": ("predict",),
    "expert.cut": (
        "cut_checkpoint",
        "cut_expert",
    ),
    "expert.graft": (
        "graft",
        "graft_config",
    ),
    "expert.merge": ("merge_experts",),
    "expert.verify": ("verify_expert",),
    "model.cost": (
        "profile",
        "unit_costs",
    ),
    "model.fast.optimize": (
        "InferenceNet",
        "optimize",
    ),
    "model.hierarchical": (
        "HierarchicalNet",
        "NetworkConfig",
    ),
    "model.plain": (
        "PlainConfig",
        "PlainNet",
    ),
    "model.presets": (
        "PRESETS",
        "create_model",
        "network_config",
    ),
    "model.split_points": ("sweep_split_points",),
    "model.transform": ("InputTransform",),
    "model.trunk": ("Trunk",),
    "store.checkpoint": (
        "load_checkpoint",
        "save_checkpoint",
    ),
    "store.export.export_model": ("export_model",),
    "store.export.quantize": ("quantize_onnx",),
    "store.export.runtimes": ("open_exported",),
    "store.hub": (
        "push_to_hub",
        "write_model_folder",
    ),
    "store.locate": ("locate_model",),
    "store.model_card": ("make_model_card",),
    "training.loop": ("train",),
    "training.losses": ("make_loss",),
    "training.run_config": (
        "RunConfig",
        "read_run_config",
        "shipped_recipes",
    ),
    "training.run_parts": ("build_network",),
    "training.train_config": ("TrainConfig",),
    "tree.class_tree": ("ClassTree",),
    "tree.construct.budget": (
        "Budget",
        "expert_costs",
        "fit_counts",
        "tree_for_budget",
    ),
    "tree.construct.cluster": (
        "class_means",
        "classifier_rows",
        "cluster_tree",
        "dendrogram",
        "merge_confusions",
        "merge_features",
    ),
    "tree.construct.controls": (
        "balanced_tree",
        "random_tree",
    ),
    "tree.construct.levels": (
        "condense",
        "even_counts",
    ),
    "tree.construct.wordnet": ("wordnet_outline",),
    "tree.dictionary": ("WordNet",),
    "tree.hierarchy": ("Outline",),
    "tree.io": (
        "read_tree",
        "shipped_trees",
        "write_tree",
    ),
    "tree.llm.nest": (
        "nest_with_llm",
        "tree_prompt",
    ),
    "tree.llm.server": ("ask_server",),
    "tree.measures": (
        "check_tree",
        "compare_trees",
    ),
    "tree.nodes": ("Node",),
    "tree.picture": (
        "draw_tree",
        "tree_figure",
        "tree_page",
    ),
    "tree.selection": (
        "read_selections",
        "select_classes",
    ),
    "view.branch_maps": ("feature_maps",),
    "view.class_activation": ("activation_maps",),
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
