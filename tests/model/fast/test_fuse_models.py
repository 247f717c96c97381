"""Faster trunks: the same function of images as timm's model, which itself stays as it was."""

import copy

import pytest
import timm
import torch
from helpers import kernel_paths
from helpers.crafted_nets import assert_near, images, kept, parts
from helpers.random_nets import random_norms, run

from hlnet.model.fast import kernels
from hlnet.model.fast.fuse import fuse, fuse_or_why_not
from hlnet.model.fast.kernels import Conv, Linear

both_paths = kernel_paths.both_paths

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


@pytest.fixture(scope="module", params=["packed", "portable"])
def path(request):
    """Both ways to run; the packed one where this machine has it."""
    with pytest.MonkeyPatch.context() as patched:
        if request.param == "portable":
            patched.setattr(kernels, "packs", lambda device, dtype: False)
        elif not kernels.packs("cpu", torch.float32):
            pytest.skip("torch lacks oneDNN's operators here")
        yield request.param


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def fused(request, path):
    """A model before and after it was fused."""
    name, arguments, size, free = request.param
    torch.manual_seed(0)
    model = random_norms(timm.create_model(name, num_classes=7, **arguments))
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
@pytest.mark.parametrize(
    ("name", "source"),
    [
        *((name, torch.float32) for name in BFLOAT16),
        *((name, source) for name in ("test_resnet", "resnetv2_18") for source in (torch.bfloat16, torch.float64)),
    ],
)
def test_bfloat16_comes_near(name, source):
    model = random_norms(timm.create_model(name, num_classes=7, **BFLOAT16[name])).to(source)
    state = kept(model.state_dict())
    x = images(3, 64)
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


def test_model_is_put_in_evaluation_mode():
    model = timm.create_model("test_resnet", num_classes=7).train()
    expected = run(model.eval(), images())
    found = fuse(model.train(), torch.zeros(1, 3, 32, 32))
    assert not any(module.training for module in model.modules())
    assert_near(run(found, images()), expected)
