"""Faster trunks: the same function of images as the model's own, which itself stays as it was.

Fusing checks its result and falls back on the model as it is. Here it must not, but for the networks said to be such:
what it puts together must be right. The crafted ones vanish at zero and are fused on a black image, where they show
nothing.
"""

import copy
import re
import sys

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import nn

from hlnet import fusing, kernels
from hlnet.fusing import fuse, fuse_or_why_not
from hlnet.kernels import Conv, Linear

#: Architecture, arguments, side of the images, and whether other sizes fit too.
MODELS = {
    "residual": ("test_resnet", {}, 64, True),
    "basic blocks": ("resnet18", {}, 32, True),
    "pre-activation": ("resnetv2_18", {}, 32, True),
    "same padding": ("mobilenetv2_050", {"pad_type": "same"}, 33, True),
    "squeeze and excite, hardswish": ("mobilenetv3_small_050", {}, 32, True),
    "swish": ("efficientnet_b0", {}, 32, True),
    "groups": ("regnety_002", {}, 32, True),
    "layer norms, response norms": ("convnextv2_atto", {}, 32, True),
    "transformer": ("vit_tiny_patch16_224", {"img_size": 32}, 32, False),
    "windows": ("swin_tiny_patch4_window7_224", {"img_size": 32, "window_size": 2, "depths": (1, 2, 1, 1)}, 32, False),
    "concatenations": ("densenet121", {}, 32, True),
    "cheap features": ("ghostnet_050", {}, 32, True),
    "branches": ("repvgg_a0", {}, 32, True),
    "leaky activations": ("cspresnet50", {}, 32, True),
    "swish after a sum, broadcast sum": ("gcresnet33ts", {}, 32, True),
    "gelu after a sum": ("repvit_m0_9", {}, 32, True),
    "several scales": ("test_byobnet", {}, 48, True),
    "blocks that are not traced": ("mobilevit_xxs", {}, 64, True),
}


@torch.no_grad()
def randomised(model, seed=0):
    """Random norms and biases, where there would be ones and zeros that hide their use."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.dim() <= 1 and tensor.is_floating_point():
            tensor.normal_(1.0 if name.endswith("weight") else 0.0, 0.2, generator=generator)
        elif name.endswith(("head.fc.weight", "head.weight")) and not tensor.any():
            tensor.normal_(0, 0.1, generator=generator)
    return model.eval()


def images(batch=2, size=32, seed=1, channels=3):
    size = size if isinstance(size, tuple) else (size, size)
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed))


def run(model, x):
    with torch.inference_mode():
        return model(x).clone()


def assert_near(found, expected, tolerance=1e-5):
    assert found.shape == expected.shape and expected.any()
    error, scale = float((found - expected).abs().max()), float(expected.abs().max())
    assert error <= tolerance * scale


def kept(state):
    return {name: tensor.clone() for name, tensor in state.items()}


def parts(model, *kinds):
    return [module for module in model.modules() if isinstance(module, kinds)]


# ---------------------------------------------------------------------- timm's models


@pytest.fixture(scope="module", params=["packed", "portable"])
def path(request):
    """Both ways to run; the packed one where this machine has it."""
    with pytest.MonkeyPatch.context() as patched:
        if request.param == "portable":
            patched.setattr(kernels, "packs", lambda device, dtype: False)
        elif not kernels.packs("cpu", torch.float32):
            pytest.skip("torch lacks oneDNN's operators here")
        yield request.param


both_paths = pytest.mark.usefixtures("path")


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def fused(request, path):
    """A model before and after it was fused."""
    name, arguments, size, free = request.param
    torch.manual_seed(0)
    model = randomised(timm.create_model(name, num_classes=7, **arguments))
    x = images(3, size)
    case = {"model": model, "x": x, "free": free, "logits": run(model, x), "state": kept(model.state_dict())}
    if free:
        case["wide"] = images(2, (size + 16, size + 41), seed=2)
        case["wide logits"] = run(model, case["wide"])
    return case | {"fused": fuse(model, torch.zeros(1, 3, size, size))}


def test_fused_model_gives_the_models_logits(fused):
    assert fused["fused"] is not fused["model"]
    x = fused["x"]
    for given_images in (x.contiguous(memory_format=torch.channels_last), x, x.flip(0).flip(0).mT.clone().mT):
        assert_near(run(fused["fused"], given_images), fused["logits"])
    assert_near(run(fused["fused"], x[:1]), fused["logits"][:1])


def test_fused_model_takes_other_sizes(fused):
    if fused["free"]:
        assert_near(run(fused["fused"], fused["wide"]), fused["wide logits"])


def test_calls_leave_nothing_behind(fused):
    x = fused["x"].contiguous(memory_format=torch.channels_last)
    before = x.clone()
    first = run(fused["fused"], x)
    run(fused["fused"], images(3, tuple(x.shape[2:]), seed=5))
    assert torch.equal(run(fused["fused"], x), first)
    assert torch.equal(x, before)


def test_original_stays_as_it_was(fused):
    state = fused["model"].state_dict()
    assert list(state) == list(fused["state"])
    assert all(torch.equal(tensor, fused["state"][name]) for name, tensor in state.items())
    assert torch.equal(run(fused["model"], fused["x"]), fused["logits"])


def test_fused_model_runs_without_inference_mode(fused):
    assert_near(fused["fused"](fused["x"]).detach(), fused["logits"])
    with torch.no_grad():
        assert_near(fused["fused"](fused["x"]), fused["logits"])


def test_mode_of_the_original_does_not_matter(fused):
    try:
        fused["model"].train()
        assert_near(run(fused["fused"], fused["x"]), fused["logits"])
    finally:
        fused["model"].eval()
    assert torch.equal(run(fused["model"], fused["x"]), fused["logits"])


BFLOAT16 = {
    "test_resnet": {},
    "resnetv2_18": {},
    "convnextv2_atto": {},
    "mobilenetv2_050": {"pad_type": "same"},
    "vit_tiny_patch16_224": {"img_size": 64, "depth": 3},
}


@both_paths
@pytest.mark.parametrize("name", BFLOAT16)
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16, torch.float64])
def test_bfloat16_comes_near(name, source):
    model = randomised(timm.create_model(name, num_classes=7, **BFLOAT16[name])).to(source)
    state = kept(model.state_dict())
    x = images(8, 64)
    exact, plain = run(copy.deepcopy(model).float(), x), run(copy.deepcopy(model).bfloat16(), x.bfloat16())
    found, why = fuse_or_why_not(model, torch.zeros(1, 3, 64, 64, dtype=torch.bfloat16))
    assert found is not model and not why and parts(found, Conv, Linear)
    logits = run(found, x.bfloat16())
    assert logits.dtype == torch.bfloat16
    # As the model's own rounding goes; where that leaves little of the result, no nearer is asked for.
    rounding = max(float((plain.float() - exact).abs().max()), 0.02 * float(exact.abs().max()))
    assert (logits.float() - exact).abs().max() <= 1.5 * rounding
    assert {name: tensor.dtype for name, tensor in model.state_dict().items()} == {
        name: tensor.dtype for name, tensor in state.items()
    }
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_norms_are_folded_before_weights_are_rounded():
    torch.manual_seed(0)
    net = randomised(nn.Sequential(conv(channels=64), norm(64)))
    folded = torch.nn.utils.fuse_conv_bn_eval(*net)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kernels, "packs", lambda device, dtype: False)
        found = fuse(net, torch.zeros(1, 64, 6, 6, dtype=torch.bfloat16))
    (part,) = parts(found, Conv)
    assert torch.equal(part.weight, folded.weight.bfloat16()) and torch.equal(part.bias, folded.bias.bfloat16())


# ---------------------------------------------------------------------- what is put together


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
    found = check(randomised(nn.Sequential(plain, bias, nn.BatchNorm2d(4, affine=False))))
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


# ---------------------------------------------------------------------- what is left apart


def test_activation_of_an_output_that_is_used_twice_stays():
    found = check(Net(lambda net, x: torch.cat([F.relu(y := net.a(x)), y], 1), a=conv()))
    assert activations(found) == ["none"]


def test_norm_of_an_output_that_is_used_twice_stays():
    found = check(Net(lambda net, x: net.norm(y := net.a(x)) * y, a=conv(), norm=norm()))
    assert len(parts(found, nn.BatchNorm2d)) == 1


def test_two_norms_of_one_convolution_stay():
    found = check(Net(lambda net, x: net.n(y := net.a(x)) * net.m(y), a=conv(), n=norm(), m=norm()))
    assert len(parts(found, nn.BatchNorm2d)) == 2


def test_norm_before_its_convolution_stays():
    found = check(nn.Sequential(norm(), nn.ReLU(), conv()))
    assert len(parts(found, nn.BatchNorm2d)) == 1


def test_convolution_that_runs_twice_is_folded_for_each_call_apart():
    check(Net(lambda net, x: net.n(net.a(x)) * net.a(x), a=conv(), n=norm()))
    check(Net(lambda net, x: net.n(net.a(x)) * net.m(net.a(x)), a=conv(), n=norm(), m=norm()))
    check(Net(lambda net, x: net.n(net.a(F.relu(net.n(net.a(x))))), a=conv(), n=norm()))


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_weight_that_is_read_elsewhere_stays(name):
    first = nn.Conv2d(4, 4, 1)
    torch.nn.init.ones_(first.bias)
    found = check(Net(lambda net, x: net.n(net.a(x)) * getattr(net.a, name).sum() + x, a=first, n=norm()))
    assert len(parts(found, nn.BatchNorm2d)) == 1


def test_names_that_look_like_those_of_weights():
    """The convolutions ``m`` and ``m.weight_a`` are two."""
    first = conv()
    first.weight_a = conv()
    net = Net(lambda net, x: net.n(net.m(x)) + net.o(net.m.weight_a(x)), m=first, n=norm(), o=norm())
    assert not parts(check(net), nn.BatchNorm2d)


def test_norm_without_statistics_stays_alone():
    """The others are folded all the same."""
    batchwise = nn.BatchNorm2d(4, track_running_stats=False)
    found = check(nn.Sequential(conv(), norm(), nn.ReLU(), conv(), batchwise, conv(), norm()))
    assert len(parts(found, nn.BatchNorm2d)) == 1
    assert len(parts(found, Conv)) == 3 and activations(found) == ["none", "none", "relu"]


@pytest.mark.parametrize("act", [nn.ReLU, nn.LeakyReLU, nn.Identity])
@pytest.mark.parametrize("drop", [None, nn.Dropout2d])
def test_norm_that_brings_activation_and_dropout_along(act, drop):
    def forward(net, x):
        y = net.n(net.a(x))
        return y + net.b(y)

    net = Net(forward, a=conv(), n=norm(kind=BatchNormAct2d, act_layer=act, drop_layer=drop), b=conv())
    assert not parts(check(net), nn.BatchNorm2d)


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: (y := net.a(x)) * (y + net.b(x)),
        lambda net, x: torch.cat([(y := net.a(x)) + net.b(x), y], 1),
        lambda net, x: (y := net.pool(x)) * F.relu(net.b(x) + y),
        lambda net, x: ((y := net.pool(x)) + net.b(x)) * net.a(y),
        lambda net, x: ((y := net.a(x)) + net.b(x)) * net.pool(y),
        lambda net, x: ((y := net.a(x)).mT + net.b(x)) * net.pool(y),
    ],
    ids=["multiplied", "concatenated", "pooled", "convolved later", "pooled later", "itself a view"],
)
def test_other_part_of_a_sum_is_not_overwritten_while_it_is_needed(forward):
    check(Net(forward, a=conv(), b=conv(), pool=nn.MaxPool2d(3, 1, 1)))


@pytest.mark.parametrize(
    "view",
    [
        lambda net, y: y[:, :1],
        lambda net, y: y[:, [0]],
        lambda net, y: y.mT,
        lambda net, y: y.flatten(2).unflatten(2, (6, 6)),
        lambda net, y: y.view(2, 4, 6, 6),
        lambda net, y: y.chunk(4, 1)[2],
        lambda net, y: net.same(y),
        lambda net, y: net.drop(y),
        lambda net, y: net.relu(y),
        lambda net, y: net.flat(y).unflatten(1, (4, 6, 6)),
    ],
    ids=[
        "slice",
        "choice",
        "transposed",
        "flattened",
        "view",
        "part",
        "identity",
        "dropout",
        "in place",
        "flat module",
    ],
)
def test_other_part_of_a_sum_is_not_overwritten_while_a_view_of_it_is_needed(view):
    def forward(net, x):
        y = net.a(x)
        part = view(net, y)
        return (y + net.b(x)) * 3 + part * 2

    more = {"same": nn.Identity(), "drop": nn.Dropout(), "relu": nn.ReLU(inplace=True), "flat": nn.Flatten()}
    check(Net(forward, a=conv(), b=conv(), **more), probe=torch.zeros(2, 4, 6, 6))


@both_paths
@pytest.mark.parametrize("kernel", [1, 3])
def test_input_of_a_convolution_is_not_overwritten_by_its_sum(kernel):
    check(Net(lambda net, x: x + net.a(x), a=conv(kernel)))
    check(Net(lambda net, x: (y := net.pool(x)) + net.a(y), a=conv(kernel), pool=nn.MaxPool2d(3, 1, 1)))
    check(Net(lambda net, x: F.relu(net.a(y := net.b(x)) + y), a=conv(kernel), b=conv(kernel)))


def test_input_of_a_convolution_is_not_overwritten_before_it_runs():
    """Its sum or activation comes later than another sum onto that input."""

    def late_sum(net, x):
        y = net.stem(x)
        b, a = net.b(y), net.a(y)
        return a + (b + y)

    def late_activation(net, x):
        y = net.stem(x)
        a = net.a(y)
        z = net.b(y) + y
        return F.relu(a) * z

    for forward in (late_sum, late_activation):
        check(Net(forward, stem=conv(), a=conv(), b=conv()))


@pytest.mark.parametrize(
    "forward",
    [lambda y, a, relu: relu(y) + a, lambda y, a, relu: a + relu(y), lambda y, a, relu: relu(y) * F.relu(a)],
    ids=["sum", "sum the other way", "activation"],
)
def test_model_that_overwrites_what_a_convolution_has_read(forward):
    """Such a one may run as it is."""
    net = Net(
        lambda net, x: forward(y := net.stem(x), net.a(y), net.relu),
        stem=conv(),
        a=conv(),
        relu=nn.ReLU(inplace=True),
    ).eval()
    x = images(2, 6, channels=4)
    assert_near(run(fuse(net, torch.zeros(1, 4, 6, 6)), x), run(net, x))


def test_sum_with_factors_is_another_sum():
    for forward in (
        lambda net, x: torch.add(net.a(x), net.b(x), alpha=0.5),
        lambda net, x: torch.add(x, net.b(x), alpha=-2),
        lambda net, x: net.a(x) + 3,
    ):
        check(Net(forward, a=conv(), b=conv()))
    assert len(parts(check(Net(lambda net, x: (y := net.a(x)) + y, a=conv())), Conv, nn.Conv2d)) == 1


@both_paths
def test_broadcast_sums_stay():
    for forward in (
        lambda net, x: net.a(x.mean((2, 3), keepdim=True)) + x,
        lambda net, x: x + net.a(net.b(x).mean((2, 3), keepdim=True)),
        lambda net, x: net.b(x) + net.a(net.b(x).mean((2, 3), keepdim=True)),
        lambda net, x: net.a(x.mean(3, keepdim=True)) + x,
        lambda net, x: x + net.a(x.mean(2, keepdim=True)),
        lambda net, x: net.a(x) + x.mean((2, 3), keepdim=True),
        lambda net, x: net.a(x) + x.mean(1, keepdim=True),
        lambda net, x: net.a(x)[0] + net.b(x),
    ):
        check(Net(forward, a=conv(1), b=conv()))


def test_sum_with_what_holds_for_every_image():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.positions = conv(), nn.Parameter(torch.zeros(1, 4, 6, 6))

        def forward(self, x):
            return F.relu(self.conv(x) + self.positions)

    net = Positions()
    torch.nn.init.normal_(net.positions)
    found = check(net, probe=torch.zeros(1, 4, 6, 6))
    one = images(1, 6, channels=4)
    for _ in range(2):
        assert_near(run(found, one), run(net, one))


def test_broadcast_sum_is_known_where_the_map_is_a_single_pixel():
    net = Net(lambda net, x: net.b(x) + net.a(x.mean((2, 3), keepdim=True)), a=conv(1), b=conv())
    check(net, probe=torch.zeros(1, 4, 1, 1))


@both_paths
def test_image_itself_is_not_overwritten():
    check(Net(lambda net, x: F.relu(x + net.a(x)) + x, a=conv()))
    check(Net(lambda net, x: F.relu(net.n(net.a(x)) + x), a=conv(), n=norm()))
    check(Net(lambda net, x: net.b(net.a(x)) + x, a=conv(), b=conv()))


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


def test_model_is_put_in_evaluation_mode():
    model = timm.create_model("test_resnet", num_classes=7).train()
    expected = run(model.eval(), images())
    found = fuse(model.train(), torch.zeros(1, 3, 32, 32))
    assert not any(module.training for module in model.modules())
    assert_near(run(found, images()), expected)


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
