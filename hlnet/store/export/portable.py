"""The portable form of a network: trunk and tree on torch's public operators, which other runtimes can take over.

Notable here: it is laid out for runtimes that plan ahead, where each operator costs something and walking a tree parent
by parent would make thousands of them. The tree is run level by level. Parents with equally many children run together,
in convolutions grouped by parent and by node, so that the operators of a level are as many as it has *sizes of
families*, not as it has nodes: PHL with a thousand classes takes four convolutions a level. What is folded is folded by
the code that makes the inference form (:mod:`hlnet.model.fast.fuse`, :mod:`hlnet.model.fast.folding`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hlnet.model.base import TrainableNetwork
from hlnet.model.branches import BottleneckLevel, BranchLevel, ConvNeXtLevel, RankLevel, kernels
from hlnet.model.fast.chunks import LeafChunk
from hlnet.model.fast.folding import fold_convnext, fold_norms
from hlnet.model.fast.fuse import fuse
from hlnet.model.fast.kernels import Conv, Linear
from hlnet.model.hierarchical import BranchTree, HierarchicalNet

#: The type in which the inference form packs no weight, so that what it folds is left in public operators.
_UNPACKED = torch.float64


class PortableNet(nn.Module):
    """Images in 0..1 to logits, in float32: the network with its normalisation in front, for inference only.

    Args:
        model: full network, expert or plain network; it stays as it is.

    Example:
        >>> import hlnet
        >>> from hlnet.model.transform import InputTransform
        >>> net = hlnet.create_model("test_resnet", tree={"cat": ["tabby", "siamese"], "dog": ["beagle"]}).eval()
        >>> net.transform = InputTransform(input_size=(3, 64, 64), mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> images = torch.rand(2, 3, 64, 64)
        >>> torch.allclose(PortableNet(net)(images), net((images - 0.5) / 0.5), atol=1e-5)
        True
    """

    def __init__(self, model: TrainableNetwork) -> None:
        super().__init__()
        self.trunk = PortableTrunk(model)
        self.head = PortableTree(model.head, self.trunk.shape) if model.has_branches else None

    def forward(self, images: Tensor, gains: Tensor | None = None) -> Tensor:
        """``[B, 3, H, W]`` in 0..1 and gains ``[B, nodes]`` to ``[B, classes]``."""
        features: Tensor = self.trunk(images)
        return features if self.head is None else self.head(features, gains)


class PortableTrunk(nn.Module):
    """Images in 0..1 to features ``[B, C, h, w]``; of a plain network, which is whole, to logits.

    Args:
        model: full network, expert or plain network.

    Attributes:
        shape: of what one image gives, such as ``(C, h, w)``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: TrainableNetwork) -> None:
        super().__init__()
        transform = model.transform
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(transform, name)).view(1, -1, 1, 1))
        trunk = model.trunk if isinstance(model, HierarchicalNet) else model.trunk_module
        self.model = _portable(trunk, transform.input_size)
        with torch.no_grad():
            self.shape = tuple(self.model(torch.zeros(1, *transform.input_size)).shape[1:])

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.model((images - self.mean) / self.std)
        return features


class PortableTree(nn.Module):
    """The branches, level by level, and what they share before.

    Args:
        branches: the training form, with weights on the CPU.
        size: of the trunk's output, ``(C, h, w)``.
    """

    back: Tensor | None

    def __init__(self, branches: BranchTree, size: tuple[int, ...]) -> None:
        super().__init__()
        self.stage = None if branches.stage is None else _portable(branches.stage, size)
        self.class_rows = None if branches.class_rows is None else deepcopy(branches.class_rows).float()
        self.levels = nn.ModuleList()
        order = [
            0
        ]  # of the nodes, as they lie side by side in a level's output: by size of family, then as in the tree
        place = 0  # of a level's first node among all nodes, which is its gain's
        for level in branches.levels:
            assert isinstance(level, BranchLevel)
            families = _Level(level, order, place)
            self.levels.append(families)
            order, place = families.order, place + level.nodes
        leaves = LeafChunk(branches.leaves, 0, len(order))
        self.normed = leaves.normed
        self.weight, self.bias = _rows(leaves.weight, len(order), order), _rows(leaves.bias, len(order), order)
        places = sorted(range(len(order)), key=order.__getitem__)
        self.register_buffer("back", _places(places, len(order)))

    def forward(self, features: Tensor, gains: Tensor | None = None) -> Tensor:
        """As ``BranchTree.forward`` of ``hlnet.model.hierarchical``, but the gains have another shape."""
        seen = features if self.stage is None else self.stage(features)
        features = seen
        for level in self.levels:
            features = level(features, gains)
        pooled = F.adaptive_avg_pool2d(features, 1)
        if self.normed:
            parts = pooled.flatten(1).unflatten(1, self.weight.shape)
            pooled = F.layer_norm(parts, parts.shape[-1:], eps=ConvNeXtLevel.eps).flatten(1)[:, :, None, None]
        # A convolution, since OpenVINO (2026.4) mixes up images and classes where features are weighted and summed.
        logits = F.conv2d(pooled, self.weight[:, :, None, None], self.bias, groups=len(self.weight)).flatten(1)
        logits = logits if self.back is None else logits.index_select(1, self.back)
        return logits if self.class_rows is None else logits + self.class_rows(self.class_rows.pool(seen))


class _Level(nn.Module):
    """All nodes of one level, in as few pieces as there are sizes of families.

    Args:
        level: with its weights.
        parents: which node each slice of the input is.
        place: of the level's first node among all nodes.

    Attributes:
        order: which node each slice of the output is.
    """

    def __init__(self, level: BranchLevel, parents: Sequence[int], place: int) -> None:
        super().__init__()
        counts = level.sibling_counts
        first = [0, *accumulate(counts)]
        self.order: list[int] = []
        self.pieces = nn.ModuleList()
        for size in sorted(set(counts)):
            slices = [i for i, parent in enumerate(parents) if counts[parent] == size]
            rows = [first[parents[i]] + child for i in slices for child in range(size)]
            block = _BLOCKS[type(level)](level, rows, [parents[i] for i in slices])
            self.pieces.append(_Piece(block, len(parents), slices, [place + row for row in rows]))
            self.order += rows

    def forward(self, x: Tensor, gains: Tensor | None) -> Tensor:
        """``[B, parents * C, H, W]`` and the gains of all nodes to ``[B, nodes * C', H', W']``."""
        found = [piece(x, gains) for piece in self.pieces]
        return torch.cat(found, dim=1) if len(found) > 1 else found[0]


class _Piece(nn.Module):
    """Families of one size.

    Args:
        block: what runs.
        parents: how many slices the level's input has.
        slices: which of them are theirs.
        columns: their gains among those of all nodes.
    """

    slices: Tensor | None
    columns: Tensor

    def __init__(self, block: nn.Module, parents: int, slices: Sequence[int], columns: Sequence[int]) -> None:
        super().__init__()
        self.block, self.parents = block, parents
        self.register_buffer("slices", _places(slices, parents))
        self.register_buffer("columns", torch.tensor(columns))

    def forward(self, x: Tensor, gains: Tensor | None) -> Tensor:
        if self.slices is not None:
            x = x.unflatten(1, (self.parents, -1)).index_select(1, self.slices).flatten(1, 2)
        children: Tensor = self.block(x, None if gains is None else gains.index_select(1, self.columns))
        return children


class _Bottlenecks(nn.Module):
    """Bottlenecks of some families of one size; see :class:`hlnet.model.branches.BottleneckLevel`.

    Args:
        level: with its weights.
        rows: the nodes, family by family.
        parents: of the families.
    """

    def __init__(self, level: BottleneckLevel, rows: Sequence[int], parents: Sequence[int]) -> None:
        super().__init__()
        self.nodes, self.families, self.stride = len(rows), len(parents), level.stride
        folded = fold_norms(level, level.choose(rows, parents))
        self.inputs, self.shortcuts = len(folded["conv1"][0]), len(folded["shortcut"][0])
        self.w1, self.b1 = _conv(*folded["conv1"])
        self.w2, self.b2 = _conv(*folded["conv2"])
        self.w3, self.b3 = _conv(*folded["conv3"])
        self.ws, self.bs = _conv(*folded["shortcut"])

    def forward(self, x: Tensor, gains: Tensor | None) -> Tensor:
        h = F.relu(F.conv2d(x, self.w1, self.b1, groups=self.families))
        h = F.relu(F.conv2d(h, self.w2, self.b2, self.stride, 1, groups=self.inputs))
        if gains is not None:
            h = (h.unflatten(1, (self.nodes, -1)) * gains[:, :, None, None, None]).flatten(1, 2)
        h = F.conv2d(h, self.w3, self.b3, groups=self.nodes)
        shortcut = F.conv2d(x, self.ws, self.bs, self.stride, groups=self.families)
        return F.relu(h + _for_each(shortcut, self.shortcuts, self.nodes))


class _Ranks(nn.Module):
    """Leaves of some families of one size; see :class:`hlnet.model.branches.RankLevel`."""

    def __init__(self, level: RankLevel, rows: Sequence[int], parents: Sequence[int]) -> None:
        super().__init__()
        self.nodes, self.families, self.stride = len(rows), len(parents), level.stride
        self.w, self.b = _conv(*fold_norms(level, level.choose(rows, parents))["conv"])

    def forward(self, x: Tensor, gains: Tensor | None) -> Tensor:
        h = F.relu(F.conv2d(x, self.w, self.b, self.stride, groups=self.families))
        return h if gains is None else (h.unflatten(1, (self.nodes, -1)) * gains[:, :, None, None, None]).flatten(1, 2)


class _ConvNeXts(nn.Module):
    """ConvNeXt V2 stages of some families of one size; see :class:`hlnet.model.branches.ConvNeXtLevel`."""

    def __init__(self, level: ConvNeXtLevel, rows: Sequence[int], parents: Sequence[int]) -> None:
        super().__init__()
        self.nodes, self.families, self.stride, self.eps = len(rows), len(parents), level.stride, level.eps
        folded, grn, shift = fold_convnext(level, level.choose(rows, parents))
        self.inputs = len(folded["conv_in"][0])
        self.w_in, self.b_in = _conv(*folded["conv_in"])
        self.w_dw, self.b_dw = _conv(*folded["conv_dw"])
        self.w1, self.b1 = _conv(*folded["fc1"])
        self.w2, self.b2 = _conv(*folded["fc2"])
        self.grn, self.shift = (_constant(part[:, :, None, None]) for part in (grn, shift))

    def forward(self, x: Tensor, gains: Tensor | None) -> Tensor:
        x = F.conv2d(self._norm(x, self.families), self.w_in, self.b_in, self.stride, groups=self.families)
        x = _for_each(x, self.inputs, self.nodes)
        h = F.conv2d(x, self.w_dw, self.b_dw, padding=3, groups=len(self.w_dw))
        h = F.gelu(F.conv2d(self._norm(h, self.nodes), self.w1, self.b1, groups=self.nodes))
        h = h.unflatten(1, (self.nodes, -1))
        norm = h.norm(dim=(3, 4), keepdim=True)
        h = h * (1 + self.grn * norm / (norm.mean(dim=2, keepdim=True) + self.eps))
        if gains is not None:
            h = h * gains[:, :, None, None, None]
        y = x + F.conv2d(h.flatten(1, 2), self.w2, self.b2, groups=self.nodes)
        if gains is not None:  # the shift of GRN lies behind the gain, in the bias, which does not see it
            y = y + ((gains - 1)[:, :, None, None, None] * self.shift).flatten(1, 2)
        return y

    def _norm(self, x: Tensor, parts: int) -> Tensor:
        """Layer normalisation of each part's channels, without scale and shift."""
        pixels = x.unflatten(1, (parts, -1)).movedim(2, -1)
        return F.layer_norm(pixels, pixels.shape[-1:], eps=self.eps).movedim(-1, 2).flatten(1, 2)


# ---------------------------------------------------------------------- helpers


def _portable(module: nn.Module, size: tuple[int, ...]) -> nn.Module:
    """A trunk or plain network with its norms folded, in float32."""
    fused = fuse(module, torch.zeros(1, *size, dtype=_UNPACKED))
    fused = deepcopy(module) if fused is module else fused  # the type changes in place
    for part in fused.modules():
        if isinstance(part, Conv | Linear):  # their weights are plain tensors, which no module takes along
            part.weight = _constant(part.weight)
            part.bias = None if part.bias is None else _constant(part.bias)
    return fused.float().eval()


def _conv(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Constants of a convolution for each of the first dimension."""
    return _constant(kernels(weight)), _constant(bias.flatten())


def _for_each(x: Tensor, parts: int, nodes: int) -> Tensor:
    """``[B, parts * C, H, W]``, each part for as many nodes as share it: ``[B, nodes * C, H, W]``."""
    if parts == nodes:
        return x
    apart = x.unflatten(1, (parts, 1, -1))
    return torch.cat([apart] * (nodes // parts), dim=2).flatten(1, 3)


def _rows(tensor: Tensor, nodes: int, rows: Sequence[int]) -> Tensor:
    """``[nodes * n, …]`` to the given nodes' ``[len(rows) * n, …]``."""
    return _constant(tensor.unflatten(0, (nodes, -1))[list(rows)].flatten(0, 1))


def _constant(tensor: Tensor) -> Tensor:
    return nn.Parameter(tensor.detach().float().contiguous(), requires_grad=False)


def _places(places: Sequence[int], whole: int) -> Tensor | None:
    """Places to choose, as a constant of the graph; ``None`` if they are all of them in order."""
    return None if list(places) == list(range(whole)) else torch.tensor(places)


#: What runs the nodes of a level; it takes the level, their rows and their parents.
_BLOCKS: dict[type, Callable[[Any, Sequence[int], Sequence[int]], nn.Module]] = {
    BottleneckLevel: _Bottlenecks,
    ConvNeXtLevel: _ConvNeXts,
    RankLevel: _Ranks,
}
