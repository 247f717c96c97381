"""Accuracy of full networks, experts and plain networks, with and without a cue."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from pydantic import BaseModel
from torch import Tensor

from hlnet.attention import gains_for
from hlnet.data import TreeData
from hlnet.errors import UsageError
from hlnet.inference import InferenceNet
from hlnet.network import HierarchicalNet
from hlnet.plain import PlainNet
from hlnet.selection import select_classes


class Accuracy(BaseModel):
    """Accuracy of one set of predictions, as shares in 0..1.

    Attributes:
        top1: share of images whose highest logit is their class's.
        top5: share whose class is among the five highest; ``None`` with five classes or fewer, where it says nothing.
        per_class: top-1 by class name, for classes that have images.
    """

    top1: float
    top5: float | None
    per_class: dict[str, float]


class Evaluation(BaseModel):
    """What :func:`evaluate` found.

    Attributes:
        images: number of images used.
        left_out: images of classes that are not among those evaluated.
        classes: number of classes that compete.
        neutral: accuracy without a cue.
        attention_signal: the gain on the cued class, if one was asked for.
        cue: where the cue came from.
        cued: accuracy with it.
    """

    images: int
    left_out: int
    classes: int
    neutral: Accuracy
    attention_signal: float | None = None
    cue: str | None = None
    cued: Accuracy | None = None


def accuracy(logits: Tensor, labels: Tensor, names: Iterable[str]) -> Accuracy:
    """Top-1, top-5 and per-class accuracy.

    Args:
        logits: ``[N, K]``.
        labels: ``[N]``, column of the right class.
        names: of the K columns.

    Example:
        >>> accuracy(torch.tensor([[2.0, 1.0], [3.0, 0.0]]), torch.tensor([0, 1]), ["cat", "dog"]).top1
        0.5
    """
    right = (logits.argmax(1) == labels).double()
    per_class = {name: float(right[labels == i].mean()) for i, name in enumerate(names) if (labels == i).any()}
    top5 = None
    if logits.shape[1] > 5:
        top5 = float((logits.topk(5, dim=1).indices == labels[:, None]).any(1).double().mean())
    return Accuracy(top1=float(right.mean()), top5=top5, per_class=per_class)


def confusion_matrix(logits: Tensor, labels: Tensor) -> Tensor:
    """How many images of class i (row) were called class j (column): ``[K, K]``, int64.

    Args:
        logits: ``[N, K]``.
        labels: ``[N]``, column of the right class.

    Example:
        >>> confusion_matrix(torch.tensor([[2.0, 1.0], [3.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1, 1])).tolist()
        [[1, 0], [1, 1]]
    """
    classes = logits.shape[1]
    return torch.bincount(labels * classes + logits.argmax(1), minlength=classes**2).view(classes, classes)


def logits_of(
    net: HierarchicalNet | PlainNet | InferenceNet,
    batches: Iterable[tuple[Tensor, Tensor]],
    signals: Iterable[float | None] = (None,),
    on_batch: Callable[[], None] | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Run the network once a batch and signal; the trunk runs once only.

    Args:
        net: the network; it is put in evaluation mode.
        batches: images ``[B, 3, H, W]`` and labels ``[B]``.
        signals: attention signals on each image's own class; ``None`` for no cue.
        on_batch: called after each batch.

    Returns:
        for each signal the logits ``[N, K]``, and the labels ``[N]``; on the CPU.

    Raises:
        UsageError: if a plain network is to be cued, or a signal is below 0.
    """
    signals = list(signals)
    for signal in signals:
        if signal is not None and not net.has_branches:
            raise UsageError("a plain network has no branches to cue; leave the attention signal out")
        if signal is not None:  # before any image is read
            gains_for(net.tree, torch.empty(0, dtype=torch.long), signal)
    found: list[list[Tensor]] = [[] for _ in signals]
    labels: list[Tensor] = []
    net.eval()
    with torch.inference_mode():
        for images, target in batches:
            images, target = images.to(net.device), target.to(net.device)
            labels.append(target.cpu())
            if net.has_branches and net.head is not None:
                features = net.features(images)
                for logits, signal in zip(found, signals, strict=True):
                    gains = None if signal is None else gains_for(net.tree, target, signal)
                    logits.append(net.head(features, gains).float().cpu())
            else:
                for logits in found:
                    logits.append(net(images).float().cpu())
            if on_batch:
                on_batch()
    return [torch.cat(logits) for logits in found], torch.cat(labels)


def evaluate(
    net: HierarchicalNet | PlainNet | InferenceNet,
    data: TreeData,
    batches: Iterable[tuple[Tensor, Tensor]],
    classes: str | Iterable[str | int] | None = None,
    attention_signal: float | None = None,
    on_batch: Callable[[], None] | None = None,
) -> Evaluation:
    """Accuracy on labelled images.

    With ``classes``, only images of these count and only their logits compete: for a full or a plain network that is
    the control beside an expert of the same classes.

    With ``attention_signal``, each image's own label names the branch whose features are scaled, as in the paper's
    Sec. 4.4. That is an oracle: it says how much a right cue could help, not how much a real one does.

    Args:
        net: the network.
        data: what the batches are drawn from.
        batches: of ``data``, in any order.
        classes: a selection, as :func:`hlnet.select_classes` takes it; default: all the network's.
        attention_signal: the gain.
        on_batch: called after each batch.

    Raises:
        UsageError: if a plain network is to be cued, or the selected classes have no images.
    """
    kept = list(range(len(net.tree.classes))) if classes is None else list(select_classes(net.tree, classes))
    signals = [None] if attention_signal is None else [None, attention_signal]
    runs, labels = logits_of(net, batches, signals, on_batch)
    column = torch.full((len(net.tree.classes),), -1)
    column[kept] = torch.arange(len(kept))
    targets = column[labels]
    used = targets >= 0
    if not used.any():
        raise UsageError("the data holds no image of the selected classes")
    names = [net.tree.classes[i] for i in kept]
    results = [accuracy(logits[used][:, kept], targets[used], names) for logits in runs]
    return Evaluation(
        images=int(used.sum()),
        left_out=data.left_out + int((~used).sum()),
        classes=len(kept),
        neutral=results[0],
        attention_signal=attention_signal,
        cue=None if attention_signal is None else "each image's own label (an oracle)",
        cued=results[1] if attention_signal is not None else None,
    )
