"""Accuracy of full networks, experts and plain networks, without and with cues; of one, or of several compared."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from hlnet.cues.policy import CuePolicy
from hlnet.cues.table import CueTable
from hlnet.data.images import LabelledImages
from hlnet.data.tree_data import TreeData, eval_transform, loader
from hlnet.errors import UsageError, some
from hlnet.evaluation.cue_trial import CuedAccuracy, CueRuns, cued_accuracy
from hlnet.evaluation.logits import columns_of, logits_of
from hlnet.evaluation.metrics.accuracy import Accuracy, accuracy, answer_counts
from hlnet.evaluation.metrics.comparison import Comparison, compare
from hlnet.evaluation.metrics.hierarchy import lca_heights
from hlnet.evaluation.metrics.probability import calibration_error, class_probabilities
from hlnet.evaluation.metrics.rejection import Detection, default_score, detection, rejection_scores
from hlnet.model.base import Network
from hlnet.model.provenance import Rejection, Score, Use
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.selection import select_classes


class Evaluation(BaseModel):
    """Accuracy and calibration of a network on labelled images, as :func:`evaluate` measures them.

    Attributes:
        images: number of images used.
        left_out: images of classes that are not among those evaluated; accuracy is without them.
        classes: number of classes that compete.
        neutral: accuracy without a cue.
        temperature: what logits are divided by for probabilities, where it was fitted.
        ece: expected calibration error of these, :func:`calibration_error`, to 4 decimals. For a
            softmax it covers in-distribution images, and is ``None`` with one class. Probabilities of classes trained
            one-vs-rest are of any image: images of other classes count, and it is ``None`` where they were left out.
        detection: how well images of other classes are told from the network's own, where that was asked for.
        cued: accuracy with cues, where these were asked for.
        served: what these images did for the network before: they trained its weights, chose its epoch, or fitted
            something (:class:`hlnet.model.provenance.ImageUse`). Figures on such images flatter it.
        labels: for each image used, the column of the right class, beside ``neutral.answers``; not part of the JSON.
    """

    images: int
    left_out: int
    classes: int
    neutral: Accuracy
    temperature: float | None = None
    ece: float | None = None
    detection: Detection | None = None
    cued: CuedAccuracy | None = None
    served: list[Use] = []
    labels: list[int] = Field(default=[], exclude=True, repr=False)

    def confusion_matrix(self) -> Tensor:
        """Counts of images by class (row) and answer without cues (column), ``[K, K]`` in the tree's order."""
        return answer_counts(torch.tensor(self.neutral.answers), torch.tensor(self.labels), self.classes)


def evaluate(
    net: Network,
    data: TreeData,
    classes: str | Iterable[str | int] | None = None,
    cues: CueTable | None = None,
    policy: CuePolicy | None = None,
    score: Score | None = None,
    batch_size: int = 64,
    workers: int = 0,
    on_batch: Callable[[], None] | None = None,
) -> Evaluation:
    """Accuracy on labelled images.

    With ``classes``, only images of these count and only their logits compete: so a full or a plain network is the
    baseline of an expert of the same classes.

    With ``cues`` or a ``policy``, accuracy under cues is measured, too: under cues of a file, or of each image's own
    label, as in the paper's Sec. 4.4. The latter is an oracle, which says how much right cues could help; the accuracy
    under wrong cues comes with it.

    How well images of other classes are recognised as such (``detection``) is measured for a network that holds a
    fitted threshold (:func:`hlnet.calibrate`), for a single class, where accuracy says nothing, and where a ``score``
    is named. It takes data that kept these images: ``TreeData(…, outside=True)``.

    Args:
        net: the network.
        data: the images, with labels in the order of ``net.tree.classes``.
        classes: a selection, as :func:`hlnet.select_classes` takes it; default: all the network's.
        cues: which cues images have; default, where a policy is given: :meth:`hlnet.cues.table.CueTable.from_labels`.
            An empty table leaves the policy's prior alone.
        policy: how cues act; default, where there are cues: as :class:`hlnet.CuePolicy`.
        score: separates images of other classes: ``energy``, ``max-logit`` or ``probability``; default: the stored
            one, or :func:`hlnet.evaluation.metrics.rejection.default_score`.
        batch_size, workers: as :func:`hlnet.loader` takes them.
        on_batch: called after each batch.

    Raises:
        UsageError: as :func:`hlnet.cues.effect.cue_effect`, or if the selected classes have no images.

    Example:
        >>> import hlnet
        >>> from hlnet.model.transform import InputTransform
        >>> net = hlnet.create_model("test_resnet", tree=[str(digit) for digit in range(10)])
        >>> net.transform = InputTransform(input_size=(3, 32, 32))
        >>> data = hlnet.TreeData(hlnet.load_data("digits", "val"), net.tree, hlnet.eval_transform(net.transform))
        >>> report = evaluate(net, data, policy=hlnet.CuePolicy(strength=100))
        >>> report.cued.source, report.images
        ("each image's own label (an oracle)", 360)
    """
    kept = list(range(len(net.tree.classes))) if classes is None else list(select_classes(net.tree, classes))
    cued = CueRuns.for_network(net, data, kept, cues, policy) if cues or policy else None
    runs = [None, *cued.runs] if cued else [None]
    logits, labels = logits_of(net, loader(data, batch_size, workers), runs, policy, on_batch, kept)
    tree = net.tree.prune(kept)
    found = _evaluation(net, kept, tree, logits[0], labels, data.left_out, _detector(net, kept, score))
    found.served = net.provenance.uses_of(data.images.fingerprint())
    if cued is not None:
        found.cued = cued_accuracy(net, kept, tree, cued, logits, labels)
    return found


def evaluate_with_baseline(
    nets: Mapping[str, Network],
    images: LabelledImages,
    classes: str | Iterable[str | int] | None = None,
    cues: CueTable | None = None,
    policy: CuePolicy | None = None,
    score: Score | None = None,
    batch_size: int = 64,
    workers: int = 0,
    on_batch: Callable[[int, int], None] | None = None,
) -> dict[str, Evaluation]:
    """Evaluate several networks on the same images, restricted to the first one's classes: an expert and its baselines.

    Each is evaluated as by :func:`evaluate`, but for the class tree, which is the first one's for all. Classes are
    matched by name. Images are read once for all networks that want the same transform.

    Args:
        nets: by name; the first one's classes are evaluated.
        images: the labelled images.
        classes: a selection of the first network's classes.
        cues, policy: as :func:`evaluate` takes them, with what the first network's file holds. On a network on which a
            cue cannot act in this way, one with a reliability is a bias; without, it is evaluated without cues.
        score: as :func:`evaluate` takes it; where the first network's detection is measured, the others' is too.
        batch_size, workers: as :func:`hlnet.loader` takes them.
        on_batch: called after each batch, with how many are done and of how many.

    Returns:
        by name, in the order given.

    Raises:
        UsageError: if a network lacks one of the classes; as :func:`evaluate`.

    Example:
        >>> import hlnet
        >>> from hlnet.model.transform import InputTransform
        >>> tree = hlnet.ClassTree.from_nested({"low": ["0", "1"], "high": ["8", "9"]})
        >>> full = hlnet.create_model("test_resnet", tree=tree)
        >>> full.transform = InputTransform(input_size=(3, 32, 32))
        >>> nets = {"expert": hlnet.cut_expert(full, "low"), "full": full}
        >>> found = evaluate_with_baseline(nets, hlnet.load_data("digits", "val"))
        >>> found["expert"].neutral == found["full"].neutral, found["full"].classes
        (True, 2)
    """
    first, lead = next(iter(nets.items()))
    kept = tuple(range(len(lead.tree.classes))) if classes is None else select_classes(lead.tree, classes)
    tree = lead.tree.prune(kept)
    columns = {name: _columns(name, net, tree.classes) for name, net in nets.items()}
    detectors = {name: _detector(net, columns[name], score) for name, net in nets.items()}
    if detectors[first]:
        detectors = {name: found or (default_score(nets[name].provenance), None) for name, found in detectors.items()}
    else:  # images of other classes will not be run
        detectors = dict.fromkeys(nets)
    alike = {net.transform: [name for name in nets if nets[name].transform == net.transform] for net in nets.values()}
    data, batches = {}, {}
    for transform in alike:
        outside = detectors[first] is not None
        data[transform] = TreeData(images, lead.tree, eval_transform(transform), subset=True, outside=outside)
        batches[transform] = loader(data[transform], batch_size, workers)
    acting: dict[str, CueRuns | None] = dict.fromkeys(nets)
    if cues or policy:  # all data are of the same images
        own = CueRuns.for_network(lead, next(iter(data.values())), kept, cues, policy)
        acting = {name: own if net is lead else own.fitting(net) for name, net in nets.items()}
    positions = {name: _positions(lead, net) for name, net in nets.items()}
    fingerprint = images.fingerprint()
    done, total = 0, sum(map(len, batches.values()))
    found = {}
    for transform, group in alike.items():
        parts: dict[str, list[tuple[list[Tensor], Tensor]]] = {name: [] for name in group}
        start = 0
        for pixels, labels in batches[transform]:
            for name in group:
                batch, given = [(pixels, positions[name][labels])], acting[name]
                runs = [None, *given.runs] if given else [None]
                parts[name].append(logits_of(nets[name], batch, runs, policy, competing=columns[name], start=start))
            done, start = done + 1, start + len(labels)
            if on_batch:
                on_batch(done, total)
        for name in group:
            logits = [torch.cat(run) for run in zip(*(run for run, _ in parts[name]), strict=True)]
            labels = torch.cat([labels for _, labels in parts[name]])
            left_out = data[transform].left_out
            net, among = nets[name], columns[name]
            found[name] = _evaluation(net, among, tree, logits[0], labels, left_out, detectors[name])
            found[name].served = net.provenance.uses_of(fingerprint)
            if given := acting[name]:
                found[name].cued = cued_accuracy(net, among, tree, given, logits, labels)
    return {name: found[name] for name in nets}


class EvaluationComparison(BaseModel):
    """Two evaluations against each other, :func:`compare_evaluations`.

    Attributes:
        neutral: without cues.
        cued: with the cues given, of an oracle with every cue right; ``None`` if one had none.
        wrong: with every cue wrong, of an oracle.
    """

    neutral: Comparison
    cued: Comparison | None = None
    wrong: Comparison | None = None


def compare_evaluations(first: Evaluation, second: Evaluation, tree: ClassTree, seed: int = 0) -> EvaluationComparison:
    """Compare two networks that were evaluated on the same images by :func:`evaluate_with_baseline`.

    Args:
        first, second: of the same images.
        tree: of the classes evaluated, for heights: ``net.tree.prune(kept)``, or the tree itself.
        seed: of the resamples.

    Raises:
        UsageError: if they are not of the same images, or were read from JSON, which does not hold the answers.

    Example:
        >>> import hlnet
        >>> from hlnet.evaluation.evaluate import evaluate_with_baseline
        >>> from hlnet.model.transform import InputTransform
        >>> tree = hlnet.ClassTree.from_nested({"low": ["0", "1"], "high": ["8", "9"]})
        >>> nets = {name: hlnet.create_model("test_resnet", tree=tree) for name in "ab"}
        >>> for net in nets.values():
        ...     net.transform = InputTransform(input_size=(3, 32, 32))
        >>> found = evaluate_with_baseline(nets, hlnet.load_data("digits", "val"))
        >>> paired = compare_evaluations(found["a"], found["b"], tree).neutral
        >>> paired.top1.mean == (paired.only_first - paired.only_second) / paired.images
        True
    """
    labels = torch.tensor(first.labels)
    if not first.labels or first.labels != second.labels:
        raise UsageError("evaluations are compared image by image: take two of one call of evaluate_with_baseline()")

    def pair(one: Accuracy | None, other: Accuracy | None) -> Comparison | None:
        if one is None or other is None:
            return None
        ours, theirs = torch.tensor(one.answers), torch.tensor(other.answers)
        heights = None
        if one.hierarchical is not None:
            heights = lca_heights(tree, ours, labels), lca_heights(tree, theirs, labels)
        return compare(ours == labels, theirs == labels, heights, seed)

    neutral = pair(first.neutral, second.neutral)
    assert neutral is not None
    comparison = EvaluationComparison(neutral=neutral)
    if first.cued and second.cued:
        comparison.cued = pair(first.cued.accuracy, second.cued.accuracy)
        comparison.wrong = pair(first.cued.wrong, second.cued.wrong)
    return comparison


def compare_with_first(
    evaluations: Mapping[str, Evaluation], rivals: Collection[str], tree: ClassTree, seed: int = 0
) -> dict[str, EvaluationComparison]:
    """Compare the first of several evaluations with some of the others.

    With one class all answers are the same, so there is nothing to compare: the result is empty.

    Args:
        evaluations: of one call of :func:`evaluate_with_baseline`, by name.
        rivals: names of those that the first is compared with.
        tree, seed: as :func:`compare_evaluations` takes them.

    Raises:
        UsageError: as :func:`compare_evaluations`.

    Example:
        >>> compare_with_first({}, [], ClassTree.parallel(["cat", "dog"]))
        {}
    """
    first = next(iter(evaluations.values()), None)
    if first is None or first.classes < 2:
        return {}
    return {name: compare_evaluations(first, evaluations[name], tree, seed) for name in rivals}


# ---------------------------------------------------------------------- helpers


def _detector(net: Network, kept: Sequence[int], score: Score | None) -> tuple[Score, Rejection | None] | None:
    """Which score tells other classes apart, and its stored threshold, which is that of all the network's classes."""
    stored = net.provenance.rejection if len(kept) == len(net.tree.classes) else None
    if score is not None:
        return score, stored if stored and stored.score == score else None
    if stored:
        return stored.score, stored
    return (default_score(net.provenance), None) if len(kept) == 1 else None


def _columns(name: str, net: Network, classes: Sequence[str]) -> list[int]:
    """Positions of the classes in a network, by name."""
    if lacking := [word for word in classes if word not in net.tree.positions]:
        raise UsageError(
            f"'{name}' lacks the class{'es' if len(lacking) > 1 else ''} {some(lacking)}, so the two cannot be "
            "compared; select classes that both have"
        )
    return [net.tree.positions[word] for word in classes]


def _positions(lead: Network, net: Network) -> Tensor:
    """From a position in the first network's classes to that in another's; -1, and a class that it lacks, to -1."""
    return torch.tensor([*(net.tree.positions.get(name, -1) for name in lead.tree.classes), -1])


def _evaluation(
    net: Network,
    kept: Sequence[int],
    tree: ClassTree,
    logits: Tensor,
    labels: Tensor,
    left_out: int,
    detector: tuple[Score, Rejection | None] | None,
) -> Evaluation:
    """From logits ``[N, K]`` and labels to figures of the ``kept`` columns, the leaves of ``tree``."""
    targets = columns_of(labels, kept, len(net.tree.classes))
    used = targets >= 0
    if not used.any():
        raise UsageError("the data holds no image of the selected classes")
    logits = logits[:, list(kept)]
    temperature = net.provenance.temperature
    found = Evaluation(
        images=int(used.sum()),
        left_out=left_out + int((~used).sum()),
        classes=len(kept),
        neutral=accuracy(logits[used], targets[used], tree.classes, tree, temperature),
        temperature=temperature,
        labels=targets[used].tolist(),
    )
    one_vs_rest = net.provenance.one_vs_rest
    if not left_out if one_vs_rest else len(kept) > 1:
        shares = class_probabilities(logits, one_vs_rest, temperature)
        counted = used | one_vs_rest
        found.ece = round(calibration_error(shares[counted], targets[counted]), 4)
    if detector and (detector[1] or not used.all()):
        score, stored = detector
        scores = rejection_scores(logits, score)
        right = logits[used].argmax(1) == targets[used]
        limits = (stored.threshold, right, stored.max_false_positive) if stored else ()
        found.detection = detection(scores[used], scores[~used], score, *limits)
    return found
