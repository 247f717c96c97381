"""Hierarchical metrics: the distance of wrong answers in the class tree, and accuracy by level.

Notable here: everything follows from how many levels the path to the answer shares with the path to the truth, counted
for all images at once. A class that ends early stands for itself at the levels below, where its continued nodes are;
these count neither in heights nor in sets of ancestors. ``docs/metrics.md`` has a worked example of each figure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from hlnet.errors import UsageError
from hlnet.evaluation.metrics.paths import TreePaths
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.measures import node_heights

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Images whose probabilities of all nodes are held at once.
_CHUNK = 4096


class HierarchicalMetrics(BaseModel):
    """Hierarchical metrics of answers. Shares are in 0..1.

    Attributes:
        tree_height: the height of the trunk, where answer and truth meet at the latest: the number of levels, those
            apart that only continue classes.
        lca_height: mean height of the lowest common ancestor of answer and truth, 0 for a right answer.
        lca_height_mistakes: the same over mistakes only; ``None`` where there are none.
        precision: of all nodes on the paths to the answers, the share that lies on the path to the truth, too.
        recall: of all nodes on the paths to the truths, the share that lies on the path to the answer, too.
        f1: harmonic mean of these two.
        level_nodes: how many nodes levels 1, 2, … have; a class that ended above is one.
        level_accuracy: share of images whose answer lies below the right node of level 1, 2, …; the last is top-1.
        level_accuracy_summed: share of images for which the likeliest node of level 1, 2, … is the right one, where a
            node's probability is the sum of its classes'.
        path_consistency: share of images for which these likeliest nodes lie on one path.
    """

    tree_height: int
    lca_height: float
    lca_height_mistakes: float | None
    precision: float
    recall: float
    f1: float
    level_nodes: list[int]
    level_accuracy: list[float]
    level_accuracy_summed: list[float]
    path_consistency: float


def measure_hierarchy(
    logits: Tensor, labels: Tensor, tree: ClassTree, temperature: float | None = None
) -> HierarchicalMetrics:
    """Measure answers, each image's highest logit, by the class tree.

    - *LCA height* (Deng et al., "What Does Classifying More Than 10,000 Image Categories Tell Us?", ECCV 2010;
      Bertinetto et al., "Making Better Mistakes", CVPR 2020): :func:`lca_heights`, over all images and over mistakes.
    - *Hierarchical precision, recall and F* (Kiritchenko et al., "Functional Annotation of Genes Using Hierarchical
      Text Categorization", 2005), with A_i the nodes on the path to the answer and T_i those to the truth, the class
      itself included and the trunk not: ``P = sum |A_i & T_i| / sum |A_i|``, ``R = sum |A_i & T_i| / sum |T_i|``.
    - *Accuracy at each level*, once of the answer's node there, once of the node with the highest summed probability.
      Levels below the deepest class are left out.
    - *Path consistency*: whether each level's likeliest node is the parent of the next level's.

    Probabilities are the softmax of ``z / T``. For classes trained one-vs-rest that is the probability given that
    exactly one of them is there.

    Args:
        logits: ``[N, K]``.
        labels: ``[N]``, column of the right class.
        tree: its leaves are the columns; of an expert, or of a choice of classes, the pruned one.
        temperature: T; ``None`` is 1.

    Raises:
        UsageError: if the shapes do not fit each other or the tree, or there is no image.

    Example:
        >>> tree = ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle"]})
        >>> logits = torch.tensor([[3.0, 0.0, 0.0], [2.0, 0.0, 1.0], [0.0, 2.0, 0.0], [2.0, 0.0, 1.0]])
        >>> found = measure_hierarchy(logits, torch.tensor([0, 0, 0, 2]), tree)
        >>> found.lca_height, found.lca_height_mistakes, found.precision, found.level_accuracy
        (0.75, 1.5, 0.625, [0.75, 0.5])
    """
    if logits.ndim != 2 or logits.shape[1] != len(tree.classes) or labels.shape != logits.shape[:1] or not len(labels):
        raise UsageError(
            f"hierarchical metrics of a tree of {len(tree.classes)} classes take logits [N, {len(tree.classes)}] and "
            f"labels [N] with N >= 1, not {list(logits.shape)} and {list(labels.shape)}"
        )
    logits, truth = logits.detach().cpu(), labels.cpu().numpy()
    answers = logits.argmax(1).numpy()
    depths = np.array([leaf.path.count("/") + 1 for leaf in tree.leaves])
    shared = _shared_levels(tree, answers, truth)
    common = np.minimum(shared, depths[truth]).sum()  # beside a right answer, its continued nodes are shared
    heights = lca_heights(tree, torch.from_numpy(answers), labels.cpu())
    mistakes = heights[heights > 0].double()
    levels = int(depths.max())
    nodes = _likeliest_nodes(logits, tree, temperature)[:, :levels]
    precision, recall = common / depths[answers].sum(), common / depths[truth].sum()
    return HierarchicalMetrics(
        tree_height=levels,
        lca_height=float(heights.double().mean()),
        lca_height_mistakes=float(mistakes.mean()) if len(mistakes) else None,
        precision=float(precision),
        recall=float(recall),
        f1=float(2 * precision * recall / (precision + recall)) if common else 0.0,
        level_nodes=list(tree.counts[:levels]),
        level_accuracy=[float((shared >= level).mean()) for level in range(1, levels + 1)],
        level_accuracy_summed=(nodes == tree.class_paths[truth, :levels]).mean(0).tolist(),
        path_consistency=float(_on_one_path(tree, nodes).mean()),
    )


def lca_heights(tree: ClassTree, answers: Tensor, labels: Tensor) -> Tensor:
    """Height of the lowest common ancestor of each answer and truth (:func:`hlnet.tree.measures.node_heights`).

    It is 0 where the answer is right, 1 where both have one parent that is a parent of classes only, and at the trunk
    the number of levels, continued nodes apart.

    Args:
        tree: the class tree.
        answers, labels: ``[N]``, positions of classes.

    Returns:
        ``[N]``, int64.

    Example:
        >>> tree = ClassTree.from_nested({"animal": {"cat": ["tabby", "siamese"], "dog": ["beagle"]}, "saw": {}})
        >>> lca_heights(tree, torch.tensor([0, 1, 2, 3]), torch.tensor([0, 0, 0, 0]))
        tensor([0, 1, 2, 3])
    """
    places = labels.cpu().numpy()
    shared = _shared_levels(tree, answers.cpu().numpy(), places)
    nodes = np.where(shared > 0, (tree.class_paths + tree.offsets[:-1])[places, shared - 1], -1)  # -1 is the trunk
    return torch.from_numpy(node_heights(tree)[nodes])


# ---------------------------------------------------------------------- helpers


def _shared_levels(tree: ClassTree, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of levels that the paths to two classes share, ``[N]``; continued nodes count."""
    found: NDArray[np.int64] = (tree.class_paths[first] == tree.class_paths[second]).sum(1)
    return found


def _likeliest_nodes(logits: Tensor, tree: ClassTree, temperature: float | None) -> NDArray[np.int64]:
    """The position of each level's node with the highest summed probability: ``[N, levels]``."""
    paths, found = TreePaths(tree), []
    for part in logits.split(_CHUNK):
        # In double precision, where nearly equal logits do not become equal probabilities.
        levels = paths.node_probabilities((part.double() / (temperature or 1)).softmax(1))
        found.append(torch.stack([level.argmax(1) for level in levels], dim=1))
    return torch.cat(found).numpy()


def _on_one_path(tree: ClassTree, nodes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each node is the parent of the next one: ``[N]``, of positions ``[N, levels]`` from level 1 on."""
    found = np.ones(len(nodes), bool)
    for level in range(1, nodes.shape[1]):
        parents = np.array([node.parent for node in tree.levels[level]])
        found &= parents[nodes[:, level]] == nodes[:, level - 1]
    return found
