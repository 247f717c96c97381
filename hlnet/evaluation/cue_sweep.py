"""Every strength of a cue at once: which images are right under any cue, from a few runs of the network.

Notable here: a gain on a leaf changes only that leaf's logit. So one run with the gain on all leaves gives each class's
logit under its own cue, and what any cue does, right or wrong, is a choice of columns. Biases and scales need no run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from hlnet.cues.cue import Mode
from hlnet.errors import UsageError
from hlnet.model.base import Network
from hlnet.model.provenance import Provenance
from hlnet.tree.class_tree import ClassTree

#: Images whose answers are found together.
CHUNK = 4096


@dataclass(frozen=True)
class SweptLogits:
    """A network's logits on N images, without a cue and with each class under its own.

    Attributes:
        labels: ``[N]``, position of each image's class.
        neutral: ``[N, K]``.
        gained: by gain, ``[N, K]``: each class's logit with this gain on its leaf. Empty for a plain network.
        provenance: what the network's file says, such as a temperature that was fitted before.
    """

    labels: Tensor
    neutral: Tensor
    gained: Mapping[float, Tensor]
    provenance: Provenance = field(default_factory=Provenance)

    def part(self, images: Tensor) -> SweptLogits:
        """The same for some of the images, by position."""
        gained = {gain: logits[images] for gain, logits in self.gained.items()}
        return SweptLogits(self.labels[images], self.neutral[images], gained, self.provenance)


class Frontier(BaseModel):
    """Accuracy under right and under wrong cues of one mode, by strength.

    Attributes:
        mode: ``gain``, ``bias`` or ``scale``.
        strengths: ascending.
        right: top-1 with every cue right, for each strength.
        wrong: the same with every cue wrong, by what a wrong cue names.
    """

    mode: Mode
    strengths: tuple[float, ...]
    right: tuple[float, ...]
    wrong: dict[str, tuple[float, ...]]

    def right_at(self, wrong: float, kind: str) -> float:
        """Top-1 under right cues at the strength that costs as much: that has this top-1 under wrong ones.

        Strengths that another one beats on both counts are left out; between the others it is interpolated. Where even
        the costliest costs less, it is that one's.
        """
        costs, right = np.array(self.wrong[kind]), np.array(self.right)
        order = np.lexsort((-right, -costs))  # from the least harm on, of equal harm the best first
        best = np.maximum.accumulate(right[order])
        front = np.r_[True, best[1:] > best[:-1]]
        return float(np.interp(wrong, costs[order][front][::-1], best[front][::-1]))


@torch.inference_mode()
def sweep_gains(
    net: Network,
    batches: Iterable[tuple[Tensor, Tensor]],
    gains: Sequence[float] = (),
    on_batch: Callable[[], None] | None = None,
) -> SweptLogits:
    """Run the network without a cue and once with each gain on all leaves; the trunk runs once a batch.

    All logits are kept: for G gains on N images of K classes, ``4 (G + 1) N K`` bytes.

    Args:
        net: the network; a plain one takes no gains.
        batches: images ``[B, 3, H, W]`` and labels ``[B]``.
        gains: factors at the input of the leaves' last convolution.
        on_batch: called after each batch.

    Raises:
        UsageError: if there are no images.

    Example:
        >>> import hlnet
        >>> net = hlnet.create_model("test_resnet", tree={"cat": ["tabby", "siamese"], "dog": ["beagle"]})
        >>> images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
        >>> swept = sweep_gains(net, [(images, labels)], gains=[1.0, 3.0])
        >>> bool((swept.gained[1.0] == swept.neutral).all()), swept.gained[3.0].shape
        (True, torch.Size([4, 3]))
    """
    net.eval()
    labels: list[Tensor] = []
    neutral: list[Tensor] = []
    gained: dict[float, list[Tensor]] = {float(gain): [] for gain in gains if gain != 1}
    leaves = slice(net.tree.offsets[-2], None)
    for images, target in batches:
        images = images.to(net.device)
        labels.append(target.cpu())
        if net.has_branches and net.head is not None:
            features = net.features(images)
            neutral.append(net.head(features).float().cpu())
            for gain, found in gained.items():
                vector = torch.ones(net.tree.num_nodes, device=net.device)
                vector[leaves] = gain
                found.append(net.head(features, vector).float().cpu())
        else:
            neutral.append(net(images).float().cpu())
        if on_batch:
            on_batch()
    if not labels:
        raise UsageError("there are no images to try cues on")
    together = torch.cat(neutral)
    whole = {}
    for gain in sorted({float(gain) for gain in gains}):  # one by one, for they may be large
        whole[gain] = torch.cat(gained.pop(gain)) if gain != 1 else together
    return SweptLogits(torch.cat(labels), together, whole, net.provenance)


def right_answers(swept: SweptLogits, named: Tensor, mode: Mode, strength: float | Tensor) -> Tensor:
    """Images that are right when cues of one strength name these classes.

    Args:
        swept: the logits.
        named: ``[N, K]``, boolean: the classes that each image's cue names.
        mode: how cues act.
        strength: the factor or the shift; of a bias also ``[N]``.

    Returns:
        ``[N]``, boolean.

    Example:
        >>> swept = SweptLogits(torch.tensor([0, 1]), torch.tensor([[1.0, 2.0], [1.0, 2.0]]), {})
        >>> right_answers(swept, torch.tensor([[True, False], [True, False]]), "bias", 1.5).tolist()
        [True, False]
    """
    found = []
    for start in range(0, len(swept.labels), CHUNK):
        part = slice(start, start + CHUNK)
        neutral = swept.neutral[part]
        if mode == "gain":
            cued = swept.gained[float(strength)][part]
        elif mode == "scale":
            cued = neutral * strength
        else:
            cued = neutral + (strength[part, None] if isinstance(strength, Tensor) else strength)
        found.append(torch.where(named[part], cued, neutral).argmax(1) == swept.labels[part])
    return torch.cat(found)


def frontier(
    swept: SweptLogits, right: Tensor, wrong: Mapping[str, Tensor], mode: Mode, strengths: Sequence[float]
) -> Frontier:
    """Accuracy under right cues and under each kind of wrong ones, strength by strength.

    Args:
        swept: the logits.
        right, wrong: what cues name, ``[N, K]``, as :func:`right_answers` takes it.
        mode: how cues act.
        strengths: ascending; of a gain, those that were run.
    """

    def shares(named: Tensor) -> tuple[float, ...]:
        return tuple(float(right_answers(swept, named, mode, strength).double().mean()) for strength in strengths)

    return Frontier(
        mode=mode,
        strengths=tuple(strengths),
        right=shares(right),
        wrong={kind: shares(named) for kind, named in wrong.items()},
    )


def named_classes(tree: ClassTree, classes: Tensor, level: int | None = None) -> Tensor:
    """Classes that cues on these classes, or on the nodes above them at a level, name: ``[N, K]``, boolean.

    Example:
        >>> tree = ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle"]})
        >>> named_classes(tree, torch.tensor([1]), level=1).tolist(), named_classes(tree, torch.tensor([1])).tolist()
        ([[True, True, False]], [[False, True, False]])
    """
    nodes = torch.from_numpy(tree.class_paths[:, (tree.num_levels if level is None else level) - 1])
    return nodes[classes][:, None] == nodes
