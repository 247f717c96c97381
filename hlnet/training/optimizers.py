"""Optimizer, schedule and batch size of a run, by timm's names and accelerate's means."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType
from accelerate.utils.memory import should_reduce_batch_size
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.scheduler import create_scheduler_v2
from torch import nn

from hlnet.errors import RunError, UsageError, did_you_mean, one_line
from hlnet.training.train_config import TrainConfig

#: What ``auto`` starts from on an accelerator, and takes on a CPU, where memory is no measure of a good size.
LARGEST_BATCH, CPU_BATCH = 512, 32


def make_accelerator(mixed_precision: str, device: str | None, **trackers: Any) -> Accelerator:
    """accelerate's object for this process.

    Args:
        mixed_precision: ``auto``, ``no``, ``fp16`` or ``bf16``.
        device: ``cpu``, ``cuda``, …; default: what accelerate finds.
        **trackers: ``log_with`` and ``project_dir``.

    Raises:
        UsageError: if accelerate chose another device than the one asked for, or a tracker does not exist or is not
            installed.
    """
    _check_tracker(**trackers)
    if os.environ.get("WORLD_SIZE", "1") == "1":  # accelerate remembers the settings of an earlier run in this process
        AcceleratorState._reset_state(reset_partial_state=True)
    cpu = device == "cpu"
    if mixed_precision == "auto":
        on_gpu = torch.cuda.is_available() and not cpu
        mixed_precision = (
            ("bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16") if on_gpu else "no"
        )
    accelerator = Accelerator(mixed_precision=mixed_precision, cpu=cpu, **trackers)
    found = accelerator.device
    asked = torch.device(device or found)
    if asked.type != found.type or asked.index not in (None, found.index or 0):
        raise UsageError(
            f"training runs on '{found}', which accelerate chose, not on '{device}'; "
            "choose among GPUs with CUDA_VISIBLE_DEVICES"
        )
    return accelerator


def make_optimizer(trained: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """timm's optimizer for what trains.

    Raises:
        UsageError: if timm has none of that name, or it needs what is not here, or ``layer_decay`` is given and the
            backbone does not tell its layers.
    """
    known = [str(name) for name in list_optimizers()]
    try:
        if get_optimizer_info(config.opt.lower().split("_")[-1]).second_order:
            raise UsageError(f"optimizer '{config.opt}' needs second derivatives, which are not kept here; try adamw")
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            trained,
            opt=config.opt,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            layer_decay=config.layer_decay,
        )
    except UsageError:
        raise
    except (ValueError, AssertionError, KeyError) as error:
        if config.opt in known:
            raise UsageError(f"optimizer '{config.opt}' cannot be used here: {one_line(error)}") from error
        near = did_you_mean(config.opt, known)
        raise UsageError(f"timm has no optimizer '{config.opt}'.{near} See timm.optim.list_optimizers()") from error
    return optimizer


def make_schedule(optimizer: torch.optim.Optimizer, config: TrainConfig, steps: int) -> Any:
    """timm's schedule, by step.

    Args:
        optimizer: whose rates it sets.
        config: the settings.
        steps: in an epoch.

    Raises:
        UsageError: if timm has none of that name, or the settings do not suit it.
    """
    warmup = config.warmup_epochs
    warmup = min(2, config.epochs / 10) if warmup is None else min(warmup, config.epochs - 1)
    warmup = round(warmup * steps) / steps
    try:
        schedule, _ = create_scheduler_v2(
            optimizer,
            sched=config.sched,
            num_epochs=config.epochs - warmup,  # type: ignore[arg-type] # parts of epochs are whole steps
            decay_epochs=config.decay_epochs,
            decay_rate=config.decay_rate,
            warmup_epochs=warmup,  # type: ignore[arg-type]
            warmup_prefix=True,
            warmup_lr=config.min_lr,
            min_lr=config.min_lr,
            step_on_epochs=False,
            updates_per_epoch=steps,
        )
    except ValueError as error:
        raise UsageError(
            f"sched '{config.sched}': {one_line(error)} Try cosine, step, poly, tanh, multistep, wsd or rsqrt"
        ) from error
    assert schedule is not None
    schedule.step_update(0)
    return schedule


def fitting_batch_size(
    trained: nn.Module,
    inputs: torch.Tensor,
    images: int,
    autocast: Any,
    optimizer: Callable[[], torch.optim.Optimizer],
) -> int:
    """The largest power of two for which a step fits the device's memory; 32 on a CPU.

    Args:
        trained: what trains, on its device. A whole step is run; afterwards the weights are what they were.
        inputs: one input, ``[1, ...]``.
        images: no more than these are worth while.
        autocast: a context for mixed precision, entered anew for each trial.
        optimizer: makes the optimizer, whose state takes memory from its first step on.

    Raises:
        RunError: if not even two fit.
    """
    if inputs.device.type == "cpu":
        return CPU_BATCH
    size = LARGEST_BATCH
    while size > max(2, images):
        size //= 2
    kept = {name: tensor.detach().clone() for name, tensor in trained.state_dict().items()}
    try:
        while size >= 2:
            try:
                with autocast():
                    loss = trained(inputs.expand(size, *inputs.shape[1:]).clone()).float().square().mean()
                loss.backward()
                optimizer().step()
                return size
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
            finally:
                trained.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            size //= 2
    finally:
        trained.load_state_dict(kept)
    raise RunError("not even two images fit the device's memory; take smaller images or a smaller network")


# ---------------------------------------------------------------------- helpers


def _check_tracker(log_with: str | None = None, project_dir: Any = None) -> None:
    """accelerate itself would do without a tracker that is not installed, and say so only to developers."""
    if log_with is None:
        return
    known, installed = (sorted(map(str, found)) for found in (LoggerType, get_available_trackers()))
    if log_with not in known:
        raise UsageError(f"log_with '{log_with}': accelerate knows no such tracker; expected {', '.join(known)}")
    if log_with not in installed and not (log_with == "all" and installed):
        raise UsageError(f"log_with '{log_with}': the tracker is not installed; pip install {log_with}")
    if project_dir is None and (log_with == "all" or LOGGER_TYPE_TO_CLASS[log_with].requires_logging_directory):
        raise UsageError(f"log_with '{log_with}' writes into the run folder; name it (out)")
