"""Thresholds of descents that agree with the full network as often as promised; no labels are needed."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hlnet.data.images import LabelledImages
from hlnet.data.tree_data import UnlabelledData, eval_transform, loader
from hlnet.errors import DataError, UsageError, counted
from hlnet.evaluation.descent import (
    LEADS,
    DescendingNet,
    Trajectories,
    full_and_rows,
    measured,
    spread_out,
    time_descents,
)
from hlnet.model.base import Network
from hlnet.model.fast.optimize import InferenceNet, optimize
from hlnet.model.provenance import FittedDescent

log = logging.getLogger("hlnet")


def calibrate_descent(
    net: InferenceNet,
    images: LabelledImages,
    agreements: Sequence[float],
    confidence: float = 0.95,
    batch_size: int = 64,
    workers: int = 0,
    on_batch: Callable[[], None] | None = None,
) -> list[FittedDescent]:
    """Fit where descents stop, on images whose labels are not looked at; ``net.provenance`` holds it from then on.

    Args:
        net: an inference form with class rows.
        images: of the kind that will come.
        agreements, confidence: as :func:`fit_descent`.
        batch_size, workers: as :func:`hlnet.loader` takes them.
        on_batch: called after each batch.

    Returns:
        as :func:`fit_descent`; with ``ms`` and ``full_ms`` in ``metrics``, see
        :class:`hlnet.evaluation.descent.DescentReport`.

    Raises:
        UsageError, DataError: as :func:`fit_descent`, and if the network has no class rows.
    """
    check_shares(agreements, confidence)
    data = UnlabelledData(images, eval_transform(net.transform))
    logits, rows, _ = full_and_rows(net, loader(data, batch_size, workers), on_batch)
    fitted = fit_descent(net, logits, rows, agreements, confidence, images.name.strip("'"))
    some = torch.stack([data[i][0] for i in spread_out(len(data))])
    for one in fitted:
        one.metrics["ms"], one.metrics["full_ms"] = time_descents(net, some, one.threshold)
    net.provenance.record("descent", images.name, images.fingerprint())
    return fitted


def agreeing_lead(disagreements: Sequence[int], images: int, agreement: float, confidence: float) -> int | None:
    """The boldest of some stopping rules that agrees with the full network as often as asked, by a promise.

    The rules are tried from the most cautious on. Each is tested against "it disagrees more often than that", whose
    p-value is ``P(K <= k)`` of the binomial distribution for k disagreements. The first that is not refuted ends the
    walk (fixed-sequence testing, as in Angelopoulos et al., "Learn then Test", 2021). With the given confidence over
    draws of the images, the rule that is found keeps the promise on new images of their kind.

    Args:
        disagreements: of each rule, the most cautious first.
        images: how many were compared.
        agreement: the share of new images whose answer must be the full network's.
        confidence: of the promise.

    Returns:
        the place of the rule; ``None`` if not even the first passes.

    Example:
        >>> agreeing_lead([0, 8, 12, 13, 11], images=1000, agreement=0.98, confidence=0.95)
        2
    """
    from scipy.stats import binom

    found = None
    for place, count in enumerate(disagreements):
        if binom.cdf(count, images, 1 - agreement) > 1 - confidence:
            break
        found = place
    return found


def fit_descent(
    net: Network,
    logits: Tensor,
    rows: Tensor,
    agreements: Sequence[float],
    confidence: float = 0.95,
    data: str = "",
) -> list[FittedDescent]:
    """Thresholds for descents that agree with the full network; ``net.provenance`` holds them from then on.

    A threshold belongs to these weights and classes: a cut of the network, or training, drops it. Each promise holds by
    itself; that several hold at once is less certain.

    Args:
        net: a network with class rows.
        logits, rows: of images of the kind that will come, ``[N, classes]``, from :func:`full_and_rows`.
        agreements: the shares of new images whose answer must be the full network's.
        confidence: how certain each promise is, over draws of the images.
        data: what the images are called.

    Raises:
        UsageError: if an agreement or the confidence is not between 0 and 1.
        DataError: if there are too few images for that.

    Example:
        >>> import hlnet
        >>> settings = {"shared_width": 16, "class_rows": True}
        >>> net = hlnet.create_model("test_resnet", tree={"a": ["b", "c"], "d": ["e"]}, **settings)
        >>> net.transform = net.transform.adjusted(img_size=32)
        >>> rows = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> (fitted,) = fit_descent(net, rows, rows, [0.98])
        >>> fitted.threshold, fitted.metrics["agreement"], fitted.metrics["rows_alone"]
        (1.0, 1.0, 1.0)
    """
    check_shares(agreements, confidence)
    full = logits.argmax(dim=1)
    descents = Trajectories.of(net.tree, logits, rows)
    wrong = [int((descents.at(lead) != full).sum()) for lead in LEADS]
    fitted = []
    for agreement in agreements:
        place = agreeing_lead(wrong, len(full), agreement, confidence)
        if place is None:
            least = math.ceil(math.log(1 - confidence) / math.log(agreement))
            raise DataError(
                f"{counted(len(full), 'image')} cannot promise an agreement of {agreement:g}: it takes at least {least}"
            )
        metrics = measured(net, descents, LEADS[place])
        metrics["agreement"] = 1 - wrong[place] / len(full)
        threshold = math.exp(-LEADS[place])
        fitted.append(
            FittedDescent(
                agreement=agreement,
                confidence=confidence,
                threshold=threshold,
                images=len(full),
                data=data,
                metrics=metrics,
            )
        )
    net.provenance.descent = tuple(fitted)
    return fitted


def check_shares(agreements: Sequence[float], confidence: float) -> None:
    """Whether they can be asked for.

    Raises:
        UsageError: if one is not between 0 and 1.
    """
    for name, value in [*(("agreement", value) for value in agreements), ("confidence", confidence)]:
        if not 0 < value < 1:
            raise UsageError(f"the {name} {value:g} must lie between 0 and 1, both excluded")


def descending(net: Network, agreement: float) -> DescendingNet:
    """A network that descends, as it was fitted for an agreement with the full network.

    Raises:
        UsageError: if it was not fitted for that much, or says "none of these", which was fitted to the full network.
    """
    threshold = threshold_for(net, agreement)
    if net.provenance.rejection:
        raise UsageError(
            "this network says 'none of these' by a threshold that was fitted to its full answer; run it without an "
            "agreement"
        )
    return DescendingNet(net if isinstance(net, InferenceNet) else optimize(net), threshold)  # type: ignore[arg-type]


def threshold_for(net: Network, agreement: float) -> float:
    """The fitted threshold whose promise is this agreement, or the least one above it.

    Raises:
        UsageError: if none was fitted for that much.
    """
    fitted = sorted(net.provenance.descent, key=lambda one: one.agreement)
    for one in fitted:
        if one.agreement >= agreement - 1e-9:
            if one.agreement > agreement + 1e-9:
                log.info("descents stop as fitted for an agreement of %g (asked for: %g)", one.agreement, agreement)
            return one.threshold
    told = f"fitted for {', '.join(f'{one.agreement:g}' for one in fitted)}" if fitted else "not fitted for a descent"
    raise UsageError(
        f"the network was {told}: run hlnet calibrate MODEL --data DATA --agreement {agreement:g}; it needs no labels"
    )
