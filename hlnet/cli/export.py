"""``hlnet export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hlnet.cli.shared import options
from hlnet.errors import UsageError

if TYPE_CHECKING:
    from hlnet.model.base import TrainableNetwork
    from hlnet.model.cost import Latency
    from hlnet.store.export.export_model import Export
    from hlnet.store.export.runtimes import AsModule

#: Images that logits are compared on, where there are data.
COMPARED = 16
#: Batch sizes that are timed, and the seconds that each takes.
BATCHES, SECONDS = (1, 8), 2.0


#: Formats of exported networks.
ExportFormat = Literal["onnx", "torch-export", "openvino", "executorch"]


def export(
    model: options.Model,
    format: Annotated[
        ExportFormat | None, typer.Option(help="Format; default: by the ending of --out, else onnx.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The file to write, .onnx, .pt2, .xml or .pte; default: MODEL's name, in this folder."),
    ] = None,
    with_gains: Annotated[
        bool, typer.Option("--with-gains", help="Keep the cue as a second input: a factor for each node, 1 is neutral.")
    ] = False,
    parts: Annotated[
        bool,
        typer.Option("--parts", help="Write trunk and head to two files: NAME.trunk.onnx and NAME.head.onnx."),
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="For ONNX: write OUT.int8.onnx too, with accuracy before and after.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(help="Labelled images to compare logits on and, with --int8, to calibrate with and evaluate."),
    ] = None,
    calibration_images: Annotated[
        int, typer.Option(min=1, help="With --int8: number of training images to calibrate with.")
    ] = 128,
    latency: Annotated[bool, typer.Option(help="Measure latency, also of the network in torch.")] = True,
    workers: options.Workers = 2,
    data_root: options.DataRoot = None,
    as_json: options.Json = False,
) -> None:
    """Export a network to ONNX, torch.export, OpenVINO or ExecuTorch.

    The file holds classes, tree and transform. It takes images in 0..1 and normalises them itself. Its logits are
    compared with PyTorch's; if they differ, nothing is written. The extras hlnet[onnx], hlnet[openvino] and
    hlnet[executorch] install the packages.

    **Examples**

        hlnet export cats.safetensors --out cats.onnx

        hlnet export cats.safetensors --int8 --data photos --json

        hlnet export runs/digits/best.safetensors --with-gains --out digits.xml    # OpenVINO, by the ending

        hlnet export cats.safetensors --parts    # on a device, one trunk serves the heads of several experts
    """
    from hlnet.cli.shared import export_tables, output
    from hlnet.store.checkpoint import read_header
    from hlnet.store.export.export_model import export_model
    from hlnet.store.export.runtimes import AsModule, open_exported
    from hlnet.store.export.writers import SUFFIXES, check_packages, format_of
    from hlnet.store.locate import locate_model

    format = format or (format_of(out) if out else "onnx")
    if int8 and format != "onnx":
        raise UsageError(f"--int8 is for --format onnx, not {format}")
    if int8 and data is None:
        raise UsageError("--int8 needs --data: labelled images to calibrate and evaluate with")
    if int8 and parts:
        raise UsageError("--int8 is for whole networks; leave it or --parts out")
    check_packages(format)
    source = locate_model(model)
    out = out or Path(source.stem + SUFFIXES[format])
    net, fingerprint = options.load_model(source, "cpu"), read_header(source).fingerprint
    images = None if data is None else _images(net, data, data_root)
    with output.progress() as bar:
        bar.add_task(f"exporting to {format}", total=None)
        written = export_model(net, out, format, with_gains, images, parts=parts, fingerprint=fingerprint)
    runs = _opened(written)
    quantized: dict[str, Any] = {}
    if int8 and data is not None:
        small = out.with_suffix(".int8.onnx")
        quantized = _quantize(net, out, small, data, data_root, calibration_images, workers)
        runs["int8"] = AsModule(open_exported(small, threads=1))
    times = _latency(net, runs) if latency else {}
    figures = {"classes": net.tree.classes, **written.model_dump(mode="json")}
    if latency:
        figures["latency"] = {name: [run.model_dump(mode="json") for run in row] for name, row in times.items()}
    if int8:
        figures["int8"] = quantized
    kind, classes = "images" if data else "images of noise", len(net.tree.classes)
    output.result(as_json, figures, lambda: export_tables.show_export(written, times, quantized, kind, classes))


def _opened(written: Export) -> dict[str, AsModule]:
    """The exported network in its runtime; of two files, also the trunk alone."""
    from hlnet.store.export.runtimes import AsModule, open_exported

    if written.trunk is None:
        return {"float32": AsModule(open_exported(written.out, threads=1))}
    trunk = open_exported(written.trunk, threads=1)
    return {"float32": AsModule(trunk, open_exported(written.out, 1, trunk)), "trunk": AsModule(trunk)}


def _images(net: TrainableNetwork, data: str, root: Path | None) -> Any:
    """Some validation images, spread over all of them."""
    import torch

    from hlnet.data.sources import load_data
    from hlnet.store.export.quantize import spread, unnormalised

    return torch.cat(list(spread(unnormalised(load_data(data, "val", root), net.tree, net.transform), COMPARED)))


def _quantize(
    net: TrainableNetwork, out: Path, small: Path, data: str, root: Path | None, count: int, workers: int
) -> dict[str, Any]:
    """Write the int8 file, and measure its size and accuracy."""
    from hlnet.cli.shared import output
    from hlnet.data.sources import load_data
    from hlnet.data.tree_data import loader
    from hlnet.store.export.export_model import file_size
    from hlnet.store.export.quantize import exported_accuracy, quantize_onnx, spread, unnormalised
    from hlnet.store.export.runtimes import open_exported

    train, val = (unnormalised(load_data(data, split, root), net.tree, net.transform) for split in ("train", "val"))
    accuracies = {}
    with output.progress() as bar:
        task = bar.add_task("calibrating", total=None)
        quantize_onnx(out, small, spread(train, count))
        for name, path in (("float32", out), ("int8", small)):
            batches = loader(val, 8, workers)
            bar.update(task, description=f"evaluating {name}", total=len(batches), completed=0)
            accuracies[name] = exported_accuracy(open_exported(path), batches, lambda: bar.advance(task), net.tree)
    return {
        "out": str(small),
        "bytes": file_size(small),
        "calibration_images": min(count, len(train)),
        "images": len(val),
        "accuracy": {name: accuracy.model_dump(mode="json") for name, accuracy in accuracies.items()},
    }


def _latency(net: TrainableNetwork, runs: dict[str, AsModule]) -> dict[str, list[Latency]]:
    """Latency of the inference form in torch and of each file in its runtime; in turn, with one thread."""
    from torch import nn

    from hlnet.cli.shared import output
    from hlnet.model.fast.optimize import optimize
    from hlnet.model.latency import measure_latency

    batch = runs["float32"].exported[0].batch
    modules: dict[str, nn.Module] = {"torch": optimize(net), **runs}
    with output.progress() as bar:
        bar.add_task("timing", total=None)
        return measure_latency(modules, net.transform.input_size, (batch,) if batch else BATCHES, seconds=SECONDS)
