"""Paired comparison: intervals against resampling image by image and against the normal limit, p-values by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hlnet.evaluation.metrics.comparison
from hlnet.errors import UsageError
from hlnet.evaluation.metrics.comparison import compare, mcnemar, paired_bootstrap


def answers(only_first, only_second, both, neither):
    """Whether two networks are right, image by image."""
    first = [True] * only_first + [False] * only_second + [True] * both + [False] * neither
    second = [False] * only_first + [True] * only_second + [True] * both + [False] * neither
    return torch.tensor(first), torch.tensor(second)


def image_by_image(first, second, resamples, level):
    """The percentile bootstrap as it is written down: draw images, average, sort."""
    differences, generator = (first.double() - second.double()).numpy(), np.random.default_rng(99)
    drawn = generator.integers(0, len(differences), (resamples, len(differences)))
    return np.quantile(differences[drawn].mean(1), [(1 - level) / 2, (1 + level) / 2])


@pytest.mark.parametrize("kind", ["right or wrong", "heights", "probabilities"])
@pytest.mark.parametrize("level", [0.5, 0.95])
def test_interval_is_that_of_drawing_images(kind, level):
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 300, generator=generator)
    if kind == "right or wrong":
        first, second = first > 0.4, second > 0.5
    elif kind == "heights":
        first, second = (4 * first).long(), (5 * second).long()
    found = paired_bootstrap(first, second, level, resamples=20_000)
    low, high = image_by_image(first, second, 20_000, level)
    assert found.mean == pytest.approx(float((first.double() - second.double()).mean())) and found.level == level
    width = high - low
    assert (found.low, found.high) == (pytest.approx(low, abs=0.05 * width), pytest.approx(high, abs=0.05 * width))


def test_interval_of_many_images_is_the_normal_one():
    first, second = answers(900, 700, 7000, 1400)
    found = paired_bootstrap(first, second)
    mean, spread = 0.02, math.sqrt(0.16 - 0.02**2) / 100
    assert found.mean == pytest.approx(mean)
    assert [found.low, found.high] == pytest.approx([mean - 1.96 * spread, mean + 1.96 * spread], abs=0.05 * spread)


def test_pairing_counts_and_order_does_not():
    first, second = answers(30, 10, 100, 60)
    found = paired_bootstrap(first, second)
    shuffled = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    assert paired_bootstrap(first[shuffled], second[shuffled]) == found
    apart = paired_bootstrap(first, second[shuffled])
    assert apart.mean == pytest.approx(found.mean) and apart.high - apart.low > 1.3 * (found.high - found.low)


def test_seed_decides():
    first, second = torch.rand(2, 50, generator=torch.Generator().manual_seed(0))
    assert paired_bootstrap(first, second, seed=1) == paired_bootstrap(first, second, seed=1)
    assert paired_bootstrap(first, second, seed=1) != paired_bootstrap(first, second, seed=2)


def test_draws_in_parts_are_the_same_draws(monkeypatch):
    first, second = answers(30, 10, 100, 60)
    whole = paired_bootstrap(first, second, resamples=1000)
    monkeypatch.setattr(hlnet.evaluation.metrics.comparison, "_MOST_COUNTS", 100)
    assert paired_bootstrap(first, second, resamples=1000) == whole


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=30))
def test_interval_holds_the_median_and_turns_with_its_sides(pairs):
    first, second = torch.tensor(pairs).T
    found, turned = paired_bootstrap(first, second, resamples=200), paired_bootstrap(second, first, resamples=200)
    differences = (first - second).tolist()
    assert min(differences) <= found.low <= found.high <= max(differences)
    assert turned.mean == -found.mean
    if len(set(differences)) == 1:
        assert found.low == found.high == found.mean
    assert found.excludes_zero == (found.low > 0 or found.high < 0)


# ---------------------------------------------------------------------- McNemar


@pytest.mark.parametrize(
    ("only_first", "only_second", "expected"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 5, 1.0),
        (5, 0, 2 / 2**5),
        (8, 2, 2 * (1 + 10 + 45) / 2**10),
        (1, 9, 2 * (1 + 10) / 2**10),
        (6, 121, None),
    ],
)
def test_p_value_is_the_binomial_tail(only_first, only_second, expected):
    pairs = only_first + only_second
    tail = sum(math.comb(pairs, k) for k in range(min(only_first, only_second) + 1)) / 2**pairs
    expected = expected or 2 * tail
    assert mcnemar(*answers(only_first, only_second, 3, 4)) == pytest.approx(min(1.0, 2 * tail)) == expected


def test_p_values_are_uniform_where_neither_is_better():
    """Of networks equally good, at most 5 % are told apart at 0.05."""
    generator, told = np.random.default_rng(0), 0
    for only_first in generator.binomial(40, 0.5, 400):
        told += mcnemar(*answers(int(only_first), 40 - int(only_first), 0, 0)) <= 0.05
    assert 1 <= told <= 0.07 * 400


# ---------------------------------------------------------------------- both together


def test_comparison_counts_each_kind_of_image():
    first, second = answers(7, 2, 20, 11)
    found = compare(first, second)
    assert (found.images, found.only_first, found.only_second) == (40, 7, 2)
    assert found.top1 == paired_bootstrap(first, second) and found.top1.mean == pytest.approx(5 / 40)
    assert found.p_value == mcnemar(first, second) and found.lca_height is None
    heights = torch.arange(40) % 4, torch.arange(40) % 3
    found = compare(first, second, heights, seed=3)
    assert found.lca_height == paired_bootstrap(*heights, seed=3)
    assert found.lca_height.mean == pytest.approx(float((heights[0] - heights[1]).double().mean()))


def test_network_beside_itself():
    right = torch.tensor([True, False, True])
    found = compare(right, right)
    assert (found.top1.mean, found.top1.low, found.top1.high, found.p_value) == (0, 0, 0, 1)
    assert not found.top1.excludes_zero


@pytest.mark.parametrize("shapes", [((3,), (4,)), ((0,), (0,)), ((2, 2), (2, 2))])
@pytest.mark.parametrize("function", [compare, mcnemar, paired_bootstrap])
def test_answers_that_are_no_pairs_are_refused(function, shapes):
    with pytest.raises(UsageError, match="one figure an image from each"):
        function(*(torch.ones(shape, dtype=torch.bool) for shape in shapes))


@pytest.mark.parametrize("settings", [{"level": 0.0}, {"level": 1.0}, {"level": math.nan}, {"resamples": 0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(UsageError, match="a bootstrap takes a level between 0 and 1"):
        paired_bootstrap(torch.ones(3), torch.ones(3), **settings)


@pytest.mark.parametrize("figure", [math.nan, math.inf])
def test_figures_that_are_no_numbers_are_refused(figure):
    with pytest.raises(UsageError, match="finite"):
        paired_bootstrap(torch.tensor([1.0, figure]), torch.ones(2))
