"""Rejection: scores by their formulas, curves by scikit-learn, and a threshold that keeps its promise in simulation."""

import csv
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import auc, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from hlnet.data.images import LabelledImages
from hlnet.data.tree_data import TreeData
from hlnet.errors import DataError, RunError, UsageError
from hlnet.evaluation.metrics.rejection import (
    SCORES,
    conformal_threshold,
    default_score,
    detection,
    false_positive_bound,
    rejection_scores,
    roc_curve,
    write_roc,
)
from hlnet.model.provenance import Provenance
from hlnet.tree.class_tree import ClassTree

#: Few distinct values, so that own and outside images often tie.
coarse = st.lists(st.integers(-3, 3), min_size=1, max_size=30)


def both(own, outside):
    """Labels and scores as scikit-learn takes them."""
    return [1] * len(own) + [0] * len(outside), [*own, *outside]


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


# ---------------------------------------------------------------------- scores


@pytest.mark.parametrize("classes", [1, 2, 7])
def test_scores_are_their_formulas(classes):
    logits = 4 * torch.randn(20, classes, generator=torch.Generator().manual_seed(classes))
    rows = logits.double().numpy()
    expected = {
        "energy": np.log(np.exp(rows).sum(1)),
        "max-logit": rows.max(1),
        "probability": (1 / (1 + np.exp(-rows))).max(1),
    }
    assert set(SCORES) == set(expected)
    for name, values in expected.items():
        found = rejection_scores(logits, name)
        assert found.dtype == torch.float64
        np.testing.assert_allclose(found, values, rtol=1e-12)
    if classes == 1:
        np.testing.assert_allclose(rejection_scores(logits, "energy"), rows[:, 0], rtol=1e-12)


def test_energy_of_large_logits_is_finite():
    assert float(rejection_scores(torch.tensor([[1000.0, 1000.0]]), "energy")) == pytest.approx(1000 + math.log(2))


def test_unknown_score_is_refused():
    with pytest.raises(UsageError, match=r"'softmax'; expected energy, max-logit, probability"):
        rejection_scores(torch.zeros(1, 2), "softmax")


@pytest.mark.parametrize(
    "recipe, score",
    [({}, "energy"), ({"train": {"loss": "bce"}}, "probability"), ({"train": {"loss": "cross-entropy"}}, "energy")],
)
def test_score_suits_the_training(recipe, score):
    provenance = Provenance(recipe=recipe)
    assert default_score(provenance) == score and provenance.one_vs_rest == (score == "probability")


# ---------------------------------------------------------------------- the threshold


@pytest.mark.parametrize("alpha, needed", [(0.01, 99), (0.05, 19), (0.03, 33), (0.5, 1), (0.001, 999)])
def test_too_few_outside_images_are_refused_by_number(alpha, needed):
    with pytest.raises(DataError, match=f"at least {needed} images .* hold {needed - 1}:"):
        conformal_threshold(torch.arange(needed - 1.0), alpha)
    assert conformal_threshold(torch.arange(float(needed)), alpha) > needed - 1  # none of them is accepted


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.5, math.nan])
def test_rate_out_of_range_is_refused(alpha):
    with pytest.raises(UsageError, match="between 0 and 1"):
        conformal_threshold(torch.arange(1000.0), alpha)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_refused(bad):
    scores = torch.arange(100.0)
    scores[3] = bad
    with pytest.raises(RunError, match="not numbers"):
        conformal_threshold(scores, 0.1)


@settings(deadline=None)
@given(st.integers(19, 300), st.sampled_from([0.05, 0.07, 0.1, 0.29, 0.58, 0.9]), st.randoms(use_true_random=False))
def test_threshold_is_the_lowest_that_keeps_to_the_rate(count, alpha, random):
    values = list(range(count))
    random.shuffle(values)
    threshold = conformal_threshold(tensor(values), alpha)
    accepted = sum(value >= threshold for value in values)
    # A new image ties with none: it and those accepted are at most alpha of all n + 1, and one more would be too many.
    hundredths = round(100 * alpha)
    assert 100 * (accepted + 1) <= hundredths * (count + 1) < 100 * (accepted + 2)


@pytest.mark.parametrize("alpha, count", [(0.05, 19), (0.05, 70), (0.2, 33)])
@pytest.mark.parametrize("kind", ["normal", "tied"])
def test_false_positives_keep_to_the_rate_on_average(alpha, count, kind):
    """Over many draws of calibration images and of a new one; with continuous scores it is ``k / (n + 1)``."""
    generator = torch.Generator().manual_seed(count)
    scores = torch.randn(5000, count + 1, generator=generator, dtype=torch.float64)
    if kind == "tied":
        scores = (2 * scores).round()
    found = [new >= conformal_threshold(rest, alpha) for rest, new in zip(scores[:, 1:], scores[:, 0], strict=True)]
    share, rank = float(torch.stack(found).double().mean()), math.floor(alpha * (count + 1) + 1e-9)
    noise = 4 * math.sqrt(alpha / len(scores))
    assert share <= alpha + noise
    if kind == "normal":
        assert share == pytest.approx(rank / (count + 1), abs=noise)


def test_bound_holds_in_95_of_100_fits():
    """Uniform scores: the share that a threshold t lets through is 1 - t."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(3000, 99, generator=generator, dtype=torch.float64)
    shares = 1 - torch.tensor([conformal_threshold(draw, 0.05) for draw in draws])
    assert float(shares.mean()) == pytest.approx(0.05, abs=0.003)
    under = float((shares <= false_positive_bound(99, 0.05)).double().mean())
    assert under == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 3000))


# ---------------------------------------------------------------------- curves


@settings(deadline=None)
@given(coarse, coarse)
def test_curve_is_scikit_learns(own, outside):
    fpr, tpr = roc_curve(tensor(own), tensor(outside))
    expected = sklearn_roc_curve(*both(own, outside), drop_intermediate=False)
    np.testing.assert_allclose(fpr, expected[0])
    np.testing.assert_allclose(tpr, expected[1])
    found = detection(tensor(own), tensor(outside), "energy")
    assert found.auroc == pytest.approx(roc_auc_score(*both(own, outside)))
    pairs = [(a > b) + 0.5 * (a == b) for a in own for b in outside]
    assert found.auroc == pytest.approx(sum(pairs) / len(pairs))
    assert found.fpr_at_95_tpr == pytest.approx(expected[0][expected[1] >= 0.95].min())
    assert (found.roc[0], found.roc[-1]) == ((0, 0), (1, 1))
    assert auc(*zip(*found.roc, strict=True)) == pytest.approx(found.auroc)
    assert len(set(found.roc)) == len(found.roc) <= len(fpr)


@pytest.mark.parametrize("count", [20, 40, 60, 100, 1000])
def test_95_percent_of_own_are_exactly_enough(count):
    """5 % of own images below an outside one: it need not be accepted."""
    own = torch.arange(count, dtype=torch.float64)
    assert detection(own, tensor([count / 20 - 0.5]), "energy").fpr_at_95_tpr == 0
    assert detection(own, tensor([count / 20 + 0.5]), "energy").fpr_at_95_tpr == 1


def test_detection_by_hand():
    own, outside, right = tensor([5, 4, 3, 1]), tensor([4, 2, 0, -1, -2]), torch.tensor([True, False, True, True])
    found = detection(own, outside, "max-logit", 3.0, right, 0.2)
    assert (found.score, found.own, found.outside, found.threshold) == ("max-logit", 4, 5, 3.0)
    assert (found.own_accepted, found.outside_accepted, found.max_false_positive) == (0.75, 0.2, 0.2)
    assert found.accuracy_accepted == pytest.approx(2 / 3)
    assert found.auroc == pytest.approx((5 + 4.5 + 4 + 3) / 20) and found.fpr_at_95_tpr == 0.4
    assert "roc" not in found.model_dump()


def test_detection_without_outside_images_or_accepted_ones():
    found = detection(tensor([1, 2]), tensor([]), "energy", 5.0, torch.tensor([True, True]))
    assert (found.auroc, found.fpr_at_95_tpr, found.outside_accepted, found.roc) == (None, None, None, [])
    assert (found.own_accepted, found.accuracy_accepted) == (0, None)
    found = detection(tensor([1]), tensor([0]), "energy")
    assert (found.auroc, found.threshold, found.own_accepted, found.outside_accepted) == (1, None, None, None)


def test_curves_are_written(tmp_path):
    found = {
        'a "b", c': detection(tensor([2, 1]), tensor([1.5, 0]), "energy", 1.8),
        "d": detection(tensor([1]), tensor([0]), "energy"),
    }
    write_roc(found, tmp_path / "roc.csv")
    with open(tmp_path / "roc.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    points = [(float(row["fpr"]), float(row["tpr"])) for row in rows if row["name"] == 'a "b", c']
    assert points == [(0, 0), (0, 0.5), (0.5, 0.5), (0.5, 1), (1, 1)] and rows[-1]["name"] == "d"
    write_roc(found, tmp_path / "roc.PNG")
    assert Image.open(tmp_path / "roc.PNG").size > (300, 300)
    with pytest.raises(UsageError, match=r"roc\.xlsx"):
        write_roc(found, tmp_path / "roc.xlsx")


# ---------------------------------------------------------------------- outside images


def test_outside_images_are_kept_in_their_place():
    images = LabelledImages("pets", ("saw", "cat", "axe"), (0, 1, 2, 1), lambda i: Image.new("L", (4, 4), i))
    data = TreeData(images, ClassTree.parallel(["cat", "dog"]), lambda image: image.getpixel((0, 0)), outside=True)
    assert [data[i] for i in range(len(data))] == [(0, -1), (1, 0), (2, -1), (3, 0)]
    assert (data.labels, data.left_out, data.unknown, data.absent) == ([-1, 0, -1, 0], 0, ["saw", "axe"], ["dog"])
    with pytest.raises(DataError, match="no image of the tree's classes"):
        TreeData(images, ClassTree.parallel(["dog"]), lambda image: image, outside=True)
