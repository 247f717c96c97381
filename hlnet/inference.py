"""The inference form of a network: the same logits to rounding, as fast as the machine's dense products go.

What :func:`optimize` does: batch norms and scales are folded into the convolutions before them; weights are laid out
once as the processor wants them; activations and sums are done along with the convolution before them, in the trunk
too; the tree is walked depth first, one parent at a time, its children in chunks whose intermediate results fit the
cache.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from hlnet.branches import BranchLevel, Leaves
from hlnet.errors import UsageError
from hlnet.fast_branches import CHUNKS, BottleneckChunk, ConvNeXtChunk, LeafChunk
from hlnet.fusing import fuse, own_mode
from hlnet.kernels import Conv, Linear
from hlnet.network import BranchTree, HierarchicalNet, NetworkConfig, Provenance
from hlnet.plain import PlainConfig, PlainNet
from hlnet.runtime_expert import SelectedTree
from hlnet.tree import ClassTree
from hlnet.trunk import InputTransform

#: What a chunk of siblings may fill of the cache with its widest intermediate result, in bytes.
CACHE = 2**20
#: Images that go through the branches together; larger batches are cut, which keeps chunks worth while.
BATCH = 8

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def optimize(model: HierarchicalNet | PlainNet, dtype: torch.dtype | str = torch.float32) -> InferenceNet:
    """The inference form of a network. It keeps ``model`` beside its own copies of the weights, to pack them anew.

    Args:
        model: full network, expert or plain network, on the device where it shall run; put in evaluation mode.
        dtype: ``torch.float32``, equal to the training form to about 1e-6 of the largest logit; or ``torch.bfloat16``,
            faster where the processor computes in it, with some three digits.

    Raises:
        UsageError: for another type.

    Example:
        >>> from hlnet.presets import create_model
        >>> net = create_model("resnet18", tree={"cat": ["tabby", "siamese"], "dog": ["beagle"]}).eval()
        >>> images = torch.randn(2, 3, 64, 64)
        >>> with torch.inference_mode():
        ...     torch.allclose(optimize(net)(images), net(images), atol=1e-5)
        True
    """
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        raise UsageError(f"dtype '{dtype}' is not one of {', '.join(DTYPES)}")
    assert isinstance(found, torch.dtype)
    return InferenceNet(model.eval(), found)


class InferenceNet(nn.Module):
    """What :func:`optimize` returns: call it as the network that it was made of; it does not train."""

    def __init__(self, model: HierarchicalNet | PlainNet, dtype: torch.dtype) -> None:
        super().__init__()
        self.config: NetworkConfig | PlainConfig = model.config
        self._tree = model.tree
        self.transform: InputTransform = model.transform
        self.provenance: Provenance = model.provenance
        self.dtype = dtype
        self.device = model.device
        probe = torch.zeros(1, *model.transform.input_size, device=self.device, dtype=dtype)
        with torch.no_grad():
            if isinstance(model, PlainNet):
                self.trunk = _fused(model.model, probe)
                self.head: FastTree | SelectedTree | None = None
            else:
                self.trunk = _fused(model.trunk, probe)
                self.head = FastTree(model.head, dtype)

    @torch.no_grad()
    def forward(self, images: Tensor, gains: Tensor | None = None) -> Tensor:
        """As :meth:`HierarchicalNet.forward`; float32 logits ``[B, classes]``.

        Raises:
            UsageError: if a plain network is given gains, or ``gains`` has a wrong shape.
        """
        features = self.features(images)
        if self.head is not None:
            logits: Tensor = self.head(features, gains)
            return logits
        if gains is not None:
            raise UsageError("a plain network has no branches to cue; leave the gains out")
        return features.float()

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """The trunk's output ``[B, C, h, w]``; of a plain network, the logits."""
        result: Tensor = self.trunk(images.to(self.dtype, memory_format=torch.channels_last))
        return result

    def train(self, mode: bool = True) -> Self:
        """It stays in evaluation mode."""
        return super().train(False)

    @property
    def has_branches(self) -> bool:
        """Whether it has branches that can be cued."""
        return self.head is not None

    def select(self, classes: str | Iterable[str | int]) -> InferenceNet:
        """An expert at run time: it shares the trunk and the weights, and is made in well under a millisecond.

        Its branches run on views of the full network's weights, neither folded nor packed; to run one choice for long,
        optimise a cut (:func:`hlnet.cut_expert`) instead.

        Args:
            classes: a selection, as :func:`hlnet.select_classes` takes it.

        Raises:
            SelectionError: if it names what the tree does not have.
            UsageError: for a plain network.

        Example:
            >>> from hlnet.presets import create_model
            >>> net = optimize(create_model("resnet18", tree={"cat": ["tabby", "siamese"], "dog": ["beagle"]}))
            >>> net.select("cat")(torch.zeros(1, 3, 64, 64)).shape
            torch.Size([1, 2])
        """
        if not isinstance(self.head, FastTree):
            raise UsageError("classes are selected from an optimised full network; this is a plain one, or a selection")
        selected = copy(self)
        selected._modules = dict(self._modules)
        selected.head = SelectedTree(self.head.branches, classes)
        return selected

    @property
    def tree(self) -> ClassTree:
        """The class tree; ``tree.classes`` is the order of the logits."""
        return self._tree if self.head is None else self.head.tree

    def explain(self) -> list[str]:
        """What was done to the network, one line each; of the branches, for the batches that were run."""
        modules = list(self.trunk.modules())
        convs = [module for module in modules if isinstance(module, Conv | Linear)]
        packed = sum(conv.packed for conv in convs)
        acts = sum(conv.activation != "none" for conv in convs)
        norms = sum(isinstance(module, nn.BatchNorm2d) for module in modules)
        name = "plain network" if self.head is None else "trunk"
        lines = [f"{name}: not traced, runs as it is"]
        if convs:
            lines = [
                f"{name}: {len(convs)} convolutions and linear maps, {packed} with weights packed for oneDNN, "
                f"{acts} with their activation; {norms} batch norms left"
            ]
        first = f"computes in {str(self.dtype).removeprefix('torch.')}"
        return [first, *lines, *(self.head.explain() if isinstance(self.head, FastTree) else [])]


def _fused(module: nn.Module, probe: Tensor) -> nn.Module:
    """The module in the probe's type and faster; the original stays as it is, and its mode is its own."""
    same = all(parameter.dtype is probe.dtype for parameter in module.parameters())
    source = module if same else deepcopy(module).to(probe.dtype)
    fused = fuse(source, probe)
    return deepcopy(fused) if fused is module else fused


class FastTree(nn.Module):
    """The branches, packed for the size of the trunk's output and the kind of batch when these first come."""

    def __init__(self, branches: BranchTree, dtype: torch.dtype) -> None:
        super().__init__()
        self.tree, self.dtype = branches.tree, dtype
        self._branches: list[Any] = [own_mode(branches)]  # within a list it is no part of this module
        self._packed: dict[tuple[int, int, int], list[list[list[_Siblings]]]] = {}

    @property
    def branches(self) -> BranchTree:
        """The training form."""
        branches: BranchTree = self._branches[0]
        return branches

    @torch.no_grad()
    def forward(self, features: Tensor, gains: Tensor | None = None) -> Tensor:
        """As :meth:`BranchTree.forward`; float32 logits ``[B, classes]``."""
        gains = self.branches.check_gains(gains, len(features))
        features = features.to(self.dtype, memory_format=torch.channels_last)
        packed = self.pack((features.shape[2], features.shape[3]), len(features))
        logits = torch.empty(len(features), len(self.tree.classes), device=features.device)
        for start in range(0, len(features), BATCH):
            part = slice(start, start + BATCH)
            self._grow(packed, features[part], None if gains is None else gains[part], 0, 0, logits[part])
        return logits

    def pack(self, size: tuple[int, int], batch: int) -> list[list[list[_Siblings]]]:
        """For each level and parent, the chunks of children; made when first asked for.

        Args:
            size: height and width of the trunk's output.
            batch: one or two images want large chunks, which keep the processor busy; more want small ones, which fit
                the cache. (Both are kept once they are made, at the price of memory.)
        """
        batch = 1 if batch <= 2 else BATCH
        key = (*size, batch)
        if key not in self._packed:
            levels = []
            place = 0  # of the level's first node among all nodes
            for depth, level in enumerate(self.branches.levels):
                assert isinstance(level, BranchLevel)
                leaves = self.branches.leaves if depth == self.tree.num_levels - 1 else None
                levels.append(_families(level, leaves, place, size, batch, self.dtype))
                place += level.nodes
                size = level.output_size(size)
            self._packed[key] = levels
        return self._packed[key]

    def explain(self) -> list[str]:
        """How the children of each parent were put together, one line a level and kind of batch."""
        lines = []
        for (_, _, batch), levels in self._packed.items():
            images = "one or two images" if batch == 1 else f"batches of up to {BATCH}"
            for number, families in enumerate(levels, start=1):
                chunks = [chunk for family in families for chunk in family]
                lines.append(
                    f"level {number}, {images}: {sum(chunk.count for chunk in chunks)} nodes of {len(families)} "
                    f"parents in {len(chunks)} chunks of at most {max(chunk.count for chunk in chunks)}"
                )
        return lines

    def _grow(
        self, packed: list[list[list[_Siblings]]], x: Tensor, gains: Tensor | None, depth: int, parent: int, out: Tensor
    ) -> None:
        """Write the logits of all classes below one parent, whose output is ``x``."""
        family = packed[depth][parent]
        shared = family[0].block.share(x)
        for part in family:
            y = part.block(shared, None if gains is None else gains[:, part.place : part.place + part.count])
            if part.leaf is not None:
                out[:, part.start : part.start + part.count] = part.leaf(y)
                continue
            for child, features in enumerate(y.chunk(part.count, dim=1), start=part.start):
                self._grow(packed, features, gains, depth + 1, child, out)


@dataclass(frozen=True)
class _Siblings:
    """A chunk of one parent's children.

    Attributes:
        start, count: their rows within the level.
        place: of the first among all nodes of the tree, level by level.
        block: of the tree's block.
        leaf: on the last level.
    """

    start: int
    count: int
    place: int
    block: BottleneckChunk | ConvNeXtChunk
    leaf: LeafChunk | None


def _families(
    level: BranchLevel, leaves: Leaves | None, place: int, size: tuple[int, int], batch: int, dtype: torch.dtype
) -> list[list[_Siblings]]:
    chunk: Any = CHUNKS[type(level)]
    fits = max(1, CACHE // max(1, batch * size[0] * size[1] * level.widest * dtype.itemsize))
    families, start = [], 0
    for siblings in level.sibling_counts:
        parts = []
        for first in range(start, start + siblings, fits):
            end = min(first + fits, start + siblings)
            leaf = None if leaves is None else LeafChunk(leaves, first, end)
            block = chunk(level, first, end, size, batch, dtype)
            parts.append(_Siblings(first, end - first, place + first, block, leaf))
        families.append(parts)
        start += siblings
    return families
