"""Which cues of a file an image has.

Notable here: a file names images by the ends of their paths, ``cat/1.jpg`` or just ``1.jpg``, so that it fits wherever
the data lie; and images are asked for one by one, so that a stream of them needs no list.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hlnet.cues import Cue
from hlnet.errors import UsageError, some

if TYPE_CHECKING:
    from hlnet.data import LabelledImages

log = logging.getLogger("hlnet")


class CuesByImage:
    """Which cues an image has, by the end of its path.

    Args:
        cues: by image name, as :func:`hlnet.cue_files.read_cues` gives them: a file's name (``1.jpg``), or so many
            folders with it as tell it from others (``cat/1.jpg``, the path relative to the split's folder, or a whole
            path).
        source: what they were read from, for messages.

    Example:
        >>> cues = CuesByImage({"cat/1.jpg": [Cue(node="cat")]})
        >>> cues.of("/data/val/cat/1.jpg"), cues.of("/data/val/dog/1.jpg")
        ([Cue(node='cat', reliability=None, strength=None, mode=None)], [])
    """

    def __init__(self, cues: Mapping[str, Sequence[Cue]], source: str = "the cues") -> None:
        self.source = source
        self._cues: dict[str, list[Cue]] = {}
        self._written: dict[str, str] = {}
        for name, own in cues.items():
            key = os.path.normpath(name.replace("\\", "/"))
            self._cues.setdefault(key, []).extend(own)
            self._written.setdefault(key, name)
        self._lengths = sorted({key.count("/") + 1 for key in self._cues})
        self._images: dict[str, str] = {}  # the image that each name was found to mean

    def of(self, image: str | Path) -> list[Cue]:
        """The cues of one image; none if the file does not name it.

        Raises:
            UsageError: if a name in the file fits this image and another one that was asked for.
        """
        whole = os.path.abspath(image).replace("\\", "/")
        pieces = whole.split("/")
        found: list[Cue] = []
        for length in self._lengths:
            key = "/".join(pieces[-length:])
            if length > len(pieces) or key not in self._cues:
                continue
            other = self._images.setdefault(key, whole)
            if other != whole:
                raise UsageError(
                    f"{self.source}: '{self._written[key]}' is both '{other}' and '{whole}'; write more of the path"
                )
            found += self._cues[key]
        return found

    def finish(self) -> None:
        """After the last image: tell, in the log ``hlnet``, of names that fitted none.

        Raises:
            UsageError: if no name fitted any.
        """
        left = [name for key, name in self._written.items() if key not in self._images]
        if not self._images:
            raise UsageError(
                f"{self.source}: none of the images named there ({some(left, 3)}) is among those that were looked at; "
                "names are file names, or ends of paths such as cat/1.jpg"
            )
        if left:
            log.warning(
                "%s: %d of %d images named there fit none: %s", self.source, len(left), len(self._cues), some(left)
            )


def match_cues(
    cues: Mapping[str, Sequence[Cue]], images: Iterable[str | Path], source: str = "the cues"
) -> list[list[Cue]]:
    """The cues of each image of a list; see :class:`CuesByImage`, for a stream.

    Raises:
        UsageError: if a name fits two images, or no name fits any.

    Example:
        >>> match_cues({"1.jpg": [Cue(node="cat")]}, ["val/cat/0.jpg", "val/cat/1.jpg"])
        [[], [Cue(node='cat', reliability=None, strength=None, mode=None)]]
    """
    by_image = CuesByImage(cues, source)
    found = [by_image.of(image) for image in images]
    by_image.finish()
    return found


def image_names(images: LabelledImages) -> list[str]:
    """What each image of a data set is called in a file of cues: its path, in a shard after the shard's own.

    Images that are no files are called by their position: ``"0"``, ``"1"``, ….
    """
    names = [str(path) for path in images.files] or [str(position) for position in range(len(images))]
    if images.members:
        names = [f"{name}/{member}" for name, member in zip(names, images.members, strict=True)]
    return names
