"""What fusing puts together: convolutions with the norms, activations and sums behind them."""

import pytest
import torch
import torch.nn.functional as F
from helpers import kernel_paths
from helpers.crafted_nets import Net, activations, check, conv, images, norm, parts
from helpers.random_nets import random_norms, run
from hypothesis import example, given, settings
from hypothesis import strategies as st
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import nn

from hlnet.model.fast import kernels
from hlnet.model.fast.fuse import fuse
from hlnet.model.fast.kernels import Conv

both_paths, path = kernel_paths.both_paths, kernel_paths.path


@both_paths
@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (nn.ReLU(), "relu"),
        (nn.ReLU(inplace=True), "relu"),
        (nn.ReLU6(inplace=True), "relu6"),
        (nn.SiLU(), "swish"),
        (nn.Hardswish(inplace=True), "hardswish"),
        (nn.GELU(), "gelu"),
        (F.relu, "relu"),
        (torch.relu, "relu"),
        (lambda x: F.relu(x, inplace=True), "relu"),
        (F.gelu, "gelu"),
        (F.silu, "swish"),
        (F.relu6, "relu6"),
    ],
)
def test_norm_and_activation_go_into_the_convolution(activation, name):
    act = activation if isinstance(activation, nn.Module) else nn.Identity()
    apply = (lambda net, x: net.act(x)) if isinstance(activation, nn.Module) else lambda net, x: activation(x)
    net = Net(lambda net, x: apply(net, net.norm(net.conv(x))), conv=conv(), norm=norm(), act=act)
    found = check(net)
    assert activations(found) == [name]
    assert not parts(found, nn.BatchNorm2d, nn.Conv2d, nn.ReLU, nn.SiLU, nn.GELU, nn.Hardtanh, nn.Hardswish)


def test_norm_with_its_values_goes_into_the_convolution():
    torch.manual_seed(0)
    plain, bias = nn.Sequential(conv(), nn.BatchNorm2d(4)), nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    found = check(random_norms(nn.Sequential(plain, bias, nn.BatchNorm2d(4, affine=False))))
    assert len(parts(found, Conv)) == 2 and not parts(found, nn.BatchNorm2d)


@pytest.mark.parametrize("kind", [nn.Conv2d, Conv2dSame])
@pytest.mark.parametrize("act", [nn.ReLU, nn.LeakyReLU, nn.SiLU])
def test_timms_norm_with_activation(kind, act):
    torch.manual_seed(0)
    first = kind(4, 4, 3, stride=2, bias=False)
    found = check(nn.Sequential(first, norm(kind=BatchNormAct2d, act_layer=act), conv()))
    assert not parts(found, nn.BatchNorm2d)


@pytest.mark.parametrize(
    "activation",
    [
        nn.GELU(approximate="tanh"),
        nn.LeakyReLU(0.3),
        nn.Tanh(),
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: F.leaky_relu(x, 0.3),
        torch.tanh,
    ],
)
def test_other_activations_stay(activation):
    act = activation if isinstance(activation, nn.Module) else nn.Identity()
    apply = (lambda net, x: net.act(x)) if isinstance(activation, nn.Module) else lambda net, x: activation(x)
    found = check(Net(lambda net, x: apply(net, 3 * net.conv(x)) + apply(net, net.conv(x)), conv=conv(), act=act))
    assert activations(found) == ["none"] * 2


@both_paths
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.GELU])
def test_sum_and_activation_go_into_the_convolution(act, inplace):
    act = act() if act is nn.GELU else act(inplace=inplace)
    net = Net(lambda net, x: net.act(net.norm(net.b(x)) + net.a(x)), a=conv(), b=conv(), norm=norm(), act=act)
    found = check(net)
    assert len(parts(found, Conv)) == 2 and not parts(found, nn.BatchNorm2d, nn.Conv2d)


@both_paths
@pytest.mark.parametrize(
    "geometry",
    [
        {"padding": "same"},
        {"padding_mode": "reflect"},
        {"padding_mode": "circular"},
        {"groups": 2},
        {"stride": 2},
        {"dilation": 2, "padding": 2},
        {"padding": "valid"},
    ],
    ids=str,
)
def test_geometry_stays(geometry):
    check(nn.Sequential(conv(**geometry), norm(), nn.ReLU()))


@both_paths
def test_linear_maps_are_packed():
    net = Net(
        lambda net, x: net.b(net.act(net.a(x.flatten(2).mT))),
        a=nn.Linear(4, 8, bias=False),
        b=nn.Linear(8, 6, bias=False),
        act=nn.GELU(),
    )
    found = check(net)
    assert activations(found) == ["gelu", "none"] and not parts(found, nn.Linear)


def test_norms_are_folded_before_weights_are_rounded():
    torch.manual_seed(0)
    net = random_norms(nn.Sequential(conv(channels=64), norm(64)))
    folded = torch.nn.utils.fuse_conv_bn_eval(*net)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kernels, "packs", lambda device, dtype: False)
        found = fuse(net, torch.zeros(1, 64, 6, 6, dtype=torch.bfloat16))
    (part,) = parts(found, Conv)
    assert torch.equal(part.weight, folded.weight.bfloat16()) and torch.equal(part.bias, folded.bias.bfloat16())


@pytest.mark.parametrize("act", [nn.ReLU, nn.LeakyReLU, nn.Identity])
@pytest.mark.parametrize("drop", [None, nn.Dropout2d])
def test_norm_that_brings_activation_and_dropout_along(act, drop):
    def forward(net, x):
        y = net.n(net.a(x))
        return y + net.b(y)

    net = Net(forward, a=conv(), n=norm(kind=BatchNormAct2d, act_layer=act, drop_layer=drop), b=conv())
    assert not parts(check(net), nn.BatchNorm2d)


def test_convolution_that_runs_twice_is_folded_for_each_call_apart():
    check(Net(lambda net, x: net.n(net.a(x)) * net.a(x), a=conv(), n=norm()))
    check(Net(lambda net, x: net.n(net.a(x)) * net.m(net.a(x)), a=conv(), n=norm(), m=norm()))
    check(Net(lambda net, x: net.n(net.a(F.relu(net.n(net.a(x))))), a=conv(), n=norm()))


def test_names_that_look_like_those_of_weights():
    """The convolutions ``m`` and ``m.weight_a`` are two."""
    first = conv()
    first.weight_a = conv()
    net = Net(lambda net, x: net.n(net.m(x)) + net.o(net.m.weight_a(x)), m=first, n=norm(), o=norm())
    assert not parts(check(net), nn.BatchNorm2d)


# ---------------------------------------------------------------------- any network


KINDS = {
    "conv": lambda: conv(1),
    "wide conv": lambda: conv(3),
    "grouped conv": lambda: conv(3, groups=4),
    "same conv": lambda: Conv2dSame(4, 4, 3, bias=False),
    "norm": norm,
    "norm and activation": lambda: norm(kind=BatchNormAct2d),
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "swish": nn.SiLU,
    "gelu": nn.GELU,
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
    "pool": lambda: nn.MaxPool2d(3, 1, 1),
    "average": lambda: nn.AdaptiveAvgPool2d(1),
    "nothing": nn.Identity,
    "again": nn.Identity,
    "add": nn.Identity,
    "multiply": nn.Identity,
    "weighed add": nn.Identity,
    "turn": nn.Identity,
    "halves": nn.Identity,
}
STEPS = st.lists(
    st.tuples(
        st.one_of(st.sampled_from(["add", "wide conv", "conv", "add"]), st.sampled_from(list(KINDS))),
        st.integers(0, 3),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=9,
)


class Steps(nn.Module):
    """Each step works on one or two of the four results before it; what is changed in place counts as used."""

    def __init__(self, steps):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.steps = conv(), steps
        self.parts = nn.ModuleList(KINDS[kind]() for kind, _, _ in steps)

    def forward(self, x):
        values = [self.stem(x)]
        for part, (kind, *back) in zip(self.parts, self.steps, strict=True):
            a, b = (values[max(0, len(values) - 1 - i)] for i in back)
            if kind == "add":
                value = a + b
            elif kind == "multiply":
                value = a * b
            elif kind == "weighed add":
                value = torch.add(a, b, alpha=0.5)
            elif kind == "turn":
                value = a.mT
            elif kind == "halves":
                value = torch.cat([a[:, 2:], a[:, :2]], 1)
            elif kind == "again":
                value = self.stem(a)
            else:
                value = part(a)
            values.append(value)
        changed = [value for value, (kind, *_) in zip(values[1:], self.steps, strict=True) if kind == "relu in place"]
        return sum(changed, values[-1] + 2 * values[len(values) // 2])


@settings(max_examples=250, deadline=None)
@example([("conv", 0, 0), ("wide conv", 1, 0), ("add", 2, 1)])
@example([("wide conv", 0, 0), ("add", 0, 1), ("relu", 0, 0)])
@given(STEPS)
def test_any_network(steps):
    net = Steps(steps).eval()
    x = images(2, 6, channels=4)
    torch.nn.init.normal_(net.stem.weight, 0, 0.5, generator=torch.Generator().manual_seed(0))
    expected = run(net, x)
    found = fuse(net, torch.zeros(1, 4, 6, 6))
    assert found is not net or any(kind == "relu in place" for kind, *_ in steps)
    error, scale = float((run(found, x) - expected).abs().max()), float(expected.abs().max())
    assert error <= 1e-5 * max(1, scale)
    assert torch.equal(run(net, x), expected)
