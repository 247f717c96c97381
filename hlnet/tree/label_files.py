"""Class names in the JSON and YAML files of other tools: Keras, Hugging Face, COCO, Open Images, Ultralytics."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from typing import Any

from hlnet.errors import TreeError, some
from hlnet.tree.class_tree import MAX_LEVELS
from hlnet.tree.graphs import checked
from hlnet.tree.hierarchy import Hierarchy
from hlnet.tree.nodes import is_wordnet_id
from hlnet.tree.tables import read_table

log = logging.getLogger("hlnet")


def read_labels(data: Any) -> Hierarchy | None:
    """Read what a label file of another tool holds; ``None`` if it is none of them.

    The log says in one line how it was read.

    - Keras: ``{"0": ["n01440764", "tench"]}``, an index with an id and a name;
    - Hugging Face: ``{"0": "tench"}``, or a ``config.json`` that holds it as ``id2label``; also in groups, as
      ``{"fish": {"0": "tench"}}``;
    - ``{"n01440764": "tench"}``, an id with a name; and lists of such pairs;
    - Ultralytics: the ``names`` of a data file (``path``, ``train``, ``val``, ``nc``), or of one with nothing else;
    - COCO: ``categories``, each with a ``name``, an ``id`` and perhaps a ``supercategory``;
    - lists of objects with a ``parent``, and ``{"cat": "animal", "dog": "animal"}``, names with their parents;
    - Open Images: ``LabelName`` with a list ``Subcategory``.

    Raises:
        TreeError: if it begins like one of these and is no tree, or is a kind of file that holds no classes.

    Example:
        >>> read_labels({"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}).to_tree().ids
        {'tench': 'n01440764', 'goldfish': 'n01443537'}
        >>> read_labels({"categories": [{"id": 2, "name": "car", "supercategory": "vehicle"}]}).to_tree().to_nested()
        {'vehicle': {'car': 2}}
    """
    for name, reader in _READERS.items():
        if root := reader(data):
            root = checked(root)
            log.info("read as %s; classes: %d", name, len(root.leaves()))
            return root
    _refuse_others(data)
    return None


# ---------------------------------------------------------------------- helpers


def _indexed(data: Any) -> Hierarchy | None:
    """``{"0": "tench"}`` or ``{"0": ["n01440764", "tench"]}``."""
    data = data.get("id2label", data) if isinstance(data, Mapping) else data
    if not (isinstance(data, Mapping) and data and all(_is_index(key) for key in data)):
        return None
    if not all(isinstance(value, str) or _is_pair(value) for value in data.values()):
        return None
    nodes = []
    for index, value in sorted(((int(key), value) for key, value in data.items()), key=lambda item: item[0]):
        identifier, name = (None, value) if isinstance(value, str) else value
        nodes.append(Hierarchy(name, index=index, id=identifier))
    return Hierarchy("", nodes)


def _identified(data: Any) -> Hierarchy | None:
    """``{"n01440764": "tench"}``, or a list of such pairs."""
    pairs = list(data.items()) if isinstance(data, Mapping) else data
    if not isinstance(pairs, list) or not pairs or not all(_is_pair(pair) for pair in pairs):
        return None
    if not all(is_wordnet_id(identifier) for identifier, _ in pairs):
        return None
    return Hierarchy("", [Hierarchy(name, id=identifier) for identifier, name in pairs])


def _numbered_groups(data: Any, levels: int = MAX_LEVELS) -> Hierarchy | None:
    """``{"fish": {"0": "tench"}}``: groups, at any depth, whose classes have their indices before their names."""
    if not isinstance(data, Mapping) or not data or any(map(_is_index, data)) or not levels:
        return None
    groups = []
    for name, below in data.items():
        found = _indexed(below) or _numbered_groups(below, levels - 1)
        if found is None:
            return None
        groups.append(Hierarchy(name, found.children))
    return Hierarchy("", groups)


def _ultralytics(data: Any) -> Hierarchy | None:
    """A data file, alone or under one key; or its ``names`` alone, which would be no group worth having."""
    if not isinstance(data, Mapping):
        return None
    if len(data) == 1 and "names" not in data:
        (data,) = data.values()
    if not isinstance(data, Mapping) or "names" not in data:
        return None
    names = data["names"]
    if isinstance(names, list) and names and all(isinstance(name, str | int) for name in names):
        names = dict(enumerate(map(str, names)))
    if len(data) == 1:
        return _indexed(names)
    if not {*data} & _DATA_FILE:
        return None
    if isinstance(names, Mapping) and names:
        values = names.values()
        if all(_is_index(index) for index in values) and not all(map(_is_index, names)):  # {"cat": 0}
            names = {index: name for name, index in names.items()}
        if found := _indexed({index: str(name) if isinstance(name, int) else name for index, name in names.items()}):
            return found
    raise TreeError("its 'names' are neither a list nor numbered names")


def _coco(data: Any) -> Hierarchy | None:
    listed = data.get("categories") if isinstance(data, Mapping) else data
    if not isinstance(listed, list) or not listed or not all(isinstance(item, Mapping) for item in listed):
        return None
    if not all(isinstance(item.get("name"), str) and isinstance(item.get("id"), int) for item in listed):
        return None
    if any(_PARENT & {*item} for item in listed):
        return None
    root = Hierarchy("")
    groups: dict[str, Hierarchy] = {}
    for item in listed:
        above, group = root, item.get("supercategory")
        if isinstance(group, str) and group and group != "none":
            if group not in groups:
                groups[group] = Hierarchy(group)
                root.children.append(groups[group])
            above = groups[group]
        above.children.append(Hierarchy(item["name"], index=item["id"]))
    return root


def _with_parents(data: Any) -> Hierarchy | None:
    """A list of objects that name their parents: ``[{"id": 1, "name": "cat", "parent": 10}]``; as a table."""
    if not isinstance(data, list) or not data or not all(isinstance(item, Mapping) for item in data):
        return None
    if not any(_PARENT & {*item} for item in data):
        return None
    keys = list(dict.fromkeys(key for item in data for key in item))
    return _table(keys, [["" if item.get(key) is None else str(item[key]) for key in keys] for item in data])


def _child_to_parent(data: Any) -> Hierarchy | None:
    """``{"cat": "animal", "dog": "animal"}``: names that stand behind several others are no ids of theirs."""
    if not isinstance(data, Mapping) or not all(isinstance(item, str) for pair in data.items() for item in pair):
        return None
    if {*data} & _DATA_FILE:
        return None
    return _table(["child", "parent"], list(data.items())) if len({*data.values()}) < len(data) else None


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Hierarchy:
    text = StringIO()
    csv.writer(text).writerows([headings, *rows])
    return read_table(text.getvalue(), ",", header=True)


def _open_images(data: Any) -> Hierarchy | None:
    """The hierarchy of Open Images; of a label that stands in several places, the first counts."""
    if not isinstance(data, Mapping) or not isinstance(data.get("LabelName"), str) or "Subcategory" not in data:
        return None
    root = Hierarchy("")
    waiting: list[tuple[Hierarchy, Any]] = [(root, item) for item in reversed(data["Subcategory"] or ())]
    seen: set[str] = set()
    repeated = []
    while waiting:
        above, item = waiting.pop()
        label = item.get("LabelName") if isinstance(item, Mapping) else None
        if not isinstance(label, str):
            raise TreeError("an entry of 'Subcategory' has no 'LabelName'")
        if label in seen:
            repeated.append(label)
            continue
        seen.add(label)
        # A class tree's names hold no slash; Freebase itself writes m.0bl9f as well as /m/0bl9f.
        node = Hierarchy(label.strip("/").replace("/", "."), id=label)
        above.children.append(node)
        waiting += [(node, below) for below in reversed(item.get("Subcategory") or ())]
    if repeated:
        log.info("labels in several places, of which the first one was taken: %s", some(repeated))
    return root if root.children else None


def _refuse_others(data: Any) -> None:
    """Name what is known and holds no class tree.

    Raises:
        TreeError: for such a file.
    """
    if isinstance(data, Mapping) and data.get("type") in {"FeatureCollection", "Feature", "Topology"}:
        raise TreeError("it is a map in GeoJSON, not a class tree")
    if isinstance(data, Mapping) and {"train", "val"} <= {*data} <= _DATA_FILE:
        raise TreeError("it is a data file (train, val) without the 'names' of its classes; give their image folder")
    if isinstance(data, list) and data and all(isinstance(item, Mapping) for item in data):
        keys = some(sorted({f"'{key}'" for item in data[:20] for key in item}))
        raise TreeError(
            f"it is a list of objects with {keys}, a format that is not known; expected nested names, a list of names, "
            "nodes with links, objects with children, or COCO's categories with 'id' and 'name'"
        )


def _is_index(key: Any) -> bool:
    return isinstance(key, int) or (isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 10)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(item, str) for item in value)


#: Keys of an Ultralytics data file besides ``names``.
_PARENT = {"parent", "parent_id", "parentId", "parent_name", "parentName"}
_DATA_FILE = {"path", "train", "val", "test", "nc", "download", "yaml_file", "kpt_shape"}
_READERS: dict[str, Callable[[Any], Hierarchy | None]] = {
    "original indices with class names": _indexed,
    "ids with class names": _identified,
    "the 'names' of an Ultralytics data file, which holds no tree": _ultralytics,
    "groups of original indices with class names": _numbered_groups,
    "COCO's categories": _coco,
    "objects with their parents": _with_parents,
    "names with their parents": _child_to_parent,
    "Open Images' hierarchy": _open_images,
}
