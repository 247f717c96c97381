"""Finding a tree for classes that have none: agglomerative clustering of class means of a trunk's features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster.hierarchy import cut_tree, linkage
from torch import Tensor, nn

from hlnet.errors import DataError, UsageError
from hlnet.tree import ClassTree


def class_means(
    trunk: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    classes: int,
    grid: int = 1,
    on_batch: Callable[[], None] | None = None,
) -> Tensor:
    """Mean feature vector of each class.

    Args:
        trunk: from images to ``[B, C, h, w]`` features; it is put in evaluation mode.
        batches: images ``[B, 3, H, W]`` and labels ``[B]``.
        classes: number of classes, K.
        grid: features are averaged over a grid of this many cells a side; 1 is global average pooling.
        on_batch: called after each batch.

    Returns:
        ``[K, C * grid * grid]``, float64, on the CPU.

    Raises:
        DataError: if a class has no image.
    """
    trunk.eval()
    device = next(trunk.parameters()).device
    total: Tensor | None = None
    counts = torch.zeros(classes, dtype=torch.float64)
    with torch.inference_mode():
        for images, labels in batches:
            pooled = F.adaptive_avg_pool2d(trunk(images.to(device)), grid).flatten(1).double().cpu()
            if total is None:
                total = torch.zeros(classes, pooled.shape[1], dtype=torch.float64)
            total.index_add_(0, labels, pooled)
            counts.index_add_(0, labels, torch.ones(len(labels), dtype=torch.float64))
            if on_batch:
                on_batch()
    if total is None or (counts == 0).any():
        raise DataError("every class needs at least one image to be clustered")
    return total / counts[:, None]


def cluster_tree(
    means: Tensor, classes: Sequence[str], nodes: Sequence[int], ids: Sequence[str] | None = None
) -> ClassTree:
    """A tree from class means by Ward's agglomerative clustering (scipy), cut at the wanted numbers of nodes.

    Features are standardised first. A group is named after its first members; a class that is alone in its group ends
    there. Deterministic.

    Args:
        means: ``[K, D]``, one row a class.
        classes: the K names; original indices follow their order.
        nodes: how many nodes each level above the leaves gets, such as ``(6, 26)``; must not decrease, at most K.
        ids: outside identifiers of the classes, such as folder names.

    Raises:
        UsageError: if the numbers of nodes cannot be had.

    Example:
        >>> means = torch.tensor([[0.0, 0.1], [0.1, 0.0], [5.0, 5.0], [9.0, 0.0]])
        >>> cluster_tree(means, ["cat", "dog", "car", "tree"], nodes=[2]).to_nested()
        {'cat+dog': {'cat': 0, 'dog': 1}, 'car+tree': {'car': 2, 'tree': 3}}
    """
    wanted = (*nodes, len(classes))
    if not nodes or nodes[0] < 1 or any(a > b for a, b in pairwise(wanted)):
        given = ",".join(map(str, nodes))
        raise UsageError(f"nodes {given} must be positive, not decrease, and not exceed the {len(classes)} classes")
    values = means.numpy()
    spread = values.std(axis=0)
    values = (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1)
    merges = linkage(values, method="ward") if len(classes) > 1 else np.empty((0, 4))
    # The group of each class, level by level. Cut from one dendrogram, they nest.
    groups = [cut_tree(merges, n_clusters=count)[:, 0].tolist() if len(merges) else [0] for count in nodes]
    tree = ClassTree.from_nested(_nest(list(range(len(classes))), groups, list(classes)), levels=len(wanted))
    return tree if ids is None else tree.with_ids(dict(zip(classes, ids, strict=True)))


def _nest(members: list[int], levels: list[list[int]], names: list[str]) -> dict[str, object]:
    if not levels:
        return {names[i]: i for i in members}
    nested: dict[str, object] = {}
    groups: dict[int, list[int]] = {}
    for i in members:
        groups.setdefault(levels[0][i], []).append(i)
    for group in groups.values():
        if len(group) == 1:
            nested[names[group[0]]] = group[0]
        else:
            nested[_group_name([names[i] for i in group])] = _nest(group, levels[1:], names)
    return nested


def _group_name(names: Sequence[str], limit: int = 3) -> str:
    rest = f"+{len(names) - limit}-more" if len(names) > limit else ""
    return "+".join(names[:limit]) + rest
