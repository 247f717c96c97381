"""Where to split: what full network and expert cost for each stage or block of the backbone that the trunk may end at.

Notable here: a trunk that ends a stage earlier hands on a map of twice the side, which would make every branch four
times as dear. So branches take over the stride that the trunk has lost, or the shared stage where there is one, and the
leaves see maps of the same size wherever the split is. The figures are counted, as those of ``hlnet.model.cost`` are;
nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from pydantic import BaseModel

from hlnet.figures import BLUE, GREY, RED, save, tidy
from hlnet.model.cost import Profile, profile
from hlnet.model.hierarchical import NetworkConfig
from hlnet.model.transform import InputTransform
from hlnet.model.trunk import Trunk
from hlnet.tree.class_tree import ClassTree


class Split(BaseModel):
    """One place to split at.

    Attributes:
        split_point: the trunk's last stage, counted from 0, or block within one; ``hlnet train --split-point`` takes
            it.
        stage: what timm calls it.
        channels, reduction: of the map there; ``reduction`` is the image's side over the map's.
        strides: of the branches, level by level; ``hlnet train --strides`` takes them.
        shared_stride: of the shared stage, likewise.
        chosen: whether it is where the network given splits.
        costs: plain, full and, if classes were selected, expert.
    """

    split_point: int | str
    stage: str
    channels: int
    reduction: int
    strides: tuple[int, ...]
    shared_stride: int = 1
    chosen: bool
    costs: Profile


def sweep_split_points(
    config: NetworkConfig,
    tree: ClassTree,
    transform: InputTransform | None = None,
    classes: str | Iterable[str | int] | None = None,
    on_split: Callable[[int, int], None] | None = None,
    blocks: bool = False,
) -> list[Split]:
    """The costs of a network for every stage that its trunk may end at.

    Args:
        config, tree, transform, classes: as :func:`hlnet.profile` takes them; widths stay as they are.
        on_split: called with the number of splits done, and of all.
        blocks: also for every block within the stages.

    Raises:
        SelectionError, BackboneError, UsageError: as :func:`hlnet.profile`.

    Example:
        >>> config, tree = NetworkConfig(backbone="test_resnet"), ClassTree.balanced((1, 9, 10))
        >>> found = sweep_split_points(config, tree, classes="0-4")
        >>> [(split.stage, split.strides, round(split.costs.expert.gmacs, 2)) for split in found][1:4]
        [('layer1', (2, 2, 2), 0.31), ('layer2', (2, 1, 2), 0.22), ('layer3', (1, 1, 2), 0.23)]
    """
    given = Trunk(config.backbone, config.split_point, backbone_args=config.backbone_args)
    places = [place for place in given.split_points if blocks or isinstance(place, int)]
    classes = classes if classes is None or isinstance(classes, str) else list(classes)
    found = []
    for number, place in enumerate(places):
        with torch.device("meta"):
            trunk = Trunk(config.backbone, place, backbone_args=config.backbone_args)
        split = config.model_copy(update={"split_point": place} | _balanced(config, given.reduction, trunk.reduction))
        found.append(
            Split(
                split_point=place,
                stage=trunk.stage,
                channels=trunk.channels,
                reduction=trunk.reduction,
                strides=split.strides,
                shared_stride=split.shared_stride,
                chosen=place == given.split_point,
                costs=profile(split, tree, transform, classes),
            )
        )
        if on_split:
            on_split(number + 1, len(places))
    return found


def balanced_strides(strides: tuple[int, ...], reduction: int, wanted: int) -> tuple[int, ...]:
    """Strides for a trunk of another reduction, such that the leaves see maps of the same size, if that can be.

    Each factor of two goes to the first level of the smallest stride, or is taken from the first of the largest.

    Args:
        strides: of the branches behind a trunk of this ``reduction``.
        wanted: the other trunk's reduction.

    Example:
        >>> balanced_strides((1, 1, 2), 16, 8), balanced_strides((1, 1, 2), 16, 2), balanced_strides((1, 1, 2), 16, 32)
        ((2, 1, 2), (4, 2, 2), (1, 1, 1))
    """
    found = list(strides)
    while wanted * 2 <= reduction:
        found[found.index(min(found))] *= 2
        wanted *= 2
    while wanted >= reduction * 2 and max(found) > 1:
        found[found.index(max(found))] //= 2
        wanted //= 2
    return tuple(found)


def _balanced(config: NetworkConfig, reduction: int, wanted: int) -> dict[str, Any]:
    """The strides of a network behind a trunk of another reduction; a shared stage takes what it can."""
    if not config.shared_width:
        return {"strides": balanced_strides(config.strides, reduction, wanted)}
    behind = config.shared_stride * reduction
    stride = max(1, behind // wanted)
    return {"shared_stride": stride, "strides": balanced_strides(config.strides, behind, stride * wanted)}


def plot_splits(splits: Sequence[Split], path: str | Path) -> None:
    """GMACs and parameters of full network and expert, by the stage that the trunk ends at."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    stages = [f"{split.stage}\n{split.reduction}x" for split in splits]
    for axes, (field, label, unit) in zip(
        figure.subplots(1, 2), (("gmacs", "GMACs", 1.0), ("params", "parameters, M", 1e6)), strict=True
    ):
        for name, colour in (("full", BLUE), ("expert", RED)):
            costs = [getattr(split.costs, name) for split in splits]
            if all(costs):
                axes.plot(stages, [getattr(cost, field) / unit for cost in costs], "o-", color=colour, label=name)
        axes.axhline(getattr(splits[0].costs.plain, field) / unit, color=GREY, ls="--", lw=1, label="plain network")
        for place, split in enumerate(splits):
            if split.chosen:
                axes.axvline(place, color=GREY, ls=":", lw=1, label="split point as it is now")
        axes.set_ylim(bottom=0)
        tidy(axes, xlabel="trunk ends after", ylabel=label)
    axes.legend(frameon=False)
    figure.suptitle(
        "Cost by the stage where the trunk ends (16x: images have 16 times the side of its maps)", fontsize=11
    )
    save(figure, path)
