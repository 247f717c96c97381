"""``make-expert --calibrate``: the step that teaches an expert to say "none of these", and what is told of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress

from hlnet.calibration import calibrate, check_outside
from hlnet.checkpoint import load_checkpoint, save_checkpoint
from hlnet.cli import options, output
from hlnet.data import Split, TreeData, eval_transform, load_data, loader
from hlnet.inference import optimize
from hlnet.provenance import Score
from hlnet.tree import ClassTree
from hlnet.trunk import InputTransform


class Calibration:
    """The step that fits a threshold and a temperature to an expert's file, on labelled images.

    Args:
        data, split, root: the images, as :func:`hlnet.load_data` takes them; they hold other classes, too.
        max_false_positive, score: as :func:`hlnet.calibrate` takes them.
        device: where the expert runs.
        batch_size, workers: as :func:`hlnet.loader` takes them.
        bar: where to show how far it is; a second one cannot be opened beside it.

    Raises:
        UsageError, DataError: if there are no such images.
    """

    def __init__(
        self,
        data: str,
        split: Split = "val",
        root: Path | None = None,
        max_false_positive: float = 0.01,
        score: Score | None = None,
        device: str = "auto",
        batch_size: int = 64,
        workers: int = 2,
        bar: Progress | None = None,
    ) -> None:
        self.images = load_data(data, split, root)
        self.max_false_positive, self.score, self.bar = max_false_positive, score, bar
        self.device, self.batch_size, self.workers = options.pick_device(device), batch_size, workers

    def check(self, tree: ClassTree, transform: InputTransform) -> None:
        """Whether it can work for an expert, before that is cut; no image is read.

        Raises:
            DataError: if there are no images of the expert's classes, or too few of others.
        """
        check_outside(self._data(tree, transform), self.max_false_positive)

    def _data(self, tree: ClassTree, transform: InputTransform) -> TreeData:
        return TreeData(self.images, tree, eval_transform(transform), outside=True)

    def __call__(self, draft: Path) -> dict[str, Any]:
        net = load_checkpoint(draft, self.device)
        data = self._data(net.tree, net.transform)
        batches = loader(data, self.batch_size, self.workers)
        task = self.bar.add_task("calibrating", total=len(batches)) if self.bar else None

        def on_batch() -> None:
            if self.bar is not None and task is not None:
                self.bar.advance(task)

        net.provenance = calibrate(optimize(net), data, batches, self.max_false_positive, self.score, on_batch)
        save_checkpoint(net, draft)
        return {"calibration": net.provenance.model_dump(mode="json", include={"temperature", "rejection"})}


def show_calibration(names: Sequence[str], told: Sequence[dict[str, Any]]) -> None:
    """What was measured on the calibration images.

    Args:
        names: of the experts.
        told: what the step told of each.
    """
    figures = [_figures(one["calibration"]) for one in told]
    title = '"None of these", as fitted'
    if len(figures) == 1:
        output.show_table(title, ["", *names], [[label, text] for label, text in figures[0].items()])
    else:
        labels = ["threshold", "TPR", "FPR", "AUROC", "FPR at 95 % TPR"]
        rows = [[name, *(found[label] for label in labels)] for name, found in zip(names, figures, strict=True)]
        output.show_table(title, ["expert", *labels], rows)
        output.hint("TPR: own images accepted, FPR: others accepted; --json has more")
    output.hint(
        "these are the images that it was fitted on: hlnet eval on another split tells how it does on fresh ones"
    )


def _figures(found: dict[str, Any]) -> dict[str, str]:
    fit, temperature = found["rejection"], found["temperature"]
    metrics = fit["metrics"]
    shown = {
        "images of its own": f"{metrics['own_images']:.0f}",
        "images of others": f"{metrics['outside_images']:.0f}",
        "AUROC": f"{metrics['auroc']:.4f}",
        "FPR at 95 % TPR": output.percent(metrics["fpr_at_95_tpr"]),
        "threshold": f"{fit['score']} {fit['threshold']:.4g}",
        "TPR": output.percent(metrics["own_accepted"]),
        "FPR": output.percent(metrics["outside_accepted"]),
        "FPR, 95 % bound": output.percent(metrics["false_positive_bound"]),
    }
    if temperature is not None:
        shown["temperature"] = f"{temperature:.3f}"
        shown["calibration error"] = f"{output.percent(metrics['ece_before'])} → {output.percent(metrics['ece'])}"
    return shown
