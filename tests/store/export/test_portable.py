"""The portable form: the training form's logits, in few operators."""

import pytest
import torch
import torch.nn.functional as F
from helpers.exported_nets import assert_near, build, cues, logits, pixels
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
from hlnet.model.plain import PlainConfig, PlainNet
from hlnet.store.export.portable import PortableNet
from hlnet.tree.class_tree import ClassTree

SHAPES = st.recursive(st.none(), lambda below: st.lists(below, min_size=1, max_size=4), max_leaves=12).filter(bool)
TRUNKS = {
    "pre-activation": ("resnetv2_18", {"channels": (16, 16, 32, 32), "stem_chs": 16}),
    "same padding": ("mobilenetv2_050", {"pad_type": "same"}),
    "layer norms": ("test_convnext", {}),
    "ViT": ("vit_tiny_patch16_224", {"img_size": 64, "depth": 2, "embed_dim": 48}),
}


def nested(shape, path="n"):
    return {f"{path}{i}": nested(below, f"{path}{i}") if below else None for i, below in enumerate(shape)}


@settings(max_examples=15, deadline=None)
@given(SHAPES, st.sampled_from(["bottleneck", "convnext"]), st.sampled_from([(1, 2), (2, 1), (1, 1)]))
def test_logits_of_every_tree_with_and_without_gains(shape, block, strides):
    tree = ClassTree.from_nested(nested(shape))
    net = build(block, tree, strides)
    portable, images = PortableNet(net), pixels(2)
    with torch.no_grad():
        assert_near(portable(images), logits(net, images))
        gains = cues(net, 2)
        assert_near(portable(images, gains), logits(net, images, gains))
        assert_near(portable(images, torch.ones_like(gains)), logits(net, images))


@pytest.mark.parametrize("trunk", TRUNKS)
def test_every_kind_of_trunk_and_plain_network(trunk):
    backbone, arguments = TRUNKS[trunk]
    tree, images = ClassTree.from_nested({"a": ["b", "c"], "d": None}), pixels(2, side=64)
    torch.manual_seed(0)
    config = NetworkConfig(backbone=backbone, backbone_args=arguments, widths=(4, 4), strides=(1, 2))
    plain = PlainNet(PlainConfig(backbone=backbone, backbone_args=arguments), tree)
    for net in (HierarchicalNet(config, tree), plain):
        for name, tensor in net.state_dict().items():  # not the ones and zeros that hide what is forgotten
            if name.endswith(("bias", "running_mean")) or not tensor.any():
                tensor.normal_(0, 0.1) if tensor.is_floating_point() else None
        net.transform = net.transform.adjusted(img_size=64)
        with torch.no_grad():
            assert_near(PortableNet(net.eval())(images), logits(net, images))


@pytest.mark.parametrize("traced", [True, False])
def test_the_network_stays_as_it_was(monkeypatch, traced):
    net = build().double()
    if not traced:
        monkeypatch.setattr(fx.Tracer, "trace", lambda *given, **named: exec("raise RuntimeError('no trace')"))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    portable = PortableNet(net)
    assert {tensor.dtype for tensor in portable.parameters()} == {torch.float32}
    for tensor in portable.parameters():
        tensor.data.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize(
    ("tree", "convolutions"),
    [
        (ClassTree.balanced((2, 8, 40)), 3 * 4 + 1),
        (ClassTree.parallel([f"c{i}" for i in range(40)], levels=3), 3 * 4 + 1),
        (ClassTree.from_nested({"x": {"p": ["a", "b"], "q": ["c"]}, "y": {"r": ["d", "e"]}}), 4 + 8 + 8 + 1),
    ],
    ids=["balanced", "phl", "two sizes"],
)
def test_operators_go_with_the_sizes_of_families(tree, convolutions, monkeypatch):
    head = PortableNet(build(tree=tree)).head
    called, conv2d = [], F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *given, **named: called.append(1) or conv2d(*given, **named))
    head(torch.randn(1, head.levels[0].pieces[0].block.w1.shape[1], 8, 8), None)
    assert len(called) == convolutions
