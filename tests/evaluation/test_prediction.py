"""Prediction: labels in the order of the images, whatever the batches; answers that end where they were asked to, or
"none of these"; unreadable files keep their place."""

import json
import math
import os
import sys

import numpy as np
import pytest
import torch
from helpers.naive import randomise
from PIL import Image
from typer.testing import CliRunner

from hlnet.cli.main import app
from hlnet.data.tree_data import eval_transform
from hlnet.errors import RunError, UsageError
from hlnet.evaluation import prediction as module
from hlnet.evaluation.metrics.rejection import SCORES, rejection_scores
from hlnet.evaluation.prediction import Prediction, predict
from hlnet.expert.cut import cut_expert
from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
from hlnet.model.plain import PlainConfig, PlainNet
from hlnet.model.provenance import PathConformal, Provenance, Rejection
from hlnet.model.transform import InputTransform
from hlnet.store.checkpoint import save_checkpoint
from hlnet.tree.class_tree import ClassTree

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
        best = next(predict(net, [high], top=1)).labels[0]
        assert lines[3] == "  " + " / ".join(
            f"{name} {share:.2f}" for name, share in zip(best.path.split("/"), best.path_probabilities, strict=True)
        )
    (told, other), _ = command(net, low, high, "--json")
    assert json.loads(told)["rejected"] is True and json.loads(told)["labels"] and not json.loads(other)["rejected"]


def test_command_gives_the_score_of_a_single_class(files, command):
    net = cut_expert(build(), "beagle")
    lines, hints = command(net, files[0])
    assert (
        lines[1] == f"  perhaps  dog/beagle  (energy {float(logits_of(net, files[0])):.4g})" and "--calibrate" in hints
    )
    told = json.loads(command(net, files[0], "--json")[0][0])
    assert told["labels"] == [{"name": "beagle", "path": "dog/beagle", "index": 162}] and "rejected" not in told
    assert told["score_name"] == "energy" and "answer" not in told
    net.provenance = Provenance(recipe=BCE)
    share = 1 / (1 + math.exp(-float(logits_of(net, files[0]))))
    assert command(net, files[0])[0][1] == f"  perhaps  dog/beagle  (probability {share:.4g})"


# ---------------------------------------------------------------------- answers that may end before a class

#: Of six classes; saw ends early, and every cut keeps some of that.
DEEP = ClassTree.from_nested(
    {"beast": {"cat": {"tabby": 3, "siamese": 9}, "dog": {"beagle": 1, "boxer": 4}}, "saw": 7, "bird": {"owl": 5}}
)


class Columns(torch.nn.Module):
    """A network whose logits are the brightness of an image's columns, a class each: they differ between images."""

    has_branches, head, device = False, None, "cpu"

    def __init__(self, tree=DEEP, recipe=None, **fitted):
        super().__init__()
        self.tree, self.transform = tree, InputTransform(input_size=(3, 32, 32), crop_pct=1.0)
        self.provenance = Provenance(recipe=recipe or {}, **fitted)

    def forward(self, images):
        columns = torch.stack([images[..., 5 * i : 5 * i + 5] for i in range(len(self.tree.leaves))], dim=1)
        return 5 * columns.mean((2, 3, 4))


@pytest.fixture
def striped(tmp_path):
    """Twelve images for these; the third and the last are none."""
    generator, paths = np.random.default_rng(1), [tmp_path / f"{i}.png" for i in range(12)]
    for path in paths:
        stripes = np.repeat(generator.integers(0, 256, (1, 7, 1)), 5, axis=1)[:, :32]
        Image.fromarray(np.broadcast_to(stripes, (32, 32, 3)).astype(np.uint8)).save(path)
    paths[2].write_text("no image")
    paths[11].unlink()
    return paths


def shares_under(net, path, node):
    """The softmax of z / T over the classes at or under a node, for one image."""
    logits = logits_of(net, path)[0] / (net.provenance.temperature or 1)
    shares = logits.softmax(0).tolist()
    pairs = zip(net.tree.leaves, shares, strict=True)
    return sum(share for leaf, share in pairs if f"{leaf.path}/".startswith(f"{node}/"))


def steps_of(path):
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]


@pytest.mark.parametrize("recipe", [{}, BCE], ids=["softmax", "bce"])
@pytest.mark.parametrize("temperature", [None, 3.0])
@pytest.mark.parametrize("kept", [range(6), (0, 1, 2, 4)])
def test_paths_tell_the_share_of_every_node(striped, recipe, temperature, kept):
    net = Columns(DEEP.prune(kept), recipe, temperature=temperature)
    for found in predict(net, [path for path in striped[:11] if path != striped[2]], top=9):
        for label in found.labels:
            expected = [shares_under(net, found.image, node) for node in steps_of(label.path)]
            assert label.path_probabilities == pytest.approx(expected, abs=1e-6)  # saw: once, not three times
            assert recipe or label.path_probabilities[-1] == label.probability
        assert found.answer is None


@pytest.mark.parametrize("recipe", [{}, BCE], ids=["softmax", "bce"])
@pytest.mark.parametrize("confidence", [0, 0.2, 0.5, 0.8, 0.97, 1])
def test_answer_is_the_deepest_node_that_is_likely_enough(striped, recipe, confidence):
    net = Columns(recipe=recipe, temperature=1.5)
    levels = set()
    for position, prediction in enumerate(predict(net, striped, batch_size=3, min_confidence=confidence)):
        if position in (2, 11):
            assert prediction.answer is None and prediction.error
            continue
        way, here = [], ""
        while here not in {leaf.path for leaf in DEEP.leaves}:
            children = {step for leaf in DEEP.leaves for step in steps_of(leaf.path) if step.rpartition("/")[0] == here}
            here = max(children, key=lambda node: shares_under(net, prediction.image, node))
            way.append(here)
        shares = [shares_under(net, prediction.image, node) for node in way]
        level = sum(share >= confidence for share in shares)
        answer = prediction.answer
        assert (answer.way, answer.level, answer.path) == (way[-1], level, way[level - 1] if level else "")
        assert answer.way_probabilities == pytest.approx(shares, abs=1e-5)
        assert answer.probability == (answer.way_probabilities[level - 1] if level else 1)
        below = [leaf for leaf in DEEP.leaves if not level or f"{leaf.path}/".startswith(f"{answer.path}/")]
        assert answer.classes == len(below)
        levels.add(level)
    assert (levels == {0}) == (confidence == 1) and (len(levels) > 1 or confidence == 1)


def test_coverage_is_a_confidence_that_was_fitted(striped):
    net = Columns(conformal=PathConformal(thresholds=(0.1, 0.6, 0.7), images=20))
    for coverage, confidence in ((0.5, 0.1), (0.501, 0.6), (0.5011, 0.7)):
        ours, theirs = predict(net, striped, coverage=coverage), predict(net, striped, min_confidence=confidence)
        assert list(ours) == list(theirs)


def test_rejected_images_have_no_answer(files):
    net, _ = calibrated(build(), files)
    found = [prediction for prediction in predict(net, files, min_confidence=0.5) if prediction.error is None]
    assert [prediction.answer is None for prediction in found] == [prediction.rejected for prediction in found]
    assert sum(prediction.rejected for prediction in found) == 2 and all(prediction.labels for prediction in found)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"min_confidence": 80}, "confidence of 80: expected a probability between 0 and 1"),
        ({"min_confidence": math.nan}, "between 0 and 1"),
        ({"min_confidence": 0.5, "coverage": 0.9}, "give one"),
        ({"coverage": 0.9}, "hlnet calibrate MODEL --data DATA"),
        ({"top": 0}, "at least 1"),
    ],
)
def test_wrong_requests_are_refused_before_any_image(settings, words):
    with pytest.raises(UsageError, match=words):
        predict(build(), unread(), **settings)


@pytest.mark.parametrize("settings", [{"min_confidence": 0.5}, {"coverage": 0.9}])
def test_one_class_has_nothing_to_end_before(settings):
    with pytest.raises(UsageError, match=r"one class \(beagle\).* make-expert --calibrate"):
        predict(cut_expert(build(), "beagle"), unread(), **settings)


def unread():
    raise AssertionError("images were asked for")
    yield


# ---------------------------------------------------------------------- loading


@pytest.mark.parametrize("batch_size", [1, 3])
def test_workers_change_nothing(files, batch_size):
    alone = list(predict(build(), files, batch_size=batch_size))
    assert list(predict(build(), iter(files), batch_size=batch_size, workers=2)) == alone


def test_workers_read_only_so_far_ahead(files):
    read = []
    stream = predict(build(), (read.append(0) or files[0] for _ in range(1000)), batch_size=4, workers=2)
    next(stream)
    assert len(read) <= 4 * 6  # two batches for each worker, those at work, and the next
    stream.close()


def test_whatever_a_decoder_raises_is_told_of_the_image(files, monkeypatch):
    def odd(path):
        raise MemoryError if "g.png" in str(path) else ZeroDivisionError("by\nzero")

    monkeypatch.setattr(module, "open_image", odd)
    first, second = predict(build(), files[:2])
    assert first.error == f"cannot read image '{files[0]}': MemoryError; remove or replace it"
    assert second.error == f"cannot read image '{files[1]}': by zero; remove or replace it"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are text")
def test_names_need_not_be_text(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.png")
    Image.new("RGB", (8, 8)).save(path)
    whole, missing = predict(build(), [path, path.replace("png", "jpg")], top=1)
    assert whole.labels and whole.image == str(tmp_path / "\\xe9.png")
    assert missing.error.startswith(f"cannot read image '{tmp_path}/\\xe9.jpg'")
    json.loads(whole.model_dump_json()), json.loads(missing.model_dump_json())


def test_lost_worker_is_one_line(files):
    net = build()
    with pytest.raises(RunError, match=r"a process that loads images was lost .* fewer workers"):
        list(predict(net, [Deadly(files[0])], workers=1))


class Deadly(str):
    """A path that ends whoever looks at it."""

    def __str__(self):
        return os._exit(3) or ""
