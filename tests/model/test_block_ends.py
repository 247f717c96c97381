"""Trunks that end after a block: the features that timm's own model has there, no weights behind, and their costs."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import hlnet
from hlnet.cli.main import app
from hlnet.data.feature_cache import feature_key
from hlnet.errors import BackboneError
from hlnet.expert.cut import cut_expert
from hlnet.model.block_ends import block_ends
from hlnet.model.cost import count_macs, profile
from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
from hlnet.model.plain import PlainConfig, PlainNet
from hlnet.model.split_points import sweep_split_points
from hlnet.model.transform import InputTransform
from hlnet.model.trunk import Trunk, load_trunk_weights, trunk_channels
from hlnet.store.checkpoint import load_checkpoint, save_checkpoint
from hlnet.tree.class_tree import ClassTree

TREE = ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle"]})
SMALL = {
    "test_resnet": {"layers": [1, 1, 2, 2]},
    "swin": {"img_size": 64, "window_size": 2, "embed_dim": 12, "depths": [2, 2, 2, 2]},
}
#: Backbone, block, channels, side of the map of 64 pixels, and a block that follows in the same stage.
PLACES = [
    ("test_resnet", "layer3.0", 192, 4, "layer3.1"),
    ("test_resnet", "layer4.0", 96, 2, "layer4.1"),
    ("convnextv2_atto", "stages.2.blocks.3", 160, 4, "stages.2.blocks.4"),
    ("convnextv2_atto", "stages.3.blocks.0", 320, 2, "stages.3.blocks.1"),
    ("mobilenetv2_050", "blocks.5.0", 80, 2, "blocks.5.1"),
    ("mobilenetv2_050", "blocks.3", 32, 4, "blocks.4"),
    ("mobilenetv3_small_050", "blocks.4.0", 48, 2, "blocks.4.1"),
    ("swin_tiny_patch4_window7_224", "layers.2.blocks.0", 48, 4, "layers.2.blocks.1"),
]
places = pytest.mark.parametrize(("backbone", "place", "channels", "side", "behind"), PLACES)


def arguments(backbone):
    return next((found for name, found in SMALL.items() if backbone.startswith(name)), {})


def overheard(model, place, images):
    """What the module gives in a run of the whole timm model, as ``[B, C, h, w]``."""
    heard = []
    model.eval().get_submodule(place).register_forward_hook(lambda _, args, output: heard.append(output))
    with torch.no_grad():
        model(images)
    return heard[0].permute(0, 3, 1, 2) if place.startswith("layers.") else heard[0]  # Swin: channels last


def names(module):
    return {name for name, _ in module.state_dict().items()}


@places
@torch.no_grad()
def test_features_are_what_timms_model_has_there(backbone, place, channels, side, behind):
    images, given = torch.randn(2, 3, 64, 64), arguments(backbone)
    model = timm.create_model(backbone, **given)
    trunk = Trunk(backbone, place, backbone_args=given).eval()
    trunk.model.load_state_dict({name: model.state_dict()[name] for name in names(trunk.model)})
    torch.testing.assert_close(trunk(images), overheard(model, place, images))
    assert trunk(images).shape == (2, channels, side, side)
    assert (trunk.channels, trunk.reduction, trunk.split_point) == (channels, 64 // side, place)
    assert trunk_channels(backbone, place, given) == channels
    assert any(name.startswith(f"{place}.") for name in names(trunk.model))
    assert not any(name.startswith(f"{behind}.") for name in names(trunk.model))
    assert any(name.startswith(f"{behind}.") for name in names(model))


@places
@torch.no_grad()
def test_costs_are_those_of_the_timm_model_up_to_there(backbone, place, channels, side, behind):
    """Counted apart: what stands before the block and in it, module by module, by hooks on timm's whole model."""
    given = arguments(backbone)
    trunk, size = Trunk(backbone, place, backbone_args=given).eval(), torch.zeros(1, 3, 64, 64)
    whole = Trunk(backbone, trunk.stage_number, backbone_args=given).eval()
    behind_it = [
        name
        for name, module in whole.model.named_modules()
        if names(module) and not any(map(names, module.children())) and f"{name}.weight" not in names(trunk.model)
    ]
    inputs = {}
    for name in behind_it:
        whole.model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: inputs.update({name: args[0]})
        )
    whole(size)
    if not backbone.startswith("swin"):  # whose products of queries and keys belong to no module
        rest = sum(count_macs(whole.model.get_submodule(name), inputs[name]) for name in behind_it if name in inputs)
        assert 0 < rest == pytest.approx(count_macs(whole, size) - count_macs(trunk, size), rel=0.01)
    config = NetworkConfig(backbone=backbone, split_point=place, backbone_args=given, widths=(4, 4), strides=(1, 1))
    found = profile(config, TREE, InputTransform().adjusted(64))
    assert found.full.parts[0].macs == count_macs(trunk, size)
    assert found.full.params == sum(tensor.numel() for tensor in HierarchicalNet(config, TREE).parameters())


@pytest.mark.parametrize(
    ("backbone", "given", "split_point", "stage"),
    [
        ("test_resnet", "layer3", 3, "layer3"),
        ("test_resnet", "layer3.1", 3, "layer3"),  # the stage's last block
        ("test_resnet", "2", 2, "layer2"),
        ("test_resnet", "-1", 4, "layer4"),
        ("test_resnet", "layer3.0", "layer3.0", "layer3.0"),
        ("convnextv2_atto", "stages.2.blocks.5", 2, "stages.2"),
        ("mobilenetv2_050", "blocks.4.2", 3, "blocks.4"),
        ("mobilenetv2_050", "blocks.3.3", "blocks.3", "blocks.3"),
        ("test_vit", "blocks.2", 2, "blocks.2"),
    ],
)
def test_one_place_has_one_name(backbone, given, split_point, stage):
    """So networks that were split by number stay what they are, and share cached features."""
    with torch.device("meta"):
        trunk = Trunk(backbone, given, backbone_args=arguments(backbone))
        assert (trunk.split_point, trunk.stage) == (split_point, stage)
        assert Trunk(backbone, split_point, backbone_args=arguments(backbone)).split_point == split_point


@pytest.mark.parametrize(
    ("backbone", "given", "message"),
    [
        ("test_resnet", "layer4.2", r"no split point 'layer4\.2'\. Did you mean .*'layer4\.\d'.*It has 0: act1"),
        ("test_resnet", "layer4.0.conv1", r"no split point 'layer4\.0\.conv1'.*'layer4\.0'"),
        ("test_resnet", "fc", r"no split point 'fc'.*It has 0: act1"),
        ("mobilenetv2_050", "block.5.0", r"'blocks\.5\.0'"),
        ("test_vit", "blocks.77", r"'blocks\.\d'"),
        ("test_vit", "", r"no split point ''"),
    ],
)
def test_a_place_that_is_none_is_refused_with_the_nearest(backbone, given, message):
    with pytest.raises(BackboneError, match=message):
        Trunk(backbone, given, backbone_args=arguments(backbone))


def test_numbers_out_of_range_tell_of_the_blocks():
    with pytest.raises(BackboneError, match=r"no split point 9; it has 0: act1.*4: layer4; and blocks within these"):
        Trunk("test_resnet", 9, backbone_args=SMALL["test_resnet"])


def test_every_end_is_a_module_and_stages_are_among_them():
    model = timm.create_model("mobilenetv2_050")
    ends = block_ends(model, list(model.feature_info))
    assert [end.path for end in ends if end.whole] == [info["module"] for info in model.feature_info]
    blocks = [f"blocks.{i}.{j}" for i, stage in enumerate(model.blocks) for j in range(len(stage))]
    assert [end.names[-1] for end in ends] == blocks
    assert all(model.get_submodule(name) for end in ends for name in end.names)


def plain_net(backbone, place):
    torch.manual_seed(0)
    net = PlainNet(PlainConfig(backbone=backbone, split_point=place, backbone_args=arguments(backbone)), TREE)
    net.transform = net.transform.adjusted(img_size=64)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.endswith(("bias", "running_mean")):
                tensor.add_(0.1 * torch.randn(tensor.shape))
    return net.eval()


@pytest.mark.parametrize(
    ("backbone", "place"),
    [("test_resnet", "layer4.0"), ("convnextv2_atto", "stages.3.blocks.0"), ("mobilenetv2_050", "blocks.5.0")],
)
@torch.no_grad()
def test_plain_networks_split_there_too(backbone, place, tmp_path):
    net, images = plain_net(backbone, place), torch.randn(2, 3, 64, 64)
    expected = net(images)
    features = net.features(images)
    torch.testing.assert_close(features, overheard(net.model, place, images))
    torch.testing.assert_close(net.head(features), expected, rtol=1e-4, atol=1e-5)
    behind = {id(p) for name, p in net.model.named_parameters() if name not in net.trunk_names}
    assert {id(parameter) for parameter in net.head.parameters()} == behind
    assert net.trunk_names == names(Trunk(backbone, place, backbone_args=arguments(backbone)).model)
    save_checkpoint(net, tmp_path / "plain.safetensors")
    assert torch.equal(load_checkpoint(tmp_path / "plain.safetensors").features(images), features)
    net.freeze_trunk()
    trained = {name for name, parameter in net.model.named_parameters() if parameter.requires_grad}
    assert trained and not trained & net.trunk_names
    assert not net.train().model.get_submodule(place).training


@pytest.fixture(scope="module")
def lean():
    """A small network whose shared stage is the backbone's own block."""
    torch.manual_seed(0)
    settings = {
        "backbone_args": SMALL["test_resnet"],
        "split_point": "layer4.0",
        "widths": (8, 4),
        "strides": (1, 1),
        "sharing": "reduce",
    }
    net = hlnet.create_model("test_resnet", TREE, class_rows=True, rank_leaves=True, **settings).eval()
    net.transform = net.transform.adjusted(img_size=64)
    return net


@torch.no_grad()
def test_what_is_done_with_networks_works(lean, tmp_path):
    images = torch.randn(2, 3, 64, 64)
    logits = lean(images)
    torch.testing.assert_close(hlnet.optimize(lean)(images), logits, rtol=1e-4, atol=1e-5)
    save_checkpoint(lean, tmp_path / "lean.safetensors")
    again = load_checkpoint(tmp_path / "lean.safetensors")
    assert again.config == lean.config and again.config.split_point == "layer4.0"
    assert torch.equal(again(images), logits)
    assert torch.equal(cut_expert(lean, "cat")(images), logits[:, :2])


def test_weights_of_the_whole_backbone_fill_the_block(lean, tmp_path):
    source = timm.create_model("test_resnet", **SMALL["test_resnet"])
    save_file({f"model.{name}": tensor for name, tensor in source.state_dict().items()}, tmp_path / "w.safetensors")
    trunk = Trunk("test_resnet", "layer4.0", backbone_args=SMALL["test_resnet"])
    load_trunk_weights(trunk.model, tmp_path / "w.safetensors")
    loaded = trunk.model.state_dict()
    assert torch.equal(loaded["layer4.0.conv2.weight"], source.state_dict()["layer4.0.conv2.weight"])
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in loaded.items())


def test_layers_are_numbered_and_thaw_up_to_the_block(lean):
    layers = lean.layer_numbers(coarse=True)
    assert layers["trunk.model.layer4.0.conv1.weight"] == layers["trunk.model.layer3.0.conv1.weight"] + 1
    assert layers["head.leaves.bias"] == layers["trunk.model.layer4.0.conv1.weight"] + 1
    lean.freeze_trunk()
    assert lean.unfreeze(1) == 1
    thawed = {name for name, parameter in lean.trunk.named_parameters() if parameter.requires_grad}
    assert thawed and all(name.startswith("model.layer4.0.") for name in thawed)
    lean.freeze_trunk(False)


def test_features_are_cached_by_the_place():
    digits = hlnet.load_data("digits", "val")
    keys = []
    for place in (2, "layer2", "layer3.0"):
        torch.manual_seed(0)
        settings = {"split_point": place, "widths": [8], "strides": [1], "backbone_args": SMALL["test_resnet"]}
        net = hlnet.create_model("test_resnet", tree=list(digits.classes), **settings)
        keys.append(feature_key(net, hlnet.TreeData(digits, net.tree, hlnet.eval_transform(net.transform)), seed=0))
    assert keys[0] == keys[1] != keys[2] and keys[2]["trunk"]["split_point"] == "layer3.0"


def test_sweep_over_blocks():
    shape = {"widths": (4, 4), "strides": (1, 1), "shared_width": 8, "shared_stride": 2}
    config = NetworkConfig(backbone="test_resnet", backbone_args=SMALL["test_resnet"], **shape)
    splits = sweep_split_points(config, TREE, InputTransform().adjusted(64), blocks=True)
    points = [split.split_point for split in splits]
    assert points == [0, 1, 2, "layer3.0", 3, "layer4.0", 4]
    assert [split.split_point for split in splits if split.chosen] == [3]
    by_place = {split.split_point: split for split in splits}
    # The leaves see 2x2 pixels wherever the trunk ends: the shared stage takes over the stride.
    assert [(by_place[p].shared_stride, by_place[p].strides) for p in (1, 2, "layer3.0", 3, "layer4.0", 4)] == [
        (8, (1, 1)), (4, (1, 1)), (2, (1, 1)), (2, (1, 1)), (1, (1, 1)), (1, (1, 1)),
    ]  # fmt: skip
    whole = sweep_split_points(config, TREE, InputTransform().adjusted(64))
    assert [split.split_point for split in whole] == [0, 1, 2, 3, 4]
    trunks = [split.costs.full.parts[0].macs for split in splits]
    assert trunks == sorted(trunks) and len(set(trunks)) == len(trunks)


def test_command_takes_a_block():
    line = ["profile", "convnextv2_atto", "--nodes", "2,3", "--img-size", "64", "--no-latency", "--json"]
    places = ("stages.3.blocks.0", "2", "3")
    costs = [json.loads(CliRunner().invoke(app, [*line, "--split-point", at]).stdout) for at in places]
    macs = [cost["full"]["parts"][0]["macs"] for cost in costs]
    assert macs[1] < macs[0] < macs[2]
