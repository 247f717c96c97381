"""Evaluation: accuracies are scikit-learn's, restriction is a choice of columns, cues are gains set by hand, and images
of other classes are counted apart."""

import math

import pytest
import torch
from helpers.evaluated_nets import BCE, TREE, build, by_hand, expert_of, noise, signal_of
from sklearn.metrics import accuracy_score, recall_score, roc_auc_score, top_k_accuracy_score
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

from hlnet.cues.oracle import label_cues
from hlnet.cues.policy import CuePolicy
from hlnet.data.tree_data import loader
from hlnet.errors import SelectionError, UsageError
from hlnet.evaluation.evaluate import evaluate
from hlnet.evaluation.logits import logits_of
from hlnet.evaluation.metrics.accuracy import accuracy, confusion_matrix
from hlnet.evaluation.metrics.probability import calibration_error, class_probabilities
from hlnet.evaluation.metrics.rejection import SCORES, rejection_scores
from hlnet.expert.cut import cut_expert


def assert_scores(found, logits, labels, names):
    predicted = logits.argmax(1)
    assert found.top1 == pytest.approx(accuracy_score(labels, predicted))
    if len(names) > 5:
        top5 = top_k_accuracy_score(labels, logits, k=5, labels=range(len(names)))
        assert found.top5 == pytest.approx(top5)
    else:
        assert found.top5 is None
    present = sorted(set(labels.tolist()))
    recalls = recall_score(labels, predicted, labels=present, average=None)
    assert found.per_class == pytest.approx({names[i]: r for i, r in zip(present, recalls, strict=True)})


@pytest.mark.parametrize("classes", [1, 2, 5, 6, 12])
def test_accuracy_is_scikit_learns(classes):
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(50, classes, generator=generator)
    labels = torch.randint(max(1, classes - 1), (50,), generator=generator)  # one class without images
    names = [f"c{i}" for i in range(classes)]
    assert_scores(accuracy(logits, labels, iter(names)), logits, labels, names)


@pytest.mark.parametrize("classes", [1, 2, 7])
@pytest.mark.parametrize("images", [0, 1, 200])
def test_confusion_matrix_is_scikit_learns(classes, images):
    generator = torch.Generator().manual_seed(classes + images)
    logits = torch.randn(images, classes, generator=generator)
    labels = torch.randint(max(1, classes - 1), (images,), generator=generator)  # one class without images
    found = confusion_matrix(logits, labels)
    assert found.dtype == torch.int64 and found.shape == (classes, classes) and int(found.sum()) == images
    if images and classes > 1:
        expected = sklearn_confusion_matrix(labels, logits.argmax(1), labels=range(classes))
        assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("kind", ["hierarchical", "plain"])
@pytest.mark.parametrize(
    ("classes", "kept"),
    [
        (None, range(6)),
        ("dog,tabby", [0, 2, 3]),
        ([3, "cat"], [0, 1, 4]),
        ("beagle", [2]),
        ("*o*,cat,[bsa]*", range(6)),
        ("*a*", [0, 1, 2, 4, 5]),
    ],
)
def test_evaluation_is_a_choice_of_columns(kind, classes, kept):
    net, data, ticks = build(kind), noise(), []
    logits, labels = by_hand(net, data)
    found = evaluate(net.train(), data, classes, on_batch=lambda: ticks.append(1), batch_size=7)
    used = [i for i in range(len(labels)) if labels[i] in kept]
    names = [TREE.classes[i] for i in kept]
    targets = torch.tensor([list(kept).index(labels[i]) for i in used])
    assert_scores(found.neutral, logits[used][:, list(kept)], targets, names)
    assert (found.images, found.left_out, found.classes) == (len(used), 40 - len(used), len(kept))
    assert (found.cued, len(ticks)) == (None, 6)


@pytest.mark.parametrize("selection", ["cat,beagle", "dog", "cat,dog,saw,axe"])
def test_expert_is_the_full_network_restricted(selection):
    full = build()
    expert = cut_expert(full, selection)
    ours, whole = noise(expert.tree, subset=True), noise()
    found = evaluate(expert, ours, policy=signal_of(1.7), batch_size=8)
    assert found == evaluate(full, whole, selection, policy=signal_of(1.7), batch_size=8)
    assert found.images + found.left_out == 40


@pytest.mark.parametrize("signal", [0.0, 0.5, 1.8, 40.0])
def test_signal_is_the_gain_of_the_right_leaf(signal):
    net, data = build(), noise()

    def gains(label):
        vector = torch.ones(TREE.num_nodes)
        vector[TREE.num_nodes - len(TREE.classes) + label] = signal
        return vector

    cued, labels = by_hand(net, data, gains)
    neutral, _ = by_hand(net, data)
    runs, order = logits_of(net, loader(data, 7), [None, label_cues(TREE, data.labels)], CuePolicy(strength=signal))
    assert torch.equal(order, labels)
    for run, expected in zip(runs, (neutral, cued), strict=True):
        torch.testing.assert_close(run, expected, rtol=1e-4, atol=1e-4)
    assert (cued - neutral).abs().max() > 1e-2
    found = evaluate(net, data, policy=signal_of(signal), batch_size=7)
    assert_scores(found.neutral, neutral, labels, TREE.classes)
    assert_scores(found.cued.accuracy, cued, labels, TREE.classes)
    assert found.cued.attention.strength == signal and "oracle" in found.cued.source


def test_signal_of_one_is_neutral():
    net, data = build(), noise()
    (neutral, cued), _ = logits_of(net, loader(data, 7), [None, label_cues(TREE, data.labels)], CuePolicy(strength=1.0))
    assert torch.equal(neutral, cued)
    found = evaluate(net, data, policy=signal_of(1.0), batch_size=7)
    assert found.cued.accuracy == found.cued.wrong == found.neutral


def test_bad_signal_is_refused():
    data = noise()
    with pytest.raises(UsageError, match=r"gain -0\.1 must be at least 0"):
        evaluate(build(), data, policy=signal_of(-0.1), batch_size=7)
    for signal in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=r"equal to -?1000000"):
            signal_of(signal)


def test_plain_network_takes_no_cue():
    data = noise()
    with pytest.raises(UsageError, match="plain network"):
        evaluate(build("plain"), data, policy=signal_of(1.0), batch_size=7)


def test_selection_without_images_is_refused():
    data = noise()
    with pytest.raises(UsageError, match="no image"):
        evaluate(build(), data, "axe", batch_size=7)
    with pytest.raises(SelectionError):
        evaluate(build(), data, "newt", batch_size=7)


# ---------------------------------------------------------------------- calibration, and images of other classes


@pytest.mark.parametrize("selection", ["cat,beagle", "dog", "saw"])
@pytest.mark.parametrize("score", SCORES)
def test_stored_threshold_is_tried_on_own_and_outside_images(selection, score):
    expert, data = expert_of(selection, score)
    found = evaluate(expert, data, batch_size=7).detection
    logits, labels = by_hand(expert, data)
    scores, own = rejection_scores(logits, score), labels >= 0
    assert (found.own, found.outside, found.score) == (int(own.sum()), int((~own).sum()), score)
    assert (found.threshold, found.max_false_positive) == (expert.provenance.rejection.threshold, 0.2)
    kept = scores >= found.threshold
    assert found.own_accepted == pytest.approx(float(kept[own].double().mean()))
    assert found.outside_accepted == pytest.approx(float(kept[~own].double().mean()))
    right = (logits.argmax(1) == labels)[own & kept].double()
    assert found.accuracy_accepted == (pytest.approx(float(right.mean())) if len(right) else None)
    assert found.auroc == pytest.approx(roc_auc_score(own, scores))
    assert 0 < found.own_accepted < 1 or selection == "saw"


def test_outside_images_change_no_accuracy():
    expert, data = expert_of("cat,beagle")
    only = noise(expert.tree, subset=True)
    found, own = (evaluate(expert, given, policy=signal_of(1.8), batch_size=7) for given in (data, only))
    changed = {"detection"}
    assert found.model_dump(exclude=changed) == own.model_dump(exclude=changed) and found.left_out == 16
    assert (own.detection.outside, own.detection.auroc, own.detection.outside_accepted) == (0, None, None)
    assert own.detection.own_accepted == found.detection.own_accepted


def test_detection_is_measured_where_it_is_asked_for():
    plain_expert, (fitted, _) = cut_expert(build(), "cat,beagle"), expert_of("cat,beagle")
    full, whole = build(), noise()

    def detected(net, data, *arguments, **options):
        return evaluate(net, data, *arguments, batch_size=7, **options).detection

    assert detected(plain_expert, noise(plain_expert.tree, outside=True)) is None
    assert detected(full, whole) is None and detected(full, whole, "cat") is None
    single = detected(full, whole, "beagle")  # the control of a single-class expert
    expert = cut_expert(full, "beagle")
    assert single == detected(expert, noise(expert.tree, outside=True)) and single.threshold is None
    assert detected(expert, noise(expert.tree, subset=True)) is None  # nothing to ask
    asked = detected(plain_expert, noise(plain_expert.tree, outside=True), score="max-logit")
    assert asked == detected(full, whole, "cat,beagle", score="max-logit") and asked.score == "max-logit"
    outside = noise(fitted.tree, outside=True)
    assert detected(fitted, outside, score="max-logit").threshold is None  # the stored one is of another score
    assert detected(fitted, outside, "tabby").threshold is None  # and of all its classes
    assert detected(fitted, outside, score="energy") == detected(fitted, outside)


@pytest.mark.parametrize("outside", [False, True])
def test_calibration_error_is_that_of_the_stored_temperature(outside):
    expert, _ = expert_of("cat,beagle")
    data = noise(expert.tree, subset=True, outside=outside)
    logits, labels = by_hand(expert, data)
    own = labels >= 0
    expected = calibration_error(class_probabilities(logits, temperature=2.5)[own], labels[own])
    found = evaluate(expert, data, batch_size=7)
    assert found.temperature == 2.5 and found.ece == pytest.approx(expected, abs=1e-4)
    expert.provenance.temperature = None
    plain = calibration_error(logits.softmax(1)[own], labels[own])
    assert evaluate(expert, data, batch_size=7).ece == pytest.approx(plain, abs=1e-4) and abs(plain - expected) > 0.01


def test_calibration_of_detectors_counts_images_of_other_classes():
    expert, data = expert_of("dog", "probability", recipe=BCE)
    logits, labels = by_hand(expert, data)
    expected = calibration_error((logits / 2.5).sigmoid(), labels)
    assert evaluate(expert, data, batch_size=7).ece == pytest.approx(expected, abs=1e-4)
    only = noise(expert.tree, subset=True)
    assert evaluate(expert, only, batch_size=7).ece is None  # not known without them
    single, data = expert_of("saw", "probability", recipe=BCE)
    assert evaluate(single, data, batch_size=7).ece is not None
