"""Grafting: new classes on a trained network, by training their branches alone; no old logit changes.

Notable here: a grown network is handed out only once its old logits are proven unchanged; and the figures are its own,
on images that neither trained nor chose anything.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor
from torch.utils.data import DataLoader

from hlnet.data.images import LabelledImages
from hlnet.data.sampling import Seeded, seeded
from hlnet.data.tree_data import TreeData, eval_transform, loader, train_transform
from hlnet.errors import RunError, UsageError, did_you_mean, some, with_article
from hlnet.evaluation.logits import logits_of
from hlnet.expert.graft_training import (
    GraftEpoch,
    NewBranches,
    OnBatch,
    extract_features,
    images_per_step,
    train_branches,
)
from hlnet.expert.grow import TRUNK, find_parent, grow, inner_nodes
from hlnet.expert.verify import verify_expert
from hlnet.model.base import require_branches
from hlnet.model.hierarchical import HierarchicalNet, level_of
from hlnet.training.cached import cache_features
from hlnet.training.stopping import translate_memory_errors
from hlnet.training.train_config import TrainConfig
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.nodes import Node

log = logging.getLogger("hlnet")

#: Settings of the old network's training that a graft keeps to: what images go through, and what logits aim at.
KEPT = ("aa", "scale", "hflip", "reprob", "smoothing", "skip_unreadable")


class Place(BaseModel):
    """Where a new class went.

    Attributes:
        under: path of the inner node, or ``/``, the trunk.
        fit: the share of the old network's probability (softmax) that the classes under that node have on the new
            class's training images, on average; 1 for the trunk.
    """

    under: str
    fit: float


class GraftReport(BaseModel):
    """What a graft did. Accuracies are top-1 on validation images, shares in 0..1; ``None`` where there is no image.

    Attributes:
        places: where each new class went.
        old_train_images, new_train_images, old_images, new_images: how many of old and of new classes there were to
            train with, and to measure on.
        old_before: of old classes, with no others competing: the old network's.
        old_after: of old classes, with the new ones competing.
        new: of new classes, with the old ones competing.
        all: of all classes, where both have images.
        per_class: of each new class.
        max_logit_difference: of the grown network's old logits from the old network's, in float64.
    """

    places: dict[str, Place]
    old_train_images: int
    new_train_images: int
    old_images: int
    new_images: int
    old_before: float | None
    old_after: float | None
    new: float | None
    all: float | None
    per_class: dict[str, float]
    max_logit_difference: float


def graft(
    net: HierarchicalNet,
    classes: Iterable[str] | Mapping[str, str],
    train_images: LabelledImages,
    val_images: LabelledImages,
    under: str | Mapping[str, str] | None = None,
    config: TrainConfig | None = None,
    on_epoch: Callable[[GraftEpoch], None] | None = None,
    on_batch: OnBatch | None = None,
    described: dict[str, Any] | None = None,
    *,
    cache_dir: str | Path | None = None,
    cache_size: int | None = None,
) -> tuple[HierarchicalNet, GraftReport]:
    """Add classes to a trained network.

    Only the new classes' branches are trained, on the device where the network is: its weights stay as they are, bit
    for bit, and so do its logits. Images of its classes teach the new branches what they are not.

    Args:
        net: a full network or an expert; it is put in evaluation mode.
        classes: the new classes as the images call them; as a mapping, to the name that each gets, and its old name
            then is its id.
        train_images, val_images: labelled images of the new classes and, as negatives and to measure what becomes of
            them, of the network's own (by name or id). Other classes are left out.
        under: the inner node that the new classes hang under, or one for each (by its new name): see
            :func:`hlnet.expert.grow.find_parent`. Default: :func:`best_parent`.
        config: default: ``graft_config(net)``. Of its settings, mixup, cutmix, ema_decay, mixed_precision, layer_decay
            and unfreeze_epochs do not count.
        on_epoch: called after each epoch.
        on_batch: called after each batch.
        described: what else the weights' provenance shall tell of the graft, such as the data's name.
        cache_dir: keep the trunk's features in a file in this folder, for later runs too, as :func:`hlnet.train` does;
            default: in memory.
        cache_size: most bytes that the features take, and all files in ``cache_dir`` together.

    Returns:
        the grown network, in evaluation mode, of the last epoch; and what was measured of it.

    Raises:
        UsageError: if ``net`` has no branches, a class is there already or has no images, a node does not exist, or the
            features would exceed ``cache_size``.
        DataError: if an image cannot be read, or features do not fit float16.
        RunError: if the loss stops being a number, memory or disk is full, or an old logit has changed.
        Stopped: if SIGINT or SIGTERM comes while features are cached.

    Example:
        >>> import hlnet
        >>> net = hlnet.create_model("test_resnet", tree=list("01234567"), widths=[8], strides=[1])
        >>> net.transform = net.transform.adjusted(img_size=32)
        >>> digits = [hlnet.load_data("digits", "val")] * 2
        >>> grown, report = graft(net, {"8": "eight"}, *digits, config=graft_config(net, epochs=1, cache_views=1))
        >>> grown.tree.classes[-1], grown.tree.leaves[-1].id, report.places["eight"].under
        ('eight', '8', '/')
    """
    require_branches(net, "to add to")
    if not isinstance(net, HierarchicalNet):
        raise UsageError(f"{with_article(type(net).__name__)} cannot be grown; give a network, before hlnet.optimize")
    config = graft_config(net) if config is None else config
    if config.loss not in ("cross-entropy", "bce") or not config.cache_views:
        raise UsageError("a graft trains with the loss cross-entropy or bce, and on one view of each image at least")
    tell = on_batch or (lambda phase, step, steps: None)
    new = _new_classes(net.tree, classes, train_images)
    given = _given_parents(net.tree, new, under)
    columns, old = _columns(net.tree, new), len(net.tree.classes)
    augment = train_transform(net.transform, config.aa, config.scale, config.hflip, config.reprob)
    plain = eval_transform(net.transform)
    train_data = TreeData(train_images, columns, augment, subset=True)
    val_data = TreeData(val_images, columns, plain, subset=True)
    _check_images(train_data, val_data, columns, old)
    alone = TreeData(train_images, columns.prune(range(old, len(columns.classes))), plain, subset=True)
    net.eval()
    with translate_memory_errors():
        places = _places(net.tree, _logits(net, alone, config, partial(tell, "new images")), list(new), given)
        with seeded(config.seed):
            parents = {name: place.under for name, place in places.items()}
            branches = NewBranches(net, parents, new, config).to(net.device)
        watch = partial(tell, "features")
        features = cache_features(net, train_data, config.cache_views, config, cache_dir, cache_size, watch)
        train_branches(net, branches, extract_features(net, features, config), config, columns, tell, on_epoch)
        del features
        grown = grow(net, branches.by_parent)
        difference = _verified(net, grown)
        figures = _measured(grown, columns, old, loader(val_data, images_per_step(config), config.workers), tell)
    negatives = sum(label < old for label in train_data.labels)
    report = GraftReport(
        places=places,
        old_train_images=negatives,
        new_train_images=len(train_data) - negatives,
        max_logit_difference=difference,
        **figures,
    )
    past = net.provenance.recipe
    record = {
        **(described or {}),
        "classes": parents,
        "train_images": {"old": report.old_train_images, "new": report.new_train_images},
        "train": config.model_dump(mode="json"),
    }
    grown.provenance.recipe = {**past, "grafts": [*past.get("grafts", []), record]}
    told = {"val_top1": report.all, "old_val_top1": report.old_after, "new_val_top1": report.new}
    grown.provenance.metrics = {name: share for name, share in told.items() if share is not None}
    grown.provenance.record("weights", train_images.name, train_images.fingerprint())
    return grown, report


def graft_config(net: HierarchicalNet, **given: Any) -> TrainConfig:
    """Settings for a graft: the network's own augmentation and smoothing, and ``bce`` where it was trained with that.

    Args:
        net: to be grafted on; its recipe tells.
        **given: settings that replace these, or the defaults: 4 views of each image (``cache_views``), and those of
            :class:`hlnet.TrainConfig`.

    Raises:
        UsageError: for settings that do not go together, or do not exist.

    Example:
        >>> import hlnet
        >>> from hlnet.model.provenance import Provenance
        >>> net = hlnet.create_model("test_resnet", tree=["cat", "dog"], widths=[8], strides=[1])
        >>> net.provenance = Provenance(recipe={"train": {"loss": "bce", "hflip": 0.0, "lr": 0.1}})
        >>> config = graft_config(net, epochs=5)
        >>> config.loss, config.hflip, config.lr, config.epochs
        ('bce', 0.0, 0.001, 5)
    """
    recipe = net.provenance.recipe.get("train")
    recipe = recipe if isinstance(recipe, dict) else {}
    own = {name: recipe[name] for name in KEPT if name in recipe}
    own["loss"] = "bce" if net.provenance.one_vs_rest else "cross-entropy"
    try:
        return TrainConfig.model_validate({**own, "frozen_trunk": True, "cache_views": 4, **given})
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"graft: {'.'.join(map(str, first['loc']))} {first['input']!r}: {first['msg']}") from None


def best_parent(tree: ClassTree, shares: Tensor) -> tuple[str, float]:
    """The inner node where a new class fits best, by what a network takes its images for.

    From the trunk on, down to the child whose classes have the largest share; it stops above the last level, and where
    that child is a class itself, which then becomes the new one's sibling.

    Args:
        tree: the network's.
        shares: mean probabilities of the tree's classes, ``[classes]``.

    Returns:
        the node's path, and the share of the classes under it.

    Example:
        >>> tree = ClassTree.from_nested({"animal": {"cat": ["tabby", "lynx"], "dog": ["boxer"]}, "saw": {}})
        >>> best_parent(tree, torch.tensor([0.25, 0.25, 0.375, 0.125]))
        ('animal/cat', 0.5)
    """
    inner = inner_nodes(tree)
    under = torch.from_numpy(tree.ancestors().T.astype("float64") @ shares.double().numpy())
    path, share = TRUNK, float(shares.sum())
    while True:
        level, place = inner[path]
        children = [i for i, node in enumerate(tree.levels[level]) if node.parent == place]
        best = max(children, key=lambda i: under[tree.offsets[level] + i])
        if tree.levels[level][best].path not in inner:
            return path, share
        path, share = tree.levels[level][best].path, float(under[tree.offsets[level] + best])


# ---------------------------------------------------------------------- what is asked for


def _new_classes(
    tree: ClassTree, classes: Iterable[str] | Mapping[str, str], images: LabelledImages
) -> dict[str, str | None]:
    """The new classes' names, with an id where that is what the data call them."""
    if isinstance(classes, str):
        classes = [classes]
    asked = list(classes.items()) if isinstance(classes, Mapping) else [(word, word) for word in classes]
    if not asked:
        raise UsageError("no new class is named; give at least one of the data's")
    there = {word for leaf in tree.leaves for word in (leaf.name, leaf.id)}
    new: dict[str, str | None] = {}
    for word, name in asked:
        if word in there or name in there:
            raise UsageError(f"class '{word if word in there else name}' is in the tree already; a graft is for others")
        if word not in images.classes:
            lacking = [other for other in images.classes if other not in there]
            near = did_you_mean(word, lacking) or (
                f" New there: {some(lacking)}" if lacking else " All of its classes are in the tree already"
            )
            raise UsageError(f"{images.name} has no class '{word}'.{near}")
        if name in new or (word != name and word in new.values()):
            raise UsageError(f"the new class '{name}' is named twice")
        new[name] = word if word != name else None
    ClassTree.parallel(list(new))  # are they names?
    return new


def _given_parents(
    tree: ClassTree, new: Mapping[str, str | None], under: str | Mapping[str, str] | None
) -> dict[str, str]:
    """Path of the parent of each new class for which one is given."""
    asked = {} if under is None else dict.fromkeys(new, under) if isinstance(under, str) else dict(under)
    if unknown := asked.keys() - new.keys():
        name = min(unknown)
        raise UsageError(f"a node is given for '{name}', which is no new class.{did_you_mean(name, new)}")
    parents = {name: find_parent(tree, word) for name, word in asked.items()}
    for name, path in parents.items():
        _check_free(tree, name, path)
    return parents


def _check_free(tree: ClassTree, name: str, under: str) -> None:
    path = name if under == TRUNK else f"{under}/{name}"
    if path in inner_nodes(tree):
        raise UsageError(f"'{path}' is an inner node already: give class '{name}' another place, or another name")


def _columns(tree: ClassTree, new: Mapping[str, str | None]) -> ClassTree:
    """Old classes, then new ones, as a tree of one level: labels are columns of old and new logits side by side."""
    leaves = [(leaf.name, leaf.id) for leaf in tree.leaves] + list(new.items())
    return ClassTree((tuple(Node(name, name, 0, index=i, id=own) for i, (name, own) in enumerate(leaves)),))


def _check_images(train_data: TreeData, val_data: TreeData, columns: ClassTree, old: int) -> None:
    """Refuse what cannot be trained, and tell what cannot be measured."""
    here, there = set(train_data.labels), set(val_data.labels)
    names = columns.classes
    if lacking := [names[i] for i in range(old, len(names)) if i not in here]:
        raise UsageError(f"{train_data.images.name} has no training images of the new class '{lacking[0]}'")
    if len(train_data) < 2:
        raise UsageError(f"{train_data.images.name} has a single training image; a graft needs two at least")
    if min(here) >= old:
        log.warning(
            "the data have no training images of the network's own classes, so nothing tells the new ones "
            "what they are not: they will win too often"
        )
    elif lacking := [names[i] for i in range(old) if i not in here]:
        log.warning("classes of the network without training images, which new ones may win from: %s", some(lacking))
    if not there & set(range(old)):
        log.warning("no validation images of the network's own classes: their accuracy cannot be reported")
    if lacking := [names[i] for i in range(old, len(names)) if i not in there]:
        log.warning("new classes without validation images, whose accuracy cannot be reported: %s", some(lacking))
    if train_data.unknown:
        log.warning("images of classes that are neither in the tree nor new are left out: %s", some(train_data.unknown))


def _logits(
    net: HierarchicalNet, data: TreeData, config: TrainConfig, tell: Callable[[int, int], None]
) -> tuple[Tensor, Tensor]:
    """What the network says of these images, and their labels."""
    seeded_data = Seeded(data, config.seed, config.skip_unreadable)
    batches = loader(seeded_data, images_per_step(config), config.workers)
    steps = count(1)
    (logits,), labels = logits_of(net, batches, on_batch=lambda: tell(next(steps), len(batches)))
    return logits, labels


def _places(tree: ClassTree, said: tuple[Tensor, Tensor], new: list[str], given: Mapping[str, str]) -> dict[str, Place]:
    """Where each new class goes, by logits and labels; these are positions among the new classes."""
    places = {}
    logits, labels = said
    for label, name in enumerate(new):
        shares = logits[labels == label].double().softmax(1).mean(0)
        path, share = best_parent(tree, shares)
        if name in given:
            path = given[name]
            share = float(shares.sum() if path == TRUNK else shares[list(tree.leaves_under(path))].sum())
        _check_free(tree, name, path)
        places[name] = Place(under=path, fit=share)
    return places


# ---------------------------------------------------------------------- what came of it


def _verified(net: HierarchicalNet, grown: HierarchicalNet) -> float:
    """The largest difference of the old logits, in float64, once the old rows are found to be the same bit for bit.

    Raises:
        RunError: if they are not the same.
    """
    old = net.state_dict()
    rows = grown.tree.rows(grown.tree.positions[name] for name in net.tree.classes)
    try:
        for name, tensor in grown.state_dict().items():
            level = level_of(name)
            if not torch.equal(tensor if level is None else tensor[list(rows[level])], old[name]):
                raise RunError(f"'{name}' has changed")
        return verify_expert(net, grown)  # the old network is the expert that cutting the grown one would give
    except RunError as error:
        raise RunError(
            f"the grown network's old logits are not the old network's, so it is not kept: {error}"
        ) from error


def _measured(
    grown: HierarchicalNet,
    columns: ClassTree,
    old: int,
    batches: DataLoader[tuple[Tensor, Tensor]],
    tell: OnBatch,
) -> dict[str, Any]:
    """Accuracies on validation images, for :class:`GraftReport`; the first ``old`` columns are the old classes."""
    steps = count(1)
    (logits,), labels = logits_of(grown, batches, on_batch=lambda: tell("validation", next(steps), len(batches)))
    logits = logits[:, [grown.tree.positions[name] for name in columns.classes]]
    right = (logits.argmax(1) == labels).double()
    before = (logits[:, :old].argmax(1) == labels).double()  # its old logits are the old network's
    is_old = labels < old

    def mean(hits: Tensor) -> float | None:
        return float(hits.mean()) if len(hits) else None

    per_class = {name: mean(right[labels == i]) for i, name in enumerate(columns.classes) if i >= old}
    return {
        "old_images": int(is_old.sum()),
        "new_images": int((~is_old).sum()),
        "old_before": mean(before[is_old]),
        "old_after": mean(right[is_old]),
        "new": mean(right[~is_old]),
        "all": mean(right) if is_old.any() and not is_old.all() else None,
        "per_class": {name: share for name, share in per_class.items() if share is not None},
    }
