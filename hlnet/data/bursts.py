"""Groups of images: those of a folder, of an event, or whose names agree in a part."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from datetime import datetime

from PIL import Image

from hlnet.errors import UsageError

log = logging.getLogger("hlnet")

#: Seconds between two images of one event, unless another number is given.
GAP = 60.0
#: EXIF: the block of the camera's own tags, the time that the image was taken, and the file's time.
_EXIF, _TAKEN, _CHANGED = 0x8769, 0x9003, 0x0132


def grouping(rule: str) -> Callable[[str], str]:
    """A function from an image to its group's name, by a rule.

    Args:
        rule: ``folder``; ``event``, images of one folder of which each was taken within a minute of the one before it,
            by the time that the camera wrote into the file (``event:10`` for ten seconds), named after its first image;
            or a regular expression, searched for in the image's path: what its parentheses hold, or else what matches.
            An image without a time, or without a match, is a group of its own.

    Raises:
        UsageError: for a regular expression that is none, or seconds that are no number.

    Example:
        >>> grouping("folder")("a/b/1.jpg"), grouping("cam[0-9]+")("photos/cam12_003.jpg"), grouping("x(.)y")("xby.png")
        ('a/b', 'cam12', 'b')
    """
    if rule == "folder":
        return lambda path: os.path.dirname(path) or "."
    if rule == "event" or rule.startswith("event:"):
        try:
            gap = float(rule.partition(":")[2] or GAP)
        except ValueError:
            raise UsageError(f"'{rule}': expected event:SECONDS, such as event:10") from None
        return _Events(gap)
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise UsageError(
            f"'{rule}' is neither folder nor event, and no regular expression ({error}); an example is '(cam\\d+)_'"
        ) from error

    def key(path: str) -> str:
        found = pattern.search(path)
        if found is None:
            return path
        return "_".join(filter(None, found.groups())) or found[0] or path

    return key


class _Events:
    """Names the event of each image, which come in their order within a folder."""

    def __init__(self, gap: float) -> None:
        self.gap, self.last, self.warned = gap, dict[str, tuple[datetime, str]](), False

    def __call__(self, path: str) -> str:
        time, folder = taken_at(path), os.path.dirname(path)
        if time is None:
            if not self.warned:
                log.info("'%s' does not say when it was taken: such images are events of their own", path)
            self.warned = True
            return path
        before = self.last.get(folder)
        same = before is not None and abs((time - before[0]).total_seconds()) <= self.gap
        name = before[1] if before is not None and same else path
        self.last[folder] = time, name
        return name


def taken_at(path: str) -> datetime | None:
    """When an image was taken, as the camera wrote it; ``None`` if the file does not say."""
    try:
        with Image.open(path) as image:
            tags = image.getexif()
            text = tags.get_ifd(_EXIF).get(_TAKEN) or tags.get(_CHANGED)
        return datetime.strptime(str(text).strip("\0 "), "%Y:%m:%d %H:%M:%S")
    except Exception:  # it is no image, or its tags are none: what reads the pixels says so
        return None
