"""What may be written for a node of a class tree, and which node it then means.

Notable here: this is the one place that turns a tree's names round. ``ClassTree.find_node`` asks it for a node,
``ClassTree.leaves_under`` for the classes below one, and selections for both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hlnet.errors import SelectionError, did_you_mean, some

if TYPE_CHECKING:
    from hlnet.tree import ClassTree


class NodeNames:
    """The words for a tree's nodes. A ``continued`` node is no node of its own here, but its class.

    Args:
        tree: the tree; :attr:`ClassTree.node_names` keeps the result.

    Attributes:
        places: level, from 0, and position of each node, by path; of a class, those of its leaf.
        below: positions of the classes at or under each node, by path.
        classes: position of the class that a name or id means.
        named: paths of the nodes that have a name or id, the nearest to the trunk first.
        words: paths that a word may mean: a path itself, or else the nodes of that name or id.

    Example:
        >>> from hlnet.tree import ClassTree
        >>> names = NodeNames(ClassTree.from_nested({"animal": {"cat": ["tabby", "siamese"]}, "saw": {}}))
        >>> names.path("cat"), names.below["animal/cat"], names.places["saw"]
        ('animal/cat', (0, 1), (2, 2))
    """

    def __init__(self, tree: ClassTree) -> None:
        self.places: dict[str, tuple[int, int]] = {}
        self.named: dict[str, list[str]] = {}
        for level, row in enumerate(tree.levels):
            for position, node in enumerate(row):
                self.places[node.path] = (level, position)  # the last counts: of a continued class, the leaf
                for word in (node.name, node.id):
                    if word is not None and node.path not in (paths := self.named.setdefault(word, [])):
                        paths.append(node.path)
        below: dict[str, list[int]] = {}
        for position, leaf in enumerate(tree.leaves):
            parts = leaf.path.split("/")
            for end in range(1, len(parts) + 1):
                below.setdefault("/".join(parts[:end]), []).append(position)
        self.below = {path: tuple(classes) for path, classes in below.items()}
        self.classes = {leaf.id: position for position, leaf in enumerate(tree.leaves) if leaf.id is not None}
        self.classes |= {name: position for position, name in enumerate(tree.classes)}
        self.leaves = [leaf.path for leaf in tree.leaves]
        self.words = self.named | {path: [path] for path in self.below}

    def path(self, word: str) -> str:
        """The path of the one node that a word means: a class by name or id before any node by path, id or name.

        Several nodes of one name are one where they hold the same classes, as in a chain: the first from the trunk.

        Raises:
            SelectionError: if there is no such node, with those of names near to it, or several.
        """
        if word in self.classes:
            return self.leaves[self.classes[word]]
        paths = self.words.get(word)
        if not paths:
            raise self.unknown(word)
        if len({self.below[path] for path in paths}) > 1:
            raise SelectionError(f"'{word}' names several nodes ({some(sorted(paths), 4)}); write the path")
        return paths[0]

    def words_for(self, path: str) -> str:
        """What to write for a node: its path, or a class's name where another class is called like its path.

        Nothing for an inner node whose path means a class.
        """
        if path not in self.classes or self.path(path) == path:
            return path
        name = path.rsplit("/", 1)[-1]
        return name if name in self.classes and self.path(name) == path else ""

    def unknown(self, word: str) -> SelectionError:
        """What to raise for a word that means no node."""
        near = did_you_mean(word, self.words) or f" It has {', '.join(list(self.classes)[:4])} …"
        return SelectionError(f"the tree has no class or node '{word}'.{near}")
