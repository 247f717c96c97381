"""Small networks put together for the tests of fusing, and the check that a fused one computes the same.

Fusing checks its result and falls back on the model as it is. Here it must not: what it puts together must be right. So
these networks vanish at zero and are fused on a black image, where they show nothing.
"""

import torch
from torch import nn

from helpers.random_nets import run
from hlnet.model.fast.fuse import fuse
from hlnet.model.fast.kernels import Conv, Linear


def images(batch=2, size=32, seed=1, channels=3):
    size = size if isinstance(size, tuple) else (size, size)
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed))


def assert_near(found, expected, tolerance=1e-5):
    assert found.shape == expected.shape and expected.any()
    error, scale = float((found - expected).abs().max()), float(expected.abs().max())
    assert error <= tolerance * scale


def kept(state):
    return {name: tensor.clone() for name, tensor in state.items()}


def parts(model, *kinds):
    return [module for module in model.modules() if isinstance(module, kinds)]


class Net(nn.Module):
    """Parts by name, and what to do with them."""

    def __init__(self, forward, **named):
        super().__init__()
        for name, part in named.items():
            self.add_module(name, part)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def conv(kernel=3, channels=4, **settings):
    return nn.Conv2d(channels, channels, kernel, padding=settings.pop("padding", kernel // 2), bias=False, **settings)


def norm(channels=4, kind=nn.BatchNorm2d, **settings):
    """A batch norm that keeps zeros."""
    made = kind(channels, **settings)
    with torch.no_grad():
        made.running_var.uniform_(0.5, 1.5)
        made.weight.uniform_(0.5, 1.5)
    return made


def check(net, channels=4, probe=None):
    """Fuse, compare, return the fused one."""
    torch.manual_seed(0)
    net.eval()
    x = images(2, 6, channels=channels)
    expected, state, before = run(net, x), kept(net.state_dict()), x.clone()
    found = fuse(net, torch.zeros(1, channels, 6, 6) if probe is None else probe)
    assert found is not net
    for _ in range(2):
        assert_near(run(found, x), expected)
    assert torch.equal(x, before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert torch.equal(run(net, x), expected)
    return found


def activations(model):
    return sorted(part.activation for part in parts(model, Conv, Linear))
