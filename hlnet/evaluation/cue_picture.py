"""The picture of a cue report: accuracy with right cues against accuracy with wrong ones."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hlnet.cues.cue import Mode
from hlnet.evaluation.cue_report import WRONG_SHARES, CuedNetwork, CueReport
from hlnet.evaluation.cue_trial import mixed
from hlnet.figures import BLUE, GREY, RED, save, tidy

#: Okabe and Ito's green beside the others' blue and red: told apart by most eyes.
STYLE: dict[Mode, tuple[str, str]] = {"gain": (RED, "o"), "bias": (BLUE, "s"), "scale": ("#009e73", "^")}
TITLES = {
    "random": "a wrong cue names any other class",
    "sibling": "… one of the same family",
    "confusable": "… the most confusable one",
}


def plot_cue_report(report: CueReport, path: str | Path) -> None:
    """Write :func:`cue_figure` in one step; matplotlib knows the path's ending."""
    save(cue_figure(report), path)


def cue_figure(report: CueReport) -> Figure:
    """The frontiers of each kind of wrong cue, and accuracy by the share of wrong cues."""
    kinds = [kind for kind in TITLES if kind in report.network.frontiers[0].wrong]
    rows = 2 if len(kinds) == 3 else 1
    columns = (len(kinds) + 1) // rows
    figure = Figure(figsize=(4.4 * columns, 3.9 * rows + 0.4), layout="constrained")
    figure.suptitle("What right cues give, and what wrong ones cost, strength by strength", fontsize=13)
    *panels, last = figure.subplots(rows, columns).flat
    for axes, kind in zip(panels, kinds, strict=True):
        _frontiers(axes, report.network, kind, "")
        if report.plain is not None:
            _frontiers(axes, report.plain, kind, "plain, ")
        tidy(axes, xlabel="top-1, every cue wrong, %", ylabel="top-1, every cue right, %")
        axes.set_title(TITLES[kind], fontsize=11)
        _below_100(axes)
    panels[0].legend(frameon=False, fontsize=9)
    _by_share(last, report)
    return figure


def _frontiers(axes: Axes, network: CuedNetwork, kind: str, name: str) -> None:
    for found in network.frontiers:
        colour, marker = STYLE[found.mode]
        axes.plot(
            [100 * share for share in found.wrong[kind]],
            [100 * share for share in found.right],
            marker=marker,
            markersize=4,
            lw=1.4,
            ls="--" if name else "-",
            color=colour,
            markerfacecolor="none" if name else colour,
            label=f"{name}{found.mode}",
        )
    neutral = 100 * network.neutral
    axes.plot([neutral], [neutral], marker="+" if name else "x", color=GREY, ls="", label=f"{name}no cue")


def _by_share(axes: Axes, report: CueReport) -> None:
    """Accuracy by the share of wrong cues, of the strengths chosen for the report's reliability."""
    for name, network in (("", report.network), ("plain, ", report.plain)):
        if network is None:
            continue
        for way, (colour, marker) in STYLE.items():
            choice = network.choice(way, report.reliability)
            if choice is not None:
                axes.plot(
                    [100 * share for share in WRONG_SHARES],
                    [100 * mixed(choice.right, choice.wrong, share) for share in WRONG_SHARES],
                    marker=marker,
                    markersize=4,
                    ls="--" if name else "-",
                    color=colour,
                    markerfacecolor="none" if name else colour,
                    label=f"{name}{way} {choice.strength:.3g}",
                )
        axes.axhline(100 * network.neutral, color=GREY, lw=1, ls="--" if name else ":", label=f"{name}no cue")
    axes.legend(frameon=False, fontsize=9)
    axes.set_title(f"strengths chosen for cues that are right in {100 * report.reliability:g} %", fontsize=11)
    _below_100(axes)
    tidy(axes, xlabel=f"share of wrong cues ({report.wrong}), %", ylabel="top-1, %")


def _below_100(axes: Axes) -> None:
    """No room for shares that cannot be."""
    low, high = axes.get_ylim()
    if high > 100:
        axes.set_ylim(min(low, 99), 100.5)
