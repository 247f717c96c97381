"""Choosing how many nodes each level gets, so that a network keeps to a budget, and the experts one wants are cheap.

A network's cost is its trunk's and so many times a node's at each level, so every choice of node counts can be priced
without building anything. The same holds for experts: what counts is how many nodes of each level their classes touch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

import numpy as np

from hlnet.errors import UsageError
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.construct.levels import cut_to_levels
from hlnet.tree.hierarchy import Hierarchy

_BUDGET = re.compile(r"([0-9]*\.?[0-9]+)\s*([kMG])(\s*MACs?|B)?", re.IGNORECASE)
_SCALE = {"k": 1e3, "m": 1e6, "g": 1e9}


class UnitCost(Protocol):
    """The cost of the trunk, of one node of a level (``unit_costs`` gives them), or of a network."""

    @property
    def params(self) -> int: ...
    @property
    def macs(self) -> int: ...
    @property
    def bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit on a network's parameters, its multiply-accumulates for one image, or the bytes of its weights.

    Example:
        >>> Budget.parse("25M"), Budget.parse("4.2GMACs"), Budget.parse("40MB").text(2.5e6)
        (Budget(measure='params', limit=25000000.0), Budget(measure='macs', limit=4200000000.0), '2.5 MB of weights')
    """

    measure: Literal["params", "macs", "bytes"]
    limit: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``"25M"`` as parameters, ``"4.2GMAC"`` as multiply-accumulates, ``"40MB"`` as bytes; K, M or G each.

        Raises:
            UsageError: if it is none of them, or zero.
        """
        found = _BUDGET.fullmatch(text.strip())
        if not found or not float(found[1]) or (found[2].lower() == "g" and not found[3]):
            raise UsageError(
                f"budget '{text}': expected parameters, such as 15M, computation, such as 4.2GMAC, or weights, such "
                "as 40MB"
            )
        unit = (found[3] or "").strip().lower()
        measure: Literal["params", "macs", "bytes"] = "bytes" if unit == "b" else "macs" if unit else "params"
        return cls(measure, float(found[1]) * _SCALE[found[2].lower()])

    def of(self, unit: UnitCost) -> int:
        """What a part or a network costs, in this budget's measure."""
        return {"params": unit.params, "macs": unit.macs, "bytes": unit.bytes}[self.measure]

    def fits(self, unit: UnitCost) -> bool:
        """Whether a part or a network keeps to it; to cost just as much is to keep to it."""
        return self.of(unit) <= self.limit

    def spent(self, units: Sequence[UnitCost], counts: Sequence[int]) -> int:
        """What a network with these nodes at each level costs."""
        return self.of(units[0]) + sum(n * self.of(unit) for unit, n in zip(units[1:], counts, strict=True))

    def figure(self, amount: float) -> str:
        """An amount of this measure, such as ``"2.5 MB"``."""
        scale, unit = {"params": (1e6, "M"), "macs": (1e9, " GMACs"), "bytes": (1e6, " MB")}[self.measure]
        return f"{amount / scale:.4g}{unit}"

    def text(self, amount: float) -> str:
        """An amount, and of what, such as ``"2.5 MB of weights"``."""
        return self.figure(amount) + {"params": " parameters", "macs": "", "bytes": " of weights"}[self.measure]


def fit_counts(units: Sequence[UnitCost], classes: int, budget: Budget) -> tuple[int, ...]:
    """Nodes of each level, the classes' included, that spend a budget with branching as even as can be.

    Args:
        units: of ``profiling.unit_costs``: the trunk, and one node of each level.
        classes: nodes of the last level.
        budget: an upper limit.

    Raises:
        UsageError: if even a single node at each inner level costs too much.

    Example:
        >>> from hlnet.model.presets import network_config
        >>> from hlnet.model.cost import unit_costs
        >>> units, _ = unit_costs(network_config("n3hl_resnet50", levels=3))
        >>> fit_counts(units, 100, Budget.parse("25M"))
        (6, 26, 100)
    """
    return min(affordable(units, classes, budget), key=_unevenness)


def affordable(
    units: Sequence[UnitCost], classes: int, budget: Budget, choices: int = 100_000
) -> Iterator[tuple[int, ...]]:
    """The node counts that spend a budget: no node more could be added to the last level above the classes.

    But no level gets more than half as many nodes as the next: with fewer than two children each, they group nothing.

    Args:
        units, classes, budget: as for :func:`fit_counts`.
        choices: of the levels before that one, at most about so many combinations are tried, evenly spaced as factors.

    Raises:
        UsageError: as :func:`fit_counts`.
    """
    if classes < 1:
        raise UsageError(f"a network needs at least one class, got {classes}")
    levels = len(units) - 1
    least = (1,) * (levels - 1) + (classes,)
    if budget.spent(units, least) > budget.limit:
        raise UsageError(
            f"a budget of {budget.text(budget.limit)} is too small: {classes} classes take at least "
            f"{budget.text(budget.spent(units, least))}, with {','.join(map(str, least))} nodes"
        )
    if levels == 1:
        yield least
        return
    tried: Sequence[int] = range(1, classes + 1)
    if levels > 2 and classes ** (levels - 2) > choices:
        steps = max(2, int(choices ** (1 / (levels - 2))))
        tried = sorted({round(value) for value in np.geomspace(1, classes, steps)})

    def above(counts: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """Counts of the levels up to the last but one above the classes."""
        if len(counts) == levels - 2:
            yield counts
            return
        for count in tried:
            if not counts or count >= 2 * counts[-1] or counts[-1] == 1:
                yield from above((*counts, count))

    for first in above(()):
        lowest = 2 * first[-1] if first and first[-1] > 1 else 1
        left = budget.limit - budget.spent(units, (*first, 0, classes))
        count = min(max(1, classes // 2), int(left // budget.of(units[-2])))
        if count >= lowest:
            yield (*first, count, classes)


def expert_costs(
    tree: ClassTree, groups: Mapping[str, Collection[str]], units: Sequence[UnitCost], budget: Budget
) -> np.ndarray:
    """What an expert for each group costs, in the budget's measure: ``[groups]``.

    Args:
        tree: the full network's.
        groups: names of classes, by name of the group.
        units: of ``profiling.unit_costs``.
        budget: of which only the measure counts.

    Raises:
        UsageError: if a group names a class that the tree does not have, or none names any.
    """
    from scipy.sparse import csr_array

    _check_groups(groups, tree.classes)
    members = [(row, tree.positions[name]) for row, names in enumerate(groups.values()) for name in set(names)]
    rows, columns = zip(*members, strict=True)
    asked = csr_array((np.ones(len(members), bool), (rows, columns)), shape=(len(groups), len(tree.classes)))
    touched = (asked @ tree.ancestors()).astype(bool)
    price = np.repeat([budget.of(unit) for unit in units[1:]], tree.counts)
    return np.asarray(touched @ price + budget.of(units[0]))


def tree_for_budget(
    hierarchy: Hierarchy,
    units: Sequence[UnitCost],
    budget: Budget,
    groups: Mapping[str, Collection[str]] | None = None,
    max_children: int | None = None,
) -> ClassTree:
    """The tree, out of a hierarchy, that spends a budget; with groups, one whose experts for them are cheap.

    Without groups the counts are :func:`fit_counts`'s. With groups, about forty choices of counts at most are tried, on
    the hierarchy as it is and on one that first sorts the classes by the groups that they are in; the tree with the
    cheapest mean expert wins.

    Raises:
        UsageError: if the budget is too small, or no tree keeps to ``max_children``.
    """
    classes, levels = len(hierarchy.leaves()), len(units) - 1
    if not groups:
        return cut_to_levels(hierarchy, fit_counts(units, classes, budget)[:-1], max_children).to_tree(levels)
    _check_groups(groups, {leaf.name for leaf in hierarchy.leaves()})
    together = groups.values()
    ways: list[tuple[Hierarchy, Iterable[Collection[str]]]] = [
        (hierarchy, together),
        (sorted_by_group(hierarchy, groups), together),
        (hierarchy, ()),  # which may keep to max_children where the others do not
    ]
    best: tuple[float, float] | None = None
    for counts in affordable(units, classes, budget, choices=40):
        for hierarchy, sets in ways:
            try:
                tree = cut_to_levels(hierarchy, counts[:-1], max_children, sets).to_tree(levels)
            except UsageError as error:  # too few nodes for max_children
                refusal = error
                continue
            rank = (float(expert_costs(tree, groups, units, budget).mean()), _unevenness(counts))
            if best is None or rank < best:
                best, found = rank, tree
    if best is None:
        raise refusal
    return found


def sorted_by_group(hierarchy: Hierarchy, groups: Mapping[str, Collection[str]]) -> Hierarchy:
    """The hierarchy below one node for each combination of groups that classes are in.

    Example:
        >>> root = Hierarchy("", [Hierarchy("animal", [Hierarchy("cat"), Hierarchy("cow")]), Hierarchy("bowl")])
        >>> [child.name for child in sorted_by_group(root, {"home": ["cat", "bowl"]}).children]
        ['home', 'other']
    """
    inside: dict[str, tuple[str, ...]] = {leaf.name: () for leaf in hierarchy.leaves()}
    for name, members in groups.items():
        for member in set(members):
            inside[member] += (name,)
    combinations: dict[tuple[str, ...], list[str]] = {}
    for member, names in inside.items():
        combinations.setdefault(names, []).append(member)
    nodes = []
    for names, members in combinations.items():
        node = hierarchy.only(members)
        node.name, node.id = "+".join(names).replace("/", "-") or "other", None
        nodes.append(node)
    return Hierarchy("", nodes, height=hierarchy.height)


# ---------------------------------------------------------------------- helpers


def _check_groups(groups: Mapping[str, Collection[str]], classes: Collection[str]) -> None:
    empty = [name for name, classes in groups.items() if not classes]
    if empty or not groups:
        raise UsageError(f"group '{empty[0]}' names no class" if empty else "there are no groups")
    if unknown := {name for names in groups.values() for name in names}.difference(classes):
        raise UsageError(f"the groups name '{min(unknown)}', which is no class of the tree")


def _unevenness(counts: Sequence[int]) -> float:
    """How much the numbers of children differ from level to level, as factors."""
    return float(np.std([np.log(below / above) for above, below in pairwise((1, *counts))]))
