"""Training: cross-entropy over all leaves at once (paper, Sec. 3.1), its loop on Hugging Face accelerate.

Notable here: a network with a frozen trunk may train on cached features (``hlnet.features``); then only what lies
behind the trunk runs and is handed to the optimizer.
"""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
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
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import Dataset

from hlnet.checkpoint import save_checkpoint
from hlnet.data import TreeData, loader
from hlnet.errors import RunError, UsageError, did_you_mean
from hlnet.features import CachedFeatures
from hlnet.files import replacing
from hlnet.network import HierarchicalNet
from hlnet.plain import PlainNet

#: What a run folder holds.
RUN_FILES = ("config.toml", "metrics.csv", "curves.png", "best.safetensors", "last.safetensors")

Share = Annotated[float, Field(gt=0, le=1)]


class TrainConfig(BaseModel):
    """Settings of a run; names follow timm's where it has them.

    Attributes:
        epochs: passes over the training images.
        batch_size: images a step.
        opt: any timm optimizer.
        lr: learning rate at the top of a cosine that falls to ``min_lr`` over all epochs.
        weight_decay: not applied to biases and normalisation.
        warmup_epochs: rise from ``min_lr`` towards ``lr``; then the cosine is joined where it stands, as timm does.
        smoothing: label smoothing.
        clip_grad: largest norm of the gradient; ``None`` leaves it.
        ema_decay: keep an exponential moving average of the weights, evaluate and save that; ``None`` does not.
        mixed_precision: ``auto`` takes bfloat16 or float16 where the device has it.
        aa: timm's auto-augment policy (``rand-…`` is RandAugment, as in the paper), or ``none``.
        scale: share of the image's area that a random crop keeps, low and high.
        hflip: probability of a horizontal flip.
        frozen_trunk: train only what lies behind the split point.
        cache_views: with a frozen trunk, how many augmented views of each image are cached as features; 0 for none.
            They take ``2 * cache_views * images * C * h * w`` bytes of memory.
        workers: processes that load images.
        seed: of weights, order and augmentation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: PositiveInt = 30
    batch_size: PositiveInt = 32
    opt: str = "adamw"
    lr: PositiveFloat = Field(default=1e-3, allow_inf_nan=False)
    min_lr: NonNegativeFloat = 1e-6
    weight_decay: NonNegativeFloat = 0.05
    warmup_epochs: NonNegativeInt = 2
    smoothing: float = Field(default=0.1, ge=0, lt=1)
    clip_grad: PositiveFloat | None = None
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    aa: str = "rand-m9-mstd0.5"
    scale: tuple[Share, Share] = (0.35, 1.0)
    hflip: float = Field(default=0.5, ge=0, le=1)
    frozen_trunk: bool = False
    cache_views: NonNegativeInt = 0
    workers: NonNegativeInt = 2
    seed: int = 0

    @model_validator(mode="after")
    def _scale_in_order(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale {self.scale} must be low, high")
        return self


class Epoch(BaseModel):
    """One line of ``metrics.csv``: losses are mean cross-entropies, accuracies shares in 0..1, times in seconds."""

    epoch: int
    lr: float
    train_loss: float
    train_top1: float
    val_loss: float
    val_top1: float
    seconds: float


def train(
    net: HierarchicalNet | PlainNet,
    train_data: TreeData | CachedFeatures,
    val_data: TreeData | CachedFeatures,
    config: TrainConfig | None = None,
    out: str | Path | None = None,
    device: str | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    on_batch: Callable[[str, int, int], None] | None = None,
) -> list[Epoch]:
    """Train the network in place.

    Args:
        net: what to train; afterwards it holds the weights of the best epoch by validation accuracy.
        train_data, val_data: images with labels in the order of ``net.tree.classes``; or both as features of this
            network's trunk that are cached already.
        config: the settings.
        out: run folder; gets ``config.toml``, ``metrics.csv``, ``curves.png``, ``best.safetensors`` and
            ``last.safetensors``.
        device: ``cpu``, ``cuda``, …; default: what accelerate finds.
        on_epoch: called after each epoch.
        on_batch: called after each batch with the phase, its step and its number of steps.

    Returns:
        the epochs, in order.

    Raises:
        UsageError: for an optimizer or augmentation that timm does not have, or settings that do not go together.
        RunError: if the loss stops being a number.
    """
    config = config or TrainConfig()
    cached = config.cache_views > 0 or isinstance(train_data, CachedFeatures)
    if cached and not config.frozen_trunk:
        raise UsageError("training on cached features (cache_views) needs frozen_trunk")
    set_seed(config.seed)
    accelerator = _accelerator(config.mixed_precision, device)
    tell = on_batch or (lambda phase, step, steps: None)
    if isinstance(train_data, CachedFeatures) != isinstance(val_data, CachedFeatures) and not config.cache_views:
        raise UsageError("training and validation data must both be images or both be cached features")
    if config.frozen_trunk or net.frozen:  # what a caller froze by hand otherwise stays as it is
        net.freeze_trunk(config.frozen_trunk)
    if cached:
        net.to(accelerator.device)
        train_data = _cache(net, train_data, config, config.cache_views, "features", tell)
        val_data = _cache(net, val_data, config, 1, "features (val)", tell)
    run = _Run(net, net.head if cached else net, train_data, val_data, config, accelerator, tell)
    history: list[Epoch] = []
    best: dict[str, Tensor] = {}
    net.provenance.recipe = config.model_dump(mode="json")
    if out and accelerator.is_main_process:
        for name in RUN_FILES:  # an earlier run's must not stand beside this one's
            (Path(out) / name).unlink(missing_ok=True)
        _write_config(net, config, Path(out))
    for number in range(1, config.epochs + 1):
        epoch = run.epoch(number)
        history.append(epoch)
        if on_epoch:
            on_epoch(epoch)
        net.provenance.metrics = {"epoch": number, "val_top1": epoch.val_top1, "val_loss": epoch.val_loss}
        improved = epoch.val_top1 > max((past.val_top1 for past in history[:-1]), default=-1.0)
        weights = run.weights()
        if improved:
            best = {name: tensor.clone() for name, tensor in weights.items()}
            best_metrics = net.provenance.metrics
        if out and accelerator.is_main_process:
            _write_progress(net, weights, history, Path(out), improved)
    # Mixed precision was for training only: accelerate gives the method back, as an attribute that shadows the class's.
    vars(accelerator.unwrap_model(run.module, keep_fp32_wrapper=False)).pop("forward", None)
    net.load_state_dict(best)
    net.provenance.metrics = best_metrics
    net.to(accelerator.device).eval()
    return history


class _Run:
    """The moving parts of one training run."""

    def __init__(
        self,
        net: HierarchicalNet | PlainNet,
        trained: nn.Module,
        train_data: Dataset[Any],
        val_data: Dataset[Any],
        config: TrainConfig,
        accelerator: Accelerator,
        tell: Callable[[str, int, int], None],
    ) -> None:
        self.net, self.config, self.accelerator, self.tell = net, config, accelerator, tell
        self.updates = 0
        workers = 0 if isinstance(train_data, CachedFeatures) else config.workers
        batches = loader(train_data, config.batch_size, workers, shuffle=True, seed=config.seed)
        try:
            optimizer = create_optimizer_v2(trained, opt=config.opt, lr=config.lr, weight_decay=config.weight_decay)
        except (ValueError, AssertionError, KeyError) as error:
            near = did_you_mean(config.opt, map(str, list_optimizers()))
            raise UsageError(f"timm has no optimizer '{config.opt}'.{near} See timm.optim.list_optimizers()") from error
        val_batches = loader(val_data, 2 * config.batch_size, workers)
        prepared = self.accelerator.prepare(trained, optimizer, batches, val_batches)
        self.module, self.optimizer, self.batches, self.val_batches = prepared
        self.schedule, _ = create_scheduler_v2(
            self.optimizer.optimizer,
            sched="cosine",
            num_epochs=config.epochs,
            warmup_epochs=min(config.warmup_epochs, config.epochs - 1),
            warmup_lr=config.min_lr,
            min_lr=config.min_lr,
            step_on_epochs=False,
            updates_per_epoch=len(self.batches),
        )
        self.schedule.step_update(0)
        if config.ema_decay and accelerator.num_processes > 1:
            raise UsageError("ema_decay is for one process: each would average its own normalisation statistics")
        self.average = ModelEmaV3(trained, decay=config.ema_decay, use_warmup=True) if config.ema_decay else None

    def epoch(self, number: int) -> Epoch:
        started = time.perf_counter()
        lr = self.optimizer.param_groups[0]["lr"]
        loss, top1 = self._train(number)
        val_loss, val_top1 = self._validate()
        return Epoch(
            epoch=number,
            lr=lr,
            train_loss=loss,
            train_top1=top1,
            val_loss=val_loss,
            val_top1=val_top1,
            seconds=time.perf_counter() - started,
        )

    def weights(self) -> dict[str, Tensor]:
        """The network's weights as they are to be kept: the moving average, where there is one."""
        weights: dict[str, Tensor] = self.net.state_dict()
        if self.average is not None:  # what was trained may be a part of the network only: the head
            place = {id(tensor): name for name, tensor in self.net.state_dict(keep_vars=True).items()}
            averaged = self.average.module.state_dict()
            for name, tensor in self.accelerator.unwrap_model(self.module).state_dict(keep_vars=True).items():
                weights[place[id(tensor)]] = averaged[name]
        return weights

    def _train(self, number: int) -> tuple[float, float]:
        self.net.train()
        self.module.train()
        totals = torch.zeros(3, device=self.accelerator.device)
        for step, (inputs, labels) in enumerate(self.batches, start=1):
            logits = self.module(inputs)
            loss = F.cross_entropy(logits, labels, label_smoothing=self.config.smoothing)
            if not torch.isfinite(loss):
                raise RunError(
                    f"the loss became {loss.item()} in epoch {number}, step {step}; try a lower lr, or clip_grad 1"
                )
            self.accelerator.backward(loss)
            if self.config.clip_grad:
                self.accelerator.clip_grad_norm_(self.module.parameters(), self.config.clip_grad)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.updates += 1
            self.schedule.step_update(self.updates)
            if self.average is not None:
                self.average.update(self.accelerator.unwrap_model(self.module), step=self.updates)
            with torch.no_grad():
                totals += torch.stack(
                    [loss * len(labels), (logits.argmax(1) == labels).sum(), loss.new_tensor(len(labels))]
                )
            self.tell(f"epoch {number}", step, len(self.batches))
        return self._means(totals)

    @torch.no_grad()
    def _validate(self) -> tuple[float, float]:
        module = self.module if self.average is None else self.average.module
        module.eval()
        totals = torch.zeros(3, device=self.accelerator.device)
        for step, (inputs, labels) in enumerate(self.val_batches, start=1):
            logits, labels = self.accelerator.gather_for_metrics((module(inputs), labels))
            loss = F.cross_entropy(logits.float(), labels, reduction="sum")
            totals += torch.stack([loss, (logits.argmax(1) == labels).sum(), loss.new_tensor(len(labels))])
            self.tell("validation", step, len(self.val_batches))
        loss_sum, right, count = totals.tolist()
        return loss_sum / count, right / count

    def _means(self, totals: Tensor) -> tuple[float, float]:
        loss, right, count = self.accelerator.reduce(totals, "sum").tolist()
        return loss / count, right / count


# ---------------------------------------------------------------------- helpers


def _accelerator(mixed_precision: str, device: str | None) -> Accelerator:
    if os.environ.get("WORLD_SIZE", "1") == "1":  # accelerate remembers the settings of an earlier run in this process
        AcceleratorState._reset_state(reset_partial_state=True)
    cpu = device == "cpu"
    if mixed_precision == "auto":
        on_gpu = torch.cuda.is_available() and not cpu
        mixed_precision = (
            ("bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16") if on_gpu else "no"
        )
    accelerator = Accelerator(mixed_precision=mixed_precision, cpu=cpu)
    found = accelerator.device
    asked = torch.device(device or found)
    if asked.type != found.type or asked.index not in (None, found.index or 0):
        raise UsageError(
            f"training runs on '{found}', which accelerate chose, not on '{device}'; "
            "choose among GPUs with CUDA_VISIBLE_DEVICES"
        )
    return accelerator


def _cache(
    net: HierarchicalNet | PlainNet,
    data: TreeData | CachedFeatures,
    config: TrainConfig,
    views: int,
    phase: str,
    tell: Callable[[str, int, int], None],
) -> CachedFeatures:
    if isinstance(data, CachedFeatures):
        return data
    batches = loader(data, config.batch_size, config.workers, seed=config.seed)
    steps = views * len(batches)
    return CachedFeatures.of(net, batches, views, lambda step: tell(phase, step, steps))


def _write_config(net: HierarchicalNet | PlainNet, config: TrainConfig, out: Path) -> None:
    settings = {
        "network": {"plain": isinstance(net, PlainNet), **net.config.model_dump(mode="json", exclude_none=True)},
        "transform": net.transform.model_dump(mode="json"),
        "train": config.model_dump(mode="json", exclude_none=True),
    }
    with replacing(out / "config.toml") as draft:
        draft.write_text(tomli_w.dumps(settings), encoding="utf-8")


def _write_progress(
    net: HierarchicalNet | PlainNet, weights: dict[str, Tensor], history: list[Epoch], out: Path, improved: bool
) -> None:
    from hlnet.plots import plot_curves

    save_checkpoint(net, out / "last.safetensors", weights)
    if improved:
        save_checkpoint(net, out / "best.safetensors", weights)
    with replacing(out / "metrics.csv") as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(Epoch.model_fields))
        writer.writeheader()
        writer.writerows(epoch.model_dump() for epoch in history)
    plot_curves(history, out / "curves.png")
