"""Logits of all images of a data set, without cues and under them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from hlnet.cues.apply import BatchLogits
from hlnet.cues.cue import Cue
from hlnet.cues.policy import CuePolicy
from hlnet.model.base import Network


def columns_of(labels: Tensor, kept: Sequence[int], classes: int) -> Tensor:
    """From positions among a network's classes to columns among the kept ones; -1 for others.

    Example:
        >>> columns_of(torch.tensor([0, 2, 1, -1]), [1, 2], 3).tolist()
        [-1, 1, 0, -1]
    """
    column = torch.full((classes + 1,), -1)  # the last is for label -1
    column[list(kept)] = torch.arange(len(kept))
    return column[labels]


def logits_of(
    net: Network,
    batches: Iterable[tuple[Tensor, Tensor]],
    runs: Sequence[Sequence[Sequence[Cue]] | None] = (None,),
    policy: CuePolicy | None = None,
    on_batch: Callable[[], None] | None = None,
    competing: Sequence[int] | None = None,
    start: int = 0,
) -> tuple[list[Tensor], Tensor]:
    """Run the network once a batch and run; the trunk runs once only.

    Args:
        net: the network; it is put in evaluation mode.
        batches: images ``[B, 3, H, W]`` and labels ``[B]``, in the data set's order where there are cues.
        runs: for each run, the cues of each image of the data set; ``None`` for no cue.
        policy: how cues act; default: as :class:`hlnet.CuePolicy`.
        on_batch: called after each batch.
        competing: as :func:`hlnet.cues.effect.cue_effect` takes it.
        start: position of the first image in the data set.

    Returns:
        for each run the logits ``[N, K]``, and the labels ``[N]``; on the CPU.

    Raises:
        UsageError: as :func:`hlnet.cues.effect.cue_effect`.
    """
    found: list[list[Tensor]] = [[] for _ in runs]
    labels: list[Tensor] = []
    policy = policy or CuePolicy()
    net.eval()
    with torch.inference_mode():
        for images, target in batches:
            end = start + len(target)
            labels.append(target.cpu())
            images = images.to(net.device)
            batch = BatchLogits(net, images)
            for logits, run in zip(found, runs, strict=True):
                under = batch.neutral if run is None else batch.under(run[start:end], policy, competing)
                logits.append(under.float().cpu())
            start = end
            if on_batch:
                on_batch()
    return [torch.cat(logits) for logits in found], torch.cat(labels)
