"""A node of a class tree, and what may be written for it.

Notable here: this is the one place that turns a tree's names round. ``ClassTree.find_node`` asks it for a node,
``ClassTree.leaves_under`` for the classes below one, and selections for both.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hlnet.errors import SelectionError, did_you_mean, some

log = logging.getLogger("hlnet")


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a class tree.

    Attributes:
        name: the last part of the path, ``"tabby"``.
        path: all names from level 1 down, ``"animal/cat/tabby"``.
        parent: position of the parent within the level above (0 for level 1, whose parent is the trunk).
        continued: True where a class that ended at a level above only goes on to reach the last level; such a node
            repeats the path of its class and counts in no hierarchical measure.
        index: for a leaf, the class's original index (in the data set, or in the network that an expert is cut from).
        id: an outside identifier, such as a WordNet id or a folder name.
    """

    name: str
    path: str
    parent: int
    continued: bool = False
    index: int | None = None
    id: str | None = None


class NodeNames:
    """The words for a tree's nodes. A ``continued`` node is no node of its own here, but its class.

    Args:
        levels: the tree's nodes, ``tree.levels``; :attr:`ClassTree.node_names` keeps the result.

    Attributes:
        places: level, from 0, and position of each node, by path; of a class, those of its leaf.
        below: positions of the classes at or under each node, by path.
        over: path of the first node from the trunk that holds just these classes, by their positions.
        classes: position of the class that a name or id means.
        named: paths of the nodes that have a name or id, the nearest to the trunk first.
        words: paths that a word may mean: a path itself, or else the nodes of that name or id.

    Example:
        >>> from hlnet.tree.class_tree import ClassTree
        >>> tree = ClassTree.from_nested({"animal": {"cat": ["tabby", "siamese"]}, "saw": {}})
        >>> names = NodeNames(tree.levels)
        >>> names.path("cat"), names.below["animal/cat"], names.places["saw"]
        ('animal/cat', (0, 1), (2, 2))
    """

    def __init__(self, levels: Sequence[Sequence[Node]]) -> None:
        leaves = levels[-1]
        self.places: dict[str, tuple[int, int]] = {}
        self.named: dict[str, list[str]] = {}
        for level, row in enumerate(levels):
            for position, node in enumerate(row):
                self.places[node.path] = (level, position)  # the last counts: of a continued class, the leaf
                for word in (node.name, node.id):
                    if word is not None and node.path not in (paths := self.named.setdefault(word, [])):
                        paths.append(node.path)
        below: dict[str, list[int]] = {}
        for position, leaf in enumerate(leaves):
            parts = leaf.path.split("/")
            for end in range(1, len(parts) + 1):
                below.setdefault("/".join(parts[:end]), []).append(position)
        self.below = {path: tuple(classes) for path, classes in below.items()}
        self.over = {classes: path for path, classes in reversed(self.below.items())}
        self.classes = {leaf.id: position for position, leaf in enumerate(leaves) if leaf.id is not None}
        self.classes |= {leaf.name: position for position, leaf in enumerate(leaves)}
        self.leaves = [leaf.path for leaf in leaves]
        # A class that was told apart from others of its name is found by its folders, too: church/outdoor.
        folders = {path: _folders_of(path) for path in self.leaves}
        self.words = {folder: [path] for path, folder in folders.items() if folder}
        self.words |= self.named | {path: [path] for path in self.below}

    def path(self, word: str) -> str:
        """The path of the one node that a word means: a class by name or id before any node by path, id or name.

        Several nodes of one name are one where they hold the same classes, as in a chain: the first from the trunk.

        Raises:
            SelectionError: if there is no such node, with those of names near to it, or several.
        """
        word = normal_name(word)
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


def normal_name(name: str) -> str:
    """The name in Unicode's composed form (NFC), in which names are compared: macOS writes them decomposed.

    Example:
        >>> normal_name("E\\u0301pervier") == "\\u00c9pervier"
        True
    """
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def qualified_names(paths: Sequence[Sequence[str]]) -> list[str]:
    """A name for each class that is unique: its own or, where several share it, with its group in parentheses.

    Example:
        >>> qualified_names([("church", "outdoor"), ("market", "outdoor"), ("market", "indoor")])
        ['outdoor (church)', 'outdoor (market)', 'indoor']
    """
    names = [path[-1] for path in paths]
    for above in range(1, max(map(len, paths), default=1)):
        shared = {name for name, count in Counter(names).items() if count > 1}
        if not shared:
            break
        for i, path in enumerate(paths):
            if names[i] in shared and len(path) > above:
                names[i] = f"{path[-1]} ({', '.join(path[-1 - above : -1])})"
    changed = [name for name, path in zip(names, paths, strict=True) if name != path[-1]]
    if changed:
        log.info("folders of one name in several groups are classes with the group in parentheses: %s", some(changed))
    return names


def _folders_of(path: str) -> str:
    """``church/outdoor`` of ``church/outdoor (church)``; nothing for a path without such a name."""
    *above, name = path.split("/")
    groups = name[name.rfind(" (") + 2 : -1].split(", ") if name.endswith(")") and " (" in name else []
    return "/".join([*above, name[: name.rfind(" (")]]) if groups and above[-len(groups) :] == groups else ""


def is_wordnet_id(text: str) -> bool:
    """Whether a text has the form of a noun synset's id.

    Example:
        >>> is_wordnet_id("n02123045"), is_wordnet_id("02123045-n"), is_wordnet_id("tabby")
        (True, True, False)
    """
    return re.fullmatch(r"n\d{8}|\d{8}-n", text, re.IGNORECASE) is not None
