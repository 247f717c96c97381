"""What a network costs: parameters, multiply-accumulates, bytes, latency; plain, full and expert side by side.

Notable here: the nodes of one level cost the same, so a network's cost is counted from its trunk and one node of each
level, whatever the size of the tree. What children share is their parent's cost, which is there as often as the parent
is: so a cost goes by the number of nodes alone, of the full network as of every expert. The counter is fvcore's; it
counts one fused multiply-add as one, normalisation at 2 (batch) or 5 (layer) an element, and neither activations nor
additions.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from hlnet.errors import UsageError
from hlnet.model.base import BackboneChoice, Network
from hlnet.model.branches import BranchLevel, ConvNeXtLevel, Leaves, branch_levels, pooled
from hlnet.model.hierarchical import NetworkConfig, check_levels, shared_stage
from hlnet.model.shared import ClassRows
from hlnet.model.transform import InputTransform
from hlnet.model.trunk import Trunk, check_size, create_backbone
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.selection import select_classes


def figure(value: float) -> str:
    """Three decimals, or for small values three digits."""
    return f"{value:.3f}" if value >= 1 else f"{value:.3g}"


class Part(BaseModel):
    """The cost of one part of a network: the trunk, or one level with all its nodes.

    Attributes:
        name: ``trunk``, ``shared stage``, ``level 1``, ``level 1, shared by siblings``, ``class rows``, …
        nodes: how many blocks it has (1 for the trunk).
        params: number of parameters.
        macs: multiply-accumulates for one image, by fvcore.
        bytes: of its weights and statistics as stored.
        pieces: what it is the sum of, if it is one; it is not written out.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    nodes: int
    params: int
    macs: int
    bytes: int
    pieces: tuple[Part, ...] = Field(default=(), exclude=True)

    @classmethod
    def sum(cls, *pieces: Part) -> Part:
        """The sum of some, by the first one's name."""
        totals = {name: sum(getattr(piece, name) for piece in pieces) for name in ("params", "macs", "bytes")}
        return cls(name=pieces[0].name, nodes=1, **totals, pieces=pieces) if len(pieces) > 1 else pieces[0]

    def times(self, count: int, name: str | None = None) -> Part:
        """So many of it; under another name."""
        totals = {field: count * getattr(self, field) for field in ("nodes", "params", "macs", "bytes")}
        return Part(name=name or self.name, **totals)

    def plus(self, other: Part) -> Part:
        """As one part, of as many nodes as this one."""
        return Part.sum(self, other).model_copy(update={"nodes": self.nodes, "pieces": ()})


class Latency(BaseModel):
    """Time for one batch, in milliseconds: median and quartiles over the rounds."""

    batch_size: int
    threads: int
    median_ms: float
    low_ms: float
    high_ms: float


class Cost(BaseModel):
    """The cost of one network.

    Attributes:
        classes: number of logits.
        nodes: of its tree, level by level; empty for a plain network.
        params, gmacs, bytes: totals; ``gmacs`` in 1e9 multiply-accumulates an image.
        parts: trunk and levels; empty for a plain network.
        latency: where it was measured.
    """

    classes: int
    nodes: tuple[int, ...] = ()
    params: int
    gmacs: float
    bytes: int
    parts: list[Part] = []
    latency: list[Latency] = []

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return round(self.gmacs * 1e9)


class Profile(BaseModel):
    """Plain, full and expert side by side.

    Attributes:
        input_size: channels, height, width of the image that is counted.
        plain: the timm model that the trunk comes from, with the full network's number of classes.
        full: the full network.
        expert: the cut, if one was asked for or is what was given.
        reductions: relative change, such as ``{"expert vs full": {"params": -0.89, "gmacs": -0.73}}``.
    """

    input_size: tuple[int, int, int]
    plain: Cost
    full: Cost
    expert: Cost | None = None
    reductions: dict[str, dict[str, float]] = {}


def profile(
    config: NetworkConfig,
    tree: ClassTree,
    transform: InputTransform | None = None,
    classes: str | Iterable[str | int] | None = None,
    parent_counts: Sequence[int] | None = None,
) -> Profile:
    """Count a network without building it: parameters, multiply-accumulates and bytes.

    Args:
        config, tree: the network.
        transform: gives the image size; default: the backbone's own.
        classes: a selection of an expert's classes.
        parent_counts: says that ``tree`` is an expert's, cut from a network with these nodes at each level.

    Raises:
        SelectionError, BackboneError, UsageError: if one of them does not fit.

    Example:
        >>> from hlnet.model.presets import network_config
        >>> tree = ClassTree.balanced((1, 9, 10))
        >>> found = profile(network_config("n3hl_resnet50", levels=3), tree, classes="0-4")
        >>> found.full.params, round(found.full.gmacs, 3), round(found.plain.gmacs, 2)
        (11929930, 3.894, 4.11)
    """
    check_levels(tree.num_levels, config.widths)
    parts, size = unit_costs(config, transform)
    full_counts = tuple(parent_counts or tree.counts)
    if len(full_counts) != tree.num_levels or any(a > b for a, b in zip(tree.counts, full_counts, strict=True)):
        raise UsageError(f"a network with {full_counts} nodes a level cannot be the parent of one with {tree.counts}")
    expert = None
    if classes is not None:
        expert = total_cost(parts, tree.prune(select_classes(tree, classes)).counts)
    elif parent_counts is not None:
        expert = total_cost(parts, tree.counts)
    plain = plain_cost(config, full_counts[-1], size)
    return with_reductions(Profile(input_size=size, plain=plain, full=total_cost(parts, full_counts), expert=expert))


def unit_costs(
    config: NetworkConfig, transform: InputTransform | None = None
) -> tuple[list[Part], tuple[int, int, int]]:
    """What every tree's cost is made of: the trunk, and one node of each level; and the size of the image counted.

    To the trunk is counted what every expert has: the shared stage, and what the nodes of level 1 share; to a node what
    its children share; to a leaf the row of its class. Of such sums, ``pieces`` are the parts.

    Raises:
        BackboneError, UsageError: if the network cannot be built.

    Example:
        >>> from hlnet.model.presets import network_config
        >>> units, _ = unit_costs(network_config("n3hl_resnet50", levels=3))
        >>> [unit.params for unit in units]
        [8543296, 870912, 218368, 55041]
    """
    parts, size = _counted(_ByText(config), transform and transform.input_size)
    return list(parts), size


def total_cost(units: list[Part], counts: Sequence[int]) -> Cost:
    """The cost of a network with these nodes at each level, from its :func:`unit_costs`."""
    check_levels(len(counts), [unit.name for unit in units[1:]])
    parts = [piece.times(n) for unit, n in zip(units, (1, *counts), strict=True) for piece in unit.pieces or (unit,)]
    return Cost(
        classes=counts[-1],
        nodes=tuple(counts),
        params=sum(part.params for part in parts),
        gmacs=sum(part.macs for part in parts) / 1e9,
        bytes=sum(part.bytes for part in parts),
        parts=parts,
    )


def plain_cost(config: BackboneChoice, classes: int, input_size: tuple[int, int, int]) -> Cost:
    """The cost of the timm model itself, with this many classes."""
    arguments = _ByText(config.backbone_args)
    params, macs, stored = _counted_plain(config.backbone, arguments, classes, input_size)
    return Cost(classes=classes, params=params, gmacs=macs / 1e9, bytes=stored)


def network_cost(net: Network) -> Cost:
    """The cost of a network as it is."""
    if isinstance(net.config, NetworkConfig):
        return total_cost(unit_costs(net.config, net.transform)[0], net.tree.counts)
    return plain_cost(net.config, net.num_classes, net.transform.input_size)


def count_macs(module: nn.Module, *inputs: Tensor, handlers: dict[str, Any] | None = None) -> int:
    """fvcore's count for one call.

    Args:
        module: in evaluation mode.
        inputs: of the call.
        handlers: fvcore operator handlers that replace its own.

    Example:
        >>> count_macs(nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.zeros(1, 3, 10, 10))
        21600
    """
    from fvcore.nn import FlopCountAnalysis  # which takes its time

    analysis = FlopCountAnalysis(module, inputs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    # fvcore knows no fused attention, and would count a ViT's at nothing.
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_macs, **(handlers or {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its tracer uses what torch has deprecated
        return int(analysis.total())


def with_reductions(found: Profile) -> Profile:
    """Fill in the relative changes between the three columns."""
    pairs = {
        "full vs plain": (found.full, found.plain),
        "expert vs full": (found.expert, found.full),
        "expert vs plain": (found.expert, found.plain),
    }
    reductions = {
        name: {
            what: value
            for what in ("params", "gmacs", "bytes", "latency")
            if (value := _change(one, other, what)) is not None
        }
        for name, (one, other) in pairs.items()
        if one is not None
    }
    return found.model_copy(update={"reductions": reductions})


# ---------------------------------------------------------------------- helpers


Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class _ByText(Generic[Value]):
    """A value as part of a cache's key, though it cannot be hashed: equal where its text is.

    The value lives as long as the key, so that a text with an address in it keeps its meaning.
    """

    value: Value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByText) and repr(self.value) == repr(other.value)

    def __hash__(self) -> int:
        return hash(repr(self.value))


@lru_cache(maxsize=64)
def _counted(
    key: _ByText[NetworkConfig], input_size: tuple[int, int, int] | None
) -> tuple[tuple[Part, ...], tuple[int, int, int]]:
    """:func:`unit_costs`, which takes seconds."""
    config = key.value
    trunk = Trunk(config.backbone, config.split_point, backbone_args=config.backbone_args).eval()
    transform = trunk.transform if input_size is None else InputTransform(input_size=input_size)
    return tuple(_unit_costs(config, trunk, check_size(trunk, transform), transform.input_size)), transform.input_size


@lru_cache(maxsize=64)
def _counted_plain(
    backbone: str, arguments: _ByText[dict[str, Any]], classes: int, input_size: tuple[int, int, int]
) -> tuple[int, int, int]:
    """Parameters, multiply-accumulates and bytes of a timm model."""
    model = create_backbone(backbone, arguments.value | {"num_classes": classes}).eval()
    params = sum(tensor.numel() for tensor in model.parameters())
    return params, count_macs(model, torch.zeros(1, *input_size)), _bytes(model)


class _Nodes(nn.Module):
    """All nodes of a level below one parent, and their share of the leaves."""

    def __init__(self, level: BranchLevel, leaves: Leaves | None) -> None:
        super().__init__()
        self.level, self.leaves = level, leaves

    def forward(self, x: Tensor) -> Tensor:
        children: Tensor = self.level(x, self.level.families()[0], None)
        if self.leaves is None:
            return children
        logits: Tensor = self.leaves(pooled(children))
        return logits


class _Rows(nn.Module):
    """The rows of the classes, on the map that they see."""

    def __init__(self, rows: ClassRows) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.rows(self.rows.pool(x))
        return logits


def _unit_costs(config: NetworkConfig, trunk: Trunk, x: Tensor, size: tuple[int, int, int]) -> list[Part]:
    """The trunk, whose output is ``x``, and one node of each level, with what is counted to them."""
    with torch.no_grad():
        pieces = [[_part("trunk", trunk, torch.zeros(1, *size))]]
        if (stage := shared_stage(config, x.shape[1])) is not None:
            pieces[0].append(_part("shared stage", stage.eval(), x))
            x = stage(x)
        rows = None
        if config.class_rows:
            counted = [
                _part("class rows", _Rows(ClassRows(n, x.shape[1], config.block == "convnext")), x) for n in (1, 2)
            ]
            rows, pooling = _apart(*counted)
            pieces[0][-1] = pieces[0][-1].plus(pooling)
        shape = (config.block, config.widths, config.strides, config.sharing, config.rank_leaves)
        single, double = (branch_levels([(n,)] * len(config.widths), x.shape[1], *shape) for n in (1, 2))
        for number, levels in enumerate(zip(single, double, strict=True), start=1):
            counted = []
            for level in levels:
                last = number == len(single)
                norm = isinstance(level, ConvNeXtLevel)
                leaves = Leaves(level.nodes, level.out_channels, norm) if last else None
                counted.append(_part(f"level {number}", _Nodes(level, leaves).eval(), x))
            if levels[0].shared:
                node, family = _apart(*counted)
                pieces[-1].append(family.times(1, f"level {number}, shared by siblings"))
            else:  # counted is the block as it is defined, whatever one computes once for all siblings
                node = counted[0]
            pieces.append([node])
            x = levels[0](x, levels[0].families()[0], None)[:, 0]
        pieces[-1] += [rows] if rows is not None else []
    return [Part.sum(*some) for some in pieces]


def _part(name: str, module: nn.Module, x: Tensor) -> Part:
    # The branches share their parent's normalisation and fold its scale into a convolution. Counted is a layer norm
    # with scale and shift, and no folding.
    own = isinstance(module, _Nodes)
    handlers = {"aten::layer_norm": _layer_norm_macs, "aten::einsum": lambda inputs, outputs: 0} if own else None
    params = sum(tensor.numel() for tensor in module.parameters())
    return Part(name=name, nodes=1, params=params, macs=count_macs(module, x, handlers=handlers), bytes=_bytes(module))


def _apart(one: Part, two: Part) -> tuple[Part, Part]:
    """From the costs of one and of two alike that share something: what each has, and what is shared."""
    each = two.plus(one.times(-1))
    return each, one.plus(each.times(-1))


def _bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def _shape(value: Any) -> list[int]:
    return list(value.type().sizes())


def _layer_norm_macs(inputs: list[Any], outputs: list[Any]) -> int:
    return 5 * torch.Size(_shape(inputs[0])).numel()


def _attention_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Queries times keys, then times values: ``[..., N, D]`` each."""
    *batch, queries, width = _shape(inputs[0])
    keys, value_width = _shape(inputs[2])[-2:]
    return torch.Size(batch).numel() * queries * keys * (width + value_width)


def _change(one: Cost | None, other: Cost | None, what: str) -> float | None:
    if one is None or other is None:
        return None
    if what != "latency":
        return float(getattr(one, what) / getattr(other, what) - 1)
    if not one.latency or not other.latency:
        return None
    return one.latency[0].median_ms / other.latency[0].median_ms - 1
