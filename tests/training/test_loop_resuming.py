"""Runs that are killed, stopped, or out of disk go on as if nothing had happened, bit for bit."""

import errno
import multiprocessing
import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from functools import partial

import pytest
from helpers import runs
from typer.testing import CliRunner

from hlnet.cli import main as cli
from hlnet.errors import CheckpointError, RunError, UsageError
from hlnet.training import trainer

# What is random, counts, or is averaged, in one of these at least.
RUNS = {
    "defaults": "--widths 8,4 --epochs 2 --workers 2",
    "noise": "--widths 8,4 --epochs 2 --workers 0 --ema-decay 0.9 --mixup 0.4 --cutmix 1 --clip-grad 1 "
    "--backbone-arg drop_path_rate=0.4 --mixed-precision bf16",
    "unfreezing": "--widths 8,4 --epochs 3 --workers 0 --frozen-trunk --unfreeze-epochs 1 --opt sgd --layer-decay 0.7",
    "cached": "--widths 8,4 --epochs 3 --workers 0 --frozen-trunk --cache-views 2 --loss hierarchical --clip-grad 1",
    "plain": "--plain --epochs 2 --workers 2 --backbone-arg drop_rate=0.3 --loss bce --opt lookahead_adamw",
}
SHORT = "--widths 8,4 --epochs 1 --workers 0 --batch-size 10 --save-minutes 0"


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """The beginning of every command line, data and tree among it."""
    return f"{runs.write_images(tmp_path_factory.mktemp('images'))} {runs.SMALL}"


@pytest.fixture(scope="module")
def short(line, tmp_path_factory):
    """The command line of a short run, and the folder of one that nobody disturbed."""
    out = tmp_path_factory.mktemp("short") / "whole"
    invoke(f"{line} {SHORT} --out {out}")
    return f"{line} {SHORT}", out


def invoke(line):
    """A run in this process that must succeed, or raise an error of ours; what it tells a person."""
    result = CliRunner().invoke(cli.app, shlex.split(line))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.stderr
    return result.stderr


def counted(nth, then, what="replace"):
    """Do something instead of the nth call of a function of ``os``."""
    tempfile.gettempdir()  # found by trial once a process, which writes and unlinks a file
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
    assert runs.finish(f"{command} --out {whole}", tmp_path / "log of whole")[0] == 0
    process = runs.start(f"{command} --out {out}", log)
    for _ in range(5):
        before = runs.changed(state)
        if chance.random() < 0.8:  # else while it starts
            runs.wait_for_another(state, before, process)
        time.sleep(chance.uniform(0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), log.read_text()
        if process.exitcode == 0 and times:
            break
        if process.exitcode == 0:  # too late each time: from the start
            shutil.rmtree(out)
        times += state.exists()
        again = f"train --save-minutes 0 --device cpu --resume --out {out}"
        process = runs.start(again if (out / "config.toml").exists() else f"{command} --resume --out {out}", log)
    assert runs.ended(process) == 0, log.read_text()
    assert times >= 1
    runs.assert_same_run(out, whole)


@pytest.mark.parametrize("nth", range(1, len(runs.WRITTEN) + 1))
def test_killed_before_each_file_takes_its_place(short, tmp_path, nth):
    command, whole = short
    out = tmp_path / "run"
    code, _ = runs.finish(f"{command} --out {out}", tmp_path / "log", partial(counted, nth, partial(os._exit, 9)))
    assert code == 9 and runs.contents(out).keys() == {*runs.WRITTEN[: nth - 1]} and len(runs.drafts(out)) == 1
    invoke(f"{command} --resume --out {out}")
    runs.assert_same_run(out, whole)


def test_killed_again_before_its_first_state(short, tmp_path):
    """What it may be started from, its own config.toml, is never away."""
    command, whole = short
    out, again = tmp_path / "run", f"train --save-minutes 0 --resume --out {tmp_path / 'run'}"
    assert runs.finish(f"{command} --out {out}", tmp_path / "log", partial(counted, 3, partial(os._exit, 9)))[0] == 9
    for nth in (1, 2):
        assert runs.finish(again, tmp_path / "log", partial(counted, nth, partial(os._exit, 9)))[0] == 9
        assert runs.contents(out).keys() == {"config.toml", "classes.tree.json"}
    invoke(again)
    runs.assert_same_run(out, whole)


@pytest.mark.parametrize("nth", [1, 2, 5])
def test_killed_while_an_older_run_is_cleared(short, tmp_path, nth):
    command, whole = short
    out, other = tmp_path / "run", f"{command.replace('--lr 3e-3', '--lr 0.1')} --out {tmp_path}/run"
    invoke(other)
    again = f"{command} --overwrite --out {out}"
    assert runs.finish(again, tmp_path / "log", partial(counted, nth, partial(os._exit, 9), "unlink"))[0] == 9
    if nth == 1:  # the older run's state is still whole
        with pytest.raises(UsageError, match=r"began with lr 0\.1, now it is 0\.003"):
            invoke(f"{command} --resume --out {out}")
    else:
        invoke(f"{command} --resume --out {out}")
        runs.assert_same_run(out, whole)


def test_resuming_what_has_not_begun_or_is_done(short, tmp_path):
    command, whole = short
    out = tmp_path / "run"
    for _ in range(2):
        told = invoke(f"{command} --resume --out {out} --workers 1")  # which may change
        assert runs.figures(out) == runs.figures(whole)
    assert "epoch" not in told
    before = shutil.copytree(out, tmp_path / "before")
    invoke(f"train --resume --out {out}")
    runs.assert_same_run(out, before)


@pytest.mark.parametrize(
    "change, told",
    [
        ("--seed 1", "seed 0, now it is 1"),
        ("--widths 8,8", "network.widths"),
        ("--img-size 64", "transform.input_size"),
        ("--no-frozen-trunk --loss bce", "loss 'cross-entropy', now it is 'bce'"),
        ("--tree {root}/other.json", "tree '"),
        ("another image", "data"),
    ],
)
def test_another_run_does_not_go_on_with_it(short, tmp_path, change, told):
    command, whole = short
    (tmp_path / "other.json").write_text('{"warm": ["red"], "cold": ["yellow", "green", "blue"]}')
    data, out = command.split()[1], shutil.copytree(whole, tmp_path / "run")
    if change == "another image":
        shutil.copytree(data, tmp_path / "data")
        shutil.copy(tmp_path / "data/train/red/0.png", tmp_path / "data/train/red/9.png")
        command, change = command.replace(data, str(tmp_path / "data")), ""
    before = runs.contents(out)
    with pytest.raises(UsageError, match=f"began with {told}"):
        invoke(f"{command} {change.format(root=tmp_path)} --resume --out {out}")
    assert runs.contents(out) == before


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
    command, out, log, ready = f"{line} {RUNS['defaults']}", tmp_path / "a run", tmp_path / "log", tmp_path / "ready"
    assert runs.finish(f"{command} --out {tmp_path / 'whole'}", tmp_path / "log of whole")[0] == 0
    process = runs.start(f"{command} --out '{out}'", log, partial(runs.paused, ready))
    runs.wait_for(ready.exists, process)
    os.killpg(process.pid, number)
    ready.unlink()
    assert runs.ended(process) == 130, log.read_text()
    told = log.read_text().splitlines()[-1]
    assert told == f"stopped in epoch 1, step 2; go on with: hlnet train --resume --out '{out}'"
    assert sorted(os.listdir(out)) == ["classes.tree.json", "config.toml", "last.ckpt"]
    assert runs.finish(f"train --resume --out '{out}'", log)[0] == 0
    runs.assert_same_run(out, tmp_path / "whole")


def test_second_interrupt_ends_it_at_once(short, tmp_path):
    command, whole = short
    out, ready = tmp_path / "run", tmp_path / "ready"
    process = runs.start(f"{command} --out {out}", tmp_path / "log", partial(runs.paused, ready))
    runs.wait_for(ready.exists, process)
    before = runs.contents(out)
    os.kill(process.pid, signal.SIGINT)
    process.join(1)
    assert process.exitcode is None  # it would like to end the step
    os.kill(process.pid, signal.SIGINT)
    assert runs.ended(process) == 130 and runs.contents(out) == before
    invoke(f"{command} --resume --out {out}")
    runs.assert_same_run(out, whole)


def test_stopped_after_the_last_step_of_an_epoch(short, tmp_path, monkeypatch):
    """Also where an epoch is one step."""
    command, _ = short
    out, validate = tmp_path / "run", trainer.Trainer._validate

    def stop(self, number):
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return validate(self, number)

    monkeypatch.setattr(trainer.Trainer, "_validate", stop)
    result = CliRunner().invoke(cli.app, shlex.split(f"{command} --batch-size 32 --epochs 2 --out {out}"))
    assert result.exit_code == 130 and "stopped after epoch 1; go on with" in result.stderr
    assert [row["epoch"] for row in runs.figures(out)] == ["1"]
    invoke(f"train --resume --out {out}")
    assert [row["epoch"] for row in runs.figures(out)] == ["1", "2"]


def test_lost_workers_of_a_stopped_run_are_no_error(line, tmp_path, monkeypatch):
    """A batch system may send SIGTERM to each process."""

    def stop(self, number, count, *_):
        workers = [worker.pid for worker in multiprocessing.active_children()]
        assert len(workers) == 2
        subprocess.run(["kill", "-TERM", *map(str, [os.getpid(), *workers])], check=True)
        time.sleep(0.5)

    monkeypatch.setattr(trainer.Trainer, "_step", stop)
    result = CliRunner().invoke(cli.app, shlex.split(f"{line} {RUNS['defaults']} --out {tmp_path}/run"))
    assert result.exit_code == 130 and "stopped" in result.stderr, result.exception


# ---------------------------------------------------------------------- full disk


@pytest.mark.parametrize("nth", range(1, len(runs.WRITTEN) + 1))
def test_full_disk_leaves_what_was_there(short, tmp_path, monkeypatch, nth):
    command, whole = short
    out, before = tmp_path / "run", {}

    def full():
        before.update(runs.contents(out))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", os.replace)  # so that it is put back
    counted(nth, full)
    with pytest.raises(RunError, match=rf"^cannot write '{out}/{runs.WRITTEN[nth - 1]}': No space left on device$"):
        invoke(f"{command} --out {out}")
    assert runs.contents(out) == before and not runs.drafts(out)
    monkeypatch.undo()
    invoke(f"{command} --resume --out {out}")
    runs.assert_same_run(out, whole)


def limited(size):
    """Files of this process can have so many bytes: writing fails within torch's own code."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize(("size", "name"), [(1_000_000, "last.ckpt"), (300_000, "last.safetensors")])
def test_writing_that_fails_is_one_line(short, tmp_path, size, name):
    command, whole = short
    out, log = tmp_path / "run", tmp_path / "log"
    runs.finish(f"{command} --out {out}", log, partial(counted, 4, partial(os._exit, 9)))
    state = runs.contents(out, "last.ckpt")  # there is one to lose
    code, told = runs.finish(f"{command} --resume --out {out}", log, partial(limited, size))
    assert code == 1 and told.splitlines()[-1].startswith(f"hlnet: cannot write '{out}/{name}': "), told
    assert "Traceback" not in told and not runs.drafts(out) and runs.contents(out, "last.ckpt") == state
    invoke(f"{command} --resume --out {out}")
    runs.assert_same_run(out, whole)
