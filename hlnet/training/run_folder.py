"""The run folder: what a training run writes, and in which order, so that it can be killed at any moment.

Notable here: every file is replaced whole (``hlnet.files.replacing``). After an epoch come the last weights, the
figures, the state to go on from, then the best weights. A run that was killed before the state does the epoch again
and writes the same files once more; one killed after it finds by the figures that its best weights are out of date.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from matplotlib.figure import Figure
from torch import Tensor

from hlnet.data.sources import is_source
from hlnet.errors import UsageError
from hlnet.figures import BLUE, GREY, save, tidy
from hlnet.files import remove_drafts, replacing
from hlnet.model.base import TrainableNetwork
from hlnet.model.plain import PlainNet
from hlnet.store.checkpoint import load_checkpoint, save_checkpoint
from hlnet.store.names import BEST_FILE, MODEL_FILES, MODEL_FOLDER
from hlnet.training.state import STATE_FILE, Epoch, RunState
from hlnet.training.train_config import TrainConfig
from hlnet.tree.io import tree_to_json, write_tree

CONFIG_FILE, METRICS_FILE, TREE_FILE, LAST_FILE = (
    "config.toml",
    "metrics.csv",
    "classes.tree.json",
    "last.safetensors",
)

#: What a run folder holds besides; the state first, for without the others it is of no use.
RUN_FILES = (STATE_FILE, METRICS_FILE, "curves.png", BEST_FILE, LAST_FILE, CONFIG_FILE, TREE_FILE)

#: Settings that may change when a run goes on: they say how it runs, not what it computes.
FREE = {"workers", "skip_unreadable"}


class RunFolder:
    """The files of one run; with ``out=None`` nothing is written.

    Args:
        out: the folder.
        config: the run's settings.
        described: what else ``config.toml`` tells, such as the data's name.
        data: digests of the training and validation data; a run goes on with the same only.
    """

    def __init__(
        self,
        out: str | Path | None,
        config: TrainConfig,
        described: dict[str, Any] | None = None,
        data: Sequence[str] = (),
    ) -> None:
        self.out = None if out is None else Path(out)
        self.config = config
        self.described = described or {}
        self.data = list(data)

    @property
    def recipe(self) -> dict[str, Any]:
        """The settings as plain values: what the weights' provenance tells."""
        return {**self.described, "train": self.config.model_dump(mode="json")}

    @property
    def has_state(self) -> bool:
        """Whether there is something to go on from."""
        return self.out is not None and (self.out / STATE_FILE).exists()

    def clear(self, resume: bool = False) -> None:
        """Remove an earlier run's files, which must not stand beside this one's.

        Args:
            resume: this one was to go on, but had not come to its first state: keep what it may be started from again.
        """
        if self.out is None:
            return
        for name in RUN_FILES:
            if not (resume and name in (CONFIG_FILE, TREE_FILE)):
                (self.out / name).unlink(missing_ok=True)
        for name in MODEL_FILES:
            (self.out / MODEL_FOLDER / name).unlink(missing_ok=True)
        self._remove_drafts()

    def write_config(self, net: TrainableNetwork) -> None:
        """``config.toml``, from which the run can be repeated, and the tree beside it."""
        if self.out is None:
            return
        network = {"plain": isinstance(net, PlainNet), **net.config.model_dump(mode="json")}
        settings = {
            **{name: _anywhere(name, value) for name, value in self.described.items() if name != "network"},
            "tree": TREE_FILE,
            "network": network
            | {name: _anywhere(name, value) for name, value in self.described.get("network", {}).items()},
            "transform": net.transform.model_dump(mode="json"),
            "train": self.config.model_dump(mode="json"),
        }
        write_tree(net.tree, self.out / TREE_FILE)
        with replacing(self.out / CONFIG_FILE) as draft:
            draft.write_text(tomli_w.dumps(_told(settings)), encoding="utf-8")

    def write_epoch(self, net: TrainableNetwork, weights: dict[str, Tensor], history: Sequence[Epoch]) -> None:
        """The weights, the figures and their picture after an epoch."""
        if self.out is None:
            return
        from hlnet.training.run_folder import plot_curves

        save_checkpoint(net, self.out / LAST_FILE, weights)
        with replacing(self.out / METRICS_FILE) as draft, draft.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(type(history[0]).model_fields))
            writer.writeheader()
            writer.writerows(epoch.model_dump() for epoch in history)
        plot_curves(list(history), self.out / "curves.png")

    def write_best(self, net: TrainableNetwork, weights: dict[str, Tensor]) -> None:
        """The weights of the best epoch so far."""
        if self.out is not None:
            save_checkpoint(net, self.out / BEST_FILE, weights)

    def save_state(self, state: RunState, net: TrainableNetwork) -> None:
        """The state to go on from."""
        if self.out is not None:
            state.settings = self._settings(net)
            state.save(self.out)

    def load_state(self, net: TrainableNetwork) -> RunState:
        """Read it back.

        Raises:
            UsageError: if it is of a run with other settings.
            CheckpointError: if it is damaged.
        """
        assert self.out is not None
        self._remove_drafts()
        state = RunState.load(self.out)
        ours, theirs = (flattened(json.loads(text)) for text in (self._settings(net), state.settings))
        if ours["train.batch_size"] == "auto":
            ours["train.batch_size"] = theirs.get("train.batch_size")
        for name in sorted(ours.keys() | theirs.keys()):
            if ours.get(name) != theirs.get(name):
                setting = name.removeprefix("train.")
                raise UsageError(
                    f"the run in '{self.out}' began with {setting} {theirs.get(name)!r}, now it is {ours.get(name)!r}; "
                    f"give the same (hlnet train --resume --out {self.out} takes all settings from there), or start "
                    "anew (resume=False; --overwrite)"
                )
        return state

    def best(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Weights and metrics of the best epoch so far, as ``best.safetensors`` has them; empty if it is not there."""
        assert self.out is not None
        if not (self.out / BEST_FILE).exists():
            return {}, {}
        found = load_checkpoint(self.out / BEST_FILE)
        return dict(found.state_dict()), found.provenance.metrics

    def _settings(self, net: TrainableNetwork) -> str:
        train = self.config.model_dump(mode="json", exclude=FREE)
        return json.dumps(
            {
                "train": train,
                "network": net.config.model_dump(mode="json"),
                "transform": net.transform.model_dump(mode="json"),
                "tree": hashlib.sha256(json.dumps(tree_to_json(net.tree)).encode()).hexdigest()[:12],
                "data": self.data,
            }
        )

    def _remove_drafts(self) -> None:
        """Remove the drafts of a run that was killed while writing."""
        assert self.out is not None
        for folder in (self.out, self.out / MODEL_FOLDER):  # and no deeper, where other runs may be at work
            remove_drafts(folder)


def _anywhere(name: str, value: Any) -> Any:
    """A setting that is a path, such that it holds from any folder; all else as it is."""
    is_path = name in ("data_root", "trunk_weights") or (
        name == "data" and not is_source(str(value)) and Path(value).is_dir()
    )
    return str(Path(value).absolute()) if is_path and value else value


def _told(settings: dict[str, Any]) -> dict[str, Any]:
    """Without what is not set, which TOML cannot say."""
    return {
        name: _told(value) if isinstance(value, dict) else value
        for name, value in settings.items()
        if value is not None
    }


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names: ``{"train": {"lr": 1}}`` as ``{"train.lr": 1}``."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flattened(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def plot_curves(history: Sequence[Epoch], path: str | Path) -> None:
    """Loss and accuracy, training and validation, epoch by epoch."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    epochs = [epoch.epoch for epoch in history]
    marker = "o" if len(epochs) < 3 else None
    labels = {"loss": "cross-entropy", "top1": "top-1 accuracy, %"}
    for axes, what in zip(figure.subplots(1, 2), labels, strict=True):
        factor = 100 if what == "top1" else 1
        for part, name, colour in (("train", "training", GREY), ("val", "validation", BLUE)):
            values = [factor * getattr(epoch, f"{part}_{what}") for epoch in history]
            axes.plot(epochs, values, label=name, marker=marker, color=colour)
        tidy(axes, xlabel="epoch", ylabel=labels[what])
        axes.legend(frameon=False)
    save(figure, path)
