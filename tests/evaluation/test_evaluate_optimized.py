"""Evaluation and prediction with an inference form: what they give with the network itself."""

import numpy as np
import pytest
import torch
from helpers.random_nets import assert_near, build, plain
from PIL import Image

from hlnet.cues.oracle import label_cues
from hlnet.cues.policy import CuePolicy
from hlnet.data.images import LabelledImages
from hlnet.data.tree_data import TreeData, eval_transform, loader
from hlnet.errors import UsageError
from hlnet.evaluation.evaluate import evaluate
from hlnet.evaluation.logits import logits_of
from hlnet.evaluation.prediction import predict
from hlnet.expert.cut import cut_expert
from hlnet.model.fast.optimize import optimize


def noise(net, count=30):
    """Random images of the tree's classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), np.uint8)
    labels = tuple(i * 5 % len(net.tree.classes) for i in range(count))
    found = LabelledImages("noise", net.tree.classes, labels, lambda i: Image.fromarray(pixels[i]))
    return TreeData(found, net.tree, eval_transform(net.transform), False)


@pytest.mark.parametrize("signal", [None, 3.0])
@pytest.mark.parametrize("kind", ["bottleneck", "convnext", "expert", "plain"])
def test_evaluation_is_the_same(kind, signal):
    net = plain() if kind == "plain" else cut_expert(build(), "cat,saw") if kind == "expert" else build(kind)
    fast, data = optimize(net), noise(net)
    test = signal and CuePolicy(strength=signal)
    if kind == "plain" and signal:
        with pytest.raises(UsageError, match="no branches whose features"):
            evaluate(fast, data, policy=test, batch_size=7)
        return
    for classes in (None, "cat"):
        expected = evaluate(net, data, classes, policy=test, batch_size=7)
        assert evaluate(fast, data, classes, policy=test, batch_size=7) == expected
    cued = label_cues(net.tree, data.labels) if signal else None
    runs = [logits_of(form, loader(data, 4), [None, cued], test)[0] for form in (fast, net)]
    for found, expected in zip(*runs, strict=True):
        assert_near(found, expected)
    if signal:
        assert not torch.allclose(*runs[0], atol=1e-3)


@pytest.mark.parametrize("kind", ["bottleneck", "expert", "plain"])
def test_predictions_are_the_same(tmp_path, kind):
    net = plain() if kind == "plain" else cut_expert(build(), "cat,saw") if kind == "expert" else build(kind)
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for i, path in enumerate(paths):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (70, 90, 3), np.uint8)).save(path)
    paths[2].write_text("no image")
    expected, found = (list(predict(form, paths, top=3, batch_size=4)) for form in (net, optimize(net)))
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.image, ours.error) == (theirs.image, theirs.error)
        assert [label.path for label in ours.labels] == [label.path for label in theirs.labels]
        shares = [label.probability for label in theirs.labels]
        assert [label.probability for label in ours.labels] == pytest.approx(shares, abs=1e-5)
