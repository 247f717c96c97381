"""Selections: what a user writes to name classes of a tree."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from fnmatch import translate
from pathlib import Path

from hlnet.errors import SelectionError, UsageError, did_you_mean, one_line
from hlnet.tree import ClassTree

_INDEX_OR_RANGE = re.compile(r"(\d{1,9})(?:\s*-\s*(\d{1,9}))?")


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
    # Kept on the tree, as its own cached properties are: a thousand classes take milliseconds to turn round.
    selector = tree.__dict__.setdefault("_selector", None) or _Selector(tree)
    tree.__dict__["_selector"] = selector
    return selector.all(selection)


def read_selections(path: str | Path, tree: ClassTree) -> dict[str, tuple[int, ...]]:
    """Several named selections from one YAML or JSON file: a mapping from each name to a selection.

    Returns:
        by name, what :func:`select_classes` finds.

    Raises:
        UsageError: if the file cannot be read or is no such mapping.
        SelectionError: for a term that matches nothing; the message names the selection.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "groups.yaml"
        >>> _ = path.write_text("pets: tabby,beagle\\ndogs: [dog]\\n")
        >>> tree = ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle", "boxer"]})
        >>> read_selections(path, tree)
        {'pets': (0, 2), 'dogs': (2, 3)}
    """
    import yaml

    from hlnet.plain_yaml import read_yaml

    try:
        found = read_yaml(Path(path).read_text(encoding="utf-8-sig"))  # JSON is YAML
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"cannot read the selections in '{path}': {one_line(error)}") from error
    if not isinstance(found, dict) or not found:
        raise UsageError(f"'{path}' must hold a mapping from names to selections, such as 'cats: tabby,281-285'")
    selected = {}
    for name, selection in found.items():
        terms = selection if isinstance(selection, list) else [selection]
        if not all(isinstance(term, str | int) and not isinstance(term, bool) for term in terms):
            raise UsageError(f"'{path}', '{name}': expected a selection or a list of them, got {selection!r}")
        try:
            selected[str(name)] = select_classes(tree, terms)
        except SelectionError as error:
            raise SelectionError(f"'{path}', '{name}': {error}") from error
    return selected


class _Selector:
    """The tree's names, turned round: from what may be written to positions of classes."""

    def __init__(self, tree: ClassTree) -> None:
        self.by_index = sorted((leaf.index or 0, position) for position, leaf in enumerate(tree.leaves))
        self.by_class = {leaf.id: position for position, leaf in enumerate(tree.leaves) if leaf.id is not None}
        self.by_class |= {name: position for position, name in enumerate(tree.classes)}
        self.below: dict[str, list[int]] = {}  # path of a node -> its classes
        for position, leaf in enumerate(tree.leaves):
            parts = leaf.path.split("/")
            for end in range(1, len(parts) + 1):
                self.below.setdefault("/".join(parts[:end]), []).append(position)
        self.paths: dict[str, set[str]] = {path: {path} for path in self.below}  # any word for a node -> its paths
        for row in tree.levels:
            for node in row:
                for word in (node.name, node.id):
                    if word is not None and word not in self.below:
                        self.paths.setdefault(word, set()).add(node.path)

    def all(self, selection: str | int | Iterable[str | int]) -> tuple[int, ...]:
        terms = [selection] if isinstance(selection, str | int) else list(selection)
        found: set[int] = set()
        for term in terms:
            found.update(self.between(term, term, str(term)) if isinstance(term, int) else self.one(term.strip()))
        if not found:
            raise SelectionError("the selection is empty; name at least one class, as in 'tabby,animal/dog,281-285'")
        return tuple(sorted(found))

    def one(self, term: str, file: str | None = None) -> Iterator[int]:
        """Positions for one term, which may come from a file."""
        if term in self.by_class:
            yield self.by_class[term]
        elif term in self.paths:
            yield from self.under(term)
        elif "," in term:  # after the names: a class may be called "tench, Tinca tinca"
            for part in term.split(","):
                yield from self.one(part.strip(), file)
        elif term.startswith("@"):
            if file:
                raise SelectionError(f"'{file}': a selection file cannot name another one ('{term}')")
            yield from self.from_file(term[1:])
        elif match := _INDEX_OR_RANGE.fullmatch(term):
            yield from self.between(int(match[1]), int(match[2] or match[1]), term)
        elif any(sign in term for sign in "*?["):
            yield from self.matching(term)
        elif term:
            near = did_you_mean(term, self.paths) or f" It has {', '.join(list(self.by_class)[:4])} …"
            raise SelectionError(f"the tree has no class or node '{term}'.{near}")

    def under(self, word: str) -> list[int]:
        paths = self.paths[word]
        if len({tuple(self.below[path]) for path in paths}) > 1:  # a chain may repeat a name: it is one selection
            raise SelectionError(f"'{word}' names several nodes ({', '.join(sorted(paths)[:4])}); write the path")
        return self.below[next(iter(paths))]

    def between(self, first: int, last: int, term: str) -> list[int]:
        if last < first:
            raise SelectionError(f"range '{term}' runs backwards; write '{last}-{first}'")
        start, end = bisect_left(self.by_index, (first, -1)), bisect_left(self.by_index, (last + 1, -1))
        if start == end:
            known = f"{self.by_index[0][0]}-{self.by_index[-1][0]}"
            raise SelectionError(f"no class has an original index in '{term}'; this tree's lie in {known}")
        return [position for _, position in self.by_index[start:end]]

    def matching(self, pattern: str) -> set[int]:
        fits = re.compile(translate(pattern)).fullmatch
        paths = {path for word, paths in self.paths.items() if fits(word) for path in paths}
        if not paths:
            raise SelectionError(f"no class or node matches '{pattern}'")
        return {position for path in paths for position in self.below[path]}

    def from_file(self, name: str) -> Iterator[int]:
        try:
            lines = Path(name).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not a text file"
            raise SelectionError(f"cannot read the selection file '{name}': {reason}") from error
        terms = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not terms:
            raise SelectionError(f"the selection file '{name}' names no class")
        for term in terms:
            yield from self.one(term, name)
