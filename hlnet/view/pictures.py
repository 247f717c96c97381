"""Pictures of what a network sees: feature maps, class activation maps, and an image under several cues.

Notable here: rows that may be compared share a scale, which stands at their end. Maps are drawn as the coarse grids
that they are, in colours that are told apart by lightness alone.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from hlnet.figures import BLUE, GREY, LIGHT, RED, own_style, text_width
from hlnet.view.look import CueRow, MapRow, Numbers, View, scale_end

CELL, GAP, APART, NAMES, BAR, EDGE = 1.45, 0.07, 0.16, 2.0, 0.13, 0.12  # inches
LINE = 0.24  # of a bar
#: Points: names, what else there is to say, figures on scales.
NAME, SMALL, TICK = 10.0, 8.5, 8.0
TOP_CLASSES, MOST_BARS = 5, 8
NOTE = "#555555"


@dataclass(frozen=True)
class Look:
    """How the maps of a figure are drawn, and what they are."""

    colours: str
    unit: str
    note: str


ACTIVITY = Look("viridis", "activity", "mean magnitude over a block's channels")
EVIDENCE = Look("magma", "share of the logit", "Grad-CAM: what speaks for the class, black where nothing does")
CHANNELS = Look("", "", "a block's three most varying channels as red, green and blue, each over its own range")
SCALED = "maps along one colour bar share its scale, from 0 to the 99.5th percentile of their values"


@own_style()
def map_figure(view: View) -> Figure:
    """Images beside the feature maps of each node (paper, Fig. 4)."""
    return _grid(view, view.maps, CHANNELS if view.maps[0].values.ndim == 4 else ACTIVITY)


@own_style()
def activation_figure(view: View) -> Figure:
    """Images beside the class activation maps of each class, by layer."""
    return _grid(view, view.activations, EVIDENCE)


@own_style()
def cue_figure(view: View, image: int) -> Figure:
    """One image without a cue and under each, side by side: cued branches above, probabilities below."""
    classes = _bar_classes(view, image)
    half, tall = (CELL + 0.6) / 2, CELL * view.pictures.shape[1] / view.pictures.shape[2]
    column, step, bars = 2 * half, 2 * half + 0.6, LINE * len(classes)
    left, top = EDGE + NAMES, 0.55
    below = top + max(tall, half + 0.35) + APART
    sheet = _Sheet(left + (1 + len(view.cues)) * step, below + bars + 0.5)
    sheet.image(left, top, CELL, tall, view.pictures[image])
    sheet.text(left, top - 0.1, "no cue", view.names[image], room=step - 0.1)
    for line, place in enumerate(classes):
        name = _fitting(view.classes[place], NAMES - 0.1, SMALL)
        sheet.write(left - 0.06, below + LINE * (line + 0.5), name, size=SMALL, ha="right", va="center")
    _bars(sheet.axes(left, below, column, bars), classes, view.shares[image], ())
    for number, cue in enumerate(view.cues, start=1):
        x = left + number * step
        sheet.text(x, top - 0.1, f"cue: {cue.node}", cue.told, room=step - 0.1)
        if cue.branches:
            _cued_branch(sheet, x, top, half, cue, image)
        _bars(sheet.axes(x, below, column, bars), classes, cue.shares[image], cue.classes)
    note = "blue: the most probable class; ●: cued."
    if view.cues and view.cues[0].branches:
        note += f" Maps: {ACTIVITY.note}, of the cued class or, among several, the most probable one"
        modes = dict.fromkeys(cue.mode for cue in view.cues)
        note += ", with one scale a cue." if "gain" in modes else "."
        note += "".join(f" A {mode} acts on logits, not on features." for mode in modes if mode != "gain")
    sheet.note(note)
    return sheet.figure


# ---------------------------------------------------------------------- helpers


class _Sheet:
    """A figure on which things are placed in inches, from the top left."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height))

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        box = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def image(self, x: float, y: float, width: float, height: float, values: Numbers, **drawn: Any) -> None:
        axes = self.axes(x, y, width, height)
        axes.imshow(values, interpolation="nearest", aspect="auto", **drawn)
        axes.axis("off")

    def write(self, x: float, y: float, text: str, size: float, **drawn: Any) -> None:
        self.figure.text(x / self.width, 1 - y / self.height, text, fontsize=size, parse_math=False, **drawn)

    def text(self, x: float, y: float, name: str, *notes: str, room: float, ha: str = "left") -> None:
        """A name, and smaller what else there is to say, as much as has room; ``y`` is their foot."""
        told = [_fitting(note, room, SMALL) for note in notes if note]
        name = _fitting(name, room, NAME, "bold")
        self.write(x, y - 0.16 * len(told), name, size=NAME, weight="bold", ha=ha, va="baseline")
        for line, note in enumerate(told):
            self.write(x, y - 0.16 * (len(told) - 1 - line), note, size=SMALL, color=NOTE, ha=ha, va="baseline")

    def note(self, text: str) -> None:
        """At the foot, in as many lines as its width takes."""
        lines = textwrap.wrap(text, int(13.4 * (self.width - 2 * EDGE)))
        self.write(EDGE, self.height - 0.1, "\n".join(lines), size=TICK, color=NOTE, va="bottom", linespacing=1.25)

    def scale(self, x: float, y: float, width: float, height: float, top: float, look: Look) -> None:
        """A colour bar from 0 to ``top``, upright or lying as it is tall or wide."""
        lying = width > height
        axes = self.axes(x, y, width, height)
        mappable = ScalarMappable(Normalize(0, top), look.colours)
        bar = self.figure.colorbar(mappable, cax=axes, orientation="horizontal" if lying else "vertical")
        bar.outline.set_visible(False)
        bar.set_ticks([0, top], labels=["0", f"{top:.2g}" if top < 100 else f"{top:.0f}"])
        bar.ax.tick_params(labelsize=TICK, length=2, pad=2)
        bar.set_label(look.unit, fontsize=SMALL, labelpad=-6 if lying else -4)


def _grid(view: View, rows: Sequence[MapRow], look: Look) -> Figure:
    """Images in the first row and maps below, or for one or two images and not many maps, in columns."""
    images = len(view.names)
    turned = images <= 2 and len(rows) <= 8
    tall = CELL * view.pictures.shape[1] / view.pictures.shape[2]
    groups = list(dict.fromkeys(row.level for row in rows))
    levels = [0, *(1 + groups.index(row.level) for row in rows)]
    left, head = EDGE + NAMES, 0.7 if turned else 0.55
    foot, side = 0.55 + (0.45 if turned and look.colours else 0), 0.35 if turned else 0.85

    def at(row: int, image: int) -> tuple[float, float]:
        i, j = (row, image) if turned else (image, row)
        apart = APART * levels[row]
        return left + i * (CELL + GAP) + turned * apart, head + j * (tall + GAP) + (not turned) * apart

    right, bottom = at(len(rows), images - 1)
    sheet = _Sheet(right + CELL + side, bottom + tall + foot)

    def name(row: int, *told: str) -> None:
        x, y = at(row, 0)
        if turned:
            sheet.text(x, y - 0.09, *told, room=CELL)
        else:
            sheet.text(left - 0.1, y + tall / 2 + 0.14, *told, room=NAMES - 0.1, ha="right")

    name(0, "seen" if turned else "what the network sees", "" if turned else "cropped and resized")
    for image, picture in enumerate(view.pictures):
        x, y = at(0, image)
        sheet.image(x, y, CELL, tall, picture)
        best = int(view.shares[image].argmax())
        share = f": {100 * view.shares[image][best]:.0f} %"
        room = NAMES - 0.1 if turned else CELL
        told = _fitting(view.classes[best], room - text_width(share) * SMALL / 72, SMALL) + share
        if turned:
            sheet.text(left - 0.1, y + tall / 2 + 0.14, view.names[image], told, room=room, ha="right")
        else:
            sheet.write(x, y - 0.25, _fitting(view.names[image], room, SMALL), size=SMALL, color=NOTE)
            sheet.write(x, y - 0.08, told, size=SMALL)
    first = 1
    for level, group in groupby(rows, key=lambda row: row.level):
        found = list(group)
        last = first + len(found) - 1
        drawn: dict[str, Any] = {}
        if look.colours:
            top = scale_end(row.values for row in found)
            drawn = {"cmap": look.colours, "vmin": 0, "vmax": top}
            (x, y), (right, bottom) = at(first, 0), at(last, images - 1)
            if turned:
                sheet.scale(x, bottom + tall + 0.1, right + CELL - x, BAR, top, look)
            else:
                sheet.scale(right + CELL + 0.12, y, BAR, bottom + tall - y, top, look)
        for place, row in enumerate(found, start=first):
            *above, node = row.path.split("/")
            name(place, node, "/".join(above), _layer(level))
            for image, values in enumerate(row.values):
                sheet.image(*at(place, image), CELL, tall, values, **drawn)
        first = last + 1
    sheet.note(f"{look.note}; {SCALED}" if look.colours else look.note)
    return sheet.figure


def _layer(level: int) -> str:
    return {0: "at the trunk's output", -1: "at the last stage"}.get(level, f"level {level}")


def _bar_classes(view: View, image: int) -> list[int]:
    """The classes that lead without a cue, then those that lead under one, then those that are named."""
    chosen = dict.fromkeys(np.argsort(-view.shares[image], kind="stable")[:TOP_CLASSES].tolist())
    for cue in view.cues:
        chosen |= dict.fromkeys([int(cue.shares[image].argmax())])
    for cue in view.cues:
        named = sorted(cue.classes, key=lambda place: -cue.shares[image][place])
        chosen |= dict.fromkeys(named[:1])
    return list(chosen)[:MOST_BARS]


def _bars(axes: Axes, classes: Sequence[int], shares: Numbers, cued: Sequence[int]) -> None:
    """Horizontal bars: the leading class blue, cued ones with a dot, shares at the ends."""
    best = int(shares.argmax())
    values = [float(shares[place]) for place in classes]
    bars = axes.barh(range(len(classes)), values, 0.75, color=[BLUE if place == best else LIGHT for place in classes])
    told = ["<1 %" if value < 0.01 else f"{100 * value:.0f} %" for value in values]
    told = [f"{share} ●" if place in cued else share for share, place in zip(told, classes, strict=True)]
    for label, place in zip(axes.bar_label(bars, told, fontsize=SMALL, padding=2), classes, strict=True):
        if place in cued:
            label.set_color(RED)
    axes.set(xlim=(0, 1.35), ylim=(len(classes) - 0.5, -0.5), xticks=[], yticks=[])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.spines["left"].set_color(GREY)


def _cued_branch(sheet: _Sheet, x: float, y: float, side: float, cue: CueRow, image: int) -> None:
    """A branch without and with the cue, or where a cue leaves features alone, once."""
    branch = cue.branches[image]
    top = scale_end([branch.before, branch.after])
    drawn = {"cmap": ACTIVITY.colours, "vmin": 0, "vmax": top}
    name = _fitting(branch.path.rsplit("/", 1)[-1], 2 * side, SMALL)
    sheet.write(x, y + 0.1, name, size=SMALL)
    changed = cue.mode == "gain"
    parts = {"without": branch.before, "with the cue": branch.after} if changed else {"as without": branch.before}
    for when, values in parts.items():
        sheet.image(x, y + 0.18, side - GAP, side - GAP, values, **drawn)
        sheet.write(x, y + 0.18 + side + 0.07, when, size=SMALL, color=NOTE)
        x += side
    sheet.scale(x - GAP + 0.05, y + 0.18, 0.09, side - GAP, top, ACTIVITY)


def _fitting(text: str, room: float, size: float, weight: str = "normal") -> str:
    """As much of a text as ``room`` inches hold, at a size in points."""
    shorter = (_short(text, most) for most in range(min(len(text), 80), 2, -1))
    return next((name for name in shorter if text_width(name, weight) * size / 72 <= room), _short(text, 3))


def _short(text: str, most: int) -> str:
    """The text, on one line and not longer than this; what is left out is in the middle."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[: most - 1 - half]}…{text[-half:]}"
