"""Two sets of answers on the same images: how far apart they are, and whether chance alone would do it.

Notable here: images with the same difference are interchangeable, so that a bootstrap resample is one multinomial draw
over the distinct differences. Right and wrong answers have three of these, and 10,000 resamples take milliseconds,
however many images there are.
"""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel
from torch import Tensor

from hlnet.errors import UsageError

#: Resamples of a bootstrap: the ends of its interval are good to about a hundredth of its width.
RESAMPLES = 10_000

#: Counts that are held at once.
_MOST_COUNTS = 5_000_000


class Interval(BaseModel, frozen=True):
    """A mean with an interval around it.

    Attributes:
        mean: what was measured.
        low, high: the ends of the interval.
        level: how often such an interval covers what it is about, 0.95 by default.
    """

    mean: float
    low: float
    high: float
    level: float = 0.95

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0


class Comparison(BaseModel):
    """The answers of a first network against those of a second one, on the same images.

    Attributes:
        images: how many.
        top1: share of images that the first has right, less that of the second.
        only_first: images that the first alone has right.
        only_second: images that the second alone has right.
        p_value: McNemar's exact test, :func:`mcnemar`.
        lca_height: mean height of the lowest common ancestor of answer and truth, first less second, so that below 0
            the first's answers are nearer; ``None`` where heights were not given.
    """

    images: int
    top1: Interval
    only_first: int
    only_second: int
    p_value: float
    lca_height: Interval | None = None


def compare(
    right_first: Tensor,
    right_second: Tensor,
    heights: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare answers image by image: a paired bootstrap, and McNemar's exact test.

    Args:
        right_first, right_second: ``[N]``, boolean: whether each image was answered rightly.
        heights: of the first and of the second, ``[N]``: :func:`hlnet.evaluation.metrics.hierarchy.lca_heights` of
            each image.
        seed: of the resamples.

    Raises:
        UsageError: if the shapes differ, or there is no image.

    Example:
        >>> import torch
        >>> first, second = torch.tensor([True, True, True, False]), torch.tensor([True, False, False, False])
        >>> found = compare(first, second)
        >>> found.top1.mean, found.only_first, found.only_second, found.p_value
        (0.5, 2, 0, 0.5)
    """
    right_first, right_second = right_first.bool(), right_second.bool()
    top1 = paired_bootstrap(right_first, right_second, seed=seed)
    return Comparison(
        images=len(right_first),
        top1=top1,
        only_first=int((right_first & ~right_second).sum()),
        only_second=int((right_second & ~right_first).sum()),
        p_value=mcnemar(right_first, right_second),
        lca_height=paired_bootstrap(*heights, seed=seed) if heights else None,
    )


def paired_bootstrap(
    first: Tensor, second: Tensor, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The mean of ``first - second`` over images, and its percentile interval over resampled images.

    N images are drawn with replacement, both figures of an image together, and the mean taken, ``resamples`` times; the
    interval leaves ``(1 - level) / 2`` of these means below it and as many above. It tells how much the mean varies
    with the choice of images, not with the seed of a training. Where no image differs, it is the single point 0, which
    is no proof of equality: see :func:`mcnemar`.

    Args:
        first, second: ``[N]``, one figure an image: right or wrong, a height, a probability.
        level: how often the interval shall cover the mean over all images of this kind, between 0 and 1.
        resamples: how many, at least 1.
        seed: of the draws.

    Raises:
        UsageError: if the shapes differ, there is no image, a figure is not finite, or ``level`` or ``resamples`` is
            out of range.

    Example:
        >>> import torch
        >>> found = paired_bootstrap(torch.tensor([1, 1, 1, 0] * 25), torch.tensor([1, 0, 1, 1] * 25))
        >>> found.mean, round(found.low, 2), round(found.high, 2)
        (0.0, -0.14, 0.14)
    """
    _check_pair(first, second)
    if not 0 < level < 1 or resamples < 1:
        raise UsageError(
            f"a bootstrap takes a level between 0 and 1 and at least one resample, got {level} and {resamples}"
        )
    differences = first.detach().double().cpu().numpy() - second.detach().double().cpu().numpy()
    if not np.isfinite(differences).all():
        raise UsageError("figures to compare must be finite; some are infinite or not a number")
    values, counts = np.unique(differences, return_counts=True)
    images, generator = len(differences), np.random.default_rng(seed)
    most = max(1, _MOST_COUNTS // len(values))
    means = np.concatenate(
        [
            generator.multinomial(images, counts / images, size=min(most, resamples - done)) @ values / images
            for done in range(0, resamples, most)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean=float(differences.mean()), low=float(low), high=float(high), level=level)


def mcnemar(right_first: Tensor, right_second: Tensor) -> float:
    """The p-value of McNemar's exact test (1947): are both equally often right, on images of this kind?

    Of the n images that only one of the two has right, the first has k: if neither is better, each falls to it with a
    chance of one half, and p is the two-sided binomial probability, ``min(1, 2 P(X <= min(k, n - k)))``; 1 where no
    image tells them apart.

    Args:
        right_first, right_second: ``[N]``, boolean.

    Raises:
        UsageError: if the shapes differ, or there is no image.

    Example:
        >>> import torch
        >>> mcnemar(torch.tensor([True] * 9 + [False]), torch.tensor([False] * 9 + [True]))  # 2 (1 + 10) / 2^10
        0.021484375
    """
    from scipy.stats import binomtest

    _check_pair(right_first, right_second)
    only_first = int((right_first & ~right_second).sum())
    discordant = only_first + int((right_second & ~right_first).sum())
    return float(binomtest(only_first, discordant).pvalue) if discordant else 1.0


# ---------------------------------------------------------------------- helpers


def _check_pair(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise UsageError(
            f"a paired comparison takes one figure an image from each, [N] and [N] with N >= 1, "
            f"not {list(first.shape)} and {list(second.shape)}"
        )
