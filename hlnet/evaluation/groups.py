"""One answer for several images: those of a burst, an event or a folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from hlnet.cues.cue import Cue
from hlnet.evaluation.metrics.probability import class_probabilities
from hlnet.evaluation.metrics.rejection import default_score, rejection_scores
from hlnet.model.base import Network


@dataclass
class Batch:
    """Logits of some images or groups of them.

    Attributes:
        names, errors: of all; an error is empty where there is none.
        logits: ``[B, K]`` of those without an error, under their cues.
        neutral: the same without cues; ``None`` where nobody asks how familiar they are.
        cues: of those without an error.
        images: of groups, how many images each has.
    """

    names: Sequence[str]
    errors: Sequence[str]
    logits: Tensor
    neutral: Tensor | None
    cues: Sequence[Sequence[Cue]]
    images: Sequence[int] | None = None


def grouped(net: Network, batches: Iterable[Batch], group: Callable[[str], str]) -> Iterator[Batch]:
    """One batch of all groups of images, after those that could not be read, batch by batch.

    A group's logits are those of the mean of its images' probabilities, at the network's temperature: of the images
    that a fitted threshold accepts, or if it accepts none, of all. Its neutral logits are those of its most familiar
    image.
    Memory grows with the number of groups, by one row of K numbers each.

    Args:
        net: the network.
        batches: of its images.
        group: names the group of an image by its path.
    """
    groups: dict[str, _Sums] = {}
    for batch in batches:
        bad = [i for i, error in enumerate(batch.errors) if error]
        if bad:
            names, errors = [batch.names[i] for i in bad], [batch.errors[i] for i in bad]
            yield Batch(names, errors, batch.logits[:0], None, [])
        whole = [name for name, error in zip(batch.names, batch.errors, strict=True) if not error]
        for row, name in enumerate(whole):
            neutral = None if batch.neutral is None else batch.neutral[row].float().cpu()
            groups.setdefault(group(name), _Sums()).add(net, batch.logits[row], neutral, batch.cues[row])
    found = list(groups.values())
    if not found:
        return
    neutral = None if found[0].neutral is None else torch.stack([cast(Tensor, one.neutral) for one in found])
    logits = torch.stack([one.logits(net) for one in found])
    cues = [tuple(one.cues) for one in found]
    yield Batch(list(groups), [""] * len(found), logits, neutral, cues, [one.images for one in found])


class _Sums:
    """Of a group's images, the sum of their probabilities, and the most familiar one."""

    def __init__(self) -> None:
        self.images, self.counted, self.accepted = 0, 0, False
        self.total: Tensor | None = None
        self.neutral: Tensor | None = None
        self.score = -math.inf
        self.cues: dict[Cue, None] = {}

    def add(self, net: Network, logits: Tensor, neutral: Tensor | None, cues: Sequence[Cue]) -> None:
        known = net.provenance
        self.images += 1
        self.cues |= dict.fromkeys(cues)
        accepted = True
        if neutral is not None:
            name = known.rejection.score if known.rejection else default_score(known)
            score = float(rejection_scores(neutral[None], name))
            accepted = known.rejection is None or score >= known.rejection.threshold
            if self.neutral is None or score > self.score:
                self.neutral, self.score = neutral, score
        if accepted < self.accepted:  # others count
            return
        if accepted > self.accepted or self.total is None:
            self.total, self.counted = torch.zeros(len(logits), dtype=torch.double), 0
        self.accepted = accepted
        self.total += class_probabilities(logits[None].double(), known.one_vs_rest, known.temperature)[0]
        self.counted += 1

    def logits(self, net: Network) -> Tensor:
        """Logits whose probabilities are the mean ones."""
        assert self.total is not None
        mean, temperature = self.total / self.counted, net.provenance.temperature or 1.0
        return temperature * (mean.logit(eps=1e-12) if net.provenance.one_vs_rest else mean.log())
