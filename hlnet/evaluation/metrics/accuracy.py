"""Accuracy: how often the highest logit is the right class's, and what the class tree says of the answers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from hlnet.errors import UsageError
from hlnet.evaluation.metrics.hierarchy import HierarchicalMetrics, measure_hierarchy
from hlnet.tree.class_tree import ClassTree


class Accuracy(BaseModel):
    """Accuracy of one set of predictions, as shares in 0..1.

    Attributes:
        top1: share of images whose highest logit is their class's.
        top5: share whose class is among the five highest; ``None`` with five classes or fewer, where it says nothing.
        macro: mean of the classes' own top-1, so that each counts the same, however many images it has.
        per_class: top-1 by class name, for classes that have images.
        hierarchical: by the class tree; ``None`` without one, or where it groups nothing (one level, or one class).
        answers: for each image, the column of its highest logit; not part of the JSON.
    """

    top1: float
    top5: float | None
    macro: float
    per_class: dict[str, float]
    hierarchical: HierarchicalMetrics | None = None
    answers: list[int] = Field(default=[], exclude=True, repr=False)


def accuracy(
    logits: Tensor,
    labels: Tensor,
    names: Iterable[str],
    tree: ClassTree | None = None,
    temperature: float | None = None,
) -> Accuracy:
    """Top-1, top-5 and per-class accuracy, and that by the class tree.

    Args:
        logits: ``[N, K]``.
        labels: ``[N]``, column of the right class.
        names: of the K columns.
        tree: its leaves are the columns; for the figures by the tree.
        temperature: as :func:`hlnet.evaluation.metrics.hierarchy.measure_hierarchy` takes it.

    Raises:
        UsageError: if there are no images.

    Example:
        >>> accuracy(torch.tensor([[2.0, 1.0], [3.0, 0.0]]), torch.tensor([0, 1]), ["cat", "dog"]).top1
        0.5
    """
    if not len(labels):
        raise UsageError("there are no images to measure accuracy on")
    answers, names = logits.argmax(1), list(names)
    right = (answers == labels).double()
    images, found_right = (torch.bincount(labels, weights, len(names)) for weights in (None, right))
    per_class = {
        name: float(hits / count) for name, hits, count in zip(names, found_right, images, strict=True) if count
    }
    top5 = None
    if logits.shape[1] > 5:
        best = logits.topk(5, dim=1)  # what did not run is at minus infinity
        top5 = float(((best.indices == labels[:, None]) & best.values.isfinite()).any(1).double().mean())
    found = Accuracy(
        top1=float(right.mean()),
        top5=top5,
        macro=sum(per_class.values()) / len(per_class),
        per_class=per_class,
        answers=answers.tolist(),
    )
    if tree is not None and any("/" in leaf.path for leaf in tree.leaves) and len(tree.leaves) > 1:
        found.hierarchical = measure_hierarchy(logits, labels, tree, temperature)
    return found


def confusion_matrix(logits: Tensor, labels: Tensor) -> Tensor:
    """Counts of images by class (row) and answer (column): ``[K, K]``, int64.

    Args:
        logits: ``[N, K]``.
        labels: ``[N]``, column of the right class.

    Example:
        >>> confusion_matrix(torch.tensor([[2.0, 1.0], [3.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1, 1])).tolist()
        [[1, 0], [1, 1]]
    """
    return answer_counts(logits.argmax(1), labels, logits.shape[1])


def answer_counts(answers: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The confusion matrix of answers ``[N]`` to images of the classes ``labels`` ``[N]``: ``[classes, classes]``."""
    return torch.bincount(labels * classes + answers, minlength=classes**2).view(classes, classes)
