"""Top-down attention: from cues to gains (paper, Sec. 3.1 and 4.4).

A cue names a node for each image; its strength is the *attention signal*, a factor on the features of that node's
branch. Training is neutral; cues act at inference only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hlnet.errors import UsageError
from hlnet.tree import ClassTree


def gains_for(tree: ClassTree, classes: Tensor, signal: float) -> Tensor:
    """One gain per image and node: ``signal`` on the leaf of the cued class, 1 elsewhere.

    Args:
        tree: the network's tree.
        classes: ``[B]``, position in ``tree.classes`` of the class that is cued for each image.
        signal: the factor; 1 is neutral, more enhances, less inhibits. At least 0.

    Returns:
        ``[B, tree.num_nodes]``, as :meth:`HierarchicalNet.forward` takes it.

    Raises:
        UsageError: if the signal is negative or not a number, or a class is out of range.

    Example:
        >>> tree = ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle"]})
        >>> gains_for(tree, torch.tensor([2]), 1.8)
        tensor([[1.0000, 1.0000, 1.0000, 1.0000, 1.8000]])
    """
    if not 0 <= signal < float("inf"):
        raise UsageError(f"attention signal {signal} must be a number of at least 0 (1 is neutral, 1.8 enhances)")
    if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < len(tree.classes):
        raise UsageError(f"cued classes must be positions in 0..{len(tree.classes) - 1}")
    gains = torch.ones(len(classes), tree.num_nodes, device=classes.device)
    gains[torch.arange(len(classes), device=classes.device), tree.offsets[-2] + classes] = signal
    return gains


def other_classes(classes: Tensor, count: int, seed: int = 0) -> Tensor:
    """For each image a class other than its own, drawn at random: what a wrong cue names.

    Args:
        classes: ``[B]``, positions of the images' own classes.
        count: number of classes, at least 2.
        seed: of the draw.

    Returns:
        ``[B]``.

    Example:
        >>> other_classes(torch.tensor([0, 1, 0]), count=2)
        tensor([1, 0, 1])
    """
    shift = torch.randint(1, count, classes.shape, generator=torch.Generator().manual_seed(seed))
    return (classes + shift.to(classes.device)) % count
