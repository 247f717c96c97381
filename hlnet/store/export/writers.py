"""Writing a portable network in each format, with its description inside.

Notable here: all formats start from one program of ``torch.export``. The description goes to ONNX's metadata
properties, torch.export's extra files, OpenVINO's runtime information, and for ExecuTorch into a method ``hlnet`` that
returns it. Where this machine's code lies, which exporters like to write down, is taken out.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from hlnet.errors import HlnetError, RunError, UsageError, one_line
from hlnet.files import replacing
from hlnet.optional import require, silence
from hlnet.store.export.runtimes import KEY, MEMBER

Format = Literal["onnx", "torch-export", "openvino", "executorch"]
FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch-export": ".pt2", "openvino": ".xml", "executorch": ".pte"}

#: Bytes that one protobuf message, and so an ONNX file, can hold; a little is left for the graph.
LARGEST_ONNX = 2**31 - 2**24


def format_of(path: str | Path) -> Format:
    """The format that a file's ending stands for.

    Raises:
        UsageError: if it stands for none.

    Example:
        >>> format_of("cats.pt2")
        'torch-export'
    """
    for format, suffix in SUFFIXES.items():
        if Path(path).suffix == suffix:
            return format
    endings = ", ".join(f"{suffix} ({format})" for format, suffix in SUFFIXES.items())
    raise UsageError(f"'{path}': the ending says the format, and it is none of {endings}")


@contextmanager
def written(net: nn.Module, out: Path, format: Format, about: dict[str, Any]) -> Iterator[Path]:
    """Write the network under another name; it takes its own when the block ends well, else it is gone.

    Args:
        net: a network in its portable form (:mod:`hlnet.store.export.portable`), or its trunk or head.
        out: the file; OpenVINO's weights go to the same name with ``.bin``.
        format: which one.
        about: what the file shall say of itself, see :func:`hlnet.store.export.about.describe`, which also names
            inputs and output.

    Raises:
        UsageError: if the packages that the format needs are missing, or the network is too large for it.
        RunError: if the network cannot be exported, or the file not be written.
    """
    with replacing(out) as draft:
        with _our_errors(format):
            _WRITERS[format](net, about, draft)
        yield draft
        if format == "openvino":  # the weights take their place first
            with replacing(out.with_suffix(".bin")) as place:
                draft.with_suffix(".bin").replace(place)


def check_packages(format: Format) -> None:
    """Refuse a format whose packages are missing, before anything else is done.

    Raises:
        UsageError: if one is.
    """
    for module, purpose, extra in _NEEDED[format]:
        require(module, purpose, extra)


def onnx_model(net: nn.Module, about: dict[str, Any]) -> Any:
    """The network as an ONNX model.

    Raises:
        UsageError: as :func:`written`.
    """
    onnx = require("onnx", "exporting to ONNX", "onnx")
    size = sum(tensor.nbytes for tensor in net.state_dict().values())
    if size > LARGEST_ONNX:
        raise UsageError(
            f"the network's weights take {size / 1e9:.1f} GB, and an ONNX file holds 2.1; cut an expert, or take "
            "the format torch-export"
        )
    program, shapes = _program(net, about)
    with silence():
        made = torch.onnx.export(
            program,
            (),
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=list(about["inputs"]),
            output_names=list(about["outputs"]),
            dynamic_shapes=shapes,
        )
    assert made is not None
    model = made.model_proto
    graph = model.graph
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]  # which of torch's operators and names it came from
    onnx.helper.set_model_props(model, {KEY: _text(about)})
    model.producer_name, model.producer_version = KEY, about[KEY]
    return model


# ---------------------------------------------------------------------- the formats


def _write_onnx(net: nn.Module, about: dict[str, Any], draft: Path) -> None:
    draft.write_bytes(onnx_model(net, about).SerializeToString())


def _write_torch(net: nn.Module, about: dict[str, Any], draft: Path) -> None:
    program, _ = _program(net, about)
    program.example_inputs = None
    archive = io.BytesIO()  # the name of a file would be within it
    with silence():
        torch.export.save(program, archive, extra_files={MEMBER: _text(about)})
    draft.write_bytes(archive.getbuffer())


def _write_openvino(net: nn.Module, about: dict[str, Any], draft: Path) -> None:
    openvino = require("openvino", "exporting to OpenVINO", "openvino")
    # By way of ONNX, since OpenVINO's converter of torch networks sends word of each use to its makers.
    model = onnx_model(net, about)
    with silence():
        found = openvino.Core().read_model(model.SerializeToString())
        found.set_rt_info(_text(about), [KEY])
        openvino.save_model(found, str(draft), compress_to_fp16=False)


def _write_executorch(net: nn.Module, about: dict[str, Any], draft: Path) -> None:
    exir, partitioners = (require(*package) for package in _NEEDED["executorch"])
    program, _ = _program(net, about)
    with silence():
        lowered = exir.to_edge_transform_and_lower(
            program, partitioner=[partitioners.XnnpackPartitioner()], constant_methods={KEY: _text(about)}
        )
        draft.write_bytes(lowered.to_executorch().buffer)


_WRITERS = {
    "onnx": _write_onnx,
    "torch-export": _write_torch,
    "openvino": _write_openvino,
    "executorch": _write_executorch,
}
_ONNX = [("onnx", "exporting to ONNX", "onnx"), ("onnxscript", "exporting to ONNX", "onnx")]
#: Modules, what for, and the extra that brings them.
_NEEDED: dict[Format, list[tuple[str, str, str]]] = {
    "onnx": [*_ONNX, ("onnxruntime", "checking what was exported", "onnx")],
    "torch-export": [],
    "openvino": [(name, "exporting to OpenVINO", "openvino") for name in ("openvino", "onnx", "onnxscript")],
    "executorch": [
        ("executorch.exir", "exporting to ExecuTorch", "executorch"),
        ("executorch.backends.xnnpack.partition.xnnpack_partitioner", "exporting to ExecuTorch", "executorch"),
    ],
}


# ---------------------------------------------------------------------- helpers


def _program(net: nn.Module, about: dict[str, Any]) -> tuple[torch.export.ExportedProgram, Any]:
    """The network as torch exports it, without word of where its code lies; and which dimensions are free."""
    shapes = [given["shape"] for given in about["inputs"].values()]
    examples = tuple(torch.rand(batch or 2, *rest) for batch, *rest in shapes)
    free = None
    if shapes[0][0] is None:
        batch = torch.export.Dim("batch", min=1)
        free = tuple({0: batch} for _ in examples)
    with silence(), torch.no_grad():
        program = torch.export.export(net, examples, dynamic_shapes=free)
    for node in program.graph.nodes:
        for said in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn"):
            node.meta.pop(said, None)
    return program, free


def _text(about: dict[str, Any]) -> str:
    return json.dumps(about, ensure_ascii=False)


@contextmanager
def _our_errors(format: Format) -> Iterator[None]:
    try:
        yield
    except (HlnetError, OSError):
        raise
    except Exception as error:  # exporters run the model's own code, and each has its own errors
        raise RunError(
            f"this network cannot be exported to {format}: {type(error).__name__}: {one_line(error)}"
        ) from error
