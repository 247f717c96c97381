"""Cutting an expert: the paths of some classes, out of a trained network (paper, Sec. 3.3).

Notable here: a cut is a choice of rows in every stacked tensor. From a file only those rows are read, and from one on
the Hub only their bytes are fetched; no image, no forward pass and no training is involved.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hlnet.checkpoint import Header, check_weights, empty_network, fill, header_of, opened, write_checkpoint
from hlnet.errors import CheckpointError, RunError, UsageError
from hlnet.network import HierarchicalNet
from hlnet.plain import PlainNet
from hlnet.provenance import Provenance, Rows
from hlnet.remote_file import RemoteFile, in_parts
from hlnet.selection import select_classes


def cut_expert(
    source: HierarchicalNet | PlainNet | str | Path, classes: str | int | Iterable[str | int]
) -> HierarchicalNet:
    """The expert for the selected classes, in evaluation mode.

    Args:
        source: a network, or a checkpoint, of which only the kept rows are read; or fetched, if it lies on the Hub
            (``hf-hub:OWNER/NAME``) and not yet in the cache, which then stays as it is.
        classes: a selection, as :func:`hlnet.select_classes` takes it.

    Returns:
        A network of its own, whose logits are those of the full network for the kept classes.

    Raises:
        SelectionError: if the selection names something that the tree does not have.
        UsageError: if the source is a plain network, which has no branches.
        CheckpointError: if the file is not intact.
        RunError: if the Hub cannot be reached, or the file there changes while it is read.

    Example:
        >>> import hlnet
        >>> net = hlnet.create_model("resnet18", tree={"cat": ["tabby", "siamese"], "dog": ["beagle"]}).eval()
        >>> expert = cut_expert(net, "cat")
        >>> images = torch.rand(1, 3, 64, 64)
        >>> expert.tree.counts, torch.allclose(expert(images), net(images)[:, :2], atol=1e-5)
        ((1, 2), True)
    """
    if isinstance(source, PlainNet):
        raise UsageError("a plain network has no branches to choose from")
    if not isinstance(source, HierarchicalNet | str | Path):
        raise UsageError(f"a {type(source).__name__} cannot be cut; give a network, before hlnet.optimize, or a file")
    if isinstance(source, HierarchicalNet):
        weights = source.state_dict()
        header = Header("hierarchical", source.config, source.tree, source.transform, source.provenance, "")
        header, rows = _pruned(header, classes)
        kept = {name: _rows_of(tensor, rows, level_of(name)) for name, tensor in weights.items()}
        return _network(header, kept, "the network").to(next(source.parameters()).device)
    return _network(*_read_cut(in_parts(source), classes), source)


def cut_checkpoint(source: str | Path | RemoteFile, classes: str | int | Iterable[str | int], out: str | Path) -> int:
    """Cut an expert from file to file, whose weights are in memory once: takes little longer than copying them.

    Args:
        source: a checkpoint, as :func:`cut_expert` takes it; or what :func:`hlnet.remote_file.in_parts` found for it.
        classes: a selection, as :func:`hlnet.select_classes` takes it.
        out: the expert's ``.safetensors`` file; an existing one is replaced.

    Returns:
        How many bytes of it were fetched, all told; 0 of a file that is here or in the cache.

    Raises:
        SelectionError, UsageError, CheckpointError, RunError: as :func:`cut_expert`.
        UsageError: if ``out`` is the source itself.
        RunError: if the file cannot be written.

    Example:
        >>> import tempfile, hlnet
        >>> pets, cats = (f"{tempfile.mkdtemp()}/{name}.safetensors" for name in ("pets", "cats"))
        >>> net = hlnet.create_model("resnet18", tree={"cat": ["tabby", "siamese"], "dog": ["beagle"]})
        >>> hlnet.save_checkpoint(net, pets)
        >>> cut_checkpoint(pets, "cat", cats)
        0
        >>> hlnet.load_checkpoint(cats).tree.classes
        ('tabby', 'siamese')
    """
    found = source if isinstance(source, RemoteFile) else in_parts(source)
    local = found.path if isinstance(found, RemoteFile) else found
    if local is not None and local.resolve() == Path(out).resolve():
        raise UsageError(f"the expert's file '{out}' is the model itself; choose another name")
    header, weights = _read_cut(found, classes)
    with torch.device("meta"):
        check_weights(empty_network(header), weights, str(source))
    write_checkpoint(header, weights, out)
    return found.fetched if isinstance(found, RemoteFile) else 0


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


def _read_cut(source: Path | RemoteFile, classes: str | int | Iterable[str | int]) -> tuple[Header, dict[str, Tensor]]:
    """The expert's header and weights, read from a file."""
    with opened(source) as file:
        header = header_of(file, source)
        if header.kind == "plain":
            raise UsageError(f"'{source}' is a plain network: it has no branches to choose from")
        pruned, rows = _pruned(header, classes)
        wanted: dict[str, list[tuple[int, int]] | None] = {}  # None: the whole tensor
        for name in file.keys():  # noqa: SIM118 - not a mapping
            level = level_of(name)
            if level is None or level >= header.tree.num_levels:  # the latter is unknown, which comes out later
                wanted[name] = None
                continue
            nodes, expected = file.get_slice(name).get_shape()[:1], [header.tree.counts[level]]
            if nodes != expected:
                raise CheckpointError(
                    f"'{source}' does not fit its own header: it has '{name}' for {nodes} nodes, expected {expected}"
                )
            wanted[name] = _runs(rows[level])
        if isinstance(file, RemoteFile):
            return pruned, file.read(wanted)
        return pruned, {name: _read(file, name, runs) for name, runs in wanted.items()}


def _read(file: Any, name: str, runs: list[tuple[int, int]] | None) -> Tensor:
    if runs is None:
        whole: Tensor = file.get_tensor(name)
        return whole
    stored = file.get_slice(name)
    return torch.cat([stored[start:end] for start, end in runs])


def _pruned(header: Header, classes: str | int | Iterable[str | int]) -> tuple[Header, Sequence[Sequence[int]]]:
    """The expert's header, and the rows of each level that it keeps."""
    leaves = select_classes(header.tree, classes)
    rows = header.tree.rows(leaves)
    before = header.provenance
    if before.parent_counts is None:
        parent, counts = header.fingerprint or None, header.tree.counts
        kept: Rows | None = tuple(tuple(level) for level in rows)
    else:  # an expert of an expert names the full network
        parent, counts = before.parent, before.parent_counts
        kept = before.parent_rows and tuple(
            tuple(places[row] for row in level) for places, level in zip(before.parent_rows, rows, strict=True)
        )
    provenance = Provenance(
        recipe=before.recipe,
        parent=parent,
        parent_counts=counts,
        parent_rows=kept,
        next_index=before.next_index or header.tree.next_index,
        attention=before.attention,  # by evidence, which counts in how many classes there are
    )
    return Header(header.kind, header.config, header.tree.prune(leaves), header.transform, provenance, ""), rows


def _network(header: Header, weights: dict[str, Tensor], source: object) -> HierarchicalNet:
    expert = empty_network(header)
    assert isinstance(expert, HierarchicalNet)
    fill(expert, weights, str(source))
    return expert


def level_of(name: str) -> int | None:
    """The level that a stacked tensor belongs to, -1 for the leaves' own; None for the trunk's."""
    if found := re.match(r"head\.levels\.(\d+)\.", name):
        return int(found[1])
    return -1 if name.startswith("head.leaves.") else None


def _rows_of(tensor: Tensor, rows: Sequence[Sequence[int]], level: int | None) -> Tensor:
    if level is None:
        return tensor.detach().clone()
    return tensor.detach().index_select(0, torch.tensor(rows[level], device=tensor.device))


def _runs(rows: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending rows as half-open runs: ``[3, 4, 5, 9]`` is ``[(3, 6), (9, 10)]``."""
    starts = [0] + [i + 1 for i, (a, b) in enumerate(pairwise(rows)) if b != a + 1]
    ends = [*starts[1:], len(rows)]
    return [(rows[start], rows[end - 1] + 1) for start, end in zip(starts, ends, strict=True)]
