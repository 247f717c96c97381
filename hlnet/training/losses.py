"""Losses of training: plain, one-vs-rest, and the two of Bertinetto et al. that know the class tree.

Notable here: the hierarchical cross-entropy, a sum of conditionals along the path to a class, telescopes into a sum of
plain cross-entropies, one a level, all with weights of at least 0; so nothing cancels, classes that end early need no
case of their own, and each level's logits are those of the level below, added up family by family.

Every loss takes logits ``[B, K]`` and targets, either positions of classes ``[B]`` or shares ``[B, K]`` (of mixup and
cutmix), and gives the mean over the batch. Half precision is raised to float32, inside autocast too; float64 stays.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import timm.loss
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hlnet.errors import UsageError
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.measures import node_heights

if TYPE_CHECKING:
    from hlnet.training.train_config import TrainConfig

#: The most classes that :class:`SoftLabels` takes: its matrix is 400 MB then.
MOST_SOFT_LABELS = 10_000


def make_loss(config: TrainConfig, tree: ClassTree) -> TrainingLoss:
    """The loss that the settings ask for.

    Args:
        config: of which ``loss``, ``smoothing``, ``hierarchical_alpha`` and ``soft_labels_beta`` count.
        tree: the network's tree, whose leaves are the columns of the logits.

    Raises:
        UsageError: if a setting is out of range, or soft labels are asked for with too many classes.

    Example:
        >>> from hlnet.training.train_config import TrainConfig
        >>> loss = make_loss(TrainConfig(loss="hierarchical"), ClassTree.from_nested({"cat": ["tabby"], "saw": {}}))
        >>> loss(torch.zeros(1, 2), torch.tensor([0]))
        tensor(0.6931)
    """
    match config.loss:
        case "cross-entropy":
            return CrossEntropy(config.smoothing)
        case "bce":
            return BinaryCrossEntropy(config.smoothing)
        case "hierarchical":
            return HierarchicalCrossEntropy(tree, config.hierarchical_alpha)
        case "soft-labels":
            return SoftLabels(tree, config.soft_labels_beta)


class TrainingLoss(nn.Module, ABC):
    """Base of the losses: checks shapes and raises the precision. A subclass defines ``mean``."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a batch, a scalar.

        Args:
            logits: ``[B, K]``.
            targets: ``[B]``, positions of the right classes; or ``[B, K]``, shares of the classes in each image.

        Raises:
            UsageError: if the shapes do not go together.
        """
        if logits.ndim != 2 or targets.shape not in {logits.shape, logits.shape[:1]}:
            raise UsageError(
                f"a loss takes logits [B, K] and targets [B] or [B, K], "
                f"not {list(logits.shape)} and {list(targets.shape)}"
            )
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        targets = targets.long() if targets.ndim == 1 else targets.to(logits.dtype)
        with torch.autocast(logits.device.type, enabled=False):
            return self.mean(logits, targets)

    @abstractmethod
    def mean(self, logits: Tensor, targets: Tensor) -> Tensor:
        """As :meth:`forward`, of logits that are float32 or float64, and targets that are int64 or of that type."""


class CrossEntropy(TrainingLoss):
    """Softmax cross-entropy over all classes, the paper's: ``-sum_j t_j log p_j``; it is torch's.

    Here p is the softmax of the logits, and t has ``1 - smoothing + smoothing / K`` at the right class and
    ``smoothing / K`` elsewhere. Shares ``[B, K]`` are taken as they are, for timm's Mixup has smoothed them.

    Args:
        smoothing: label smoothing (Szegedy et al., 2016), at least 0 and below 1; 0 for none.

    Raises:
        UsageError: if it is out of range.

    Example:
        >>> CrossEntropy()(torch.tensor([[0.0, 0.0], [9.0, 0.0]]), torch.tensor([1, 0]))
        tensor(0.3466)
    """

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        self.smoothing = _smoothing(smoothing)

    def mean(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, label_smoothing=self.smoothing if targets.ndim == 1 else 0.0)


class BinaryCrossEntropy(TrainingLoss):
    """One against all: each class is a detector of its own, ``-sum_j [t_j log s_j + (1 - t_j) log(1 - s_j)]``.

    Here s is the sigmoid of each logit and t as for :class:`CrossEntropy`. The loss is timm's ``BinaryCrossEntropy``,
    *summed* over classes and averaged over the batch: the gradient of a logit is ``s_j - t_j``, as that of softmax
    cross-entropy is ``p_j - t_j``, however many other classes there are. A mean over 1000 classes, timm's default,
    makes gradients a thousand times smaller: Adam does not mind, but a learning rate of SGD, ``clip_grad`` and the
    range of float16 do.

    With many classes, biases must not start at 0: all but one of the detectors then push the network to say "no" to
    everything, and its features may never recover. Start them at :func:`prior_logit`, or clip gradients.

    Args:
        smoothing: label smoothing, at least 0 and below 1; with 0, sigmoids are trained to be probabilities.

    Raises:
        UsageError: if it is out of range.

    Example:
        >>> BinaryCrossEntropy()(torch.zeros(1, 2), torch.tensor([1]))
        tensor(1.3863)
    """

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        self.loss = timm.loss.BinaryCrossEntropy(_smoothing(smoothing), sum_classes=True)

    def mean(self, logits: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = self.loss(logits, targets)
        return loss


def prior_logit(classes: int) -> float:
    """The logit of a class of so many before anything is seen, ``-log(K - 1)``: where detectors' biases should start.

    From there the gradients of :class:`BinaryCrossEntropy` on a detector's bias cancel over all classes (Lin et al.,
    "Focal Loss for Dense Object Detection", ICCV 2017, Sec. 3.3).

    Example:
        >>> torch.tensor(prior_logit(1000)).sigmoid()
        tensor(0.0010)
    """
    return -math.log(max(1, classes - 1))


class HierarchicalCrossEntropy(TrainingLoss):
    """Hierarchical cross-entropy (HXE) of Bertinetto et al., "Making Better Mistakes", CVPR 2020.

    With ``C_1 .. C_d`` the nodes from level 1 down to the right class, and the probability of a node the sum of the
    softmax over the classes below it (that of the trunk, ``C_0``, is 1), the loss is
    ``-sum_l exp(-alpha (l - 1)) log p(C_l | C_(l-1))``.

    A decision costs the less the deeper it lies; ``alpha = 0`` is plain cross-entropy, and so is any alpha for a tree
    of one level. The paper calls its exponent a height, but means, as its text and code show, the distance from the
    root. Its code divides the weights by their sum; here level 1 weighs 1, so that a tree of one level is left alone.
    A level where a class is only continued costs nothing, while a chain's node counts as a level.

    What is computed is ``-sum_l c_l log p(C_l)``, with ``c_l`` the weight of level l less that of the next: one
    log-sum-exp over each family and level, in memory of ``[B, nodes]``.

    Args:
        tree: its leaves are the columns of the logits.
        alpha: how fast weights fall towards the leaves, at least 0.

    Raises:
        UsageError: if alpha is negative or not finite; in a call, if the logits are not of this tree.

    Example:
        >>> tree = ClassTree.from_nested({"cat": ["tabby", "siamese"], "saw": {}})
        >>> loss, tabby = HierarchicalCrossEntropy(tree, alpha=0.5), torch.tensor([0])
        >>> loss(torch.tensor([[0.0, 3.0, 0.0]]), tabby), loss(torch.tensor([[0.0, 0.0, 3.0]]), tabby)
        (tensor(1.8954), tensor(2.8222))
    """

    parents: Tensor

    def __init__(self, tree: ClassTree, alpha: float = 0.1) -> None:
        super().__init__()
        if not 0 <= alpha < math.inf:
            raise UsageError(f"hierarchical alpha {alpha} must be a finite number of at least 0, such as 0.1")
        # Of levels with the same nodes the last stands for all: PHL, whose levels are alike, is plain cross-entropy.
        last = tree.num_levels - 1
        levels = [level for level in range(last) if tree.counts[level] < tree.counts[level + 1]]
        steps = [0, *(level + 1 for level in levels)]
        self.weights = [
            math.exp(-alpha * start) * -math.expm1(-alpha * (end - start)) for start, end in pairwise(steps)
        ] + [math.exp(-alpha * steps[-1])]
        self.counts = [*(tree.counts[level] for level in levels), len(tree.leaves)]
        parents = [node.parent for level in levels for node in tree.levels[level + 1]]
        self.register_buffer("parents", torch.tensor(parents, dtype=torch.long), persistent=False)

    def mean(self, logits: Tensor, targets: Tensor) -> Tensor:
        _check_classes(logits, self.counts[-1])
        loss = self.weights[-1] * F.cross_entropy(logits, targets)
        above = zip(self.weights[:-1], self.counts[:-1], self.parents.split(self.counts[1:]), strict=True)
        for weight, count, parents in reversed(list(above)):
            logits = _logsumexp_by_parent(logits, parents, count)
            targets = parents[targets] if targets.ndim == 1 else _sum_by_parent(targets, parents, count)
            loss = loss + weight * F.cross_entropy(logits, targets)
        return loss


class SoftLabels(TrainingLoss):
    """Cross-entropy with soft labels of Bertinetto et al., "Making Better Mistakes", CVPR 2020.

    The target of class i gives class j the share ``softmax_j(-beta d(i, j))``, with d the height of the lowest common
    ancestor of the two, over the largest height at which any two classes meet. A node's height is the number of nodes
    on the longest way down to a class, where continued nodes do not count. Large beta is nearly one-hot, small beta
    nearly uniform. The loss is ``-sum_j t_j log p_j``, p the softmax of the logits.

    All targets are computed once, as a matrix of ``4 K^2`` bytes: 4 MB for 1000 classes.

    Args:
        tree: its leaves are the columns of the logits.
        beta: how fast shares fall with the distance, above 0.

    Attributes:
        shares: ``[K, K]``, row i the target of class i.

    Raises:
        UsageError: if beta is not above 0 and finite, or the tree has more than 10,000 classes; in a call, if the
            logits are not of this tree.

    Example:
        >>> tree = ClassTree.from_nested({"cat": ["tabby", "siamese"], "saw": {}})
        >>> loss = SoftLabels(tree, beta=4.0)
        >>> loss.shares[0]
        tensor([0.8668, 0.1173, 0.0159])
        >>> loss(loss.shares.log(), torch.tensor([0, 1, 2]))  # the smallest there is: the entropy of the targets
        tensor(0.3531)
    """

    shares: Tensor

    def __init__(self, tree: ClassTree, beta: float = 10.0) -> None:
        super().__init__()
        if not 0 < beta < math.inf:
            raise UsageError(f"soft labels' beta {beta} must be a finite number above 0, such as 10")
        classes = len(tree.leaves)
        if classes > MOST_SOFT_LABELS:
            raise UsageError(
                f"soft labels of {classes} classes would take {4 * classes**2 / 1e9:.1f} GB of memory, and at most "
                f"{MOST_SOFT_LABELS} classes can have them; use the hierarchical loss, which needs no such matrix"
            )
        shares = _common_heights(tree)
        shares.mul_(-beta / max(1.0, float(shares.max()))).exp_()  # in place, as it may be large
        shares.div_(shares.sum(1, keepdim=True))
        self.register_buffer("shares", shares, persistent=False)

    def mean(self, logits: Tensor, targets: Tensor) -> Tensor:
        _check_classes(logits, len(self.shares))
        shares = self.shares.to(logits.dtype)
        return F.cross_entropy(logits, shares[targets] if targets.ndim == 1 else targets @ shares)


# ---------------------------------------------------------------------- helpers


def _smoothing(value: float) -> float:
    if not 0 <= value < 1:
        raise UsageError(f"label smoothing {value} must be at least 0 and below 1, such as 0.1")
    return value


def _check_classes(logits: Tensor, classes: int) -> None:
    if logits.shape[1] != classes:
        raise UsageError(f"logits of {logits.shape[1]} classes do not fit a tree of {classes}")


def _sum_by_parent(values: Tensor, parents: Tensor, count: int) -> Tensor:
    """Sums over families: ``[B, children]`` to ``[B, count]``."""
    return values.new_zeros(len(values), count).index_add(1, parents, values)


def _logsumexp_by_parent(values: Tensor, parents: Tensor, count: int) -> Tensor:
    """Log of the sum of exponentials over families: ``[B, children]`` to ``[B, count]``."""
    lowest = values.new_full((len(values), count), -math.inf)
    # Each family's own maximum: beside a global one, a family of small logits would vanish.
    highest = lowest.scatter_reduce(1, parents.expand(len(values), -1), values.detach(), "amax")
    return highest + _sum_by_parent((values - highest[:, parents]).exp(), parents, count).log()


def _common_heights(tree: ClassTree) -> Tensor:
    """Height of the lowest common ancestor of any two classes: ``[K, K]``, float32."""
    heights = node_heights(tree)
    common = torch.full((len(tree.leaves),) * 2, float(heights[-1]))
    sizes = np.asarray(tree.ancestors().sum(axis=0)).ravel()
    for start, end in pairwise(tree.offsets):
        ends = np.cumsum(sizes[start:end])  # the classes below a node lie side by side
        for height, first, behind in zip(heights[start:end], ends - sizes[start:end], ends, strict=True):
            common[first:behind, first:behind] = float(height)
    return common
