"""What is asked of cues when a network is evaluated, and what is found.

Notable here: accuracy is linear in the share of wrong cues, for each image is either cued rightly or wrongly. So it is
measured with all cues right and with all wrong, and what lies between follows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from hlnet.accuracy import Accuracy, accuracy
from hlnet.attention import label_cues, wrong_classes
from hlnet.certain import certain_classes
from hlnet.cues import Attention, Cue, check_site, cued_classes
from hlnet.data import TreeData
from hlnet.errors import UsageError
from hlnet.inference import InferenceNet
from hlnet.network import HierarchicalNet, NetworkConfig
from hlnet.plain import PlainNet
from hlnet.tree import ClassTree


@dataclass(frozen=True)
class CuedRun:
    """One run of a network over all images of a data set.

    Attributes:
        cues: of each image, in the data set's order; none for an image without a cue.
        attention: how they act.
        certain: whether they are taken as certain: only the classes that they leave run, and can win.
        prior: as :func:`hlnet.cue_effect` takes it.
    """

    cues: Sequence[Sequence[Cue]]
    attention: Attention
    certain: bool = False
    prior: Mapping[str, float] | None = None


class CuedAccuracy(BaseModel):
    """Accuracy with cues.

    Attributes:
        attention: how they acted.
        source: where they came from.
        images: how many images had one.
        named: of these, the share whose cue named their class.
        accuracy: with the cues given; of an oracle, with every cue right.
        wrong: of an oracle, with every cue wrong.
        wrong_cues: what a wrong cue named, ``random`` or ``sibling``.
        wrong_share, mixed: of an oracle, top-1 to be expected with this share of wrong cues.
        gmacs: where only the cued classes ran, the mean cost of an image, the trunk included.
    """

    attention: Attention
    source: str
    images: int
    named: float | None
    accuracy: Accuracy
    wrong: Accuracy | None = None
    wrong_cues: str | None = None
    wrong_share: float | None = None
    mixed: float | None = None
    gmacs: float | None = None


class CueTest(BaseModel):
    """What :func:`hlnet.evaluate` is to try with cues.

    Attributes:
        attention: how cues act.
        cues: of images by their position among the labelled images; default: a cue on each image's own class, an
            oracle, and beside it one on a wrong class.
        source: where these came from, for the report.
        wrong: the oracle's opposite: any other class, or a sibling.
        wrong_share: how many of an oracle's cues are to be wrong; default: 1 - reliability, where that is given.
        level: at which the oracle names nodes, 1 nearest to the trunk; default: classes.
        certain: run only the classes that are cued; see :func:`hlnet.certain_logits`.
        prior: how frequent classes are, by name, as :func:`hlnet.cue_effect` takes it; with ``cues`` that are empty, it
            is all there is.
        seed: of wrong cues.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    attention: Attention = Attention()
    cues: Mapping[int, tuple[Cue, ...]] | None = None
    source: str = ""
    wrong: Literal["random", "sibling"] = "random"
    wrong_share: float | None = Field(default=None, ge=0, le=1)
    level: int | None = None
    certain: bool = False
    prior: Mapping[str, float] | None = None
    seed: int = 0

    @property
    def share(self) -> float | None:
        """How many of the oracle's cues are to be wrong."""
        if self.wrong_share is None and self.attention.reliability is not None:
            return 1 - self.attention.reliability
        return self.wrong_share

    def fitting(self, net: HierarchicalNet | PlainNet | InferenceNet) -> CueTest | None:
        """The same test of another network: of a plain one, which has no branches, cues act as a bias.

        ``None`` where they cannot: cues that are certain, or that state the strength of a gain, not a reliability.
        """
        if net.has_branches or (self.attention.mode != "gain" and not self.certain):
            return self
        cues = [cue for own in (self.cues or {}).values() for cue in own]
        stated = self.attention.reliability is not None or (cues and all(cue.reliability for cue in cues))
        if self.certain or not stated or any(cue.strength is not None for cue in cues):
            return None
        return self.model_copy(update={"attention": Attention(mode="bias", reliability=self.attention.reliability)})

    def runs(self, tree: ClassTree, data: TreeData, kept: Sequence[int]) -> list[CuedRun]:
        """The runs over these images, where the ``kept`` classes compete.

        Raises:
            UsageError: as :func:`hlnet.label_cues`, or if no image has a cue.
        """
        check_site(self.attention, tree)
        if self.cues is not None:
            given = [self.cues.get(source, ()) for source, _ in data.samples]
            if not any(given) and self.prior is None:
                raise UsageError(f"none of the images evaluated has a cue in {self.source or 'those given'}")
            return [CuedRun(given, self.attention, self.certain, self.prior)]
        place = {old: new for new, old in enumerate(kept)}
        within = tree.prune(kept)
        own = torch.tensor([place.get(label, -1) for label in data.labels])
        if len(kept) < 2:
            return [CuedRun(label_cues(within, own.tolist(), self.level), self.attention, self.certain, self.prior)]
        wrong = torch.full_like(own, -1)
        wrong[own >= 0] = wrong_classes(within, own[own >= 0], self.wrong, self.level, self.seed)
        return [
            CuedRun(label_cues(within, which.tolist(), self.level), self.attention, self.certain, self.prior)
            for which in (own, wrong)
        ]


def right_share(run: CuedRun, tree: ClassTree, labels: Sequence[int]) -> float | None:
    """How many of the cued images have a cue that names their class; ``None`` if no image of the tree is cued."""
    cued = [(cues, label) for cues, label in zip(run.cues, labels, strict=True) if cues and label >= 0]
    if not cued:
        return None
    return sum(any(label in cued_classes(tree, cue.node) for cue in cues) for cues, label in cued) / len(cued)


def mixed(right: float, wrong: float, share: float) -> float:
    """What is to be expected where a share of cues is wrong.

    Example:
        >>> mixed(1.0, 0.5, 0.25)
        0.875
    """
    return (1 - share) * right + share * wrong


def cued_accuracy(
    net: HierarchicalNet | PlainNet | InferenceNet,
    kept: Sequence[int],
    tree: ClassTree,
    test: CueTest,
    runs: Sequence[CuedRun],
    logits: Sequence[Tensor],
    labels: Tensor,
) -> CuedAccuracy:
    """From logits ``[N, K]`` under the cues of each run, and labels ``[N]``, to figures of the ``kept`` columns, which
    are the leaves of ``tree``.
    """
    targets = columns_of(labels, kept, len(net.tree.classes))
    used = targets >= 0
    temperature = net.provenance.temperature
    results = [accuracy(run[:, list(kept)][used], targets[used], tree.classes, tree, temperature) for run in logits]
    own = targets.tolist()
    found = CuedAccuracy(
        attention=test.attention,
        source=test.source or "each image's own label (an oracle)",
        images=sum(bool(cues) for cues, target in zip(runs[0].cues, own, strict=True) if target >= 0),
        named=right_share(runs[0], net.tree, torch.where(used, labels, -1).tolist()),
        accuracy=results[0],
    )
    if len(results) == 2:
        found.wrong, found.wrong_cues, found.wrong_share = results[1], test.wrong, test.share
        if test.share is not None:
            found.mixed = mixed(results[0].top1, results[1].top1, test.share)
    if test.certain and isinstance(net, InferenceNet):
        found.gmacs = _mean_gmacs(net, [cues for cues, target in zip(runs[0].cues, own, strict=True) if target >= 0])
    return found


def _mean_gmacs(net: InferenceNet, cues: Sequence[Sequence[Cue]]) -> float:
    """Mean cost of images of which only the cued classes run."""
    from hlnet.profiling import total_cost, unit_costs

    assert isinstance(net.config, NetworkConfig)
    units = unit_costs(net.config, net.transform)[0]
    times = Counter(certain_classes(net, own) for own in cues)
    macs = [
        count * total_cost(units, [len(row) for row in net.tree.rows(classes)]).gmacs
        for classes, count in times.items()
    ]
    return sum(macs) / len(cues)


def columns_of(labels: Tensor, kept: Sequence[int], classes: int) -> Tensor:
    """From positions among a network's classes to columns among the kept ones; -1 for others.

    Example:
        >>> columns_of(torch.tensor([0, 2, 1, -1]), [1, 2], 3).tolist()
        [-1, 1, 0, -1]
    """
    column = torch.full((classes + 1,), -1)  # the last is for label -1
    column[list(kept)] = torch.arange(len(kept))
    return column[labels]
