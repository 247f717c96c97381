"""What makes tests quick and is no part of what they check."""

import gc
import os
from functools import cache
from pathlib import Path

import typer.main
import typer.testing

from hlnet.cli.shared import options
from hlnet.files import replacing
from hlnet.training import run_folder


def be_quick():
    """Once a process, before its first test or command."""
    # What is imported by now stays, so it need not be looked through for garbage; and tests make little of that.
    gc.collect()
    gc.freeze()
    gc.set_threshold(30_000, 20, 20)
    # Building the command line takes a tenth of a second, and tests run more than a thousand commands.
    typer.main.get_command = typer.testing._get_command = cache(typer.main.get_command)
    options.load_optimized = shared_forms(options.load_optimized)
    run_folder.plot_curves = blank_curves  # tests/training/test_run_folder.py has the curves themselves


def shared_forms(load):
    """What loads inference forms, each file once: many commands of a test run read the same network."""
    forms = {}

    def loaded(name, *how):
        if not Path(name).is_file():
            return load(name, *how)
        status = os.stat(name)
        key = (os.path.realpath(name), status.st_ino, status.st_size, status.st_mtime_ns, *how)
        if key not in forms:
            forms[key] = load(name, *how)
            while len(forms) > 10:
                del forms[next(iter(forms))]
        return forms[key]

    return loaded


def blank_curves(history, path):
    """In place of a run's curves, which take longer to draw than such a short run: a file, written as theirs is."""
    with replacing(path) as draft:
        draft.write_bytes(b"\x89PNG\r\n\x1a\n")
