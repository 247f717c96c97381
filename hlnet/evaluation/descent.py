"""How often a descent agrees with the full network, and what it costs.

Notable here: what a descent answers follows from the full network's logits and the rows' alone. So both are computed
once, for any number of thresholds; and no labels are needed, since a descent is compared with the full network.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from pydantic import BaseModel
from torch import Tensor

from hlnet.data.tree_data import TreeData, loader
from hlnet.model.base import Network
from hlnet.model.cost import unit_costs
from hlnet.model.fast.descent import families_of, margin_of, next_family
from hlnet.model.fast.optimize import InferenceNet
from hlnet.model.hierarchical import NetworkConfig
from hlnet.tree.class_tree import ClassTree

#: Leads that thresholds are tried for, the most cautious first; differences of logits, each 3 % below the one before.
LEADS = [*(20 * 0.97**step for step in range(300)), 0.0]


@dataclass(frozen=True, eq=False)
class Trajectories:
    """The descents of some images, step by step: after none, one, two … families.

    Attributes:
        leads: ``[N, steps]``, the highest lead so far; a descent stops at the first that is high enough.
        answers: ``[N, steps]``, the likeliest class.
        families: ``[N, steps - 1]``, which family ran then; -1 for none any more.
        tree: the class tree.
    """

    leads: Tensor
    answers: Tensor
    families: Tensor
    tree: ClassTree

    @classmethod
    def of(cls, tree: ClassTree, logits: Tensor, rows: Tensor) -> Trajectories:
        """Those of images with these logits of the full network and of the rows alone, ``[N, classes]`` both.

        Example:
            >>> tree = ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle"]})
            >>> logits, rows = torch.tensor([[1.0, 0.0, 5.0]]), torch.tensor([[3.0, 0.0, 2.0]])
            >>> found = Trajectories.of(tree, logits, rows)
            >>> found.answers.tolist(), found.families.tolist(), found.leads[:, :2].tolist()
            ([[0, 2, 2]], [[0, 1]], [[1.0, 1.0]])
        """
        family = families_of(tree, range(len(tree.classes)))
        mixed, exact = rows.clone(), torch.zeros_like(rows, dtype=torch.bool)
        leads, answers, families = [], [], []
        for step in range(len(family.unique()) + 1):
            lead, wanted = next_family(mixed, exact, family)
            leads.append(lead)
            answers.append(mixed.argmax(dim=1))
            if step and float(torch.stack(leads).amax(dim=0).min()) > LEADS[0]:
                break
            wanted = torch.where(lead.isinf(), -1, wanted)
            families.append(wanted)
            exact |= family == wanted[:, None]
            mixed = torch.where(exact, logits, mixed)
        families = families[: len(leads) - 1]
        ran = torch.stack(families, dim=1) if families else torch.empty(len(rows), 0, dtype=torch.long)
        return cls(torch.stack(leads, dim=1).cummax(dim=1).values, torch.stack(answers, dim=1), ran, tree)

    def steps(self, lead: float) -> Tensor:
        """How many families each image runs, ``[N]``, if it stops at this lead."""
        return (self.leads < lead).sum(dim=1)

    def at(self, lead: float) -> Tensor:
        """The answers ``[N]`` of descents that stop at this lead."""
        return self.answers.gather(1, self.steps(lead)[:, None])[:, 0]

    def nodes(self, lead: float) -> Tensor:
        """How many nodes of each level each image runs, ``[N, levels]``; a family of leaves runs whole."""
        steps = torch.arange(self.families.shape[1])
        ran = torch.where(steps < self.steps(lead)[:, None], self.families, -1)
        return nodes_run(self.tree, ran)


def nodes_run(tree: ClassTree, families: Tensor) -> Tensor:
    """Nodes of each level that run for some families of leaves.

    Args:
        tree: the class tree.
        families: ``[N, F]``, the parents of the leaves, by their place in the level above; -1 for none.

    Returns:
        ``[N, levels]``.

    Example:
        >>> tree = ClassTree.from_nested({"a": {"b": ["c", "d"], "e": ["f"]}, "g": {"h": ["i"]}})
        >>> nodes_run(tree, torch.tensor([[0, -1], [0, 1], [0, 2]])).tolist()
        [[1, 1, 2], [1, 2, 3], [2, 2, 3]]
    """
    sizes = torch.tensor([*tree.sibling_counts[-1], 0])  # the last is for -1
    counts = [sizes[families].sum(dim=1)]
    running = torch.zeros(len(families), len(sizes), dtype=torch.bool).scatter(1, families % len(sizes), True)[:, :-1]
    for level in reversed(tree.levels[:-1]):
        counts.insert(0, running.sum(dim=1))
        parents = torch.tensor([node.parent for node in level])
        above = torch.zeros(len(families), int(parents.max()) + 1)
        running = above.index_add(1, parents, running.float()) > 0
    return torch.stack(counts, dim=1)


def descent_gmacs(net: Network, nodes: Tensor) -> float:
    """Mean cost of descents that ran these nodes, ``[N, levels]``; in 1e9 multiply-accumulates an image.

    Trunk, shared stage and all rows run for every image; what the children of a node share, where one of them runs.
    """
    assert isinstance(net.config, NetworkConfig)
    trunk, *levels = unit_costs(net.config, net.transform)[0]
    total = sum(len(nodes) * part.macs for part in trunk.pieces or (trunk,) if not part.name.startswith("level"))
    total += sum(int((nodes[:, 0] > 0).sum()) * part.macs for part in trunk.pieces if part.name.startswith("level"))
    for level, ran in zip(levels, nodes.sum(dim=0).tolist(), strict=True):
        for part in level.pieces or (level,):
            total += part.macs * (len(nodes) * len(net.tree.classes) if part.name == "class rows" else ran)
    return total / len(nodes) / 1e9


def full_and_rows(
    net: InferenceNet, batches: Iterable[tuple[Tensor, Tensor]], on_batch: Callable[[], None] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The full network's logits of all images and the rows' alone, ``[N, classes]``, and the labels ``[N]``."""
    logits, rows, labels = [], [], []
    for images, target in batches:
        found = net.descend(images.to(net.device), threshold=0)
        logits.append(found.logits.cpu())
        rows.append(found.rows.cpu())
        labels.append(target.cpu())
        if on_batch:
            on_batch()
    return torch.cat(logits), torch.cat(rows), torch.cat(labels)


def measured(net: Network, descents: Trajectories, lead: float) -> dict[str, float]:
    """What descents that stop at this lead cost.

    Returns:
        ``gmacs`` and ``full_gmacs``, the mean and the full network's; ``rows_alone``, the share of images that stop
        after the rows; ``families``, the mean number of families that run.
    """
    steps = descents.steps(lead)
    every = torch.arange(len(net.tree.sibling_counts[-1]))
    return {
        "gmacs": descent_gmacs(net, descents.nodes(lead)),
        "full_gmacs": descent_gmacs(net, nodes_run(net.tree, every[None])),
        "rows_alone": float((steps == 0).double().mean()),
        "families": float(steps.double().mean()),
    }


class DescendingNet(Network):
    """A network that answers by descents; it is called as any other, and takes no gains.

    Args:
        net: an inference form with class rows.
        threshold: see :meth:`hlnet.model.fast.optimize.InferenceNet.descend`.
    """

    head = None
    _net: InferenceNet

    def __init__(self, net: InferenceNet, threshold: float) -> None:
        super().__init__()
        self.config, self.tree, self.transform, self.provenance = net.config, net.tree, net.transform, net.provenance
        self.__dict__["_net"] = net  # not as a part of this one
        self.threshold = threshold

    @property
    def has_branches(self) -> bool:
        """Whether it has branches that can be cued: none, in a descent."""
        return False

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._net.device

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, classes]``; of classes that did not run, the rows'."""
        return self._net.descend(images, self.threshold).logits

    def features(self, images: Tensor) -> Tensor:
        """The trunk's output, ``[B, C, h, w]``."""
        return self._net.features(images)


class DescentReport(BaseModel):
    """Descents beside the full network, on labelled images.

    Attributes:
        threshold: at which they stopped.
        images: how many they were.
        agreement: the share whose answer is the full network's.
        top1, full_top1: accuracies of the descents and of the full network.
        gmacs, full_gmacs, rows_alone, families: as :func:`measured`.
        ms, full_ms: mean time of an image alone, run in turn with the full network on some of the images.
    """

    threshold: float
    images: int
    agreement: float
    top1: float
    full_top1: float
    gmacs: float
    full_gmacs: float
    rows_alone: float
    families: float
    ms: float
    full_ms: float


def evaluate_descent(
    net: InferenceNet,
    data: TreeData,
    threshold: float,
    batch_size: int = 64,
    workers: int = 0,
    on_batch: Callable[[], None] | None = None,
) -> DescentReport:
    """Accuracy, agreement with the full network and cost of descents.

    Args:
        net: an inference form with class rows.
        data: labelled images of its classes.
        threshold: see :meth:`hlnet.model.fast.optimize.InferenceNet.descend`.
        batch_size, workers: as :func:`hlnet.loader` takes them.
        on_batch: called after each batch.

    Raises:
        UsageError: if the network has no class rows, or the threshold is not in 0..1.
    """
    lead = margin_of(threshold)
    logits, rows, labels = full_and_rows(net, loader(data, batch_size, workers), on_batch)
    descents, full = Trajectories.of(net.tree, logits, rows), logits.argmax(dim=1)
    answers = descents.at(lead)
    ms, full_ms = time_descents(net, torch.stack([data[i][0] for i in spread_out(len(data))]), threshold)
    return DescentReport(
        threshold=threshold,
        images=len(labels),
        agreement=float((answers == full).double().mean()),
        top1=float((answers == labels).double().mean()),
        full_top1=float((full == labels).double().mean()),
        **measured(net, descents, lead),
        ms=ms,
        full_ms=full_ms,
    )


def spread_out(images: int, most: int = 32) -> list[int]:
    """Positions of some images, evenly spread over all."""
    return [images * i // min(images, most) for i in range(min(images, most))]


def time_descents(net: InferenceNet, images: Tensor, threshold: float) -> tuple[float, float]:
    """Mean milliseconds of a descent and of the full network, image by image and in turn; after a round to warm up."""
    seconds = [0.0, 0.0]
    for counts in (False, True):
        for image in images.split(1):
            for which, at in enumerate((threshold, 0.0)):
                start = time.perf_counter()
                net.descend(image.to(net.device), at).logits.cpu()
                seconds[which] += counts * (time.perf_counter() - start)
    return 1000 * seconds[0] / len(images), 1000 * seconds[1] / len(images)
