"""The types in which an inference form computes, and those of the networks that it is made of."""

import copy

import pytest
import torch
from helpers import kernel_paths
from helpers.random_nets import assert_near, blocks, both_gains, build, images, plain, run
from torch import nn

from hlnet.errors import UsageError
from hlnet.model.fast.optimize import optimize

both_paths, path = kernel_paths.both_paths, kernel_paths.path


@both_paths
@blocks
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_network_of_another_type(block, dtype):
    net = build(block).to(dtype)
    with torch.inference_mode():
        expected = copy.deepcopy(net).double()(images().double())
    assert_near(run(optimize(net), images()), expected, 1e-5 if dtype is torch.float64 else 0.05)
    assert {tensor.dtype for tensor in net.parameters()} == {dtype}


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
