"""Cutting an expert: the paths of some classes, out of a trained network (paper, Sec. 3.3).

Notable here: a cut is a choice of rows in every stacked tensor. From a file only those rows are read, and from one on
the Hub only their bytes are fetched; no image, no forward pass and no training is involved.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hlnet.errors import CheckpointError, UsageError, with_article
from hlnet.model.base import TrainableNetwork, require_branches
from hlnet.model.hierarchical import HierarchicalNet, level_of
from hlnet.model.provenance import Provenance, Rows
from hlnet.store.checkpoint import (
    Header,
    build_without_weights,
    check_weights,
    fill,
    header_of,
    opened,
    write_checkpoint,
)
from hlnet.store.remote_file import RemoteFile, in_parts
from hlnet.tree.selection import select_classes

#: Substitute for an expert of a plain network.
RESTRICT_PLAIN = "hlnet eval --classes, or evaluate(…, classes=…), restricts it to some of its classes"


def cut_expert(source: TrainableNetwork | str | Path, classes: str | int | Iterable[str | int]) -> HierarchicalNet:
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
    if isinstance(source, TrainableNetwork):
        require_branches(source, "to choose from", RESTRICT_PLAIN)
    if not isinstance(source, HierarchicalNet | str | Path):
        raise UsageError(
            f"{with_article(type(source).__name__)} cannot be cut; give a network, before hlnet.optimize, or a file"
        )
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
        source: a checkpoint, as :func:`cut_expert` takes it; or what :func:`in_parts` found for it.
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
        check_weights(build_without_weights(header), weights, str(source))
    write_checkpoint(header, weights, out)
    return found.fetched if isinstance(found, RemoteFile) else 0


def _read_cut(source: Path | RemoteFile, classes: str | int | Iterable[str | int]) -> tuple[Header, dict[str, Tensor]]:
    """The expert's header and weights, read from a file."""
    with opened(source) as file:
        header = header_of(file, source)
        require_branches(header, "to choose from", RESTRICT_PLAIN, name=f"'{source}'")
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
        one_vs_rest=before.one_vs_rest,
        parent=parent,
        parent_counts=counts,
        parent_rows=kept,
        next_index=before.next_index or header.tree.next_index,
        attention=before.attention,  # by evidence, which counts in how many classes there are
        images=before.images,
    )
    return Header(header.kind, header.config, header.tree.prune(leaves), header.transform, provenance, ""), rows


def _network(header: Header, weights: dict[str, Tensor], source: object) -> HierarchicalNet:
    expert = build_without_weights(header)
    assert isinstance(expert, HierarchicalNet)
    fill(expert, weights, str(source))
    return expert


def _rows_of(tensor: Tensor, rows: Sequence[Sequence[int]], level: int | None) -> Tensor:
    if level is None:
        return tensor.detach().clone()
    return tensor.detach().index_select(0, torch.tensor(rows[level], device=tensor.device))


def _runs(rows: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending rows as half-open runs: ``[3, 4, 5, 9]`` is ``[(3, 6), (9, 10)]``."""
    starts = [0] + [i + 1 for i, (a, b) in enumerate(pairwise(rows)) if b != a + 1]
    ends = [*starts[1:], len(rows)]
    return [(rows[start], rows[end - 1] + 1) for start, end in zip(starts, ends, strict=True)]
