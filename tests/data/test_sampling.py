"""Order and augmentation are functions of seed, epoch and position: stated so, and seen through worker processes."""

import logging
import random
from math import ceil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from hlnet.data.sampling import TRIES, EpochSampler, Seeded, mixed, seeded
from hlnet.data.tree_data import loader
from hlnet.errors import DataError

SIZES, SEEDS, EPOCHS = st.integers(1, 60), st.integers(0, 2**40), st.integers(0, 10_000)


def order(size, seed, epoch, start=0, **more):
    """The positions, after a check of what they are wrapped in."""
    sampler = EpochSampler(range(size), seed, **more)
    sampler.begin(epoch, start)
    numbers = list(sampler)
    assert numbers == list(sampler) and len(numbers) == len(sampler)
    assert all(number // size == epoch for number in numbers)
    return [number % size for number in numbers]


@given(SIZES, SEEDS, EPOCHS)
def test_each_epoch_is_a_permutation_whose_tail_a_resumed_one_sees(size, seed, epoch):
    whole = order(size, seed, epoch)
    assert sorted(whole) == list(range(size))
    assert all(order(size, seed, epoch, start) == whole[start:] for start in {0, 1, size // 2, size})


@given(st.integers(20, 60), SEEDS, EPOCHS, st.integers(1, 9))
def test_epochs_and_seeds_differ(size, seed, epoch, more):
    orders = [order(size, seed, epoch), order(size, seed, epoch + more), order(size, seed + more, epoch)]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_all_orders_come():
    found = [tuple(order(3, 5, epoch)) for epoch in range(600)]
    assert len(set(found)) == 6 and all(60 < found.count(one) < 140 for one in set(found))


@given(SIZES, SEEDS, EPOCHS, st.integers(1, 9))
def test_only_a_lonely_last_image_is_left_out(size, seed, epoch, batch_size):
    found, whole = order(size, seed, epoch, batch_size=batch_size), order(size, seed, epoch)
    lonely = batch_size > 1 and size > batch_size and size % batch_size == 1
    assert found == (whole[:-1] if lonely else whole)


@given(SIZES, SEEDS, EPOCHS, st.integers(1, 9), st.integers(2, 4), st.integers(0, 100))
def test_processes_get_whole_batches_wherever_they_begin(size, seed, epoch, batch_size, processes, steps):
    together, whole = batch_size * processes, order(size, seed, epoch)
    expected = [whole[i % size] for i in range(ceil(size / together) * together)]
    start = min(steps, len(expected) // together) * together
    assert order(size, seed, epoch, start, batch_size=batch_size, processes=processes) == expected[start:]


# ---------------------------------------------------------------------- randomness


class Noise(Dataset):
    """Draws from all three generators, and tells which were asked for."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, position):
        return torch.tensor([random.random(), np.random.rand(), torch.rand(()), position]).double(), position


@settings(max_examples=50)
@given(SEEDS, EPOCHS, st.integers(0, 6), st.lists(st.integers(0, 6), max_size=4))
def test_draws_depend_on_seed_epoch_and_position_only(seed, epoch, position, asked_before):
    one, other = Seeded(Noise(7), seed), Seeded(Noise(7), seed)
    for before in asked_before:
        _ = one[before], random.random(), torch.rand(3)
    found, expected = one[epoch * 7 + position], other[epoch * 7 + position]
    assert torch.equal(found[0], expected[0]) and found[1] == expected[1] == position
    for elsewhere in ((epoch + 1) * 7 + position, epoch * 7 + (position + 1) % 7):
        assert not (one[elsewhere][0][:3] == found[0][:3]).any()
    assert not (Seeded(Noise(7), seed + 1)[epoch * 7 + position][0][:3] == found[0][:3]).any()


def state():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def test_generators_stay_as_they_were():
    before, data = state(), Seeded(Noise(5), 0)
    _ = [data[i] for i in range(10)]
    with seeded(3):
        _ = torch.rand(4), random.random(), np.random.rand()
    with pytest.raises(DataError):
        _ = Seeded(Holes(5), 0)[3]
    assert state() == before


@given(st.lists(st.tuples(st.integers(0, 2**63), st.integers(0, 2**63)), unique=True, min_size=2, max_size=50))
def test_seeds_of_different_numbers_differ(pairs):
    found = [mixed(*pair) for pair in pairs]
    assert len(set(found)) == len(pairs) and all(0 <= seed < 2**63 for seed in found)


def test_workers_change_nothing():
    """Through epochs, one of them resumed, and with workers that stay."""
    found = []
    for workers in (0, 1, 2):
        torch.manual_seed(workers)
        data, sampler = Seeded(Noise(23), 4), EpochSampler(range(23), 4, 5)
        batches = loader(data, 5, workers, sampler)
        for epoch, start in ((1, 0), (2, 10), (1, 0)):
            sampler.begin(epoch, start)
            found.append([torch.cat([images, labels[:, None]], 1) for images, labels in batches])
    assert [len(batches) for batches in found] == 3 * [5, 3, 5]
    for batches in zip(found[:3], found[3:6], found[6:], strict=True):
        assert all(
            torch.equal(one, other) for workers in batches for one, other in zip(workers, batches[0], strict=True)
        )
    assert all(torch.equal(one, other) for one, other in zip(found[0], found[2], strict=True))
    assert not torch.equal(found[0][2], found[1][0])


# ---------------------------------------------------------------------- unreadable images


class Holes(Noise):
    """Some images cannot be read."""

    holes = frozenset({2, 3, 22})

    def __getitem__(self, position):
        if position in self.holes:
            raise DataError(f"cannot read image {position}; remove or replace it")
        return super().__getitem__(position)


def test_unreadable_images_fail_or_are_replaced_by_the_next(caplog):
    with pytest.raises(DataError, match="image 3;"):
        Seeded(Holes(23), 0)[3]
    data, whole = Seeded(Holes(23), 0, skip_unreadable=True), Seeded(Noise(23), 0)
    with caplog.at_level(logging.WARNING, "hlnet"):
        labels = [data[23 + position][1] for position in range(23)]
        images = [data[23 + position][0] for position in range(23)]
    assert labels == [0, 1, 4, 4, *range(4, 22), 0]
    assert torch.equal(images[2], whole[23 + 4][0]) and torch.equal(images[5], whole[23 + 5][0])
    expected = [f"cannot read image {place}: another image takes its place" for place in (2, 3, 22)]
    assert [record.message for record in caplog.records] == expected  # once each


def test_workers_warn_once_together(tmp_path):
    sampler, data = EpochSampler(range(23), 0), Seeded(Holes(23), 0, skip_unreadable=True)
    batches, rounds, handler = loader(data, 2, 2, sampler), [], logging.FileHandler(tmp_path / "log")
    logging.getLogger("hlnet").addHandler(handler)
    for epoch in range(1, 4):
        sampler.begin(epoch)
        rounds.append(torch.cat([labels for _, labels in batches]).tolist())
    logging.getLogger("hlnet").removeHandler(handler)
    expected = [label for label in range(23) if label not in Holes.holes]
    assert all(sorted(set(labels)) == expected and len(labels) == 23 for labels in rounds)
    told = (tmp_path / "log").read_text().splitlines()
    assert sorted(told) == sorted(f"cannot read image {place}: another image takes its place" for place in (2, 3, 22))


def test_many_unreadable_images_in_a_row_are_too_many():
    data = Holes(50)
    data.holes = frozenset(range(TRIES))
    assert Seeded(data, 0, skip_unreadable=True)[1][1] == TRIES
    with pytest.raises(DataError, match=f"image {TRIES - 1};"):
        Seeded(data, 0, skip_unreadable=True)[0]
