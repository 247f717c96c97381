"""Training: it learns, repeats itself, leaves a frozen trunk alone, and does what its settings say by the formulas."""

import copy
import csv
import logging
import math
import os
import shutil
import signal
import time
import tomllib
from importlib.util import find_spec

import pytest
import torch
from accelerate.tracking import get_available_trackers
from PIL import Image
from pydantic import ValidationError
from runs import SMALL, write_images
from torch import nn
from torch.utils.data import get_worker_info
from typer.testing import CliRunner

from hlnet import optimizing, training
from hlnet.checkpoint import load_checkpoint
from hlnet.cli import main as cli
from hlnet.data import LabelledImages, TreeData, eval_transform, load_data, loader
from hlnet.errors import DataError, RunError, UsageError
from hlnet.evaluation import evaluate
from hlnet.features import CachedFeatures
from hlnet.losses import make_loss, prior_logit
from hlnet.network import HierarchicalNet, NetworkConfig
from hlnet.optimizing import fitting_batch_size
from hlnet.plain import PlainConfig, PlainNet
from hlnet.train_config import TrainConfig
from hlnet.training import Epoch, train
from hlnet.tree import ClassTree
from hlnet.trunk import InputTransform

TREE = ClassTree.from_nested({"warm": ["red", "yellow"], "cold": ["green", "blue"]})
COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0), "yellow": (255, 255, 0)}  # another order
TRANSFORM = InputTransform(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0)
SWIN = {"img_size": 32, "window_size": 2, "embed_dim": 12, "depths": [2, 2, 2, 2]}


def build(kind="hierarchical", backbone="test_resnet", seed=0, **settings):
    torch.manual_seed(seed)
    if kind == "plain":
        net = PlainNet(PlainConfig(backbone=backbone, **settings), TREE)
    else:
        net = HierarchicalNet(NetworkConfig(backbone=backbone, widths=(4, 4), strides=(1, 1), **settings), TREE)
    net.transform = TRANSFORM
    return net


def squares(count, seed=0):
    """Coloured noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = tuple(i % len(COLOURS) for i in range(count))
    noise = torch.rand(count, 32, 32, 3, generator=generator) * 0.5 + 0.5
    tint = torch.tensor(list(COLOURS.values()))[list(labels)]
    pixels = (noise * tint[:, None, None]).byte().numpy()
    images = LabelledImages("squares", tuple(COLOURS), labels, lambda i: Image.fromarray(pixels[i]))
    return TreeData(images, TREE, eval_transform(TRANSFORM))


def config(**settings):
    quick = {"epochs": 2, "batch_size": 8, "warmup_epochs": 0, "workers": 0, "lr": 3e-3}
    return TrainConfig(**quick | settings)


def fit(net, settings=None, count=16, cache=False, **rest):
    data = [squares(count), squares(8, 1)]
    if cache:
        data = [CachedFeatures.of(net, loader(images, 8)) for images in data]
    return train(net, *data, settings or config(), device="cpu", **rest)


@pytest.fixture
def optimizers(monkeypatch):
    """The optimizers that training makes."""
    made, create = [], optimizing.create_optimizer_v2
    monkeypatch.setattr(optimizing, "create_optimizer_v2", lambda *a, **k: made.append(create(*a, **k)) or made[-1])
    return made


def snapshot(net):
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def same(one, other):
    return {name for name, tensor in one.items() if torch.equal(tensor, other[name])}


@pytest.mark.parametrize("kind", ["hierarchical", "plain"])
def test_it_learns_and_writes_what_it_did(tmp_path, kind):
    settings, net = config(epochs=5, clip_grad=5.0), build(kind)
    history = fit(net, settings, count=32, out=tmp_path)
    best = max(history, key=lambda epoch: epoch.val_top1)
    assert best.val_top1 >= 0.75 and history[-1].train_loss < history[0].train_loss
    with (tmp_path / "metrics.csv").open(newline="") as file:
        assert [Epoch(**row) for row in csv.DictReader(file)] == history
    written = tomllib.loads((tmp_path / "config.toml").read_text())
    assert TrainConfig(**written["train"]) == settings and InputTransform(**written["transform"]) == net.transform
    assert written["network"].pop("plain") == (kind == "plain") and type(net.config)(**written["network"]) == net.config
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    data = squares(8, 1)
    for name, epoch in (("best", best), ("last", history[-1])):
        loaded = load_checkpoint(tmp_path / f"{name}.safetensors")
        found = evaluate(loaded, data, loader(data, 3)).neutral
        assert found.top1 == pytest.approx(epoch.val_top1, abs=1e-6)
        metrics = {"epoch": epoch.epoch, "val_top1": epoch.val_top1, "val_loss": epoch.val_loss}
        assert loaded.provenance.metrics == metrics and TrainConfig(**loaded.provenance.recipe["train"]) == settings
        assert same(loaded.state_dict(), net.state_dict()) == net.state_dict().keys() or epoch is not best
    assert net.provenance.metrics["epoch"] == best.epoch and not net.training


@pytest.mark.parametrize(
    "settings", [{"aa": "none"}, {"aa": "rand-m9"}, {"clip_grad": 1.0, "ema_decay": 0.9, "seed": 4}]
)
def test_written_config_is_the_config(tmp_path, settings):
    settings = TrainConfig(epochs=1, workers=0, **settings)
    fit(build(), settings, count=4, out=tmp_path)
    assert TrainConfig(**tomllib.loads((tmp_path / "config.toml").read_text())["train"]) == settings


def test_seed_fixes_everything():
    runs, start = [], snapshot(build())
    for seed in (0, 0, 1):
        net = build()
        history = fit(net, config(seed=seed))
        runs.append(([epoch.model_dump(exclude={"seconds"}) for epoch in history], snapshot(net)))
        torch.rand(seed + 3)  # what happened before does not matter
    assert runs[0][0] == runs[1][0] and same(runs[0][1], runs[1][1]) == runs[0][1].keys()
    assert not {name for name in same(runs[0][1], start) if "conv" in name}  # the trunk trains, too
    assert runs[0][0] != runs[2][0] and same(runs[0][1], runs[2][1]) != runs[0][1].keys()


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("kind", ["hierarchical", "plain"])
def test_frozen_trunk_stays_bit_for_bit(kind, cache):
    net = build(kind)
    trunk = {("" if kind == "plain" else "trunk.") + f"model.{name}" for name in net.trunk_names}
    before = snapshot(net)
    fit(net, config(frozen_trunk=True, weight_decay=0.5), cache=cache)
    after, unchanged = net.state_dict(), same(before, net.state_dict())
    assert trunk <= unchanged and any("running_mean" in name for name in trunk)
    assert trunk == unchanged and trunk < after.keys()


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("backbone", [{}, {"backbone": "swin_tiny_patch4_window7_224", "backbone_args": SWIN}])
def test_saved_weights_are_the_moving_average(tmp_path, backbone, cache):
    net, steps = build(**backbone), []

    def note(phase, step, of):
        if phase.startswith("epoch"):
            steps.append(snapshot(net))

    fit(net, config(ema_decay=0.4, frozen_trunk=cache), cache=cache, out=tmp_path, on_batch=note)
    assert len(steps) == 4
    saved = load_checkpoint(tmp_path / "last.safetensors").state_dict()
    for name in saved:
        average = steps[0][name].double()  # the first update takes the weights as they are
        for update in range(2, 5):
            decay = min(0.4, 1 - update ** (-2 / 3))
            average = decay * average + (1 - decay) * steps[update - 1][name].double()
        if saved[name].is_floating_point():
            torch.testing.assert_close(saved[name].double(), average, rtol=1e-4, atol=1e-6)
    assert same(saved, steps[-1]) < saved.keys()


@pytest.mark.parametrize(("epochs", "warmup"), [(3, 0), (4, 2), (1, 2)])
def test_learning_rate_follows_the_cosine(optimizers, epochs, warmup):
    settings, found = config(epochs=epochs, warmup_epochs=warmup, lr=0.1, min_lr=0.01), []

    def note(phase, step, of):
        if phase != "validation":
            found.append({group["lr"] for group in optimizers[0].param_groups})

    history = fit(build(), settings, on_batch=note)  # 2 steps an epoch
    total, rising = 2 * epochs, 2 * min(warmup, epochs - 1)
    cosine = [0.01 + 0.09 * (1 + math.cos(math.pi * step / total)) / 2 for step in range(total + 1)]
    expected = [0.01 + 0.09 * step / rising for step in range(rising)] + cosine[rising:]
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
        "poly": lambda t: 0.01 + 0.09 * (1 - t / 12) ** 0.8 if t < 12 else 0.01,
    }
    expected = [0.01 + 0.09 * step / 2 for step in range(2)] + [fallen[sched](step) for step in range(2, 13)]
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


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_first_loss_is_the_smoothed_cross_entropy(smoothing):
    net = build()
    with torch.no_grad():
        net.head.leaves.weight.copy_(torch.randn(4, 16))  # unlike logits
    naive, data = copy.deepcopy(net).train(), squares(8)
    images, labels = next(iter(loader(data, 8)))
    logits = naive(images).double()
    logs = logits - logits.exp().sum(1, keepdim=True).log()
    expected = -((1 - smoothing) * logs[range(8), labels] + smoothing * logs.mean(1)).mean().item()
    history = fit(net, config(epochs=1, smoothing=smoothing), count=8)
    assert history[0].train_loss == pytest.approx(expected, abs=1e-4)
    assert history[0].train_top1 == pytest.approx((logits.argmax(1) == labels).double().mean().item())


LOSSES = [
    {"loss": "bce", "smoothing": 0.3},
    {"loss": "hierarchical", "hierarchical_alpha": 0.7},
    {"loss": "soft-labels", "soft_labels_beta": 3.0},
]


@pytest.mark.parametrize("kind", ["hierarchical", "plain"])
@pytest.mark.parametrize("settings", LOSSES)
def test_first_loss_is_the_one_that_was_asked_for(settings, kind):
    net, data, settings = build(kind), squares(8), config(epochs=1, **settings)
    last = net.model.get_classifier() if kind == "plain" else net.head.leaves
    last.weight.data.normal_()  # unlike logits
    naive = copy.deepcopy(net).train()
    if settings.loss == "bce":
        last.bias.data.fill_(9.0)  # is put right
        (naive.model.get_classifier() if kind == "plain" else naive.head.leaves).bias.data.fill_(prior_logit(4))
    images, labels = next(iter(loader(data, 8)))
    logits = naive(images)
    expected = make_loss(settings, TREE)(logits, labels).item()
    assert fit(net, settings, count=8)[0].train_loss == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(make_loss(config(), TREE)(logits, labels).item(), abs=1e-2)


@pytest.mark.parametrize(("settings", "smooths"), [(LOSSES[0], True), (LOSSES[1], False), (LOSSES[2], False)])
def test_mixed_labels_are_smoothed_where_the_loss_smooths(settings, smooths):
    first, second = (
        fit(build(), config(epochs=1, mixup=0.5, **settings | {"smoothing": smoothing}))[0].train_loss
        for smoothing in (0.0, 0.4)
    )
    assert (first == second) == (not smooths)


def test_mixing_changes_images_and_labels_pair_by_pair(monkeypatch):
    """An odd last image is left out, and what is learnt from is a mean of two."""
    seen, step = [], nn.Module.__call__

    def note(self, *inputs, **more):
        if self is net and self.training:
            seen.append(inputs[0])
        return step(self, *inputs, **more)

    monkeypatch.setattr(nn.Module, "__call__", note)
    net, data = build(), squares(11)
    train(net, data, squares(8, 1), config(epochs=1, mixup=0.5), device="cpu")
    assert sorted(map(len, seen)) == [2, 8]
    images = torch.stack([data[i][0] for i in range(11)])
    for mixed in torch.cat(seen):
        weights = torch.linalg.lstsq(images.flatten(1).T, mixed.flatten()[:, None]).solution[:, 0]
        share, place = weights.topk(2)
        torch.testing.assert_close(share.sum(), torch.tensor(1.0))
        torch.testing.assert_close(share[0] * images[place[0]] + share[1] * images[place[1]], mixed)


# ---------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("where", ["head.leaves.bias", "trunk.model.conv1.0.weight"])
def test_loss_that_is_no_number_ends_the_run(where):
    net = build()
    net.get_parameter(where).data.fill_(torch.nan)
    with pytest.raises(RunError, match="nan in epoch 1, step 1"):
        fit(net)


@pytest.mark.parametrize(
    ("moment", "save_minutes", "told"),
    [
        (("epoch 2", 1, 2), 0, "weights became nan in epoch 2, step 1"),  # a state is due
        (("epoch 2", 1, 2), 10, "loss became nan in epoch 2, step 2"),
        (("epoch 2", 2, 2), 10, "validation loss became nan in epoch 2"),
    ],
)
def test_weights_that_are_no_numbers_spoil_nothing(tmp_path, moment, save_minutes, told):
    expected = fit(build(), config(epochs=3))

    def spoil(*where):
        if where == moment:
            net.head.leaves.bias.data.fill_(torch.nan)
        elif where == ("epoch 2", 1, 2):
            before.update({path.name: path.read_bytes() for path in tmp_path.iterdir()})

    net, before = build(), {}
    with pytest.raises(RunError, match=rf"^(the )?{told}; try a lower lr, or clip_grad 1$"):
        fit(net, config(epochs=3), out=tmp_path, save_minutes=save_minutes, on_batch=spoil)
    assert all(text == (tmp_path / name).read_bytes() for name, text in before.items())
    assert load_checkpoint(tmp_path / "best.safetensors").provenance.metrics["epoch"] == 1
    history = fit(build(seed=7), config(epochs=3), out=tmp_path, resume=True)
    assert [epoch.model_copy(update={"seconds": 0}) for epoch in history] == [
        epoch.model_copy(update={"seconds": 0}) for epoch in expected
    ]


class Deadly:
    """A transform that ends its worker process at the nth image."""

    def __init__(self, nth):
        self.count, self.prepare = nth, eval_transform(TRANSFORM)

    def __call__(self, image):
        self.count -= get_worker_info() is not None
        if not self.count:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.prepare(image)


@pytest.mark.parametrize("place", ["training", "validation", "features", "while something else is done"])
def test_lost_worker_is_told(place):
    data, val = squares(48), squares(32, 1)
    (val if place == "validation" else data).transform = Deadly(12)
    settings = config(workers=1, batch_size=4, cache_views=place == "features", frozen_trunk=place == "features")
    slow = (lambda phase, step, of: time.sleep(1 if step == 1 else 0)) if "while" in place else None
    with pytest.raises(RunError, match=r"^a process that loads images was lost \(.*\); .* try fewer workers") as error:
        train(build(), data, val, settings, device="cpu", on_batch=slow)
    assert "\n" not in str(error.value)


def test_full_memory_is_told(monkeypatch):
    def fail(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: 9 bytes\nand")

    monkeypatch.setattr(training._Run, "_step", fail)
    with pytest.raises(RunError, match=r"^the memory is full \(.*\); try a smaller batch_size, or smaller images$"):
        fit(build())


@pytest.fixture
def photos(tmp_path):
    """Pictures in files, of which one is cut short; data sets of them."""
    write_images(tmp_path)
    broken = tmp_path / "data/train/green/2.png"
    broken.write_bytes(broken.read_bytes()[:200])
    return broken, [
        TreeData(load_data(tmp_path / "data", split), TREE, eval_transform(TRANSFORM)) for split in ("train", "val")
    ]


@pytest.mark.parametrize(("workers", "cache"), [(0, False), (0, True), (1, False)])
def test_truncated_image_stops_the_run_or_is_passed_over(photos, caplog, workers, cache):
    broken, data = photos
    shared = {"workers": workers, "cache_views": 2 * cache, "frozen_trunk": cache}
    with pytest.raises(DataError, match=rf"^cannot read image '{broken}': .*; remove or replace it$"):
        train(build(), *data, config(**shared), device="cpu")
    found = []
    for _ in range(2):
        caplog.clear()
        history = train(build(), *data, config(epochs=3, skip_unreadable=True, **shared), device="cpu")
        found.append([epoch.model_dump(exclude={"seconds"}) for epoch in history])
        if not workers:  # whose log is elsewhere
            told = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
            assert len(told) == 1 and str(broken) in told[0] and "another image takes its place" in told[0]
    assert found[0] == found[1]
    shutil.copy(broken.with_name("3.png"), broken)  # which is what has taken its place
    expected = [
        epoch.model_dump(exclude={"seconds"})
        for epoch in train(build(), *data, config(epochs=3, **shared), device="cpu")
    ]
    if not cache:  # the views of features are drawn by position
        assert found[0] == expected


# ---------------------------------------------------------------------- batch size, trackers, data


def test_auto_batch_size_on_a_cpu_is_32(tmp_path):
    steps = []
    fit(build(), config(epochs=1, batch_size="auto"), count=80, on_batch=lambda *where: steps.append(where))
    assert [where for where in steps if where[0] == "epoch 1"] == [("epoch 1", step, 3) for step in (1, 2, 3)]


class Limited(nn.Module):
    """Takes batches of so many; the meta device stands for a GPU."""

    def __init__(self, most, error="CUDA out of memory. Tried to allocate 2 GiB."):
        super().__init__()
        self.most, self.error, self.norm = most, error, nn.BatchNorm1d(3, device="meta")
        self.tried = []

    def forward(self, inputs):
        self.tried.append(len(inputs))
        if len(inputs) > self.most:
            raise RuntimeError(self.error)
        return self.norm(inputs)


@pytest.mark.parametrize(
    ("most", "images", "found"), [(100, 5000, 64), (64, 5000, 64), (2, 5000, 2), (9999, 5000, 512), (9999, 100, 64)]
)
def test_auto_batch_size_is_the_largest_power_of_two_that_fits(most, images, found):
    net = Limited(most)
    one = torch.zeros(1, 3, device="meta")
    assert fitting_batch_size(net, one, images, lambda: torch.autocast("cpu", enabled=False)) == found
    assert net.tried == sorted(net.tried, reverse=True) and all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize(("error", "kind"), [("CUDA out of memory. Tried", RunError), ("no kernel", RuntimeError)])
def test_auto_batch_size_that_cannot_be(error, kind):
    net, one = Limited(1, error), torch.zeros(1, 3, device="meta")
    with pytest.raises(kind, match="not even two" if kind is RunError else error):
        fitting_batch_size(net, one, 99, lambda: torch.autocast("cpu", enabled=False))


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


@pytest.mark.parametrize("lacks", ["tree", "data", "both"])
def test_missing_classes_are_refused_or_allowed_on_both_sides(tmp_path, lacks):
    line = f"{write_images(tmp_path)} {SMALL} --widths 8 --epochs 1 --workers 0 --out {tmp_path / 'run'}".split()
    classes = [name for name in COLOURS if not (name == "red" and lacks != "data")] + ["violet"] * (lacks != "tree")
    (tmp_path / "tree.json").write_text(str(classes).replace("'", '"'))
    refused = CliRunner().invoke(cli.app, line)
    assert isinstance(refused.exception, DataError)
    for name, side in (("red", "data"), ("violet", "tree")):
        assert (
            (f"Only in the {side}" in str(refused.exception))
            == (name in str(refused.exception))
            == (lacks in ("both", {"data": "tree", "tree": "data"}[side]))
        )
    done = CliRunner().invoke(cli.app, [*line, "--allow-missing"])
    assert done.exit_code == 0, done.stderr
    left_out = 0 if lacks == "data" else 5
    assert ("5 training images of classes that the tree lacks are left out" in done.stderr) == (left_out > 0)
    assert f"{20 - left_out} training and" in done.stderr
    net = load_checkpoint(tmp_path / "run")
    assert net.tree.classes == tuple(classes) and len(net.head.leaves.bias) == len(classes)


def test_names_not_numbers_are_learnt(tmp_path):
    """class10 sorts before class2, and folders are nested; the tree has an order of its own."""
    colours = {"class2": "red", "deep/class10": "blue", "deep/down/class1": "green"}
    write_images(tmp_path)
    for split in ("train", "val"):
        for name, colour in colours.items():
            shutil.copytree(tmp_path / "data" / split / colour, tmp_path / "new" / split / name)
    tree = ClassTree.from_nested({"odd": ["class10", "class1"], "even": ["class2"]})
    data = [TreeData(load_data(tmp_path / "new", split), tree, eval_transform(TRANSFORM)) for split in ("train", "val")]
    torch.manual_seed(0)
    net = HierarchicalNet(NetworkConfig(backbone="test_resnet", widths=(8, 8), strides=(1, 1)), tree)
    train(net, *data, config(epochs=25, smoothing=0.0), device="cpu")
    for name, colour in colours.items():
        with Image.open(tmp_path / "data" / "train" / colour / "0.png") as picture, torch.no_grad():
            place = net(eval_transform(TRANSFORM)(picture)[None]).argmax().item()
        assert tree.classes[place] == name.split("/")[-1]


@pytest.mark.parametrize(
    ("settings", "cache"), [({"opt": "nonsense"}, False), ({}, True), ({"sched": "nonsense"}, False)]
)
def test_what_cannot_be_meant_is_refused(tmp_path, settings, cache):
    with pytest.raises(UsageError):
        fit(build(), config(**settings), cache=cache, out=tmp_path / "run")


WRONG = (
    "epochs=0 batch_size=0 lr=0 lr=-1 lr=nan lr=inf min_lr=-1 smoothing=1 ema_decay=1 clip_grad=0 hflip=2 momentum=1"
)


@pytest.mark.parametrize(
    ("name", "value"),
    [*(pair.split("=") for pair in WRONG.split()), *(("scale", pair) for pair in [(0.1,), (0.9, 0.1), (-1.0, 2.0)])],
)
def test_wrong_settings_are_refused(name, value):
    with pytest.raises(ValidationError, match=name):
        TrainConfig(**{name: value})


@pytest.mark.parametrize(
    "settings",
    [
        {"cache_views": 1},
        {"unfreeze_epochs": 1},
        {"cache_views": 1, "frozen_trunk": True, "unfreeze_epochs": 1},
        {"cache_views": 1, "frozen_trunk": True, "mixup": 0.2},
        {"cache_views": 1, "frozen_trunk": True, "layer_decay": 0.7},
        {"sched": "plateau"},
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings):
    with pytest.raises(ValidationError, match=list(settings)[-1]):
        TrainConfig(**settings)


@pytest.mark.parametrize("moment", ["batch", "epoch"])
def test_interrupted_epoch_leaves_the_files_of_the_last(tmp_path, moment):
    def stop(*where):
        if where == ("epoch 2", 2, 2) or getattr(where[0], "epoch", 0) == 2:
            raise KeyboardInterrupt

    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        fit(build(), out=cut, **{f"on_{moment}": stop})
    names = {path.name for path in cut.iterdir()} - {"last.ckpt"}  # the state, if the epoch got that far
    assert names == {"best.safetensors", "classes.tree.json", "config.toml", "curves.png", "last.safetensors"} | {
        "metrics.csv"
    }
    with (cut / "metrics.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    for name in ("best", "last"):
        loaded, data = load_checkpoint(cut / f"{name}.safetensors"), squares(8, 1)
        assert loaded.provenance.metrics["epoch"] == 1
        assert evaluate(loaded, data, loader(data, 8)).neutral.top1 == pytest.approx(float(row["val_top1"]), abs=1e-6)


@pytest.mark.parametrize("cache", [False, True])
def test_mixed_precision_ends_with_the_run_and_precisions_may_follow_each_other(cache):
    for precision in ("bf16", "no"):
        net = build()
        fit(net, config(epochs=1, mixed_precision=precision, frozen_trunk=cache), cache=cache)
        images = torch.rand(2, 3, 32, 32)
        with torch.no_grad():
            assert torch.equal(net(images), net.head(net.features(images)))
            assert net(images).dtype == torch.float32 and "forward" not in {**net.__dict__, **net.head.__dict__}


def test_new_run_clears_the_folder_of_the_old(tmp_path):
    fit(build(), out=tmp_path)

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(build(), config(epochs=3), out=tmp_path, on_epoch=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classes.tree.json", "config.toml"]
