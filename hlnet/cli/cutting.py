"""How ``make-expert`` writes the files of experts: their names, the cut, and what is done before they are in place."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from hlnet.checkpoint import load_checkpoint
from hlnet.cli import output
from hlnet.data import eval_transform, open_image
from hlnet.errors import some
from hlnet.expert import Reference, cut_checkpoint
from hlnet.files import replacing
from hlnet.network import HierarchicalNet
from hlnet.remote_file import RemoteFile
from hlnet.tree import ClassTree

#: What is done with an expert's file before it takes its place; it returns what there is to tell of that.
Step = Callable[[Path], dict[str, Any]]
SUFFIX = ".safetensors"
BATCH = 16


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


def write_experts(
    source: Path | RemoteFile,
    tree: ClassTree,
    cuts: Sequence[tuple[Collection[int], Path]],
    steps: Sequence[Step] = (),
    bar: Progress | None = None,
) -> list[dict[str, Any]]:
    """Cut experts, one after the other; if one fails, those that are written by then are told on stderr.

    Args:
        source: the network, as :func:`hlnet.remote_file.in_parts` found it.
        tree: its classes.
        cuts: of each expert the positions of the classes to keep, and the file to write.
        steps: what to do with each new file before it takes its place.
        bar: where to show how far it is.

    Returns:
        of each what the steps tell, and under ``"out"`` where the file is.
    """
    told: list[dict[str, Any]] = []
    try:
        for kept, out in bar.track(cuts, description="experts") if bar else cuts:
            told.append(write_expert(source, tree, kept, out, steps))
    finally:
        if told and len(told) < len(cuts):
            written = some((str(out) for _, out in cuts[: len(told)]), limit=12)
            output.hint(
                f"'{cuts[len(told)][1]}' was not written; {len(told)} of {len(cuts)} experts were before it: {written}"
            )
    return told


def write_expert(
    source: Path | RemoteFile, tree: ClassTree, classes: Collection[int], out: Path, steps: Sequence[Step] = ()
) -> dict[str, Any]:
    """Cut one expert, from file to file; what fails in a step never takes the place of an older file.

    Args:
        source, tree, steps: as :func:`write_experts` takes them.
        classes: positions of those to keep.
        out: the file to write.
    """
    told: dict[str, Any] = {"out": str(out)}
    with replacing(out) as draft:
        cut_checkpoint(source, [index for i in classes if (index := tree.indices[i]) is not None], draft)
        for step in steps:
            told |= step(draft)
    return told


class Verification:
    """The step that proves an expert's weights and logits to be the full network's, which runs once for all experts.

    Args:
        full: the full network's file.
        files: images; default: random noise.

    Raises:
        DataError: if one of them cannot be read.
    """

    def __init__(self, full: Path, files: Sequence[Path] = ()) -> None:
        net = load_checkpoint(full)
        assert isinstance(net, HierarchicalNet)
        self.files, self.prepare = files, eval_transform(net.transform)
        self.reference = Reference(net, self.batches if files else None)

    def __call__(self, draft: Path) -> dict[str, Any]:
        expert = load_checkpoint(draft)
        assert isinstance(expert, HierarchicalNet)
        self.reference.check_weights(expert)
        found = {"weights_bitwise": True, "max_logit_difference": self.reference.difference(expert)}
        return found | {"images": len(self.files)} if self.files else found

    def batches(self) -> Iterator[Tensor]:
        """The images as the network takes them."""
        for start in range(0, len(self.files), BATCH):
            yield torch.stack([self.prepare(open_image(file)) for file in self.files[start : start + BATCH]])
