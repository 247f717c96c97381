"""What classes and siblings share, against one timm block per node: logits, gradients, statistics, gains."""

import pytest
import torch
import torch.nn.functional as F
from helpers.lean_nets import LEAN, TREES, both, build_lean, features, lean_settings, random_gains
from helpers.naive import pairs
from helpers.trees import SHAPES
from hypothesis import assume, given, settings

from hlnet.model.fast.optimize import optimize
from hlnet.model.fast.walk import FastTree
from hlnet.store.export.portable import PortableTree
from hlnet.tree.class_tree import ClassTree

EXACT = {"rtol": 1e-9, "atol": 1e-9}
leans = pytest.mark.parametrize("lean", LEAN.values(), ids=LEAN)
trees = pytest.mark.parametrize("tree", TREES.values(), ids=TREES)


def assert_near(found, expected):
    """To rounding in float32."""
    error, scale = (found - expected).abs().max().item(), expected.abs().max().item()
    assert found.shape == expected.shape and error <= 2e-5 * max(1.0, scale)


@leans
@trees
def test_all_forms_equal_the_naive_network(lean, tree):
    head, naive = both(tree, lean)
    x = features()
    single = both(tree, lean, torch.float32)[0]
    fast, portable = FastTree(single, torch.float32), PortableTree(single, tuple(x.shape[1:]))
    with torch.no_grad():
        for gains in (None, random_gains(3, tree.num_nodes)):
            expected = naive(x, gains)
            assert expected.std(0).min() > 1e-3  # the weights are such that images tell apart
            torch.testing.assert_close(head(x, gains), expected, **EXACT)
            for form in (fast, portable):
                assert_near(form(x.float(), None if gains is None else gains.float()), expected)
    assert (fast.stage is not None) == bool(lean.get("shared_width"))


@leans
@pytest.mark.parametrize("training", [False, True])
def test_gradients_equal_the_naive_network(lean, training):
    tree = TREES["uneven"]
    head, naive = both(tree, lean)
    factors, inputs = random_gains(3, len(tree.classes)), []
    for network in (head.train(training), naive.train(training)):
        x = features().requires_grad_()
        (network(x) * factors).sum().backward()
        inputs.append(x.grad)
    torch.testing.assert_close(*inputs, **EXACT)
    for name, stacked, rows in pairs(head, naive):
        if stacked.requires_grad:
            expected = torch.stack([row.grad.reshape(stacked.shape[1:]) for row in rows])
            torch.testing.assert_close(stacked.grad, expected, **EXACT, msg=lambda text, name=name: f"{name}: {text}")
    if head.stage is not None:
        for ours, theirs in zip(head.stage.parameters(), naive.stage.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, **EXACT)


def test_statistics_of_what_siblings_share_move_once_a_step():
    head, _ = both(TREES["n3hl"], LEAN["reduce"])
    level, x = head.levels[0], features()
    kernel, before = level.family_conv1_weight[0], level.family_conv1_bn_mean.clone()
    head.train()(x)
    mean = torch.einsum("oi,bihw->bohw", kernel, x).mean((0, 2, 3))
    torch.testing.assert_close(level.family_conv1_bn_mean, 0.9 * before + 0.1 * mean, **EXACT)


@leans
def test_gain_of_a_node_changes_only_the_classes_below_it(lean):
    tree = TREES["n3hl"]
    head, _ = both(tree, lean)
    with torch.no_grad():
        neutral = head(features())
        for level, row in enumerate(tree.levels):
            for position, node in enumerate(row):
                gains = torch.ones(tree.num_nodes, dtype=torch.float64)
                gains[tree.offsets[level] + position] = 1.4
                changed = ~torch.isclose(head(features(), gains), neutral, **EXACT).all(0)
                assert changed.tolist() == [f"{leaf.path}/".startswith(f"{node.path}/") for leaf in tree.leaves]


def test_a_leaf_of_some_rank_is_its_formula():
    """Logit = sum over pixels and channels of weight * gain * relu(scale * (kernel . x - mean) + shift), and bias."""
    head, _ = both(TREES["one level"], LEAN["rank"])
    level, leaves, x = head.levels[0], head.leaves, features()[:, :, ::2, ::2]
    gains = random_gains(3, 3)
    mapped = torch.einsum("nri,bihw->bnrhw", level.conv_weight, x)
    scale = level.conv_bn_weight / (level.conv_bn_var + 1e-5).sqrt()
    mean, scale, shift = (part[..., None, None] for part in (level.conv_bn_mean, scale, level.conv_bn_bias))
    normal = (mapped - mean) * scale + shift
    pooled = (F.relu(normal) * gains[:, :, None, None, None]).mean((3, 4))
    torch.testing.assert_close(head(features(), gains), (pooled * leaves.weight).sum(2) + leaves.bias, **EXACT)


def test_rows_are_a_part_of_the_logits():
    for lean in ("all", "convnext, all"):
        head, naive = both(TREES["uneven"], LEAN[lean])
        logits, rows = head(features(), with_rows=True)
        assert torch.equal(logits, head(features()))
        naive.class_rows = None
        torch.testing.assert_close(rows, logits - naive(features()), **EXACT)


@settings(max_examples=25, deadline=None)
@given(SHAPES, lean_settings())
def test_selections_of_the_inference_form(shape, lean):
    count = iter(range(100))

    def mapping(shape):
        return {f"n{next(count)}": mapping(below) if below else None for below in shape}

    tree = ClassTree.from_nested(mapping(shape))
    assume(tree.num_levels <= 4)
    net = build_lean(tree, lean, torch.float32)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    kept = list(range(0, len(tree.classes), 2))
    with torch.no_grad():
        expected = net.double()(images.double())
        fast = optimize(net.float())
        assert_near(fast(images), expected)
        assert_near(fast.select([tree.classes[i] for i in kept])(images), expected[:, kept])
