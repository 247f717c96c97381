"""Coverage: what is promised holds on simulated images, thresholds are ranks, one score decides for all of them."""

import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from helpers.path_cases import cases, under
from hypothesis import given, settings
from hypothesis import strategies as st

from hlnet.errors import DataError, RunError, UsageError
from hlnet.evaluation.metrics.conformal import descend_all, fit_path_conformal, outcomes, path_scores, threshold_for
from hlnet.evaluation.metrics.paths import TreePaths
from hlnet.tree.class_tree import ClassTree

TREE = ClassTree.from_nested(
    {f"g{i}": {f"h{i}{j}": [f"c{i}{j}{k}" for k in range(3)] for j in range(2)} for i in range(3)}
)


def simulated(images, generator):
    """Logits of images whose network is too sure by half and prefers some classes, and their classes."""
    true = 2.5 * torch.randn(images, 18, generator=generator, dtype=torch.double)
    labels = torch.multinomial(true.softmax(1), 1, generator=generator)[:, 0]
    return 1.5 * true + torch.linspace(-1, 1, 18, dtype=torch.double), labels


@pytest.mark.parametrize("images", [19, 200])
@pytest.mark.parametrize("coverage", [0.6, 0.75, 0.9, 0.95])
def test_coverage_holds_on_average(images, coverage):
    """Mean over fits, each on fresh images and tested on fresh ones. Scores do not tie here, so a fit's share of right
    answers follows Beta(n + 1 - k, k), of mean 1 - k / (n + 1); the bounds are four standard deviations of the mean."""
    generator, paths = torch.Generator().manual_seed(images), TreePaths(TREE)
    rounds, tested, right = 300, 100, 0
    for _ in range(rounds):
        logits, labels = simulated(images + tested, generator)
        down = descend_all(paths, logits, None)
        scores = path_scores(paths, down, labels)
        threshold = threshold_for(fit_path_conformal(scores[:images]), coverage)
        level = paths.answered(down, threshold)
        at = (level[images:] - 1).clamp(min=0)[:, None]  # by the nodes themselves, not by the scores
        nodes = [paths.places[leaves[images:]].gather(1, at)[:, 0] for leaves in (down.leaves, labels)]
        right += int(((nodes[0] == nodes[1]) | (level[images:] == 0)).sum())
    found = right / (rounds * tested)
    exact = 1 - math.floor((images + 1) * (1 - Fraction(str(coverage)))) / (images + 1)
    spread = 4 * math.sqrt(exact * (1 - exact) / rounds * (1 / (images + 2) + 1 / tested))
    assert exact >= coverage and exact - spread <= found <= exact + spread


def test_answers_get_deeper_as_coverage_falls():
    paths = TreePaths(TREE)
    logits, labels = simulated(500, torch.Generator().manual_seed(1))
    down = descend_all(paths, logits, None)
    fitted = fit_path_conformal(path_scores(paths, down, labels))
    steps = [paths.answered(down, threshold_for(fitted, coverage / 1000)) for coverage in range(500, 999)]
    assert all((low >= high).all() for low, high in pairwise(steps))
    means = [float(step.double().mean()) for step in (steps[0], steps[250], steps[400], steps[490])]
    assert means == sorted(means, reverse=True) and len(set(means)) == 4
    covered = [float((path_scores(paths, down, labels) < threshold_for(fitted, c)).double().mean()) for c in (0.7, 0.9)]
    assert covered[0] == pytest.approx(0.7, abs=0.01) and covered[1] == pytest.approx(0.9, abs=0.01)


@settings(deadline=None)
@given(cases(), st.data())
def test_score_decides_for_every_threshold(case, data):
    tree, rows = case
    paths, label = TreePaths(tree), data.draw(st.integers(0, len(tree.leaves) - 1))
    down = paths.descend(torch.tensor(rows[:1], dtype=torch.double))
    (score,) = path_scores(paths, down, torch.tensor([label])).tolist()
    way = tree.leaves[down.leaves[0]].path.split("/")
    for threshold in {*down.probabilities[0].tolist(), 1e-9, 0.3, 0.999999, 1.5}:
        level = int(paths.answered(down, threshold))
        answer = "/".join(way[:level])
        holds = level == 0 or f"{tree.leaves[label].path}/".startswith(f"{answer}/")
        assert holds == (score < threshold) or threshold == 0  # a node of probability 0 is answered at 0 only
    assert score in (0, *(under(tree, rows[0], "/".join(way[:end])) for end in range(1, len(way) + 1)))


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=60))
def test_thresholds_are_ranks(parts):
    scores = [part / 40 for part in parts]  # many ties; 0 and 1, too
    fitted = fit_path_conformal(torch.tensor(scores), "photos")
    assert (fitted.images, fitted.data) == (len(scores), "photos")
    for coverage in range(500, 1000):
        rank = int(Fraction(1000 - coverage, 1000) * (len(scores) + 1))
        if rank == 0:
            assert coverage - 500 >= len(fitted.thresholds)
            with pytest.raises(UsageError, match=rf"labelled images, the thresholds come from {len(scores)}:"):
                threshold_for(fitted, coverage / 1000)
            continue
        expected = sorted(scores, reverse=True)[rank - 1]
        assert expected < threshold_for(fitted, coverage / 1000) <= expected + 3e-6
        above = sum(score >= fitted.thresholds[coverage - 500] for score in scores)
        assert above <= rank - 1  # those above the k-th highest


def test_threshold_is_above_whatever_score():
    generator = torch.Generator().manual_seed(0)
    for score in [0.0, 1.0, 1e-12, 0.1234569999999999, 0.999999, 1 - 2**-53, *torch.rand(500, generator=generator)]:
        (threshold,) = set(fit_path_conformal(torch.tensor([float(score)], dtype=torch.double)).thresholds)
        assert float(score) < threshold < float(score) + 3e-6 and len(str(threshold)) <= 8


def test_coverage_between_two_counts_as_the_higher():
    fitted = fit_path_conformal(torch.arange(1000) / 1000)
    assert threshold_for(fitted, 0.9001) == threshold_for(fitted, 0.901) > threshold_for(fitted, 0.9)
    assert threshold_for(fitted, 0.29 + 0.61) == threshold_for(fitted, 0.9)  # whose binary neighbour it may be
    assert len(fitted.thresholds) == 500 and threshold_for(fitted, 0.999) == pytest.approx(0.999, abs=3e-6)


@pytest.mark.parametrize("coverage", [0, 0.4999, 0.9991, 1, 90, -1, math.nan])
def test_coverage_that_is_none(coverage):
    with pytest.raises(UsageError, match=r"expected a share between 0\.5 and 0\.999"):
        threshold_for(fit_path_conformal(torch.zeros(2000)), coverage)


def test_too_few_images_say_how_many_it_takes():
    fitted = fit_path_conformal(torch.zeros(10))
    with pytest.raises(UsageError, match=r"0\.95 takes at least 19 labelled images, .* from 10: up to 0\.909 goes"):
        threshold_for(fitted, 0.95)
    threshold_for(fitted, 0.909)
    with pytest.raises(UsageError, match="at least 10 "):
        threshold_for(fit_path_conformal(torch.zeros(9)), 0.909)


def test_what_teaches_nothing():
    with pytest.raises(DataError, match="one labelled image"):
        fit_path_conformal(torch.zeros(0))
    with pytest.raises(RunError, match="not numbers"):
        fit_path_conformal(torch.tensor([0.5, torch.nan]))


def test_outcomes_by_hand():
    tree = ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle"], "saw": {}})
    paths = TreePaths(tree)
    down = paths.descend(torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.1, 0.1, 0.75, 0.05], [0.3, 0.2, 0.3, 0.2]]))
    fitted = fit_path_conformal(torch.tensor([0.6, 0.2, 0.1, 0.0]))  # up to 0.8, from which on it is 0.6
    found = outcomes(paths, down, fitted, (0.5, 0.8, 0.9))
    # at 0.5: above 0.2, so tabby, beagle and tabby; at 0.8: above 0.6, so cat (two classes), dog (one), all four
    assert found == {
        "classes@0.5": 1.0, "decided@0.5": 1.0, "unsure@0.5": 0.0,
        "classes@0.8": pytest.approx(7 / 3), "decided@0.8": pytest.approx(1 / 3), "unsure@0.8": pytest.approx(1 / 3),
    }  # fmt: skip


@pytest.mark.parametrize("temperature", [None, 2.0])
def test_many_images_go_down_in_parts(monkeypatch, temperature):
    from hlnet.evaluation.metrics import conformal

    monkeypatch.setattr(conformal, "_CHUNK", 7)
    paths = TreePaths(TREE)
    logits, _ = simulated(20, torch.Generator().manual_seed(2))
    found, expected = descend_all(paths, logits, temperature), paths.descend((logits / (temperature or 1)).softmax(1))
    assert found.leaves.equal(expected.leaves) and found.probabilities.equal(expected.probabilities)
