"""``hlnet eval``."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hlnet.cli import options
from hlnet.errors import UsageError

if TYPE_CHECKING:
    from hlnet.evaluation import Evaluation
    from hlnet.inference import InferenceNet
    from hlnet.profiling import Cost
    from hlnet.rejection import Detection


def evaluate(
    model: options.Model,
    data: Annotated[
        str, typer.Option(help="Folder with labelled images by split, 'digits', or one of timm's sources.")
    ],
    split: Annotated[options.Split, typer.Option(help="Which part of the data.")] = options.Split.val,
    classes: options.Classes = None,
    attention_signal: Annotated[
        float | None,
        typer.Option(help="Also evaluate with the features of each image's own class scaled by this (1 is neutral)."),
    ] = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="Evaluate this one too, restricted to the same classes, and show what each costs; repeatable.",
        ),
    ] = None,
    score: Annotated[
        options.Score | None,
        typer.Option(help="Also measure how well this tells images of other classes; default: the stored one."),
    ] = None,
    roc: Annotated[
        Path | None, typer.Option(help="Write the curve of that: a picture (.png, .svg, .pdf), or .csv.")
    ] = None,
    batch_size: options.BatchSize = 64,
    workers: options.Workers = 2,
    data_root: options.DataRoot = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",
    as_json: options.Json = False,
) -> None:
    """Measure accuracy: top-1, top-5 and per class; calibration; and "none of these".

    Reads full, expert or plain networks and labelled images; writes nothing but --roc. Images of classes that the
    network does not have are left out of the accuracy, and counted. With --classes, only these classes compete: for a
    full or plain network, that is the control beside an expert; --beside puts such controls into the same table.

    Images of other classes are run where there is something to ask them: for a network that holds a threshold
    (make-expert --calibrate), with one class only, or with --score. Any other folder of the data holds such images.

    **Examples**

        hlnet eval runs/digits/best.safetensors --data digits

        hlnet eval runs/digits/best.safetensors --data digits --classes 0-4 --attention-signal 1.8 --json

        hlnet eval cats.safetensors --data photos --split test --beside runs/full --beside runs/plain --roc cats.png
    """
    from hlnet import evaluation
    from hlnet.cli import output
    from hlnet.data import load_data
    from hlnet.rejection import ROC_FORMATS, write_roc

    options.check_picture(roc, "--roc", ROC_FORMATS)
    names = [model, *(beside or [])]
    if len(set(names)) < len(names):
        raise UsageError("a model stands beside itself; name each once")
    nets = {name: options.load_optimized(name, device, dtype) for name in names}
    images = load_data(data, split.value, data_root)
    with output.progress() as bar:
        task = bar.add_task("evaluating", total=None)
        found = evaluation.evaluate_beside(
            nets,
            images,
            classes,
            attention_signal,
            score.value if score else None,
            batch_size,
            workers,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    short = _short(found)
    if roc is not None:
        curves = {name: run.detection for name, run in found.items() if run.detection and run.detection.roc}
        if not curves:
            raise UsageError("--roc needs images of other classes in the data, and --score or a stored threshold")
        write_roc({short[name]: run for name, run in curves.items()}, roc)
    costs = {name: _cost(net) for name, net in nets.items()} if beside else {}
    if as_json:
        told = {name: run.model_dump(mode="json") for name, run in found.items()}
        for name, cost in costs.items():
            told[name]["cost"] = cost.model_dump(mode="json", include={"params", "gmacs", "bytes"})
        first = told.pop(model)
        output.show_json(first | ({"beside": told} if beside else {}))
        return
    _show({short[name]: run for name, run in found.items()}, {short[name]: cost for name, cost in costs.items()})
    _hint_at_doubts(nets[model], found[model])
    if roc is not None:
        output.hint(f"the curve is in '{roc}'")


def _hint_at_doubts(net: InferenceNet, found: Evaluation) -> None:
    """What a reader of the tables may overlook."""
    from hlnet.cli import output
    from hlnet.errors import some

    if net.provenance.rejection and found.classes < len(net.tree.classes):
        output.hint(
            f"the stored threshold is for all {len(net.tree.classes)} classes together: --classes leaves it out"
        )
    if found.detection and found.detection.outside and found.classes == len(net.tree.classes):
        absent = [name for name in net.tree.classes if name not in found.neutral.per_class]
        if absent:
            output.hint(f"no images of {some(absent)}: under another name, they would have counted as of other classes")


def _cost(net: InferenceNet) -> Cost:
    from hlnet.plain import PlainConfig
    from hlnet.profiling import plain_cost, total_cost, unit_costs

    if isinstance(net.config, PlainConfig):
        return plain_cost(net.config, len(net.tree.classes), net.transform.input_size)
    return total_cost(unit_costs(net.config, net.transform)[0], net.tree.counts)


def _show(found: dict[str, Evaluation], costs: dict[str, Cost]) -> None:
    """One column a network, and one more for each that was cued."""
    from hlnet.cli import output

    lead = next(iter(found.values()))
    columns, runs, owners = [], [], []
    for name, run in found.items():
        columns.append(name if costs else "no cue")
        runs.append(run.neutral)
        owners.append(name)
        if run.cued is not None:
            cue = f"signal {run.attention_signal:g} on the image's own class"
            columns.append(f"{name}, {cue}" if costs else cue)
            runs.append(run.cued)
            owners.append(name)
    rows = []
    if lead.classes > 1:  # of one class, it is always 100 %
        rows.append(["top-1", *(output.percent(run.top1) for run in runs)])
        rows += [[name, *(output.percent(run.per_class[name], 1) for run in runs)] for name in lead.neutral.per_class]
    if lead.neutral.top5 is not None:
        rows.insert(1, ["top-5", *(output.percent(run.top5) for run in runs)])
    if any(run.ece is not None for run in found.values()):
        errors = [
            found[name].ece if run is found[name].neutral else None for name, run in zip(owners, runs, strict=True)
        ]
        rows.append(["calibration error", *map(output.percent, errors)])
    if costs:
        rows.append(["parameters, M", *(f"{costs[name].params / 1e6:.3f}" for name in owners)])
        rows.append(["GMACs", *(f"{costs[name].gmacs:.3f}" for name in owners)])
    if rows:
        counted = f"{lead.classes} class{'es' if lead.classes > 1 else ''}"
        title = f"{lead.images} images of {counted}"
        output.show_table(f"Accuracy on {title}" if lead.classes > 1 else title, ["", *columns], rows)
    if lead.detection is not None:
        _show_detection({name: run.detection for name, run in found.items() if run.detection})
    elif lead.left_out:
        output.hint(f"{lead.left_out} images of other classes were left out")
    if lead.cued is not None:
        change = 100 * (lead.cued.top1 - lead.neutral.top1)
        output.show(
            f"The cue came from the label of each image (an oracle): {change:+.2f} points with every cue right. "
            "What wrong cues do is not in this figure."
        )


def _show_detection(found: dict[str, Detection]) -> None:
    """How well images of other classes are told from a network's own."""
    from hlnet.cli import output

    runs, lead = list(found.values()), next(iter(found.values()))
    rows = [["score", *(run.score for run in runs)]]
    if lead.outside:
        rows.append(["AUROC", *("–" if run.auroc is None else f"{run.auroc:.4f}" for run in runs)])
        rows.append(["FPR at 95 % TPR", *(output.percent(run.fpr_at_95_tpr) for run in runs)])
    if any(run.threshold is not None for run in runs):
        rows.append(["threshold", *("–" if run.threshold is None else f"{run.threshold:.4g}" for run in runs)])
        rows.append(["own accepted (TPR)", *(output.percent(run.own_accepted) for run in runs)])
        if lead.accuracy_accepted != 1:
            rows.append(["top-1 among these", *(output.percent(run.accuracy_accepted) for run in runs)])
        if lead.outside:
            rows.append(["others accepted (FPR)", *(output.percent(run.outside_accepted) for run in runs)])
    title = f'"None of these": {lead.own} images of its own classes, {lead.outside} of others'
    output.show_table(title, ["", *found], rows)
    if lead.max_false_positive is not None:
        output.hint(f"the threshold was fitted for at most {100 * lead.max_false_positive:g} % of others")
    if not lead.outside:
        output.hint("the data hold no images of other classes: how many of such are accepted is not known from them")


def _short(names: Collection[str]) -> dict[str, str]:
    """For the heads of columns: a run folder's or a file's own name, where these differ."""
    short = {}
    for name in names:
        path = Path(name)
        stem = path.stem if path.suffix == ".safetensors" else path.name
        short[name] = path.parent.name if stem in ("best", "last") and path.parent.name else stem
    return short if len(set(short.values())) == len(short) else {name: name for name in names}
