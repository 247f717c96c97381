"""The presets against the paper's printed sizes, the general form, and timm's own ``create_model``."""

import json
import warnings

import pytest
import timm
import torch

from hlnet.errors import BackboneError, HlnetError, UsageError
from hlnet.model import presets
from hlnet.model.presets import PRESETS, create_model, network_config
from hlnet.model.trunk import Trunk
from hlnet.tree.class_tree import ClassTree

NESTED = {"animal": {"cat": ["tabby", "siamese"], "dog": ["beagle"]}, "tool": {"saw": ["chain saw"]}}
TREE = ClassTree.from_nested(NESTED)


@pytest.fixture(autouse=True)
def _no_memory():
    """Networks of up to 150 million parameters: shapes suffice."""
    with torch.device("meta"):
        yield


def shapes(net):
    return {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}


def millions(net):
    return sum(parameter.numel() for parameter in net.parameters()) / 1e6


@pytest.mark.parametrize(
    ("preset", "counts", "expected"),
    [
        ("phl_resnet50", (10, 10, 10), 19.9865),
        ("phl_resnet50", (5, 5, 5), 14.2649),
        ("n3hl_resnet50", (1, 9, 10), 11.9299),
        ("n3hl_resnet50", (1, 5, 5), 10.7813),
        ("n3hl_resnet50", (6, 26, 100), 24.9504),
        ("n3hl_resnet50", (1, 15, 20), 13.7905),
        ("n3hl_resnet50", (17, 161, 1000), 113.547),
        ("n3hl_resnet152", (6, 26, 100), 59.586),
        ("n3hl_resnet152", (17, 161, 1000), 148.183),
        ("n3hl_convnextv2_tiny", (1, 9, 10), 15.278),
        ("n3hl_convnextv2_tiny", (6, 26, 100), 27.745),
        ("n3hl_convnextv2_tiny", (17, 161, 1000), 121.381),
        ("n3hl_convnextv2_tiny", (1, 1, 5), 13.543),
    ],
)
def test_sizes_are_the_papers(preset, counts, expected):
    net = create_model(preset, tree=ClassTree.balanced(counts))
    assert round(millions(net), len(str(expected).split(".")[1])) == expected


@pytest.mark.parametrize(
    ("backbone", "parameters"), [("resnet50", 8_543_296), ("resnet152", 43_179_072), ("convnextv2_tiny", 12_378_240)]
)
def test_trunk_has_the_parameters_of_its_stages_alone(backbone, parameters):
    assert sum(parameter.numel() for parameter in Trunk(backbone).parameters()) == parameters


@pytest.mark.parametrize(
    ("preset", "sides"),
    [
        ("phl_resnet50", (14, 7, 4, 2)),
        ("n3hl_resnet50", (14, 14, 14, 7)),
        ("n3hl_resnet152", (14, 14, 14, 7)),
        ("n3hl_convnextv2_tiny", (14, 14, 14, 7)),
    ],
)
def test_feature_maps_are_the_papers(preset, sides):
    net = create_model(preset, tree=TREE).eval()
    images, found = torch.zeros(2, 3, 224, 224), []
    for module in (net.trunk, *net.head.levels):
        module.register_forward_hook(lambda _, args, output: found.append(output.shape[-1]))
    assert net(images).shape == (2, 4)
    assert tuple(sorted(set(found), reverse=True)) == tuple(sorted(set(sides), reverse=True))
    assert found[:4] == list(sides)  # depth first: the first path from the trunk to a leaf


def test_every_preset_is_covered():
    papers = {"phl_resnet50", "n3hl_resnet50", "n3hl_resnet152", "n3hl_convnextv2_tiny"}
    assert {name for name in PRESETS if not name.startswith("lean_")} == papers


# ---------------------------------------------------------------------- trees


def test_tree_may_be_a_tree_or_nested_or_a_file(tmp_path):
    path = tmp_path / "tree.json"
    path.write_text(json.dumps(NESTED))
    for tree in (TREE, NESTED, path, str(path)):
        net = create_model("n3hl_resnet50", tree=tree)
        assert net.tree.classes == TREE.classes and net.tree.counts == (2, 3, 4)


@pytest.mark.parametrize("arguments", [{}, {"num_classes": 4}, {"tree": None}], ids=str)
def test_missing_tree_is_asked_for(arguments):
    with pytest.raises(UsageError, match="'n3hl_resnet50' needs a class tree"):
        create_model("n3hl_resnet50", **arguments)


def test_phl_needs_no_tree_but_a_number():
    net = create_model("phl_resnet50", num_classes=4)
    assert net.tree.sibling_counts == ((4,), (1,) * 4, (1,) * 4)
    assert shapes(net) == shapes(create_model("phl_resnet50", tree=ClassTree.parallel(list("abcd"))))
    with pytest.raises(UsageError, match="needs a class tree"):
        create_model("phl_resnet50")


def test_phl_of_a_list_of_classes_is_a_chain_for_each():
    assert create_model("phl_resnet50", tree=["cat", "dog"]).tree.counts == (2, 2, 2)


@pytest.mark.parametrize("name", ["n3hl_resnet50", "phl_resnet50", "resnet18"])
def test_number_of_classes_must_agree_with_the_tree(name):
    assert len(create_model(name, tree=TREE, num_classes=4).tree.classes) == 4
    with pytest.raises(UsageError, match="num_classes=5, but the tree has 4 classes"):
        create_model(name, tree=TREE, num_classes=5)


def test_tree_of_other_levels_than_the_preset_is_refused():
    with pytest.raises(UsageError, match=r"tree has 2 level.*widths are for 3.*levels=3"):
        create_model("n3hl_resnet50", tree={"cat": ["tabby"], "dog": ["beagle"]})


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("backbone", "levels", "block", "widths", "strides"),
    [
        ("resnet18", 1, None, (32,), (2,)),
        ("resnet18", 3, None, (32, 16, 16), (1, 1, 2)),  # 256 channels
        ("resnet50", 3, None, (128, 64, 32), (1, 1, 2)),
        ("vit_tiny_patch16_224", 4, None, (32, 16, 16, 16), (1, 1, 1, 2)),
        ("convnextv2_atto", 1, None, (104,), (2,)),
        ("convnext_tiny", 3, None, (256, 128, 64), (1, 1, 2)),
        ("convnextv2_atto", 2, "bottleneck", (32, 16), (1, 2)),
        ("resnet18", 2, "convnext", (168, 80), (1, 2)),
        ("mobilenetv2_100", 3, None, (32, 16, 16), (1, 1, 2)),
    ],
)
def test_general_form(backbone, levels, block, widths, strides):
    config = network_config(backbone, levels, block=block)
    assert (config.widths, config.strides, config.backbone) == (widths, strides, backbone)
    assert config.block == (block or ("convnext" if backbone.startswith("convnext") else "bottleneck"))


@pytest.mark.parametrize("preset", ["n3hl_resnet50", "n3hl_convnextv2_tiny"])
def test_general_form_of_a_presets_backbone_is_the_preset(preset):
    assert network_config(PRESETS[preset]["backbone"], 3) == network_config(preset, 3)


def test_settings_override_a_preset():
    net = create_model("n3hl_resnet50", tree=TREE, widths=(8, 6, 4), split_point=-3, backbone_args={"in_chans": 1})
    assert net.trunk.model.conv1.in_channels == 1
    assert net.config.widths == (8, 6, 4) and net.config.strides == (1, 1, 2)
    assert net.trunk.stage == "layer2" and net.config.split_point == 2
    assert net.head.leaves.weight.shape == (4, 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": (8, 6, 4)}, "no setting 'width'. Did you mean 'widths'"),
        ({"splitpoint": 2}, "no setting 'splitpoint'. Did you mean 'split_point'"),
        ({"xyz": 2}, "no setting 'xyz'"),
        ({"widths": (8, 6)}, r"widths \(8, 6\) and strides \(1, 1, 2\).*one entry a level"),
        ({"strides": (1, 2)}, "one entry a level"),
        ({"widths": (8, 6), "strides": (1, 2)}, r"tree has 3 level.*for 2"),
        ({"widths": (8, 6, 0)}, r"widths.*greater than 0"),
        ({"widths": 8}, "widths 8"),
        ({"block": "resnet"}, "block 'resnet'.*'bottleneck' or 'convnext'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_wrong_settings_are_refused_in_one_line(settings, message):
    with pytest.raises(UsageError, match=message) as caught:
        create_model("n3hl_resnet50", tree=TREE, **settings)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("n3hl_resnet5O", "n3hl_resnet50"), ("n3hl-resnet152", "n3hl_resnet152"), ("resnet5O", "resnet50")],
)
def test_unknown_name_names_the_nearest(name, nearest):
    with pytest.raises(BackboneError, match=f"Did you mean .*'{nearest}'"):
        create_model(name, tree=TREE)


# ---------------------------------------------------------------------- timm


@pytest.mark.parametrize("preset", PRESETS)
def test_timm_builds_the_same_network(preset):
    presets.register_with_timm()
    net = timm.create_model(preset, tree=TREE, num_classes=4)
    assert shapes(net) == shapes(create_model(preset, tree=TREE))
    assert net.tree == (TREE.parallelized() if preset.startswith("phl_") else TREE)
    assert preset in timm.list_models(["*hl_*", "lean_*"])


def test_timm_hands_settings_and_errors_on():
    presets.register_with_timm()
    net = timm.create_model("n3hl_resnet50", tree=TREE, widths=(8, 6, 4))
    assert shapes(net) == shapes(create_model("n3hl_resnet50", tree=TREE, widths=(8, 6, 4)))
    assert timm.create_model("phl_resnet50", num_classes=3).tree.counts == (3, 3, 3)
    with pytest.raises(HlnetError, match="needs a class tree"):
        timm.create_model("n3hl_resnet50")
    with pytest.raises(HlnetError, match="num_classes=5"):
        timm.create_model("n3hl_resnet50", tree=TREE, num_classes=5)


def test_registering_again_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        presets.register_with_timm()
        presets.register_with_timm()


def test_registering_leaves_the_modules_public_names_intact():
    presets.register_with_timm()
    names: dict = {}
    exec("from hlnet.model.presets import *", names)
    assert names["create_model"] is create_model
