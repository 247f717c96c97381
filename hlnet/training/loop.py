"""Training: a loss over all leaves at once (paper, Sec. 3.1), its loop on Hugging Face accelerate.

Notable here: everything random is a function of seed, epoch and step, so a run that was stopped goes on bit by bit
from its weights and counters alone. A network with a frozen trunk may train on cached features
(``hlnet.data.features``); then only what lies behind the trunk runs and is handed to the optimizer.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from hlnet.cues.cue_aware import TrainingCues, trained_attention
from hlnet.data.features import CachedFeatures
from hlnet.data.sampling import EpochSampler, Seeded, mixed
from hlnet.data.tree_data import TreeData, loader
from hlnet.errors import RunError, UsageError
from hlnet.model.base import TrainableNetwork, require_branches
from hlnet.model.plain import PlainNet
from hlnet.model.provenance import Provenance, Use
from hlnet.training.cached import cache_features
from hlnet.training.losses import make_loss, prior_logit
from hlnet.training.optimizers import fitting_batch_size, make_accelerator, make_optimizer, make_schedule
from hlnet.training.run_folder import RunFolder, flattened
from hlnet.training.state import Epoch, RunState
from hlnet.training.stopping import Stopped, defer_signals, translate_memory_errors
from hlnet.training.train_config import TrainConfig

log = logging.getLogger("hlnet")

#: Several processes agree this often, in steps, on whether to save or stop.
AGREE = 10


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
            ``last.safetensors``, and ``last.ckpt`` to go on from.
        device: ``cpu``, ``cuda``, …; default: what accelerate finds.
        on_epoch: called after each epoch, on one process only.
        on_batch: called after each batch with the phase, its step and its number of steps, on one process only.
        described: what else ``config.toml`` and the weights' provenance shall tell, such as the data's name.
        resume: go on from ``last.ckpt`` in ``out``, where there is one.
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
    cached = config.cache_views > 0 or isinstance(train_data, CachedFeatures)
    if cached and not config.frozen_trunk:
        raise UsageError("training on cached features (cache_views) needs frozen_trunk")
    if isinstance(train_data, CachedFeatures) != isinstance(val_data, CachedFeatures) and not config.cache_views:
        raise UsageError("training and validation data must both be images or both be cached features")
    if config.cue_aware:
        require_branches(net, "whose features could be scaled", "train it without cues (cue_aware)")
    if resume and out is None:
        raise UsageError("resume goes on in a run folder; name it (out)")
    set_seed(mixed(config.seed) % 2**32)
    folder = RunFolder(out, config, described, data=[_digest(data) for data in (train_data, val_data)])
    used: dict[Use, Any] = {"weights": getattr(train_data, "images", None), "epoch": getattr(val_data, "images", None)}
    accelerator = make_accelerator(config.mixed_precision, device, log_with=log_with, project_dir=out)
    main = accelerator.is_main_process
    state = folder.load_state(net) if resume and folder.has_state else None
    if state is not None:
        net.load_state_dict(state.weights)  # now, for features are to be of the trunk that the run began with
    tell = on_batch if on_batch and main else (lambda phase, step, steps: None)
    if config.frozen_trunk or net.frozen:  # what a caller froze by hand otherwise stays as it is
        net.freeze_trunk(
            config.frozen_trunk and not config.unfreeze_epochs
        )  # the optimizer must see what will be unfrozen
    if cached:
        net.to(accelerator.device)
        with translate_memory_errors():  # first the smaller one, which leaves less room for the other
            watch = partial(tell, "features (val)")
            val_data = cache_features(net, val_data, 1, config, cache_dir, cache_size, watch)
            watch = partial(tell, "features")
            train_data = cache_features(net, train_data, config.cache_views, config, cache_dir, cache_size, watch)
    if config.loss == "bce" and state is None and net.provenance == Provenance():  # neither trained nor cut
        _start_as_detectors(net)
    with translate_memory_errors():
        run = _Run(net, net.head if cached else net, train_data, val_data, config, accelerator, tell, state)
    run.check_together()
    folder.config = config.model_copy(update={"batch_size": run.batch_size})  # what auto has found
    net.provenance = net.provenance.after_training(folder.recipe, config.loss == "bce")
    for use, images in used.items():
        if images is not None:  # features that a caller cached do not say which images they are of
            net.provenance.record(use, images.name, images.fingerprint())
    if config.cue_aware:
        net.provenance.attention = trained_attention()
    if state is None and main:
        folder.clear(resume)
        folder.write_config(net)
    del state  # which is as large as the run
    accelerator.wait_for_everyone()
    best, best_metrics = folder.best() if run.history else ({}, {})
    if run.history:
        top = max(run.history, key=lambda epoch: epoch.val_top1)
        if best_metrics.get("epoch") != top.epoch:  # killed between the state and the best weights, which are these
            best, best_metrics = _copied(run.weights()), _metrics(top)
            net.provenance.metrics = best_metrics
            if main:
                folder.write_best(net, best)
    if log_with:
        settings = flattened(folder.recipe)
        plain = {
            name: value if isinstance(value, str | int | float) else str(value) for name, value in settings.items()
        }
        accelerator.init_trackers("hlnet", config=plain)
    with defer_signals() as interrupted, translate_memory_errors(interrupted):
        for number in range(run.number, config.epochs + 1):
            epoch = run.epoch(number, interrupted, folder if main else None, save_minutes)
            run.history.append(epoch)
            if on_epoch and main:
                on_epoch(epoch)
            if log_with:
                accelerator.log(epoch.model_dump(exclude={"epoch"}), step=number)
            net.provenance.metrics = _metrics(epoch)
            improved = epoch.val_top1 > max((past.val_top1 for past in run.history[:-1]), default=-1.0)
            weights = run.weights()
            if improved:
                best, best_metrics = _copied(weights), net.provenance.metrics
            if main:
                folder.write_epoch(net, weights, run.history)
                folder.save_state(run.state(number + 1, 0, torch.zeros(accelerator.num_processes, 3)), net)
                if improved:  # after the state: the epoch that it follows from must not be lost with it
                    folder.write_best(net, best)
            if number < config.epochs and run.agreed(False, interrupted.is_set())[1]:
                raise Stopped(f"stopped after epoch {number}")
    if log_with:
        accelerator.end_training()
    # Mixed precision was for training only: accelerate gives the method back, as an attribute that shadows the class's.
    vars(accelerator.unwrap_model(run.module, keep_fp32_wrapper=False)).pop("forward", None)
    net.load_state_dict(best)
    net.provenance.metrics = best_metrics
    net.to(accelerator.device).eval()
    return run.history


class _Run:
    """The moving parts of one training run."""

    def __init__(
        self,
        net: TrainableNetwork,
        trained: nn.Module,
        train_data: TreeData | CachedFeatures,
        val_data: TreeData | CachedFeatures,
        config: TrainConfig,
        accelerator: Accelerator,
        tell: Callable[[str, int, int], None],
        state: RunState | None,
    ) -> None:
        self.net, self.config, self.accelerator, self.tell = net, config, accelerator, tell
        self.number, self.start, self.updates, self.seconds, self.lr = 1, 0, 0, 0.0, 0.0  # where to begin
        self.history: list[Epoch] = []
        self.totals = torch.zeros(3, device=accelerator.device)
        several = accelerator.num_processes > 1
        if config.ema_decay and several:
            raise UsageError("ema_decay is for one process: each would average its own normalisation statistics")
        if config.unfreeze_epochs and several:
            raise UsageError("unfreeze_epochs is for one process; give several a frozen trunk, or one that trains")
        optimizer = make_optimizer(trained, config)
        workers = 0 if isinstance(train_data, CachedFeatures) else config.workers
        seeded = [Seeded(data, config.seed, config.skip_unreadable) for data in (train_data, val_data)]
        if isinstance(config.batch_size, int):
            self.batch_size = config.batch_size
        else:  # with all of the network training, as in the end it does; once for a run, however often it is stopped
            self.batch_size = state.batch_size if state is not None else self._fitting(trained, seeded[0])
        if config.unfreeze_epochs:
            net.freeze_trunk()
        self.sampler = EpochSampler(train_data, config.seed, self.batch_size, accelerator.num_processes)
        batches = loader(seeded[0], self.batch_size, workers, sampler=self.sampler)
        val_batches = loader(seeded[1], 2 * self.batch_size, workers)
        prepared = accelerator.prepare(trained, optimizer, batches, val_batches)
        self.module, self.optimizer, self.batches, self.val_batches = prepared
        self.steps = len(self.batches)
        self.schedule = make_schedule(self.optimizer.optimizer, config, self.steps)
        self.cues = TrainingCues(net.tree, config.cue_share, config.cue_reliability) if config.cue_aware else None
        self.loss = make_loss(config, net.tree).to(accelerator.device)
        has_rows = net.has_branches and net.head.class_rows is not None
        self.rows_loss = config.rows_loss if has_rows else 0.0
        self.average = ModelEmaV3(trained, decay=config.ema_decay, use_warmup=True) if config.ema_decay else None
        smoothing = config.smoothing if config.loss in ("cross-entropy", "bce") else 0.0  # the others do not smooth
        self.mixup = (
            Mixup(config.mixup, config.cutmix, label_smoothing=smoothing, num_classes=len(net.tree.classes))
            if config.mixup or config.cutmix
            else None
        )
        if state is not None:
            self._restore(state)

    def epoch(self, number: int, interrupted: threading.Event, folder: RunFolder | None, save_minutes: float) -> Epoch:
        if self.config.unfreeze_epochs:
            self.net.unfreeze((number - 1) // self.config.unfreeze_epochs)
        started = time.perf_counter() - self.seconds
        if not self.start:
            self.lr = max(group["lr"] for group in self.optimizer.param_groups)
        loss, top1 = self._train(number, started, interrupted, folder, save_minutes)
        val_loss, val_top1 = self._validate(number)
        self.start, self.seconds = 0, 0.0
        self.totals.zero_()
        return Epoch(
            epoch=number,
            lr=self.lr,
            train_loss=loss,
            train_top1=top1,
            val_loss=val_loss,
            val_top1=val_top1,
            seconds=time.perf_counter() - started,
        )

    def check_together(self) -> None:
        """All processes must begin at the same step.

        Raises:
            UsageError: if they do not.
        """
        place = torch.tensor([[self.number, self.start, self.updates]], device=self.accelerator.device)
        if (self.accelerator.gather(place) != place).any():
            raise UsageError(
                "the processes would go on from different steps: every machine must see the run folder; "
                "put it on a disk that they share"
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

    def state(self, number: int, step: int, totals: Tensor, seconds: float = 0.0) -> RunState:
        """All that is needed to go on from here; ``totals`` are of all processes.

        Raises:
            RunError: if a weight is no number any more; an earlier state is not given up for that.
        """
        if not all(weight.isfinite().all() for weight in self.net.parameters()):
            raise RunError(f"weights became nan in epoch {number}, step {step}; try a lower lr, or clip_grad 1")
        scaler = self.accelerator.scaler
        return RunState(
            epoch=number,
            step=step,
            updates=self.updates,
            seconds=seconds,
            lr=self.lr,
            totals=totals.cpu(),
            images=self.sampler.size,
            batch_size=self.batch_size,
            weights=self.net.state_dict(),
            optimizer=self.optimizer.state_dict(),
            scaler=scaler.state_dict() if scaler is not None else None,
            average=self.average.module.state_dict() if self.average is not None else None,
            history=[epoch.model_dump() for epoch in self.history],
        )

    def _restore(self, state: RunState) -> None:
        """Go on where ``state`` was taken; the network has its weights already."""
        began, now = (state.images, len(state.totals)), (self.sampler.size, self.accelerator.num_processes)
        if began != now:
            raise UsageError(
                f"the run began with {began[0]} training images and {began[1]} process(es), now there are {now[0]} and "
                f"{now[1]}; go on with the same, or start anew with --overwrite"
            )
        self.optimizer.load_state_dict(state.optimizer)
        if state.scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scaler)
        if self.average is not None and state.average is not None:
            self.average.module.load_state_dict(state.average)
        self.history = [Epoch(**epoch) for epoch in state.history]
        self.number, self.start, self.updates = state.epoch, state.step, state.updates
        self.seconds, self.lr = state.seconds, state.lr
        self.totals += state.totals[self.accelerator.process_index].to(self.totals.device)

    def _train(
        self, number: int, started: float, interrupted: threading.Event, folder: RunFolder | None, save_minutes: float
    ) -> tuple[float, float]:
        self.net.train()
        self.module.train()
        self.sampler.begin(number, self.start * self.batch_size * self.accelerator.num_processes)
        saved = time.perf_counter()
        last = self.steps
        for step, (inputs, labels) in enumerate(self.batches, start=self.start + 1):
            set_seed(mixed(self.config.seed, number, step, self.accelerator.process_index) % 2**32)
            self._step(number, step, inputs, labels)
            self.tell(f"epoch {number}", step, last)
            due = time.perf_counter() - saved > 60 * save_minutes
            if step == last or (self.accelerator.num_processes > 1 and step % AGREE):
                continue
            save, stop = self.agreed(folder is not None and due, interrupted.is_set())
            if save or stop:
                totals = self.accelerator.gather(self.totals[None])
                if folder is not None:
                    folder.save_state(self.state(number, step, totals, time.perf_counter() - started), self.net)
                saved = time.perf_counter()
            if stop:
                raise Stopped(f"stopped in epoch {number}, step {step}")
        return self._means(self.totals)

    def _step(self, number: int, step: int, inputs: Tensor, labels: Tensor) -> None:
        targets = labels
        if self.mixup is not None:
            even = len(inputs) // 2 * 2  # timm mixes pairs
            inputs, labels = inputs[:even], labels[:even]
            inputs, targets = self.mixup(inputs, labels)
        loss, logits = self._loss(inputs, labels, targets)
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
            right = (logits.argmax(1) == labels).sum()
            self.totals += torch.stack([loss * len(labels), right, loss.new_tensor(len(labels))])

    def _loss(self, inputs: Tensor, labels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of a batch, and the logits."""
        gains = () if self.cues is None else (self.cues(labels),)
        try:
            if not self.rows_loss:
                logits: Tensor = self.module(inputs, *gains)
                return self.loss(logits, targets), logits
            logits, rows = self.module(inputs, *gains, with_rows=True)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UsageError(
                "batch normalisation cannot train on one image whose features are one pixel: give batch_size 2 or "
                "more, more training images, or larger ones (img_size)"
            ) from error
        return self.loss(logits, targets) + self.rows_loss * self.loss(rows, targets), logits

    def agreed(self, save: bool, stop: bool) -> tuple[bool, bool]:
        """Whether any process wants to save or stop."""
        if self.accelerator.num_processes == 1:
            return save, stop
        wishes = torch.tensor([float(save), float(stop)], device=self.accelerator.device)
        save_too, stop_too = self.accelerator.reduce(wishes, "sum").tolist()
        return save_too > 0, stop_too > 0

    @torch.no_grad()
    def _validate(self, number: int) -> tuple[float, float]:
        module = self.module if self.average is None else self.average.module
        module.eval()
        totals = torch.zeros(3, device=self.accelerator.device)
        for step, (inputs, labels) in enumerate(self.val_batches, start=1):
            logits, labels = self.accelerator.gather_for_metrics((module(inputs), labels))
            loss = F.cross_entropy(logits.float(), labels, reduction="sum")
            totals += torch.stack([loss, (logits.argmax(1) == labels).sum(), loss.new_tensor(len(labels))])
            self.tell("validation", step, len(self.val_batches))
        loss_sum, right, count = totals.tolist()
        if not math.isfinite(loss_sum):
            raise RunError(f"the validation loss became {loss_sum} in epoch {number}; try a lower lr, or clip_grad 1")
        return loss_sum / count, right / count

    def _means(self, totals: Tensor) -> tuple[float, float]:
        loss, right, count = self.accelerator.reduce(totals.clone(), "sum").tolist()
        return loss / count, right / count

    def _fitting(self, trained: nn.Module, data: Seeded) -> int:
        one = data[0][0][None].to(self.accelerator.device)
        trained = trained.to(one.device).train()
        optimizer = partial(make_optimizer, trained, self.config)
        found = fitting_batch_size(trained, one, len(data), self.accelerator.autocast, optimizer)
        everyone: Tensor = self.accelerator.gather(torch.tensor([found], device=one.device))
        return int(everyone.min())


# ---------------------------------------------------------------------- helpers


def _digest(data: Any) -> str:
    """Which data these are, as far as they can tell."""
    return str(data.digest()) if hasattr(data, "digest") else f"{len(data)} images"


def _metrics(epoch: Epoch) -> dict[str, float]:
    return {"epoch": epoch.epoch, "val_top1": epoch.val_top1, "val_loss": epoch.val_loss}


def _copied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu().clone() for name, tensor in weights.items()}


@torch.no_grad()
def _start_as_detectors(net: TrainableNetwork) -> None:
    """Let each class begin at its share, or the first steps only teach all of them to say no."""
    if isinstance(net, PlainNet):
        last: Any = net.model.get_classifier()  # type: ignore[operator]
    else:  # where there are rows, they alone are to begin there too
        last = net.head.class_rows or net.head.leaves
    for part in last if isinstance(last, tuple | list | nn.ModuleList) else [last]:  # some have two classifiers
        bias = getattr(part, "bias", None)
        if isinstance(bias, Tensor) and len(bias) == len(net.tree.classes):
            bias.fill_(prior_logit(len(bias)))
