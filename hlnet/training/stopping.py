"""Early ends of a long run: signals, lost workers, full memory."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from accelerate.utils.memory import should_reduce_batch_size

from hlnet.errors import RunError, one_line


class Stopped(KeyboardInterrupt):
    """The run was asked to stop, by SIGINT or SIGTERM, and its state was saved."""


@contextmanager
def defer_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set instead of ending the process at once; a second one ends it."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def note(*_: Any) -> None:
        event.set()
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in signals:
        signal.signal(number, note)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def translate_memory_errors(interrupted: threading.Event | None = None) -> Iterator[None]:
    """A lost worker and full memory as our errors.

    Raises:
        RunError: in their place.
        Stopped: if a worker was lost because the run was ``interrupted``.
    """
    try:
        yield
    except (RuntimeError, EOFError, ConnectionError, MemoryError) as error:
        said = str(error).split("\n")[0] or type(error).__name__
        if not isinstance(error, RuntimeError | MemoryError) or "DataLoader worker" in said:
            with suppress(RuntimeError):  # of a lost worker, torch tells by a signal, too: at any time, anywhere
                time.sleep(0.2)
            if interrupted is not None and interrupted.is_set():  # whoever ended us ended it too, and first
                raise Stopped("stopped, with the state as it was saved last") from None
            raise RunError(
                f"a process that loads images was lost ({one_line(said)}); memory may be short: "
                "try fewer workers, and go on with resume"
            ) from error
        if isinstance(error, MemoryError) or should_reduce_batch_size(error):
            raise RunError(
                f"the memory is full ({one_line(said)}); try a smaller batch_size, or smaller images"
            ) from error
        raise
