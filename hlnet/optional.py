"""Packages of others that hlnet can do without: what is missing is named, what is chatty is hushed."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import cache
from importlib import import_module
from typing import Any, TextIO

from hlnet.errors import UsageError, one_line

_log = logging.getLogger(__name__)


def require(module: str, purpose: str, extra: str) -> Any:
    """Import a module of a package that only an extra of ours brings.

    Args:
        module: its name.
        purpose: what it is for, as the start of a sentence.
        extra: the extra.

    Raises:
        UsageError: if it is not there, or cannot be imported.

    Example:
        >>> require("json", "writing JSON", "json").dumps([])
        '[]'
        >>> require("no_such_package.part", "guessing", "oracle")
        Traceback (most recent call last):
        hlnet.errors.UsageError: guessing needs the package no_such_package: pip install 'hlnet[oracle]'
    """
    try:
        with silence():
            return import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).partition(".")[0]
        raise UsageError(f"{purpose} needs the package {missing}: pip install 'hlnet[{extra}]'") from None
    except Exception as error:  # a package that is broken, or does not fit the others
        raise UsageError(
            f"{purpose} needs the package {module.partition('.')[0]}, which cannot be imported here: {one_line(error)}"
        ) from error


@contextmanager
def silence() -> Iterator[None]:
    """What is said within goes to the log ``hlnet.optional``, level debug, whatever language it was written in.

    Warnings, Python's streams and the process's own (file descriptors 1 and 2), so that other threads are silent
    meanwhile too: keep it short. Handlers that a package gives to the root of all logs are taken away again.
    """
    handlers = list(logging.root.handlers)
    with tempfile.TemporaryFile() as said:
        try:
            # Not to the file itself: a package may keep a stream that it was shown, and use it when that is closed.
            streams = redirect_stdout(_stream(1)), redirect_stderr(_stream(2))
            with _descriptors_to(said.fileno()), streams[0], streams[1], warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.root.handlers[:] = handlers
            said.seek(0)
            if words := said.read().decode(errors="replace").strip():
                _log.debug("%s", words)


@cache
def _stream(descriptor: int) -> TextIO:
    """A stream of one's own on a file descriptor; on nothing, where that is closed."""
    try:
        return open(descriptor, "w", encoding="utf-8", errors="replace", buffering=1, closefd=False)
    except OSError:
        return open(os.devnull, "w", encoding="utf-8")


@contextmanager
def _descriptors_to(target: int) -> Iterator[None]:
    """Both output streams of the process lead to another file, where it has any."""
    kept: dict[int, int] = {}
    try:
        for number, stream in ((1, sys.stdout), (2, sys.stderr)):
            with suppress(OSError, ValueError):  # closed: there is nothing to hush
                stream.flush()
                kept[number] = os.dup(number)
                os.dup2(target, number)
        yield
    finally:
        for number, before in kept.items():
            with suppress(OSError, ValueError):
                _stream(number).flush()
            os.dup2(before, number)
            os.close(before)
