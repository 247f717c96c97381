"""Candidate experts: named choices of a tree's classes, and which of them keep to a budget, before anything is cut.

Notable here: an expert's cost is its trunk's and so many times a node's at each level, so that every node of a large
tree is priced in a moment. The trunk's share, with what all classes share, is the floor: no choice of classes comes
below it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hlnet.errors import RunError, UsageError, one_line, some
from hlnet.model.cost import Cost, Part, total_cost
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.construct.budget import Budget
from hlnet.tree.selection import read_selections, select_classes


@dataclass(frozen=True, slots=True)
class Candidate:
    """An expert that could be cut.

    Attributes:
        name: a node's path, or what a selection is called.
        classes: positions in the tree's classes.
        cost: of the expert.
    """

    name: str
    classes: tuple[int, ...]
    cost: Cost


def compared(candidate: Candidate, budget: Budget) -> str:
    """How an expert's cost stands to a budget, for a message."""
    cost, name = budget.of(candidate.cost), one_line(candidate.name, 60)
    spare, limit = budget.limit - cost, f"the budget of {budget.figure(budget.limit)}"
    if spare >= 0:
        return f"'{name}' takes {budget.text(cost)}, within {limit}: {budget.figure(spare)} to spare"
    return f"'{name}' takes {budget.text(cost)}, {budget.figure(-spare)} over {limit}"


def candidates(tree: ClassTree, units: Sequence[Part], choices: Mapping[str, Collection[int]]) -> list[Candidate]:
    """Price an expert for each choice.

    Args:
        tree: the full network's.
        units: of :func:`hlnet.model.cost.unit_costs`.
        choices: positions of classes, by name.

    Raises:
        SelectionError: if a choice has no class.

    Example:
        >>> from hlnet.model.presets import network_config
        >>> from hlnet.model.cost import unit_costs
        >>> units, _ = unit_costs(network_config("n3hl_resnet50", levels=3))
        >>> tree = ClassTree.balanced((1, 2, 6))
        >>> [found] = candidates(tree, units, {"half": (0, 1, 2)})
        >>> found.cost.nodes, found.cost.params
        ((1, 1, 3), 9797699)
    """
    return [
        Candidate(name, tuple(sorted(classes)), total_cost(list(units), [len(row) for row in tree.rows(classes)]))
        for name, classes in choices.items()
    ]


def classes_by_node(tree: ClassTree, within: Collection[int] | None = None) -> dict[str, tuple[int, ...]]:
    """The classes under every inner node, by its path.

    Args:
        tree: the tree.
        within: positions of classes; only nodes that have no other class below them count.

    Example:
        >>> tree = ClassTree.from_nested({"animal": {"cat": ["tabby", "siamese"], "dog": ["beagle"]}, "saw": {}})
        >>> classes_by_node(tree)
        {'animal': (0, 1, 2), 'animal/cat': (0, 1), 'animal/dog': (2,)}
    """
    allowed = None if within is None else set(within)
    classes = {leaf.path for leaf in tree.leaves}
    found = {path: below for path, below in tree.node_names.below.items() if path not in classes}
    return {path: below for path, below in found.items() if allowed is None or allowed.issuperset(below)}


def nodes_of_level(tree: ClassTree, level: int, within: Collection[int] | None = None) -> dict[str, tuple[int, ...]]:
    """The classes under each node of one level, by its path; a class that ends above the level stands for itself.

    Args:
        tree: the tree.
        level: 1 is nearest to the trunk; at the last, every class is a node.
        within: positions of classes; no others count, and nodes without any are left out.

    Raises:
        UsageError: if the tree has no such level.

    Example:
        >>> tree = ClassTree.from_nested({"animal": {"cat": ["tabby", "siamese"], "dog": ["beagle"]}, "saw": {}})
        >>> nodes_of_level(tree, 2), nodes_of_level(tree, 2, within=(0, 3))
        ({'animal/cat': (0, 1), 'animal/dog': (2,), 'saw': (3,)}, {'animal/cat': (0,), 'saw': (3,)})
    """
    if not 1 <= level <= tree.num_levels:
        raise UsageError(f"the tree has no level {level}; its levels are 1, nearest to the trunk, to {tree.num_levels}")
    found = {node.path: tree.leaves_under(node.path) for node in tree.levels[level - 1]}
    if within is not None:
        kept = set(within)
        found = {path: tuple(i for i in below if i in kept) for path, below in found.items()}
    return {path: below for path, below in found.items() if below}


def choose(
    tree: ClassTree, classes: str | None = None, each: int | None = None, selections: Path | None = None
) -> dict[str, tuple[int, ...]]:
    """The classes of each wanted expert, by its name: of one selection, of each node of a level, or of a file's.

    Args:
        tree: the full network's.
        classes: a selection; with ``each``, no other classes count. Default: all.
        each: a level of which every node gets an expert.
        selections: a file of named selections, see :func:`hlnet.tree.selection.read_selections`.

    Raises:
        SelectionError, UsageError: if one of them names what the tree does not have.

    Example:
        >>> choose(ClassTree.from_nested({"cat": ["tabby", "siamese"], "saw": {}}), each=1)
        {'cat': (0, 1), 'saw': (2,)}
    """
    within = None if classes is None else select_classes(tree, classes)
    if each is not None:
        return nodes_of_level(tree, each, within)
    if selections is not None:
        return {name: tuple(kept) for name, kept in read_selections(selections, tree).items()}
    return {classes or "the whole network": tuple(within or range(len(tree.leaves)))}


def fitting(found: Iterable[Candidate], budget: Budget) -> list[Candidate]:
    """Those that keep to a budget: the most classes first, then the dearest."""
    kept = [candidate for candidate in found if budget.fits(candidate.cost)]
    return sorted(kept, key=lambda one: (-len(one.classes), -budget.of(one.cost), one.name))


def require_fit(wanted: Sequence[Candidate], budget: Budget, tree: ClassTree, units: Sequence[Part]) -> None:
    """Refuse experts that are over a budget.

    Raises:
        RunError: naming cost and budget and, of a single expert, the largest inner node of its classes that fits; or
            what the least is, where none does.

    Example:
        >>> from hlnet.model.presets import network_config
        >>> from hlnet.model.cost import unit_costs
        >>> units, _ = unit_costs(network_config("n3hl_resnet50", levels=3))
        >>> tree = ClassTree.balanced((1, 2, 6))
        >>> require_fit(candidates(tree, units, {"all": range(6)}), Budget.parse("9.9M"), tree, units)
        Traceback (most recent call last):
        hlnet.errors.RunError: 'all' takes 10.18M parameters, 0.2812M over the budget of 9.9M; \
the largest node of it that fits is 'group 1.0/group 2.0' (3 classes, 9.798M)
    """
    over = [candidate for candidate in wanted if not budget.fits(candidate.cost)]
    if not over:
        return
    if advice := floor(budget, units):
        raise RunError(f"{compared(over[0], budget)}; {advice}")
    if len(wanted) > 1:
        names = some(f"'{one.name}' ({budget.figure(budget.of(one.cost))})" for one in over)
        raise RunError(
            f"{len(over)} of {len(wanted)} experts are over the budget of {budget.text(budget.limit)}: {names}"
        )
    nearest = fitting(candidates(tree, units, classes_by_node(tree, over[0].classes)), budget)
    if nearest:
        classes = f"{len(nearest[0].classes)} classes, {budget.figure(budget.of(nearest[0].cost))}"
        advice = f"the largest node of it that fits is '{nearest[0].name}' ({classes})"
    else:
        advice = f"no inner node of it fits, one class alone takes {budget.text(one_class(budget, units))}"
    raise RunError(f"{compared(over[0], budget)}; {advice}")


def one_class(budget: Budget, units: Sequence[Part]) -> int:
    """What an expert for one class costs, in the budget's measure: every class has one node at each level."""
    return budget.of(total_cost(list(units), [1] * (len(units) - 1)))


def floor(budget: Budget, units: Sequence[Part]) -> str | None:
    """Why no expert at all keeps to a budget, or ``None`` where one does."""
    least, trunk = one_class(budget, units), budget.of(units[0])
    if least <= budget.limit:
        return None
    shared = " with what all classes share" if units[0].pieces else ""
    if trunk > budget.limit:
        return f"the trunk{shared} alone takes {budget.text(trunk)}, which is the floor of every expert's cost"
    return (
        f"no expert keeps to it: one class alone takes {budget.text(least)}, "
        f"of which the trunk{shared} {budget.figure(trunk)}"
    )
