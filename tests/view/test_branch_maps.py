"""Feature maps of branches: what a naive network of single blocks gives, at no more cost than the paths asked for."""

import hypothesis.strategies as st
import pytest
import torch
from helpers.naive import NaiveTree, copy_weights
from helpers.random_nets import STRIDES, TREE, TREES, WIDTHS, blocks, build, images
from hypothesis import given, settings

from hlnet.errors import SelectionError, UsageError
from hlnet.model.fast.optimize import optimize
from hlnet.model.plain import PlainConfig, PlainNet
from hlnet.tree.class_tree import ClassTree
from hlnet.view.branch_maps import activity, at_level, block_outputs, colours, feature_maps, node_places

GAINS = torch.rand(2, TREE.num_nodes, generator=torch.Generator().manual_seed(1)) * 3


def naive_outputs(net, gains=None):
    """Every block's output for two images, by place: one timm block per node, all of them run."""
    head, levels = net.head, net.tree.num_levels
    naive = NaiveTree(net.tree, net.trunk.channels, net.config.block, WIDTHS[:levels], STRIDES[:levels]).eval()
    copy_weights(head, naive)
    found = {}
    for depth, row in enumerate(naive.rows):
        for position, block in enumerate(row):
            block.register_forward_hook(lambda _, __, output, at=(depth, position): found.update({at: output}))
    with torch.no_grad():
        naive(net.features(images(2)), gains)
    return found


@blocks
@pytest.mark.parametrize("gains", [None, GAINS], ids=["no cue", "cues"])
def test_maps_are_those_of_the_naive_blocks(block, gains):
    net = build(block)
    expected = naive_outputs(net, gains)
    names = ["siamese", "cat", "dog/boxer", "saw", "lion"]
    found = feature_maps(net, images(2), names, gains=gains)
    assert list(found) == ["cat/siamese", "cat", "dog/boxer", "saw", "cat/lion"]
    for (path, maps), place in zip(found.items(), [(1, 1), (0, 0), (1, 4), (1, 5), (1, 2)], strict=True):
        torch.testing.assert_close(maps, expected[place], rtol=1e-4, atol=1e-5, msg=path)
    other = feature_maps(net, images(2), ["siamese"], gains=None if gains is not None else GAINS)
    assert not torch.allclose(other["cat/siamese"], found["cat/siamese"])


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_places_of_any_tree(data):
    tree = data.draw(st.sampled_from(list(TREES.values())))
    places = [(depth, row) for depth, count in enumerate(tree.counts) for row in range(count)]
    chosen = data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=6))
    net = build(tree=tree)
    expected = naive_outputs(net)
    with torch.no_grad():
        found = block_outputs(net.head, net.features(images(2)), chosen)
    assert found.keys() == set(chosen)
    for place, maps in found.items():
        torch.testing.assert_close(maps, expected[place], rtol=1e-4, atol=1e-5)


def test_only_needed_paths_run(monkeypatch):
    net = build(tree=TREES["deep"])
    ran = []

    def watch(depth, level):
        forward = level.forward
        monkeypatch.setattr(
            level,
            "forward",
            lambda x, family, gain: ran.append((depth, len(family["conv1_weight"]))) or forward(x, family, gain),
        )

    for depth, level in enumerate(net.head.levels):
        watch(depth, level)
    feature_maps(net, images(2), ["xx", "x/xx/p/c", "f"])
    assert ran == [(0, 2), (1, 1), (1, 1), (2, 1), (2, 1), (3, 1), (3, 1)]  # level and how many siblings


def test_level_is_that_of_a_node_above():
    net = build(tree=TREES["phl"])
    first = feature_maps(net, images(2), ["boxer", "saw"], level=1)
    assert list(first) == ["boxer", "saw"]  # a chain keeps its class's path
    expected = naive_outputs(net)
    torch.testing.assert_close(first["boxer"], expected[0, 4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(feature_maps(net, images(2), ["boxer"])["boxer"], expected[1, 4], rtol=1e-4, atol=1e-5)
    assert at_level(TREE, node_places(TREE, ["boxer", "cat", "beagle"]), 1) == ((0, 1), (0, 0))


@pytest.mark.parametrize(
    "nodes, level, error, said",
    [
        (["tabi"], None, SelectionError, "Did you mean 'tabby'"),
        ([], None, SelectionError, "no node was named"),
        ("tabby", None, UsageError, r"\['tabby'\]"),
        (["tabby"], 0, UsageError, "levels 1, nearest to the trunk, to 2"),
        (["tabby"], 3, UsageError, "levels 1, nearest to the trunk, to 2"),
        (["cat"], 2, UsageError, "'cat' is at level 1, above level 2"),
    ],
    ids=["unknown", "none", "text", "level 0", "level 3", "level below"],
)
def test_nodes_that_mean_nothing_are_refused(nodes, level, error, said):
    with pytest.raises(error, match=said):
        feature_maps(build(), images(2), nodes, level)


def test_networks_without_blocks_are_refused():
    with pytest.raises(UsageError, match="plain network has no branches"):
        feature_maps(PlainNet(PlainConfig(backbone="test_resnet"), TREE), images(2), ["cat"])
    with pytest.raises(UsageError, match="InferenceNet"):
        feature_maps(optimize(build()), images(2), ["cat"])
    with pytest.raises(UsageError, match=r"gains must have shape"):
        feature_maps(build(), images(2), ["cat"], gains=torch.ones(3))


def test_training_mode_leaves_no_trace():
    """Batch statistics would depend on the other images, and change with each call."""
    net = build().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    both = feature_maps(net, images(2), ["boxer"])["dog/boxer"]
    torch.testing.assert_close(feature_maps(net, images(2)[:1], ["boxer"])["dog/boxer"], both[:1], rtol=1e-4, atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_activity_is_the_mean_magnitude():
    maps = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    by_hand = [[[sum(abs(float(x)) for x in maps[b, :, i, j]) / 5 for j in range(4)] for i in range(3)] for b in (0, 1)]
    torch.testing.assert_close(activity(maps), torch.tensor(by_hand))
    positive = maps.relu()
    torch.testing.assert_close(activity(positive), positive.mean(1))


def test_colours_are_the_channels_that_vary_most():
    maps = torch.zeros(2, 5, 1, 2)
    maps[:, 4] = torch.tensor([[[0.0, 8.0]], [[4.0, 2.0]]])  # red
    maps[:, 1] = torch.tensor([[[3.0, 3.0]], [[1.0, 1.0]]])  # green
    maps[:, 2] = 7.0  # does not vary
    maps[0, 0, 0, 0] = -1.0  # blue
    expected = [[[[0, 1, 0], [1, 1, 1]]], [[[0.5, 0, 1], [0.25, 0, 1]]]]
    torch.testing.assert_close(colours(maps), torch.tensor(expected))


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_colours_of_few_or_constant_channels_are_black(channels):
    found = colours(torch.full((2, channels, 3, 3), 5.0))
    assert found.shape == (2, 3, 3, 3) and not found.any()


def test_tree_of_one_node():
    net = build(tree=ClassTree.parallel(["only"], levels=3))
    assert list(feature_maps(net, images(2), ["only"])) == ["only"]
    assert at_level(net.tree, [(2, 0)], 2) == ((1, 0),)
