"""Classes by words that the tree does not have: another form of a name, a synonym, a group that WordNet knows.

Notable here: only classes that *are* what the word says are taken, none that are merely near to it; and the log says
what was taken. Where no WordNet dictionary is installed, the shipped ImageNet tree serves, which has ids and names.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

from hlnet.errors import SelectionError, some
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.vocabulary import default_wordnet, tree_words

log = logging.getLogger("hlnet")

#: Words, between single blanks, hyphens or underscores.
_WORDS = re.compile(r"\w[\w']*([ _-]\w[\w']*)*")


class Wanted(NamedTuple):
    """A tree's classes for a word.

    Attributes:
        word: what was wanted.
        classes: names of the classes that it means; none if the tree lacks it.
        how: ``"name"``, or what else it was found by: another form of a name, WordNet, or ImageNet's tree.
    """

    word: str
    classes: tuple[str, ...]
    how: str


def match_classes(tree: ClassTree, words: Iterable[str]) -> tuple[list[Wanted], list[str]]:
    """The wanted classes that a tree has, with their names there; and its other classes.

    Args:
        tree: the tree.
        words: what is wanted: names, ids, paths or words that WordNet knows.

    Returns:
        for each word, in order, what there is; and the classes that no word means.

    Example:
        >>> tree = ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle"]})
        >>> found, besides = match_classes(tree, ["Tabby", "dog", "owl"])
        >>> [one.classes for one in found], besides
        ([('tabby',), ('beagle',), ()], ['siamese'])
    """
    found, seen = [], set[int]()
    for word in words:
        how, positions = "name", set[int]()
        try:
            positions = set(tree.node_names.below[tree.node_names.path(word)])
        except SelectionError:
            how, positions = _meaning(tree, word)
        seen |= positions
        classes = tuple(tree.classes[position] for position in sorted(positions))
        found.append(Wanted(word, classes, how if classes else ""))
    return found, [name for position, name in enumerate(tree.classes) if position not in seen]


def classes_meant(tree: ClassTree, word: str) -> set[int]:
    """Positions of the classes that a word means though no node is called so; empty if it means none.

    Tried in this order: names in another case or number ("Dogs" for a node "dog"); WordNet's senses of the word, where
    nodes have WordNet ids, as the folders of ImageNet do ("canine"); the nodes of ``preset:imagenet1k``, whose classes
    are found by id or name.

    Args:
        tree: the classes.
        word: what the tree does not have.

    Example:
        >>> tree = ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle"]})
        >>> classes_meant(tree, "Cats")
        {0, 1}
    """
    how, found = _meaning(tree, word)
    if found:
        names = some(tree.classes[position] for position in sorted(found))
        log.info("'%s' is taken as %s (%d of %d classes), by %s", word, names, len(found), len(tree.classes), how)
    return found


def _meaning(tree: ClassTree, word: str) -> tuple[str, set[int]]:
    """By what a word was found, and the classes that it means."""
    if not _WORDS.fullmatch(word):  # a path, or a sign too many
        return "", set()
    nodes = tree_words(tree, None).nodes_named(word)
    if len(nodes) > 1:  # which one is meant is not said
        return "", set()
    if nodes:
        return "another form of its name", set(nodes.pop())
    if wordnet := default_wordnet():
        words = tree_words(tree, wordnet)
        if found := set().union(*map(words.below, words.senses(word))):
            return "WordNet", found
    return "ImageNet's tree", _by_preset(tree, word)


def _by_preset(tree: ClassTree, word: str) -> set[int]:
    """Classes that ImageNet's tree has under a node of this name."""
    known = _imagenet()
    wanted = [known.leaves[position] for position in tree_words(known, None).named(word)]
    words = {leaf.id for leaf in wanted} | {leaf.name for leaf in wanted}
    return {position for position, leaf in enumerate(tree.leaves) if leaf.id in words or leaf.name in words}


@cache
def _imagenet() -> ClassTree:
    from hlnet.tree.io import read_tree

    return read_tree("preset:imagenet1k")
