"""The cue report: the gain of right cues, the cost of wrong ones, and the mechanism that makes the best of both.

Notable here: the images serve in three parts. On the first, strengths are chosen; the best of many looks better there
than it is. On the second, with strengths fixed, the way of cueing to store is chosen. Figures come from the third,
which chose nothing. No figure for right cues stands without the one for wrong cues: right cues help by whatever
mechanism, and the stronger the better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from hlnet.cues.cue import Mode, cue_evidence, curve_strength
from hlnet.cues.oracle import WrongCue, confusable_classes, wrong_classes
from hlnet.data.tree_data import TreeData, eval_transform, loader
from hlnet.errors import UsageError, some
from hlnet.evaluation.cue_sweep import Frontier, SweptLogits, frontier, named_classes, right_answers, sweep_gains
from hlnet.evaluation.metrics.comparison import Interval, paired_bootstrap
from hlnet.evaluation.metrics.probability import fit_temperature
from hlnet.model.base import Network
from hlnet.model.provenance import Curve, FittedAttention
from hlnet.tree.class_tree import ClassTree

#: Factors that are tried.
GAINS = (1.0, 1.1, 1.2, 1.4, 1.8, 2.5, 3.5, 5.0, 8.0, 12.0, 20.0, 40.0, 100.0, 1000.0)
SCALES = (1.0, 1.05, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2.2, 2.8, 3.5, 5.0, 8.0, 12.0, 20.0, 40.0, 100.0, 1000.0)
#: Biases that are tried, in units of the temperature.
EVIDENCE = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 16.0)
RELIABILITIES = (0.5, 0.75, 0.9, 0.95, 0.99)
#: Shares of wrong cues (paper, Table 5).
WRONG_SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999, 1.0)
KINDS: tuple[WrongCue, ...] = ("random", "sibling", "confusable")
#: Each mode at its best strength; and with nothing tuned ``bayes``, the bias that follows from the reliability, and
#: ``stored``, the gain that the network's file gives for it: found before, or trained for.
#: Ways that could be stored in place of the bias; the interval of each lead is wider for there being so many.
RIVALS: tuple[Mode, ...] = ("gain", "scale")
Way = Literal["gain", "bias", "scale", "bayes", "stored"]
MODES: dict[Way, Mode] = {"gain": "gain", "bias": "bias", "scale": "scale", "bayes": "bias", "stored": "gain"}


class Choice(BaseModel):
    """The strength that serves cues of one reliability best, chosen on one part of the images, and what it gives on
    the others.

    Attributes:
        way: ``gain``, ``bias`` or ``scale``, tuned; ``bayes``, the bias by :func:`hlnet.cues.cue.cue_evidence`; or
            ``stored``, the gain by the curve in the network's file, where it has one and classes are cued.
        reliability: the share of right cues.
        strength: what was chosen; of ``bayes`` at a level above the classes, its mean.
        tuned_top1: with that share of right cues, on the part that tunes, so the best of all that were tried.
        picked_top1: the same on the part that picks the mechanism to store.
        picked_against_bias: by how much that is above the tuned bias there, with a paired interval of 97.5 %: 95 % for
            both of ``RIVALS`` together (Bonferroni).
        top1: with that share of right cues, on the part that reports.
        right, wrong: with every cue right, and with every cue wrong.
        against_bias: by how much top-1 is above that of the tuned bias, with a paired 95 % interval.
    """

    way: Way
    reliability: float
    strength: float
    tuned_top1: float
    picked_top1: float
    picked_against_bias: Interval | None = None
    top1: float
    right: float
    wrong: float
    against_bias: Interval | None = None


class CuedNetwork(BaseModel):
    """Accuracy of one network under cues.

    Attributes:
        neutral: top-1 without a cue, on the part that reports.
        temperature: the network's, or fitted on the part that tunes.
        frontiers: of each mode.
        choices: for each reliability and way.
    """

    neutral: float
    temperature: float
    frontiers: list[Frontier]
    choices: list[Choice]

    def frontier(self, mode: Mode) -> Frontier | None:
        """That of one mode, if the network has it."""
        return next((found for found in self.frontiers if found.mode == mode), None)

    def choice(self, way: Way, reliability: float) -> Choice | None:
        """That of one way and reliability."""
        return next((found for found in self.choices if (found.way, found.reliability) == (way, reliability)), None)


class CueReport(BaseModel):
    """Accuracy under cues, as :func:`attend` measures it.

    Attributes:
        tuned_on, picked_on, reported_on: numbers of images that chose strengths, that chose the mechanism to store, and
            that the figures come from.
        classes: that compete.
        level: of the nodes that were cued; ``None`` for classes.
        wrong: wrong cues' target where strengths are chosen.
        reliability: of cues of which nothing is said.
        network: the network itself.
        plain: the plain network, the baseline.
        attention: what to store in the network's file; ``None`` where nodes above the classes were cued.
    """

    tuned_on: int
    picked_on: int
    reported_on: int
    classes: int
    level: int | None
    wrong: WrongCue
    reliability: float
    network: CuedNetwork
    plain: CuedNetwork | None = None
    attention: FittedAttention | None = None


def attend(
    net: Network,
    data: TreeData,
    plain: Network | None = None,
    reliability: float = 0.9,
    wrong: WrongCue = "random",
    level: int | None = None,
    gains: Sequence[float] = GAINS,
    batch_size: int = 64,
    workers: int = 0,
    seed: int = 0,
    on_batch: Callable[[], None] | None = None,
) -> CueReport:
    """Measure right and wrong cues on labelled images: as gain, bias and scale, with a plain network as baseline.

    Images are divided into three parts within each class. On the first, the temperature is fitted and strengths are
    chosen, for each reliability the one of the highest top-1 at that share of right cues. On the second, the way to
    store is chosen: the bias, unless another is ahead of it by more than chance (its interval, which allows for the
    number of rivals). On the third everything is reported. Accuracy is linear in the share of wrong cues, so those
    under all right and all wrong ones give it. Gains that the file holds already, found before or trained for, are
    reported, too; the stored setting replaces them.

    For memory see :func:`hlnet.evaluation.cue_sweep.sweep_gains`; a third of that comes on top.

    Args:
        net: the network.
        data: the images, with labels in the order of ``net.tree.classes``: at least two classes.
        plain: a plain network that has these classes. It gets the same images, prepared as its own transform says.
        reliability: what the stored setting is for, above 0 and below 1.
        wrong: wrong cues' target where strengths are chosen; the frontiers have all three kinds.
        level: cue the nodes of this level, 1 nearest to the trunk; default: classes.
        gains: that are tried; besides 1, neutral, and those that the network's file gives for the reliabilities.
        batch_size, workers: as :func:`hlnet.loader` takes them.
        seed: of parts, wrong cues and bootstrap.
        on_batch: called after each batch.

    Raises:
        UsageError: for one class or fewer than three images, for a reliability out of range or a negative gain, if no
            cue of the level can be wrong, or if the plain network lacks a class.

    Example:
        >>> import hlnet
        >>> from hlnet.model.transform import InputTransform
        >>> tree = hlnet.ClassTree.from_nested({"low": ["0", "1", "2"], "high": ["7", "8", "9"]})
        >>> net = hlnet.create_model("test_resnet", tree=tree)
        >>> net.transform = InputTransform(input_size=(3, 32, 32))
        >>> prepare = hlnet.eval_transform(net.transform)
        >>> data = hlnet.TreeData(hlnet.load_data("digits", "val"), tree, prepare, subset=True)
        >>> report = attend(net, data, gains=[1, 3])
        >>> gain = report.network.frontier("gain")
        >>> gain.right[0] == gain.wrong["random"][0] == report.network.neutral
        True
    """
    if not 0 < reliability < 1:
        raise UsageError(f"reliability {reliability} must lie between 0 and 1, both excluded")
    if len(net.tree.classes) < 2:
        raise UsageError("a network of one class always answers with it: there is nothing that a cue could change")
    if any(not 0 <= gain < float("inf") for gain in gains):
        raise UsageError(f"gains must be numbers of at least 0, got {', '.join(f'{gain:g}' for gain in gains)}")
    positions = {} if plain is None else plain.tree.positions
    if plain is not None and (lacking := [name for name in net.tree.classes if name not in positions]):
        raise UsageError(f"the plain network lacks classes of the network: {some(lacking)}; take one that has them")
    gains = [1.0, *gains, *stored_gains(net, reliability).values()] if net.has_branches else []
    swept = sweep_gains(net, loader(data, batch_size, workers), gains, on_batch)
    baseline = None
    if plain is not None:
        if plain.transform != net.transform:
            data = TreeData(data.images, net.tree, eval_transform(plain.transform), subset=True)
        columns = [positions[name] for name in net.tree.classes]
        baseline = sweep_gains(plain, loader(data, batch_size, workers), (), on_batch)
        baseline = SweptLogits(baseline.labels, baseline.neutral[:, columns], {}, baseline.provenance)
    return report_cues(net.tree, swept, baseline, reliability, wrong, level, data.images.name.strip("'"), seed)


def stored_gains(net: Network, reliability: float = 0.9) -> dict[float, float]:
    """The gains on a class that the network's file gives, by the reliabilities that are reported; empty without any."""
    found = {
        share: _stored_gain(net.provenance.attention, share, len(net.tree.classes)) for share in _shares(reliability)
    }
    return {share: gain for share, gain in found.items() if gain is not None}


def report_cues(
    tree: ClassTree,
    swept: SweptLogits,
    plain: SweptLogits | None = None,
    reliability: float = 0.9,
    wrong: WrongCue = "random",
    level: int | None = None,
    data: str = "",
    seed: int = 0,
) -> CueReport:
    """The report from logits that were swept before, which several reports may share.

    Args:
        tree: the network's.
        swept: the network's logits, :func:`sweep_gains`. Of a temperature that was fitted before, no
            other is fitted; that of classes trained one-vs-rest is the sigmoids'.
        plain: those of a plain network, its columns in the order of ``tree.classes``.
        reliability, wrong, level, seed: as :func:`attend` takes them.
        data: name of the images, for the stored setting.

    Raises:
        UsageError: for fewer than three images or one of another class, if no cue of the level can be wrong, or the
            plain network's images are others.
    """
    if bool((swept.labels < 0).any()):
        raise UsageError("an image is of a class that the network does not have; leave such images out")
    if plain is not None and not torch.equal(plain.labels, swept.labels):
        raise UsageError("the plain network's images are not those of the network, in the same order")
    parts = _parts(swept.labels, seed)
    if not all(map(len, parts)):
        raise UsageError(
            f"too few images ({len(swept.labels)}) to choose strengths on one third, the way of cueing on another, and "
            "report on the last"
        )
    targets = _targets(tree, swept, parts[0], level, seed)
    if wrong not in targets:
        raise UsageError(f"'{wrong}' wrong cues are for classes; of nodes above them, choose random or sibling")
    networks = [
        _judge(found, targets, parts, wrong, _shares(reliability), level is None, seed)
        for found in (swept, plain)
        if found is not None
    ]
    report = CueReport(
        tuned_on=len(parts[0]),
        picked_on=len(parts[1]),
        reported_on=len(parts[2]),
        classes=len(tree.classes),
        level=level,
        wrong=wrong,
        reliability=reliability,
        network=networks[0],
        plain=networks[1] if plain is not None else None,
    )
    if level is None:
        report.attention = _fitted(report, data)
    return report


# ---------------------------------------------------------------------- helpers


def _parts(labels: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of the images that choose strengths, choose the mechanism to store, and report: each time every third
    one, of the images class by class, in random order within a class."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    order = order[np.argsort(labels.numpy()[order], kind="stable")]
    tune, pick, report = (torch.from_numpy(np.sort(order[start::3])) for start in range(3))
    return tune, pick, report


def _targets(tree: ClassTree, swept: SweptLogits, tune: Tensor, level: int | None, seed: int) -> dict[str, Tensor]:
    """Classes that right cues and each kind of wrong cues name, ``[N, K]``."""
    labels = swept.labels
    targets = {"right": named_classes(tree, labels, level)}
    for kind in KINDS:
        if kind != "confusable":
            other = wrong_classes(tree, labels, kind, level, seed)
        elif level is None:
            other = confusable_classes(tree, swept.neutral[tune], labels[tune])[labels]
        else:
            continue
        targets[kind] = named_classes(tree, other, level)
    return targets


@dataclass(frozen=True)
class _Answers:
    """Which images are right under cues of a strength, as 0 or 1: under right cues, and under wrong ones."""

    strength: float
    right: Tensor
    wrong: Tensor
    share: float

    @property
    def top1(self) -> Tensor:
        """What is to be expected of each image at that share of right cues."""
        return self.share * self.right + (1 - self.share) * self.wrong


@dataclass(frozen=True)
class _Part:
    """Some of the images, and what right cues and each kind of wrong ones name there, ``[n, K]``."""

    swept: SweptLogits
    named: Mapping[str, Tensor]

    @classmethod
    def of(cls, swept: SweptLogits, targets: Mapping[str, Tensor], images: Tensor) -> _Part:
        return cls(swept.part(images), {kind: named[images] for kind, named in targets.items()})

    def frontiers(self, temperature: float, kinds: Iterable[str]) -> dict[Mode, Frontier]:
        """Of each mode, with these kinds of wrong cues."""
        tried: dict[Mode, Sequence[float]] = {
            "gain": tuple(self.swept.gained),
            "bias": [temperature * evidence for evidence in EVIDENCE],
            "scale": SCALES,
        }
        wrong = {kind: self.named[kind] for kind in kinds}
        return {
            mode: frontier(self.swept, self.named["right"], wrong, mode, strengths)
            for mode, strengths in tried.items()
            if strengths
        }

    def answers(self, share: float, way: Way, strength: float | None, wrong: str, temperature: float) -> _Answers:
        """What cues of this strength do, right ones and wrong ones; without one, by formula."""
        acting = self.bayes(share, temperature) if strength is None else strength
        right, bad = (right_answers(self.swept, self.named[kind], MODES[way], acting) for kind in ("right", wrong))
        mean = float(acting.mean()) if isinstance(acting, Tensor) else acting
        return _Answers(mean, right.double(), bad.double(), share)

    def bayes(self, share: float, temperature: float) -> Tensor:
        """The bias by formula for each image's cue."""
        sizes, classes = self.named["right"].sum(1), self.swept.neutral.shape[1]
        return temperature * torch.tensor([cue_evidence(share, size, classes) for size in sizes.tolist()])


def _judge(
    swept: SweptLogits,
    targets: Mapping[str, Tensor],
    parts: tuple[Tensor, Tensor, Tensor],
    wrong: WrongCue,
    shares: Sequence[float],
    of_classes: bool,
    seed: int,
) -> CuedNetwork:
    """Strengths that serve best on the first part of the images, and what they and all others give on the others."""
    known, classes = swept.provenance, swept.neutral.shape[1]
    tune = _Part.of(swept, targets, parts[0])
    temperature = known.temperature or fit_temperature(tune.swept.neutral, tune.swept.labels, known.one_vs_rest)
    frontiers = tune.frontiers(temperature, [wrong])
    chosen: dict[tuple[float, Way], float | None] = {}  # None: by formula, from cue to cue
    for share in shares:
        chosen |= {(share, mode): _best(curve, wrong, share) for mode, curve in frontiers.items()}
        chosen[share, "bayes"] = None
        stored = _stored_gain(known.attention, share, classes)
        if of_classes and stored in swept.gained:
            chosen[share, "stored"] = stored
    del tune  # a copy of these images' logits, which may be large
    results: list[dict[tuple[float, Way], _Answers]] = []
    for images in parts:
        part = _Part.of(swept, targets, images)
        results.append({key: part.answers(*key, at, wrong, temperature) for key, at in chosen.items()})
    picked, reported = results[1:]
    choices = [_choice(share, way, results) for share, way in chosen]
    for choice in choices:
        if choice.way != "bias":
            this: tuple[float, Way] = (choice.reliability, choice.way)
            bias: tuple[float, Way] = (choice.reliability, "bias")
            corrected = 1 - 0.05 / len(RIVALS)
            choice.picked_against_bias = paired_bootstrap(picked[this].top1, picked[bias].top1, corrected, seed=seed)
            choice.against_bias = paired_bootstrap(reported[this].top1, reported[bias].top1, seed=seed)
    neutral = part.swept.neutral.argmax(1) == part.swept.labels
    return CuedNetwork(
        neutral=float(neutral.double().mean()),
        temperature=temperature,
        frontiers=list(part.frontiers(temperature, [kind for kind in targets if kind != "right"]).values()),
        choices=choices,
    )


def _choice(share: float, way: Way, results: Sequence[Mapping[tuple[float, Way], _Answers]]) -> Choice:
    """From what it gave on each part."""
    tuned, picked, reported = (part[share, way] for part in results)
    return Choice(
        way=way,
        reliability=share,
        strength=reported.strength,
        tuned_top1=float(tuned.top1.mean()),
        picked_top1=float(picked.top1.mean()),
        top1=float(reported.top1.mean()),
        right=float(reported.right.mean()),
        wrong=float(reported.wrong.mean()),
    )


def _best(found: Frontier, wrong: str, share: float) -> float:
    """The strength of the highest top-1 at this share of right cues; the weakest of equals."""
    mixed = share * np.array(found.right) + (1 - share) * np.array(found.wrong[wrong])
    neutral = 0.0 if found.mode == "bias" else 1.0
    best = [strength for strength, top1 in zip(found.strengths, mixed, strict=True) if top1 == mixed.max()]
    return min(best, key=lambda strength: abs(strength - neutral))


def _shares(reliability: float) -> list[float]:
    """Reliabilities that strengths are chosen for."""
    return sorted({*RELIABILITIES, reliability})


def _stored_gain(stored: FittedAttention | None, share: float, classes: int) -> float | None:
    """The gain that a file gives for a cue on one class; ``None`` if it holds none."""
    return curve_strength(stored.gain, cue_evidence(share, 1, classes)) if stored and stored.gain else None


def _fitted(report: CueReport, data: str) -> FittedAttention:
    """The chosen factors by a cue's evidence; they rise with it from 1, so a dip, which is chance, is filled up."""
    curves: dict[str, Curve] = {}
    for mode in ("gain", "scale"):
        points: list[tuple[float, float]] = []
        for choice in report.network.choices:
            evidence = cue_evidence(choice.reliability, 1, report.classes)
            if choice.way == mode and evidence > 0:
                points.append((round(evidence, 6), max([1.0, choice.strength, *(factor for _, factor in points)])))
        curves[mode] = tuple(points)
    found = {choice.way: choice for choice in report.network.choices if choice.reliability == report.reliability}
    metrics = {"images": report.reported_on, "neutral_top1": report.network.neutral}
    for way, choice in found.items():
        metrics |= {f"{way}_right_top1": choice.right, f"{way}_wrong_top1": choice.wrong, f"{way}_top1": choice.top1}
    # The bias needs no curve and means something, so another way has to be ahead by more than chance.
    ahead = {
        way: found[way].picked_top1
        for way in RIVALS
        if way in found and (lead := found[way].picked_against_bias) and lead.low > 0
    }
    best: Mode = max(ahead, key=ahead.__getitem__) if ahead else "bias"
    return FittedAttention(
        reliability=report.reliability,
        mode=best,
        gain=curves["gain"],
        scale=curves["scale"],
        data=data,
        metrics=metrics,
    )
