"""The run folder: what stands in it at any moment, and what a run goes on from."""

import pytest
import torch
from helpers.short_trainings import build, config, fit, squares
from PIL import Image

import hlnet.training.loop
import hlnet.training.trainer
from hlnet.data.tree_data import TreeData
from hlnet.errors import RunError, UsageError
from hlnet.expert.cut import cut_expert
from hlnet.model.plain import PlainConfig, PlainNet
from hlnet.store.checkpoint import load_checkpoint
from hlnet.training.loop import train
from hlnet.training.losses import prior_logit
from hlnet.training.run_folder import RunFolder, plot_curves
from hlnet.training.state import STATE_FILE, Epoch, RunState
from hlnet.tree.class_tree import ClassTree


@pytest.mark.parametrize("moment", ["write_best", "save_state"])
def test_best_weights_are_of_the_epoch_that_the_history_says(tmp_path, monkeypatch, moment):
    """Also when the run ended between the state and the best weights, and the next epoch is worse than that one."""
    top1 = iter([0.5, 0.9, 0.4, 0.4, 0.4])
    monkeypatch.setattr(hlnet.training.trainer.Trainer, "_validate", lambda self, number: (1.0, next(top1)))
    real, calls = getattr(RunFolder, moment), []

    def dying(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, moment, dying)
        with pytest.raises(KeyboardInterrupt):
            fit(build(), config(epochs=3), out=tmp_path)
    net = build()
    history = fit(net, config(epochs=3), out=tmp_path, resume=True)
    best = max(history, key=lambda epoch: epoch.val_top1)
    expected = [0.5, 0.9, 0.4] if moment == "write_best" else [0.5, 0.4, 0.4]
    assert [epoch.val_top1 for epoch in history] == expected
    for found in (net, load_checkpoint(tmp_path / "best.safetensors")):
        assert (found.provenance.metrics["epoch"], found.provenance.metrics["val_top1"]) == (best.epoch, best.val_top1)


def test_run_goes_on_with_the_same_images_only(tmp_path):
    net, data = build(), [squares(16), squares(8, 1)]
    for images, name in zip(data, "ab", strict=True):
        images.digest = lambda name=name: name
    train(net, *data, config(epochs=1), tmp_path, "cpu")
    data[0].digest = lambda: "others"
    with pytest.raises(UsageError, match="began with data"):
        train(build(), *data, config(epochs=1), tmp_path, "cpu", resume=True)


def test_only_new_networks_begin_as_detectors():
    net = build()
    fit(net, config(epochs=1, lr=1e-9, loss="bce"))
    torch.testing.assert_close(net.head.leaves.bias, torch.full_like(net.head.leaves.bias, prior_logit(4)))
    expert = cut_expert(net, list(net.tree.classes)[:2])
    before = expert.head.leaves.bias.detach().clone()
    data = [TreeData(all_four.images, expert.tree, all_four.transform, subset=True) for all_four in [squares(8)] * 2]
    train(expert, *data, config(epochs=1, lr=1e-9, loss="bce"), device="cpu")
    torch.testing.assert_close(expert.head.leaves.bias.detach(), before, rtol=0, atol=1e-5)


def test_two_classifiers_begin_as_detectors():
    net = PlainNet(PlainConfig(backbone="deit_tiny_distilled_patch16_224"), ClassTree.from_nested(["a", "b", "c"]))
    hlnet.training.loop._start_as_detectors(net)
    for part in net.model.get_classifier():
        assert part.bias.tolist() == pytest.approx([prior_logit(3)] * 3)


def test_leftovers_of_other_runs_stay(tmp_path):
    other = tmp_path / "other" / ".hlnet-draft"
    ours = tmp_path / ".hlnet-draft"
    for draft in (other, ours):
        draft.mkdir(parents=True)
        (draft / "last.safetensors").touch()
        (draft / ".tmpA5N7Zu").touch()  # as safetensors calls what it writes
    RunFolder(tmp_path, config()).clear()
    assert other.exists() and not ours.exists()


def test_state_that_cannot_be_read_is_not_called_damaged(tmp_path):
    (tmp_path / STATE_FILE).mkdir()
    with pytest.raises(RunError, match="cannot read"):
        RunState.load(tmp_path)


@pytest.mark.parametrize("count", [1, 5])
def test_curves_are_the_history(tmp_path, monkeypatch, count):
    values = torch.rand(count, 4, generator=torch.Generator().manual_seed(0)).tolist()
    names = ("train_loss", "train_top1", "val_loss", "val_top1")
    history = [
        Epoch(epoch=i, lr=0.1, seconds=1, **dict(zip(names, row, strict=True))) for i, row in enumerate(values, 1)
    ]
    drawn, save = [], hlnet.training.run_folder.save
    monkeypatch.setattr(
        hlnet.training.run_folder, "save", lambda figure, path: drawn.append(figure) or save(figure, path)
    )
    plot_curves(history, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    loss, top1 = drawn[0].axes
    for axes, what, factor in ((loss, "loss", 1), (top1, "top1", 100)):
        lines = {line.get_label(): line for line in axes.lines}
        assert lines.keys() == {"training", "validation"}
        for part, line in zip(("train", "val"), (lines["training"], lines["validation"]), strict=True):
            assert line.get_xdata().tolist() == [*range(1, count + 1)]
            assert line.get_ydata().tolist() == [factor * getattr(epoch, f"{part}_{what}") for epoch in history]
            assert (line.get_marker() == "o") == (count < 3)  # a line of one point could not be seen


def test_a_run_draws_its_curves(tmp_path, monkeypatch):
    monkeypatch.setattr(hlnet.training.run_folder, "plot_curves", plot_curves)  # not the tests' quick ones
    fit(build(), out=tmp_path)
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1170, 468) and len(picture.convert("L").getcolors()) > 20
