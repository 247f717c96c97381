"""The state that a stopped training run resumes from: one file, always whole.

Notable here: no generator's state is among it. Order, augmentation and dropout are functions of seed, epoch and step
(``hlnet.data.sampling``), so weights, moments and counters are all there is.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from pydantic import BaseModel

from hlnet.errors import CheckpointError, RunError
from hlnet.files import replacing

#: Its name in the run folder.
STATE_FILE = "last.ckpt"

VERSION = 1


@dataclass
class RunState:
    """A run after ``step`` steps of ``epoch``.

    Attributes:
        epoch: number of the epoch that was under way, from 1.
        step: how many of its steps were done.
        updates: steps since the start.
        seconds: that this epoch took so far.
        lr: learning rate at its beginning.
        totals: sums of loss, right answers and images of this epoch, by process, ``[processes, 3]``.
        images: to train on; with another number, the same step would be another.
        batch_size: of each process.
        history: the epochs that are done.
        settings: the run's settings as JSON; another run's state is not taken.
        weights, optimizer, scaler, average: state dicts. (timm's schedules are functions of ``updates``.)
    """

    epoch: int
    step: int
    updates: int
    seconds: float
    lr: float
    totals: torch.Tensor
    images: int
    batch_size: int
    weights: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any] | None = None
    average: dict[str, Any] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    settings: str = ""

    def save(self, folder: Path) -> None:
        """Write it, in one step.

        Raises:
            RunError: if that fails, for instance on a full disk; an earlier state is still there then.
        """
        with replacing(folder / STATE_FILE) as draft:
            try:
                torch.save({"version": VERSION, **_fields(self)}, draft)
            except RuntimeError as error:  # torch's writer does not say why it failed; nearly always the disk is full
                raise OSError(errno.ENOSPC, f"No space left on device ({error})".split("\n")[0]) from error

    @classmethod
    def load(cls, folder: Path) -> RunState:
        """Read it back, on the CPU.

        Raises:
            CheckpointError: if the file is damaged or of another version.
            RunError: if it cannot be read.
        """
        path = folder / STATE_FILE
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
            version = found.pop("version")
            if version != VERSION:
                raise CheckpointError(f"'{path}' has version {version}, this hlnet goes on from version {VERSION}")
            return cls(**found)
        except OSError as error:
            raise RunError(f"cannot read '{path}': {error.strerror or error}") from error
        except (RuntimeError, UnpicklingError, EOFError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"'{path}' is damaged or not a run's state; start anew (resume=False; --overwrite)"
            ) from error


def _fields(state: RunState) -> dict[str, Any]:
    """The fields as they are; ``dataclasses.asdict`` would copy every tensor."""
    return {name: getattr(state, name) for name in state.__dataclass_fields__}


class Epoch(BaseModel):
    """One line of ``metrics.csv``.

    ``lr`` is the learning rate at the epoch's beginning, ``train_loss`` the loss trained on, ``val_loss`` a mean
    cross-entropy whatever that is; accuracies are shares in 0..1, times in seconds. Validation is without cues.
    """

    epoch: int
    lr: float
    train_loss: float
    train_top1: float
    val_loss: float
    val_top1: float
    seconds: float


def summary(history: Sequence[Epoch], images: int, val_images: int, seconds: float) -> dict[str, float]:
    """The best epoch of a run by validation accuracy, and the run's speed.

    Args:
        history: its epochs.
        images, val_images: number of images for training and validation.
        seconds: duration of the whole run.

    Example:
        >>> epoch = Epoch(epoch=1, lr=0.1, train_loss=1, train_top1=0.5, val_loss=2, val_top1=0.75, seconds=4)
        >>> found = summary([epoch, epoch.model_copy(update={"epoch": 2, "val_top1": 0.5})], 20, 8, 9.0)
        >>> found["best_epoch"], found["val_top1"], found["images_per_second"]
        (1, 0.75, 5.0)
    """
    best = max(history, key=lambda epoch: epoch.val_top1)
    return {
        "best_epoch": best.epoch,
        "val_top1": best.val_top1,
        "val_loss": best.val_loss,
        "images": val_images,
        "seconds": seconds,
        "images_per_second": images * len(history) / sum(epoch.seconds for epoch in history),
    }
