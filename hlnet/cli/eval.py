"""``hlnet eval``."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hlnet.cli.shared import cue_options, options
from hlnet.errors import UsageError

if TYPE_CHECKING:
    from hlnet.cues.policy import CuePolicy
    from hlnet.cues.table import CueTable
    from hlnet.evaluation.evaluate import Evaluation
    from hlnet.model.fast.optimize import InferenceNet
    from hlnet.tree.class_tree import ClassTree


#: What a wrong cue names.
WrongCue = Literal["random", "sibling"]


def evaluate(
    model: options.Model,
    data: Annotated[
        str, typer.Option(help="Folder with labelled images by split, 'digits', or one of timm's sources.")
    ],
    split: Annotated[options.Split, typer.Option(help="Which part of the data.")] = "val",
    classes: options.Classes = None,
    attention_signal: cue_options.AttentionSignal = None,
    cue_mode: cue_options.Mode = None,
    reliability: cue_options.Reliability = None,
    cues: cue_options.CuesFile = None,
    prior: cue_options.Prior = None,
    wrong_cues: Annotated[
        float | None,
        cue_options.option(
            min=0, max=1, help="Share of cues that are wrong; default: 1 - reliability, where that is given."
        ),
    ] = None,
    wrong_cue: Annotated[
        WrongCue | None, cue_options.option(help="What a wrong cue names: any other class (default), or a sibling.")
    ] = None,
    cue_level: Annotated[
        int | None, cue_options.option(min=1, help="Cue nodes of this level, 1 nearest to the trunk; default: classes.")
    ] = None,
    hard: cue_options.Hard = False,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="Evaluate this one too, restricted to the same classes, and show what each costs; repeatable.",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The plain control, evaluated as with --beside and compared image by image. Cues with a reliability "
            "act on it as a bias.",
        ),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Evaluate this one, too, and test on the same images whether the two differ.",
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
    """Measure accuracy by class and by the tree, calibration, "none of these", and the effect of cues.

    Reads full, expert or plain networks and labelled images; writes only --roc and --confusion. Images of classes that
    the network does not have are counted and left out of the accuracy. With --classes, only these classes compete: so a
    full or plain network is the control of an expert. --beside adds such controls to the same table. --compare and
    --baseline add a paired test: the difference with its interval, and McNemar's p.

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
    from hlnet.cues.table import CueTable
    from hlnet.data.sources import load_data
    from hlnet.evaluation.evaluate import compare_evaluations, evaluate_with_baseline
    from hlnet.evaluation.metrics.rejection import ROC_FORMATS, write_roc
    from hlnet.files import check_writable
    from hlnet.model.cost import network_cost

    options.check_picture(roc, "--roc", ROC_FORMATS)
    options.check_picture(confusion, "--confusion", (*options.PICTURES, ".csv"))
    for path in (roc, confusion):
        if path is not None:
            check_writable(path)
    if cues is not None and cue_options.wanted(wrong_cues, wrong_cue, cue_level):
        raise UsageError(
            "--wrong-cues, --wrong-cue and --cue-level are for cues from labels; with --cues, the file says it all"
        )
    names = [model, *(beside or [])]
    against = [name for name in dict.fromkeys([baseline, compare]) if name is not None]
    if len(set(names)) < len(names) or model in against:
        raise UsageError("a model stands beside itself; name each once")
    names = [*dict.fromkeys([*names, *against])]
    nets = {name: options.load_optimized(name, device, dtype) for name in names}
    if baseline is not None and nets[baseline].has_branches:
        raise UsageError(f"--baseline '{baseline}' is no plain network (train --plain); --compare takes any")
    images = load_data(data, split, data_root)
    table, policy = None, None
    how = (attention_signal, cue_mode, reliability, wrong_cues, wrong_cue, cue_level, hard)
    if cue_options.wanted(cues, prior, *how):
        table = CueTable.from_labels(cue_level, wrong_cue or "random", wrong_cues)
        if cues is not None:
            table = cue_options.cue_table(cues, nets[model])
        elif prior is not None and not cue_options.wanted(*how):
            table = CueTable(source=f"'{prior}'")
        policy = cue_options.cue_policy(attention_signal, cue_mode, reliability, nets[model], hard, prior)
        _check_cues(nets[model], model, policy, table, (attention_signal, cue_mode))
        cue_options.log_stored_cues(nets[model], policy, None if table.labels else table.all_cues)
    with output.progress() as bar:
        task = bar.add_task("evaluating", total=None)
        found = evaluate_with_baseline(
            nets,
            images,
            classes,
            table,
            policy,
            score,
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
    tree = _tree(nets[model], classes)
    if confusion is not None:
        _write_confusion(found[model], tree, confusion)
    compared = {}
    if found[model].classes > 1:  # of one class, all answers are the same
        compared = {name: compare_evaluations(found[model], found[name], tree) for name in against}
    costs = {name: network_cost(net) for name, net in nets.items()} if len(nets) > 1 else {}

    def figures() -> dict[str, object]:
        told = {name: run.model_dump(mode="json") for name, run in found.items()}
        for name, cost in costs.items():
            told[name]["cost"] = cost.model_dump(mode="json", include={"params", "gmacs", "bytes"})
        first = told.pop(model)
        tests = {name: run.model_dump(mode="json") for name, run in compared.items()}
        return first | ({"beside": told} if told else {}) | ({"compare": tests} if tests else {})

    def show() -> None:
        named_costs = {short[name]: cost for name, cost in costs.items()}
        eval_tables.show_evaluations({short[name]: run for name, run in found.items()}, named_costs, per_class)
        for name, run in compared.items():
            eval_tables.show_comparison(short[model], short[name], run)
        if against and not compared:
            output.hint(
                "with one class every answer is right: there is nothing to test one network against the other on"
            )
        _hint_at_doubts(nets[model], found[model])
        if baseline is not None and found[model].cued and not found[baseline].cued:
            output.hint(
                "the plain network was not cued: with --reliability, cues act on it as a bias (see hlnet attend)"
            )
        for path, what in ((roc, "curve"), (confusion, "confusion matrix")):
            if path is not None:
                output.hint(f"the {what} is in '{path}'")

    output.result(as_json, figures, show)
    for name, run in found.items():
        used_images.hint_at_use(name, images, run.served, "its figures here are better than on fresh ones")


def _check_cues(
    net: InferenceNet, model: str, policy: CuePolicy, table: CueTable, strengths: tuple[object, ...]
) -> None:
    """Refuse what could not be tried, or would do nothing."""
    if policy.hard:
        cue_options.check_hard_cues(net, model, *strengths)
    if table.labels is None:
        return
    if len(net.tree.classes) < 2:
        raise UsageError(f"'{model}' has one class ({net.tree.classes[0]}): there is nothing that a cue could change")
    if not policy.hard and policy.is_silent and net.provenance.attention is None:
        raise UsageError(
            "the cues have no strength: add --reliability 0.9 or --attention-signal 1.8, or fit one (hlnet attend)"
        )


def _hint_at_doubts(net: InferenceNet, found: Evaluation) -> None:
    """What a reader of the tables may overlook."""
    from hlnet.cli.shared import output
    from hlnet.errors import some

    if net.provenance.rejection and found.classes < len(net.tree.classes):
        output.hint(
            f"the stored threshold is for all {len(net.tree.classes)} classes together: --classes leaves it out"
        )
    if found.detection and found.detection.outside and found.classes == len(net.tree.classes):
        absent = [name for name in net.tree.classes if name not in found.neutral.per_class]
        if absent:
            output.hint(f"no images of {some(absent)}: under another name, they would have counted as of other classes")


def _tree(net: InferenceNet, classes: str | None) -> ClassTree:
    """Of the classes that compete."""
    from hlnet.tree.selection import select_classes

    return net.tree if classes is None else net.tree.prune(select_classes(net.tree, classes))


def _write_confusion(found: Evaluation, tree: ClassTree, path: Path) -> None:
    import torch

    from hlnet.evaluation.metrics.accuracy import answer_counts
    from hlnet.evaluation.metrics.confusion import write_confusion

    answers, labels = torch.tensor(found.neutral.answers), torch.tensor(found.labels)
    write_confusion(answer_counts(answers, labels, found.classes), tree, path)


def _short(names: Collection[str]) -> dict[str, str]:
    """For the heads of columns: short names, where these differ."""
    short = {name: options.short_name(name) for name in names}
    return short if len(set(short.values())) == len(short) else {name: name for name in names}
