"""Output of the commands: results to stdout, as tables or JSON; progress and hints to stderr."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.tree import Tree

from hlnet.errors import counted
from hlnet.store.names import BEST_FILE, MODEL_FILE, MODEL_FOLDER

if TYPE_CHECKING:
    from hlnet.model.cost import Cost, Latency, Part, Profile
    from hlnet.tree.class_tree import ClassTree

#: In a pipe or a file nothing is squeezed into 80 columns, unless somebody asks for a width.
stdout = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200)
stderr = Console(stderr=True)


def hint(message: str) -> None:
    """A line on stderr, for a person."""
    stderr.print(escape(message), style="dim", highlight=False, soft_wrap=True)


def silence_hints() -> None:
    """Silence hints and the log: of several processes, only the first one reports."""
    stderr.quiet = True
    logging.getLogger("hlnet").setLevel(logging.ERROR)


@contextmanager
def no_hints() -> Iterator[None]:
    """Keep the library's log to itself for a while."""
    log = logging.getLogger("hlnet")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def hints(messages: Sequence[str], more: str, limit: int = 12) -> None:
    """Several hints; ``more`` tells where to find those beyond the limit."""
    for message in messages[:limit]:
        hint(message)
    if len(messages) > limit:
        hint(f"… and {len(messages) - limit} more notes: {more}")


def hint_at_stale_copy(path: str | Path) -> None:
    """Warn if the run folder's model folder does not hold the file that has just been written."""
    folder = Path(path).parent / MODEL_FOLDER
    if Path(path).name == BEST_FILE and (folder / MODEL_FILE).exists():
        hint(f"'{folder}' does not hold this yet; hlnet.store.hub.write_model_folder writes it again")


def show(message: str) -> None:
    """A line of the results."""
    stdout.print(escape(message), highlight=False, soft_wrap=True)


def result(as_json: bool, data: Any, show: Callable[[], None]) -> None:
    """The results of a command: for machines one JSON object and nothing else, for a person text and tables.

    Args:
        as_json: whether ``--json`` was given.
        data: the object, or a function that gives it.
        show: prints the same for a person.
    """
    if as_json:
        show_json(data() if callable(data) else data)
    else:
        show()


def show_json(data: Any) -> None:
    """One JSON object, nothing else."""
    plain = data.model_dump(mode="json") if hasattr(data, "model_dump") else data
    sys.stdout.write(json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table: columns of text to the left, columns of figures, but for the first, to the right."""
    stdout.print(escape(title), style="bold", highlight=False)
    table = Table()
    for number, column in enumerate(columns):
        figures = number > 0 and all(_is_figure(row[number]) for row in rows)
        table.add_column(escape(column), justify="right" if figures else "left")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    stdout.print(table)


def _is_figure(cell: str) -> bool:
    """Whether a cell holds a number, perhaps with a unit, an interval or a sign before it; or nothing."""
    return re.match(r"[<>+\-–−×]?\s*\d", cell) is not None or cell.strip() in ("", "–", "-")


def percent(share: float | None, digits: int = 2) -> str:
    """``0.8612`` as ``86.12 %``; a dash for ``None``."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def show_profile(profile: Profile) -> None:
    """Plain, full and expert side by side, then the reductions."""
    columns = [(name, cost) for name in ("plain", "full", "expert") if (cost := getattr(profile, name)) is not None]
    costs = [cost for _, cost in columns]
    rows = [
        ["classes", *(str(cost.classes) for cost in costs)],
        ["nodes per level", *(", ".join(map(str, cost.nodes)) or "–" for cost in costs)],
        *map(list, zip(["parameters, M", "GMACs", "weights, MB"], *map(cost_cells, costs), strict=True)),
    ]
    measured: list[Latency] = next((cost.latency for cost in costs if cost.latency), [])
    for position, run in enumerate(measured):
        label = f"ms, batch {run.batch_size}, {run.threads} thread{'s' if run.threads > 1 else ''}"
        rows.append([label, *(_latency(cost, position) for cost in costs)])
    side = "x".join(map(str, profile.input_size[1:]))
    show_table(f"Cost of one {side} image", ["", *(name for name, _ in columns)], rows)
    if profile.full.parts:
        parts = [[part.name, str(part.nodes), *cost_cells(part)[:2]] for part in profile.full.parts]
        show_table("Full network by level", ["", "nodes", "parameters, M", "GMACs"], parts)
    changes = list(profile.reductions.items())
    labels = [
        label for label in ("params", "gmacs", "bytes", "latency") if any(label in change for _, change in changes)
    ]
    words = {"params": "parameters", "gmacs": "GMACs", "bytes": "weights", "latency": "latency"}
    table = [
        [name, *(f"{100 * change[label]:+.1f} %" if label in change else "–" for label in labels)]
        for name, change in changes
    ]
    show_table("Change", ["", *(words[label] for label in labels)], table)
    hint_at_cost(profile.expert or profile.full, profile.plain)


def hint_at_cost(cost: Cost, plain: Cost, lean: str | None = None) -> None:
    """Warn if a network costs more than the plain one, the timm model that its trunk comes from.

    Args:
        cost, plain: of both.
        lean: a preset on the same backbone that costs less.
    """
    operations, parameters = cost.gmacs / plain.gmacs, cost.params / plain.params
    if max(operations, parameters) > 1:
        hint(
            f"the network costs {operations:.2f} times the GMACs and {parameters:.2f} times the parameters of the "
            f"plain one; {f'--backbone {lean}, ' if lean else ''}narrower branches (--widths) or fewer classes make it "
            "cheaper"
        )


def cost_cells(cost: Cost | Part) -> list[str]:
    """Parameters in millions, GMACs and weights in MB."""
    from hlnet.model.cost import figure

    return [f"{cost.params / 1e6:.3f}", figure(cost.macs / 1e9), f"{cost.bytes / 1e6:.1f}"]


def _latency(cost: Cost, position: int) -> str:
    return f"{cost.latency[position].median_ms:.1f}" if len(cost.latency) > position else "–"


def show_tree(tree: ClassTree, limit: int = 60, kept: Collection[int] = (), depth: int | None = None) -> None:
    """The tree, down to ``depth`` or as many levels as ``limit`` lines hold; the paths to ``kept`` classes in full."""
    root = Tree(f"[bold]trunk[/] · nodes per level: {', '.join(map(str, tree.counts))}")
    chosen = [set(row) for row in tree.rows(kept)] if kept else [set()] * tree.num_levels
    depth = depth or max(1, sum(1 for end in tree.offsets[1:] if end <= limit))
    below = Counter(part for leaf in tree.leaves for part in _prefixes(leaf.path))
    indices = {leaf.path: leaf.index for leaf in tree.leaves}
    parents: list[Tree | None] = [root]
    shown = 0
    for level, (row, marked) in enumerate(zip(tree.levels, chosen, strict=True), start=1):
        here: list[Tree | None] = []
        hidden = 0
        for i, node in enumerate(row):
            parent = parents[node.parent]
            if node.continued:
                here.append(parent)
                continue
            room = level <= depth and shown < limit
            if parent is None or not (i in marked or room):
                hidden += level <= depth
                here.append(None)
                continue
            shown += room
            label = f"[bold red]{escape(node.name)} ●[/]" if i in marked else escape(node.name)
            if node.path in indices:
                label += f" [dim]{indices[node.path]}[/]"
            elif level >= depth and below[node.path] > 1:
                label += f" [dim]{counted(below[node.path], 'class')}[/]"
            here.append(parent.add(label))
        if hidden:
            root.add(f"[dim]… {hidden} more at level {level}[/]")
        parents = here
    stdout.print(root)


def _prefixes(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]


def show_log() -> None:
    """Let the library's log, from notes on, appear as hints."""

    class Hints(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            hint(f"{'warning: ' if record.levelno >= logging.WARNING else ''}{record.getMessage()}")

    log = logging.getLogger("hlnet")
    if not log.handlers:
        log.addHandler(Hints(logging.INFO))
        log.setLevel(logging.INFO)


@contextmanager
def progress() -> Iterator[Progress]:
    """A progress bar on stderr; silent where that is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        yield bar


def phases(bar: Progress) -> Callable[[str, int, int], None]:
    """A callback for library calls that draws one bar for each phase."""
    tasks: dict[str, TaskID] = {}

    def on_step(phase: str, step: int, steps: int) -> None:
        if phase not in tasks:
            tasks[phase] = bar.add_task(phase, total=steps)
        bar.update(tasks[phase], completed=step, total=steps)

    return on_step


class TrainingProgress:
    """Two bars: the whole run with its time left, and the phase with images a second and memory.

    Args:
        bar: where to draw.
        epochs: of the run.
        images: in an epoch of training.
    """

    def __init__(self, bar: Progress, epochs: int, images: int) -> None:
        self.bar, self.images = bar, images
        self.run = bar.add_task("run", total=epochs)
        self.phase = bar.add_task("start", total=1)
        self.name, self.began, self.first = "", 0.0, 0

    def batch_done(self, phase: str, step: int, steps: int) -> None:
        """After a batch: ``step`` of ``steps`` of a phase."""
        if phase != self.name:
            self.name, self.began, self.first = phase, time.perf_counter(), step
        seconds = time.perf_counter() - self.began
        speed = ""
        if step > self.first and phase.startswith("epoch "):
            speed = f"  {self.images * (step - self.first) / steps / seconds:.0f} images/s"
        self.bar.update(self.phase, description=f"{phase}{speed}{_memory()}", completed=step, total=steps)
        if phase.startswith("epoch "):
            self.bar.update(self.run, completed=int(phase.split()[1]) - 1 + step / steps)

    def epoch_done(self) -> None:
        """Start a new phase even if its name is the same."""
        self.name = ""


def _memory() -> str:
    """Peak memory: the GPU's if there is one in use, else the process's where the system tells."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return f"  {torch.cuda.max_memory_allocated() / 1e9:.1f} GB GPU"
    try:
        import resource
    except ImportError:  # Windows
        return ""
    unit = 1 if sys.platform == "darwin" else 1024
    return f"  {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB"


@contextmanager
def quiet(on: bool) -> Iterator[None]:
    """Nothing for a person on stderr, while ``on``."""
    before, stderr.quiet = stderr.quiet, on or stderr.quiet
    try:
        yield
    finally:
        stderr.quiet = before
