"""Small networks to export: uneven trees, both blocks, nothing at its default; and their logits."""

import torch

from helpers.naive import randomise
from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
from hlnet.model.provenance import Provenance, Rejection
from hlnet.model.transform import InputTransform
from hlnet.tree.class_tree import ClassTree

DOGS = {"spaniel": {"sussex": 9, "cocker": 3}, "beagle": 162}
TREE = ClassTree.from_nested({"cat": {"tabby": 281, "siamese": 284}, "dog": DOGS, "säge": 491, "kite": 21})
TREE = TREE.with_ids({"cat": "n1", "cat/tabby": "n02123045"})
SIDE = 40


def build(block="bottleneck", tree=TREE, strides=(1, 2)):
    """A network in evaluation mode with random weights."""
    torch.manual_seed(0)
    widths, strides = ((*first, *(rest,) * tree.num_levels) for first, rest in (((4, 6, 5), 4), (strides, 1)))
    levels = {"widths": widths[: tree.num_levels], "strides": strides[: tree.num_levels]}
    config = NetworkConfig(backbone="test_resnet", split_point=-3, block=block, **levels)
    net = HierarchicalNet(config, tree).eval()
    randomise(net.head)
    net.transform = InputTransform(input_size=(3, SIDE, SIDE), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), crop_pct=0.9)
    stored = Rejection(score="energy", threshold=0.5, max_false_positive=0.01)
    net.provenance = Provenance(recipe={"epochs": 3}, parent="f00", temperature=1.7, rejection=stored)
    return net


def pixels(count, seed=1, side=SIDE):
    """Images as the graph takes them."""
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def cues(net, count):
    """Gains that differ from image to image."""
    return 2 * torch.rand(count, net.tree.num_nodes, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def logits(net, images, gains=None):
    """What torch says of images in 0..1."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (net.transform.mean, net.transform.std))
    return net((images - mean) / std, gains) if gains is not None else net((images - mean) / std)


def assert_near(found, expected):
    """To rounding in float32."""
    found = torch.as_tensor(found)
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 2e-5 * max(1.0, float(expected.abs().max()))
