"""Feature maps, probabilities and effects of cues on a few images, for ``hlnet show``.

Notable here: the trunk runs once for all of it, and what is compared is on one scale: feature maps of one level, class
activation maps of one layer, a branch with and without a cue.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hlnet.cues.cue import Cue, Mode
from hlnet.cues.effect import Effect, cue_effect
from hlnet.cues.policy import CuePolicy
from hlnet.data.images import open_image
from hlnet.data.tree_data import eval_transform
from hlnet.errors import UsageError
from hlnet.evaluation.metrics.probability import class_probabilities
from hlnet.model.base import TrainableNetwork
from hlnet.model.hierarchical import HierarchicalNet
from hlnet.model.plain import PlainNet
from hlnet.model.transform import InputTransform
from hlnet.tree.class_tree import ClassTree
from hlnet.view.branch_maps import (
    Place,
    activity,
    at_level,
    block_outputs,
    check_branches,
    colours,
    node_places,
    path_at,
    path_places,
)
from hlnet.view.class_activation import maps_of

Numbers: TypeAlias = NDArray[np.floating[Any]]
MOST_IMAGES, MOST_NODES, MOST_CUES = 8, 8, 4


@dataclass(frozen=True)
class MapRow:
    """One node's maps of all images.

    Attributes:
        path: of the node, or of the class whose evidence it is.
        level: of the block that was looked at, 1 nearest to the trunk; 0 is the trunk's output (of a plain network,
            that of its split point), -1 a plain network's last stage.
        values: ``[B, h, w]``, or as colours in 0..1 ``[B, h, w, 3]``.
    """

    path: str
    level: int
    values: Numbers


@dataclass(frozen=True)
class CuedBranch:
    """A cued branch's activity for one image, without and with the cue: ``[h, w]`` each."""

    path: str
    before: Numbers
    after: Numbers


@dataclass(frozen=True)
class CueRow:
    """Effect of one cue on all images.

    Attributes:
        node: what the cue names.
        mode: how it acts.
        told: what it does, in words.
        classes: positions of the classes that it names.
        shares: ``[B, classes]``, probabilities under the cue.
        branches: for each image; of several cued classes, that of the most probable one. None of a plain network.
    """

    node: str
    mode: Mode
    told: str
    classes: tuple[int, ...]
    shares: Numbers
    branches: tuple[CuedBranch, ...]


@dataclass(frozen=True)
class View:
    """Maps and probabilities of a few images, of :func:`look`.

    Attributes:
        names: of the images.
        pictures: what the network saw, ``[B, H, W, 3]`` in 0..1, cropped and resized.
        classes: names, in the order of the logits.
        shares: ``[B, classes]``, their probabilities without a cue.
        maps: feature maps of nodes, level by level.
        activations: class activation maps.
        cues: one a cue.
        one_vs_rest: whether probabilities are each class's own, and do not add up to 1.
    """

    names: tuple[str, ...]
    pictures: Numbers
    classes: tuple[str, ...]
    shares: Numbers
    maps: tuple[MapRow, ...]
    activations: tuple[MapRow, ...]
    cues: tuple[CueRow, ...]
    one_vs_rest: bool


def look(
    net: TrainableNetwork,
    images: Sequence[str | Path],
    nodes: Iterable[str] | None = None,
    level: int | None = None,
    cues: Sequence[Cue] = (),
    policy: CuePolicy | None = None,
    cam: bool = False,
    rgb: bool = False,
) -> View:
    """Run a few images and keep what branches, and cues on them, make of them.

    Args:
        net: full network, expert or plain network; it is put in evaluation mode. A plain one has no branches: only its
            class activation maps and probabilities are there.
        images: paths, at most 8.
        nodes: as :func:`hlnet.view.branch_maps.feature_maps` takes them, at most 8. Default: of one image, the path to
            its best class, and the two runners-up; of several, each one's best class. Of a plain network, classes.
        level: look at the blocks of this level above the nodes instead.
        cues: each acts alone, on all images; at most 4.
        policy: how they act; default: as :class:`hlnet.CuePolicy`.
        cam: class activation maps too, of the nodes that are classes (or else of each image's best class), at the
            leaves' blocks and at the trunk's output. Takes the package ``captum``.
        rgb: three channels of a feature map as colours, as in the paper's Fig. 4, instead of their activity.

    Raises:
        UsageError: for too many images, nodes or cues, what a plain network does not have, as
            :func:`hlnet.view.branch_maps.feature_maps` and :func:`hlnet.cues.effect.cue_effect`.
        SelectionError: if a node or cue names what the tree does not have.
        DataError: if an image cannot be read.
    """
    _check_count(images, MOST_IMAGES, "image")
    _check_count(cues, MOST_CUES, "cue")
    net.eval()
    transform = eval_transform(net.transform)
    batch = torch.stack([transform(open_image(path)) for path in images]).to(net.device)
    policy, nodes = policy or CuePolicy(), None if nodes is None else list(nodes)
    with torch.no_grad():
        start = batch if isinstance(net, PlainNet) else net.features(batch)
        logits = net(batch) if isinstance(net, PlainNet) else net.head(start)
        shares = _shares(net, logits)
        rows = tuple(_cue_row(net, start, logits, cue, policy) for cue in cues)
        named = _best_places(net.tree, logits) if nodes is None else node_places(net.tree, nodes)
        places: tuple[Place, ...] = ()
        if isinstance(net, HierarchicalNet):
            places = at_level(net.tree, named, level)
            _check_count(places, MOST_NODES, "node")
            outputs = block_outputs(net.head, start, places)
        elif level is not None or rgb or (nodes is not None and not cam):
            check_branches(net)
    maps = [
        MapRow(path_at(net.tree, place), place[0] + 1, as_numbers((colours if rgb else activity)(outputs[place])))
        for place in sorted(places, key=lambda place: place[0])
    ]
    return View(
        names=_names(images),
        pictures=as_pixels(batch, net.transform),
        classes=net.tree.classes,
        shares=as_numbers(shares),
        maps=tuple(maps),
        activations=_activations(net, batch, _cam_classes(net, named, logits)) if cam else (),
        cues=rows,
        one_vs_rest=net.provenance.one_vs_rest,
    )


def as_numbers(tensor: Tensor) -> Numbers:
    """A tensor for drawing."""
    result: Numbers = tensor.detach().float().cpu().numpy()
    return result


def as_pixels(batch: Tensor, transform: InputTransform) -> Numbers:
    """Images ``[B, C, H, W]`` as they were before they were normalised: ``[B, H, W, 3]`` in 0..1."""
    mean, std = (torch.tensor(values, device=batch.device)[:, None, None] for values in (transform.mean, transform.std))
    pixels = (batch * std + mean).clamp(0, 1)
    return as_numbers(pixels.expand(-1, 3, -1, -1).movedim(1, -1))


def scale_end(maps: Iterable[Numbers]) -> float:
    """The end of the scale that maps share: single extreme places, as corners often are, may lie beyond."""
    return max(float(np.quantile(np.concatenate([values.ravel() for values in maps]), 0.995)), 1e-12)


# ---------------------------------------------------------------------- helpers


def _check_count(found: Sequence[object], most: int, what: str) -> None:
    if not found and what == "image":
        raise UsageError("no image was named")
    if len(found) > most:
        raise UsageError(f"{len(found)} {what}s do not fit one page; give at most {most}")


def _names(images: Sequence[str | Path]) -> tuple[str, ...]:
    """File names, or paths where two files have the same."""
    names = tuple(Path(path).name for path in images)
    return names if len(set(names)) == len(names) else tuple(map(str, images))


def _shares(net: TrainableNetwork, logits: Tensor) -> Tensor:
    return class_probabilities(logits.float(), net.provenance.one_vs_rest, net.provenance.temperature)


def _best_places(tree: ClassTree, logits: Tensor) -> tuple[Place, ...]:
    """Of one image, the path to the best class and two runners-up; of several, each one's best class."""
    last = tree.num_levels - 1
    ranking = logits.argsort(dim=1, descending=True)[:, :3].tolist()
    chosen = dict.fromkeys(best for best, *_ in ranking)
    if len(chosen) == 1:
        chosen |= dict.fromkeys(ranking[0])
    above = path_places(tree, ranking[0][0])[:-1] if len(logits) == 1 else ()
    return (*above, *((last, position) for position in chosen))


def _cue_row(net: TrainableNetwork, start: Tensor, logits: Tensor, cue: Cue, policy: CuePolicy) -> CueRow:
    """What a cue makes of all images; ``start`` are their features, or the images of a plain network."""
    effect, mode = cue_effect(net, [[cue]] * len(start), policy), policy.complete(cue, net.provenance).mode
    assert mode is not None
    classes = cue.positions(net.tree)
    branches: list[CuedBranch] = []
    if isinstance(net, HierarchicalNet):
        cued = effect.shifted(net.head(start, effect.gains))
        last = net.tree.num_levels - 1
        best = [(last, classes[i]) for i in cued[:, list(classes)].argmax(1).tolist()]
        before, after = (block_outputs(net.head, start, best, gains) for gains in (None, effect.gains))
        for row, place in enumerate(best):
            pair = (as_numbers(activity(outputs[place][row : row + 1])[0]) for outputs in (before, after))
            branches.append(CuedBranch(path_at(net.tree, place), *pair))
    else:
        cued = effect.shifted(logits)
    return CueRow(cue.node, mode, _told(cue, mode, effect), classes, as_numbers(_shares(net, cued)), tuple(branches))


def _told(cue: Cue, mode: Mode, effect: Effect) -> str:
    """``gain 1.8``, ``bias +4.39 (0.9 reliable)``."""
    values = effect.bias if mode == "bias" else effect.scale if mode == "scale" else effect.gains
    assert values is not None
    neutral = 0.0 if mode == "bias" else 1.0
    acting = float(values[0][(values[0] - neutral).abs().argmax()])
    number = f"{acting:+.2f}" if mode == "bias" else f"{acting:.4g}"
    stated = "" if cue.reliability is None else f", {cue.reliability:g} reliable"
    return f"{mode} {number}{stated}"


def _cam_classes(net: TrainableNetwork, named: Sequence[Place], logits: Tensor) -> list[int]:
    """Classes among the nodes, or else each image's best one."""
    _check_count(named, MOST_NODES, "node")
    chosen = [position for depth, position in named if depth == net.tree.num_levels - 1]
    return list(dict.fromkeys(chosen or logits.argmax(1).tolist()))


def _activations(net: TrainableNetwork, batch: Tensor, classes: Sequence[int]) -> tuple[MapRow, ...]:
    """At the end of the network, then at the trunk's output."""
    paths = [net.tree.leaves[position].path for position in classes]
    end = net.tree.num_levels if isinstance(net, HierarchicalNet) else -1
    return tuple(
        MapRow(path, end if level is None else level, maps)
        for level in (None, 0)
        for path, maps in zip(paths, as_numbers(maps_of(net, batch, classes, level).transpose(0, 1)), strict=True)
    )
