"""Experts at run time: some classes of a loaded network, chosen anew at any moment.

Notable here: of the full network's chunks, those of which enough is asked for run whole, packed as they are for the
full network, and what is not asked for is dropped. The rest runs on views of the stacked weights, one for each run of
neighbouring siblings. So few classes are served at once, and many never take much longer than all. To write a small
file, or to run one choice for long, cut an expert instead (``hlnet.cut_expert``).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from itertools import groupby
from typing import Any

from torch import Tensor, nn

from hlnet.model.fast.chunks import LeafChunk, UnpackedChunk
from hlnet.model.fast.walk import FastTree, Part, Plan, Siblings
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.selection import select_classes

#: The part of a chunk that must be asked for to run it whole: one child on views takes as long as two to four packed.
WHOLE = 1 / 4


class SelectedTree(nn.Module):
    """The branches of some classes.

    Args:
        full: the full network's.
        classes: a selection, as :func:`hlnet.select_classes` takes it.

    Shape:
        features ``[B, C, H, W]`` to float32 logits ``[B, selected]``, in the order of ``self.tree.classes``.

    Raises:
        SelectionError: if the selection names what the tree does not have.

    Example:
        >>> import torch
        >>> from hlnet.model.presets import create_model
        >>> net = create_model("resnet18", tree={"cat": ["tabby", "siamese"], "dog": ["beagle"]}).eval()
        >>> some = SelectedTree(FastTree(net.head, torch.float32), "cat")
        >>> some.tree.classes, some(torch.zeros(1, 256, 7, 7)).shape
        (('tabby', 'siamese'), torch.Size([1, 2]))
    """

    def __init__(self, full: FastTree, classes: str | Iterable[str | int]) -> None:
        super().__init__()
        self._full = [full]  # within a list it is no part of this module
        self.rows = full.tree.rows(select_classes(full.tree, classes))
        self._plans: dict[int, Plan] = {}

    @cached_property
    def tree(self) -> ClassTree:
        """The expert's class tree."""
        return self._full[0].tree.prune(self.rows[-1])

    @property
    def part(self) -> tuple[FastTree, Sequence[int]]:
        """The full network's branches, and the positions of these classes."""
        return self._full[0], self.rows[-1]

    def forward(self, features: Tensor, gains: Tensor | None = None) -> Tensor:
        """As :meth:`FastTree.forward`; gains are for the nodes of ``self.tree``."""
        full, nodes = self._full[0], sum(map(len, self.rows))
        gains = full.branches.check_gains(gains, len(features), nodes)
        return full.run(features, gains, self.plan, self.rows[-1])[0]

    def plan(self, size: tuple[int, int], batch: int) -> Plan:
        """Which siblings run together, as :meth:`FastTree.plan`."""
        if batch not in self._plans:
            plan, place, ran = [], 0, [range(1)]
            for depth, (full, rows) in enumerate(zip(self._full[0].plan(size, batch), self.rows, strict=True)):
                plan.append(self._families(full, depth, rows, place, ran))
                ran = [part.siblings.rows for parts in plan[-1].values() for part in parts]
                place += len(rows)
            self._plans[batch] = plan
        return self._plans[batch]

    def _families(
        self, full: dict[int, list[Part]], depth: int, rows: Sequence[int], place: int, ran: Sequence[range]
    ) -> dict[int, list[Part]]:
        """The parts of a level; those above it run these ranges of its parents together."""
        chunks = [part.siblings for parts in full.values() for part in parts]
        starts, before = [siblings.rows.start for siblings in chunks], [some.start for some in ran]
        families: dict[int, list[Part]] = {}
        for index, group in groupby(rows, key=lambda row: bisect_right(starts, row) - 1):
            siblings, chosen = chunks[index], list(group)
            together = bisect_right(before, siblings.parents.start) - 1
            whole = together >= 0 and siblings.parents.stop <= ran[together].stop
            if whole and len(chosen) >= WHOLE * len(siblings.rows):
                found = [siblings]
            else:
                found = [self._unpacked(depth, run) for run in self._runs(depth, chosen)]
            for some in found:
                kept = [row - some.rows.start for row in chosen if row in some.rows]
                families.setdefault(some.parents.start, []).append(Part(some, kept, place))
                place += len(kept)
        return families

    def _unpacked(self, depth: int, rows: range) -> Siblings:
        branches = self._full[0].branches
        level: Any = branches.levels[depth]
        last = depth == len(self.rows) - 1
        leaf = partial(LeafChunk, branches.leaves, rows.start, rows.stop) if last else None
        parents = level.parents_of(slice(rows.start, rows.stop))
        return Siblings(rows, parents, partial(UnpackedChunk, level, rows.start, rows.stop), leaf)

    def _runs(self, depth: int, rows: Iterable[int]) -> Iterator[range]:
        """Ascending rows of a level as ranges of neighbours that have one parent."""
        parents = self._full[0].tree.levels[depth]
        for _, run in groupby(
            enumerate(rows), key=lambda numbered: (parents[numbered[1]].parent, numbered[1] - numbered[0])
        ):
            found = [row for _, row in run]
            yield range(found[0], found[-1] + 1)
