"""Labelled images, from timm's sources, with labels matched to a class tree by name.

Notable here: a data set's own numbering of classes is never used. Folder readers number by sort order, and sort orders
differ; so a label is a class *name* until the tree says which logit that is.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data import create_dataset

from hlnet.data.image_files import counted, image_files, image_folders
from hlnet.data.images import LabelledImages, Split, open_image
from hlnet.data.pixels import plain_image
from hlnet.errors import DataError, UsageError, one_line
from hlnet.files import IMAGE_SUFFIXES
from hlnet.tree.nodes import normal_name, qualified_names

log = logging.getLogger("hlnet")

_SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "validation", "valid"), "test": ("test", "testing")}

_ALL_SPLITS = [name for names in _SPLIT_FOLDERS.values() for name in names]

TIMM_SOURCES = ("hfds/", "torch/", "wds/")


def load_data(data: str | Path, split: Split = "train", root: str | Path | None = None) -> LabelledImages:
    """Open a data set.

    Args:
        data: a folder with ``train`` and ``val`` folders (``test`` too, if it has one) that hold one folder a class,
            nested or flat; or, for ``val`` and ``test``, a folder of such class folders alone; ``digits``,
            scikit-learn's embedded 8x8 handwriting, four fifths of it for training and the rest for ``val`` and
            ``test`` alike; or one of timm's sources that know their labels, such as
            ``torch/cifar10``, a Hugging Face set with a validation split, ``hfds/…``, or WebDataset shards in ``root``,
            ``wds/…``.
        split: ``train``, ``val`` or ``test``.
        root: where timm's sources keep their files.

    Raises:
        UsageError: if there is no such folder, split or source.
        DataError: if it holds no images, or images outside any class's folder.

    Example:
        >>> digits = load_data("digits", "val")
        >>> len(digits), digits.classes[:3], digits.load(0).size
        (360, ('0', '1', '2'), (8, 8))
    """
    data = str(data)
    if split not in _SPLIT_FOLDERS:
        raise UsageError(f"there is no split '{split}'; expected {', '.join(_SPLIT_FOLDERS)}")
    if data == "digits":
        return _digits(split)
    if data.startswith("wds/"):
        from hlnet.data.sharded_images import sharded_images

        return sharded_images(data, _SPLIT_FOLDERS, split, root)
    if data.startswith(TIMM_SOURCES):
        return _from_timm(data, split, root)
    return _folder(Path(data), split)


def load_any_images(data: str | Path, split: Split = "val", root: str | Path | None = None) -> LabelledImages:
    """Open a data set whose labels do not matter: as :func:`load_data`, or any folder of images.

    Raises:
        UsageError, DataError: as :func:`load_data`; and if a folder holds no images.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (8, 8)).save(folder / "one.png")
        >>> images = load_any_images(folder)
        >>> len(images), images.classes
        (1, ('',))
    """
    folder = Path(data)
    if is_source(str(data)) or not folder.is_dir() or any((folder / name).is_dir() for name in _ALL_SPLITS):
        return load_data(data, split, root)
    files = tuple(Path(file) for file in image_files([folder]))
    return LabelledImages(f"'{folder}'", ("",), (0,) * len(files), partial(_load_file, files), files)


def is_source(data: str) -> bool:
    """Whether this names a source of images, and no folder, even where there is one of that name.

    Example:
        >>> is_source("digits"), is_source("hfds/food101"), is_source("photos")
        (True, True, False)
    """
    return data == "digits" or data.startswith(TIMM_SOURCES)


# ---------------------------------------------------------------------- sources


def _folder(root: Path, split: Split) -> LabelledImages:
    if not root.is_dir():
        raise UsageError(
            f"there is no data folder '{root}' (nor a source of that name: digits, {', '.join(TIMM_SOURCES)}…)"
        )
    folder = next((root / name for name in _SPLIT_FOLDERS[split] if (root / name).is_dir()), None)
    if folder is None and split != "train" and _is_flat(root):
        # Class folders alone: to evaluate on them there is no need of a split. To train on, there is one.
        folder = root
        log.info("'%s' has no '%s' folder: all of its class folders are taken", root, split)
    if folder is None:
        found = ", ".join(sorted(entry.name for entry in root.iterdir() if entry.is_dir())[:6]) or "no folders"
        raise UsageError(
            f"'{root}' has no '{split}' folder; expected train/ and val/ with one folder a class, found {found}"
        )
    inside, passed = image_folders(folder)
    if stray := inside.pop((), None):
        raise DataError(f"'{folder}' holds images outside any class folder, such as '{stray[0].name}'")
    if not inside:
        raise DataError(f"'{folder}' holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    if passed:
        log.info("'%s': passed over what is no image that is read: %s", folder, counted(passed))
    labels = tuple(label for label, paths in enumerate(inside.values()) for _ in paths)
    every = tuple(path for paths in inside.values() for path in paths)
    names, places = tuple(map(normal_name, qualified_names(list(inside)))), tuple(map("/".join, inside))
    return LabelledImages(f"'{folder}'", names, labels, partial(_load_file, every), every, folders=places)


def _is_flat(root: Path) -> bool:
    """Whether a folder holds class folders, and none of a split."""
    if any((root / name).is_dir() for name in _ALL_SPLITS):
        return False
    below = (names for place, _, names in os.walk(root) if Path(place) != root)
    return any(Path(name).suffix.lower() in IMAGE_SUFFIXES for names in below for name in names)


def _digits(split: Split) -> LabelledImages:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train, rest = train_test_split(np.arange(len(digits.target)), test_size=0.2, random_state=0, stratify=digits.target)
    kept = train if split == "train" else rest
    pixels = (digits.images[kept] * (255 / 16)).astype(np.uint8)
    return LabelledImages(
        "digits",
        tuple(str(name) for name in digits.target_names),
        tuple(int(label) for label in digits.target[kept]),
        partial(_load_pixels, pixels),
    )


def _from_timm(name: str, split: Split, root: str | Path | None) -> LabelledImages:
    try:
        with redirect_stdout(sys.stderr):  # some sources print, and stdout is for results
            dataset = create_dataset(
                name, root=str(root) if root else None, split="validation" if split == "val" else split
            )
    except Exception as error:  # each source has its own ways to fail: no package, no network, no such set
        reason = one_line(error)
        mend = "; pip install 'hlnet[hf]' brings what hfds/ needs" if isinstance(error, ImportError) else ""
        raise UsageError(f"data source '{name}' could not be opened ({split}): {reason}{mend}") from error
    classes = getattr(dataset, "classes", None) or list(_class_to_idx(dataset))
    labels = _labels(dataset)
    if not classes or labels is None:
        raise UsageError(f"data source '{name}' does not tell its class names and labels, which a class tree needs")
    return LabelledImages(
        f"'{name}'",
        tuple(normal_name(str(name)) for name in classes),
        tuple(labels),
        partial(_load_item, dataset, name),
    )


# What loads an image travels to worker processes: functions of the module with their data, not closures.


def _load_file(paths: tuple[Path, ...], position: int) -> Image.Image:
    return open_image(paths[position])


def _load_pixels(pixels: np.ndarray[Any, Any], position: int) -> Image.Image:
    return Image.fromarray(pixels[position])


def _load_item(dataset: Any, name: str, position: int) -> Image.Image:
    try:
        image = plain_image(dataset[position][0])
    except Exception as error:  # each source has its own ways to fail
        raise DataError(f"cannot read image {position} of '{name}': {one_line(error)}") from error
    return image


def _class_to_idx(dataset: Any) -> Sequence[str]:
    reader = getattr(dataset, "reader", None)
    mapping = getattr(reader, "class_to_idx", None) or {}
    if mapping:
        return sorted(mapping, key=mapping.__getitem__)
    features = getattr(getattr(reader, "dataset", None), "features", {})
    return next((list(feature.names) for feature in features.values() if hasattr(feature, "names")), [])


def _labels(dataset: Any) -> list[int] | None:
    if hasattr(dataset, "targets"):
        return [int(label) for label in dataset.targets]
    reader: Any = getattr(dataset, "reader", None)
    if hasattr(reader, "samples"):
        return [label for _, label in reader.samples]
    if hasattr(reader, "label_key"):
        return [int(label) for label in reader.dataset[reader.label_key]]
    return None
