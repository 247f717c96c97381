"""The paper's networks and the lean ones by name, and the one function that builds any network.

This module is imported whenever timm is, to register the presets there; so it must not import torch-heavy modules of
hlnet before they are used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hlnet.errors import UsageError, did_you_mean
from hlnet.tree.class_tree import ClassTree

if TYPE_CHECKING:
    from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig

__all__ = ["PRESETS", "create_model", "network_config", "register_with_timm"]

#: What the lean networks have in common: most of what classes need is computed for all of them, at the stride of the
#: backbone's last stage, and the tree behind it is light.
_LEAN: dict[str, Any] = {
    "strides": (1, 1, 1),
    "shared_stride": 2,
    "class_rows": True,
    "sharing": "reduce",
    "rank_leaves": True,
}

#: Preset name to the fields of its NetworkConfig. The paper's: Table 1 and Sec. 4, strides and dims as its figures say.
#: Lean ones: with (17, 161, 1000) nodes at most 0.95 of the plain network's operations, and fewer parameters. Widths
#: are multiples of 8, which processors compute at a higher rate.
PRESETS: dict[str, dict[str, Any]] = {
    "phl_resnet50": {"backbone": "resnet50", "widths": (128, 64, 32), "strides": (2, 2, 2)},
    "n3hl_resnet50": {"backbone": "resnet50", "widths": (128, 64, 32), "strides": (1, 1, 2)},
    "n3hl_resnet152": {"backbone": "resnet152", "widths": (128, 64, 32), "strides": (1, 1, 2)},
    "n3hl_convnextv2_tiny": {
        "backbone": "convnextv2_tiny",
        "block": "convnext",
        "widths": (256, 128, 64),
        "strides": (1, 1, 2),
    },
    "lean_resnet50": {"backbone": "resnet50", "widths": (64, 32, 8), "shared_width": 256, **_LEAN},
    "lean_resnet152": {"backbone": "resnet152", "widths": (32, 16, 8), "shared_width": 192, **_LEAN},
    "lean_convnextv2_tiny": {
        "backbone": "convnextv2_tiny",
        "block": "convnext",
        "widths": (64, 32, 8),
        "shared_width": 512,
        **_LEAN,
    },
    "lean_mobilenetv2_100": {"backbone": "mobilenetv2_100", "widths": (16, 8, 8), "shared_width": 112, **_LEAN},
    "lean_vit_small_patch16_224": {
        "backbone": "vit_small_patch16_224",
        "widths": (32, 16, 8),
        "shared_width": 256,
        **_LEAN,
    },
}

#: Presets that give every class a private chain, whatever tree they are given.
PARALLEL = frozenset({"phl_resnet50"})


def lean_preset(backbone: str) -> str | None:
    """The lean preset on a backbone, if there is one.

    Example:
        >>> lean_preset("resnet50"), lean_preset("resnet18")
        ('lean_resnet50', None)
    """
    return next(
        (name for name, fields in PRESETS.items() if "class_rows" in fields and fields["backbone"] == backbone), None
    )


def create_model(
    name: str,
    tree: ClassTree | str | Path | Mapping[str, Any] | Sequence[str] | None = None,
    pretrained: bool = False,
    num_classes: int | None = None,
    **overrides: Any,
) -> HierarchicalNet:
    """Build a network: a preset, or any timm backbone with branches on it.

    Args:
        name: a preset (``lean_resnet50``, ``n3hl_resnet50``, …) or a timm model name.
        tree: a :class:`ClassTree`, a file or folder that ``read_tree`` takes, or nested mappings. A ``phl_*`` preset
            takes the classes alone from it and gives each a private chain.
        pretrained: fetch timm's pretrained weights for the trunk.
        num_classes: with ``phl_*`` and no tree, builds that many private chains; otherwise it must agree with the tree.
        **overrides: fields of :class:`NetworkConfig` (``split_point``, ``block``, ``widths``, ``strides``,
            ``backbone_args``, …). Without a preset, widths follow from the C channels of the trunk's output: level 1
            has C / 8, at least 32 (2 C / 3 for ConvNeXt blocks), and each level half of the one above, at least 16,
            in multiples of 8. The last level has stride 2.

    Raises:
        UsageError: if the tree is missing or does not fit, or a field is wrong.
        BackboneError: if timm has no such backbone, or it cannot be split.

    Example:
        >>> create_model("resnet18", tree={"cat": ["tabby", "siamese"], "dog": ["beagle"]}).config.widths
        (32, 16)
    """
    from hlnet.model.hierarchical import HierarchicalNet

    config, classes = configure(name, _as_tree(name, tree, num_classes), **overrides)
    return HierarchicalNet(config, classes, pretrained)


def configure(name: str, tree: ClassTree, **overrides: Any) -> tuple[NetworkConfig, ClassTree]:
    """What :func:`create_model` builds, before it is built: the config, and the tree as the preset shapes it.

    Raises:
        UsageError: as :func:`network_config`.
    """
    config = network_config(name, tree.num_levels, **overrides)
    return config, tree.parallelized(levels=len(config.widths)) if name in PARALLEL else tree


def network_config(name: str, levels: int, **overrides: Any) -> NetworkConfig:
    """The :class:`NetworkConfig` that :func:`create_model` uses for a preset or a timm backbone.

    Args:
        name: a preset or a timm model name.
        levels: of the tree.
        **overrides: fields that replace the defaults.

    Raises:
        UsageError: for a field that does not exist or has a wrong value.
    """
    from pydantic import ValidationError

    from hlnet.model.hierarchical import NetworkConfig

    given = {field: value for field, value in overrides.items() if value is not None}
    if unknown := set(given) - set(NetworkConfig.model_fields):
        field = min(unknown)
        raise UsageError(f"a network has no setting '{field}'.{did_you_mean(field, NetworkConfig.model_fields)}")
    fields = PRESETS.get(name) or _general_form(name, levels, given)
    try:
        return NetworkConfig(**{**fields, **given})
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            raise UsageError(f"{first['msg'].removeprefix('Value error, ')}; the tree has {levels} levels") from None
        field = str(first["loc"][0])
        raise UsageError(f"network setting {field} {given.get(field)!r}: {first['msg']}") from None


def register_with_timm(_timm: Any = None) -> None:
    """Make ``timm.create_model("n3hl_resnet50", tree=…)`` work; runs by itself once hlnet and timm are imported."""
    from timm.models import register_model

    for name in PRESETS:
        if name not in globals():  # timm wants what it registers to be found in this module
            globals()[name] = register_model(_entrypoint(name))


# ---------------------------------------------------------------------- helpers


def _general_form(backbone: str, levels: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """The paper's proportions for any trunk: ResNet50's 1024 channels give widths of 128, 64 and 32."""
    block = given.get("block") or ("convnext" if backbone.startswith("convnext") else "bottleneck")
    widths = given.get("widths")
    if widths is None:
        from hlnet.model.trunk import trunk_channels

        channels = trunk_channels(backbone, given.get("split_point"), given.get("backbone_args"))
        first = max(32, 2 * channels // 3 if block == "convnext" else channels // 8)
        widths = tuple(max(16, (first >> level) // 8 * 8) for level in range(levels))
    return {"backbone": backbone, "block": block, "widths": widths, "strides": (1,) * (levels - 1) + (2,)}


def _as_tree(name: str, tree: Any, num_classes: int | None) -> ClassTree:
    if tree is None and num_classes and name in PARALLEL:
        return ClassTree.balanced([num_classes])
    if tree is None:
        raise UsageError(f"'{name}' needs a class tree: give tree=…, a file, a folder, or nested mappings")
    if isinstance(tree, str | Path):
        from hlnet.tree.io import read_tree

        tree = read_tree(tree)
    elif not isinstance(tree, ClassTree):
        tree = ClassTree.from_nested(tree)
    assert isinstance(tree, ClassTree)
    if num_classes is not None and num_classes != len(tree.classes):
        raise UsageError(f"num_classes={num_classes}, but the tree has {len(tree.classes)} classes")
    return tree


def _from_timm(arguments: dict[str, Any]) -> dict[str, Any]:
    """What timm's own scripts pass: arguments that networks lack are the backbone's, those that are off count not."""
    from hlnet.model.hierarchical import NetworkConfig

    ours = {"tree", "num_classes", *NetworkConfig.model_fields}
    found = {name: value for name, value in arguments.items() if name in ours}
    others = {name: value for name, value in arguments.items() if name not in ours}
    for name in ("drop_rate", "scriptable", "exportable"):
        if others.pop(name, None):
            raise UsageError(f"{name} is not for hierarchical networks; leave it out")
    return {**found, "backbone_args": {**found.get("backbone_args", {}), **others}}


def _entrypoint(name: str) -> Any:
    def build(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
        **kwargs: Any,
    ) -> HierarchicalNet:
        # timm hands these three to every entry point; the trunk finds its own pretrained config by name.
        return create_model(name, pretrained=pretrained, **_from_timm(kwargs))

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"hlnet preset ``{name}``; see ``hlnet.create_model``."
    build.__module__ = __name__
    return build
