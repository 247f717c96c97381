"""``hlnet graft``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hlnet.cli.shared import options
from hlnet.errors import UsageError, counted

if TYPE_CHECKING:
    from hlnet.expert.graft import GraftReport
    from hlnet.expert.graft_training import GraftEpoch
    from hlnet.model.cost import Cost


def graft(
    model: options.Model,
    classes: Annotated[
        str,
        typer.Option(
            metavar="NEW",
            help="Class folders of the data to add, between commas; FOLDER=NAME gives a class another name.",
        ),
    ],
    data: Annotated[
        str, typer.Option(help="Folder with train/ and val/, 'digits', or one of timm's sources; with old classes too.")
    ],
    out: Annotated[Path, typer.Option(help="The grown network's .safetensors file to write.")],
    under: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NODE",
            help="Parent of the new classes (animal/dog; / is the trunk), or NAME=NODE for one of them; repeatable. "
            "Default: where each fits best.",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 30,
    lr: Annotated[float, typer.Option(help="Learning rate at the top of the schedule.")] = 1e-3,
    batch_size: Annotated[int, typer.Option(min=2, help="Images per step.")] = 32,
    views: Annotated[int, typer.Option(min=1, help="Augmented views of each training image.")] = 4,
    cache_dir: Annotated[
        Path | None,
        typer.Option(help="Keep cached features in files here, for later runs too; default: in memory."),
    ] = None,
    cache_size: Annotated[str | None, typer.Option(help="Size limit of cached features: 500MB, 20GB …")] = None,
    seed: options.Seed = 0,
    workers: options.Workers = 2,
    data_root: options.DataRoot = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Add classes to a trained network: train only the branches of the new classes.

    The old weights and the old logits do not change; this is checked, and otherwise nothing is written. Needs a full
    network or an expert, and labelled images of the new classes and of old ones. Images of old classes teach the new
    branches what they are not, and show how the accuracy of the old classes changes.

    **Examples**

        hlnet graft pets.safetensors --classes lynx --data photos --out more.safetensors

        hlnet graft pets.safetensors --classes n02127052=lynx --data photos --under animal/cat --out more.safetensors
    """
    from hlnet.cli.shared import output
    from hlnet.data.sources import load_data
    from hlnet.expert.graft import graft as grow
    from hlnet.expert.graft import graft_config
    from hlnet.files import check_writable
    from hlnet.model.base import require_branches
    from hlnet.model.cost import network_cost, plain_cost
    from hlnet.model.hierarchical import HierarchicalNet
    from hlnet.store.checkpoint import read_header, save_checkpoint
    from hlnet.store.locate import locate_model

    limit = options.byte_size(cache_size, "--cache-size")
    source = locate_model(model)  # once: what a name on the Hub stands for may change
    if out.suffix != ".safetensors" or out.is_dir():
        raise UsageError(f"--out '{out}': a checkpoint's name ends in .safetensors")
    if out.resolve() == source.resolve():
        raise UsageError(f"--out '{out}' is the model itself; choose another name")
    net = options.load_model(source, device)
    require_branches(net, "to add to", name=f"'{model}'")
    assert isinstance(net, HierarchicalNet)
    train_images, val_images = (load_data(data, split, data_root) for split in ("train", "val"))
    new = _names(classes, train_images.classes)
    config = graft_config(
        net, epochs=epochs, lr=lr, batch_size=batch_size, cache_views=views, seed=seed, workers=workers
    )
    with output.progress() as bar:
        watch = output.TrainingProgress(bar, epochs, len(train_images))

        def on_epoch(epoch: GraftEpoch) -> None:
            watch.epoch_done()
            output.hint(
                f"epoch {epoch.epoch:>3}/{epochs}  loss {epoch.loss:.4f}  train top-1 {100 * epoch.top1:.2f} %  "
                f"{epoch.seconds:.1f} s"
            )

        check_writable(out)
        grown, report = grow(
            net,
            new,
            train_images,
            val_images,
            _parents(under or [], new),
            config,
            on_epoch,
            watch.batch_done,
            described={"model": str(model), "fingerprint": read_header(source).fingerprint, "data": data},
            cache_dir=cache_dir,
            cache_size=limit,
        )
    save_checkpoint(grown, out)
    before, after = network_cost(net), network_cost(grown)
    costs = {"before": before.model_dump(mode="json"), "after": after.model_dump(mode="json")}

    def show() -> None:
        given = f"{report.old_train_images} old and {report.new_train_images} new training images"
        output.show_table(
            f"New classes, from {given}",
            ["class", "under", "fit", "top-1"],
            [
                [name, place.under, output.percent(place.fit, 1), output.percent(report.per_class.get(name), 1)]
                for name, place in report.places.items()
            ],
        )
        if (
            report.old_before is not None
            and report.old_after is not None
            and report.old_before - report.old_after > 0.1
        ):
            output.hint("warning: the new classes win too often; train longer (--epochs), or give more old images")
        output.hint_at_cost(after, plain_cost(grown.config, grown.num_classes, grown.transform.input_size))
        output.hint("fit: of the old network's probability, what classes under that node have on images of the new one")
        _show_change(report, before, after)
        difference = f"largest difference {report.max_logit_difference:.1g}, float64"
        output.show(f"verified: old logits equal the old network's ({difference})")
        output.show(f"{counted(len(grown.tree.classes), 'class')}, {out.stat().st_size / 1e6:.1f} MB, written to {out}")

    output.result(as_json, {"out": str(out), **report.model_dump(mode="json"), "cost": costs}, show)


def _show_change(report: GraftReport, before: Cost, after: Cost) -> None:
    from hlnet.cli.shared import output

    cells = [output.cost_cells(cost)[:2] for cost in (before, after)]
    rows = [
        [
            f"top-1, {counted(report.old_images, 'image')} of old classes",
            *map(output.percent, (report.old_before, report.old_after)),
        ],
        [f"top-1, {counted(report.new_images, 'image')} of new classes", "–", output.percent(report.new)],
        ["top-1, all", "–", output.percent(report.all)],
        ["classes", str(before.classes), str(after.classes)],
        ["nodes per level", *(", ".join(map(str, cost.nodes)) for cost in (before, after))],
        *(list(row) for row in zip(["parameters, M", "GMACs"], *cells, strict=True)),
    ]
    output.show_table("Old and new", ["", "before", "after"], rows)


def _names(text: str, known: Sequence[str]) -> dict[str, str]:
    """What the data call the new classes, and what they are to be called."""
    if text in known:  # it may hold a comma
        return {text: text}
    found: dict[str, str] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        word, sign, name = part.partition("=") if part not in known else (part, "", "")
        if word in found or (sign and not name):
            raise UsageError(f"--classes '{text}': expected FOLDER or FOLDER=NAME, each once")
        found[word] = name if sign else word
    return found


def _parents(given: list[str], new: dict[str, str]) -> Any:
    """One node for all new classes, or by folder or name; ``None`` where nothing is given."""
    names = list(new.values())
    known = new | {name: name for name in names}
    found: dict[str, str] = {}
    rest: list[str] = []
    for text in given:
        name, sign, node = text.partition("=")
        if sign and name in known:
            found[known[name]] = node
        elif sign:
            raise UsageError(f"--under '{text}': no new class is called '{name}'; they are {', '.join(names)}")
        else:
            rest.append(text)
    if len(rest) > 1:
        raise UsageError(f"--under '{rest[0]}' and '{rest[1]}': give one node for all, and NAME=NODE for others")
    return {**(dict.fromkeys(names, rest[0]) if rest else {}), **found} or None
