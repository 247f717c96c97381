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
from hlnet.network import NetworkConfig


def certain_classes(net: InferenceNet, cues: Sequence[Cue], competing: Sequence[int] | None = None) -> tuple[int, ...]:
    """Positions of the classes that an image's cues leave: those that all of them name; all, without a cue.

    Args:
        net: the network.
        cues: of one image.
        competing: positions of the classes that there are to choose from; default: all.

    Raises:
        UsageError: if no class is left.
    """
    left = set(range(len(net.tree.classes)) if competing is None else competing)
    for cue in cues:
        left &= set(cued_classes(net.tree, cue.node))
    if not left:
        raise UsageError(
            f"certain cues on {', '.join(repr(cue.node) for cue in cues)} leave no class that could be the answer"
        )
    return tuple(sorted(left))


def certain_gmacs(net: InferenceNet, cues: Sequence[Cue], competing: Sequence[int] | None = None) -> float:
    """What an image costs of which only the cued classes run, the trunk included.

    Raises:
        UsageError: as :func:`certain_classes`; for a plain network.
    """
    from hlnet.profiling import total_cost, unit_costs

    if not isinstance(net.config, NetworkConfig):
        raise UsageError("certain cues skip branches, and a plain network has none")
    rows = net.tree.rows(certain_classes(net, cues, competing))
    return total_cost(unit_costs(net.config, net.transform)[0], [len(row) for row in rows]).gmacs


def certain_logits(
    net: InferenceNet, features: Tensor, cues: Sequence[Sequence[Cue]], competing: Sequence[int] | None = None
) -> Tensor:
    """Logits of the classes that are cued, by running only their branches.

    Args:
        net: an optimised network with branches (:func:`hlnet.optimize`).
        features: ``[B, C, h, w]``, what ``net.features`` gives.
        cues: of each image; strengths and reliabilities do not count.
        competing: as :func:`certain_classes` takes it.

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
        groups[certain_classes(net, own, competing)].append(row)
    logits = torch.full((len(features), len(net.tree.classes)), -torch.inf, device=features.device)
    for classes, rows in groups.items():
        if len(classes) == len(net.tree.classes):
            logits[rows] = net.head(features[rows])
            continue
        head = net.select([net.tree.classes[place] for place in classes]).head
        assert head is not None
        logits[torch.tensor(rows)[:, None], torch.tensor(classes)] = head(features[rows])
    return logits
