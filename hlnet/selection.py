"""Selections: what a user writes to name classes of a tree."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from fnmatch import translate
from pathlib import Path

from hlnet.errors import SelectionError, did_you_mean
from hlnet.tree import ClassTree

_RANGE = re.compile(r"(\d+)-(\d+)")


def select_classes(tree: ClassTree, selection: str | int | Iterable[str | int]) -> tuple[int, ...]:
    """Positions of the selected classes, ascending and without repeats, in the order of the tree's logits.

    A selection is one term or several; a string may hold several between commas. A term is, in this order of
    precedence:

    - a class by name (``tabby``) or id (``n02123045``);
    - any node by path or id, meaning all classes under it (``animal/cat``), or an inner node by name alone (``cat``),
      where only one has it;
    - an original index (``281``) or an inclusive range of them (``281-285``), of which at least one must be present;
    - a glob over names, ids and paths (``*terrier``, ``animal/*``);
    - ``@file``: a text file with one selection a line; blank lines and lines that start with ``#`` do not count.

    Args:
        tree: the tree to select from.
        selection: the term or terms.

    Raises:
        SelectionError: for a term that matches nothing, with the nearest names; or an unreadable ``@file``.

    Example:
        >>> tree = ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle", "boxer"]})
        >>> select_classes(tree, "boxer,cat"), select_classes(tree, "1-2"), select_classes(tree, ["b*", 0])
        ((0, 1, 3), (1, 2), (0, 2, 3))
    """
    return _Selector(tree).all(selection)


class _Selector:
    def __init__(self, tree: ClassTree) -> None:
        self.tree = tree
        self.by_index = {leaf.index: position for position, leaf in enumerate(tree.leaves)}
        self.by_class: dict[str, int] = {}
        for position, leaf in enumerate(tree.leaves):
            self.by_class[leaf.name] = position
        for position, leaf in enumerate(tree.leaves):
            if leaf.id is not None:
                self.by_class.setdefault(leaf.id, position)
        # Every way to write a node, with the paths it may stand for.
        self.paths: dict[str, set[str]] = {}
        for row in tree.levels:
            for node in row:
                for word in (node.path, node.name, node.id):
                    if word is not None:
                        self.paths.setdefault(word, set()).add(node.path)

    def all(self, selection: str | int | Iterable[str | int]) -> tuple[int, ...]:
        terms = [selection] if isinstance(selection, str | int) else list(selection)
        found: set[int] = set()
        for term in terms:
            found.update(self.one(str(term).strip()))
        if not found:
            raise SelectionError("the selection is empty; name at least one class, as in 'tabby,animal/dog,281-285'")
        return tuple(sorted(found))

    def one(self, term: str) -> Iterator[int]:
        if term in self.by_class:
            yield self.by_class[term]
        elif term in self.paths:
            yield from self.under(term)
        elif term.startswith("@"):
            yield from self.from_file(term[1:])
        elif "," in term:  # after the names: a class may be called "tench, Tinca tinca"
            for part in term.split(","):
                if part.strip():
                    yield from self.one(part.strip())
        elif term.isdecimal():
            yield from self.between(int(term), int(term), term)
        elif match := _RANGE.fullmatch(term):
            yield from self.between(int(match[1]), int(match[2]), term)
        elif any(sign in term for sign in "*?["):
            yield from self.matching(term)
        else:
            raise SelectionError(f"the tree has no class or node '{term}'.{did_you_mean(term, self.paths)}")

    def under(self, word: str) -> tuple[int, ...]:
        paths = self.paths[word]
        if word in paths:  # written out in full
            return self.tree.leaves_under(word)
        if len(paths) > 1:
            raise SelectionError(f"'{word}' names several nodes ({', '.join(sorted(paths)[:4])}); write the path")
        return self.tree.leaves_under(next(iter(paths)))

    def between(self, first: int, last: int, term: str) -> list[int]:
        if last < first:
            raise SelectionError(f"range '{term}' runs backwards; write '{last}-{first}'")
        found = [position for index, position in self.by_index.items() if index is not None and first <= index <= last]
        if not found:
            known = sorted(index for index in self.by_index if index is not None)
            raise SelectionError(f"no class has an original index in '{term}'; this tree's lie in {known[0]}-{known[-1]}")
        return found

    def matching(self, pattern: str) -> list[int]:
        fits = re.compile(translate(pattern)).fullmatch
        paths = {path for word, paths in self.paths.items() if fits(word) for path in paths}
        found = [i for i, leaf in enumerate(self.tree.leaves) if _prefixes(leaf.path) & paths]
        if not found:
            raise SelectionError(f"no class or node matches '{pattern}'")
        return found

    def from_file(self, name: str) -> Iterator[int]:
        try:
            lines = Path(name).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not a text file"
            raise SelectionError(f"cannot read the selection file '{name}': {reason}") from error
        terms = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not terms:
            raise SelectionError(f"the selection file '{name}' names no class")
        for number, term in enumerate(terms, start=1):
            if term.startswith("@"):
                raise SelectionError(f"'{name}', term {number}: a selection file cannot name another one ('{term}')")
            yield from self.one(term)


def _prefixes(path: str) -> set[str]:
    parts = path.split("/")
    return {"/".join(parts[: end + 1]) for end in range(len(parts))}
