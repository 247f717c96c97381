"""hlnet: hierarchy-aware image classifiers that can be cut, cued and costed.

The public names, all of them. Each is imported when first used, so that ``import hlnet`` and ``hlnet --help`` do not
wait for torch. Once timm is imported too, the presets are registered there.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wrapt import when_imported

from hlnet.presets import register_with_timm

if TYPE_CHECKING:
    from hlnet.accuracy import confusion_matrix
    from hlnet.branch_features import feature_maps
    from hlnet.budget import Budget, expert_costs, fit_counts, tree_for_budget
    from hlnet.calibration import calibrate, calibrate_paths
    from hlnet.certain import certain_logits
    from hlnet.checkpoint import load_checkpoint, save_checkpoint
    from hlnet.class_activation import activation_maps
    from hlnet.clustering import (
        class_means,
        classifier_rows,
        cluster_tree,
        dendrogram,
        merge_confusions,
        merge_features,
    )
    from hlnet.comparison import compare_evaluations, mcnemar, paired_bootstrap
    from hlnet.condensing import condense, even_counts
    from hlnet.confusion_picture import confusion_figure, write_confusion
    from hlnet.controls import balanced_tree, random_tree
    from hlnet.cue_embedding import cues_from_embedding, load_encoder
    from hlnet.cue_files import parse_cue, read_cues
    from hlnet.cue_images import CuesByImage, match_cues
    from hlnet.cue_prior import prior_shift, read_prior
    from hlnet.cue_report import attend
    from hlnet.cue_trial import CueTrial
    from hlnet.cue_words import cues_from_text
    from hlnet.cued_logits import CueSource, CueUse
    from hlnet.cues import Attention, Cue, cue_effect, cue_evidence, gains_for
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
    from hlnet.evaluation import evaluate, evaluate_beside
    from hlnet.expert import cut_checkpoint, cut_expert, verify_expert
    from hlnet.export import export_model
    from hlnet.feature_cache import cached_features
    from hlnet.features import CachedFeatures
    from hlnet.grafting import graft, graft_config
    from hlnet.hierarchical_metrics import lca_heights, measure_hierarchy
    from hlnet.hub import locate_model, write_model_folder
    from hlnet.inference import InferenceNet, optimize
    from hlnet.llm.nesting import nest_with_llm, tree_prompt
    from hlnet.llm.server import ask_server
    from hlnet.losses import make_loss
    from hlnet.merging import merge_experts
    from hlnet.model_card import make_model_card
    from hlnet.network import HierarchicalNet, NetworkConfig
    from hlnet.oracle_cues import label_cues, wrong_classes
    from hlnet.outline import Outline
    from hlnet.plain import PlainConfig, PlainNet
    from hlnet.prediction import predict
    from hlnet.presets import PRESETS, create_model, network_config
    from hlnet.profiling import profile, unit_costs
    from hlnet.quantization import quantize_onnx
    from hlnet.recipes import RunConfig, build_network, read_run_config, shipped_recipes
    from hlnet.runtimes import open_exported
    from hlnet.selection import read_selections, select_classes
    from hlnet.sweep import sweep_split_points
    from hlnet.train_config import TrainConfig
    from hlnet.training import train
    from hlnet.tree import ClassTree, Node
    from hlnet.tree_io import read_tree, shipped_trees, write_tree
    from hlnet.tree_measures import check_tree, compare_trees
    from hlnet.tree_picture import draw_tree, tree_figure, tree_page
    from hlnet.trunk import InputTransform, Trunk
    from hlnet.wordnet import WordNet, wordnet_outline

__version__ = "0.1.0"

_MODULES = {
    "accuracy": ("confusion_matrix",),
    "branch_features": ("feature_maps",),
    "budget": ("Budget", "expert_costs", "fit_counts", "tree_for_budget"),
    "calibration": ("calibrate", "calibrate_paths"),
    "certain": ("certain_logits",),
    "checkpoint": ("load_checkpoint", "save_checkpoint"),
    "class_activation": ("activation_maps",),
    "clustering": (
        "class_means",
        "classifier_rows",
        "cluster_tree",
        "dendrogram",
        "merge_confusions",
        "merge_features",
    ),
    "comparison": ("compare_evaluations", "mcnemar", "paired_bootstrap"),
    "condensing": ("condense", "even_counts"),
    "confusion_picture": ("confusion_figure", "write_confusion"),
    "controls": ("balanced_tree", "random_tree"),
    "cue_embedding": ("cues_from_embedding", "load_encoder"),
    "cue_files": ("parse_cue", "read_cues"),
    "cue_images": ("CuesByImage", "match_cues"),
    "cue_prior": ("prior_shift", "read_prior"),
    "cue_report": ("attend",),
    "cue_trial": ("CueTrial",),
    "cue_words": ("cues_from_text",),
    "cued_logits": ("CueSource", "CueUse"),
    "cues": ("Attention", "Cue", "cue_effect", "cue_evidence", "gains_for"),
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
    "evaluation": ("evaluate", "evaluate_beside"),
    "expert": ("cut_checkpoint", "cut_expert", "verify_expert"),
    "export": ("export_model",),
    "feature_cache": ("cached_features",),
    "features": ("CachedFeatures",),
    "grafting": ("graft", "graft_config"),
    "hierarchical_metrics": ("lca_heights", "measure_hierarchy"),
    "hub": ("locate_model", "write_model_folder"),
    "inference": ("InferenceNet", "optimize"),
    "llm.nesting": ("nest_with_llm", "tree_prompt"),
    "llm.server": ("ask_server",),
    "losses": ("make_loss",),
    "merging": ("merge_experts",),
    "model_card": ("make_model_card",),
    "network": ("HierarchicalNet", "NetworkConfig"),
    "oracle_cues": ("label_cues", "wrong_classes"),
    "outline": ("Outline",),
    "plain": ("PlainConfig", "PlainNet"),
    "prediction": ("predict",),
    "presets": ("PRESETS", "create_model", "network_config"),
    "profiling": (
        "profile",
        "unit_costs",
    ),
    "quantization": ("quantize_onnx",),
    "recipes": ("RunConfig", "build_network", "read_run_config", "shipped_recipes"),
    "runtimes": ("open_exported",),
    "selection": ("read_selections", "select_classes"),
    "sweep": ("sweep_split_points",),
    "train_config": ("TrainConfig",),
    "training": ("train",),
    "tree": ("ClassTree", "Node"),
    "tree_io": ("read_tree", "shipped_trees", "write_tree"),
    "tree_measures": ("check_tree", "compare_trees"),
    "tree_picture": ("draw_tree", "tree_figure", "tree_page"),
    "trunk": ("InputTransform", "Trunk"),
    "wordnet": ("WordNet", "wordnet_outline"),
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
