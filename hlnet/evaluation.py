"""Accuracy of full networks, experts and plain networks, with and without a cue; alone, and beside each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import torch
from pydantic import BaseModel
from torch import Tensor

from hlnet.attention import gains_for
from hlnet.calibration import calibration_error, class_probabilities
from hlnet.data import LabelledImages, TreeData, eval_transform, loader
from hlnet.errors import UsageError, some
from hlnet.inference import InferenceNet
from hlnet.network import HierarchicalNet
from hlnet.plain import PlainNet
from hlnet.provenance import Rejection, Score
from hlnet.rejection import Detection, default_score, detection, rejection_scores
from hlnet.selection import select_classes

Net: TypeAlias = HierarchicalNet | PlainNet | InferenceNet


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
        left_out: images of classes that are not among those evaluated; accuracy is without them.
        classes: number of classes that compete.
        neutral: accuracy without a cue.
        temperature: what logits are divided by for probabilities, where it was fitted.
        ece: expected calibration error of these, :func:`hlnet.calibration.calibration_error`, to 4 decimals. Softmax
            shares are of the network's own images, and ``None`` with one class. Probabilities of classes trained one
            against all speak of any image: images of other classes count, and it is ``None`` where they were left out.
        detection: how well images of other classes are told from the network's own, where that was asked for.
        attention_signal: the gain on the cued class, if one was asked for.
        cue: where the cue came from.
        cued: accuracy with it.
    """

    images: int
    left_out: int
    classes: int
    neutral: Accuracy
    temperature: float | None = None
    ece: float | None = None
    detection: Detection | None = None
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
    net: Net,
    batches: Iterable[tuple[Tensor, Tensor]],
    signals: Iterable[float | None] = (None,),
    on_batch: Callable[[], None] | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Run the network once a batch and signal; the trunk runs once only.

    Args:
        net: the network; it is put in evaluation mode.
        batches: images ``[B, 3, H, W]`` and labels ``[B]``.
        signals: attention signals on each image's own class; ``None`` for no cue. An image labelled -1 gets none.
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
                    gains = None if signal is None else gains_for(net.tree, target.clamp(min=0), signal)
                    if gains is not None:
                        gains[target < 0] = 1
                    logits.append(net.head(features, gains).float().cpu())
            else:
                for logits in found:
                    logits.append(net(images).float().cpu())
            if on_batch:
                on_batch()
    return [torch.cat(logits) for logits in found], torch.cat(labels)


def evaluate(
    net: Net,
    data: TreeData,
    batches: Iterable[tuple[Tensor, Tensor]],
    classes: str | Iterable[str | int] | None = None,
    attention_signal: float | None = None,
    on_batch: Callable[[], None] | None = None,
    score: Score | None = None,
) -> Evaluation:
    """Accuracy on labelled images.

    With ``classes``, only images of these count and only their logits compete: for a full or a plain network that is
    the control beside an expert of the same classes.

    With ``attention_signal``, each image's own label names the branch whose features are scaled, as in the paper's
    Sec. 4.4. That is an oracle: it says how much a right cue could help, not how much a real one does.

    How well images of other classes are recognised as such (``detection``) is measured for a network that holds a
    fitted threshold (:func:`hlnet.calibrate`), for a single class, where accuracy says nothing, and where a ``score``
    is named. It takes data that kept these images: ``TreeData(…, outside=True)``.

    Args:
        net: the network.
        data: what the batches are drawn from.
        batches: of ``data``, in any order.
        classes: a selection, as :func:`hlnet.select_classes` takes it; default: all the network's.
        attention_signal: the gain.
        on_batch: called after each batch.
        score: what is to tell other classes: ``energy``, ``max-logit`` or ``probability``; default: the stored one, or
            :func:`hlnet.rejection.default_score`.

    Raises:
        UsageError: if a plain network is to be cued, or the selected classes have no images.
    """
    kept = list(range(len(net.tree.classes))) if classes is None else list(select_classes(net.tree, classes))
    runs, labels = logits_of(net, batches, _signals(attention_signal), on_batch)
    return _evaluation(net, kept, runs, labels, data.left_out, attention_signal, _detector(net, kept, score))


def evaluate_beside(
    nets: Mapping[str, Net],
    images: LabelledImages,
    classes: str | Iterable[str | int] | None = None,
    attention_signal: float | None = None,
    score: Score | None = None,
    batch_size: int = 64,
    workers: int = 0,
    on_batch: Callable[[int, int], None] | None = None,
) -> dict[str, Evaluation]:
    """Evaluate several networks on the same images, restricted to the first one's classes: an expert and its controls.

    Each is evaluated as by :func:`evaluate`. Classes are matched by name. Images are read once for all networks that
    want the same transform.

    Args:
        nets: by name; the first one's classes are evaluated.
        images: the labelled images.
        classes: a selection of the first network's classes.
        attention_signal: the gain, for networks with branches.
        score: as :func:`evaluate` takes it; where the first network's detection is measured, the others' is too.
        batch_size, workers: as :func:`hlnet.loader` takes them.
        on_batch: called after each batch, with how many are done and of how many.

    Returns:
        by name, in the order given.

    Raises:
        UsageError: if a network lacks one of the classes; as :func:`evaluate`.

    Example:
        >>> import hlnet
        >>> tree = hlnet.ClassTree.from_nested({"low": ["0", "1"], "high": ["8", "9"]})
        >>> full = hlnet.create_model("test_resnet", tree=tree)
        >>> full.transform = hlnet.InputTransform(input_size=(3, 32, 32))
        >>> nets = {"expert": hlnet.cut_expert(full, "low"), "full": full}
        >>> found = evaluate_beside(nets, hlnet.load_data("digits", "val"))
        >>> found["expert"].neutral == found["full"].neutral, found["full"].classes
        (True, 2)
    """
    first, lead = next(iter(nets.items()))
    kept = tuple(range(len(lead.tree.classes))) if classes is None else select_classes(lead.tree, classes)
    names = [lead.tree.classes[i] for i in kept]
    columns = {name: _columns(name, net, names) for name, net in nets.items()}
    detectors = {name: _detector(net, columns[name], score) for name, net in nets.items()}
    if detectors[first]:
        detectors = {name: found or (default_score(nets[name].provenance), None) for name, found in detectors.items()}
    else:  # images of other classes will not be run
        detectors = dict.fromkeys(nets)
    cued = {name: attention_signal if net.has_branches or net is lead else None for name, net in nets.items()}
    alike = {net.transform: [name for name in nets if nets[name].transform == net.transform] for net in nets.values()}
    data, batches = {}, {}
    for transform in alike:
        outside = detectors[first] is not None
        data[transform] = TreeData(images, lead.tree, eval_transform(transform), subset=True, outside=outside)
        batches[transform] = loader(data[transform], batch_size, workers)
    places = {name: _places(lead, net) for name, net in nets.items()}
    done, total = 0, sum(map(len, batches.values()))
    found = {}
    for transform, group in alike.items():
        parts: dict[str, list[tuple[list[Tensor], Tensor]]] = {name: [] for name in group}
        for pixels, labels in batches[transform]:
            for name in group:
                parts[name].append(logits_of(nets[name], [(pixels, places[name][labels])], _signals(cued[name])))
            done += 1
            if on_batch:
                on_batch(done, total)
        for name in group:
            runs = [torch.cat(run) for run in zip(*(logits for logits, _ in parts[name]), strict=True)]
            labels = torch.cat([labels for _, labels in parts[name]])
            left_out = data[transform].left_out
            found[name] = _evaluation(nets[name], columns[name], runs, labels, left_out, cued[name], detectors[name])
    return {name: found[name] for name in nets}


# ---------------------------------------------------------------------- helpers


def _signals(attention_signal: float | None) -> list[float | None]:
    """Without a cue, then with one."""
    return [None] if attention_signal is None else [None, attention_signal]


def _detector(net: Net, kept: Sequence[int], score: Score | None) -> tuple[Score, Rejection | None] | None:
    """Which score tells other classes apart, and its stored threshold, which is that of all the network's classes."""
    stored = net.provenance.rejection if len(kept) == len(net.tree.classes) else None
    if score is not None:
        return score, stored if stored and stored.score == score else None
    if stored:
        return stored.score, stored
    return (default_score(net.provenance), None) if len(kept) == 1 else None


def _columns(name: str, net: Net, classes: Sequence[str]) -> list[int]:
    """Positions of the classes in a network, by name."""
    position = {found: i for i, found in enumerate(net.tree.classes)}
    if lacking := [found for found in classes if found not in position]:
        raise UsageError(
            f"'{name}' lacks the class{'es' if len(lacking) > 1 else ''} {some(lacking)}, so it cannot stand beside"
        )
    return [position[found] for found in classes]


def _places(lead: Net, net: Net) -> Tensor:
    """From a position in the first network's classes to that in another's; -1, and what it lacks, to -1."""
    position = {found: i for i, found in enumerate(net.tree.classes)}
    return torch.tensor([*(position.get(found, -1) for found in lead.tree.classes), -1])


def _evaluation(
    net: Net,
    kept: Sequence[int],
    runs: Sequence[Tensor],
    labels: Tensor,
    left_out: int,
    attention_signal: float | None,
    detector: tuple[Score, Rejection | None] | None,
) -> Evaluation:
    """From logits ``[N, K]``, without and perhaps with a cue, and labels, to figures of the ``kept`` columns."""
    column = torch.full((len(net.tree.classes) + 1,), -1)  # the last is for label -1
    column[list(kept)] = torch.arange(len(kept))
    targets = column[labels]
    used = targets >= 0
    if not used.any():
        raise UsageError("the data holds no image of the selected classes")
    names = [net.tree.classes[i] for i in kept]
    columns = [logits[:, list(kept)] for logits in runs]
    results = [accuracy(logits[used], targets[used], names) for logits in columns]
    temperature = net.provenance.temperature
    found = Evaluation(
        images=int(used.sum()),
        left_out=left_out + int((~used).sum()),
        classes=len(kept),
        neutral=results[0],
        temperature=temperature,
        attention_signal=attention_signal,
        cue=None if attention_signal is None else "each image's own label (an oracle)",
        cued=results[1] if attention_signal is not None else None,
    )
    one_vs_all = net.provenance.one_vs_all
    if not left_out if one_vs_all else len(kept) > 1:
        shares = class_probabilities(columns[0], one_vs_all, temperature)
        counted = used | one_vs_all
        found.ece = round(calibration_error(shares[counted], targets[counted]), 4)
    if detector and (detector[1] or not used.all()):
        score, stored = detector
        scores = rejection_scores(columns[0], score)
        right = columns[0][used].argmax(1) == targets[used]
        limits = (stored.threshold, right, stored.max_false_positive) if stored else ()
        found.detection = detection(scores[used], scores[~used], score, *limits)
    return found
