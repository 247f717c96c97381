"""Reading class trees from files and folders, and writing the canonical ``*.tree.json``."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from hlnet.errors import TreeError, UsageError
from hlnet.files import replacing
from hlnet.tree import ClassTree

FORMAT, VERSION = "hlnet.tree", 1
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"})


def read_tree(source: str | Path, levels: int | None = None) -> ClassTree:
    """Read a class tree from a file or a folder.

    Args:
        source: a canonical ``*.tree.json``; nested JSON or YAML (see :meth:`ClassTree.from_nested`); a ``.txt`` list of
            class names, one a line; or a folder of nested image folders (its ``train`` folder, if it has one), whose
            classes are numbered in alphabetical order.
        levels: continue classes that end early to this many levels; default: the depth of the deepest.

    Raises:
        UsageError: if there is no such file or folder, or its kind is not known.
        TreeError: if what it holds is not a class tree.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "pets.yaml"
        >>> _ = path.write_text("cat: [tabby, siamese]\\ndog: {beagle: , boxer: }\\n")
        >>> read_tree(path).counts
        (2, 4)
    """
    path = Path(source)
    try:
        if not str(source) or not path.exists():
            raise UsageError(f"there is no file or folder '{source}' to read a class tree from")
        nested = _nested_folders(path) if path.is_dir() else _nested_file(path)
        if isinstance(nested, dict) and nested.get("format") == FORMAT:
            tree = tree_from_json(nested)
            if levels in {None, tree.num_levels}:
                return tree
            return ClassTree.from_nested(tree.to_nested(), levels).with_ids(tree.ids)
        return ClassTree.from_nested(nested, levels)
    except TreeError as error:
        raise TreeError(f"'{path}': {error}") from error
    except OSError as error:
        raise UsageError(f"'{str(source)[:200]}' cannot be read: {error.strerror or error}") from error


def write_tree(tree: ClassTree, path: str | Path) -> None:
    """Write the canonical ``*.tree.json``: one versioned object, indented, keys in tree order.

    Raises:
        UsageError: if the name does not end in ``.json``.
        RunError: if the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "pets.tree.json"
        >>> write_tree(ClassTree.parallel(["cat", "dog"]), path)
        >>> read_tree(path) == ClassTree.parallel(["cat", "dog"])
        True
    """
    if Path(path).suffix != ".json":
        raise UsageError(f"'{path}': a class tree is written as JSON; give a name that ends in .tree.json")
    with replacing(path) as draft:
        draft.write_text(json.dumps(tree_to_json(tree), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def tree_to_json(tree: ClassTree) -> dict[str, Any]:
    """The tree as the object that ``*.tree.json`` files and checkpoints hold."""
    nested = tree.to_nested()
    return {"format": FORMAT, "version": VERSION, "levels": tree.num_levels, "tree": nested, "ids": tree.ids}


def tree_from_json(data: dict[str, Any]) -> ClassTree:
    """The inverse of :func:`tree_to_json`.

    Raises:
        TreeError: if a key is missing or wrong, or the version is newer than this program knows.
    """
    if data.get("version") != VERSION:
        raise TreeError(
            f"tree format version {data.get('version')!r} is not known: this hlnet reads {VERSION}, update hlnet"
        )
    levels, nested, ids = data.get("levels"), data.get("tree"), data.get("ids", {})
    if not isinstance(levels, int) or not isinstance(nested, dict) or not isinstance(ids, dict):
        raise TreeError("a tree file needs 'levels' (a number), 'tree' (a mapping) and 'ids' (a mapping)")
    if not all(isinstance(identifier, str) and identifier for identifier in ids.values()):
        raise TreeError("'ids' must map paths to text")
    tree = ClassTree.from_nested(nested, levels)
    return tree.with_ids(tree.ids | ids)


# ---------------------------------------------------------------------- helpers


def _nested_file(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix not in {".json", ".yaml", ".yml", ".txt"}:
        raise UsageError(
            f"'{path}': a class tree is read from .json, .yaml, .yml, .txt or a folder, not '{path.suffix}'"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
        if suffix == ".txt":
            return [line.strip() for line in text.splitlines() if line.strip()]
        if suffix == ".json":
            return json.loads(text, object_pairs_hook=_mapping_without_doubles)
        return yaml.load(text, _StrictLoader)  # noqa: S506 - a SafeLoader
    except TreeError:
        raise
    except (ValueError, TypeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise TreeError(f"not readable as {suffix[1:].upper()}: {reason}") from error


def _nested_folders(root: Path) -> dict[str, Any]:
    train = root / "train"
    nested = _folder(train if train.is_dir() else root, ())
    if not nested:
        raise TreeError("there are no folders in it; expected one folder a class, nested or flat")
    return nested


def _folder(folder: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    real = folder.resolve()
    if real in above:
        raise TreeError(f"folder '{folder}' contains itself through a link: a tree has no cycles")
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    folders = [entry for entry in entries if entry.is_dir()]
    images = (entry for entry in entries if entry.suffix.lower() in IMAGE_SUFFIXES and entry not in folders)
    if folders and above and any(images):
        raise TreeError(
            f"folder '{folder}' holds both images and folders; a class's images belong in a folder of their own"
        )
    return {entry.name: _folder(entry, (*above, real)) for entry in folders}


def _mapping_without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [name for name, _ in pairs]
        raise TreeError(f"'{next(n for n in names if names.count(n) > 1)}' appears twice under one node")
    return mapping


class _StrictLoader(yaml.SafeLoader):
    """YAML whose names stay as written (``no``, ``010``, ``12:30``), and in which a doubled key is an error.

    Only plain decimals and empty values are anything but text.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own way

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise TreeError(f"a name must be text, not a list or mapping (line {key.start_mark.line + 1})")
            if key.value in seen:
                raise TreeError(f"'{key.value}' appears twice under one node (line {key.start_mark.line + 1})")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(~|null|Null|NULL|)\Z"), ["~", "n", "N", ""])
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"(0|-?[1-9][0-9]{0,8})\Z"), list("-0123456789")
)
