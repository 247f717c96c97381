"""Training of a graft: only the branches of the new classes, on cached outputs of the old network.

Notable here: each image passes the trunk a few times, in evaluation mode, before the first epoch. Its features are
cached as :func:`hlnet.train` caches them, and the old network's logits are kept. After that only the new
branches run, and the few old ones on the way to them. Their loss is over all logits, so that they learn to compete with
classes that cannot move.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from hlnet.data.features import CachedFeatures
from hlnet.data.sampling import EpochSampler, mixed
from hlnet.errors import RunError
from hlnet.expert.grow import new_branches, node_output
from hlnet.model.hierarchical import HierarchicalNet
from hlnet.training.losses import make_loss, prior_logit
from hlnet.training.optimizers import CPU_BATCH, make_optimizer, make_schedule
from hlnet.training.train_config import TrainConfig
from hlnet.tree.class_tree import ClassTree

#: Called with the phase, its step and its number of steps.
OnBatch = Callable[[str, int, int], None]


class GraftEpoch(BaseModel):
    """An epoch of a graft: ``loss`` and ``top1`` of the training images, all classes competing; time in seconds."""

    epoch: int
    loss: float
    top1: float
    seconds: float


@dataclass
class ExtractedFeatures:
    """Outputs of the old network on V views of N images: view after view.

    Attributes:
        features: the trunk's, ``[V, N, C, h, w]``, in memory or in a file.
        labels: ``[V * N]``.
        logits: of its own classes, ``[V * N, K]``.
        pooled, rows: inputs of the class rows, ``[V * N, C]``, and their part of the logits, ``[V * N, K]``. Empty for
            networks without rows.
    """

    features: CachedFeatures
    labels: Tensor
    logits: Tensor
    pooled: Tensor
    rows: Tensor


def extract_features(net: HierarchicalNet, features: CachedFeatures, config: TrainConfig) -> ExtractedFeatures:
    """Run the old network's branches over the cached features of all images."""
    stored, class_rows = features.stored.flatten(0, 1), net.head.class_rows
    logits, pooled, rows_logits = [], [], []
    for rows in torch.arange(len(stored)).split(images_per_step(config)):
        with torch.no_grad(), torch.autocast(net.device.type, enabled=False):
            inputs = _tree_input(net, stored[rows])
            total = net.head.tree_logits(inputs)
            if class_rows is not None:
                pooled.append(class_rows.pool(inputs).float().cpu())
                rows_logits.append(class_rows(class_rows.pool(inputs)).float().cpu())
                total = total + class_rows(class_rows.pool(inputs))
            logits.append(total.float().cpu())
    views = len(features.stored)
    empty = [torch.empty(0)]
    return ExtractedFeatures(
        features, features.labels.repeat(views), *(torch.cat(part or empty) for part in (logits, pooled, rows_logits))
    )


class NewBranches(nn.Module):
    """The new classes' branches, parent by parent.

    Args:
        net: to be grafted on.
        parents: for each new class, the path of its parent.
        ids: of new classes that have one.
        config: whose loss says where biases start.
    """

    def __init__(
        self, net: HierarchicalNet, parents: Mapping[str, str], ids: Mapping[str, str | None], config: TrainConfig
    ) -> None:
        super().__init__()
        groups: dict[str, dict[str, str | None]] = {}
        for name, path in parents.items():
            groups.setdefault(path, {})[name] = ids.get(name)
        self.by_parent = {path: new_branches(net, path, classes) for path, classes in groups.items()}
        self.trees = nn.ModuleList(self.by_parent.values())
        names = [name for group in groups.values() for name in group]
        self.order = [names.index(name) for name in parents]
        if config.loss == "bce":  # detectors start at their share, or the first steps only teach them to say no
            for tree in self.by_parent.values():
                first = tree.class_rows or tree.leaves
                nn.init.constant_(first.bias, prior_logit(len(net.tree.classes) + len(parents)))

    def forward(self, features: list[Tensor]) -> Tensor:
        """Logits of the new classes without their rows, ``[B, new]``, from what each parent hands to its children."""
        logits = [tree.tree_logits(x) for tree, x in zip(self.by_parent.values(), features, strict=True)]
        return torch.cat(logits, dim=1)[:, self.order]

    def rows(self, pooled: Tensor) -> Tensor:
        """What the new classes' rows add to that."""
        return torch.cat([tree.class_rows(pooled) for tree in self.trees], dim=1)[:, self.order]  # type: ignore[operator]

    def no_weight_decay(self) -> set[str]:
        """Names of norms, biases and scales, for timm's optimizers."""
        trees = enumerate(self.by_parent.values())
        return {f"trees.{number}.{name}" for number, tree in trees for name in tree.no_weight_decay()}


def train_branches(
    net: HierarchicalNet,
    branches: NewBranches,
    extracted: ExtractedFeatures,
    config: TrainConfig,
    columns: ClassTree,
    tell: OnBatch,
    on_epoch: Callable[[GraftEpoch], None] | None,
) -> None:
    """Train the branches in place; the network, whose features these are, stays as it is.

    Raises:
        RunError: if the loss stops being a number.
    """
    device = next(branches.parameters()).device
    stored = extracted.features.stored.flatten(0, 1)
    images = len(extracted.features)
    size = images_per_step(config)
    sampler = EpochSampler(range(images), config.seed, size)
    steps = -(-len(sampler) // size)
    optimizer = make_optimizer(branches, config)
    schedule = make_schedule(optimizer, config, steps)
    loss_of = make_loss(config, columns)
    branches.train()
    for epoch in range(1, config.epochs + 1):
        started, totals = time.perf_counter(), torch.zeros(3)
        sampler.begin(epoch)
        chosen = torch.tensor(list(sampler)) % images
        drawn = torch.Generator().manual_seed(mixed(config.seed, epoch, 1))
        chosen += images * torch.randint(config.cache_views, chosen.shape, generator=drawn)
        for step, rows in enumerate(chosen.split(size), start=1):
            with torch.no_grad():
                below = _tree_input(net, stored[rows])
                inputs = [node_output(net.head, below, path).float() for path in branches.by_parent]
            logits = branches(inputs)
            labels, old = extracted.labels[rows].to(device), extracted.logits[rows].to(device)
            if not len(extracted.pooled):
                logits = torch.cat([old, logits], dim=1)
                loss = loss_of(logits, labels)
            else:
                new = branches.rows(extracted.pooled[rows].to(device))
                logits = torch.cat([old, logits + new], dim=1)
                alone = torch.cat([extracted.rows[rows].to(device), new], dim=1)
                loss = loss_of(logits, labels) + config.rows_loss * loss_of(alone, labels)
            if not torch.isfinite(loss):
                raise RunError(f"the loss became {loss.item()} in epoch {epoch}, step {step}; try a lower lr")
            optimizer.zero_grad()
            loss.backward()
            if config.clip_grad:
                nn.utils.clip_grad_norm_(branches.parameters(), config.clip_grad)
            optimizer.step()
            schedule.step_update((epoch - 1) * steps + step)
            with torch.no_grad():
                right = (logits.argmax(1) == labels).sum()
                totals += torch.stack([loss * len(rows), right, loss.new_tensor(len(rows))]).cpu()
            tell(f"epoch {epoch}", step, steps)
        if on_epoch:
            loss_sum, hits, count = totals.tolist()
            seconds = time.perf_counter() - started
            on_epoch(GraftEpoch(epoch=epoch, loss=loss_sum / count, top1=hits / count, seconds=seconds))
    branches.eval()


def _tree_input(net: HierarchicalNet, features: Tensor) -> Tensor:
    """The tree's input, from the trunk's features in float16 on the CPU."""
    seen: Tensor = net.head.seen(features.to(net.device, net.dtype))
    return seen


def images_per_step(config: TrainConfig) -> int:
    """The batch size; ``auto`` is a CPU's."""
    return config.batch_size if isinstance(config.batch_size, int) else CPU_BATCH
