"""Running exported networks where they are meant to run: one way to open them all, for checks and for timing.

Notable here: a deployed network needs none of this. ``examples/onnx_predict.py`` shows what it takes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hlnet.errors import CheckpointError, HlnetError, UsageError, one_line
from hlnet.optional import require, silence

#: Under this key an exported file says what it holds, as JSON: see :func:`hlnet.store.export.about.describe`.
KEY = "hlnet"
#: The name of that text within an archive of torch.export's.
MEMBER = f"{KEY}.json"

Array = NDArray[np.float32]


@dataclass(frozen=True)
class ExportedNet:
    """An exported network, open in its runtime.

    Attributes:
        runtime: the runtime's name.
        about: what the file says of itself, see :func:`hlnet.store.export.about.describe`.
        run: from inputs by name, float32 and contiguous, to logits.
    """

    runtime: str
    about: dict[str, Any]
    run: Callable[[dict[str, Array]], Array]

    @property
    def batch(self) -> int | None:
        """Images that run together, where that is fixed."""
        found: int | None = self._first[1][0]
        return found

    @property
    def nodes(self) -> int | None:
        """Gains that an image takes; ``None`` if the network was exported without."""
        gains = self.about["inputs"].get("gains")
        return None if gains is None else int(gains["shape"][1])

    def __call__(self, images: Array | Tensor, gains: Array | Tensor | None = None) -> Array:
        """Logits ``[N, classes]``; of a trunk, features ``[N, C, h, w]``.

        Args:
            images: ``[N, 3, H, W]``, pixel values in 0..1; for a head, the features that its trunk gave.
            gains: ``[N, nodes]``, for networks exported with them; default: 1, which is neutral.

        Raises:
            UsageError: if it has no gains to give them to, or takes images or features of another shape.
        """
        name, (_, *shape) = self._first
        inputs = {name: _array(images)}
        if list(inputs[name].shape[1:]) != shape:
            wanted = ", ".join(map(str, ["N", *shape]))
            raise UsageError(f"it takes {name} of shape [{wanted}], got {list(inputs[name].shape)}")
        if self.nodes is not None:
            inputs["gains"] = _array(np.ones((len(images), self.nodes)) if gains is None else gains)
        elif gains is not None:
            raise UsageError("this network was exported without gains; export it with them (--with-gains)")
        if self.batch is None:
            return self.run(inputs)
        parts = range(0, len(images), self.batch)
        runs = [self.run({name: array[i : i + self.batch] for name, array in inputs.items()}) for i in parts]
        return np.concatenate(runs)

    @property
    def _first(self) -> tuple[str, list[Any]]:
        """The first input's name and shape."""
        name, given = next(iter(self.about["inputs"].items()))
        return name, given["shape"]


class AsModule(nn.Module):
    """Exported networks, each on what the one before gives, in the place of a torch one: for what times modules.

    Args:
        exported: one network, or a trunk and its head.
    """

    def __init__(self, *exported: ExportedNet) -> None:
        super().__init__()
        self.exported = exported

    def forward(self, images: Tensor) -> Tensor:
        """As :meth:`ExportedNet.__call__`."""
        found: Array | Tensor = images
        for part in self.exported:
            found = part(found)
        return torch.as_tensor(found)


def open_exported(path: str | Path, threads: int | None = None, trunk: ExportedNet | None = None) -> ExportedNet:
    """Open a file that :func:`hlnet.export_model` wrote, in the runtime that it was written for.

    All compute in float32, OpenVINO too, which by itself takes bfloat16 where the processor has it.

    Args:
        path: the file, which ends in ``.onnx``, ``.xml`` (OpenVINO), ``.pt2`` (torch.export) or ``.pte`` (ExecuTorch).
        threads: to compute with; default: as the runtime decides. torch has one number for everything in the process,
            which is left alone.
        trunk: for the file of a head (``hlnet export --parts``): the opened trunk whose features it is to take.

    Raises:
        UsageError: if there is no such file, its name ends in something else, the runtime is not installed, or the head
            belongs to another trunk.
        CheckpointError: if the file is damaged or not one of hlnet's.

    Example:
        >>> cats = open_exported("cats.onnx")  # doctest: +SKIP
        >>> cats.about["classes"][cats(images).argmax(1)[0]]  # doctest: +SKIP
        'tabby'

        Heads of two experts on the features of one trunk:

        >>> trunk = open_exported("cats.trunk.onnx")  # doctest: +SKIP
        >>> heads = [open_exported(f"{name}.head.onnx", trunk=trunk) for name in ("cats", "dogs")]  # doctest: +SKIP
        >>> features = trunk(images)  # doctest: +SKIP
        >>> [head(features) for head in heads]  # doctest: +SKIP
    """
    path = Path(path)
    if path.suffix not in _OPENERS:
        raise UsageError(f"'{path}' is no exported network: such a name ends in {', '.join(_OPENERS)}")
    if not path.is_file():
        raise UsageError(f"there is no file '{path}'")
    try:
        with silence():
            name, text, run = _OPENERS[path.suffix](path, threads)
        opened = ExportedNet(name, json.loads(text), run)
    except HlnetError:
        raise
    except Exception as error:  # each runtime has its own
        raise CheckpointError(f"'{path}' cannot be opened as an export of hlnet's: {one_line(error)}") from error
    if trunk is not None:
        _check_trunk(path, opened.about, trunk.about)
    return opened


# ---------------------------------------------------------------------- the runtimes

_Opened = tuple[str, str, Callable[[dict[str, Array]], Array]]


def _open_onnx(path: Path, threads: int | None) -> _Opened:
    runtime = require("onnxruntime", "running ONNX files", "onnx")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = threads or 0
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    text = _said(session.get_modelmeta().custom_metadata_map)
    return "onnxruntime", text, lambda inputs: session.run(None, inputs)[0]


def _open_openvino(path: Path, threads: int | None) -> _Opened:
    openvino = require("openvino", "running OpenVINO files", "openvino")
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # the files may be replaced while it runs
    model = core.read_model(str(path), str(path.with_suffix(".bin")))
    settings = {"INFERENCE_PRECISION_HINT": "f32"} | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
    compiled = core.compile_model(model, "CPU", settings)
    text = model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else _said({})
    return "OpenVINO", text, lambda inputs: compiled(inputs)[0]


def _open_torch(path: Path, threads: int | None) -> _Opened:
    extra = {MEMBER: ""}
    module = torch.export.load(str(path), extra_files=extra).module()

    def run(inputs: dict[str, Array]) -> Array:
        with torch.inference_mode():
            found: Array = module(*map(torch.from_numpy, inputs.values())).numpy()
        return found

    return "torch.export", extra[MEMBER] or _said({}), run


def _open_executorch(path: Path, threads: int | None) -> _Opened:
    library = require("executorch.extension.pybindings.portable_lib", "running ExecuTorch files", "executorch")
    runtime = require("executorch.runtime", "running ExecuTorch files", "executorch").Runtime.get()
    if threads:  # of all its programs: it has one pool
        library._unsafe_reset_threadpool(threads)
    program = runtime.load_program(str(path))
    text = program.load_method(KEY).execute([])[0] if KEY in program.method_names else _said({})
    method = program.load_method("forward")

    def run(inputs: dict[str, Array]) -> Array:
        found: Array = method.execute([torch.from_numpy(array) for array in inputs.values()])[0].numpy()
        return found.copy()  # the next call writes into the same memory

    return "ExecuTorch", text, run


_OPENERS: dict[str, Callable[[Path, int | None], _Opened]] = {
    ".onnx": _open_onnx,
    ".pt2": _open_torch,
    ".xml": _open_openvino,
    ".pte": _open_executorch,
}


# ---------------------------------------------------------------------- helpers


def _check_trunk(path: Path, head: dict[str, Any], trunk: dict[str, Any]) -> None:
    """Refuse a head whose features come from another trunk.

    Raises:
        UsageError: if they do, or the two are no head and trunk.
    """
    for about, wanted, which in ((head, "head", f"'{path}'"), (trunk, "trunk", "the network given as trunk")):
        if (part := about.get("part")) != wanted:
            found = f"a {part}" if part else "a whole network"
            raise UsageError(f"{which} is {found}, not a {wanted}: hlnet export --parts writes trunk and head apart")
    if head["trunk"] != trunk["trunk"]:
        raise UsageError(
            f"'{path}' is the head of another trunk ({head['trunk'][:12]}, given {trunk['trunk'][:12]}): take the "
            "trunk that was exported with it, or with another expert of the same network"
        )


def _said(found: dict[str, str]) -> str:
    if KEY not in found:
        raise ValueError("it does not say what it holds")
    return found[KEY]


def _array(values: Any) -> Array:
    return np.ascontiguousarray(values, dtype=np.float32)
