"""Small lean networks: what classes and siblings share, in all kinds, over trees of any shape."""

import torch
from hypothesis import strategies as st

from helpers.naive import NaiveTree, copy_weights, randomise
from hlnet.model.hierarchical import BranchTree, HierarchicalNet, NetworkConfig
from hlnet.model.transform import InputTransform
from hlnet.tree.class_tree import ClassTree

CHANNELS = 12
TREES = {
    "n3hl": ClassTree.balanced((2, 5, 9)),
    "uneven": ClassTree.from_nested({"x": {"xx": ["a", "b", "c"], "xy": ["d"]}, "y": ["e", "f"], "g": None}),
    "one level": ClassTree.from_nested(["a", "b", "c"]),
}
#: Every value of every field, and all of them together.
LEAN = {
    "shortcut": {"block": "bottleneck", "sharing": "shortcut"},
    "reduce": {"block": "bottleneck", "sharing": "reduce", "strides": (1, 2, 1)},
    "rank": {"block": "bottleneck", "rank_leaves": True, "strides": (2, 1, 2)},
    "rows": {"block": "bottleneck", "class_rows": True},
    "stage": {"block": "bottleneck", "shared_width": 3, "shared_blocks": 2},
    "all": {
        "block": "bottleneck",
        "sharing": "reduce",
        "rank_leaves": True,
        "class_rows": True,
        "shared_width": 4,
        "shared_stride": 2,
        "strides": (1, 1, 1),
    },
    "convnext, reduce": {"block": "convnext", "sharing": "reduce", "strides": (1, 2, 1)},
    "convnext, rows": {"block": "convnext", "class_rows": True},
    "convnext, all": {
        "block": "convnext",
        "sharing": "reduce",
        "rank_leaves": True,
        "class_rows": True,
        "shared_width": 8,
        "shared_blocks": 2,
        "shared_stride": 2,
        "strides": (1, 1, 1),
    },
}


def lean_config(levels, backbone="test_resnet", **lean):
    """The config of one of these, for a tree with so many levels."""
    strides = lean.pop("strides", (1, 1, 2))[:levels]
    strides, widths = (*strides, *(1,) * (levels - len(strides))), (6, 5, *(4,) * levels)[:levels]
    return NetworkConfig(backbone=backbone, split_point=-3, widths=widths, strides=strides, **lean)


def naive_of(config, tree, channels):
    """The naive form that a config asks for."""
    shared = (config.shared_width, config.shared_blocks, config.shared_stride) if config.shared_width else None
    return NaiveTree(
        *(tree, channels, config.block, config.widths, config.strides),
        sharing=config.sharing,
        rank_leaves=config.rank_leaves,
        shared=shared,
        class_rows=config.class_rows,
    )


def both(tree, lean, dtype=torch.float64):
    """A head with random weights, in evaluation mode, and its naive counterpart."""
    config = lean_config(tree.num_levels, **lean)
    head = BranchTree.of(config, tree, CHANNELS).to(dtype).eval()
    naive = naive_of(config, tree, CHANNELS).to(dtype).eval()
    randomise(head)
    copy_weights(head, naive)
    return head, naive


def build_lean(tree, lean, dtype=torch.float64):
    """A whole network, with random weights."""
    torch.manual_seed(0)
    net = HierarchicalNet(lean_config(tree.num_levels, **lean), tree).to(dtype)
    randomise(net.head)
    net.transform = InputTransform(input_size=(3, 32, 32), mean=(0.1, 0.2, 0.3), crop_pct=1.0)
    return net.eval()


@torch.no_grad()
def build_undecided(tree, lean):
    """A whole network with class rows, whose rows and leaves tell images apart and often disagree."""
    net = build_lean(tree, lean, torch.float32)
    x = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    logits, rows = net(x, with_rows=True)
    for part, found, size in ((net.head.class_rows, rows, 1.0), (net.head.leaves, logits - rows, 0.5)):
        scale = size / found.std(dim=0).clamp(min=0.01)  # a leaf may be dead
        part.weight *= scale[:, None]
        part.bias.copy_(scale * (part.bias - found.mean(dim=0)))
    return net


@st.composite
def lean_settings(draw):
    """Any settings that go together."""
    block = draw(st.sampled_from(["bottleneck", "convnext"]))
    sharing = draw(st.sampled_from(["none", "reduce"] if block == "convnext" else ["none", "shortcut", "reduce"]))
    width = draw(st.sampled_from([0, 3]))
    return {
        "block": block,
        "sharing": sharing,
        "rank_leaves": draw(st.booleans()),
        "class_rows": draw(st.booleans()),
        "shared_width": width,
        "shared_blocks": draw(st.sampled_from([1, 2])) if width else 1,
        "shared_stride": draw(st.sampled_from([1, 2])) if width else 1,
        "strides": (1, 1, 1),
    }


def features(batch=3, size=8, seed=0, dtype=torch.float64):
    """What a trunk could give."""
    return torch.randn(batch, CHANNELS, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_gains(*shape):
    return 0.5 + torch.rand(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
