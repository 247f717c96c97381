"""English words in a class tree: the nodes of that name, and the classes that WordNet puts under them.

Notable here: a word may have several senses, of which those count that the tree has. WordNet's ids on nodes tell, or
else names; and a word that WordNet knows better than the tree ("poodle") means the nearest node that it is a kind of.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property

from hlnet.errors import UsageError
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.dictionary import WAYS, WordNet
from hlnet.tree.nodes import is_wordnet_id

log = logging.getLogger("hlnet")

_ENDINGS = (("ies", "y"), ("ves", "f"), ("ves", "fe"), ("men", "man"), ("es", ""), ("s", ""))


def plain(text: str) -> str:
    """Words alone, in lower case, between single blanks: ``"The dog's bow-wow!"`` as ``"the dog bow wow"``.

    Example:
        >>> plain("sweet_pepper"), plain("The dog's bow-wow!")
        ('sweet pepper', 'the dog bow wow')
    """
    return " ".join(re.findall(r"[^\W_]+", re.sub(r"['’]s\b", "", text.casefold())))


def forms(words: str) -> list[str]:
    """Words, and what they may be the plural of.

    Example:
        >>> forms("house cats"), forms("wolves")
        (['house cats', 'house cat'], ['wolves', 'wolf', 'wolfe', 'wolv', 'wolve'])
    """
    return [words, *(words.removesuffix(end) + other for end, other in _ENDINGS if words.endswith(end))]


class TreeWords:
    """The words for a tree's nodes, each with positions of the classes that it means.

    Args:
        tree: the tree.
        wordnet: the dictionary, if there is one.

    Example:
        >>> tree = ClassTree.from_nested({"house cats": ["tabby", "tiger cat"], "dog": ["beagle"]})
        >>> words = TreeWords(tree)
        >>> sorted(words.named("house cat")), sorted(words.kinds("cat")), sorted(words.named("cat"))
        ([0, 1], [0, 1], [])
    """

    def __init__(self, tree: ClassTree, wordnet: WordNet | None = None) -> None:
        self.tree, self.wordnet = tree, wordnet
        self._names: defaultdict[str, list[tuple[int, ...]]] = defaultdict(list)  # classes of each node of this name
        self._kinds: defaultdict[str, list[tuple[int, ...]]] = defaultdict(list)
        for path, classes in tree.node_names.below.items():
            name = path.rsplit("/", 1)[-1]
            for known, called in ((self._names, _called(name)), (self._kinds, _kinds(name))):
                for form in {form: None for words in called for form in forms(words)}:
                    known[form].append(classes)
        self.longest = 1 + max((words.count(" ") for words in self._names), default=0)

    def named(self, words: str) -> set[int]:
        """Classes of the nodes of this name, in whatever case and number; also of part of it, as of "crane (bird)"."""
        return set().union(*_first(self._names, words))

    def nodes_named(self, words: str) -> set[tuple[int, ...]]:
        """The same, node by node: which classes each node of this name has."""
        return set(_first(self._names, words))

    def kinds(self, words: str) -> set[int]:
        """Classes of the nodes whose names end in these words, by which English says what kind of thing a thing is.

        Of "trucks and vans", these are "trucks" and "vans". A guess, for trees that WordNet says nothing of.
        """
        return set().union(*_first(self._kinds, words))

    def below(self, synset: str) -> set[int]:
        """Classes that are a kind of this synset, by WordNet's ids on them or on nodes above them."""
        return set(self._by_synset.get(synset, ()))

    def senses(self, words: str) -> list[str]:
        """What the words may be by WordNet, most frequent first; names of persons and places come last."""
        if self.wordnet is None:
            return []
        senses = self.wordnet.senses(words)
        if not senses and (base := self.wordnet.base_form(words)):
            words, senses = base, self.wordnet.senses(base)
        return sorted(senses, key=lambda sense: words not in self.wordnet.lemmas(sense))  # type: ignore[union-attr]

    def sense(self, names: Sequence[str], synset: str) -> str | None:
        """This synset, or in a dictionary that has another one under its id, what the first name mostly means."""
        if self.wordnet is None:
            return None
        senses = [sense for name in names for sense in self.wordnet.senses(name)]
        return synset if synset in senses else next(iter(senses), None)

    def of_senses(self, senses: Sequence[str], likely: int = 1) -> set[int]:
        """Classes that are meant by one of these synsets, the likeliest first.

        These are the classes under all of them, and those of their other names. If there are none, they are those of
        the nearest nodes that the likely ones are a kind of.

        Args:
            senses: the synsets.
            likely: how many count there: further senses of a word, often slang and surnames, lead astray.
        """
        if self.wordnet is None:
            return set()
        found = set().union(*(self.below(sense) | self._called_so(sense) for sense in senses))
        return found or set().union(*map(self._above, senses[:likely]))

    @cached_property
    def told(self) -> bool:
        """Whether WordNet knows what every class is, so that a word of which it has no class has none."""
        return all(self._synsets)

    # ------------------------------------------------------------------ WordNet

    @cached_property
    def _synsets(self) -> list[set[str]]:
        """For each class, the synsets that it is a kind of."""
        above: dict[str, set[str]] = {}

        def ascend(synset: str) -> set[str]:
            if synset not in above:
                assert self.wordnet is not None
                above[synset] = {synset}.union(*map(ascend, self.wordnet.hypernyms(synset)))
            return above[synset]

        found: list[set[str]] = [set() for _ in self.tree.leaves]
        for synset, classes in self._ids.items():
            for position in classes:
                found[position] |= ascend(synset)
        return found

    @cached_property
    def _ids(self) -> dict[str, tuple[int, ...]]:
        """Classes of the nodes that have WordNet ids; not those of another version, which the dictionary lacks."""
        found = {}
        called = {
            leaf.path: leaf.name for leaf in self.tree.leaves
        } | self.tree.ids  # folders may be named by their ids
        for path, text in called.items() if self.wordnet else ():
            if is_wordnet_id(text):
                try:
                    found[self.wordnet.id(text)] = self.tree.leaves_under(path)  # type: ignore[union-attr]
                except UsageError:
                    continue
        return found

    @cached_property
    def _by_synset(self) -> dict[str, set[int]]:
        found: defaultdict[str, set[int]] = defaultdict(set)
        for position, synsets in enumerate(self._synsets):
            for synset in synsets:
                found[synset].add(position)
        return found

    def _called_so(self, synset: str) -> set[int]:
        """Classes of the nodes that have one of the synset's names, but for those known by an id to be other things."""
        assert self.wordnet is not None
        found: set[int] = set()
        for classes in (node for name in self.wordnet.lemmas(synset) for node in _first(self._names, name)):
            known = [synset in self._synsets[position] for position in classes if self._synsets[position]]
            if 2 * sum(known) >= len(known):  # of a tree's "vehicles", a few may be none to WordNet
                found.update(classes)
        return found

    def _above(self, synset: str) -> set[int]:
        """Classes of the nearest node that the synset is a kind of."""
        assert self.wordnet is not None
        row, seen = [synset], {synset}
        while row:
            row = [parent for each in row for parent in self.wordnet.hypernyms(each)]
            row = [parent for parent in dict.fromkeys(row) if parent not in seen]
            seen.update(row)
            if found := set().union(*(set(self._ids.get(each, ())) or self._called_so(each) for each in row)):
                return found
        return set()


@cache
def default_wordnet() -> WordNet | None:
    """This machine's dictionary, or ``None``, which is told once in the log ``hlnet``."""
    try:
        return WordNet()
    except UsageError:
        told = "no WordNet dictionary here: words are found by the names of nodes and what comes with hlnet alone; %s"
        log.info(told, WAYS)
        return None


def tree_words(tree: ClassTree, wordnet: WordNet | None) -> TreeWords:
    """Kept on the tree, as its own cached properties are."""
    known: dict[WordNet | None, TreeWords] = tree.__dict__.setdefault("_words", {})
    if wordnet not in known:
        known[wordnet] = TreeWords(tree, wordnet)
    return known[wordnet]


def _first(known: Mapping[str, list[tuple[int, ...]]], words: str) -> list[tuple[int, ...]]:
    return next((known[form] for form in forms(plain(words)) if form in known), [])


def _called(name: str) -> Iterator[str]:
    """What a node is called: "crane (bird)" a crane, too; "tench, Tinca tinca" either."""
    short = re.sub(r"\(.*?\)", "", name)
    yield from filter(None, {plain(each): None for each in (name, short, *short.split(","))})


def _kinds(name: str) -> Iterator[str]:
    """What a node's classes are kinds of, going by its name."""
    for part in re.split(r"\band\b|\bor\b|[,&]", re.sub(r"\(.*?\)", "", name).replace("_", " ")):
        if words := plain(part):
            yield from {words: None, words.rsplit(" ", 1)[-1]: None}
