"""Labelled images, from timm's sources, with labels matched to a class tree by name.

Notable here: a data set's own numbering of classes is never used. Folder readers number by sort order, and sort orders
differ; so a label is a class *name* until the tree says which logit that is.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from timm.data import create_dataset, create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from hlnet.errors import DataError, UsageError, one_line, some
from hlnet.tree import ClassTree
from hlnet.tree_io import IMAGE_SUFFIXES
from hlnet.trunk import InputTransform

Split = Literal["train", "val", "test"]
_SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "validation", "valid"), "test": ("test", "testing")}
TIMM_SOURCES = ("hfds/", "torch/", "wds/")


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
    """

    name: str
    classes: tuple[str, ...]
    labels: tuple[int, ...]
    load: Callable[[int], Image.Image]
    files: tuple[Path, ...] = ()
    members: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


class TreeData(Dataset[tuple[Tensor, int]]):
    """Images whose labels are positions in a tree's classes.

    Args:
        images: the labelled images.
        tree: the classes.
        transform: from a PIL image to ``[3, H, W]``.
        subset: leave out images of classes that the tree lacks (an expert's evaluation), instead of refusing them.
        outside: keep them, with label -1: an expert's test of "none of these".

    Attributes:
        left_out: how many images were left out.
        unknown: classes of the data that the tree lacks.
        absent: classes of the tree that the data lack.
        labels: position in ``tree.classes`` of each kept image; -1 for outside ones.

    Raises:
        DataError: if classes are missing on either side, or no image is left.
    """

    def __init__(
        self,
        images: LabelledImages,
        tree: ClassTree,
        transform: Callable[[Image.Image], Tensor],
        subset: bool = False,
        outside: bool = False,
    ) -> None:
        position = {leaf.id: i for i, leaf in enumerate(tree.leaves) if leaf.id is not None}
        position |= {name: i for i, name in enumerate(tree.classes)}  # a name goes before an id
        known = [position.get(name) for name in images.classes]
        if doubled := [tree.classes[i] for i, count in Counter(known).items() if i is not None and count > 1]:
            raise DataError(f"two classes of {images.name} are one in the tree, by name and by id: {some(doubled)}")
        unknown = [name for name, found in zip(images.classes, known, strict=True) if found is None]
        absent = [tree.classes[i] for i in sorted(set(range(len(tree.classes))) - set(known))]
        if (unknown or absent) and not (subset or outside):
            told = [f"Only in the data: {some(unknown)}."] if unknown else []
            told += [f"Only in the tree, without an image here: {some(absent)}."] if absent else []
            raise DataError(
                f"the classes of {images.name} and of the tree differ. {' '.join(told)} "
                "They are matched by name or id: rename folders or nodes, or add what is missing"
            )
        kept = [(i, known[label]) for i, label in enumerate(images.labels)]
        self.samples = [(i, label) for i, label in kept if label is not None]
        if outside and self.samples:
            self.samples = [(i, -1 if label is None else label) for i, label in kept]
        if not self.samples:
            raise DataError(
                f"{images.name} holds no image of the tree's classes ({some(tree.classes)}); "
                f"its own are {some(images.classes)}"
            )
        self.left_out = len(images) - len(self.samples)
        self.unknown, self.absent = unknown, absent
        self.labels = [label for _, label in self.samples]
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.samples)

    def digest(self) -> str:
        """A short fingerprint of which images these are, by class and file name, and of their labels."""
        found = hashlib.sha256()
        for source, label in self.samples:
            name = self.images.files[source].name if self.images.files else str(source)
            name += f":{self.images.members[source]}" if self.images.members else ""
            found.update(f"{name}/{label}\0".encode())
        return found.hexdigest()[:12]

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        source, label = self.samples[position]
        return self.transform(self.images.load(source)), label


def load_data(data: str | Path, split: Split = "train", root: str | Path | None = None) -> LabelledImages:
    """Open a data set.

    Args:
        data: a folder with ``train`` and ``val`` folders (``test`` too, if it has one) that hold one folder a class,
            nested or flat; ``digits``, scikit-learn's embedded 8x8 handwriting, four fifths of it for training and the
            rest for ``val`` and ``test`` alike; or one of timm's sources that know their labels, such as
            ``torch/cifar10``, a Hugging Face set with a validation split, ``hfds/…``, or WebDataset shards in ``root``,
            ``wds/…``.
        split: ``train``, ``val`` or ``test``.
        root: where timm's sources keep their files.

    Raises:
        UsageError: if there is no such folder, split or source.
        DataError: if it holds no images, or two folders of images share a name.

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
        from hlnet.sharded_images import sharded_images

        return sharded_images(data, _SPLIT_FOLDERS, split, root)
    if data.startswith(TIMM_SOURCES):
        return _from_timm(data, split, root)
    return _folder(Path(data), split)


def is_source(data: str) -> bool:
    """Whether this names a source of images, and no folder, even where there is one of that name.

    Example:
        >>> is_source("digits"), is_source("hfds/food101"), is_source("photos")
        (True, True, False)
    """
    return data == "digits" or data.startswith(TIMM_SOURCES)


def eval_transform(transform: InputTransform) -> Callable[[Image.Image], Tensor]:
    """Resize, crop and normalise, as ``transform`` says; no randomness."""
    return _Prepare(transform.model_dump() | {"is_training": False})


def train_transform(
    transform: InputTransform,
    aa: str = "none",
    scale: tuple[float, float] = (0.35, 1.0),
    hflip: float = 0.5,
    reprob: float = 0.0,
) -> Callable[[Image.Image], Tensor]:
    """A random crop, a flip and timm's auto-augment policy, then normalisation.

    Args:
        transform: size, mean, std and interpolation.
        aa: timm's name of the policy, such as ``rand-m9-mstd0.5`` (RandAugment), or ``none``.
        scale: share of the area that a crop keeps, low and high.
        hflip: probability of a horizontal flip.
        reprob: probability that a rectangle is erased (timm's random erasing, per pixel noise).

    Raises:
        UsageError: for a policy that timm does not have.
    """
    settings = transform.model_dump(exclude={"crop_pct", "crop_mode"}) | {
        "is_training": True,
        "auto_augment": None if aa == "none" else aa,
        "scale": scale,
        "hflip": hflip,
        "color_jitter": 0.0,
    }
    try:
        return _Prepare(settings)
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        raise UsageError(f"timm has no augmentation policy '{aa}'; try rand-m9-mstd0.5, or none") from error


def loader(
    data: Dataset[Any], batch_size: int, workers: int = 0, sampler: Sampler[int] | None = None
) -> DataLoader[tuple[Tensor, Tensor]]:
    """A ``DataLoader``, in the data's order or a sampler's; its workers leave signals to the main process."""
    return DataLoader(
        data,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_stand_apart,
        pin_memory=torch.cuda.is_available(),
    )


def open_image(path: str | Path, content: BinaryIO | None = None) -> Image.Image:
    """Read one image file completely; of one that is open already, ``path`` is what it is called.

    Raises:
        DataError: if it is missing, truncated or no image.
    """
    try:
        with Image.open(content or path) as image:
            image.load()
            return image
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = (
            "not an image" if isinstance(error, UnidentifiedImageError) else getattr(error, "strerror", None) or error
        )
        mend = "look at its name and folder" if isinstance(error, FileNotFoundError) else "remove or replace it"
        raise DataError(f"cannot read image '{path}': {reason}; {mend}") from error


# ---------------------------------------------------------------------- sources


def _folder(root: Path, split: Split) -> LabelledImages:
    if not root.is_dir():
        raise UsageError(
            f"there is no data folder '{root}' (nor a source of that name: digits, {', '.join(TIMM_SOURCES)}…)"
        )
    folder = next((root / name for name in _SPLIT_FOLDERS[split] if (root / name).is_dir()), None)
    if folder is None:
        found = ", ".join(sorted(entry.name for entry in root.iterdir() if entry.is_dir())[:6]) or "no folders"
        raise UsageError(
            f"'{root}' has no '{split}' folder; expected train/ and val/ with one folder a class, found {found}"
        )
    files: dict[str, list[Path]] = {}
    homes: dict[str, Path] = {}
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = Path(place)
        images = sorted(here / name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES)
        if images and here == folder:
            raise DataError(f"'{folder}' holds images outside any class folder, such as '{images[0].name}'")
        if images and here.name in files:
            raise DataError(
                f"two folders of images are called '{here.name}' ('{homes[here.name]}' and '{here}'); "
                "class names must be unique"
            )
        if images:
            files[here.name], homes[here.name] = images, here
    if not files:
        raise DataError(f"'{folder}' holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    labels = tuple(label for label, paths in enumerate(files.values()) for _ in paths)
    every = tuple(path for paths in files.values() for path in paths)
    return LabelledImages(f"'{folder}'", tuple(files), labels, partial(_load_file, every), every)


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
    return LabelledImages(f"'{name}'", tuple(map(str, classes)), tuple(labels), partial(_load_item, dataset, name))


# What loads an image travels to worker processes: functions of the module with their data, not closures.


def _load_file(paths: tuple[Path, ...], position: int) -> Image.Image:
    return open_image(paths[position])


def _load_pixels(pixels: np.ndarray[Any, Any], position: int) -> Image.Image:
    return Image.fromarray(pixels[position])


def _load_item(dataset: Any, name: str, position: int) -> Image.Image:
    try:
        image: Image.Image = dataset[position][0]
    except Exception as error:  # each source has its own ways to fail
        raise DataError(f"cannot read image {position} of '{name}': {one_line(error)}") from error
    return image


def _stand_apart(_worker: int) -> None:
    """Ctrl-C, or a SIGTERM to the whole group, is for the main process, which may want another batch."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


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


class _Prepare:
    """Convert to the network's channels, then transform as timm does with these settings. A class, so that worker
    processes can receive it; and two can be told apart, by their settings."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.mode = "L" if settings["input_size"][0] == 1 else "RGB"
        self.then: Callable[[Image.Image], Tensor] = create_transform(**settings)

    def __call__(self, image: Image.Image) -> Tensor:
        if image.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip to 8
            image = image.convert("I").point(lambda value: value / 257).convert("L")
        return self.then(image.convert(self.mode))
