"""How often a descent agrees with the full network, and what it costs: measured, and fitted to a promise.

Notable here: what a descent answers follows from the full network's logits and the rows' alone. So both are computed
once, for any number of thresholds; and no labels are needed, since a descent is compared with the full network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hlnet.errors import DataError, UsageError, counted
from hlnet.model.cost import unit_costs
from hlnet.model.fast.descent import families_of, next_family
from hlnet.model.fast.optimize import InferenceNet
from hlnet.model.hierarchical import NetworkConfig
from hlnet.model.provenance import FittedDescent
from hlnet.tree.class_tree import ClassTree

#: Leads that thresholds are tried for, the most cautious first; differences of logits.
LEADS = [round(0.1 * step, 1) for step in range(200, -1, -1)]


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


def descent_gmacs(net: InferenceNet, nodes: Tensor) -> float:
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


def agreeing_lead(disagreements: Sequence[int], images: int, agreement: float, confidence: float) -> int | None:
    """The boldest of some stopping rules that agrees with the full network as often as asked, by a promise.

    The rules are tried from the most cautious on. Each is tested against "it disagrees more often than that", whose
    p-value is ``P(K <= k)`` of the binomial distribution for k disagreements. The first that is not refuted ends the
    walk (fixed-sequence testing, as in Angelopoulos et al., "Learn then Test", 2021). With the given confidence over
    draws of the images, the rule that is found keeps the promise on new images of their kind.

    Args:
        disagreements: of each rule, the most cautious first.
        images: how many were compared.
        agreement: the share of new images whose answer must be the full network's.
        confidence: of the promise.

    Returns:
        the place of the rule; ``None`` if not even the first passes.

    Example:
        >>> agreeing_lead([0, 8, 12, 13, 11], images=1000, agreement=0.98, confidence=0.95)
        2
    """
    from scipy.stats import binom

    found = None
    for place, count in enumerate(disagreements):
        if binom.cdf(count, images, 1 - agreement) > 1 - confidence:
            break
        found = place
    return found


def fit_descent(
    net: InferenceNet,
    logits: Tensor,
    rows: Tensor,
    agreements: Sequence[float],
    confidence: float = 0.95,
    data: str = "",
) -> list[FittedDescent]:
    """Thresholds for descents that agree with the full network; ``net.provenance`` holds them from then on.

    A threshold belongs to these weights and classes: a cut of the network, or training, drops it. Each promise holds by
    itself; that several hold at once is less certain.

    Args:
        net: an inference form with class rows.
        logits, rows: of images of the kind that will come, ``[N, classes]``, from :func:`full_and_rows`.
        agreements: the shares of new images whose answer must be the full network's.
        confidence: how certain each promise is, over draws of the images.
        data: what the images are called.

    Raises:
        UsageError: if an agreement or the confidence is not between 0 and 1.
        DataError: if there are too few images for that.

    Example:
        >>> import hlnet
        >>> settings = {"shared_width": 16, "class_rows": True}
        >>> net = hlnet.create_model("test_resnet", tree={"a": ["b", "c"], "d": ["e"]}, **settings)
        >>> net.transform = net.transform.adjusted(img_size=32)
        >>> rows = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> (fitted,) = fit_descent(hlnet.optimize(net), 1.1 * rows, rows, [0.98])
        >>> fitted.threshold, fitted.metrics["agreement"], fitted.metrics["rows_alone"]
        (1.0, 1.0, 1.0)
    """
    for name, value in [*(("agreement", value) for value in agreements), ("confidence", confidence)]:
        if not 0 < value < 1:
            raise UsageError(f"the {name} {value:g} must lie between 0 and 1, both excluded")
    full = logits.argmax(dim=1)
    descents = Trajectories.of(net.tree, logits, rows)
    wrong = [int((descents.at(lead) != full).sum()) for lead in LEADS]
    fitted = []
    for agreement in agreements:
        place = agreeing_lead(wrong, len(full), agreement, confidence)
        if place is None:
            least = math.ceil(math.log(1 - confidence) / math.log(agreement))
            raise DataError(
                f"{counted(len(full), 'image')} cannot promise an agreement of {agreement:g}: it takes at least {least}"
            )
        metrics = measured(net, descents, LEADS[place])
        metrics["agreement"] = 1 - wrong[place] / len(full)
        threshold = math.exp(-LEADS[place])
        fitted.append(
            FittedDescent(
                agreement=agreement,
                confidence=confidence,
                threshold=threshold,
                images=len(full),
                data=data,
                metrics=metrics,
            )
        )
    net.provenance.descent = tuple(fitted)
    return fitted


def measured(net: InferenceNet, descents: Trajectories, lead: float) -> dict[str, float]:
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


def threshold_for(net: InferenceNet, agreement: float) -> float:
    """The fitted threshold whose promise is this agreement, or the least one above it.

    Raises:
        UsageError: if none was fitted for that much.
    """
    fitted = sorted(net.provenance.descent, key=lambda one: one.agreement)
    for one in fitted:
        if one.agreement >= agreement - 1e-9:
            return one.threshold
    told = f"fitted for {', '.join(f'{one.agreement:g}' for one in fitted)}" if fitted else "not fitted for a descent"
    raise UsageError(
        f"the network was {told}: run hlnet calibrate MODEL --data DATA --agreement {agreement:g}; it needs no labels"
    )
