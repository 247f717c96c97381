"""Labelled images, each opened when it is asked for."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from PIL import Image, UnidentifiedImageError

from hlnet.data.pixels import plain_image, readable_formats
from hlnet.errors import DataError

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class LabelledImages:
    """Images with labels in the data set's own numbering.

    Attributes:
        name: what it was loaded from, for messages.
        classes: names of the classes, in that numbering.
        labels: of each image.
        load: gives the image at a position.
        files: the file that each image is, or lies in, where there is one.
        members: what each image is called in its file, where that holds several.
        folders: the folder of each class below the data set's, where there is one: ``"church/outdoor"``.
    """

    name: str
    classes: tuple[str, ...]
    labels: tuple[int, ...]
    load: Callable[[int], Image.Image]
    files: tuple[Path, ...] = ()
    members: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def fingerprint(self) -> str:
        """A short text that says which images these are, by class and name within the data set, in any order.

        The folder may lie elsewhere another time; images that are no files go by their position.

        Example:
            >>> images = LabelledImages("'a/val'", ("cat",), (0,), lambda _: None, (Path("a/val/cat/1.png"),))
            >>> moved = LabelledImages("'b/val'", ("cat",), (0,), lambda _: None, (Path("b/val/cat/1.png"),))
            >>> images.fingerprint() == moved.fingerprint()
            True
        """
        root = os.path.dirname(self.name.strip("'"))
        names = image_names(self)
        if self.files:
            names = [os.path.relpath(name, root) if root and name.startswith(root) else name for name in names]
        told = sorted(
            unicodedata.normalize("NFC", f"{self.classes[label]}\0{name}")
            for label, name in zip(self.labels, names, strict=True)
        )
        return hashlib.sha256("\n".join(told).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def image_names(images: LabelledImages) -> list[str]:
    """Name of each image in a file of cues: its path, in a shard after the shard's own.

    Images that are no files are called by their position: ``"0"``, ``"1"``, ….
    """
    names = [str(path) for path in images.files] or [str(position) for position in range(len(images))]
    if images.members:
        names = [f"{name}/{member}" for name, member in zip(names, images.members, strict=True)]
    return names


def open_image(path: str | Path, content: BinaryIO | None = None) -> Image.Image:
    """Read one image file completely, as :func:`hlnet.data.pixels.plain_image` has it.

    Args:
        path: the file; of one that is open already, what it is called.
        content: the open file.

    Raises:
        DataError: if it is missing, truncated or no image.
    """
    try:
        with Image.open(content or path, formats=readable_formats()) as image:
            image.load()
            return plain_image(image)
    except DataError as error:
        raise DataError(f"cannot read image '{path}': {error}") from error
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = (
            "not an image" if isinstance(error, UnidentifiedImageError) else getattr(error, "strerror", None) or error
        )
        mend = "look at its name and folder" if isinstance(error, FileNotFoundError) else "remove or replace it"
        raise DataError(f"cannot read image '{path}': {reason}; {mend}") from error
