"""Saying "none of these": scores of how familiar an image is, the threshold, and how well they tell classes apart.

Notable here: the threshold is a rank among scores of images of *other* classes, so that what it promises holds without
a word on how scores are distributed (conformal prediction). Everything else is counted from the same two lists of
scores: of a network's own images, and of out-of-distribution ones.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import get_args

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from hlnet.errors import DataError, RunError, UsageError
from hlnet.model.provenance import Provenance, Score

#: What a ROC curve can be written as.
ROC_FORMATS = (".png", ".svg", ".pdf", ".csv")
SCORES: tuple[Score, ...] = get_args(Score)


class Detection(BaseModel):
    """Separation of in-distribution from out-of-distribution images by a score. Shares are in 0..1.

    Attributes:
        score: which one.
        own, outside: number of images of each kind.
        auroc: probability that an own image scores higher than an outside one, a tie counting half.
        fpr_at_95_tpr: share of out-of-distribution images that the highest threshold accepts which accepts 95 % of the
            in-distribution ones.
        threshold: the stored one, if there is one for this score; what follows is ``None`` without it.
        own_accepted: share of in-distribution images that it accepts (TPR).
        outside_accepted: share of out-of-distribution images that it accepts (FPR).
        accuracy_accepted: top-1 among the accepted in-distribution images; ``None`` if there are none.
        max_false_positive: the share of out-of-distribution images that it was fitted for.
        roc: the corners of the curve, ``(FPR, TPR)`` from (0, 0) to (1, 1); not part of the JSON.
    """

    score: Score
    own: int
    outside: int
    auroc: float | None = None
    fpr_at_95_tpr: float | None = None
    threshold: float | None = None
    own_accepted: float | None = None
    outside_accepted: float | None = None
    accuracy_accepted: float | None = None
    max_false_positive: float | None = None
    roc: list[tuple[float, float]] = Field(default=[], exclude=True, repr=False)


def rejection_scores(logits: Tensor, score: Score) -> Tensor:
    """In-distribution score of each image; higher is more familiar.

    With logits z_1 … z_K of one image:

    - ``energy``: ``log sum_k exp z_k``, the negative free energy of Liu et al., "Energy-based Out-of-distribution
      Detection" (NeurIPS 2020), at their temperature 1;
    - ``max-logit``: ``max_k z_k``, Hendrycks et al., "Scaling Out-of-Distribution Detection for Real-World Settings"
      (ICML 2022);
    - ``probability``: ``max_k 1 / (1 + exp(-z_k))``, the surest of K detectors; meant for networks trained one against
      all (``bce``). It ranks images as ``max-logit`` does, only its scale is another.

    With one class, all three rank images alike.

    Args:
        logits: ``[N, K]``, as they are, before any temperature.
        score: which one.

    Returns:
        ``[N]``, float64.

    Raises:
        UsageError: if there is no such score.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0], [2.0, -1.0]])
        >>> [[round(float(s), 3) for s in rejection_scores(logits, name)] for name in SCORES]
        [[0.693, 2.049], [0.0, 2.0], [0.5, 0.881]]
    """
    logits = logits.double()
    match score:
        case "energy":
            return logits.logsumexp(1)
        case "max-logit":
            return logits.amax(1)
        case "probability":
            return logits.amax(1).sigmoid()
    raise UsageError(f"there is no score '{score}'; expected {', '.join(SCORES)}")


def default_score(provenance: Provenance) -> Score:
    """The score that suits how a network was trained: ``probability`` after one-vs-rest, else ``energy``."""
    return "probability" if provenance.one_vs_rest else "energy"


def conformal_rank(outside: int, max_false_positive: float) -> int:
    """``floor(alpha (n + 1))``: above the outside score of this rank, from the top, :func:`conformal_threshold` lies.

    Raises:
        UsageError, DataError: as there.

    Example:
        >>> conformal_rank(99, 0.01), conformal_rank(99, 0.29)
        (1, 29)
    """
    if not 0 < max_false_positive < 1:
        raise UsageError(
            f"the largest false-positive rate ({max_false_positive:g}) must lie between 0 and 1: 0.01 is 1 %"
        )
    alpha = Decimal(str(max_false_positive))  # 0.29 * 100 is below 29 in binary
    rank = int(alpha * (outside + 1))
    if rank < 1:
        needed = math.ceil(1 / alpha) - 1
        raise DataError(
            f"a false-positive rate of at most {max_false_positive:g} takes at least {needed} images of classes "
            f"outside the network, the data hold {outside}: add some, or allow a higher rate"
        )
    return rank


def conformal_threshold(outside: Tensor, max_false_positive: float) -> float:
    """The lowest threshold that accepts at most a given share of new out-of-distribution images.

    An image is accepted if ``score >= threshold``.

    Of n outside scores, let s be the k-th highest, ``k = floor(alpha (n + 1))``. The threshold is the number next above
    s. A new outside image drawn as these were takes any of the n + 1 ranks with equal probability, so it scores above s
    with probability at most ``k / (n + 1) <= alpha``, whatever the distribution; ties only lower that (split conformal
    prediction: Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005; Papadopoulos et al., 2002).

    The promise is an average over draws of the n images too. For one drawn set, the share that its threshold lets
    through is itself random: see :func:`false_positive_bound`.

    Args:
        outside: ``[n]``, scores of images of other classes.
        max_false_positive: alpha, in 0..1.

    Raises:
        UsageError: if alpha is not between 0 and 1.
        DataError: if there are fewer than ``1 / alpha - 1`` images, for which no threshold can promise alpha.
        RunError: if a score is not a number.

    Example:
        >>> conformal_threshold(torch.arange(19.0), 0.1)  # k = 2: only scores above 17
        17.000000000000004
    """
    rank = conformal_rank(len(outside), max_false_positive)
    if not outside.isfinite().all():
        raise RunError(
            "the network gives scores that are not numbers, so no threshold can be fitted; check its weights"
        )
    return math.nextafter(float(outside.double().sort(descending=True).values[rank - 1]), math.inf)


def own_threshold(own: Tensor, max_rejected: float) -> float:
    """The highest threshold that rejects at most a given share of new in-distribution images.

    An image is rejected if ``score < threshold``.

    Of n scores, the k-th lowest, ``k = floor(a (n + 1))``: as :func:`conformal_threshold`, from the other side.

    Args:
        own: ``[n]``, scores of images of the network's own classes.
        max_rejected: a, in 0..1.

    Raises:
        DataError: if there are fewer than ``1 / a - 1`` images.

    Example:
        >>> own_threshold(torch.arange(19.0), 0.1)  # k = 2: scores below 1 are rejected
        1.0
    """
    rank = int(Decimal(str(max_rejected)) * (len(own) + 1))
    if rank < 1:
        needed = math.ceil(1 / Decimal(str(max_rejected))) - 1
        raise DataError(
            f"to reject at most {max_rejected:g} of the in-distribution images takes at least {needed} of them, "
            f"the data hold {len(own)}: add some, or allow a higher share"
        )
    return float(own.double().sort().values[rank - 1])


def false_positive_bound(outside: int, max_false_positive: float, confidence: float = 0.95) -> float:
    """Upper 95 % bound on the share of accepted out-of-distribution images, for a fit on this many of them.

    With continuous scores that share is distributed as ``Beta(k, n + 1 - k)`` over draws of the n calibration images
    (Vovk, "Conditional validity of inductive conformal predictors", 2012); this is its quantile.

    Args:
        outside: n, how many out-of-distribution images the threshold was fitted on.
        max_false_positive: alpha.
        confidence: 0.95 for 95 of 100.

    Raises:
        UsageError, DataError: as :func:`conformal_threshold`.

    Example:
        >>> round(false_positive_bound(100, 0.01), 3), round(false_positive_bound(10_000, 0.01), 4)
        (0.03, 0.0117)
    """
    from scipy.stats import beta

    rank = conformal_rank(outside, max_false_positive)
    return float(beta.ppf(confidence, rank, outside + 1 - rank))


def roc_curve(own: Tensor, outside: Tensor) -> tuple[Tensor, Tensor]:
    """The receiver operating characteristic: FPR and TPR of every threshold, from none accepted to all.

    Args:
        own: ``[M]``, scores of images that should be accepted.
        outside: ``[N]``, scores of images that should be rejected.

    Returns:
        FPR and TPR, ``[T]`` each, float64: for each distinct score, the shares that are at least that high.

    Example:
        >>> roc_curve(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 0.0]))[1].tolist()
        [0.0, 0.5, 0.5, 1.0, 1.0]
    """
    thresholds = torch.cat([own, outside]).double().unique().flip(0)
    curves = [torch.cat([torch.zeros(1, dtype=torch.double), _shares(s, thresholds)]) for s in (outside, own)]
    return curves[0], curves[1]


def detection(
    own: Tensor,
    outside: Tensor,
    score: Score,
    threshold: float | None = None,
    right: Tensor | None = None,
    max_false_positive: float | None = None,
) -> Detection:
    """Measure a score on images of a network's own classes and of others.

    Args:
        own: ``[M]``, scores of in-distribution images.
        outside: ``[N]``, scores of out-of-distribution images; there may be none.
        score: their name.
        threshold: at which images are accepted.
        right: ``[M]``, whether each own image's highest logit is its class's.
        max_false_positive: what the threshold was fitted for.

    Example:
        >>> found = detection(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([2.5, 0.0]), "energy", threshold=1.5)
        >>> round(found.auroc, 3), found.fpr_at_95_tpr, round(found.own_accepted, 3), found.outside_accepted
        (0.667, 0.5, 0.667, 0.5)
    """
    own, outside = own.double(), outside.double()
    found = Detection(score=score, own=len(own), outside=len(outside))
    if len(own) and len(outside):
        fpr, tpr = roc_curve(own, outside)
        found.auroc = float(torch.trapezoid(tpr, fpr))  # a slope where own and out-of-distribution images tie: half
        found.fpr_at_95_tpr = float(fpr[torch.nonzero(tpr >= 0.95)[0]])
        found.roc = _corners(fpr, tpr)
    if threshold is not None:
        found.threshold, found.max_false_positive = threshold, max_false_positive
        kept = own >= threshold
        found.own_accepted = float(kept.double().mean()) if len(own) else None
        found.outside_accepted = float((outside >= threshold).double().mean()) if len(outside) else None
        if right is not None and kept.any():
            found.accuracy_accepted = float(right[kept].double().mean())
    return found


def write_roc(found: Mapping[str, Detection], path: str | Path) -> None:
    """Curves of several networks: as a picture, or their corners as CSV (``name,fpr,tpr``) if the name ends so.

    Raises:
        UsageError: if the name ends in none of ``ROC_FORMATS``.
        RunError: if the file cannot be written.
    """
    from matplotlib.figure import Figure

    from hlnet.figures import BLUE, GREY, RED, save
    from hlnet.files import replacing

    path = Path(path)
    if path.suffix.lower() not in ROC_FORMATS:
        raise UsageError(f"a ROC curve cannot be written as '{path.name}'; end it in {', '.join(ROC_FORMATS)}")
    if path.suffix.lower() == ".csv":
        with replacing(path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["name", "fpr", "tpr"])
            rows.writerows([name, x, y] for name, run in found.items() for x, y in run.roc)
        return
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], ":", color=GREY, lw=1)
    for (name, run), colour in zip(
        found.items(), [BLUE, RED, "#4e9a06", "#b8860b", "#75507b"] * len(found), strict=False
    ):
        points = [(100 * x, 100 * y) for x, y in run.roc]
        axes.plot(*zip(*points, strict=True), color=colour, label=f"{name} (AUROC {run.auroc:.3f})")
        if run.own_accepted is not None and run.outside_accepted is not None:
            axes.plot(100 * run.outside_accepted, 100 * run.own_accepted, "o", color=colour)
    axes.set(xlabel="out-of-distribution images accepted (FPR), %", ylabel="in-distribution images accepted (TPR), %")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right", fontsize=8)
    save(figure, path)


# ---------------------------------------------------------------------- helpers


def _shares(scores: Tensor, thresholds: Tensor) -> Tensor:
    """Share of the scores that are at least as high as each threshold."""
    below = torch.searchsorted(scores.double().sort().values, thresholds)
    return (len(scores) - below).double() / len(scores)


def _corners(fpr: Tensor, tpr: Tensor) -> list[tuple[float, float]]:
    """The points where the curve bends."""
    x, y = fpr.diff(), tpr.diff()
    bends = (x[:-1] * y[1:] - x[1:] * y[:-1]).abs() > 1e-15
    kept = torch.cat([torch.ones(1, dtype=torch.bool), bends, torch.ones(1, dtype=torch.bool)])
    return list(zip(fpr[kept].tolist(), tpr[kept].tolist(), strict=True))
