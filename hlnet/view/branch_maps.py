"""Feature maps of branches: the outputs of single blocks of the tree (paper, Fig. 4).

Notable here: only blocks on the way from the trunk to the chosen nodes run, siblings among them together, on their rows
of the stacked weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hlnet.errors import SelectionError, UsageError
from hlnet.model.base import Network, require_branches
from hlnet.model.branches import BranchLevel
from hlnet.model.hierarchical import BranchTree, HierarchicalNet
from hlnet.tree.class_tree import ClassTree

#: A node: its level, as a position in ``tree.levels``, and its position there, as ``ClassTree.find_node`` gives it.
Place: TypeAlias = tuple[int, int]


def feature_maps(
    net: HierarchicalNet,
    images: Tensor,
    nodes: Iterable[str],
    level: int | None = None,
    gains: Tensor | None = None,
) -> dict[str, Tensor]:
    """The output of each chosen node's block.

    Args:
        net: a full network or an expert; it is put in evaluation mode.
        images: ``[B, 3, H, W]``, normalised as ``net.transform`` says.
        nodes: what is looked at, as :meth:`ClassTree.find_node` takes it: classes, paths, names or ids.
        level: look at this level's block on the way to each node instead of the node's own; 1 is nearest to the trunk.
            (The paper's Fig. 4 shows level 1 of a PHL.)
        gains: a cue, see :meth:`HierarchicalNet.forward`.

    Returns:
        by the node's path, in the order given, ``[B, channels, h, w]``; levels differ in channels and may in size.
        :func:`activity` makes one map of the channels, :func:`colours` three. Two nodes that share the block asked for
        are there once.

    Raises:
        UsageError: for a plain network or an inference form, no node, a level that the tree does not have or that lies
            below a node, or gains of another shape.
        SelectionError: if the tree does not have a node.

    Example:
        >>> from hlnet.model.hierarchical import NetworkConfig
        >>> tree = ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle"]})
        >>> net = HierarchicalNet(NetworkConfig(backbone="resnet18", widths=(8, 4), strides=(1, 2)), tree)
        >>> maps = feature_maps(net, torch.zeros(2, 3, 64, 64), ["cat", "beagle"])
        >>> {path: list(found.shape) for path, found in maps.items()}
        {'cat': [2, 32, 4, 4], 'dog/beagle': [2, 16, 2, 2]}
    """
    check_branches(net)
    places = {path_at(net.tree, place): place for place in at_level(net.tree, node_places(net.tree, nodes), level)}
    net.eval()
    with torch.no_grad():
        found = block_outputs(net.head, net.features(images.to(net.device)), places.values(), gains)
    return {path: found[place] for path, place in places.items()}


def activity(maps: Tensor) -> Tensor:
    """How strongly a block answers at each place: the mean over channels of the features' magnitude.

    Bottlenecks end in a ReLU, so for them it is the plain mean. ConvNeXt blocks have features of both signs, which
    would cancel out.

    Args:
        maps: ``[B, channels, h, w]``.

    Returns:
        ``[B, h, w]``.

    Example:
        >>> activity(torch.tensor([[[[1.0]], [[-3.0]]]]))
        tensor([[[2.]]])
    """
    return maps.abs().mean(1)


def colours(maps: Tensor) -> Tensor:
    """Three of a block's channels as red, green and blue, as in the paper's Fig. 4.

    The paper does not say which three it shows. Here they are those that vary most over places and images, the most
    varying one red, each from its lowest value (0) to its highest (1); a channel that does not vary is black. Colours
    compare images, which share channels and range, not nodes.

    Args:
        maps: ``[B, channels, h, w]``.

    Returns:
        ``[B, h, w, 3]``, in 0..1.

    Example:
        >>> colours(torch.tensor([[[[0.0, 1.0]], [[0.0, 0.0]], [[4.0, 2.0]]]]))[0, 0].tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    channels = maps.transpose(0, 1).flatten(1)
    spread = channels.std(1, correction=0)
    chosen = spread.argsort(descending=True, stable=True)[:3]
    low, high = channels.aminmax(dim=1)
    low, span = low[chosen, None, None], (high - low)[chosen, None, None]
    shown = torch.where(span > 0, (maps[:, chosen] - low) / span.clamp(min=torch.finfo(maps.dtype).tiny), 0.0)
    missing = torch.zeros(len(maps), 3 - len(chosen), *maps.shape[2:], dtype=maps.dtype, device=maps.device)
    return torch.cat([shown, missing], dim=1).movedim(1, -1)


def block_outputs(
    head: BranchTree, features: Tensor, places: Iterable[Place], gains: Tensor | None = None
) -> dict[Place, Tensor]:
    """The outputs of blocks, from the trunk's features ``[B, C, h, w]``; no block runs that leads to none of them.

    Args:
        head: the branches, in the mode in which they shall run.
        features: of the trunk.
        places: the nodes.
        gains: ``[B, nodes]`` or ``[nodes]``.

    Returns:
        for each place ``[B, channels, h', w']``.

    Raises:
        UsageError: for gains of another shape.
    """
    tree, wanted = head.tree, set(places)
    gains = head.check_gains(gains, len(features))
    needed: list[set[int]] = [set() for _ in tree.levels]
    for depth, position in wanted:
        for above in range(depth, -1, -1):
            needed[above].add(position)
            position = tree.levels[above][position].parent
    found: dict[Place, Tensor] = {}
    outputs = {0: head.seen(features)}
    for depth, rows in enumerate(needed):
        level: Any = head.levels[depth]
        parents = groupby(sorted(rows), key=lambda row: tree.levels[depth][row].parent)
        outputs = {
            row: child
            for parent, group in parents
            for row, child in _children(level, parent, outputs[parent], list(group), gains, tree.offsets[depth])
        }
        found |= {(depth, row): output for row, output in outputs.items() if (depth, row) in wanted}
    return found


def node_places(tree: ClassTree, nodes: Iterable[str]) -> tuple[Place, ...]:
    """Where the named nodes are; each once, in the order given.

    Raises:
        UsageError: if the names are one text.
        SelectionError: if there is none, or the tree does not have one.

    Example:
        >>> tree = ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle"]})
        >>> node_places(tree, ["beagle", "cat"])
        ((1, 2), (0, 0))
    """
    if isinstance(nodes, str):
        raise UsageError(f"nodes '{nodes}': expected a list of names, such as ['{nodes}']")
    found = dict.fromkeys(tree.find_node(word) for word in nodes)
    if not found:
        raise SelectionError("no node was named; name at least one, such as 'animal/cat' or 'tabby'")
    return tuple(found)


def at_level(tree: ClassTree, places: Sequence[Place], level: int | None) -> tuple[Place, ...]:
    """The nodes at this level, from 1, on the way to the given ones; each once. ``None``: the given ones.

    Raises:
        UsageError: for a level that the tree does not have or that lies below a node.

    Example:
        >>> tree = ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle"]})
        >>> at_level(tree, [(1, 2), (1, 0), (1, 1)], 1)
        ((0, 1), (0, 0))
    """
    if level is None:
        return tuple(places)
    if not 1 <= level <= tree.num_levels:
        raise UsageError(f"level {level}: the tree has levels 1, nearest to the trunk, to {tree.num_levels}")
    found: dict[Place, None] = {}
    for depth, position in places:
        if depth < level - 1:
            path = path_at(tree, (depth, position))
            raise UsageError(f"node '{path}' is at level {depth + 1}, above level {level}; name a class under it")
        for below in range(depth, level - 1, -1):
            position = tree.levels[below][position].parent
        found[level - 1, position] = None
    return tuple(found)


def path_places(tree: ClassTree, position: int) -> tuple[Place, ...]:
    """The nodes from the trunk to the class at this position; of a class that only goes on to the last level, the leaf.

    Example:
        >>> tree = ClassTree.from_nested({"cat": {"tabby": ["grey", "red"]}, "saw": {}})
        >>> path_places(tree, 1), path_places(tree, 2)
        (((0, 0), (1, 0), (2, 1)), ((2, 2),))
    """
    found: list[Place] = []
    for depth in range(tree.num_levels - 1, -1, -1):
        if not found or path_at(tree, (depth, position)) != path_at(tree, found[0]):
            found.insert(0, (depth, position))
        position = tree.levels[depth][position].parent
    return tuple(found)


def path_at(tree: ClassTree, place: Place) -> str:
    """The path of the node at a place."""
    return tree.levels[place[0]][place[1]].path


def check_branches(net: Network) -> None:
    """Refuse what has no blocks that can be looked at.

    Raises:
        UsageError: for a plain network or an inference form.
    """
    require_branches(net, "to look at", "its class activation maps can be shown")
    if not isinstance(net, HierarchicalNet):
        raise UsageError(f"{type(net).__name__} does not show its blocks; give the network that it was made of")


# ---------------------------------------------------------------------- helpers


def _children(
    level: BranchLevel, parent: int, x: Tensor, rows: list[int], gains: Tensor | None, offset: int
) -> Iterable[tuple[int, Tensor]]:
    """Some children of one parent, from its output."""
    gain = None if gains is None else gains[:, [row + offset for row in rows]].to(x.device)
    return zip(rows, level(x, level.choose(rows, [parent]), gain).unbind(1), strict=True)
