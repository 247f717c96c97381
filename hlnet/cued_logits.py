"""Logits under cues, however these act: what evaluation and prediction have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from hlnet.certain import certain_logits
from hlnet.cues import Attention, Cue, cue_effect
from hlnet.errors import UsageError
from hlnet.inference import InferenceNet
from hlnet.network import HierarchicalNet
from hlnet.plain import PlainNet


@dataclass(frozen=True)
class CueSource:
    """What is known from outside of images that come one by one.

    Attributes:
        of: gives the cues of an image, by its path.
        attention: how they act.
        certain: whether they are taken as certain: only the classes that they leave run, and can win.
        prior: how frequent classes are, by name, as :func:`hlnet.cue_effect` takes it.
    """

    of: Callable[[str], Sequence[Cue]]
    attention: Attention
    certain: bool = False
    prior: Mapping[str, float] | None = None


def plain_logits(net: HierarchicalNet | PlainNet | InferenceNet, images: Tensor) -> tuple[Tensor | None, Tensor]:
    """The trunk's features of images ``[B, 3, H, W]``, where there are branches, and the logits without a cue."""
    if net.has_branches and net.head is not None:
        features = net.features(images)
        return features, net.head(features)
    return None, net(images)


def cued_logits(
    net: HierarchicalNet | PlainNet | InferenceNet,
    features: Tensor | None,
    neutral: Tensor,
    cues: Sequence[Sequence[Cue]],
    attention: Attention,
    certain: bool = False,
    prior: Mapping[str, float] | None = None,
    competing: Sequence[int] | None = None,
) -> Tensor:
    """What cues make of a batch.

    Args:
        net: the network.
        features, neutral: as :func:`plain_logits` gives them.
        cues: of each image.
        attention, competing, prior: as :func:`hlnet.cue_effect` takes them.
        certain: run only what is cued, :func:`hlnet.certain_logits`.

    Returns:
        ``[B, classes]``.

    Raises:
        UsageError: as :func:`hlnet.cue_effect`; for certain cues, if the network is plain or not optimised, or the cues
            of an image leave no class.
    """
    if not (any(cues) or prior):
        return neutral
    if certain:
        if not isinstance(net, InferenceNet) or features is None:
            raise UsageError("certain cues skip branches: optimise the network (hlnet.optimize); a plain one has none")
        neutral, cues = certain_logits(net, features, cues), [()] * len(cues)
    effect = cue_effect(net, cues, attention, competing, prior)
    if effect.gains is not None:
        assert net.head is not None and features is not None  # a gain on a plain network was refused
        neutral = net.head(features, effect.gains)
    return effect.shifted(neutral)
