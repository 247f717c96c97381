"""Attention: the gain stands at the cued leaf, level by level numbered, and nowhere else."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hlnet.cues.effect import gains_for
from hlnet.errors import UsageError
from hlnet.tree.class_tree import ClassTree

TREE = ClassTree.from_nested({"animal": {"cat": ["tabby", "siamese"], "dog": ["beagle"]}, "saw": None})


@given(st.lists(st.integers(0, 3), max_size=6), st.floats(0, 1e6), st.sampled_from([TREE, TREE.parallelized(2)]))
def test_gains_are_one_but_for_the_cued_leaf(classes, signal, tree):
    nodes = [(level, node) for level, row in enumerate(tree.levels) for node in row]
    found = gains_for(tree, torch.tensor(classes, dtype=torch.long), signal)
    expected = [
        [signal if level == tree.num_levels - 1 and node.name == tree.classes[c] else 1.0 for level, node in nodes]
        for c in classes
    ]
    assert found.shape == (len(classes), tree.num_nodes)
    torch.testing.assert_close(found, torch.tensor(expected).view(len(classes), tree.num_nodes))


def test_one_is_neutral_and_order_is_kept():
    assert torch.equal(gains_for(TREE, torch.tensor([0, 3]), 1), torch.ones(2, 9))
    assert gains_for(TREE, torch.tensor([3, 0]), 0).argmin(1).tolist() == [8, 5]


@pytest.mark.parametrize("signal", [-1e-9, math.nan, math.inf, -math.inf])
def test_signal_must_be_a_number_of_at_least_zero(signal):
    with pytest.raises(UsageError, match="attention signal"):
        gains_for(TREE, torch.tensor([0]), signal)


@pytest.mark.parametrize("classes", [[4], [-1], [0, 9]])
def test_class_out_of_range_is_refused(classes):
    with pytest.raises(UsageError, match=r"0\.\.3"):
        gains_for(TREE, torch.tensor(classes), 1.5)
