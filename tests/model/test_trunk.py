"""The trunk: every family against its unpruned timm model, split points, and loading of weight files."""

import pickle
import socket
from functools import cache
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from hlnet.data.tree_data import eval_transform
from hlnet.errors import BackboneError, CheckpointError, RunError, UsageError
from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
from hlnet.model.trunk import Trunk, create_backbone, load_trunk_weights
from hlnet.training.run_config import read_run_config
from hlnet.training.run_parts import build_network
from hlnet.tree.class_tree import ClassTree

TREE = ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle"]})
FAMILIES = {  # backbone: last stage kept, channels; 14 x 14 pixels each
    "resnet18": ("layer3", 256),
    "resnet50": ("layer3", 1024),
    "convnextv2_atto": ("stages.2", 160),
    "mobilenetv2_100": ("blocks.4", 96),
    "efficientnet_b0": ("blocks.4", 112),
    "vit_tiny_patch16_224": ("blocks.8", 192),
    "swin_tiny_patch4_window7_224": ("layers.2", 384),
}
TINY = "test_resnet"  # timm's, half a million parameters
CONV = "layer2.0.conv1.weight"  # one of its tensors


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@cache
def network(backbone):
    return HierarchicalNet(NetworkConfig(backbone=backbone, widths=(8, 4), strides=(1, 2)), TREE).eval()


def output_of_stage(trunk, images, **arguments):
    """The stage's output as ``[B, C, h, w]``, overheard in the unpruned timm model with the trunk's weights."""
    model = timm.create_model(trunk.backbone, **arguments).eval()
    assert not model.load_state_dict(trunk.model.state_dict(), strict=False).unexpected_keys
    heard = []
    model.get_submodule(trunk.stage).register_forward_hook(lambda _, args, output: heard.append(output))
    model(images)
    features = heard[0]
    if trunk.stage.startswith("layers."):  # Swin: channels last
        return features.permute(0, 3, 1, 2)
    if features.dim() == 3:  # ViT: a class token, then the patches
        side = round((features.shape[1] - 1) ** 0.5)
        return features[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    return features


@torch.no_grad()
@pytest.mark.parametrize("backbone", FAMILIES)
def test_network_on_every_family(backbone):
    net, (stage, channels) = network(backbone), FAMILIES[backbone]
    images = torch.randn(2, *net.transform.input_size)
    assert (net.trunk.stage, net.trunk.channels, net.trunk.reduction) == (stage, channels, 16)
    features = net.trunk(images)
    assert features.shape == (2, channels, 14, 14)
    torch.testing.assert_close(features, output_of_stage(net.trunk, images))
    assert torch.equal(net(images), net.head(features))
    assert net(images).shape == (2, 3)


@torch.no_grad()
@pytest.mark.parametrize(
    ("backbone", "split_point", "stage", "channels", "side"),
    [
        ("resnet18", 0, "act1", 64, 32),
        ("resnet18", -3, "layer2", 128, 8),
        ("resnet18", -1, "layer4", 512, 2),
        ("efficientnet_b0", 1, "blocks.1", 24, 16),
        ("vit_tiny_patch16_224", -1, "blocks.11", 192, 4),
        ("swin_tiny_patch4_window7_224", -4, "layers.0", 96, 16),
    ],
)
def test_split_points(backbone, split_point, stage, channels, side):
    arguments = {"img_size": 64} if "patch" in backbone else {}
    trunk = Trunk(backbone, split_point, backbone_args=arguments).eval()
    assert (trunk.stage, trunk.channels, trunk.reduction) == (stage, channels, 64 // side)
    images = torch.randn(1, 3, 64, 64)
    assert trunk(images).shape == (1, channels, side, side)
    torch.testing.assert_close(trunk(images), output_of_stage(trunk, images, **arguments))


@pytest.mark.parametrize("split_point", [5, -6, 99])
def test_split_point_out_of_range_lists_the_stages(split_point):
    with pytest.raises(BackboneError, match=rf"no split point {split_point}; it has 0: act1, 1: layer1.*4: layer4"):
        Trunk("resnet18", split_point)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("resnet5O", "resnet50"), ("convnextv2-tiny", "convnextv2_tiny"), ("ResNet50", "resnet50"), ("", None)],
)
def test_unknown_backbone_names_the_nearest(name, nearest):
    with pytest.raises(
        BackboneError, match=rf"no backbone '{name}'\." + (f" Did you mean .*'{nearest}'" if nearest else "")
    ):
        Trunk(name)


@pytest.mark.parametrize("name", ["resnet50.nonsense", "timm/resnet50", "local-dir:/no/such/folder"])
def test_name_that_timm_cannot_build_is_refused_with_our_error(name):
    with pytest.raises(UsageError, match=name):
        Trunk(name)


@pytest.mark.parametrize("missing", ["forward_intermediates", "prune_intermediate_layers"])
def test_backbone_that_cannot_be_split_says_why(monkeypatch, missing):
    # Every family of timm 1.0.31 can be split; earlier and later ones need not.
    monkeypatch.delattr(timm.models.resnet.ResNet, missing)
    with pytest.raises(BackboneError, match=r"'test_resnet' cannot be split: .*choose one"):
        Trunk(TINY)


def test_backbone_of_a_single_stage_cannot_be_split():
    with pytest.raises(BackboneError, match="cannot be split: it has a single stage"):
        Trunk("vit_tiny_patch16_224", backbone_args={"depth": 1})


@pytest.mark.parametrize(
    ("backbone", "arguments"),
    [
        ("resnet18", {"nonsense": 1}),
        ("resnet18", {"output_stride": 7}),
        ("resnet18", {"pretrained": True}),
        ("vit_tiny_patch16_224", {"img_size": -3}),
    ],
)
def test_arguments_that_the_backbone_refuses(backbone, arguments):
    with pytest.raises(BackboneError, match=f"'{backbone}'.*{next(iter(arguments))}"):
        Trunk(backbone, backbone_args=arguments)


def test_pretrained_weights_that_cannot_be_had(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match=r"pretrained weights of 'test_resnet' could not be had.*local file"):
        create_backbone(TINY, {"cache_dir": tmp_path}, pretrained=True)


# ---------------------------------------------------------------------- weight files


def full_weights():
    torch.manual_seed(1)
    model = timm.create_model(TINY)
    return {name: torch.rand_like(t) if t.is_floating_point() else t + 7 for name, t in model.state_dict().items()}


def untracked(weights):
    return {name: tensor for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
    ("name", "save", "form"),
    [
        ("w.safetensors", save_file, dict),
        ("w.pth", torch.save, dict),
        ("training.pth", torch.save, lambda weights: {"state_dict": weights, "epoch": 3}),
        ("parallel.pt", torch.save, lambda weights: {f"module.{key}": tensor for key, tensor in weights.items()}),
        ("untracked.pth", torch.save, untracked),
    ],
)
def test_weights_load(tmp_path, name, save, form):
    weights, trunk = full_weights(), Trunk(TINY)
    save(form(weights), tmp_path / name)
    load_trunk_weights(trunk.model, tmp_path / name)
    loaded = trunk.model.state_dict()
    assert 0 < len(loaded) < len(weights)
    for key in untracked(loaded):
        assert torch.equal(loaded[key], weights[key]), key


@pytest.mark.parametrize("prefix", ["model.", "model.encoder_q.", "backbone."])
def test_a_prefix_of_all_names_is_taken_off_and_told(tmp_path, caplog, prefix):
    source, target = create_backbone(TINY), create_backbone(TINY)
    named = {f"{prefix}{name}": tensor for name, tensor in source.state_dict().items()}
    save_file(named | {"head.weight": torch.zeros(2)}, tmp_path / "w.safetensors")
    with caplog.at_level("INFO", "hlnet"):
        load_trunk_weights(target, tmp_path / "w.safetensors")
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in target.state_dict().items())
    assert f"the prefix '{prefix}'" in caplog.text


@pytest.mark.parametrize("channels", [2, 6])
def test_other_channels_are_refused_on_one_line(channels):
    with pytest.raises(UsageError, match=f"in_chans {channels}: images have 3 channels, or 1"):
        Trunk(TINY, backbone_args={"in_chans": channels})


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", TINY])
def test_images_that_are_not_square(backbone):
    network = {"backbone": backbone, "widths": (4,), "strides": (1,)}
    run = read_run_config(given={"network": network, "transform": {"input_size": [3, 48, 64]}})
    net = build_network(run, ClassTree.from_nested(["cat", "dog"])).eval()
    assert net.transform.input_size == (3, 48, 64)
    assert eval_transform(net.transform)(Image.new("RGB", (300, 200))).shape == (3, 48, 64)
    assert net.features(torch.zeros(1, 3, 48, 64)).shape[2:] == (3, 4)


def test_only_the_names_asked_for_are_loaded(tmp_path):
    weights, model = full_weights(), timm.create_model(TINY)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    names = {key for key in before if key.startswith("layer1.")}
    torch.save({key: weights[key] for key in names}, tmp_path / "w.pth")
    load_trunk_weights(model, tmp_path / "w.pth", names)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, (weights if key in names else before)[key]), key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(CONV), f"lacks 1 of the trunk's .*'{CONV}'.*another backbone"),
        (lambda weights: weights.clear(), "lacks .*another backbone"),
        (lambda weights: weights.update({CONV: torch.zeros(2, 3)}), rf"'{CONV}' has shape \(2, 3\)"),
        (lambda weights: weights.update({CONV: 3}), CONV),
    ],
    ids=["missing", "empty", "another shape", "no tensor"],
)
def test_weights_that_do_not_fit_change_nothing(tmp_path, change, message):
    weights, trunk = full_weights(), Trunk(TINY)
    before = {key: tensor.clone() for key, tensor in trunk.model.state_dict().items()}
    change(weights)
    torch.save(weights, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=message):
        load_trunk_weights(trunk.model, tmp_path / "w.pth")
    assert all(torch.equal(tensor, before[key]) for key, tensor in trunk.model.state_dict().items())


class Payload:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))])
def test_pickled_code_is_refused_and_does_not_run(tmp_path, monkeypatch, save):
    monkeypatch.chdir(tmp_path)
    save({"state_dict": full_weights(), "extra": Payload()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="no file of weights that can be read safely"):
        load_trunk_weights(Trunk(TINY).model, tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w"])
@pytest.mark.parametrize("content", [b"", b"no weights here\n", b"\x80\x02}.", b"PK\x03\x04", b"\xff" * 64], ids=repr)
def test_file_of_something_else_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name}' (is no file of weights|lacks)") as caught:
        load_trunk_weights(Trunk(TINY).model, tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [torch.zeros(3), [1, 2], 5, {"state_dict": [1]}, {1: torch.zeros(1)}], ids=str)
def test_pickle_of_something_else_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"w\.pth"):
        load_trunk_weights(Trunk(TINY).model, tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["nothing.pth", "."])
def test_missing_file_is_a_usage_error(tmp_path, name):
    with pytest.raises(UsageError, match="there is no weight file"):
        load_trunk_weights(Trunk(TINY).model, tmp_path / name)
