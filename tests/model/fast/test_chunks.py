"""The blocks of siblings for inference: any branches give what those of training give in float64."""

import copy

import pytest
import torch
from helpers.naive import randomise
from helpers.random_nets import assert_near, build, images, random_gains, run
from helpers.trees import SHAPES
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hlnet.model.fast.chunks import LeafChunk
from hlnet.model.fast.walk import FastTree
from hlnet.model.hierarchical import BranchTree
from hlnet.tree.class_tree import ClassTree


@st.composite
def heads(draw):
    """Branches of any small tree, with random weights, features for them, and perhaps gains."""
    count = iter(range(1000))

    def mapping(shape):
        return {f"n{next(count)}": mapping(below) if below else None for below in shape}

    tree = ClassTree.from_nested(mapping(draw(SHAPES)))
    assume(tree.num_levels <= 4)
    widths, strides = (
        tuple(draw(st.lists(st.sampled_from(values), min_size=tree.num_levels, max_size=tree.num_levels)))
        for values in ((3, 4, 8, 12), (1, 1, 2, 3))
    )
    channels, block = draw(st.sampled_from([3, 8])), draw(st.sampled_from(["bottleneck", "convnext"]))
    head = BranchTree(tree, channels, block, widths, strides).eval()
    seed, batch = draw(st.integers(0, 99)), draw(st.sampled_from([1, 2, 3, 9, 17]))
    randomise(head, seed)
    size = draw(st.sampled_from([(1, 1), (2, 3), (4, 4), (7, 5)]))
    x = torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed))
    gains = draw(st.sampled_from([(), (random_gains(batch, tree.num_nodes),), (random_gains(tree.num_nodes),)]))
    return head, x, gains


@settings(max_examples=150, deadline=None)
@given(heads())
def test_any_branches(case):
    head, x, gains = case
    exact = copy.deepcopy(head).double()
    try:
        expected = run(exact, x.double(), *(gain.double() for gain in gains))
    except RuntimeError:  # ConvNeXt's stride needs a larger map
        assume(False)
    # Narrow layer norms can enlarge rounding, that of the training form too.
    rounding = float((run(head, x, *gains) - expected).abs().max())
    error, scale = float((run(FastTree(head, torch.float32), x, *gains) - expected).abs().max()), expected.abs().max()
    assert error <= 1e-5 * max(1, float(scale)) + 5 * rounding


@pytest.mark.parametrize("norm", [False, True])
def test_leaves_weigh_the_mean_of_each_channel(norm):
    block = "convnext" if norm else "bottleneck"
    head = build(block).head
    x = images(2, 5)[:, :1] + torch.linspace(-1, 1, 4 * head.leaves.weight.shape[1])[None, :, None, None] ** 3
    pooled = x.double().mean((2, 3)).unflatten(1, (4, -1))
    if norm:
        centred = pooled - pooled.mean(-1, keepdim=True)
        pooled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        pooled = pooled * head.leaves.norm_weight[1:5] + head.leaves.norm_bias[1:5]
    expected = torch.einsum("bmc,mc->bm", pooled, head.leaves.weight[1:5].double()) + head.leaves.bias[1:5]
    assert_near(run(LeafChunk(head.leaves, 1, 5), x), expected.detach())
