"""A list divided among processes: each takes its share, and the first one puts the results back in order.

Notable here: shares go by position, so the length of the list may be unknown; results go through files next to the
output, so none are held in memory. The processes, started by ``torchrun``, talk at the
beginning and at the end only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from hlnet.errors import RunError, UsageError, one_line
from hlnet.files import folder_beside

#: How long processes wait for each other at the beginning, and in the end; one that dies in between is noticed at once.
MEETING, PATIENCE = timedelta(minutes=10), timedelta(days=30)
T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """This process's part of a list.

    Attributes:
        number: of this process, from 0.
        count: of processes.
        local: the number among those of this machine, which chooses its GPU.

    Example:
        >>> list(Share(1, 3).of("abcdefgh"))
        ['b', 'e', 'h']
    """

    number: int = 0
    count: int = 1
    local: int = 0

    @classmethod
    def ours(cls) -> Share:
        """The share by the environment of ``torchrun`` or ``accelerate launch``; without these, the whole list.

        Raises:
            UsageError: if their environment variables are incomplete.
        """
        told = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        try:
            count = int(told["WORLD_SIZE"] or 1)
            number = int(told["RANK"] or (0 if count == 1 else -1))
            local = int(told["LOCAL_RANK"] or number)
        except ValueError:
            number, count, local = 0, 0, 0
        if not 0 <= number < count or (count > 1 and "MASTER_ADDR" not in os.environ):
            settings = ", ".join(f"{name}={value}" for name, value in told.items())
            raise UsageError(f"{settings} does not identify one of several processes; start them with torchrun")
        return cls(number, count, local)

    @property
    def first(self) -> bool:
        """Whether this process gathers the results."""
        return self.number == 0

    def of(self, items: Iterable[T]) -> Iterator[T]:
        """The items at our positions."""
        return islice(items, self.number, None, self.count)


@contextmanager
def in_order(share: Share, lines: Iterator[str], beside: Path) -> Iterator[Iterator[str] | None]:
    """The lines of all processes as one list, in the first of them; ``None`` in the others, which are done then.

    Args:
        share: which lines are ours.
        lines: ours, one for each item, without line breaks; they are asked for in here.
        beside: the file that will be written: the parts lie in a hidden folder beside it, which goes in the end, and
            which all processes must see.

    Raises:
        RunError: if the folder cannot be written or seen, or another process has stopped.
    """
    if share.count == 1:
        yield lines
        return
    from torch import distributed

    _together(distributed.init_process_group, "gloo", rank=share.number, world_size=share.count, timeout=MEETING)
    try:
        with ExitStack() as stack:
            patient = _together(distributed.new_group, backend="gloo", timeout=PATIENCE)
            told = [str(stack.enter_context(folder_beside(beside)).resolve()) if share.first else ""]
            _together(distributed.broadcast_object_list, told)
            parts = [Path(told[0]) / f"part-{number:05}-of-{share.count:05}" for number in range(share.count)]
            ours = parts[share.number]
            try:
                with ours.open("w", encoding="utf-8") as file:
                    file.writelines(f"{line}\n" for line in lines)
            except OSError as error:
                raise RunError(
                    f"cannot write '{ours}': {error.strerror or error}; every process must see this folder"
                ) from error
            _together(distributed.barrier, patient)
            if not share.first:
                yield None
                return
            yield _alternating([stack.enter_context(path.open(encoding="utf-8")) for path in parts])
    finally:
        distributed.destroy_process_group()


# ---------------------------------------------------------------------- helpers


def _alternating(parts: list[Iterator[str]]) -> Iterator[str]:
    """A line of each part in turn; the parts end one after the other."""
    while True:
        for part in parts:
            if (line := next(part, None)) is None:
                return
            yield line.rstrip("\n")


def _together(act: Callable[..., T], *arguments: Any, **settings: Any) -> T:
    """Run a collective operation of all processes.

    Raises:
        RunError: if one of them is gone.
    """
    try:
        return act(*arguments, **settings)
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"another process of this run has stopped, or cannot be reached; see its message ({one_line(error)})"
        ) from error
