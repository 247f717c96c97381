"""``hlnet eval``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from hlnet.cli import options


class Split(StrEnum):
    """Parts of a data set."""

    train = "train"
    val = "val"
    test = "test"


def evaluate(
    model: options.Model,
    data: Annotated[
        str, typer.Option(help="Folder with labelled images by split, 'digits', or one of timm's sources.")
    ],
    split: Annotated[Split, typer.Option(help="Which part of the data.")] = Split.val,
    classes: options.Classes = None,
    attention_signal: Annotated[
        float | None,
        typer.Option(help="Also evaluate with the features of each image's own class scaled by this (1 is neutral)."),
    ] = None,
    batch_size: options.BatchSize = 64,
    workers: options.Workers = 2,
    data_root: options.DataRoot = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",
    as_json: options.Json = False,
) -> None:
    """Measure accuracy: top-1, top-5 and per class.

    Reads a full, expert or plain network and labelled images; writes nothing. Images of classes that the network does
    not have are left out, and counted. With --classes, only these classes compete: for a full or plain network, that is
    the control beside an expert.

    **Examples**

        hlnet eval runs/digits/best.safetensors --data digits

        hlnet eval runs/digits/best.safetensors --data digits --classes 0-4 --attention-signal 1.8 --json

        hlnet eval hf-hub:owner/pets --data photos --split test
    """
    from hlnet import evaluation
    from hlnet.cli import output
    from hlnet.data import TreeData, eval_transform, load_data, loader

    net = options.load_optimized(model, device, dtype)
    images = TreeData(load_data(data, split.value, data_root), net.tree, eval_transform(net.transform), subset=True)
    batches = loader(images, batch_size, workers)
    with output.progress() as bar:
        task = bar.add_task("evaluating", total=len(batches))
        found = evaluation.evaluate(net, images, batches, classes, attention_signal, lambda: bar.advance(task))
    if as_json:
        output.show_json(found)
        return
    columns = ["", "no cue"]
    runs = [found.neutral]
    if found.cued is not None:
        columns.append(f"signal {found.attention_signal:g} on the image's own class")
        runs.append(found.cued)
    rows = [["top-1", *(output.percent(run.top1) for run in runs)]]
    if found.neutral.top5 is not None:
        rows.append(["top-5", *(output.percent(run.top5) for run in runs)])
    rows += [[name, *(output.percent(run.per_class[name], 1) for run in runs)] for name in found.neutral.per_class]
    output.show_table(f"Accuracy on {found.images} images of {found.classes} classes", columns, rows)
    if found.left_out:
        output.hint(f"{found.left_out} images of other classes were left out")
    if found.cued is not None:
        change = 100 * (found.cued.top1 - found.neutral.top1)
        output.show(
            f"The cue came from the label of each image (an oracle): {change:+.2f} points with every cue right. "
            "What wrong cues do is not in this figure."
        )
