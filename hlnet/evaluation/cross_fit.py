"""Cross-fitted figures: each image is measured with what was fitted to others, so that no figure flatters its fit."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hlnet.errors import DataError
from hlnet.evaluation.metrics.conformal import fit_path_conformal, outcomes, path_scores
from hlnet.evaluation.metrics.paths import Descent, TreePaths
from hlnet.evaluation.metrics.probability import calibration_error, class_probabilities, fit_temperature
from hlnet.evaluation.metrics.rejection import conformal_threshold, own_threshold

#: Parts that the images are divided into.
FOLDS = 5


def folds(count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Positions of four fifths of the images, by chance, and of the rest; so that each image is once among the rest.

    Example:
        >>> sorted(int(i) for _, held in folds(7) for i in held)
        [0, 1, 2, 3, 4, 5, 6]
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    for held in order.tensor_split(min(FOLDS, count)):
        rest = torch.ones(count, dtype=torch.bool)
        rest[held] = False
        yield torch.nonzero(rest)[:, 0], held


def fresh_accepted(outside: Tensor, max_false_positive: float) -> float | None:
    """Share of out-of-distribution images that a threshold fitted to others accepts; ``None`` if these are too few.

    Args:
        outside: ``[n]``, scores, as :func:`conformal_threshold` takes them.
        max_false_positive: the share that it is fitted for.
    """
    accepted = torch.zeros(len(outside), dtype=torch.bool)
    for rest, held in folds(len(outside)):
        try:
            accepted[held] = outside[held] >= conformal_threshold(outside[rest], max_false_positive)
        except DataError:
            return None
    return float(accepted.double().mean())


def fresh_own_accepted(own: Tensor, max_rejected: float) -> float | None:
    """Share of in-distribution images that a threshold fitted to others accepts; ``None`` if these are too few.

    Args:
        own: ``[n]``, scores, as :func:`own_threshold` takes them.
        max_rejected: the share that it is fitted for.
    """
    accepted = torch.zeros(len(own), dtype=torch.bool)
    for rest, held in folds(len(own)):
        try:
            accepted[held] = own[held] >= own_threshold(own[rest], max_rejected)
        except DataError:
            return None
    return float(accepted.double().mean())


def fresh_error(logits: Tensor, labels: Tensor, one_vs_rest: bool) -> float | None:
    """The calibration error of images at the temperature that others give; ``None`` for a single image.

    Args:
        logits: ``[N, K]``.
        labels: ``[N]``, as :func:`fit_temperature` takes them.
        one_vs_rest: whether the classes are detectors of their own.
    """
    if len(labels) < 2:
        return None
    probabilities = torch.empty(logits.shape, dtype=torch.double)
    for rest, held in folds(len(labels)):
        temperature = fit_temperature(logits[rest], labels[rest], one_vs_rest, warn=False)
        probabilities[held] = class_probabilities(logits[held].double(), one_vs_rest, temperature)
    return calibration_error(probabilities, labels)


def fresh_outcomes(paths: TreePaths, down: Descent, labels: Tensor) -> dict[str, float]:
    """:func:`outcomes` of images by the thresholds of others, where four fifths of the images are enough for them.

    Args:
        paths: of the network's tree.
        down: the way down for each image.
        labels: ``[N]``, column of the right class.
    """
    if len(labels) < 2:
        return {}
    scores = path_scores(paths, down, labels)
    parts = []
    for rest, held in folds(len(labels)):
        own = Descent(down.leaves[held], down.probabilities[held])
        parts.append((len(held), outcomes(paths, own, fit_path_conformal(scores[rest]), labels=labels[held])))
    shared = [name for name in parts[0][1] if all(name in found for _, found in parts)]
    return {name: sum(count * found[name] for count, found in parts) / len(labels) for name in shared}
