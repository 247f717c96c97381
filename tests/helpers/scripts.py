"""Scripts in processes of their own that need not import torch again: they are forked from a server that has."""

import os
import runpy
import sys

import torch

from helpers import runs


def run(script, *arguments, cwd, log, prepare=None):
    """Run a file as ``python FILE ARGUMENTS``; what it prints. ``prepare`` is called in the new process before."""
    words = [str(script), *map(str, arguments)]
    process = runs.server.Process(target=_run, args=(words, str(cwd), [log, errors_of(log)], prepare))
    process.start()
    code = runs.ended(process)
    assert code == 0, errors_of(log).read_text()
    return log.read_text()


def errors_of(log):
    """Where what goes to standard error is."""
    return log.with_suffix(".err")


def _run(words, cwd, logs, prepare):
    torch.set_num_threads(1)
    for stream, log in enumerate(logs, start=1):
        os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream)
    os.chdir(cwd)
    sys.argv = words
    if prepare is not None:
        prepare()
    runpy.run_path(words[0], run_name="__main__")
