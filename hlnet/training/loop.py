"""Training with a loss over all leaves at once (paper, Sec. 3.1), on Hugging Face accelerate.

Notable here: a run that was stopped resumes bit for bit (:mod:`hlnet.training.trainer`). A network with a frozen trunk
may train on cached features (``hlnet.data.features``); then only the layers behind the trunk run and train.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from hlnet.cues.cue_aware import trained_attention
from hlnet.data.features import CachedFeatures
from hlnet.data.sampling import mixed
from hlnet.data.tree_data import TreeData
from hlnet.errors import UsageError
from hlnet.model.base import TrainableNetwork, require_branches
from hlnet.model.plain import PlainNet
from hlnet.model.provenance import Provenance, Use
from hlnet.training.cached import cache_features
from hlnet.training.losses import prior_logit
from hlnet.training.optimizers import make_accelerator
from hlnet.training.run_folder import RunFolder, flattened
from hlnet.training.state import Epoch
from hlnet.training.stopping import Stopped, defer_signals, translate_memory_errors
from hlnet.training.train_config import TrainConfig
from hlnet.training.trainer import Trainer

log = logging.getLogger("hlnet")


def train(
    net: TrainableNetwork,
    train_data: TreeData | CachedFeatures,
    val_data: TreeData | CachedFeatures,
    config: TrainConfig | None = None,
    out: str | Path | None = None,
    device: str | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    on_batch: Callable[[str, int, int], None] | None = None,
    *,
    described: dict[str, Any] | None = None,
    resume: bool = False,
    save_minutes: float = 10.0,
    cache_dir: str | Path | None = None,
    cache_size: int | None = None,
    log_with: str | None = None,
) -> list[Epoch]:
    """Train the network in place.

    Started by ``accelerate launch`` or ``torchrun``, several processes train together; ``batch_size`` is each one's.
    SIGINT and SIGTERM save the run's state and end it.

    Args:
        net: what to train; afterwards it holds the weights of the best epoch by validation accuracy.
        train_data, val_data: images with labels in the order of ``net.tree.classes``; or both as features of this
            network's trunk that are cached already.
        config: the settings.
        out: run folder; gets ``config.toml``, ``metrics.csv``, ``curves.png``, ``best.safetensors``,
            ``last.safetensors``, and ``last.ckpt`` to resume from.
        device: ``cpu``, ``cuda``, …; default: accelerate's choice.
        on_epoch: called after each epoch, on one process only.
        on_batch: called after each batch with the phase, its step and its number of steps, on one process only.
        described: further entries of ``config.toml`` and the weights' provenance, such as the data's name.
        resume: resume from ``last.ckpt`` in ``out``, if there is one.
        save_minutes: the state is saved at least this often, and after each epoch.
        cache_dir: keep cached features in files in this folder; default: in memory.
        cache_size: most bytes for the files in ``cache_dir``.
        log_with: an experiment tracker that accelerate knows: ``tensorboard``, ``wandb``, ``mlflow``, ``all`` …

    Returns:
        the epochs, in order.

    Raises:
        UsageError: for an optimizer, schedule, augmentation or tracker that does not exist, or settings that do not go
            together.
        CheckpointError: if the state to resume from is damaged.
        RunError: if the loss stops being a number, the disk or the memory is full, or a worker process is lost.
        DataError: if an image cannot be read.
        Stopped: after SIGINT or SIGTERM.

    Example:
        >>> import hlnet
        >>> tree = hlnet.ClassTree.from_nested([str(digit) for digit in range(10)])
        >>> net = hlnet.create_model("test_resnet", tree=tree, widths=[8], strides=[1])
        >>> net.transform = net.transform.adjusted(img_size=32)
        >>> data = [hlnet.TreeData(hlnet.load_data("digits", split), tree, hlnet.eval_transform(net.transform))
        ...         for split in ("val", "val")]
        >>> history = train(net, *data, TrainConfig(epochs=1, workers=0), device="cpu")
        >>> history[0].epoch, 0 <= history[0].val_top1 <= 1
        (1, True)
    """
    config = config or TrainConfig()
    _check(net, train_data, val_data, config, resume, out)
    set_seed(mixed(config.seed) % 2**32)
    folder = RunFolder(out, config, described, data=[_digest(data) for data in (train_data, val_data)])
    used: dict[Use, Any] = {"weights": getattr(train_data, "images", None), "epoch": getattr(val_data, "images", None)}
    accelerator = make_accelerator(config.mixed_precision, device, log_with=log_with, project_dir=out)
    main = accelerator.is_main_process
    state = folder.load_state(net) if resume and folder.has_state else None
    if state is not None:
        net.load_state_dict(state.weights)  # now, for features are to be of the trunk that the run began with
    report = on_batch if on_batch and main else (lambda phase, step, steps: None)
    if config.frozen_trunk or net.frozen:  # what a caller froze by hand otherwise stays as it is
        net.freeze_trunk(
            config.frozen_trunk and not config.unfreeze_epochs
        )  # the optimizer must see what will be unfrozen
    cached = config.cache_views > 0 or isinstance(train_data, CachedFeatures)
    if cached:
        net.to(accelerator.device)
        cache = partial(cache_features, net, config=config, folder=cache_dir, limit=cache_size)
        with translate_memory_errors():  # first the smaller one, which leaves less room for the other
            val_data = cache(val_data, 1, on_batch=partial(report, "features (val)"))
            train_data = cache(train_data, config.cache_views, on_batch=partial(report, "features"))
    if config.loss == "bce" and state is None and net.provenance == Provenance():  # neither trained nor cut
        _start_as_detectors(net)
    with translate_memory_errors():
        trainer = Trainer(net, net.head if cached else net, train_data, val_data, config, accelerator, report, state)
    trainer.check_together()
    folder.config = config.model_copy(update={"batch_size": trainer.batch_size})  # that auto has chosen
    _record(net, folder.recipe, config, used)
    if state is None and main:
        folder.clear(resume)
        folder.write_config(net)
    del state  # which is as large as the run
    accelerator.wait_for_everyone()
    if log_with:
        _start_trackers(accelerator, folder.recipe)
    best = _best_so_far(trainer, folder, main)
    best = _run_epochs(trainer, best, folder if main else None, on_epoch if main else None, save_minutes, log_with)
    if log_with:
        accelerator.end_training()
    # Mixed precision was for training only: accelerate gives the method back, as an attribute that shadows the class's.
    vars(accelerator.unwrap_model(trainer.module, keep_fp32_wrapper=False)).pop("forward", None)
    net.load_state_dict(best.weights)
    net.provenance.metrics = best.metrics
    net.to(accelerator.device).eval()
    return trainer.history


@dataclass(frozen=True)
class _Best:
    """Weights and metrics of the best epoch, by validation accuracy."""

    weights: dict[str, Tensor]
    metrics: dict[str, float]


# ---------------------------------------------------------------------- helpers


def _check(
    net: TrainableNetwork,
    train_data: TreeData | CachedFeatures,
    val_data: TreeData | CachedFeatures,
    config: TrainConfig,
    resume: bool,
    out: str | Path | None,
) -> None:
    """Refuse arguments that do not go together."""
    if (config.cache_views or isinstance(train_data, CachedFeatures)) and not config.frozen_trunk:
        raise UsageError("training on cached features (cache_views) needs frozen_trunk")
    if isinstance(train_data, CachedFeatures) != isinstance(val_data, CachedFeatures) and not config.cache_views:
        raise UsageError("training and validation data must both be images or both be cached features")
    if config.cue_aware:
        require_branches(net, "whose features cues could scale", "leave cue_aware out")
    if resume and out is None:
        raise UsageError("resume continues the run of a folder; name the folder (out)")


def _record(net: TrainableNetwork, recipe: dict[str, Any], config: TrainConfig, used: Mapping[Use, Any]) -> None:
    """Note in the network's provenance how it is trained, and on which images."""
    net.provenance = net.provenance.after_training(recipe, config.loss == "bce")
    for use, images in used.items():
        if images is not None:  # features that a caller cached do not say which images they are of
            net.provenance.record(use, images.name, images.fingerprint())
    if config.cue_aware:
        net.provenance.attention = trained_attention()


def _start_trackers(accelerator: Accelerator, recipe: dict[str, Any]) -> None:
    """Give the experiment trackers the run's settings; they take numbers and text only."""
    settings = flattened(recipe)
    plain = {name: value if isinstance(value, str | int | float) else str(value) for name, value in settings.items()}
    accelerator.init_trackers("hlnet", config=plain)


def _best_so_far(trainer: Trainer, folder: RunFolder, main: bool) -> _Best:
    """The best epoch of a run that resumes; nothing of one that begins."""
    if not trainer.history:
        return _Best({}, {})
    best = _Best(*folder.best())
    top = max(trainer.history, key=lambda epoch: epoch.val_top1)
    if best.metrics.get("epoch") == top.epoch:
        return best
    # The run was killed between the state and the best weights, which are the trainer's.
    best = _Best(_copied(trainer.weights()), _metrics(top))
    trainer.net.provenance.metrics = best.metrics
    if main:
        folder.write_best(trainer.net, best.weights)
    return best


def _run_epochs(
    trainer: Trainer,
    best: _Best,
    folder: RunFolder | None,
    on_epoch: Callable[[Epoch], None] | None,
    save_minutes: float,
    log_with: str | None,
) -> _Best:
    """Run the epochs that are left, write each to the folder, and return the best.

    Raises:
        Stopped: after SIGINT or SIGTERM.
    """
    net, epochs, accelerator = trainer.net, trainer.config.epochs, trainer.accelerator
    with defer_signals() as interrupted, translate_memory_errors(interrupted):
        for number in range(trainer.number, epochs + 1):
            epoch = trainer.epoch(number, interrupted, folder, save_minutes)
            improved = epoch.val_top1 > max((past.val_top1 for past in trainer.history), default=-1.0)
            trainer.history.append(epoch)
            if on_epoch:
                on_epoch(epoch)
            if log_with:
                accelerator.log(epoch.model_dump(exclude={"epoch"}), step=number)
            net.provenance.metrics = _metrics(epoch)
            weights = trainer.weights()
            if improved:
                best = _Best(_copied(weights), net.provenance.metrics)
            if folder is not None:
                folder.write_epoch(net, weights, trainer.history)
                folder.save_state(trainer.state(number + 1, 0, torch.zeros(accelerator.num_processes, 3)), net)
                if improved:  # after the state: the epoch that it follows from must not be lost with it
                    folder.write_best(net, best.weights)
            if number < epochs and trainer.agreed(False, interrupted.is_set())[1]:
                raise Stopped(f"stopped after epoch {number}")
    return best


def _digest(data: Any) -> str:
    """A digest of the data, or their number without one."""
    return str(data.digest()) if hasattr(data, "digest") else f"{len(data)} images"


def _metrics(epoch: Epoch) -> dict[str, float]:
    return {"epoch": epoch.epoch, "val_top1": epoch.val_top1, "val_loss": epoch.val_loss}


def _copied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu().clone() for name, tensor in weights.items()}


@torch.no_grad()
def _start_as_detectors(net: TrainableNetwork) -> None:
    """Start each class's bias at its share of images; otherwise the first steps only lower all biases."""
    if isinstance(net, PlainNet):
        last: Any = net.model.get_classifier()  # type: ignore[operator]
    else:  # where there are rows, they alone are to begin there too
        last = net.head.class_rows or net.head.leaves
    for part in last if isinstance(last, tuple | list | nn.ModuleList) else [last]:  # some have two classifiers
        bias = getattr(part, "bias", None)
        if isinstance(bias, Tensor) and len(bias) == len(net.tree.classes):
            bias.fill_(prior_logit(len(bias)))
