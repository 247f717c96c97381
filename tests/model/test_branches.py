"""The stacked branches against one timm block per node: logits, gradients, BN statistics, gains, operations."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from helpers.naive import NaiveTree, copy_weights, pairs, randomise
from torch.utils._python_dispatch import TorchDispatchMode

from hlnet.errors import UsageError
from hlnet.model.branches import LEVELS
from hlnet.model.hierarchical import BranchTree
from hlnet.tree.class_tree import ClassTree

IN_CHANNELS = 7
TREES = {
    "n3hl": ClassTree.balanced((2, 5, 9)),
    "phl": ClassTree.parallel(["a", "b", "c", "d"], levels=3),
    "uneven": ClassTree.from_nested({"x": {"xx": ["a", "b", "c"], "xy": ["d"]}, "y": ["e", "f"], "g": None}),
    "two levels": ClassTree.from_nested({"x": ["a", "b"], "y": ["c"], "d": None}),
    "one class": ClassTree.parallel(["only"], levels=3),
    "one level": ClassTree.from_nested(["a", "b", "c"]),
}
WIDTHS, STRIDES = (6, 5, 4), ((1, 1, 2), (2, 2, 2), (2, 1, 1))
EXACT = {"rtol": 1e-9, "atol": 1e-9}

blocks = pytest.mark.parametrize("block", ["bottleneck", "convnext"])
trees = pytest.mark.parametrize("tree", TREES.values(), ids=TREES)


def both(tree, block, strides=STRIDES[0], dtype=torch.float64):
    """A randomised head in eval mode, and its naive counterpart."""
    arguments = (tree, IN_CHANNELS, block, WIDTHS[: tree.num_levels], strides[: tree.num_levels])
    head, naive = BranchTree(*arguments).to(dtype).eval(), NaiveTree(*arguments).to(dtype).eval()
    randomise(head)
    copy_weights(head, naive)
    return head, naive


def features(size=7, batch=3, dtype=torch.float64, seed=0):
    size = size if isinstance(size, tuple) else (size, size)
    return torch.randn(batch, IN_CHANNELS, *size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_gains(*shape):
    return 0.5 + torch.rand(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def assert_rows_equal(name, stacked, rows):
    expected = torch.stack([row.reshape(stacked.shape[1:]) for row in rows])
    torch.testing.assert_close(stacked, expected, **EXACT, msg=lambda text: f"{name}: {text}")


def assert_same_gradients(head, naive):
    for name, stacked, rows in pairs(head, naive):
        if stacked.requires_grad:
            assert stacked.grad.reshape(len(stacked), -1).any(1).all(), f"{name}: a node without gradient"
            assert_rows_equal(name, stacked.grad, [row.grad for row in rows])


@blocks
@trees
@pytest.mark.parametrize("strides", STRIDES, ids=str)
@pytest.mark.parametrize("size", [14, 15, (17, 12)], ids=str)
def test_logits_equal_the_naive_network(block, tree, strides, size):
    head, naive = both(tree, block, strides)
    x = features(size)
    logits = head(x)
    assert logits.shape == (3, len(tree.classes))
    assert logits.std(0).min() > 1e-3  # the weights are such that images tell apart
    torch.testing.assert_close(logits, naive(x), **EXACT)


@blocks
@trees
@pytest.mark.parametrize(("training", "size"), [(False, 7), (True, 8)], ids=["eval", "training"])
def test_gradients_equal_the_naive_network(block, tree, training, size):
    head, naive = both(tree, block)
    factors = random_gains(3, len(tree.classes))
    inputs = []
    for network in (head.train(training), naive.train(training)):
        x = features(size).requires_grad_()
        (network(x) * factors).sum().backward()
        inputs.append(x.grad)
    torch.testing.assert_close(*inputs, **EXACT)
    assert_same_gradients(head, naive)


@trees
def test_batch_norm_trains_as_in_the_naive_network(tree):
    head, naive = both(tree, "bottleneck")
    before = {name: stacked.clone() for name, stacked, _ in pairs(head, naive) if not stacked.requires_grad}
    for step in range(2):
        x = features(8, seed=step)
        logits = [network.train()(x) for network in (head, naive)]
        torch.testing.assert_close(*logits, **EXACT)
    for name, stacked, rows in pairs(head, naive):
        if not stacked.requires_grad:
            assert not torch.isclose(stacked, before[name]).all(1).any(), f"{name}: a node's statistics stand still"
            assert_rows_equal(name, stacked, rows)
    torch.testing.assert_close(head.eval()(x), naive.eval()(x), **EXACT)


@blocks
def test_two_optimiser_steps_keep_the_networks_equal(block):
    head, naive = both(TREES["uneven"], block)
    for network in (head.train(), naive.train()):
        optimiser = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=0.01)
        for step in range(2):
            optimiser.zero_grad()
            F.cross_entropy(network(features(seed=step)), torch.tensor([0, 3, 6])).backward()
            optimiser.step()
    for name, stacked, rows in pairs(head, naive):
        assert_rows_equal(name, stacked, rows)


@blocks
def test_float32_agrees_with_the_naive_network(block):
    head, naive = both(TREES["n3hl"], block, dtype=torch.float32)
    x = features(14, dtype=torch.float32)
    torch.testing.assert_close(head(x), naive(x), rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------- gains


@blocks
@trees
def test_gains_equal_the_naive_network(block, tree):
    head, naive = both(tree, block)
    x, gains = features(), random_gains(3, tree.num_nodes)
    logits = head(x, gains)
    torch.testing.assert_close(logits, naive(x, gains), **EXACT)
    assert not torch.isclose(logits, head(x), rtol=1e-4).any()


@blocks
def test_gains_of_the_whole_batch_hold_for_each_image(block):
    head, naive = both(TREES["uneven"], block)
    x, gains = features(), random_gains(TREES["uneven"].num_nodes)
    logits = head(x, gains)
    assert torch.equal(logits, head(x, gains.repeat(3, 1)))
    torch.testing.assert_close(logits, naive(x, gains), **EXACT)


@blocks
@trees
def test_gains_of_one_are_no_gains(block, tree):
    head, _ = both(tree, block)
    assert torch.equal(head(features(), torch.ones(3, tree.num_nodes, dtype=torch.float64)), head(features()))


@blocks
@pytest.mark.parametrize("level", [0, 1, 2])
def test_gain_of_a_node_changes_only_the_classes_below_it(block, level):
    tree = TREES["n3hl"]
    head, _ = both(tree, block)
    for position, node in enumerate(tree.levels[level]):
        gains = torch.ones(3, tree.num_nodes, dtype=torch.float64)
        gains[:, tree.offsets[level] + position] = 1.4
        changed = ~torch.isclose(head(features(), gains), head(features()), rtol=1e-9, atol=1e-9)
        below = [leaf.path == node.path or leaf.path.startswith(node.path + "/") for leaf in tree.leaves]
        assert torch.equal(changed, torch.tensor(below).expand(3, -1))


@blocks
def test_gain_of_one_image_leaves_the_others_alone(block):
    head, _ = both(TREES["uneven"], block)
    gains = torch.ones(3, TREES["uneven"].num_nodes, dtype=torch.float64)
    gains[1] = 0.6
    same = torch.isclose(head(features(), gains), head(features()), rtol=1e-9, atol=1e-9).all(1)
    assert same.tolist() == [True, False, True]


@blocks
def test_gains_in_training_equal_the_naive_network(block):
    head, naive = both(TREES["uneven"], block)
    gains = random_gains(3, TREES["uneven"].num_nodes)
    grads = []
    for network in (head.train(), naive.train()):
        wanted = gains.clone().requires_grad_()
        network(features(), wanted).square().sum().backward()
        grads.append(wanted.grad)
    torch.testing.assert_close(*grads, **EXACT)
    assert_same_gradients(head, naive)


@pytest.mark.parametrize("shape", [(), (9,), (15,), (3, 15), (2, 16), (1, 16), (16, 3), (1, 3, 16), (0,)], ids=str)
def test_gains_of_another_shape_are_refused(shape):
    head, _ = both(TREES["n3hl"], "bottleneck")
    with pytest.raises(UsageError, match=r"\[16\] or \[3, 16\].*got"):
        head(features(), torch.ones(shape, dtype=torch.float64))


# ---------------------------------------------------------------------- operations, sizes, first values


class CountOperations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls[function.overloadpacket] += 1
        return function(*args, **(kwargs or {}))


@blocks
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("counts", [(2, 3, 3), (2, 3, 40), (1, 4, 9)], ids=str)
def test_four_convolutions_per_parent_whatever_the_number_of_leaves(block, training, counts):
    head, _ = both(ClassTree.balanced(counts), block)
    with CountOperations() as counter:
        head.train(training)(features())
    assert counter.calls[torch.ops.aten.convolution] == 4 * (1 + counts[0] + counts[1])


@blocks
def test_number_of_operations_does_not_grow_with_the_leaves(block):
    totals = []
    for leaves in (6, 60):
        head, _ = both(ClassTree.balanced((2, 3, leaves)), block)
        with CountOperations() as counter:
            head(features(), torch.ones(3, 5 + leaves, dtype=torch.float64))
        totals.append(counter.calls)
    assert totals[0] == totals[1]


@pytest.mark.parametrize(("cin", "width"), [(1024, 128), (512, 64), (7, 3)])
@pytest.mark.parametrize("stride", [1, 2])
def test_parameters_per_node_are_as_derived(cin, width, stride):
    def per_node(block):
        level = LEVELS[block]((2, 1), cin, width, stride)
        return sum(parameter.numel() for parameter in level.parameters()) / level.nodes

    with torch.device("meta"):
        assert per_node("bottleneck") == cin * width + 9 * width**2 + 4 * width**2 + 4 * cin * width + 20 * width
        assert per_node("convnext") == 2 * cin + cin * width * stride**2 + width + 8 * width**2 + 66 * width


def test_new_bottleneck_starts_as_its_shortcut():
    head = BranchTree(TREES["one level"], IN_CHANNELS, "bottleneck", (4,), (2,)).eval()
    x, level = features(dtype=torch.float32), head.levels[0]
    scale = (1 + level.eps) ** -0.5  # of BN with its first statistics, mean 0 and variance 1
    expected = [F.relu(F.conv2d(x, weight[:, :, None, None], stride=2) * scale) for weight in level.shortcut_weight]
    torch.testing.assert_close(level(x, level.families()[0], None), torch.stack(expected, dim=1))


@blocks
@pytest.mark.parametrize("stride", [1, 2])
def test_inner_width_is_what_the_last_convolution_takes_in(block, stride):
    level = LEVELS[block]((3, 1), IN_CHANNELS, 5, stride).eval()
    family = level.families()[0]
    last = family["conv3_weight" if block == "bottleneck" else "fc2_weight"]
    assert last.shape[2] == level.inner_width
