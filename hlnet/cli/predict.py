"""``hlnet predict``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hlnet.cli import options
from hlnet.errors import RunError

if TYPE_CHECKING:
    from hlnet.prediction import Prediction
    from hlnet.provenance import Rejection


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

    Reads images; writes nothing. Probabilities are shares among the network's own classes, or, of a network trained
    with --loss bce, each class's own. A network that holds a threshold (make-expert --calibrate) says "none of these"
    of images that score below it. One that has a single class and no threshold gives its score. An image that cannot
    be read is reported and does not end the run, but the exit code is then 1. With --json, one object a line; the
    labels of an image that is "rejected" are in it all the same.

    **Examples**

        hlnet predict cats.safetensors photo.jpg

        hlnet predict runs/photos/best.safetensors holiday/ --top 1 --json

        hlnet predict hf-hub:owner/pets photo.jpg
    """
    from hlnet import prediction
    from hlnet.cli import output

    files, net = options.image_files(images, "IMAGES"), options.load_optimized(model, device, dtype)
    rejection = net.provenance.rejection
    if len(net.tree.classes) == 1 and rejection is None:
        output.hint(
            "one class, and no threshold: a score ranks images; make-expert --calibrate finds from where it is a yes"
        )
    failed = 0
    for found in prediction.predict(net, files, top, batch_size):
        if found.error is not None:
            failed += 1
            output.hint(found.error)
        if as_json:
            typer.echo(found.model_dump_json(exclude_none=True))
        elif found.error is None:
            output.show(found.image)
            for line in _lines(found, rejection):
                output.show(f"  {line}")
    if failed:
        raise RunError(f"{failed} of {len(files)} images could not be read")


def _lines(found: Prediction, rejection: Rejection | None) -> Iterator[str]:
    """The answer for one image."""
    told = "" if found.score is None else f"score {found.score:.4g}"
    if rejection:
        told = f"{rejection.score} {found.score:.4g}, accepted from {rejection.threshold:.4g}"
    if found.rejected:
        yield f"none of these  ({told})"
        return
    for label in found.labels:
        if label.probability is None:
            yield f"{'accepted' if rejection else 'perhaps'}  {label.path}  ({told})"
        else:
            yield f"{100 * label.probability:6.2f} %  {label.path}"
