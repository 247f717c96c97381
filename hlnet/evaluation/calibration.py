"""Fitting temperatures and thresholds: calibrated probabilities, path answers, and "none of these"."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from hlnet.data.tree_data import TreeData, loader
from hlnet.errors import DataError, RunError, UsageError, some
from hlnet.evaluation.cross_fit import fresh_accepted, fresh_error, fresh_outcomes, fresh_own_accepted
from hlnet.evaluation.logits import logits_of
from hlnet.evaluation.metrics.conformal import descend_all, fit_path_conformal, path_scores
from hlnet.evaluation.metrics.paths import TreePaths
from hlnet.evaluation.metrics.probability import calibration_error, class_probabilities, fit_temperature
from hlnet.evaluation.metrics.rejection import (
    SCORES,
    conformal_rank,
    conformal_threshold,
    default_score,
    detection,
    false_positive_bound,
    own_threshold,
    rejection_scores,
)
from hlnet.model.base import Network
from hlnet.model.provenance import PathConformal, Rejection, Score, Use

log = logging.getLogger("hlnet")


def calibrate(
    net: Network,
    data: TreeData,
    max_false_positive: float = 0.01,
    score: Score | None = None,
    batch_size: int = 64,
    workers: int = 0,
    on_batch: Callable[[], None] | None = None,
) -> Rejection:
    """Fit when a network says "none of these", and its temperature; ``net.provenance`` holds both from then on.

    The threshold comes from images of classes that the network lacks (:func:`conformal_threshold`), the
    temperature from images of its own (:func:`fit_temperature`; with one class there is none), or, where each class was
    trained one-vs-rest (``bce``), from all images, for its probabilities speak of any image. Both belong to these
    weights and classes: a cut of the network, or training, drops them.

    Args:
        net: an expert, or any network.
        data: labelled images that it was not trained with, of its own classes and of others: ``outside=True``.
        max_false_positive: the share of new out-of-distribution images, drawn as these are, that may be accepted.
        score: ``energy``, ``max-logit`` or ``probability``, see :func:`rejection_scores`; default:
            ``probability`` for a network trained with ``bce``, else ``energy``.
        batch_size, workers: as :func:`hlnet.loader` takes them.
        on_batch: called after each batch.

    Returns:
        what was fitted. Its ``metrics`` tell what was measured on these images: ``own_images``, ``outside_images``,
        ``own_accepted``, ``auroc``, ``fpr_at_95_tpr``, ``false_positive_bound`` (of 100 such fits, 95 stay under it)
        and, cross-fitted in five parts, each measured with what the other four give: ``outside_accepted``, where four
        fifths of the out-of-distribution images are enough for the rate, and, where there is a temperature,
        ``ece_before`` and ``ece`` (:func:`calibration_error` at temperature 1 and at the fitted one).

    Raises:
        UsageError: if there is no such score, or the rate is not between 0 and 1.
        DataError: if the data hold no out-of-distribution images, or too few for that rate.

    Example:
        >>> import hlnet
        >>> from hlnet.model.transform import InputTransform
        >>> net = hlnet.create_model("test_resnet", tree=["0", "1", "2"])
        >>> net.transform = InputTransform(input_size=(3, 32, 32))
        >>> prepare = hlnet.eval_transform(net.transform)
        >>> data = hlnet.TreeData(hlnet.load_data("digits", "val"), net.tree, prepare, outside=True)
        >>> report = calibrate(net, data, max_false_positive=0.1)
        >>> report.score, net.provenance.rejection == report, net.provenance.temperature is not None
        ('energy', True, True)
    """
    score = score or default_score(net.provenance)
    if score not in SCORES:
        raise UsageError(f"there is no score '{score}'; expected {', '.join(SCORES)}")
    check_outside(data, max_false_positive)
    if data.absent:
        log.warning(
            "%s has no images of %s: were they there under another name, they would count as out-of-distribution ones",
            data.images.name,
            some(data.absent),
        )
    (logits,), labels = logits_of(net, loader(data, batch_size, workers), on_batch=on_batch)
    own = labels >= 0
    if not own.any():
        raise DataError(f"the calibration images of {data.images.name} hold none of the network's own classes")
    scores = rejection_scores(logits, score)
    threshold = conformal_threshold(scores[~own], max_false_positive)
    found = detection(scores[own], scores[~own], score, threshold)
    metrics = {
        "own_images": found.own,
        "outside_images": found.outside,
        "own_accepted": found.own_accepted,
        "outside_accepted": fresh_accepted(scores[~own], max_false_positive),
        "auroc": found.auroc,
        "fpr_at_95_tpr": found.fpr_at_95_tpr,
        "false_positive_bound": false_positive_bound(found.outside, max_false_positive),
    }
    temperature = None
    one_vs_rest = net.provenance.one_vs_rest
    if one_vs_rest or logits.shape[1] > 1:
        used = own | one_vs_rest
        temperature = fit_temperature(logits[used], labels[used], one_vs_rest)
        metrics["ece_before"] = calibration_error(class_probabilities(logits[used], one_vs_rest), labels[used])
        metrics["ece"] = fresh_error(logits[used], labels[used], one_vs_rest)
    rejection = Rejection(
        score=score,
        threshold=threshold,
        max_false_positive=max_false_positive,
        data=data.images.name.strip("'"),
        metrics={name: value for name, value in metrics.items() if value is not None},
    )
    net.provenance.temperature, net.provenance.rejection = temperature, rejection
    net.provenance.conformal = None  # it was of another temperature
    _record(net, data, "rejection", "temperature")
    return rejection


def calibrate_paths(
    net: Network,
    data: TreeData,
    batch_size: int = 64,
    workers: int = 0,
    on_batch: Callable[[], None] | None = None,
) -> PathConformal:
    """Fit a network's temperature, and where its path answers end for a coverage (``hlnet.predict(…, coverage=0.9)``).
    ``net.provenance`` holds both from then on.

    One half of the images, drawn by chance, gives the temperature (:func:`fit_temperature`), the other the thresholds
    (:func:`fit_path_conformal`): were they the same images, what the thresholds promise would not quite
    hold. Both belong to these weights and classes: a cut of the network, or training, drops them. A threshold of "none
    of these" stays as it is, since it looks at logits before any temperature.

    Args:
        net: a full network, an expert or a plain network, of two classes at least.
        data: labelled images that it was not trained with, ``TreeData(…, subset=True)``. If classes were trained one
            against all (``bce``), images of others teach the temperature, too: ``outside=True`` keeps them.
        batch_size, workers: as :func:`hlnet.loader` takes them.
        on_batch: called after each batch.

    Returns:
        what was fitted. Its ``metrics`` tell how many images gave the temperature (``temperature_images``), and what
        was measured on the others: ``ece_before`` and ``ece`` (:func:`calibration_error` at temperature 1 and at the
        fitted one), and what :func:`hlnet.evaluation.metrics.conformal.outcomes` counts, cross-fitted in five parts:
        each is counted by the thresholds of the other four.

    Raises:
        UsageError: if the network has one class only.
        DataError: if there are fewer than two images of its classes.
        RunError: if it gives logits that are not numbers.

    Example:
        >>> import hlnet
        >>> from hlnet.model.transform import InputTransform
        >>> net = hlnet.create_model("test_resnet", tree={"low": ["0", "1", "2"], "high": ["8", "9"]})
        >>> net.transform = InputTransform(input_size=(3, 32, 32))
        >>> prepare = hlnet.eval_transform(net.transform)
        >>> data = hlnet.TreeData(hlnet.load_data("digits", "val"), net.tree, prepare, subset=True)
        >>> report = calibrate_paths(net, data)
        >>> report.images == len(data) // 2, net.provenance.conformal == report
        (True, True)
    """

    if len(net.tree.classes) < 2:
        raise UsageError(
            f"a network of one class ({net.tree.classes[0]}) has no path to choose, it can only reject images: "
            "calibrate() fits a threshold for that (hlnet make-expert --calibrate)"
        )
    seen = set(data.labels)
    if absent := [name for place, name in enumerate(net.tree.classes) if place not in seen]:
        log.warning("%s has no images of %s: nothing is promised of these", data.images.name, some(absent))
    (logits,), labels = logits_of(net, loader(data, batch_size, workers), on_batch=on_batch)
    if not logits.isfinite().all():
        raise RunError("the network gives logits that are not numbers, so nothing can be fitted; check its weights")
    one_vs_rest = net.provenance.one_vs_rest
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    first, second = order.tensor_split(2)
    first = first if one_vs_rest else first[labels[first] >= 0]
    second = second[labels[second] >= 0]
    if not (labels[first] >= 0).any() or not len(second):
        raise DataError(f"{data.images.name} holds too few images of the network's classes; give two at least")
    temperature = fit_temperature(logits[first], labels[first], one_vs_rest)
    paths = TreePaths(net.tree)
    down = descend_all(paths, logits[second], temperature)
    fitted = fit_path_conformal(path_scores(paths, down, labels[second]), data.images.name.strip("'"))
    fitted.metrics["temperature_images"] = len(first)
    for name, value in (("ece_before", 1.0), ("ece", temperature)):
        shares = class_probabilities(logits[second], one_vs_rest, value)
        fitted.metrics[name] = calibration_error(shares, labels[second])
    fitted.metrics |= fresh_outcomes(paths, down, labels[second])
    net.provenance.temperature, net.provenance.conformal = temperature, fitted
    _record(net, data, "temperature", "coverage")
    return fitted


def check_outside(data: TreeData, max_false_positive: float) -> None:
    """Before any image is read: whether there are enough out-of-distribution ones.

    Raises:
        UsageError, DataError: as :func:`calibrate`.
    """
    outside = data.labels.count(-1)
    if not outside and data.left_out:
        raise UsageError("calibrate() takes data made with outside=True, which keeps out-of-distribution images")
    if not outside:
        raise DataError(
            f"{data.images.name} holds no images of classes outside the network's, from which 'none of these' is "
            f"learnt, only of {some(data.images.classes)}; add a folder of other images, of whatever name"
        )
    conformal_rank(outside, max_false_positive)


def _record(net: Network, data: TreeData, *uses: Use) -> None:
    """Note in the network's provenance what these images served for."""
    images = data.images.fingerprint()
    for use in uses:
        net.provenance.record(use, data.images.name, images)


def calibrate_own(
    net: Network,
    data: TreeData,
    max_rejected: float = 0.05,
    score: Score | None = None,
    batch_size: int = 64,
    workers: int = 0,
    on_batch: Callable[[], None] | None = None,
) -> Rejection:
    """Fit when a network says "none of these" without images of other classes; ``net.provenance`` holds it afterwards.

    Of n in-distribution images' scores, let s be the k-th lowest, ``k = floor(a (n + 1))`` with a the share that may be
    rejected.
    The threshold is s: a new image of these classes, drawn as these were, scores lower with probability at most a
    (split conformal prediction). Of images of other classes it promises nothing: how many are let through depends on
    how unlike they are, and only images of them can tell (:func:`calibrate`).

    Args:
        net: any network.
        data: labelled images of its own classes that it was not trained with; others are passed over.
        max_rejected: the share of new in-distribution images that may be rejected.
        score, batch_size, workers, on_batch: as :func:`calibrate` takes them.

    Returns:
        what was fitted; its ``metrics`` tell ``own_images`` and, cross-fitted in five parts, ``own_accepted``.

    Raises:
        UsageError: if there is no such score, or the share is not between 0 and 1.
        DataError: if there are too few in-distribution images for that share.

    Example:
        >>> import hlnet
        >>> net = hlnet.create_model("test_resnet", tree=["0", "1", "2"])
        >>> net.transform = net.transform.adjusted(img_size=32)
        >>> prepare = hlnet.eval_transform(net.transform)
        >>> data = hlnet.TreeData(hlnet.load_data("digits", "val"), net.tree, prepare, subset=True)
        >>> fitted = calibrate_own(net, data, max_rejected=0.1)
        >>> fitted.max_own_rejected, fitted.metrics["own_images"], net.provenance.rejection == fitted
        (0.1, 107.0, True)
    """
    score = score or default_score(net.provenance)
    if score not in SCORES:
        raise UsageError(f"there is no score '{score}'; expected {', '.join(SCORES)}")
    if not 0 < max_rejected < 1:
        raise UsageError(
            f"the largest share of in-distribution images to reject ({max_rejected:g}) must lie between 0 and 1"
        )
    (logits,), labels = logits_of(net, loader(data, batch_size, workers), on_batch=on_batch)
    scores = rejection_scores(logits[labels >= 0], score)
    if not scores.isfinite().all():
        raise RunError(
            "the network gives scores that are not numbers, so no threshold can be fitted; check its weights"
        )
    found = Rejection(
        score=score,
        threshold=own_threshold(scores, max_rejected),
        max_false_positive=1.0,
        max_own_rejected=max_rejected,
        data=data.images.name.strip("'"),
        metrics={"own_images": len(scores)},
    )
    if (accepted := fresh_own_accepted(scores, max_rejected)) is not None:
        found.metrics["own_accepted"] = accepted
    net.provenance.rejection = found
    _record(net, data, "rejection")
    return found
