"""Conformal thresholds for path answers: an answer ends where the class lies under it as often as asked.

Notable here: the classes under the nodes of one path are nested sets, so that one number an image decides for every
threshold at once whether its answer would be right: the probability of the first node on the way down that misses its
class. Thresholds are ranks of that number, and what they promise needs no word on how probabilities are distributed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal

import torch
from torch import Tensor

from hlnet.errors import DataError, RunError, UsageError
from hlnet.evaluation.metrics.paths import Descent, TreePaths
from hlnet.model.provenance import PathConformal

#: Thresholds are kept for these coverages, in thousandths: first and last.
LOWEST, HIGHEST = 500, 999
#: Decimals of a threshold; it is rounded up, to the safe side.
_MILLION = 10**6
#: Images whose probabilities of all nodes are held at once.
_CHUNK = 1024


def path_scores(paths: TreePaths, down: Descent, labels: Tensor) -> Tensor:
    """The probability of the first node on each image's way down that its class is not under; 0 if it ends right.

    An answer that takes nodes from threshold t on is right if, and only if, this is below t.

    Args:
        paths: of the network's tree.
        down: the way down for each image.
        labels: ``[N]``, column of the right class.

    Returns:
        ``[N]``, float64.

    Example:
        >>> from hlnet.tree.class_tree import ClassTree
        >>> paths = TreePaths(ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle"]}))
        >>> down = paths.descend(torch.tensor([[0.5, 0.25, 0.25]]).repeat(3, 1))  # cat 0.75, tabby 0.5
        >>> path_scores(paths, down, torch.tensor([0, 1, 2])).tolist()
        [0.0, 0.5, 0.75]
    """
    misses = paths.places[down.leaves] != paths.places[labels]
    return (down.probabilities * misses).amax(1)


def fit_path_conformal(scores: Tensor, data: str = "") -> PathConformal:
    """The thresholds for coverages of 0.5, 0.501, … 0.999, as far as there are images enough for them.

    Of n scores, let s be the k-th highest, ``k = floor((1 - c) (n + 1))`` for coverage c. The threshold lies just above
    s. A new image drawn as these were takes any of the n + 1 ranks with equal probability, so its score is above s, and
    its answer wrong, with probability at most ``k / (n + 1) <= 1 - c``; ties only lower that (split conformal
    prediction: Angelopoulos and Bates, "A Gentle Introduction to Conformal Prediction and Distribution-Free Uncertainty
    Quantification", 2021; of nested sets: Gupta, Kuchibhotla and Ramdas, "Nested Conformal Prediction and Quantile
    Out-of-Bag Ensemble Methods", 2022). That is an average over images and over draws of the n, and no promise for any
    one class.

    Args:
        scores: ``[n]``, of :func:`path_scores`, of images that nothing was trained or fitted with.
        data: what they were called.

    Raises:
        DataError: if there is no image.
        RunError: if a score is not a number.

    Example:
        >>> fitted = fit_path_conformal(torch.arange(19) / 20)
        >>> threshold_for(fitted, 0.9), threshold_for(fitted, 0.95)  # k = 2 and 1: above 0.85 and 0.9
        (0.850001, 0.900001)
    """
    if not len(scores):
        raise DataError("thresholds for a coverage take one labelled image at least, and there is none")
    if not scores.isfinite().all():
        raise RunError(
            "the network gives probabilities that are not numbers, so nothing can be fitted; check its weights"
        )
    highest = scores.double().sort(descending=True).values.tolist()
    ranks = [(1000 - coverage) * (len(highest) + 1) // 1000 for coverage in range(LOWEST, HIGHEST + 1)]
    # Half a millionth above the score, at least: the promise holds for whatever lies above it.
    thresholds = [math.ceil(highest[rank - 1] * _MILLION + 0.5) / _MILLION for rank in ranks if rank]
    return PathConformal(images=len(highest), thresholds=tuple(thresholds), data=data)


def threshold_for(fitted: PathConformal, coverage: float) -> float:
    """Least probability of an answered node; a coverage between two thousandths counts as the higher one.

    Raises:
        UsageError: if the coverage is not between 0.5 and 0.999, or takes more images than it was fitted on.

    Example:
        >>> threshold_for(fit_path_conformal(torch.tensor([0.9, 0.2, 0.1])), 0.75)  # the highest of three
        0.900001
    """
    if not LOWEST <= 1000 * coverage <= HIGHEST:
        raise UsageError(f"coverage {coverage:g}: expected a share between {LOWEST / 1000} and {HIGHEST / 1000}")
    place = math.ceil(Decimal(str(coverage)) * 1000) - LOWEST
    if place >= len(fitted.thresholds):
        needed = math.ceil(1000 / (1000 - place - LOWEST)) - 1
        best = (LOWEST + len(fitted.thresholds) - 1) / 1000
        raise UsageError(
            f"a coverage of {coverage:g} takes at least {needed} labelled images, the thresholds come from "
            f"{fitted.images}: up to {best:g} goes, or run hlnet calibrate on more"
        )
    return fitted.thresholds[place]


def outcomes(
    paths: TreePaths,
    down: Descent,
    fitted: PathConformal,
    coverages: Sequence[float] = (0.8, 0.9, 0.95, 0.99),
    labels: Tensor | None = None,
) -> dict[str, float]:
    """Answers at some coverages: the number of classes left open, and the shares of images by kind of answer.

    Returns:
        for each coverage that there are images enough for, 0.9 for example: ``classes@0.9``, the mean number of classes
        under the answered node; ``decided@0.9``, the share of images that are answered with a class; ``unsure@0.9``,
        the share whose answer is the trunk; and with ``labels``, ``[N]``, ``held@0.9``: the share whose answer holds
        their class.
    """
    sizes = torch.stack([torch.bincount(column, minlength=max(paths.counts)) for column in paths.places.T])
    found: dict[str, float] = {}
    for coverage in coverages:
        if round(coverage * 1000) - LOWEST >= len(fitted.thresholds):
            break
        level = paths.answered(down, threshold_for(fitted, coverage))
        above = (level - 1).clamp(min=0)
        places = paths.places[down.leaves].gather(1, above[:, None])[:, 0]
        left = torch.where(level > 0, sizes[above, places], len(paths.places))
        found[f"classes@{coverage:g}"] = float(left.double().mean())
        found[f"decided@{coverage:g}"] = float((left == 1).double().mean())
        found[f"unsure@{coverage:g}"] = float((level == 0).double().mean())
        if labels is not None:
            held = path_scores(paths, down, labels) < threshold_for(fitted, coverage)
            found[f"held@{coverage:g}"] = float(held.double().mean())
    return found


def descend_all(paths: TreePaths, logits: Tensor, temperature: float | None) -> Descent:
    """The way down for many images, a part of them at a time.

    Args:
        paths: of the network's tree.
        logits: ``[N, K]``.
        temperature: what they are divided by; ``None`` is 1.
    """
    parts = [paths.descend((part.double() / (temperature or 1)).softmax(1)) for part in logits.split(_CHUNK)]
    return Descent(torch.cat([part.leaves for part in parts]), torch.cat([part.probabilities for part in parts]))
