"""Proof that an expert is its full network, cut: weights bit by bit, logits in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from hlnet.errors import RunError
from hlnet.expert.cut import _rows_of
from hlnet.model.hierarchical import HierarchicalNet, level_of


def verify_expert(expert: HierarchicalNet, full: HierarchicalNet, images: Tensor | None = None) -> float:
    """The largest difference between the expert's logits and the full network's for the same classes.

    Both run in float64, where a wrong row shows and rounding does not.

    Args:
        expert: cut from ``full``.
        full: the full network.
        images: ``[B, 3, H, W]``, normalised; default: two of random noise.

    Returns:
        max |difference|, in units of a logit. Rounding alone leaves it below 1e-9.

    Raises:
        RunError: if it is larger: the expert is not a cut of this network.
    """
    return Reference(full, None if images is None else lambda: [images]).difference(expert)


class Reference:
    """A full network as its experts are compared with it: its weights, and its logits of some images in float64.

    Args:
        full: the full network; its weights are not copied, and must stay as they are.
        batches: gives the images, ``[B, 3, H, W]``, normalised; the same at each call. Default: two of random noise.
    """

    def __init__(self, full: HierarchicalNet, batches: Callable[[], Iterable[Tensor]] | None = None) -> None:
        self.tree, self.weights = full.tree, full.state_dict()
        self.batches = batches or (lambda: [noise(full)])
        self.logits = list(float64_logits(full, self.batches()))

    def columns(self, expert: HierarchicalNet) -> list[int]:
        """Where the expert's classes stand among the full network's.

        Raises:
            RunError: if that lacks one.
        """
        place = {leaf: position for position, leaf in enumerate(zip(self.tree.classes, self.tree.indices, strict=True))}
        kept = [place.get(leaf, -1) for leaf in zip(expert.tree.classes, expert.tree.indices, strict=True)]
        if -1 in kept:
            raise RunError("the expert has classes that the full network lacks: it is not a cut of it")
        return kept

    def difference(self, expert: HierarchicalNet) -> float:
        """The largest difference of a logit.

        Raises:
            RunError: as :func:`verify_expert`.
        """
        kept, found = self.columns(expert), float64_logits(expert, self.batches())
        pairs = zip(found, self.logits, strict=True)
        difference = float(torch.stack([(ours - full[:, kept]).abs().max() for ours, full in pairs]).max())
        if not difference < 1e-9:
            raise RunError(
                f"the expert's logits differ from the full network's by {difference:.3g}: it is not a cut of it"
            )
        return difference

    def check_weights(self, expert: HierarchicalNet) -> None:
        """Whether the expert's weights are the full network's rows, bit for bit.

        Raises:
            RunError: if they are not; the first such tensor is named.
        """
        weights, rows = expert.state_dict(), self.tree.rows(self.columns(expert))
        for name in sorted(weights.keys() | self.weights.keys()):
            ours, full = weights.get(name), self.weights.get(name)
            if ours is None or full is None or not _same_bits(ours, _rows_of(full, rows, level_of(name))):
                raise RunError(f"the expert's '{name}' is not bitwise the full network's: it is not a cut of it")


def noise(net: HierarchicalNet) -> Tensor:
    """Two images of random noise, always the same."""
    return torch.randn(2, *net.transform.input_size, generator=torch.Generator().manual_seed(0))


def float64_logits(net: HierarchicalNet, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Logits of each batch, computed in double precision on the processor; the network stays as it is."""
    exact = copy.deepcopy(net).cpu().eval().double()
    for images in batches:
        with torch.no_grad():
            yield exact(images.cpu().double())


# ---------------------------------------------------------------------- helpers


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    one, other = (tensor.cpu().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(one, other)
