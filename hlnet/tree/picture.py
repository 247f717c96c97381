"""Pictures of class trees: a drawing like the paper's Fig. 3, and a page to unfold and search.

Notable here: names cannot meet, so none is ever moved aside. A class has a row of its own, a level a band as wide as
its longest name, and a group's name stands on its stem; the stems of one band are at least a row apart, since a group
stands in the middle of its classes. Many classes go into several columns, parted at the seams of large families.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.path import Path as Line

from hlnet.errors import UsageError
from hlnet.figures import BLUE, GREY, RED, UNDATED, own_style, save, text_width
from hlnet.files import replacing
from hlnet.templates import render
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.hierarchy import Hierarchy
from hlnet.tree.nodes import Node

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALE = "#bfc5cc"  # lines; still seen where a picture of 1000 classes is shrunk to a page
MOST_ROWS = 2000
UNFOLDED = 150  # classes that a page shows at first
DPI, SMALLEST, MARGIN = 130, 7.0, 14.0  # the latter in points


def draw_tree(tree: ClassTree, path: str | Path, kept: Iterable[int] = (), title: str | None = None) -> None:
    """Draw the tree from the trunk to the classes, as in the paper's Fig. 3: the paths to ``kept`` red, the rest pale.

    A large tree is drawn in several columns; an expert that is a small part of it is drawn once more, in a frame. Of
    more than 2000 classes only levels above are drawn, with the number of classes at the ends. Long names are
    shortened. The same tree gives the same bytes, and the text of an SVG stays text.

    Args:
        tree: the class tree.
        path: file to write: ``.svg``, ``.pdf`` or ``.png`` (130 dots an inch, letters of 7 points or more).
        kept: positions of an expert's classes, in the order of the logits; none by default.
        title: written above.

    Raises:
        UsageError: if the name has another ending, or more than 2000 nodes lie at level 1.
        SelectionError: if a position is out of range.
        RunError: if the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "pets.svg"
        >>> draw_tree(ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle"]}), path, kept=[0, 1])
        >>> "siamese" in path.read_text(encoding="utf-8")
        True
    """
    suffix = Path(path).suffix.lower()
    if suffix not in UNDATED:
        raise UsageError(f"'{path}': a tree is drawn as .svg, .png or .pdf; give a name with one of these endings")
    figure = tree_figure(tree, kept, title)
    save(figure, path, DPI)


@own_style()
def tree_figure(tree: ClassTree, kept: Iterable[int] = (), title: str | None = None) -> Figure:
    """The drawing of :func:`draw_tree` as a matplotlib figure, for a notebook.

    Example:
        >>> figure = tree_figure(ClassTree.parallel(["cat", "dog"]), kept=[1])
        >>> [text.get_text() for text in figure.axes[0].texts][-2]
        'expert: 1 of 2 classes · nodes kept 1, 1, 1'
    """
    kept = sorted(set(kept))
    chosen = tree.rows(kept) if kept else ()
    forest = _Forest.of(tree, chosen)
    ends = len(forest.rows[-1])
    zooming = len(tree.classes) > 200 and 0 < len(kept) <= min(100, len(tree.classes) / 20)
    shape = 1.6 if zooming else 1.3  # width over height, of the whole tree
    sheets = [_Sheet.of(forest, columns) for columns in range(1, 2 + min(16, ends // 40))]
    sheet = min(sheets, key=lambda sheet: abs(log(sheet.width / sheet.height / shape)))
    zoom = None
    if zooming:
        expert = tree.prune(kept)
        forest = _Forest.of(expert, [range(count) for count in expert.counts])
        zooms = [_Sheet.of(forest, columns) for columns in range(1, 2 + len(kept) // 8)]
        zoom = max(zooms, key=lambda zoom: zoom.magnified(sheet))
    return _figure(sheet, zoom, _notes(tree, sheet, chosen), title)


def tree_page(tree: ClassTree, path: str | Path, kept: Iterable[int] = (), title: str | None = None) -> None:
    """Write the tree as one HTML page, to unfold and to search by name, id or original index; it needs no network.

    Args:
        tree: the class tree, of any size; one of more than 150 classes is folded at first.
        path: file to write, ``.html``.
        kept: positions of an expert's classes, whose paths are marked; none by default.
        title: of the page; default ``"Class tree"``.

    Raises:
        UsageError: if the name does not end in ``.html``.
        SelectionError: if a position is out of range.
        RunError: if the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "pets.html"
        >>> tree_page(ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle"]}), path)
        >>> "<summary>" in path.read_text(encoding="utf-8")
        True
    """
    if Path(path).suffix.lower() not in {".html", ".htm"}:
        raise UsageError(f"'{path}': the page of a tree is HTML; give a name that ends in .html")
    kept = sorted(set(kept))
    chosen = tree.rows(kept) if kept else ()
    marked = {tree.indices[i] for i in kept}
    nodes = list(Hierarchy.of(tree).walk())
    items: dict[int, dict[str, Any]] = {}
    for node in reversed(nodes):  # children before parents
        below = [items.pop(id(child)) for child in node.children]
        counts = {what: sum(item[what] for item in below) for what in ("classes", "kept")}
        if not below:
            counts = {"classes": 1, "kept": int(node.index in marked)}
        items[id(node)] = {"node": node, "items": below, **counts}
    page = render(
        "tree/picture.html.j2",
        title=title or "Class tree",
        tree=tree,
        items=items[id(nodes[0])]["items"],
        kept=[len(row) for row in chosen],
        continued=any(leaf.continued for leaf in tree.leaves),
        unfolded=len(tree.classes) <= UNFOLDED,
        unfold_kept=len(kept) <= UNFOLDED,
    )
    with replacing(path) as draft:
        draft.write_text(page, encoding="utf-8", errors="replace")


# ---------------------------------------------------------------------- what is drawn


@dataclass(frozen=True)
class _Forest:
    """The levels that are drawn; the nodes of the last of them are the ends.

    Attributes:
        rows: the nodes, level by level.
        names: theirs, ``""`` for those that only lead to a class.
        above: for each level, the ancestor of each end.
        kept: ends that lead to a kept class.
        pale: whether there is an expert to stand out from the rest.
    """

    rows: tuple[tuple[Node, ...], ...]
    names: list[list[str]]
    above: list[list[int]]
    kept: set[int]
    pale: bool

    @classmethod
    def of(cls, tree: ClassTree, chosen: Sequence[Iterable[int]]) -> _Forest:
        depth = sum(count <= MOST_ROWS for count in tree.counts)
        if not depth:
            raise UsageError(
                f"level 1 has {tree.counts[0]} nodes, and a picture has room for {MOST_ROWS}; write the tree as a page"
            )
        rows = tree.levels[:depth]
        classes = {leaf.path for leaf in tree.leaves}
        names = [["" if node.path in classes else node.name for node in row] for row in rows]
        sizes = Counter(_ancestors(tree.levels)[depth - 1])
        names[-1] = [
            node.name + (f"\0 ({sizes[i]} classes)" if sizes[i] > 1 else "") for i, node in enumerate(rows[-1])
        ]
        return cls(rows, names, _ancestors(rows), set(chosen[depth - 1]) if chosen else set(), bool(chosen))


class _Branch(NamedTuple):
    """A node as drawn: from its parent's fork at ``(x, fork)`` up or down, then along its stem to ``(end, y)``."""

    x: float
    fork: float
    end: float
    y: float
    level: int
    name: str
    kept: bool
    dotted: bool


@dataclass
class _Sheet:
    """A tree laid out in columns. All lengths are in ems; the top left corner is (0, 0)."""

    forest: _Forest
    width: float
    height: float = 0
    branches: list[_Branch] = field(default_factory=list)
    heads: list[tuple[float, str]] = field(default_factory=list)
    repeats: int = 0

    @classmethod
    def of(cls, forest: _Forest, columns: int) -> _Sheet:
        sheet = cls(forest, width=text_width("trunk") + 1.2)
        for first, last in pairwise(_cuts(forest, columns)):
            sheet._add(first, last, railed=columns > 1)
        return sheet

    def _add(self, first: int, last: int, railed: bool) -> None:
        """Lay out the ends ``first`` to ``last`` as the next column; a rail along the top leads to several."""
        forest = self.forest
        count, depth = len(forest.rows[-1]), len(forest.rows)
        pitch = 1.6 if count <= 30 else 1.3
        gap = 0.7 if 2 * len(forest.rows[0]) <= count else 0.0  # between the families of level 1
        y, places = 3.0, {}
        for i in range(first, last):
            y += gap if i > first and forest.above[0][i] != forest.above[0][i - 1] else 0
            places[i] = y
            y += pitch
        self.height = max(self.height, y)
        x, forks = self.width, {0: 0.0 if railed else (places[first] + places[last - 1]) / 2}
        for level, (row, above) in enumerate(zip(forest.rows, forest.above, strict=True), start=1):
            is_last = level == depth
            limit = max(8, min(16, 60 / depth)) if not is_last else 26 if count <= 200 else 18
            below: dict[int, list[int]] = {}  # the ends of each node
            for i in range(first, last):
                below.setdefault(above[i], []).append(i)
            names = {node: _fit(forest.names[level - 1][node], limit) for node in below}
            if first and above[first - 1] == above[first]:
                names[above[first]] = f"↳ {names[above[first]]}"
                self.repeats += 1
            longest = max(map(text_width, names.values()))
            stem = max(max(1.5, min(6, 24 / depth)) if count <= 30 else 1.5, 0 if is_last else longest + 1.2)
            forks_here = {}
            for node, ends in below.items():
                place = forks_here[node] = (places[ends[0]] + places[ends[-1]]) / 2
                kept = not forest.kept.isdisjoint(ends)
                branch = _Branch(
                    x, forks[row[node].parent], x + stem, place, level, names[node], kept, row[node].continued
                )
                self.branches.append(branch)
            head = f"level {level}"
            if is_last or text_width(head) < stem - 0.6:
                self.heads.append((x + (stem + 0.6 if is_last else 0.5), head))
            x, forks = x + stem, forks_here
        self.width = x + max(longest, text_width(head)) + 2.6

    @property
    def font(self) -> float:
        """Size of the letters, in points."""
        return max(SMALLEST, min(10.0, 280 / len(self.forest.rows[-1])))

    def magnified(self, whole: _Sheet) -> float:
        """Size of the letters that lets this sheet take a fair part of the picture of the whole."""
        return min(2.5, 0.6 * whole.width / self.width, 0.3 * whole.height / self.height)


def _ancestors(rows: Sequence[Sequence[Node]]) -> list[list[int]]:
    """For each level, the ancestor of each node of the last."""
    above = [list(range(len(rows[-1])))]
    for row in reversed(rows[1:]):
        above.insert(0, [row[i].parent for i in above[0]])
    return above


def _cuts(forest: _Forest, columns: int) -> list[int]:
    """Where columns start and the last ends: near equal shares, at the seam of two large families if one is at hand."""
    ends, cuts = len(forest.rows[-1]), [0]
    share = ends / columns

    def cost(i: int, goal: float) -> float:
        shared = sum(above[i - 1] == above[i] for above in forest.above)
        return shared / len(forest.above) + 4 * abs(i - goal) / share

    for goal in (number * share for number in range(1, columns)):
        near = range(max(cuts[-1] + 1, round(goal - share / 10)), round(goal + share / 10) + 1)
        cuts.append(min(near, key=lambda i, goal=goal: cost(i, goal)))  # type: ignore[misc]
    return [*cuts, ends]


def _notes(tree: ClassTree, sheet: _Sheet, chosen: Sequence[Sequence[int]]) -> list[tuple[str, str]]:
    """The legend: lines of ``(kind of line before it, text)``."""
    classes = f"{len(tree.classes)} {'classes' if len(tree.classes) > 1 else 'class'}"
    drawn = len(sheet.forest.rows)
    notes = [("", f"{classes} · nodes per level {', '.join(map(str, tree.counts))}")]
    if drawn < tree.num_levels:
        what = "level 1 is" if drawn == 1 else f"levels 1 to {drawn} are"
        notes.append(("", f"only {what} drawn, with the number of classes at the ends"))
    if chosen:
        kept = ", ".join(str(len(row)) for row in chosen)
        notes.append(("kept", f"expert: {len(chosen[-1])} of {classes} · nodes kept {kept}"))
    if any(branch.dotted for branch in sheet.branches):
        notes.append(("dotted", "continued: a class that ended at a level above goes on"))
    if sheet.repeats:
        notes.append(("", "↳ goes on from the column before"))
    return notes


@lru_cache(maxsize=8192)
def _fit(name: str, limit: float) -> str:
    """The name, shortened to ``limit`` ems; what follows a NUL is kept."""
    name, _, tail = name.partition("\0")
    if len(name) > 200 or text_width(name) > limit:
        length = bisect_right(range(1, 200), limit, key=lambda end: text_width(f"{name[:end]}…"))
        name = name[: max(length, 1)].rstrip(" ,") + "…"
    return name + tail


# ---------------------------------------------------------------------- drawing


def _figure(sheet: _Sheet, zoom: _Sheet | None, notes: list[tuple[str, str]], title: str | None) -> Figure:
    """The whole tree; below it the expert's own in a frame, and the legend."""
    font = sheet.font
    size = max(8.0, min(20.0, font * sheet.width / 90))  # of the letters around the tree
    head = _fit(" ".join(filter(str.isprintable, (title or "").split())), max(font * sheet.width / size / 1.4, 50))
    top = MARGIN + (2.4 * size if head else 0)
    bottom = top + font * sheet.height + 1.5 * size
    left, foot = MARGIN, 1.5 * size * len(notes)
    if zoom:
        large = max(SMALLEST, font * zoom.magnified(sheet))
        frame = (large * zoom.width + 2 * size, large * zoom.height + 3 * size)
        left, foot = left + frame[0] + 2 * size, max(foot, frame[1])
    longest = max(text_width(text) for _, text in notes) + 3
    width = MARGIN + max(MARGIN + font * sheet.width, left + longest * size, MARGIN + text_width(head) * 1.4 * size)
    height = bottom + foot + MARGIN
    figure = Figure(figsize=(width / 72, height / 72))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    if head:
        axes.text(MARGIN, MARGIN, head, fontsize=1.4 * size, va="top", parse_math=False)
    _draw(axes, sheet, font, MARGIN, top)
    if zoom:
        axes.add_patch(Rectangle((MARGIN, bottom), *frame, fill=False, edgecolor=BLUE, lw=size / 7))
        axes.text(MARGIN + size, bottom + size, "the expert alone", fontsize=size, color=BLUE, va="center_baseline")
        _draw(axes, zoom, large, MARGIN + size, bottom + 2 * size)
    for row, (kind, text) in enumerate(notes):
        y, colour = bottom + 1.5 * size * (row + 0.5), RED if kind == "kept" else "black"
        if kind:
            look: dict[str, Any] = {"color": RED} if kind == "kept" else {"color": GREY, "ls": ":"}
            axes.plot([left, left + 2.2 * size], [y, y], lw=size / 6, **look)
        axes.text(left + (3 * size if kind else 0), y, text, fontsize=size, va="center_baseline", color=colour)
    return figure


def _draw(axes: Axes, sheet: _Sheet, font: float, left: float, top: float) -> None:
    """Draw one sheet with its top left corner at this place, in letters of this size."""
    last, small = len(sheet.forest.rows), max(SMALLEST, 0.8 * font)
    line, letters = (PALE, GREY) if sheet.forest.pale else (BLUE, "black")

    def at(x: float, y: float) -> tuple[float, float]:
        return left + font * x, top + font * y

    trunk = (left + text_width("trunk") * small / 2, at(0, sheet.branches[0].fork)[1])
    paths: dict[tuple[bool, bool], list[Line]] = {}
    dots: dict[tuple[bool, bool], list[tuple[float, float]]] = {}
    for branch in sheet.branches:
        way, goal = [at(branch.x, branch.fork)], at(branch.end, branch.y)
        lines = paths.setdefault((branch.kept, branch.dotted), [])
        lines.append(_elbow([trunk, *way] if branch.level == 1 else way, goal, 0.4 * font))
        dots.setdefault((branch.kept, branch.dotted and branch.level < last), []).append(goal)
        if branch.level == last:
            place, va = at(branch.end + 0.6, branch.y), "center_baseline"
        else:
            place, va = at(branch.x + 0.5, branch.y - 0.34), "baseline"
        if branch.name:
            colour = RED if branch.kept else letters
            axes.text(*place, branch.name, fontsize=font, color=colour, va=va, parse_math=False)
    for (kept, dotted), lines in sorted(paths.items()):
        look: dict[str, Any] = {"edgecolors": RED if kept else line, "linewidths": (0.22 if kept else 0.14) * font}
        look |= {"linestyles": ":" if dotted else "-", "facecolors": "none", "snap": True, "zorder": 2 + kept}
        axes.add_collection(PathCollection(lines, **look))
    for (kept, small_dot), places in sorted(dots.items()):
        colour, width = RED if kept else line, (0.3 if small_dot else 0.45) * font
        axes.plot(*zip(*places, strict=True), "o", color=colour, ms=width, zorder=4)
    for x, head in sheet.heads:
        axes.text(*at(x, 1.4), head, fontsize=small, color=GREY, va="center_baseline")
    axes.plot(*trunk, "s", color="black", ms=0.9 * font, zorder=5)
    axes.text(trunk[0], trunk[1] + 0.7 * font, "trunk", fontsize=small, ha="center", va="top")


def _elbow(way: list[tuple[float, float]], goal: tuple[float, float], radius: float) -> Line:
    """A line along ``way``, then up or down and round a corner to the goal."""
    (x, y), (end, level) = way[-1], goal
    radius = min(radius, abs(level - y), end - x)
    bend = [(x, level - radius if level > y else level + radius), (x, level), (x + radius, level)]
    return Line([*way, *bend, goal], [Line.MOVETO] + len(way) * [Line.LINETO] + 2 * [Line.CURVE3] + [Line.LINETO])
