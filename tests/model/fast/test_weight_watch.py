"""Weights that change behind an inference form: every way to change them is seen, and nothing else is."""

import copy

import pytest
import torch
from helpers import kernel_paths
from helpers.random_nets import assert_near, build, images, plain, run
from torch import nn

from hlnet.errors import UsageError
from hlnet.model.fast.optimize import optimize

both_paths, path = kernel_paths.both_paths, kernel_paths.path

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
