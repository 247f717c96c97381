"""Class trees in plain text: lists of names, with numbers or ids before them, and indented lists."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from hlnet.errors import TreeError
from hlnet.tree.delimited import is_comment
from hlnet.tree.graphs import checked
from hlnet.tree.hierarchy import Hierarchy
from hlnet.tree.tables import read_table

log = logging.getLogger("hlnet")

_INDENT = re.compile(r"(?P<blank>[ \t]*)(?P<marks>[-*+•–—>]+[ \t]+|-+(?=[^\s\d-]))?(?P<name>.*)")
_NUMBERED = re.compile(r"(?P<index>[0-9]{1,9})\s*(?:[:.)=,\t]\s*|\s)(?P<name>\S.*)")
_NAMED_ID = re.compile(r"(?P<id>[A-Za-z]{1,3}[0-9]{4,})[\s:,=]+(?P<name>\S.*)")
#: What separates the parts of a path besides the characters that tables have.
_ARROWS = (" > ", " >> ", " → ", " » ", " -> ", "::", "\\")
_LINK = re.compile(r"[\w-]*[0-9][\w-]*\s+-?[\w-]*[0-9][\w-]*", re.ASCII)


def read_list(text: str, plain: bool = False) -> Hierarchy:
    """Read a list of classes, one a line; the log says in one line how it was read.

    Read are names alone; ``0: name`` and ``0 name``, numbers being the original indices; ``n01440764 tench``, with ids;
    lists whose depth is told by indentation or by dashes (``- cat``, ``-- tabby``); and lines whose parts are separated
    by semicolons, tabs, bars, slashes or arrows (``animal > cat``), as tables of paths. A comma is part of a name.
    Empty lines and those that begin with ``#`` are passed over.

    Args:
        text: of the file.
        plain: take each line for a name as it stands.

    Raises:
        TreeError: if the lines are links between ids, or make no tree.

    Example:
        >>> read_list("cat\\n  tabby\\n  siamese\\ndog\\n").to_tree().to_nested()
        {'cat': {'tabby': 0, 'siamese': 1}, 'dog': 2}
        >>> [leaf.index for leaf in read_list("281: tabby cat\\n282: tiger cat\\n").leaves()]
        [281, 282]
    """
    lines = [line.rstrip() for line in text.splitlines()]
    comments = sum(map(is_comment, lines))
    lines = [line for line in lines if line.strip() and not is_comment(line)]
    if not lines:
        raise TreeError("there is no name in it")
    passed = f"; comment lines: {comments}" if comments else ""
    names = [line.strip() for line in lines]
    if plain:
        return _flat([Hierarchy(name) for name in names], f"a plain list{passed}")
    for delimiter in ";\t|":
        if 2 * sum(delimiter in name for name in names) > len(names):
            return read_table("\n".join(names), delimiter)
    if all(map(_LINK.fullmatch, names)):
        raise TreeError(
            f"line 1 ('{names[0][:40]}') and all others are two ids each, as in a list of links; whether the parent "
            "comes first is not said: make it a table, with 'parent,child' or 'child,parent' as its first row (.csv)"
        )
    if numbered := [found for name in names if (found := _NUMBERED.fullmatch(name))]:
        indices = [int(found["index"]) for found in numbered]
        if len(numbered) == len(names) and len(set(indices)) == len(names):
            nodes = [Hierarchy(found["name"], index=index) for found, index in zip(numbered, indices, strict=True)]
            return _flat(nodes, f"a list with the classes' original indices before their names{passed}")
    identified = [found for name in names if (found := _NAMED_ID.fullmatch(name))]
    if len(identified) == len(names) and len({found["id"] for found in identified}) == len(names):
        nodes = [Hierarchy(found["name"], id=found["id"]) for found in identified]
        return _flat(nodes, f"a list with ids before the names{passed}")
    for arrow in _ARROWS:
        if 2 * sum(arrow in name for name in names) > len(names):
            cells = ["\t".join(part.strip() for part in name.split(arrow)) for name in names]
            return read_table("\n".join(cells), "\t", header=False, kind="paths")
    if indented := _indented(lines):
        log.info("list read: by indentation%s; classes: %d", passed, len(indented.leaves()))
        return checked(indented)
    if 2 * sum("/" in name.strip("/") for name in names) > len(names):
        paths = [name.strip("/").split("/") for name in names]
        return read_table("\n".join("\t".join(path) for path in paths), "\t", header=False, kind="paths")
    commas = "; a comma is part of a name" if any("," in name for name in names) else ""
    return _flat([Hierarchy(name) for name in names], f"a flat list, one class a line{commas}{passed}")


# ---------------------------------------------------------------------- helpers


def _flat(nodes: Sequence[Hierarchy], how: str) -> Hierarchy:
    log.info("list read: %s; classes: %d", how, len(nodes))
    return checked(Hierarchy("", list(nodes)))


def _indented(lines: Sequence[str]) -> Hierarchy | None:
    """The hierarchy that indentation or rows of dashes tell; ``None`` if all lines are equally deep."""
    parts = [_INDENT.fullmatch(line) for line in lines]
    depths = []
    for part in parts:
        assert part is not None
        blank = len(part["blank"].expandtabs(4))
        depths.append(blank + len((part["marks"] or "").rstrip()))
    if len(set(depths)) < 2:
        return None
    root = Hierarchy("")
    waiting = [(-1, root)]
    for number, (part, depth) in enumerate(zip(parts, depths, strict=True), start=1):
        assert part is not None
        while waiting[-1][0] >= depth:
            waiting.pop()
        if not part["name"].strip():
            raise TreeError(f"line {number} has no name")
        node = Hierarchy(part["name"].strip().removesuffix(":"))
        waiting[-1][1].children.append(node)
        waiting.append((depth, node))
    return root
