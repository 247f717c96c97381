"""``hlnet attend``: the cue report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hlnet.cli.shared import options
from hlnet.errors import UsageError

if TYPE_CHECKING:
    from hlnet.evaluation.cue_report import CuedNetwork, CueReport
    from hlnet.model.transform import InputTransform


#: The gain of the paper's Table 5.
PAPER_GAIN = 100.0
#: A gain that costs less than this leaves too little to choose a bias by that costs as much.
LEAST_COST = 0.002


#: What a wrong cue names.
WrongCue = Literal["random", "sibling", "confusable"]


def attend(
    model: options.Model,
    data: Annotated[
        str, typer.Option(help="Folder with labelled images by split, 'digits', or one of timm's sources.")
    ],
    split: Annotated[options.Split, typer.Option(help="Which part of the data.")] = "val",
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
        int | None, typer.Option(min=1, help="Cue nodes of this level, 1 nearest to the trunk; default: classes.")
    ] = None,
    gains: Annotated[str | None, typer.Option(help="Gains to try, between commas: 1.4,1.8,3.")] = None,
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

    A third of the images chooses strengths, a third the mechanism to store, and the last third gives the figures.
    Labels say what a correct cue is. --save or --out stores the best setting, which --attention-signal auto then takes.

    Cues come from the labels (an oracle that errs as often as stated). Strengths are chosen on one part of the images;
    the figures come from another part. --save or --out stores the best setting for --attention-signal auto. Writes only
    the files of --save, --out and --picture.

    **Examples**

        hlnet attend runs/digits --data digits --save

        hlnet attend runs/photos --data photos --plain runs/plain --reliability 0.75 --picture cues.png
    """
    from hlnet.cli.shared import output, used_images
    from hlnet.cues.cue import stored_effect
    from hlnet.data.sources import load_data
    from hlnet.data.tree_data import TreeData, eval_transform, loader
    from hlnet.evaluation.cue_picture import plot_cue_report
    from hlnet.evaluation.cue_report import GAINS
    from hlnet.evaluation.cue_report import attend as measure
    from hlnet.files import check_writable
    from hlnet.model.fast.optimize import optimize
    from hlnet.model.plain import PlainNet
    from hlnet.store.checkpoint import save_checkpoint

    options.check_picture(picture, "--picture")
    if save and out is not None:
        raise UsageError("--save writes into MODEL's own file, --out into another one; give one of them")
    if (save or out) and cue_level is not None:
        raise UsageError("what is stored is for cues on classes: leave --cue-level out, or --save and --out")
    if not 0 < reliability < 1:
        raise UsageError(f"--reliability {reliability:g} must lie between 0 and 1, both excluded")
    target = options.where_to_save(model, out) if save or out else None
    net = options.load_model(model, device)
    for path in (target, picture):
        if path is not None:
            check_writable(path)
    beside = options.load_model(plain, device) if plain else None
    if beside is not None and not isinstance(beside, PlainNet):
        raise UsageError(f"--plain '{plain}' is no plain network; hlnet train --plain makes one")
    images = load_data(data, split, data_root)
    used_images.hint_before_fitting(model, net.provenance, images)

    def batches(transform: InputTransform) -> Any:
        return loader(TreeData(images, net.tree, eval_transform(transform), subset=True), batch_size, workers)

    own = batches(net.transform)
    others = None if beside is None else (optimize(beside, dtype), batches(beside.transform))
    with output.progress() as bar:
        task = bar.add_task("attending", total=len(own) + (len(others[1]) if others else 0))
        report = measure(
            optimize(net, dtype),
            own,
            others,
            reliability,
            wrong_cue,
            cue_level,
            options.numbers(gains, "--gains") or GAINS,
            f"{data} ({split})",
            seed,
            lambda: bar.advance(task),
        )
    if picture is not None:
        plot_cue_report(report, picture)
    if target is not None:
        kept = {"attention": report.attention, "temperature": report.network.temperature}
        net.provenance = net.provenance.model_copy(update=kept)
        for use in ("attention", "temperature"):
            net.provenance.record(use, images.name, images.fingerprint())
        save_checkpoint(net, target)
    output.result(as_json, report, lambda: _show(report))
    if picture is not None:
        output.hint(f"the picture is in '{picture}'")
    if target is not None:
        what = stored_effect(net.provenance, report.classes)
        output.hint(
            f"stored in '{target}' for --attention-signal auto: a cue on a class that is right in "
            f"{100 * reliability:g} % of cases acts as {what}; the temperature is {report.network.temperature:.3g}"
        )
        output.hint_at_stale_copy(target)
    if target is None and report.attention is not None:
        output.hint("nothing was stored: --save keeps the setting in the model's file, --out in a copy")


def _show(report: CueReport) -> None:
    """The paper's two tables, and what the ways of cueing make of cues that are right so often."""
    from hlnet.cli.shared import output

    networks = {"": report.network} | ({"plain, ": report.plain} if report.plain else {})
    what = "classes" if report.level is None else f"nodes of level {report.level}"
    output.show(
        f"Cues on {what}, from labels (an oracle): strengths chosen on {report.tuned_on} images, the way to store on "
        f"{report.picked_on}, figures from {report.reported_on} others. Without a cue: "
        + ", ".join(f"{name}{100 * network.neutral:.2f} %" for name, network in networks.items())
        + "."
    )
    _show_strengths(report, networks)
    _show_shares(report, networks)
    _show_choices(report, networks)


def _show_strengths(report: CueReport, networks: dict[str, CuedNetwork]) -> None:
    """Table 4, strength by strength, with the cost; and the bias that costs as much."""
    from hlnet.cli.shared import output

    found = report.network.frontier("gain") or report.network.frontiers[0]
    rows = []
    for position, strength in enumerate(found.strengths):
        wrong = {kind: shares[position] for kind, shares in found.wrong.items()}
        row = [f"{strength:g}", _points(found.right[position], report.network.neutral)]
        row += [_points(share, report.network.neutral) for share in wrong.values()]
        for network in networks.values():
            bias = network.frontier("bias")
            if found.mode == "gain" and bias is not None:
                cost = report.network.neutral - wrong[report.wrong]
                right = bias.right_at(network.neutral - cost, report.wrong)
                row.append(_points(right, network.neutral) if cost >= LEAST_COST else "–")
        rows.append(row)
    columns = [found.mode, "all right", *(f"all wrong ({kind})" for kind in found.wrong)]
    if found.mode == "gain":
        columns += [f"{name}bias of that cost" for name in networks]
    title = "Top-1 by strength, in points above no cue (paper, Table 4, with what it costs)"
    if found.mode == "gain":
        title += f"; last, what right cues give as a bias that costs as much ({report.wrong})"
    output.show_table(title, columns, rows)


def _show_shares(report: CueReport, networks: dict[str, CuedNetwork]) -> None:
    """Table 5: by the share of wrong cues."""
    from hlnet.cli.shared import output
    from hlnet.evaluation.cue_report import WRONG_SHARES
    from hlnet.evaluation.cue_trial import mixed

    ends = {}
    gains = report.network.frontier("gain")
    if gains is not None and PAPER_GAIN in gains.strengths:
        place = gains.strengths.index(PAPER_GAIN)
        ends[f"gain {PAPER_GAIN:g}"] = (gains.right[place], gains.wrong[report.wrong][place], report.network.neutral)
    for name, network in networks.items():
        for way in ("gain", "bias", "scale"):
            if choice := network.choice(way, report.reliability):
                ends[f"{name}{way} {choice.strength:.4g}"] = (choice.right, choice.wrong, network.neutral)
    columns = list(ends)
    rows = [
        [
            output.percent(share, 1),
            *(_points(mixed(right, wrong, share), neutral) for right, wrong, neutral in ends.values()),
        ]
        for share in WRONG_SHARES
    ]
    title = (
        f"Top-1 by the share of wrong cues ({report.wrong}), in points above no cue (paper, Table 5); strengths chosen "
        f"for {100 * report.reliability:g} % right"
    )
    output.show_table(title, ["wrong", *columns], rows)


def _show_choices(report: CueReport, networks: dict[str, CuedNetwork]) -> None:
    """What each way gives, chosen for cues of a reliability."""
    from hlnet.cli.shared import output

    names = {
        "gain": "gain",
        "stored": "gain by the file's curve",
        "scale": "scale",
        "bias": "bias, tuned",
        "bayes": "bias by formula",
    }
    rows = []
    for reliability in sorted({choice.reliability for choice in report.network.choices}):
        for name, network in networks.items():
            for way, told in names.items():
                choice = network.choice(way, reliability)  # type: ignore[arg-type]
                if choice is None:
                    continue
                above = choice.against_bias
                rows.append(
                    [
                        f"{100 * reliability:g} %",
                        f"{name}{told}",
                        f"{choice.strength:.4g}",
                        output.percent(choice.top1),
                        f"{100 * above.mean:+.2f} [{100 * above.low:+.2f}, {100 * above.high:+.2f}]" if above else "",
                    ]
                )
    title = "Top-1 of cues that are right so often, each way at its best"
    output.show_table(title, ["right", "way", "strength", "top-1", "above the tuned bias [95 %]"], rows)


def _points(share: float, neutral: float) -> str:
    return f"{100 * (share - neutral):+.2f}"
