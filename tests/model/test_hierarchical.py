"""The network class: trunk and branches together, its settings, and the frozen trunk."""

import pytest
import timm
import torch
from helpers.naive import NaiveTree, copy_weights, randomise
from pydantic import ValidationError

from hlnet.errors import UsageError
from hlnet.model.hierarchical import BranchTree, HierarchicalNet, NetworkConfig
from hlnet.model.transform import InputTransform
from hlnet.model.trunk import Trunk
from hlnet.tree.class_tree import ClassTree

TREE = ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle"], "saw": None})
BACKBONE = "test_resnet"  # timm's tiny one


def build(block="bottleneck", dtype=torch.float64, **settings):
    settings = {"backbone": BACKBONE, "block": block, "widths": (8, 4), "strides": (1, 2)} | settings
    torch.manual_seed(0)
    net = HierarchicalNet(NetworkConfig(**settings), TREE).to(dtype).eval()
    randomise(net.head)
    return net


def images(batch=2, size=64, dtype=torch.float64):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("block", ["bottleneck", "convnext"])
@pytest.mark.parametrize("cued", [False, True], ids=["no gains", "gains"])
def test_forward_is_the_naive_branches_on_the_trunk(block, cued):
    net = build(block)
    naive = NaiveTree(TREE, net.trunk.channels, block, (8, 4), (1, 2)).double().eval()
    copy_weights(net.head, naive)
    gains = torch.linspace(0.5, 1.5, 2 * TREE.num_nodes, dtype=torch.float64).view(2, -1) if cued else None
    features = net.trunk(images())
    torch.testing.assert_close(net(images(), gains), naive(features, gains), rtol=1e-9, atol=1e-9)
    assert torch.equal(net(images(), gains), net.head(net.features(images()), gains))


def test_gradient_reaches_the_first_convolution_as_through_the_naive_branches():
    net = build()
    naive = NaiveTree(TREE, net.trunk.channels, "bottleneck", (8, 4), (1, 2)).double().eval()
    copy_weights(net.head, naive)
    first = next(net.trunk.parameters())
    (ours,) = torch.autograd.grad(net(images()).square().sum(), first)
    (expected,) = torch.autograd.grad(naive(net.trunk(images())).square().sum(), first)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_network_tells_its_tree_and_where_its_trunk_ends():
    net = build()
    assert net.tree is TREE
    assert net.config.split_point == net.trunk.split_point == 3
    assert build(split_point=-3).config.split_point == 2
    assert net.transform == net.trunk.transform
    # A config with the split point spelled out builds the same network.
    again = HierarchicalNet(net.config, TREE)
    again.load_state_dict(net.state_dict())


def test_state_dict_holds_everything_that_decides_the_logits():
    net, other = build(), HierarchicalNet(build().config, TREE).double().eval()
    assert not torch.allclose(net(images()), other(images()))
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(images()), other(images()))


@pytest.mark.parametrize("shape", [(6,), (3, 7), (7, 2)], ids=str)
def test_gains_of_another_shape_are_refused(shape):
    with pytest.raises(UsageError, match=r"\[7\] or \[2, 7\]"):
        build()(images(), torch.ones(shape, dtype=torch.float64))


@pytest.mark.parametrize("levels", [1, 3])
def test_tree_with_another_number_of_levels_is_refused(levels):
    tree = ClassTree.parallel(["a", "b"], levels)
    with pytest.raises(UsageError, match=rf"tree has {levels} level.*widths are for 2.*levels=2"):
        BranchTree(tree, 16, "bottleneck", (8, 4), (1, 2))


@pytest.mark.parametrize("block", ["bottleneck", "convnext"])
@pytest.mark.parametrize(
    ("dtype", "gains_dtype"),
    [(torch.float32, torch.float64), (torch.bfloat16, torch.float32), (torch.float32, torch.int64)],
    ids=str,
)
def test_gains_may_have_another_dtype(block, dtype, gains_dtype):
    net, gains = build(block, dtype), torch.tensor([1, 2, 1, 1, 2, 2, 1])
    x = images(dtype=dtype)
    assert torch.equal(net(x, gains.to(gains_dtype)), net(x, gains.to(dtype)))


@pytest.mark.parametrize("block", ["bottleneck", "convnext"])
def test_channels_last_gives_the_same_logits(block):
    net = build(block)
    expected = net(images())
    net.to(memory_format=torch.channels_last)
    torch.testing.assert_close(net(images().contiguous(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("block", ["bottleneck", "convnext"])
def test_autocast_comes_near_the_full_precision(block):
    net, gains = build(block, torch.float32), torch.full((7,), 1.1)
    x = images(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = net(x, gains)
    torch.testing.assert_close(logits.float(), net(x, gains), rtol=0.1, atol=0.1)


# ---------------------------------------------------------------------- input transform


@pytest.mark.parametrize(
    ("backbone", "arguments", "input_size"),
    [
        ("vit_tiny_patch16_224", {"img_size": 160}, (3, 160, 160)),
        ("vit_tiny_patch16_224", {"img_size": (96, 160)}, (3, 96, 160)),
        (BACKBONE, {"in_chans": 1}, (1, 160, 160)),
    ],
)
def test_backbone_arguments_reach_the_transform(backbone, arguments, input_size):
    transform = Trunk(backbone, backbone_args=arguments).transform
    assert transform.input_size == input_size
    assert len(transform.mean) == len(transform.std) == input_size[0]


def test_transform_at_another_image_size():
    assert InputTransform.of(timm.create_model(BACKBONE), {"img_size": 96}).input_size == (3, 96, 96)


def test_transform_is_what_the_weights_were_trained_with():
    vit = InputTransform.of(timm.create_model("vit_tiny_patch16_224.augreg_in21k_ft_in1k"))
    assert (vit.mean, vit.std, vit.crop_pct, vit.interpolation) == ((0.5,) * 3, (0.5,) * 3, 0.9, "bicubic")
    resnet = InputTransform.of(timm.create_model("resnet18.tv_in1k"))
    assert (resnet.mean, resnet.crop_pct, resnet.interpolation) == ((0.485, 0.456, 0.406), 0.875, "bilinear")


# ---------------------------------------------------------------------- frozen trunk


def train_step(net):
    """The names of all tensors that one step of training changes."""
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    net.train()(images(4)).square().sum().backward()
    optimiser.step()
    return {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}


def test_training_changes_trunk_and_branches():
    net = build()
    for parameter in net.trunk.parameters():
        if not parameter.any():  # timm starts each block's last BN at zero, which stops the gradients
            torch.nn.init.ones_(parameter)
    assert train_step(net) == set(net.state_dict())


def test_frozen_trunk_keeps_weights_and_statistics():
    net = build()
    net.freeze_trunk()
    changed = train_step(net)
    assert changed == {name for name in net.state_dict() if name.startswith("head.")}
    assert not any(module.training for module in net.trunk.modules())
    assert all(module.training for module in net.head.modules())
    assert not any(module.training for module in net.eval().modules())


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"widths": (8, 4), "strides": (1,)}, "one entry a level"),
        ({"widths": (8, 0), "strides": (1, 2)}, "widths"),
        ({"widths": (8, 4), "strides": (1, -2)}, "strides"),
        ({"widths": (8.5, 4), "strides": (1, 2)}, "widths"),
        ({"block": "transformer"}, "block"),
        ({"split_point": 1.5}, "split_point"),
        ({"depth": 3}, "depth"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_wrong_settings_are_refused(settings, field):
    with pytest.raises(ValidationError, match=field):
        NetworkConfig(backbone="resnet18", **settings)


def test_settings_do_not_change_and_survive_json():
    config = NetworkConfig(backbone="resnet18", split_point=-2, widths=(8, 4), strides=(1, 2), backbone_args={"a": 1})
    with pytest.raises(ValidationError):
        config.backbone = "resnet50"
    assert NetworkConfig.model_validate_json(config.model_dump_json()) == config
