"""Hard cues: only the expert of the named classes runs, and the other branches are skipped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from hlnet.cues.cue import Cue
from hlnet.errors import UsageError
from hlnet.model.base import Network, require_branches
from hlnet.model.cost import total_cost, unit_costs
from hlnet.model.fast.optimize import InferenceNet
from hlnet.model.fast.walk import FastTree
from hlnet.model.hierarchical import NetworkConfig
from hlnet.tree.class_tree import ClassTree


def hard_cue_classes(tree: ClassTree, cues: Sequence[Cue], competing: Sequence[int] | None = None) -> tuple[int, ...]:
    """Positions of the classes that an image's cues leave: those that all of them name; all, without a cue.

    Args:
        tree: the network's.
        cues: of one image.
        competing: positions of the classes that there are to choose from; default: all.

    Raises:
        UsageError: if no class is left.
    """
    left = set(range(len(tree.classes)) if competing is None else competing)
    for cue in cues:
        left &= set(cue.positions(tree))
    if not left:
        raise UsageError(
            f"hard cues on {', '.join(repr(cue.node) for cue in cues)} leave no class that could be the answer"
        )
    return tuple(sorted(left))


def check_hard_cues(net: Network) -> InferenceNet:
    """The network, if it can skip branches.

    Raises:
        UsageError: if it is plain or not optimised.
    """
    require_branches(net, "to skip", "cue it by a bias or a scale")
    if not isinstance(net, InferenceNet):
        raise UsageError("hard cues skip branches: optimise the network first (hlnet.optimize)")
    return net


def hard_cue_gmacs(
    net: InferenceNet, cues: Sequence[Sequence[Cue]], competing: Sequence[int] | None = None
) -> list[float]:
    """What each image costs if only the classes that its cues leave run, the trunk included.

    Args:
        net: the network.
        cues: of each image.
        competing: as :func:`hard_cue_classes` takes it.

    Raises:
        UsageError: as :func:`hard_cue_classes`; for a plain network.
    """
    check_hard_cues(net)
    assert isinstance(net.config, NetworkConfig)
    units, _ = unit_costs(net.config, net.transform)  # takes seconds; the rest is addition
    costs = {}
    for own in set(map(tuple, cues)):
        rows = net.tree.rows(hard_cue_classes(net.tree, own, competing))
        costs[own] = total_cost(units, [len(row) for row in rows]).gmacs
    return [costs[tuple(own)] for own in cues]


def hard_cue_logits(
    net: InferenceNet, features: Tensor, cues: Sequence[Sequence[Cue]], competing: Sequence[int] | None = None
) -> Tensor:
    """Logits of the classes that are cued, by running only their branches.

    Args:
        net: an optimised network with branches (:func:`hlnet.optimize`).
        features: ``[B, C, h, w]``, what ``net.features`` gives.
        cues: of each image; strengths and reliabilities do not count.
        competing: as :func:`hard_cue_classes` takes it.

    Returns:
        ``[B, classes]``; the logits that the full network gives, and minus infinity for what was not run.

    Raises:
        UsageError: for a plain network, or if the cues of an image leave no class.

    Example:
        >>> import hlnet
        >>> tree = {"cat": ["tabby", "siamese"], "dog": ["beagle", "boxer"]}
        >>> net = hlnet.optimize(hlnet.create_model("resnet18", tree=tree))
        >>> features = net.features(torch.zeros(1, 3, 64, 64))
        >>> hard_cue_logits(net, features, [[Cue(node="dog")]]).isfinite().tolist()
        [[False, False, True, True]]
    """
    if not isinstance(net.head, FastTree):
        raise UsageError("a hard cue skips branches, which takes a full network or an expert, optimised")
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, own in enumerate(cues):
        groups[hard_cue_classes(net.tree, own, competing)].append(row)
    logits = torch.full((len(features), len(net.tree.classes)), -torch.inf, device=features.device)
    for classes, rows in groups.items():
        if len(classes) == len(net.tree.classes):
            logits[rows] = net.head(features[rows])
            continue
        head = net.select([net.tree.classes[place] for place in classes]).head
        assert head is not None
        logits[torch.tensor(rows)[:, None], torch.tensor(classes)] = head(features[rows])
    return logits
