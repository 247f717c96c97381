"""Tables of ``hlnet profile``: the costs of one network, and those by split point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hlnet.cli.shared import output

if TYPE_CHECKING:
    from hlnet.model.cost import Profile
    from hlnet.model.provenance import FittedDescent
    from hlnet.model.split_points import Split


def show_profile_report(report: Profile, lines: Sequence[str], descents: Sequence[FittedDescent] = ()) -> None:
    """The costs, those of descents that were fitted, and the steps of the inference form."""
    output.show_profile(report)
    for one in descents:
        output.show(
            f"Descent at {output.percent(one.agreement, 1)} agreement: {one.metrics['gmacs']:.4g} GMACs on average; "
            f"{output.percent(one.metrics['rows_alone'], 0)} of images stop after the rows ('{one.data}')."
        )
    for line in lines:
        output.show(line)
    if report.expert and report.expert.latency and not report.full.latency:
        output.hint("full: counted from its number of nodes, not timed; its weights are not in this file")


def show_splits(splits: Sequence[Split], with_expert: bool) -> None:
    """The costs for each stage or block that the trunk may end at."""
    columns = ["stage", "channels", "1/side", "strides", "full M", "GMACs"]
    columns += ["expert M", "GMACs"] if with_expert else []
    rows = []
    for split in splits:
        number = f"{split.split_point} " if isinstance(split.split_point, int) else ""
        stage = f"{'*' if split.chosen else ' '}{number}{split.stage}"
        row = [stage, str(split.channels), str(split.reduction), ",".join(map(str, split.strides))]
        for cost in (split.costs.full, split.costs.expert):
            row += output.cost_cells(cost)[:2] if cost else []
        rows.append(row)
    plain = splits[0].costs.plain
    output.show_table("Costs by where the trunk ends (--split-point)", columns, rows)
    output.show("* as it is now. M: million parameters. 1/side: the image's side over the map's.")
    params, gmacs, _ = output.cost_cells(plain)
    output.show(f"The plain network: {params} M parameters, {gmacs} GMACs.")
