"""A frozen trunk's features for a training, computed once; Ctrl-C and SIGTERM end that with a word."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from hlnet.data.feature_cache import cached_features
from hlnet.data.features import CachedFeatures
from hlnet.data.tree_data import TreeData
from hlnet.model.base import TrainableNetwork
from hlnet.training.stopping import Stopped, defer_signals
from hlnet.training.train_config import TrainConfig

log = logging.getLogger("hlnet")


def cache_features(
    net: TrainableNetwork,
    data: TreeData | CachedFeatures,
    views: int,
    config: TrainConfig,
    folder: str | Path | None,
    limit: int | None,
    on_batch: Callable[[int, int], None],
) -> CachedFeatures:
    """The trunk's features of the data, unless they are that already.

    Args:
        net: whose trunk it is.
        data: images, or features.
        views: how often each image is seen.
        config: says seed, workers, the batch size, and whether unreadable images are passed over.
        folder, limit, on_batch: see :func:`hlnet.data.feature_cache.cached_features`.

    Raises:
        Stopped: after SIGINT or SIGTERM.
        UsageError, DataError, RunError: as ``cached_features``.
    """
    if isinstance(data, CachedFeatures):
        return data
    log.info("features of %d images are cached, views of each: %d", len(data), views)
    with defer_signals() as interrupted:

        def watch(step: int, steps: int) -> None:
            on_batch(step, steps)
            if interrupted.is_set():
                kept = "what is in the cache's folder stays" if folder else "nothing is kept"
                raise Stopped(f"stopped while features were cached, before the first epoch ({kept})")

        return cached_features(
            net,
            data,
            views,
            batch_size=config.batch_size if isinstance(config.batch_size, int) else 64,
            workers=config.workers,
            seed=config.seed,
            folder=folder or None,
            limit=limit,
            on_batch=watch,
            skip_unreadable=config.skip_unreadable,
        )
