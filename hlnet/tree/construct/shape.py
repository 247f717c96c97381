"""The shape of a class tree that is made of a deeper hierarchy: nodes of each level, as given, by budget, or evenly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hlnet.errors import TreeError, UsageError
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.construct.budget import Budget, UnitCost, fit_counts, tree_for_budget
from hlnet.tree.construct.levels import cut_to_levels, even_counts
from hlnet.tree.hierarchy import Hierarchy
from hlnet.tree.selection import read_selections

#: Levels of a tree of which neither nodes nor levels are said, the classes' included: the paper's.
LEVELS = 3


def _uncounted() -> Sequence[UnitCost]:
    raise UsageError("a budget needs the costs of the network that it is for")


@dataclass(frozen=True)
class Shape:
    """Shape of a tree that is cut from a deeper hierarchy.

    Attributes:
        nodes: of each level above the classes; the classes' own count may follow.
        levels: how many, the classes' included.
        budget: an upper limit on what the network may cost, in place of ``nodes``.
        units: gives the costs of that network's trunk and of one node of each level (``hlnet.model.cost.unit_costs``).
        max_children: no node gets more children; only the trunk may.
        groups: file of named selections that will be asked for together.

    Raises:
        UsageError: for nodes together with levels or a budget.

    Example:
        >>> Shape(levels=3).nodes_for(100)
        (5, 22)
    """

    nodes: tuple[int, ...] | None = None
    levels: int | None = None
    budget: Budget | None = None
    units: Callable[[], Sequence[UnitCost]] = _uncounted
    max_children: int | None = None
    groups: Path | None = None

    def __post_init__(self) -> None:
        if self.nodes and (self.budget or self.levels):
            raise UsageError("nodes fix the number of levels and the cost: leave levels and budget out")

    @property
    def given(self) -> bool:
        """Whether anything was asked for."""
        asked = (self.nodes, self.levels, self.budget, self.max_children, self.groups)
        return any(value is not None for value in asked)

    def nodes_for(self, classes: int) -> tuple[int, ...]:
        """Nodes of each level above so many classes."""
        if self.nodes:  # the classes' own count may be there, as "profile --nodes" has it
            return self.nodes[:-1] if len(self.nodes) > 1 and self.nodes[-1] == classes > 1 else self.nodes
        if self.budget:
            return fit_counts(self.units(), classes, self.budget)[:-1]
        return even_counts(classes, self.levels or LEVELS)[:-1]

    def cut(self, hierarchy: Hierarchy) -> ClassTree:
        """The class tree of this shape that a hierarchy gives."""
        groups: dict[str, list[str]] = {}
        if self.groups:
            try:
                tree = hierarchy.to_tree()  # so that a selection can name a node of the hierarchy
            except TreeError:  # a dendrogram, deeper than any class tree; its nodes have no names worth writing
                tree = Hierarchy("", hierarchy.leaves()).to_tree()
            found = read_selections(self.groups, tree)
            groups = {name: [tree.classes[i] for i in chosen] for name, chosen in found.items()}
        if self.budget and groups:
            return tree_for_budget(hierarchy, self.units(), self.budget, groups, self.max_children)
        nodes = self.nodes_for(len(hierarchy.leaves()))
        return cut_to_levels(hierarchy, nodes, self.max_children, groups.values()).to_tree(len(nodes) + 1)

    def reshaped(self, tree: ClassTree) -> ClassTree | None:
        """A tree's own nesting in this shape; ``None`` where continuing its classes to ``levels`` is all it takes."""
        if not replace(self, levels=None).given and (self.levels is None or self.levels >= tree.num_levels):
            return None
        only_nodes = self.nodes is not None and not replace(self, nodes=None).given
        if only_nodes and self.nodes_for(tree.counts[-1]) == tree.counts[:-1]:
            return tree  # it has these already
        shape = self if self.nodes or self.levels or self.budget else replace(self, nodes=tree.counts[:-1])
        return shape.cut(Hierarchy.of(tree))

    def spent(self, tree: ClassTree) -> str | None:
        """The tree's cost, and the budget: ``"24.9M parameters of 25M parameters"``."""
        if self.budget is None:
            return None
        spent = self.budget.spent(self.units(), tree.counts)
        return f"{self.budget.text(spent)} of {self.budget.text(self.budget.limit)}"
