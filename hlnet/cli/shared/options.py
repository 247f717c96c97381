"""Options that several commands share, and the values in them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hlnet.errors import UsageError

if TYPE_CHECKING:
    from hlnet.model.base import TrainableNetwork
    from hlnet.model.fast.optimize import InferenceNet


#: Parts of a data set.
Split = Literal["train", "val", "test"]
#: Scores that separate images of a network's classes from others (``hlnet.evaluation.metrics.rejection``).
Score = Literal["energy", "max-logit", "probability"]
#: Endings of a picture's name.
PICTURES = (".png", ".svg", ".pdf")
#: Forms of a MODEL; ``hlnet.store.locate.locate_model`` finds it.
MODEL_NAMES = (
    "a .safetensors file, a run or model folder, local-dir:FOLDER, or hf-hub:OWNER/NAME (@REVISION may follow)"
)
Model = Annotated[str, typer.Argument(metavar="MODEL", help=f"A trained network: {MODEL_NAMES}.")]
Json = Annotated[bool, typer.Option("--json", help="Print results as JSON.")]
TreeFormat = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="Format of a tree's file, if the guess is wrong: canonical, nested, paths, edges, newick, node-link, "
        "children, labels or list.",
    ),
]
Header = Annotated[
    bool | None,
    typer.Option("--header/--no-header", help="Whether a table's first row is a header [default: guessed]."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps …; auto takes a GPU if there is one.")]
Seed = Annotated[int, typer.Option(min=0, help="Random seed.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that load images.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Batch size.")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder of timm's data sources (torch/…, hfds/…, wds/…).")]
Dtype = Annotated[str, typer.Option(help="Precision: float32, or bfloat16 if the processor supports it.")]
Classes = Annotated[
    str | None,
    typer.Option(
        help="Classes, separated by commas: names, inner nodes, ids, original indices, ranges, globs, @file; a minus "
        "removes: 'tabby,281-285,*terrier', 'animal -animal/dog'."
    ),
]


def integers(text: str | None, option: str) -> tuple[int, ...] | None:
    """``"6,26"`` as ``(6, 26)``.

    Raises:
        UsageError: if it is anything else.
    """
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} '{text}': expected whole numbers between commas, such as 64,32,16") from None


def numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """``"0.5,0.4"`` as ``(0.5, 0.4)``.

    Raises:
        UsageError: if it is anything else.
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} '{text}': expected numbers between commas, such as 0.35,1") from None


def byte_size(text: str | None, option: str) -> int | None:
    """``"20GB"`` as 20000000000; KiB, MiB and so on are powers of 1024.

    Raises:
        UsageError: if it is anything else, or less than a byte.
    """
    from pydantic import ByteSize, TypeAdapter, ValidationError

    if text is None:
        return None
    try:
        size = 0 if text.count(".") > 1 else int(TypeAdapter(ByteSize).validate_python(text.strip()))
    except ValidationError:
        size = 0
    if size < 1:
        raise UsageError(f"{option} '{text}': expected a number and a unit, such as 20GB, 500MB or 1.5GiB")
    return size


def where_to_save(model: str, out: Path | None) -> Path:
    """The checkpoint to store fitted values in: that of ``--out``, else the MODEL's own file.

    Raises:
        UsageError: if the name has another ending, or the model's own file is on the Hub.
    """
    from hlnet.store.locate import locate_model
    from hlnet.store.names import HUB

    if out is None and model.startswith(HUB):
        raise UsageError(f"'{model}' is on the Hub; name the file to write with --out")
    if out is not None and out.suffix != ".safetensors":
        raise UsageError(f"--out '{out}': a checkpoint's name ends in .safetensors")
    return out or Path(locate_model(model))


def short_name(model: str) -> str:
    """A model file's own name, or its run folder's.

    >>> short_name("runs/pets/best.safetensors"), short_name("runs/pets"), short_name("cats.safetensors")
    ('pets', 'pets', 'cats')
    """
    path = Path(model)
    name = path.stem if path.suffix == ".safetensors" else path.name
    return path.parent.name if name in ("best", "last", "model") and path.parent.name else name or model


def check_picture(path: Path | None, option: str, endings: Sequence[str] = PICTURES) -> None:
    """Refuse a picture's name before minutes of work.

    Raises:
        UsageError: if it has none of the endings.
    """
    if path is not None and path.suffix.lower() not in endings:
        raise UsageError(f"{option} '{path}': its name must end in {', '.join(endings)}")


def settings(pairs: list[str], option: str) -> dict[str, Any]:
    """``["pad_type=same", "depth=3"]`` as a mapping; whole numbers, decimals, true and false are understood.

    Raises:
        UsageError: for a pair without ``=``.
    """
    import yaml

    values = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign:
            raise UsageError(f"{option} '{pair}': expected name=value, such as pad_type=same")
        try:
            values[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UsageError(f"{option} '{pair}': '{value}' is no number, true, false or text") from None
    return values


def image_files(words: Sequence[str | Path], option: str) -> Iterator[str]:
    """Image files of names, folders, patterns and, with ``-``, lines of standard input; listed one by one.

    Raises:
        UsageError: as :func:`hlnet.data.image_files.image_files`.
    """
    from hlnet.data.image_files import image_files

    if hasattr(sys.stdin, "reconfigure"):  # names of files need not be text
        sys.stdin.reconfigure(errors="surrogateescape")
    return image_files(words, sys.stdin, option)


def pick_device(name: str) -> str:
    """The torch device for a name; ``auto`` takes a GPU where there is one.

    Raises:
        UsageError: if torch does not know it or cannot use it here.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"--device '{name}' cannot be used here; auto takes the best one here, cpu always works"
        ) from error
    return name


def load_optimized(name: str | Path, device: str = "auto", dtype: str = "float32") -> InferenceNet:
    """A model's inference form, on the device that ``--device`` names."""
    from hlnet.model.fast.optimize import optimize

    return optimize(load_model(name, device), dtype)


def load_model(name: str | Path, device: str = "auto") -> TrainableNetwork:
    """The network of a MODEL, on the device that ``--device`` names."""
    from hlnet.store.checkpoint import load_checkpoint

    return load_checkpoint(name, pick_device(device))
