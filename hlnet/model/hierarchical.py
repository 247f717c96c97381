"""The network: a trunk, and a tree of branches that ends in one logit per class.

Notable here: there is one network class. PHL is the tree in which every class has a private chain, N3HL the tree whose
classes share, an expert the tree cut down to some classes; the weights are the matching rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import accumulate
from typing import Any, Self

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from torch import Tensor, nn

from hlnet.errors import UsageError, counted
from hlnet.model.base import TrainableNetwork
from hlnet.model.branches import (
    FAMILY,
    LEVELS,
    Block,
    ConvNeXtLevel,
    Family,
    Leaves,
    Sharing,
    branch_levels,
    pooled,
)
from hlnet.model.provenance import Provenance
from hlnet.model.shared import ClassRows, SharedStage
from hlnet.model.trunk import Trunk, backbone_no_weight_decay
from hlnet.tree.class_tree import ClassTree


class NetworkConfig(BaseModel):
    """Everything that defines a network's shape besides its tree.

    Attributes:
        backbone: the timm model whose early stages are the trunk.
        split_point: the trunk's last stage, by number, or block, by name (see :class:`hlnet.model.trunk.Trunk`);
            ``None`` drops the backbone's last stage.
        block: ``"bottleneck"`` (ResNet) or ``"convnext"``.
        widths: of the blocks, level by level (paper, Table 1).
        strides: of the blocks, level by level.
        backbone_args: further arguments of ``timm.create_model``.
        shared_width: of the blocks between trunk and tree, which all classes share; 0 for none, as in the paper.
        shared_blocks: how many they are.
        shared_stride: of the first.
        class_rows: whether each class has a linear row on what the tree sees, pooled, whose value is added to its
            logit.
        sharing: what siblings share: ``"none"``, as in the paper; ``"shortcut"``; or ``"reduce"``, the shortcut and the
            convolution that reduces channels, which in ConvNeXt blocks are one.
        rank_leaves: whether a leaf is a 1x1 convolution to as many channels as the last width says, norm and ReLU,
            instead of a block.

    Raises:
        pydantic.ValidationError: a ValueError, if they do not go together or are out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str
    split_point: int | str | None = None
    block: Block = "bottleneck"
    widths: tuple[PositiveInt, ...] = (128, 64, 32)
    strides: tuple[PositiveInt, ...] = (1, 1, 2)
    backbone_args: dict[str, Any] = Field(default_factory=dict)
    shared_width: NonNegativeInt = 0
    shared_blocks: PositiveInt = 1
    shared_stride: PositiveInt = 1
    class_rows: bool = False
    sharing: Sharing = "none"
    rank_leaves: bool = False

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if len(self.widths) != len(self.strides):
            raise ValueError(f"widths {self.widths} and strides {self.strides} must have one entry a level each")
        if self.sharing not in (known := LEVELS[self.block].shared_parts):
            raise ValueError(f"siblings with {self.block} blocks share {' or '.join(known)}, not '{self.sharing}'")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what the paper's networks lack, so that their files stay as they were."""
        fields: dict[str, Any] = handler(self)
        since = list(fields)[list(fields).index("shared_width") :]
        unused = {name for name in since if getattr(self, name) == type(self).model_fields[name].default}
        return {name: value for name, value in fields.items() if name not in unused}


def check_levels(levels: int, widths: Sequence[object]) -> None:
    """Each level of a tree needs its width.

    Raises:
        UsageError: if there are more or fewer.
    """
    if levels != len(widths):
        raise UsageError(
            f"the tree has {counted(levels, 'level')}, the network's widths are for {len(widths)}: build the tree with "
            f"levels={len(widths)}, or give {levels} widths and strides"
        )


def level_of(name: str) -> int | None:
    """Which nodes the rows of a network's tensor follow, by the tensor's name.

    Returns:
        the level, as a position in ``tree.levels``; -1 for the classes; ``None`` for what every expert has whole: the
        trunk, the shared stage, and what the children of the trunk share.

    Example:
        >>> level_of("head.levels.1.conv1_weight"), level_of("head.levels.1.family_conv1_weight")
        (1, 0)
        >>> level_of("head.leaves.bias"), level_of("trunk.model.conv1.weight")
        (-1, None)
    """
    if found := re.match(rf"head\.levels\.(\d+)\.({FAMILY})?", name):
        level = int(found[1]) - bool(found[2])
        return level if level >= 0 else None
    return -1 if name.startswith(("head.leaves.", "head.class_rows.")) else None


def shared_stage(config: NetworkConfig, channels: int) -> SharedStage | None:
    """The stage that a config asks for, behind a trunk with this many channels."""
    if not config.shared_width:
        return None
    return SharedStage(config.block, channels, config.shared_width, config.shared_blocks, config.shared_stride)


class BranchTree(nn.Module):
    """All branches of a tree, and what they share before it: features of the trunk in, one logit per class out.

    Args:
        tree: the class tree.
        in_channels: channels of what the branches see: of the trunk's output or, if there is one, the stage's.
        block, widths, strides, sharing, rank_leaves: see :class:`NetworkConfig`.
        stage: runs between trunk and tree.
        row_channels: channels that the rows of the classes see; ``None`` for no rows.

    Raises:
        UsageError: if the tree has another number of levels than ``widths``.
    """

    def __init__(
        self,
        tree: ClassTree,
        in_channels: int,
        block: Block,
        widths: tuple[int, ...],
        strides: tuple[int, ...],
        *,
        sharing: Sharing = "none",
        rank_leaves: bool = False,
        stage: SharedStage | None = None,
        row_channels: int | None = None,
    ) -> None:
        super().__init__()
        check_levels(tree.num_levels, widths)
        self.tree = tree
        self.stage = stage
        rows = None if row_channels is None else ClassRows(len(tree.classes), row_channels, norm=block == "convnext")
        self.class_rows = rows
        levels = branch_levels(tree.sibling_counts, in_channels, block, widths, strides, sharing, rank_leaves)
        self.levels = nn.ModuleList(levels)
        self.leaves = Leaves(len(tree.classes), levels[-1].out_channels, norm=isinstance(levels[-1], ConvNeXtLevel))
        # Position of each parent's first child in the level below, for the walk in tree_logits().
        self._first_child = [list(accumulate(siblings, initial=0)) for siblings in tree.sibling_counts]

    @classmethod
    def of(cls, config: NetworkConfig, tree: ClassTree, channels: int) -> BranchTree:
        """Those that a config asks for, behind a trunk with this many channels."""
        stage = shared_stage(config, channels)
        channels = channels if stage is None else stage.out_channels
        return cls(
            *(tree, channels, config.block, config.widths, config.strides),
            sharing=config.sharing,
            rank_leaves=config.rank_leaves,
            stage=stage,
            row_channels=channels if config.class_rows else None,
        )

    def forward(
        self, features: Tensor, gains: Tensor | None = None, with_rows: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits of all classes.

        Args:
            features: ``[B, C, H, W]`` from the trunk.
            gains: see :meth:`HierarchicalNet.forward`.
            with_rows: give the rows' part of the logits too; for networks with ``class_rows``.

        Returns:
            ``[B, classes]``, in the order of ``tree.classes``; ``with_rows``, two of them.
        """
        seen = self.seen(features)
        logits = self.tree_logits(seen, gains)
        if self.class_rows is None:
            return logits
        rows: Tensor = self.class_rows(self.class_rows.pool(seen))
        return (logits + rows, rows) if with_rows else logits + rows

    def seen(self, features: Tensor) -> Tensor:
        """What the tree and the rows see of the trunk's output: that, or what the shared stage makes of it."""
        features = features.contiguous(memory_format=torch.channels_last)  # a tenth faster, forward and backward
        return features if self.stage is None else self.stage(features)

    def tree_logits(self, seen: Tensor, gains: Tensor | None = None) -> Tensor:
        """The leaves' logits, walking the tree depth first, one step per parent; the rows do not count."""
        families: list[list[Family]] = [level.families() for level in self.levels]  # type: ignore[operator]
        family_gains = self._split_gains(gains, len(seen))
        leaf_features = torch.cat(list(self._grow(seen, 0, 0, families, family_gains)), dim=1)
        logits: Tensor = self.leaves(leaf_features)
        return logits

    def no_weight_decay(self) -> set[str]:
        """Names of norms, biases and scales, for timm's optimizers.

        They go by the number of dimensions, and stacking has added one: a stacked scale is ``[nodes, width]``.
        """
        stacked = {name for name, tensor in self.levels.named_parameters(prefix="levels") if tensor.dim() < 3}
        others = {name for name, tensor in self.named_parameters() if tensor.dim() < 2}
        return stacked | others | {name for name, _ in self.leaves.named_parameters("leaves")} - {"leaves.weight"}

    def _grow(
        self, x: Tensor, depth: int, parent: int, families: list[list[Family]], gains: list[list[Tensor | None]]
    ) -> Iterator[Tensor]:
        """Pooled leaf features ``[B, m, C]`` below one parent, family by family."""
        children: Tensor = self.levels[depth](x, families[depth][parent], gains[depth][parent])
        if depth == len(self.levels) - 1:
            yield pooled(children)
            return
        for position, child in enumerate(children.unbind(1), start=self._first_child[depth][parent]):
            yield from self._grow(child, depth + 1, position, families, gains)

    def check_gains(self, gains: Tensor | None, batch: int, nodes: int | None = None) -> Tensor | None:
        """Gains for every image, ``[batch, nodes]``; default: the tree's number of nodes.

        Raises:
            UsageError: if they have neither that shape nor ``[num_nodes]``.
        """
        if gains is None:
            return None
        nodes = self.tree.num_nodes if nodes is None else nodes
        if gains.shape[-1:] != (nodes,) or gains.dim() > 2 or (gains.dim() == 2 and len(gains) != batch):
            raise UsageError(
                f"gains must have shape [{nodes}] or [{batch}, {nodes}] "
                f"(one per node, all levels), got {list(gains.shape)}"
            )
        return gains.expand(batch, -1)

    def _split_gains(self, gains: Tensor | None, batch: int) -> list[list[Tensor | None]]:
        siblings = self.tree.sibling_counts
        gains = self.check_gains(gains, batch)
        if gains is None:
            return [[None] * len(counts) for counts in siblings]
        by_level = gains.split(self.tree.counts, dim=1)
        return [list(level.split(counts, dim=1)) for level, counts in zip(by_level, siblings, strict=True)]


class HierarchicalNet(TrainableNetwork):
    """A trunk and a tree of branches (Kelm et al., Sec. 3).

    Args:
        config: the network's shape.
        tree: its classes.
        pretrained: fetch timm's pretrained weights for the trunk.
        empty: leave the branches without storage, for ``load_state_dict(…, assign=True)`` to give them some.

    Raises:
        BackboneError: if the backbone is unknown or cannot be split.
        UsageError: if the tree does not fit the config.

    Example:
        >>> tree = ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle"]})
        >>> net = HierarchicalNet(NetworkConfig(backbone="resnet18", widths=(8, 4), strides=(1, 2)), tree)
        >>> net(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 3])
    """

    has_branches = True
    config: NetworkConfig

    def __init__(self, config: NetworkConfig, tree: ClassTree, pretrained: bool = False, empty: bool = False) -> None:
        super().__init__()
        self.trunk = Trunk(config.backbone, config.split_point, pretrained, config.backbone_args)
        with torch.device("meta") if empty else nullcontext():
            self.head = BranchTree.of(config, tree, self.trunk.channels)
        self.config = config.model_copy(update={"split_point": self.trunk.split_point})
        self.tree = tree
        self.transform = self.trunk.transform
        self.provenance = Provenance()
        self.frozen = False

    def forward(
        self, images: Tensor, gains: Tensor | None = None, with_rows: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits, one per class; softmax over the classes present gives probabilities (Eq. 3, its sign mended).

        Args:
            images: ``[B, 3, H, W]``, normalised as ``self.transform`` says.
            gains: ``[B, tree.num_nodes]``, or ``[tree.num_nodes]`` for the whole batch: for each node, level by level,
                the factor on the input of its block's last convolution (Sec. 4.4). 1 is neutral, more enhances, less
                inhibits. Default: no cue.
            with_rows: give the part of the logits that the classes' rows give too; see :class:`NetworkConfig`.

        Returns:
            ``[B, classes]``, in the order of ``tree.classes``; ``with_rows``, two of them.

        Raises:
            UsageError: if ``gains`` has another shape.
        """
        found: Tensor | tuple[Tensor, Tensor] = self.head(self.features(images), gains, with_rows)
        return found

    def features(self, images: Tensor) -> Tensor:
        """The trunk's output, ``[B, C, h, w]``; ``self.head`` takes it from there."""
        result: Tensor = self.trunk(images.to(self.dtype))
        return result

    @property
    def trunk_module(self) -> nn.Module:
        """The timm module that trunk weights are loaded into."""
        return self.trunk.model

    @property
    def trunk_names(self) -> set[str]:
        """Names, within ``trunk_module``, of the tensors that belong to the trunk: all of them."""
        return set(self.trunk.model.state_dict())

    def no_weight_decay(self) -> set[str]:
        """Names of the branches' norms, biases and scales, and of what the backbone exempts, for timm's optimizers."""
        own = {f"head.{name}" for name in self.head.no_weight_decay()}
        return own | backbone_no_weight_decay(self.trunk.model, "trunk.model.")

    def freeze_trunk(self, frozen: bool = True) -> None:
        """Train only the branches: the trunk keeps its weights and its normalisation statistics. Or undo that."""
        self.frozen = frozen
        self.trunk.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen:
            self.trunk.eval()
        return self
