"""Real runs of ``hlnet train`` on a few small images, each in a process of its own that a test may kill.

Importing torch takes seconds, so one server does it, and runs are forked from there.
"""

import csv
import json
import multiprocessing
import os
import shlex
import signal
import sys
import time
import warnings

import numpy as np
import torch
from PIL import Image

from helpers import quick
from hlnet.cli import main as cli
from hlnet.training import trainer

COLOURS = {"red": (255, 0, 0), "yellow": (255, 255, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
#: Everything random is on: crops, flips, RandAugment, erasing.
SMALL = "--backbone test_resnet --img-size 32 --batch-size 4 --reprob 0.5 --lr 3e-3 --warmup-epochs 1 --device cpu"
#: The files of a run of one epoch, in the order in which they take their places; the state after its first step, too.
WRITTEN = [
    *("classes.tree.json", "config.toml", "last.ckpt"),
    *("last.safetensors", "metrics.csv", "curves.png", "last.ckpt", "best.safetensors"),
    *("model/model.safetensors", "model/config.json", "model/README.md"),
]

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["hlnet.cli.main", "hlnet.training.loop", "hlnet.training.run_parts", "hlnet.figures"])


def write_images(root, train=5, val=2):
    """``data/`` with so many images of each colour, and ``tree.json``."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for name, colour in COLOURS.items():
            folder = root / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (36, 40, 3)) * np.array(colour) // 255
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    (root / "tree.json").write_text(json.dumps({"warm": ["red", "yellow"], "cold": ["green", "blue"]}))
    return f"train {root / 'data'} --tree {root / 'tree.json'}"


def start(line, log, prepare=None, **environment):
    """Begin a run. What it says goes into the file ``log``; ``prepare`` is called in the new process before."""
    process = server.Process(target=_run, args=(shlex.split(line), str(log), prepare, environment))
    process.start()
    return process


def finish(line, log, prepare=None, seconds=300):
    """Run to the end: the exit code, and what it said."""
    process = start(line, log, prepare)
    return ended(process, seconds), log.read_text()


def ended(process, seconds=300):
    """The exit code of a process that ends by itself."""
    process.join(seconds)
    found = process.exitcode
    process.kill()
    return found


def finish_torchrun(words, log, seconds=300):
    """``torchrun`` with these words, to the end, in a process that has imported torch already."""
    process = server.Process(target=_torchrun, args=(words, str(log)))
    process.start()
    return ended(process, seconds), log.read_text()


def _torchrun(words, log):
    from torch.distributed.run import main

    _speak_into(log)
    main(words)


def _speak_into(log):
    os.setsid()  # a signal to the whole group is for this run alone
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which whoever started the tests may have switched off
    file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)


def _run(words, log, prepare, environment):
    _speak_into(log)
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    warnings.resetwarnings()  # pytest's own settings
    quick.be_quick()
    if prepare is not None:
        prepare()
    sys.argv = ["hlnet", *words]
    cli.main()


def paused(ready):
    """Let the second step tell, by a file, that it is under way, and wait until somebody removes that."""
    step = trainer.Trainer._step

    def waiting(self, number, count, *rest):
        if (number, count) == (1, 2):
            ready.touch()
            wait_for(lambda: not ready.exists())
        step(self, number, count, *rest)

    trainer.Trainer._step = waiting


def wait_for(condition, *processes, seconds=300):
    """Until it holds, or one of the processes is done."""
    end = time.monotonic() + seconds
    while not condition() and all(process.is_alive() for process in processes):
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.005)


def changed(file):
    """When it was written last; 0 if never."""
    return file.stat().st_mtime_ns if file.exists() else 0


def wait_for_another(file, before, *processes):
    """Until it is written again."""
    wait_for(lambda: changed(file) > before, *processes)


def figures(out):
    """``metrics.csv`` without the times."""
    with (out / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def contents(out, *names):
    """The bytes of files in a folder, by name; of all in it, unless some are named. Not of drafts."""
    found = {str(path.relative_to(out)): path for path in out.rglob("*") if path.is_file()}
    found = {name: path for name, path in found.items() if "/." not in f"/{name}"}
    return {name: found[name].read_bytes() for name in names or found}


def drafts(out):
    return list(out.rglob(".*"))


def weights(file):
    """The header and the bytes behind it; the header's order of keys is left to chance by safetensors."""
    whole = file.read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    return json.loads(whole[8:length]), whole[length:]


def assert_same_run(found, expected):
    """All that two run folders tell is the same, bit for bit, and nothing else lies there."""
    assert contents(found).keys() == {*WRITTEN} and not drafts(found)
    assert figures(found) == figures(expected)
    text = [name for name in WRITTEN if name.endswith((".json", ".toml", ".md"))]
    assert contents(found, *text) == contents(expected, *text)
    for name in WRITTEN:
        if name.endswith(".safetensors"):
            assert weights(found / name) == weights(expected / name), name
