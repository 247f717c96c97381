"""Hierarchies in the graph formats of other programs: Newick, node-link graphs (networkx) and children objects (D3).

Notable here: all readers yield an :class:`Hierarchy` and all writers start from one, so that levels are not their care;
nothing recurses, so that a text nested thousands deep is an ordinary error further on; and what any reader of another
program's format must check (:func:`checked`, :func:`from_graph`) is here for the tables too.
"""

from __future__ import annotations

import logging
import re
import reprlib
from collections import Counter
from typing import Any

from hlnet.errors import TreeError, one_line, some
from hlnet.tree.hierarchy import Hierarchy, group_name

log = logging.getLogger("hlnet")

# ---------------------------------------------------------------------- Newick


def read_newick(text: str) -> Hierarchy:
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
    root = node = Hierarchy("")
    above: list[Hierarchy] = []  # the nodes whose parentheses are open
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
            node = new_child(node)
        elif word == "," and above and whole:
            node = new_child(above[-1])
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
    return checked(root)


def write_newick(root: Hierarchy) -> str:
    """The tree on one line of Newick; a label is quoted unless it has only letters, digits, ``.``, ``+`` and ``-``.

    Example:
        >>> cat = Hierarchy("cat", [Hierarchy("tabby"), Hierarchy("Tom's cat")])
        >>> write_newick(Hierarchy("", [cat, Hierarchy("chain_saw")]))
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


def read_objects(data: Any) -> Hierarchy | None:
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
            return checked(_from_node_link(data["nodes"], data[key]))
    if isinstance(data.get("tree"), dict) and _has_objects(data["tree"].get("children")):
        data = data["tree"]
    return checked(_from_children(data)) if _has_objects(data.get("children")) else None


def write_node_link(root: Hierarchy) -> dict[str, Any]:
    """The node-link object: ids are the nodes' own or, where they have none, numbers; the root is number 0.

    Example:
        >>> write_node_link(Hierarchy("", [Hierarchy("tabby", index=281, id="n02123045")]))["nodes"]
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


def write_children(root: Hierarchy) -> dict[str, Any]:
    """The children object; its outermost node is called "trunk".

    Example:
        >>> write_children(Hierarchy("", [Hierarchy("cat", [Hierarchy("tabby", index=281)])]))
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


# ---------------------------------------------------------------------- shared with the tables


def checked(root: Hierarchy) -> Hierarchy:
    """The same hierarchy, with a name for each node, each class of another name, and indices for all or none.

    Raises:
        TreeError: if there is no class, one has no name, two share one, or only some have an index.
    """
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
        raise TreeError(f"class {some(doubled)} appears more than once; each must be unique in the tree")
    without = [leaf.name for leaf in leaves if leaf.index is None]
    if 0 < len(without) < len(leaves):
        raise TreeError(f"class '{without[0]}' has no index but others have; give all of them one, or none")
    return root


def from_graph(graph: Any, nodes_by_key: dict[Any, Hierarchy]) -> Hierarchy:
    """The hierarchy of a networkx graph that must be an arborescence, its edges pointing from parent to child.

    Args:
        graph: whose nodes are the keys of ``nodes_by_key``.
        nodes_by_key: each node, without children yet.

    Raises:
        TreeError: if a node has several parents, some go in a circle, or the graph is in pieces; it names them.
    """
    import networkx

    if not graph:
        return Hierarchy("")
    if not networkx.is_arborescence(graph):
        for node, count in graph.in_degree():
            if count > 1:
                above = quoted(list(graph.predecessors(node)))
                raise TreeError(f"'{node}' has several parents ({above}); a node of a tree has one")
        roots = [node for node, count in graph.in_degree() if not count]
        try:
            cycle = [node for node, _ in networkx.find_cycle(graph)]
        except networkx.NetworkXNoCycle:
            raise TreeError(f"it is in pieces, below {quoted(roots)}; a tree hangs together at one root") from None
        raise TreeError(f"{quoted(cycle)} go in a circle, each the parent of the next; a tree has no cycles")
    for parent, child in graph.edges:
        nodes_by_key[parent].children.append(nodes_by_key[child])
    return next(nodes_by_key[node] for node, count in graph.in_degree() if not count)


def from_parents(graph: Any) -> Any:
    """The same graph with its edges from parent to child: turned around where only that makes a tree."""
    import networkx

    if len(graph) < 2 or networkx.is_branching(graph) or not networkx.is_branching(turned := graph.reverse()):
        return graph
    log.info("links point from child to parent; they were turned around")
    return turned


def new_child(parent: Hierarchy, name: str = "") -> Hierarchy:
    """Another child of a node, after those that it has."""
    parent.children.append(Hierarchy(name))
    return parent.children[-1]


def quoted(nodes: list[Any]) -> str:
    """The keys of nodes for a message, the first five of many; an empty one is the trunk."""
    return some(["the trunk" if node == "" else f"'{node}'" for node in nodes])


# ---------------------------------------------------------------------- helpers


def _from_node_link(nodes: list[Any], links: list[Any]) -> Hierarchy:
    import networkx

    nodes_by_key: dict[str | int, Hierarchy] = {}
    for item in nodes:
        key = _key(item, "id")
        if key is None:
            raise TreeError(f"a node needs an 'id', text or a number: {_excerpt(item)}")
        if key in nodes_by_key:
            raise TreeError(f"two nodes have the id '{key}'")
        nodes_by_key[key] = _described(item, f"node '{key}'")
        nodes_by_key[key].name = nodes_by_key[key].name or str(key)
        nodes_by_key[key].id = key or None if isinstance(key, str) else None
    for link in links:
        for end in ("source", "target"):
            if _key(link, end) not in nodes_by_key:
                raise TreeError(f"the {end} of a link is none of the nodes: {_excerpt(link)}")
    plain = {"directed": True, "multigraph": False, "nodes": [{"id": key} for key in nodes_by_key], "edges": links}
    return from_graph(from_parents(networkx.node_link_graph(plain, edges="edges")), nodes_by_key)


def _from_children(data: dict[str, Any]) -> Hierarchy:
    root = Hierarchy("")
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


def _described(item: dict[str, Any], where: str) -> Hierarchy:
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
    return Hierarchy(words["label"] or words["name"] or words["id"], index=index, id=words["id"] or None)


def _key(item: Any, word: str) -> str | int | None:
    key = item.get(word) if isinstance(item, dict) else None
    return key if isinstance(key, str | int) and not isinstance(key, bool) else None


def _has_objects(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _excerpt(value: Any) -> str:
    return " ".join(reprlib.repr(value).split())[:80]
