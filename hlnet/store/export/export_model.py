"""Exporting a network to a file that other runtimes run, with everything they need to know inside.

Notable here: a file takes its place only after it was opened in its own runtime and gave the network's logits.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from hlnet.errors import RunError, UsageError, with_article
from hlnet.model.base import TrainableNetwork, require_branches
from hlnet.store.checkpoint import load_checkpoint, read_header
from hlnet.store.export.portable import PortableNet
from hlnet.store.export.runtimes import KEY, ExportedNet, open_exported
from hlnet.store.export.writers import FORMATS, SUFFIXES, Format, check_packages, written
from hlnet.store.locate import locate_model
from hlnet.tree.io import tree_to_json
from hlnet.version import __version__


class Export(BaseModel):
    """What was written, and how near it is.

    Attributes:
        format: which one.
        out: the file; OpenVINO's weights lie beside it, in ``.bin``.
        bytes: of the file or both.
        runtime: where it was checked.
        images: on how many images.
        max_difference: of a logit from the torch network's.
        largest_logit: of the torch network, in absolute value.
        with_gains: whether gains are an input.
    """

    format: Format
    out: str
    bytes: int
    runtime: str
    images: int
    max_difference: float
    largest_logit: float
    with_gains: bool


def export_model(
    model: TrainableNetwork | str | Path,
    out: str | Path,
    format: Format = "onnx",
    with_gains: bool = False,
    images: Tensor | None = None,
    tolerance: float = 1e-3,
) -> Export:
    """Write a network to a file of another runtime, once that has given the same logits.

    The graph takes ``images``, float32 ``[N, 3, H, W]``, RGB in 0..1, normalises them itself, and gives ``logits``
    ``[N, classes]``. N is free; ExecuTorch, which plans its memory ahead, takes one image at a time.

    Args:
        model: a full network, an expert or a plain network, or a checkpoint, whose fingerprint then goes along.
        out: the file; it ends as the format's files do (``.onnx``, ``.pt2``, ``.xml``, ``.pte``).
        format: ``"onnx"``, ``"torch-export"``, ``"openvino"`` or ``"executorch"``.
        with_gains: keep the cue as a second input, ``gains``, ``[N, nodes]``; see :meth:`HierarchicalNet.forward`.
        images: to compare logits on, as the graph takes them; default: five of random noise.
        tolerance: the largest difference of a logit that is accepted, in relation to the largest logit.

    Raises:
        UsageError: for another format or ending, a plain network with gains, a network too large for its format, or if
            the packages that the format needs are missing.
        RunError: if the network cannot be exported, or the file does not give its logits; there is no new file then.

    Example:
        >>> from hlnet.model.transform import InputTransform
        >>> import tempfile, hlnet
        >>> net = hlnet.create_model("test_resnet", tree={"cat": ["tabby", "siamese"], "dog": ["beagle"]})
        >>> net.transform = InputTransform(input_size=(3, 32, 32))
        >>> path = Path(tempfile.mkdtemp()) / "pets.pt2"
        >>> export_model(net, path, "torch-export").max_difference < 1e-5
        True
        >>> hlnet.open_exported(path).about["classes"]
        ['tabby', 'siamese', 'beagle']
    """
    out = Path(out)
    if format not in FORMATS:
        raise UsageError(f"there is no format '{format}'; expected {', '.join(FORMATS)}")
    if out.suffix != SUFFIXES[format]:
        raise UsageError(f"'{out}': the name of a file for {format} ends in {SUFFIXES[format]}")
    check_packages(format)
    fingerprint = None
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
    model = model.cpu().float().eval()
    images = torch.rand(5, *model.transform.input_size, generator=_fixed()) if images is None else images
    gains = 0.5 + torch.rand(len(images), model.tree.num_nodes, generator=_fixed()) if with_gains else None
    expected = _logits(model, images, gains)
    largest = float(expected.abs().max())
    about = describe(model, format, with_gains, fingerprint)
    with written(PortableNet(model).eval(), out, format, about) as draft:
        exported = open_exported(draft)
        difference = _largest_difference(exported, images, gains, expected)
        if not difference <= tolerance * largest:  # so that NaN is no match
            raise RunError(
                f"in {exported.runtime} the network gives other logits: they differ by up to {difference:.2g}, "
                f"where the largest is {largest:.2g}; '{out}' was not written. Try another format"
            )
    return Export(
        format=format,
        out=str(out),
        bytes=file_size(out),
        runtime=exported.runtime,
        images=len(images),
        max_difference=difference,
        largest_logit=largest,
        with_gains=with_gains,
    )


def describe(
    model: TrainableNetwork, format: Format = "onnx", with_gains: bool = False, fingerprint: str | None = None
) -> dict[str, Any]:
    """What an exported file says of itself.

    Returns:
        - ``hlnet``: the version that wrote it;
        - ``classes``, ``indices``: names and original indices, in the order of the logits; ``tree``: as in a
          ``*.tree.json`` file;
        - ``inputs``: shape (``None`` where it is free) and meaning of each; the graph normalises the images itself;
        - ``transform``: size, interpolation and crop of the images, and the mean and std that are in the graph;
        - ``probabilities``: ``"softmax"``, or ``"sigmoid"`` where classes were trained one against all, to be taken
          after dividing by ``temperature``; ``rejection``: score and threshold of "none of these", or ``None``;
        - ``config``, ``provenance``: as in the checkpoint; ``fingerprint``: the checkpoint's, where it came from one.
    """
    known = model.provenance
    batch = 1 if format == "executorch" else None
    inputs = {"images": {"shape": [batch, *model.transform.input_size], "values": "pixels in 0..1, RGB or grey"}}
    if with_gains:
        inputs["gains"] = {"shape": [batch, model.tree.num_nodes], "values": "one factor a node, 1 is neutral"}
    return {
        KEY: __version__,
        "classes": list(model.tree.classes),
        "indices": list(model.tree.indices),
        "inputs": inputs,
        "transform": model.transform.model_dump(mode="json"),
        "probabilities": "sigmoid" if known.one_vs_rest else "softmax",
        "temperature": known.temperature or 1.0,
        "rejection": known.rejection and known.rejection.model_dump(mode="json", include={"score", "threshold"}),
        "tree": tree_to_json(model.tree),
        "config": model.config.model_dump(mode="json"),
        "provenance": known.model_dump(mode="json"),
        "fingerprint": fingerprint,
    }


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


def _largest_difference(exported: ExportedNet, images: Tensor, gains: Tensor | None, expected: Tensor) -> float:
    """Of a logit; NaN if there is one among them."""
    runs = [exported(images[a:b], None if gains is None else gains[a:b]) for a, b in _batches(len(images))]
    return float((torch.cat([torch.from_numpy(run) for run in runs]) - expected).abs().max())


def _batches(images: int) -> list[tuple[int, int]]:
    """The first image alone and the rest eight at a time: a graph that is right for one may be wrong for more."""
    return list(pairwise([0, *range(1, images, 8), images]))


def _fixed() -> torch.Generator:
    return torch.Generator().manual_seed(0)
