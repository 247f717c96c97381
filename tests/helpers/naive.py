"""A naive counterpart of ``BranchTree``: one timm block per node, a loop over nodes; the reference for the tests."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from timm.layers import LayerNorm, LayerNorm2d
from timm.models.convnext import ConvNeXtStage
from timm.models.resnet import Bottleneck, downsample_conv
from torch import Tensor, nn

from hlnet.model.hierarchical import BranchTree
from hlnet.tree.class_tree import ClassTree

# Tiny tensors: threads gain nothing here, and on a busy machine they wait for each other most of the time.
torch.set_num_threads(1)

#: Stacked tensor of a level -> tensor of timm's block (of one node).
NAMES = {
    "bottleneck": {
        f"{ours}_{part}": f"{conv if part == 'weight' else bn}.{theirs}"
        for ours, conv, bn in (
            ("conv1", "conv1", "bn1"),
            ("conv2", "conv2", "bn2"),
            ("conv3", "conv3", "bn3"),
            ("shortcut", "downsample.0", "downsample.1"),
        )
        for part, theirs in (
            ("weight", "weight"),
            ("bn_weight", "weight"),
            ("bn_bias", "bias"),
            ("bn_mean", "running_mean"),
            ("bn_var", "running_var"),
        )
    },
    "convnext": {
        f"{ours}_{part}": f"{theirs}.{part}"
        for ours, theirs in (
            ("norm_in", "downsample.0"),
            ("conv_in", "downsample.1"),
            ("conv_dw", "blocks.0.conv_dw"),
            ("norm", "blocks.0.norm"),
            ("fc1", "blocks.0.mlp.fc1"),
            ("grn", "blocks.0.mlp.grn"),
            ("fc2", "blocks.0.mlp.fc2"),
        )
        for part in ("weight", "bias")
    }
    | {"scale": "blocks.0.gamma"},
}
LAST_CONV = {"bottleneck": "conv3", "convnext": "blocks.0.mlp.fc2"}


def timm_block(block: str, in_channels: int, width: int, stride: int) -> nn.Module:
    """timm's own block for one node."""
    if block == "bottleneck":
        shortcut = downsample_conv(in_channels, 4 * width, kernel_size=1, stride=stride)
        return Bottleneck(in_channels, width, stride, shortcut)
    return ConvNeXtStage(
        in_channels,
        width,
        stride=stride,
        depth=1,
        use_grn=True,
        ls_init_value=1.0,
        norm_layer=LayerNorm2d,
        norm_layer_cl=LayerNorm,
    )


class NaiveTree(nn.Module):
    """One module per node, run one by one; arguments and ``forward`` as in ``BranchTree``."""

    def __init__(
        self, tree: ClassTree, in_channels: int, block: str, widths: tuple[int, ...], strides: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.tree, self.block = tree, block
        self.rows = nn.ModuleList()
        for row, width, stride in zip(tree.levels, widths, strides, strict=True):
            self.rows.append(nn.ModuleList(timm_block(block, in_channels, width, stride) for _ in row))
            in_channels = 4 * width if block == "bottleneck" else width
        self.leaves = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.LayerNorm(in_channels, eps=1e-6) if block == "convnext" else nn.Identity(),
                nn.Linear(in_channels, 1),
            )
            for _ in tree.leaves
        )

    def forward(self, features: Tensor, gains: Tensor | None = None) -> Tensor:
        above, number = [features], 0
        for row, nodes in zip(self.rows, self.tree.levels, strict=True):
            outputs = []
            for block, node in zip(row, nodes, strict=True):
                gain = None if gains is None else gains.expand(len(features), -1)[:, number]
                outputs.append(self._run(block, above[node.parent], gain))
                number += 1
            above = outputs
        return torch.cat([leaf(x) for leaf, x in zip(self.leaves, above, strict=True)], dim=1)

    def _run(self, block: nn.Module, x: Tensor, gain: Tensor | None) -> Tensor:
        if gain is None:
            return block(x)
        conv = block.get_submodule(LAST_CONV[self.block])
        handle = conv.register_forward_pre_hook(lambda _, args: args[0] * gain[:, None, None, None])
        try:
            return block(x)
        finally:
            handle.remove()


def pairs(head: BranchTree, naive: NaiveTree) -> Iterator[tuple[str, Tensor, list[Tensor]]]:
    """Every stacked tensor with the naive tensors of its rows, as ``(name, stacked, rows)``; covers all of both."""
    ours, theirs = head.state_dict(keep_vars=True), naive.state_dict(keep_vars=True)
    used = set()
    for depth, row in enumerate(naive.rows):
        for name, timm_name in NAMES[naive.block].items():
            keys = [f"rows.{depth}.{node}.{timm_name}" for node in range(len(row))]
            used.update(keys)
            yield f"levels.{depth}.{name}", ours.pop(f"levels.{depth}.{name}"), [theirs[key] for key in keys]
    leaf = {"weight": "3.weight", "bias": "3.bias", "norm_weight": "2.weight", "norm_bias": "2.bias"}
    for name, timm_name in leaf.items() if naive.block == "convnext" else list(leaf.items())[:2]:
        keys = [f"leaves.{i}.{timm_name}" for i in range(len(naive.leaves))]
        used.update(keys)
        yield f"leaves.{name}", ours.pop(f"leaves.{name}"), [theirs[key] for key in keys]
    left = {key for key in set(theirs) - used if not key.endswith("num_batches_tracked")}
    assert not ours and not left, f"without a counterpart: {sorted(ours)} {sorted(left)}"


@torch.no_grad()
def copy_weights(head: BranchTree, naive: NaiveTree) -> None:
    """Copy every stacked row, BN running statistics included, into the module of its node."""
    for name, stacked, rows in pairs(head, naive):
        assert len(stacked) == len(rows), name
        for values, tensor in zip(stacked, rows, strict=True):
            tensor.copy_(values.reshape(tensor.shape))


@torch.no_grad()
def randomise(head: BranchTree, seed: int = 0) -> None:
    """Random values everywhere: as built, a block's last BN, its GRN and its biases are zero and hide their use."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in head.state_dict().items():
        values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        if name.endswith("_var"):
            values = 0.5 + values.square()
        elif tensor.dim() > 2:  # [nodes, out, in] or [nodes, out, in, k * k]
            values *= (2 / tensor[0, 0].numel()) ** 0.5
        elif name.endswith("weight"):
            values = 1 + 0.3 * values
        else:
            values *= 0.3
        tensor.copy_(values)
