"""What goes wrong in a training: it is told in one line, and spoils nothing that is written."""

import logging
import os
import shutil
import signal
import time

import pytest
import torch
from helpers.runs import write_images
from helpers.short_trainings import TRANSFORM, TREE, build, config, fit, squares
from torch.utils.data import get_worker_info

from hlnet.data.sources import load_data
from hlnet.data.tree_data import TreeData, eval_transform
from hlnet.errors import DataError, RunError
from hlnet.store.checkpoint import load_checkpoint
from hlnet.training import trainer
from hlnet.training.loop import train


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

    monkeypatch.setattr(trainer.Trainer, "_step", fail)
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
