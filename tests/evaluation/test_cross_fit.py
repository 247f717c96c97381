"""Cross-fitted figures are those of fresh images, where figures on the fitted ones flatter."""

import numpy as np
import pytest
import torch

from hlnet.evaluation.cross_fit import folds, fresh_accepted, fresh_error, fresh_outcomes
from hlnet.evaluation.metrics.conformal import fit_path_conformal, outcomes, path_scores
from hlnet.evaluation.metrics.paths import TreePaths
from hlnet.evaluation.metrics.probability import calibration_error, class_probabilities, fit_temperature
from hlnet.evaluation.metrics.rejection import conformal_threshold
from hlnet.tree.class_tree import ClassTree


@pytest.mark.parametrize("count", [1, 2, 4, 5, 23])
def test_each_image_is_held_out_once(count):
    parts = list(folds(count))
    assert sorted(int(i) for _, held in parts for i in held) == list(range(count))
    assert all(sorted([*rest.tolist(), *held.tolist()]) == list(range(count)) for rest, held in parts)


def test_accepted_share_is_what_fresh_images_get():
    """Scores are uniform, so a threshold t accepts 1 - t of all fresh ones: what is measured is that, on average."""
    shown, true, flattering = [], [], []
    for seed in range(300):
        scores = torch.rand(49, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
        threshold = conformal_threshold(scores, 0.1)
        shown.append(fresh_accepted(scores, 0.1))
        true.append(1 - threshold)
        flattering.append(float((scores >= threshold).double().mean()))
    assert np.mean(shown) == pytest.approx(np.mean(true), abs=0.01) == pytest.approx(0.1, abs=0.01)
    assert np.mean(flattering) < 0.085  # (k - 1) / n, always
    assert fresh_accepted(torch.rand(20), 0.05) is None  # 19 are needed, and four fifths are 16


def test_error_is_that_of_other_images():
    """With few images and many classes the temperature fits them better than the next ones."""
    generator = torch.Generator().manual_seed(0)
    gaps = []
    for _ in range(40):
        logits = 3 * torch.randn(30, 4, generator=generator)
        labels = torch.multinomial((logits / 3).softmax(1), 1, generator=generator)[:, 0]
        temperature = fit_temperature(logits, labels)
        own = calibration_error(class_probabilities(logits, temperature=temperature), labels)
        gaps.append(fresh_error(logits, labels, False) - own)
    assert np.mean(gaps) > 0
    assert fresh_error(torch.zeros(1, 2), torch.tensor([0]), False) is None


def test_coverage_is_what_fresh_images_get():
    tree = ClassTree.from_nested({"a": {"x": ["1", "2"], "y": ["3"]}, "b": {"z": ["4", "5", "6"]}})
    paths, generator = TreePaths(tree), torch.Generator().manual_seed(0)

    def drawn(count):
        shares = (2 * torch.randn(count, 6, generator=generator)).softmax(1).double()
        return paths.descend(shares), torch.multinomial(shares, 1, generator=generator)[:, 0]

    measured, true = [], []
    fresh, fresh_labels = drawn(20_000)
    for _ in range(40):
        down, labels = drawn(400)
        measured.append(fresh_outcomes(paths, down, labels))
        fitted = fit_path_conformal(path_scores(paths, down, labels))
        true.append(outcomes(paths, fresh, fitted, labels=fresh_labels))
    assert set(measured[0]) == {
        f"{name}@{c}" for name in ("classes", "decided", "unsure", "held") for c in (0.8, 0.9, 0.95, 0.99)
    }
    for name in measured[0]:
        assert np.mean([found[name] for found in measured]) == pytest.approx(
            np.mean([found[name] for found in true]), rel=0.04, abs=0.01
        )
    assert fresh_outcomes(paths, *drawn(1)) == {}
