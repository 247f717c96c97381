"""The portable form of a network: one module on torch's public operators, which other runtimes can take over.

Notable here: it is laid out for runtimes that plan ahead, where each operator costs something and walking a tree parent
by parent would make thousands of them. The tree is run level by level. Parents with equally many children run together,
in convolutions grouped by parent and by node, so that the operators of a level are as many as it has *sizes of
families*, not as it has nodes: PHL with a thousand classes takes four convolutions a level. What is folded is folded by
the code that makes the inference form (:mod:`hlnet.model.fast.fuse`, :mod:`hlnet.model.fast.chunks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hlnet.model.base import TrainableNetwork
from hlnet.model.branches import BottleneckLevel, BranchLevel, ConvNeXtLevel
from hlnet.model.fast.chunks import BottleneckChunk, ConvNeXtChunk, LeafChunk
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

    mean: Tensor
    std: Tensor

    def __init__(self, model: TrainableNetwork) -> None:
        super().__init__()
        transform = model.transform
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(transform, name)).view(1, -1, 1, 1))
        trunk = model.trunk if isinstance(model, HierarchicalNet) else model.trunk_module
        self.trunk = _portable(trunk, transform.input_size)
        self.head = PortableTree(model.head) if model.has_branches else None

    def forward(self, images: Tensor, gains: Tensor | None = None) -> Tensor:
        """``[B, 3, H, W]`` in 0..1 and gains ``[B, nodes]`` to ``[B, classes]``."""
        features: Tensor = self.trunk((images - self.mean) / self.std)
        if self.head is not None:
            features = self.head(features, gains)
        return features


class PortableTree(nn.Module):
    """The branches, level by level.

    Args:
        branches: the training form, with weights on the CPU.
    """

    back: Tensor | None

    def __init__(self, branches: BranchTree) -> None:
        super().__init__()
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

    def forward(self, features: Tensor, gains: Tensor | None) -> Tensor:
        """As ``BranchTree.forward`` of ``hlnet.model.hierarchical``, but the gains have another shape."""
        for level in self.levels:
            features = level(features, gains)
        pooled = F.adaptive_avg_pool2d(features, 1)
        if self.normed:
            parts = pooled.flatten(1).unflatten(1, self.weight.shape)
            pooled = F.layer_norm(parts, parts.shape[-1:], eps=ConvNeXtLevel.eps).flatten(1)[:, :, None, None]
        # A convolution, since OpenVINO (2026.4) mixes up images and classes where features are weighted and summed.
        logits = F.conv2d(pooled, self.weight[:, :, None, None], self.bias, groups=len(self.weight)).flatten(1)
        return logits if self.back is None else logits.index_select(1, self.back)


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
        folded = _folded(level)
        self.order: list[int] = []
        self.pieces = nn.ModuleList()
        for size in sorted(set(counts)):
            slices = [i for i, parent in enumerate(parents) if counts[parent] == size]
            rows = [first[parents[i]] + child for i in slices for child in range(size)]
            block = _block(folded, rows, len(slices))
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
    """Bottlenecks of some families of one size; see :class:`hlnet.model.branches.BottleneckLevel`."""

    def __init__(self, folded: BottleneckChunk, rows: Sequence[int], families: int) -> None:
        super().__init__()
        self.nodes, self.families, self.stride = len(rows), families, folded.stride
        self.w1, self.b1 = _kernel(folded.conv1, folded.nodes, rows)
        self.w2, self.b2 = _kernel(folded.conv2, folded.nodes, rows)
        self.ws, self.b3 = _kernel(folded.shortcut, folded.nodes, rows)  # its bias is that of the sum
        self.w3, _ = _kernel(folded.conv3, folded.nodes, rows)

    def forward(self, x: Tensor, gains: Tensor | None) -> Tensor:
        h = F.relu(F.conv2d(x, self.w1, self.b1, groups=self.families))
        h = F.relu(F.conv2d(h, self.w2, self.b2, self.stride, 1, groups=self.nodes))
        if gains is not None:
            h = (h.unflatten(1, (self.nodes, -1)) * gains[:, :, None, None, None]).flatten(1, 2)
        h = F.conv2d(h, self.w3, self.b3, groups=self.nodes)
        return F.relu(h + F.conv2d(x, self.ws, None, self.stride, groups=self.families))


class _ConvNeXts(nn.Module):
    """ConvNeXt V2 stages of some families of one size; see :class:`hlnet.model.branches.ConvNeXtLevel`."""

    def __init__(self, folded: ConvNeXtChunk, rows: Sequence[int], families: int) -> None:
        super().__init__()
        self.nodes, self.families, self.eps = len(rows), families, folded.eps
        assert isinstance(folded.conv_in, Conv | Linear)
        self.w_in, self.b_in = _kernel(folded.conv_in, folded.nodes, rows)
        self.stride = folded.conv_in.stride if isinstance(folded.conv_in, Conv) else (1, 1)
        self.w_dw, self.b_dw = _kernel(folded.conv_dw, folded.nodes, rows)
        self.w1, self.b1 = _kernel(folded.fc1, folded.nodes, rows)
        self.w2, self.b2 = _kernel(folded.fc2, folded.nodes, rows)
        self.grn, self.shift = (
            _constant(part.float()[list(rows)][:, :, None, None]) for part in (folded.grn, folded.shift)
        )

    def forward(self, x: Tensor, gains: Tensor | None) -> Tensor:
        x = F.conv2d(self._norm(x, self.families), self.w_in, self.b_in, self.stride, groups=self.families)
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


def _portable(module: nn.Module, size: tuple[int, int, int]) -> nn.Module:
    """A trunk or plain network with its norms folded, in float32."""
    fused = fuse(module, torch.zeros(1, *size, dtype=_UNPACKED))
    for part in fused.modules():
        if isinstance(part, Conv | Linear):  # their weights are plain tensors, which no module takes along
            part.weight = _constant(part.weight)
            part.bias = None if part.bias is None else _constant(part.bias)
    return fused.float().eval()


def _folded(level: BranchLevel) -> BottleneckChunk | ConvNeXtChunk:
    """All nodes of a level, with their norms folded; the size does not matter, as nothing is packed."""
    size = (level.stride, level.stride)
    if isinstance(level, BottleneckLevel):
        return BottleneckChunk(level, 0, level.nodes, size, 1, _UNPACKED)
    assert isinstance(level, ConvNeXtLevel)
    return ConvNeXtChunk(level, 0, level.nodes, size, 1, _UNPACKED)


def _block(folded: BottleneckChunk | ConvNeXtChunk, rows: Sequence[int], families: int) -> nn.Module:
    if isinstance(folded, BottleneckChunk):
        return _Bottlenecks(folded, rows, families)
    return _ConvNeXts(folded, rows, families)


def _kernel(part: Conv | Linear, nodes: int, rows: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of some nodes' convolution, which may be a linear map of pixels."""
    weight = part.weight[:, :, None, None] if isinstance(part, Linear) else part.weight
    return _rows(weight, nodes, rows), None if part.bias is None else _rows(part.bias, nodes, rows)


def _rows(tensor: Tensor, nodes: int, rows: Sequence[int]) -> Tensor:
    """``[nodes * n, …]`` to the given nodes' ``[len(rows) * n, …]``."""
    return _constant(tensor.unflatten(0, (nodes, -1))[list(rows)].flatten(0, 1))


def _constant(tensor: Tensor) -> Tensor:
    return nn.Parameter(tensor.detach().float().contiguous(), requires_grad=False)


def _places(places: Sequence[int], whole: int) -> Tensor | None:
    """Places to choose, as a constant of the graph; ``None`` if they are all of them in order."""
    return None if list(places) == list(range(whole)) else torch.tensor(places)
