"""Tables of ``hlnet eval``: accuracy, by class and by tree; "none of these"; cues; and one network against another."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hlnet.cli.shared import options, output
from hlnet.errors import counted, some

if TYPE_CHECKING:
    from hlnet.evaluation.descent import DescentReport
    from hlnet.evaluation.evaluate import Evaluation, EvaluationComparison
    from hlnet.evaluation.metrics.accuracy import Accuracy
    from hlnet.evaluation.metrics.comparison import Interval
    from hlnet.evaluation.metrics.rejection import Detection
    from hlnet.model.base import Network
    from hlnet.model.cost import Cost

#: Most classes that are shown without --per-class; of more, the worst and the best few.
MOST_CLASSES, FEW = 20, 5


@dataclass(frozen=True)
class Evaluations:
    """Evaluations of one network, or of several on the same images.

    Attributes:
        evaluations: by the name of the network, the main one first.
        comparisons: of the main one with others, by their names.
        costs: by name; empty for one network.
        rivals: names that the main one was to be compared with.
        baseline: the plain one of these.
        per_class: whether all classes are shown.
        net: the main network.
        descents: of the main network, if they were asked for.
    """

    evaluations: Mapping[str, Evaluation]
    comparisons: Mapping[str, EvaluationComparison]
    costs: Mapping[str, Cost]
    rivals: Sequence[str]
    baseline: str | None
    per_class: bool
    net: Network
    descents: DescentReport | None = None

    @property
    def first(self) -> Evaluation:
        """The main network's."""
        return next(iter(self.evaluations.values()))

    def detections(self) -> dict[str, Detection]:
        """Those that have a ROC curve, by the names shown."""
        short = _short_names(self.evaluations)
        runs = {short[name]: run.detection for name, run in self.evaluations.items()}
        return {name: detection for name, detection in runs.items() if detection and detection.roc}

    def json(self) -> dict[str, Any]:
        """All of it, for machines."""
        runs = {name: run.model_dump(mode="json") for name, run in self.evaluations.items()}
        for name, cost in self.costs.items():
            runs[name]["cost"] = cost.model_dump(mode="json", include={"params", "gmacs", "bytes"})
        first = runs.pop(next(iter(runs)))
        tests = {name: test.model_dump(mode="json") for name, test in self.comparisons.items()}
        if self.descents is not None:
            first["descent"] = self.descents.model_dump(mode="json")
        return first | ({"beside": runs} if runs else {}) | ({"compare": tests} if tests else {})

    def show(self, files: Mapping[str, Path]) -> None:
        """The same as tables; then the files that were written, by what they hold."""
        short = _short_names(self.evaluations)
        runs = {short[name]: run for name, run in self.evaluations.items()}
        show_evaluations(runs, {short[name]: cost for name, cost in self.costs.items()}, self.per_class)
        for name, test in self.comparisons.items():
            show_comparison(next(iter(runs)), short[name], test)
        if self.rivals and not self.comparisons:
            output.hint("with one class every answer is right, so the networks cannot be compared")
        if self.descents is not None:
            _show_descents(self.descents)
        self._hint_at_doubts()
        for content, path in files.items():
            output.hint(f"the {content} is in '{path}'")

    def _hint_at_doubts(self) -> None:
        """Point out what a reader of the tables may overlook."""
        first, classes = self.first, self.net.tree.classes
        if self.net.provenance.rejection and first.classes < len(classes):
            output.hint(f"the stored threshold is for all {len(classes)} classes together: --classes leaves it out")
        if first.detection and first.detection.outside and first.classes == len(classes):
            absent = [name for name in classes if name not in first.neutral.per_class]
            if absent:
                output.hint(
                    f"no images of {some(absent)}: under another name, they would have counted as of other classes"
                )
        if self.baseline is not None and first.cued and not self.evaluations[self.baseline].cued:
            output.hint(
                "the plain network was not cued: with --reliability, cues act on it as a bias (see hlnet attend)"
            )


def show_evaluations(evaluations: dict[str, Evaluation], costs: dict[str, Cost], per_class: bool) -> None:
    """One column a network, and more for each that was cued."""
    lead = next(iter(evaluations.values()))
    columns, runs, owners = [], [], []
    for name, run in evaluations.items():
        for column, accuracy in _runs(run).items():
            columns.append(name if column == "no cue" else f"{name}, {column}") if costs else columns.append(column)
            runs.append(accuracy)
            owners.append(name)
    rows = _accuracy(runs) if lead.classes > 1 else []  # of one class, it is always 100 %
    if any(run.ece is not None for run in evaluations.values()):
        errors = [
            evaluations[name].ece if run is evaluations[name].neutral else None
            for name, run in zip(owners, runs, strict=True)
        ]
        rows.append(["calibration error", *map(output.percent, errors)])
    if costs:
        cells = [output.cost_cells(costs[name])[:2] for name in owners]
        rows += map(list, zip(["parameters, M", "GMACs"], *cells, strict=True))
    if rows:
        title = f"{counted(lead.images, 'image')} of {counted(lead.classes, 'class')}"
        output.show_table(f"Accuracy on {title}" if lead.classes > 1 else title, ["", *columns], rows)
    if lead.classes > 1:
        _show_classes(columns, runs, per_class)
    if lead.detection is not None:
        _show_detection({name: run.detection for name, run in evaluations.items() if run.detection})
    elif lead.left_out:
        output.hint(f"{counted(lead.left_out, 'image')} of other classes left out")
    for name, run in evaluations.items():
        if run.cued is not None:
            _show_cues(f"{name}: " if costs else "", run)


def _show_descents(report: DescentReport) -> None:
    """Descents next to the full network."""
    rows = [
        ["top-1", output.percent(report.top1), output.percent(report.full_top1)],
        ["agreement with the full network", output.percent(report.agreement, 2), ""],
        ["images that stop after the rows", output.percent(report.rows_alone, 0), ""],
        ["GMACs, mean", f"{report.gmacs:.4g}", f"{report.full_gmacs:.4g}"],
        ["ms per image, mean", f"{report.ms:.3g}", f"{report.full_ms:.3g}"],
    ]
    output.show_table(f"Descents on {counted(report.images, 'image')}", ["", "descent", "full network"], rows)


def show_comparison(first: str, second: str, comparison: EvaluationComparison) -> None:
    """One network against another, image by image."""
    right = "cues" if comparison.wrong is None else "all cues right"
    kinds = {"no cue": comparison.neutral, right: comparison.cued, "all cues wrong": comparison.wrong}
    runs = {name: run for name, run in kinds.items() if run is not None}
    rows = [
        ["top-1, points", *(f"{100 * run.top1.mean:+.2f}" for run in runs.values())],
        ["95 % interval", *(_ends(run.top1, 100, 2) for run in runs.values())],
        [f"only {first} right", *(str(run.only_first) for run in runs.values())],
        [f"only {second} right", *(str(run.only_second) for run in runs.values())],
        ["p (McNemar, exact)", *("< 0.0001" if run.p_value < 1e-4 else f"{run.p_value:.4f}" for run in runs.values())],
    ]
    heights = [run.lca_height for run in runs.values()]
    if any(heights):
        rows.append(["LCA height", *("–" if height is None else f"{height.mean:+.3f}" for height in heights)])
        rows.append(["95 % interval", *("–" if height is None else _ends(height, 1, 3) for height in heights)])
    output.show_table(
        f"{first} minus {second}, on the same {counted(comparison.neutral.images, 'image')}", ["", *runs], rows
    )
    output.hint("intervals and p cover the choice of images, not the seed of a training")


# ---------------------------------------------------------------------- helpers


def _short_names(names: Collection[str]) -> dict[str, str]:
    """Short names for the heads of columns; the full ones where two short ones are the same."""
    short = {name: options.short_name(name) for name in names}
    return short if len(set(short.values())) == len(short) else {name: name for name in names}


def _ends(interval: Interval, factor: float, digits: int) -> str:
    return f"{factor * interval.low:+.{digits}f} to {factor * interval.high:+.{digits}f}"


def _runs(run: Evaluation) -> dict[str, Accuracy]:
    """A network's columns: without cues, and with them."""
    columns = {"no cue": run.neutral}
    if run.cued is None:
        return columns
    if run.cued.prior is not None:
        columns["prior alone"] = run.cued.prior
    if run.cued.wrong is None:
        return columns | {("cues" if run.cued.images else "prior"): run.cued.accuracy}
    return columns | {"all cues right": run.cued.accuracy, f"all wrong ({run.cued.wrong_cues})": run.cued.wrong}


def _accuracy(runs: Sequence[Accuracy]) -> list[list[str]]:
    """The figures of all classes together; those by the tree where it groups something."""
    rows = [["top-1", *(output.percent(run.top1) for run in runs)]]
    if runs[0].top5 is not None:
        rows.append(["top-5", *(output.percent(run.top5) for run in runs)])
    rows.append(["mean over classes", *(output.percent(run.macro) for run in runs)])
    by_tree = [run.hierarchical for run in runs if run.hierarchical is not None]
    if len(by_tree) < len(runs):
        return rows

    first = by_tree[0]
    for name, heights in (
        (f"LCA height (0 to {first.tree_height})", [metrics.lca_height for metrics in by_tree]),
        ("LCA height of mistakes", [metrics.lca_height_mistakes for metrics in by_tree]),
    ):
        rows.append([name, *("–" if height is None else f"{height:.3f}" for height in heights)])
    if any(metrics.precision != metrics.recall for metrics in by_tree):
        rows.append(["hierarchical precision", *(output.percent(metrics.precision) for metrics in by_tree)])
        rows.append(["hierarchical recall", *(output.percent(metrics.recall) for metrics in by_tree)])
    rows.append(["hierarchical F", *(output.percent(metrics.f1) for metrics in by_tree)])
    levels = [(level, nodes) for level, nodes in enumerate(first.level_nodes[:-1]) if nodes > 1]
    for level, nodes in levels:
        name = f"level {level + 1} ({counted(nodes, 'node')})"
        rows.append([name, *(output.percent(metrics.level_accuracy[level]) for metrics in by_tree)])
    for level, _ in levels:
        name = f"level {level + 1}, likeliest node"
        rows.append([name, *(output.percent(metrics.level_accuracy_summed[level]) for metrics in by_tree)])
    rows.append(["path consistency", *(output.percent(metrics.path_consistency) for metrics in by_tree)])
    return rows


def _show_classes(columns: Sequence[str], runs: Sequence[Accuracy], all_of_them: bool) -> None:
    """Top-1 by class; of many classes, the worst and the best few of the first column."""
    first = runs[0].per_class
    rows = {name: [name, *(output.percent(run.per_class[name], 1) for run in runs)] for name in first}
    if all_of_them or len(rows) <= MOST_CLASSES:
        output.show_table("Top-1 by class", ["", *columns], list(rows.values()))
        return
    ordered = [rows[name] for name in sorted(first, key=lambda name: first[name])]
    shown = [*ordered[:FEW], ["…", *([""] * len(runs))], *ordered[-FEW:]]
    output.show_table(f"Top-1 by class: the {FEW} worst and the {FEW} best", ["", *columns], shown)
    output.hint(f"all {len(rows)} classes: --per-class, or --json")


def _show_cues(name: str, run: Evaluation) -> None:
    """The source of the cues, and the change in top-1 that they made."""
    cued = run.cued
    assert cued is not None
    change = 100 * (cued.accuracy.top1 - run.neutral.top1)
    if not cued.images:
        output.show(f"{name}prior from {cued.source}, on all of {counted(run.images, 'image')}: {change:+.2f} points.")
        return
    how = "hard cues" if cued.gmacs is not None else " and ".join(cued.modes)
    told = f"{name}{how} from {cued.source}, {cued.images} of {counted(run.images, 'image')} cued: "
    if cued.wrong is None:
        named = "" if cued.named is None else f"; {100 * cued.named:.1f} % of the cues named the image's class"
        told += f"{change:+.2f} points{named}."
    else:
        cost = 100 * (cued.wrong.top1 - run.neutral.top1)
        told += f"{change:+.2f} points with every cue right, {cost:+.2f} with every cue wrong"
        if cued.mixed is not None and cued.wrong_share is not None:
            share = 100 * (cued.mixed - run.neutral.top1)
            told += f", {share:+.2f} ({100 * cued.mixed:.2f} %) with {100 * cued.wrong_share:g} % of them wrong"
        told += "."
    if cued.prior is not None:
        alone = 100 * (cued.prior.top1 - run.neutral.top1)
        told += f" The prior, on all images, is in these; alone it makes {alone:+.2f} points."
    output.show(told)
    if cued.gmacs is not None:
        output.show(f"Only the cued classes ran: {cued.gmacs:.3f} GMACs per image on average.")


def _show_detection(detections: dict[str, Detection]) -> None:
    """Separation of in-distribution and out-of-distribution images."""
    runs, lead = list(detections.values()), next(iter(detections.values()))
    rows = [["score", *(run.score for run in runs)]]
    if lead.outside:
        rows.append(["AUROC", *("–" if run.auroc is None else f"{run.auroc:.4f}" for run in runs)])
        rows.append(["FPR at 95 % TPR", *(output.percent(run.fpr_at_95_tpr) for run in runs)])
    if any(run.threshold is not None for run in runs):
        rows.append(["threshold", *("–" if run.threshold is None else f"{run.threshold:.4g}" for run in runs)])
        rows.append(["own classes accepted (TPR)", *(output.percent(run.own_accepted) for run in runs)])
        if lead.accuracy_accepted != 1:
            rows.append(["top-1 among these", *(output.percent(run.accuracy_accepted) for run in runs)])
        if lead.outside:
            rows.append(["other classes accepted (FPR)", *(output.percent(run.outside_accepted) for run in runs)])
    title = f'"None of these": {counted(lead.own, "image")} of its own classes, {lead.outside} of others'
    output.show_table(title, ["", *detections], rows)
    if lead.max_false_positive == 1:
        output.hint("the threshold was fitted without images of other classes: for these, nothing was promised")
    elif lead.max_false_positive is not None:
        output.hint(f"the threshold was fitted to accept at most {100 * lead.max_false_positive:g} % of other images")
    if not lead.outside:
        output.hint("the data hold no images of other classes, so the share of these that is accepted is not known")
