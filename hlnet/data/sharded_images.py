"""The source ``wds/…``: labelled images in WebDataset shards on this machine, by timm's conventions.

Notable here: timm reads shards as streams; here they are indexed (:mod:`hlnet.data.shards`), for training asks for
images by position, so as to be resumed where it stood. And labels that are numbers count only where something names the
classes.
"""

from __future__ import annotations

import io
import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from PIL import Image
from pydantic import BaseModel, StrictInt, StrictStr, ValidationError

from hlnet.data.images import LabelledImages, open_image
from hlnet.data.shards import Shard, index_shard
from hlnet.errors import DataError, TreeError, UsageError, one_line, some
from hlnet.files import read_text

log = logging.getLogger("hlnet")

PREFIX = "wds/"

INFO_FILES = ("_info.json", "info.json", "_info.yaml", "info.yaml")

CLASSES_FILE = "classes.txt"

_REMOTE = re.compile(r"(pipe:|[a-z][a-z0-9+.-]+:/)", re.IGNORECASE)  # of two letters at least: C:/ is a disk

_NUMBER = re.compile(r"-?[0-9]{1,9}")


class SplitInfo(BaseModel):
    """A split in the shards' info file; names and meanings are timm's."""

    filenames: list[str]
    shard_lengths: list[int] = []
    num_samples: int | None = None
    alt_label: str | None = None


class ShardsInfo(BaseModel):
    """The shards' info file. ``classes`` is ours: names in the order of their numbers, or numbers by name."""

    splits: dict[str, SplitInfo] = {}
    classes: list[StrictStr | StrictInt] | dict[str, int] | None = None


def sharded_images(
    data: str, folders: Mapping[str, Sequence[str]], split: str, root: str | Path | None
) -> LabelledImages:
    """Open a split of shards.

    Args:
        data: ``wds/NAME``: the shards in ``root/NAME``, or, where there is no such folder, in ``root``; or
            ``wds/PATTERN``, such as ``wds/pets-{train-{0000..0007},val-0000}.tar``, of shards within ``root``.
        folders: all splits, and what each may be called.
        split: the one to open: what an info file there (``_info.json``, ``info.yaml``, …) calls so; without one,
            or with a pattern, the shards that have one of its names in their own, or in their folder's within ``root``.
        root: the folder.

    Raises:
        UsageError: if there is no such folder or split, or it is not on this machine.
        DataError: if a shard is missing or damaged, a sample lacks image or label, or a label does not tell its class.
    """
    place, pattern = _place(data, root)
    info = _info(place)
    names = folders[split]
    listed = next((info.splits[name] for name in names if name in info.splits), None)
    if pattern:
        several = [name for part in pattern.split("::") for name in expanded(_local(part, data))]
        paths = _of_split(data, place, several, folders, split)
    elif info.splits:
        if listed is None:
            raise UsageError(
                f"data source '{data}' has no split '{split}' in its info file; it has {some(info.splits)}"
            )
        paths = [place / file for name in listed.filenames for file in expanded(_local(name, data))]
    else:
        inner = [name for called in folders.values() for name in called]
        found = [path for folder in (place, *(place / name for name in inner)) for path in folder.glob("*.tar")]
        every = sorted(path.relative_to(place).as_posix() for path in found if path.is_file())
        title = data.removeprefix(PREFIX)
        titled = [name for name in every if name.startswith(title)]
        paths = _of_split(data, place, titled or every, folders, split, title)
    log.info("the shards of '%s' (%s) are indexed: %d", data, split, len(paths))
    label_field = (listed.alt_label if listed else None) or ""
    shards = [index_shard(path, label_field) for path in paths]
    if listed:
        _check_counts(shards, place, listed, whole=not pattern)
    return _labelled(data, shards, _class_names(place, info), skipped=bool(label_field))


# ---------------------------------------------------------------------- where the shards are


def _place(data: str, root: str | Path | None) -> tuple[Path, str]:
    """The folder of the shards, and the pattern of their names, where one is given."""
    name = _local(data.removeprefix(PREFIX), data)
    if root is None:
        hint = f"; for the folder of that name, write './{data}'" if Path(data).is_dir() else ""
        raise UsageError(f"data source '{data}' needs the folder of its shards as root (--data-root){hint}")
    folder = Path(_local(str(root), data))
    if ".tar" in name or "{" in name:
        pattern = re.sub(r"\|[0-9]*", "", name)  # timm wants the number of samples behind it; the index knows
    else:
        folder, pattern = (folder / name, "") if name and (folder / name).is_dir() else (folder, "")
    if not folder.is_dir():
        raise UsageError(
            f"data source '{data}': there is no folder '{folder}'; give that of its shards as root (--data-root)"
        )
    return folder, pattern


def _local(name: str, data: str) -> str:
    if _REMOTE.match(name):
        raise UsageError(
            f"data source '{data}': '{one_line(name)}' is not on this machine; download the shards, "
            "and give their folder as root (--data-root)"
        )
    return name


def _of_split(
    data: str, place: Path, names: list[str], folders: Mapping[str, Sequence[str]], split: str, title: str = ""
) -> list[Path]:
    """Those shards whose name tells that they are of the split."""
    chosen = []
    for name in names:
        path = place / name  # a whole path stays what it is
        inner = path.relative_to(place).as_posix() if path.is_relative_to(place) else path.name
        words = set(re.findall("[a-z]+", inner.removeprefix(title).lower()))
        told = [one for one, called in folders.items() if words & set(called)]
        if len(told) > 1:
            raise UsageError(
                f"data source '{data}': shard '{name}' has the names of several splits in its own ({', '.join(told)}); "
                f"rename it, or list the splits in '{place / INFO_FILES[0]}'"
            )
        if told == [split]:
            chosen.append(path)
    if not chosen:
        found = f"found {some(names)}" if names else "there is no .tar file"
        raise UsageError(
            f"data source '{data}' has no shards of the split '{split}' in '{place}': {found}; expected "
            f"'{folders[split][0]}' in their names, such as {folders[split][0]}-0000.tar, or an {INFO_FILES[0]}"
        )
    return chosen


def _info(place: Path) -> ShardsInfo:
    path = next((place / name for name in INFO_FILES if (place / name).is_file()), None)
    if path is None:
        return ShardsInfo()
    from yaml import YAMLError

    from hlnet.tree.strict_yaml import read_yaml

    text = read_text(path, error=DataError)
    try:
        return ShardsInfo.model_validate(json.loads(text) if path.suffix == ".json" else read_yaml(text))
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (ValueError, RecursionError, YAMLError, TreeError) as error:
        reason = one_line(error)
    raise DataError(f"'{path}' cannot be read ({reason}); expected splits with filenames and shard_lengths, as timm's")


def _check_counts(shards: list[Shard], place: Path, listed: SplitInfo, whole: bool) -> None:
    """A shard without some of its samples may well be a tar file without a flaw."""
    if listed.shard_lengths and len(listed.shard_lengths) == len(listed.filenames):
        expected = {place / name: count for name, count in zip(listed.filenames, listed.shard_lengths, strict=True)}
        for shard in shards:
            if (count := expected.get(shard.file.path)) not in (None, len(shard.labels)):
                raise DataError(
                    f"shard '{shard.file.path}' has {len(shard.labels)} samples, its info file says {count}; "
                    "download it, or write it again, or correct the file"
                )
    total = sum(len(shard.labels) for shard in shards)
    if whole and listed.num_samples is not None and listed.num_samples != total:
        raise DataError(
            f"the shards in '{place}' have {total} samples, their info file says {listed.num_samples}; "
            "download those that are missing, or correct the file"
        )


# ---------------------------------------------------------------------- what the labels mean


def _class_names(place: Path, info: ShardsInfo) -> tuple[str, ...] | None:
    """The names of the classes in the order of their numbers, if anything tells."""
    listed = place / CLASSES_FILE
    if info.classes is not None:
        where, names = f"the info file in '{place}'", [str(name) for name in info.classes]
        if isinstance(info.classes, dict):
            if sorted(info.classes.values()) != list(range(len(names))):
                raise DataError(f"{where} numbers its {len(names)} classes otherwise than from 0 on; correct it")
            names.sort(key=info.classes.__getitem__)
    elif listed.is_file():
        where = f"'{listed}'"
        names = read_text(listed, error=DataError).rstrip().split("\n")
    else:
        return None
    names = [name.strip() for name in names]
    if not all(names):
        raise DataError(f"{where}: class {names.index('')} has no name; expected one for each number from 0 on")
    if doubled := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{where} has class names twice: {some(doubled)}; each must be unique")
    return tuple(names)


def _labelled(data: str, shards: list[Shard], names: tuple[str, ...] | None, skipped: bool) -> LabelledImages:
    """The shards one after another. ``skipped``: numbers below 0 are of images to leave out, as for timm."""
    every = [(shard, i) for shard in shards for i in range(len(shard.labels))]
    if skipped:
        every = [(shard, i) for shard, i in every if not re.fullmatch("-[0-9]+", shard.labels[i])]
    if not every:
        raise DataError(f"the shards of '{data}' hold no samples, such as '{shards[0].file.path}'")
    texts = [shard.labels[i] for shard, i in every]
    members = tuple(shard.members[i] for shard, i in every)
    files = tuple(shard.file.path for shard, _ in every)
    classes, number = _numbered(set(texts), names, data)
    if (wrong := next((i for i, text in enumerate(texts) if text not in number), None)) is not None:
        raise DataError(
            f"'{files[wrong].name}:{members[wrong]}' has the label '{texts[wrong]}', which is none of the "
            f"{len(classes)} classes ({some(classes)}); correct it, or the list of classes"
        )
    labels = tuple(number[text] for text in texts)
    return LabelledImages(f"'{data}'", classes, labels, partial(_load, tuple(every)), files, members)


def _numbered(texts: set[str], names: tuple[str, ...] | None, data: str) -> tuple[tuple[str, ...], dict[str, int]]:
    """The classes, and the number of each label that is one of them."""
    if not all(_NUMBER.fullmatch(text) for text in texts):
        classes = tuple(sorted(texts)) if names is None else names
        return classes, {name: i for i, name in enumerate(classes)}
    if names is None:
        raise DataError(
            f"the labels of '{data}' are bare numbers, which match no class tree: put a file {CLASSES_FILE} beside the "
            "shards, class 0's name on its first line, class 1's on its second, and so on; or a list 'classes' into "
            f"{INFO_FILES[0]}"
        )
    if doubtful := [name for i, name in enumerate(names) if _NUMBER.fullmatch(name) and int(name) != i]:
        raise DataError(
            f"the labels of '{data}' are numbers, and so are names of its classes, at other places ({some(doubtful)}); "
            "which is meant cannot be told: write names that are no numbers"
        )
    return names, {text: int(text) for text in texts if 0 <= int(text) < len(names)}


def _load(every: tuple[tuple[Shard, int], ...], position: int) -> Image.Image:
    shard, sample = every[position]
    return open_image(f"{shard.file.path.name}:{shard.members[sample]}", io.BytesIO(shard.image(sample)))


# ---------------------------------------------------------------------- braces in file names, as in bash
# braceexpand builds any range in memory, however long, and lets {} and {a} stand; bracex, braces that are not closed.


def expanded(pattern: str) -> list[str]:
    """All names that a pattern with braces stands for, as in bash.

    Raises:
        UsageError: if a brace is not closed, or holds neither a range nor a list.

    Example:
        >>> expanded("{train-{08..10},val-0}.tar")
        ['train-08.tar', 'train-09.tar', 'train-10.tar', 'val-0.tar']
    """
    start = pattern.find("{")
    if start < 0 and "}" not in pattern:
        return [pattern]
    depth, commas = 0, [start]
    for end in range(len(pattern)):
        depth += {"{": 1, "}": -1}.get(pattern[end], 0)
        if depth == 1 and pattern[end] == ",":
            commas.append(end)
        if depth < 0 or (depth == 0 and end > start):
            break
    if depth:
        raise UsageError(f"'{pattern}' has a brace without its other half; expected such as train-{{0000..0007}}.tar")
    parts = [pattern[a + 1 : b] for a, b in zip(commas, [*commas[1:], end], strict=True)]
    middles = [middle for part in parts for middle in expanded(part)] if len(parts) > 1 else _range(parts[0])
    rest = expanded(pattern[end + 1 :])
    return [pattern[:start] + middle + after for middle in middles for after in rest]


def _range(text: str) -> list[str]:
    match = re.fullmatch(r"([0-9]{1,7})\.\.([0-9]{1,7})(?:\.\.([0-9]{1,7}))?", text)
    if match is None:
        raise UsageError(f"'{{{text}}}' is neither a range, such as {{0000..0007}}, nor a list, such as {{train,val}}")
    first, last, step = match.groups()
    padded = any(end.startswith("0") and end != "0" for end in (first, last))
    width = max(len(first), len(last)) if padded else 0
    way = 1 if int(first) <= int(last) else -1
    return [f"{i:0{width}}" for i in range(int(first), int(last) + way, way * (int(step or 1) or 1))]
