"""``hlnet predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hlnet.cli import options
from hlnet.errors import RunError, UsageError


def predict(
    model: options.Model,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Image files, or folders of them.")],
    top: Annotated[int, typer.Option(min=1, help="Labels for each image.")] = 5,
    batch_size: options.BatchSize = 16,
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",
    as_json: options.Json = False,
) -> None:
    """Label images: classes with probabilities and their paths in the tree.

    Reads images; writes nothing. Probabilities are shares among the network's own classes: with one class, always
    100 %. An image that cannot be read is
    reported and does not end the run, but the exit code is then 1. With --json, one object a line.

    **Examples**

        hlnet predict cats.safetensors photo.jpg

        hlnet predict runs/photos/best.safetensors holiday/ --top 1 --json

        hlnet predict hf-hub:owner/pets photo.jpg
    """
    from hlnet import prediction
    from hlnet.cli import output

    files = _files(images)
    failed = 0
    for found in prediction.predict(options.load_optimized(model, device, dtype), files, top, batch_size):
        if found.error is not None:
            failed += 1
            output.hint(found.error)
        if as_json:
            typer.echo(found.model_dump_json(exclude_none=True))
        elif found.error is None:
            output.show(found.image)
            for label in found.labels:
                output.show(f"  {100 * label.probability:6.2f} %  {label.path}")
    if failed:
        raise RunError(f"{failed} of {len(files)} images could not be read")


def _files(paths: list[Path]) -> list[Path]:
    from hlnet.tree_io import IMAGE_SUFFIXES

    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(entry for entry in path.rglob("*") if entry.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise UsageError(f"folder '{path}' holds no images")
            files += inside
        else:
            files.append(path)
    return files
