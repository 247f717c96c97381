"""Calibration: the temperature is what a general optimiser finds, the error is a naive count, and a fit stays in the
file of the network that it is of."""

import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.naive import randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import roc_auc_score

from hlnet.cli.shared.calibration_tables import show_calibration
from hlnet.data.images import LabelledImages
from hlnet.data.sources import load_data
from hlnet.data.tree_data import TreeData, eval_transform, loader
from hlnet.errors import DataError, UsageError
from hlnet.evaluation.calibration import calibrate
from hlnet.evaluation.metrics.probability import TEMPERATURES, calibration_error, class_probabilities, fit_temperature
from hlnet.evaluation.metrics.rejection import SCORES, rejection_scores
from hlnet.expert.cut import cut_expert
from hlnet.expert.write import Calibration
from hlnet.model.fast.optimize import optimize
from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
from hlnet.model.plain import PlainConfig, PlainNet
from hlnet.model.provenance import FittedAttention, Provenance
from hlnet.model.transform import InputTransform
from hlnet.store.checkpoint import load_checkpoint, read_header, save_checkpoint
from hlnet.tree.class_tree import ClassTree

BCE = {"train": {"loss": "bce"}}


def sample(images=300, classes=4, sharpness=3.0, seed=0):
    """Logits that are ``sharpness`` times too sure of the labels drawn from them."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return sharpness * logits, labels


def by_lbfgs(logits, labels, one_vs_rest):
    """The temperature, by torch's optimiser on its logarithm."""
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    exact = {"tolerance_grad": 1e-14, "tolerance_change": 1e-15}
    optimizer = torch.optim.LBFGS([log_t], max_iter=200, line_search_fn="strong_wolfe", **exact)
    targets = F.one_hot(labels.clamp(min=0), logits.shape[1]).double() * (labels >= 0)[:, None]

    def loss():
        optimizer.zero_grad()
        scaled = logits.double() / log_t.exp()
        value = F.binary_cross_entropy_with_logits(scaled, targets) if one_vs_rest else F.cross_entropy(scaled, labels)
        value.backward()
        return value

    optimizer.step(loss)
    return float(log_t.detach().exp())


def naive_error(probabilities, labels, bins):
    """Guo et al., Eq. 3, image by image."""
    members = [[] for _ in range(bins)]
    for row, label in zip(probabilities, labels, strict=True):
        confidence, chosen = max((share, column) for column, share in enumerate(row))
        for number in range(bins):
            low, high = number / bins, (number + 1) / bins
            if low < confidence <= high or (number == 0 and confidence == 0):
                members[number].append((confidence, chosen == label))
    assert sum(map(len, members)) == len(labels)
    error = 0
    for found in filter(None, members):
        confidences, rights = zip(*found, strict=True)
        error += abs(sum(rights) - sum(confidences)) / len(labels)
    return error


# ---------------------------------------------------------------------- probabilities and temperature


def test_probabilities():
    logits = torch.tensor([[1.0, -2.0, 0.5]])
    torch.testing.assert_close(class_probabilities(logits), logits.softmax(1))
    torch.testing.assert_close(class_probabilities(logits, temperature=2.0), (logits / 2).softmax(1))
    torch.testing.assert_close(class_probabilities(logits, True, 0.5), 1 / (1 + (-2 * logits).exp()))


@pytest.mark.parametrize("one_vs_rest, classes", [(False, 2), (False, 5), (True, 1), (True, 4)])
@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_temperature_is_what_a_general_optimiser_finds(one_vs_rest, classes, sharpness):
    logits, labels = sample(classes=classes, sharpness=sharpness, seed=classes)
    if one_vs_rest:
        labels[::3] = -1  # images of other classes
        logits[labels >= 0, labels[labels >= 0]] += 2
    assert fit_temperature(logits, labels, one_vs_rest) == pytest.approx(
        by_lbfgs(logits, labels, one_vs_rest), rel=1e-5
    )


def test_temperature_undoes_overconfidence():
    logits, labels = sample(images=20_000)
    fitted = fit_temperature(logits, labels)
    assert fitted == pytest.approx(3, rel=0.05)
    assert fit_temperature(5 * logits, labels) == pytest.approx(5 * fitted)  # units of the logits do not matter
    before, after = (calibration_error(class_probabilities(logits, temperature=t), labels) for t in (None, fitted))
    assert after < 0.02 < 0.1 < before


@pytest.mark.parametrize(
    "logits, labels, one_vs_rest, bound, told",
    [
        ([[5.0, 0.0], [0.0, 1.0]], [0, 1], False, TEMPERATURES[0], "no right class is in doubt"),
        ([[5.0], [-1.0]], [0, -1], True, TEMPERATURES[0], "no right class is in doubt"),
        ([[5.0, 0.0], [0.0, 1.0]], [1, 0], False, TEMPERATURES[1], "the logits say nothing"),
        ([[0.0, 0.0]], [0], False, TEMPERATURES[1], "the logits say nothing"),
    ],
)
def test_temperature_has_bounds_and_says_so(logits, labels, one_vs_rest, bound, told, caplog):
    with caplog.at_level(logging.WARNING, "hlnet"):
        assert fit_temperature(torch.tensor(logits), torch.tensor(labels), one_vs_rest) == bound
    assert told in caplog.text and f"{bound:g}" in caplog.text


@pytest.mark.parametrize("shape, one_vs_rest", [((3, 1), False), ((0, 2), False), ((0, 2), True), ((3, 0), True)])
def test_temperature_of_nothing_is_refused(shape, one_vs_rest):
    with pytest.raises(UsageError, match="a temperature takes logits"):
        fit_temperature(torch.zeros(shape), torch.zeros(shape[0], dtype=torch.long), one_vs_rest)


# ---------------------------------------------------------------------- calibration error


@settings(deadline=None)
@given(st.data())
def test_error_is_a_naive_count(data):
    classes, images, bins = (data.draw(st.integers(1, top)) for top in (4, 20, 16))
    shares = data.draw(
        st.lists(
            st.lists(st.sampled_from([0, 0.07, 0.2, 0.25, 0.6, 0.93, 1]), min_size=classes, max_size=classes),
            min_size=images,
            max_size=images,
        )
    )
    labels = data.draw(st.lists(st.integers(-1, classes - 1), min_size=images, max_size=images))
    shares = [[share + 1e-3 * column for column, share in enumerate(row)] for row in shares]  # no two alike
    shares = [
        [min(1.0, share) for share in row] for row in shares if len({min(1.0, share) for share in row}) == classes
    ]
    labels = labels[: len(shares)]
    if shares:
        found = calibration_error(torch.tensor(shares, dtype=torch.float64), torch.tensor(labels), bins)
        assert found == pytest.approx(naive_error(shares, labels, bins), abs=1e-12)


def test_error_by_hand():
    """Two images at 0.9 of which one is right, one at 0.6 that is right: 2/3 * 0.4 + 1/3 * 0.4."""
    shares = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4]], dtype=torch.float64)
    assert calibration_error(shares, torch.tensor([0, 0, 0])) == pytest.approx(0.4)
    assert calibration_error(shares, torch.tensor([0, 1, 0]), bins=1) == pytest.approx(1 - 2.4 / 3)
    with pytest.raises(UsageError, match="no images"):
        calibration_error(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))


# ---------------------------------------------------------------------- the whole fit

TREE = ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle"]})


def network(recipe=None, tree=TREE, plain=False):
    torch.manual_seed(0)
    if plain:
        net = PlainNet(PlainConfig(backbone="test_resnet"), tree)
    else:
        net = HierarchicalNet(NetworkConfig(backbone="test_resnet", widths=(4, 4), strides=(1, 1)), tree)
        randomise(net.head)
    net.transform = InputTransform(input_size=(3, 32, 32))
    net.provenance = Provenance(
        recipe=recipe or {}, metrics={"top1": 0.5}, attention=FittedAttention(reliability=0.9, gain=((2.0, 3.0),))
    )
    return net.eval()


def noise(net, count=60, classes=("tabby", "saw", "beagle", "axe", "siamese"), outside=True):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
    labels = tuple(i % len(classes) for i in range(count))
    images = LabelledImages("'noise'", classes, labels, lambda i: Image.fromarray(pixels[i]))
    return TreeData(images, net.tree, eval_transform(net.transform), subset=True, outside=outside)


def by_hand(net, data):
    """Logits, in the same batches: near ties must not depend on rounding."""
    with torch.no_grad():
        return torch.cat([net(images) for images, _ in loader(data, 7)]), torch.tensor(data.labels)


def by_fifths(items):
    """The parts of a cross-fit: a fifth of the items, drawn as the library draws, and the others."""
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(1)).tolist()
    sizes = [len(items) // 5 + (part < len(items) % 5) for part in range(5)]
    for part, size in enumerate(sizes):
        held = order[sum(sizes[:part]) :][:size]
        yield [item for i, item in enumerate(items) if i not in held], [items[i] for i in held]


@pytest.mark.parametrize("kind", ["full", "plain", "expert", "single"])
@pytest.mark.parametrize("recipe, default", [(None, "energy"), (BCE, "probability")])
@pytest.mark.parametrize("score", [None, *SCORES])
def test_fit_is_of_the_networks_own_scores(kind, recipe, default, score):
    net = network(recipe, plain=kind == "plain")
    if kind in ("expert", "single"):
        net = cut_expert(net, "cat" if kind == "expert" else "beagle")
    before, data, ticks = net.provenance.model_copy(deep=True), noise(net), []
    report = calibrate(net, data, 0.1, score, batch_size=7, on_batch=lambda: ticks.append(1))
    found = net.provenance
    assert report is found.rejection and found.conformal is None
    logits, labels = by_hand(net, data)
    own, fit = labels >= 0, found.rejection
    assert (fit.score, fit.max_false_positive, fit.data, len(ticks)) == (score or default, 0.1, "noise", 9)
    scores = rejection_scores(logits, fit.score)
    others = sorted(scores[~own].tolist(), reverse=True)
    rank = int(0.1 * (len(others) + 1) + 1e-9)
    assert others[rank - 1] < fit.threshold == pytest.approx(others[rank - 1], abs=1e-12)
    metrics = fit.metrics
    assert (metrics["own_images"], metrics["outside_images"]) == (int(own.sum()), len(others))
    assert metrics["own_accepted"] == pytest.approx(float((scores[own] > others[rank - 1]).double().mean()))
    accepted = 0
    for rest, held in by_fifths(scores[~own].tolist()):
        limit = sorted(rest, reverse=True)[int(0.1 * (len(rest) + 1) + 1e-9) - 1]
        accepted += sum(score > limit for score in held)
    assert metrics["outside_accepted"] == pytest.approx(accepted / len(others))
    assert metrics["auroc"] == pytest.approx(roc_auc_score(own, scores))
    assert 0 <= metrics["fpr_at_95_tpr"] <= 1 and 0.1 < metrics["false_positive_bound"] < 0.5
    used = own if recipe is None else own | True
    if kind == "single" and recipe is None:
        assert found.temperature is None and "ece" not in metrics
    else:
        expected = fit_temperature(logits[used], labels[used], recipe is BCE)
        assert found.temperature == pytest.approx(expected, rel=1e-4)
        shares = class_probabilities(logits[used], recipe is BCE)
        assert metrics["ece_before"] == pytest.approx(naive_error(shares.tolist(), labels[used].tolist(), 15), abs=1e-4)
        rows, targets = [], []
        for rest, held in by_fifths(list(zip(logits[used], labels[used].tolist(), strict=True))):
            others, found_there = (torch.stack([row for row, _ in rest]), torch.tensor([label for _, label in rest]))
            value = fit_temperature(others, found_there, recipe is BCE)
            rows += [class_probabilities(row[None], recipe is BCE, value)[0].tolist() for row, _ in held]
            targets += [label for _, label in held]
        assert metrics["ece"] == pytest.approx(naive_error(rows, targets, 15), abs=1e-4)
    kept = {"recipe", "metrics", "parent", "parent_counts", "parent_rows", "attention"}
    assert found.model_dump(include=kept) == before.model_dump(include=kept)


def test_inference_form_gives_the_same_fit():
    net = network()
    data = noise(net)
    own, fast = (calibrate(form, data, 0.1, batch_size=8) for form in (net, optimize(net)))
    assert net.provenance.rejection is fast  # the form's provenance is the network's
    assert fast.threshold == pytest.approx(own.threshold, abs=1e-4)
    assert fast.metrics == pytest.approx(own.metrics, abs=1e-3)


def test_fit_stays_in_the_file_and_not_in_a_cut(tmp_path):
    net = network()
    data = noise(net)
    calibrate(net, data, 0.1, "max-logit", batch_size=8)
    save_checkpoint(net, tmp_path / "net.safetensors")
    found = load_checkpoint(tmp_path / "net.safetensors").provenance
    assert found == net.provenance and found.rejection.threshold == net.provenance.rejection.threshold
    for other in (cut_expert(net, "*").provenance, cut_expert(tmp_path / "net.safetensors", "cat").provenance):
        assert other.rejection is None and other.temperature is None
    assert net.provenance.after_training({}).rejection is None


def test_data_that_teach_nothing_are_refused(caplog):
    net = network()
    before = net.provenance.model_copy(deep=True)
    own = noise(net, classes=("tabby", "siamese", "beagle"))
    with pytest.raises(DataError, match=r"noise' holds no images of classes outside .* add a folder"):
        calibrate(net, own)
    few = noise(net)  # 24 of 60
    with pytest.raises(DataError, match=r"at least 99 images .* hold 24"):
        calibrate(net, _unread(few))
    left_out = noise(net, outside=False)
    with pytest.raises(UsageError, match="outside=True"):
        calibrate(net, _unread(left_out))
    with pytest.raises(UsageError, match="no score 'margin'"):
        calibrate(net, _unread(few), 0.1, "margin")
    assert not caplog.records and net.provenance == before
    absent = noise(net, classes=("tabby", "saw", "Beagle"))
    calibrate(net, absent, 0.1)
    assert "no images of siamese, beagle" in caplog.text


def test_batches_without_own_images_are_refused():
    net = network()
    data = noise(net)
    data.samples = [(source, label) for source, label in data.samples if label < 0]
    with pytest.raises(DataError, match="none of the network's own classes"):
        calibrate(net, data, 0.1)


def _unread(data):
    def load(source):
        raise AssertionError("images were read")

    data.images = replace(data.images, load=load)
    return data


def test_guo_example_of_two_classes():
    """88 % sure and right three times in four: the temperature makes it 75 %."""
    logits = torch.tensor([[2.0, 0.0]]).repeat(4, 1)
    fitted = fit_temperature(logits, torch.tensor([0, 0, 0, 1]))
    assert fitted == pytest.approx(2 / math.log(3), rel=1e-9)
    assert float(class_probabilities(logits, temperature=fitted)[0, 0]) == pytest.approx(0.75)


# ---------------------------------------------------------------------- the command's step


@pytest.fixture
def photos(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), np.uint8)
    for i, image in enumerate(pixels):
        path = tmp_path / "photos" / "val" / ("tabby", "saw", "beagle", "axe", "siamese")[i % 5] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path / "photos"


@pytest.mark.parametrize("selection", ["cat", "beagle"])
def test_step_fits_the_file_and_leaves_its_weights(tmp_path, photos, selection, capsys):
    save_checkpoint(cut_expert(network(), selection), tmp_path / "expert.safetensors")
    before = read_header(tmp_path / "expert.safetensors")
    step = Calibration(load_data(photos, "val"), max_false_positive=0.2, score="max-logit", device="cpu", workers=0)
    told = step(tmp_path / "expert.safetensors")
    after = read_header(tmp_path / "expert.safetensors")
    assert after.fingerprint == before.fingerprint and after.provenance.rejection.score == "max-logit"
    assert told["calibration"] == after.provenance.model_dump(mode="json", include={"temperature", "rejection"})
    assert after.provenance.rejection.data == str(photos / "val")
    net = load_checkpoint(tmp_path / "expert.safetensors")
    data = TreeData(load_data(photos, "val"), net.tree, eval_transform(net.transform), outside=True)
    expected = calibrate(optimize(net), data, 0.2, "max-logit")
    assert after.provenance == net.provenance and after.provenance.rejection == expected
    show_calibration(["one"], [told])
    alone = capsys.readouterr().out
    assert ("temperature" in alone) == (selection == "cat") and "AUROC" in alone and "95 % bound" in alone
    show_calibration(["one", "two"], [told, told])
    both = capsys.readouterr().out
    assert "one" in both and "two" in both and f"max-logit {expected.threshold:.4g}" in both
