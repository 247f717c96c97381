"""Merging experts: the union of their classes as one network, whose rows are theirs.

Notable here: experts of one parent know which of its rows they hold, so their union stands in the parent's order and
is, bit for bit, what cutting it directly would have given. Networks that share no parent but one trunk can be merged
too, as long as no node of theirs contradicts another's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from hlnet.errors import UsageError, with_article
from hlnet.expert.cut import RESTRICT_PLAIN
from hlnet.model.base import TrainableNetwork, require_branches
from hlnet.model.hierarchical import HierarchicalNet, level_of
from hlnet.model.plain import PlainNet
from hlnet.model.provenance import Provenance
from hlnet.store.checkpoint import Header, build_without_weights, fill, header_of, opened
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.nodes import Node

log = logging.getLogger("hlnet")


def merge_experts(sources: Iterable[HierarchicalNet | str | Path]) -> HierarchicalNet:
    """One network with the classes of all sources, each logit unchanged.

    Of experts of one parent, the result is bitwise the expert that cutting the union directly gives, header included.
    Other sources (of different parents, trained since, or cut from a network in memory, which has no name) need bitwise
    the same trunk, and the same weights in nodes of the same path. A warning in the log ``hlnet`` then says that their
    logits may not have been trained against each other. Colliding original indices of later sources are replaced by the
    next free ones.

    Args:
        sources: two or more networks or files of them, in any order; they may overlap.

    Returns:
        the network, in evaluation mode, on the CPU.

    Raises:
        UsageError: if there are fewer than two, one is plain, or they cannot be merged; the message says why.
        CheckpointError, RunError: as :func:`hlnet.load_checkpoint`.

    Example:
        >>> import hlnet, tempfile
        >>> pets, dogs, tabbies = (f"{tempfile.mkdtemp()}/{name}.safetensors" for name in ("pets", "dogs", "tabbies"))
        >>> net = hlnet.create_model("resnet18", tree={"cat": ["tabby", "siamese"], "dog": ["beagle"]})
        >>> hlnet.save_checkpoint(net, pets)
        >>> for classes, file in (("dog", dogs), ("tabby", tabbies)):
        ...     _ = hlnet.cut_checkpoint(pets, classes, file)
        >>> merge_experts([dogs, tabbies]).tree.classes  # in the parent's order
        ('tabby', 'beagle')
    """
    parts = [_Part(source, number) for number, source in enumerate(sources, start=1)]
    if len(parts) < 2:
        raise UsageError("merging takes two experts at least")
    first = parts[0]
    for part in parts[1:]:
        first.check_same_trunk(part)
    rows = [part.rows for part in parts if part.rows is not None and part.parent == first.parent]
    related = len(rows) == len(parts)
    tree, orders = _union([part.tree for part in parts], rows if related else None)
    weights = {}
    for name, tensor in first.weights.items():
        level = level_of(name)
        if level is None:
            weights[name] = tensor
            continue
        stacked = torch.cat([part.weights[name] for part in parts])
        for places in orders[level]:
            if any(not torch.equal(stacked[places[0]], stacked[place]) for place in places[1:]):
                raise UsageError(_contradiction(parts, level, places))
        weights[name] = stacked.index_select(0, torch.tensor([places[0] for places in orders[level]]))
    known = first.header.provenance
    images = tuple(dict.fromkeys(use for part in parts for use in part.header.provenance.images))
    provenance = Provenance(recipe=known.recipe, one_vs_rest=known.one_vs_rest, images=images)
    if related:
        held = [{row for part in rows for row in part[level]} for level in range(tree.num_levels)]
        provenance.parent, provenance.parent_counts = first.parent, first.parent_counts
        provenance.next_index = first.header.provenance.next_index or first.tree.next_index
        provenance.parent_rows = tuple(tuple(sorted(rows)) for rows in held)
        if all(part.header.provenance.attention == first.header.provenance.attention for part in parts):
            provenance.attention = first.header.provenance.attention
    else:
        log.warning(
            "the merged networks have no known parent in common: if their logits were not trained against each other, "
            "one's classes may win too often; check with hlnet eval"
        )
    net = build_without_weights(
        Header("hierarchical", first.header.config, tree, first.header.transform, provenance, "")
    )
    assert isinstance(net, HierarchicalNet)
    fill(net, weights, "the merged network")
    return net


class _Part:
    """One of the sources: what it is called, its header and its weights."""

    def __init__(self, source: HierarchicalNet | str | Path, number: int) -> None:
        if isinstance(source, str | Path):
            self.name = f"'{source}'"
            with opened(source) as file:
                self.header = header_of(file, source)
                self.weights: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        else:
            self.name = f"network {number}"
            if not isinstance(source, TrainableNetwork):
                raise UsageError(
                    f"{with_article(type(source).__name__)} cannot be merged; give networks, before hlnet.optimize"
                )
            kind = "plain" if isinstance(source, PlainNet) else "hierarchical"
            self.header = Header(kind, source.config, source.tree, source.transform, source.provenance, "")  # type: ignore[arg-type]
            self.weights = {name: tensor.detach().cpu() for name, tensor in source.state_dict().items()}
        require_branches(self.header, "to merge", RESTRICT_PLAIN, name=self.name)
        self.tree = self.header.tree
        before = self.header.provenance
        self.parent, self.parent_counts = before.parent, before.parent_counts
        # Rows tell nothing where the parent is not known: two networks in memory may come from anywhere.
        self.rows = before.parent_rows if self.parent else None
        if self.parent_counts is None and self.header.fingerprint:  # a full network holds all of its own rows
            self.parent, self.parent_counts = self.header.fingerprint, self.tree.counts
            self.rows = tuple(tuple(range(nodes)) for nodes in self.tree.counts)

    def check_same_trunk(self, other: _Part) -> None:
        """Whether the other one's branches fit behind this one's trunk.

        Raises:
            UsageError: if they do not.
        """
        ours, theirs = dict(self.header.config), dict(other.header.config)
        unlike = [name for name in ours if ours[name] != theirs[name]]
        reason = "".join(f"{name} is {theirs[name]!r}, here {ours[name]!r}" for name in unlike[:1])
        if not reason and self.header.transform != other.header.transform:
            reason = "it wants its images prepared in another way"
        if not reason and self.weights.keys() != other.weights.keys():
            reason = "its tensors have other names"
        if not reason:
            trunk = [name for name in self.weights if level_of(name) is None]
            ours_type, their_type = (_type_of(part.weights) for part in (self, other))
            if ours_type != their_type:
                reason = f"its weights are {their_type}, here {ours_type}; convert one, as in net.to(torch.float32)"
        if not reason:
            changed = sum(not torch.equal(self.weights[name], other.weights[name]) for name in trunk)
            reason = f"{changed} of the trunk's {len(trunk)} tensors differ" if changed else ""
        if not reason and self.header.provenance.one_vs_rest != other.header.provenance.one_vs_rest:
            reason = "one was trained one-vs-rest (bce), the other with a softmax"
        if reason:
            parents = "" if self.parent == other.parent and self.parent else ", and comes from another parent"
            raise UsageError(
                f"{other.name} does not fit {self.name}: {reason}{parents}; merge takes experts of one network, or "
                "networks on one and the same frozen trunk"
            )


# ---------------------------------------------------------------------- helpers


def _type_of(weights: dict[str, Tensor]) -> str:
    return str(next(tensor.dtype for tensor in weights.values() if tensor.is_floating_point())).removeprefix("torch.")


def _union(
    trees: Sequence[ClassTree], rows: Sequence[Sequence[Sequence[int]]] | None
) -> tuple[ClassTree, list[list[list[int]]]]:
    """The union of trees, and for each of its nodes, level by level, the places where it stands in the trees' levels
    put one after the other.

    Args:
        trees: with equally many levels.
        rows: where each tree's nodes stand in one large tree; by default, nodes with the same path are the same, and
            stand in the order in which they come.
    """
    indices = _indices(trees)
    levels: list[tuple[Node, ...]] = []
    orders: list[list[list[int]]] = []
    above: list[dict[int, int]] = [{0: 0} for _ in trees]  # for each tree, where its nodes of the level above went
    for depth in range(trees[0].num_levels):
        met: dict[object, list[tuple[int, int, int]]] = {}  # node -> its tree, row there, and place among all
        place = 0
        for number, tree in enumerate(trees):
            for row, node in enumerate(tree.levels[depth]):
                key = rows[number][depth][row] if rows else node.path
                met.setdefault(key, []).append((number, row, place))
                place += 1
        found = [
            (above[number][trees[number].levels[depth][row].parent], key, copies)
            for key, copies in met.items()
            for number, row, _ in copies[:1]
        ]
        # Stable: by path, a parent's children stay in the order in which they came.
        found.sort(key=lambda item: item[: 2 if rows else 1])
        nodes = []
        above = [{} for _ in trees]
        for position, (parent, _, copies) in enumerate(found):
            for number, row, _ in copies:
                above[number][row] = position
            number, row, _ = copies[0]
            node = replace(trees[number].levels[depth][row], parent=parent)
            nodes.append(replace(node, index=indices.get(node.path)) if node.index is not None else node)
        levels.append(tuple(nodes))
        orders.append([[place for _, _, place in copies] for _, _, copies in found])
    return ClassTree(tuple(levels)), orders


def _indices(trees: Sequence[ClassTree]) -> dict[str, int]:
    """Original index of each class by path: the first tree's that has it, unless an earlier class has that index."""
    free = count(max(tree.next_index for tree in trees))
    found: dict[str, int] = {}
    taken: set[int] = set()
    for leaf in (leaf for tree in trees for leaf in tree.leaves if leaf.index is not None):
        if leaf.path not in found:
            found[leaf.path] = leaf.index if leaf.index not in taken else next(free)  # type: ignore[assignment]
            taken.add(found[leaf.path])
    return found


def _contradiction(parts: Sequence[_Part], level: int, places: Sequence[int]) -> str:
    starts, named = 0, []
    for part in parts:
        row = part.tree.levels[level]
        named += [(part.name, row[place - starts].path) for place in places if 0 <= place - starts < len(row)]
        starts += len(row)
    (one, path), (other, _) = named[:2]
    return (
        f"node '{path}' has other weights in {other} than in {one}: they were trained apart; merge takes experts of "
        "one network, or networks on one frozen trunk whose nodes have different names"
    )
