"""Plain networks: timm's own model and logits, a head that continues from the features, a trunk that stays frozen."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from hlnet.errors import BackboneError
from hlnet.model.plain import PlainConfig, PlainNet
from hlnet.model.transform import InputTransform
from hlnet.model.trunk import Trunk
from hlnet.store.checkpoint import load_checkpoint, save_checkpoint
from hlnet.training.run_config import read_run_config
from hlnet.training.run_parts import build_network
from hlnet.tree.class_tree import ClassTree

TREE = ClassTree.from_nested({"cat": {"tabby": 281, "siamese": 284}, "saw": 491})
SIZE = 64
IMAGES = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
CNNS = ["test_resnet", "resnet10t", "test_convnext", "test_efficientnet", "mobilenetv3_small_050", "regnetx_002"]
SWIN = {"img_size": 64, "window_size": 2, "embed_dim": 12, "depths": [2, 2, 2, 2]}
OTHERS = [("test_vit", {"img_size": SIZE}), ("swin_tiny_patch4_window7_224", SWIN)]


def build(backbone, split_point=None, arguments=None):
    torch.manual_seed(0)
    net = PlainNet(PlainConfig(backbone=backbone, split_point=split_point, backbone_args=arguments or {}), TREE)
    net.transform = net.transform.adjusted(img_size=SIZE)
    with torch.no_grad():  # as built, biases and running means are zero and hide their use
        for name, tensor in net.state_dict().items():
            if name.endswith(("bias", "running_mean")):
                tensor.add_(0.1 * torch.randn(tensor.shape))
    return net.eval()


@pytest.mark.parametrize(("backbone", "arguments"), [*((name, {}) for name in CNNS), *OTHERS])
@torch.no_grad()
def test_net_is_timms(backbone, arguments):
    net = build(backbone, arguments=arguments)
    theirs = timm.create_model(backbone, num_classes=3, **arguments).eval()
    theirs.load_state_dict(net.model.state_dict())
    assert torch.equal(net(IMAGES), theirs(IMAGES))
    trunk = Trunk(backbone, backbone_args=arguments).eval()
    trunk.model.load_state_dict({name: net.model.state_dict()[name] for name in net.trunk_names})
    torch.testing.assert_close(net.features(IMAGES), trunk(IMAGES), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("backbone", "split"), [*((name, None) for name in CNNS), ("test_resnet", -3), ("resnet10t", 1)]
)
@torch.no_grad()
def test_head_continues_from_the_features(backbone, split):
    net = build(backbone, split)
    assert torch.allclose(net.head(net.features(IMAGES)), net(IMAGES), atol=1e-5)
    own = {id(parameter) for parameter in net.head.parameters()}
    behind = {id(p) for name, p in net.model.named_parameters() if name not in net.trunk_names}
    assert own == behind and own and not net.training
    assert net.train().head is not None and net.training  # looking does not change the mode


@pytest.mark.parametrize(("backbone", "arguments"), OTHERS)
def test_head_that_cannot_be_had_is_refused(backbone, arguments):
    net = build(backbone, arguments=arguments).train()
    with pytest.raises(BackboneError, match=f"'{backbone}'.*cannot be cached"):
        _ = net.head
    assert net.training and net(IMAGES).shape == (2, 3) and torch.isfinite(net(IMAGES)).all()


@pytest.mark.parametrize(
    ("backbone", "arguments"),
    [
        ("test_resnet", {}),
        ("resnet10t", {"drop_path_rate": 0.5}),
        ("test_efficientnet", {}),
        ("test_convnext", {"drop_path_rate": 0.5}),
        ("test_vit", {"img_size": SIZE, "drop_path_rate": 0.5, "proj_drop_rate": 0.5}),
    ],
    ids=str,
)
def test_frozen_trunk_keeps_its_statistics_and_its_output(backbone, arguments):
    net = build(backbone, arguments=arguments)
    with torch.no_grad():
        expected = net.features(IMAGES)
    net.freeze_trunk()
    before = {name: tensor.clone() for name, tensor in net.model.state_dict().items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        net.train()(IMAGES).square().sum().backward()
        optimizer.step()
    after = net.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in net.trunk_names)
    assert all(not torch.equal(after[name], before[name]) for name, _ in net.model.named_parameters()
               if name not in net.trunk_names and not torch.equal(before[name], 0 * before[name]))  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(net.train().features(IMAGES), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backbone", ["resnet10t", "test_efficientnet"])
def test_dropout_that_is_no_module_is_refused(backbone):
    with pytest.raises(BackboneError, match="drop_rate"):
        _ = build(backbone, arguments={"drop_rate": 0.5}).head


@torch.no_grad()
def test_head_drops_out_as_the_net_does():
    net = build("test_convnext", arguments={"drop_rate": 0.5})
    net.freeze_trunk()
    net.train()
    runs = []
    for module, x in ((net, IMAGES), (net.head.train(), net.features(IMAGES)), (net, IMAGES)):
        torch.manual_seed(1)
        runs.append(module(x))
    assert torch.equal(runs[0], runs[2])
    torch.testing.assert_close(runs[1], runs[0], rtol=0, atol=1e-5)


def test_trunk_trains_unless_frozen():
    net = build("test_resnet").train()
    before = {name: tensor.clone() for name, tensor in net.model.state_dict().items()}
    net(IMAGES)
    assert all(not torch.equal(net.model.state_dict()[name], before[name]) for name in before if "running" in name)
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize(("backbone", "arguments"), [("test_resnet", {}), *OTHERS])
def test_checkpoint_round_trip(tmp_path, backbone, arguments):
    net = build(backbone, arguments=arguments)
    net.transform = InputTransform(input_size=(3, SIZE, SIZE), mean=(0.1, 0.2, 0.3))
    net.provenance.metrics = {"top1": 0.5}
    save_checkpoint(net, tmp_path / "plain.safetensors")
    again = load_checkpoint(tmp_path / "plain.safetensors")
    assert isinstance(again, PlainNet) and not again.training
    assert (again.config, again.tree, again.transform, again.provenance) == (
        net.config, net.tree, net.transform, net.provenance,
    )  # fmt: skip
    with torch.no_grad():
        assert torch.equal(again(IMAGES), net(IMAGES)) and torch.equal(again.features(IMAGES), net.features(IMAGES))


@pytest.mark.parametrize(("backbone", "split"), [("test_resnett", None), ("test_resnet", 9), ("hlnet_phl", None)])
def test_backbone_that_is_none_is_refused(backbone, split):
    with pytest.raises(BackboneError, match=backbone):
        PlainNet(PlainConfig(backbone=backbone, split_point=split), TREE)


def test_all_but_the_classifier_can_be_pretrained(tmp_path):
    source, tree = timm.create_model("test_resnet"), ClassTree.from_nested(["cat", "dog"])
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    network = {"backbone": "test_resnet", "plain": True, "trunk_weights": str(tmp_path / "w.safetensors")}
    net = build_network(read_run_config(given={"network": network}), tree)
    same = {name for name, tensor in net.model.state_dict().items() if torch.equal(tensor, source.state_dict()[name])}
    assert {*net.model.state_dict()} - same <= {"fc.weight", "fc.bias"}
