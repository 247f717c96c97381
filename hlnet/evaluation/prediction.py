"""Labels for image files, answers at a level of the tree that the network is sure of, or "none of these"."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from pydantic import BaseModel
from torch import Tensor
from torch.utils.data import Dataset

from hlnet.cues.apply import BatchLogits
from hlnet.cues.cue import Cue
from hlnet.cues.policy import CuePolicy
from hlnet.cues.table import CueMatching, CueTable
from hlnet.data.image_files import image_files
from hlnet.data.images import open_image
from hlnet.data.tree_data import eval_transform, loader
from hlnet.errors import DataError, RunError, UsageError, one_line
from hlnet.evaluation.descent_fit import descending
from hlnet.evaluation.groups import Batch, grouped
from hlnet.evaluation.metrics.paths import TreePaths
from hlnet.evaluation.metrics.probability import class_probabilities
from hlnet.evaluation.metrics.rejection import default_score, rejection_scores
from hlnet.model.base import Network
from hlnet.model.provenance import Score
from hlnet.tree.selection import select_classes


class Label(BaseModel):
    """One candidate class: its name, its path in the tree, its original index and its probability.

    The only class of a network trained with softmax has no probability (``None``): its share is 1 whatever it is shown.

    Attributes:
        path_probabilities: of each node on the path, level 1 first: the sum over the classes under it. Of classes that
            were trained one-vs-rest (``bce``), given that exactly one of them is there, so the last may differ from
            ``probability``, which speaks of this class alone. ``None`` for a network of one class.
    """

    name: str
    path: str
    index: int
    probability: float | None
    path_probabilities: list[float] | None = None


class PathAnswer(BaseModel):
    """An answer that may end at an inner node.

    Attributes:
        path: of the node that is the answer; empty for the trunk, "not sure".
        level: on which it lies; 0 for the trunk.
        probability: the sum over the classes under it; 1 for the trunk.
        classes: how many these are.
        way: the path of the class to which the way down leads, of which the answer's is the beginning.
        way_probabilities: of each node on it.
    """

    path: str
    level: int
    probability: float
    classes: int
    way: str
    way_probabilities: list[float]


class Prediction(BaseModel):
    """The best labels of one image, most probable first; or why it could not be read.

    Attributes:
        image: its path.
        labels: the candidates, also where the image was rejected.
        answer: where the answer ends, if that was asked for and the image was not rejected.
        score: how familiar the image is, of a network that holds a fitted threshold or has one class only.
        score_name: which score that is, see :func:`hlnet.evaluation.metrics.rejection.rejection_scores`.
        rejected: whether the score lies below the threshold, "none of these"; ``None`` without a threshold.
        cues: what cues named, where the image had some.
        always: probabilities of the classes that were asked for in any case, by name.
        images: of a group of images, how many it has; ``image`` is then the group's name.
        error: why it could not be read.
    """

    image: str
    labels: list[Label] = []
    answer: PathAnswer | None = None
    score: float | None = None
    score_name: Score | None = None
    rejected: bool | None = None
    cues: list[str] | None = None
    always: dict[str, float] | None = None
    images: int | None = None
    error: str | None = None


def predict(
    net: Network,
    images: str | Path | Iterable[str | Path],
    top: int = 5,
    batch_size: int = 16,
    min_confidence: float | None = None,
    coverage: float | None = None,
    workers: int = 0,
    cues: CueTable | CueMatching | None = None,
    policy: CuePolicy | None = None,
    always: str | Iterable[str | int] | None = None,
    group: Callable[[str], str] | None = None,
    agreement: float | None = None,
) -> Iterator[Prediction]:
    """The most probable classes of each image, in the order given; or of each group of images.

    Probabilities are the softmax over the network's own classes: an expert shares them out among the few that it has,
    whatever the image shows. Where classes were trained one-vs-rest (``bce``), each has its own, and they need not
    add up to 1. A fitted temperature counts (:func:`hlnet.calibrate`), and so does the threshold fitted with it: an
    image that scores lower is rejected.

    With ``min_confidence`` or ``coverage``, an image is also answered with a node of the tree. The way down begins at
    the trunk and takes the likeliest child at each node, where the probability of a node is the sum over the classes
    under it; the answer is the deepest node on that way which is likely enough. Of classes trained one-vs-rest,
    these are probabilities given that exactly one of them is there, the softmax of the same logits.

    Args:
        net: a full network, an expert or a plain network.
        images: paths; or one path, of an image, of a folder of them or a pattern. One that cannot be read gives a
            :class:`Prediction` with ``error`` and does not end the run.
        top: how many labels; never more than there are classes.
        batch_size: images that run together; memory does not grow with the number of images.
        min_confidence: the probability that the answered node has at least.
        coverage: how often the answered node is to hold the image's class, on average over images like those that the
            thresholds were fitted on (:func:`hlnet.evaluation.calibration.calibrate_paths`); rejected ones count, too.
        workers: processes that load images while the network runs. They read paths ahead, a few batches of them.
        cues: which cues images have; a :class:`hlnet.cues.table.CueMatching` of the table can tell afterwards which of
            its names no image has. Whether an image is rejected is settled without cues.
        policy: how cues act, and the prior; default: as :class:`hlnet.CuePolicy`.
        always: a selection of classes, as :func:`hlnet.select_classes` takes it, whose probabilities every prediction
            has.
        group: names the group of an image by its path, :func:`hlnet.data.bursts.grouping`. A group gets one prediction,
            after the last image, from the mean of the probabilities of its images; of those that the threshold accepts,
            if it accepts any.
        agreement: run a descent instead of the full network, whose answer it gives that often on images like those
            that it was fitted on (:func:`hlnet.evaluation.descent_fit.calibrate_descent`). Classes that did not run
            have the logits of their rows.

    Raises:
        UsageError: if ``top`` or ``batch_size`` is below 1, ``min_confidence`` is not in 0..1, both it and ``coverage``
            are given or either for a network of one class, or the network was not fitted for such a coverage or
            agreement, or there are cues, groups or an agreement beside a coverage, which holds for none of these; as
            :func:`hlnet.cues.effect.cue_effect`, before the first image.
        RunError: if a worker process is lost.

    Example:
        >>> import tempfile, hlnet
        >>> photo = Path(tempfile.mkdtemp()) / "white.png"
        >>> Image.new("RGB", (64, 64), "white").save(photo)
        >>> tree = hlnet.ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle"]})
        >>> net = hlnet.create_model("resnet18", tree=tree)
        >>> found = next(predict(net, [photo], top=1, min_confidence=0.99))
        >>> len(found.labels[0].path_probabilities), found.answer.level, found.answer.classes
        (2, 0, 3)
    """
    if top < 1 or batch_size < 1:
        raise UsageError(f"top ({top}) and batch_size ({batch_size}) must be at least 1")
    if (cues or policy) and coverage is not None:
        raise UsageError("a coverage was fitted without cues, and does not hold under them; give a least confidence")
    if group and coverage is not None:
        raise UsageError("a coverage was fitted to single images, not to groups; give a least confidence")
    if agreement is not None:
        if cues or policy or coverage is not None:
            raise UsageError("cues and coverages were fitted to the full network; leave them out, or the agreement")
        net = descending(net, agreement)
    if isinstance(images, str | Path):
        images = image_files([images])
    matching = cues if isinstance(cues, CueMatching) else CueMatching(cues or CueTable())
    policy = policy or CuePolicy()
    threshold = _threshold(net, min_confidence, coverage)
    matching.table.check(net, policy)
    shown = () if always is None else select_classes(net.tree, always)
    batches = _logits(net, images, batch_size, workers, matching, policy)
    if group is not None:
        batches = grouped(net, batches, group)
    return _predict(net, batches, top, threshold, shown)


def _threshold(net: Network, min_confidence: float | None, coverage: float | None) -> float | None:
    """Least probability of a node that may be the answer."""
    if min_confidence is None and coverage is None:
        return None
    if min_confidence is not None and coverage is not None:
        raise UsageError("a least confidence and a coverage both say where an answer ends; give one")
    if len(net.tree.classes) == 1:
        raise UsageError(
            f"the network has one class ({net.tree.classes[0]}), so no answer can end before it; to reject images, "
            "fit a threshold with calibrate() (hlnet make-expert --calibrate)"
        )
    if min_confidence is not None:
        if not 0 <= min_confidence <= 1:
            raise UsageError(f"a least confidence of {min_confidence:g}: expected a probability between 0 and 1")
        return min_confidence
    from hlnet.evaluation.metrics.conformal import threshold_for

    assert coverage is not None
    if net.provenance.conformal is None:
        raise UsageError(
            "the network has no thresholds for a coverage: run hlnet calibrate MODEL --data DATA, or "
            "calibrate_paths(), first, with images that it was not trained on"
        )
    return threshold_for(net.provenance.conformal, coverage)


def _logits(
    net: Network,
    images: Iterable[str | Path],
    batch_size: int,
    workers: int,
    cues: CueMatching,
    policy: CuePolicy,
) -> Iterator[Batch]:
    net.eval()
    files = _Files(eval_transform(net.transform), net.transform.input_size)
    nothing = torch.empty(0, len(net.tree.classes))
    try:
        # Paths stand in for positions, so that they need not be known, nor counted, beforehand.
        for names, pixels, errors in cast(Any, loader)(files, batch_size, workers, sampler=images):
            whole = [i for i, error in enumerate(errors) if not error]
            if not whole:
                yield Batch(names, errors, nothing, None, [])
                continue
            pixels = pixels if len(whole) == len(errors) else pixels[whole]
            batch = BatchLogits(net, pixels.to(net.device))
            own = [cues.cues_of(names[i]) for i in whole]
            with torch.inference_mode():
                logits = batch.under(own, policy)
                familiar = batch.neutral if net.provenance.rejection or len(net.tree.classes) == 1 else None
            yield Batch(names, errors, logits.float().cpu(), familiar, own)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RunError(
            f"a process that loads images was lost ({one_line(error)}); memory may be short: try fewer workers"
        ) from error


def _predict(
    net: Network, batches: Iterable[Batch], top: int, threshold: float | None, always: Sequence[int]
) -> Iterator[Prediction]:
    paths = TreePaths(net.tree)
    for batch in batches:
        answers: Iterator[Prediction] = iter(())
        if len(batch.logits):
            answers = _answers(net, batch.logits, batch.neutral, top, threshold, paths, batch.cues, always)
        counts = iter(batch.images or ())
        for name, error in zip(batch.names, batch.errors, strict=True):
            told = printable(name)
            if error:
                yield Prediction(image=told, error=error)
            else:
                yield next(answers).model_copy(update={"image": told, "images": next(counts, None)})


class _Files(Dataset[tuple[str, Tensor, str]]):
    """Image files by path: the path as text, the pixels, and why there are none."""

    def __init__(self, transform: Callable[[Image.Image], Tensor], size: tuple[int, ...]) -> None:
        self.transform, self.size = transform, size

    def __getitem__(self, path: str | Path) -> tuple[str, Tensor, str]:
        try:
            return str(path), self.transform(open_image(path)), ""
        except DataError as error:
            return str(path), torch.zeros(self.size), printable(str(error))
        except Exception as error:  # decoders have their own ways to fail, and one image must not end the run
            reason = one_line(error) or type(error).__name__
            told = f"cannot read image '{printable(path)}': {reason}; remove or replace it"
            return str(path), torch.zeros(self.size), told


def printable(path: str | Path) -> str:
    r"""A path as text: bytes of a file's name that are none stand there by their number.

    >>> printable("a\udce9.png")
    'a\\xe9.png'
    """
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _answers(
    net: Network,
    logits: Tensor,
    neutral: Tensor | None,
    top: int,
    threshold: float | None,
    paths: TreePaths,
    cues: Sequence[Sequence[Cue]],
    always: Sequence[int] = (),
) -> Iterator[Prediction]:
    """What the network says of images with these logits, ``[B, K]``, under cues; of which images is not told.

    Those without cues say how familiar an image is, where that is asked.
    """
    known, leaves = net.provenance, net.tree.leaves
    shares = class_probabilities(logits.double(), known.one_vs_rest, known.temperature)
    exclusive = class_probabilities(logits.double(), temperature=known.temperature)
    alone = len(leaves) == 1
    score_name: Score | None = None
    scores: list[float] | None = None
    if neutral is not None:
        score_name = known.rejection.score if known.rejection else default_score(known)
        scores = rejection_scores(neutral.float().cpu(), score_name).tolist()
    places = logits.topk(min(top, len(leaves))).indices  # of logits: sigmoids of large ones are all 1
    along = paths.along(paths.node_probabilities(exclusive), places).tolist()
    ends = _ends(net, exclusive, threshold, paths) if threshold is not None else None
    for i, best in enumerate(places.tolist()):
        score = scores[i] if scores else None
        rejected = None if score is None or not known.rejection else not score >= known.rejection.threshold
        labels = [
            Label(
                name=leaves[place].name,
                path=leaves[place].path,
                index=leaves[place].index or 0,
                probability=None if alone and not known.one_vs_rest else float(shares[i, place]),
                path_probabilities=None if alone else along[i][j][: int(paths.depths[place])],
            )
            for j, place in enumerate(best)
            if logits[i, place] > -torch.inf  # what was not run is no candidate
        ]
        answer = ends[i] if ends and not rejected else None
        yield Prediction(
            image="",
            labels=labels,
            answer=answer,
            score=score,
            score_name=score_name,
            rejected=rejected,
            cues=[cue.node for cue in cues[i]] or None,
            always={leaves[place].name: float(shares[i, place]) for place in always} or None,
        )


def _ends(net: Network, shares: Tensor, threshold: float, paths: TreePaths) -> list[PathAnswer]:
    """The nodes that the answers end at."""
    tree, down = net.tree, paths.descend(shares)
    found = []
    rows = zip(down.leaves.tolist(), down.probabilities.tolist(), paths.answered(down, threshold).tolist(), strict=True)
    for leaf, way, level in rows:
        path = tree.levels[level - 1][int(paths.places[leaf, level - 1])].path if level else ""
        found.append(
            PathAnswer(
                path=path,
                level=level,
                probability=way[level - 1] if level else 1.0,
                classes=len(tree.leaves_under(path)) if level else len(tree.leaves),
                way=tree.leaves[leaf].path,
                way_probabilities=way[: int(paths.depths[leaf])],
            )
        )
    return found
