"""Baseline trees, which ignore what the classes are: they show whether a hierarchy matters.

The third baseline, a private chain for each class (the paper's PHL), is ``ClassTree.parallelized``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise

import numpy as np

from hlnet.tree.class_tree import ClassTree
from hlnet.tree.construct.levels import check_nodes
from hlnet.tree.hierarchy import Hierarchy


def balanced_tree(tree: ClassTree, nodes: Sequence[int]) -> ClassTree:
    """The same classes in their order, with ids and original indices, spread as evenly as they go.

    Args:
        tree: of which the classes alone count.
        nodes: of each level above the classes, such as ``(6, 26)``.

    Raises:
        UsageError: if ``nodes`` decrease, or exceed the classes.

    Example:
        >>> balanced_tree(ClassTree.parallel(["cat", "dog", "owl", "rook", "saw"]), [2]).sibling_counts
        ((2,), (3, 2))
    """
    shares = []
    for parents, children in _steps(tree, nodes):
        few, more = divmod(children, parents)
        shares.append([few + 1] * more + [few] * (parents - more))
    return _grouped(list(range(len(tree.leaves))), tree, shares)


def random_tree(tree: ClassTree, nodes: Sequence[int], seed: int = 0) -> ClassTree:
    """The same classes, with ids and original indices, in random groups of random sizes.

    Every node gets one child, and each of the other children falls to any node of its level with the same chance.

    Args:
        tree, nodes: as for :func:`balanced_tree`.
        seed: the same seed gives the same tree.

    Raises:
        UsageError: if ``nodes`` decrease, or exceed the classes.

    Example:
        >>> random_tree(ClassTree.parallel(["cat", "dog", "owl", "rook", "saw"]), [2], seed=1).counts
        (2, 5)
    """
    draw = np.random.default_rng(seed)
    shares = [
        (1 + draw.multinomial(children - parents, [1 / parents] * parents)).tolist()
        for parents, children in _steps(tree, nodes)
    ]
    return _grouped(draw.permutation(len(tree.leaves)).tolist(), tree, shares)


# ---------------------------------------------------------------------- helpers


def _steps(tree: ClassTree, nodes: Sequence[int]) -> list[tuple[int, int]]:
    """Parents and children from each level to the next."""
    check_nodes(nodes, len(tree.leaves))
    return list(pairwise((*nodes, len(tree.leaves))))


def _grouped(order: list[int], tree: ClassTree, shares: list[list[int]]) -> ClassTree:
    """Group the classes in this order; ``shares[l][p]`` is how many children node p of level l + 1 gets."""
    row = [Hierarchy(tree.leaves[i].name, index=tree.leaves[i].index, id=tree.leaves[i].id) for i in order]
    for level in range(len(shares), 0, -1):
        children: Iterator[Hierarchy] = iter(row)
        row = [
            Hierarchy(f"group {level}.{number}", list(islice(children, share)))
            for number, share in enumerate(shares[level - 1], start=1)
        ]
    return Hierarchy("", row).to_tree()
