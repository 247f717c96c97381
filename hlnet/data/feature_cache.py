"""A folder of features that frozen trunks have computed, so that no later run computes them again.

Notable here: a file's name is a digest of all that its content depends on (:func:`feature_key`), so a changed trunk,
transform or image leads to another file, and nothing is ever out of date. A file is a ``.npy`` array, then a line of
JSON that tells what it was made from, then a CRC-32 of everything before it. The whole file is read against that sum
before it is used again; an epoch reads as much, and then finds it in the page cache. Features are appended in order to
a hidden part file, which takes its final name in one step. What a killed run has left is not gone on with: the next run
that computes something removes it. Locks tell who is at work: a second run that wants the same features waits for the
first, and a file that any process has mapped is not removed to make room. The system frees them when a process ends,
however it ends.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import math
import os
import re
import shutil
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import timm
import torch
from filelock import FileLock, Timeout
from pydantic import ByteSize
from torch import Tensor
from torch.utils.data import Dataset

from hlnet.data.features import CachedFeatures, FeatureSource, OnBatch
from hlnet.data.images import LabelledImages
from hlnet.data.sampling import Seeded
from hlnet.data.tree_data import TreeData
from hlnet.errors import DataError, RunError, UsageError, counted, one_line
from hlnet.files import make_folder

if TYPE_CHECKING:
    from hlnet.model.base import TrainableNetwork

log = logging.getLogger("hlnet")

#: Goes up whenever the same key would mean other bytes.
VERSION = 1
#: How many images, as the trunk would see them, go into the key.
SAMPLE = 8
NAME = re.compile(r"features-[0-9a-f]{64}\.npy")
LENGTH, SUM = struct.Struct("<I"), struct.Struct("<I")
CHUNK = 1 << 22


def cached_features(
    net: TrainableNetwork,
    data: Dataset[Any],
    views: int = 1,
    batch_size: int = 64,
    workers: int = 0,
    seed: int = 0,
    folder: str | Path | None = None,
    limit: int | None = None,
    on_batch: OnBatch | None = None,
    skip_unreadable: bool = False,
) -> CachedFeatures:
    """A frozen trunk's features of every image, from a file where they have been computed before.

    View ``v`` of image ``i`` is what :class:`hlnet.data.sampling.Seeded` gives for seed, ``v`` and ``i``; so neither
    ``workers`` nor, but for rounding, ``batch_size`` changes the result, and no generator's state is touched.

    Args:
        net: its ``features`` are taken, on the device where it is.
        data: images with labels; with ``folder``, a :class:`TreeData`. Its order is kept.
        views: how often each image is seen; more than one makes sense with random augmentation.
        batch_size: images that the trunk sees together.
        workers: processes that load images.
        seed: of the augmentation.
        folder: keep the features in a file there, ``2 * views * N * C * h * w`` bytes large, that is mapped into
            memory; default: in memory. A file that is there already is checked whole; where it is damaged, the features
            are computed again, with a warning in the log ``hlnet``.
        limit: most bytes that the features take, and all caches in the folder together; to keep within it, those that
            no process uses are removed, from the least recently used on. Default: no limit.
        on_batch: called with the number of batches done and of all batches; not at all if nothing is computed.
        skip_unreadable: put the next readable image, with its label, in the place of one that cannot be read.

    Raises:
        UsageError: if the features would exceed ``limit``, before more than one image has been through the trunk.
        DataError: if an image cannot be read, or a feature does not fit float16.
        RunError: if the folder cannot be used, or its disk is full; nothing is left there.

    Example:
        >>> import hlnet, tempfile
        >>> digits = hlnet.load_data("digits", "val")
        >>> net = hlnet.create_model("test_resnet", tree=list(digits.classes), widths=[8], strides=[1])
        >>> net.transform = net.transform.adjusted(img_size=32)
        >>> data = hlnet.TreeData(digits, net.tree, hlnet.eval_transform(net.transform))
        >>> folder = tempfile.mkdtemp()
        >>> cached_features(net, data, folder=folder).features.shape
        torch.Size([1, 360, 192, 2, 2])
        >>> again = cached_features(net, data, folder=folder, on_batch=print)  # nothing is computed
    """
    if views < 1:
        raise UsageError(f"{views} views of each image: there must be 1 at least")
    source = FeatureSource(net, data, views, batch_size, workers, seed, on_batch, skip_unreadable)
    if folder is None:
        return _in_memory(source, limit)
    if not isinstance(data, TreeData):
        raise UsageError("only features of a TreeData, which knows its images, can be kept in a folder (cache_dir)")
    about = feature_key(net, data, views, seed, skip_unreadable)
    make_folder(folder)
    file = Path(folder) / f"features-{_digest(about)}.npy"
    found = _open(file, about, data, warn=False)
    if found is None:
        with _locked(file):
            found = _open(file, about, data, warn=True)  # another process may have been at it
            if found is None:
                _build(file, about, source, limit)
                log.info("features are kept in '%s' (%s)", file, _shown(file.stat().st_size))
                found = CachedFeatures.mapped(file, source.labels)
    else:
        log.info("features are read from '%s'", file)
    return found


def feature_key(
    net: TrainableNetwork, data: TreeData, views: int = 1, seed: int = 0, skip_unreadable: bool = False
) -> dict[str, Any]:
    """All that cached features depend on, as plain values; the file's name is a SHA-256 of them.

    These are the trunk's backbone, split point, arguments and weights; the transform's settings; each image's class
    name, and its file's name, size and time of modification (for data without files, its name and the images'
    positions); the number of views; the seed, where the transform is random; timm's version; and the pixels of a few
    images as the trunk would see them, which tell apart sources and transforms that say nothing of themselves.
    Branches, tree, batch size, workers and device do not matter: networks on one trunk share its features, whatever
    their trees.

    Raises:
        DataError: if an image that is looked at cannot be read.

    Example:
        >>> import hlnet
        >>> digits = hlnet.load_data("digits", "val")
        >>> net = hlnet.create_model("test_resnet", tree=list(digits.classes), widths=[8], strides=[1])
        >>> data = hlnet.TreeData(digits, net.tree, hlnet.eval_transform(net.transform))
        >>> key = feature_key(net, data, seed=3)
        >>> key["trunk"]["backbone"], key["seed"], key["data"]["images"]  # nothing is random, so no seed
        ('test_resnet', None, 360)
    """
    settings = getattr(data.transform, "settings", None)
    random = settings is None or settings["is_training"]
    shape = net.config.model_dump(mode="json")
    return {
        "version": VERSION,
        "timm": timm.__version__,
        "trunk": {name: shape[name] for name in ("backbone", "split_point", "backbone_args")}
        | {"weights": _weights_digest(net)},
        "transform": type(data.transform).__name__ if settings is None else json.loads(json.dumps(settings)),
        "data": _described(data.images, [source for source, _ in data.samples]),
        "sample": _sample_digest(Seeded(data, seed, skip_unreadable), views),
        "views": views,
        "seed": seed if random else None,
        "skip_unreadable": skip_unreadable,
    }


# ---------------------------------------------------------------------- in memory


def _in_memory(source: FeatureSource, limit: int | None) -> CachedFeatures:
    shape = source.shape()
    if limit is not None and _bytes(shape) > limit:
        raise _too_large(shape, limit)
    stored = torch.empty(shape, dtype=torch.float16)
    flat, start = stored.view(-1, *shape[2:]), 0
    for features in source.features():
        flat[start : start + len(features)] = features
        start += len(features)
    return CachedFeatures(stored, source.labels)


# ---------------------------------------------------------------------- the key


def _digest(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _weights_digest(net: TrainableNetwork) -> str:
    digest, weights = hashlib.sha256(), net.trunk_module.state_dict()
    for name in sorted(net.trunk_names):
        if not name.endswith("num_batches_tracked"):  # a count that no feature depends on
            _feed(digest, name, weights[name].cpu())
    return digest.hexdigest()


def _described(images: LabelledImages, positions: list[int]) -> dict[str, Any]:
    """Names, sizes and times of the files are in the digest, not their folders: data may move as a whole."""
    digest = hashlib.sha256()
    for position in positions:
        what = [images.classes[images.labels[position]], str(position)]
        if images.files:
            path = images.files[position]
            try:
                status = path.stat()
            except OSError as error:
                raise DataError(f"cannot read image '{path}': {error.strerror}; remove or replace it") from error
            what[1:] = [path.name, str(status.st_size), str(status.st_mtime_ns)]
            what += [str(member) for member in images.members[position : position + 1]]  # of a shard
        digest.update("\0".join([*what, ""]).encode())
    name = None if images.files else images.name
    return {"name": name, "classes": images.classes, "images": len(positions), "digest": digest.hexdigest()}


def _sample_digest(seeded: Seeded, views: int) -> str:
    digest, count = hashlib.sha256(), len(seeded)
    for number in range(SAMPLE):
        image, _ = seeded[number % views * count + number * count // SAMPLE]
        _feed(digest, str(number), image)
    return digest.hexdigest()


def _feed(digest: hashlib._Hash, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


# ---------------------------------------------------------------------- files


class _Part:
    """A file that grows, with the sum of all that was appended."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sum = file, 0

    def append(self, data: bytes | memoryview) -> None:
        self.file.write(data)
        self.sum = zlib.crc32(data, self.sum)


def _head(shape: tuple[int, ...]) -> bytes:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f2", "fortran_order": False, "shape": shape})
    return head.getvalue()


def _tail(about: dict[str, Any], taken: Tensor) -> bytes:
    replaced = [(place, other) for place, other in enumerate(taken.tolist()) if place != other]
    text = json.dumps({"made_from": about, "replaced": replaced}).encode()
    return b"\n" + text + b"\n" + LENGTH.pack(len(text))


def _open(file: Path, about: dict[str, Any], data: TreeData, warn: bool) -> CachedFeatures | None:
    """The features in a file; ``None`` if it does not exist or is not what was written once."""
    labels = torch.tensor(data.labels)
    try:
        found = CachedFeatures.mapped(file, labels)  # from here on, nobody removes it
        tail = _checked(file)
        if found.stored.dtype != torch.float16 or found.stored.shape[:2] != (about["views"], len(data)):
            raise ValueError(f"it holds {found.stored.dtype} of shape {list(found.stored.shape)}")
        if _digest(tail["made_from"]) != _digest(about):
            raise ValueError("it was made from something else")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"cannot read '{file}': {error.strerror or error}; name another folder (cache_dir)") from error
    except (ValueError, KeyError, TypeError) as error:
        if warn:
            log.warning("'%s' is damaged (%s): its features are computed again", file, one_line(error))
        return None
    taken = torch.arange(len(data))
    for place, other in tail["replaced"]:
        taken[place] = other
    found.labels = labels[taken]
    with suppress(OSError):  # a folder that may only be read
        os.utime(file)
    return found


def _checked(file: Path) -> dict[str, Any]:
    """What a file tells of itself, once all of it has been read and agrees with its sum."""
    with file.open("rb") as source:
        left, total = source.seek(0, os.SEEK_END) - SUM.size, 0
        source.seek(0)
        while left > 0 and (chunk := source.read(min(left, CHUNK))):
            total, left = zlib.crc32(chunk, total), left - len(chunk)
        if left or source.read() != SUM.pack(total):
            raise ValueError("its checksum is wrong")
        source.seek(-SUM.size - LENGTH.size, os.SEEK_END)
        (length,) = LENGTH.unpack(source.read(LENGTH.size))
        source.seek(-SUM.size - LENGTH.size - 1 - length, os.SEEK_END)
        found: dict[str, Any] = json.loads(source.read(length))
        return found


def _build(file: Path, about: dict[str, Any], source: FeatureSource, limit: int | None) -> None:
    """Compute the features and put them in place; whoever calls this holds the file's lock."""
    shape = source.shape()
    head, tail = _head(shape), _tail(about, torch.arange(len(source.taken)))
    size = len(head) + _bytes(shape) + len(tail) + SUM.size
    part = _beside(file, "part")
    try:
        with _writing(file), FileLock(file.parent / ".features.lock"):
            for unwanted in (file, part):
                unwanted.unlink(missing_ok=True)
            _make_room(file.parent, size, shape, limit)
            with part.open("wb") as out:
                out.truncate(size)  # takes no room yet, but others count it
        with part.open("r+b") as out:
            part_file = _Part(out)
            with _writing(file):
                part_file.append(head)
            for features in source.features():
                with _writing(file):
                    part_file.append(features.numpy().astype("<f2", order="C", copy=False).reshape(-1).data.cast("B"))
            with _writing(file):
                part_file.append(_tail(about, source.taken))
                out.write(SUM.pack(part_file.sum))
                out.flush()
                os.fsync(out.fileno())
        with _writing(file):
            os.replace(part, file)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def _writing(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write '{file}': {error.strerror or error}; make room there, or name another folder (cache_dir)"
        ) from error


# ---------------------------------------------------------------------- the folder


def _beside(file: Path, kind: str) -> Path:
    return file.with_name(f".{file.stem}.{kind}")


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Be the only one who builds this file. The lock's own file stays: removing it could let two in."""
    lock = FileLock(_beside(file, "lock"))
    with _writing(file):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.warning("waiting for another process that is computing the same features ('%s')", file)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make_room(folder: Path, size: int, shape: tuple[int, ...], limit: int | None) -> None:
    """Remove what killed runs have left and, to keep within the limit, the caches that were used least recently."""
    growing = 0
    for part in folder.glob(".features-*.part"):
        try:
            with FileLock(part.with_suffix(".lock"), timeout=0):
                part.unlink(missing_ok=True)
        except Timeout:
            with suppress(FileNotFoundError):  # just finished: then it is one of the caches below
                growing += part.stat().st_size
    if limit is not None:
        caches = {path: path.stat() for path in folder.iterdir() if NAME.fullmatch(path.name)}
        total = size + growing + sum(status.st_size for status in caches.values())
        spare = {path: status for path, status in caches.items() if total > limit and _unused(path)}
        if total - sum(status.st_size for status in spare.values()) > limit:
            raise _too_large(shape, limit, folder)
        for path, status in sorted(spare.items(), key=lambda item: item[1].st_mtime_ns):
            if total > limit and _unused(path, remove=True):
                total -= status.st_size
    if (free := shutil.disk_usage(folder).free) < size:
        raise OSError(errno.ENOSPC, f"{_shown(size)} are needed, {_shown(free)} free")


def _unused(file: Path, remove: bool = False) -> bool:
    """Whether no process has mapped the file, this one included; if so, it may be removed."""
    try:
        if sys.platform == "win32":  # it does not remove what is open
            if remove:
                file.unlink()
            return True
        import fcntl

        with file.open("r+b") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if remove:
                file.unlink()
            return True
    except OSError:  # where it cannot be told, it stays
        return False


def _shown(size: int) -> str:
    return ByteSize(size).human_readable(decimal=True)


def _bytes(shape: tuple[int, ...]) -> int:
    return 2 * math.prod(shape)


def _too_large(shape: tuple[int, ...], limit: int, folder: Path | None = None) -> UsageError:
    views, images, *each = shape
    beside = f" beside the caches in '{folder}' that are in use" if folder and _bytes(shape) <= limit else ""
    return UsageError(
        f"features of {counted(images, 'image')} in {counted(views, 'view')}, {'x'.join(map(str, each))} each, need "
        f"{_shown(_bytes(shape))}{beside}, more than the limit of {_shown(limit)}: take fewer views "
        "(cache_views), a higher limit (cache_size), a later split_point, or smaller images (img_size)"
    )
