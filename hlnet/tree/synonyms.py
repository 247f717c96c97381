"""Classes by words that the tree does not have: another form of a name, a synonym, a group that WordNet knows.

Notable here: only classes that *are* what the word says are taken, none that are merely near to it; and the log says
what was taken. Where no WordNet dictionary is installed, the shipped ImageNet tree serves, which has ids and names.
"""

from __future__ import annotations

import logging
import re
from functools import cache

from hlnet.errors import some
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.vocabulary import default_wordnet, tree_words

log = logging.getLogger("hlnet")

#: Words, between single blanks, hyphens or underscores.
_WORDS = re.compile(r"\w[\w']*([ _-]\w[\w']*)*")


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
    if not _WORDS.fullmatch(word):  # a path, or a sign too many
        return set()
    how = "another form of its name"
    found = tree_words(tree, None).named(word)
    if not found and (wordnet := default_wordnet()):
        how, words = "WordNet", tree_words(tree, wordnet)
        found = set().union(*map(words.below, words.senses(word)))
    if not found:
        how, found = "ImageNet's tree", _by_preset(tree, word)
    if found:
        names = some(tree.classes[position] for position in sorted(found))
        log.info("'%s' is taken as %s (%d of %d classes), by %s", word, names, len(found), len(tree.classes), how)
    return found


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
