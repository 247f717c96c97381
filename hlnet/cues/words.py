"""Cues out of a text, such as a sound's label or a caption: what of it a class tree has.

Notable here: the tree's own names go first, then a table of sounds and everyday words that comes with hlnet
(``words.csv``), then WordNet. So "bark" is a dog's, and a "mouse" is what the tree says it is.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import NamedTuple

from hlnet.cues.cue import Cue
from hlnet.cues.files import make_cue
from hlnet.errors import UsageError, one_line
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.dictionary import WordNet
from hlnet.tree.selection import as_selection
from hlnet.tree.vocabulary import default_wordnet, forms, plain, tree_words

log = logging.getLogger("hlnet")

LONGEST = 4  # words of a noun in WordNet that are worth looking up together
#: Words that WordNet has as nouns, but that are hardly ever meant so (units, letters, gods, "a can", "a do").
_SMALL_WORDS = """
a about above across after again against ago all along also am among an and another any are around as at away back
be because been before behind being below beside between beyond but by came can come could did do does doing done
down during each either else every few first for from get gets go goes good got had has have having he her here hers
him his how i if in inside into is it its just last least less let like little look looks lot made make makes many
may me might mine more most much must my near next no nor not now of off often old on once one only or other our
ours out outside over own past put right said same saw say says second see seen she should side since so some
someone something soon still such take than that the their them then there these they thing things this those three
through till to too toward two under until up upon us very via was way we well went were what when where which while
who whom whose why will with within without would yes yet you your
"""
#: The street is not Wall Street.
_ARTICLES = ("a", "an", "the")


class Thing(NamedTuple):
    """One row of the table: a thing, and what stands for it.

    Attributes:
        nouns: what it is called, the likeliest name of a node first.
        synset: its WordNet id.
        sounds: what it lets hear.
        words: what else it is called.
    """

    nouns: tuple[str, ...]
    synset: str
    sounds: tuple[str, ...]
    words: tuple[str, ...]


def cues_from_text(
    text: str, tree: ClassTree, reliability: float | None = None, wordnet: WordNet | None = None
) -> list[Cue]:
    """Cues on what a text names.

    Words that follow one another are looked up together, the longest first, and then do not count again:

    - *names* of nodes, in whatever case and number;
    - *sounds and everyday words* of a table that comes with hlnet: "meow", "siren", "kitty". Of a sound that
      nothing in the tree makes, no other meaning is sought;
    - *WordNet's nouns*: the classes under all their senses that the tree has ("feline", "crane"), or else the nearest
      node that their first sense is a kind of ("poodle" is a "dog"). By WordNet's ids on nodes, or where there are none
      by names;
    - the *last words of names*, if WordNet does not tell: "trucks and vans" are "vans".

    What a word may mean are alternatives, so it gives one cue on all of them together ("engine": cars, trucks, …). Two
    words give two cues. But several that mean the same give one, and of two of which one holds the other, the narrower
    stays, as a text that says "dog" and "beagle" gives no evidence twice. Words for all classes give none. What is
    said of the things, that there is no dog or that somebody saw one, is not understood.

    What was found is told in the log ``hlnet``.

    Args:
        text: English words.
        tree: the classes.
        reliability: of every cue; default: what the policy says.
        wordnet: the dictionary; default: the one on this machine, if there is one.

    Raises:
        UsageError: if the text has no words, or the reliability is not between 0 and 1.

    Example:
        >>> tree = ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle", "boxer"], "saw": {}})
        >>> cues_from_text("Meow!", tree, 0.9)
        [Cue(node='cat', reliability=0.9, strength=None, mode=None)]
    """
    words = plain(text).split()
    if not words:
        raise UsageError(f"the text '{one_line(text, 60)}' has no words to look for in the tree")
    make_cue(one_line(text, 60), reliability)  # refuse before the search
    found: dict[frozenset[int], str] = {}  # classes -> the words that mean them
    meaning = _Meaning(tree, wordnet)
    first = 0
    while first < len(words):
        for count in range(min(meaning.longest, len(words) - first), 0, -1):
            together = " ".join(words[first : first + count])
            classes = meaning.of(together)
            if classes is not None:
                if 0 < len(classes) < len(tree.classes):
                    found.setdefault(frozenset(classes), together)
                break
        first += count
    narrow = {classes: said for classes, said in found.items() if not any(other < classes for other in found)}
    cues = []
    for meant, said in narrow.items():
        names = tuple(tree.classes[i] for i in sorted(meant))
        cues.append(make_cue(as_selection(tree, meant), reliability, classes=names))
        log.info("'%s' means %s", said, one_line(cues[-1].node))
    return cues


class _Meaning:
    """What words mean in a tree. The dictionary, which takes seconds to read, is opened when it is first needed."""

    def __init__(self, tree: ClassTree, wordnet: WordNet | None) -> None:
        self.tree, self.given = tree, wordnet
        self.words = tree_words(tree, wordnet)
        self.longest = max(LONGEST, self.words.longest, *(1 + words.count(" ") for words in _by_word()))

    def of(self, words: str) -> set[int] | None:
        """Positions of classes, if the tree has any; ``None`` if the words are unknown."""
        if classes := self.words.named(words):
            return classes
        for form in _stems(words):
            if form in _by_word() and ((classes := self.of_things(_by_word()[form])) or form in _sounds()):
                return classes
        parts = words.split()
        if all(part in _small() or len(part) == 1 or part.isnumeric() for part in parts) or parts[0] in _ARTICLES:
            return None
        self.open()
        usual = next((_by_noun()[form] for form in forms(words) if form in _by_noun()), None)
        if usual and (sense := self.words.sense(usual.nouns, usual.synset)) and (classes := self.words.below(sense)):
            return classes
        senses = self.words.senses(words)
        classes = self.words.of_senses(senses) or (set() if self.words.told else self.words.kinds(words))
        return classes if classes or senses else None

    def of_things(self, things: Sequence[Thing]) -> set[int]:
        """What one of several things is."""
        named = [next(filter(None, map(self.words.named, thing.nouns)), None) for thing in things]
        found = set().union(*filter(None, named))
        if None in named:
            self.open()
            lacking = [thing for thing, classes in zip(things, named, strict=True) if classes is None]
            senses = [sense for thing in lacking if (sense := self.words.sense(thing.nouns, thing.synset))]
            found |= set().union(*(self.words.below(sense) for sense in senses))
            found = found or self.words.of_senses(senses, likely=len(senses))
        if not found and not self.words.told:
            guesses = (next(filter(None, map(self.words.kinds, thing.nouns)), set()) for thing in things)
            found = set().union(*guesses)
        return found

    def open(self) -> None:
        if self.words.wordnet is None and (wordnet := self.given or default_wordnet()):
            self.words = tree_words(self.tree, wordnet)


# ---------------------------------------------------------------------- the table


@cache
def cue_table() -> tuple[Thing, ...]:
    """The sounds and everyday words that come with hlnet, by what they stand for."""
    text = resources.files("hlnet.cues").joinpath("words.csv").read_text(encoding="utf-8")
    return tuple(
        Thing(
            tuple(row["noun"].split("/")),
            row["synset"],
            tuple(filter(None, row["sounds"].split(";"))),
            tuple(filter(None, row["words"].split(";"))),
        )
        for row in csv.DictReader(text.splitlines())
    )


@cache
def _small() -> frozenset[str]:
    return frozenset(_SMALL_WORDS.split())


@cache
def _by_word() -> dict[str, list[Thing]]:
    found: dict[str, list[Thing]] = {}
    for thing in cue_table():
        for word in {plain(word): None for word in (*thing.sounds, *thing.words)}:
            found.setdefault(word, []).append(thing)
    return found


@cache
def _sounds() -> frozenset[str]:
    return frozenset(plain(sound) for thing in cue_table() for sound in thing.sounds)


@cache
def _by_noun() -> dict[str, Thing]:
    return {plain(noun): thing for thing in reversed(cue_table()) for noun in thing.nouns}


def _stems(words: str) -> list[str]:
    """Words, what they may be the plural of, and the verb that they may be a form of: "barking", "whinnied"."""
    found = forms(words)
    for ending, others in (("ing", ("", "e")), ("ied", ("y",)), ("ed", ("", "e"))):
        if words.endswith(ending):
            stem = words.removesuffix(ending)
            found += [stem + other for other in others]
            found += [stem[:-1]] * (stem[-2:-1] == stem[-1:])
    return found
