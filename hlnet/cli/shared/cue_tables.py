"""Tables of ``hlnet attend``: the paper's two, and each mechanism at its best strength."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hlnet.cli.shared import output
from hlnet.evaluation.cue_report import WRONG_SHARES
from hlnet.evaluation.cue_trial import mixed

if TYPE_CHECKING:
    from hlnet.evaluation.cue_report import CuedNetwork, CueReport, Way

#: The gain of the paper's Table 5.
PAPER_GAIN = 100.0
#: A gain that costs less than this leaves too little to choose a bias by that costs as much.
LEAST_COST = 0.002
#: The mechanisms of a report, as the table calls them.
WAYS: dict[Way, str] = {
    "gain": "gain",
    "stored": "gain by the file's curve",
    "scale": "scale",
    "bias": "bias, tuned",
    "bayes": "bias by formula",
}


def show_cue_report(report: CueReport) -> None:
    """Accuracy by strength, by the share of wrong cues, and by reliability."""
    networks = {"": report.network} | ({"plain, ": report.plain} if report.plain else {})
    targets = "classes" if report.level is None else f"nodes of level {report.level}"
    output.show(
        f"Cues on {targets}, from labels (an oracle): strengths chosen on {report.tuned_on} images, the mechanism to "
        f"store on {report.picked_on}, figures from {report.reported_on} others. Without a cue: "
        + ", ".join(f"{name}{100 * network.neutral:.2f} %" for name, network in networks.items())
        + "."
    )
    _show_strengths(report, networks)
    _show_shares(report, networks)
    _show_choices(report, networks)


def _show_strengths(report: CueReport, networks: dict[str, CuedNetwork]) -> None:
    """Table 4: gains from right cues and losses from wrong ones by strength, and the bias of the same loss."""
    curve = report.network.frontier("gain") or report.network.frontiers[0]
    rows = []
    for position, strength in enumerate(curve.strengths):
        wrong = {kind: shares[position] for kind, shares in curve.wrong.items()}
        row = [f"{strength:g}", _points(curve.right[position], report.network.neutral)]
        row += [_points(share, report.network.neutral) for share in wrong.values()]
        for network in networks.values():
            bias = network.frontier("bias")
            if curve.mode == "gain" and bias is not None:
                cost = report.network.neutral - wrong[report.wrong]
                right = bias.right_at(network.neutral - cost, report.wrong)
                row.append(_points(right, network.neutral) if cost >= LEAST_COST else "–")
        rows.append(row)
    columns = [curve.mode, "all right", *(f"all wrong ({kind})" for kind in curve.wrong)]
    if curve.mode == "gain":
        columns += [f"{name}bias of that cost" for name in networks]
    title = "Top-1 by strength, in points above no cue (paper, Table 4, with wrong cues added)"
    if curve.mode == "gain":
        title += f"; last, right cues as a bias that costs as much ({report.wrong})"
    output.show_table(title, columns, rows)


def _show_shares(report: CueReport, networks: dict[str, CuedNetwork]) -> None:
    """Table 5: top-1 by the share of wrong cues."""
    ends = {}
    gains = report.network.frontier("gain")
    if gains is not None and PAPER_GAIN in gains.strengths:
        at = gains.strengths.index(PAPER_GAIN)
        ends[f"gain {PAPER_GAIN:g}"] = (gains.right[at], gains.wrong[report.wrong][at], report.network.neutral)
    for name, network in networks.items():
        for way in ("gain", "bias", "scale"):
            if choice := network.choice(way, report.reliability):
                ends[f"{name}{way} {choice.strength:.4g}"] = (choice.right, choice.wrong, network.neutral)
    columns = list(ends)
    rows = [
        [
            output.percent(share, 1),
            *(_points(mixed(right, wrong, share), neutral) for right, wrong, neutral in ends.values()),
        ]
        for share in WRONG_SHARES
    ]
    title = (
        f"Top-1 by the share of wrong cues ({report.wrong}), in points above no cue (paper, Table 5); strengths chosen "
        f"for {100 * report.reliability:g} % right"
    )
    output.show_table(title, ["wrong", *columns], rows)


def _show_choices(report: CueReport, networks: dict[str, CuedNetwork]) -> None:
    """Top-1 of each mechanism, at the strength chosen for a reliability."""
    rows = []
    for reliability in sorted({choice.reliability for choice in report.network.choices}):
        for name, network in networks.items():
            for way, title in WAYS.items():
                choice = network.choice(way, reliability)
                if choice is None:
                    continue
                above = choice.against_bias
                rows.append(
                    [
                        f"{100 * reliability:g} %",
                        f"{name}{title}",
                        f"{choice.strength:.4g}",
                        output.percent(choice.top1),
                        f"{100 * above.mean:+.2f} [{100 * above.low:+.2f}, {100 * above.high:+.2f}]" if above else "",
                    ]
                )
    title = "Top-1 by the reliability of cues, each mechanism at its best strength"
    output.show_table(title, ["right", "mechanism", "strength", "top-1", "above the tuned bias [95 %]"], rows)


def _points(share: float, neutral: float) -> str:
    return f"{100 * (share - neutral):+.2f}"
