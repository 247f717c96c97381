"""The blocks of siblings for inference: norms folded into the convolutions, weights packed, few steps.

Notable here: siblings are cut into *chunks*, so that what a chunk computes on the way stays in the cache. What siblings
make of a common input is one dense product on its pixels, which lie as rows; what they share is computed once a family.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hlnet.model.branches import BottleneckLevel, BranchLevel, ConvNeXtLevel, Leaves, RankLevel, kernels
from hlnet.model.fast.folding import exact, fold_convnext, fold_norms
from hlnet.model.fast.kernels import Conv, Linear


class BottleneckChunk(nn.Module):
    """Siblings ``start`` to ``end`` of a :class:`BottleneckLevel`.

    Args:
        level: with its weights.
        start, end: rows of it.
        size: height and width of the parent's output.
        batch: images that it will mostly see.
        dtype: to compute in.
    """

    def __init__(
        self, level: BottleneckLevel, start: int, end: int, size: tuple[int, int], batch: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.nodes, self.width, self.stride, self.dtype = end - start, level.width, level.stride, dtype
        self.shared = level.shared
        folded = fold_norms(level, level.family(slice(start, end)))
        (w1, b1), (w2, b2), (w3, b3), (ws, bs) = folded.values()
        out = level.output_size(size)
        stride = (level.stride, level.stride)
        self.conv1 = _linear(w1, b1, "relu", batch * size[0] * size[1], dtype)
        self.conv2 = _conv(w2, b2, dtype, stride, (1, 1), groups=len(w1), activation="relu", size=size)
        alone = "shortcut" not in self.shared  # then its bias is that of the sum
        self.shortcut = _linear(ws, b3 + bs if alone else bs, "none", batch * out[0] * out[1], dtype)
        self.conv3 = _conv(w3, None if alone else b3, dtype, groups=self.nodes, activation="relu", size=out)

    def share(self, x: Tensor) -> tuple[Tensor, ...]:
        """What siblings share, ``[B, H, W, C]``: all pixels of the input and those that the stride keeps, or what their
        common convolutions make of these."""
        pixels = x.to(self.dtype).permute(0, 2, 3, 1).contiguous()
        kept = pixels[:, :: self.stride, :: self.stride].contiguous()
        return (
            self.conv1(pixels) if "conv1" in self.shared else pixels,
            self.shortcut(kept) if "shortcut" in self.shared else kept,
        )

    def forward(self, shared: tuple[Tensor, ...], gain: Tensor | None) -> Tensor:
        inner, shortcut = shared
        inner = inner if "conv1" in self.shared else self.conv1(inner)
        h = self.conv2(inner.permute(0, 3, 1, 2))
        if gain is not None:
            h = h * gain.to(h.dtype).repeat_interleave(self.width, dim=1)[:, :, None, None]
        y = shortcut.repeat(1, 1, 1, self.nodes) if "shortcut" in self.shared else self.shortcut(shortcut)
        return self.conv3.add(y.permute(0, 3, 1, 2), h, in_place=True)


class RankChunk(nn.Module):
    """Siblings ``start`` to ``end`` of a :class:`RankLevel`; arguments as of :class:`BottleneckChunk`."""

    def __init__(
        self, level: RankLevel, start: int, end: int, size: tuple[int, int], batch: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.width, self.stride, self.dtype = level.width, level.stride, dtype
        weight, bias = fold_norms(level, level.family(slice(start, end)))["conv"]
        out = level.output_size(size)
        self.conv = _linear(weight, bias, "relu", batch * out[0] * out[1], dtype)

    def share(self, x: Tensor) -> Tensor:
        """The pixels that the stride keeps, ``[B, H, W, C]``."""
        return x.to(self.dtype).permute(0, 2, 3, 1)[:, :: self.stride, :: self.stride].contiguous()

    def forward(self, pixels: Tensor, gain: Tensor | None) -> Tensor:
        y: Tensor = self.conv(pixels).permute(0, 3, 1, 2)
        return y if gain is None else y * gain.to(y.dtype).repeat_interleave(self.width, dim=1)[:, :, None, None]


class ConvNeXtChunk(nn.Module):
    """Siblings ``start`` to ``end`` of a :class:`ConvNeXtLevel`; arguments as of :class:`BottleneckChunk`."""

    def __init__(
        self, level: ConvNeXtLevel, start: int, end: int, size: tuple[int, int], batch: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.nodes, self.width, self.eps, self.dtype = end - start, level.width, level.eps, dtype
        self.shared = bool(level.shared)
        folded, grn, shift = fold_convnext(level, level.family(slice(start, end)))
        out = level.output_size(size)
        self.conv_in: Conv | Linear
        weight, bias = folded["conv_in"]
        if level.stride == 1:
            self.conv_in = _linear(weight[..., 0], bias, "none", batch * out[0] * out[1], dtype)
        else:
            self.conv_in = _conv(weight, bias, dtype, (level.stride, level.stride), size=size)
        channels = self.nodes * level.width
        self.conv_dw = _conv(*folded["conv_dw"], dtype, padding=(3, 3), groups=channels, size=out)
        self.fc1 = _conv(*folded["fc1"], dtype, groups=self.nodes, activation="gelu", size=out)
        self.fc2 = _conv(*folded["fc2"], dtype, groups=self.nodes, size=out)
        self.grn, self.shift = grn.float().clone(), shift.float()  # of the shift, a gain takes its part

    def share(self, x: Tensor) -> Tensor:
        """What siblings share, ``[B, H, W, C]``: the normalised pixels, or what their common convolution makes of
        them."""
        pixels = x.to(self.dtype).permute(0, 2, 3, 1)
        pixels = F.layer_norm(pixels, pixels.shape[-1:], eps=ConvNeXtLevel.eps).contiguous()
        return self._reduced(pixels) if self.shared else pixels

    def _reduced(self, pixels: Tensor) -> Tensor:
        if isinstance(self.conv_in, Conv):
            pixels = self.conv_in(pixels.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        else:
            pixels = self.conv_in(pixels)
        return pixels

    def forward(self, pixels: Tensor, gain: Tensor | None) -> Tensor:
        pixels = pixels.repeat(1, 1, 1, self.nodes) if self.shared else self._reduced(pixels)
        x = pixels.permute(0, 3, 1, 2)
        h = self.conv_dw(x).permute(0, 2, 3, 1).unflatten(-1, (self.nodes, self.width))
        h = self.fc1(F.layer_norm(h, h.shape[-1:], eps=self.eps).flatten(-2).permute(0, 3, 1, 2))
        norm = h.float().norm(dim=(2, 3)).unflatten(1, (self.nodes, -1))
        factor = 1 + self.grn * norm / (norm.mean(dim=2, keepdim=True) + self.eps)
        if gain is not None:
            factor = factor * gain[:, :, None]
        y = self.fc2.add(x, h * factor.flatten(1).to(h.dtype)[:, :, None, None])
        if gain is not None:
            y = y + ((gain - 1)[:, :, None] * self.shift).flatten(1).to(y.dtype)[:, :, None, None]
        return y


class UnpackedChunk:
    """Siblings ``start`` to ``end`` of a level on views of its weights, neither folded nor packed.

    It is made at once, and computes in float32, whatever the level's type and that of the packed chunks are.
    """

    def __init__(self, level: BranchLevel, start: int, end: int) -> None:
        self._level = level
        self._family = {name: tensor.float() for name, tensor in level.family(slice(start, end)).items()}

    def share(self, x: Tensor) -> Tensor:
        """The parent's output, in float32."""
        return x.float()

    def __call__(self, shared: Tensor, gain: Tensor | None) -> Tensor:
        """``[B, m * C, H, W]``."""
        children: Tensor = self._level(shared, self._family, gain)
        return children.flatten(1, 2)


class LeafChunk(nn.Module):
    """The logits of leaves ``start`` to ``end``: pool, normalise where the block does, weigh, sum."""

    def __init__(self, leaves: Leaves, start: int, end: int) -> None:
        super().__init__()
        rows = exact({name: tensor[start:end] for name, tensor in leaves.named_parameters()})
        weight, bias = rows["weight"], rows["bias"]
        self.normed = leaves.norm_weight is not None
        if self.normed:
            bias = bias + (weight * rows["norm_bias"]).sum(dim=1)
            weight = weight * rows["norm_weight"]
        self.weight, self.bias = weight.float(), bias.float()

    def forward(self, y: Tensor) -> Tensor:
        """``[B, m * C, H, W]`` to ``[B, m]``, float32."""
        pooled = y.mean(dim=(2, 3), dtype=torch.float32).unflatten(1, self.weight.shape)
        if self.normed:
            pooled = F.layer_norm(pooled, pooled.shape[-1:], eps=ConvNeXtLevel.eps)
        logits: Tensor = (pooled * self.weight).sum(dim=-1) + self.bias
        return logits


SiblingBlock = BottleneckChunk | ConvNeXtChunk | RankChunk | UnpackedChunk
CHUNKS: dict[type[BranchLevel], type[BottleneckChunk] | type[ConvNeXtChunk] | type[RankChunk]] = {
    BottleneckLevel: BottleneckChunk,
    ConvNeXtLevel: ConvNeXtChunk,
    RankLevel: RankChunk,
}


def _linear(weight: Tensor, bias: Tensor, activation: str, rows: int, dtype: torch.dtype) -> Linear:
    """A 1x1 convolution of one input for each of the first dimension, ``[n, out, in]``, as one map of pixels."""
    return Linear(weight.flatten(0, 1).to(dtype), bias.flatten().to(dtype), activation, rows)


def _conv(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, *geometry: Any, **more: Any) -> Conv:
    """A convolution for each of the first dimension, ``[n, out, in]`` or ``[n, out, in, k * k]``."""
    return Conv(kernels(weight).to(dtype), None if bias is None else bias.flatten().to(dtype), *geometry, **more)
