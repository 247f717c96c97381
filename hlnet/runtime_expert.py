"""Experts at run time: some classes of a loaded network, chosen anew at any moment, without copying a weight.

Notable here: what is kept are views of the full network's stacked weights, one for each run of neighbouring siblings.
To write a small file, or to run one choice for long, cut an expert instead (``hlnet.cut_expert``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from hlnet.branches import BranchLevel, Family, pooled
from hlnet.network import BranchTree
from hlnet.selection import select_classes
from hlnet.tree import ClassTree


class SelectedTree(nn.Module):
    """The branches of some classes.

    Args:
        branches: of the full network, in evaluation mode.
        classes: a selection, as :func:`hlnet.select_classes` takes it.

    Shape:
        features ``[B, C, H, W]`` to logits ``[B, selected]``, in the order of ``self.tree.classes``.

    Raises:
        SelectionError: if the selection names what the tree does not have.

    Example:
        >>> from hlnet.presets import create_model
        >>> net = create_model("resnet18", tree={"cat": ["tabby", "siamese"], "dog": ["beagle"]}).eval()
        >>> some = SelectedTree(net.head, "cat")
        >>> some.tree.classes, some(torch.zeros(1, 256, 7, 7)).shape
        (('tabby', 'siamese'), torch.Size([1, 2]))
    """

    def __init__(self, branches: BranchTree, classes: str | Iterable[str | int]) -> None:
        super().__init__()
        self._branches = [branches]  # within a list it is no part of this module
        self.rows = branches.tree.rows(select_classes(branches.tree, classes))

    @cached_property
    def tree(self) -> ClassTree:
        """The expert's class tree."""
        return self._branches[0].tree.prune(self.rows[-1])

    def forward(self, features: Tensor, gains: Tensor | None = None) -> Tensor:
        """As :meth:`BranchTree.forward`; gains are for the nodes of ``self.tree``."""
        gains = self._branches[0].check_gains(gains, len(features), self.tree.num_nodes)
        features = features.to(self._branches[0].leaves.weight.dtype)
        return torch.cat(list(self._grow(features, 0, 0, gains)), dim=1)

    def _grow(self, x: Tensor, depth: int, parent: int, gains: Tensor | None) -> Iterator[Tensor]:
        """Logits of the selected classes below one node, ``[B, m]`` for each run of siblings."""
        level = self._branches[0].levels[depth]
        for run in self._runs[depth].get(parent, ()):
            gain = None if gains is None else gains[:, run.place : run.place + run.count]
            children: Tensor = level(x, run.family, gain)
            if run.leaves is not None:
                yield self._branches[0].leaves(pooled(children), run.leaves)
                continue
            for child, features in enumerate(children.unbind(1), start=run.start):
                yield from self._grow(features, depth + 1, child, gains)

    @cached_property
    def _runs(self) -> list[dict[int, list[_Run]]]:
        """For each level, by parent, the runs of neighbouring siblings that are kept."""
        branches, place = self._branches[0], 0
        levels: list[dict[int, list[_Run]]] = []
        for depth, (level, rows) in enumerate(zip(branches.levels, self.rows, strict=True)):
            assert isinstance(level, BranchLevel)
            nodes = branches.tree.levels[depth]
            runs: list[list[int]] = []
            for row in rows:
                if runs and row == runs[-1][-1] + 1 and nodes[row].parent == nodes[row - 1].parent:
                    runs[-1].append(row)
                else:
                    runs.append([row])
            by_parent: dict[int, list[_Run]] = {}
            for run in runs:
                part = slice(run[0], run[-1] + 1)
                leaves = part if depth == len(self.rows) - 1 else None
                found = _Run(run[0], len(run), place, level.family(part), leaves)
                by_parent.setdefault(nodes[run[0]].parent, []).append(found)
                place += len(run)
            levels.append(by_parent)
        return levels


@dataclass(frozen=True)
class _Run:
    """Neighbouring siblings.

    Attributes:
        start, count: their rows within the full network's level.
        place: of the first among all nodes of the expert's tree.
        family: views of their weights.
        leaves: their rows, on the last level.
    """

    start: int
    count: int
    place: int
    family: Family
    leaves: slice | None
