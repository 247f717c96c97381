"""Cues for a test of top-down attention: right ones, from labels (the paper's oracle, Sec. 4.4), and wrong ones.

Notable here: a wrong cue is one of three, since they cost differently: any other class, one of the same family, or the
one that the network itself takes the class for most easily.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from hlnet.cues.cue import Cue
from hlnet.errors import UsageError
from hlnet.tree.class_tree import ClassTree

#: What a wrong cue names: any other class, one under the same node, or the one that is most easily confused with it.
WrongCue = Literal["random", "sibling", "confusable"]
#: Those that depend on the tree alone.
DrawnCue = Literal["random", "sibling"]


def wrong_classes(
    tree: ClassTree, classes: Tensor, kind: DrawnCue = "random", level: int | None = None, seed: int = 0
) -> Tensor:
    """For each image a class other than its own, drawn at random: what a wrong cue names.

    Args:
        tree: the classes.
        classes: ``[B]``, positions of the images' own classes.
        kind: ``random``, any other class; ``sibling``, one under the lowest node above its own that has another.
        level: of the node that is cued, 1 nearest to the trunk; the class drawn lies under another node of it. Default:
            the class itself.
        seed: of the draw.

    Raises:
        UsageError: if there is no such level, no class outside the cued node, or another kind is asked for: which class
            is confusable depends on a network, see :func:`confusable_classes`.

    Example:
        >>> tree = ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle", "boxer"]})
        >>> wrong_classes(tree, torch.tensor([0, 3]), "sibling").tolist()
        [1, 2]
        >>> bool((wrong_classes(tree, torch.tensor([0, 1, 1]), level=1) >= 2).all())
        True
    """
    if kind not in get_args(DrawnCue):
        raise UsageError(f"wrong cues of the kind '{kind}' are not drawn; expected random or sibling")
    count = len(tree.classes)
    _check_level(tree, level)
    at, places = (tree.num_levels if level is None else level) - 1, classes.cpu().numpy()
    above = _nodes_above(tree)
    own = above[at][places]
    around = np.tile([0, count], (len(own), 1))
    if kind == "sibling":
        for spans in above[:at]:  # from the trunk down
            span = spans[places]
            wider = (span[:, 1] - span[:, 0]) > (own[:, 1] - own[:, 0])
            around[wider] = span[wider]
    start, taken = around[:, 0], own[:, 1] - own[:, 0]
    others = around[:, 1] - start - taken
    if (others < 1).any():
        raise UsageError("no class lies outside the cued node, so no cue can be wrong; cue a deeper level, or classes")
    drawn = start + np.random.default_rng(seed).integers(0, others)
    return torch.from_numpy(np.where(drawn >= own[:, 0], drawn + taken, drawn))


def confusable_classes(tree: ClassTree, logits: Tensor, labels: Tensor) -> Tensor:
    """For each class the other one that its images take the largest share of probability for, in the mean.

    Args:
        tree: the classes, K of them.
        logits: ``[N, K]``, without a cue.
        labels: ``[N]``; classes without images get a sibling.

    Returns:
        ``[K]``.

    Example:
        >>> tree = ClassTree.from_nested(["cat", "lynx", "saw"])
        >>> logits = torch.tensor([[3.0, 2.0, 0.0], [1.0, 3.0, 0.0], [2.0, 1.0, 4.0]])
        >>> confusable_classes(tree, logits, torch.tensor([0, 1, 2])).tolist()
        [1, 0, 0]
    """
    classes = len(tree.classes)
    sums = torch.zeros(classes, classes, dtype=torch.double).index_add_(0, labels, logits.double().softmax(1))
    found = sums.fill_diagonal_(-1).argmax(1)
    empty = torch.bincount(labels, minlength=classes) == 0
    if empty.any():
        found[empty] = wrong_classes(tree, empty.nonzero().flatten(), "sibling")
    return found


def label_cues(tree: ClassTree, labels: Iterable[int], level: int | None = None) -> list[tuple[Cue, ...]]:
    """A cue for each image on the class, or the node at a level, that a label names: an oracle where labels are true.

    Args:
        tree: the classes.
        labels: position in ``tree.classes`` for each image; -1 for none.
        level: 1 is nearest to the trunk; default: the class itself.

    Raises:
        UsageError: if there is no such level.

    Example:
        >>> tree = ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle"]})
        >>> [[cue.node for cue in cues] for cues in label_cues(tree, [2, -1], level=1)]
        [['dog'], []]
    """
    _check_level(tree, level)
    at = (tree.num_levels if level is None else level) - 1
    nodes = tree.class_paths[:, at]
    cues = {place: (_cue_on(tree, at, place),) for place in set(nodes.tolist())}
    return [cues[nodes[label]] if label >= 0 else () for label in labels]


# ---------------------------------------------------------------------- helpers


def _cue_on(tree: ClassTree, at: int, place: int) -> Cue:
    below = tree.leaves_under((at, place))
    return Cue(node=tree.levels[at][place].path, classes=tuple(tree.classes[i] for i in below))


def _check_level(tree: ClassTree, level: int | None) -> None:
    if level is not None and not 1 <= level <= tree.num_levels:
        raise UsageError(f"cue level {level}: the tree has levels 1 to {tree.num_levels}")


def _nodes_above(tree: ClassTree) -> list[np.ndarray]:
    """For each level and class, ``[classes, 2]``: the first class under the node there, and the one after the last.

    Classes under a node lie side by side.
    """
    return [
        np.stack([np.searchsorted(nodes, nodes, side) for side in ("left", "right")], axis=1)
        for nodes in tree.class_paths.T
    ]
