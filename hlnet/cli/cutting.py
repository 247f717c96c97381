"""How ``make-expert`` writes the files of experts: their names, the cut, and what is done before they are in place."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hlnet.checkpoint import load_checkpoint
from hlnet.data import eval_transform, open_image
from hlnet.errors import UsageError
from hlnet.expert import cut_checkpoint, verify_expert
from hlnet.files import replacing
from hlnet.hub import locate_or_pin
from hlnet.model_names import HUB
from hlnet.network import HierarchicalNet
from hlnet.tree import ClassTree
from hlnet.tree_io import IMAGE_SUFFIXES

#: What is done with an expert's file before it takes its place; it returns what there is to tell of that.
Step = Callable[[Path], dict[str, Any]]
SUFFIX = ".safetensors"
BATCH = 16


def located(model: str, whole: bool) -> str | Path:
    """What a MODEL stands for, once and for all: its file, or a name on the Hub with the commit.

    Args:
        model: its name.
        whole: fetch the file even if parts of it would do.
    """
    found = locate_or_pin(model)
    if isinstance(found, Path):
        return found
    return found.download() if whole else f"{HUB}{found.repo_id}@{found.commit}"


def file_names(names: Iterable[str]) -> list[str]:
    """A file name for each expert, from its node's path or its selection's name: safe on every system, and unique.

    Example:
        >>> file_names(["animal/big cat", "animal-big cat", "..", "n" * 300])[:3]
        ['animal-big cat.safetensors', 'animal-big cat-2.safetensors', 'expert.safetensors']
    """
    found: list[str] = []
    used: set[str] = set()
    for name in names:
        kept = re.sub(r"[^\w +,()-]+", "-", unicodedata.normalize("NFC", name))
        stem = kept.encode()[:120].decode(errors="ignore").strip(" -") or "expert"
        if re.fullmatch(r"con|prn|aux|nul|(com|lpt)\d", stem, re.IGNORECASE):  # to Windows they are devices
            stem += "-"
        number, unique = 1, stem
        while unique.casefold() in used:
            number += 1
            unique = f"{stem}-{number}"
        used.add(unique.casefold())
        found.append(unique + SUFFIX)
    return found


def write_expert(
    source: str | Path, tree: ClassTree, classes: Collection[int], out: Path, steps: Sequence[Step] = ()
) -> dict[str, Any]:
    """Cut one expert, from file to file; what fails in a step never takes the place of an older file.

    Args:
        source: the network that :func:`located` found.
        tree: its classes.
        classes: positions of those to keep.
        out: the file to write.
        steps: what to do with the new file first.

    Returns:
        what the steps tell, and under ``"out"`` where the file is.
    """
    told: dict[str, Any] = {"out": str(out)}
    with replacing(out) as draft:
        indices = [index for i in classes if (index := tree.indices[i]) is not None]
        told["fetched_bytes"] = cut_checkpoint(source, indices, draft)
        for step in steps:
            told |= step(draft)
    return told


class Verification:
    """The step that proves an expert's logits to be the full network's.

    Args:
        source: the full network's file.
        images: image files, and folders of them; default: random noise.

    Raises:
        UsageError: if a folder holds no image.
    """

    def __init__(self, source: str | Path, images: Sequence[Path] | None = None) -> None:
        self.files = [file for path in images or () for file in _images(path)]
        full = load_checkpoint(source)
        assert isinstance(full, HierarchicalNet)
        self.full = full

    def __call__(self, draft: Path) -> dict[str, float]:
        expert = load_checkpoint(draft)
        assert isinstance(expert, HierarchicalNet)
        batches = self.batches() if self.files else [None]
        found = {"max_logit_difference": max(verify_expert(expert, self.full, batch) for batch in batches)}
        return found | {"images": len(self.files)} if self.files else found

    def batches(self) -> Iterator[Tensor]:
        """The images as the network takes them."""
        prepare = eval_transform(self.full.transform)
        for start in range(0, len(self.files), BATCH):
            yield torch.stack([prepare(open_image(file)) for file in self.files[start : start + BATCH]])


def _images(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise UsageError(f"--images '{path}' is a folder without images")
    return found
