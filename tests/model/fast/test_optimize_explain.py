"""What an inference form says of itself, against counts of the network's parts."""

import copy
import math
import re

import pytest
import torch
from helpers.random_nets import TREES, WIDTHS, blocks, build, images, plain, run
from torch import nn

import hlnet.model.fast.walk
from hlnet.model.fast.kernels import packs
from hlnet.model.fast.optimize import optimize
from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig

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
    monkeypatch.setattr(hlnet.model.fast.walk, "CACHE", 100_000)
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
