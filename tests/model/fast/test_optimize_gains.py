"""Gains of an inference form: of the classes below their node alone, and taken and refused as by the network."""

import pytest
import torch
from helpers import kernel_paths
from helpers.random_nets import TREE, TREES, assert_near, blocks, build, images, plain, random_gains, run

from hlnet.errors import UsageError
from hlnet.model.fast.optimize import optimize

both_paths, path = kernel_paths.both_paths, kernel_paths.path


@both_paths
@blocks
def test_gain_of_a_node_changes_only_the_classes_below_it(block):
    fast = optimize(build(block, TREES["deep"]))
    tree, neutral = fast.tree, run(fast, images())
    assert_near(run(fast, images(), torch.ones(tree.num_nodes)), neutral)
    for depth, row in enumerate(tree.levels):
        for position, node in enumerate(row):
            gains = torch.ones(3, tree.num_nodes)
            gains[1, tree.offsets[depth] + position] = 2
            changed = (run(fast, images(), gains) - neutral).abs() > 1e-5
            below = torch.tensor(
                [leaf.path == node.path or leaf.path.startswith(f"{node.path}/") for leaf in tree.leaves]
            )
            assert torch.equal(changed[1], below) and not changed[[0, 2]].any()


def test_wrong_gains_are_refused_as_by_the_network():
    net = build()
    fast, nodes = optimize(net), TREE.num_nodes
    for shape in [(nodes - 1,), (3, nodes + 1), (nodes, 3), (2, nodes), (nodes, 1), (1, 3, nodes), (), (0, nodes)]:
        messages = []
        for form in (net, fast):
            with pytest.raises(UsageError, match=r"gains must have shape \[9\] or \[3, 9\] .*, got \[.*\]$") as error:
                run(form, images(3), torch.ones(shape))
            messages.append(str(error.value))
        assert messages[0] == messages[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plain_network_refuses_gains(dtype):
    with pytest.raises(UsageError, match=r"a plain network has no branches to cue; leave the gains out"):
        run(optimize(plain(), dtype), images(), torch.ones(TREE.num_nodes))


@blocks
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bfloat16])
def test_gains_may_have_another_type(block, dtype):
    net = build(block)
    gains = torch.arange(3 * TREE.num_nodes).view(3, -1) % 3
    assert_near(run(optimize(net), images(), gains.to(dtype)), run(net, images(), gains.float()))


@blocks
def test_gains_may_lie_anyhow_in_memory(block):
    net, gains = build(block), random_gains(3, TREE.num_nodes)
    fast, expected = optimize(net), run(net, images(), gains)
    for same in (gains.t().contiguous().t(), torch.cat([gains, gains], 1)[:, : TREE.num_nodes]):
        assert_near(run(fast, images(), same), expected)
