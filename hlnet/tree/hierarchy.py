"""The hierarchy of a hierarchy of any depth: what every source of trees yields before levels are chosen.

WordNet, a dendrogram and a deep file have far more levels than a network; ``hlnet.tree.construct.levels`` cuts them.
Nothing here recurses: a dendrogram may be as deep as it has classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hlnet.errors import TreeError
from hlnet.tree.class_tree import ClassTree


@dataclass(slots=True, eq=False)
class Hierarchy:
    """A node of a hierarchy, with all that lies below it; the root stands for the trunk and has no name of its own.

    Attributes:
        name: of the group or class; it may hold no ``/``, which parts the names of a path.
        children: empty for a class.
        index: for a class, its original index; ``None``: numbered in the hierarchy's order.
        id: an outside identifier, such as a WordNet id.
        height: how unlike the children are (a dendrogram's merge height); 0 where nothing is known.

    Example:
        >>> root = Hierarchy("", [Hierarchy("cat", [Hierarchy("tabby"), Hierarchy("siamese")]), Hierarchy("saw")])
        >>> root.to_tree().counts
        (2, 3)
    """

    name: str
    children: list[Hierarchy] = field(default_factory=list, repr=False)  # or a deep one's text would recurse
    index: int | None = None
    id: str | None = None
    height: float = 0.0

    @classmethod
    def of(cls, tree: ClassTree) -> Hierarchy:
        """The hierarchy of a class tree, without the nodes that only continue a class."""
        root = cls("")
        above = [root]
        for row in tree.levels:
            here = []
            for node in row:
                if node.continued:
                    here.append(above[node.parent])
                    continue
                here.append(cls(node.name, id=node.id))
                above[node.parent].children.append(here[-1])
            above = here
        for hierarchy, leaf in zip(above, tree.leaves, strict=True):
            hierarchy.index = leaf.index
        return root

    def walk(self) -> Iterator[Hierarchy]:
        """This node and all below it, a node before its children, in order."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(reversed(node.children))

    def leaves(self) -> list[Hierarchy]:
        """The classes below, in order; a node without children is its own."""
        return [node for node in self.walk() if not node.children]

    def contracted(self) -> Hierarchy:
        """The same classes without single-child chains: a node with one child gives way to that child."""
        kept: dict[int, Hierarchy] = {}
        for node in reversed(list(self.walk())):
            below = [kept.pop(id(child)) for child in node.children]
            if len(below) == 1:
                kept[id(node)] = below[0]
            else:
                kept[id(node)] = Hierarchy(node.name, below, node.index, node.id, node.height)
        top = kept.pop(id(self))
        return top if top.children else Hierarchy(self.name, [top])

    def only(self, names: Collection[str]) -> Hierarchy:
        """The hierarchy of these classes alone; groups that lose all theirs go."""
        wanted = set(names)
        kept: dict[int, Hierarchy] = {}
        for node in reversed(list(self.walk())):
            below = [kept.pop(id(child)) for child in node.children if id(child) in kept]
            if below or (not node.children and node.name in wanted):
                kept[id(node)] = Hierarchy(node.name, below, node.index, node.id, node.height)
        return kept.get(id(self), Hierarchy(self.name))

    def rename_classes(self, tree: ClassTree) -> None:
        """Give the class of index i the name, original index and id of the tree's i-th, in place.

        For hierarchies found over a tree's classes by their position; a class keeps its id if the tree has none.
        """
        for node in self.walk():
            if not node.children and node.index is not None:
                leaf = tree.leaves[node.index]
                node.name, node.index, node.id = leaf.name, leaf.index, leaf.id or node.id

    def to_tree(self, levels: int | None = None) -> ClassTree:
        """The class tree with these groups as its nodes.

        A group whose name is taken by one of its siblings gets its id, or a number, in parentheses.

        Args:
            levels: classes that end early are continued to this many; default: the depth of the deepest.

        Raises:
            TreeError: if there is no class, a class name stands twice, or the hierarchy is too deep.
        """
        nested: dict[str, Any] = {}
        ids: dict[str, str] = {}
        waiting = [(self, nested, "")]
        numbers = {id(leaf): i for i, leaf in enumerate(self.leaves())}
        while waiting:
            node, place, above = waiting.pop()
            for child, name in zip(node.children, _names(node.children), strict=True):
                path = above + name
                if child.id is not None:
                    ids[path] = child.id
                if child.children:
                    place[name] = {}
                    waiting.append((child, place[name], path + "/"))
                else:
                    place[name] = numbers[id(child)] if child.index is None else child.index
        return ClassTree.from_nested(nested, levels).with_ids(ids)


def group_name(names: Sequence[str], count: int | None = None) -> str:
    """A name for a group that has none of its own: its first three members, of ``count`` (default: all given).

    Example:
        >>> group_name(["cat", "dog", "owl", "rook", "saw"])
        'cat+dog+owl+2-more'
    """
    count = len(names) if count is None else count
    return "+".join(names[:3]) + (f"+{count - 3}-more" if count > 3 else "")


def _names(siblings: list[Hierarchy]) -> list[str]:
    """Names to tell siblings apart: classes keep theirs, a group whose name is taken gets its id or a number."""
    taken = Counter(node.name for node in siblings if not node.children)
    if doubled := [name for name, count in taken.items() if count > 1]:
        raise TreeError(f"class '{doubled[0]}' stands twice in one place; each must be unique in the tree")
    names = []
    for node in siblings:
        name = node.name
        if node.children:
            marks = [node.id] if node.id else []
            marks += [str(number) for number in range(2, len(siblings) + 2)]
            free = (mark for mark in marks if f"{node.name} ({mark})" not in taken)
            name = f"{node.name} ({next(free)})" if name in taken else name
            taken[name] += 1
        names.append(name)
    return names
