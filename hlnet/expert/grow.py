"""Growing a network: branches for new classes beside the old ones, whose rows stay as they are.

Notable here: as cutting is a choice of rows, growing is one out of the old rows followed by the new ones. New classes
under one parent are siblings; each has a chain of its own down to the last level. So they are a small ``BranchTree``
themselves, whose input is the parent's output, and need nothing of the old network but that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hlnet.errors import UsageError, did_you_mean, some
from hlnet.model.branches import BranchLevel
from hlnet.model.hierarchical import BranchTree, HierarchicalNet, level_of
from hlnet.model.provenance import Provenance
from hlnet.store.checkpoint import Header, build_without_weights, fill
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.nodes import Node

#: How the trunk is written where a node's path is expected.
TRUNK = "/"


def inner_nodes(tree: ClassTree) -> dict[str, tuple[int, int]]:
    """The nodes that classes can hang under: level and position by path, from the trunk (``"/"``, level 0) on.

    Example:
        >>> inner_nodes(ClassTree.from_nested({"animal": {"cat": ["tabby"]}, "saw": {}}))
        {'/': (0, 0), 'animal': (1, 0), 'animal/cat': (2, 0)}
    """
    places = tree.node_names.places
    classes = {leaf.path for leaf in tree.leaves}
    return {TRUNK: (0, 0)} | {path: (level + 1, at) for path, (level, at) in places.items() if path not in classes}


def find_parent(tree: ClassTree, word: str) -> str:
    """The path of the inner node that a user names: by path, by id, or by name where only one has it; ``/``: the trunk.

    Raises:
        UsageError: if there is none, or it is a class.

    Example:
        >>> find_parent(ClassTree.from_nested({"animal": {"cat": ["tabby"]}, "saw": {}}), "cat")
        'animal/cat'
    """
    inner = inner_nodes(tree)
    path = word.strip("/") or TRUNK
    if path in inner:
        return path
    found = [node for node in tree.node_names.named.get(path, ()) if node in inner]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"'{word}' names several nodes ({some(found, 4)}); write the path")
    known = ", ".join(f"'{name}'" for name in list(inner)[:4]) + (" …" if len(inner) > 4 else "")
    if path in tree.node_names.words:
        raise UsageError(f"'{word}' is a class; new ones go under an inner node or the trunk: {known}")
    near = did_you_mean(path, [*inner, *(node.rsplit("/", 1)[-1] for node in inner)])
    raise UsageError(f"the tree has no inner node '{word}'.{near} It has {known}")


def new_branches(net: HierarchicalNet, under: str, classes: Mapping[str, str | None]) -> BranchTree:
    """Untrained branches for new classes under one inner node of a network.

    Args:
        net: gives shape and widths.
        under: path of the inner node, or ``/``.
        classes: names, with an id or ``None``.

    Returns:
        a tree of the levels below that node; :func:`node_output` is its input. What old siblings share is theirs too,
        and does not train.

    Raises:
        TreeError: if a name cannot stand in a tree.
    """
    level, place = inner_nodes(net.tree)[under]
    tree = ClassTree.parallel(list(classes), net.tree.num_levels - level)
    tree = tree.with_ids({name: identifier for name, identifier in classes.items() if identifier is not None})
    head, config = net.head, net.config
    seen = net.trunk.channels if head.stage is None else head.stage.out_channels
    branches = BranchTree(
        *(tree, head.levels[level - 1].out_channels if level else seen, config.block),
        *(config.widths[level:], config.strides[level:]),
        sharing=config.sharing,
        rank_leaves=config.rank_leaves,
        row_channels=seen if config.class_rows else None,
    )
    first: Any = branches.levels[0]
    first.keep_family(head.levels[level], place)  # new siblings, in a family that is there
    return branches


def node_output(head: BranchTree, seen: Tensor, under: str) -> Tensor:
    """What an inner node hands to its children, ``[B, C, h, w]``; only the nodes on the way to it run.

    Args:
        head: the branches.
        seen: what the tree sees of the trunk's features, :meth:`hlnet.model.hierarchical.BranchTree.seen`.
        under: path of the node; of ``/``, the output is what the tree sees.
    """
    level, place = inner_nodes(head.tree)[under]
    chain = []
    while level:
        chain.append((level - 1, place))
        level, place = level - 1, head.tree.levels[level - 1][place].parent
    x = seen
    for depth, row in reversed(chain):
        branch: BranchLevel = head.levels[depth]  # type: ignore[assignment]
        x = branch(x, branch.family(slice(row, row + 1)), None)[:, 0]
    return x


def grown_tree(
    tree: ClassTree, under: Mapping[str, ClassTree], first_index: int | None = None
) -> tuple[ClassTree, list[list[int]]]:
    """The tree with new classes, after the children that their parents have.

    Args:
        tree: the old tree.
        under: for paths of inner nodes, the new classes' own small trees, as in :func:`new_branches`.
        first_index: original index of the first new class; default: the next after the largest.

    Returns:
        the grown tree, and for each of its levels, which rows it has out of the old ones followed by the new ones.

    Raises:
        TreeError: if a class or a path is there already.

    Example:
        >>> old = ClassTree.from_nested({"cat": ["tabby", "siamese"], "saw": {}})
        >>> tree, rows = grown_tree(old, {"cat": ClassTree.parallel(["lynx"], levels=1)})
        >>> tree.classes, tree.indices, rows
        (('tabby', 'siamese', 'lynx', 'saw'), (0, 1, 3, 2), [[0, 1], [0, 1, 3, 2]])
    """
    inner = inner_nodes(tree)
    index = tree.next_index if first_index is None else first_index
    rows = [list(row) for row in tree.levels]
    for path, small in under.items():
        level, place = inner[path]
        for leaf in small.leaves:
            parent, whole = place, leaf.name if path == TRUNK else f"{path}/{leaf.name}"
            for depth in range(level, len(rows)):
                own = index if depth == len(rows) - 1 else None
                rows[depth].append(Node(leaf.name, whole, parent, depth > level, own, leaf.id))
                parent = len(rows[depth]) - 1
            index += 1
    levels, orders, moved = [], [], {0: 0}
    for row in rows:
        order = sorted(range(len(row)), key=lambda i: moved[row[i].parent])
        levels.append(tuple(replace(row[i], parent=moved[row[i].parent]) for i in order))
        moved = {before: now for now, before in enumerate(order)}
        orders.append(order)
    return ClassTree(tuple(levels)), orders


def grow(net: HierarchicalNet, branches: Mapping[str, BranchTree]) -> HierarchicalNet:
    """A network with the old one's rows, bit for bit, and those of new branches in their places.

    Args:
        net: the old network, which stays as it is.
        branches: by path of an inner node, as :func:`new_branches` makes them.

    Returns:
        the grown network, in evaluation mode. It is no expert of what the old one was cut from.

    Raises:
        TreeError: if a class or a path is there already.

    Example:
        >>> import hlnet
        >>> net = hlnet.create_model("resnet18", tree={"cat": ["tabby", "siamese"], "dog": ["beagle"]}).eval()
        >>> larger = grow(net, {"cat": new_branches(net, "cat", {"lynx": None})})
        >>> images = torch.rand(1, 3, 64, 64)
        >>> larger.tree.classes, torch.allclose(larger(images)[:, [0, 1, 3]], net(images), atol=1e-5)
        (('tabby', 'siamese', 'lynx', 'beagle'), True)
    """
    free = max(net.tree.next_index, net.provenance.next_index or 0)  # an expert leaves its sisters' indices alone
    small = {path: branch.tree for path, branch in branches.items()}
    tree, orders = grown_tree(net.tree, small, free)
    inner = inner_nodes(net.tree)
    added = [(inner[path][0], branch.state_dict()) for path, branch in branches.items()]
    weights = {}
    for name, old in net.state_dict().items():
        level = level_of(name)
        if level is None:
            weights[name] = old.detach().clone()
            continue
        # All small trees have leaves; of levels, those below their parent.
        new = [rows[_in_small_tree(name, above)] for above, rows in added if above <= level or level < 0]
        order = torch.tensor(orders[level], device=old.device)
        weights[name] = torch.cat([old, *(rows.to(old) for rows in new)]).index_select(0, order)
    known = net.provenance  # what was fitted was fitted to other classes
    provenance = Provenance(recipe=known.recipe, one_vs_rest=known.one_vs_rest, images=known.images)
    larger = build_without_weights(Header("hierarchical", net.config, tree, net.transform, provenance, ""))
    assert isinstance(larger, HierarchicalNet)
    fill(larger, weights, "the grown network")
    return larger.to(net.device)


def _in_small_tree(name: str, above: int) -> str:
    """What a tensor is called in a small tree that hangs under so many levels."""
    return re.sub(r"(?<=^levels\.)\d+", lambda number: str(int(number[0]) - above), name.removeprefix("head."))
