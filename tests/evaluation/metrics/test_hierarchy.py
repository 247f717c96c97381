"""Figures by the class tree: those of hiclass, scikit-learn and of counting by hand, on any tree and on experts."""

import itertools
import warnings
from statistics import fmean

import pytest
import torch
from helpers.trees import trees
from hiclass import metrics as hiclass_metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score

from hlnet.errors import UsageError
from hlnet.evaluation.metrics.hierarchy import lca_heights, measure_hierarchy
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.io import read_tree
from hlnet.tree.measures import node_heights

ANIMALS = ClassTree.from_nested(
    {"animal": {"cat": ["tabby", "siamese"], "dog": ["beagle"]}, "newt": {}, "tool": ["saw"]}
)


def drawn(classes, images, seed, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(images, classes, generator=generator)
    labels = torch.randint(classes, (images,), generator=generator)
    half = labels[: images // 2]
    logits[torch.arange(len(half)), half] += 2 * spread  # half of the answers tend to be right
    return logits, labels


def paths(tree):
    return [leaf.path.split("/") for leaf in tree.leaves]


def ancestors(path):
    return {tuple(path[:depth]) for depth in range(1, len(path) + 1)}


def naive_height(tree, one, other):
    """The longest way from the deepest common prefix down to a class."""
    rows = paths(tree)
    shared = [
        a for a, b in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(rows[one], rows[other], strict=False))
    ]
    return max(len(row) - len(shared) for row in rows if row[: len(shared)] == shared)


def naive_metrics(logits, labels, tree, temperature=1.0):
    """One image at a time, on sets of paths."""
    rows, answers, labels = paths(tree), logits.argmax(1).tolist(), labels.tolist()
    depth = max(map(len, rows))
    heights = [naive_height(tree, *pair) for pair in zip(answers, labels, strict=True)]
    mistakes = [h for h, answer, label in zip(heights, answers, labels, strict=True) if answer != label]
    sets = [(ancestors(rows[answer]), ancestors(rows[label])) for answer, label in zip(answers, labels, strict=True)]
    common = sum(len(found & true) for found, true in sets)
    precision, recall = (common / sum(len(pair[side]) for pair in sets) for side in (0, 1))
    by_class, summed, consistent = [], [], []
    for image, label in enumerate(labels):
        shares = (logits[image].double() / temperature).softmax(0).tolist()
        chosen = []
        for level in range(1, depth + 1):
            nodes = {}
            for row, share in zip(rows, shares, strict=True):
                nodes[tuple(row[:level])] = nodes.get(tuple(row[:level]), 0) + share
            chosen.append(max(nodes, key=nodes.get))
        truth = [tuple(rows[label][:level]) for level in range(1, depth + 1)]
        by_class.append([tuple(rows[answers[image]][: level + 1]) == truth[level] for level in range(depth)])
        summed.append([found == true for found, true in zip(chosen, truth, strict=True)])
        consistent.append(all(below[: len(above)] == above for above, below in itertools.pairwise(chosen)))
    return {
        "tree_height": depth,
        "lca_height": fmean(heights),
        "lca_height_mistakes": fmean(mistakes) if mistakes else None,
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if common else 0.0,
        "level_nodes": [len({tuple(row[:level]) for row in rows}) for level in range(1, depth + 1)],
        "level_accuracy": [fmean(column) for column in zip(*by_class, strict=True)],
        "level_accuracy_summed": [fmean(column) for column in zip(*summed, strict=True)],
        "path_consistency": fmean(consistent),
    }


def assert_naive(found, logits, labels, tree, temperature=1.0):
    found, expected = found.model_dump(), naive_metrics(logits, labels, tree, temperature)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == (None if value is None else pytest.approx(value)), name


@settings(deadline=None, max_examples=60)
@given(tree=trees(), seed=st.integers(0, 10**6), temperature=st.sampled_from([None, 0.5, 4.0]))
def test_metrics_are_those_of_counting_sets(tree, seed, temperature):
    logits, labels = drawn(len(tree.classes), 12, seed)
    assert_naive(measure_hierarchy(logits, labels, tree, temperature), logits, labels, tree, temperature or 1.0)


@settings(deadline=None, max_examples=60)
@given(tree=trees(), seed=st.integers(0, 10**6))
def test_precision_recall_and_f_are_hiclass(tree, seed):
    logits, labels = drawn(len(tree.classes), 20, seed)
    levels = max(map(len, paths(tree)))
    # hiclass compares names, so that each node must have its own: its path; "" is no node.
    rows = [["/".join(row[: level + 1]) if level < len(row) else "" for level in range(levels)] for row in paths(tree)]
    truth, answers = [rows[i] for i in labels], [rows[i] for i in logits.argmax(1)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [getattr(hiclass_metrics, name)(truth, answers) for name in ("precision", "recall")]
        if expected[0]:  # else hiclass divides by zero
            expected.append(hiclass_metrics.f1(truth, answers))
    found = measure_hierarchy(logits, labels, tree)
    assert [found.precision, found.recall, found.f1][: len(expected)] == pytest.approx(expected)
    if len(expected) < 3:
        assert found.f1 == 0


def test_accuracy_of_a_level_is_scikit_learns_of_the_groups():
    tree = read_tree("preset:imagenet100")
    logits, labels = drawn(100, 300, seed=1)
    found = measure_hierarchy(logits, labels, tree)
    position = list(range(100))  # of the class's node at each level, from the leaves up
    expected = []
    for row in reversed(tree.levels):
        groups = torch.tensor(position)
        expected.insert(0, accuracy_score(groups[labels], groups[logits.argmax(1)]))
        position = [row[i].parent for i in position]
    assert found.level_accuracy == pytest.approx(expected) and found.level_accuracy[0] > found.level_accuracy[-1] > 0


def test_worked_by_hand():
    """The example of docs/metrics.md, but for its probabilities."""
    answers = torch.tensor([0, 1, 2, 3, 4, 3])
    labels = torch.tensor([0, 0, 0, 0, 4, 4])
    logits = 5.0 * torch.nn.functional.one_hot(answers, 5)
    assert lca_heights(ANIMALS, answers, labels).tolist() == [0, 1, 2, 3, 0, 3]
    assert node_heights(ANIMALS)[-1] == 3
    found = measure_hierarchy(logits, labels, ANIMALS)
    assert (found.lca_height, found.lca_height_mistakes) == (9 / 6, 9 / 4)
    # answers have 3, 3, 3, 1, 2, 1 nodes, truths 3, 3, 3, 3, 2, 2; in common 3, 2, 1, 0, 2, 0
    assert (found.precision, found.recall) == (8 / 13, 8 / 16) and found.f1 == pytest.approx(16 / 29)
    assert found.level_accuracy == found.level_accuracy_summed == pytest.approx([4 / 6, 3 / 6, 2 / 6])
    assert found.path_consistency == 1


def test_likeliest_nodes_need_not_be_of_the_best_class_nor_on_one_path():
    tree = ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle"]})
    shares = torch.tensor([[0.3, 0.3, 0.4], [0.1, 0.2, 0.7]])
    found = measure_hierarchy(shares.log(), torch.tensor([0, 2]), tree)
    assert (found.level_accuracy, found.level_accuracy_summed) == ([0.5, 0.5], [1.0, 0.5])
    assert found.path_consistency == 0.5  # of the first image, "cat" 0.6 but "beagle" 0.4
    hot = measure_hierarchy(shares.log(), torch.tensor([0, 2]), tree, temperature=0.1)
    assert (hot.level_accuracy_summed, hot.path_consistency) == ([0.5, 0.5], 1.0)


def test_nearly_equal_logits_stay_apart():
    """The likeliest node of the last level is the best class, however close: float32 shares would tie."""
    tree = ClassTree.from_nested({"a": ["b", "c"], "d": ["e", "f"]})
    logits = torch.full((1, 4), 0.01)
    logits[0, 3] = torch.nextafter(logits[0, 3], torch.tensor(1.0))
    assert int(logits.softmax(1).argmax()) != 3 == int(logits.argmax(1))
    found = measure_hierarchy(logits, torch.tensor([3]), tree)
    assert found.level_accuracy_summed == [1, 1] and found.path_consistency == 1


@settings(deadline=None, max_examples=40)
@given(tree=trees(ids=False), extra=st.integers(0, 3), seed=st.integers(0, 10**6))
def test_continued_nodes_count_in_nothing(tree, extra, seed):
    longer = ClassTree.from_nested(tree.to_nested(), tree.num_levels + extra)
    assert longer.classes == tree.classes
    logits, labels = drawn(len(tree.classes), 10, seed)
    assert measure_hierarchy(logits, labels, longer) == measure_hierarchy(logits, labels, tree)


@settings(deadline=None, max_examples=40)
@given(tree=trees(), data=st.data())
def test_heights_are_a_distance_between_classes(tree, data):
    classes = len(tree.classes)
    one, other = (torch.tensor(data.draw(st.lists(st.integers(0, classes - 1), min_size=9, max_size=9))) for _ in "ab")
    heights = lca_heights(tree, one, other)
    assert heights.dtype == torch.int64 and torch.equal(heights, lca_heights(tree, other, one))
    assert ((heights == 0) == (one == other)).all() and heights.max() <= node_heights(tree)[-1]
    assert heights.tolist() == [naive_height(tree, *pair) for pair in zip(one.tolist(), other.tolist(), strict=True)]


def test_classes_that_an_expert_lacks_never_count():
    """Logits of absent classes are left out before the argmax, and their branches lower no height."""
    logits, labels = drawn(5, 40, seed=3)
    kept = [0, 1, 2]
    expert = ANIMALS.prune(kept)
    used = (labels[:, None] == torch.tensor(kept)).any(1)
    found = measure_hierarchy(logits[used][:, kept], labels[used], expert)
    assert_naive(found, logits[used][:, kept], labels[used], expert)
    assert found.tree_height == 3 and found.level_accuracy[0] == 1 and found.lca_height_mistakes <= 2


@pytest.mark.parametrize("levels", [1, 3])
def test_where_there_is_no_hierarchy_all_is_top_1(levels):
    logits, labels = drawn(6, 50, seed=0)
    right = float((logits.argmax(1) == labels).double().mean())
    found = measure_hierarchy(logits, labels, ClassTree.parallel(list("abcdef"), levels))
    assert found.lca_height == pytest.approx(1 - right) and found.lca_height_mistakes == 1 == found.tree_height
    assert [found.precision, found.recall, found.f1] == pytest.approx([right] * 3)
    assert found.level_accuracy == found.level_accuracy_summed == [right] and found.path_consistency == 1


@pytest.mark.parametrize("right", [True, False])
def test_all_right_and_all_wrong(right):
    labels = torch.arange(5)
    logits = 9.0 * torch.eye(5) if right else -9.0 * torch.eye(5) + torch.tensor([0, 0, 0, 1.0, 2.0])
    found = measure_hierarchy(logits, labels, ANIMALS)
    assert_naive(found, logits, labels, ANIMALS)
    assert (found.lca_height_mistakes is None) == right and (found.f1 == 1) == right


def test_chunks_are_joined(monkeypatch):
    logits, labels = drawn(5, 23, seed=5)
    whole = measure_hierarchy(logits, labels, ANIMALS)
    monkeypatch.setattr("hlnet.evaluation.metrics.hierarchy._CHUNK", 4)
    assert measure_hierarchy(logits, labels, ANIMALS) == whole


@pytest.mark.parametrize(("images", "classes", "labels"), [(0, 5, 0), (3, 4, 3), (3, 5, 2)])
def test_shapes_that_do_not_fit_are_refused(images, classes, labels):
    with pytest.raises(UsageError, match="hierarchical metrics of a tree of 5 classes"):
        measure_hierarchy(torch.zeros(images, classes), torch.zeros(labels, dtype=torch.long), ANIMALS)
