"""Class activation maps: where in an image the evidence for a class lies (Grad-CAM, by Captum).

Notable here: a class's logit depends on the trunk and on the blocks of its own path alone, so only these run; and the
same call serves plain networks, the control.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hlnet.errors import UsageError
from hlnet.model.base import TrainableNetwork
from hlnet.model.branches import pooled
from hlnet.model.hierarchical import BranchTree
from hlnet.model.plain import PlainNet
from hlnet.optional import require
from hlnet.tree.selection import select_classes
from hlnet.view.branch_maps import check_branches


def activation_maps(
    net: TrainableNetwork, images: Tensor, classes: str | Iterable[str | int], level: int | None = None
) -> Tensor:
    """Grad-CAM (Selvaraju et al., 2017) of classes' logits.

    Each channel of a layer's output is weighted by the mean of the logit's gradient over its places; the weighted sum
    is cut off at 0. At a bottleneck leaf, whose output is pooled and goes into one linear map, that is exactly each
    place's share of the logit: ``max(0, sum_c w_c A_c) / (h w)``.

    Args:
        net: full network, expert or plain network; it is put in evaluation mode.
        images: ``[B, 3, H, W]``, normalised as ``net.transform`` says.
        classes: a selection, as :func:`hlnet.select_classes` takes it.
        level: at which layer's output: 0, the trunk's (of a plain network, the stage at the split point); 1 and so on,
            that of the blocks on the class's path. Default: the last, the leaf's own (of a plain network, its last
            stage's).

    Returns:
        ``[B, classes, h, w]``, 0 or more, in units of the logit; the classes in the order of the logits.

    Raises:
        UsageError: if the package ``captum`` is missing, for a level that the network does not have, for an inference
            form, or for a plain network whose last stage gives no map (ViT).
        SelectionError: if the tree does not have a class.
        BackboneError: for a plain network that does not run from the features at its split point, with level 0.

    Example:
        >>> from hlnet.model.presets import create_model
        >>> net = create_model("resnet18", tree={"cat": ["tabby", "siamese"], "dog": ["beagle"]})
        >>> activation_maps(net, torch.zeros(2, 3, 64, 64), "cat").shape
        torch.Size([2, 2, 2, 2])
    """
    return maps_of(net, images, select_classes(net.tree, classes), level)


def maps_of(net: TrainableNetwork, images: Tensor, chosen: Sequence[int], level: int | None = None) -> Tensor:
    """As :func:`activation_maps`, of the classes at these positions, in this order."""
    captum = require("captum.attr", "a class activation map", "show")
    net.eval()
    images = images.to(net.device)
    if isinstance(net, PlainNet):
        start, stages = _plain_stages(net, images, level)
        paths: list[tuple[Any, int]] = [(stages, position) for position in chosen]
    else:
        check_branches(net)
        last = net.tree.num_levels
        if level is not None and not 0 <= level <= last:
            raise UsageError(f"level {level}: the network has 0 (the trunk) and levels 1 to {last}")
        with torch.no_grad():
            start = net.features(images)
        paths = [(_Path(net.head, position, last if level is None else level), 0) for position in chosen]
    found = []
    with torch.enable_grad():
        start = start.detach().requires_grad_()  # the weights may all be frozen
        for stages, target in paths:
            method = captum.LayerGradCam(stages, stages.watched)
            found.append(method.attribute(start, target=target, relu_attributions=True).detach())
    return torch.cat(found, dim=1)


# ---------------------------------------------------------------------- helpers


class _Stages(nn.Module):
    """Modules one after another; the output of one of them is watched, of stage 0 the input."""

    def __init__(self, modules: Sequence[nn.Module], watched: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Identity(), *modules])
        self.watched = self.stages[watched]

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return x


class _Block(nn.Module):
    """The block of one node."""

    def __init__(self, level: Any, row: int) -> None:
        super().__init__()
        self.level, self.row = level, row

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.level(x, self.level.family(slice(self.row, self.row + 1)), None)
        return output[:, 0]


class _Path(nn.Module):
    """One class's logit ``[B, 1]`` from the trunk's output; watched is that, or the output of a level's block."""

    def __init__(self, head: BranchTree, leaf: int, level: int) -> None:
        super().__init__()
        self.head, self.leaf = head, leaf
        rows = head.tree.rows([leaf])
        blocks = (_Block(block, row) for block, (row,) in zip(head.levels, rows, strict=True))
        self.stages = nn.ModuleList([nn.Identity(), *blocks])
        self.watched = self.stages[level]

    def forward(self, x: Tensor) -> Tensor:
        trunk, *blocks = self.stages
        x = seen = self.head.seen(trunk(x))
        for block in blocks:
            x = block(x)
        logit: Tensor = self.head.leaves(pooled(x[:, None]), slice(self.leaf, self.leaf + 1))
        if (rows := self.head.class_rows) is not None:
            logit = logit + rows(rows.pool(seen))[:, self.leaf : self.leaf + 1]
        return logit


class _PlainHead(nn.Module):
    """A timm model's logits from its last stage's output."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model.forward_head(x)
        return logits


def _plain_stages(net: PlainNet, images: Tensor, level: int | None) -> tuple[Tensor, _Stages]:
    """What a plain network's map is computed from: a stage's output, and what follows."""
    if level not in (None, 0):
        raise UsageError(f"level {level}: a plain network has no levels; give 0, its split point, or none, its end")
    model: Any = net.model
    with torch.no_grad():
        if level == 0:
            return net.features(images), _Stages([net.head], 0)
        start: Tensor = model.forward_features(images)
    if start.dim() != 4 or start.shape[1] != model.num_features:
        raise UsageError(
            f"backbone '{net.config.backbone}' ends in no spatial map of channels, which a class activation map needs"
        )
    return start, _Stages([_PlainHead(model)], 0)
