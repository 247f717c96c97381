"""Logits of a batch under cues, however these act: what evaluation and prediction have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from hlnet.cues.certain import certain_logits
from hlnet.cues.cue import Attention, Cue
from hlnet.cues.effect import cue_effect
from hlnet.errors import UsageError
from hlnet.model.base import Network
from hlnet.model.fast.optimize import InferenceNet
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.selection import as_selection, select_classes


@dataclass(frozen=True)
class CueUse:
    """What is made of cues.

    Attributes:
        attention: how they act.
        certain: whether they are taken as certain: only the classes that they leave run, and can win.
        prior: how frequent classes are, by name, as :func:`hlnet.cue_effect` takes it.
    """

    attention: Attention
    certain: bool = False
    prior: Mapping[str, float] | None = None


@dataclass(frozen=True)
class CueSource:
    """What is known from outside of images that come one by one.

    Attributes:
        of: gives the cues of an image, by its path.
        use: what is made of them.
        cues: all that an image may have, where that is known beforehand.
    """

    of: Callable[[str], Sequence[Cue]]
    use: CueUse
    cues: tuple[Cue, ...] = ()


class BatchLogits:
    """Logits of one batch of images, without cues and under them; each is computed when it is asked for.

    Args:
        net: the network, in evaluation mode.
        images: ``[B, 3, H, W]``, on its device.

    Example:
        >>> import hlnet, torch
        >>> net = hlnet.create_model("resnet18", tree={"cat": ["tabby", "siamese"], "dog": ["beagle"]}).eval()
        >>> batch = BatchLogits(net, torch.zeros(1, 3, 64, 64))
        >>> shift = batch.under([[Cue(node="cat", strength=2.0)]], CueUse(Attention(mode="bias"))) - batch.neutral
        >>> shift.detach().round().tolist()
        [[2.0, 2.0, 0.0]]
    """

    def __init__(self, net: Network, images: Tensor) -> None:
        self.net, self.images = net, images

    @cached_property
    def features(self) -> Tensor:
        """The trunk's output, ``[B, C, h, w]``."""
        return self.net.features(self.images)

    @cached_property
    def neutral(self) -> Tensor:
        """``[B, classes]`` without cues."""
        return self._run(None)

    def under(self, cues: Sequence[Sequence[Cue]], use: CueUse, competing: Sequence[int] | None = None) -> Tensor:
        """``[B, classes]`` under the cues of each image.

        Args:
            cues: of each image; none for an image without a cue.
            use: what is made of them.
            competing: as :func:`hlnet.cue_effect` takes it.

        Raises:
            UsageError: as :func:`hlnet.cue_effect`; for certain cues, if the network is plain or not optimised, or the
                cues of an image leave no class.
        """
        if not (any(cues) or use.prior):
            return self.neutral
        if use.certain:
            if not isinstance(self.net, InferenceNet) or not self.net.has_branches:
                raise UsageError(
                    "certain cues skip branches: optimise the network (hlnet.optimize); a plain one has none"
                )
            logits = certain_logits(self.net, self.features, cues, competing)
            return cue_effect(self.net, [()] * len(cues), use.attention, competing, use.prior).shifted(logits)
        effect = cue_effect(self.net, cues, use.attention, competing, use.prior)
        return effect.shifted(self.neutral if effect.gains is None else self._run(effect.gains))

    def _run(self, gains: Tensor | None) -> Tensor:
        if not self.net.has_branches or self.net.head is None:
            logits: Tensor = self.net(self.images)  # a gain on a plain network was refused before
        else:
            logits = self.net.head(self.features, gains)
        return logits


@dataclass(frozen=True)
class CuedRun:
    """One run of a network over all images of a data set.

    Attributes:
        cues: of each image, in the data set's order; none for an image without a cue.
        use: what is made of them.
    """

    cues: Sequence[Sequence[Cue]]
    use: CueUse

    def of(self, tree: ClassTree, own: ClassTree) -> CuedRun:
        """The same for a network with another tree: classes are told by name, and those that it lacks go uncued.

        Args:
            tree: the tree that the cues speak of.
            own: the other network's.
        """
        if tree == own:
            return self
        known: dict[str, str | None] = {}
        for node in {cue.node for cues in self.cues for cue in cues}:
            names = [tree.classes[place] for place in select_classes(tree, node)]
            there = [own.positions[name] for name in names if name in own.positions]
            known[node] = _written(own, there) if there else None
        moved = [
            tuple(cue.model_copy(update={"node": word}) for cue in cues if (word := known[cue.node]) is not None)
            for cues in self.cues
        ]
        return CuedRun(moved, self.use)


def _written(tree: ClassTree, classes: Sequence[int]) -> str:
    """What names these classes; of one, which is nearly always the case, without a walk through the tree."""
    alone = tree.node_names.words_for(tree.leaves[classes[0]].path) if len(classes) == 1 else None
    return alone or as_selection(tree, classes)
