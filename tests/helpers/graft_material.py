"""Small networks with random weights, for tests of growing and grafting."""

import torch

from helpers.naive import randomise
from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
from hlnet.model.transform import InputTransform


def build(tree, block="bottleneck", channels=4):
    """A small network in float64 with random weights."""
    widths = tuple(range(channels + tree.num_levels, channels, -1))  # where one stays, timm leaves a norm out
    shape = {"widths": widths, "strides": (2, *(1,) * (tree.num_levels - 1))}
    torch.manual_seed(0)
    net = HierarchicalNet(NetworkConfig(backbone="test_resnet", split_point=-3, block=block, **shape), tree).double()
    randomise(net.head)
    net.transform = InputTransform(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0)
    return net.eval()
