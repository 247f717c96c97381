"""Runs that are killed, stopped, or out of disk go on as if nothing had happened, bit for bit."""

import errno
import os
import random
import resource
import shutil
import signal
import threading
import time
from functools import partial

import pytest
from runs import SMALL, assert_same_run, contents, ended, figures, finish, start, wait_for, write_images
from typer.testing import CliRunner

from hlnet import training
from hlnet.cli import main as cli
from hlnet.errors import CheckpointError, RunError, UsageError

# What is random, counts, or is averaged, in one of these at least.
RUNS = {
    "defaults": "--widths 8,4 --epochs 2 --workers 2",
    "noise": "--widths 8,4 --epochs 2 --workers 0 --ema-decay 0.9 --mixup 0.4 --cutmix 1 --clip-grad 1 "
    "--backbone-arg drop_path_rate=0.4 --mixed-precision bf16",
    "thawing": "--widths 8,4 --epochs 3 --workers 0 --frozen-trunk --unfreeze-epochs 1 --opt sgd --layer-decay 0.7",
    "cached": "--widths 8,4 --epochs 3 --workers 0 --frozen-trunk --cache-views 2 --loss hierarchical --clip-grad 1",
    "plain": "--plain --epochs 2 --workers 2 --backbone-arg drop_rate=0.3 --loss bce --opt lookahead_adamw",
}
SHORT = "--widths 8,4 --epochs 1 --workers 0 --batch-size 10 --save-minutes 0"
#: The files of a short run, in the order in which they take their places.
WRITTEN = "classes.tree.json config.toml last.ckpt last.safetensors best.safetensors metrics.csv curves.png last.ckpt"


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """The beginning of every command line, data and tree among it."""
    return f"{write_images(tmp_path_factory.mktemp('images'))} {SMALL}"


@pytest.fixture(scope="module")
def short(line, tmp_path_factory):
    """The command line of a short run, and the folder of one that nobody disturbed."""
    out = tmp_path_factory.mktemp("short") / "whole"
    invoke(f"{line} {SHORT} --out {out}")
    return f"{line} {SHORT}", out


def invoke(line):
    """A run in this process that must succeed, or raise an error of ours; what it tells a person."""
    result = CliRunner().invoke(cli.app, line.split())
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.stderr
    return result.stderr


def counted(nth, then, what="replace"):
    """Do something instead of the nth call of a function of ``os``."""
    original, calls = getattr(os, what), []

    def call(*arguments, **more):
        calls.append(arguments)
        if len(calls) == nth:
            then()
        return original(*arguments, **more)

    setattr(os, what, call)


# ---------------------------------------------------------------------- killed


@pytest.mark.parametrize("name", RUNS)
def test_killed_at_random_moments(line, tmp_path, name):
    whole, out, log, chance, times = tmp_path / "whole", tmp_path / "run", tmp_path / "log", random.Random(name), 0
    command, state = f"{line} {RUNS[name]} --save-minutes 0", out / "last.ckpt"
    assert finish(f"{command} --out {whole}", tmp_path / "log of whole")[0] == 0
    process = start(f"{command} --out {out}", log)
    for _ in range(5):
        before = state.stat().st_mtime_ns if state.exists() else 0
        if chance.random() < 0.8:  # else while it starts
            wait_for(lambda: not process.is_alive() or (state.exists() and state.stat().st_mtime_ns > before))
        time.sleep(chance.uniform(0, 0.1))
        process.kill()
        process.join()
        if process.exitcode == 0:  # too late
            break
        assert process.exitcode == -signal.SIGKILL, log.read_text()
        times += state.exists()
        again = f"train --save-minutes 0 --device cpu --resume --out {out}"
        process = start(again if (out / "config.toml").exists() else f"{command} --resume --out {out}", log)
    assert ended(process) == 0, log.read_text()
    assert times >= 2
    assert_same_run(out, whole)


@pytest.mark.parametrize("nth", range(1, len(WRITTEN.split()) + 1))
def test_killed_before_each_file_takes_its_place(short, tmp_path, nth):
    command, whole = short
    out = tmp_path / "run"
    code, _ = finish(f"{command} --out {out}", tmp_path / "log", partial(counted, nth, partial(os._exit, 9)))
    written = {*WRITTEN.split()[: nth - 1]}
    assert code == 9 and {name for name in os.listdir(out) if not name.startswith(".")} == written
    assert len([name for name in os.listdir(out) if name.startswith(".hlnet-")]) == 1  # the draft
    invoke(f"{command} --resume --out {out}")
    assert_same_run(out, whole)


@pytest.mark.parametrize("nth", [1, 2, 5])
def test_killed_while_an_older_run_is_cleared(short, tmp_path, nth):
    command, whole = short
    out, other = tmp_path / "run", f"{command.replace('--lr 3e-3', '--lr 0.1')} --out {tmp_path}/run"
    invoke(other)
    again = f"{command} --overwrite --out {out}"
    assert finish(again, tmp_path / "log", partial(counted, nth, partial(os._exit, 9), "unlink"))[0] == 9
    if nth == 1:  # the older run's state is still whole
        with pytest.raises(UsageError, match=r"began with lr 0\.1, now it is 0\.003"):
            invoke(f"{command} --resume --out {out}")
    else:
        invoke(f"{command} --resume --out {out}")
        assert_same_run(out, whole)


def test_resuming_what_has_not_begun_or_is_done(short, tmp_path):
    command, whole = short
    out = tmp_path / "run"
    for _ in range(2):
        told = invoke(f"{command} --resume --out {out} --workers 1")  # which may change
        assert figures(out) == figures(whole)
    assert "epoch" not in told
    before = contents(out)
    invoke(f"train --resume --out {out}")
    assert contents(out) == before


@pytest.mark.parametrize(
    "change, told",
    [
        ("--seed 1", "seed 0, now it is 1"),
        ("--widths 8,8", "network.widths"),
        ("--img-size 64", "transform.input_size"),
        ("--no-frozen-trunk --loss bce", "loss 'cross-entropy', now it is 'bce'"),
        ("--tree {root}/other.json", "tree"),
        ("--data-root x {root}/more", "20 training images .* now there are 24"),
    ],
)
def test_another_run_does_not_go_on_with_it(short, tmp_path, change, told):
    command, whole = short
    (tmp_path / "other.json").write_text('{"warm": ["red", "green"], "cold": ["yellow", "blue"]}')
    data, out = command.split()[1], shutil.copytree(whole, tmp_path / "run")
    if "more" in change:
        write_images(tmp_path, train=6)
        command, change = command.replace(data, str(tmp_path / "data")), ""
    before = contents(out)
    with pytest.raises(UsageError, match=told):
        invoke(f"{command} {change.format(root=tmp_path)} --resume --out {out}")
    assert contents(out) == before


@pytest.mark.parametrize("keep", [0, 0.5, 0.99])
def test_damaged_state_is_told(short, tmp_path, keep):
    command, whole = short
    out = shutil.copytree(whole, tmp_path / "run")
    state = (out / "last.ckpt").read_bytes()
    (out / "last.ckpt").write_bytes(state[: int(keep * len(state))])
    with pytest.raises(CheckpointError, match=r"last\.ckpt' is damaged .* --overwrite"):
        invoke(f"{command} --resume --out {out}")


# ---------------------------------------------------------------------- stopped


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal_to_the_whole_group(line, tmp_path, number):
    command, out, log = f"{line} {RUNS['defaults']}", tmp_path / "the run", tmp_path / "log"
    code, _ = finish(f"{command} --out {tmp_path / 'whole'}", tmp_path / "log of whole")
    assert code == 0
    (tmp_path / "link").symlink_to(out)  # our command lines are split at spaces
    ready = tmp_path / "ready"
    process = start(f"{command} --out {tmp_path}/link", log, partial(slowed, ready))
    wait_for(ready.exists)
    os.killpg(process.pid, number)
    assert ended(process) == 130, log.read_text()
    assert log.read_text().splitlines()[-1].endswith(f"go on with: hlnet train --resume --out {tmp_path}/link")
    assert "Traceback" not in log.read_text() and not (out / "metrics.csv").exists() and (out / "last.ckpt").exists()
    assert finish(f"train --resume --out {out.with_name('link')}", log)[0] == 0
    assert_same_run(out, tmp_path / "whole")


def slowed(ready, seconds=0.5):
    """Let the second step take long, and tell when it is under way."""
    step = training._Run._step

    def slow(self, number, count, *rest):
        if count == 2:
            ready.touch()
            time.sleep(seconds)
        step(self, number, count, *rest)

    training._Run._step = slow


def test_second_interrupt_ends_it_at_once(short, tmp_path):
    command, whole = short
    out, ready = tmp_path / "run", tmp_path / "ready"
    process = start(f"{command} --out {out}", tmp_path / "log", partial(slowed, ready, 600))
    wait_for(ready.exists)
    before = contents(out)
    os.kill(process.pid, signal.SIGINT)
    process.join(1)
    assert process.exitcode is None  # it would like to end the step
    os.kill(process.pid, signal.SIGINT)
    assert ended(process) == 130 and contents(out) == before
    invoke(f"{command} --resume --out {out}")
    assert_same_run(out, whole)
