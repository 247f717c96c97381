"""``hlnet graft``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hlnet.cli.shared import options
from hlnet.errors import UsageError

if TYPE_CHECKING:
    from hlnet.expert.graft_training import GraftEpoch


def graft(
    model: options.Model,
    classes: Annotated[
        str,
        typer.Option(
            metavar="NEW",
            help="Class folders of the data to add, separated by commas; FOLDER=NAME gives a class another name.",
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
            "Default: the best fit for each.",
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
    from hlnet.cli.shared import graft_tables, output
    from hlnet.data.sources import load_data
    from hlnet.expert.graft import graft as grow
    from hlnet.expert.graft import graft_config
    from hlnet.files import check_writable
    from hlnet.model.base import require_branches
    from hlnet.model.hierarchical import HierarchicalNet
    from hlnet.store.checkpoint import read_header, save_checkpoint
    from hlnet.store.locate import locate_model

    limit = options.byte_size(cache_size, "--cache-size")
    source = locate_model(model)  # once: what a name on the Hub stands for may change
    _check_out(out, source)
    net = options.load_model(source, device)
    require_branches(net, "to add to", "graft on a tree of branches", name=f"'{model}'")
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
            graft_tables.hint_epoch(epoch, epochs)

        check_writable(out)
        grown, report = grow(
            *(net, new, train_images, val_images, _parents(under or [], new), config, on_epoch, watch.batch_done),
            described={"model": str(model), "fingerprint": read_header(source).fingerprint, "data": data},
            cache_dir=cache_dir,
            cache_size=limit,
        )
    save_checkpoint(grown, out)
    tables = graft_tables.Graft(report, net, grown, out)
    output.result(as_json, tables.json, tables.show)


def _check_out(out: Path, source: Path) -> None:
    """Refuse a file that is no checkpoint's, or the model itself."""
    if out.suffix != ".safetensors" or out.is_dir():
        raise UsageError(f"--out '{out}': a checkpoint's name ends in .safetensors")
    if out.resolve() == source.resolve():
        raise UsageError(f"--out '{out}' is the model itself; choose another name")


def _names(text: str, known: Sequence[str]) -> dict[str, str]:
    """The new classes: names in the data, and names in the tree."""
    if text in known:  # it may hold a comma
        return {text: text}
    names: dict[str, str] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        word, sign, name = part.partition("=") if part not in known else (part, "", "")
        if word in names or (sign and not name):
            raise UsageError(f"--classes '{text}': expected FOLDER or FOLDER=NAME, each once")
        names[word] = name if sign else word
    return names


def _parents(given: list[str], new: dict[str, str]) -> Any:
    """Parents by the names of new classes, from one node for all or NAME=NODE; ``None`` if none is given."""
    names = list(new.values())
    known = new | {name: name for name in names}
    parents: dict[str, str] = {}
    rest: list[str] = []
    for text in given:
        name, sign, node = text.partition("=")
        if sign and name in known:
            parents[known[name]] = node
        elif sign:
            raise UsageError(f"--under '{text}': no new class is called '{name}'; they are {', '.join(names)}")
        else:
            rest.append(text)
    if len(rest) > 1:
        raise UsageError(f"--under '{rest[0]}' and '{rest[1]}': give one node for all, and NAME=NODE for others")
    return {**(dict.fromkeys(names, rest[0]) if rest else {}), **parents} or None
