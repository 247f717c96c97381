"""Order and augmentation of training images: functions of the seed, the epoch and the image alone.

Notable here: the order of an epoch and the augmentation of an image are functions, not states. So a run that was killed
goes on where it stood without any generator's state, and neither the number of worker processes nor that of machines
changes what is trained on. The sampler hands the epoch to the data set within the position that it asks for.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from hlnet.errors import DataError

log = logging.getLogger("hlnet")

#: How many images in a row may be unreadable before skipping them is given up.
TRIES = 20


class EpochSampler(Sampler[int]):
    """Every position of a data set once an epoch, shuffled anew in each; yields ``epoch * size + position``.

    Args:
        data: its length counts.
        seed: of the order.
        batch_size: with it, a last batch of a single image is left out: batch normalisation cannot use it.
        processes: that share the epoch. With several, its first images come again at its end, until each has whole
            batches. (accelerate would do so too, but take those with which a resumed epoch goes on for its first.)

    Example:
        >>> sampler = EpochSampler("abcd", seed=0)
        >>> sampler.begin(3)
        >>> sorted(sampler), list(sampler) == list(sampler)
        ([12, 13, 14, 15], True)
    """

    def __init__(self, data: Sized, seed: int, batch_size: int | None = None, processes: int = 1) -> None:
        self.size, self.seed = len(data), seed
        lonely = batch_size is not None and self.size > batch_size and self.size % batch_size == 1
        if processes > 1:
            whole = (batch_size or 1) * processes
            self.length = -(-self.size // whole) * whole
        else:
            self.length = self.size - 1 if lonely else self.size
        self.epoch, self.start = 0, 0

    def begin(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, and how many of its images to pass over.

        (Not called ``set_epoch``: accelerate would call that by itself, with its own count.)
        """
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(mixed(self.seed, self.epoch))
        order = torch.randperm(self.size, generator=generator)
        taken = order[torch.arange(self.start, self.length) % self.size]
        return iter((self.epoch * self.size + taken).tolist())

    def __len__(self) -> int:
        return self.length - self.start


class Seeded(Dataset[tuple[Tensor, int]]):
    """A data set whose randomness is a function of seed, epoch and position; asked for as :class:`EpochSampler` does.

    Args:
        data: random in Python's, NumPy's or torch's generators.
        seed: of all draws.
        skip_unreadable: put the next readable image in the place of one that cannot be read, with a warning for each in
            the log ``hlnet``, instead of failing.

    Raises:
        DataError: on reading an image that cannot be read.

    Example:
        >>> class Noise(Dataset):
        ...     def __len__(self):
        ...         return 3
        ...     def __getitem__(self, position):
        ...         return torch.rand(()), position
        >>> noise = Seeded(Noise(), seed=0)
        >>> noise[1] == noise[1], noise[1] == noise[4], noise[4][1]
        (True, False, 1)
    """

    def __init__(self, data: Dataset[Any], seed: int, skip_unreadable: bool = False) -> None:
        self.data, self.seed, self.skip_unreadable = data, seed, skip_unreadable
        self.size = len(data)  # type: ignore[arg-type]
        # Which images were warned of; worker processes share it.
        self.told = torch.zeros(self.size if skip_unreadable else 0, dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        epoch, position = divmod(number, self.size)
        for attempt in range(TRIES):
            try:
                with seeded(mixed(self.seed, epoch, position)):
                    item: tuple[Tensor, int] = self.data[position]
                    return item
            except DataError as error:
                if not self.skip_unreadable or attempt == TRIES - 1:
                    raise
                if not self.told[position]:
                    self.told[position] = True
                    log.warning("%s: another image takes its place", str(error).split(";")[0])
                position = (position + 1) % self.size
        raise AssertionError


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's generators, and put them back as they were afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def mixed(*numbers: int) -> int:
    """One seed out of several numbers, such that neighbours have nothing in common.

    Example:
        >>> mixed(0, 1) == mixed(0, 1), mixed(0, 1) == mixed(1, 0)
        (True, False)
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
