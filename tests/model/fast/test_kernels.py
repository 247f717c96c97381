"""Convolutions and linear maps for inference: torch's public ones, whether the weights are packed or not."""

import pytest
import torch
import torch.nn.functional as F
from helpers import kernel_paths
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hlnet.model.fast.kernels import ACTIVATIONS, Conv, Linear, packs

path = kernel_paths.path

#: The activations by their formulas.
FORMULAS = {
    "none": lambda x: x,
    "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
    "swish": lambda x: x / (1 + torch.exp(-x)),
    "hardswish": lambda x: x * (x + 3).clamp(0, 6) / 6,
    "relu6": lambda x: x.clamp(0, 6),
}
#: in, out, kernel, stride, padding, dilation, groups.
GEOMETRIES = {
    "pointwise": (5, 7, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "3x3": (4, 6, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "strided": (16, 16, (3, 3), (2, 2), (1, 1), (1, 1), 1),
    "patches": (3, 8, (4, 4), (4, 4), (0, 0), (1, 1), 1),
    "grouped": (12, 8, (3, 3), (2, 2), (1, 1), (1, 1), 4),
    "grouped pointwise": (12, 24, (1, 1), (1, 1), (0, 0), (1, 1), 3),
    "depthwise": (16, 16, (7, 7), (1, 1), (3, 3), (1, 1), 16),
    "depthwise, more out": (5, 10, (3, 3), (1, 1), (1, 1), (1, 1), 5),
    "dilated": (4, 4, (3, 3), (1, 1), (2, 2), (2, 2), 1),
    "oblong": (6, 4, (1, 5), (2, 1), (0, 2), (1, 1), 2),
    "one channel": (1, 1, (3, 3), (1, 1), (1, 1), (1, 1), 1),
}

geometries = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
activations = pytest.mark.parametrize("activation", FORMULAS)
in_place = pytest.mark.parametrize("in_place", [True, False], ids=["in place", "new"])
biases = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])


def random(*shape, seed=0, dtype=torch.float64):
    """Values up to 6 and beyond, where every activation has its say."""
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def weights(geometry, bias=True):
    channels, out, kernel, *_, groups = geometry
    weight = random(out, channels // groups, *kernel, seed=1) / (9 * channels // groups) ** 0.5
    return weight, random(out, seed=2) if bias else None


def conv(geometry, activation="none", size=(14, 14), bias=True, dtype=torch.float32):
    """Ours, and torch's convolution in float64 without the activation."""
    _, _, _, *rest = geometry
    weight, offset = (None if tensor is None else tensor.to(dtype) for tensor in weights(geometry, bias))
    ours = Conv(weight, offset, *rest, activation=activation, size=size)

    def plain(x):
        stride, padding, dilation, groups = rest
        exact = None if offset is None else offset.double()
        return F.conv2d(x.double(), weight.double(), exact, stride, padding, dilation, groups)

    return ours, plain


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def assert_near(found, expected, tolerance=1e-5):
    assert found.shape == expected.shape
    assert (found.double() - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1)


def test_every_activation_has_a_formula_here():
    assert FORMULAS.keys() == ACTIVATIONS.keys()


# ---------------------------------------------------------------------- convolutions


@biases
@activations
@geometries
def test_convolution_is_torchs(path, geometry, activation, bias):
    ours, plain = conv(geometry, activation, bias=bias)
    assert ours.packed == (path == "packed")
    x = random(2, geometry[0], 14, 14, dtype=torch.float32)
    before = x.clone()
    assert_near(ours(channels_last(x)), FORMULAS[activation](plain(x)))
    assert_near(ours(x), FORMULAS[activation](plain(x)))  # whatever the layout
    assert torch.equal(x, before)


@geometries
@pytest.mark.parametrize("size", [(14, 14), (9, 20)], ids=str)
def test_other_batches_and_sizes_than_packed_for(path, geometry, size):
    ours, plain = conv(geometry, "relu", size)
    for batch, *sides in [(1, 14, 14), (3, 14, 14), (17, 7, 7), (1, 8, 5), (2, 30, 23)]:
        x = random(batch, geometry[0], *sides, dtype=torch.float32)
        assert_near(ours(channels_last(x)), FORMULAS["relu"](plain(x)))


@in_place
@activations
@geometries
def test_sum_with_a_convolution(path, geometry, activation, in_place):
    ours, plain = conv(geometry, activation)
    x = channels_last(random(3, geometry[0], 13, 14, dtype=torch.float32))
    y = channels_last(random(*plain(x).shape, seed=3, dtype=torch.float32))
    before = x.clone(), y.clone()
    assert_near(ours.add(y, x, in_place), FORMULAS[activation](before[1].double() + plain(before[0])))
    assert torch.equal(x, before[0])
    assert in_place or torch.equal(y, before[1])


@in_place
def test_sum_with_what_lies_otherwise_in_memory(path, in_place):
    ours, plain = conv(GEOMETRIES["3x3"], "relu")
    x = random(2, 4, 6, 5, dtype=torch.float32)
    wide = random(2, 12, 6, 5, seed=3, dtype=torch.float32)
    for y in (wide[:, :6].clone(), wide[:, 3:9], channels_last(wide)[:, ::2], wide[:, :6].mT.clone().mT):
        expected = FORMULAS["relu"](y.double() + plain(x))
        assert_near(ours.add(y, x, in_place), expected)


def test_sum_with_its_own_input(path):
    ours, plain = conv(GEOMETRIES["depthwise"], "relu")
    x = channels_last(random(2, 16, 7, 7, dtype=torch.float32))
    assert_near(ours.add(x, x, in_place=False), FORMULAS["relu"](x.double() + plain(x)))


@pytest.mark.parametrize("size", [(7, 3), (14, 1), (14, 3)], ids=str)
def test_one_channel_with_a_longer_step_sideways(path, size):
    """Packed, such a one gave what lay in memory beside the image."""
    for stride in ((1, 2), (1, 3)):
        ours, plain = conv((1, 8, (3, 3), stride, (1, 1), (1, 1), 1), size=size)
        for batch in (1, 2, 9):
            x = random(batch, 1, *size, dtype=torch.float32)
            assert_near(ours(x), plain(x))
            assert not ours.packed


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_geometry(data):
    def draw(*values):
        return data.draw(st.sampled_from(values))

    groups = draw(1, 1, 2, 3, 5)
    kernel, stride, padding, dilation = (
        (draw(*values), draw(*values)) for values in ((1, 2, 3, 7), (1, 1, 2, 3), (0, 1, 3), (1, 1, 2))
    )
    geometry = (groups * draw(1, 2, 7, 16), groups * draw(1, 3, 8), kernel, stride, padding, dilation, groups)
    size = [(draw(1, 2, 7, 14), draw(1, 3, 9, 14)) for _ in range(2)]  # packed for, and given
    fits = [
        side + 2 * pad > dilated * (k - 1)
        for sides in size
        for side, pad, dilated, k in zip(sides, padding, dilation, kernel, strict=True)
    ]
    assume(all(fits))
    activation = draw(*FORMULAS)
    ours, plain = conv(geometry, activation, size[0], bias=draw(True, False))
    x = random(draw(1, 2, 9), geometry[0], *size[1], dtype=torch.float32)
    x = channels_last(x) if draw(True, False) else x
    expected = plain(x)
    assert_near(ours(x), FORMULAS[activation](expected))
    y = random(*expected.shape, seed=3, dtype=torch.float32)
    y = channels_last(y) if draw(True, False) else y
    expected = FORMULAS[activation](expected + y.double())
    assert_near(ours.add(y, x), expected)
    assert_near(ours.add(y, x, in_place=True), expected)


@activations
@pytest.mark.parametrize("name", ["3x3", "depthwise", "grouped pointwise"])
def test_bfloat16_comes_near(path, name, activation):
    ours, plain = conv(GEOMETRIES[name], activation, dtype=torch.bfloat16)
    assert ours.packed == (path == "packed" and packs("cpu", torch.bfloat16))
    x = channels_last(random(2, GEOMETRIES[name][0], 14, 14, dtype=torch.bfloat16))
    found, expected = ours(x), FORMULAS[activation](plain(x))
    assert found.dtype == torch.bfloat16
    assert_near(found, expected, 0.02)


@in_place
@activations
@pytest.mark.parametrize("name", ["3x3", "depthwise", "grouped pointwise"])
def test_sum_in_bfloat16_comes_near(path, name, activation, in_place):
    ours, plain = conv(GEOMETRIES[name], activation, dtype=torch.bfloat16)
    x = channels_last(random(2, GEOMETRIES[name][0], 14, 14, dtype=torch.bfloat16))
    y = channels_last(random(*plain(x).shape, seed=3, dtype=torch.bfloat16))
    expected = FORMULAS[activation](y.double() + plain(x))
    found = ours.add(y, x, in_place)
    assert found.dtype == torch.bfloat16
    assert_near(found, expected, 0.02)


# ---------------------------------------------------------------------- linear maps


@biases
@activations
@pytest.mark.parametrize("shape", [(5,), (1, 5), (196, 5), (2, 3, 5), (2, 4, 3, 5)], ids=str)
@pytest.mark.parametrize("rows", [1, 196])
def test_linear_is_torchs(path, shape, rows, activation, bias):
    weight, offset = random(7, 5, seed=1) / 5, random(7, seed=2) if bias else None
    ours = Linear(weight.float(), None if offset is None else offset.float(), activation, rows)
    assert ours.packed == (path == "packed")
    x = random(*shape, dtype=torch.float32)
    before = x.clone()
    assert_near(ours(x), FORMULAS[activation](F.linear(x.double(), weight, offset)))
    assert torch.equal(x, before)


def test_linear_takes_rows_that_do_not_lie_side_by_side(path):
    weight = random(7, 5, seed=1)
    ours, x = Linear(weight.float(), None), random(4, 5, 3, dtype=torch.float32)
    assert_near(ours(x.mT), F.linear(x.double().mT, weight))
    assert_near(ours(x.mT[::2, 1:]), F.linear(x.double().mT[::2, 1:], weight))


@activations
def test_linear_in_bfloat16_comes_near(path, activation):
    weight, offset = random(7, 5, seed=1, dtype=torch.bfloat16), random(7, seed=2, dtype=torch.bfloat16)
    x = random(2, 9, 5, dtype=torch.bfloat16)
    found = Linear(weight, offset, activation)(x)
    assert found.dtype == torch.bfloat16
    assert_near(found, FORMULAS[activation](F.linear(x.double(), weight.double(), offset.double())), 0.02)


# ---------------------------------------------------------------------- the weights


def test_weights_are_left_as_they_were_and_need_no_gradient(path):
    weight, bias = (torch.nn.Parameter(tensor.float()) for tensor in weights(GEOMETRIES["3x3"]))
    flat = torch.nn.Parameter(weight.detach().flatten(1).clone())
    before = weight.detach().clone(), bias.detach().clone(), flat.detach().clone()
    x = random(1, 4, 5, 5, dtype=torch.float32)
    outputs = Conv(weight, bias, padding=(1, 1))(x), Linear(flat, bias)(x.flatten(1)[:, :36])
    assert not any(output.requires_grad for output in outputs)
    assert all(torch.equal(*pair) for pair in zip((weight, bias, flat), before, strict=True))


@pytest.mark.parametrize(
    ("device", "dtype"), [("cuda", torch.float32), ("mps", torch.float32), ("cpu", torch.float64)], ids=str
)
def test_packs_only_for_processors_and_what_they_compute_in(device, dtype):
    assert not packs(device, dtype)


def test_packs_nothing_without_onednn(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not packs.__wrapped__("cpu", torch.float32)


class Operators:
    """oneDNN's, one of which is another."""

    def __init__(self, name, instead):
        self.real, self.name, self.instead = torch.ops.mkldnn, name, instead

    def __getattr__(self, name):
        if name != self.name:
            return getattr(self.real, name)
        if self.instead is None:
            raise AttributeError(name)
        return self.instead(getattr(self.real, name))


class Twice:
    """An operator with a result twice as large."""

    def __init__(self, real):
        self.real = real

    def __call__(self, *arguments):
        return 2 * self.real(*arguments)

    def binary(self, *arguments):
        return 2 * self.real.binary(*arguments)


def refuses(real):
    def refuse(*_):
        raise RuntimeError("takes other arguments now")

    return refuse


@pytest.mark.parametrize(
    "name",
    [
        "_reorder_convolution_weight",
        "_convolution_pointwise",
        "_convolution_pointwise_",
        "_reorder_linear_weight",
        "_linear_pointwise",
    ],
)
@pytest.mark.parametrize("instead", [None, refuses, Twice], ids=["lacking", "refuses", "wrong"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_packs_nothing_where_an_operator_is_not_as_known(monkeypatch, name, instead, dtype):
    if not packs("cpu", dtype):
        pytest.skip("torch lacks oneDNN's operators here")
    with torch.inference_mode():
        assert packs.__wrapped__("cpu", dtype)
    if "reorder" in name and instead is Twice:
        return  # packed tensors are not multiplied
    monkeypatch.setattr(torch.ops, "mkldnn", Operators(name, instead))
    assert not packs.__wrapped__("cpu", dtype)


def test_packs_no_bfloat16_where_the_processor_lacks_it(monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", Operators("_is_mkldnn_bf16_supported", lambda real: lambda: False))
    assert not packs.__wrapped__("cpu", torch.bfloat16)
