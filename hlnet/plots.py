"""Pictures: training curves, class trees, cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from hlnet.files import replacing

if TYPE_CHECKING:
    from hlnet.training import Epoch


def plot_curves(history: Sequence[Epoch], path: str | Path) -> None:
    """Loss and accuracy, training and validation, epoch by epoch."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss, top1 = figure.subplots(1, 2)
    epochs = [epoch.epoch for epoch in history]
    marker = "o" if len(epochs) < 3 else None
    for axes, what, label in ((loss, "loss", "cross-entropy"), (top1, "top1", "top-1 accuracy, %")):
        factor = 100 if what == "top1" else 1
        for part, name in (("train", "training"), ("val", "validation")):
            values = [factor * getattr(epoch, f"{part}_{what}") for epoch in history]
            axes.plot(epochs, values, label=name, marker=marker)
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    save(figure, path)


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure in one step."""
    with replacing(path) as draft:
        figure.savefig(draft, dpi=130)
