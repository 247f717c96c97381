"""The confusion matrix as a picture, ordered by the class tree, so that mistakes within a family lie near the diagonal.

Notable here: as many names are written as there is room for. Where classes are too many, their place is taken by the
lowest groups that are wide enough for a line of text; at the right stand the groups of the first level that has some.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, PowerNorm, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from hlnet.errors import UsageError, counted
from hlnet.figures import BLUE, GREY, RED, own_style, save
from hlnet.files import replacing
from hlnet.tree.class_tree import ClassTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

#: What a confusion matrix can be written as.
CONFUSION_FORMATS = (".png", ".svg", ".pdf", ".csv")
DPI, DARK, EMPTY = 200, "#5c0f0a", "#e6e6e6"
LINE, LONGEST = 7.0, 30  # points of height that a line of text takes; letters of a name
WIDEST = 11.0  # inches of the matrix
MOST_COUNTS = 25  # classes up to which counts are written into the cells
MOST_LINES = 80  # groups of a level up to which lines part them


def write_confusion(matrix: Tensor, tree: ClassTree, path: str | Path, title: str | None = None) -> None:
    """Write a confusion matrix: a picture (:func:`confusion_figure`), or its counts as a table.

    A table's first line and first column hold the names of the classes; rows are the right classes.

    Args:
        matrix: ``[K, K]``, counts, as :func:`hlnet.evaluation.metrics.accuracy.confusion_matrix` gives them.
        tree: its leaves are the rows and columns.
        path: file to write: ``.png``, ``.svg``, ``.pdf`` or ``.csv``.
        title: written above the picture.

    Raises:
        UsageError: if the name has another ending, or the matrix is not of this tree.
        RunError: if the file cannot be written.

    Example:
        >>> import tempfile
        >>> import torch
        >>> path = Path(tempfile.mkdtemp()) / "pets.csv"
        >>> write_confusion(torch.tensor([[3, 1], [0, 2]]), ClassTree.parallel(["cat", "dog"]), path)
        >>> path.read_text(encoding="utf-8").splitlines()
        ['class,cat,dog', 'cat,3,1', 'dog,0,2']
    """
    suffix = Path(path).suffix.lower()
    if suffix not in CONFUSION_FORMATS:
        raise UsageError(f"'{path}': a confusion matrix is written as {', '.join(CONFUSION_FORMATS)}")
    if suffix == ".csv":
        counts = _checked(matrix, tree).tolist()
        with replacing(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["class", *tree.classes])
            rows.writerows([name, *row] for name, row in zip(tree.classes, counts, strict=True))
        return
    figure = confusion_figure(matrix, tree, title)
    save(figure, path, DPI, bbox_inches="tight", pad_inches=0.1)


def confusion_figure(matrix: Tensor, tree: ClassTree, title: str | None = None) -> Figure:
    """A confusion matrix as a matplotlib figure: a row for each class, a column for each answer, in the tree's order.

    Colours are shares of a row, right answers blue and mistakes red; the scale of the latter is a square root, so that
    rare mistakes are seen, and ends at the largest share, or at 20 %. Rows of classes without images are grey. Up to 25
    classes, the counts stand in the cells. Lines part the groups of levels 1 and 2, up to 80 of them. Names are
    shortened to 30 letters.

    Args:
        matrix, tree, title: as :func:`write_confusion` takes them.

    Raises:
        UsageError: if the matrix is not of this tree.

    Example:
        >>> import torch
        >>> tree = ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle"]})
        >>> figure = confusion_figure(torch.tensor([[3, 1, 0], [1, 3, 0], [0, 0, 4]]), tree)
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['tabby', 'siamese', 'beagle']
    """
    counts = _checked(matrix, tree)
    with own_style():
        return _drawn(counts, tree, title)


# ---------------------------------------------------------------------- helpers


class _Span(NamedTuple):
    """Classes that lie side by side, of one node: from ``first`` to before ``behind``."""

    name: str
    first: int
    behind: int

    @property
    def size(self) -> int:
        return self.behind - self.first

    @property
    def middle(self) -> float:
        return (self.first + self.behind - 1) / 2


def _checked(matrix: Tensor, tree: ClassTree) -> NDArray[np.int64]:
    classes = len(tree.classes)
    if matrix.shape != (classes, classes):
        raise UsageError(
            f"a confusion matrix of {classes} classes must be [{classes}, {classes}], not {list(matrix.shape)}"
        )
    counts: NDArray[np.int64] = matrix.cpu().numpy()
    return counts


def _drawn(counts: NDArray[np.int64], tree: ClassTree, title: str | None) -> Figure:
    classes = len(counts)
    # Counts in cells take more room than names beside them.
    side = max(1.8, 0.36 * classes) if classes <= MOST_COUNTS else min(WIDEST, max(5.4, 0.125 * classes))
    margin = 0.07 * LONGEST + 0.4  # inches, for the longest names; what stays empty is cut off
    figure = Figure(figsize=(side + 2 * margin, side + margin + 1.2))
    width, height = figure.get_size_inches()

    def place(left: float, bottom: float, wide: float, high: float) -> Axes:
        """Axes at a place in inches from the matrix's upper left corner."""
        box = ((margin + left) / width, (margin + side + bottom) / height, wide / width, high / height)
        return figure.add_axes(box)

    axes = place(0, -side, side, side)
    totals = counts.sum(1, keepdims=True)
    shares, right = counts / np.maximum(totals, 1), np.eye(classes, dtype=bool)
    largest = max(0.2, float(shares[~right].max(initial=0)))
    right_scale, mistake_scale = _scale(1.0, 1.0, "white", BLUE), _scale(0.5, largest, "white", RED, DARK)
    colours = np.where(right[..., None], right_scale.to_rgba(shares), mistake_scale.to_rgba(shares))
    colours[totals[:, 0] == 0] = to_rgba(EMPTY)
    axes.imshow(colours, interpolation="nearest")
    if classes <= MOST_COUNTS:
        for row, column in zip(*counts.nonzero(), strict=True):
            ink = "white" if colours[row, column, :3].mean() < 0.6 else "black"
            axes.text(column, row, str(counts[row, column]), color=ink, ha="center", va="center", fontsize=6.5)
    for left, name, scale in ((0, "right", right_scale), (0.55, "mistakes", mistake_scale)):
        bar = figure.colorbar(scale, cax=place(left * side, 0.1, 0.45 * side, 0.08), orientation="horizontal")
        bar.ax.xaxis.set_ticks_position("top")
        bar.ax.xaxis.set_major_locator(MaxNLocator(4, min_n_ticks=2))
        bar.ax.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}")
        bar.ax.tick_params(length=2, pad=1, labelsize=6)
        bar.ax.set_title(f"{name}, % of row", fontsize=7, pad=3)
    told = title or f"{counted(int(counts.sum()), 'image')} of {counted(classes, 'class')}"
    figure.text(margin / width, (margin + side + 0.62) / height, told, fontsize=9, fontweight="bold")
    _part(axes, tree, 72 * side / classes)
    return figure


def _scale(gamma: float, largest: float, *colours: str) -> ScalarMappable:
    """Colours of shares from 0 to the largest."""
    return ScalarMappable(PowerNorm(gamma, 0, largest), LinearSegmentedColormap.from_list("shares", colours))


def _part(axes: Axes, tree: ClassTree, points: float) -> None:
    """Lines between groups, and names at rows and columns, which are so many points high."""
    classes, levels = len(tree.leaves), _levels(tree)
    for spans, line in zip(levels[:-1], (0.9, 0.4), strict=False):
        if 1 < len(spans) < min(classes, MOST_LINES):
            edges = [span.first - 0.5 for span in spans[1:]]
            axes.hlines(edges, -0.5, classes - 0.5, color=GREY, lw=line)
            axes.vlines(edges, -0.5, classes - 0.5, color=GREY, lw=line)
    least = LINE / points  # rows that a line of text takes
    named = levels[-1] if least <= 1 else [found for span in levels[0] for found in _wide(span, levels[1:], least)]
    size = min(9.0, 0.85 * max(points, LINE))
    names, middles = [_shortened(span.name) for span in named], [span.middle for span in named]
    axes.set_xticks(middles, names, rotation=90, fontsize=size)
    axes.set_yticks(middles, names, fontsize=size)
    axes.tick_params(length=2, pad=2)
    axes.set_xlabel("answer")
    axes.set_ylabel("class")
    grouping = next((spans for spans in levels if len(spans) > 1), [])
    for span in sorted(set(grouping) - set(named), key=lambda span: span.first):
        if span.size >= least:
            axes.text(1.01 * classes - 0.5, span.middle, _shortened(span.name), va="center", fontsize=size)


def _levels(tree: ClassTree) -> list[list[_Span]]:
    """The nodes of each level."""
    sizes = np.asarray(tree.ancestors().sum(axis=0)).ravel()
    found = []
    for row, (start, end) in zip(tree.levels, pairwise(tree.offsets), strict=True):
        edges = [0, *np.cumsum(sizes[start:end]).tolist()]
        found.append([_Span(node.name, *ends) for node, ends in zip(row, pairwise(edges), strict=True)])
    return found


def _wide(span: _Span, below: Sequence[Sequence[_Span]], least: float) -> Iterator[_Span]:
    """The lowest groups of these classes that are wide enough for a name, where most classes are in such ones."""
    if below:
        inside = [found for found in below[0] if span.first <= found.first and found.behind <= span.behind]
        wide = [found for found in inside if found.size >= least]
        if sum(found.size for found in wide) >= 0.8 * span.size:
            for found in wide:
                yield from _wide(found, below[1:], least)
            return
    if span.size >= least:
        yield span


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
