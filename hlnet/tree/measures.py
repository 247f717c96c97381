"""Differences of two trees, oddities of one, and heights of its nodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel

from hlnet.errors import TreeError, some
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.nodes import Node

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csc_array


class TreeComparison(BaseModel):
    """Agreement of two trees on the classes that they share.

    Attributes:
        classes: how many they share.
        only_first, only_second: names of classes that one of them lacks.
        groups: sets of at least two shared classes, but not all, that lie below some node: of the first tree, and of
            the second.
        shared_groups: the sets that both have.
        robinson_foulds: sets that only one of them has, by Robinson and Foulds (1981), for rooted trees; 0: the same
            groups.
        normalized_robinson_foulds: of all sets, the share that only one of them has: 0 to 1.
        cophenetic_correlation: Pearson's correlation, over pairs of classes, of the depth of their lowest common
            ancestor (a class tree has no merge heights); ``None`` where a tree has the same depth for all pairs.
    """

    classes: int
    only_first: list[str]
    only_second: list[str]
    groups: tuple[int, int]
    shared_groups: int
    robinson_foulds: int
    normalized_robinson_foulds: float
    cophenetic_correlation: float | None


def compare_trees(first: ClassTree, second: ClassTree) -> TreeComparison:
    """Compare the groups of two trees. Classes are matched by id, or by name where not both have one.

    Single-child chains group nothing, and are left out on both sides.

    Raises:
        TreeError: if they share fewer than two classes.

    Example:
        >>> one = ClassTree.from_nested({"pet": ["cat", "dog"], "wild": ["lion", "wolf"]})
        >>> other = ClassTree.from_nested({"feline": ["cat", "lion"], "canine": ["dog", "wolf"]})
        >>> compare_trees(one, other).robinson_foulds
        4
    """
    ours = first.positions
    theirs = _matched(first, second)
    shared = sorted(ours.keys() & theirs.keys())
    if len(shared) < 2:
        raise TreeError(
            f"the trees share {len(shared)} of their classes; at least two are needed to compare them "
            f"(the first has {some(first.classes, limit=3)}, the second {some(second.classes, limit=3)})"
        )
    inside = [
        _inside(tree, [positions[key] for key in shared]) for tree, positions in ((first, ours), (second, theirs))
    ]
    groups = [_groups(matrix) for matrix in inside]
    odd = len(groups[0] ^ groups[1])
    found = len(groups[0]) + len(groups[1])
    return TreeComparison(
        classes=len(shared),
        only_first=[first.classes[i] for key, i in ours.items() if key not in theirs],
        only_second=[second.classes[i] for key, i in theirs.items() if key not in ours],
        groups=(len(groups[0]), len(groups[1])),
        shared_groups=len(groups[0] & groups[1]),
        robinson_foulds=odd,
        normalized_robinson_foulds=odd / found if found else 0.0,
        cophenetic_correlation=_cophenetic_correlation(*inside),
    )


@dataclass(frozen=True, slots=True)
class Oddity:
    """Something about a tree that its maker should know of.

    Attributes:
        kind: ``chain``, ``lopsided``, ``wide``, ``private`` or ``level``.
        message: one line that names the nodes.
    """

    kind: str
    message: str


def check_tree(tree: ClassTree) -> list[Oddity]:
    """Oddities of a tree, level by level.

    - *level*: a level with as many nodes as the one above, not all just classes continued: it groups nothing.
    - *chain*: a node, not just a class continued, that is its parent's only child: it costs and tells nothing apart.
    - *wide*: a node, or the trunk, with more than 20 children, and more than five times the usual number.
    - *lopsided*: a node, or the trunk, of ten or more classes, nine tenths of them below one of its children.
    - *private*: classes that have a node of level 1 to themselves, the dearest there is.

    Example:
        >>> [oddity.kind for oddity in check_tree(ClassTree.from_nested({"cat": {"house cat": ["tabby", "siamese"]}}))]
        ['level', 'chain']
    """
    return [*_oddities(tree)]


def node_heights(tree: ClassTree) -> NDArray[np.int64]:
    """Height of each node, the longest way down to a class: 0 for a class, 1 for a parent of classes.

    Nodes that merely continue a class do not count: they are as high as their class, 0.

    Returns:
        ``[num_nodes + 1]``, level by level, and the trunk's last, where an index of -1 finds it.

    Example:
        >>> node_heights(ClassTree.from_nested({"animal": {"cat": ["tabby"], "newt": {}}, "saw": {}})).tolist()
        [2, 0, 1, 0, 0, 0, 0, 0, 3]
    """
    depths = np.array([_depth(leaf) for leaf in tree.leaves])
    below = tree.ancestors().astype(np.int64)
    below.data = depths.repeat(tree.num_levels)
    own = np.array([_depth(node) for row in tree.levels for node in row])
    return np.append(below.max(axis=0).toarray().ravel() - own, depths.max())


# ---------------------------------------------------------------------- helpers


def _depth(node: Node) -> int:
    return node.path.count("/") + 1


def _oddities(tree: ClassTree) -> Iterator[Oddity]:
    below = np.asarray(tree.ancestors().sum(axis=0)).ravel()
    sizes = [below[start:end].tolist() for start, end in pairwise(tree.offsets)]  # classes under each node
    private = [node for node, size in zip(tree.levels[0], sizes[0], strict=True) if size == 1]
    if private and tree.num_levels > 1 and len(private) < len(tree.leaves):
        yield Oddity(
            "private",
            f"a node of level 1, the dearest there is, for one class: {_paths(private)}",
        )
    if tree.num_levels > 1 and len(set(tree.counts)) > 1:  # not PHL
        first, usual, largest_first = tree.counts[0], median(tree.sibling_counts[1]), max(sizes[0])
        if first > max(20, 5 * usual):
            yield Oddity("wide", f"the trunk has {first} children, where {usual:g} are usual below them")
        if first > 1 and len(tree.leaves) >= 10 and largest_first >= 0.9 * len(tree.leaves):
            share = f"{largest_first} of {len(tree.leaves)} classes"
            yield Oddity("lopsided", f"the trunk: one of its {first} children holds {share}")
    for level in range(1, tree.num_levels):
        parents, row, counts = tree.levels[level - 1], tree.levels[level], tree.sibling_counts[level]
        only = [node for node in row if counts[node.parent] == 1 and not node.continued]
        if only and len(row) == len(parents):
            yield Oddity("level", f"level {level + 1} has as many nodes as level {level}: it groups nothing")
        if only:
            yield Oddity(
                "chain",
                f"level {level + 1}: only children, which cost and tell nothing apart: {_paths(only)}",
            )
        usual = median(counts)
        largest = [0] * len(parents)
        for node, size in zip(row, sizes[level], strict=True):
            largest[node.parent] = max(largest[node.parent], size)
        for node, count, size, most in zip(parents, counts, sizes[level - 1], largest, strict=True):
            if count > max(20, 5 * usual):
                yield Oddity("wide", f"'{node.path}' has {count} children, where {usual:g} are usual")
            if count > 1 and size >= 10 and most >= 0.9 * size:
                yield Oddity("lopsided", f"'{node.path}': one of its {count} children holds {most} of {size} classes")


def _paths(nodes: list[Node]) -> str:
    return some((f"'{node.path}'" for node in nodes), limit=4)


def _matched(first: ClassTree, second: ClassTree) -> dict[str, int]:
    """The second tree's classes by the first's names; those that the first lacks by a name that no class can have."""
    ids = {leaf.id: leaf.name for leaf in first.leaves if leaf.id}
    names = {leaf.name: leaf.id for leaf in first.leaves}
    found: dict[str, int] = {}
    for position, leaf in enumerate(second.leaves):
        name = ids.get(leaf.id or leaf.name) or ids.get(leaf.name) or (leaf.id if leaf.id in names else None)
        if name is None and leaf.name in names and not (leaf.id and names[leaf.name]):  # two ids would be two classes
            name = leaf.name
        found[name if name and name not in found else f"{leaf.name} "] = position
    return found


def _inside(tree: ClassTree, positions: list[int]) -> csc_array:
    """Nodes above each of these classes, ``[classes, nodes]``: sparse, each set of classes once."""
    above = tree.ancestors()[positions].astype(np.int64).tocsc()
    # The first node that has each set: chains, and nodes that only other classes told apart, count once.
    sets: dict[bytes, int] = {}
    for column, (start, end) in enumerate(pairwise(above.indptr)):
        if end - start < len(positions):
            sets.setdefault(above.indices[start:end].tobytes(), column)
    return above[:, list(sets.values())]


def _groups(inside: csc_array) -> set[frozenset[int]]:
    columns = (inside.indices[start:end] for start, end in pairwise(inside.indptr))
    return {frozenset(column.tolist()) for column in columns if 1 < len(column) < inside.shape[0]}


def _cophenetic_correlation(first: csc_array, second: csc_array) -> float | None:
    """Pearson's r of X = AA' and Y = BB', the numbers of ancestors that two classes share, over pairs of classes.

    No matrix of all pairs is made: the sum of X * Y is the squared norm of A'B, less the diagonal.
    """
    from scipy.sparse import csc_array

    pairs = first.shape[0] * (first.shape[0] - 1)
    everything = csc_array(np.ones((first.shape[0], 1), np.int64))  # a node above all: its Y is 1 throughout

    def mean(a: csc_array, b: csc_array) -> float:
        depths = [np.asarray(matrix.sum(axis=1), float).ravel() for matrix in (a, b)]
        return float((np.asarray((a.T @ b).data, float) ** 2).sum() - depths[0] @ depths[1]) / float(pairs)

    means = [mean(first, everything), mean(second, everything)]
    spreads = [mean(matrix, matrix) - average**2 for matrix, average in zip((first, second), means, strict=True)]
    if min(spreads) <= 1e-12:
        return None
    return float((mean(first, second) - means[0] * means[1]) / np.sqrt(spreads[0] * spreads[1]))
