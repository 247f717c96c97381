"""Class trees in files and folders: the canonical ``*.tree.json``, nested files, and the formats of other programs.

Notable here: a suffix is shared by several formats, which are told apart by what the file holds; only the canonical
one keeps all of a class tree, and ``write_tree`` says what each other loses.
"""

from __future__ import annotations

import codecs
import json
import os
from pathlib import Path
from typing import Any

import yaml

from hlnet.errors import RunError, TreeError, UsageError, did_you_mean, one_line
from hlnet.files import IMAGE_SUFFIXES, folder_beside, in_order, is_hidden, nearby, replacing
from hlnet.tree import graphs, tables
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.hierarchy import Hierarchy
from hlnet.tree.label_files import read_labels
from hlnet.tree.lists import read_list
from hlnet.tree.nodes import qualified_names
from hlnet.tree.strict_yaml import read_yaml

CANONICAL, VERSION = "hlnet.tree", 1
PRESET, SHIPPED = "preset:", Path(__file__).parent / "presets"
# By format, the suffixes of its files. A suffix alone stands for the first format that has it.
FORMATS: dict[str, tuple[str, ...]] = {
    "canonical": (".json",),
    "nested": (".yaml", ".yml", ".json"),
    "paths": (".csv", ".tsv"),
    "edges": (".csv", ".tsv"),
    "newick": (".nwk", ".newick", ".tree"),
    "node-link": (".json",),
    "children": (".json",),
    "folders": ("",),
}
#: What a file or folder may be read as.
READ_FORMATS = (*FORMATS, "labels", "list")
SUFFIXES = tuple(dict.fromkeys(suffix for suffixes in FORMATS.values() for suffix in suffixes if suffix))
DELIMITERS = {".csv": ",", ".tsv": "\t"}
#: Suffixes of lists; Darknet calls its own ``.names``.
_LISTS = (".txt", ".names")


def read_tree(
    source: str | Path, levels: int | None = None, format: str | None = None, header: bool | None = None
) -> ClassTree:
    """Read a class tree from a file or a folder.

    Args:
        source: one of these.

            - ``.json`` or ``.yaml``: the canonical ``*.tree.json``; nested mappings (see
              :meth:`ClassTree.from_nested`); another program's node-link graph or children objects (see
              :func:`hlnet.tree.graphs.read_objects`); or a label file (see :func:`hlnet.tree.label_files.read_labels`).
            - ``.csv`` or ``.tsv``: a table of paths or of edges (see :func:`hlnet.tree.tables.read_table`).
            - ``.nwk``, ``.newick`` or ``.tree``: Newick (see :func:`hlnet.tree.graphs.read_newick`).
            - ``.txt``: a list of class names (see :func:`hlnet.tree.lists.read_list`).
            - ``preset:NAME``: a tree that comes with hlnet (see :func:`shipped_trees`).
            - a folder of nested image folders (its ``train`` folder, if it has one), whose classes are numbered in
              alphabetical order.
        levels: continue classes that end early to this many levels; default: the depth of the deepest.
        format: what the file holds, one of ``READ_FORMATS``; default: judged by its suffix and content.
        header: whether a table's first row is a header; default: judged by its words.

    Raises:
        UsageError: if there is no such file or folder, or its kind or the format is not known.
        TreeError: if what it holds is not a class tree.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "pets.yaml").write_text("cat: [tabby, siamese]\\ndog: {beagle: , boxer: }\\n")
        >>> _ = (folder / "pets.csv").write_text("cat,tabby\\ncat,siamese\\ndog,beagle\\ndog,boxer\\n")
        >>> read_tree(folder / "pets.yaml") == read_tree(folder / "pets.csv")
        True
    """
    if format is not None and format not in READ_FORMATS:
        raise UsageError(
            f"there is no format '{format}': choose from {', '.join(READ_FORMATS)}.{did_you_mean(format, READ_FORMATS)}"
        )
    path = _shipped(str(source)[len(PRESET) :]) if str(source).startswith(PRESET) else Path(source)
    try:
        if not str(source) or not path.exists():
            raise _missing(str(source))
        found = _nested_folders(path) if path.is_dir() else _read_file(path, format, header)
        if isinstance(found, Hierarchy):
            return found.to_tree(levels)
        if isinstance(found, dict) and found.get("format") == CANONICAL:
            tree = tree_from_json(found)
            if levels in {None, tree.num_levels}:
                return tree
            return Hierarchy.of(tree).to_tree(levels)
        return ClassTree.from_nested(found, levels)
    except TreeError as error:
        raise TreeError(f"'{path}': {one_line(error, limit=500)}") from error
    except OSError as error:
        raise UsageError(f"'{str(source)[:200]}' cannot be read: {error.strerror or error}") from error


def shipped_trees() -> tuple[str, ...]:
    """Names of the trees that come with hlnet, for ``read_tree("preset:NAME")``; ``scripts/trees`` says what they are.

    Example:
        >>> shipped_trees()
        ('cifar10', 'cifar100', 'imagenet100', 'imagenet1k', 'imagenette', 'imagewoof')
        >>> read_tree("preset:imagenet1k").counts
        (17, 161, 1000)
    """
    return tuple(sorted(path.name.removesuffix(".tree.json") for path in SHIPPED.glob("*.tree.json")))


def write_tree(tree: ClassTree, path: str | Path, format: str | None = None) -> None:
    """Write a class tree to a file, or as a new folder of nested empty folders into which images can be sorted.

    A format loses what it cannot hold, when the tree is read back:

    - ``canonical`` (``.json``): nothing;
    - ``nested`` (``.yaml``, ``.yml``, ``.json``): ids;
    - ``paths`` (``.csv``, ``.tsv``): ids of inner nodes;
    - ``edges`` (``.csv``, ``.tsv``): nothing more;
    - ``newick`` (``.nwk``, ``.newick``, ``.tree``): ids and original indices, classes being numbered in their order;
    - ``node-link`` (``.json``): the id of an inner node that another node has too;
    - ``children`` (``.json``): nothing more;
    - ``folders`` (no suffix): ids, original indices and order, classes being numbered by the alphabet;
    - all but ``canonical``: levels below the deepest class; give ``levels`` on reading.

    Args:
        tree: the class tree.
        path: where to.
        format: one of the above; default: the first that has the path's suffix.

    Raises:
        UsageError: if the format or suffix is not known, they do not go together, the folder is there and not empty,
            or a node's name is none for a folder.
        RunError: if the file or folder cannot be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> tree = ClassTree.from_nested({"cat": {"tabby": 281, "siamese": 284}, "saw": 499})
        >>> write_tree(tree, folder / "pets.tree.json")
        >>> read_tree(folder / "pets.tree.json") == tree
        True
        >>> write_tree(tree, folder / "pets.csv", "edges")
        >>> print((folder / "pets.csv").read_text(), end="")
        parent,child,index
        ,cat,
        cat,tabby,281
        cat,siamese,284
        ,saw,499
    """
    target = Path(path)
    suffix, name = target.suffix.lower(), _format(target, format)
    hierarchy = Hierarchy.of(tree)
    if name == "folders":
        _write_folders(hierarchy, target)
        return
    if name == "nested" and suffix != ".json":
        text = yaml.safe_dump(tree.to_nested(), sort_keys=False, allow_unicode=True, width=10**9)
    elif name == "newick":
        text = graphs.write_newick(hierarchy)
    elif name == "paths":
        text = tables.write_paths(hierarchy, DELIMITERS[suffix])
    elif name == "edges":
        text = tables.write_edges(hierarchy, DELIMITERS[suffix])
    else:
        makers = {"node-link": graphs.write_node_link, "children": graphs.write_children}
        data = makers[name](hierarchy) if name in makers else tree_to_json(tree)
        text = json.dumps(data["tree"] if name == "nested" else data, indent=1, ensure_ascii=False) + "\n"
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        raise TreeError(f"'{path}': the tree has a name or id that no file can hold: {one_line(error)}") from error
    with replacing(target) as draft:
        draft.write_bytes(content)


def check_target(path: str | Path, format: str | None = None) -> None:
    """Refuse a path that :func:`write_tree` cannot write to, before there is a tree to write.

    Raises:
        UsageError: as ``write_tree``, but for names of nodes that are none for a folder.
    """
    target = Path(path)
    if _format(target, format) == "folders":
        _check_free(target)


def tree_to_json(tree: ClassTree) -> dict[str, Any]:
    """The tree as the object that ``*.tree.json`` files and checkpoints hold."""
    nested = tree.to_nested()
    return {"format": CANONICAL, "version": VERSION, "levels": tree.num_levels, "tree": nested, "ids": tree.ids}


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


def _shipped(name: str) -> Path:
    names = shipped_trees()
    if name not in names:
        raise UsageError(
            f"no tree '{PRESET}{name}' comes with hlnet; there are {', '.join(names)}.{did_you_mean(name, names)}"
        )
    return SHIPPED / f"{name}.tree.json"


def _missing(source: str) -> UsageError:
    """The error for a tree that is not there, with the nearest that are."""
    is_preset = source in shipped_trees()
    near = f" Did you mean '{PRESET}{source}'?" if is_preset else nearby(source, (*SUFFIXES, ".txt"))
    return UsageError(
        f"there is no class tree '{source[:200]}': expected a tree file ({', '.join(SUFFIXES)}, .txt), a folder of "
        f"image folders or {PRESET}NAME{near and f'.{near}'}"
    )


def decoded(content: bytes) -> str:
    """The text of a file in UTF-8, or in UTF-16 with its mark, as spreadsheets write "Unicode text".

    Raises:
        TreeError: if it is neither.

    Example:
        >>> decoded("Gatto,gatto".encode("utf-16"))
        'Gatto,gatto'
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TreeError(
            f"it is no text in UTF-8 (line {content[: error.start].count(10) + 1} has the byte "
            f"{content[error.start]:#x}); save it as UTF-8"
        ) from None


def _read_file(path: Path, format: str | None, header: bool | None) -> Any:
    """The hierarchy that a file of another program's format holds, or what a nested or canonical one does."""
    suffix = path.suffix.lower()
    if format is None and suffix not in {*SUFFIXES, *_LISTS}:
        raise UsageError(
            f"'{path}': a class tree is read from {', '.join(SUFFIXES)}, .txt or a folder, "
            f"not '{path.suffix}'.{did_you_mean(suffix, SUFFIXES)}"
        )
    if format == "folders":
        raise UsageError(f"'{path}' is a file, and the format 'folders' reads a folder")
    try:
        text = decoded(path.read_bytes())
        if format == "list" or (format is None and suffix in _LISTS):
            return read_list(text, plain=format == "list")
        if format in {"paths", "edges"} or (format is None and suffix in DELIMITERS):
            kind: Any = format
            return tables.read_table(text, DELIMITERS.get(suffix, ","), header, kind)
        if format == "newick" or (format is None and suffix in FORMATS["newick"]):
            return graphs.read_newick(text)
        return _from_data(_data(text, suffix), format)
    except TreeError:
        raise
    except (ValueError, TypeError, yaml.YAMLError, RecursionError) as error:
        raise TreeError(f"not readable as {suffix[1:].upper()}: {one_line(error)}") from error


def _data(text: str, suffix: str) -> Any:
    """What JSON or YAML text holds."""
    if suffix in {".yaml", ".yml"}:
        return read_yaml(text)
    return json.loads(text, object_pairs_hook=_mapping_without_doubles)


def _from_data(data: Any, format: str | None) -> Any:
    """The hierarchy in an object of another program's format; nested names and canonical trees stay as they are."""
    if format in {"nested", "canonical"} or (isinstance(data, dict) and data.get("format") == CANONICAL):
        return data
    found = (graphs.read_objects(data) if format != "labels" else None) or (
        read_labels(data) if format in {None, "labels"} else None
    )
    if found is None and format is not None:
        raise TreeError(f"it is no file of the format {format}")
    return data if found is None else found


def _format(path: Path, name: str | None) -> str:
    """The format that is asked for or that the suffix stands for."""
    suffix = path.suffix.lower()
    if name is None:
        for known, suffixes in FORMATS.items():
            if suffix in suffixes:
                return known
        raise UsageError(
            f"'{path}': a class tree is written to {', '.join(SUFFIXES)} or, without a suffix, as folders, "
            f"not to '{path.suffix}'.{did_you_mean(suffix, SUFFIXES)}"
        )
    if name not in FORMATS:
        raise UsageError(f"there is no format '{name}': choose from {', '.join(FORMATS)}.{did_you_mean(name, FORMATS)}")
    if name != "folders" and suffix not in FORMATS[name]:
        raise UsageError(f"'{path}': give the format {name} a file name that ends in {' or '.join(FORMATS[name])}")
    return name


def _write_folders(root: Hierarchy, path: Path) -> None:
    for node in list(root.walk())[1:]:
        if node.name.startswith(".") or Path(node.name).name != node.name:
            raise UsageError(f"node '{node.name}' cannot be a folder that shows; rename it or choose another format")
    try:
        _check_free(path)
        with folder_beside(path) as draft:
            top = draft / "tree"  # within, as the draft's own folder is private
            # A folder 'train' at the top is read as the training images: put all into one, so that it lies below.
            places = {id(root): top / "train" if any(child.name == "train" for child in root.children) else top}
            places[id(root)].mkdir(parents=True)
            for node in root.walk():
                for child in node.children:
                    places[id(child)] = places[id(node)] / child.name
                    places[id(child)].mkdir()
            if path.is_dir():
                path.rmdir()  # it is empty; only some systems move a folder onto one
            os.replace(top, path)
    except OSError as error:
        raise RunError(f"cannot write '{path}': {error.strerror or error}") from error


def _check_free(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"'{path}' is there and is no empty folder; give the name of a new one")


def _nested_folders(root: Path) -> dict[str, Any]:
    if weights := next(root.glob("*.safetensors"), None):
        raise TreeError(
            f"the folder holds a network ('{weights.name}'), not image folders; hlnet.load_checkpoint gives its tree"
        )
    train = root / "train"
    nested = _folder(train if train.is_dir() else root, set())
    if not nested:
        raise TreeError("there are no folders in it; expected one folder a class, nested or flat")
    return _with_qualified_names(nested)


def _folder(folder: Path, visited: set[Path]) -> dict[str, Any]:
    """The folders inside, each once: a link may lead back to one that was met before."""
    is_root = not visited
    visited.add(folder.resolve())
    entries = {entry.name: entry for entry in folder.iterdir() if not is_hidden(entry.name)}
    folders = [entries[name] for name in in_order(name for name, entry in entries.items() if entry.is_dir())]
    images = (entry for entry in entries.values() if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.is_dir())
    if folders and not is_root and any(images):
        raise TreeError(
            f"folder '{folder}' holds both images and folders; a class's images belong in a folder of their own"
        )
    return {entry.name: _folder(entry, visited) for entry in folders if entry.resolve() not in visited}


def _with_qualified_names(nested: dict[str, Any]) -> dict[str, Any]:
    """The same folders; classes of one name in several groups are told apart, see :func:`qualified_names`."""
    paths: list[tuple[str, ...]] = []

    def visit(inside: dict[str, Any], above: tuple[str, ...]) -> None:
        for name, below in inside.items():
            if below:
                visit(below, (*above, name))
            else:
                paths.append((*above, name))

    visit(nested, ())
    result: dict[str, Any] = {}
    for path, name in zip(paths, qualified_names(paths), strict=True):
        place = result
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[name] = {}
    return result


def _mapping_without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [name for name, _ in pairs]
        raise TreeError(f"'{next(n for n in names if names.count(n) > 1)}' appears twice under one node")
    return mapping
