"""Pictures: training curves, costs, cues, examples."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.style
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from hlnet.files import replacing

if TYPE_CHECKING:
    from hlnet.profiling import Profile
    from hlnet.sweep import Split
    from hlnet.training import Epoch

STYLE = {"svg.fonttype": "none", "svg.hashsalt": "hlnet", "pdf.fonttype": 42}
#: What else would differ from one time to the next.
UNDATED: dict[str, dict[str, Any]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {}}
RENDERER: Any = RendererAgg(1, 1, 72)  # type: ignore[no-untyped-call] # to measure letters with
BLUE, RED, GREY, LIGHT = "#3465a4", "#c4443c", "#8a8a8a", "#d5d9de"


@dataclass(frozen=True)
class Example:
    """One image with the shares that each class gets under each kind of cue, and the class that is cued."""

    image: Any
    title: str
    shares: dict[str, list[float]]
    cues: dict[str, str]
    classes: tuple[str, ...]


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


def plot_sweep(sweep: Sequence[tuple[float, float, float]], path: str | Path) -> None:
    """Accuracy against the attention signal: ``(signal, right cues, wrong cues)``."""
    figure = Figure(figsize=(5.4, 3.6), layout="constrained")
    axes = figure.subplots()
    signals, right, wrong = zip(*sweep, strict=True)
    axes.plot(signals, [100 * share for share in right], "o-", color=BLUE, label="the right class is cued")
    axes.plot(signals, [100 * share for share in wrong], "o-", color=RED, label="a wrong class is cued")
    axes.axvline(1, color=GREY, ls=":", lw=1)
    axes.annotate("neutral", (1, axes.get_ylim()[0]), xytext=(4, 4), textcoords="offset points", color=GREY)
    tidy(axes, xlabel="attention signal (gain)", ylabel="top-1 accuracy, %")
    axes.legend(frameon=False)
    save(figure, path)


def plot_costs(found: Profile, path: str | Path) -> None:
    """Parameters, GMACs and latency of plain, full and expert."""
    columns = [(name, cost) for name in ("plain", "full", "expert") if (cost := getattr(found, name)) is not None]
    measures = {
        "parameters, M": [cost.params / 1e6 for _, cost in columns],
        "MACs, M": [1e3 * cost.gmacs for _, cost in columns],
    }
    if all(cost.latency for _, cost in columns):
        run = columns[0][1].latency[0]
        label = f"ms, batch {run.batch_size}, {run.threads} thread{'s' if run.threads > 1 else ''}"
        measures[label] = [cost.latency[0].median_ms for _, cost in columns]
    figure = Figure(figsize=(3 * len(measures), 3.2), layout="constrained")
    for axes, (label, values) in zip(figure.subplots(1, len(measures)), measures.items(), strict=True):
        bars = axes.bar([name for name, _ in columns], values, color=[GREY, BLUE, RED][: len(columns)], width=0.65)
        axes.bar_label(bars, fmt="%.3g", padding=2)
        axes.margins(y=0.12)
        axes.set_title(label, fontsize=11)
        axes.set_yticks([])
        axes.spines[["top", "right", "left"]].set_visible(False)
    save(figure, path)


def plot_splits(splits: Sequence[Split], path: str | Path) -> None:
    """GMACs and parameters of full network and expert, by the stage that the trunk ends at."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    stages = [f"{split.stage}\n{split.reduction}x" for split in splits]
    for axes, (field, label, unit) in zip(
        figure.subplots(1, 2), (("gmacs", "GMACs", 1.0), ("params", "parameters, M", 1e6)), strict=True
    ):
        for name, colour in (("full", BLUE), ("expert", RED)):
            costs = [getattr(split.costs, name) for split in splits]
            if all(costs):
                axes.plot(stages, [getattr(cost, field) / unit for cost in costs], "o-", color=colour, label=name)
        axes.axhline(getattr(splits[0].costs.plain, field) / unit, color=GREY, ls="--", lw=1, label="plain network")
        for place, split in enumerate(splits):
            if split.chosen:
                axes.axvline(place, color=GREY, ls=":", lw=1)
        axes.set_ylim(bottom=0)
        tidy(axes, xlabel="trunk ends after", ylabel=label)
    axes.legend(frameon=False)
    save(figure, path)


def plot_examples(examples: Sequence[Example], path: str | Path) -> None:
    """Each image above the shares of its classes under each kind of cue."""
    kinds = list(examples[0].shares) if examples else []
    figure = Figure(figsize=(1.9 * max(1, len(examples)), 1.7 + 1.15 * len(kinds)), layout="constrained")
    if not examples:
        figure.text(0.5, 0.5, "no image was mistaken", ha="center")
        save(figure, path)
        return
    grid = figure.subplots(1 + len(kinds), len(examples), squeeze=False, height_ratios=[1.5] + [1] * len(kinds))
    for column, example in enumerate(examples):
        top = grid[0][column]
        top.imshow(example.image, cmap="gray")
        top.set_title(example.title)
        top.axis("off")
        truth = example.title.removeprefix("a ")
        for row, kind in enumerate(kinds, start=1):
            axes, shares = grid[row][column], example.shares[kind]
            best = shares.index(max(shares))
            colours = [LIGHT] * len(shares)
            colours[best] = BLUE if example.classes[best] == truth else RED
            axes.bar(example.classes, shares, color=colours)
            if kind in example.cues:
                axes.set_title(f"cue: {example.cues[kind]}", fontsize=8, pad=2)
            axes.set(ylim=(0, 1), yticks=[])
            axes.tick_params(length=0, labelsize=7)
            axes.spines[["top", "right", "left"]].set_visible(False)
            if column == 0:
                axes.set_ylabel(kind)
    save(figure, path)


@contextmanager
def own_style() -> Iterator[None]:
    """The same picture whatever the user's settings are; boxes for scripts that the font lacks, in silence."""
    with matplotlib.style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        yield


@lru_cache(maxsize=8192)
def text_width(text: str, weight: str = "normal") -> float:
    """Width of a text in ems."""
    width: float = RENDERER.get_text_width_height_descent(text, FontProperties(size=72, weight=weight), False)[0]
    return width / 72


def save(figure: Figure, path: str | Path, dpi: int = 130, **settings: Any) -> None:
    """Write a figure in one step; the same figure gives the same bytes, and the text of an SVG stays text."""
    with own_style(), replacing(path) as draft:
        figure.savefig(draft, dpi=dpi, metadata=UNDATED.get(draft.suffix.lower()), **settings)


def tidy(axes: Any, **labels: str) -> None:
    """Label the axes, with a light grid and no box around."""
    axes.set(**labels)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
