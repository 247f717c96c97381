"""Training with cues: a gain is then evidence of a stated weight, which the network learns to set against the image's.

Notable here: the gain is ``exp(evidence / 4)``, so that gains multiply as evidence adds, a cue of no evidence is
neutral, and no factor is negative. The network's file keeps that rule as its curve (``Provenance.attention``).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hlnet.errors import UsageError
from hlnet.model.provenance import FittedAttention
from hlnet.tree.class_tree import ClassTree

#: Nats of evidence that multiply a gain by e.
NATS = 4.0
#: Evidence up to which the rule is kept, far above that of any cue.
MOST = 50.0
#: Of cues of which nothing is said.
RELIABILITY = 0.9


def trained_attention() -> FittedAttention:
    """What the file of a network says that was trained with cues.

    Example:
        >>> from hlnet.cues.cue import cue_evidence, curve_strength
        >>> round(curve_strength(trained_attention().gain, cue_evidence(0.9, 1, 10)), 3)
        3.0
    """
    return FittedAttention(reliability=RELIABILITY, gain=((MOST, math.exp(MOST / NATS)),))


def is_trained(attention: FittedAttention) -> bool:
    """Whether its gains are those of this rule, that the network was trained with.

    Example:
        >>> is_trained(trained_attention()), is_trained(FittedAttention(reliability=0.9, gain=((4.0, 3.0),)))
        (True, False)
    """
    return attention.gain == trained_attention().gain


class TrainingCues:
    """Random cues for a batch: a share of the images gets one each, of a random reliability that it keeps.

    With a reliability of p the cue names the image's class with probability p, else any other class.

    Args:
        tree: the classes, two at least.
        share: of images that get a cue.
        reliability: p is uniform between these two.

    Raises:
        UsageError: for a tree of one class.

    Example:
        >>> cues = TrainingCues(ClassTree.from_nested({"cat": ["tabby", "siamese"], "saw": {}}), 1.0, (0.9, 0.9))
        >>> cues(torch.tensor([0, 2])).shape
        torch.Size([2, 5])
    """

    def __init__(self, tree: ClassTree, share: float, reliability: tuple[float, float]) -> None:
        if len(tree.classes) < 2:
            raise UsageError("cues need two classes at least: of one, nothing can be said that is not known")
        self.tree, self.share, self.reliability = tree, share, reliability

    def __call__(self, labels: Tensor) -> Tensor:
        """Gains ``[B, nodes]`` for images with these labels, ``[B]``; by torch's own generator."""
        classes, device = len(self.tree.classes), labels.device
        low, high = self.reliability
        reliability = low + (high - low) * torch.rand(len(labels), dtype=torch.double)
        right = torch.rand(len(labels), dtype=torch.double) < reliability
        other = (labels.cpu() + torch.randint(1, classes, (len(labels),))) % classes
        evidence = torch.logit(reliability) + math.log(classes - 1)
        gain = torch.where(torch.rand(len(labels)) < self.share, torch.exp(evidence / NATS), 1.0)
        gains = torch.ones(len(labels), self.tree.num_nodes)
        named = self.tree.offsets[-2] + torch.where(right, labels.cpu(), other)
        gains[torch.arange(len(labels)), named] = gain.float()
        return gains.to(device)
