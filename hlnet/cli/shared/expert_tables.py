"""Tables of ``make-expert``: one expert or several, and budgets; the same for JSON."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hlnet.cli.shared import output
from hlnet.cli.shared.calibration_tables import show_calibration
from hlnet.errors import counted
from hlnet.expert.candidates import Candidate, candidates, classes_by_node, compared, fitting, floor, one_class

if TYPE_CHECKING:
    from hlnet.expert.write import ExpertSource
    from hlnet.model.cost import Part
    from hlnet.tree.class_tree import ClassTree
    from hlnet.tree.construct.budget import Budget

COLUMNS = ["classes", "parameters, M", "GMACs", "MB"]
ROWS = 40


@dataclass(frozen=True)
class MadeExperts:
    """The results of ``make-expert``.

    Attributes:
        source: the network.
        choices: positions of each expert's classes, by its name.
        wanted: the experts with their costs, where these were counted.
        budget: the limit that was given.
        several: whether they may be more than one.
        reports: findings of the steps on each file that was written.
        out: the file or folder written, if any.
        counted: whether a single expert's costs are shown beside the full and the plain network's.
    """

    source: ExpertSource
    choices: Mapping[str, Collection[int]]
    wanted: Sequence[Candidate]
    budget: Budget | None
    several: bool
    reports: Sequence[dict[str, Any]]
    out: Path | None
    counted: bool

    @property
    def kept(self) -> Collection[int]:
        """The classes of the first expert."""
        return next(iter(self.choices.values()))

    def json(self) -> dict[str, Any]:
        """All of it, for machines."""
        tree, budget = self.source.tree, self.budget
        if self.several:
            pairs = zip(self.wanted, self.reports, strict=True)
            shown: dict[str, Any] = {"experts": [described(one, tree, budget) | more for one, more in pairs]}
        else:
            shown = self.reports[0] | {"classes": [tree.classes[i] for i in self.kept]}
            if self.counted:
                shown |= self.source.profile(self.kept).model_dump(mode="json")
        if self.out:
            shown["fetched_bytes"] = self.source.fetched
        if budget:
            shown["budget"] = budget_described(self.wanted, budget, tree, self.source.units, nodes=not self.several)
        return shown

    def show(self) -> None:
        """The same as tables."""
        tree, budget = self.source.tree, self.budget
        if self.several:
            show_experts(self.wanted, self.reports, budget, self.source.units)
        elif self.counted:
            costs = self.source.profile(self.kept)
            output.show_tree(tree.prune(self.kept) if self.out else tree, kept=() if self.out else self.kept)
            output.show_profile(costs)
        if budget and not self.several:
            show_budget(self.wanted[0], budget, tree, self.source.units, nodes=not self.out)
        if self.out:
            if "calibration" in self.reports[0]:
                show_calibration(list(self.choices), self.reports)
            count = len(self.kept)
            what = counted(len(self.reports), "expert") if self.several else counted(count, "class")
            show_written(self.reports, what, self.out)


def show_experts(
    experts: Sequence[Candidate], reports: Sequence[dict[str, Any]], budget: Budget | None, units: Sequence[Part]
) -> None:
    """Several experts: what they cost, whether they keep to a budget, and which files they were written to."""
    columns, rows = ["expert", *COLUMNS], [[expert.name, *_cells(expert)] for expert in experts]
    if budget:
        columns.append(f"within {budget.figure(budget.limit)}")
        rows = [[*row, "yes" if budget.fits(expert.cost) else "no"] for row, expert in zip(rows, experts, strict=True)]
    if "out" in reports[0]:
        columns.append("file (.safetensors)")
        rows = [[*row, Path(one["out"]).stem] for row, one in zip(rows, reports, strict=True)]
    output.show_table("Experts", columns, rows)
    if budget and (advice := floor(budget, units)):
        output.show(advice)


def show_budget(asked: Candidate, budget: Budget, tree: ClassTree, units: Sequence[Part], nodes: bool) -> None:
    """Whether an expert keeps to a budget; with ``nodes``, which inner nodes of its classes do."""
    output.show(compared(asked, budget))
    if advice := floor(budget, units):
        output.show(advice)
    if not nodes or advice:
        return
    inside = classes_by_node(tree, asked.classes)
    fit = fitting(candidates(tree, units, inside), budget)
    rows = [[node.name, *_cells(node)] for node in fit[:ROWS]]
    if rows:
        output.show_table(f"Inner nodes within {budget.text(budget.limit)}", ["node", *COLUMNS], rows)
    if len(fit) > ROWS:
        output.hint(f"… and {len(fit) - ROWS} more nodes: --json has them all")
    none = "" if rows else "there is no inner node of these classes; " if not inside else "no inner node fits; "
    output.show(f"{none}one class alone takes {budget.text(one_class(budget, units))}")


def show_written(reports: Sequence[dict[str, Any]], what: str, out: Path | None) -> None:
    """The experts' files, and what was proved of them."""
    if "max_logit_difference" in reports[0]:
        largest = max(one["max_logit_difference"] for one in reports)
        on = f" on {counted(reports[0]['images'], 'image')}" if "images" in reports[0] else ""
        output.show(
            f"verified: weights bitwise the full network's; logits equal{on} "
            f"(largest difference {largest:.1g}, float64)"
        )
    size = sum(Path(one["out"]).stat().st_size for one in reports)
    output.show(f"{what}, {size / 1e6:.1f} MB, written to {out}")


def described(expert: Candidate, tree: ClassTree, budget: Budget | None) -> dict[str, Any]:
    """One of several experts, for JSON."""
    figures = {"name": expert.name, "classes": [tree.classes[i] for i in expert.classes], **_figures(expert)}
    return figures | {"fits": budget.fits(expert.cost)} if budget else figures


def budget_described(
    asked: Sequence[Candidate], budget: Budget, tree: ClassTree, units: Sequence[Part], nodes: bool
) -> dict[str, Any]:
    """A budget, its floor, what the dearest expert leaves of it, and with ``nodes`` the inner nodes, for JSON."""
    spare = budget.limit - max(budget.of(one.cost) for one in asked)
    figures: dict[str, Any] = {
        "measure": budget.measure,
        "limit": budget.limit,
        "trunk": budget.of(units[0]),
        "one_class": one_class(budget, units),
        "fits": spare >= 0,
        "spare": spare,
    }
    if nodes:
        fit = fitting(candidates(tree, units, classes_by_node(tree, asked[0].classes)), budget)
        figures["nodes"] = [{"node": node.name, "classes": len(node.classes), **_figures(node)} for node in fit]
    return figures


def _cells(expert: Candidate) -> list[str]:
    return [str(len(expert.classes)), *output.cost_cells(expert.cost)]


def _figures(expert: Candidate) -> dict[str, Any]:
    return expert.cost.model_dump(mode="json", include={"params", "gmacs", "bytes"})
