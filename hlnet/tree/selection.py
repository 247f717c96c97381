"""Selections: what a user writes to name classes of a tree.

Notable here: a selection is a set, what its terms name less what its minus terms name, so their order does not matter;
and a known name goes before any sign, so that commas, blanks and hyphens within names need no quoting.
"""

from __future__ import annotations

import logging
import operator
import os
import re
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator
from fnmatch import translate
from pathlib import Path

from hlnet.errors import SelectionError, UsageError, one_line, some, with_article
from hlnet.files import read_text
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.nodes import normal_name

log = logging.getLogger("hlnet")

# "281 -285" is no range: there the minus stands before a term.
#: Selections that are remembered.
MOST_TEXTS = 10_000
_INDEX_OR_RANGE = re.compile(r"(\d{1,9})(?:(?:-\s*|\s+-\s+)(\d{1,9}))?")
_BETWEEN_TERMS = re.compile(r"\s*,\s*|\s+(?=-)")


def select_classes(tree: ClassTree, selection: str | int | Iterable[str | int]) -> tuple[int, ...]:
    """Positions of the selected classes, ascending and without repeats, in the order of the tree's logits.

    A selection is one term or several; a string may hold several between commas. A term is, in this order of
    precedence:

    - a class by name (``tabby``) or id (``n02123045``);
    - any node by path or id, meaning all classes under it (``animal/cat``), or an inner node by name alone (``cat``),
      where only one has it;
    - ``@file``: a text file with one selection a line; blank lines and lines that start with ``#`` do not count;
    - an original index (``281``) or an inclusive range of them (``281-285``), of which at least one must be present;
      how many are not is told in the log ``hlnet``. Where both ends are names of classes, as in folders called 0 to 9,
      the range is one of names;
    - a glob over names, ids and paths (``*terrier``, ``animal/*``);
    - another form of a name, or a word that WordNet knows: :func:`hlnet.tree.synonyms.classes_meant`. The log says what
      was taken.

    A minus before a term takes its classes away, wherever it stands (``animal -animal/dog``, ``animal,-@dull.txt``);
    before it, a blank separates as a comma does. Where all terms have one, they are taken from all classes.

    Args:
        tree: the tree to select from.
        selection: the term or terms. A number in a list is an original index, even where a class has that name.

    Raises:
        SelectionError: for a term that matches nothing, with the nearest names; for a minus that takes nothing away or
            leaves nothing; or for an unreadable ``@file``.

    Example:
        >>> tree = ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle", "boxer"]})
        >>> select_classes(tree, "boxer,cat"), select_classes(tree, "1-2"), select_classes(tree, ["b*", 0])
        ((0, 1, 3), (1, 2), (0, 2, 3))
        >>> select_classes(tree, "cat,2-3 -b*er"), select_classes(tree, "-dog")
        ((0, 1, 2), (0, 1))
    """
    single = isinstance(selection, str) or not isinstance(selection, Iterable)
    terms = [_term(term) for term in ([selection] if single else selection)]  # type: ignore[union-attr]
    if negative := [term for term in terms if isinstance(term, int) and term < 0]:
        raise SelectionError(f"index {negative[0]} is negative; to leave a class out, write '{negative[0]}' as text")
    if single and isinstance(selection, str) and "@" not in selection:  # the same are asked for again and again
        return _selector(tree).known_text(selection)
    return _selector(tree).all(terms)


def known_part(tree: ClassTree, selection: str) -> str:
    """The part of a selection that the tree has, as a selection; empty if it has none.

    Terms that it does not know are left out; what only takes away says nothing alone.

    Example:
        >>> tree = ClassTree.from_nested({"cat": ["tabby", "siamese"], "saw": {}})
        >>> known_part(tree, "cat,dog -tabby"), known_part(tree, "dog"), known_part(tree, "dog -tabby")
        ('cat,-tabby', '', '')
    """
    selector, kept = _selector(tree), []
    for term in selector.split(selection.strip()):
        try:
            kept += [(term, minus) for minus, _ in selector.terms([term], exact=True)][:1]
        except SelectionError:
            continue
    return ",".join(term for term, _ in kept) if any(not minus for _, minus in kept) else ""


def as_selection(tree: ClassTree, classes: Iterable[int]) -> str:
    """The shortest selection that names these classes: paths of the largest nodes that hold no others.

    Args:
        tree: the tree.
        classes: positions of classes; at least one.

    Raises:
        SelectionError: if there are none, or one is out of range.

    Example:
        >>> tree = ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle", "boxer"]})
        >>> as_selection(tree, (0, 1, 3)), as_selection(tree, (2,))
        ('cat,dog/boxer', 'dog/beagle')
    """
    wanted = set(classes)
    tree.rows(wanted)
    names = tree.node_names
    written: dict[str, tuple[int, ...]] = {}
    covered: set[int] = set()
    for row in tree.levels:
        for node in row:
            below = names.below[node.path]
            if wanted.issuperset(below) and covered.isdisjoint(below) and names.words_for(node.path):
                covered.update(below)
                written[names.words_for(node.path)] = below
    text = ",".join(sorted(written, key=lambda word: written[word]))
    if select_classes(tree, text) == tuple(sorted(wanted)):
        return text
    return ",".join(str(tree.indices[i]) for i in sorted(wanted))  # where names with commas run together


def read_selections(path: str | Path, tree: ClassTree) -> dict[str, tuple[int, ...]]:
    """Several named selections from one YAML or JSON file: a mapping from each name to a selection.

    Returns:
        by name, what :func:`select_classes` finds.

    Raises:
        UsageError: if the file cannot be read or is no such mapping.
        SelectionError: as :func:`select_classes`; the message names the selection.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "groups.yaml"
        >>> _ = path.write_text("pets: tabby,beagle\\ndogs: [dog]\\n")
        >>> tree = ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle", "boxer"]})
        >>> read_selections(path, tree)
        {'pets': (0, 2), 'dogs': (2, 3)}
    """
    import yaml

    from hlnet.tree.strict_yaml import read_yaml

    text = read_text(path, f"the file of selections '{path}'")
    try:
        found = read_yaml(text)  # JSON is YAML
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"cannot read the selections in '{path}': {one_line(error)}") from error
    if not isinstance(found, dict) or not found:
        raise UsageError(f"'{path}' must hold a mapping from names to selections, such as 'cats: tabby,281-285'")
    selected = {}
    for name, selection in found.items():
        terms = selection if isinstance(selection, list) else [selection]
        if not all(isinstance(term, str | int) and not isinstance(term, bool) for term in terms):
            raise UsageError(f"'{path}', '{name}': expected a selection or a list of them, got {selection!r}")
        try:
            selected[str(name)] = _selector(tree).all(terms)  # to YAML, -281 is a number: index 281 after a minus
        except SelectionError as error:
            raise SelectionError(f"'{path}', '{name}': {error}") from error
    return selected


def _term(term: object) -> str | int:
    """Text, or a whole number of whatever library."""
    if isinstance(term, str):
        return term
    try:
        if isinstance(term, bool):
            raise TypeError
        return operator.index(term)  # type: ignore[arg-type]
    except TypeError:
        told = repr(term) if isinstance(term, bool | float) else with_article(type(term).__name__)
        raise SelectionError(f"{told} is no selection: give text or an original index") from None


def _selector(tree: ClassTree) -> _Selector:
    """Kept on the tree, as its own cached properties are: a thousand classes take milliseconds to turn round."""
    selector: _Selector = tree.__dict__.setdefault("_selector", None) or _Selector(tree)
    tree.__dict__["_selector"] = selector
    return selector


class _Selector:
    """The tree's names, turned round: from what may be written to positions of classes."""

    def __init__(self, tree: ClassTree) -> None:
        self.tree = tree
        self.by_index = sorted((leaf.index or 0, position) for position, leaf in enumerate(tree.leaves))
        self.names = tree.node_names
        # Into how many pieces a name may fall where terms are told apart; a file's name or a range may, too.
        self.pieces = max(8, *(1 + word.count(",") + word.count(" -") for word in self.names.words))

        self.texts: dict[str, tuple[int, ...]] = {}

    def known_text(self, text: str) -> tuple[int, ...]:
        """As :meth:`all`, looked up once; of a service that runs for long, not all texts are kept."""
        if text not in self.texts:
            if len(self.texts) >= MOST_TEXTS:
                self.texts.clear()
            self.texts[text] = self.all([text])
        return self.texts[text]

    def all(self, selection: Iterable[str | int]) -> tuple[int, ...]:
        return tuple(sorted(self.combined(self.terms(selection))))

    def combined(self, terms: Iterable[tuple[str, Collection[int]]]) -> set[int]:
        """What is left when all that have a minus have taken theirs from the others."""
        kept: set[int] = set()
        taken: list[tuple[str, Collection[int]]] = []
        all_but = True
        for minus, found in terms:
            if minus:
                taken.append((minus, found))
            else:
                kept.update(found)
                all_but = False
        if all_but and not taken:
            raise SelectionError("the selection is empty; name at least one class, as in 'tabby,animal/dog,281-285'")
        if all_but:
            kept.update(position for _, position in self.by_index)
        for minus, found in taken:
            if kept.isdisjoint(found):
                raise SelectionError(
                    f"'{minus}' takes nothing away: the selection has none of its classes; leave it out"
                )
        left = kept.difference(*(found for _, found in taken))
        if not left:
            names = some(f"'{minus}'" for minus, _ in taken)
            raise SelectionError(f"the selection is empty: nothing is left after {names}; take away less")
        return left

    def terms(
        self, selection: Iterable[str | int], file: str | None = None, exact: bool = False
    ) -> Iterator[tuple[str, Collection[int]]]:
        """Every term's positions; with the term itself if it has a minus, else with an empty text. If ``exact``, by the
        tree's own words alone."""
        for text in selection:
            if isinstance(text, int):
                yield str(text) if text < 0 else "", self.between(abs(text), abs(text), str(text))
                continue
            for term in self.split(normal_name(text.strip())):
                minus = term if term.startswith("-") and term not in self.names.words else ""
                name = term[1:].lstrip() if minus else term
                if name.startswith("@") and name not in self.names.words:
                    if file:
                        raise SelectionError(f"'{file}': a selection file cannot name another one ('{name}')")
                    lines = self.terms(self.lines(name[1:]), name[1:], exact)
                    if minus:
                        yield minus, self.combined(lines)
                    else:  # as if its lines stood here
                        yield from lines
                else:
                    yield minus, self.one(name, exact)

    def split(self, text: str) -> Iterator[str]:
        """The terms that a text holds. What is known, as a whole, is one, whatever its signs: the longest first."""
        if text in self.names.words:  # nearly always
            yield text
            return
        gaps = list(_BETWEEN_TERMS.finditer(text))
        starts, ends = [0, *(gap.end() for gap in gaps)], [*(gap.start() for gap in gaps), len(text)]
        first = 0
        while first < len(starts):
            for last in range(min(first + self.pieces, len(ends)) - 1, first - 1, -1):
                term = text[starts[first] : ends[last]]
                if last == first or self.known(term):
                    break
            if term:
                yield term
            first = last + 1

    def known(self, term: str) -> bool:
        name = term.removeprefix("-").lstrip()
        return (
            term in self.names.words
            or name in self.names.words
            or (name.startswith("@") and os.path.isfile(name[1:]))
            or _INDEX_OR_RANGE.fullmatch(name) is not None
        )

    def one(self, name: str, exact: bool = False) -> Collection[int]:
        """Positions for one term, without a minus."""
        if name in self.names.words:
            return self.names.below[self.names.path(name)]
        if match := _INDEX_OR_RANGE.fullmatch(name):
            if numbers := self.named_between(match[1], match[2] or match[1]):
                return numbers
            return self.between(int(match[1]), int(match[2] or match[1]), name)
        if any(sign in name for sign in "*?["):
            return self.matching(name)
        if not name:
            raise SelectionError("a minus stands alone; it goes before a term, as in 'animal -animal/dog'")
        if not exact:
            from hlnet.tree.synonyms import classes_meant  # which may open a dictionary

            if found := classes_meant(self.tree, name):
                return found
        raise self.names.unknown(name)

    def named_between(self, first: str, last: str) -> list[int]:
        """Positions of the classes whose names are numbers in this range, where both its ends are names."""
        classes = self.names.classes
        if not (first in classes and last in classes):
            return []
        named = {int(name): i for name, i in classes.items() if name.isascii() and name.isdecimal()}
        found = [i for number, i in sorted(named.items()) if int(first) <= number <= int(last)]
        if found != self.indexed(int(first), int(last)):
            log.info("range '%s-%s': the names of classes are meant, not their original indices", first, last)
        return found

    def indexed(self, first: int, last: int) -> list[int]:
        """Positions of the classes whose original index lies in this range."""
        start, end = bisect_left(self.by_index, (first, -1)), bisect_left(self.by_index, (last + 1, -1))
        return [position for _, position in self.by_index[start:end]]

    def between(self, first: int, last: int, term: str) -> list[int]:
        if last < first:
            raise SelectionError(f"range '{term}' runs backwards; write '{last}-{first}'")
        found = self.indexed(first, last)
        if not found:
            known = f"{self.by_index[0][0]}-{self.by_index[-1][0]}"
            raise SelectionError(f"no class has an original index in '{term}'; this tree's lie in {known}")
        if absent := last + 1 - first - len(found):
            log.info("range '%s': the tree lacks %d of these %d indices", term, absent, last + 1 - first)
        return found

    def matching(self, pattern: str) -> set[int]:
        fits = re.compile(translate(pattern)).fullmatch
        paths = {path for word, paths in self.names.words.items() if fits(word) for path in paths}
        if not paths:
            raise SelectionError(f"no class or node matches '{pattern}'")
        return {position for path in paths for position in self.names.below[path]}

    def lines(self, name: str) -> list[str]:
        """The selections that a file holds."""
        lines = read_text(name, f"the selection file '{name}'", SelectionError).splitlines()
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise SelectionError(f"the selection file '{name}' names no class")
        return found
