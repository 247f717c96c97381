"""Cues: hints from outside about an image's class, and the three ways in which they act on a network.

Notable here: a cue's *evidence* is one number, by how much it moves the odds of what it names. A bias is that number; a
gain or a scale is looked up by it, in a curve that was fitted (``hlnet attend``) or trained for (``--cue-aware``). So
leaves and inner nodes, two classes and a thousand, one cue and several, are all one case.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from hlnet.cue_prior import prior_shift
from hlnet.errors import SelectionError, UsageError, some
from hlnet.provenance import Curve, Provenance
from hlnet.selection import select_classes
from hlnet.tree import ClassTree

if TYPE_CHECKING:
    from hlnet.inference import InferenceNet
    from hlnet.network import HierarchicalNet
    from hlnet.plain import PlainNet

log = logging.getLogger("hlnet")

#: ``gain``: features of the cued branches times a factor (the paper's). ``bias``: logits of the cued classes shifted.
#: ``scale``: these logits times a factor.
Mode = Literal["gain", "bias", "scale"]
#: Where a gain acts: the leaves under the cued node, the node's own block, or all blocks on the way to its leaves.
Site = Literal["leaves", "node", "path"]
Probability = Annotated[float, Field(gt=0, lt=1)]
#: Of factors and shifts alike; beyond, float32 soon knows no numbers.
MOST = 1e6
Strength = Annotated[float, Field(ge=-MOST, le=MOST)]


class Cue(BaseModel):
    """One hint about one image: its class is among these.

    Attributes:
        node: what is named: a class, a node's path, or any other selection (:func:`hlnet.select_classes`).
        reliability: how often such a cue is right: the probability that the image's class is among those named. Below
            their share of all classes, it inhibits.
        strength: the factor (gain, scale) or the shift of logits (bias) itself, in place of a reliability.
        mode: how this one acts; default: as the :class:`Attention` says.

    Without reliability and strength, the :class:`Attention` says how strongly the cue acts.

    Raises:
        pydantic.ValidationError: for a reliability outside 0 to 1, a strength beyond a million, or both. What users
            write goes through :func:`hlnet.parse_cue` or :func:`hlnet.read_cues`, which raise a UsageError.

    Example:
        >>> Cue(node="animal/cat", reliability=0.9).reliability
        0.9
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    node: str
    reliability: Probability | None = None
    strength: Strength | None = None
    mode: Mode | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        _check_one(self)
        return self


class Attention(BaseModel):
    """How cues act.

    Attributes:
        mode: ``gain``, ``bias`` or ``scale``; of cues that do not say it themselves.
        site: where a gain acts: ``leaves`` (default), at the input of the last convolution of each leaf under the cued
            node, as in the paper's Sec. 4.4; ``node``, at that of the node's own block; ``path``, of all blocks on the
            way to its leaves. The latter two take a strength: curves are fitted for leaves.
        strength: of cues that state nothing of their own.
        reliability: of cues that state nothing of their own, if there is no ``strength`` here. With neither, it is the
            one that the network's fitted curves were chosen for.

    Raises:
        pydantic.ValidationError: for values out of range, or both a strength and a reliability.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode = "gain"
    site: Site = "leaves"
    strength: Strength | None = None
    reliability: Probability | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        _check_one(self)
        return self


@dataclass(frozen=True)
class Effect:
    """What cues do to a batch; ``None`` where they do nothing, so that without cues nothing is computed.

    Attributes:
        gains: ``[B, nodes]``, as :meth:`HierarchicalNet.forward` takes them.
        scale: ``[B, classes]``, factors on the logits.
        bias: ``[B, classes]``, added to the logits.
    """

    gains: Tensor | None = None
    scale: Tensor | None = None
    bias: Tensor | None = None

    def shifted(self, logits: Tensor) -> Tensor:
        """What scale and bias make of logits ``[B, classes]``."""
        if self.scale is not None:
            logits = logits * self.scale
        return logits if self.bias is None else logits + self.bias

    def logits(self, net: HierarchicalNet | PlainNet | InferenceNet, images: Tensor) -> Tensor:
        """Logits ``[B, classes]`` of images ``[B, 3, H, W]`` under the cues."""
        return self.shifted(net(images) if self.gains is None else net(images, self.gains))


def gains_for(tree: ClassTree, classes: Tensor, signal: float) -> Tensor:
    """One gain per image and node: ``signal`` on the leaf of the cued class, 1 elsewhere.

    Args:
        tree: the network's tree.
        classes: ``[B]``, position in ``tree.classes`` of the class that is cued for each image.
        signal: the factor; 1 is neutral, more enhances, less inhibits. At least 0.

    Returns:
        ``[B, tree.num_nodes]``, as :meth:`HierarchicalNet.forward` takes it.

    Raises:
        UsageError: if the signal is negative or not a number, or a class is out of range.

    Example:
        >>> tree = ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle"]})
        >>> gains_for(tree, torch.tensor([2]), 1.8)
        tensor([[1.0000, 1.0000, 1.0000, 1.0000, 1.8000]])
    """
    if not 0 <= signal < float("inf"):
        raise UsageError(f"attention signal {signal} must be a number of at least 0 (1 is neutral, 1.8 enhances)")
    if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < len(tree.classes):
        raise UsageError(f"cued classes must be positions in 0..{len(tree.classes) - 1}")
    gains = torch.ones(len(classes), tree.num_nodes, device=classes.device)
    gains[torch.arange(len(classes), device=classes.device), tree.offsets[-2] + classes] = signal
    return gains


def cue_evidence(reliability: float, named: float, classes: float) -> float:
    """By how much a cue moves the odds of what it names: the logarithm of the Bayes factor, in nats.

    ``ln(p / (1 - p)) - ln(m / (K - m))``: the odds that the cue is right over those of naming m of K equally frequent
    classes by chance. For one class that is ``ln(p (K - 1) / (1 - p))``. A cue that names all classes says nothing: 0.

    Args:
        reliability: p, above 0 and below 1.
        named: m; or how frequent the classes named are, where classes are not equally so.
        classes: K; or how frequent all are.

    Raises:
        UsageError: if the reliability is no such number.

    Example:
        >>> round(cue_evidence(0.9, 1, 10), 3), abs(round(cue_evidence(0.2, 2, 10), 3))
        (4.394, 0.0)
    """
    if not 0 < reliability < 1:
        raise UsageError(
            f"reliability {reliability} must lie between 0 and 1, both excluded; where a cue cannot be wrong, run only "
            "the classes that it names (certain)"
        )
    if named >= classes * (1 - 1e-9):  # all, to rounding
        return 0.0
    return math.log(reliability / (1 - reliability)) - math.log(named / (classes - named))


def curve_strength(curve: Curve, evidence: float) -> float:
    """The factor for some evidence: its logarithm lies on straight lines from (0, 0) through the curve's points.

    Beyond the last point it stays as there. Against the cued classes (negative evidence) it is the reciprocal.

    Example:
        >>> curve_strength(((2.0, 4.0),), 1.0), curve_strength(((2.0, 4.0),), -2.0), curve_strength(((2.0, 4.0),), 0.0)
        (2.0, 0.25, 1.0)
    """
    at, heights = [0.0, *(point for point, _ in curve)], [0.0, *(math.log(factor) for _, factor in curve)]
    height = float(np.interp(abs(evidence), at, heights))
    return math.exp(math.copysign(height, evidence * height)) if evidence else 1.0


def cue_effect(
    net: HierarchicalNet | PlainNet | InferenceNet,
    cues: Sequence[Sequence[Cue]],
    attention: Attention,
    competing: Sequence[int] | None = None,
    prior: Mapping[str, float] | None = None,
) -> Effect:
    """What cues do to the images of one batch.

    Several cues on an image count as independent: factors multiply and shifts add, also where they act in different
    ways. A cue of no evidence, a factor of 1 and a shift of 0 leave logits as they are, bit by bit.

    - ``bias``: with reliability p, the logits of the m cued of K classes are shifted by ``T * cue_evidence(p, m, K)``.
      That is Bayes' rule where probabilities are ``softmax(logits / T)``, T the network's fitted temperature or 1.
    - ``gain``, ``scale``: a factor on features or on logits. From a reliability only for a network that holds a curve.
      A scale depends on where the logits' zero is, which softmax does not: it lifts a cued logit above 0 and lowers one
      below.

    Args:
        net: the network; a plain one takes ``bias`` and ``scale``.
        cues: of each of the B images; none for an image without a cue.
        attention: how they act.
        competing: positions of the classes that compete, where not all do; they set K and m.
        prior: how frequent each class is where the images come from, by class name; all images' logits are shifted by
            it (:func:`hlnet.prior_shift`), whatever the mode, and reliabilities are weighed against it.

    Raises:
        UsageError: for a gain on a plain network, a negative factor, a strength that is neither given nor fitted, or at
            the site ``node`` a cue on what is no single node.
        SelectionError: if a cue names what the tree does not have.

    Example:
        >>> from hlnet.presets import create_model
        >>> net = create_model("resnet18", tree={"cat": ["tabby", "siamese"], "dog": ["beagle", "boxer"]})
        >>> effect = cue_effect(net, [[Cue(node="cat", reliability=0.75)], []], Attention(mode="bias"))
        >>> effect.bias
        tensor([[1.0986, 1.0986, 0.0000, 0.0000],
                [0.0000, 0.0000, 0.0000, 0.0000]])
    """
    tree, provenance = net.tree, net.provenance
    competing = range(len(tree.classes)) if competing is None else competing
    frequency, shift = np.ones(len(tree.classes)), None
    if prior is not None:
        frequency = _frequencies(tree, prior, competing)
        shares = torch.from_numpy(frequency / frequency.sum())
        same = prior_shift(shares, provenance.temperature or 1.0, provenance.one_vs_all)
        shift = same.to(net.device).expand(len(cues), -1)
    if not any(cues):
        return Effect(bias=shift)
    among = np.zeros(len(tree.classes), dtype=bool)
    among[list(competing)] = True
    frequency = frequency * among
    known: dict[Cue, tuple[Mode, np.ndarray, float]] = {}
    made: dict[Mode, np.ndarray] = {}
    for row, own in enumerate(cues):
        for cue in own:
            if cue not in known:
                mode = cue.mode or attention.mode
                if mode == "gain" and not net.has_branches:
                    raise UsageError(
                        "a plain network has no branches whose features could be scaled; cue it by a bias or a scale"
                    )
                named = select_classes(tree, cue.node)
                own_frequency = frequency[list(named)].sum()
                strength = _strength(cue, mode, attention, provenance, own_frequency, frequency.sum())
                known[cue] = mode, _columns(tree, cue.node, named, mode, attention.site), strength
            mode, columns, strength = known[cue]
            if mode not in made:
                width = tree.num_nodes if mode == "gain" else len(tree.classes)
                made[mode] = np.full((len(cues), width), 0 if mode == "bias" else 1, dtype=np.float32)
            if mode == "bias":
                made[mode][row, columns] += strength
            else:
                made[mode][row, columns] *= strength
    values = {mode: torch.from_numpy(effect).to(net.device) for mode, effect in made.items()}
    bias = values.get("bias")
    if shift is not None:
        bias = shift if bias is None else bias + shift
    return Effect(gains=values.get("gain"), scale=values.get("scale"), bias=bias)


def stored_effect(provenance: Provenance, classes: int) -> str | None:
    """In words, how the cue on one of so many classes acts that a file holds: "a gain of 3"; ``None`` if it holds none.

    Example:
        >>> from hlnet.provenance import FittedAttention
        >>> stored_effect(Provenance(attention=FittedAttention(reliability=0.9, gain=((2.0, 3.0),))), 10)
        'a gain of 3'
    """
    fitted = provenance.attention
    if fitted is None or classes < 2:
        return None
    evidence = cue_evidence(fitted.reliability, 1, classes)
    if fitted.mode == "bias":
        return f"a bias of {evidence * (provenance.temperature or 1.0):+.3g} on the logit"
    curve = fitted.gain if fitted.mode == "gain" else fitted.scale
    return f"a {fitted.mode} of {curve_strength(curve, evidence):.4g}" if curve else None


def cued_node(tree: ClassTree, selection: str) -> tuple[int, int]:
    """The place of the node that a cue means: of that name, or whose classes are those of the selection.

    Raises:
        UsageError: if there is no such node.
    """
    try:
        return tree.find_node(selection)
    except SelectionError:
        named = select_classes(tree, selection)
        path = next((path for path, below in tree.node_names.below.items() if below == named), None)
        if path is None:
            raise UsageError(f"the cue on '{selection}' names no single node, whose block could be scaled") from None
        return tree.find_node(path)


def check_site(attention: Attention, cues: Iterable[Cue] = ()) -> None:
    """Warn, once and before the work, of sites that served worse where they were measured (docs/attention.md).

    Raises:
        UsageError: if there is no gain, whose site that could be.
    """
    modes = {cue.mode or attention.mode for cue in cues} or {attention.mode}
    if "gain" not in modes and attention.site != "leaves":
        ways = " and ".join(sorted(modes))
        raise UsageError(f"the site '{attention.site}' is where a gain acts, and cues act by {ways}; cue by a gain")
    if attention.site == "path":
        log.warning("gains along the whole path ebb early and cost the most when wrong; try --cue-site leaves")
    if attention.site == "node":
        log.warning("a gain on an inner node's own block did less, and harm at level 1; try --cue-site leaves")


# ---------------------------------------------------------------------- helpers


def _check_one(stated: Cue | Attention) -> None:
    if stated.reliability is not None and stated.strength is not None:
        raise ValueError("a reliability and a strength both say how strongly a cue acts; give one of them")


def _strength(
    cue: Cue, mode: Mode, attention: Attention, provenance: Provenance, named: float, classes: float
) -> float:
    """The factor or shift of one cue; how frequent the classes named are, and all that compete."""
    given = cue.strength
    if given is None and cue.reliability is None and attention.strength is not None:
        if mode != attention.mode:
            raise UsageError(
                f"the cue on '{cue.node}' acts by {mode}, and the strength {attention.strength:g} is that of a "
                f"{attention.mode}; give the cue one of its own"
            )
        given = attention.strength
    if given is not None:
        if mode != "bias" and given < 0:
            raise UsageError(f"{mode} {given:g} must be at least 0 (1 is neutral, 1.8 enhances, 0.5 inhibits)")
        return given
    fitted = provenance.attention
    reliability = cue.reliability or attention.reliability or (fitted.reliability if fitted else None)
    if reliability is None:
        raise UsageError(
            f"how strongly the cue on '{cue.node}' acts is not said: give a reliability or a strength, or fit one "
            "(hlnet attend)"
        )
    evidence = cue_evidence(reliability, named, classes) if named else 0.0
    if mode == "bias":
        return evidence * (provenance.temperature or 1.0)
    if attention.site != "leaves" and mode == "gain":
        raise UsageError(f"at the site '{attention.site}' a gain needs a strength: curves are fitted for leaves")
    curve = (fitted.gain if mode == "gain" else fitted.scale) if fitted else ()
    if not curve:
        raise UsageError(
            f"this network holds no {mode} for a reliability: give a strength, cue by a bias, or fit one (hlnet attend)"
        )
    return curve_strength(curve, evidence)


def _frequencies(tree: ClassTree, prior: Mapping[str, float], competing: Sequence[int]) -> np.ndarray:
    """The prior of each class; of those that do not compete, whatever it may be."""
    if lacking := [tree.classes[place] for place in competing if tree.classes[place] not in prior]:
        raise UsageError(
            f"the prior says nothing of {some(lacking)}; it takes every class by name, as hlnet.read_prior spreads "
            "probabilities of nodes over their classes"
        )
    found = np.array([prior.get(name, 0.0) for name in tree.classes])
    if not (found[list(competing)] > 0).all():
        raise UsageError("a prior must be above 0 for each class; cut an expert without those that cannot be")
    found[found <= 0] = found[found > 0].min()
    return found


def _columns(tree: ClassTree, node: str, named: Sequence[int], mode: Mode, site: Site) -> np.ndarray:
    """What a cue acts on: classes, or in the order of gains, nodes."""
    if mode != "gain":
        return np.array(named)
    if site == "leaves":
        return np.array(named) + tree.offsets[-2]
    if site == "path":
        rows = tree.rows(named)
        return np.concatenate([np.array(row) + offset for row, offset in zip(rows, tree.offsets, strict=False)])
    level, position = cued_node(tree, node)
    return np.array([tree.offsets[level] + position])
