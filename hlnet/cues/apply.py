"""Logits of a batch under cues, however these act: what evaluation and prediction have in common."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from torch import Tensor

from hlnet.cues.cue import Cue
from hlnet.cues.effect import cue_effect
from hlnet.cues.hard import check_hard_cues, hard_cue_logits
from hlnet.cues.policy import CuePolicy
from hlnet.model.base import Network


class BatchLogits:
    """Logits of one batch of images, without cues and under them; each is computed when it is asked for.

    Args:
        net: the network, in evaluation mode.
        images: ``[B, 3, H, W]``, on its device.

    Example:
        >>> import hlnet, torch
        >>> net = hlnet.create_model("resnet18", tree={"cat": ["tabby", "siamese"], "dog": ["beagle"]}).eval()
        >>> batch = BatchLogits(net, torch.zeros(1, 3, 64, 64))
        >>> shift = batch.under([[Cue(node="cat", strength=2.0)]], CuePolicy(mode="bias")) - batch.neutral
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

    def under(self, cues: Sequence[Sequence[Cue]], policy: CuePolicy, competing: Sequence[int] | None = None) -> Tensor:
        """``[B, classes]`` under the cues of each image.

        Args:
            cues: of each image; none for an image without a cue.
            policy: how they act, and the prior.
            competing: as :func:`hlnet.cues.effect.cue_effect` takes it.

        Raises:
            UsageError: as :func:`hlnet.cues.effect.cue_effect`; for hard cues, if the network is plain or not
                optimised, or the cues of an image leave no class.
        """
        if not (any(cues) or policy.prior):
            return self.neutral
        if policy.hard:
            logits = hard_cue_logits(check_hard_cues(self.net), self.features, cues, competing)
            return cue_effect(self.net, [()] * len(cues), policy, competing).shifted(logits)
        effect = cue_effect(self.net, cues, policy, competing)
        return effect.shifted(self.neutral if effect.gains is None else self._run(effect.gains))

    def _run(self, gains: Tensor | None) -> Tensor:
        if not self.net.has_branches or self.net.head is None:
            logits: Tensor = self.net(self.images)  # a gain on a plain network was refused before
        else:
            logits = self.net.head(self.features, gains)
        return logits
