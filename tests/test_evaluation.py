"""Evaluation: accuracies are scikit-learn's, restriction is a choice of columns, cues are gains set by hand."""

import math

import numpy as np
import pytest
import torch
from naive import randomise
from PIL import Image
from sklearn.metrics import accuracy_score, recall_score, top_k_accuracy_score
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

from hlnet.data import LabelledImages, TreeData, eval_transform, loader
from hlnet.errors import SelectionError, UsageError
from hlnet.evaluation import accuracy, confusion_matrix, evaluate, logits_of
from hlnet.expert import cut_expert
from hlnet.network import HierarchicalNet, NetworkConfig
from hlnet.plain import PlainConfig, PlainNet
from hlnet.tree import ClassTree
from hlnet.trunk import InputTransform

TREE = ClassTree.from_nested({"cat": {"tabby": 9, "siamese": 4}, "dog": {"beagle": 1, "boxer": 7}, "saw": 3, "axe": 5})
TRANSFORM = InputTransform(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0)


def build(kind="hierarchical", tree=TREE):
    torch.manual_seed(0)
    if kind == "plain":
        net = PlainNet(PlainConfig(backbone="test_resnet"), tree)
    else:
        net = HierarchicalNet(NetworkConfig(backbone="test_resnet", widths=(4, 4), strides=(1, 1)), tree)
        randomise(net.head)
    net.transform = TRANSFORM
    return net.eval()


def noise(tree=TREE, count=40, subset=False):
    """Random images of TREE's classes, axe apart, numbered otherwise than in the tree."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
    classes = ("saw", "boxer", "beagle", "axe", "siamese", "tabby")
    labels = tuple((0, 1, 2, 4, 5)[i % 5] for i in range(count))
    images = LabelledImages("noise", classes, labels, lambda i: Image.fromarray(pixels[i]))
    return TreeData(images, tree, eval_transform(TRANSFORM), subset)


def by_hand(net, data, gains=None):
    """Logits and labels, one image at a time."""
    with torch.no_grad():
        rows = [
            net(data[i][0][None], *(() if gains is None else (gains(data.labels[i]),)))[0] for i in range(len(data))
        ]
    return torch.stack(rows), torch.tensor(data.labels)


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
    found = evaluate(net.train(), data, loader(data, 7), classes, on_batch=lambda: ticks.append(1))
    used = [i for i in range(len(labels)) if labels[i] in kept]
    names = [TREE.classes[i] for i in kept]
    targets = torch.tensor([list(kept).index(labels[i]) for i in used])
    assert_scores(found.neutral, logits[used][:, list(kept)], targets, names)
    assert (found.images, found.left_out, found.classes) == (len(used), 40 - len(used), len(kept))
    assert (found.attention_signal, found.cue, found.cued, len(ticks)) == (None, None, None, 6)


@pytest.mark.parametrize("selection", ["cat,beagle", "dog", "cat,dog,saw,axe"])
def test_expert_is_the_full_network_restricted(selection):
    full = build()
    expert = cut_expert(full, selection)
    ours, whole = noise(expert.tree, subset=True), noise()
    found = evaluate(expert, ours, loader(ours, 8), attention_signal=1.7)
    assert found == evaluate(full, whole, loader(whole, 8), selection, attention_signal=1.7)
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
    runs, order = logits_of(net, loader(data, 7), [None, signal])
    assert torch.equal(order, labels)
    for run, expected in zip(runs, (neutral, cued), strict=True):
        torch.testing.assert_close(run, expected, rtol=1e-4, atol=1e-4)
    assert (cued - neutral).abs().max() > 1e-2
    found = evaluate(net, data, loader(data, 7), attention_signal=signal)
    assert_scores(found.neutral, neutral, labels, TREE.classes)
    assert_scores(found.cued, cued, labels, TREE.classes)
    assert found.attention_signal == signal and "oracle" in found.cue


def test_signal_of_one_is_neutral():
    net, data = build(), noise()
    (neutral, cued), _ = logits_of(net, loader(data, 7), [None, 1.0])
    assert torch.equal(neutral, cued)
    found = evaluate(net, data, loader(data, 7), attention_signal=1.0)
    assert found.cued == found.neutral and found.attention_signal == 1


@pytest.mark.parametrize("signal", [-0.1, math.nan, math.inf, -math.inf])
def test_bad_signal_is_refused(signal):
    data = noise()
    with pytest.raises(UsageError, match="attention signal"):
        evaluate(build(), data, loader(data, 7), attention_signal=signal)


def test_plain_network_takes_no_cue():
    data = noise()
    with pytest.raises(UsageError, match="plain network"):
        evaluate(build("plain"), data, loader(data, 7), attention_signal=1.0)


def test_selection_without_images_is_refused():
    data = noise()
    with pytest.raises(UsageError, match="no image"):
        evaluate(build(), data, loader(data, 7), "axe")
    with pytest.raises(SelectionError):
        evaluate(build(), data, loader(data, 7), "newt")
