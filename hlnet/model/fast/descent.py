"""Descent: the classes' rows for every image, then only the families of leaves that may still win.

Notable here: a network with class rows has a first answer before its tree runs. The tree corrects it, family by family.
An image leaves once no class that the tree has not corrected is likely enough to become the answer. Images that want
the same node run it together; what nodes on the way compute is kept for the next family of the same image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hlnet.errors import UsageError
from hlnet.model.fast.chunks import CHUNKS, LeafChunk, SiblingBlock
from hlnet.model.fast.walk import FastTree, Plans
from hlnet.tree.class_tree import ClassTree

#: What siblings see of their parent's output, for one image.
_Shared = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Descended:
    """Logits of a descent.

    Attributes:
        logits: ``[B, classes]``, float32: the full network's where the class's family ran, the rows' elsewhere.
        rows: ``[B, classes]``, the rows' alone.
        exact: ``[B, classes]``, bool: whose family ran.
    """

    logits: Tensor
    rows: Tensor
    exact: Tensor


def margin_of(threshold: float) -> float:
    """The lead, as a difference of logits, that ends a descent at this threshold.

    Args:
        threshold: how likely, in relation to the leading class, a class that has not run may be: 0 never stops, 1 stops
            after the rows.

    Raises:
        UsageError: if it is not in 0..1.

    Example:
        >>> margin_of(1.0), round(margin_of(0.1), 3), margin_of(0.0)
        (0.0, 2.303, inf)
    """
    if not 0 <= threshold <= 1:
        raise UsageError(f"a threshold of {threshold:g}: expected a number between 0 (never stop) and 1 (rows alone)")
    return -math.log(threshold) + 0.0 if threshold else math.inf


def families_of(tree: ClassTree, classes: Sequence[int]) -> Tensor:
    """The family of each of some classes: its parent's place in the level above."""
    return torch.tensor([tree.leaves[position].parent for position in classes])


def next_family(logits: Tensor, exact: Tensor, family: Tensor) -> tuple[Tensor, Tensor]:
    """The lead of each image's likeliest class, and the family that it would run next.

    The lead is the difference to the next likely class, of those whose comparison is not settled: two classes that both
    ran are. Next is the family of the likeliest class or, if that ran, of the likeliest class that did not.

    Args:
        logits, exact: as of :class:`Descended`.
        family: of each class, ``[classes]``.

    Returns:
        the lead ``[B]``, infinite where all is settled; and the family ``[B]``.

    Example:
        >>> logits, exact = torch.tensor([[3.0, 2.5, 1.0]]), torch.tensor([[True, True, False]])
        >>> next_family(logits, exact, torch.tensor([0, 0, 1]))
        (tensor([2.]), tensor([1]))
    """
    top, leader = logits.max(dim=1)
    unsettled = logits.masked_fill(exact & exact.gather(1, leader[:, None]), -math.inf)
    rival, place = unsettled.scatter(1, leader[:, None], -math.inf).max(dim=1)
    ran = exact.gather(1, leader[:, None])[:, 0]
    return top - rival, family[torch.where(ran, place, leader)]


class Descent:
    """The descent of one network, over all of its classes or some.

    Args:
        tree: the branches of an inference form whose network has class rows.
        classes: positions of the classes, ascending.
        plan: how all of them run.

    Raises:
        UsageError: if the network has no class rows.
    """

    def __init__(self, tree: FastTree, classes: Sequence[int], plan: Plans) -> None:
        if tree.branches.class_rows is None:
            raise UsageError(
                "a descent begins with the classes' rows, which this network lacks; train a lean one "
                "(hlnet train --backbone lean_resnet50, or create_model(…, class_rows=True))"
            )
        self._tree, self._classes, self._plan = tree, list(classes), plan
        self._levels = tree.tree.levels
        self._family = families_of(tree.tree, self._classes)
        self._columns = {
            parent: (self._family == parent).nonzero()[:, 0].tolist() for parent in self._family.unique().tolist()
        }
        self._blocks: dict[tuple[int, range], SiblingBlock] = {}
        self._leaves: dict[int, LeafChunk] = {}
        self._first_size: tuple[int, int] | None = None

    @torch.no_grad()
    def __call__(self, features: Tensor, threshold: float) -> Descended:
        """Logits of features ``[B, C, H, W]`` from the trunk, as ``InferenceNet.descend`` gives them.

        Raises:
            UsageError: if the threshold is not in 0..1, or the network's weights have changed.
        """
        margin = margin_of(threshold)
        if threshold == 0:
            logits, rows = self._tree.run(features, None, self._plan, self._classes)
            assert rows is not None
            return Descended(logits, rows, torch.ones_like(logits, dtype=torch.bool))
        seen, rows = self._tree.seen_and_rows(features, self._classes)
        assert rows is not None
        self._first_size = self._first_size or (seen.shape[2], seen.shape[3])
        logits, exact = rows.clone(), torch.zeros_like(rows, dtype=torch.bool)
        family = self._family.to(rows.device)
        shared: list[dict[tuple[int, int], _Shared]] = [{} for _ in range(len(rows))]
        running = torch.arange(len(rows), device=rows.device)
        while len(running):
            lead, wanted = next_family(logits[running], exact[running], family)
            running, wanted = running[lead < margin], wanted[lead < margin]
            for parent in wanted.unique().tolist():
                images = running[wanted == parent]
                columns = torch.tensor(self._columns[parent], device=rows.device)
                at = (images[:, None], columns)
                logits[at] = rows[at] + self._leaf_logits(seen, images.tolist(), parent, shared)
                exact[at] = True
        return Descended(logits, rows, exact)

    def _leaf_logits(
        self, seen: Tensor, images: list[int], parent: int, shared: list[dict[tuple[int, int], _Shared]]
    ) -> Tensor:
        """What the tree adds for the classes of one family."""
        last = len(self._levels) - 1
        columns = [self._classes[i] for i in self._columns[parent]]
        rows = range(columns[0], columns[-1] + 1)
        block = self._block(last, rows)
        y = block(_side_by_side(self._inputs(seen, images, last, parent, block, shared)), None)
        if parent not in self._leaves:
            self._leaves[parent] = LeafChunk(self._tree.branches.leaves, rows.start, rows.stop)
        logits: Tensor = self._leaves[parent](y)
        return logits if len(rows) == len(columns) else logits[:, [row - rows.start for row in columns]]

    def _inputs(
        self,
        seen: Tensor,
        images: list[int],
        depth: int,
        parent: int,
        block: SiblingBlock,
        shared: list[dict[tuple[int, int], _Shared]],
    ) -> list[_Shared]:
        """What the children of a node see of some images; the nodes above run for those that have not run them."""
        missing = [image for image in images if (depth, parent) not in shared[image]]
        if missing:
            if depth == 0:
                output = seen if len(missing) == len(seen) else seen[missing]
            else:
                above = self._block(depth - 1, range(parent, parent + 1))
                inputs = self._inputs(seen, missing, depth - 1, self._levels[depth - 1][parent].parent, above, shared)
                output = above(_side_by_side(inputs), None)
            found = block.share(output)
            parts = found if isinstance(found, tuple) else (found,)
            for image, *own in zip(missing, *(part.split(1) for part in parts), strict=True):
                shared[image][depth, parent] = tuple(own)
        return [shared[image][depth, parent] for image in images]

    def _block(self, depth: int, rows: range) -> SiblingBlock:
        """What some siblings run, packed when they first run."""
        if (depth, rows) not in self._blocks:
            level: Any = self._tree.branches.levels[depth]
            chunk: Callable[..., SiblingBlock] = CHUNKS[type(level)]
            self._blocks[depth, rows] = chunk(level, rows.start, rows.stop, self._size(depth), 1, self._tree.dtype)
        return self._blocks[depth, rows]

    def _size(self, depth: int) -> tuple[int, int]:
        """Height and width of what a level sees, of the images that came first."""
        size = self._first_size
        assert size is not None
        for level in self._tree.branches.levels[:depth]:
            size = level.output_size(size)  # type: ignore[operator]
        return size


def _side_by_side(inputs: list[_Shared]) -> Any:
    """Images' inputs as a batch, in the form that a block takes."""
    parts = tuple(torch.cat(part) if len(part) > 1 else part[0] for part in zip(*inputs, strict=True))
    return parts if len(parts) > 1 else parts[0]
