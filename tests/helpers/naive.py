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
    "rank": {"conv_weight": "0.weight"}
    | {
        f"conv_bn_{ours}": f"1.{theirs}"
        for ours, theirs in (
            ("weight", "weight"),
            ("bias", "bias"),
            ("mean", "running_mean"),
            ("var", "running_var"),
        )
    },
}
#: By kind of sharing, the modules of timm's block that siblings have in common.
COMMON = {
    "none": (),
    "shortcut": ("downsample",),
    "reduce": ("downsample", "conv1", "bn1"),
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


def shared_stage(block: str, in_channels: int, width: int, blocks: int, stride: int) -> nn.Module:
    """The blocks before the tree, timm's, put together by hand."""
    if block == "convnext":
        stage = ConvNeXtStage(
            in_channels,
            width,
            stride=stride,
            depth=blocks,
            use_grn=True,
            ls_init_value=1.0,
            norm_layer=LayerNorm2d,
            norm_layer_cl=LayerNorm,
        )
        return nn.Sequential(stage)
    found = [timm_block(block, in_channels, width, stride)]
    if stride == 1 and in_channels == 4 * width:
        found = [Bottleneck(in_channels, width)]
    return nn.Sequential(*found, *(Bottleneck(4 * width, width) for _ in range(blocks - 1)))


class NaiveTree(nn.Module):
    """One module per node, run one by one; arguments and ``forward`` as in ``BranchTree``.

    Siblings that share a part hold one and the same module. ``shared`` are width, blocks and stride of the stage.
    """

    def __init__(
        self,
        tree: ClassTree,
        in_channels: int,
        block: str,
        widths: tuple[int, ...],
        strides: tuple[int, ...],
        sharing: str = "none",
        rank_leaves: bool = False,
        shared: tuple[int, int, int] | None = None,
        class_rows: bool = False,
    ) -> None:
        super().__init__()
        self.tree, self.block, self.rank_leaves = tree, block, rank_leaves
        self.stage = shared_stage(block, in_channels, *shared) if shared else None
        if shared:
            in_channels = 4 * shared[0] if block == "bottleneck" else shared[0]
        self.class_rows = nn.ModuleList(nn.Linear(in_channels, 1) for _ in tree.leaves) if class_rows else None
        self.rows = nn.ModuleList()
        for row, width, stride in zip(tree.levels, widths, strides, strict=True):
            if rank_leaves and row is tree.leaves:
                conv = [nn.Conv2d(in_channels, width, 1, stride, bias=False) for _ in row]
                self.rows.append(nn.ModuleList(nn.Sequential(one, nn.BatchNorm2d(width), nn.ReLU()) for one in conv))
                in_channels = width
                continue
            blocks = nn.ModuleList(timm_block(block, in_channels, width, stride) for _ in row)
            for node, one in zip(row, blocks, strict=True):
                eldest = blocks[[other.parent for other in row].index(node.parent)]
                for name in COMMON[sharing]:
                    if hasattr(one, name):
                        setattr(one, name, getattr(eldest, name))
            self.rows.append(blocks)
            in_channels = 4 * width if block == "bottleneck" else width
        self.leaves = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.LayerNorm(in_channels, eps=1e-6) if block == "convnext" and not rank_leaves else nn.Identity(),
                nn.Linear(in_channels, 1),
            )
            for _ in tree.leaves
        )

    def forward(self, features: Tensor, gains: Tensor | None = None) -> Tensor:
        seen = features if self.stage is None else self.stage(features)
        above, number = [seen], 0
        for row, nodes in zip(self.rows, self.tree.levels, strict=True):
            outputs = []
            for block, node in zip(row, nodes, strict=True):
                gain = None if gains is None else gains.expand(len(features), -1)[:, number]
                outputs.append(self._run(block, above[node.parent], gain))
                number += 1
            above = outputs
        logits = torch.cat([leaf(x) for leaf, x in zip(self.leaves, above, strict=True)], dim=1)
        if self.class_rows is None:
            return logits
        pooled = seen.mean((2, 3))
        if self.block == "convnext":
            pooled = (pooled - pooled.mean(1, keepdim=True)) / (pooled.var(1, correction=0, keepdim=True) + 1e-6).sqrt()
        return logits + torch.cat([row(pooled) for row in self.class_rows], dim=1)

    def _run(self, block: nn.Module, x: Tensor, gain: Tensor | None) -> Tensor:
        if gain is None:
            return block(x)
        if isinstance(block, nn.Sequential) and self.rank_leaves:
            return block(x) * gain[:, None, None, None]
        conv = block.get_submodule(LAST_CONV[self.block])
        handle = conv.register_forward_pre_hook(lambda _, args: args[0] * gain[:, None, None, None])
        try:
            return block(x)
        finally:
            handle.remove()


def pairs(head: BranchTree, naive: NaiveTree) -> Iterator[tuple[str, Tensor, list[Tensor]]]:
    """Every stacked tensor with the naive tensors of its rows, as ``(name, stacked, rows)``; covers all of both.

    Of what siblings share, the row of a parent is that of its first child. The stage, which is timm's here and there,
    has no rows.
    """
    ours, theirs = head.state_dict(keep_vars=True), naive.state_dict(keep_vars=True)
    used = set()
    for depth, row in enumerate(naive.rows):
        parents = [node.parent for node in naive.tree.levels[depth]]
        eldest = [parents.index(parent) for parent in range(max(parents) + 1)]
        ranks = naive.rank_leaves and depth == len(naive.rows) - 1
        for name, timm_name in NAMES["rank" if ranks else naive.block].items():
            whole, common = f"levels.{depth}.{name}", f"levels.{depth}.family_{name}"
            used.update(f"rows.{depth}.{node}.{timm_name}" for node in range(len(row)))
            nodes = eldest if common in ours else range(len(row))
            found = common if common in ours else whole
            yield found, ours.pop(found), [theirs[f"rows.{depth}.{node}.{timm_name}"] for node in nodes]
    leaf = {"weight": "3.weight", "bias": "3.bias", "norm_weight": "2.weight", "norm_bias": "2.bias"}
    normed = naive.block == "convnext" and not naive.rank_leaves
    stacked = {f"leaves.{ours}": f"leaves.{{}}.{name}" for ours, name in list(leaf.items())[: 4 if normed else 2]}
    if naive.class_rows is not None:
        stacked |= {f"class_rows.{part}": f"class_rows.{{}}.{part}" for part in ("weight", "bias")}
    for name, pattern in stacked.items():
        keys = [pattern.format(i) for i in range(len(naive.leaves))]
        used.update(keys)
        yield name, ours.pop(name), [theirs[key] for key in keys]
    for name in [name for name in ours if name.startswith("stage.")]:
        used.add(name)
        assert ours.pop(name).shape == theirs[name].shape
    left = {key for key in set(theirs) - used if not key.endswith("num_batches_tracked")}
    assert not ours and not left, f"without a counterpart: {sorted(ours)} {sorted(left)}"


@torch.no_grad()
def copy_weights(head: BranchTree, naive: NaiveTree) -> None:
    """Copy every stacked row, BN running statistics included, into the module of its node."""
    for name, stacked, rows in pairs(head, naive):
        assert len(stacked) == len(rows), name
        for values, tensor in zip(stacked, rows, strict=True):
            tensor.copy_(values.reshape(tensor.shape))
    if naive.stage is not None:
        naive.stage.load_state_dict(head.stage.state_dict())


@torch.no_grad()
def randomise(head: BranchTree, seed: int = 0) -> None:
    """Random values everywhere: as built, a block's last BN, its GRN and its biases are zero and hide their use."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in head.state_dict().items():
        values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        if name.endswith("num_batches_tracked"):
            continue
        if name.endswith("_var"):
            values = 0.5 + values.square()
        elif name.startswith("stage.") and tensor.dim() > 1:  # of a dense module, [out, in, …]
            values *= (2 / tensor[0].numel()) ** 0.5
        elif tensor.dim() > 2:  # [nodes, out, in] or [nodes, out, in, k * k]
            values *= (2 / tensor[0, 0].numel()) ** 0.5
        elif name == "class_rows.weight":
            values *= tensor.shape[1] ** -0.5
        elif name.endswith("weight"):
            values = 1 + 0.3 * values
        else:
            values *= 0.3
        tensor.copy_(values)
