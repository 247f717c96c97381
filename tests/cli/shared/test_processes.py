"""Several processes on a CPU (gloo) are one: the same curve as one process, one voice, and they go on together."""

import os
import shlex
import signal
import socket
from functools import partial
from pathlib import Path

import pytest
from helpers import runs

# Layers' own normalisation only: that of a batch would see each process's share.
NET = "--backbone test_convnext --block convnext --widths 8,4 --workers 0 --epochs 2"
#: 11 steps an epoch for two processes, for which images of the beginning come again; each its own mixing.
ODD = f"{NET} --batch-size 2 --mixup 0.5 --save-minutes 0"


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """40 images."""
    return f"{runs.write_images(tmp_path_factory.mktemp('images'), train=10, val=3)} {runs.SMALL}"


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """The command line of a run on 43 images, and the folder of one of two processes that nobody disturbed."""
    root = tmp_path_factory.mktemp("odd")
    command = f"{runs.write_images(root, train=11, val=3)} {runs.SMALL} {ODD}"
    (root / "data/train/red/0.png").unlink()
    assert [runs.ended(process) for process in two(command, root / "whole")] == [0, 0], said(root / "whole")
    return command, root / "whole"


def two(line, out, prepare=(None, None)):
    """Begin a run of two processes, with what ``torchrun`` would tell them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared["OMP_NUM_THREADS"] = "1"
    return [
        runs.start(
            f"{line} --out {out}", f"{out}.log{rank}", prepare[rank], RANK=str(rank), LOCAL_RANK=str(rank), **shared
        )
        for rank in (0, 1)
    ]


def said(out):
    return [Path(f"{out}.log{rank}").read_text() for rank in (0, 1)]


def writes_nothing():
    os.replace = os.mkdir = os.unlink = partial(os._exit, 7)


@pytest.mark.parametrize("trains", ["", "--frozen-trunk --clip-grad 0.1", "--frozen-trunk --cache-views 2"])
def test_two_have_the_curve_of_one(line, tmp_path, trains):
    out = tmp_path / "two"
    processes = two(f"{line} {NET} {trains} --batch-size 4", out, (None, writes_nothing))
    code, told = runs.finish(f"{line} {NET} {trains} --batch-size 8 --out {tmp_path / 'one'}", tmp_path / "log")
    assert code == 0, told
    assert [runs.ended(process) for process in processes] == [0, 0], said(out)
    found, expected = runs.figures(out), runs.figures(tmp_path / "one")
    assert len(found) == 2 and float(expected[0]["train_loss"]) != float(expected[1]["train_loss"])
    for one, other in zip(found, expected, strict=True):
        assert {name: float(value) for name, value in one.items()} == pytest.approx(
            {name: float(value) for name, value in other.items()}, rel=1e-5
        )
    first, second = said(out)
    assert second == "" and [line.split("  ")[0] for line in first.splitlines()[:3]] == [
        line.split("  ")[0] for line in told.splitlines()[:3]
    ]


def test_killed_processes_go_on_exactly(odd, tmp_path):
    command, whole = odd
    out = tmp_path / "run"
    state = out / "last.ckpt"
    for _ in range(2):  # in the first epoch, where images that come again are still to come; and after it
        before, processes = runs.changed(state), two(f"{command} --resume", out)
        runs.wait_for_another(state, before, *processes)
        for process in processes:
            process.kill()
        codes = [runs.ended(process) for process in processes]
        assert codes[0] == -signal.SIGKILL and codes[1] not in (0, None), said(out)  # which may have missed the other
    assert [runs.ended(process) for process in two(f"{command} --resume", out)] == [0, 0], said(out)
    runs.assert_same_run(out, whole)


def test_signal_to_one_stops_both(odd, tmp_path):
    command, whole = odd
    out, ready = tmp_path / "run", tmp_path / "ready"
    processes = two(command.replace("--save-minutes 0", ""), out, (None, partial(runs.paused, ready)))
    runs.wait_for(ready.exists, *processes)
    os.kill(processes[1].pid, signal.SIGTERM)
    ready.unlink()
    assert [runs.ended(process) for process in processes] == [130, 130], said(out)
    first, second = said(out)
    assert "stopped in epoch 1, step 10; go on with" in first and second == ""
    code, told = runs.finish(f"train --resume --out {out}", tmp_path / "log")  # one cannot go on for two
    assert code == 2 and "43 training images and 2 process(es), now there are 43 and 1" in told.splitlines()[-1]
    assert [runs.ended(process) for process in two("train --resume", out)] == [0, 0], said(out)
    runs.assert_same_run(out, whole)


def test_torchrun(odd, tmp_path):
    command, whole = odd
    words = ["--standalone", "--nproc-per-node", "2", "-m", "hlnet", *shlex.split(command), "--out", f"{tmp_path}/run"]
    code, told = runs.finish_torchrun(words, tmp_path / "log")
    assert code == 0, told
    assert told.count("43 training images and 12 validation images") == 1
    runs.assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize("setting", ["--ema-decay 0.9", "--frozen-trunk --unfreeze-epochs 1"])
def test_what_needs_one_process_is_refused(line, tmp_path, setting):
    processes = two(f"{line} {NET} {setting}", tmp_path / "run")
    codes = [runs.ended(process) for process in processes]
    assert codes[0] == 2 and codes[1] != 0  # the other may only see that the first has gone
    name = setting.split()[-2].removeprefix("--").replace("-", "_")
    assert f"hlnet: {name} is for one process" in said(tmp_path / "run")[0] and not (tmp_path / "run").exists()
