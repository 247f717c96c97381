"""Cues: hints from outside about an image's class, and the three ways in which they act on a network.

Notable here: a cue's *evidence* is one number, by how much it moves the odds of what it names. A bias is that number; a
gain or a scale is looked up by it, in a curve that was fitted (``hlnet attend``) or trained for (``--cue-aware``). So
leaves and inner nodes, two classes and a thousand, one cue and several, are all one case.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from hlnet.errors import UsageError
from hlnet.model.provenance import Curve, Provenance

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


def stated_attention(
    provenance: Provenance,
    mode: Mode | None = None,
    site: Site = "leaves",
    strength: float | None = None,
    reliability: float | None = None,
) -> Attention:
    """How cues act that state nothing: as asked for or, where nothing is, as the network's file holds.

    Without a mode, a strength is a gain and a reliability a bias; with neither, the mode is the fitted one, if any.

    Args:
        provenance: the network's.
        mode, site, strength, reliability: see :class:`Attention`.

    Example:
        >>> stated_attention(Provenance(), strength=1.8).mode, stated_attention(Provenance(), reliability=0.9).mode
        ('gain', 'bias')
    """
    fitted = provenance.attention
    if fitted is not None and strength is None and reliability is None:
        mode, reliability = mode or fitted.mode, fitted.reliability
    mode = mode or ("bias" if strength is None else "gain")
    return Attention(mode=mode, site=site, strength=strength, reliability=reliability)


def settled(cue: Cue, mode: Mode | None = None) -> Cue:
    """A cue that says how it acts: as is asked for, else a reliability as a bias and a strength as a gain.

    One that states neither stays as it is: the :class:`Attention` speaks for it.
    """
    if cue.mode is not None or is_silent(cue):
        return cue
    return cue.model_copy(update={"mode": mode or ("bias" if cue.strength is None else "gain")})


def is_silent(cue: Cue) -> bool:
    """Whether a cue states neither a reliability nor a strength."""
    return cue.reliability is None and cue.strength is None


def log_stored(provenance: Provenance, attention: Attention, classes: int) -> None:
    """Say, in the log ``hlnet``, how cues act that go by what the network's file holds.

    Args:
        provenance: the network's.
        attention: how they act, see :func:`stated_attention`.
        classes: how many classes compete.
    """
    fitted = provenance.attention
    if fitted is None:
        return
    acting = provenance.model_copy(update={"attention": fitted.model_copy(update={"mode": attention.mode})})
    if what := stored_effect(acting, classes):
        log.info(
            "as the model's file holds it, cues count as right in %g %% of cases and act, on one class, as %s",
            *(100 * fitted.reliability, what),
        )


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


def stored_effect(provenance: Provenance, classes: int) -> str | None:
    """In words, how the cue on one of so many classes acts that a file holds: "a gain of 3"; ``None`` if it holds none.

    Example:
        >>> from hlnet.model.provenance import FittedAttention
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
