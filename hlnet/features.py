"""Features of a frozen trunk, computed once and kept in memory.

The trunk sees every image a few times before the first epoch, once for each augmented *view*, instead of once an epoch;
after that only what lies behind it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from hlnet.errors import DataError

if TYPE_CHECKING:
    from hlnet.network import HierarchicalNet
    from hlnet.plain import PlainNet


class CachedFeatures(Dataset[tuple[Tensor, int]]):
    """Features of one or more views of each image, with labels.

    Args:
        features: ``[views, N, C, h, w]``; kept in whatever precision they come. Asking for an item draws one view.
        labels: ``[N]``.

    Example:
        >>> cached = CachedFeatures(torch.zeros(2, 3, 8, 7, 7), torch.tensor([0, 1, 0]))
        >>> len(cached), cached[1][0].shape, len(cached.restricted([1]))
        (3, torch.Size([8, 7, 7]), 1)
    """

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        self.features, self.labels = features, labels

    @classmethod
    def of(
        cls,
        net: HierarchicalNet | PlainNet,
        batches: Iterable[tuple[Tensor, Tensor]],
        views: int = 1,
        on_batch: Callable[[int], None] | None = None,
    ) -> Self:
        """Run a network's trunk, in evaluation mode, ``views`` times over all batches; kept as float16.

        Args:
            net: its ``features`` are taken.
            batches: images ``[B, 3, H, W]`` and labels ``[B]``, in the same order each time.
            views: how often to go through them; more than one makes sense with random augmentation.
            on_batch: called with the number of batches done.

        Raises:
            DataError: if a feature does not fit float16.
        """
        net.eval()
        device = next(net.parameters()).device
        rounds: list[Tensor] = []
        labels: list[Tensor] = []
        done = 0
        with torch.no_grad():
            for _ in range(views):
                features: list[Tensor] = []
                labels = []
                for images, target in batches:
                    features.append(net.features(images.to(device)).half().cpu())
                    labels.append(target)
                    done += 1
                    if on_batch:
                        on_batch(done)
                rounds.append(torch.cat(features))
        if not all(features.isfinite().all() for features in rounds):
            raise DataError("the trunk's features exceed what float16 holds (65504); train without cached features")
        return cls(torch.stack(rounds), torch.cat(labels))

    def restricted(self, classes: Iterable[int]) -> CachedFeatures:
        """Only the images of these classes, which are renumbered in the order given."""
        new = {old: position for position, old in enumerate(classes)}
        kept = [i for i, label in enumerate(self.labels.tolist()) if label in new]
        labels = torch.tensor([new[int(self.labels[i])] for i in kept])
        return CachedFeatures(self.features[:, kept], labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        views = len(self.features)
        view = int(torch.randint(views, ())) if views > 1 else 0
        return self.features[view, position].float(), int(self.labels[position])
