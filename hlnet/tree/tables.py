"""Hierarchies in tables, as a spreadsheet or pandas writes them: paths (a row leads down to a class) or edges.

Edges are first collected in a graph, so rows may come in any order, and a message says what is wrong with all of them
together.
"""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Callable, Sequence
from typing import Literal

from hlnet.errors import TreeError, some
from hlnet.tree.delimited import MISSING, Rows, split_rows
from hlnet.tree.graphs import checked, from_graph, from_parents, new_child, quoted
from hlnet.tree.headings import Columns, is_header, name_bare_columns, name_columns, normal_heading
from hlnet.tree.hierarchy import Hierarchy

log = logging.getLogger("hlnet")
_DELIMITER_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


def read_table(
    text: str, delimiter: str = ",", header: bool | None = None, kind: Literal["paths", "edges"] | None = None
) -> Hierarchy:
    """Read a table of edges or of paths; the log says in one line what was taken for what.

    *Edges*, under a header with a parent column (``parent``, ``parent_id``, ``parentNameUsageID``, ``source``, …): each
    row names a node by ``child``, ``id`` or ``name``, and its parent by the same. It may give the node's ``id``, its
    ``index`` and its ``name``. An empty parent is the trunk. Where no parent is empty, a single root stands for the
    trunk, and several are level 1. Links from child to parent (``source``, ``target``) are turned around where only
    that makes a tree.

    *Paths*, otherwise: each row is a class, one cell a rank. Ranks that are known by their headings are put in order,
    coarse to fine; a column such as ``name`` is the class below them; others are read from left to right. A class may
    leave ranks empty: it then lies below the lowest rank that is filled. The columns ``id`` (or ``wnid`` …) and
    ``index`` describe the class. A row that stands several times counts once.

    Words for a missing value (``NA``, ``nan``, …) are empty cells, lines that begin with ``#`` comments. See
    :mod:`hlnet.tree.headings` for the headings, and :mod:`hlnet.tree.delimited` for the delimiter.

    Args:
        text: of the file.
        delimiter: between cells, where several fit.
        header: whether the first row is a header; default: judged by its words and shape.
        kind: ``"paths"`` or ``"edges"``; default: by the header.

    Raises:
        TreeError: for rows that make no tree; it names them.

    Example:
        >>> read_table("level 1,level 2,index\\ncat,tabby,281\\nsaw,,491\\n").to_tree().to_nested()
        {'cat': {'tabby': 281}, 'saw': 491}
        >>> read_table("species;genus\\nFelis catus;Felis\\nCanis lupus;Canis\\n").to_tree().to_nested()
        {'Felis': {'Felis catus': 0}, 'Canis': {'Canis lupus': 1}}
    """
    rows = split_rows(text, delimiter)
    first = rows.cells[0][1]
    headed = is_header(first, [cells for _, cells in rows.cells[1:]]) if header is None else header
    while headed and len(first) > 1 and not first[-1]:
        first.pop()
    below = rows.cells[1:] if headed else rows.cells
    if not below:
        raise TreeError(
            "there is no class below the header; if the first row is a class, read it with header=False (--no-header)"
        )
    width = len(first) if headed else max(len(cells) for _, cells in below)
    for number, cells in below:
        if any(cells[width:]):
            raise TreeError(f"row {number} has more cells than the header, which has {width}")
        cells[:] = (cells + [""] * width)[:width]
    values = [cells for _, cells in below]
    columns = name_columns(first, values) if headed else name_bare_columns(values)
    if kind == "edges" and columns.parent is None:
        if len(columns.levels) != 2:
            raise TreeError("a table of edges has a column of parents and one of children; head them parent,child")
        columns.parent, columns.key = columns.levels
    if kind == "paths" and columns.parent is not None:
        raise TreeError("the header speaks of parents, so this is a table of edges; the format 'edges' reads it")
    if columns.parent is not None and columns.key is not None:
        root, remarks = _from_edges(below, columns), [f"parents in {_heading(columns, columns.parent)}"]
    else:
        root, remarks = _from_paths(below, columns)
    _report(rows, headed, columns, remarks, len(root.leaves()))
    try:
        return checked(root)
    except TreeError as error:
        raise TreeError(f"{error}{_order_hint(below, columns)}") from error


def write_paths(root: Hierarchy, delimiter: str = ",") -> str:
    """The table of paths, one row a class, with its index and, if any class has one, its id.

    Example:
        >>> root = Hierarchy("", [Hierarchy("cat", [Hierarchy("tabby", index=281)]), Hierarchy("saw", index=491)])
        >>> print(write_paths(root), end="")
        level 1,level 2,index
        cat,tabby,281
        saw,,491
    """
    paths: dict[int, list[str]] = {id(root): []}
    for node in root.walk():
        for child in node.children:
            paths[id(child)] = [*paths[id(node)], child.name]
    leaves = root.leaves()
    depth = max(len(paths[id(leaf)]) for leaf in leaves)
    extra = _extra_columns(leaves)
    rows = [[f"level {level}" for level in range(1, depth + 1)] + list(extra)]
    for leaf in leaves:
        path = paths[id(leaf)]
        rows.append(path + [""] * (depth - len(path)) + [cell(leaf) for cell in extra.values()])
    return _table(rows, delimiter)


def write_edges(root: Hierarchy, delimiter: str = ",") -> str:
    """The table of edges, a node before its children; those of level 1 have an empty parent.

    Where two nodes share a name, ``parent`` and ``child`` hold whole paths, and a column ``name`` the names.

    Example:
        >>> root = Hierarchy("", [Hierarchy("cat", [Hierarchy("tabby", index=281)]), Hierarchy("saw", index=491)])
        >>> print(write_edges(root), end="")
        parent,child,index
        ,cat,
        cat,tabby,281
        ,saw,491
    """
    nodes = list(root.walk())[1:]
    doubled = len({node.name for node in nodes}) < len(nodes)
    extra = _extra_columns(nodes)
    if doubled:
        extra = {"name": lambda node: node.name, **extra}
    parents = {id(child): node for node in root.walk() for child in node.children}
    keys = {id(root): ""}
    rows = [["parent", "child", *extra]]
    for node in nodes:
        parent = keys[id(parents[id(node)])]
        keys[id(node)] = f"{parent}/{node.name}" if doubled and parent else node.name
        rows.append([parent, keys[id(node)], *(cell(node) for cell in extra.values())])
    return _table(rows, delimiter)


# ---------------------------------------------------------------------- helpers


def _from_edges(rows: list[tuple[int, list[str]]], columns: Columns) -> Hierarchy:
    import networkx

    assert columns.parent is not None and columns.key is not None
    graph = networkx.DiGraph()
    nodes_by_key: dict[str, Hierarchy] = {}
    for number, cells in rows:
        parent, child = cells[columns.parent], cells[columns.key]
        if not child:
            raise TreeError(f"row {number} names no {columns.headings[columns.key] if columns.headings else 'child'}")
        if graph.has_edge(parent, child):
            raise TreeError(f"row {number} puts '{child}' under {quoted([parent])} once more")
        graph.add_edge(parent, child)
        for key in (parent, child):
            nodes_by_key.setdefault(key, Hierarchy(key))
        node = nodes_by_key[child]
        node.name = _cell(cells, columns.name) or child
        node.id = _cell(cells, columns.id) or None
        node.index = _whole_number(_cell(cells, columns.index), f"row {number}")
    if not columns.headings or normal_heading(columns.headings[columns.parent]) == "source":  # which says less
        graph = from_parents(graph)
    roots = [key for key in graph if not graph.in_degree(key)]
    if "" not in graph and len(roots) > 1:
        nodes_by_key[""] = Hierarchy("")
        graph.add_edges_from(("", key) for key in roots)
    return from_graph(graph, nodes_by_key)


def _from_paths(rows: list[tuple[int, list[str]]], columns: Columns) -> tuple[Hierarchy, list[str]]:
    root = Hierarchy("")
    places: dict[tuple[int, str], Hierarchy] = {}  # by the parent's identity and the name
    classes: dict[int, int] = {}  # the row of each class
    repeated = gaps = 0
    for number, cells in rows:
        ranks = [cells[i] for i in columns.levels]
        path = [cell for cell in ranks if cell]
        if not path:
            raise TreeError(f"row {number} names no class")
        gaps += "" in ranks[: len(ranks) - ranks[::-1].index(path[-1])]
        index = _whole_number(_cell(cells, columns.index), f"row {number}")
        identifier = _cell(cells, columns.id) or None
        node = root
        for i, name in enumerate(path, start=1):
            place = (id(node), name)
            if new := place not in places:
                places[place] = new_child(node, name)
            node = places[place]
            last = i == len(path)
            if last and id(node) in classes and (node.index, node.id) == (index, identifier):
                repeated += 1
            elif id(node) in classes or (last and not new):
                what = f"the class of row {classes[id(node)]}" if id(node) in classes else "a group of an earlier row"
                raise TreeError(
                    f"row {number}: '{'/'.join(path[:i])}' is {what}; give each class one row, and none below it"
                    f"{_order_hint(rows, columns)}"
                )
        classes.setdefault(id(node), number)
        node.index, node.id = index, identifier
    remarks = [f"repeated rows: {repeated}"] if repeated else []
    return root, remarks + ([f"rows with empty ranks between: {gaps} (closed)"] if gaps else [])


def _order_hint(rows: list[tuple[int, list[str]]], columns: Columns) -> str:
    """Advice where the ranks seem to run from fine to coarse."""
    counts = [len({cells[i] for _, cells in rows}) for i in columns.levels]
    if len(counts) > 1 and counts == sorted(counts, reverse=True) and counts[0] > counts[-1]:
        return " (the columns seem to run from fine to coarse: put the coarsest first)"
    return ""


def _report(rows: Rows, headed: bool, columns: Columns, remarks: list[str], classes: int) -> None:
    """One line in the log that says what was taken for what."""
    first = rows.cells[0]
    parts = [f"cells separated by {_DELIMITER_NAMES.get(rows.delimiter, repr(rows.delimiter))}"]
    if headed:
        parts.append(f"row {first[0]} is the header")
        ranks = " > ".join(columns.headings[i] for i in columns.levels)
        parts += [f"ranks {ranks}{' (put in order)' if columns.reordered else ''}"] if columns.levels else []
    else:
        shown = rows.delimiter.join(first[1])
        parts.append(f"no header: row {first[0]} ('{shown[:60]}') was taken for a class (else header=True, --header)")
    for what, column in (("id", columns.id), ("index", columns.index)):
        if column is not None:
            parts.append(f"{what} in {_heading(columns, column) or f'column {column + 1}'}")
    parts += remarks
    if columns.unused:
        parts.append("not used: " + some([f"'{columns.headings[i]}'" for i in columns.unused]))
    if rows.missing:
        parts.append(f"cells such as NA: {rows.missing} (taken as empty)")
    if rows.comments:
        parts.append(f"comment lines: {rows.comments}")
    log.info("table read: %s; classes: %d", "; ".join(parts), classes)


def _heading(columns: Columns, column: int | None) -> str:
    return f"'{columns.headings[column]}'" if columns.headings and column is not None else ""


def _cell(cells: list[str], column: int | None) -> str:
    return "" if column is None else cells[column]


_NUMBER = re.compile(r"([0-9]{1,18})([.,]0*)?")  # a spreadsheet may have made 281.0 of 281


def _whole_number(cell: str, where: str) -> int | None:
    found = _NUMBER.fullmatch(cell)
    if cell and not found:
        raise TreeError(f"{where}: the index must be a whole number, got '{cell[:40]}'")
    return int(found[1]) if found else None


def _extra_columns(nodes: Sequence[Hierarchy]) -> dict[str, Callable[[Hierarchy], str]]:
    ids: dict[str, Callable[[Hierarchy], str]] = {"id": lambda node: node.id or ""}
    kept = ids if any(node.id for node in nodes) else {}
    return {**kept, "index": lambda node: "" if node.index is None else str(node.index)}


def _table(rows: list[list[str]], delimiter: str) -> str:
    """The text of a table; what would be read as a comment stands in quotes.

    Raises:
        TreeError: if a name is a word for a missing value.
    """
    text = io.StringIO(newline="")
    plain = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    quoted_rows = csv.writer(text, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        if wrong := next((cell for cell in row if cell in MISSING), None):
            raise TreeError(f"a table cannot hold the name '{wrong}', a missing value; choose another format")
        writer = plain if not row[0].startswith("#") else quoted_rows
        writer.writerow(row)
    return text.getvalue()
