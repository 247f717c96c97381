"""Labels for image files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from pydantic import BaseModel

from hlnet.data import eval_transform, open_image
from hlnet.errors import DataError, UsageError
from hlnet.inference import InferenceNet
from hlnet.network import HierarchicalNet
from hlnet.plain import PlainNet


class Label(BaseModel):
    """One candidate class: its name, its path in the tree, its original index and its probability."""

    name: str
    path: str
    index: int
    probability: float


class Prediction(BaseModel):
    """The best labels of one image, most probable first; or why it could not be read."""

    image: str
    labels: list[Label] = []
    error: str | None = None


def predict(
    net: HierarchicalNet | PlainNet | InferenceNet, images: Iterable[str | Path], top: int = 5, batch_size: int = 16
) -> Iterator[Prediction]:
    """The most probable classes of each image, in the order given.

    Probabilities are the softmax over the network's own classes: an expert shares them out among the few that it has,
    whatever the image shows.

    Args:
        net: a full network, an expert or a plain network.
        images: paths. One that cannot be read gives a :class:`Prediction` with ``error`` and does not end the run.
        top: how many labels; never more than there are classes.
        batch_size: images that run together; memory does not grow with the number of images.

    Raises:
        UsageError: if ``top`` or ``batch_size`` is below 1.
    """
    if top < 1 or batch_size < 1:
        raise UsageError(f"top ({top}) and batch_size ({batch_size}) must be at least 1")
    return _predict(net, images, top, batch_size)


def _predict(
    net: HierarchicalNet | PlainNet | InferenceNet, images: Iterable[str | Path], top: int, batch_size: int
) -> Iterator[Prediction]:
    net.eval()
    transform = eval_transform(net.transform)
    batch: list[tuple[str, torch.Tensor | str]] = []

    def run() -> Iterator[Prediction]:
        tensors = [item for _, item in batch if isinstance(item, torch.Tensor)]
        rows: Iterator[torch.Tensor] = iter(())
        if tensors:
            with torch.inference_mode():
                rows = iter(net(torch.stack(tensors).to(net.device)).float().softmax(1).cpu())
        for path, item in batch:
            if isinstance(item, str):
                yield Prediction(image=path, error=item)
                continue
            best = next(rows).topk(min(top, len(net.tree.classes)))
            leaves = [net.tree.leaves[i] for i in best.indices.tolist()]
            yield Prediction(
                image=path,
                labels=[
                    Label(name=leaf.name, path=leaf.path, index=leaf.index or 0, probability=share)
                    for leaf, share in zip(leaves, best.values.tolist(), strict=True)
                ],
            )
        batch.clear()

    for path in images:
        try:
            batch.append((str(path), transform(open_image(path))))
        except DataError as error:
            batch.append((str(path), str(error)))
        if len(batch) >= batch_size:
            yield from run()
    if batch:
        yield from run()
