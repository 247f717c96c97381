"""The tree of an inference form: walked depth first, the children of a parent in chunks.

Notable here: where families are small and have much in common, those of neighbouring parents run together, as a step of
a few microseconds costs as much as what it computes. A *plan* says which nodes run together. The full network's (here)
and those of some classes only (:mod:`hlnet.model.fast.select`) are walked by the same code, and share the chunks that
are packed. A chunk is packed when it first runs, so only what is used takes memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hlnet.model.branches import BranchLevel
from hlnet.model.fast.chunks import CHUNKS, LeafChunk, SiblingBlock, joins_families
from hlnet.model.fast.fuse import fuse_or_why_not, own_mode, what_was_fused
from hlnet.model.fast.weight_watch import WeightWatch
from hlnet.model.hierarchical import BranchTree
from hlnet.tree.class_tree import ClassTree

#: What a chunk of siblings may fill of the cache with an inner result (``inner_width`` channels a node), in bytes.
CACHE = 2**20
#: Images that go through the branches together; larger batches are cut, which keeps chunks worth while.
BATCH = 8


@dataclass(frozen=True, eq=False)
class Siblings:
    """Neighbouring nodes of one level, which run together: children of one parent, or families side by side.

    Attributes:
        rows: theirs within the level.
        parents: whose children they are, rows of the level above.
        make_block, make_leaf: what they run, and on the last level their logits; called once, when they first run.
    """

    rows: range
    parents: range
    make_block: Callable[[], SiblingBlock]
    make_leaf: Callable[[], LeafChunk] | None

    @cached_property
    def block(self) -> SiblingBlock:
        """What they run."""
        return self.make_block()

    @cached_property
    def leaf(self) -> LeafChunk | None:
        """Their logits, on the last level."""
        return None if self.make_leaf is None else self.make_leaf()


@dataclass(frozen=True, eq=False)
class Part:
    """Siblings that run, and which of them are asked for.

    Attributes:
        siblings: that run.
        kept: positions among them whose results are asked for, ascending.
        place: of the first of these among all nodes that are asked for, level by level, which is its gain's.
    """

    siblings: Siblings
    kept: list[int]
    place: int

    def gains(self, gains: Tensor | None) -> Tensor | None:
        """The gains of all that run, ``[B, m]``; neutral for those that are not asked for."""
        if gains is None:
            return None
        own = gains[:, self.place : self.place + len(self.kept)]
        if len(self.kept) == len(self.siblings.rows):
            return own
        found = own.new_ones(len(own), len(self.siblings.rows))
        found[:, self.kept] = own
        return found


#: For each level, by (first) parent, the parts that run.
Plan = list[dict[int, list[Part]]]
#: Gives the plan for a size of features and a batch, as :meth:`FastTree.plan`.
Plans = Callable[[tuple[int, int], int], Plan]


class FastTree(nn.Module):
    """The branches, in chunks that suit the size of the trunk's output that comes first; they serve other sizes too.

    Args:
        branches: the training form, in evaluation mode; it must stay as it is.
        dtype: to compute in.
    """

    def __init__(self, branches: BranchTree, dtype: torch.dtype) -> None:
        super().__init__()
        self.tree: ClassTree = branches.tree
        self.dtype = dtype
        self.weights = WeightWatch(branches)
        self._branches = [own_mode(branches)]  # within a list it is no part of this module
        self.stage: nn.Module | None = None
        self.stage_as_is = ""
        self._plans: dict[int, Plan] = {}

    @property
    def branches(self) -> BranchTree:
        """The training form."""
        return self._branches[0]

    def forward(self, features: Tensor, gains: Tensor | None = None) -> Tensor:
        """As :meth:`BranchTree.forward`; float32 logits ``[B, classes]``.

        Raises:
            UsageError: if ``gains`` has a wrong shape, or the training form has changed.
        """
        gains = self.branches.check_gains(gains, len(features))
        return self.run(features, gains, self.plan, range(len(self.tree.classes)))[0]

    @torch.no_grad()
    def run(
        self,
        features: Tensor,
        gains: Tensor | None,
        plan: Plans,
        classes: Sequence[int],
    ) -> tuple[Tensor, Tensor | None]:
        """Logits ``[B, classes]`` of these classes by a plan, and the part of them that their rows give."""
        features, rows = self.seen_and_rows(features, classes)
        chunked = _chunked(features.device)
        together = BATCH if chunked else max(1, len(features))
        parts = plan((features.shape[2], features.shape[3]), 1 if chunked and len(features) <= 2 else BATCH)
        logits = torch.empty(len(features), len(classes), device=features.device)
        for start in range(0, len(features), together):
            part = slice(start, start + together)
            grown = _grow(parts, features[part], None if gains is None else gains[part], 0, range(1))
            torch.cat(list(grown), dim=1, out=logits[part])
        return (logits if rows is None else logits.add_(rows)), rows

    def seen_and_rows(self, features: Tensor, classes: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """What the tree sees of the trunk's output, and what these classes' rows make of it, if there are rows.

        Raises:
            UsageError: if the training form has changed.
        """
        self.weights.check()
        seen = self._seen(features.to(self.dtype, memory_format=torch.channels_last))
        if (rows := self.branches.class_rows) is None:
            return seen, None
        whole = len(classes) == len(rows.bias)
        weight, bias = (tensor if whole else tensor[list(classes)] for tensor in (rows.weight, rows.bias))
        return seen, F.linear(rows.pool(seen.float()), weight.float(), bias.float())

    def _seen(self, features: Tensor) -> Tensor:
        """As :meth:`BranchTree.seen`; the stage is made for the size of the features that come first."""
        if self.branches.stage is None:
            return features
        if self.stage is None:
            self.stage, self.stage_as_is = fuse_or_why_not(self.branches.stage, torch.zeros_like(features[:1]))
        seen: Tensor = self.stage(features)
        return seen

    def plan(self, size: tuple[int, int], batch: int) -> Plan:
        """How all nodes run; made when first asked for.

        Args:
            size: height and width of what the tree sees, if it is the first.
            batch: 1 or ``BATCH``. One or two images want large chunks, which keep the processor busy; more want small
                ones, which fit the cache. (Both are kept once they have run, at the price of memory.)
        """
        if batch not in self._plans:
            plan, place, above = [], 0, [range(1)]
            for depth, level in enumerate(self.branches.levels):
                assert isinstance(level, BranchLevel)
                plan.append(self._families(level, depth == self.tree.num_levels - 1, place, size, batch, above))
                above = [part.siblings.rows for parts in plan[-1].values() for part in parts]
                place += level.nodes
                size = level.output_size(size)
            self._plans[batch] = plan
        return self._plans[batch]

    def explain(self) -> list[str]:
        """How the children of each parent were put together, one line a level and kind of batch."""
        lines = [] if self.stage is None else [what_was_fused("shared stage", self.stage, self.stage_as_is)]
        chunked = _chunked(self.branches.leaves.weight.device)
        for batch, plan in self._plans.items():
            images = "one or two images" if batch == 1 else f"batches of up to {BATCH}" if chunked else "any batch"
            for number, families in enumerate(plan, start=1):
                parts = [part for family in families.values() for part in family]
                counts, parents = (
                    [len(part.kept) for part in parts],
                    {p for part in parts for p in part.siblings.parents},
                )
                lines.append(
                    f"level {number}, {images}: {sum(counts)} nodes of {len(parents)} "
                    f"parents in {len(counts)} chunks of at most {max(counts)}"
                )
        return lines

    def _families(
        self,
        level: BranchLevel,
        last: bool,
        place: int,
        size: tuple[int, int],
        batch: int,
        above: Sequence[range],
    ) -> dict[int, list[Part]]:
        """The parts of a level; those above it run these ranges of its parents together."""
        fits = max(1, CACHE // max(1, batch * size[0] * size[1] * level.inner_width * self.dtype.itemsize))
        if not _chunked(self.branches.leaves.weight.device):
            fits = level.nodes
        families: dict[int, list[Part]] = {}
        chunk: Any = CHUNKS[type(level)]
        starts = list(accumulate(level.sibling_counts, initial=0))
        for parents in (some for together in above for some in _side_by_side(level, together, fits)):
            start, end = starts[parents.start], starts[parents.stop]
            for first in range(start, end, fits):
                rows = range(first, min(first + fits, end))
                block = partial(chunk, level, rows.start, rows.stop, size, batch, self.dtype)
                leaf = partial(LeafChunk, self.branches.leaves, rows.start, rows.stop) if last else None
                part = Part(Siblings(rows, parents, block, leaf), list(range(len(rows))), place + first)
                families.setdefault(parents.start, []).append(part)
        return families


def _side_by_side(level: BranchLevel, parents: range, fits: int) -> Iterator[range]:
    """Parents whose families run together: single ones, unless each has little to do for itself."""
    start, rows = parents.start, 0
    for parent in parents:
        count = level.sibling_counts[parent]
        if rows and (not joins_families(level) or rows + count > fits):
            yield range(start, parent)
            start, rows = parent, 0
        rows += count
    yield range(start, parents.stop)


def _chunked(device: torch.device) -> bool:
    """Whether siblings and batches are cut to fit the cache. Measured on processors; elsewhere, where nothing was
    measured, whole families and whole batches run, as other devices want large pieces of work."""
    return device.type == "cpu"


def _grow(plan: Plan, x: Tensor, gains: Tensor | None, depth: int, parents: range) -> Iterator[Tensor]:
    """Logits ``[B, m]`` of the classes below some neighbours, whose outputs ``x`` has side by side, in order."""
    channels = x.shape[1] // len(parents)
    for parent in parents:
        shared: dict[type, Any] = {}
        for part in plan[depth].get(parent, ()):
            siblings = part.siblings
            kind = type(siblings.block)
            if kind not in shared:
                own = x.narrow(1, (parent - parents.start) * channels, len(siblings.parents) * channels)
                shared[kind] = siblings.block.share(own)
            y = siblings.block(shared[kind], part.gains(gains))
            if siblings.leaf is None:
                yield from _grow(plan, y, gains, depth + 1, siblings.rows)
            else:
                logits = siblings.leaf(y)
                yield logits if len(part.kept) == len(siblings.rows) else logits[:, part.kept]
