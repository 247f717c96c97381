"""Networks with random weights and logits of order 1, and how near to them those of their inference forms must be."""

import pytest
import torch

from helpers.naive import randomise
from hlnet.model.fast.chunks import BottleneckChunk, ConvNeXtChunk
from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
from hlnet.model.plain import PlainConfig, PlainNet
from hlnet.model.transform import InputTransform
from hlnet.tree.class_tree import ClassTree

TREE = ClassTree.from_nested({"cat": ["tabby", "siamese", "lion"], "dog": ["beagle", "boxer"], "saw": None})
TREES = {
    "uneven": TREE,
    "phl": TREE.parallelized(levels=2),
    "deep": ClassTree.from_nested({"x": {"xx": {"p": ["a", "b", "c"]}, "xy": ["d"]}, "y": ["e", "f"], "g": None}),
    "one level": ClassTree.from_nested(["a", "b", "c"]),
    "one class": ClassTree.parallel(["only"], levels=3),
    "many children": ClassTree.from_nested({"x": [f"x{i}" for i in range(67)], "y": ["only"]}),
}
WIDTHS, STRIDES = (8, 6, 5, 4), (1, 2, 1, 1)
BACKBONES = {
    "CNN": ("test_resnet", {}, 64),
    "pre-activation": ("resnetv2_18", {"channels": (16, 16, 32, 32), "stem_chs": 16}, 64),
    "same padding": ("mobilenetv2_050", {"pad_type": "same"}, 64),
    "layer norms": ("test_convnext", {}, 64),
    "ViT": ("vit_tiny_patch16_224", {"img_size": 64, "depth": 4, "embed_dim": 48}, 64),
    "not traced": ("test_vit", {"img_size": 64}, 64),
}

blocks = pytest.mark.parametrize("block", ["bottleneck", "convnext"])
trees = pytest.mark.parametrize("tree", TREES.values(), ids=TREES)


@torch.no_grad()
def random_norms(model):
    """Random norms and biases, where there would be ones and zeros that hide their use."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.dim() <= 1 and tensor.is_floating_point():
            tensor.normal_(1.0 if name.endswith("weight") else 0.0, 0.2, generator=generator)
        elif name.endswith(("head.fc.weight", "head.weight")) and not tensor.any():
            tensor.normal_(0, 0.1, generator=generator)
    return model.eval()


def build(block="bottleneck", tree=TREE, trunk="CNN", **settings):
    """A network with random weights, in evaluation mode; its logits are of order 1."""
    backbone, arguments, size = BACKBONES[trunk]
    levels = {"widths": WIDTHS[: tree.num_levels], "strides": STRIDES[: tree.num_levels]}
    torch.manual_seed(0)
    config = NetworkConfig(backbone=backbone, backbone_args=arguments, block=block, **levels | settings)
    net = HierarchicalNet(config, tree).eval()
    random_norms(net.trunk)
    randomise(net.head)
    net.transform = InputTransform(input_size=(3, size, size))
    return of_order_one(net)


def of_order_one(net):
    """Scale the last step so that the largest logit is about 1."""
    with torch.no_grad():
        scale = net(images(2)).abs().max()
        net.head.leaves.weight /= scale
        net.head.leaves.bias /= scale
    return net


def plain(backbone="test_resnet", tree=TREE, **arguments):
    torch.manual_seed(0)
    net = PlainNet(PlainConfig(backbone=backbone, backbone_args=arguments), tree).eval()
    random_norms(net.model)
    net.transform = InputTransform(input_size=(3, 64, 64))
    return net


def images(batch=3, size=64, seed=0):
    size = size if isinstance(size, tuple) else (size, size)
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def random_gains(*shape):
    return 0.5 + torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def run(net, *arguments):
    with torch.inference_mode():
        return net(*arguments).clone()


def assert_near(found, expected, tolerance=1e-5):
    """Near in logits of order 1; where they are larger, in relation to the largest."""
    assert found.dtype == torch.float32 and found.shape == expected.shape
    error, scale = float((found.double() - expected).abs().max()), max(1.0, float(expected.abs().max()))
    assert error <= tolerance * scale


def both_gains(net, batch):
    """No gains, for each image, for the whole batch."""
    nodes = net.tree.num_nodes
    return [(), (random_gains(batch, nodes),), (random_gains(nodes),)]


@pytest.fixture
def packed(monkeypatch):
    """The rows and batches that chunks are packed for, as they are made."""
    made = []
    for kind, block in (("bottleneck", BottleneckChunk), ("convnext", ConvNeXtChunk)):
        original = block.__init__

        def watched(self, level, start, end, size, batch, dtype, kind=kind, original=original):
            made.append((kind, start, end, size, batch, dtype))
            original(self, level, start, end, size, batch, dtype)

        monkeypatch.setattr(block, "__init__", watched)
    return made
