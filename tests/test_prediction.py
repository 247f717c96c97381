"""Prediction: labels in the order of the images, whatever the batches, or "none of these"; unreadable files keep their
place."""

import json
import math

import numpy as np
import pytest
import torch
from naive import randomise
from PIL import Image
from typer.testing import CliRunner

from hlnet.checkpoint import save_checkpoint
from hlnet.cli.main import app
from hlnet.data import eval_transform
from hlnet.expert import cut_expert
from hlnet.network import HierarchicalNet, NetworkConfig
from hlnet.plain import PlainConfig, PlainNet
from hlnet.prediction import Prediction, predict
from hlnet.provenance import Provenance, Rejection
from hlnet.rejection import SCORES, rejection_scores
from hlnet.tree import ClassTree
from hlnet.trunk import InputTransform

TREE = ClassTree.from_nested({"cat": {"tabby": 9, "siamese": 0}, "dog": {"beagle": 162}, "saw": 491})


def build(kind="hierarchical"):
    torch.manual_seed(0)
    if kind == "plain":
        net = PlainNet(PlainConfig(backbone="test_resnet"), TREE)
    else:
        net = HierarchicalNet(NetworkConfig(backbone="test_resnet", widths=(4, 4), strides=(1, 1)), TREE)
        randomise(net.head)
    net.transform = InputTransform(input_size=(3, 32, 32))
    return net


@pytest.fixture
def files(tmp_path):
    """Seven files, of which the third and the last are no images."""
    generator, paths = np.random.default_rng(0), [tmp_path / f"{name}.png" for name in "gbxcadz"]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (40, 50, 3), np.uint8)).save(path)
    paths[2].write_text("no image")
    paths[6].unlink()
    return paths


def logits_of(net, path):
    """Of one image, ``[1, K]``."""
    with torch.no_grad():
        return net.eval()(eval_transform(net.transform)(Image.open(path).convert("RGB"))[None]).double()


def by_hand(net, path):
    """All classes of one image, most probable first."""
    logits = logits_of(net, path)[0].numpy()
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    return [(net.tree.leaves[i], shares[i]) for i in np.argsort(-shares)]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(("kind", "top"), [("hierarchical", 1), ("hierarchical", 3), ("plain", 4), ("expert", 9)])
def test_labels_are_the_softmax_in_order(files, kind, top, batch_size):
    net = cut_expert(build(), "tabby,saw,beagle") if kind == "expert" else build(kind)
    found = list(predict(net.train(), files, top, batch_size))
    assert [prediction.image for prediction in found] == [str(path) for path in files]
    for position, (prediction, path) in enumerate(zip(found, files, strict=True)):
        if position in (2, 6):
            assert prediction.labels == [] and path.name in prediction.error and "\n" not in prediction.error
            continue
        expected = by_hand(net, path)[:top]
        got = [(label.name, label.path, label.index) for label in prediction.labels]
        assert got == [(leaf.name, leaf.path, leaf.index) for leaf, _ in expected] and prediction.error is None
        shares = [label.probability for label in prediction.labels]
        assert shares == pytest.approx([share for _, share in expected], abs=1e-5)
        if top >= len(net.tree.classes):
            assert len(shares) == len(net.tree.classes) and sum(shares) == pytest.approx(1)


def test_nothing_but_bad_files(files):
    found = list(predict(build(), [files[2], str(files[6])], batch_size=1))
    assert [bool(prediction.error) for prediction in found] == [True, True]
    assert list(predict(build(), [])) == []


def test_results_come_batch_by_batch(files):
    read = []
    stream = predict(build(), (read.append(path) or path for path in files), batch_size=2)
    assert isinstance(next(stream), Prediction) and len(read) == 2


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "LAB", "I;16"])
def test_any_mode_gives_a_prediction(tmp_path, mode):
    path = tmp_path / "image.tiff"
    Image.new(mode, (40, 40)).save(path)
    (found,) = predict(build(), [path])
    assert (found.error is None) == (len(found.labels) == 4)


# ---------------------------------------------------------------------- what the probabilities are, and "none of these"

BCE = {"train": {"loss": "bce"}}
WHOLE = (0, 1, 3, 4, 5)  # of the files, those that are images


def calibrated(net, files, score="energy", temperature=None):
    """The network with a threshold that three of the five images pass; and their scores."""
    scores = {files[i]: float(rejection_scores(logits_of(net, files[i]), score)) for i in WHOLE}
    threshold = sum(sorted(scores.values())[1:3]) / 2
    fit = Rejection(score=score, threshold=threshold, max_false_positive=0.1)
    net.provenance = net.provenance.model_copy(update={"rejection": fit, "temperature": temperature})
    return net, scores


@pytest.mark.parametrize("recipe", [{}, BCE], ids=["softmax", "bce"])
@pytest.mark.parametrize("temperature", [None, 3.0])
@pytest.mark.parametrize("selection", ["*", "tabby,saw"])
def test_probabilities_are_of_the_training_and_the_temperature(files, recipe, temperature, selection):
    net = cut_expert(build(), selection)
    net.provenance = Provenance(recipe=recipe, temperature=temperature)
    for found in predict(net, [files[i] for i in WHOLE], batch_size=2):
        logits = logits_of(net, found.image)[0] / (temperature or 1)
        expected = 1 / (1 + (-logits).exp()) if recipe else logits.exp() / logits.exp().sum()
        order = logits.argsort(descending=True).tolist()
        assert [label.name for label in found.labels] == [net.tree.classes[i] for i in order]
        assert [label.probability for label in found.labels] == pytest.approx(expected[order].tolist(), abs=1e-5)
        assert found.score is None and found.rejected is None


def test_order_survives_saturated_sigmoids(files):
    net = build()
    net.provenance = Provenance(recipe=BCE)
    with torch.no_grad():
        net.head.leaves.bias.add_(1000)
    for found in predict(net, [files[i] for i in WHOLE]):
        order = logits_of(net, found.image)[0].argsort(descending=True).tolist()
        assert {label.probability for label in found.labels} == {1.0}
        assert [label.name for label in found.labels] == [TREE.classes[i] for i in order]


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("selection", ["*", "dog,saw", "beagle"])
@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_images_below_the_threshold_are_rejected(files, score, selection, batch_size):
    net, scores = calibrated(cut_expert(build(), selection), files, score)
    found = list(predict(net, files, batch_size=batch_size))
    assert [prediction.image for prediction in found] == [str(path) for path in files]
    rejected = 0
    for position, (prediction, path) in enumerate(zip(found, files, strict=True)):
        if position not in WHOLE:
            assert (prediction.score, prediction.rejected, prediction.labels) == (None, None, []) and prediction.error
            continue
        assert prediction.score == pytest.approx(scores[path], abs=1e-4)
        assert prediction.rejected == (scores[path] < net.provenance.rejection.threshold)
        assert len(prediction.labels) == min(5, len(net.tree.classes))  # of rejected ones, too
        rejected += prediction.rejected
    assert rejected == 2


def test_threshold_itself_is_accepted_and_no_number_is_not(files):
    net, _ = calibrated(build(), files)
    (found,) = predict(net, [files[0]])
    for threshold, rejected in ((found.score, False), (math.nextafter(found.score, math.inf), True)):
        net.provenance.rejection.threshold = threshold
        assert next(predict(net, [files[0]])).rejected == rejected
    with torch.no_grad():
        net.head.leaves.bias.fill_(torch.nan)
    assert next(predict(net, [files[0]])).rejected is True


@pytest.mark.parametrize("recipe", [{}, BCE], ids=["softmax", "bce"])
def test_single_class_is_never_sure_by_itself(files, recipe):
    net = cut_expert(build(), "saw")
    net.provenance = Provenance(recipe=recipe)
    for found in predict(net, [files[i] for i in WHOLE]):
        logit = float(logits_of(net, found.image))
        share = 1 / (1 + math.exp(-logit))
        (label,) = found.labels
        assert label.probability == (pytest.approx(share, abs=1e-5) if recipe else None)
        assert found.score == pytest.approx(share if recipe else logit, abs=1e-4) and found.rejected is None


@pytest.fixture
def command(tmp_path):
    """Save a network, run ``hlnet predict`` on it, and give lines of stdout and stderr."""

    def run(net, *arguments):
        save_checkpoint(net, tmp_path / "net.safetensors")
        words = ["predict", str(tmp_path / "net.safetensors"), *map(str, arguments), "--device", "cpu"]
        done = CliRunner().invoke(app, words, env={"COLUMNS": "200", "NO_COLOR": "1"})
        assert done.exit_code == 0, done.output
        return done.stdout.splitlines(), done.stderr

    return run


@pytest.mark.parametrize("selection", ["*", "saw"])
def test_command_says_none_of_these(files, command, selection):
    net, scores = calibrated(cut_expert(build(), selection), files)
    low, *_, high = sorted(scores, key=scores.get)
    lines, hints = command(net, low, high, "--top", 1)
    threshold = net.provenance.rejection.threshold
    assert lines[:2] == [str(low), f"  none of these  (energy {scores[low]:.4g}, accepted from {threshold:.4g})"]
    assert lines[2] == str(high) and len(lines) == 4 and not hints
    if selection == "saw":
        assert lines[3] == f"  accepted  saw  (energy {scores[high]:.4g}, accepted from {threshold:.4g})"
    else:
        assert " %  " in lines[3] and "accepted" not in lines[3]
    (told, other), _ = command(net, low, high, "--json")
    assert json.loads(told)["rejected"] is True and json.loads(told)["labels"] and not json.loads(other)["rejected"]


def test_command_gives_the_score_of_a_single_class(files, command):
    net = cut_expert(build(), "beagle")
    lines, hints = command(net, files[0])
    assert (
        lines[1] == f"  perhaps  dog/beagle  (score {float(logits_of(net, files[0])):.4g})" and "--calibrate" in hints
    )
    told = json.loads(command(net, files[0], "--json")[0][0])
    assert told["labels"] == [{"name": "beagle", "path": "dog/beagle", "index": 162}] and "rejected" not in told
    net.provenance = Provenance(recipe=BCE)
    assert " %  dog/beagle" in command(net, files[0])[0][1]
