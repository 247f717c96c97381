"""Tables of ``hlnet export``: latency by runtime, and accuracy before and after quantisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hlnet.cli.shared import output
from hlnet.errors import counted

if TYPE_CHECKING:
    from hlnet.model.cost import Latency
    from hlnet.store.export.export_model import Export


def show_export(
    written: Export, times: Mapping[str, Sequence[Latency]], quantized: dict[str, Any], kind: str, classes: int
) -> None:
    """The files, with latency and int8 accuracy if these were measured.

    Args:
        written: the export.
        times: latency by runtime; empty if not measured.
        quantized: the int8 file and its accuracy; empty without one.
        kind: kind of the images that logits were compared on.
        classes: number of classes.
    """
    if times:
        _show_latency(times, written.runtime)
    if quantized:
        _show_int8(quantized, written)
        output.show(f"int8: {quantized['bytes'] / 1e6:.1f} MB, written to {quantized['out']}")
    output.show(
        f"{written.runtime} gives torch's logits: on {written.images} {kind}, the largest difference is "
        f"{written.max_difference:.1g}, the largest logit {written.largest_logit:.3g}"
    )
    files = " and ".join(filter(None, (written.trunk, written.out)))
    output.show(f"{counted(classes, 'class')}, {written.bytes / 1e6:.1f} MB, written to {files}")


def _show_latency(times: Mapping[str, Sequence[Latency]], runtime: str) -> None:
    others = {name: f"{runtime}, {name}" for name in ("int8", "trunk")}
    names = {"torch": "torch, optimised", "float32": runtime, **others}
    rows = [
        [f"batch {row[0].batch_size}", *(f"{run.median_ms:.1f}" for run in row)]
        for row in zip(*times.values(), strict=True)
    ]
    output.show_table("Milliseconds, one thread", ["", *(names[name] for name in times)], rows)


def _show_int8(quantized: dict[str, Any], written: Export) -> None:
    accuracy = quantized["accuracy"]
    rows = [["top-1", *(output.percent(run["top1"]) for run in accuracy.values())]]
    if accuracy["int8"]["top5"] is not None:
        rows.append(["top-5", *(output.percent(run["top5"]) for run in accuracy.values())])
    rows.append(["file, MB", f"{written.bytes / 1e6:.1f}", f"{quantized['bytes'] / 1e6:.1f}"])
    title = f"On {counted(quantized['images'], 'image')}, calibrated on {quantized['calibration_images']} others"
    output.show_table(title, ["", *accuracy], rows)
