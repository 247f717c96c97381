"""Settings of a training run; names follow timm's where it has them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

Share = Annotated[float, Field(gt=0, le=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Reliability = Annotated[float, Field(gt=0, lt=1)]
LossName = Literal["cross-entropy", "bce", "hierarchical", "soft-labels"]


class TrainConfig(BaseModel):
    """Settings of a run.

    Attributes:
        epochs: passes over the training images.
        batch_size: images a step and process; ``auto`` takes the largest power of two that fits the device's memory,
            32 on a CPU.
        opt: any timm optimizer.
        lr: learning rate at the top of the schedule.
        momentum: of optimizers that have one.
        weight_decay: not applied to biases and normalisation.
        layer_decay: factor on the learning rate per stage, from the branches back to the first; ``None`` for one rate.
        sched: any of timm's schedules that are functions of time: ``cosine``, ``step``, ``poly`` and so on.
        min_lr: learning rate at the end.
        warmup_epochs: rise from ``min_lr`` towards ``lr``; then the schedule is joined where it stands, as timm does.
        decay_epochs, decay_rate: of the schedules that fall in steps.
        loss: ``cross-entropy`` (the paper's), ``bce`` (one against all), ``hierarchical`` or ``soft-labels``; see
            :mod:`hlnet.training.losses`.
        smoothing: label smoothing of cross-entropy and bce.
        hierarchical_alpha: how fast weights fall towards the leaves in the hierarchical loss.
        soft_labels_beta: how fast shares fall with the distance in the tree; large is nearly one-hot.
        mixup, cutmix: timm's alpha; 0 for none.
        cue_aware: train with random cues, so that a gain acts as evidence of its weight; see
            :mod:`hlnet.cues.cue_aware`.
        cue_share: of training images that get a cue.
        cue_reliability: of these cues, between low and high.
        clip_grad: largest norm of the gradient; ``None`` leaves it.
        ema_decay: keep an exponential moving average of the weights, evaluate and save that; ``None`` does not.
        mixed_precision: ``auto`` takes bfloat16 or float16 where the device has it.
        aa: timm's auto-augment policy (``rand-…`` is RandAugment, as in the paper), or ``none``.
        scale: share of the image's area that a random crop keeps, low and high.
        hflip: probability of a horizontal flip.
        reprob: probability that a rectangle of an image is erased.
        skip_unreadable: put another image in the place of one that cannot be read, instead of stopping.
        frozen_trunk: train only what lies behind the split point.
        unfreeze_epochs: with a frozen trunk, thaw one more of its stages every so many epochs, from its end; 0: never.
        cache_views: with a frozen trunk, how many augmented views of each image are cached as features; 0 for none.
            They take ``2 * cache_views * images * C * h * w`` bytes.
        workers: processes that load images.
        seed: of weights, order and augmentation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: PositiveInt = 30
    batch_size: PositiveInt | Literal["auto"] = 32
    opt: str = "adamw"
    lr: PositiveFloat = Field(default=1e-3, allow_inf_nan=False)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: NonNegativeFloat = 0.05
    layer_decay: Share | None = None
    sched: str = "cosine"
    min_lr: NonNegativeFloat = 1e-6
    warmup_epochs: NonNegativeInt = 2
    decay_epochs: PositiveInt = 30
    decay_rate: Share = 0.1
    loss: LossName = "cross-entropy"
    smoothing: float = Field(default=0.1, ge=0, lt=1)
    hierarchical_alpha: NonNegativeFloat = 0.1
    soft_labels_beta: PositiveFloat = 10.0
    mixup: NonNegativeFloat = 0.0
    cutmix: NonNegativeFloat = 0.0
    cue_aware: bool = False
    cue_share: Share = 0.5
    cue_reliability: tuple[Reliability, Reliability] = (0.5, 0.99)
    clip_grad: PositiveFloat | None = None
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    aa: str = "rand-m9-mstd0.5"
    scale: tuple[Share, Share] = (0.35, 1.0)
    hflip: Probability = 0.5
    reprob: Probability = 0.0
    skip_unreadable: bool = False
    frozen_trunk: bool = False
    unfreeze_epochs: NonNegativeInt = 0
    cache_views: NonNegativeInt = 0
    workers: NonNegativeInt = 2
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale {self.scale} must be low, high")
        if self.cache_views and not self.frozen_trunk:
            raise ValueError("training on cached features (cache_views) needs frozen_trunk")
        if self.unfreeze_epochs and not self.frozen_trunk:
            raise ValueError("unfreeze_epochs thaws a frozen trunk: it needs frozen_trunk")
        if self.cache_views and self.unfreeze_epochs:
            raise ValueError(
                "cached features (cache_views) are of a trunk that stays frozen: leave unfreeze_epochs out"
            )
        if self.cache_views and self.layer_decay:
            raise ValueError("layer_decay is for a trunk that trains, and cached features (cache_views) have none")
        if self.sched in ("plateau", "none"):
            raise ValueError(f"sched '{self.sched}' is not offered, only schedules of time are; try cosine or step")
        if self.cue_reliability[0] > self.cue_reliability[1]:
            raise ValueError(f"cue_reliability {self.cue_reliability} must be low, high")
        if self.cue_aware and (self.mixup or self.cutmix):
            raise ValueError("a cue names one class (cue_aware), and mixup and cutmix make images of two")
        if self.batch_size == 1 and (self.mixup or self.cutmix):
            raise ValueError("mixup and cutmix mix pairs of images: batch_size must be at least 2")
        if self.cache_views and (self.mixup or self.cutmix):
            raise ValueError("mixup and cutmix mix images, not cached features (cache_views)")
        return self
