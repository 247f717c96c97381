"""What of a level's blocks is linear, put together: norms, scales and shifts in the convolutions beside them.

Notable here: weights are folded in float32 at least and rounded by the caller. They keep their first dimension: the
nodes or, where siblings share, the parents.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hlnet.model.branches import ConvNeXtLevel, Family, NormedLevel

#: By name of a convolution its weight, ``[n, out, in]`` or ``[n, out, in, k * k]``, and its bias, ``[n, out]``.
Folded = dict[str, tuple[Tensor, Tensor]]


def exact(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights to compute with, in float32 at least; as they are where they are that."""
    return {name: t.detach().to(torch.promote_types(t.dtype, torch.float32)) for name, t in tensors.items()}


def fold_norms(level: NormedLevel, family: Family) -> Folded:
    """The convolutions of some siblings, each with its batch norm in it."""
    rows, folded = exact(family), {}
    for name in [name.removesuffix("_bn_var") for name in rows if name.endswith("_bn_var")]:
        scale = rows[f"{name}_bn_weight"] / (rows[f"{name}_bn_var"] + level.eps).sqrt()
        weight = rows[f"{name}_weight"]
        bias = rows[f"{name}_bn_bias"] - rows[f"{name}_bn_mean"] * scale
        folded[name] = (weight * scale.reshape(*scale.shape, *[1] * (weight.dim() - 2)), bias)
    return folded


def fold_convnext(level: ConvNeXtLevel, family: Family) -> tuple[Folded, Tensor, Tensor]:
    """The convolutions of some siblings, with what layer norms and GRN scale and shift in the linear maps that follow.

    Returns:
        them; GRN's weight, ``[n, 4 * width]``; and the part of the output that GRN's shift gives, ``[n, width]``, of
        which a gain takes its share.
    """
    rows = exact(family)
    conv_in = rows["conv_in_weight"] * rows["norm_in_weight"][:, None, :, None]
    in_bias = torch.einsum("noik,ni->no", rows["conv_in_weight"], rows["norm_in_bias"]) + rows["conv_in_bias"]
    fc1 = rows["fc1_weight"] * rows["norm_weight"][:, None, :]
    bias1 = torch.einsum("noi,ni->no", rows["fc1_weight"], rows["norm_bias"]) + rows["fc1_bias"]
    fc2 = rows["fc2_weight"] * rows["scale"][:, :, None]
    shift = torch.einsum("noi,ni->no", fc2, rows["grn_bias"])
    folded = {
        "conv_in": (conv_in, in_bias),
        "conv_dw": (rows["conv_dw_weight"], rows["conv_dw_bias"]),
        "fc1": (fc1, bias1),
        "fc2": (fc2, shift + rows["fc2_bias"] * rows["scale"]),
    }
    return folded, rows["grn_weight"], shift
