"""``make-expert --calibrate``: the report of what was fitted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hlnet.cli.shared import output

#: The share of own images that may be rejected before a line says so.
MANY = 0.1


def show_calibration(names: Sequence[str], told: Sequence[dict[str, Any]]) -> None:
    """What was measured on the calibration images.

    Args:
        names: of the experts.
        told: what the step told of each.
    """
    figures = [_figures(one["calibration"]) for one in told]
    title = '"None of these", as fitted'
    if len(figures) == 1:
        output.show_table(title, ["", *names], [[label, text] for label, text in figures[0].items()])
    else:
        labels = ["threshold", "TPR", "FPR", "AUROC", "FPR at 95 % TPR"]
        rows = [[name, *(found[label] for label in labels)] for name, found in zip(names, figures, strict=True)]
        output.show_table(title, ["expert", *labels], rows)
        output.hint("TPR: own images accepted, FPR: others accepted; --json has more")
    output.hint(
        "FPR and calibration error are cross-fitted: no image by what it helped to fit; own images fit no threshold"
    )
    _hint_at_lost_images(names, told)


def _hint_at_lost_images(names: Sequence[str], told: Sequence[dict[str, Any]]) -> None:
    """Say so, where a threshold rejects many of the images that a network is for."""
    for name, one in zip(names, told, strict=True):
        fit = one["calibration"]["rejection"]
        lost, rate = 1 - fit["metrics"]["own_accepted"], fit["max_false_positive"]
        if lost > MANY:
            output.hint(
                f"'{name}' now says \"none of these\" of {output.percent(lost, 0)} of its own images, to let at most "
                f"{output.percent(rate, 1)} of others through: a higher --max-false-positive keeps more of them, and "
                "hlnet eval --roc draws what each rate keeps"
            )


def _figures(found: dict[str, Any]) -> dict[str, str]:
    fit, temperature = found["rejection"], found["temperature"]
    metrics = fit["metrics"]
    shown = {
        "images of its own": f"{metrics['own_images']:.0f}",
        "images of others": f"{metrics['outside_images']:.0f}",
        "AUROC": f"{metrics['auroc']:.4f}",
        "FPR at 95 % TPR": output.percent(metrics["fpr_at_95_tpr"]),
        "threshold": f"{fit['score']} {fit['threshold']:.4g}",
        "TPR": output.percent(metrics["own_accepted"]),
        "FPR": output.percent(metrics.get("outside_accepted")),
        "FPR, 95 % bound": output.percent(metrics["false_positive_bound"]),
    }
    if temperature is not None:
        shown["temperature"] = f"{temperature:.3f}"
        shown["calibration error"] = f"{output.percent(metrics['ece_before'])} → {output.percent(metrics.get('ece'))}"
    return shown
