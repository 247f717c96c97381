"""Small networks with settings unlike the defaults, and trees with choices of their classes."""

import torch
from hypothesis import strategies as st

from helpers.naive import randomise
from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
from hlnet.model.provenance import FittedAttention, Provenance
from hlnet.model.transform import InputTransform
from hlnet.tree.class_tree import ClassTree

SHAPES = st.recursive(st.none(), lambda below: st.lists(below, min_size=1, max_size=3), max_leaves=8).filter(bool)


DOGS = {"spaniel": {"sussex": 9, "cocker": 3}, "beagle": 162}


TREE = ClassTree.from_nested({"cat": {"tabby": 281, "siamese": 284}, "dog": DOGS, "saw": 491})


TREE = TREE.with_ids({"cat": "n1", "cat/tabby": "n02123045", "saw": "n04"})


@st.composite
def trees_and_choices(draw):
    """A tree of uneven depth with indices and some ids, and a choice of its classes."""
    counter = iter(range(1000))

    def mapping(shape):
        return {f"n{next(counter)}": mapping(below) if below else 7 * next(counter) + 2 for below in shape}

    tree = ClassTree.from_nested(mapping(draw(SHAPES)))
    tree = tree.with_ids({leaf.path: f"id {leaf.index}" for leaf in tree.leaves[::2]})
    return tree, draw(st.sets(st.integers(0, len(tree.leaves) - 1), min_size=1))


def build(tree=TREE, block="bottleneck", **settings):
    """A small network in float64 with random weights and settings unlike the defaults."""
    levels = {"widths": (4,) * tree.num_levels, "strides": (2, *(1,) * (tree.num_levels - 1))}
    settings = {"backbone": "test_resnet", "split_point": -3} | settings
    torch.manual_seed(0)
    net = HierarchicalNet(NetworkConfig(block=block, **levels, **settings), tree).double()
    randomise(net.head)
    net.transform = InputTransform(input_size=(3, 32, 32), mean=(0.1, 0.2, 0.3))
    net.provenance = Provenance(
        recipe={"epochs": 3}, metrics={"top1": 0.9}, attention=FittedAttention(reliability=0.9, gain=((2.0, 3.0),))
    )
    return net.eval()
