"""One level of branches on stacked weights, and the leaves' logits.

Notable here: every parameter carries the node as its first dimension, in tree order, so that an expert is a choice of
rows. A level runs one *family* (the children of one parent) at a time: what has one input for all is one dense
convolution, what each has alone is one grouped convolution. There is no loop over siblings. Weights that siblings share
have one row a parent, and names that say so (:data:`FAMILY`).

Each stacked tensor is split into families once per forward pass. (Slicing it family by family would make autograd fill
one full-size gradient for each slice.) Convolution weights are stored as ``[nodes, out, in]``, or ``[nodes, out, in,
k * k]`` where the kernel is larger than a pixel: torch allows a change to channels_last for at most four dimensions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Block = Literal["bottleneck", "convnext"]
Sharing = Literal["none", "shortcut", "reduce"]
Family = dict[str, Tensor]  # the rows of one parent's children, of every stacked tensor of a level
#: How the name of a tensor begins that siblings share: its rows follow the parents, not the nodes.
FAMILY = "family_"


class BranchLevel(nn.Module, ABC):
    """The blocks of all nodes of one level; subclasses define the block.

    Args:
        sibling_counts: how many children each parent has, in tree order.
        in_channels: channels of a parent's output.
        width: the block's width (paper, Table 1).
        stride: of the block.
        sharing: which of its parts siblings share, see :attr:`shared_parts`.
    """

    out_channels: int
    #: By kind of sharing, the parts (beginnings of tensor names) that siblings share.
    shared_parts: ClassVar[dict[Sharing, tuple[str, ...]]] = {"none": ()}

    def __init__(
        self, sibling_counts: tuple[int, ...], in_channels: int, width: int, stride: int, sharing: Sharing = "none"
    ) -> None:
        super().__init__()
        self.sibling_counts = sibling_counts
        self.in_channels, self.width, self.stride = in_channels, width, stride
        self.shared = self.shared_parts[sharing]
        self.family_kept = False
        self._starts = list(accumulate(sibling_counts, initial=0))

    @property
    def nodes(self) -> int:
        """Number of nodes of this level."""
        return self._starts[-1]

    @property
    @abstractmethod
    def inner_width(self) -> int:
        """Channels of a node's inner results: what its last convolution takes in. (Its output may have more.)"""

    @abstractmethod
    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the output, from those of the parent's."""

    def families(self) -> list[Family]:
        """The rows of each parent's children, one split per stacked tensor."""
        counts = list(self.sibling_counts)
        parts = {
            name.removeprefix(FAMILY): torch.split(tensor, 1 if name.startswith(FAMILY) else counts)
            for name, tensor in self._stacked()
        }
        return [{name: rows[parent] for name, rows in parts.items()} for parent in range(len(counts))]

    def parents_of(self, rows: slice) -> range:
        """The parents of some nodes that lie side by side."""
        return range(bisect_right(self._starts, rows.start) - 1, bisect_right(self._starts, rows.stop - 1))

    def counts_of(self, rows: slice) -> list[int]:
        """How many of some nodes that lie side by side each of their parents has."""
        edges = [min(max(self._starts[i], rows.start), rows.stop) for i in self.parents_of(rows)] + [rows.stop]
        return [end - start for start, end in pairwise(edges)]

    def family(self, rows: slice) -> Family:
        """Views of the rows of some nodes that lie side by side and, of what siblings share, of those of their
        parents."""
        # narrow() is quicker than indexing: experts at run time wait.
        parents = self.parents_of(rows)
        own, shared = (rows.start, rows.stop - rows.start), (parents.start, len(parents))
        return {
            name.removeprefix(FAMILY): tensor.narrow(0, *(shared if name.startswith(FAMILY) else own))
            for name, tensor in self._stacked()
        }

    def choose(self, nodes: Sequence[int], parents: Sequence[int]) -> Family:
        """The rows of any nodes and, of what siblings share, those of the given parents."""
        device = next(self.parameters()).device
        own, shared = (torch.tensor(rows, device=device) for rows in (nodes, parents))
        return {
            name.removeprefix(FAMILY): tensor.index_select(0, shared if name.startswith(FAMILY) else own)
            for name, tensor in self._stacked()
        }

    @abstractmethod
    def forward(self, x: Tensor, family: Family, gain: Tensor | None) -> Tensor:
        """All children of one parent.

        Args:
            x: the parent's output, ``[B, in_channels, H, W]``.
            family: the children's rows; of what they share, one row.
            gain: ``[B, m]``, one factor per image and child on the input of the block's last convolution.

        Returns:
            ``[B, m, out_channels, H', W']`` for ``m`` children.
        """

    def stack(self, name: str, *shape: int, init: float | None = None, buffer: bool = False) -> Tensor:
        """Add a parameter or buffer ``[nodes, *shape]``, or ``[parents, *shape]`` if siblings share it, constant where
        ``init`` is given."""
        shared = name.startswith(tuple(f"{part}_" for part in self.shared))
        values = torch.empty(len(self.sibling_counts) if shared else self.nodes, *shape)
        values = values if init is None else values.fill_(init)
        name = FAMILY + name if shared else name
        if buffer:
            self.register_buffer(name, values)
        else:
            self.register_parameter(name, nn.Parameter(values))
        stacked: Tensor = getattr(self, name)
        return stacked

    def keep_family(self, other: BranchLevel, parent: int) -> None:
        """Take what the children of one parent share in another level, for good: it trains no more, statistics
        included."""
        self.family_kept = True
        for name, tensor in other._stacked():
            if name.startswith(FAMILY):
                row = tensor.detach()[parent : parent + 1].clone()
                setattr(self, name, nn.Parameter(row, requires_grad=False) if name in self._parameters else row)

    def _stacked(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in (*self._parameters.items(), *self._buffers.items()):
            if tensor is not None:
                yield name, tensor


class NormedLevel(BranchLevel):
    """A level whose convolutions have no bias and a batch norm each, as in timm's ResNet."""

    eps, momentum = 1e-5, 0.1

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return -(-size[0] // self.stride), -(-size[1] // self.stride)  # padded: rounded up

    def stack_conv(self, name: str, *shape: int, scale: float = 1.0) -> None:
        """Add a convolution, ``[out, in]`` or ``[out, in, k * k]``, and its norm, which begins with this scale."""
        fan_out = shape[0] * math.prod(shape[2:])
        nn.init.normal_(self.stack(f"{name}_weight", *shape), std=math.sqrt(2 / fan_out))
        for part, init in (("weight", scale), ("bias", 0.0), ("mean", 0.0), ("var", 1.0)):
            self.stack(f"{name}_bn_{part}", shape[0], init=init, buffer=part in ("mean", "var"))

    def conv_bn(
        self, name: str, x: Tensor, family: Family, stride: int = 1, padding: int = 0, groups: int = 1
    ) -> Tensor:
        """The convolution of all siblings, or the one that they share, and its norm: ``[B, m * out, H', W']``."""
        x = F.conv2d(x, kernels(family[f"{name}_weight"]), None, stride, padding, groups=groups)
        mean, var, weight, bias = (family[f"{name}_bn_{part}"].flatten() for part in ("mean", "var", "weight", "bias"))
        training = self.training and not (self.family_kept and name in self.shared)
        return F.batch_norm(x, mean, var, weight, bias, training, self.momentum, self.eps)


class BottleneckLevel(NormedLevel):
    """ResNet bottlenecks: 1x1 to ``width``, 3x3 with the stride, 1x1 to ``4 * width``, and a projected shortcut.

    The block of the paper's PHL and N3HL (Table 1), as in timm's ``Bottleneck``. Siblings may share the shortcut, or
    that and the first convolution.

    Example:
        >>> level = BottleneckLevel((2, 1), in_channels=8, width=4, stride=2)
        >>> level(torch.zeros(1, 8, 14, 14), level.families()[0], None).shape
        torch.Size([1, 2, 16, 7, 7])
    """

    expansion = 4
    shared_parts: ClassVar = {"none": (), "shortcut": ("shortcut",), "reduce": ("shortcut", "conv1")}

    @property
    def inner_width(self) -> int:
        return self.width

    def __init__(
        self, sibling_counts: tuple[int, ...], in_channels: int, width: int, stride: int, sharing: Sharing = "none"
    ) -> None:
        super().__init__(sibling_counts, in_channels, width, stride, sharing)
        self.out_channels = self.expansion * width
        self.stack_conv("conv1", width, in_channels)
        self.stack_conv("conv2", width, width, 9)
        # Zero: each block starts as its shortcut (timm's zero_init_last).
        self.stack_conv("conv3", self.out_channels, width, scale=0.0)
        self.stack_conv("shortcut", self.out_channels, in_channels)

    def forward(self, x: Tensor, family: Family, gain: Tensor | None) -> Tensor:
        children, inputs, shortcuts = (len(family[f"{name}_weight"]) for name in ("conv3", "conv1", "shortcut"))
        h = F.relu(self.conv_bn("conv1", x, family))
        h = F.relu(self.conv_bn("conv2", h, family, self.stride, padding=1, groups=inputs))
        if gain is not None:
            h = h * gain.to(h.dtype).repeat_interleave(self.width, dim=1)[:, :, None, None]
        h = by_child(self.conv_bn("conv3", h, family, groups=children), children)
        return F.relu(h + by_child(self.conv_bn("shortcut", x, family, self.stride), shortcuts))


class RankLevel(NormedLevel):
    """Leaves of rank ``width``: a 1x1 convolution to that few channels, batch norm and ReLU.

    With the pooling and the row of :class:`Leaves` that follow, a class is so many directions in its parent's features.
    The gain acts on the output.

    Example:
        >>> level = RankLevel((2, 1), in_channels=8, width=3, stride=1)
        >>> level(torch.zeros(1, 8, 7, 7), level.families()[0], None).shape
        torch.Size([1, 2, 3, 7, 7])
    """

    @property
    def inner_width(self) -> int:
        return self.width

    def __init__(self, sibling_counts: tuple[int, ...], in_channels: int, width: int, stride: int) -> None:
        super().__init__(sibling_counts, in_channels, width, stride)
        self.out_channels = width
        self.stack_conv("conv", width, in_channels)

    def forward(self, x: Tensor, family: Family, gain: Tensor | None) -> Tensor:
        h = by_child(F.relu(self.conv_bn("conv", x, family, self.stride)), len(family["conv_weight"]))
        return h if gain is None else h * gain.to(h.dtype)[:, :, None, None, None]


class ConvNeXtLevel(BranchLevel):
    """ConvNeXt V2 stages of depth 1: LayerNorm and a convolution to ``width``, then one block with GRN.

    The block of the paper's N3HLCNXV2, as in timm's ``ConvNeXtStage(depth=1, use_grn=True, ls_init_value=1.0)`` where
    that changes width or size (timm leaves the norm and convolution out where it does not; here they are always there).
    The gain acts on the input of the second pointwise convolution, the block's last. Siblings may share what leads to
    ``width`` channels, which is shortcut and reduction at once.

    Example:
        >>> level = ConvNeXtLevel((2, 1), in_channels=8, width=4, stride=2)
        >>> level(torch.zeros(1, 8, 14, 14), level.families()[0], None).shape
        torch.Size([1, 2, 4, 7, 7])
    """

    eps = 1e-6
    shared_parts: ClassVar = {"none": (), "reduce": ("norm_in", "conv_in")}

    @property
    def inner_width(self) -> int:
        return 4 * self.width

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] // self.stride, size[1] // self.stride

    def __init__(
        self, sibling_counts: tuple[int, ...], in_channels: int, width: int, stride: int, sharing: Sharing = "none"
    ) -> None:
        super().__init__(sibling_counts, in_channels, width, stride, sharing)
        self.out_channels = width
        kernel = 1 if stride == 1 else 2
        self.stack("norm_in_weight", in_channels, init=1.0)
        self.stack("norm_in_bias", in_channels, init=0.0)
        self._stack_weight("conv_in", width, in_channels, kernel**2)
        self.stack("conv_in_bias", width, init=0.0)
        self._stack_weight("conv_dw", width, 1, 49)
        self.stack("conv_dw_bias", width, init=0.0)
        self.stack("norm_weight", width, init=1.0)
        self.stack("norm_bias", width, init=0.0)
        self._stack_weight("fc1", 4 * width, width)
        self.stack("fc1_bias", 4 * width, init=0.0)
        self.stack("grn_weight", 4 * width, init=0.0)
        self.stack("grn_bias", 4 * width, init=0.0)
        self._stack_weight("fc2", width, 4 * width)
        self.stack("fc2_bias", width, init=0.0)
        self.stack("scale", width, init=1.0)

    def _stack_weight(self, name: str, *shape: int) -> None:
        nn.init.trunc_normal_(self.stack(f"{name}_weight", *shape), std=0.02)  # as timm's ConvNeXt

    def forward(self, x: Tensor, family: Family, gain: Tensor | None) -> Tensor:
        children = family["scale"].shape[0]
        # Siblings share one normalised input: each one's scale and shift go into its own convolution, which is linear.
        scaled = family["conv_in_weight"] * family["norm_in_weight"][:, None, :, None]
        shift = torch.einsum("noik,ni->no", family["conv_in_weight"], family["norm_in_bias"])
        normal = F.layer_norm(x.permute(0, 2, 3, 1), (self.in_channels,), eps=self.eps).permute(0, 3, 1, 2)
        x = F.conv2d(normal, kernels(scaled), (shift + family["conv_in_bias"]).flatten(), self.stride)
        x = x.repeat(1, children // len(scaled), 1, 1)  # where siblings share the one that is there

        h = self._grouped("conv_dw", x, family, padding=3, groups=children * self.width)
        h = by_child(h, children).movedim(2, -1)  # [B, m, H, W, width]
        h = F.layer_norm(h, (self.width,), eps=self.eps)
        h = h * family["norm_weight"][:, None, None, :] + family["norm_bias"][:, None, None, :]
        h = F.gelu(self._grouped("fc1", h.movedim(-1, 2).flatten(1, 2), family, groups=children))
        h = self._response_norm(by_child(h, children), family)
        if gain is not None:
            h = h * gain.to(h.dtype)[:, :, None, None, None]
        h = self._grouped("fc2", h.flatten(1, 2), family, groups=children)
        h = x + h * family["scale"].flatten()[:, None, None]
        return by_child(h, children)

    def _grouped(self, name: str, x: Tensor, family: Family, padding: int = 0, groups: int = 1) -> Tensor:
        weight, bias = kernels(family[f"{name}_weight"]), family[f"{name}_bias"].flatten()
        return F.conv2d(x, weight, bias, padding=padding, groups=groups)

    def _response_norm(self, h: Tensor, family: Family) -> Tensor:
        """Global response normalisation (ConvNeXt V2) of ``[B, m, C, H, W]``, over the pixels of each channel."""
        norm = h.norm(p=2, dim=(3, 4), keepdim=True)
        relative = norm / (norm.mean(dim=2, keepdim=True) + self.eps)
        weight, bias = family["grn_weight"][:, :, None, None], family["grn_bias"][:, :, None, None]
        result: Tensor = h + weight * (h * relative) + bias
        return result


class Leaves(nn.Module):
    """One logit per class from its leaf's pooled features: ``Linear(channels, 1)`` for each, stacked.

    Args:
        classes: number of classes, k.
        channels: of a leaf's output, C.
        norm: normalise the pooled features first, as ConvNeXt's head does.

    Shape:
        ``[B, k, C]`` to ``[B, k]``.
    """

    def __init__(self, classes: int, channels: int, norm: bool) -> None:
        super().__init__()
        bound = 1 / math.sqrt(channels)
        self.weight = nn.Parameter(torch.empty(classes, channels).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(classes))
        self.norm_weight = nn.Parameter(torch.ones(classes, channels)) if norm else None
        self.norm_bias = nn.Parameter(torch.zeros(classes, channels)) if norm else None

    def forward(self, pooled: Tensor, rows: slice = slice(None)) -> Tensor:
        """Logits of the classes in ``rows``, from their features."""
        if self.norm_weight is not None and self.norm_bias is not None:
            normal = F.layer_norm(pooled, pooled.shape[-1:], eps=ConvNeXtLevel.eps)
            pooled = normal * self.norm_weight[rows] + self.norm_bias[rows]
        # A batched product with one column a class, rather than multiply and sum: counters of operations see it.
        logits = torch.bmm(pooled.transpose(0, 1), self.weight[rows].unsqueeze(-1))
        return logits.squeeze(-1).t() + self.bias[rows]


def pooled(children: Tensor) -> Tensor:
    """Global average pooling of a family's output: ``[B, m, C, H, W]`` to ``[B, m, C]``."""
    return F.adaptive_avg_pool2d(children.flatten(0, 1), 1).view(children.shape[:3])


def by_child(x: Tensor, children: int) -> Tensor:
    """``[B, m * C, H, W]`` as ``[B, m, C, H, W]``."""
    return x.view(len(x), children, -1, *x.shape[2:])


def kernels(weight: Tensor) -> Tensor:
    """Stored convolution weights, ``[m, out, in]`` or ``[m, out, in, k * k]``, as ``[m * out, in, k, k]``."""
    side = math.isqrt(weight.shape[3]) if weight.dim() == 4 else 1
    return weight.reshape(-1, weight.shape[2], side, side)


LEVELS: dict[Block, type[BottleneckLevel | ConvNeXtLevel]] = {"bottleneck": BottleneckLevel, "convnext": ConvNeXtLevel}


def branch_levels(
    siblings: Sequence[tuple[int, ...]],
    in_channels: int,
    block: Block,
    widths: Sequence[int],
    strides: Sequence[int],
    sharing: Sharing = "none",
    rank_leaves: bool = False,
) -> list[BranchLevel]:
    """The levels of a tree, each with its number of children by parent; see :class:`hlnet.NetworkConfig`."""
    levels: list[BranchLevel] = []
    for counts, width, stride in zip(siblings, widths, strides, strict=True):
        if rank_leaves and len(levels) == len(siblings) - 1:
            levels.append(RankLevel(counts, in_channels, width, stride))
        else:
            levels.append(LEVELS[block](counts, in_channels, width, stride, sharing))
        in_channels = levels[-1].out_channels
    return levels
