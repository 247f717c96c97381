"""The cue report: what right cues give, what wrong ones cost, and which way of cueing makes the best of both.

Notable here: strengths are chosen on one half of the images and judged on the other. No figure for right cues stands
without the one for wrong cues: right cues help by whatever mechanism, and the stronger the better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from hlnet.calibration import fit_temperature
from hlnet.comparison import Interval, paired_bootstrap
from hlnet.cue_sweep import Frontier, SweptLogits, frontier, named_classes, right_answers, sweep_gains
from hlnet.cues import Mode, cue_evidence
from hlnet.errors import UsageError, some
from hlnet.inference import InferenceNet
from hlnet.network import HierarchicalNet
from hlnet.oracle_cues import WrongCue, confusable_classes, wrong_classes
from hlnet.plain import PlainNet
from hlnet.provenance import Curve, FittedAttention, Provenance
from hlnet.tree import ClassTree

#: Factors that are tried.
GAINS = (1.0, 1.1, 1.2, 1.4, 1.8, 2.5, 3.5, 5.0, 8.0, 12.0, 20.0, 40.0, 100.0, 1000.0)
SCALES = (1.0, 1.05, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2.2, 2.8, 3.5, 5.0, 8.0, 12.0, 20.0, 40.0, 100.0, 1000.0)
#: Biases that are tried, in units of the temperature.
EVIDENCE = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 16.0)
RELIABILITIES = (0.5, 0.75, 0.9, 0.95, 0.99)
#: Shares of wrong cues (paper, Table 5).
WRONG_SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999, 1.0)
KINDS: tuple[WrongCue, ...] = ("random", "sibling", "confusable")
#: ``bayes`` is the bias that follows from the reliability, with nothing tuned.
Way = Literal["gain", "bias", "scale", "bayes"]


class Choice(BaseModel):
    """The strength that serves cues of one reliability best, chosen on one half, and what it gives on the other.

    Attributes:
        way: ``gain``, ``bias`` or ``scale``, tuned; or ``bayes``, the bias by :func:`hlnet.cue_evidence`.
        reliability: the share of right cues.
        strength: what was chosen; of ``bayes`` at a level above the classes, its mean.
        top1: with that share of right cues.
        right, wrong: with every cue right, and with every cue wrong.
        against_bias: by how much top-1 is above that of the tuned bias, with a paired 95 % interval.
    """

    way: Way
    reliability: float
    strength: float
    top1: float
    right: float
    wrong: float
    against_bias: Interval | None = None


class CuedNetwork(BaseModel):
    """What the report says of one network.

    Attributes:
        neutral: top-1 without a cue, on the half that reports.
        temperature: the network's, or fitted on the half that tunes.
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
    """What :func:`attend` found.

    Attributes:
        tuned_on, reported_on: numbers of images.
        classes: that compete.
        level: of the nodes that were cued; ``None`` for classes.
        wrong: what a wrong cue names where strengths are chosen.
        reliability: of cues of which nothing is said.
        network: the network itself.
        plain: the plain network beside it.
        attention: what to store in the network's file; ``None`` where nodes above the classes were cued.
    """

    tuned_on: int
    reported_on: int
    classes: int
    level: int | None
    wrong: WrongCue
    reliability: float
    network: CuedNetwork
    plain: CuedNetwork | None = None
    attention: FittedAttention | None = None


def attend(
    net: HierarchicalNet | PlainNet | InferenceNet,
    batches: Iterable[tuple[Tensor, Tensor]],
    plain: tuple[PlainNet | InferenceNet, Iterable[tuple[Tensor, Tensor]]] | None = None,
    reliability: float = 0.9,
    wrong: WrongCue = "random",
    level: int | None = None,
    gains: Sequence[float] = GAINS,
    data: str = "",
    seed: int = 0,
    on_batch: Callable[[], None] | None = None,
) -> CueReport:
    """Measure cues on labelled images: by gain, bias and scale, right and wrong, beside a plain network.

    Images are halved within each class. On one half the temperature is fitted and strengths are chosen, for each
    reliability the one of the highest top-1 at that share of right cues; on the other everything is reported. Accuracy
    is linear in the share of wrong cues, so those under all right and all wrong ones give it.

    Args:
        net: the network.
        batches: its images and labels, of at least two classes.
        plain: a plain network that has these classes, and the same images for it, in the same order and with the
            same labels: positions in ``net.tree.classes``.
        reliability: what the stored setting is for, above 0 and below 1.
        wrong: what a wrong cue names where strengths are chosen; the frontiers have all three kinds.
        level: cue the nodes of this level, 1 nearest to the trunk; default: classes.
        gains: that are tried; 1, neutral, is one of them always.
        data: what the images are, for the file.
        seed: of halves, wrong cues and bootstrap.
        on_batch: called after each batch.

    Raises:
        UsageError: for one class or fewer than four images, for a reliability out of range or a negative gain, if no
            cue of the level can be wrong, or if the plain network lacks a class or has other images.

    Example:
        >>> import hlnet
        >>> tree = hlnet.ClassTree.from_nested({"low": ["0", "1", "2"], "high": ["7", "8", "9"]})
        >>> net = hlnet.create_model("test_resnet", tree=tree)
        >>> net.transform = hlnet.InputTransform(input_size=(3, 32, 32))
        >>> prepare = hlnet.eval_transform(net.transform)
        >>> data = hlnet.TreeData(hlnet.load_data("digits", "val"), tree, prepare, subset=True)
        >>> report = attend(net, hlnet.loader(data, 64), gains=[1, 3])
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
    places = {} if plain is None else {name: place for place, name in enumerate(plain[0].tree.classes)}
    if plain is not None and (lacking := [name for name in net.tree.classes if name not in places]):
        raise UsageError(f"the plain network lacks classes of the network: {some(lacking)}")
    gains = sorted({1.0, *map(float, gains)}) if net.has_branches else []
    swept = sweep_gains(net, batches, gains, on_batch)
    beside = None
    if plain is not None:
        columns = [places[name] for name in net.tree.classes]
        beside = sweep_gains(plain[0], plain[1], (), on_batch)
        beside = SweptLogits(beside.labels, beside.neutral[:, columns], {})
    known = (net.provenance, None if plain is None else plain[0].provenance)
    return report_cues(net.tree, swept, beside, reliability, wrong, level, data, seed, known)


def report_cues(
    tree: ClassTree,
    swept: SweptLogits,
    plain: SweptLogits | None = None,
    reliability: float = 0.9,
    wrong: WrongCue = "random",
    level: int | None = None,
    data: str = "",
    seed: int = 0,
    known: tuple[Provenance | None, Provenance | None] = (None, None),
) -> CueReport:
    """The report from logits that were swept before, which several reports may share.

    Args:
        tree: the network's.
        swept: the network's logits, :func:`hlnet.cue_sweep.sweep_gains`.
        plain: those of a plain network, its columns in the order of ``tree.classes``.
        reliability, wrong, level, data, seed: as :func:`attend` takes them.
        known: what the network's and the plain network's files say: a temperature that was fitted before is used, and
            of classes trained one against all it is the sigmoids'.

    Raises:
        UsageError: for fewer than four images, if no cue of the level can be wrong, or the plain network's images are
            others.
    """
    if plain is not None and not torch.equal(plain.labels, swept.labels):
        raise UsageError("the plain network's images are not those of the network, in the same order")
    tune, report = _halves(swept.labels, seed)
    if not len(tune) or not len(report):
        raise UsageError(f"{len(swept.labels)} images are too few to tune on one half and report on the other")
    targets = _targets(tree, swept, tune, level, seed)
    found = CueReport(
        tuned_on=len(tune),
        reported_on=len(report),
        classes=len(tree.classes),
        level=level,
        wrong=wrong,
        reliability=reliability,
        network=_judge(swept, targets, tune, report, wrong, reliability, seed, known[0]),
    )
    if plain is not None:
        found.plain = _judge(plain, targets, tune, report, wrong, reliability, seed, known[1])
    if level is None:
        found.attention = _fitted(found, data)
    return found


# ---------------------------------------------------------------------- helpers


def _halves(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Positions of every other image of each class, in random order; and of the rest."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    order = order[np.argsort(labels.numpy()[order], kind="stable")]
    return torch.from_numpy(np.sort(order[::2])), torch.from_numpy(np.sort(order[1::2]))


def _targets(tree: ClassTree, swept: SweptLogits, tune: Tensor, level: int | None, seed: int) -> dict[str, Tensor]:
    """What right cues and each kind of wrong ones name, ``[N, K]``."""
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


def _judge(
    swept: SweptLogits,
    targets: Mapping[str, Tensor],
    tune: Tensor,
    report: Tensor,
    wrong: WrongCue,
    reliability: float,
    seed: int,
    known: Provenance | None,
) -> CuedNetwork:
    """Frontiers, and the strengths that serve best."""
    if wrong not in targets:
        raise UsageError(f"'{wrong}' wrong cues are for classes; of nodes above them, choose random or sibling")
    halves = {True: (swept.part(tune), tune), False: (swept.part(report), report)}
    temperature = known.temperature if known else None
    if temperature is None:
        one_vs_all = known is not None and known.one_vs_all
        temperature = fit_temperature(halves[True][0].neutral, halves[True][0].labels, one_vs_all)
    tried: dict[Mode, Sequence[float]] = {
        "gain": tuple(swept.gained),
        "bias": [temperature * evidence for evidence in EVIDENCE],
        "scale": SCALES,
    }
    if not swept.gained:
        del tried["gain"]
    named = {half: {kind: target[rows] for kind, target in targets.items()} for half, (_, rows) in halves.items()}
    frontiers = {
        half: {
            mode: frontier(
                halves[half][0],
                named[half]["right"],
                {
                    kind: target
                    for kind, target in named[half].items()
                    if kind != "right" and (not half or kind == wrong)
                },
                mode,
                strengths,
            )
            for mode, strengths in tried.items()
        }
        for half in halves
    }
    choices = []
    for share in sorted({*RELIABILITIES, reliability}):
        strengths: dict[Way, float | Tensor] = {
            mode: _best(found, wrong, share) for mode, found in frontiers[True].items()
        }
        sizes = named[False]["right"].sum(1)
        strengths["bayes"] = temperature * torch.tensor(
            [cue_evidence(share, size, swept.neutral.shape[1]) for size in sizes.tolist()]
        )
        choices += _choices(halves[False][0], named[False], wrong, share, strengths, seed)
    neutral = halves[False][0].neutral.argmax(1) == halves[False][0].labels
    return CuedNetwork(
        neutral=float(neutral.double().mean()),
        temperature=temperature,
        frontiers=list(frontiers[False].values()),
        choices=choices,
    )


def _best(found: Frontier, wrong: str, share: float) -> float:
    """The strength of the highest top-1 at this share of right cues; the weakest of equals."""
    mixed = share * np.array(found.right) + (1 - share) * np.array(found.wrong[wrong])
    neutral = 0.0 if found.mode == "bias" else 1.0
    best = [strength for strength, top1 in zip(found.strengths, mixed, strict=True) if top1 == mixed.max()]
    return min(best, key=lambda strength: abs(strength - neutral))


def _choices(
    swept: SweptLogits,
    named: Mapping[str, Tensor],
    wrong: str,
    share: float,
    strengths: Mapping[Way, float | Tensor],
    seed: int,
) -> list[Choice]:
    """What each way's strength gives at this share of right cues, and how that stands to the tuned bias."""
    shares, found = {}, []
    for way, strength in strengths.items():
        mode: Mode = "bias" if way == "bayes" else way
        right, bad = (right_answers(swept, named[kind], mode, strength).double() for kind in ("right", wrong))
        shares[way] = share * right + (1 - share) * bad
        found.append(
            Choice(
                way=way,
                reliability=share,
                strength=float(strength.mean()) if isinstance(strength, Tensor) else strength,
                top1=float(shares[way].mean()),
                right=float(right.mean()),
                wrong=float(bad.mean()),
            )
        )
    for choice in found:
        if choice.way != "bias":
            choice.against_bias = paired_bootstrap(shares[choice.way], shares["bias"], seed=seed)
    return found


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
    best = {choice.way: choice for choice in report.network.choices if choice.reliability == report.reliability}
    metrics = {"images": report.reported_on, "neutral_top1": report.network.neutral}
    for way, choice in best.items():
        metrics |= {f"{way}_right_top1": choice.right, f"{way}_wrong_top1": choice.wrong, f"{way}_top1": choice.top1}
    ways: list[Mode] = ["bias", "gain", "scale"]  # of equals the first, which needs no curve
    mode = max((way for way in ways if way in best), key=lambda way: best[way].top1)
    return FittedAttention(
        reliability=report.reliability,
        mode=mode,
        gain=curves["gain"],
        scale=curves["scale"],
        data=data,
        metrics=metrics,
    )
