"""Hierarchies in tables, as a spreadsheet or pandas writes them: paths (a row leads down to a class) or edges.

Notable here: the words in the first row tell which of the two a table is, and whether that row is a header. Edges are
first collected in a graph, so rows may come in any order, and a message says what is wrong with all of them together.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Sequence

from hlnet.errors import TreeError, one_line
from hlnet.tree.graphs import checked, from_graph, new_child, quoted
from hlnet.tree.hierarchy import Outline

#: Words that head columns, in lower case without blanks, underscores and hyphens.
HEADING = re.compile(
    r"level[0-9]+|id|(wn|wordnet|synset|node)id|synset|((class|label|original)(id|index)|index)"
    r"|(super|sub|parent|fine|coarse|class|group|category|leaf)?(name|label)|parent|child|source|target"
    r"|(super|sub|parent|fine|coarse)?(class|group|category)|leaf|domain|kingdom|phylum|order|family|genus|species"
)
IDS = {"wnid", "wordnetid", "synsetid", "synset", "nodeid"}
INDICES = {"classid", "labelid", "originalid", "classindex", "labelindex", "originalindex"}


def read_table(text: str, delimiter: str = ",") -> Outline:
    """Read a table of edges or of paths.

    The first row is a header if it has ``parent`` and ``child``, or ``source`` and ``target``, or if more than half of
    its cells are words that head columns: ``level 1`` and so on, ``id``, ``index``, ``name``, ``label``, ``wnid``,
    ``synset``, ``class``, ``group`` or ``category`` (also with ``super``, ``sub``, ``parent``, ``fine``, ``coarse``
    before and ``name``, ``label``, ``id``, ``index`` after it), or a rank of biology. Case, blanks, underscores and
    hyphens make no difference. Blanks around a cell are dropped and empty rows passed over.

    *Edges*, under a header that has ``parent`` and ``child`` (or ``source`` and ``target``): each row names a node and
    its parent, and may give the node's ``id``, its ``index`` and, where ``child`` is only a key, its ``name``; other
    columns are ignored. An empty parent is the trunk. Where no parent is empty, a single root stands for the trunk, and
    several are level 1.

    *Paths*, otherwise: each row leads from the coarsest group to a class, one cell a level; a class that ends early
    leaves its last cells empty. The columns ``id`` (or ``wnid``, ``synset``) and ``index`` (or ``class id``, ``label
    id``, if it holds whole numbers) describe the class, every other one is a level; those headed ``level 1`` and so on
    come in the order of their numbers.

    Args:
        text: of the file.
        delimiter: between cells. In place of commas, where the first line has none, ``;`` or tabs are taken.

    Raises:
        TreeError: for rows that make no tree; it names them.

    Example:
        >>> read_table("level 1,level 2,index\\ncat,tabby,281\\nsaw,,491\\n").to_tree().to_nested()
        {'cat': {'tabby': 281}, 'saw': 491}
        >>> read_table("parent,child\\nthing,cat\\nthing,saw\\ncat,tabby\\n").to_tree().to_nested()
        {'cat': {'tabby': 0}, 'saw': 1}
    """
    first = next((line for line in text.splitlines() if line.strip()), "")
    if delimiter == "," and "," not in first:  # where numbers have commas, spreadsheets part cells otherwise
        delimiter = next((other for other in ";\t" if other in first), delimiter)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    rows = []
    try:
        for number, cells in enumerate(lines, start=1):
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                rows.append((number, stripped))
    except csv.Error as error:
        raise TreeError(f"line {lines.line_num} is not readable: {one_line(error)}") from error
    if not rows:
        raise TreeError("the table is empty")
    header = [re.sub(r"[\s_-]", "", cell.lower()) for cell in rows[0][1]]
    ends = next((pair for pair in (("parent", "child"), ("source", "target")) if {*pair} <= {*header}), None)
    if not ends and 2 * sum(bool(HEADING.fullmatch(cell)) for cell in header) <= sum(map(bool, rows[0][1])):
        return checked(_from_paths(rows, []))
    while not header[-1]:
        header.pop()
    for i, cell in enumerate(header):
        column = [cells[i] for _, cells in rows[1:] if len(cells) > i and cells[i]]
        if cell in INDICES:
            cell = "index" if all(_NUMBER.fullmatch(written) for written in column) else "id"
        header[i] = "id" if cell in IDS else cell
    if doubled := [cell for cell, count in Counter(header).items() if cell and count > 1]:
        written = [f"'{rows[0][1][i]}'" for i, cell in enumerate(header) if cell == doubled[0]]
        raise TreeError(f"{' and '.join(written)} head columns of one kind ('{doubled[0]}'); keep one of them")
    if "" in header:
        raise TreeError(f"column {header.index('') + 1} has no heading; name it, or take the column away")
    for number, cells in rows[1:]:
        if any(cells[len(header) :]):
            raise TreeError(f"row {number} has more cells than the header, which has {len(header)}")
        cells[:] = (cells + [""] * len(header))[: len(header)]
    places = [i for i, cell in enumerate(header) if re.fullmatch(r"level[0-9]+", cell)]
    order = list(range(len(header)))
    for place, i in zip(places, sorted(places, key=lambda i: int(header[i][5:])), strict=True):
        order[place] = i
    header = [header[i] for i in order]
    for _, cells in rows[1:]:
        cells[:] = [cells[i] for i in order]
    return checked(_from_edges(rows[1:], header, *ends) if ends else _from_paths(rows[1:], header))


def write_paths(root: Outline, delimiter: str = ",") -> str:
    """The table of paths, one row a class, with its index and, if any class has one, its id.

    Example:
        >>> root = Outline("", [Outline("cat", [Outline("tabby", index=281)]), Outline("saw", index=491)])
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


def write_edges(root: Outline, delimiter: str = ",") -> str:
    """The table of edges, a node before its children; those of level 1 have an empty parent.

    Where two nodes share a name, ``parent`` and ``child`` hold whole paths, and a column ``name`` the names.

    Example:
        >>> root = Outline("", [Outline("cat", [Outline("tabby", index=281)]), Outline("saw", index=491)])
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


def _from_edges(rows: list[tuple[int, list[str]]], header: list[str], parent_word: str, child_word: str) -> Outline:
    import networkx

    graph = networkx.DiGraph()
    outlines: dict[str, Outline] = {}
    for number, cells in rows:
        described = dict(zip(header, cells, strict=True))
        parent, child = described[parent_word], described[child_word]
        if not child:
            raise TreeError(f"row {number} names no {child_word}")
        if graph.has_edge(parent, child):
            raise TreeError(f"row {number} puts '{child}' under {quoted([parent])} once more")
        graph.add_edge(parent, child)
        for key in (parent, child):
            outlines.setdefault(key, Outline(key))
        node = outlines[child]
        node.name = described.get("name") or described.get("label") or child
        node.id = described.get("id") or None
        node.index = _whole_number(described.get("index", ""), f"row {number}")
    roots = [key for key in graph if not graph.in_degree(key)]
    if "" not in graph and len(roots) > 1:
        outlines[""] = Outline("")
        graph.add_edges_from(("", key) for key in roots)
    return from_graph(graph, outlines)


def _from_paths(rows: list[tuple[int, list[str]]], header: list[str]) -> Outline:
    root = Outline("")
    places: dict[tuple[int, str], Outline] = {}  # by the parent's identity and the name
    classes: dict[int, int] = {}  # the row of each class
    for number, cells in rows:
        described = dict(zip(header, cells, strict=False))
        path = [cell for i, cell in enumerate(cells) if not header or header[i] not in {"id", "index"}]
        while path and not path[-1]:
            path.pop()
        if not path:
            raise TreeError(f"row {number} names no class")
        if "" in path:
            raise TreeError(f"row {number} has an empty cell before '{path[-1]}'; only the last levels may be left out")
        node = root
        for i, name in enumerate(path, start=1):
            place = (id(node), name)
            if new := place not in places:
                places[place] = new_child(node, name)
            node = places[place]
            if id(node) in classes or (i == len(path) and not new):
                what = f"the class of row {classes[id(node)]}" if id(node) in classes else "a group of an earlier row"
                raise TreeError(
                    f"row {number}: '{'/'.join(path[:i])}' is {what}; give each class one row, and none below it"
                )
        classes[id(node)] = number
        node.id = described.get("id") or None
        node.index = _whole_number(described.get("index", ""), f"row {number}")
    return root


_NUMBER = re.compile(r"([0-9]{1,18})([.,]0*)?")  # a spreadsheet may have made 281.0 of 281


def _whole_number(cell: str, where: str) -> int | None:
    found = _NUMBER.fullmatch(cell)
    if cell and not found:
        raise TreeError(f"{where}: the index must be a whole number, got '{cell[:40]}'")
    return int(found[1]) if found else None


def _extra_columns(nodes: Sequence[Outline]) -> dict[str, Callable[[Outline], str]]:
    ids: dict[str, Callable[[Outline], str]] = {"id": lambda node: node.id or ""}
    kept = ids if any(node.id for node in nodes) else {}
    return {**kept, "index": lambda node: "" if node.index is None else str(node.index)}


def _table(rows: list[list[str]], delimiter: str) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return text.getvalue()
