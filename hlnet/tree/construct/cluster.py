"""Finding a tree in data: agglomerative clustering (scipy) of what a network says about the classes.

Three sources: class means of a trunk's features, the rows of a plain classifier's last layer, and the confusions of a
trained network. Each gives a dendrogram; ``hlnet.tree.construct.levels`` cuts it into levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster.hierarchy import linkage as merge
from scipy.spatial.distance import squareform
from torch import Tensor, nn

from hlnet.errors import DataError, UsageError, with_article
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.construct.levels import cut_to_levels
from hlnet.tree.hierarchy import Hierarchy, group_name

#: scipy's names for the distance between two clusters.
LINKAGES = ("ward", "average", "complete", "single", "weighted", "centroid", "median")


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
    weight = next(trunk.parameters())  # its device and type are the images'
    total: Tensor | None = None
    counts = torch.zeros(classes, dtype=torch.float64)
    with torch.inference_mode():
        for images, labels in batches:
            pooled = F.adaptive_avg_pool2d(trunk(images.to(weight)), grid).flatten(1).double().cpu()
            if total is None:
                total = torch.zeros(classes, pooled.shape[1], dtype=torch.float64)
            total.index_add_(0, labels, pooled)
            counts.index_add_(0, labels, torch.ones(len(labels), dtype=torch.float64))
            if on_batch:
                on_batch()
    if total is None or (counts == 0).any():
        raise DataError("every class needs at least one image to be clustered")
    return total / counts[:, None]


def classifier_rows(model: nn.Module) -> Tensor:
    """The weight row of each class in a timm model's classifier, each of length one.

    Returns:
        ``[K, D]``, float64, on the CPU.

    Raises:
        UsageError: if the model has no linear classifier.

    Example:
        >>> import timm
        >>> classifier_rows(timm.create_model("test_resnet", num_classes=10)).shape
        torch.Size([10, 96])
    """
    classifier = getattr(model, "get_classifier", lambda: None)()
    weight = getattr(classifier, "weight", None)
    if weight is None or weight.ndim < 2:
        raise UsageError(f"{with_article(type(model).__name__)} has no linear classifier whose rows could be clustered")
    return F.normalize(weight.detach().double().cpu().flatten(1), dim=1)


def merge_features(rows: Tensor, linkage: str = "ward", standardized: bool = False) -> np.ndarray:
    """Cluster classes by a vector for each.

    Args:
        rows: ``[K, D]``, one row a class, K at least 2.
        linkage: one of :data:`LINKAGES`.
        standardized: bring every column to mean 0 and deviation 1 first, as features of unequal scale need.

    Returns:
        scipy's merges, ``[K - 1, 4]``.

    Raises:
        UsageError: for an unknown linkage.
        DataError: if a value is not finite.
    """
    check_linkage(linkage)
    if len(rows) < 2:
        raise UsageError(f"clustering needs at least two classes, got {len(rows)}")
    values = rows.double().cpu().numpy()
    if not np.isfinite(values).all():
        raise DataError("the classes' features hold values that are not finite; they cannot be clustered")
    if standardized:
        spread = values.std(axis=0)
        values = (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1)
    return np.asarray(merge(values, method=linkage))


def merge_confusions(confusions: Tensor, linkage: str = "average") -> np.ndarray:
    """Cluster classes by how often a network takes one for the other.

    The distance of two classes is one minus the mean of the two shares of images that go from one to the other.

    Args:
        confusions: ``[K, K]``, images of class i (row) that were called j (column).
        linkage: as in :func:`merge_features`; *ward*, *centroid* and *median* need points, not distances, and are
            refused.

    Returns:
        scipy's merges, ``[K - 1, 4]``.

    Raises:
        UsageError: for a linkage that does not fit.
        DataError: if a class has no image.

    Example:
        >>> merge_confusions(torch.tensor([[6, 4, 0], [2, 8, 0], [0, 1, 9]]))[0, :2].tolist()
        [0.0, 1.0]
    """
    check_linkage(linkage, distances=True)
    counts = confusions.double().cpu()
    if (counts.sum(dim=1) == 0).any():
        raise DataError("every class needs at least one image to be clustered by confusions")
    shares = counts / counts.sum(dim=1, keepdim=True)
    distances = 1 - (shares + shares.T) / 2
    distances.fill_diagonal_(0)
    return np.asarray(merge(squareform(distances.numpy(), checks=False), method=linkage))


def dendrogram(merges: np.ndarray, classes: Sequence[str], ids: Sequence[str | None] | None = None) -> Hierarchy:
    """scipy's merges as an hierarchy: each node has two children, and is named after its first classes.

    Args:
        merges: ``[K - 1, 4]``.
        classes: the K names; original indices follow their order.
        ids: outside identifiers of the classes, such as folder names.

    Example:
        >>> dendrogram(np.array([[0.0, 1.0, 0.5, 2.0], [2.0, 3.0, 0.9, 3.0]]), ["cat", "dog", "car"]).children[1].name
        'cat+dog'
    """
    nodes = [Hierarchy(name, index=i, id=ids[i] if ids else None) for i, name in enumerate(classes)]
    members = [([i], 1) for i in range(len(nodes))]  # the lowest three positions, and how many there are
    for rank, (left, right) in enumerate(merges[:, :2].astype(int).tolist(), start=1):
        first = sorted(members[left][0] + members[right][0])[:3]
        count = members[left][1] + members[right][1]
        members.append((first, count))
        # The rank stands for the height: it has no ties, and is monotone for every linkage.
        name = group_name([classes[i] for i in first], count)
        nodes.append(Hierarchy(name, [nodes[left], nodes[right]], height=float(rank)))
    top = nodes[-1]
    return top if top.children else Hierarchy("", [top])


def cluster_tree(
    means: Tensor,
    classes: Sequence[str],
    nodes: Sequence[int],
    ids: Sequence[str | None] | None = None,
    linkage: str = "ward",
    max_children: int | None = None,
) -> ClassTree:
    """A tree from class means: features standardised, merged, and cut at the wanted numbers of nodes. Deterministic.

    Args:
        means: ``[K, D]``, one row a class.
        classes: the K names; original indices follow their order.
        nodes: how many nodes each level above the leaves gets, such as ``(6, 26)``; must not decrease, at most K.
        ids: outside identifiers of the classes, such as folder names.
        linkage: one of :data:`LINKAGES`.
        max_children: no node gets more children than this.

    Raises:
        UsageError: if the numbers of nodes cannot be had.

    Example:
        >>> means = torch.tensor([[0.0, 0.1], [0.1, 0.0], [5.0, 5.0], [9.0, 0.0]])
        >>> cluster_tree(means, ["cat", "dog", "car", "tree"], nodes=[2]).to_nested()
        {'cat+dog': {'cat': 0, 'dog': 1}, 'car+tree': {'car': 2, 'tree': 3}}
    """
    merges = merge_features(means, linkage, standardized=True) if len(classes) > 1 else np.empty((0, 4))
    hierarchy = cut_to_levels(dendrogram(merges, classes, ids), nodes, max_children)
    return hierarchy.to_tree(levels=len(nodes) + 1)


def check_linkage(linkage: str, distances: bool = False) -> None:
    """Refuse what scipy does not know, or what needs points where there are only ``distances``.

    Raises:
        UsageError: in these cases.
    """
    if linkage not in LINKAGES:
        raise UsageError(f"linkage '{linkage}' is not one of {', '.join(LINKAGES)}")
    if distances and linkage in {"ward", "centroid", "median"}:
        raise UsageError(f"linkage '{linkage}' needs points in space; for confusions take average, complete or single")
