"""Making a network's few levels out of a hierarchy of any depth, by splitting groups until there are enough.

First every node is made to split in two: children of one node are paired up from the smallest, as in a Huffman code.
Then a level is a set of groups: from one group of everything, the largest group (of a dendrogram, the one merged last)
is split until there are as many as wanted. Levels are made from the classes upwards, each from the groups of the level
below, so they nest.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise

from hlnet.errors import TreeError, UsageError
from hlnet.tree.hierarchy import Hierarchy, group_name


def cut_to_levels(
    hierarchy: Hierarchy,
    nodes: Sequence[int],
    max_children: int | None = None,
    together: Iterable[Collection[str]] = (),
) -> Hierarchy:
    """An hierarchy with exactly this many nodes at each level above the classes.

    A node of the hierarchy that becomes a node of the tree keeps its name and id; a group of several siblings is named
    after them.

    Args:
        hierarchy: the hierarchy, each class once.
        nodes: wanted nodes of each level above the classes, level 1 first, such as ``(17, 161)``; they must not
            decrease, and not exceed the classes.
        max_children: no node gets more children than this; only the trunk may.
        together: sets of names of classes that will be asked for together. Splits that part the fewest of these sets
            go before splits of the largest group, so that an expert for a set has few nodes.

    Returns:
        an hierarchy in which the nodes of level 1, 2, … lie at depth 1, 2, …; a class that is alone in its group ends
        there, and is continued by ``to_tree(levels=len(nodes) + 1)``. Siblings are in the order of their first class.

    Raises:
        UsageError: if these numbers of nodes cannot be had, or ``max_children`` needs more.
        TreeError: if a class stands in the hierarchy twice.

    Example:
        >>> from hlnet.tree.class_tree import ClassTree
        >>> dogs = {"hound": ["beagle", "basset", "borzoi"], "terrier": ["cairn", "border"], "pug": {}}
        >>> deep = ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": dogs})
        >>> cut_to_levels(Hierarchy.of(deep), [2, 3]).to_tree().levels[1][-1].path
        'dog/terrier+pug'
    """
    top = _in_halves(hierarchy, list(together))
    check_nodes(nodes, top.size)
    found = top.units()
    for level in range(len(nodes), 0, -1):
        found = _cut(top, nodes[level - 1], max_children or top.size, level)
    return Hierarchy("", [group.hierarchy for group in sorted(found, key=lambda group: group.first)])


def check_nodes(nodes: Sequence[int], classes: int) -> None:
    """Refuse nodes of the levels above the classes that no tree can have.

    Raises:
        UsageError: if one is not positive, or they decrease, or exceed the classes.
    """
    if any(above > below for above, below in pairwise((1, *nodes, classes))):
        given = ",".join(map(str, nodes))
        raise UsageError(f"nodes {given} must be positive, not decrease, and not exceed the {classes} classes")


def even_counts(classes: int, levels: int) -> tuple[int, ...]:
    """Nodes of each level, the classes' included, such that every node has about as many children as any other.

    Example:
        >>> even_counts(1000, levels=3)
        (10, 100, 1000)
    """
    return (*(max(1, round(classes ** (level / levels))) for level in range(1, levels)), classes)


# ---------------------------------------------------------------------- helpers


@dataclass(slots=True, eq=False)
class _Group:
    """Classes, or groups of the level below, that may become one node; it splits into two halves, or is one class.

    Attributes:
        hierarchy: the node that it becomes.
        halves: empty for a unit of the level that is being made: a class, or a group of the level below.
        size: units in it.
        first: lowest original index in it, for the order of siblings.
        asked: bit s is set if it holds a class of set s.
        height: of a dendrogram's merge.
        names: of the siblings that it is made of.
    """

    hierarchy: Hierarchy
    halves: tuple[_Group, ...] = ()
    size: int = 1
    first: int = 0
    asked: int = 0
    height: float = 0.0
    names: list[str] = field(default_factory=list)

    def measured(self) -> _Group:
        self.size = sum(half.size for half in self.halves)
        self.first = min(half.first for half in self.halves)
        self.asked = 0
        for half in self.halves:
            self.asked |= half.asked
        return self

    def units(self) -> list[_Group]:
        found, waiting = [], [self]
        while waiting:
            group = waiting.pop()
            waiting.extend(group.halves)
            if not group.halves:
                found.append(group)
        return sorted(found, key=lambda unit: unit.first)

    def becomes_unit(self) -> None:
        units = self.units()
        if len(units) > 1 or units[0].hierarchy.children:
            below = [unit.hierarchy for unit in units]
            name = self.hierarchy.name or group_name([node.name for node in below])  # all there is has no name
            self.hierarchy = Hierarchy(name, below, id=self.hierarchy.id)
        else:  # a class that is alone ends here
            self.hierarchy = units[0].hierarchy
        self.halves, self.size = (), 1


def _cut(top: _Group, count: int, largest: int, level: int) -> list[_Group]:
    """Split ``top`` into ``count`` groups of at most ``largest`` units, and make these the units of what is above."""

    def entry(group: _Group) -> tuple[bool, int, float, int, int, _Group]:
        parted = _common(*group.halves) if group.halves else 0
        return group.size <= largest, parted, -group.height, -group.size, group.first, group

    waiting = [entry(top)]
    single: list[_Group] = []
    split: list[_Group] = []
    while waiting and (len(waiting) + len(single) < count or not waiting[0][0]):
        group = heapq.heappop(waiting)[-1]
        if not group.halves:
            single.append(group)
            continue
        split.append(group)
        for half in group.halves:
            heapq.heappush(waiting, entry(half))
    groups = single + [group for *_, group in waiting]
    if len(groups) > count:
        raise UsageError(
            f"keeping to {largest} children a node took {len(groups)} nodes at level {level}, where {count} were asked "
            "for: ask for more nodes or allow more children"
        )
    for group in groups:
        group.becomes_unit()
    for group in reversed(split):
        group.measured()
    return groups


def _in_halves(hierarchy: Hierarchy, together: list[Collection[str]]) -> _Group:
    asked: dict[str, int] = {}
    for number, names in enumerate(together):
        for name in names:
            asked[name] = asked.get(name, 0) | 1 << number
    done: dict[int, _Group] = {}
    leaves = hierarchy.leaves()
    firsts = [number if leaf.index is None else leaf.index for number, leaf in enumerate(leaves)]
    if len({leaf.name for leaf in leaves}) < len(leaves) or len(set(firsts)) < len(leaves):
        raise TreeError("a class, or its original index, stands in the hierarchy twice")
    first = {id(leaf): number for leaf, number in zip(leaves, firsts, strict=True)}
    for node in reversed(list(hierarchy.walk())):
        if node.children:
            done[id(node)] = _paired(node, [done.pop(id(child)) for child in node.children])
        else:
            done[id(node)] = _Group(node, first=first[id(node)], asked=asked.get(node.name, 0))
    return done[id(hierarchy)]


def _paired(node: Hierarchy, children: list[_Group]) -> _Group:
    """One group of all children of a node, halved again and again down to the children."""
    if len(children) == 1:
        return children[0]
    alike: dict[int, list[_Group]] = {}
    for child in children:
        child.names = [child.hierarchy.name]
        alike.setdefault(child.asked, []).append(child)
    # Children that are asked for alike are paired first; then those that have most sets in common.
    parts = [_pair_up(part, node.height) for part in alike.values()]
    pairs = [_likeness(a, b) for a, b in combinations(parts, 2)]
    heapq.heapify(pairs)
    left = {id(part): part for part in parts}
    while len(left) > 1:
        *_, a, b = heapq.heappop(pairs)
        if id(a) in left and id(b) in left:
            del left[id(a)], left[id(b)]
            merged = _pair(a, b, node.height)
            for other in left.values():
                heapq.heappush(pairs, _likeness(other, merged))
            left[id(merged)] = merged
            parts.append(merged)  # kept alive, so that no identity is used again
    (group,) = left.values()
    group.hierarchy = Hierarchy(node.name, id=node.id)
    return group


def _likeness(a: _Group, b: _Group) -> tuple[int, int, int, int, _Group, _Group]:
    """Sorts pairs: most sets in common first, then the smallest."""
    return -_common(a, b), a.size + b.size, a.first, b.first, a, b


def _pair_up(groups: list[_Group], height: float) -> _Group:
    """Pair the two smallest until one is left."""
    heap = [(group.size, group.first, group) for group in groups]
    heapq.heapify(heap)
    while len(heap) > 1:
        group = _pair(heapq.heappop(heap)[-1], heapq.heappop(heap)[-1], height)
        heapq.heappush(heap, (group.size, group.first, group))
    return heap[0][-1]


def _pair(a: _Group, b: _Group, height: float) -> _Group:
    one, other = sorted((a, b), key=lambda group: group.first)
    names = one.names + other.names
    return _Group(Hierarchy(group_name(names)), (one, other), height=height, names=names).measured()


def _common(a: _Group, b: _Group) -> int:
    return (a.asked & b.asked).bit_count()
