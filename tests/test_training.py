"""Training: it learns, repeats itself, leaves a frozen trunk alone, and does what its settings say by the formulas."""

import copy
import csv
import math
import tomllib

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from hlnet import optimizing
from hlnet.checkpoint import load_checkpoint
from hlnet.data import LabelledImages, TreeData, eval_transform, loader
from hlnet.errors import RunError, UsageError
from hlnet.evaluation import evaluate
from hlnet.features import CachedFeatures
from hlnet.network import HierarchicalNet, NetworkConfig
from hlnet.plain import PlainConfig, PlainNet
from hlnet.training import Epoch, TrainConfig, train
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


@pytest.mark.parametrize("where", ["head.leaves.bias", "trunk.model.conv1.0.weight"])
def test_loss_that_is_no_number_ends_the_run(where):
    net = build()
    net.get_parameter(where).data.fill_(torch.nan)
    with pytest.raises(RunError, match="nan in epoch 1, step 1"):
        fit(net)


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
