"""``hlnet calibrate``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hlnet.cli.shared import options
from hlnet.errors import UsageError, counted

if TYPE_CHECKING:
    from hlnet.model.provenance import PathConformal, Rejection


def calibrate(
    model: options.Model,
    data: Annotated[
        str,
        typer.Option(
            help="Folder with labelled images by split, 'digits', or one of timm's sources; with --agreement, any "
            "folder of images."
        ),
    ],
    split: Annotated[
        options.Split, typer.Option(help="Part of the data; not one that the network was trained on.")
    ] = "val",
    out: Annotated[
        Path | None, typer.Option(help="The .safetensors file to write; default: MODEL's own file, in one step.")
    ] = None,
    reject_own: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Also fit 'none of these' without images of other classes: this share of images of the network's "
            "classes may be rejected.",
        ),
    ] = None,
    agreement: Annotated[
        str | None,
        typer.Option(
            metavar="SHARES",
            help="Fit descents instead, for predict --agreement: shares of images whose answer must be the full "
            "network's, such as 0.98,0.99. Needs a network with class rows (lean_…), but no labels.",
        ),
    ] = None,
    batch_size: options.BatchSize = 64,
    workers: options.Workers = 2,
    data_root: options.DataRoot = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Calibrate a network's probabilities on labelled images, so that 80 % means right 80 % of the time.

    Fits two things: the temperature that divides the logits, and the thresholds of predict --coverage. A random half of
    the images fits each; each half needs at least 19 images for a coverage of 0.95, 99 for 0.99. Weights and "none of
    these" do not change. Cutting or training the network drops the fit. Images of classes that the network does not
    have are left out; make-expert --calibrate uses them to fit "none of these".

    --agreement fits how early a descent may stop: each image runs the classes' rows first, then only the families of
    leaves that may still win. The promise holds with a confidence of 95 % for images like these. It needs at least 59
    images for an agreement of 0.95, 149 for 0.98, 299 for 0.99; more images let it stop earlier.

    **Examples**

        hlnet calibrate runs/photos --data photos

        hlnet calibrate hf-hub:owner/pets --data photos --split test --out pets.safetensors --json

        hlnet calibrate runs/lean --data camera/ --agreement 0.98,0.99
    """
    if agreement is not None:
        if reject_own is not None:
            raise UsageError("--agreement fits descents alone; run --reject-own apart")
        _calibrate_descent(model, data, split, out, agreement, (batch_size, workers), data_root, device, as_json)
        return
    from hlnet.cli.shared import output, used_images
    from hlnet.data.sources import load_data
    from hlnet.data.tree_data import TreeData, eval_transform
    from hlnet.evaluation.calibration import calibrate_own, calibrate_paths
    from hlnet.files import check_writable
    from hlnet.model.fast.optimize import optimize
    from hlnet.store.checkpoint import save_checkpoint

    target = options.where_to_save(model, out)
    net = options.load_model(model, device)
    outside = net.provenance.one_vs_rest  # such probabilities are of any image
    images = load_data(data, split, data_root)
    used_images.hint_before_fitting(model, net.provenance, images)
    labelled = TreeData(images, net.tree, eval_transform(net.transform), subset=not outside, outside=outside)
    check_writable(target)
    rejection = None
    with output.progress() as bar:
        task = bar.add_task("calibrating", total=math.ceil(len(labelled) / batch_size))
        fast = optimize(net)  # what is fitted is the network's own, too
        fitted = calibrate_paths(fast, labelled, batch_size, workers, lambda: bar.advance(task))
        if reject_own is not None:
            own_images = TreeData(images, net.tree, eval_transform(net.transform), subset=True)
            rejection = calibrate_own(fast, own_images, reject_own, None, batch_size, workers)
    save_checkpoint(net, target)
    temperature = net.provenance.temperature
    assert temperature is not None
    figures = {"out": str(target), "left_out": labelled.left_out, "temperature": temperature}
    if rejection is not None:
        figures |= {"rejection": rejection.model_dump(mode="json")}
    figures |= {"conformal": fitted.model_dump(mode="json", exclude={"thresholds"})}
    output.result(as_json, figures, lambda: _show(fitted, temperature, rejection, labelled.left_out, target))


def _show(fitted: PathConformal, temperature: float, rejection: Rejection | None, left_out: int, target: Path) -> None:
    """The fits as tables, and their file."""
    from hlnet.cli.shared import calibration_tables, output

    calibration_tables.show_path_calibration(fitted, temperature)
    if rejection is not None:
        calibration_tables.hint_at_own_rejection(rejection)
    if left_out:
        output.hint(f"{counted(left_out, 'image')} of other classes left out")
    output.hint(f"written to '{target}'; hlnet predict {target} IMAGES --coverage 0.9 uses it")
    output.hint_at_stale_copy(target)


def _calibrate_descent(
    model: str,
    data: str,
    split: options.Split,
    out: Path | None,
    agreement: str,
    loading: tuple[int, int],
    data_root: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Fit where descents stop; ``loading``: batch size and workers."""
    from hlnet.cli.shared import calibration_tables, output, used_images
    from hlnet.data.sources import load_any_images
    from hlnet.evaluation.descent_fit import calibrate_descent
    from hlnet.files import check_writable
    from hlnet.model.fast.optimize import optimize
    from hlnet.store.checkpoint import save_checkpoint

    agreements = options.numbers(agreement, "--agreement") or ()
    target = options.where_to_save(model, out)
    net = options.load_model(model, device)
    images = load_any_images(data, split, data_root)
    used_images.hint_before_fitting(model, net.provenance, images)
    check_writable(target)
    with output.progress() as bar:
        task = bar.add_task("calibrating", total=math.ceil(len(images) / loading[0]))
        fitted = calibrate_descent(
            optimize(net), images, agreements, 0.95, *loading, on_batch=lambda: bar.advance(task)
        )
    save_checkpoint(net, target)

    def show() -> None:
        calibration_tables.show_descents(fitted)
        output.hint(f"written to '{target}'; hlnet predict {target} IMAGES --agreement {agreements[0]:g} uses it")
        output.hint_at_stale_copy(target)

    output.result(as_json, {"out": str(target), "descent": [one.model_dump(mode="json") for one in fitted]}, show)
