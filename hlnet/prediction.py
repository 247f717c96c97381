"""Labels for image files, or "none of these"."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from pydantic import BaseModel
from torch import Tensor

from hlnet.calibration import class_probabilities
from hlnet.data import eval_transform, open_image
from hlnet.errors import DataError, UsageError
from hlnet.inference import InferenceNet
from hlnet.network import HierarchicalNet
from hlnet.plain import PlainNet
from hlnet.rejection import default_score, rejection_scores


class Label(BaseModel):
    """One candidate class: its name, its path in the tree, its original index and its probability.

    The only class of a network trained with softmax has no probability (``None``): its share is 1 whatever it is shown.
    """

    name: str
    path: str
    index: int
    probability: float | None


class Prediction(BaseModel):
    """The best labels of one image, most probable first; or why it could not be read.

    Attributes:
        image: its path.
        labels: the candidates, also where the image was rejected.
        score: how familiar the image is, of a network that holds a fitted threshold or has one class only.
        rejected: whether the score lies below the threshold, "none of these"; ``None`` without a threshold.
        error: why it could not be read.
    """

    image: str
    labels: list[Label] = []
    score: float | None = None
    rejected: bool | None = None
    error: str | None = None


def predict(
    net: HierarchicalNet | PlainNet | InferenceNet, images: Iterable[str | Path], top: int = 5, batch_size: int = 16
) -> Iterator[Prediction]:
    """The most probable classes of each image, in the order given.

    Probabilities are the softmax over the network's own classes: an expert shares them out among the few that it has,
    whatever the image shows. Where classes were trained one against all (``bce``), each has its own, and they need not
    add up to 1. A fitted temperature counts (:func:`hlnet.calibrate`), and so does the threshold fitted with it: an
    image that scores lower is rejected.

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
    batch: list[tuple[str, Tensor | str]] = []

    def run() -> Iterator[Prediction]:
        tensors = [item for _, item in batch if isinstance(item, Tensor)]
        answers: Iterator[Prediction] = iter(())
        if tensors:
            with torch.inference_mode():
                answers = _answers(net, net(torch.stack(tensors).to(net.device)).float().cpu(), top)
        for path, item in batch:
            if isinstance(item, str):
                yield Prediction(image=path, error=item)
            else:
                yield next(answers).model_copy(update={"image": path})
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


def _answers(net: HierarchicalNet | PlainNet | InferenceNet, logits: Tensor, top: int) -> Iterator[Prediction]:
    """What the network says of images with these logits, ``[B, K]``; whose they are is not told."""
    known, leaves = net.provenance, net.tree.leaves
    shares = class_probabilities(logits, known.one_vs_all, known.temperature)
    alone = len(leaves) == 1 and not known.one_vs_all
    scores: list[float] | None = None
    if known.rejection or len(leaves) == 1:
        scores = rejection_scores(logits, known.rejection.score if known.rejection else default_score(known)).tolist()
    places = logits.topk(min(top, len(leaves))).indices  # of logits: sigmoids of large ones are all 1
    for i, best in enumerate(places.tolist()):
        score = scores[i] if scores else None
        yield Prediction(
            image="",
            labels=[
                Label(
                    name=leaves[place].name,
                    path=leaves[place].path,
                    index=leaves[place].index or 0,
                    probability=None if alone else float(shares[i, place]),
                )
                for place in best
            ],
            score=score,
            rejected=None if score is None or not known.rejection else not score >= known.rejection.threshold,
        )
