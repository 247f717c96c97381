"""What all classes share before the tree: a few blocks on the trunk's output, and a linear row a class on theirs.

Notable here: both belong to the head. They train while the trunk is frozen and its features are cached; and every
expert has the blocks whole, and the rows of its own classes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm, LayerNorm2d
from timm.models.convnext import ConvNeXtStage
from timm.models.resnet import Bottleneck, downsample_conv
from torch import Tensor, nn

from hlnet.model.branches import Block, BottleneckLevel, ConvNeXtLevel


class SharedStage(nn.Sequential):
    """Blocks in a row, timm's own, as a stage of the backbone would have them.

    Args:
        block: ``"bottleneck"`` or ``"convnext"`` (V2).
        in_channels: of the trunk's output.
        width: of the blocks.
        blocks: how many.
        stride: of the first.

    Example:
        >>> stage = SharedStage("bottleneck", 8, width=4, blocks=1, stride=2)
        >>> stage(torch.zeros(1, 8, 14, 14)).shape, stage.out_channels
        (torch.Size([1, 16, 7, 7]), 16)
    """

    def __init__(self, block: Block, in_channels: int, width: int, blocks: int, stride: int) -> None:
        super().__init__()
        self.out_channels = width
        if block == "convnext":
            norms: dict[str, Any] = {"norm_layer": LayerNorm2d, "norm_layer_cl": LayerNorm}
            shape: dict[str, Any] = {"depth": blocks, "stride": stride, "ls_init_value": 1.0, "use_grn": True}
            self.append(ConvNeXtStage(in_channels, width, **shape, **norms))
            for module in self.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):  # as timm's ConvNeXt
                    nn.init.trunc_normal_(module.weight, std=0.02)
                    nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            return
        self.out_channels = BottleneckLevel.expansion * width
        for number in range(blocks):
            step, before = (stride, in_channels) if number == 0 else (1, self.out_channels)
            shortcut = downsample_conv(before, self.out_channels, 1, step)
            for module in shortcut.children():
                if isinstance(module, nn.Conv2d):
                    module.padding = (0, 0)  # timm's, for strides above 2, gives larger maps than the block
            self.append(Bottleneck(before, width, step, None if (step, before) == (1, self.out_channels) else shortcut))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # as timm's ResNet
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck):
                module.zero_init_last()


class ClassRows(nn.Module):
    """A linear row a class on pooled features that all classes share.

    Args:
        classes: number of classes, k.
        channels: of the features, C.
        norm: normalise what was pooled, as ConvNeXt's head does; scale and shift are the rows' own.

    Shape:
        ``[B, C]``, as :meth:`pool` gives it, to ``[B, k]``.
    """

    def __init__(self, classes: int, channels: int, norm: bool) -> None:
        super().__init__()
        bound = 1 / math.sqrt(channels)
        self.weight = nn.Parameter(torch.empty(classes, channels).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(classes))
        self.norm = norm

    def pool(self, features: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, C]``."""
        pooled = F.adaptive_avg_pool2d(features, 1).flatten(1)
        return F.layer_norm(pooled, pooled.shape[-1:], eps=ConvNeXtLevel.eps) if self.norm else pooled

    def forward(self, pooled: Tensor) -> Tensor:
        return F.linear(pooled, self.weight, self.bias)
