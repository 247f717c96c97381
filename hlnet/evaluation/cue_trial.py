"""The cues of an evaluation, and accuracy under them.

Notable here: accuracy is linear in the share of wrong cues, for each image is either cued rightly or wrongly. So it is
measured with all cues right and with all wrong, and what lies between follows.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import BaseModel, PlainSerializer
from torch import Tensor

from hlnet.cues.cue import Cue, Mode
from hlnet.cues.effect import cue_effect
from hlnet.cues.hard import hard_cue_gmacs
from hlnet.cues.oracle import label_cues, wrong_classes
from hlnet.cues.policy import CuePolicy
from hlnet.cues.table import CueTable, LabelCues
from hlnet.data.images import image_names
from hlnet.data.tree_data import TreeData
from hlnet.errors import UsageError
from hlnet.evaluation.logits import columns_of
from hlnet.evaluation.metrics.accuracy import Accuracy, accuracy
from hlnet.model.base import Network
from hlnet.model.fast.optimize import InferenceNet
from hlnet.tree.class_tree import ClassTree


def _strength(policy: CuePolicy) -> dict[str, object]:
    """A policy in a report, which says by itself whether cues were hard and what a prior did."""
    return policy.model_dump(include={"mode", "strength", "reliability"})


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

    attention: Annotated[CuePolicy, PlainSerializer(_strength)]
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


@dataclass(frozen=True)
class CueRuns:
    """The cues of all images of a data set, run by run, as one network takes them.

    Attributes:
        table: where they come from.
        policy: how they act.
        attention: the policy of cues that state nothing, with what the network's file holds.
        runs: for each run, the cues of each image: those given; or from labels, right ones and wrong ones.
    """

    table: CueTable
    policy: CuePolicy
    attention: CuePolicy
    runs: list[list[tuple[Cue, ...]]]

    @classmethod
    def for_network(
        cls, net: Network, data: TreeData, kept: Sequence[int], table: CueTable | None, policy: CuePolicy | None
    ) -> CueRuns:
        """The cues of a table, from labels by default, where the ``kept`` classes compete.

        Raises:
            UsageError: as :func:`hlnet.cues.oracle.label_cues`, or if no image has a cue.
        """
        table, policy = table or CueTable.from_labels(), policy or CuePolicy()
        if table.labels is None:
            runs = [_given(table, policy, data, kept)]
        else:
            runs = _from_labels(table.labels, net, data, kept)
        silent = policy.complete(Cue(node="any"), net.provenance)
        attention = CuePolicy(mode=silent.mode, strength=silent.strength, reliability=silent.reliability)
        known = {cue: policy.complete(cue.on(net.tree), net.provenance) for cue in _all(runs)}
        return cls(table, policy, attention, _replaced(runs, known))

    def fitting(self, net: Network) -> CueRuns | None:
        """The same for another network, for classes that it lacks without a cue. A cue that cannot act there as here,
        but states a reliability, is a bias.

        ``None`` where that cannot be either: cues that are hard or of a stated strength, on a plain network.
        """
        cues, attention = _all(self.runs), self.attention
        stuck = {cue for cue in cues if not _acts_on(net, cue, self.policy.hard)}
        if stuck and (self.policy.hard or any(cue.reliability is None for cue in stuck)):
            return None
        if stuck and self.table.labels is not None:  # all are alike
            attention = attention.model_copy(update={"mode": "bias"})
        known = {
            cue: cue.model_copy(update={"mode": "bias"}) if cue in stuck else cue
            for cue in cues
            if cue.positions(net.tree)
        }
        return CueRuns(self.table, self.policy, attention, _replaced(self.runs, known))

    @property
    def wrong_share(self) -> float | None:
        """Share of wrong cues from labels."""
        labels, reliability = self.table.labels, self.attention.reliability
        if labels is None:
            return None
        return 1 - reliability if labels.wrong_share is None and reliability is not None else labels.wrong_share


def _acts_on(net: Network, cue: Cue, hard: bool) -> bool:
    """Whether a complete cue can act as it is to, and how strongly is known."""
    fitted = net.provenance.attention
    if hard or (cue.mode == "gain" and not net.has_branches):
        return net.has_branches
    if cue.strength is not None:
        return True
    if cue.mode == "bias":
        return cue.reliability is not None or fitted is not None
    return bool(fitted and (fitted.gain if cue.mode == "gain" else fitted.scale))


def _given(table: CueTable, policy: CuePolicy, data: TreeData, kept: Sequence[int]) -> list[tuple[Cue, ...]]:
    rows = table.rows(image_names(data.images))
    given = [tuple(rows[source]) for source, _ in data.samples]
    counted = set(kept)
    cued = any(own for own, label in zip(given, data.labels, strict=True) if label in counted)
    if not cued and (table.all_cues or policy.prior is None):
        raise UsageError(f"none of the images evaluated has a cue in {table.source or 'those given'}")
    return given


def _from_labels(labels: LabelCues, net: Network, data: TreeData, kept: Sequence[int]) -> list[list[tuple[Cue, ...]]]:
    place = {old: new for new, old in enumerate(kept)}
    within = net.tree.prune(kept)
    own = torch.tensor([place.get(label, -1) for label in data.labels])
    if len(kept) < 2:
        return [label_cues(within, own.tolist(), labels.level)]
    wrong = torch.full_like(own, -1)
    wrong[own >= 0] = wrong_classes(within, own[own >= 0], labels.wrong, labels.level, labels.seed)
    return [label_cues(within, which.tolist(), labels.level) for which in (own, wrong)]


def _all(runs: Iterable[Iterable[tuple[Cue, ...]]]) -> set[Cue]:
    return {cue for run in runs for own in set(run) for cue in own}


def _replaced(runs: Iterable[Iterable[tuple[Cue, ...]]], known: Mapping[Cue, Cue]) -> list[list[tuple[Cue, ...]]]:
    """The runs with each cue as it is known, without those that are not."""
    return [[tuple(known[cue] for cue in own if cue in known) for own in run] for run in runs]


def right_share(run: Sequence[Sequence[Cue]], tree: ClassTree, labels: Sequence[int]) -> float | None:
    """Share of the cued images whose cue names their class; ``None`` if no image of the tree is cued."""
    cued = [(cues, label) for cues, label in zip(run, labels, strict=True) if cues and label >= 0]
    if not cued:
        return None
    named = {cue: set(cue.positions(tree)) for cue in {cue for cues, _ in cued for cue in cues}}
    return sum(any(label in named[cue] for cue in cues) for cues, label in cued) / len(cued)


def mixed(right: float, wrong: float, share: float) -> float:
    """Expected accuracy where a share of cues is wrong.

    Example:
        >>> mixed(1.0, 0.5, 0.25)
        0.875
    """
    return (1 - share) * right + share * wrong


def cued_accuracy(
    net: Network,
    kept: Sequence[int],
    tree: ClassTree,
    cues: CueRuns,
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

    results, given = [measured(run) for run in logits[1:]], cues.runs[0]
    counted = [own for own, target in zip(given, targets.tolist(), strict=True) if target >= 0]
    found = CuedAccuracy(
        attention=cues.attention,
        modes=sorted({cue.mode for cue in _all([given]) if cue.mode}),
        source=cues.table.source,
        images=sum(map(bool, counted)),
        named=right_share(given, net.tree, torch.where(used, labels, -1).tolist()),
        accuracy=results[0],
    )
    if cues.policy.prior is not None and any(given):
        alone = cue_effect(net, [()], cues.policy, kept)
        found.prior = measured(alone.shifted(logits[0].to(net.device)).cpu())
    if len(results) == 2 and cues.table.labels is not None:
        found.wrong, found.wrong_cues, found.wrong_share = results[1], cues.table.labels.wrong, cues.wrong_share
        if found.wrong_share is not None:
            found.mixed = mixed(results[0].top1, results[1].top1, found.wrong_share)
    if cues.policy.hard and isinstance(net, InferenceNet):
        found.gmacs = statistics.fmean(hard_cue_gmacs(net, counted, kept))
    return found
