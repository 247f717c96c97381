"""Exporting a network to a file that other runtimes run, with everything they need to know inside.

Notable here: a file takes its place only after it was opened in its own runtime and gave the network's logits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from hlnet.errors import RunError, UsageError, with_article
from hlnet.model.base import TrainableNetwork, require_branches
from hlnet.model.hierarchical import HierarchicalNet
from hlnet.store.checkpoint import load_checkpoint, read_header
from hlnet.store.export.about import describe, describe_parts, trunk_fingerprint
from hlnet.store.export.portable import PortableNet
from hlnet.store.export.runtimes import Array, open_exported
from hlnet.store.export.writers import FORMATS, SUFFIXES, Format, check_packages, format_of, written
from hlnet.store.locate import locate_model

#: From images in 0..1 and gains to logits.
_Run = Callable[[Tensor, Tensor | None], Array]


class Export(BaseModel):
    """What was written, and how near it is.

    Attributes:
        format: which one.
        out: the file, or the head's; OpenVINO's weights lie beside it, in ``.bin``.
        trunk: the file of the trunk, where that was written apart from the head.
        bytes: of all these.
        runtime: where it was checked.
        images: on how many images.
        max_difference: of a logit from the torch network's.
        largest_logit: of the torch network, in absolute value.
        with_gains: whether gains are an input.
    """

    format: Format
    out: str
    trunk: str | None = None
    bytes: int
    runtime: str
    images: int
    max_difference: float
    largest_logit: float
    with_gains: bool


def export_model(
    model: TrainableNetwork | str | Path,
    out: str | Path,
    format: Format | None = None,
    with_gains: bool = False,
    images: Tensor | None = None,
    tolerance: float = 1e-3,
    parts: bool = False,
    fingerprint: str | None = None,
) -> Export:
    """Write a network to a file of another runtime, once that has given the same logits.

    The graph takes ``images``, float32 ``[N, 3, H, W]``, RGB in 0..1, normalises them itself, and gives ``logits``
    ``[N, classes]``. N is free; ExecuTorch, which plans its memory ahead, takes one image at a time.

    With ``parts``, it is two graphs: the trunk's gives ``features`` ``[N, C, h, w]``, the head's takes them. One trunk
    then serves the heads of several experts of the network; ``open_exported(head, trunk=…)`` refuses another.

    Args:
        model: a full network, an expert or a plain network, or a checkpoint, whose fingerprint then goes along.
        out: the file; it ends as the format's files do (``.onnx``, ``.pt2``, ``.xml``, ``.pte``).
        format: ``"onnx"``, ``"torch-export"``, ``"openvino"`` or ``"executorch"``; default: by the ending of ``out``.
        with_gains: keep the cue as a second input, ``gains``, ``[N, nodes]``; see :meth:`HierarchicalNet.forward`.
        images: to compare logits on, as the graph takes them; default: five of random noise.
        tolerance: the largest difference of a logit that is accepted, in relation to the largest logit.
        parts: write trunk and head to two files, see :func:`part_files`.
        fingerprint: of the checkpoint that a network in memory comes from, to be noted in the file.

    Raises:
        UsageError: for another format or ending, a plain network with gains or in parts, a network too large for its
            format, or if the packages that the format needs are missing.
        RunError: if the network cannot be exported, or the file does not give its logits; there is no new file then.

    Example:
        >>> from hlnet.model.transform import InputTransform
        >>> import tempfile, hlnet
        >>> net = hlnet.create_model("test_resnet", tree={"cat": ["tabby", "siamese"], "dog": ["beagle"]})
        >>> net.transform = InputTransform(input_size=(3, 32, 32))
        >>> path = Path(tempfile.mkdtemp()) / "pets.pt2"
        >>> export_model(net, path).max_difference < 1e-5
        True
        >>> hlnet.open_exported(path).about["classes"]
        ['tabby', 'siamese', 'beagle']
    """
    out = Path(out)
    format = format_of(out) if format is None else format
    if format not in FORMATS:
        raise UsageError(f"there is no format '{format}'; expected {', '.join(FORMATS)}")
    if out.suffix != SUFFIXES[format]:
        raise UsageError(f"'{out}': the name of a file for {format} ends in {SUFFIXES[format]}")
    check_packages(format)
    if isinstance(model, str | Path):
        model = locate_model(model)
        fingerprint, model = read_header(model).fingerprint, load_checkpoint(model)
    elif isinstance(model, TrainableNetwork):
        model = copy.deepcopy(model)
    if not isinstance(model, TrainableNetwork):
        raise UsageError(
            f"{with_article(type(model).__name__)} cannot be exported; give a network, before hlnet.optimize, or a file"
        )
    if with_gains:
        require_branches(model, "to cue", "leave the gains out")
    if parts:
        require_branches(model, "to export apart from its trunk", "leave the parts out")
    model = model.cpu().float().eval()
    images = torch.rand(5, *model.transform.input_size, generator=_fixed()) if images is None else images
    gains = 0.5 + torch.rand(len(images), model.tree.num_nodes, generator=_fixed()) if with_gains else None
    expected = _logits(model, images, gains)
    largest = float(expected.abs().max())
    about = describe(model, format, with_gains, fingerprint)
    with _drafts(model, out, format, about, parts) as (runtime, run):
        difference = _largest_difference(run, images, gains, expected)
        if not difference <= tolerance * largest:  # so that NaN is no match
            raise RunError(
                f"in {runtime} the network gives other logits: they differ by up to {difference:.2g}, "
                f"where the largest is {largest:.2g}; '{out}' was not written. Try another format"
            )
    files = part_files(out) if parts else (out,)
    return Export(
        format=format,
        out=str(files[-1]),
        trunk=str(files[0]) if parts else None,
        bytes=sum(map(file_size, files)),
        runtime=runtime,
        images=len(images),
        max_difference=difference,
        largest_logit=largest,
        with_gains=with_gains,
    )


def part_files(out: str | Path) -> tuple[Path, Path]:
    """Where an export in parts writes the trunk and the head.

    Example:
        >>> [file.name for file in part_files("cats.onnx")]
        ['cats.trunk.onnx', 'cats.head.onnx']
    """
    out = Path(out)
    return out.with_suffix(f".trunk{out.suffix}"), out.with_suffix(f".head{out.suffix}")


def file_size(path: str | Path) -> int:
    """Bytes of an exported network, with those of the ``.bin`` beside an OpenVINO file."""
    path = Path(path)
    parts = [path, path.with_suffix(".bin")] if path.suffix == SUFFIXES["openvino"] else [path]
    return sum(part.stat().st_size for part in parts)


# ---------------------------------------------------------------------- helpers


def _logits(model: TrainableNetwork, images: Tensor, gains: Tensor | None) -> Tensor:
    """Of images in 0..1, by the torch network."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (model.transform.mean, model.transform.std))
    runs = []
    with torch.inference_mode():
        for start, end in _batches(len(images)):
            cue = () if gains is None else (gains[start:end],)
            runs.append(model((images[start:end] - mean) / std, *cue))
    return torch.cat(runs)


@contextmanager
def _drafts(
    model: TrainableNetwork, out: Path, format: Format, about: dict[str, Any], parts: bool
) -> Iterator[tuple[str, _Run]]:
    """Write the file, or both, which take their places when the block ends well; the runtime, and what runs there."""
    net = PortableNet(model).eval()
    if not parts:
        with written(net, out, format, about) as draft:
            whole = open_exported(draft)
            yield whole.runtime, whole
        return
    assert isinstance(model, HierarchicalNet)
    assert net.head is not None
    places = part_files(out)
    of_trunk, of_head = describe_parts(about, trunk_fingerprint(model), net.trunk.shape)
    with (
        written(net.trunk, places[0], format, of_trunk) as first,
        written(net.head, places[1], format, of_head) as last,
    ):
        trunk = open_exported(first)
        head = open_exported(last, trunk=trunk)
        yield trunk.runtime, lambda images, gains: head(trunk(images), gains)


def _largest_difference(run: _Run, images: Tensor, gains: Tensor | None, expected: Tensor) -> float:
    """Of a logit; NaN if there is one among them."""
    runs = [run(images[a:b], None if gains is None else gains[a:b]) for a, b in _batches(len(images))]
    return float((torch.cat([torch.from_numpy(logits) for logits in runs]) - expected).abs().max())


def _batches(images: int) -> list[tuple[int, int]]:
    """The first image alone and the rest eight at a time: a graph that is right for one may be wrong for more."""
    return list(pairwise([0, *range(1, images, 8), images]))


def _fixed() -> torch.Generator:
    return torch.Generator().manual_seed(0)
