"""Objects in a language model's answer, ``{"name": "cat", "children": […]}``, as nested groups, ``{"cat": […]}``.

Notable here: the words that such objects use are also names of classes and groups. So a mapping is an object only if it
has a name and what is in it, or nothing but children; and the caller falls back on the answer as it is.
"""

from __future__ import annotations

from typing import Any

from hlnet.tree.llm.names import words

# The keys, without case and marks, under which objects say what a node is called, what is in it, and where it belongs;
# of several names, and of several groups, the first goes before the others.
NAME_KEYS = (
    "name", "label", "title", "class", "classname", "group", "groupname", "category", "superclass", "subclass", "id",
)  # fmt: skip
CHILDREN_KEYS = {
    "children", "subclasses", "classes", "classnames", "members", "items", "groups", "subgroups", "categories",
    "subcategories", "superclasses", "leaves", "elements", "nodes", "subtrees", "tree", "hierarchy", "taxonomy",
}  # fmt: skip
GROUP_KEYS = ("group", "category", "superclass", "parent", "parentgroup", "parentclass")


def as_mappings(nested: Any, truncated: bool = False) -> Any:
    """The same answer with nested groups for objects: ``{"name": "cat", "children": ["tabby"]}`` is a group *cat*.

    An outermost object whose children are groups stands for the trunk. A mapping of nothing but lists of children is
    these lists. Of a truncated answer, the last object may be a group without its children yet.

    >>> as_mappings({"name": "all", "children": [{"group": "cat", "members": [{"name": "tabby"}]}]})
    [{'cat': ['tabby']}]
    """
    containers, waiting = [], [nested]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list):
            containers.append(value)
            waiting.extend(_values(value))
    last = nested
    while isinstance(last, dict | list) and last and isinstance(end := _values(last)[-1], dict | list):
        last = end
    done: dict[int, Any] = {}
    for value in reversed(containers):  # what lies below comes first
        if isinstance(value, dict):
            done[id(value)] = _node(value, done)
            if truncated and value is last and isinstance(done[id(value)], str):
                done[id(value)] = {done[id(value)]: None}  # perhaps a group whose children are cut off
            continue
        items: list[Any] = []
        for before, item in zip([None, *value], value, strict=False):
            if _is_name(before) and _is_children(item):  # read line by line, YAML's objects fall into their lines
                items[-1] = _node(before | item, done)
            else:
                items.append(done.get(id(item), item))
        done[id(value)] = items
    result, top = done.get(id(nested), nested), nested
    while _is_children(top) and len(top) == 1:
        (top,) = top.values()
    if isinstance(top, dict) and _name_key(top):
        trunk = done[id(top)]
    elif isinstance(top, list) and len(top) > len(done[id(top)]) == 1:
        (trunk,) = done[id(top)]  # of lines
    else:
        return result
    below = next(iter(trunk.values())) if isinstance(trunk, dict) else None
    return below if isinstance(below, list) and any(isinstance(item, dict) for item in below) else result


def _node(value: dict[str, Any], done: dict[int, Any]) -> Any:
    """A mapping as the group, the class or the list of children that it may stand for; else as it is."""
    below: list[Any] = []
    for key, item in value.items():
        if isinstance(item, dict | list):
            inside = done[id(item)]
            if _key(key) not in CHILDREN_KEYS:
                below.append({key: inside})
            else:
                below.extend(inside if isinstance(inside, list) else [inside])
    if name := _name_key(value):
        if any(isinstance(item, dict | list) for item in value.values()):
            return {value[name]: below}
        group = next((key for word in GROUP_KEYS for key in value if _key(key) == word and key != name), None)
        return {value[name]: value[group]} if group else value[name]
    return below if _is_children(value) else {key: done.get(id(item), item) for key, item in value.items()}


def _values(container: dict[str, Any] | list[Any]) -> list[Any]:
    return list(container.values()) if isinstance(container, dict) else container


def _key(written: str) -> str:
    return "".join(words(written))


def _name_key(value: dict[str, Any]) -> str | None:
    """The key under which an object has its name."""
    if len(value) > 1 and all(isinstance(item, str) and item.isdecimal() for item in value.values()):
        return None  # numbered classes, one of them called "name"
    named = {_key(key): key for key, item in value.items() if isinstance(item, str) and item.strip()}
    return next((named[word] for word in NAME_KEYS if word in named), None)


def _is_name(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and _name_key(value) is not None


def _is_children(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(_key(key) in CHILDREN_KEYS and isinstance(item, dict | list) for key, item in value.items())
    )
