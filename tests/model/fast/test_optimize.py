"""The inference form: the logits of the network that it was made of, and of one timm block per node."""

import copy
import io
import pickle

import pytest
import torch
from helpers import kernel_paths
from helpers.naive import NaiveTree, copy_weights
from helpers.random_nets import (
    BACKBONES,
    STRIDES,
    TREE,
    WIDTHS,
    assert_near,
    blocks,
    both_gains,
    build,
    images,
    plain,
    random_gains,
    run,
    trees,
)
from torch import nn

from hlnet.errors import UsageError
from hlnet.expert.cut import cut_expert
from hlnet.model.fast.optimize import InferenceNet, optimize

both_paths, path = kernel_paths.both_paths, kernel_paths.path


@both_paths
@blocks
@pytest.mark.parametrize("trunk", BACKBONES)
def test_logits_are_the_networks(block, trunk):
    net = build(block, trunk=trunk)
    fast = optimize(net)
    assert ("runs as it is" in fast.explain()[1]) == (trunk == "not traced")
    neutral = run(net, images())
    for gains in both_gains(net, 3):
        assert_near(run(fast, images(seed=3), *gains), run(net, images(seed=3), *gains))
    for batch in (1, 2, 9, 17):
        x = images(batch, seed=batch)
        features, seen = run(net.features, x), fast.features(x)
        assert_near(run(fast, x), run(net.head, features))
        for gains in both_gains(net, batch):
            assert_near(run(fast.head, seen, *gains), run(net.head, features, *gains))
    assert neutral.std(0).min() > 1e-3  # the weights are such that images tell apart


@both_paths
@blocks
@trees
def test_logits_are_those_of_one_block_a_node(block, tree):
    net = build(block, tree)
    levels = tree.num_levels
    naive = NaiveTree(tree, net.trunk.channels, block, WIDTHS[:levels], STRIDES[:levels]).eval()
    copy_weights(net.head, naive)
    fast, features = optimize(net), run(net.trunk, images())
    for gains in both_gains(net, 3):
        assert_near(run(fast, images(), *gains), run(naive, features, *gains))


@both_paths
@blocks
def test_expert_gives_its_columns_of_the_full_network(block):
    net = build(block)
    expert = cut_expert(net, "dog,saw,lion")
    fast = optimize(expert)
    assert fast.tree == expert.tree and fast.tree.classes == ("lion", "beagle", "boxer", "saw")
    assert_near(run(fast, images()), run(net, images())[:, 2:])
    gains = random_gains(3, expert.tree.num_nodes)
    assert_near(run(fast, images(), gains), run(expert, images(), gains))
    assert_near(run(optimize(cut_expert(net, "saw")), images(1)), run(net, images(1))[:, 5:])


@both_paths
@pytest.mark.parametrize(
    ("backbone", "arguments"),
    [("test_resnet", {}), ("test_efficientnet", {}), ("test_vit", {"img_size": 64}), ("convnextv2_atto", {})],
)
def test_plain_networks(backbone, arguments):
    net = plain(backbone, **arguments)
    fast = optimize(net)
    assert not fast.has_branches
    assert run(net, images()).std(0).min() > 1e-4  # the weights are such that images tell apart
    for batch in (1, 3, 17):
        x = images(batch)
        expected = run(net, x)
        assert_near(run(fast, x), expected)
        assert torch.equal(run(fast.features, x), run(fast, x))


def test_tells_what_the_network_tells():
    for net in (build(), plain()):
        fast = optimize(net)
        assert isinstance(fast, InferenceNet)
        assert (fast.config, fast.tree, fast.transform) == (net.config, net.tree, net.transform)
        assert (fast.provenance, fast.device, fast.has_branches) == (net.provenance, net.device, net.has_branches)


@both_paths
@blocks
def test_other_image_sizes_after_the_first(block):
    net = build(block)
    fast = optimize(net)
    for size in (64, 96, (64, 130), (33, 200), 64, 32):
        for batch in (3, 1):
            x = images(batch, size)
            assert_near(run(fast, x), run(net, x))


@both_paths
@blocks
def test_features_of_a_single_pixel(block):
    net = build(block, strides=(1, 1))
    x = images(3, 16)
    assert net.trunk(x).shape[2:] == (1, 1)
    for gains in both_gains(net, 3):
        assert_near(run(optimize(net), x, *gains), run(net, x, *gains))


@both_paths
@pytest.mark.parametrize("net", [build, plain])
def test_images_may_lie_anyhow_in_memory(net):
    net = net()
    fast, x = optimize(net), images(4)
    expected = run(net, x)
    wide = torch.cat([x, x], 1)
    for same in (x, x.contiguous(memory_format=torch.channels_last), wide[:, 3:], wide[:, :3], x.mT.clone().mT):
        before = same.clone()
        assert_near(run(fast, same), expected)
        assert torch.equal(same, before)
    assert_near(run(fast, wide[::2, 3:].flip(0)), expected[[2, 0]])
    assert_near(run(fast, x.double()), expected)
    assert_near(run(fast, x[:1].expand(3, -1, -1, -1)), expected[[0, 0, 0]])


@both_paths
@blocks
def test_calls_leave_nothing_behind(block):
    fast, gains = optimize(build(block)), random_gains(3, TREE.num_nodes)
    first = run(fast, images())
    cued = run(fast, images(), gains)
    features = run(fast.features, images())
    before = features.clone()
    for _ in range(2):
        assert torch.equal(run(fast.head, features), first)
        assert torch.equal(run(fast.head, features, gains), cued)
        assert torch.equal(features, before)
    run(fast, images(9, seed=3))
    assert torch.equal(run(fast, images()), first) and torch.equal(run(fast, images(), gains), cued)
    assert torch.equal(gains, random_gains(3, TREE.num_nodes))


@both_paths
@pytest.mark.parametrize("trunk", BACKBONES)
@pytest.mark.parametrize(("dtype", "block"), [("float32", "bottleneck"), ("bfloat16", "convnext")])
def test_original_stays_as_it_was(block, trunk, dtype):
    net = build(block, trunk=trunk)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    expected = run(net, images())
    fast = optimize(net, dtype)
    run(fast, images(), random_gains(TREE.num_nodes))
    assert list(net.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert torch.equal(run(net, images()), expected)


@both_paths
@pytest.mark.parametrize("trunk", BACKBONES)
def test_runs_without_inference_mode_and_after_it(trunk):
    net = build(trunk=trunk)
    expected = run(net, images())
    for first in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        fast = optimize(net)
        with first():
            assert_near(fast(images()).detach(), expected)
        assert_near(fast(images()).detach(), expected)
        with torch.no_grad():
            assert_near(fast(images()), expected)


@pytest.mark.parametrize("make", [build, plain])
def test_network_in_training_is_put_in_evaluation_mode(make):
    net = make()
    expected = run(net, images())
    fast = optimize(net.train())
    assert not any(module.training for module in net.modules())
    assert_near(run(fast, images()), expected)


@both_paths
@pytest.mark.parametrize("trunk", BACKBONES)
@pytest.mark.parametrize("who", ["network", "inference form"])
def test_stays_in_evaluation_mode(trunk, who):
    """Whatever is said to the network that it was made of, or to itself: "it does not train"."""
    net = build(trunk=trunk)
    expected = run(net, images())
    fast = optimize(net)
    (net if who == "network" else fast).train()
    assert_near(run(fast, images()), expected)
    assert_near(run(fast, images()), expected)  # no statistics have moved
    assert_near(run(net.eval(), images()), expected)


def test_what_is_fitted_to_a_form_is_fitted_to_its_network():
    net = build()
    early, few = optimize(net), optimize(net).select("cat")
    net.provenance = net.provenance.model_copy(update={"temperature": 2.0})
    assert early.provenance is net.provenance and optimize(net).provenance.temperature == 2.0
    early.provenance.temperature = 3.0
    early.provenance = early.provenance.model_copy(update={"metrics": {"top1": 0.5}})
    assert (net.provenance.temperature, net.provenance.metrics) == (3.0, {"top1": 0.5})
    few.provenance.temperature = 4.0  # of fewer classes: another fit
    few.provenance = few.provenance.model_copy(update={"metrics": {}})
    assert (net.provenance.temperature, net.provenance.metrics) == (3.0, {"top1": 0.5})
    assert net.state_dict().keys() & early.state_dict().keys() == set() and "_fitted" not in dict(early.named_modules())


@pytest.mark.parametrize("make", [copy.deepcopy, copy.copy, pickle.dumps, lambda net: torch.save(net, io.BytesIO())])
def test_is_neither_copied_nor_saved(make):
    fast = optimize(build())
    for form in (fast, fast.select("cat"), optimize(plain())):
        with pytest.raises(UsageError, match=r"an inference form is not (saved or )?copied"):
            make(form)


def test_only_networks_are_optimised():
    net = build()
    for form in (optimize(net), optimize(net).select("cat"), optimize(plain())):
        with pytest.raises(UsageError, match=r"got InferenceNet; it is an inference form already$"):
            optimize(form)
    with pytest.raises(UsageError, match=r"takes a HierarchicalNet or a PlainNet, got Linear$"):
        optimize(nn.Linear(2, 2))
