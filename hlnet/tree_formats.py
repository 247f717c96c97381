"""Hierarchies in the formats of other programs: tables of paths or edges, Newick, node-link graphs, children objects.

Notable here: all readers yield an :class:`Outline` and all writers start from one, so that levels are not their care;
and nothing recurses, so that a text nested thousands deep is an ordinary error further on.
"""

from __future__ import annotations

import csv
import io
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from hlnet.errors import TreeError, one_line
from hlnet.outline import Outline, group_name

HEADING = re.compile(
    r"level[ _-]?[0-9]+|id|index|name|label|domain|kingdom|phylum|(super|sub)?class|order|family|genus|species"
)


# ---------------------------------------------------------------------- tables


def read_table(text: str, delimiter: str = ",") -> Outline:
    """Read a table of edges or of paths.

    The first row is a header if one of its cells, in any case, is a word that heads columns: ``level 1`` and so on,
    ``id``, ``index``, ``name``, ``label``, ``parent`` with ``child``, ``source`` with ``target``, or a rank of biology
    (``class``, ``species``, ``superclass``, …). Blanks around a cell are dropped and empty rows passed over.

    *Edges*, under a header that has ``parent`` and ``child`` (or ``source`` and ``target``): each row names a node and
    its parent, and may give the node's ``id``, its ``index`` and, where ``child`` is only a key, its ``name``; other
    columns are ignored. An empty parent is the trunk. Where no parent is empty, a single root stands for the trunk, and
    several are level 1.

    *Paths*, otherwise: each row leads from the coarsest group to a class, one cell a level; a class that ends early
    leaves its last cells empty. The columns ``id`` and ``index`` describe the class, every other one is a level.

    Args:
        text: of the file.
        delimiter: between cells.

    Raises:
        TreeError: for rows that make no tree; it names them.

    Example:
        >>> read_table("level 1,level 2,index\\ncat,tabby,281\\nsaw,,491\\n").to_tree().to_nested()
        {'cat': {'tabby': 281}, 'saw': 491}
        >>> read_table("parent,child\\nthing,cat\\nthing,saw\\ncat,tabby\\n").to_tree().to_nested()
        {'cat': {'tabby': 0}, 'saw': 1}
    """
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
    header = [cell.lower() for cell in rows[0][1]]
    ends = next((pair for pair in (("parent", "child"), ("source", "target")) if {*pair} <= {*header}), None)
    if not ends and not any(HEADING.fullmatch(cell) for cell in header):
        return _checked(_from_paths(rows, []))
    while not header[-1]:
        header.pop()
    if doubled := [cell for cell, count in Counter(header).items() if count > 1]:
        raise TreeError(f"two columns are headed '{doubled[0]}'; give each a name of its own")
    if "" in header:
        raise TreeError(f"column {header.index('') + 1} has no heading; name it, or take the column away")
    for number, cells in rows[1:]:
        if any(cells[len(header) :]):
            raise TreeError(f"row {number} has more cells than the header, which has {len(header)}")
        cells[:] = (cells + [""] * len(header))[: len(header)]
    return _checked(_from_edges(rows[1:], header, *ends) if ends else _from_paths(rows[1:], header))


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


# ---------------------------------------------------------------------- Newick


def read_newick(text: str) -> Outline:
    """Read a tree in Newick's parentheses; its root is the trunk.

    Underscores stay as written; comments and branch lengths are passed over. An inner node without a label is named
    after its first classes.

    Raises:
        TreeError: if the text is not one whole tree, or a class has no label.

    Example:
        >>> read_newick("((tabby:1.5,'Manx cat')cat,[no label](saw,axe));").to_tree().to_nested()
        {'cat': {'tabby': 0, 'Manx cat': 1}, 'saw+axe': {'saw': 2, 'axe': 3}}
    """
    from newick import NewickString, TokenType

    # The library ends a quoted label at a backslash. A lone surrogate, which no decoded text holds, stands in for it.
    try:
        tokens = NewickString(text.replace("\\", "\udc5c"))
    except ValueError as error:
        raise TreeError(f"not readable as Newick: {one_line(error)}") from error
    root = node = Outline("")
    above: list[Outline] = []  # the nodes whose parentheses are open
    before = ""  # what stands before: a mark, "label" or "length"; nothing at the beginning
    for token in tokens:
        if token.type in {TokenType.COMMENT, TokenType.WHITESPACE}:
            continue
        word = token.char.replace("\udc5c", "\\")
        is_word = token.type in {TokenType.WORD, TokenType.QWORD}
        whole = before not in {":", ";"}  # a node may end here
        if is_word and before == ":":
            word = "length"
        elif is_word and before in {"", "(", ",", ")"}:
            node.name = word[1:-1].replace("''", "'") if token.type is TokenType.QWORD else word
            word = "label"
        elif word == "(" and before in {"", "(", ","}:
            above.append(node)
            node = _new_child(node)
        elif word == "," and above and whole:
            node = _new_child(above[-1])
        elif word == ")" and above and whole:
            node = above.pop()
        elif not (whole and ((word == ":" and before != "length") or (word == ";" and not above))):
            after = f"the label '{node.name[:40]}'" if before == "label" else f"'{before}'" if before else "nothing"
            raise TreeError(
                f"not readable as Newick: {word[:40]!r} cannot follow {after}; expected is one tree, "
                "with labels in single quotes where they have blanks or punctuation"
            )
        before = word
    if above:
        raise TreeError(f"not readable as Newick: {len(above)} '(' are not closed; is the file cut short?")
    return _checked(root)


def write_newick(root: Outline) -> str:
    """The tree on one line of Newick; a label is quoted unless it has only letters, digits, ``.``, ``+`` and ``-``.

    Example:
        >>> write_newick(Outline("", [Outline("cat", [Outline("tabby"), Outline("Tom's cat")]), Outline("chain_saw")]))
        "((tabby,'Tom''s cat')cat,'chain_saw');\\n"
    """
    done: dict[int, str] = {}
    for node in reversed(list(root.walk())):
        below = ",".join(done.pop(id(child)) for child in node.children)
        # A bare underscore would be a blank to other programs.
        plain = re.fullmatch(r"([^\W_]|[.+-])*", node.name)
        label = node.name if plain else "'" + node.name.replace("'", "''") + "'"
        done[id(node)] = (f"({below})" if below else "") + label
    return done[id(root)] + ";\n"


# ---------------------------------------------------------------------- objects


def read_objects(data: Any) -> Outline | None:
    """Read what a JSON file of another program held; ``None`` if it is neither a node-link graph nor children objects.

    *Node-link*: ``{"nodes": [{"id": …, "label": …}], "links": [{"source": …, "target": …}]}`` (or ``edges``), as
    networkx writes it; links point from parent to child, and the root stands for the trunk. Text as an id is kept; a
    number only numbers the node in its file.

    *Children*: ``{"name": …, "id": …, "index": …, "children": […]}``, as D3 reads it, or ``{"tree": …}`` with such an
    object; the outermost stands for the trunk.

    A node is named by its ``label``, else its ``name``, else its ``id``, and a group that has none of them after its
    first classes; of two classes of one name each gets its id in parentheses. A class may have an ``index``. All other
    keys are ignored.

    Raises:
        TreeError: for something that begins like one of these and is no tree; it names the nodes.

    Example:
        >>> cat = {"id": "n02121808", "label": "cat", "children": [{"name": "tabby"}, {"name": "Manx"}]}
        >>> read_objects({"name": "thing", "children": [cat, {"name": "saw"}]}).to_tree().ids
        {'cat': 'n02121808'}
        >>> nodes = [{"id": "f00000000"}, {"id": "n02123045", "label": "tabby"}]
        >>> links = [{"source": "f00000000", "target": "n02123045"}]
        >>> read_objects({"nodes": nodes, "links": links}).to_tree().classes
        ('tabby',)
    """
    if not isinstance(data, dict):
        return None
    for key in ("links", "edges"):
        if _has_objects(data.get("nodes")) and isinstance(data.get(key), list):
            return _checked(_from_node_link(data["nodes"], data[key]))
    if isinstance(data.get("tree"), dict) and _has_objects(data["tree"].get("children")):
        data = data["tree"]
    return _checked(_from_children(data)) if _has_objects(data.get("children")) else None


def write_node_link(root: Outline) -> dict[str, Any]:
    """The node-link object: ids are the nodes' own or, where they have none, numbers; the root is number 0.

    Example:
        >>> write_node_link(Outline("", [Outline("tabby", index=281, id="n02123045")]))["nodes"]
        [{'id': 0}, {'id': 'n02123045', 'label': 'tabby', 'index': 281}]
    """
    taken = {leaf.id for leaf in root.leaves()}  # no two classes share an id; a class goes before a group
    keys: dict[int, str | int] = {}
    nodes: list[dict[str, Any]] = []
    links = []
    for number, node in enumerate(root.walk()):
        own = not node.children or node.id not in taken
        keys[id(node)] = number if node.id is None or not own else node.id
        taken.add(node.id)
        described = {"id": keys[id(node)], "label": None if node is root else node.name, "index": node.index}
        nodes.append({key: value for key, value in described.items() if value is not None})
    for node in root.walk():
        links += [{"source": keys[id(node)], "target": keys[id(child)]} for child in node.children]
    return {"directed": True, "multigraph": False, "graph": {}, "nodes": nodes, "links": links}


def write_children(root: Outline) -> dict[str, Any]:
    """The children object; its outermost node is called "trunk".

    Example:
        >>> write_children(Outline("", [Outline("cat", [Outline("tabby", index=281)])]))
        {'name': 'trunk', 'children': [{'name': 'cat', 'children': [{'name': 'tabby', 'index': 281}]}]}
    """
    done: dict[int, dict[str, Any]] = {}
    for node in reversed(list(root.walk())):
        described = {
            "name": "trunk" if node is root else node.name,
            "id": node.id,
            "index": node.index,
            "children": [done.pop(id(child)) for child in node.children] or None,
        }
        done[id(node)] = {key: value for key, value in described.items() if value is not None}
    return done[id(root)]


# ---------------------------------------------------------------------- helpers


def _checked(root: Outline) -> Outline:
    """The same outline, with a name for each node, each class of another name, and indices for all or none."""
    leaves = root.leaves()
    if leaves == [root]:
        raise TreeError("there is no class in it")
    classes = [leaf.name for leaf in leaves]
    if "" in classes:
        raise TreeError(f"class {classes.index('') + 1} of {len(classes)} has no name")
    members: dict[int, tuple[list[str], int]] = {}  # of each node, the first classes below it and how many there are
    for node in reversed(list(root.walk())):
        below = [members.pop(id(child)) for child in node.children] or [([node.name], 1)]
        names, count = [name for first, _ in below for name in first][:3], sum(several for _, several in below)
        node.name = node.name or group_name(names, count)
        members[id(node)] = names, count
    shared = Counter(classes)
    for leaf in leaves:
        if shared[leaf.name] > 1 and leaf.id:
            leaf.name = f"{leaf.name} ({leaf.id})"
    doubled = [f"'{name}'" for name, count in Counter(leaf.name for leaf in leaves).items() if count > 1]
    if doubled:
        raise TreeError(f"class {_some(doubled)} appears more than once; each must be unique in the tree")
    without = [leaf.name for leaf in leaves if leaf.index is None]
    if 0 < len(without) < len(leaves):
        raise TreeError(f"class '{without[0]}' has no index but others have; give all of them one, or none")
    return root


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
            raise TreeError(f"row {number} puts '{child}' under {_quoted([parent])} once more")
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
    return _from_graph(graph, outlines)


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
                places[place] = _new_child(node, name)
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


def _from_node_link(nodes: list[Any], links: list[Any]) -> Outline:
    import networkx

    outlines: dict[str | int, Outline] = {}
    for item in nodes:
        key = _key(item, "id")
        if key is None:
            raise TreeError(f"a node needs an 'id', text or a number: {_excerpt(item)}")
        if key in outlines:
            raise TreeError(f"two nodes have the id '{key}'")
        outlines[key] = _described(item, f"node '{key}'")
        outlines[key].name = outlines[key].name or str(key)
        outlines[key].id = key or None if isinstance(key, str) else None
    for link in links:
        for end in ("source", "target"):
            if _key(link, end) not in outlines:
                raise TreeError(f"the {end} of a link is none of the nodes: {_excerpt(link)}")
    plain = {"directed": True, "multigraph": False, "nodes": [{"id": key} for key in outlines], "edges": links}
    return _from_graph(networkx.node_link_graph(plain, edges="edges"), outlines)


def _from_children(data: dict[str, Any]) -> Outline:
    root = Outline("")
    waiting = [(root, data)]
    seen: set[int] = set()
    while waiting:
        node, item = waiting.pop()
        children = item.get("children")
        if not children:
            continue
        if not isinstance(children, list):
            raise TreeError(f"the 'children' of '{node.name}' must be a list, got {_excerpt(children)}")
        if id(children) in seen:  # an alias in YAML
            raise TreeError(f"the children of '{node.name}' stand in two places, or contain themselves")
        seen.add(id(children))
        for below in children:
            if not isinstance(below, dict):
                raise TreeError(f"expected an object among the children of '{node.name}', got {_excerpt(below)}")
            node.children.append(_described(below, f"a child of '{node.name}'"))
        waiting += zip(node.children, children, strict=True)
    return root


def _from_graph(graph: Any, outlines: dict[Any, Outline]) -> Outline:
    """The outline of a networkx graph that must be an arborescence, its edges pointing from parent to child."""
    import networkx

    if not graph:
        return Outline("")
    if not networkx.is_arborescence(graph):
        for node, count in graph.in_degree():
            if count > 1:
                above = _quoted(list(graph.predecessors(node)))
                raise TreeError(f"'{node}' has several parents ({above}); a node of a tree has one")
        roots = [node for node, count in graph.in_degree() if not count]
        try:
            cycle = [node for node, _ in networkx.find_cycle(graph)]
        except networkx.NetworkXNoCycle:
            raise TreeError(f"it is in pieces, below {_quoted(roots)}; a tree hangs together at one root") from None
        raise TreeError(f"{_quoted(cycle)} go in a circle, each the parent of the next; a tree has no cycles")
    for parent, child in graph.edges:
        outlines[parent].children.append(outlines[child])
    return next(outlines[node] for node, count in graph.in_degree() if not count)


def _described(item: dict[str, Any], where: str) -> Outline:
    """A node without children from an object that tells of it; its name may be empty."""
    words = {}
    for key in ("label", "name", "id"):
        value = item.get(key)
        if isinstance(value, bool) or not isinstance(value, str | int | None):
            raise TreeError(f"{where}: '{key}' must be text, got {_excerpt(value)}")
        words[key] = "" if value is None else str(value)
    index = item.get("index")
    if isinstance(index, bool) or not isinstance(index, int | None):
        raise TreeError(f"{where}: 'index' must be a whole number, got {_excerpt(index)}")
    return Outline(words["label"] or words["name"] or words["id"], index=index, id=words["id"] or None)


def _key(item: Any, word: str) -> str | int | None:
    key = item.get(word) if isinstance(item, dict) else None
    return key if isinstance(key, str | int) and not isinstance(key, bool) else None


def _new_child(parent: Outline, name: str = "") -> Outline:
    parent.children.append(Outline(name))
    return parent.children[-1]


def _whole_number(cell: str, where: str) -> int | None:
    found = re.fullmatch(r"([0-9]{1,18})(\.0*)?", cell)  # a spreadsheet may have made 281.0 of it
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


def _has_objects(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _excerpt(value: Any) -> str:
    return " ".join(reprlib.repr(value).split())[:80]


def _quoted(nodes: list[Any]) -> str:
    return _some(["the trunk" if node == "" else f"'{node}'" for node in nodes])


def _some(words: list[str]) -> str:
    return ", ".join(words[:5]) + (f" and {len(words) - 5} more" if len(words) > 5 else "")
