"""``hlnet attend``: the cue report."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hlnet.cli.shared import options
from hlnet.errors import UsageError

if TYPE_CHECKING:
    from hlnet.data.images import LabelledImages
    from hlnet.evaluation.cue_report import CueReport
    from hlnet.model.base import TrainableNetwork
    from hlnet.model.fast.optimize import InferenceNet


#: Target of wrong cues.
WrongCue = Literal["random", "sibling", "confusable"]


def attend(
    model: options.Model,
    data: Annotated[
        str, typer.Option(help="Folder with labelled images by split, 'digits', or one of timm's sources.")
    ],
    split: Annotated[options.Split, typer.Option(help="Part of the data.")] = "val",
    plain: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A plain network of the same classes as a baseline, with bias and scale."),
    ] = None,
    reliability: Annotated[
        float, typer.Option(help="How often cues are right, between 0 and 1; --save stores the best setting for this.")
    ] = 0.9,
    wrong_cue: Annotated[
        WrongCue, typer.Option(help="Kind of wrong cues for which strengths are chosen; the frontiers show all three.")
    ] = "random",
    cue_level: Annotated[
        int | None, typer.Option(min=1, help="Level of the cued nodes, 1 nearest to the trunk; default: the classes.")
    ] = None,
    gains: Annotated[str | None, typer.Option(help="Gains to try, separated by commas: 1.4,1.8,3.")] = None,
    save: Annotated[
        bool,
        typer.Option(
            "--save", help="Store the best setting and the temperature of the probabilities in MODEL's own file."
        ),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Store them in a copy of MODEL: a .safetensors file.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the frontiers: .png, .svg or .pdf.")] = None,
    batch_size: options.BatchSize = 64,
    workers: options.Workers = 2,
    data_root: options.DataRoot = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Measure how much correct cues help and wrong cues hurt, for each mechanism.

    A cue is outside information about the class of an image, such as a sound. Three mechanisms act on it: a gain scales
    features, a bias shifts logits, a scale multiplies logits. The report has accuracy by strength and by reliability,
    always under correct and under wrong cues, and for a --plain network as a baseline.

    Cues come from the labels (an oracle that errs as often as stated). A third of the images chooses strengths, a third
    the mechanism to store, and the last third gives the figures. --save or --out stores the best setting, which
    --attention-signal auto then takes. Writes only the files of --save, --out and --picture.

    **Examples**

        hlnet attend runs/digits --data digits --save

        hlnet attend runs/photos --data photos --plain runs/plain --reliability 0.75 --picture cues.png
    """
    from hlnet.cli.shared import cue_tables, output, used_images
    from hlnet.data.sources import load_data
    from hlnet.data.tree_data import TreeData, eval_transform
    from hlnet.evaluation.cue_picture import plot_cue_report
    from hlnet.evaluation.cue_report import GAINS
    from hlnet.evaluation.cue_report import attend as measure
    from hlnet.files import check_writable
    from hlnet.model.fast.optimize import optimize

    options.check_picture(picture, "--picture")
    target = _target(model, save, out, cue_level)
    if not 0 < reliability < 1:
        raise UsageError(f"--reliability {reliability:g} must lie between 0 and 1, both excluded")
    net = options.load_model(model, device)
    for path in (target, picture):
        if path is not None:
            check_writable(path)
    baseline = _load_plain(plain, device, dtype) if plain else None
    images = load_data(data, split, data_root)
    used_images.hint_before_fitting(model, net.provenance, images)
    labelled = TreeData(images, net.tree, eval_transform(net.transform), subset=True)
    with output.progress() as bar:
        steps = math.ceil(len(labelled) / batch_size) * (1 if baseline is None else 2)
        task = bar.add_task("attending", total=steps)
        tried = options.numbers(gains, "--gains") or GAINS
        report = measure(
            *(optimize(net, dtype), labelled, baseline, reliability, wrong_cue, cue_level, tried),
            *(batch_size, workers, seed, lambda: bar.advance(task)),
        )
    if picture is not None:
        plot_cue_report(report, picture)
    if target is not None:
        _store(net, report, images, target)
    output.result(as_json, report, lambda: cue_tables.show_cue_report(report))
    if picture is not None:
        output.hint(f"the picture is in '{picture}'")
    _hint_at_target(net, report, target)


def _target(model: str, save: bool, out: Path | None, cue_level: int | None) -> Path | None:
    """The file to store the setting in, if any."""
    if save and out is not None:
        raise UsageError("--save writes into MODEL's own file, --out into another one; give one of them")
    if (save or out) and cue_level is not None:
        raise UsageError("the stored setting is for cues on classes: leave --cue-level out, or --save and --out")
    return options.where_to_save(model, out) if save or out else None


def _load_plain(plain: str, device: str, dtype: str) -> InferenceNet:
    """The plain network to compare with."""
    net = options.load_optimized(plain, device, dtype)
    if net.has_branches:
        raise UsageError(f"--plain '{plain}' is no plain network; hlnet train --plain makes one")
    return net


def _store(net: TrainableNetwork, report: CueReport, images: LabelledImages, target: Path) -> None:
    """Write the network with the best setting and the temperature."""
    from hlnet.store.checkpoint import save_checkpoint

    fitted = {"attention": report.attention, "temperature": report.network.temperature}
    net.provenance = net.provenance.model_copy(update=fitted)
    for use in ("attention", "temperature"):
        net.provenance.record(use, images.name, images.fingerprint())
    save_checkpoint(net, target)


def _hint_at_target(net: TrainableNetwork, report: CueReport, target: Path | None) -> None:
    """Say which setting is stored where, or how to store it."""
    from hlnet.cli.shared import output
    from hlnet.cues.cue import stored_effect

    if target is not None:
        effect = stored_effect(net.provenance, report.classes)
        output.hint(
            f"stored in '{target}' for --attention-signal auto: a cue on a class that is right in "
            f"{100 * report.reliability:g} % of cases acts as {effect}; the temperature is "
            f"{report.network.temperature:.3g}"
        )
        output.hint_at_stale_copy(target)
    elif report.attention is not None:
        output.hint("nothing was stored: --save keeps the setting in the model's file, --out in a copy")
