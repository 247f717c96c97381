"""The blocks of siblings for inference: norms folded into the convolutions, weights packed, few steps.

Notable here: siblings are cut into *chunks*, so that what a chunk computes on the way stays in the cache. What siblings
share is one dense product on the pixels of their input, which lie as rows. Weights are folded in float32 at least and
rounded after that.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hlnet.model.branches import BottleneckLevel, BranchLevel, ConvNeXtLevel, Leaves
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
        folded = {name: _folded(level, name, start, end, dtype) for name in ("conv1", "conv2", "conv3", "shortcut")}
        (w1, b1), (w2, b2), (w3, b3), (ws, bs) = folded.values()
        out = level.output_size(size)
        stride = (level.stride, level.stride)
        self.conv1 = Linear(w1.flatten(0, 1), b1, "relu", batch * size[0] * size[1])
        kernels = w2.reshape(-1, level.width, 3, 3)
        self.conv2 = Conv(kernels, b2, stride, (1, 1), groups=self.nodes, activation="relu", size=size)
        self.shortcut = Linear(ws.flatten(0, 1), b3 + bs, "none", batch * out[0] * out[1])
        self.conv3 = Conv(w3.reshape(-1, level.width, 1, 1), None, groups=self.nodes, activation="relu", size=out)

    def share(self, x: Tensor) -> tuple[Tensor, ...]:
        """All pixels of ``[B, C, H, W]`` and those that the stride keeps, ``[B, H, W, C]`` each."""
        pixels = x.to(self.dtype).permute(0, 2, 3, 1).contiguous()
        kept = pixels[:, :: self.stride, :: self.stride]
        return pixels, kept.contiguous()

    def forward(self, shared: tuple[Tensor, ...], gain: Tensor | None) -> Tensor:
        pixels, kept = shared
        h = self.conv2(self.conv1(pixels).permute(0, 3, 1, 2))
        if gain is not None:
            h = h * gain.to(h.dtype).repeat_interleave(self.width, dim=1)[:, :, None, None]
        return self.conv3.add(self.shortcut(kept).permute(0, 3, 1, 2), h, in_place=True)


class ConvNeXtChunk(nn.Module):
    """Siblings ``start`` to ``end`` of a :class:`ConvNeXtLevel`; arguments as of :class:`BottleneckChunk`.

    What layer norms and GRN scale and shift goes into the linear maps that follow.
    """

    def __init__(
        self, level: ConvNeXtLevel, start: int, end: int, size: tuple[int, int], batch: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.nodes, self.width, self.eps, self.dtype = end - start, level.width, level.eps, dtype
        rows = {name: _exact(tensor, start, end) for name, tensor in level.named_parameters()}
        out = level.output_size(size)
        weight = rows["conv_in_weight"] * rows["norm_in_weight"][:, None, :, None]
        bias = torch.einsum("noik,ni->no", rows["conv_in_weight"], rows["norm_in_bias"]) + rows["conv_in_bias"]
        self.conv_in: nn.Module
        if level.stride == 1:
            self.conv_in = Linear(
                weight.flatten(0, 1)[:, :, 0].to(dtype), bias.flatten().to(dtype), rows=batch * out[0] * out[1]
            )
        else:
            kernels = weight.reshape(-1, level.in_channels, 2, 2).to(dtype)
            self.conv_in = Conv(kernels, bias.flatten().to(dtype), (level.stride, level.stride), size=size)
        kernels = rows["conv_dw_weight"].reshape(-1, 1, 7, 7).to(dtype)
        channels = self.nodes * level.width
        self.conv_dw = Conv(
            kernels, rows["conv_dw_bias"].flatten().to(dtype), padding=(3, 3), groups=channels, size=out
        )
        fc1 = rows["fc1_weight"] * rows["norm_weight"][:, None, :]
        bias = torch.einsum("noi,ni->no", rows["fc1_weight"], rows["norm_bias"]) + rows["fc1_bias"]
        self.fc1 = _grouped(fc1.to(dtype), bias.to(dtype), "gelu", out)
        fc2 = rows["fc2_weight"] * rows["scale"][:, :, None]
        shift = torch.einsum("noi,ni->no", fc2, rows["grn_bias"])
        self.fc2 = _grouped(fc2.to(dtype), (shift + rows["fc2_bias"] * rows["scale"]).to(dtype), "none", out)
        self.grn, self.shift = rows["grn_weight"].float().clone(), shift.float()  # of the shift, a gain takes its part

    def share(self, x: Tensor) -> tuple[Tensor, ...]:
        """The normalised pixels, ``[B, H, W, C]``."""
        pixels = x.to(self.dtype).permute(0, 2, 3, 1)
        return (F.layer_norm(pixels, pixels.shape[-1:], eps=ConvNeXtLevel.eps).contiguous(),)

    def forward(self, shared: tuple[Tensor, ...], gain: Tensor | None) -> Tensor:
        (pixels,) = shared
        if isinstance(self.conv_in, Linear):
            x = self.conv_in(pixels).permute(0, 3, 1, 2)
        else:
            x = self.conv_in(pixels.permute(0, 3, 1, 2))
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
        weight, bias = _exact(leaves.weight, start, end), _exact(leaves.bias, start, end)
        self.normed = leaves.norm_weight is not None
        if leaves.norm_weight is not None and leaves.norm_bias is not None:
            bias = bias + (weight * _exact(leaves.norm_bias, start, end)).sum(dim=1)
            weight = weight * _exact(leaves.norm_weight, start, end)
        self.weight, self.bias = weight.float(), bias.float()

    def forward(self, y: Tensor) -> Tensor:
        """``[B, m * C, H, W]`` to ``[B, m]``, float32."""
        pooled = y.mean(dim=(2, 3), dtype=torch.float32).unflatten(1, self.weight.shape)
        if self.normed:
            pooled = F.layer_norm(pooled, pooled.shape[-1:], eps=ConvNeXtLevel.eps)
        logits: Tensor = (pooled * self.weight).sum(dim=-1) + self.bias
        return logits


SiblingBlock = BottleneckChunk | ConvNeXtChunk | UnpackedChunk
CHUNKS: dict[type[BranchLevel], type[BottleneckChunk] | type[ConvNeXtChunk]] = {
    BottleneckLevel: BottleneckChunk,
    ConvNeXtLevel: ConvNeXtChunk,
}


def _folded(level: BottleneckLevel, name: str, start: int, end: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with its batch norm in it, ``[m, out, in, …]`` and ``[m * out]``."""
    rows = {part: _exact(getattr(level, f"{name}_bn_{part}"), start, end) for part in ("weight", "bias", "mean", "var")}
    scale = rows["weight"] / (rows["var"] + level.eps).sqrt()
    weight = _exact(getattr(level, f"{name}_weight"), start, end)
    bias = rows["bias"] - rows["mean"] * scale
    return (weight * scale.reshape(*scale.shape, *[1] * (weight.dim() - 2))).to(dtype), bias.flatten().to(dtype)


def _exact(tensor: Tensor, start: int, end: int) -> Tensor:
    """Rows to compute with, in float32 at least; views of them where they are."""
    return tensor.detach()[start:end].to(torch.promote_types(tensor.dtype, torch.float32))


def _grouped(weight: Tensor, bias: Tensor, activation: str, size: tuple[int, int]) -> Conv:
    """A 1x1 convolution for each sibling, ``[m, out, in]``."""
    kernels = weight.flatten(0, 1)[:, :, None, None]
    return Conv(kernels, bias.flatten(), groups=len(weight), activation=activation, size=size)
