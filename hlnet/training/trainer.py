"""One epoch of training after another: steps, validation, and the state to resume from.

Notable here: everything random is a function of seed, epoch and step, so a run that was stopped resumes bit for bit
from its weights and counters alone.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from hlnet.cues.cue_aware import TrainingCues
from hlnet.data.features import CachedFeatures
from hlnet.data.sampling import EpochSampler, Seeded, mixed
from hlnet.data.tree_data import TreeData, loader
from hlnet.errors import RunError, UsageError
from hlnet.model.base import TrainableNetwork
from hlnet.training.losses import make_loss
from hlnet.training.optimizers import fitting_batch_size, make_optimizer, make_schedule
from hlnet.training.run_folder import RunFolder
from hlnet.training.state import Epoch, RunState
from hlnet.training.stopping import Stopped
from hlnet.training.train_config import TrainConfig

#: Several processes agree this often, in steps, on whether to save or stop.
AGREE = 10


class Trainer:
    """A network with its optimizer, schedule, loss and batches: all that an epoch of training changes."""

    def __init__(
        self,
        net: TrainableNetwork,
        trained: nn.Module,
        train_data: TreeData | CachedFeatures,
        val_data: TreeData | CachedFeatures,
        config: TrainConfig,
        accelerator: Accelerator,
        report: Callable[[str, int, int], None],
        state: RunState | None,
    ) -> None:
        self.net, self.config, self.accelerator, self.report = net, config, accelerator, report
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
                f"{now[1]}; resume with the same, or start anew (resume=False; --overwrite)"
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
            self.report(f"epoch {number}", step, last)
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
            self.report("validation", step, len(self.val_batches))
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
