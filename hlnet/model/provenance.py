"""What a checkpoint tells of its weights beside their shape: where they came from, and what was measured of them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

#: A row of numbers for each level, level 1 first: which nodes of another network's level these are.
Rows = tuple[tuple[int, ...], ...]
#: Points (evidence, factor), evidence above 0 and rising.
Curve = tuple[tuple[float, float], ...]
#: What tells a network's own classes from others; :func:`hlnet.evaluation.metrics.rejection.rejection_scores` has the
#: formulas.
Score = Literal["energy", "max-logit", "probability"]


class Rejection(BaseModel):
    """When a network says "none of these": below a threshold of a score.

    Attributes:
        score: what is compared: ``"energy"`` (log-sum-exp of the logits), ``"max-logit"``, or ``"probability"`` (the
            highest of the classes' sigmoids). Of logits as they are, before any temperature.
        threshold: images that score lower are rejected.
        max_false_positive: the share of images of other classes that may be accepted, as asked for; 1 where nothing was
            asked of them, since there were none.
        max_own_rejected: the share of own images that may be rejected, where the threshold comes from these alone.
        data: the images that it was fitted on.
        metrics: what was measured on these images, see :func:`hlnet.calibrate`.
    """

    model_config = ConfigDict(extra="forbid")

    score: Score
    threshold: float
    max_false_positive: float
    max_own_rejected: float | None = None
    data: str = ""
    metrics: dict[str, float] = Field(default_factory=dict)


class FittedAttention(BaseModel):
    """How strongly cues act best, found by ``hlnet attend``, or trained for (``train --cue-aware``).

    Attributes:
        reliability: of cues of which nothing is said.
        mode: the way of cueing that served best at that reliability: ``gain``, ``bias`` or ``scale``.
        gain, scale: the factor by a cue's evidence, see :func:`hlnet.cues.cue.curve_strength`.
        data: the images that it was fitted on; empty where it was trained for.
        metrics: what was measured.
    """

    model_config = ConfigDict(extra="forbid")

    reliability: float = Field(gt=0, lt=1)
    mode: Literal["gain", "bias", "scale"] = "gain"
    gain: Curve = ()
    scale: Curve = ()
    data: str = ""
    metrics: dict[str, float] = Field(default_factory=dict)

    @field_validator("gain", "scale")
    @classmethod
    def _rising(cls, curve: Curve) -> Curve:
        evidence = [at for at, _ in curve]
        if evidence != sorted(set(evidence)) or any(at <= 0 or factor <= 0 for at, factor in curve):
            raise ValueError("a curve's points must have evidence above 0 and rising, and factors above 0")
        return curve


class PathConformal(BaseModel):
    """Where a path answer ends, so that its node holds the image's class as often as asked
    (:mod:`hlnet.evaluation.metrics.conformal`).

    Attributes:
        thresholds: how likely a node must be to be answered, for coverages of 0.5, 0.501, 0.502 … as far as the images
            allow, at most 0.999; of probabilities at the temperature that stands beside it.
        images: how many they were fitted on.
        data: which.
        metrics: what was measured, see :func:`hlnet.evaluation.calibration.calibrate_paths`.
    """

    model_config = ConfigDict(extra="forbid")

    thresholds: tuple[float, ...]
    images: int
    data: str = ""
    metrics: dict[str, float] = Field(default_factory=dict)


class FittedDescent(BaseModel):
    """Where a descent stops, so that it agrees with the full network as often as promised
    (:func:`hlnet.evaluation.descent_fit.fit_descent`).

    Attributes:
        agreement: the share of new images whose answer is the full network's, as promised.
        confidence: how certain that promise is, over draws of the images that it was fitted on.
        threshold: how likely, in relation to the leading class, a class may be that has not run.
        images: how many it was fitted on.
        data: which.
        metrics: what was measured on these, see :func:`hlnet.evaluation.descent.measured`; and ``agreement``.
    """

    model_config = ConfigDict(extra="forbid")

    agreement: float = Field(gt=0, lt=1)
    confidence: float = Field(gt=0, lt=1)
    threshold: float = Field(ge=0, le=1)
    images: int
    data: str = ""
    metrics: dict[str, float] = Field(default_factory=dict)


#: What images can do for a network: train its weights, choose its epoch, or fit one of the things below.
Use = Literal["weights", "epoch", "temperature", "coverage", "rejection", "attention", "descent"]


class ImageUse(BaseModel):
    """A set of images that trained, chose or fitted something of a network.

    Attributes:
        use: what they served for.
        data: what they were called.
        images: which they are, :meth:`hlnet.data.images.LabelledImages.fingerprint`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    use: Use
    data: str
    images: str


class Provenance(BaseModel):
    """Where a network's weights came from; travels inside the checkpoint.

    Attributes:
        recipe: the settings it was trained with.
        one_vs_rest: whether each class was trained as a detector of its own (``bce``), whose sigmoid is its
            probability. Where it is not given, as in files that lack it, it is what the recipe's loss says.
        metrics: what was measured of it when it was written.
        parent: for an expert, the full network's fingerprint (see ``hlnet.store.checkpoint``).
        parent_counts: for an expert, the nodes at each level of the full network, which set that network's cost.
        parent_rows: for an expert, which of these nodes it has, so that a union of experts can stand in their order.
        next_index: for an expert, the first original index that no class of the full network has, nor any above it.
        attention: how strongly cues are to act, where that was fitted.
        temperature: what logits are divided by for calibrated probabilities, where it was fitted.
        rejection: when to say "none of these", where that was fitted.
        conformal: where path answers end for a coverage, where that was fitted.
        descent: where a descent stops for an agreement, where that was fitted.
        images: which images trained, chose or fitted what, so that nobody takes figures on them for figures on fresh
            images. Files that were written before 0.1.0 lack it.
    """

    model_config = ConfigDict(extra="forbid")

    recipe: dict[str, Any] = Field(default_factory=dict)
    one_vs_rest: bool = False
    metrics: dict[str, float] = Field(default_factory=dict)
    parent: str | None = None
    parent_counts: tuple[int, ...] | None = None
    parent_rows: Rows | None = None
    next_index: int | None = None
    attention: FittedAttention | None = None
    temperature: float | None = None
    rejection: Rejection | None = None
    conformal: PathConformal | None = None
    descent: tuple[FittedDescent, ...] = ()
    images: tuple[ImageUse, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _by_recipe(cls, given: Any) -> Any:
        """A file without the field goes by its recipe."""
        if isinstance(given, dict) and "one_vs_all" in given:  # its name for a short time
            given = {name: value for name, value in given.items() if name != "one_vs_all"} | {
                "one_vs_rest": given["one_vs_all"]
            }
        if not isinstance(given, dict) or "one_vs_rest" in given:
            return given
        return given | {"one_vs_rest": _says_bce(given.get("recipe"))}

    @model_serializer(mode="wrap")
    def _without_default(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what the recipe says as well, or what goes without saying."""
        found: dict[str, Any] = serialize(self)
        if not self.one_vs_rest and not _says_bce(self.recipe):
            found.pop("one_vs_rest", None)
        for name in ("descent", "images"):
            if not getattr(self, name):
                found.pop(name, None)
        return found

    def record(self, use: Use, data: str, images: str) -> None:
        """Note that a set of images served for something; what was fitted before by others is fitted anew.

        Example:
            >>> known = Provenance(temperature=1.5)
            >>> known.record("epoch", "photos/val", "0a")
            >>> known.record("temperature", "photos/val", "0a")
            >>> known.uses_of("0a"), known.uses_of("0b")
            (['epoch', 'temperature'], [])
        """
        one = ImageUse(use=use, data=data.strip("'"), images=images)
        kept = tuple(old for old in self.images if old != one and (use in ("weights", "epoch") or old.use != use))
        self.images = (*kept, one)

    def uses_of(self, images: str) -> list[Use]:
        """What the images of this fingerprint served for, as far as the network still has it."""
        fitted = {
            "temperature": self.temperature,
            "coverage": self.conformal,
            "rejection": self.rejection,
            "attention": self.attention,
            "descent": self.descent or None,
        }
        return [one.use for one in self.images if one.images == images and fitted.get(one.use, True) is not None]

    def after_training(self, recipe: dict[str, Any], one_vs_rest: bool = False) -> Provenance:
        """What still holds of weights that train on: they are no cut of a parent any more, and nothing is fitted.

        Args:
            recipe: the settings that they are trained with.
            one_vs_rest: whether classes are trained as detectors of their own.
        """
        return Provenance(
            recipe=recipe,
            one_vs_rest=one_vs_rest,
            parent_counts=self.parent_counts,
            next_index=self.next_index,
            images=self.images,
        )


def _says_bce(recipe: Any) -> bool:
    train = recipe.get("train") if isinstance(recipe, dict) else None
    return isinstance(train, dict) and train.get("loss") == "bce"
