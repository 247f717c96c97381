"""The inference form: the logits of the network that it was made of, and of one timm block per node."""

import copy
import io
import math
import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from naive import NaiveTree, copy_weights, randomise
from PIL import Image
from torch import nn
from trees import SHAPES

import hlnet.fast_tree
import hlnet.kernels
from hlnet.data import LabelledImages, TreeData, eval_transform, loader
from hlnet.errors import SelectionError, UsageError
from hlnet.evaluation import evaluate, logits_of
from hlnet.expert import cut_expert
from hlnet.fast_branches import BottleneckChunk, ConvNeXtChunk, LeafChunk, UnpackedChunk
from hlnet.fast_tree import FastTree
from hlnet.inference import InferenceNet, optimize
from hlnet.kernels import packs
from hlnet.network import BranchTree, HierarchicalNet, NetworkConfig
from hlnet.plain import PlainConfig, PlainNet
from hlnet.prediction import predict
from hlnet.selection import select_classes
from hlnet.tree import ClassTree
from hlnet.trunk import InputTransform

TREE = ClassTree.from_nested({"cat": ["tabby", "siamese", "lion"], "dog": ["beagle", "boxer"], "saw": None})
TREES = {
    "uneven": TREE,
    "phl": TREE.parallelized(levels=2),
    "deep": ClassTree.from_nested({"x": {"xx": {"p": ["a", "b", "c"]}, "xy": ["d"]}, "y": ["e", "f"], "g": None}),
    "one level": ClassTree.from_nested(["a", "b", "c"]),
    "one class": ClassTree.parallel(["only"], levels=3),
    "many children": ClassTree.from_nested({"x": [f"x{i}" for i in range(67)], "y": ["only"]}),
}
WIDTHS, STRIDES = (8, 6, 5, 4), (1, 2, 1, 1)
BACKBONES = {
    "CNN": ("test_resnet", {}, 64),
    "pre-activation": ("resnetv2_18", {"channels": (16, 16, 32, 32), "stem_chs": 16}, 64),
    "same padding": ("mobilenetv2_050", {"pad_type": "same"}, 64),
    "layer norms": ("test_convnext", {}, 64),
    "ViT": ("vit_tiny_patch16_224", {"img_size": 64, "depth": 4, "embed_dim": 48}, 64),
    "not traced": ("test_vit", {"img_size": 64}, 64),
}

blocks = pytest.mark.parametrize("block", ["bottleneck", "convnext"])
trees = pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
both_paths = pytest.mark.usefixtures("path")


@pytest.fixture(params=["packed", "portable"])
def path(request, monkeypatch):
    """Both ways to run; the packed one where this machine has it."""
    if request.param == "portable":
        monkeypatch.setattr(hlnet.kernels, "packs", lambda device, dtype: False)
    elif not packs("cpu", torch.float32):
        pytest.skip("torch lacks oneDNN's operators here")
    return request.param


@torch.no_grad()
def random_norms(model):
    """Norms of a trunk as training leaves them."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.dim() <= 1 and tensor.is_floating_point():
            tensor.normal_(1.0 if name.endswith("weight") else 0.0, 0.2, generator=generator)


def build(block="bottleneck", tree=TREE, trunk="CNN", **settings):
    """A network with random weights, in evaluation mode; its logits are of order 1."""
    backbone, arguments, size = BACKBONES[trunk]
    levels = {"widths": WIDTHS[: tree.num_levels], "strides": STRIDES[: tree.num_levels]}
    torch.manual_seed(0)
    config = NetworkConfig(backbone=backbone, backbone_args=arguments, block=block, **levels | settings)
    net = HierarchicalNet(config, tree).eval()
    random_norms(net.trunk)
    randomise(net.head)
    net.transform = InputTransform(input_size=(3, size, size))
    return of_order_one(net)


def of_order_one(net):
    """Scale the last step so that the largest logit is about 1."""
    with torch.no_grad():
        scale = net(images(2)).abs().max()
        net.head.leaves.weight /= scale
        net.head.leaves.bias /= scale
    return net


def plain(backbone="test_resnet", tree=TREE, **arguments):
    torch.manual_seed(0)
    net = PlainNet(PlainConfig(backbone=backbone, backbone_args=arguments), tree).eval()
    random_norms(net.model)
    net.transform = InputTransform(input_size=(3, 64, 64))
    return net


def images(batch=3, size=64, seed=0):
    size = size if isinstance(size, tuple) else (size, size)
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def random_gains(*shape):
    return 0.5 + torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def run(net, *arguments):
    with torch.inference_mode():
        return net(*arguments).clone()


def assert_near(found, expected, tolerance=1e-5):
    """Near in logits of order 1; where they are larger, in relation to the largest."""
    assert found.dtype == torch.float32 and found.shape == expected.shape
    error, scale = float((found.double() - expected).abs().max()), max(1.0, float(expected.abs().max()))
    assert error <= tolerance * scale


def both_gains(net, batch):
    """No gains, for each image, for the whole batch."""
    nodes = net.tree.num_nodes
    return [(), (random_gains(batch, nodes),), (random_gains(nodes),)]


# ---------------------------------------------------------------------- whole networks


@both_paths
@blocks
@pytest.mark.parametrize("trunk", BACKBONES)
def test_logits_are_the_networks(block, trunk):
    net = build(block, trunk=trunk)
    fast = optimize(net)
    assert ("runs as it is" in fast.explain()[1]) == (trunk == "not traced")
    neutral = run(net, images())
    for batch in (3, 1, 2, 9, 17):
        for gains in both_gains(net, batch):
            x = images(batch, seed=batch)
            expected = run(net, x, *gains)
            assert_near(run(fast, x, *gains), expected)
            assert_near(run(fast.head, fast.features(x), *gains), expected)
    assert neutral.std(0).min() > 1e-3  # the weights are such that images tell apart
    assert_near(run(fast, images()), neutral)


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


@both_paths
@blocks
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_network_of_another_type(block, dtype):
    net = build(block).to(dtype)
    with torch.inference_mode():
        expected = copy.deepcopy(net).double()(images().double())
    assert_near(run(optimize(net), images()), expected, 1e-5 if dtype is torch.float64 else 0.05)
    assert {tensor.dtype for tensor in net.parameters()} == {dtype}


# ---------------------------------------------------------------------- the weights as they were


CHANGED = r"^the network's weights have changed since optimize\(\); call it again$"


def kinds(net, trunk):
    """A tensor of each kind: of the branches, of a convolution or linear map and of a norm of the trunk."""
    found = {"head": net.head.levels[0]._parameters, "leaves": net.head.leaves._parameters}
    for part in net.trunk.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            found["trunk"] = part._parameters
        elif isinstance(part, nn.LayerNorm | nn.BatchNorm2d):
            found["norm"] = part._parameters
    assert len(found) == 4
    return {kind: next(tensor for name, tensor in own.items() if "weight" in name) for kind, own in found.items()}


@both_paths
@pytest.mark.parametrize("kind", ["head", "leaves", "trunk", "norm"])
@pytest.mark.parametrize(
    ("block", "trunk"), [("bottleneck", "CNN"), ("convnext", "layer norms"), ("bottleneck", "ViT")]
)
def test_changed_weights_are_refused(block, trunk, kind):
    net = build(block, trunk=trunk)
    fast, unused = optimize(net), optimize(net)
    some = fast.select("cat")
    run(fast, images(1)), run(some, images(1))
    with torch.no_grad():
        kinds(net, trunk)[kind].mul_(1.5)
    for refused in (
        lambda: run(fast, images(1)),
        lambda: run(fast, images(3)),
        lambda: run(unused, images(3)),
        lambda: run(some, images(1)),
        lambda: fast.select("dog"),
    ):
        with pytest.raises(UsageError, match=CHANGED):
            refused()
    part = (lambda: fast.features(images(1))) if kind in {"trunk", "norm"} else lambda: fast.head(net.trunk(images(1)))
    with pytest.raises(UsageError, match=CHANGED):
        part()
    assert_near(run(optimize(net), images()), run(net, images()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("make", [build, plain])
@pytest.mark.parametrize(
    "change",
    [
        lambda net: step(net, torch.optim.SGD(net.parameters(), 0.1)),
        lambda net: step(net, torch.optim.AdamW(net.parameters(), 0.1, foreach=True)),
        lambda net: net.load_state_dict(net.state_dict()),
        lambda net: net.load_state_dict(copy.deepcopy(net.state_dict()), assign=True),
        lambda net: net.train()(images(3)),
        lambda net: net.double(),
        lambda net: next(iter(net.state_dict().values())).zero_(),
        lambda net: setattr(next(net.parameters()), "data", next(net.parameters()) * 2),
    ],
    ids=["step", "many steps at once", "loaded", "assigned", "statistics", "type", "state", "data"],
)
def test_every_way_to_change_weights_is_seen(make, change, dtype):
    net = make()
    fast = optimize(net, dtype)
    run(fast, images())
    change(net)
    with pytest.raises(UsageError, match=CHANGED):
        run(fast, images())


def step(net, optimizer):
    net(images()).square().sum().backward()
    optimizer.step()


@both_paths
def test_gradients_and_modes_are_no_changes():
    net = build()
    fast, expected = optimize(net), run(net, images())
    net.requires_grad_(False)
    net.requires_grad_()
    net.train().eval()
    net(images()).sum().backward()
    net.to("cpu", torch.float32)
    assert_near(run(fast, images()), expected)


def test_network_that_was_made_in_inference_mode():
    """Its tensors count no changes."""
    with torch.inference_mode():
        net = build()
    assert_near(run(optimize(net), images()), run(net, images()))


def test_stays_where_and_as_it_was_made():
    net = build()
    fast, expected = optimize(net), run(net, images())
    for move in (
        lambda: fast.to("meta"),
        lambda: fast.bfloat16(),
        lambda: fast.double(),
        lambda: fast.half(),
        lambda: nn.Sequential(fast).to(torch.float64),
        lambda: fast.select("cat").double(),
    ):
        with pytest.raises(UsageError, match=r"stays where and as it was made; optimise the network again on device"):
            move()
    with pytest.raises(UsageError, match=r"on device 'meta' and type 'float32'$"):
        fast.to("meta")
    for same in (fast.to("cpu"), fast.float(), fast.to(torch.float32), fast.eval(), fast.cpu()):
        assert same is fast
    half = optimize(net, "bfloat16")
    assert half.bfloat16() is half
    with pytest.raises(UsageError, match="stays"):
        half.float()
    assert_near(run(fast, images()), expected)


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


# ---------------------------------------------------------------------- bfloat16


@both_paths
@blocks
@pytest.mark.parametrize("trunk", ["CNN", "layer norms", "ViT"])
def test_bfloat16_comes_near(block, trunk):
    net = build(block, trunk=trunk, widths=(16, 16))
    fast = optimize(net, "bfloat16")
    assert fast.features(images()).dtype == torch.bfloat16
    for batch in (1, 3, 9):
        for gains in both_gains(net, batch):
            x = images(batch)
            found, expected = run(fast, x, *gains), run(net, x, *gains)
            assert_near(found, expected, 0.05)
            assert (found - expected).abs().max() > 1e-5  # it is not float32


def test_plain_network_in_bfloat16_comes_near():
    net = plain()
    assert_near(run(optimize(net, torch.bfloat16), images()), run(net, images()), 0.05)


def test_type_by_name_or_as_it_is():
    net = build()
    for given_dtype, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        by_name, by_type = optimize(net, given_dtype), optimize(net, dtype)
        assert by_name.dtype == by_type.dtype == dtype
        assert torch.equal(run(by_name, images()), run(by_type, images()))
    assert optimize(net).dtype == torch.float32


@pytest.mark.parametrize("dtype", ["float16", "bf16", "", torch.float16, torch.float64, torch.int8, None, 32])
def test_other_types_are_refused(dtype):
    with pytest.raises(UsageError, match=r"is not one of float32, bfloat16$"):
        optimize(build(), dtype)


# ---------------------------------------------------------------------- gains


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


# ---------------------------------------------------------------------- chunks


@blocks
@pytest.mark.parametrize("tree", [TREES["deep"], TREES["one class"], TREES["many children"]])
def test_size_of_the_cache_and_of_the_batch_does_not_matter(monkeypatch, block, tree):
    net = build(block, tree)
    expected = {count: [run(net, images(count), *gains) for gains in both_gains(net, count)] for count in (1, 3, 7)}
    for cache, batch in [(1, 8), (1, 1), (40_000, 2), (2**30, 3)]:
        monkeypatch.setattr(hlnet.fast_tree, "CACHE", cache)
        monkeypatch.setattr(hlnet.fast_tree, "BATCH", batch)
        fast = optimize(net)
        for count, logits in expected.items():
            for gains, same in zip(both_gains(net, count), logits, strict=True):
                assert_near(run(fast, images(count), *gains), same)


@pytest.fixture
def packed(monkeypatch):
    """The rows and batches that chunks are packed for, as they are made."""
    made = []
    for kind, block in (("bottleneck", BottleneckChunk), ("convnext", ConvNeXtChunk)):
        original = block.__init__

        def watched(self, level, start, end, size, batch, dtype, kind=kind, original=original):
            made.append((kind, start, end, size, batch, dtype))
            original(self, level, start, end, size, batch, dtype)

        monkeypatch.setattr(block, "__init__", watched)
    return made


@blocks
def test_chunks_fit_the_cache(monkeypatch, packed, block):
    """67 children at 4x4 pixels, 8 images, 4 bytes a number; a bottleneck is at most as wide as its width, ConvNeXt's
    block four times."""
    net = build(block, TREES["many children"], strides=(1, 1))
    assert net.trunk(images(1)).shape[2:] == (4, 4)
    widest = {"bottleneck": 6, "convnext": 24}[block]
    monkeypatch.setattr(hlnet.fast_tree, "CACHE", 20 * (8 * 4 * 4 * widest * 4) + 5)  # twenty and a bit
    fast = optimize(net)
    run(fast, images(3))
    first, *rest = [(start, end) for _, start, end, *_ in packed]
    assert first == (0, 2) and rest == [(0, 20), (20, 40), (40, 60), (60, 67), (67, 68)]
    assert {kind for kind, *_ in packed} == {block} and {batch for *_, batch, _ in packed} == {8}
    packed.clear()
    run(fast, images(17))
    assert not packed  # large batches run in parts of the kind that is there
    run(fast, images(1))
    assert [(start, end) for _, start, end, *_ in packed] == [(0, 2), (0, 67), (67, 68)]
    packed.clear()
    run(fast, images(2)), run(fast, images(1))
    assert not packed
    run(fast, images(3, (64, 96))), run(fast, images(1, (64, 96)))
    assert not packed  # other sizes run with what is there
    fast = optimize(net)
    run(fast, images(3, (64, 96)))
    assert {size for *_, size, _, _ in packed} == {(4, 6)}
    assert [end - start for _, start, end, *_ in packed] == [2, *[13] * 5, 2, 1]  # 20 * 4 / 6 is 13


@blocks
def test_packed_at_most_twice_whatever_the_sizes(packed, block):
    net = build(block)
    fast = optimize(net)
    for height in (48, 64, 80):
        for width in (48, 64, 96, 130):
            for batch in (1, 3):
                x = images(batch, (height, width))
                assert_near(run(fast, x), run(net, x))
    assert len(packed) == 2 * 4  # for each kind of batch, one of the first level and three of the last


@blocks
@pytest.mark.parametrize("batch", [1, 17])
def test_other_devices_get_whole_families_and_batches(monkeypatch, block, batch):
    """Not for their numbers, which this device does not have."""
    monkeypatch.setattr(hlnet.fast_tree, "CACHE", 1)
    head = BranchTree(TREES["many children"], 8, block, (8, 8), (1, 1)).eval()
    runs = []
    for device in ("cpu", "meta"):
        fast = FastTree(head.to(device), torch.float32)
        x = torch.zeros(batch, 8, 4, 4, device=device)
        with monkeypatch.context() as patched:
            seen = []
            kind = LeafChunk.forward
            patched.setattr(LeafChunk, "forward", lambda self, y, kind=kind, seen=seen: seen.append(y) or kind(self, y))
            assert fast(x).shape == (batch, 68)
        runs.append([(len(y), y.shape[1] // head.leaves.weight.shape[1]) for y in seen])
        fast(torch.zeros(3, 8, 4, 4, device=device))
    assert {children for _, children in runs[0]} == {1} and max(images for images, _ in runs[0]) <= 8
    assert runs[1] == [(batch, 67), (batch, 1)]
    assert [line.split(":")[0] for line in fast.explain()] == ["level 1, any batch", "level 2, any batch"]


# ---------------------------------------------------------------------- any branches


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


# ---------------------------------------------------------------------- what explain() says


ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU)


def counted(trunk):
    """How often convolutions and linear maps run, and activations."""
    trunk, counts = copy.deepcopy(trunk), {"convs": 0, "activations": 0}

    def count(module, *_):
        counts["activations" if isinstance(module, ACTIVATIONS) else "convs"] += 1

    for module in trunk.modules():
        if type(module) in (nn.Conv2d, nn.Linear, *ACTIVATIONS):
            module.register_forward_hook(count)
    run(trunk, images(1))
    return counts


@pytest.mark.parametrize("trunk", ["test_resnet", "resnet18", "test_vit3", "plain"])
def test_line_on_the_trunk_tells_its_parts(trunk):
    """In these models every norm follows a convolution; an activation is done along with one, or left as a module."""
    net, name = plain(), "plain network"
    if trunk != "plain":
        arguments = {"img_size": 64} if trunk == "test_vit3" else {}
        config = NetworkConfig(backbone=trunk, widths=(4,), strides=(1,), backbone_args=arguments)
        net, name = HierarchicalNet(config, TREES["one level"]).eval(), "trunk"
    counts = counted(net.model if trunk == "plain" else net.trunk)
    assert counts["convs"] > 8 and counts["activations"] > 3
    fast = optimize(net)
    along = counts["activations"] - sum(isinstance(module, ACTIVATIONS) for module in fast.trunk.modules())
    packed = counts["convs"] if packs("cpu", torch.float32) else 0
    assert fast.explain() == [
        "computes in float32",
        f"{name}: {counts['convs']} convolutions and linear maps, {packed} with weights packed for oneDNN, "
        f"{along} with their activation; 0 batch norms left",
    ]


def test_norms_that_are_left_are_told():
    """Every block of a pre-activation network starts with a norm, of which all but the first follow a sum."""
    net = build(trunk="pre-activation")
    blocks = sum(len(stage.blocks) for stage in net.trunk.model.stages)
    assert optimize(net).explain()[1].endswith(f"; {blocks} batch norms left")


def test_norms_that_bring_an_activation_along_are_not_left():
    """MobileNetV2 puts a norm behind every convolution; some of these pad by themselves and stay as they are."""
    net = build(trunk="same padding")
    counts = counted(net.trunk)
    (line,) = [line for line in optimize(net).explain() if line.startswith("trunk")]
    assert line.startswith(f"trunk: {counts['convs']} convolutions") and line.endswith("; 0 batch norms left")


def test_line_on_a_trunk_that_is_not_traced():
    fast = optimize(build(trunk="not traced"), "bfloat16")
    first, line = fast.explain()
    assert first == "computes in bfloat16"
    assert re.fullmatch(r"trunk: runs as it is, since \w+Error: .+", line)


def test_line_on_a_plain_network_whose_trace_gives_other_outputs(monkeypatch):
    net = plain()
    calls = iter(range(1, 99))
    original = type(net.model).forward
    monkeypatch.setattr(type(net.model), "forward", lambda self, x: original(self, x) * next(calls))
    assert re.fullmatch(
        r"plain network: runs as it is, since its trace gave other outputs: max difference \d\S+, largest output \d\S+",
        optimize(net).explain()[1],
    )


def test_line_on_a_trunk_that_is_traced_and_has_nothing_to_fuse():
    net = plain()
    net.model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(3))
    assert optimize(net).explain()[1].startswith("plain network: 0 convolutions and linear maps")


@blocks
def test_lines_on_the_levels_tell_their_chunks(monkeypatch, block):
    tree = TREES["many children"]
    net = build(block, tree, strides=(1, 2))
    monkeypatch.setattr(hlnet.fast_tree, "CACHE", 100_000)
    fast = optimize(net)
    assert len(fast.explain()) == 2  # no batch yet
    pixels, width = 4 * 4, {"bottleneck": 1, "convnext": 4}[block]
    expected = []
    for images_together, words in ((8, "batches of up to 8"), (1, "one or two images")):
        for level, families in ((1, [2]), (2, [67, 1])):
            fits = 100_000 // (images_together * pixels * width * WIDTHS[level - 1] * 4)
            chunks = sum(math.ceil(children / fits) for children in families)
            expected.append(
                f"level {level}, {words}: {sum(families)} nodes of {len(families)} parents in {chunks} chunks "
                f"of at most {min(fits, max(families))}"
            )
    run(fast, images(9))
    run(fast, images(3))
    assert fast.explain()[2:] == expected[:2]
    run(fast, images(1))
    run(fast, images(2))
    assert fast.explain()[2:] == expected
    assert int(expected[1].split(" chunks")[0].split()[-1]) > 2  # there is something to tell


# ---------------------------------------------------------------------- leaves


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


# ---------------------------------------------------------------------- evaluation and prediction


def noise(net, count=30):
    """Random images of the tree's classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), np.uint8)
    labels = tuple(i * 5 % len(net.tree.classes) for i in range(count))
    found = LabelledImages("noise", net.tree.classes, labels, lambda i: Image.fromarray(pixels[i]))
    return TreeData(found, net.tree, eval_transform(net.transform), False)


@pytest.mark.parametrize("signal", [None, 3.0])
@pytest.mark.parametrize("kind", ["bottleneck", "convnext", "expert", "plain"])
def test_evaluation_is_the_same(kind, signal):
    net = plain() if kind == "plain" else cut_expert(build(), "cat,saw") if kind == "expert" else build(kind)
    fast, data = optimize(net), noise(net)
    if kind == "plain" and signal:
        with pytest.raises(UsageError, match="no branches to cue"):
            evaluate(fast, data, loader(data, 7), attention_signal=signal)
        return
    for classes in (None, "cat"):
        expected = evaluate(net, data, loader(data, 7), classes, signal)
        assert evaluate(fast, data, loader(data, 7), classes, signal) == expected
    runs = [logits_of(form, loader(data, 4), [None, signal])[0] for form in (fast, net)]
    for found, expected in zip(*runs, strict=True):
        assert_near(found, expected)
    if signal:
        assert not torch.allclose(*runs[0], atol=1e-3)


@pytest.mark.parametrize("kind", ["bottleneck", "expert", "plain"])
def test_predictions_are_the_same(tmp_path, kind):
    net = plain() if kind == "plain" else cut_expert(build(), "cat,saw") if kind == "expert" else build(kind)
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for i, path in enumerate(paths):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (70, 90, 3), np.uint8)).save(path)
    paths[2].write_text("no image")
    expected, found = (list(predict(form, paths, top=3, batch_size=4)) for form in (net, optimize(net)))
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.image, ours.error) == (theirs.image, theirs.error)
        assert [label.path for label in ours.labels] == [label.path for label in theirs.labels]
        shares = [label.probability for label in theirs.labels]
        assert [label.probability for label in ours.labels] == pytest.approx(shares, abs=1e-5)


# ---------------------------------------------------------------------- classes chosen at run time


@both_paths
@blocks
@pytest.mark.parametrize("classes", ["dog,saw,lion", "tabby,lion,boxer", "cat", "*"])
def test_selection_gives_the_experts_logits(block, classes):
    net = build(block)
    full, expert = optimize(net), cut_expert(net, classes)
    before, some = run(full, images()), full.select(classes)
    assert some.tree == expert.tree and full.tree == net.tree
    assert some.explain()[:2] == full.explain()[:2]
    for gains in both_gains(expert, 3):
        assert_near(run(some, images(), *gains), run(expert, images(), *gains))
    assert torch.equal(run(full, images()), before)
    with pytest.raises(UsageError, match="gains must have shape"):
        run(some, images(), torch.ones(expert.tree.num_nodes + 1))


MANY = ClassTree.from_nested(
    {"x": {"xx": [f"a{i}" for i in range(9)], "xy": ["b"]}, "y": {"yy": [f"c{i}" for i in range(13)]}, "z": ["d"]}
)
#: Of "b,c3", the first level runs on views and what follows is packed, then the other way round.
WIDE = ClassTree.from_nested(
    {
        name: {f"{name}{i}": [f"{name}{i}{j}" for j in "xy"] for i in range(1 if name == "b" else 9)}
        for name in "abcdefghi"
    }
)
SELECTIONS = {
    "one": "a4",
    "one of each": "a4,c5",
    "few": "a0,a1,c12",
    "a run and another": "a1,a2,a3,a7,a8,c0,c1,c2",
    "some of many": "c3,c4,c5,c9,d,b",
    "every other": [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22],
    "all": "*",
    "all but one": [i for i in range(24) if i != 11],
}


@both_paths
@blocks
@pytest.mark.parametrize("cache", [1, 3000, 2**20])
def test_selection_whatever_is_packed(monkeypatch, block, cache):
    """In chunks of one, of some and of whole families; of which parts, or all, or nothing run packed."""
    monkeypatch.setattr(hlnet.fast_tree, "CACHE", cache)
    net = build(block, MANY)
    fast, blocks = optimize(net), set()
    for classes in SELECTIONS.values():
        expert, some = cut_expert(net, classes), fast.select(classes)
        for batch in (1, 3, 9):
            for gains in both_gains(expert, batch):
                assert_near(run(some, images(batch), *gains), run(expert, images(batch), *gains))
        for size in (1, 8):
            plan = some.head.plan((4, 4), size)
            kinds = [type(part.siblings.block) for level in plan for parts in level.values() for part in parts]
            blocks |= set(kinds)
        assert some.tree == expert.tree
    assert len(blocks) == (1 if cache == 1 else 2)
    assert_near(run(fast, images()), run(net, images()))


@blocks
def test_chunk_of_which_a_quarter_is_selected_runs_whole_and_packed(packed, block):
    net = build(block, TREES["many children"])
    fast = optimize(net)
    few, enough = fast.select(list(range(0, 32, 2))), fast.select(list(range(0, 34, 2)))  # 16 and 17 of 67
    for _ in range(2):
        run(few, images(1))
        assert [(start, end) for _, start, end, *_ in packed] == [(0, 2)]
    run(enough, images(1))
    assert [(start, end) for _, start, end, *_ in packed] == [(0, 2), (0, 67)]
    run(fast, images(1)), run(fast.select("x"), images(1))
    assert [(start, end) for _, start, end, *_ in packed] == [(0, 2), (0, 67), (67, 68)]  # each but once
    parts = few.head.plan((4, 4), 1)[1][0]
    assert {type(part.siblings.block) for part in parts} == {UnpackedChunk} and len(parts) == 16


def test_views_copy_no_weight():
    net = build(tree=TREES["many children"])
    some = optimize(net).select("x3")
    (part,) = some.head.plan((4, 4), 1)[1][0]
    family = part.siblings.block._family
    for name, tensor in net.head.levels[1].state_dict().items():
        assert family[name].untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()


def test_selecting_makes_no_tree():
    some = optimize(build()).select("cat,dog")
    run(some, images()), run(some, images(), random_gains(7))
    with pytest.raises(UsageError, match=r"gains must have shape \[7\]"):
        run(some, images(), random_gains(9))
    assert "tree" not in vars(some.head)
    assert some.tree.num_nodes == 7


@both_paths
@blocks
@pytest.mark.parametrize(("tree", "classes"), [(TREE, "cat"), (MANY, "a4,c5"), (MANY, "*"), (WIDE, "b,c3")])
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16, torch.float64])
def test_selection_in_bfloat16_comes_near(block, tree, classes, source):
    net = build(block, tree, widths=(16, 16, 16)[: tree.num_levels]).to(source)
    some = optimize(net, "bfloat16").select(classes)
    expert = cut_expert(copy.deepcopy(net).float(), classes)
    for gains in both_gains(expert, 3):
        assert_near(run(some, images(), *gains), run(expert, images(), *gains), 0.05)


@blocks
@pytest.mark.parametrize(("tree", "classes"), [(TREE, "cat"), (MANY, "a4,c5"), (MANY, "*"), (WIDE, "b,c3")])
@pytest.mark.parametrize("source", [torch.float64, torch.bfloat16])
def test_selection_of_a_network_of_another_type(block, tree, classes, source):
    net = build(block, tree).to(source)
    expected = run(copy.deepcopy(net).double(), images().double())
    columns = list(select_classes(tree, classes))
    assert_near(run(optimize(net).select(classes), images()), expected[:, columns])


@blocks
def test_selection_stays_in_evaluation_mode(block):
    net = build(block)
    some, expected = optimize(net).select("cat"), run(net, images())
    net.train()
    assert_near(run(some, images()), expected[:, :3])
    assert torch.equal(run(net.eval(), images()), expected)


@blocks
def test_selection_needs_no_inference_mode(block):
    net = build(block)
    assert_near(optimize(net).select("cat")(images()), run(net, images())[:, :3])


def test_selection_that_cannot_be_made_is_refused():
    fast = optimize(build())
    with pytest.raises(SelectionError, match="wolf"):
        fast.select("wolf")
    for form in (fast.select("cat"), optimize(plain())):
        with pytest.raises(UsageError, match="selected from an optimised full network"):
            form.select("cat")
