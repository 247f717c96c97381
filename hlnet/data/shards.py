"""Random access to WebDataset shards, tar files that others read as streams.

Notable here: a tar file has no table of contents. So each is walked once, from header to header, and of every sample
its label is kept and where its image lies. From then on an image is one positioned read, which moves nothing in the
open file: threads and forked processes can share it.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hlnet.errors import DataError, one_line

#: What an image's name may end in, the first that a sample has.
IMAGE_FIELDS = ("jpg", "png", "webp", "jpeg")
#: Where a label stands in a sample's JSON, if nothing names the field.
LABEL_FIELDS = ("cls", "label", "class")
#: Members that tell of the shard, and are no samples.
_ABOUT = re.compile(r"__[^/]*__($|/)")
_COMPRESSED = {b"\x1f\x8b\x08": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ\0": "unxz", b"(\xb5/\xfd": "unzstd"}
_BLOCK = 512
#: Shards that a process keeps open, below any system's limit of open files.
_OPEN = 128


@dataclass(frozen=True)
class ShardFile:
    """A tar file as it was when somebody looked.

    Attributes:
        path: of the file.
        size: in bytes.
        changed: when it was written last, in nanoseconds.
    """

    path: Path
    size: int
    changed: int

    @classmethod
    def at(cls, path: Path) -> ShardFile:
        """The file at a path, as it is now.

        Raises:
            DataError: if it is not there.
        """
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(
                f"shard '{path}' cannot be read: {error.strerror}; download it, or write it again"
            ) from error
        return cls(path, status.st_size, status.st_mtime_ns)

    def read(self, offset: int, size: int) -> bytes:
        """Some of its bytes; from any thread, and in any process.

        Raises:
            DataError: if it cannot be read, or is not what it was.
        """
        try:
            if hasattr(os, "pread"):
                opened = _opened(self)  # held while it is read, lest another thread's call lets it close
                found = os.pread(opened.number, size, offset)
            else:
                with self.path.open("rb") as file:
                    file.seek(offset)
                    found = file.read(size)
        except OSError as error:
            raise DataError(f"shard '{self.path}' cannot be read: {error.strerror or error}") from error
        if len(found) < size:
            raise DataError(f"shard '{self.path}' ends too early; it has changed since it was indexed")
        return found


@dataclass(frozen=True, eq=False)
class Shard:
    """Contents of a tar file, sample by sample, in its order.

    Attributes:
        file: the tar file.
        members: each image's name in it.
        places: where each image's bytes begin, and how many they are: ``[samples, 2]``.
        labels: each sample's label, as it is written there.
    """

    file: ShardFile
    members: tuple[str, ...]
    places: np.ndarray[Any, Any]
    labels: tuple[str, ...]

    def image(self, sample: int) -> bytes:
        """The file of a sample's image.

        Raises:
            DataError: if the shard cannot be read, or is not what it was.
        """
        offset, size = self.places[sample].tolist()
        return self.file.read(offset, size)


def index_shard(path: str | Path, label_field: str = "") -> Shard:
    """Find the samples of a shard. A file that has not changed is walked once a process.

    The files of one sample share a name up to the first dot of its last part; what follows is the field. The image is
    field ``jpg``, ``png``, ``webp`` or ``jpeg``, the label ``cls``, else ``cls``, ``label`` or ``class`` in ``json``.

    Args:
        path: of a tar file, not compressed.
        label_field: take the labels from this entry of each sample's ``json``, even where there is a ``cls``.

    Raises:
        DataError: if the file is missing, damaged or compressed, or a sample is doubled or lacks an image or a label.

    Example:
        >>> import io, tarfile, tempfile
        >>> path = Path(tempfile.mkdtemp()) / "train-0000.tar"
        >>> with tarfile.open(path, "w") as archive:
        ...     for name, content in (("7.jpg", b"pixels"), ("7.cls", b"cat")):
        ...         member = tarfile.TarInfo(name)
        ...         member.size = len(content)
        ...         archive.addfile(member, io.BytesIO(content))
        >>> shard = index_shard(path)
        >>> shard.members, shard.labels, shard.image(0)
        (('7.jpg',), ('cat',), b'pixels')
    """
    return _indexed(ShardFile.at(Path(path)), label_field)


@cache
def _indexed(shard: ShardFile, label_field: str) -> Shard:
    images, labels = [], []
    try:
        with shard.path.open("rb") as file:
            for key, sample in _samples(file, shard.path).items():
                name = f"sample '{key}' of shard '{shard.path}'"
                image = next((sample[field] for field in IMAGE_FIELDS if field in sample), None)
                if image is None:
                    wanted, found = (", ".join(f".{field}" for field in fields) for fields in (IMAGE_FIELDS, sample))
                    raise DataError(f"{name} has no image: expected a file {wanted}, found {found}")
                images.append(image)
                labels.append(_label(file, sample, label_field, name))
    except OSError as error:
        raise DataError(f"shard '{shard.path}' cannot be read: {error.strerror or error}") from error
    places = np.array([(member.offset_data, member.size) for member in images], np.int64)
    return Shard(shard, tuple(member.name for member in images), places, tuple(labels))


def _samples(file: BinaryIO, path: Path) -> dict[str, dict[str, tarfile.TarInfo]]:
    """The members of each sample by field; unlike in a stream, they may lie apart."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in _headers(file, path):
        folder, slash, name = member.name.rpartition("/")
        stem, dot, field = name.partition(".")
        if not member.isreg() or not stem or not dot or _ABOUT.match(member.name):
            continue
        if member.issparse():
            raise DataError(f"'{member.name}' lies in shard '{path}' with holes (sparse); pack it without --sparse")
        sample = samples.setdefault(folder + slash + stem, {})
        if sample.setdefault(field.lower(), member) is not member:
            raise DataError(
                f"'{member.name}' is twice in shard '{path}'; the names of samples must be unique in a shard"
            )
    return samples


def _headers(file: BinaryIO, path: Path) -> Iterator[tarfile.TarInfo]:
    """All members of a tar file; that it ends with its end mark is checked, as tarfile takes any rubbish for one."""
    start = file.read(_BLOCK)
    if tool := next((tool for magic, tool in _COMPRESSED.items() if start.startswith(magic)), None):
        raise DataError(f"shard '{path}' is compressed, so nothing in it can be found by its place; {tool} it first")
    file.seek(0)
    last, reason = "its beginning", "there is no end mark"
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="backslashreplace") as archive:
            while (member := archive.next()) is not None:
                last = f"'{member.name}'"
                yield member
            file.seek(archive.offset)
            if file.read(_BLOCK) == bytes(_BLOCK):
                return
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        reason = one_line(error)
    raise DataError(f"shard '{path}' is damaged or cut short after {last} ({reason}); download it, or write it again")


def _label(file: BinaryIO, sample: dict[str, tarfile.TarInfo], field: str, name: str) -> str:
    content = "cls" if "cls" in sample and not field else "json"
    if content not in sample:
        raise DataError(f"{name} has no label: expected a file .{'json' if field else 'cls or .json'} beside the image")
    file.seek(sample[content].offset_data)
    written = file.read(sample[content].size)
    found: object = None
    with suppress(ValueError, RecursionError):  # not UTF-8, or no JSON
        if content == "cls":
            found = written.decode()
        else:
            entries = json.loads(written)
            known = (field,) if field else LABEL_FIELDS
            found = next((entries[key] for key in known if key in entries), None) if isinstance(entries, dict) else None
    if isinstance(found, bool) or not isinstance(found, int | str) or not str(found).strip():
        where = f"entry {field or ' or '.join(LABEL_FIELDS)} of its .json" if content == "json" else "its .cls"
        raise DataError(f"{name} has no label: expected one class, by number or name, in {where}")
    return sys.intern(str(found).strip())  # a class has many images


class _Opened:
    """An open file that closes when nobody has it any more."""

    def __init__(self, shard: ShardFile) -> None:
        self.number = -1
        self.number = os.open(shard.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        status = os.fstat(self.number)
        if (status.st_size, status.st_mtime_ns) != (shard.size, shard.changed):
            raise DataError(f"shard '{shard.path}' has changed since it was indexed; start again")

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


_opened = lru_cache(maxsize=_OPEN)(_Opened)
