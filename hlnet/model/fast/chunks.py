"""The blocks of siblings for inference: norms folded into the convolutions, weights packed, few steps.

Notable here: siblings are cut into *chunks*, so that what a chunk computes on the way stays in the cache. What siblings
make of a common input is one dense product on its pixels, which lie as rows; what they share is computed once a family.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hlnet.model.branches import BottleneckLevel, BranchLevel, ConvNeXtLevel, Leaves, RankLevel, kernels
from hlnet.model.fast.folding import exact, fold_convnext, fold_norms
from hlnet.model.fast.kernels import Conv, Linear


class BottleneckChunk(nn.Module):
    """Nodes ``start`` to ``end`` of a :class:`BottleneckLevel`: siblings or, where these share, families side by side.

    Args:
        level: with its weights.
        start, end: rows of it.
        size: height and width of the parents' output.
        batch: images that it will mostly see.
        dtype: to compute in.
    """

    def __init__(
        self, level: BottleneckLevel, start: int, end: int, size: tuple[int, int], batch: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.nodes, self.width, self.stride, self.dtype = end - start, level.width, level.stride, dtype
        self.shared, self.counts = level.shared, level.counts_of(slice(start, end))
        folded = fold_norms(level, level.family(slice(start, end)))
        (w1, b1), (w2, b2), (w3, b3), (ws, bs) = folded.values()
        out, families = level.output_size(size), len(self.counts)
        self.conv1 = _pointwise(w1, b1, "relu", size, batch, dtype, families)
        # What children of families of unlike size have in common is repeated for each.
        self.each = "conv1" in self.shared and len(set(self.counts)) > 1
        inputs = self.nodes if self.each else len(w1)
        self.conv2 = _conv(
            *(w2, b2, dtype, (level.stride, level.stride), (1, 1)), groups=inputs, activation="relu", size=size
        )
        alone = "shortcut" not in self.shared  # then its bias is that of the sum
        self.shortcut = _pointwise(ws, b3 + bs if alone else bs, "none", out, batch, dtype, families)
        self.conv3 = _conv(w3, None if alone else b3, dtype, groups=self.nodes, activation="relu", size=out)
        self.family = _family_of_each(self.counts, w1.device)

    def share(self, x: Tensor) -> tuple[Tensor, ...]:
        """What siblings share, ``[B, H, W, C]``: all pixels of the input and those that the stride keeps, or what their
        common convolutions make of these."""
        pixels = x.to(self.dtype).permute(0, 2, 3, 1).contiguous()
        kept = pixels[:, :: self.stride, :: self.stride].contiguous()
        return (
            _on_pixels(self.conv1, pixels) if "conv1" in self.shared else pixels,
            _on_pixels(self.shortcut, kept) if "shortcut" in self.shared else kept,
        )

    def forward(self, shared: tuple[Tensor, ...], gain: Tensor | None) -> Tensor:
        inner, shortcut = shared
        inner = inner if "conv1" in self.shared else _on_pixels(self.conv1, inner)
        inner = _for_each(inner, self.family, self.nodes, self.width) if self.each else inner
        h = self.conv2(inner.permute(0, 3, 1, 2))
        if gain is not None:
            h = h * gain.to(h.dtype).repeat_interleave(self.width, dim=1)[:, :, None, None]
        if "shortcut" in self.shared:
            y = _for_each(shortcut, self.family, self.nodes, BottleneckLevel.expansion * self.width)
        else:
            y = _on_pixels(self.shortcut, shortcut)
        return self.conv3.add(y.permute(0, 3, 1, 2), h, in_place=True)


class RankChunk(nn.Module):
    """Leaves ``start`` to ``end`` of a :class:`RankLevel`, pooled; arguments as of :class:`BottleneckChunk`.

    Their families are one batched product, each padded to the largest; or several, so that none has half of it to pad.
    """

    def __init__(
        self, level: RankLevel, start: int, end: int, size: tuple[int, int], batch: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.width, self.stride, self.dtype = level.width, level.stride, dtype
        weight, bias = fold_norms(level, level.family(slice(start, end)))["conv"]
        counts = level.counts_of(slice(start, end))
        weights, biases = (part.flatten(1).to(dtype).split(counts) for part in (weight, bias))
        first, places = [0, *accumulate(counts)], [0] * (end - start)
        #: Of each piece the families, all if ``None``; weights ``[families, C, most * width]``; biases.
        self.pieces: list[tuple[Tensor | None, Tensor, Tensor]] = []
        given = 0
        for families in _of_like_size(counts):
            most = max(counts[family] for family in families)
            w, b = (_padded([part[family] for family in families], most) for part in (weights, biases))
            w = w.unflatten(1, (most * self.width, -1)).transpose(1, 2).contiguous()
            some = None if len(families) == len(counts) else torch.tensor(families, device=w.device)
            self.pieces.append((some, w, b.unsqueeze(1)))
            for family in families:
                places[first[family] : first[family + 1]] = range(given, given + counts[family])
                given += most
        self.families = len(counts)
        #: Where the leaves lie among what the pieces give; ``None`` if they are that, in order.
        self.places = None if places == list(range(given)) else torch.tensor(places, device=weight.device)

    def share(self, x: Tensor) -> Tensor:
        """The pixels that the stride keeps, ``[B, H, W, C]``, of all parents side by side."""
        return x.to(self.dtype).permute(0, 2, 3, 1)[:, :: self.stride, :: self.stride].contiguous()

    def forward(self, pixels: Tensor, gain: Tensor | None) -> Tensor:
        """``[B, m * width, 1, 1]``, float32."""
        images, families = len(pixels), pixels.flatten(0, 2).unflatten(1, (self.families, -1)).transpose(0, 1)
        found = []
        for some, weight, bias in self.pieces:
            x = families if some is None else families.index_select(0, some)
            y = torch.baddbmm(bias, x, weight).relu_().unflatten(1, (images, -1))
            pooled = y.mean(dim=2, dtype=torch.float32).transpose(0, 1)  # [B, families, most * width]
            found.append(pooled.unflatten(2, (-1, self.width)).flatten(1, 2))
        leaves = found[0] if len(found) == 1 else torch.cat(found, dim=1)
        leaves = leaves if self.places is None else leaves.index_select(1, self.places)
        leaves = leaves if gain is None else leaves * gain[:, :, None]
        return leaves.flatten(1)[:, :, None, None]


class ConvNeXtChunk(nn.Module):
    """Nodes ``start`` to ``end`` of a :class:`ConvNeXtLevel`; arguments as of :class:`BottleneckChunk`."""

    def __init__(
        self, level: ConvNeXtLevel, start: int, end: int, size: tuple[int, int], batch: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.nodes, self.width, self.eps, self.dtype = end - start, level.width, level.eps, dtype
        self.shared, self.in_channels = bool(level.shared), level.in_channels
        folded, grn, shift = fold_convnext(level, level.family(slice(start, end)))
        out, counts = level.output_size(size), level.counts_of(slice(start, end))
        self.conv_in: Conv | Linear
        weight, bias = folded["conv_in"]
        if level.stride == 1:
            self.conv_in = _pointwise(weight[..., 0], bias, "none", out, batch, dtype, len(counts))
        else:
            self.conv_in = _conv(weight, bias, dtype, (level.stride, level.stride), groups=len(counts), size=size)
        channels = self.nodes * level.width
        self.conv_dw = _conv(*folded["conv_dw"], dtype, padding=(3, 3), groups=channels, size=out)
        self.fc1 = _conv(*folded["fc1"], dtype, groups=self.nodes, activation="gelu", size=out)
        self.fc2 = _conv(*folded["fc2"], dtype, groups=self.nodes, size=out)
        self.grn, self.shift = grn.float().clone(), shift.float()  # of the shift, a gain takes its part
        self.family = _family_of_each(counts, weight.device)

    def share(self, x: Tensor) -> Tensor:
        """What siblings share, ``[B, H, W, C]``: the normalised pixels, or what their common convolution makes of
        them."""
        pixels = x.to(self.dtype).permute(0, 2, 3, 1).unflatten(3, (-1, self.in_channels))
        pixels = F.layer_norm(pixels, pixels.shape[-1:], eps=ConvNeXtLevel.eps).flatten(3).contiguous()
        return _on_pixels(self.conv_in, pixels) if self.shared else pixels

    def forward(self, pixels: Tensor, gain: Tensor | None) -> Tensor:
        own = (
            _for_each(pixels, self.family, self.nodes, self.width) if self.shared else _on_pixels(self.conv_in, pixels)
        )
        x = own.permute(0, 3, 1, 2)
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


def joins_families(level: BranchLevel) -> bool:
    """Whether the families of neighbouring parents run together: where what each child has for itself is little."""
    return isinstance(level, RankLevel) or not {"conv1", "conv_in"}.isdisjoint(level.shared)


def _of_like_size(counts: Sequence[int]) -> list[list[int]]:
    """Families by size, such that the largest of a group is at most twice as large as its smallest."""
    groups: list[list[int]] = []
    for family in sorted(range(len(counts)), key=lambda family: -counts[family]):
        if not groups or 2 * counts[family] < counts[groups[-1][0]]:
            groups.append([])
        groups[-1].append(family)
    return [sorted(group) for group in groups]


def _padded(families: Sequence[Tensor], most: int) -> Tensor:
    """``[m, values]`` of each family as ``[families, most * values]``, with zeros for the children that it lacks."""
    return torch.stack([F.pad(family, (0, 0, 0, most - len(family))).flatten() for family in families])


def _pointwise(
    weight: Tensor, bias: Tensor, activation: str, size: tuple[int, int], batch: int, dtype: torch.dtype, families: int
) -> Conv | Linear:
    """A 1x1 convolution for each of the first dimension, ``[n, out, in]``: of one input, which is one linear map of its
    pixels; or of one input a family."""
    if families > 1:
        return _conv(weight, bias, dtype, groups=families, activation=activation, size=size)
    return Linear(weight.flatten(0, 1).to(dtype), bias.flatten().to(dtype), activation, batch * size[0] * size[1])


def _on_pixels(conv: Conv | Linear, pixels: Tensor) -> Tensor:
    """``[B, H, W, C]`` to ``[B, H', W', C']``."""
    found: Tensor = conv(pixels) if isinstance(conv, Linear) else conv(pixels.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return found


def _family_of_each(counts: Sequence[int], device: torch.device) -> Tensor | None:
    """The family of each node; ``None`` if there is but one."""
    if len(counts) == 1:
        return None
    return torch.tensor([family for family, count in enumerate(counts) for _ in range(count)], device=device)


def _for_each(pixels: Tensor, family: Tensor | None, nodes: int, channels: int) -> Tensor:
    """What families have in common, ``[B, H, W, families * C]``, for each node: ``[B, H, W, nodes * C]``."""
    if family is None:
        return pixels.repeat(1, 1, 1, nodes)
    found: Tensor = pixels.unflatten(3, (-1, channels))
    return found.index_select(3, family).flatten(3)


def _conv(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, *geometry: Any, **more: Any) -> Conv:
    """A convolution for each of the first dimension, ``[n, out, in]`` or ``[n, out, in, k * k]``."""
    return Conv(kernels(weight).to(dtype), None if bias is None else bias.flatten().to(dtype), *geometry, **more)
