"""Experts as files: their names, the cut, and the steps on a new file before it takes its place."""

from __future__ import annotations

import logging
import math
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hlnet.data.images import LabelledImages, open_image
from hlnet.data.tree_data import TreeData, eval_transform
from hlnet.errors import HlnetError, UsageError, some
from hlnet.evaluation.calibration import calibrate, check_outside
from hlnet.expert.cut import RESTRICT_PLAIN, cut_checkpoint
from hlnet.expert.verify import Reference
from hlnet.files import replacing
from hlnet.model.base import require_branches
from hlnet.model.cost import Part, Profile, profile, unit_costs
from hlnet.model.fast.optimize import optimize
from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
from hlnet.model.provenance import Score
from hlnet.model.transform import InputTransform
from hlnet.store.checkpoint import header_of, load_checkpoint, opened, save_checkpoint
from hlnet.store.remote_file import RemoteFile, in_parts
from hlnet.tree.class_tree import ClassTree

#: A step on an expert's new file before it takes its place; it returns its findings.
Step = Callable[[Path], dict[str, Any]]
#: Called with a phase's name, how many of its steps are done, and how many there are.
Progress = Callable[[str, int, int], None]
SUFFIX = ".safetensors"
BATCH = 16

log = logging.getLogger("hlnet")


class ExpertSource:
    """The network in a file, here or on the Hub, which experts are cut from; only its header is read.

    Args:
        model: its name, see :func:`hlnet.store.locate.locate_model`.
        whole: fetch a file on the Hub as a whole, even if parts would do.

    Raises:
        UsageError: if there is no such file, or it holds a plain network.
        CheckpointError, RunError: as :func:`hlnet.load_checkpoint`.
    """

    def __init__(self, model: str | Path, whole: bool = False) -> None:
        self.file = in_parts(model, whole)
        with opened(self.file) as file:
            header = header_of(file, self.file)
        require_branches(header, "to choose from", RESTRICT_PLAIN, name=f"'{model}'")
        assert isinstance(header.config, NetworkConfig)
        self.config, self.tree, self.transform = header.config, header.tree, header.transform
        self.provenance, self.parent_counts = header.provenance, header.provenance.parent_counts

    @property
    def path(self) -> Path | None:
        """The file on this machine, if it is here as a whole."""
        return self.file.path if isinstance(self.file, RemoteFile) else self.file

    @property
    def fetched(self) -> int:
        """Bytes fetched from the Hub so far."""
        return self.file.fetched if isinstance(self.file, RemoteFile) else 0

    @cached_property
    def units(self) -> list[Part]:
        """The cost of the trunk, and of one node of each level."""
        return unit_costs(self.config, self.transform)[0]

    def indices(self, classes: Collection[int]) -> list[int]:
        """Original indices of the classes at these positions."""
        return [index for i in classes if (index := self.tree.indices[i]) is not None]

    def profile(self, classes: Collection[int]) -> Profile:
        """The costs of the plain network, of the full one, and of the expert for the classes at these positions."""
        return profile(self.config, self.tree, self.transform, self.indices(classes), self.parent_counts)


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


def expert_files(source: ExpertSource, names: Iterable[str], out: Path, several: bool) -> list[Path]:
    """The file of each expert: ``out`` itself or, of several, files in that folder.

    Raises:
        UsageError: if one of them is the network's own file.
    """
    files = [out / name for name in file_names(names)] if several else [out]
    for path in files:
        if source.path is not None and path.resolve() == source.path.resolve():
            raise UsageError(f"the expert's file '{path}' is the model itself; choose another name")
    return files


def write_experts(
    source: ExpertSource,
    cuts: Sequence[tuple[Collection[int], Path]],
    steps: Sequence[Step] = (),
    on_step: Progress | None = None,
) -> list[dict[str, Any]]:
    """Cut experts, one after the other; if one fails, the log says which were written by then.

    Args:
        source: the network.
        cuts: of each expert the positions of the classes to keep, and the file to write.
        steps: on each new file before it takes its place.
        on_step: called after each expert.

    Returns:
        of each the findings of its steps, and under ``"out"`` where the file is.
    """
    done: list[dict[str, Any]] = []
    tell = on_step or (lambda phase, step, steps: None)
    try:
        for kept, out in cuts:
            tell("experts", len(done), len(cuts))
            done.append(write_expert(source, kept, out, steps))
        tell("experts", len(done), len(cuts))
    finally:
        if done and len(done) < len(cuts):
            written = some((str(out) for _, out in cuts[: len(done)]), limit=12)
            log.info(
                "'%s' was not written; %d of %d experts were before it: %s",
                *(cuts[len(done)][1], len(done), len(cuts), written),
            )
    return done


def write_expert(
    source: ExpertSource, classes: Collection[int], out: Path, steps: Sequence[Step] = ()
) -> dict[str, Any]:
    """Cut one expert, from file to file; if a step fails, an older file stays in its place.

    Args:
        source, steps: as :func:`write_experts` takes them.
        classes: positions of those to keep.
        out: the file to write.
    """
    found: dict[str, Any] = {"out": str(out)}
    with replacing(out) as draft:
        cut_checkpoint(source.file, source.indices(classes), draft)
        for step in steps:
            found |= step(draft)
    return found


class Verification:
    """The step that proves an expert's weights and logits to be the full network's, which runs once for all experts.

    Args:
        source: the full network.
        files: images; default: random noise.

    Raises:
        DataError: if one of them cannot be read.
    """

    def __init__(self, source: ExpertSource, files: Sequence[Path] = ()) -> None:
        assert source.path is not None, "a network on the Hub is fetched as a whole first"
        net = load_checkpoint(source.path)
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


class Calibration:
    """The step that fits a threshold and a temperature to an expert's file, on labelled images.

    Args:
        images: of the experts' classes and of others.
        max_false_positive, score: as :func:`hlnet.calibrate` takes them.
        device: where the expert runs.
        batch_size, workers: as :func:`hlnet.loader` takes them.
        on_step: called after each batch.
    """

    def __init__(
        self,
        images: LabelledImages,
        max_false_positive: float = 0.01,
        score: Score | None = None,
        device: torch.device | str = "cpu",
        batch_size: int = 64,
        workers: int = 2,
        on_step: Progress | None = None,
    ) -> None:
        self.images, self.max_false_positive, self.score = images, max_false_positive, score
        self.device, self.batch_size, self.workers, self.on_step = device, batch_size, workers, on_step

    def check(self, source: ExpertSource, choices: Mapping[str, Collection[int]], named: bool = True) -> None:
        """Whether it can work for experts, before one is cut; no image is read.

        Args:
            source: the network that they are cut from.
            choices: positions of each expert's classes, by its name.
            named: whether an error says which expert it is about.

        Raises:
            DataError: if there are no images of an expert's classes, or too few of others.
        """
        for name, kept in choices.items():
            try:
                check_outside(self._data(source.tree.prune(kept), source.transform), self.max_false_positive)
            except HlnetError as error:
                raise type(error)(f"expert '{name}': {error}" if named else str(error)) from error

    def _data(self, tree: ClassTree, transform: InputTransform) -> TreeData:
        return TreeData(self.images, tree, eval_transform(transform), outside=True)

    def __call__(self, draft: Path) -> dict[str, Any]:
        net = load_checkpoint(draft, self.device)
        data = self._data(net.tree, net.transform)
        done, batches = count(1), math.ceil(len(data) / self.batch_size)

        def on_batch() -> None:
            if self.on_step:
                self.on_step("calibrating", next(done), batches)

        settings = (self.max_false_positive, self.score, self.batch_size, self.workers, on_batch)
        calibrate(optimize(net), data, *settings)  # what is fitted is the network's own, too
        save_checkpoint(net, draft)
        return {"calibration": net.provenance.model_dump(mode="json", include={"temperature", "rejection"})}
