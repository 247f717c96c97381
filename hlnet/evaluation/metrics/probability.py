"""Class probabilities, their temperature, and their calibration error.

Notable here: the temperature is the root of a monotone function, since the loss is convex in its inverse; no optimiser
can miss it, and its bounds hold also where every image is right and certainty would be best.
"""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor

from hlnet.errors import UsageError

log = logging.getLogger("hlnet")

#: Between these a temperature is sought.
TEMPERATURES = (0.05, 20.0)


def class_probabilities(logits: Tensor, one_vs_rest: bool = False, temperature: float | None = None) -> Tensor:
    """Probabilities of the classes: the softmax of ``z / T``, or with ``one_vs_rest`` each one's sigmoid of it.

    Args:
        logits: ``[N, K]``.
        one_vs_rest: whether the classes are detectors of their own (``provenance.one_vs_rest``); their probabilities
            need not add up to 1.
        temperature: T; ``None`` is 1.

    Returns:
        ``[N, K]``, of the type of the logits.

    Example:
        >>> class_probabilities(torch.zeros(1, 2)), class_probabilities(torch.zeros(1, 1), one_vs_rest=True)
        (tensor([[0.5000, 0.5000]]), tensor([[0.5000]]))
    """
    scaled = logits if temperature is None else logits / temperature
    return scaled.sigmoid() if one_vs_rest else scaled.softmax(1)


def fit_temperature(logits: Tensor, labels: Tensor, one_vs_rest: bool = False, warn: bool = True) -> float:
    """The temperature T under which the labels are likeliest (Guo et al., "On Calibration of Modern Neural Networks",
    ICML 2017, Sec. 4.2).

    It minimises the mean over images of ``-log softmax(z / T)_y``, or with ``one_vs_rest`` of the binary
    cross-entropies of ``sigmoid(z / T)``, summed over classes. Both are convex in ``1 / T``: their derivative,
    ``E_p[z] - z_y`` and ``sum_k sigmoid(z_k / T) z_k - z_y``, rises, and T is where it crosses zero, in double
    precision. It is sought between 0.05 and 20, and stands at a bound where certainty (all images right), or no
    information, would be best.

    Args:
        logits: ``[N, K]``, of images that the network was not trained with; K at least 2 without ``one_vs_rest``.
        labels: ``[N]``, column of the right class; with ``one_vs_rest`` also -1, where it is none of them (z_y is 0).
        one_vs_rest: see :func:`class_probabilities`.
        warn: log a warning where it stands at a bound.

    Raises:
        UsageError: if there is no image, or one class only and no ``one_vs_rest``.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0]]).repeat(4, 1)  # 88 % sure, and right three times in four
        >>> round(fit_temperature(logits, torch.tensor([0, 0, 0, 1])), 4), round(2 / math.log(3), 4)
        (1.8205, 1.8205)
    """
    from scipy.optimize import brentq

    if logits.ndim != 2 or not len(logits) or logits.shape[1] < 2 - one_vs_rest:
        raise UsageError(
            f"a temperature takes logits [N, K] of N >= 1 images and K >= 2 classes, not {list(logits.shape)}"
        )
    logits = logits.double()
    right = (logits.gather(1, labels.clamp(min=0)[:, None])[:, 0] * (labels >= 0)).mean()

    def slope(log_inverse: float) -> float:
        shares = class_probabilities(logits, one_vs_rest, math.exp(-log_inverse))
        return float((shares * logits).sum(1).mean() - right)

    low, high = (-math.log(bound) for bound in reversed(TEMPERATURES))
    for bound, best in ((low, slope(low) >= 0), (high, slope(high) <= 0)):
        if best:
            if warn:
                log.warning(
                    "the temperature stands at its bound, %g: on these %d images %s; more images would tell",
                    math.exp(-bound),
                    len(logits),
                    "the logits say nothing" if bound == low else "no right class is in doubt",
                )
            return TEMPERATURES[0] if bound == high else TEMPERATURES[1]
    return math.exp(-brentq(slope, low, high))


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error: how far confidence and accuracy lie apart (Guo et al. 2017, Eq. 3).

    Each image's confidence is its highest probability. Images fall into ``bins`` of equal width, ``((b-1)/B, b/B]``;
    the error is ``sum_b n_b / n |accuracy_b - confidence_b|``, with the means over the n_b images of a bin.

    Args:
        probabilities: ``[N, K]``.
        labels: ``[N]``, column of the right class; -1 where it is none of them, and no answer right.
        bins: B.

    Raises:
        UsageError: if there is no image.

    Example:
        >>> calibration_error(torch.tensor([[0.75, 0.25], [0.75, 0.25]]), torch.tensor([0, 1]))
        0.25
    """
    if not len(labels):
        raise UsageError("the calibration error of no images is not defined")
    confidence, chosen = probabilities.double().max(1)
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = (chosen == labels).double() - confidence
    sums = torch.zeros(bins, dtype=torch.double).index_add_(0, place, gap)
    return float(sums.abs().sum() / len(labels))
