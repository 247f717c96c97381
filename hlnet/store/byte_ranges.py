"""Parts of a file on the Hub: some byte ranges over HTTP, several at a time, always of one and the same file.

Notable here: the Hub sends on to a storage host, at an address that serves for a while. It is asked once; the ranges
then come from that host directly, which never sees the user's token. Whatever answers must show the entity tag and
size of the first answer, so that a file that changes meanwhile is an error and never a mixture.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from huggingface_hub import constants, errors, get_session, hf_raise_for_status

from hlnet.errors import HlnetError, RunError
from hlnet.store.locate import PinnedFile, hub_errors

GAP = 1 << 16  # bytes between two pieces that are fetched along: they cost less than another request
CHUNK = 1 << 22  # bytes of one request; so much is in memory for each connection, and is fetched anew if that breaks
CONNECTIONS = 8
ATTEMPTS, WAIT, LONGEST_WAIT = 5, 0.5, 60  # of each request; seconds before the second, which double
BUSY = (408, 429, 500, 502, 503, 504)  # try again later

#: A piece of the file: its first byte, and where its bytes are to be put.
Piece = tuple[int, memoryview]


class RangesIgnoredError(RunError):
    """The server sends nothing but whole files."""


class ByteRanges:
    """A file on the Hub that is read by ranges.

    Args:
        file: which.

    Attributes:
        size: of the whole file, in bytes; ``None`` until something answers, if the Hub did not tell.
        fetched: bytes that came over the wire so far, those that came twice included.
    """

    def __init__(self, file: PinnedFile) -> None:
        self.file, self.size, self.fetched = file, file.size, 0
        self._home = self._address = file.request()
        self._tag: tuple[str | None] | None = None
        self._counting = threading.Lock()

    def read(self, begin: int, end: int) -> bytearray:
        """Bytes ``begin`` to ``end``, or to the end of the file.

        Raises:
            RangesIgnoredError: if the server sends the whole file instead; of which nothing is then fetched.
            RunError: if the file has changed, or the server or the way there fails for good.
        """
        with hub_errors(self.file.repo_id, self.file.commit):
            wait = WAIT
            while True:
                address = self._address
                try:
                    return self._once(address, begin, end)
                except (HlnetError, errors.OfflineModeIsEnabled):
                    raise
                except errors.HfHubHTTPError as error:
                    if error.response.status_code not in BUSY and address == self._home:
                        raise
                    self._address = self._home  # the other address was given for a while, and may have run out
                    asked = error.response.headers.get("Retry-After", "")
                    pause = max(wait, min(int(asked), LONGEST_WAIT)) if asked.isdecimal() else wait
                    failure: Exception = error
                except Exception as error:  # the connection broke, which each HTTP library says in its own words
                    pause, failure = wait, error
                wait *= 2
                if wait > WAIT * 2 ** (ATTEMPTS - 1):
                    raise failure
                time.sleep(pause)

    def fill(self, pieces: Iterable[Piece]) -> None:
        """Fetch the pieces, each to its place; those that lie near each other in one request.

        Raises:
            RunError: as :meth:`read`.
        """
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            try:
                for done in as_completed([pool.submit(self._fill, near) for near in requests(pieces)]):
                    done.result()
            finally:  # after an error, what still waits is not begun
                pool.shutdown(wait=False, cancel_futures=True)

    def _fill(self, near: list[Piece]) -> None:
        (begin, _), (last, target) = near[0], near[-1]
        body = memoryview(self.read(begin, last + len(target)))
        for start, target in near:
            target[:] = body[start - begin : start - begin + len(target)]

    def _once(self, address: tuple[str, dict[str, str]], begin: int, end: int) -> bytearray:
        url, headers = address
        asked = headers | {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        body = bytearray()
        # If it is redirected to another host, the HTTP library leaves the token behind.
        with get_session().stream(
            "GET", url, headers=asked, follow_redirects=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        ) as response:
            if response.status_code == 416:  # nothing is asked for that the file did not have
                raise self.changed()
            hf_raise_for_status(response)
            end = self._check(response, begin, end)
            for part in response.iter_raw():
                body += part
                with self._counting:
                    self.fetched += len(part)
                if len(body) > end - begin:
                    break
            if len(body) != end - begin:
                raise ConnectionError(f"got {len(body)} bytes of {end - begin}")
            if "authorization" not in response.request.headers:  # a redirect has led to another host
                headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
            self._address = str(response.url), headers  # ask there from now on
        return body

    def _check(self, response: Any, begin: int, end: int) -> int:
        """Whether the answer is these bytes of the same file as ever; where they end."""
        tag = (response.headers.get("ETag", "").removeprefix("W/") or None,)
        if self._tag not in (None, tag):
            raise self.changed()
        if response.status_code == 200 or response.headers.get("Content-Encoding", "identity") != "identity":
            raise RangesIgnoredError(f"'{self.file.name}': the server sends whole files only, and no parts of them")
        told = response.headers.get("Content-Range", "")
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", told)
        first, last, size = map(int, found.groups()) if found else (-1, -1, -1)
        if found and self.size not in (None, size):
            raise self.changed()
        if (first, last + 1) != (begin, min(end, size)):
            raise RunError(f"'{self.file.name}': asked for bytes {begin}-{end - 1}, the server answered with '{told}'")
        self._tag, self.size = tag, size
        return last + 1

    def changed(self) -> RunError:
        """What to raise when the file turns out to be another."""
        return RunError(f"'{self.file.name}' changed on the server while it was read; try again")


class WholeFile:
    """The same of a file that is fetched whole, into huggingface_hub's cache.

    Args:
        file: which.
        before: bytes of it that came over the wire already.

    Attributes:
        path: where it lies.
        size, fetched: as of :class:`ByteRanges`.
    """

    def __init__(self, file: PinnedFile, before: int = 0) -> None:
        self.path = file.download()
        self.size = self.path.stat().st_size
        self.fetched = before + self.size

    def read(self, begin: int, end: int) -> bytearray:
        """Bytes ``begin`` to ``end``, or to the end of the file."""
        body = bytearray(max(0, min(end, self.size) - begin))
        self.fill([(begin, memoryview(body))])
        return body

    def fill(self, pieces: Iterable[Piece]) -> None:
        """Read the pieces, each to its place."""
        with self.path.open("rb") as file:
            for start, target in pieces:
                file.seek(start)
                if file.readinto(target) != len(target):
                    raise RunError(f"'{self.path}' has become shorter while it was read; try again")


def to_be_sent(pieces: Iterable[Piece]) -> int:
    """How many bytes :meth:`ByteRanges.fill` would ask for: the pieces, and what lies between near ones.

    Example:
        >>> place = memoryview(bytearray(30))
        >>> to_be_sent([(100, place[:10]), (0, place), (10**9, place)])
        140
    """
    return sum(group[-1][0] + len(group[-1][1]) - group[0][0] for group in requests(pieces))


def requests(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Pieces in the order of the file, in groups that are worth a request each; large ones are divided.

    Example:
        >>> place = memoryview(bytearray(CHUNK + 30))
        >>> found = requests([(10**9, place[:10]), (GAP, place[:20]), (0, place[:5]), (10**7, place)])
        >>> [[(start, len(target)) for start, target in group] for group in found]
        [[(0, 5), (65536, 20)], [(10000000, 4194304)], [(14194304, 30)], [(1000000000, 10)]]
    """
    group: list[Piece] = []
    reached = 0
    for start, target in sorted(pieces, key=lambda piece: piece[0]):
        while len(target):
            if group and (start - reached > GAP or start - group[0][0] >= CHUNK):
                yield group
                group = []
            room = CHUNK - (start - group[0][0] if group else 0)
            group.append((start, target[:room]))
            start, target = start + len(group[-1][1]), target[room:]
            reached = start
    if group:
        yield group
