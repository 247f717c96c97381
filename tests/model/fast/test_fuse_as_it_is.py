"""Models that run as they are, as they cannot be traced or their trace gives something else; and why is said."""

import re
import sys

import pytest
import timm
import torch
from helpers.crafted_nets import check, conv, images, norm
from helpers.random_nets import run
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import nn

from hlnet.model.fast import fuse as fusing
from hlnet.model.fast.fuse import fuse, fuse_or_why_not


class Depends(nn.Module):
    """Takes another way for bright images."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = conv(channels=3), norm(3)

    def forward(self, x):
        y = self.norm(self.conv(x))
        return y if x.sum() > 0 else -y


def test_model_that_cannot_be_traced_runs_as_it_is():
    model = Depends().eval()
    assert fuse(model, torch.zeros(1, 3, 6, 6)) is model
    x = images(1, 6)
    assert not torch.equal(run(model, x + 9), run(model, x - 9))


def test_same_padding_with_activation_stays_whole_where_the_model_cannot_be_traced():
    model = nn.Sequential(Conv2dSame(3, 3, 3), norm(3, BatchNormAct2d, act_layer=nn.SiLU), Depends()).eval()
    expected = run(model, images(2, 6))
    fuse(model, torch.zeros(1, 3, 6, 6))
    assert torch.equal(run(model, images(2, 6)), expected)


class Whimsical(nn.Module):
    """Does something else each time; a trace of it cannot be right."""

    def __init__(self):
        super().__init__()
        self.conv, self.calls = nn.Conv2d(3, 3, 1), 0

    def forward(self, x):
        self.calls += 1
        return self.conv(x) * self.calls


def test_trace_that_gives_another_result_is_not_used():
    model = Whimsical().eval()
    assert fuse(model, torch.zeros(1, 3, 6, 6)) is model


class Odd(nn.Module):
    """Gives what is no tensor, or one of another shape each time."""

    def __init__(self, kind):
        super().__init__()
        self.conv, self.kind, self.calls = nn.Conv2d(3, 3, 1), kind, 0

    def forward(self, x):
        self.calls += 1
        y = self.conv(x)
        return {"pair": (y, y), "names": {"y": y}, "shape": y[..., : self.calls], "nan": y / 0 - y / 0}[self.kind]


WHY_NOT = {
    "control flow": (lambda: Depends(), r"TraceError: symbolically traced variables cannot be used as inputs to .*"),
    "other outputs": (
        lambda: Whimsical(),
        r"its trace gave other outputs: max difference \d\S*e[+-]\d\d, largest output \d\S*",
    ),
    "other shape": (
        lambda: Odd("shape"),
        r"its trace gave other outputs: shape \[1, 3, 6, 2\] instead of \[1, 3, 6, 1\]",
    ),
    "no number": (lambda: Odd("nan"), r"its trace gave other outputs: max difference nan, largest output nan"),
    "pair": (lambda: Odd("pair"), r"\w+Error: .+"),
    "names": (lambda: Odd("names"), r"\w+Error: .+"),
}


@pytest.mark.parametrize(("model", "why"), WHY_NOT.values(), ids=WHY_NOT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_why_a_model_runs_as_it_is(model, why, dtype):
    model = model().eval()
    found, said = fuse_or_why_not(model, torch.zeros(1, 3, 6, 6, dtype=dtype))
    assert re.fullmatch(why, said)
    assert (found is model) == (dtype is torch.float32)
    assert type(found) is type(model) and {tensor.dtype for tensor in found.parameters()} == {dtype}
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}


def test_nothing_is_said_of_a_model_that_is_fused():
    assert fuse_or_why_not(nn.Sequential(conv()), torch.zeros(1, 4, 6, 6))[1] == ""


def test_timm_without_its_private_name(monkeypatch):
    monkeypatch.delattr("timm.models._features_fx.get_notrace_modules")
    assert fusing._notrace_modules() == ()
    check(nn.Sequential(conv(), norm(), nn.ReLU()))
    monkeypatch.setitem(sys.modules, "timm.models._features_fx", None)
    assert fusing._notrace_modules() == ()
    model = timm.create_model("test_vit", img_size=32)  # not traced, either way
    assert fuse(model, torch.zeros(1, 3, 32, 32)) is model
