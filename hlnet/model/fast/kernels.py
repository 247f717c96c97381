"""Convolutions for inference: weights packed once, bias and activation in one step, sums in place.

Notable here: on a CPU these are oneDNN's own operators, which torch's compiler uses too but does not document;
elsewhere, and where they are missing, torch's public ones. Either way a caller sees one class.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: oneDNN's names of activations, with the values that they take.
ACTIVATIONS: dict[str, Any] = {
    "none": lambda x: x,
    "relu": F.relu_,
    "gelu": F.gelu,
    "swish": lambda x: F.silu(x, inplace=True),
    "hardswish": lambda x: F.hardswish(x, inplace=True),
    "relu6": lambda x: F.hardtanh_(x, 0.0, 6.0),
}
_ONEDNN: dict[str, tuple[str, list[float], str]] = {
    "none": ("none", [], ""),
    "relu": ("relu", [], ""),
    "gelu": ("gelu", [], "none"),
    "swish": ("swish", [], ""),
    "hardswish": ("hardswish", [], ""),
    "relu6": ("hardtanh", [0.0, 6.0], ""),
}


@cache
def packs(device: str, dtype: torch.dtype) -> bool:
    """Whether weights can be packed for oneDNN: on a CPU that computes in this type, if torch's operators do as here.

    They are not documented, so a tiny convolution and linear map are tried; whatever goes wrong, nothing is packed.
    """
    if device != "cpu" or dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    try:
        with torch.no_grad():
            return (dtype is torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()) and _as_torchs(dtype)
    except Exception:  # an operator is missing, or takes other arguments
        return False


def _as_torchs(dtype: torch.dtype) -> bool:
    """Whether packed convolutions and linear maps give what torch's public ones give."""
    x = torch.linspace(-1, 1, 2 * 8 * 3 * 3, dtype=dtype).view(2, 8, 3, 3).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.linspace(-1, 2, 64, dtype=dtype).view(8, 8), torch.linspace(-1, 1, 8, dtype=dtype)
    conv: dict[bool, Conv] = {}
    linear: dict[bool, Linear] = {}
    for packed in (True, False):
        conv[packed] = Conv(weight.view(8, 8, 1, 1), bias, activation="relu", size=(3, 3), packed=packed)
        linear[packed] = Linear(weight, bias, "gelu", 18, packed=packed)
    pairs = [(conv[True](x), conv[False](x))]
    for in_place in (True, False):
        pairs.append((conv[True].add(x.clone(), x, in_place), conv[False].add(x.clone(), x, in_place)))
    rows = x.permute(0, 2, 3, 1)
    pairs.append((linear[True](rows), linear[False](rows)))
    tolerance = 1e-4 if dtype is torch.float32 else 5e-2
    return all(torch.allclose(ours, theirs, tolerance, tolerance) for ours, theirs in pairs)


class Conv(nn.Module):
    """A convolution with its bias, activation and, if there is one, the sum before that.

    Args:
        weight: ``[out, in / groups, k, k]``.
        bias: ``[out]``.
        stride, padding, dilation, groups: as of ``torch.nn.Conv2d``.
        activation: one of :data:`ACTIVATIONS`.
        size: height and width of the input that it will mostly see.
        packed: whether to pack the weights; default: as :func:`packs` says.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        activation: str = "none",
        size: tuple[int, int] = (14, 14),
        packed: bool | None = None,
    ) -> None:
        super().__init__()
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.activation = activation
        # Of a single channel with a longer step sideways, oneDNN reads beyond the image.
        unsafe = weight.shape[1] * groups == 1 and stride[0] != stride[1]
        self.packed = not unsafe and (packs(weight.device.type, weight.dtype) if packed is None else packed)
        weight = weight.detach().contiguous(memory_format=torch.channels_last)
        if self.packed:
            # Packed for a batch of one, it serves any batch at the same rate; without a size it may be slow.
            shape = [1, weight.shape[1] * groups, *size]
            weight = torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, dilation, groups, shape)
        self.weight = weight
        self.bias = None if bias is None else bias.detach().contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in, H, W]``, channels last, to ``[B, out, H', W']``."""
        shape = (self.stride, self.dilation, self.groups)
        if not self.packed:
            y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
            result: Tensor = ACTIVATIONS[self.activation](y)
            return result
        packed: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, self.padding, *shape, *_ONEDNN[self.activation]
        )
        return packed

    def add(self, y: Tensor, x: Tensor, in_place: bool = False) -> Tensor:
        """``activation(y + conv(x))``; ``y`` may be overwritten if ``in_place``."""
        if not self.packed:
            found = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
            result: Tensor = ACTIVATIONS[self.activation](found.add_(y))
            return result
        # oneDNN takes a relu along with a sum, and nothing else.
        along = "relu" if self.activation == "relu" and x.dtype is torch.float32 else None
        rest: Any = (self.padding, self.stride, self.dilation, self.groups, "add", 1.0, along, [], "")
        if in_place:
            total = torch.ops.mkldnn._convolution_pointwise_.binary(y, x, self.weight, self.bias, *rest)
        else:
            total = torch.ops.mkldnn._convolution_pointwise.binary(x, y, self.weight, self.bias, *rest)
        summed: Tensor = total if along else ACTIVATIONS[self.activation](total)
        return summed


class Linear(nn.Module):
    """A linear map of rows, with its bias and activation: a 1x1 convolution on pixels that lie as rows.

    Args:
        weight: ``[out, in]``.
        bias: ``[out]``.
        activation: one of :data:`ACTIVATIONS`.
        rows: how many rows it will mostly see.
        packed: as of :class:`Conv`.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, activation: str = "none", rows: int = 196, packed: bool | None = None
    ) -> None:
        super().__init__()
        self.activation = activation
        self.packed = packs(weight.device.type, weight.dtype) if packed is None else packed
        weight = weight.detach().contiguous()
        if self.packed:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        self.weight = weight
        self.bias = None if bias is None else bias.detach().contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """``[…, in]`` to ``[…, out]``."""
        if not self.packed:
            result: Tensor = ACTIVATIONS[self.activation](F.linear(x, self.weight, self.bias))
            return result
        packed: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *_ONEDNN[self.activation])
        return packed
