"""Images matched to the classes of a tree by name, transformed and batched."""

from __future__ import annotations

import hashlib
import os
import signal
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from hlnet.data.images import LabelledImages
from hlnet.data.pixels import plain_image
from hlnet.errors import DataError, UsageError, some
from hlnet.model.transform import InputTransform
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.nodes import normal_name


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
        labels: position in ``tree.classes`` of each kept image; -1 for out-of-distribution ones.

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
        known = [_class_of(tree, name, folder) for name, folder in _names_and_folders(images)]
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


class UnlabelledData(Dataset[tuple[Tensor, int]]):
    """All images of a data set, whatever they show; the label is -1.

    Args:
        images: the images.
        transform: from a PIL image to ``[3, H, W]``.
    """

    def __init__(self, images: LabelledImages, transform: Callable[[Image.Image], Tensor]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        return self.transform(self.images.load(position)), -1


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
        "re_prob": reprob,
        "re_mode": "pixel",
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


def _stand_apart(_worker: int) -> None:
    """Ctrl-C, or a SIGTERM to the whole group, is for the main process, which may want another batch."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


def _names_and_folders(images: LabelledImages) -> list[tuple[str, str]]:
    return list(zip(images.classes, images.folders or images.classes, strict=True))


def _class_of(tree: ClassTree, name: str, folder: str) -> int | None:
    """The class that a data set's name means, else its folder, such as ``church/outdoor``."""
    names = tree.node_names
    found = names.classes.get(normal_name(name))
    if found is None and "/" in folder:
        below = {names.below[path] for path in names.words.get(normal_name(folder), [])}
        found = next((classes[0] for classes in below if len(below) == len(classes) == 1), None)
    return found


class _Prepare:
    """Convert to the network's channels, then transform as timm does with these settings. A class, so that worker
    processes can receive it; and two can be told apart, by their settings."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.mode = "L" if settings["input_size"][0] == 1 else "RGB"
        self.then: Callable[[Image.Image], Tensor] = create_transform(**settings)

    def __call__(self, image: Image.Image) -> Tensor:
        return self.then(plain_image(image).convert(self.mode))
