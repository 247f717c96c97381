"""Answers at every level of the tree: the probability of each node, the way down, and where it ends.

Notable here: the way down takes the likeliest child at each node, trunk first, so that an answer at an inner node is
the best among its siblings; the path of the likeliest class may miss it, where many middling classes outweigh one good
one. For a confidence above one half there is no choice: at most one node of a level is that likely, and this way meets
it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hlnet.tree.class_tree import ClassTree


@dataclass(frozen=True)
class Descent:
    """The way down for each image of a batch.

    Attributes:
        leaves: ``[B]``, the classes where it ends, as columns of the logits.
        probabilities: ``[B, levels]``, of the nodes on the way, level 1 first; they never rise.
    """

    leaves: Tensor
    probabilities: Tensor


class TreePaths:
    """The paths from the trunk to the classes, and what probabilities of classes say of the nodes on them.

    All is on the CPU, in float64, which not every device has; what lies elsewhere is fetched.

    Args:
        tree: the class tree.

    Attributes:
        places: ``[K, levels]``, the position within each level of the node above each class; the last column counts up.
        depths: ``[K]``, the level on which each class ends; its continued nodes are below.

    Example:
        >>> tree = ClassTree.from_nested({"animal": {"cat": ["tabby", "siamese"], "dog": ["beagle"]}, "saw": {}})
        >>> paths, shares = TreePaths(tree), torch.tensor([[0.2, 0.25, 0.1, 0.45]])
        >>> [[round(share, 2) for share in level[0].tolist()] for level in paths.node_probabilities(shares)]
        [[0.55, 0.45], [0.45, 0.1, 0.45], [0.2, 0.25, 0.1, 0.45]]
        >>> down = paths.descend(shares)  # to siamese, although saw is the likeliest class
        >>> int(down.leaves), [round(float(share), 2) for share in down.probabilities[0]]
        (1, [0.55, 0.45, 0.25])
        >>> paths.answered(down, 0.5).tolist(), paths.answered(down, 0.6).tolist()
        ([1], [0])
    """

    def __init__(self, tree: ClassTree) -> None:
        self.counts = tree.counts
        self.parents = [torch.tensor([node.parent for node in row]) for row in tree.levels]
        self.places = torch.from_numpy(tree.class_paths)
        self.depths = torch.tensor([leaf.path.count("/") + 1 for leaf in tree.leaves])

    def node_probabilities(self, shares: Tensor) -> list[Tensor]:
        """Of each node, the sum over the classes under it.

        Args:
            shares: ``[B, K]``, probabilities of the classes, which add up to 1.

        Returns:
            one tensor a level, ``[B, nodes]``, float64, at most 1; no node's exceeds its parent's.
        """
        found = [shares.cpu().double()]
        for parents, count in zip(reversed(self.parents[1:]), reversed(self.counts[:-1]), strict=True):
            above = torch.zeros(len(shares), count, dtype=torch.double)
            found.append(above.index_add_(1, parents, found[-1]))
        return [level.clamp(max=1) for level in reversed(found)]

    def along(self, nodes: list[Tensor], leaves: Tensor) -> Tensor:
        """Probabilities on the paths to some classes, level 1 first.

        Args:
            nodes: as :meth:`node_probabilities` gives them.
            leaves: ``[B, C]``, columns of the logits.

        Returns:
            ``[B, C, levels]``.
        """
        places = self.places[leaves.cpu()]
        return torch.stack([level.gather(1, places[..., i]) for i, level in enumerate(nodes)], dim=-1)

    def descend(self, shares: Tensor) -> Descent:
        """From the trunk to a class, always to the likeliest child; of equals, to the first.

        Args:
            shares: ``[B, K]``, probabilities of the classes, which add up to 1.
        """
        nodes = self.node_probabilities(shares)
        here, found = torch.zeros(len(shares), dtype=torch.long), []
        for level, parents in zip(nodes, self.parents, strict=True):
            children = level.masked_fill(parents != here[:, None], -1)
            best, here = children.max(1)
            found.append(best)
        return Descent(here, torch.stack(found, dim=1))

    def answered(self, down: Descent, threshold: float) -> Tensor:
        """On which level the answer is, ``[B]``: the deepest node on the way whose probability is at least this.

        0 is the trunk, "not sure"; a class that ends early answers on the level where it ends.
        """
        reached = (down.probabilities >= threshold).sum(1)
        return torch.minimum(reached, self.depths[down.leaves])
