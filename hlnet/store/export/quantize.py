"""An exported ONNX network in int8, by onnxruntime's own tool, and what that does to its accuracy.

Notable here: weights are rounded channel by channel, activations by the ranges that they take on calibration images.
The layers that give the logits stay in float32: in 256 steps, classes would tie.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hlnet.data.images import LabelledImages
from hlnet.data.tree_data import TreeData, eval_transform
from hlnet.errors import DataError, HlnetError, RunError, UsageError, one_line
from hlnet.evaluation.metrics.accuracy import Accuracy, accuracy
from hlnet.files import replacing
from hlnet.model.transform import InputTransform
from hlnet.optional import require, silence
from hlnet.store.export.runtimes import Array, ExportedNet, open_exported
from hlnet.tree.class_tree import ClassTree

#: Sums of products, what goes along with them, and what only moves numbers. Norms, GELU and the like stay in float32:
#: in int8 they cost accuracy and save nothing.
OPERATORS = [
    *("Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool"),
    *("Concat", "Gather", "Pad", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
]


def quantize_onnx(source: str | Path, out: str | Path, images: Iterable[Tensor]) -> None:
    """Write an exported network with int8 weights and activations (QDQ form, static, per channel).

    Activations are unsigned: with signed ones onnxruntime's products are several times slower on x86. Weights take 7 of
    the 8 bits: x86 processors without VNNI add up pairs of products in 16 bits, which would overflow with all 8.

    Args:
        source: an ``.onnx`` file of :func:`hlnet.export_model`.
        out: the ``.onnx`` file to write.
        images: to take ranges from, ``[N, 3, H, W]`` each, pixel values in 0..1: some hundred training images.

    Raises:
        UsageError: if a package is missing, or the names are no ``.onnx`` files.
        DataError: if there are no images.
        RunError: if the tool fails.
    """
    source, out = Path(source), Path(out)
    if (source.suffix, out.suffix) != (".onnx", ".onnx") or source.resolve() == out.resolve():
        raise UsageError(f"int8 is made of one .onnx file and written to another, got '{source}' and '{out}'")
    tool = require("onnxruntime.quantization", "int8", "onnx")
    prepare = require("onnxruntime.quantization.shape_inference", "int8", "onnx").quant_pre_process
    onnx = require("onnx", "int8", "onnx")
    nodes = open_exported(source).nodes
    batches = _inputs(images, nodes)
    first = next(batches, None)
    if first is None:
        raise DataError("int8 needs some images to take the ranges of activations from, and got none")

    class Reader(tool.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.left = chain([first], batches)

        def get_next(self) -> dict[str, Array] | None:
            return next(self.left, None)

    with tempfile.TemporaryDirectory() as folder, replacing(out) as draft:
        prepared = Path(folder) / "prepared.onnx"
        try:
            with silence():
                prepare(source, prepared, skip_symbolic_shape=True)
                tool.quantize_static(
                    prepared,
                    draft,
                    Reader(),
                    per_channel=True,
                    reduce_range=True,
                    op_types_to_quantize=OPERATORS,
                    activation_type=tool.QuantType.QUInt8,
                    nodes_to_exclude=_last_layers(onnx.load(prepared).graph),
                )
                model = onnx.load(draft)
                onnx.helper.set_model_props(model, _properties(onnx.load(source, load_external_data=False)))
                onnx.save(model, draft)
        except HlnetError:  # of an image
            raise
        except Exception as error:  # the tool has its own
            raise RunError(f"'{source}' cannot be made int8: {type(error).__name__}: {one_line(error)}") from error


def exported_accuracy(
    exported: ExportedNet,
    batches: Iterable[tuple[Tensor, Tensor]],
    on_batch: Callable[[], None] | None = None,
    tree: ClassTree | None = None,
) -> Accuracy:
    """Accuracy in the network's own runtime.

    Args:
        exported: the network.
        batches: images, pixel values in 0..1, and labels; see :func:`unnormalised`.
        on_batch: called after each batch.
        tree: the network's, for the figures by the tree.
    """
    logits, labels = [], []
    for images, target in batches:
        logits.append(torch.from_numpy(exported(images)))
        labels.append(target)
        if on_batch:
            on_batch()
    return accuracy(torch.cat(logits), torch.cat(labels), exported.about["classes"], tree)


def unnormalised(images: LabelledImages, tree: ClassTree, transform: InputTransform) -> TreeData:
    """Labelled images as an exported network takes them: resized and cropped, but with pixel values in 0..1.

    Images of classes that the tree lacks are left out.

    Raises:
        DataError: if none is of its classes.
    """
    channels = transform.input_size[0]
    raw = transform.model_copy(update={"mean": (0.0,) * channels, "std": (1.0,) * channels})
    return TreeData(images, tree, eval_transform(raw), subset=True)


def spread(data: TreeData, count: int) -> Iterator[Tensor]:
    """That many images, evenly over the data set, ``[1, 3, H, W]`` each; all, if there are no more."""
    for position in sorted(set(np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(int).tolist())):
        yield data[position][0][None]


# ---------------------------------------------------------------------- helpers


def _inputs(images: Iterable[Tensor], nodes: int | None) -> Iterator[dict[str, Array]]:
    for batch in images:
        inputs = {"images": np.ascontiguousarray(batch, dtype=np.float32)}
        if nodes is not None:
            inputs["gains"] = np.ones((len(batch), nodes), dtype=np.float32)
        yield inputs


def _last_layers(graph: Any) -> list[str]:
    """Names of the nodes that give the logits, back to the products that these are, or are the sum of."""
    makers = {output: node for node in graph.node for output in node.output}
    found: dict[str, None] = {}
    wanted = [output.name for output in graph.output]
    while wanted:
        node = makers.get(wanted.pop())
        if node is not None and node.name not in found:
            found[node.name] = None
            wanted += [] if node.op_type in {"Conv", "Gemm", "MatMul"} else node.input
    return list(found)


def _properties(model: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}
