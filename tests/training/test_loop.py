"""Training: it learns, repeats itself, leaves a frozen trunk alone, and writes what it did."""

import csv
import shutil
import tomllib

import pytest
import torch
from helpers.runs import SMALL, write_images
from helpers.short_trainings import COLOURS, TRANSFORM, build, config, fit, same, snapshot, squares
from PIL import Image
from typer.testing import CliRunner

from hlnet.cli import main as cli
from hlnet.data.sources import load_data
from hlnet.data.tree_data import TreeData, eval_transform
from hlnet.errors import DataError
from hlnet.evaluation.evaluate import evaluate
from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
from hlnet.model.transform import InputTransform
from hlnet.store.checkpoint import load_checkpoint
from hlnet.training.loop import train
from hlnet.training.state import Epoch
from hlnet.training.train_config import TrainConfig
from hlnet.tree.class_tree import ClassTree

SWIN = {"img_size": 32, "window_size": 2, "embed_dim": 12, "depths": [2, 2, 2, 2]}


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
        found = evaluate(loaded, data, batch_size=3).neutral
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


@pytest.mark.parametrize("cache", [False, True])
def test_mixed_precision_ends_with_the_run_and_precisions_may_follow_each_other(cache):
    for precision in ("bf16", "no"):
        net = build()
        fit(net, config(epochs=1, mixed_precision=precision, frozen_trunk=cache), cache=cache)
        images = torch.rand(2, 3, 32, 32)
        with torch.no_grad():
            assert torch.equal(net(images), net.head(net.features(images)))
            assert net(images).dtype == torch.float32 and "forward" not in {**net.__dict__, **net.head.__dict__}


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
        assert evaluate(loaded, data, batch_size=8).neutral.top1 == pytest.approx(float(row["val_top1"]), abs=1e-6)


def test_new_run_clears_the_folder_of_the_old(tmp_path):
    fit(build(), out=tmp_path)

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(build(), config(epochs=3), out=tmp_path, on_epoch=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classes.tree.json", "config.toml"]


# ---------------------------------------------------------------------- data


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
    assert ("left out: 5 training images of classes that the tree lacks (red)" in done.stderr) == (left_out > 0)
    assert f"{20 - left_out} training images and" in done.stderr
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
