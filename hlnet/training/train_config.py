"""Settings of a training; names follow timm's where it has them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from hlnet.training.settings import IMAGES, TRAINING, TRUNK, Settings, setting

Share = Annotated[float, Field(gt=0, le=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Reliability = Annotated[float, Field(gt=0, lt=1)]
LossName = Literal["cross-entropy", "bce", "hierarchical", "soft-labels"]


class TrainConfig(Settings):
    """Settings of a training."""

    frozen_trunk: bool = setting(False, "Train only the layers behind the trunk.", TRUNK)
    unfreeze_epochs: NonNegativeInt = setting(
        0, "Unfreeze one more of a frozen trunk's stages every so many epochs, from its end; 0 for never.", TRUNK
    )
    layer_decay: Share | None = setting(
        None, "Factor on the learning rate per stage, from the branches back to the first.", TRUNK
    )
    cache_views: NonNegativeInt = setting(
        0, "With a frozen trunk: cache the features of so many augmented views of each image; 0 for none.", TRUNK
    )
    aa: str = setting("rand-m9-mstd0.5", "timm's auto-augment policy, or 'none'.", IMAGES)
    scale: tuple[Share, Share] = setting((0.35, 1.0), "Share of the area that crops keep: low,high.", IMAGES)
    hflip: Probability = setting(0.5, "Probability of a horizontal flip.", IMAGES)
    reprob: Probability = setting(0.0, "Probability that a rectangle is erased.", IMAGES)
    mixup: NonNegativeFloat = setting(0.0, "timm's mixup alpha; 0 for none.", IMAGES)
    cutmix: NonNegativeFloat = setting(0.0, "timm's cutmix alpha; 0 for none.", IMAGES)
    skip_unreadable: bool = setting(
        False, "Replace an image that cannot be read by another one, instead of stopping.", IMAGES
    )
    epochs: PositiveInt = setting(30, "Passes over the training images.", TRAINING)
    batch_size: PositiveInt | Literal["auto"] = setting(
        32, "Images per step and process, or auto: the largest power of two that fits a GPU's memory.", TRAINING
    )
    loss: LossName = setting("cross-entropy", "cross-entropy, bce, hierarchical or soft-labels.", TRAINING)
    smoothing: float = setting(0.1, "Label smoothing of cross-entropy and bce.", TRAINING, ge=0, lt=1)
    hierarchical_alpha: NonNegativeFloat = setting(
        0.1, "Hierarchical loss: how fast weights fall towards the leaves.", TRAINING
    )
    soft_labels_beta: PositiveFloat = setting(
        10.0, "Soft-labels loss: how fast targets fall with the distance in the tree; large is one-hot.", TRAINING
    )
    rows_loss: NonNegativeFloat = setting(
        0.3, "Weight of the loss of the class rows alone, for networks that have them.", TRAINING
    )
    cue_aware: bool = setting(False, "Train with random cues, so that a gain acts as evidence of its weight.", TRAINING)
    cue_share: Share = setting(0.5, "Share of training images that get a cue.", TRAINING)
    cue_reliability: tuple[Reliability, Reliability] = setting(
        (0.5, 0.99), "How often these cues are right: low,high.", TRAINING
    )
    opt: str = setting("adamw", "timm optimizer: adamw, sgd, …", TRAINING)
    lr: PositiveFloat = setting(1e-3, "Learning rate at the top of the schedule.", TRAINING, allow_inf_nan=False)
    momentum: float = setting(0.9, "Momentum of optimizers that have one.", TRAINING, ge=0, lt=1)
    weight_decay: NonNegativeFloat = setting(0.05, "Weight decay; biases and normalisation have none.", TRAINING)
    sched: str = setting("cosine", "timm schedule: cosine, step, …", TRAINING)
    min_lr: NonNegativeFloat = setting(1e-6, "Learning rate at the end of the schedule.", TRAINING)
    warmup_epochs: NonNegativeFloat | None = setting(
        None,
        "Epochs of learning rates that rise from min_lr, before the schedule; by default 2, at most a tenth of all.",
        TRAINING,
    )
    decay_epochs: PositiveInt = setting(30, "Epochs between the steps of schedules that have them.", TRAINING)
    decay_rate: Share = setting(0.1, "Factor on the learning rate at each of these steps.", TRAINING)
    clip_grad: PositiveFloat | None = setting(None, "Largest norm of the gradient.", TRAINING)
    ema_decay: float | None = setting(
        None, "Evaluate and save a moving average of the weights, decaying by this.", TRAINING, gt=0, lt=1
    )
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = setting("auto", "auto, no, fp16 or bf16.", TRAINING)
    workers: NonNegativeInt = setting(2, "Processes that load images.", TRAINING)
    seed: NonNegativeInt = setting(0, "Seed of the weights, the order of images and their augmentation.", TRAINING)

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale {self.scale} must be low, high")
        if self.cache_views and not self.frozen_trunk:
            raise ValueError("training on cached features (cache_views) needs frozen_trunk")
        if self.unfreeze_epochs and not self.frozen_trunk:
            raise ValueError("unfreeze_epochs is for a frozen trunk: it needs frozen_trunk")
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
