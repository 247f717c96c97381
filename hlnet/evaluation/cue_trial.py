"""What is asked of cues when a network is evaluated, and what is found.

Notable here: accuracy is linear in the share of wrong cues, for each image is either cued rightly or wrongly. So it is
measured with all cues right and with all wrong, and what lies between follows.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from hlnet.cues.apply import CuedRun, CueUse
from hlnet.cues.certain import certain_gmacs
from hlnet.cues.cue import Attention, Cue, Mode, check_site
from hlnet.cues.effect import cue_effect
from hlnet.cues.oracle import label_cues, wrong_classes
from hlnet.data.tree_data import TreeData
from hlnet.errors import UsageError
from hlnet.evaluation.logits import columns_of
from hlnet.evaluation.metrics.accuracy import Accuracy, accuracy
from hlnet.model.base import Network
from hlnet.model.fast.optimize import InferenceNet
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.selection import select_classes


class CuedAccuracy(BaseModel):
    """Accuracy with cues.

    Attributes:
        attention: how they acted, unless they said it themselves.
        modes: in which ways they acted.
        source: where they came from.
        images: how many images had one.
        named: of these, the share whose cue named their class.
        prior: under the prior alone, where there is one beside cues.
        accuracy: with the cues given; of an oracle, with every cue right.
        wrong: of an oracle, with every cue wrong.
        wrong_cues: what a wrong cue named, ``random`` or ``sibling``.
        wrong_share, mixed: of an oracle, top-1 to be expected with this share of wrong cues.
        gmacs: where only the cued classes ran, the mean cost of an image, the trunk included.
    """

    attention: Attention
    modes: list[Mode]
    source: str
    images: int
    named: float | None
    accuracy: Accuracy
    prior: Accuracy | None = None
    wrong: Accuracy | None = None
    wrong_cues: str | None = None
    wrong_share: float | None = None
    mixed: float | None = None
    gmacs: float | None = None


class CueTrial(BaseModel):
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
    def use(self) -> CueUse:
        """What is made of the cues."""
        return CueUse(self.attention, self.certain, self.prior)

    @property
    def share(self) -> float | None:
        """How many of the oracle's cues are to be wrong."""
        if self.wrong_share is None and self.attention.reliability is not None:
            return 1 - self.attention.reliability
        return self.wrong_share

    def fitting(self, net: Network) -> CueTrial | None:
        """The same trial for another network. A cue that cannot act there as here, but states a reliability, is a bias.

        ``None`` where that cannot be either: cues that are certain or of a stated strength, on a plain network.
        """
        cues = [Cue(node="")] if self.cues is None else self._given  # of an oracle, all are alike
        stuck = {cue for cue in cues if not self._acts_on(net, cue)}
        if not stuck:
            return self
        stated = all(cue.strength is None and (cue.reliability or self.attention.reliability) for cue in stuck)
        if self.certain or not stated:
            return None
        reliability = self.attention.reliability
        if self.cues is None:
            return self.model_copy(update={"attention": Attention(mode="bias", reliability=reliability)})
        as_bias = {
            cue: cue.model_copy(update={"mode": "bias", "reliability": cue.reliability or reliability}) for cue in stuck
        }
        moved = {image: tuple(as_bias.get(cue, cue) for cue in own) for image, own in self.cues.items()}
        return self.model_copy(update={"cues": moved})

    @property
    def _given(self) -> list[Cue]:
        return [cue for own in (self.cues or {}).values() for cue in own]

    def _acts_on(self, net: Network, cue: Cue) -> bool:
        """Whether a cue can act as it is to, and how strongly is known."""
        mode, fitted = cue.mode or self.attention.mode, net.provenance.attention
        if self.certain or (mode == "gain" and not net.has_branches):
            return net.has_branches
        if cue.strength is not None or (cue.reliability is None and self.attention.strength is not None):
            return True
        if mode == "bias":
            return (cue.reliability or self.attention.reliability or fitted) is not None
        return bool(fitted and (fitted.gain if mode == "gain" else fitted.scale))

    def check(self) -> None:
        """Refuse, or warn of, where gains are to act; see :func:`hlnet.cues.cue.check_site`."""
        check_site(self.attention, self._given)

    def runs(self, tree: ClassTree, data: TreeData, kept: Sequence[int]) -> list[CuedRun]:
        """The runs over these images, where the ``kept`` classes compete.

        Raises:
            UsageError: as :func:`hlnet.label_cues`, or if no image has a cue.
        """
        if self.cues is not None:
            given = [self.cues.get(source, ()) for source, _ in data.samples]
            counted = set(kept)
            cued = any(own for own, label in zip(given, data.labels, strict=True) if label in counted)
            if not cued and (self.cues or self.prior is None):
                raise UsageError(f"none of the images evaluated has a cue in {self.source or 'those given'}")
            return [CuedRun(given, self.use)]
        place = {old: new for new, old in enumerate(kept)}
        within = tree.prune(kept)
        own = torch.tensor([place.get(label, -1) for label in data.labels])
        if len(kept) < 2:
            return [CuedRun(label_cues(within, own.tolist(), self.level), self.use)]
        wrong = torch.full_like(own, -1)
        wrong[own >= 0] = wrong_classes(within, own[own >= 0], self.wrong, self.level, self.seed)
        return [CuedRun(label_cues(within, which.tolist(), self.level), self.use) for which in (own, wrong)]


def right_share(run: CuedRun, tree: ClassTree, labels: Sequence[int]) -> float | None:
    """How many of the cued images have a cue that names their class; ``None`` if no image of the tree is cued."""
    cued = [(cues, label) for cues, label in zip(run.cues, labels, strict=True) if cues and label >= 0]
    if not cued:
        return None
    return sum(any(label in select_classes(tree, cue.node) for cue in cues) for cues, label in cued) / len(cued)


def mixed(right: float, wrong: float, share: float) -> float:
    """What is to be expected where a share of cues is wrong.

    Example:
        >>> mixed(1.0, 0.5, 0.25)
        0.875
    """
    return (1 - share) * right + share * wrong


def cued_accuracy(
    net: Network,
    kept: Sequence[int],
    tree: ClassTree,
    trial: CueTrial,
    runs: Sequence[CuedRun],
    logits: Sequence[Tensor],
    labels: Tensor,
) -> CuedAccuracy:
    """From logits ``[N, K]`` without cues and under those of each run, and labels ``[N]``, to figures of the ``kept``
    columns, which are the leaves of ``tree``.
    """
    targets = columns_of(labels, kept, len(net.tree.classes))
    used = targets >= 0
    temperature = net.provenance.temperature

    def measured(run: Tensor) -> Accuracy:
        return accuracy(run[:, list(kept)][used], targets[used], tree.classes, tree, temperature)

    results = [measured(run) for run in logits[1:]]
    own = targets.tolist()
    found = CuedAccuracy(
        attention=trial.attention,
        modes=sorted({cue.mode or trial.attention.mode for cues in runs[0].cues for cue in cues}),
        source=trial.source or "each image's own label (an oracle)",
        images=sum(bool(cues) for cues, target in zip(runs[0].cues, own, strict=True) if target >= 0),
        named=right_share(runs[0], net.tree, torch.where(used, labels, -1).tolist()),
        accuracy=results[0],
    )
    if trial.prior is not None and any(runs[0].cues):
        alone = cue_effect(net, [()], trial.attention, kept, trial.prior)
        found.prior = measured(alone.shifted(logits[0].to(net.device)).cpu())
    if len(results) == 2:
        found.wrong, found.wrong_cues, found.wrong_share = results[1], trial.wrong, trial.share
        if trial.share is not None:
            found.mixed = mixed(results[0].top1, results[1].top1, trial.share)
    if trial.certain and isinstance(net, InferenceNet):
        used_cues = [tuple(cues) for cues, target in zip(runs[0].cues, own, strict=True) if target >= 0]
        found.gmacs = statistics.fmean(certain_gmacs(net, used_cues, kept))
    return found
