"""``hlnet eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hlnet.cli.shared import cue_options, options
from hlnet.errors import UsageError

if TYPE_CHECKING:
    from hlnet.cli.shared.eval_tables import Evaluations
    from hlnet.cues.policy import CuePolicy
    from hlnet.cues.table import CueTable
    from hlnet.data.images import LabelledImages
    from hlnet.evaluation.descent import DescentReport
    from hlnet.model.fast.optimize import InferenceNet
    from hlnet.tree.class_tree import ClassTree


#: Target of wrong cues.
WrongCue = Literal["random", "sibling"]


def evaluate(
    model: options.Model,
    data: Annotated[
        str, typer.Option(help="Folder with labelled images by split, 'digits', or one of timm's sources.")
    ],
    split: Annotated[options.Split, typer.Option(help="Part of the data.")] = "val",
    classes: options.Classes = None,
    attention_signal: cue_options.AttentionSignal = None,
    cue_mode: cue_options.Mode = None,
    reliability: cue_options.Reliability = None,
    cues: cue_options.CuesFile = None,
    prior: cue_options.Prior = None,
    wrong_cues: Annotated[
        float | None,
        cue_options.option(min=0, max=1, help="Share of wrong cues; default: 1 - reliability, if that is given."),
    ] = None,
    wrong_cue: Annotated[
        WrongCue | None, cue_options.option(help="Wrong cue's target: any other class (default), or a sibling.")
    ] = None,
    cue_level: Annotated[
        int | None,
        cue_options.option(min=1, help="Level of the cued nodes, 1 nearest to the trunk; default: classes."),
    ] = None,
    hard: cue_options.Hard = False,
    agreement: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Also evaluate descents that were fitted for this agreement (hlnet calibrate)."
        ),
    ] = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="Another network to evaluate, restricted to the same classes, with the costs of each; repeatable.",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="A plain network to evaluate and to compare with, image by image. Cues with a reliability act on it "
            "as a bias.",
        ),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Another network to evaluate, with a paired test of the difference on the same images.",
        ),
    ] = None,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Show all classes; default: up to 20, else the worst and the best.")
    ] = False,
    confusion: Annotated[
        Path | None,
        typer.Option(help="Write the confusion matrix, ordered by the tree: a picture (.png, .svg, .pdf), or .csv."),
    ] = None,
    score: Annotated[
        options.Score | None,
        typer.Option(help="Score to separate images of other classes with, and to measure; default: the stored one."),
    ] = None,
    roc: Annotated[
        Path | None, typer.Option(help="Write the ROC curve of that score: a picture (.png, .svg, .pdf), or .csv.")
    ] = None,
    batch_size: options.BatchSize = 64,
    workers: options.Workers = 2,
    data_root: options.DataRoot = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",
    as_json: options.Json = False,
) -> None:
    """Measure accuracy by class and by the tree, calibration, "none of these", and the effect of cues.

    Reads full, expert or plain networks and labelled images; writes only --roc and --confusion. Images of classes that
    the network does not have are counted and left out of the accuracy. With --classes, only these classes compete, so a
    full or plain network can serve as an expert's baseline. --beside adds networks to the same table. --compare and
    --baseline add a paired test, too: the difference with its interval, and McNemar's p.

    By the tree: the height of the lowest common ancestor of answer and class (0 if right), precision, recall and F over
    the nodes on their paths, accuracy at each level, and whether the likeliest nodes of all levels lie on one path.

    Images of other classes (any other folder of the data) run only for a network with a threshold (make-expert
    --calibrate), for one with a single class, or with --score.

    Cues: --attention-signal 1.8 scales the features of each image's own class, as in the paper. Without a --cues file,
    cues come from the labels (an oracle), so the same table also shows their effect if all are wrong.

    **Examples**

        hlnet eval runs/digits/best.safetensors --data digits

        hlnet eval runs/digits/best.safetensors --data digits --classes 0-4 --attention-signal 1.8 --json

        hlnet eval runs/photos --data photos --cue-mode bias --reliability 0.9

        hlnet eval runs/tree --data photos --baseline runs/plain --confusion confusion.png

        hlnet eval cats.safetensors --data photos --split test --beside runs/full --beside runs/plain --roc cats.png
    """
    from hlnet.cli.shared import eval_tables, output, used_images
    from hlnet.data.sources import load_data
    from hlnet.evaluation.evaluate import compare_with_first, evaluate_with_baseline
    from hlnet.model.cost import network_cost
    from hlnet.tree.selection import select_classes

    _check_files(roc, confusion)
    strengths, wrong = (attention_signal, cue_mode, reliability), (wrong_cues, wrong_cue, cue_level)
    if cues is not None and cue_options.wanted(*wrong):
        raise UsageError(
            "--wrong-cues, --wrong-cue and --cue-level are for cues from labels; with --cues, the file says it all"
        )
    rivals = [name for name in dict.fromkeys([baseline, compare]) if name is not None]
    nets = _load([model, *(beside or [])], rivals, baseline, device, dtype)
    net = nets[model]
    images = load_data(data, split, data_root)
    table, policy = _cues(net, model, cues, prior, strengths, wrong, hard)
    descents = None if agreement is None else _descents(net, images, agreement, classes, batch_size, workers)
    with output.progress() as bar:
        task = bar.add_task("evaluating", total=None)
        evaluations = evaluate_with_baseline(
            *(nets, images, classes, table, policy, score, batch_size, workers),
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    tree = net.tree if classes is None else net.tree.prune(select_classes(net.tree, classes))
    tables = eval_tables.Evaluations(
        evaluations=evaluations,
        comparisons=compare_with_first(evaluations, rivals, tree),
        costs={name: network_cost(each) for name, each in nets.items()} if len(nets) > 1 else {},
        rivals=rivals,
        baseline=baseline,
        per_class=per_class,
        net=net,
        descents=descents,
    )
    files = _write_files(tables, tree, roc, confusion)
    output.result(as_json, tables.json, lambda: tables.show(files))
    for name, run in evaluations.items():
        used_images.hint_at_use(name, images, run.served, "its figures here are better than on fresh ones")


def _check_files(roc: Path | None, confusion: Path | None) -> None:
    """Refuse files that could not be written, before minutes of work."""
    from hlnet.evaluation.metrics.rejection import ROC_FORMATS
    from hlnet.files import check_writable

    options.check_picture(roc, "--roc", ROC_FORMATS)
    options.check_picture(confusion, "--confusion", (*options.PICTURES, ".csv"))
    for path in (roc, confusion):
        if path is not None:
            check_writable(path)


def _load(
    models: list[str], rivals: list[str], baseline: str | None, device: str, dtype: str
) -> dict[str, InferenceNet]:
    """The networks by name: the main one first, then those it is compared with; the baseline must be plain."""
    twice = [name for name in models if models.count(name) > 1] + [name for name in rivals if name == models[0]]
    if twice:
        raise UsageError(f"the same model is given twice ('{twice[0]}'); name each once")
    nets = {name: options.load_optimized(name, device, dtype) for name in dict.fromkeys([*models, *rivals])}
    if baseline is not None and nets[baseline].has_branches:
        raise UsageError(f"--baseline '{baseline}' is no plain network (train --plain); --compare takes any")
    return nets


def _cues(
    net: InferenceNet,
    model: str,
    file: Path | None,
    prior: Path | None,
    strengths: tuple[str | None, cue_options.CueMode | None, float | None],
    wrong: tuple[float | None, WrongCue | None, int | None],
    hard: bool,
) -> tuple[CueTable | None, CuePolicy | None]:
    """The cues of the images and how they act; nothing without an option. Without cues, a prior acts alone."""
    from hlnet.cues.table import CueTable

    if not cue_options.wanted(file, prior, *strengths, *wrong, hard):
        return None, None
    share, target, level = wrong
    if file is not None:
        table = cue_options.cue_table(file, net)
    elif cue_options.wanted(*strengths, *wrong, hard):
        table = CueTable.from_labels(level, target or "random", share)
    else:
        table = CueTable(source=f"'{prior}'")
    policy = cue_options.cue_policy(*strengths, net, hard, prior)
    _check_cues(net, model, policy, table, strengths[:2])
    cue_options.log_stored_cues(net, policy, None if table.labels else table.all_cues)
    return table, policy


def _check_cues(
    net: InferenceNet, model: str, policy: CuePolicy, table: CueTable, strengths: tuple[object, ...]
) -> None:
    """Refuse what could not be tried, or would do nothing."""
    if policy.hard:
        cue_options.check_hard_cues(net, model, *strengths)
    if table.labels is None:
        return
    if len(net.tree.classes) < 2:
        raise UsageError(
            f"'{model}' has one class ({net.tree.classes[0]}), so a cue could change nothing; leave the cues out"
        )
    if not policy.hard and policy.is_silent and net.provenance.attention is None:
        raise UsageError(
            "the cues have no strength: add --reliability 0.9 or --attention-signal 1.8, or fit one (hlnet attend)"
        )


def _descents(
    net: InferenceNet, images: LabelledImages, agreement: float, classes: str | None, batch_size: int, workers: int
) -> DescentReport:
    """Descents on the images of the network's classes."""
    from hlnet.data.tree_data import TreeData, eval_transform
    from hlnet.evaluation.descent import evaluate_descent
    from hlnet.evaluation.descent_fit import threshold_for

    if classes is not None:
        raise UsageError(
            "--agreement was fitted for all classes of the network; make an expert of --classes and calibrate that"
        )
    data = TreeData(images, net.tree, eval_transform(net.transform), subset=True)
    return evaluate_descent(net, data, threshold_for(net, agreement), batch_size, workers)


def _write_files(tables: Evaluations, tree: ClassTree, roc: Path | None, confusion: Path | None) -> dict[str, Path]:
    """Write the files that are asked for; their paths by what they hold."""
    from hlnet.evaluation.metrics.confusion import write_confusion
    from hlnet.evaluation.metrics.rejection import write_roc

    files = {}
    if roc is not None:
        curves = tables.detections()
        if not curves:
            raise UsageError("--roc needs images of other classes in the data, and --score or a stored threshold")
        write_roc(curves, roc)
        files["curve"] = roc
    if confusion is not None:
        write_confusion(tables.first.confusion_matrix(), tree, confusion)
        files["confusion matrix"] = confusion
    return files
