"""A safetensors file on the Hub that is read by tensors and rows, of which the rest is never fetched.

Notable here: it has those of ``safe_open``'s methods that tell what a file holds, but one of its own to read: all that
is wanted is named at once, so that neighbours come in one request and several requests run at a time. What came along
with the header is not fetched again, and where nearly all of the file is wanted, it is fetched as any download is.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from hlnet.errors import CheckpointError, HlnetError, one_line
from hlnet.store.byte_ranges import ByteRanges, Piece, RangesIgnoredError, WholeFile, to_be_sent
from hlnet.store.locate import locate_or_pin

FIRST = 1 << 16  # bytes that are asked for first, which hold the header of a small file
NEARLY_ALL = 0.9  # of the file: if that much is still to be sent, the whole may as well lie in the cache
LONGEST_HEADER = 100_000_000  # as safetensors has it
DTYPES = {
    name: getattr(torch, dtype)
    for name, dtype in {
        "BOOL": "bool",
        **{
            f"{kind}{bits}": f"{word}{bits}" for kind, word in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)
        },
        **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
        "BF16": "bfloat16",
        "C64": "complex64",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2": "float8_e5m2",
        "F8_E5M2FNUZ": "float8_e5m2fnuz",
        "F8_E8M0": "float8_e8m0fnu",  # not in the oldest torch
    }.items()
    if hasattr(torch, dtype)
}

log = logging.getLogger("hlnet")


def in_parts(name: str | Path, whole: bool = False) -> Path | RemoteFile:
    """The file that a model's name stands for; if that is on the Hub and not in the cache, what reads parts of it.

    A server that sends whole files only is let have its way: then the file is in the cache.

    Args:
        name: as :func:`hlnet.store.locate.locate_model` takes it.
        whole: fetch all of it at once, even if parts would do.

    Raises:
        UsageError, RunError: as :func:`hlnet.store.locate.locate_model`.
        CheckpointError: if a file on the Hub is no intact safetensors file.
    """
    found = locate_or_pin(name)
    if isinstance(found, Path):
        return found
    if whole:
        return RemoteFile(WholeFile(found), found.name)
    ranges = ByteRanges(found)
    try:
        return RemoteFile(ranges, found.name)
    except RangesIgnoredError:
        log.info("'%s': the server sends no parts of files, so the whole one is fetched", found.name)
        return RemoteFile(WholeFile(found, ranges.fetched), found.name)


@dataclass(frozen=True)
class Stored:
    """A tensor as the header describes it: its kind, its shape, and the bytes of the file that it lies in."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int

    def get_shape(self) -> list[int]:
        """As ``safe_open(…).get_slice(name).get_shape()``."""
        return list(self.shape)


class RemoteFile:
    """A safetensors file of which only the header has been fetched yet. A context manager, as ``safe_open`` is.

    Args:
        source: its bytes.
        name: for messages.

    Raises:
        CheckpointError: if the header is damaged, or does not fit the file's size.
        RunError: if the Hub cannot be reached, or the file changes while it is read.
    """

    def __init__(self, source: ByteRanges | WholeFile, name: str) -> None:
        self._source, self._name = source, name
        try:
            self._start, self._stored, self._metadata = _header(source)
        except HlnetError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"'{name}' is not an intact safetensors file: {one_line(error)}; "
                "give a file written by hlnet train or make-expert"
            ) from error

    def __str__(self) -> str:
        return self._name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        pass

    @property
    def fetched(self) -> int:
        """Bytes that came over the wire so far."""
        return self._source.fetched

    @property
    def path(self) -> Path | None:
        """The file itself, if it was fetched whole."""
        return self._source.path if isinstance(self._source, WholeFile) else None

    def keys(self) -> list[str]:
        """Names of the tensors."""
        return list(self._stored)

    def metadata(self) -> dict[str, str]:
        """What the file says of itself."""
        return self._metadata

    def get_slice(self, name: str) -> Stored:
        """A tensor's description."""
        return self._stored[name]

    def read(self, wanted: Mapping[str, Sequence[tuple[int, int]] | None]) -> dict[str, Tensor]:
        """Fetch tensors, whole or in part; all of the file, if that is hardly more.

        Args:
            wanted: by name, half-open runs of rows, which are joined; ``None``: all of it.

        Raises:
            RunError: if the Hub cannot be reached, or the file changes while it is read.
        """
        tensors: dict[str, Tensor] = {}
        pieces: list[Piece] = []
        for name, runs in wanted.items():
            stored = self._stored[name]
            shape, size = stored.shape, stored.end - stored.begin
            if runs is not None:
                size //= max(shape[0], 1)
                shape = (sum(end - start for start, end in runs), *shape[1:])
            tensors[name] = torch.empty(shape, dtype=stored.dtype)
            room = tensors[name].reshape(-1).view(torch.uint8).numpy().data
            for start, end in [(0, 1)] if runs is None else runs:
                length = size * (end - start)
                pieces.append((stored.begin + size * start, room[:length]))
                room = room[length:]
        self._fill(list(self._not_here(pieces)))
        return {name: _native(tensor) for name, tensor in tensors.items()}

    def _not_here(self, pieces: list[Piece]) -> Iterator[Piece]:
        """The pieces, or what of them did not come along with the header."""
        for begin, room in pieces:
            here = self._start[begin : begin + len(room)]
            room[: len(here)] = here
            if len(here) < len(room):
                yield begin + len(here), room[len(here) :]

    def _fill(self, pieces: list[Piece]) -> None:
        source, size = self._source, self._source.size or 0
        if isinstance(source, ByteRanges) and pieces and to_be_sent(pieces) >= NEARLY_ALL * size:
            log.info("'%s': nearly all of it is needed, so the whole file is fetched: %.1f MB", self, size / 1e6)
            self._source = whole = WholeFile(source.file, source.fetched)
            if whole.size != size or whole.read(0, len(self._start)) != self._start:
                raise source.changed()
        self._source.fill(pieces)
        if self.path is None:
            log.info("'%s': fetched %.1f of %.1f MB", self, self.fetched / 1e6, size / 1e6)


# ---------------------------------------------------------------------- helpers


def _header(source: ByteRanges | WholeFile) -> tuple[bytearray, dict[str, Stored], dict[str, str]]:
    """What was fetched, the tensors, in the order of the file, and the metadata; a ValueError says what is wrong."""
    if source.size == 0:
        raise ValueError("it is empty")
    start = source.read(0, FIRST)
    length, size = int.from_bytes(start[:8], "little"), source.size or 0
    if size < 8 or length > min(LONGEST_HEADER, size - 8):
        raise ValueError("its header is longer than the file may be")
    if length > len(start) - 8:
        start += source.read(len(start), 8 + length)
    described = json.loads(start[8 : 8 + length].decode())
    metadata = described.pop("__metadata__", None) or {}
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not text")
    found = {name: _stored(name, entry, 8 + length) for name, entry in described.items()}
    found = dict(sorted(found.items(), key=lambda item: (item[1].begin, item[1].end)))
    ends = [8 + length, *(stored.end for stored in found.values())]
    if ends[-1] != size or any(a != stored.begin for a, stored in zip(ends, found.values(), strict=False)):
        raise ValueError("its tensors overlap, leave gaps or do not fill it")
    return start, found, metadata


def _stored(name: str, entry: Any, offset: int) -> Stored:
    dtype, shape, places = DTYPES.get(entry["dtype"]), entry["shape"], entry["data_offsets"]
    if dtype is None:
        raise ValueError(f"it holds '{name}' as {entry['dtype']}, which torch does not have")
    if not all(type(number) is int and number >= 0 for number in [*shape, *places]):
        raise ValueError(f"'{name}' is of shape {shape} and at {places}")
    begin, end = places
    if end - begin != prod(shape) * dtype.itemsize:
        raise ValueError(f"'{name}' is of shape {shape}, but takes {end - begin} bytes")
    return Stored(dtype, tuple(shape), offset + begin, offset + end)


def _native(tensor: Tensor) -> Tensor:
    """The file's bytes, the lowest of a number first, as numbers of this machine."""
    if sys.byteorder == "little":
        return tensor
    unit = tensor.itemsize // (2 if tensor.is_complex() else 1)
    turned = tensor.reshape(-1).view(torch.uint8).view(-1, unit).flip(1)
    return turned.reshape(-1).view(tensor.dtype).view(tensor.shape)
