"""Other names for the nodes of a tree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hlnet.errors import TreeError
from hlnet.tree.class_tree import ClassTree


def renamed(tree: ClassTree, names: Mapping[str, str]) -> ClassTree:
    """The same tree with other names for some nodes; ids, order and original indices stay.

    A class keeps its old name as its id, if it has no id, so that images and selections still find it.

    Args:
        tree: the tree.
        names: by what may be written for a node (a path, a class's name or id, an inner node's name), the new name.

    Raises:
        SelectionError: if the tree has no such node, or several.
        TreeError: if a new name is empty, holds ``/``, or is taken.

    Example:
        >>> tree = ClassTree.from_nested({"hound+pug": ["basset", "pug"], "cat": ["tabby"]})
        >>> [leaf.path for leaf in renamed(tree, {"hound+pug": "dog", "tabby": "tabby cat"}).leaves]
        ['dog/basset', 'dog/pug', 'cat/tabby cat']
    """
    new = {tree.node_names.path(word): name for word, name in names.items()}
    if bad := [name for name in new.values() if not name.strip() or "/" in name]:
        raise TreeError(f"'{bad[0]}' cannot be a node's name: it is empty, or holds '/', which parts a path")
    classes = {leaf.path: leaf.name for leaf in tree.leaves}

    def path(old: str) -> str:
        parts = old.split("/")
        whole = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
        return "/".join(new.get(node, part) for node, part in zip(whole, parts, strict=True))

    levels = [
        tuple(
            replace(
                node,
                name=new.get(node.path, node.name),
                path=path(node.path),
                id=node.id or (classes.get(node.path) if node.path in new else None),
            )
            for node in row
        )
        for row in tree.levels
    ]
    return ClassTree(tuple(levels))
