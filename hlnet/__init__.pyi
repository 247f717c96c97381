"""The public names: each is imported when first used."""

from .cues.cue import Cue
from .cues.policy import CuePolicy
from .data.sources import load_data
from .data.tree_data import TreeData, eval_transform, loader, train_transform
from .errors import HlnetError, UsageError
from .evaluation.calibration import calibrate
from .evaluation.cue_report import attend
from .evaluation.evaluate import evaluate
from .evaluation.prediction import predict
from .expert.cut import cut_checkpoint, cut_expert
from .expert.graft import graft
from .expert.merge import merge_experts
from .expert.verify import verify_expert
from .model.cost import profile
from .model.fast.optimize import optimize
from .model.hierarchical import HierarchicalNet, NetworkConfig
from .model.plain import PlainNet
from .model.presets import create_model
from .store.checkpoint import load_checkpoint, save_checkpoint
from .store.export.export_model import export_model
from .store.export.runtimes import open_exported
from .store.hub import push_to_hub
from .training.loop import train
from .training.train_config import TrainConfig
from .tree.class_tree import ClassTree
from .tree.io import read_tree, write_tree
from .tree.selection import select_classes
from .version import __version__

__all__ = [
    "ClassTree",
    "Cue",
    "CuePolicy",
    "HierarchicalNet",
    "HlnetError",
    "NetworkConfig",
    "PlainNet",
    "TrainConfig",
    "TreeData",
    "UsageError",
    "__version__",
    "attend",
    "calibrate",
    "create_model",
    "cut_checkpoint",
    "cut_expert",
    "eval_transform",
    "evaluate",
    "export_model",
    "graft",
    "load_checkpoint",
    "load_data",
    "loader",
    "merge_experts",
    "open_exported",
    "optimize",
    "predict",
    "profile",
    "push_to_hub",
    "read_tree",
    "save_checkpoint",
    "select_classes",
    "train",
    "train_transform",
    "verify_expert",
    "write_tree",
]
