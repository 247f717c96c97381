"""The answer "none of these" from own images alone: a share of fresh own images is rejected."""

import math

import numpy as np
import pytest
import torch
from helpers.command_line import as_json, invoke
from helpers.evaluated_nets import build, by_hand, noise

import hlnet
from hlnet.errors import DataError, UsageError
from hlnet.evaluation.calibration import calibrate_own
from hlnet.evaluation.cross_fit import fresh_own_accepted
from hlnet.evaluation.metrics.rejection import own_threshold, rejection_scores
from hlnet.store.checkpoint import read_header


def test_share_of_fresh_own_images_is_as_asked():
    """Scores are uniform, so a threshold t rejects a share t of all fresh ones."""
    rejected, shown = [], []
    for seed in range(400):
        scores = torch.rand(39, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
        rejected.append(own_threshold(scores, 0.1))
        shown.append(1 - fresh_own_accepted(scores, 0.1))
    assert np.mean(rejected) == pytest.approx(4 / 40, abs=0.006)  # k / (n + 1)
    assert np.mean(shown) == pytest.approx(3 / 32, abs=0.01)  # four fifths: 31 or 32 images, k = 3
    with pytest.raises(DataError, match="at least 19 of them"):
        own_threshold(torch.rand(18), 0.05)
    assert fresh_own_accepted(torch.rand(20), 0.05) is None


def test_fit_is_the_rank_of_the_networks_own_scores():
    net = build()
    data = noise(subset=True)
    fitted = calibrate_own(net, data, 0.2, batch_size=7)
    logits, labels = by_hand(net, data)
    scores = sorted(rejection_scores(logits[labels >= 0], "energy").tolist())
    assert fitted.threshold == pytest.approx(scores[math.floor(0.2 * (len(scores) + 1)) - 1], rel=1e-5)
    assert (fitted.max_own_rejected, fitted.max_false_positive) == (0.2, 1.0)
    assert fitted.metrics["own_images"] == len(scores) and net.provenance.rejection == fitted
    assert [use.use for use in net.provenance.images] == ["rejection"]
    for share in (0.0, 1.0):
        with pytest.raises(UsageError, match="between 0 and 1"):
            calibrate_own(net, data, share)


def test_command_says_what_it_cannot_promise(tmp_path):
    net = hlnet.create_model("test_resnet", tree={"low": ["0", "1"], "high": ["8", "9"]}, widths=(8, 4), strides=(1, 1))
    net.transform = net.transform.adjusted(32)
    hlnet.save_checkpoint(net, tmp_path / "net.safetensors")
    line = f"calibrate {tmp_path}/net.safetensors --data digits --reject-own 0.1 --workers 0 --device cpu"
    _, hints = invoke(line)
    assert "For images of other classes nothing is promised" in hints
    told = as_json(line)
    stored = read_header(tmp_path / "net.safetensors").provenance
    assert told["rejection"]["threshold"] == stored.rejection.threshold and stored.rejection.max_own_rejected == 0.1
    assert stored.conformal is not None and stored.temperature is not None
    _, hints = invoke(f"eval {tmp_path}/net.safetensors --data digits --workers 0 --device cpu")
    assert "fitted without images of other classes" in hints
