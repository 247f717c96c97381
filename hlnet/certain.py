"""Cues that are taken as certain: only the expert of what is cued runs, and the other branches are skipped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from hlnet.cues import Cue, cued_classes
from hlnet.errors import UsageError
from hlnet.fast_tree import FastTree
from hlnet.inference import InferenceNet


def certain_classes(net: InferenceNet, cues: Sequence[Cue]) -> tuple[int, ...]:
    """Positions of the classes that an image's cues leave: those that all of them name; all, without a cue.

    Raises:
        UsageError: if no class is left.
    """
    left = set(range(len(net.tree.classes)))
    for cue in cues:
        left &= set(cued_classes(net.tree, cue.node))
    if not left:
        raise UsageError(
            f"cues on {', '.join(repr(cue.node) for cue in cues)} contradict each other: no class is left to run"
        )
    return tuple(sorted(left))


def certain_logits(net: InferenceNet, features: Tensor, cues: Sequence[Sequence[Cue]]) -> Tensor:
    """Logits of the classes that are cued, by running only their branches.

    Args:
        net: an optimised network with branches (:func:`hlnet.optimize`).
        features: ``[B, C, h, w]``, what ``net.features`` gives.
        cues: of each image; strengths and reliabilities do not count.

    Returns:
        ``[B, classes]``; the logits that the full network gives, and minus infinity for what was not run.

    Raises:
        UsageError: for a plain network, or if the cues of an image leave no class.

    Example:
        >>> import hlnet
        >>> tree = {"cat": ["tabby", "siamese"], "dog": ["beagle", "boxer"]}
        >>> net = hlnet.optimize(hlnet.create_model("resnet18", tree=tree))
        >>> features = net.features(torch.zeros(1, 3, 64, 64))
        >>> certain_logits(net, features, [[Cue(node="dog")]]).isfinite().tolist()
        [[False, False, True, True]]
    """
    if not isinstance(net.head, FastTree):
        raise UsageError("a certain cue skips branches, which takes a full network or an expert, optimised")
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, own in enumerate(cues):
        groups[certain_classes(net, own)].append(row)
    logits = torch.full((len(features), len(net.tree.classes)), -torch.inf, device=features.device)
    for classes, rows in groups.items():
        if len(classes) == len(net.tree.classes):
            logits[rows] = net.head(features[rows])
            continue
        head = net.select([net.tree.classes[place] for place in classes]).head
        assert head is not None
        logits[torch.tensor(rows)[:, None], torch.tensor(classes)] = head(features[rows])
    return logits
