"""Optimizers, learning rates and batch sizes by the formulas; trackers."""

import math
from importlib.util import find_spec

import pytest
import torch
from accelerate.tracking import get_available_trackers
from helpers import short_trainings
from helpers.short_trainings import build, config, fit
from torch import nn

from hlnet.errors import RunError, UsageError
from hlnet.training import optimizers as optimizing
from hlnet.training.optimizers import fitting_batch_size
from hlnet.training.state import Epoch

optimizers = short_trainings.optimizers


@pytest.mark.parametrize(("epochs", "warmup"), [(3, 0), (4, 2), (1, 2), (3, 0.5), (6, None)])
def test_learning_rate_follows_the_cosine(optimizers, epochs, warmup):
    settings, found = config(epochs=epochs, warmup_epochs=warmup, lr=0.1, min_lr=0.01), []

    def note(phase, step, of):
        if phase != "validation":
            found.append({group["lr"] for group in optimizers[0].param_groups})

    history = fit(build(), settings, on_batch=note)  # 2 steps an epoch
    total, rising = 2 * epochs, round(2 * min(epochs / 10 if warmup is None else warmup, epochs - 1))
    falling = total - rising
    cosine = [0.01 + 0.09 * (1 + math.cos(math.pi * step / falling)) / 2 for step in range(falling + 1)]
    expected = [0.01 + 0.09 * step / rising for step in range(rising)] + cosine
    assert rising == total or max(expected) == pytest.approx(0.1)  # short runs reach the top, too
    assert all(len(rates) == 1 for rates in found)
    assert [rate for rates in found for rate in rates] == pytest.approx(expected[1:])  # after each step
    assert [epoch.lr for epoch in history] == pytest.approx(expected[:-1:2])


@pytest.mark.parametrize(
    ("sched", "decay"), [("step", {"decay_epochs": 2, "decay_rate": 0.5}), ("poly", {"decay_rate": 0.8})]
)
def test_learning_rate_follows_other_schedules(optimizers, sched, decay):
    settings, found = config(epochs=6, warmup_epochs=1, lr=0.1, min_lr=0.01, sched=sched, **decay), []

    def note(phase, step, of):
        if phase != "validation":
            found.append(optimizers[0].param_groups[0]["lr"])

    fit(build(), settings, on_batch=note)  # 2 steps an epoch
    fallen = {
        "step": lambda t: 0.1 * 0.5 ** (t // 4),
        "poly": lambda t: 0.01 + 0.09 * (1 - t / 10) ** 0.8 if t < 10 else 0.01,
    }
    expected = [0.01 + 0.09 * step / 2 for step in range(2)] + [fallen[sched](step) for step in range(11)]
    assert found == pytest.approx(expected[1:])


@pytest.mark.parametrize("block", ["bottleneck", "convnext", None])
@pytest.mark.parametrize(("frozen", "cache"), [(False, False), (True, False), (True, True)])
def test_only_kernels_decay(optimizers, block, frozen, cache):
    net = build(block=block) if block else build("plain")
    fit(net, config(epochs=1, weight_decay=0.2, frozen_trunk=frozen), count=8, cache=cache)
    decay = {id(tensor): group["weight_decay"] for group in optimizers[0].param_groups for tensor in group["params"]}
    assert set(decay.values()) == {0.0, 0.2}
    trained = {name for name, parameter in net.named_parameters() if id(parameter) in decay}
    trunk = {name for name in net.state_dict() if name.split("model.")[-1] in net.trunk_names and "model." in name}
    assert trained == {name for name, _ in net.named_parameters() if not (frozen and name in trunk)}
    norms = {f"{name}.weight" for name, module in net.named_modules() if "Norm" in type(module).__name__}
    for name in trained:
        stacked = any(part in name for part in ("bn_weight", "norm_", "grn_", "scale"))
        free = name.endswith("bias") or name in norms or stacked
        assert decay[id(net.get_parameter(name))] == (0.0 if free else 0.2), name


@pytest.mark.parametrize(("opt", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_optimizer_is_timms_with_these_settings(optimizers, opt, kind):
    fit(build(), config(epochs=1, opt=opt, momentum=0.375, lr=0.125, sched="constant"), count=8)
    assert type(optimizers[0]) is kind
    for group in optimizers[0].param_groups:
        assert group["lr"] == 0.125 and group.get("momentum", 0.375) == 0.375


# ---------------------------------------------------------------------- batch size


def test_auto_batch_size_on_a_cpu_is_32(tmp_path):
    steps = []
    fit(build(), config(epochs=1, batch_size="auto"), count=80, on_batch=lambda *where: steps.append(where))
    assert [where for where in steps if where[0] == "epoch 1"] == [("epoch 1", step, 3) for step in (1, 2, 3)]


class Limited(nn.Module):
    """Takes batches of so many."""

    def __init__(self, most, error="CUDA out of memory. Tried to allocate 2 GiB."):
        super().__init__()
        self.most, self.error, self.norm = most, error, nn.BatchNorm1d(3)
        self.tried = []

    def forward(self, inputs):
        self.tried.append(len(inputs))
        if len(inputs) > self.most:
            raise RuntimeError(self.error)
        return self.norm(inputs)


def no_autocast():
    return torch.autocast("cpu", enabled=False)


class OnGpu:
    """An input that says that it is on a GPU."""

    device, shape = torch.device("cuda"), (1, 3)

    def expand(self, *shape):
        return torch.rand(shape)


class Noted(torch.optim.AdamW):
    """Counts its steps."""

    steps = 0

    def step(self, closure=None):
        self.steps += 1
        return super().step(closure)


@pytest.mark.parametrize(
    ("most", "images", "found"), [(100, 5000, 64), (64, 5000, 64), (2, 5000, 2), (9999, 5000, 512), (9999, 100, 64)]
)
def test_auto_batch_size_is_the_largest_power_of_two_that_fits(most, images, found):
    net = Limited(most)
    one = OnGpu()
    weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    optimizer = Noted(net.parameters())
    assert fitting_batch_size(net, one, images, no_autocast, lambda: optimizer) == found
    assert optimizer.steps == 1  # whose state takes memory
    assert all(torch.equal(tensor, weights[name]) for name, tensor in net.state_dict().items())
    assert net.tried == sorted(net.tried, reverse=True) and all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize(("error", "kind"), [("CUDA out of memory. Tried", RunError), ("no kernel", RuntimeError)])
def test_auto_batch_size_that_cannot_be(error, kind):
    net, one = Limited(1, error), OnGpu()
    with pytest.raises(kind, match="not even two" if kind is RunError else error):
        fitting_batch_size(net, one, 99, no_autocast, lambda: Noted(net.parameters()))


# ---------------------------------------------------------------------- trackers


def test_trackers_that_cannot_be_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"log_with 'tensorbord': accelerate knows no such tracker; .* tensorboard"):
        fit(build(), out=tmp_path, log_with="tensorbord")
    monkeypatch.setattr(optimizing, "get_available_trackers", list)
    for name in ("aim", "all"):
        with pytest.raises(UsageError, match=f"log_with '{name}': the tracker is not installed"):
            fit(build(), out=tmp_path, log_with=name)
    monkeypatch.setattr(optimizing, "get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(UsageError, match="log_with 'tensorboard' writes into the run folder"):
        fit(build(), log_with="tensorboard")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(
    "tensorboard" not in map(str, get_available_trackers()) or find_spec("tensorboard") is None,
    reason="tensorboard is not installed",
)
def test_tensorboard_gets_the_figures_of_each_epoch(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = fit(build(), out=tmp_path, log_with="tensorboard")
    found = EventAccumulator(str(tmp_path / "hlnet"))
    found.Reload()
    for name in set(Epoch.model_fields) - {"epoch"}:
        events = [(event.step, event.value) for event in found.Scalars(name)]
        assert events == [(epoch.epoch, pytest.approx(getattr(epoch, name))) for epoch in history]
