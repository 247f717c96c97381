"""Cues: hints from outside about an image's class, and the three ways in which they act on a network.

Notable here: a cue's *evidence* is one number, by how much it moves the odds of what it names. A bias is that number; a
gain or a scale is looked up by it, in a curve that was fitted (``hlnet attend``) or trained for (``--cue-aware``). So
leaves and inner nodes, two classes and a thousand, one cue and several, are all one case.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from hlnet.errors import UsageError
from hlnet.model.provenance import Curve, Provenance
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.selection import select_classes

#: ``gain``: features of the cued branches times a factor (the paper's). ``bias``: logits of the cued classes shifted.
#: ``scale``: these logits times a factor.
Mode = Literal["gain", "bias", "scale"]

Probability = Annotated[float, Field(gt=0, lt=1)]

#: The largest factor or shift; larger values may overflow float32.
MOST = 1e6

Strength = Annotated[float, Field(ge=-MOST, le=MOST)]


def check_one(stated: Any) -> Any:
    """A cue or a policy, if it does not state both a reliability and a strength.

    Raises:
        ValueError: if it does.
    """
    if stated.reliability is not None and stated.strength is not None:
        raise ValueError("a reliability and a strength both say how strongly a cue acts; give one of them")
    return stated


class Cue(BaseModel):
    """One hint about one image: its class is among these.

    Attributes:
        node: what is named: a class, a node's path, or any other selection (:func:`hlnet.select_classes`).
        reliability: how often such a cue is right: the probability that the image's class is among those named. Below
            their share of all classes, it inhibits.
        strength: the factor (gain, scale) or the shift of logits (bias) itself, in place of a reliability.
        mode: how this one acts; default: as the :class:`hlnet.CuePolicy` says.
        classes: names of the classes that ``node`` means, once they were looked up in a tree (:meth:`on`); for a
            network of another tree, they are what the cue names.

    Without reliability and strength, the :class:`hlnet.CuePolicy` says how strongly the cue acts.

    Raises:
        pydantic.ValidationError: for a reliability outside 0 to 1, a strength beyond a million, or both. What users
            write goes through :func:`hlnet.cues.files.parse_cue` or :func:`hlnet.cues.files.read_cues`, which raise a
            UsageError.

    Example:
        >>> Cue(node="animal/cat", reliability=0.9).reliability
        0.9
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    node: str
    reliability: Probability | None = None
    strength: Strength | None = None
    mode: Mode | None = None
    classes: tuple[str, ...] | None = Field(default=None, repr=False)

    _one_of_two = model_validator(mode="after")(check_one)

    @property
    def is_silent(self) -> bool:
        """Whether it states neither a reliability nor a strength."""
        return self.reliability is None and self.strength is None

    def on(self, tree: ClassTree) -> Cue:
        """The cue with its classes: those that it has, or else those that the tree finds.

        Raises:
            SelectionError: if the cue names what the tree does not have.
        """
        if self.classes is not None:
            return self
        return self.model_copy(update={"classes": tuple(tree.classes[i] for i in select_classes(tree, self.node))})

    def positions(self, tree: ClassTree) -> tuple[int, ...]:
        """Positions of the classes named, ascending; of classes found in another tree, those that this one has.

        Raises:
            SelectionError: if the classes were not looked up yet, and the cue names what the tree does not have.

        Example:
            >>> full = ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle"]})
            >>> Cue(node="cat").on(full).positions(ClassTree.from_nested(["beagle", "siamese"]))
            (1,)
        """
        if self.classes is None:
            return select_classes(tree, self.node)
        return tuple(sorted(tree.positions[name] for name in self.classes if name in tree.positions))


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
            "the classes that it names (hard cues)"
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
