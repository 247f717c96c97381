"""Reports of fitted temperatures and thresholds, for ``calibrate`` and ``make-expert --calibrate``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hlnet.cli.shared import output
from hlnet.errors import counted

if TYPE_CHECKING:
    from hlnet.model.provenance import FittedDescent, PathConformal, Rejection

#: Share of rejected in-distribution images above which a line warns.
MANY = 0.1


def show_calibration(names: Sequence[str], reports: Sequence[dict[str, Any]]) -> None:
    """Figures on the calibration images.

    Args:
        names: of the experts.
        reports: of the calibration step, one for each.
    """
    figures = [_figures(one["calibration"]) for one in reports]
    title = '"None of these", as fitted'
    if len(figures) == 1:
        output.show_table(title, ["", *names], [[label, text] for label, text in figures[0].items()])
    else:
        labels = ["threshold", "TPR", "FPR", "AUROC", "FPR at 95 % TPR"]
        rows = [[name, *(column[label] for label in labels)] for name, column in zip(names, figures, strict=True)]
        output.show_table(title, ["expert", *labels], rows)
        output.hint("TPR: images of its classes accepted, FPR: others accepted; --json has more")
    output.hint(
        "FPR and calibration error are cross-fitted: no image is judged by a fit to itself; thresholds are fitted to "
        "images of other classes only"
    )
    _hint_at_lost_images(names, reports)


def show_path_calibration(fitted: PathConformal, temperature: float) -> None:
    """The temperature, and answers along the path by coverage, cross-fitted in five parts."""
    from hlnet.evaluation.metrics.conformal import threshold_for

    metrics = fitted.metrics
    rows = [
        ["images, for the temperature", f"{metrics['temperature_images']:.0f}"],
        ["images, for the thresholds", str(fitted.images)],
        ["temperature", f"{temperature:.3f}"],
        ["calibration error", f"{output.percent(metrics['ece_before'])} → {output.percent(metrics['ece'])}"],
    ]
    output.show_table("Probabilities", ["fitted", "value"], rows)
    coverages = [float(name.removeprefix("classes@")) for name in metrics if name.startswith("classes@")]
    answers = [
        [
            output.percent(coverage, 0),
            output.percent(metrics[f"held@{coverage:g}"], 1),
            f"{threshold_for(fitted, coverage):.4f}",
            f"{metrics[f'classes@{coverage:g}']:.2f}",
            output.percent(metrics[f"decided@{coverage:g}"], 1),
            output.percent(metrics[f"unsure@{coverage:g}"], 1),
        ]
        for coverage in coverages
    ]
    columns = ["coverage", "as measured", "a node must have", "classes left, mean", "one class left", "not sure at all"]
    output.show_table("Answers along the path", columns, answers)
    output.hint(
        "measured by five-fold cross-fitting: no image is judged by thresholds fitted to itself; coverage is promised "
        "for images like these, on average over them and over draws of them; not for each class"
    )


def show_descents(fitted: Sequence[FittedDescent]) -> None:
    """What was asked of descents, what they did on the images, and what they cost."""
    columns = [output.percent(one.agreement, 1) for one in fitted]
    metrics = [one.metrics for one in fitted]
    rows = [
        ["agreement, as measured", *(output.percent(found["agreement"], 2) for found in metrics)],
        ["images that stop after the rows", *(output.percent(found["rows_alone"], 0) for found in metrics)],
        ["families that run, mean", *(f"{found['families']:.2f}" for found in metrics)],
        ["GMACs, mean", *(f"{found['gmacs']:.4g} of {found['full_gmacs']:.4g}" for found in metrics)],
    ]
    if all("ms" in found for found in metrics):
        rows.append(["ms per image, mean", *(f"{found['ms']:.3g} of {found['full_ms']:.3g}" for found in metrics)])
    first = fitted[0]
    output.show_table(f"Descents on {counted(first.images, 'image')}", ["agreement, as promised", *columns], rows)
    output.hint(
        f"with a confidence of {output.percent(first.confidence, 0)} over draws of the images, as often as promised a "
        "new image of their kind gets the full network's answer; each promise holds by itself"
    )


def hint_at_own_rejection(rejection: Rejection) -> None:
    """The threshold of "none of these" that was fitted without images of other classes."""
    output.hint(
        f"'none of these' below a {rejection.score} of {rejection.threshold:.4g}: of fresh images of the network's "
        f"classes, {output.percent(rejection.metrics.get('own_accepted'), 1)} are accepted (cross-fitted). For images "
        "of other classes nothing is promised: make-expert --calibrate fits that, with images of them"
    )


def _hint_at_lost_images(names: Sequence[str], reports: Sequence[dict[str, Any]]) -> None:
    """Warn where a threshold rejects many in-distribution images."""
    for name, one in zip(names, reports, strict=True):
        fit = one["calibration"]["rejection"]
        lost, rate = 1 - fit["metrics"]["own_accepted"], fit["max_false_positive"]
        if lost > MANY:
            output.hint(
                f"'{name}' now rejects {output.percent(lost, 0)} of the images of its classes, to accept at most "
                f"{output.percent(rate, 1)} of others: a higher --max-false-positive keeps more of them, and "
                "hlnet eval --roc draws what each rate keeps"
            )


def _figures(calibration: dict[str, Any]) -> dict[str, str]:
    fit, temperature = calibration["rejection"], calibration["temperature"]
    metrics = fit["metrics"]
    shown = {
        "images of its classes": f"{metrics['own_images']:.0f}",
        "images of other classes": f"{metrics['outside_images']:.0f}",
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
