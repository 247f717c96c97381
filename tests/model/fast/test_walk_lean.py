"""Families that share run side by side: few steps, whatever the number of parents, and the logits of training."""

import copy

import pytest
import torch
from helpers import kernel_paths
from helpers.lean_nets import LEAN, build_lean
from helpers.random_nets import assert_near, both_gains, images, run
from hypothesis import given
from hypothesis import strategies as st

import hlnet.model.fast.walk
from hlnet.expert.cut import cut_expert
from hlnet.model.fast import chunks
from hlnet.model.fast.chunks import RankChunk
from hlnet.model.fast.optimize import optimize
from hlnet.model.fast.select import SelectedTree
from hlnet.model.fast.walk import FastTree
from hlnet.tree.class_tree import ClassTree

both_paths, path = kernel_paths.both_paths, kernel_paths.path

TREES = {
    "alike": ClassTree.balanced((3, 12, 36)),
    "uneven": ClassTree.from_nested(
        {
            "a": {"aa": ["1"], "ab": [f"x{i}" for i in range(11)], "ac": ["2", "3"]},
            "b": {"ba": ["4", "5", "6"]},
            "c": {f"c{i}": [f"c{i}{j}" for j in range(i + 1)] for i in range(7)},
        }
    ),
    "two levels": ClassTree.from_nested({"a": ["1", "2", "3"], "b": ["4"], "c": ["5", "6"]}),
}
SHARING = {name: LEAN[name] for name in ("reduce", "rank", "all", "convnext, reduce", "convnext, all")}
trees = pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
leans = pytest.mark.parametrize("lean", SHARING.values(), ids=SHARING)


def small(count):
    return images(count, 32)


@both_paths
@leans
@trees
def test_logits_are_those_of_training(lean, tree):
    net = build_lean(tree, lean, torch.float32)
    exact, fast = copy.deepcopy(net).double(), optimize(net)
    for batch in (1, 3, 9):
        for gains in both_gains(net, batch):
            expected = run(exact, small(batch).double(), *(gain.double() for gain in gains))
            assert_near(run(fast, small(batch), *gains), expected, 2e-5)


@leans
@trees
def test_selections_whatever_ran_together(monkeypatch, lean, tree):
    net = build_lean(tree, lean, torch.float32)
    some = [[0], [0, len(tree.classes) - 1], range(0, len(tree.classes), 3), range(1, len(tree.classes))]
    features, expected = run(net.features, small(2)), []
    for classes in map(list, some):
        expert = cut_expert(net, classes)
        expected += [(classes, gains, run(expert.head, features, *gains)) for gains in both_gains(expert, 2)]
    for cache in (1, 2000, 20_000, 2**20):
        monkeypatch.setattr(hlnet.model.fast.walk, "CACHE", cache)
        full = FastTree(net.head, torch.float32)
        for classes, gains, logits in expected:
            assert_near(run(SelectedTree(full, classes), features, *gains), logits, 2e-5)


@leans
def test_bfloat16_comes_near(lean):
    net = build_lean(TREES["uneven"], lean, torch.float32)
    expected = run(net, small(3))
    assert_near(run(optimize(net, "bfloat16"), small(3)), expected, 0.05 * max(1, float(expected.abs().max())))


@pytest.mark.parametrize("lean", [LEAN["all"], LEAN["convnext, all"]], ids=["bottleneck", "convnext"])
def test_a_level_is_one_step_until_the_cache_is_full(monkeypatch, lean):
    tree, steps = TREES["alike"], []
    net = build_lean(tree, lean, torch.float32)
    for kind in (chunks.BottleneckChunk, chunks.ConvNeXtChunk, RankChunk):
        original = kind.forward
        monkeypatch.setattr(
            kind, "forward", lambda self, *given, original=original: steps.append(self) or original(self, *given)
        )
    run(optimize(net), small(1))
    assert len(steps) == 3
    steps.clear()
    monkeypatch.setattr(hlnet.model.fast.walk, "CACHE", 1)
    run(optimize(net), small(1))
    assert len(steps) == 3 + 12 + 36


def test_lines_tell_the_parents_that_ran_together():
    fast = optimize(build_lean(TREES["alike"], LEAN["all"], torch.float32))
    run(fast, small(1))
    assert fast.explain()[-3:] == [
        "level 1, one or two images: 3 nodes of 1 parents in 1 chunks of at most 3",
        "level 2, one or two images: 12 nodes of 3 parents in 1 chunks of at most 12",
        "level 3, one or two images: 36 nodes of 12 parents in 1 chunks of at most 36",
    ]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_little_is_padded(counts):
    groups = chunks._of_like_size(counts)
    assert sorted(family for group in groups for family in group) == list(range(len(counts)))
    for group in groups:
        sizes = [counts[family] for family in group]
        assert group == sorted(group) and max(sizes) <= 2 * min(sizes)
    assert sum(len(group) * max(counts[f] for f in group) for group in groups) < 2 * sum(counts)
    assert len(groups) <= 1 + max(counts).bit_length()
