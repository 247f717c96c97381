"""``hlnet make-expert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hlnet.cli import options
from hlnet.errors import HlnetError, UsageError, some

CALIBRATION = '"None of these"'
OF_CALIBRATION = ("split", "max_false_positive", "score", "batch_size", "workers", "data_root", "device")


def make_expert(
    context: typer.Context,
    model: options.Model,
    classes: options.Classes = None,
    out: Annotated[
        Path | None, typer.Option(help="The expert's .safetensors file to write; of several experts, their folder.")
    ] = None,
    each: Annotated[
        int | None,
        typer.Option(min=1, metavar="LEVEL", help="An expert for each node of a level; 1 is nearest to the trunk."),
    ] = None,
    selections: Annotated[
        Path | None, typer.Option(help="YAML or JSON file of named selections: an expert for each.")
    ] = None,
    under: Annotated[
        str | None,
        typer.Option(
            metavar="BUDGET", help="Write only what keeps to 15M, 4.2GMAC or 40MB; without --out, tell what does."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would stay and what it costs; write nothing.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Prove that the kept weights are the full network's, and on random images that the logits are.",
        ),
    ] = False,
    images: Annotated[
        list[Path] | None,
        typer.Option(help="Image to --verify on instead, or folder of them; may be given several times."),
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Images of its own and of other classes: fit when it says 'none of these', and its temperature.",
            rich_help_panel=CALIBRATION,
        ),
    ] = None,
    split: Annotated[
        options.Split, typer.Option(help="Which part of DATA.", rich_help_panel=CALIBRATION)
    ] = options.Split.val,
    max_false_positive: Annotated[
        float,
        typer.Option(help="Share of images of other classes that may be accepted.", rich_help_panel=CALIBRATION),
    ] = 0.01,
    score: Annotated[
        options.Score | None,
        typer.Option(
            help="What tells own images from others; default: probability after --loss bce, else energy.",
            rich_help_panel=CALIBRATION,
        ),
    ] = None,
    batch_size: options.BatchSize = 64,
    workers: options.Workers = 2,
    data_root: options.DataRoot = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Cut an expert: keep only the wanted classes' paths.

    Out of a full network or another expert. Reads only the rows that it keeps; no training. Writes a checkpoint that
    every command takes; of several experts, a folder of them. From hf-hub: only the needed bytes are fetched, but for
    --verify, --each and --selections the whole file.

    **Examples**

        hlnet make-expert runs/digits/best.safetensors --classes 0-4 --out low.safetensors --verify

        hlnet make-expert imagenet.safetensors --classes 'animal -animal/cat,@wanted.txt' --dry-run

        hlnet make-expert imagenet.safetensors --each 2 --under 40MB --out experts

        hlnet make-expert runs/photos --classes animal/cat --out cats.safetensors --calibrate photos
    """
    _check(classes, each, selections, out, under, dry_run)
    if calibrate is None:
        sources = {name: context.get_parameter_source(name) for name in OF_CALIBRATION}
        given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
        if given:
            named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise UsageError(f"{named}: only --calibrate looks at that; give it, too, or leave this out")
    elif out is None or dry_run:
        raise UsageError("--calibrate fits the file that is written: give --out, and no --dry-run")
    if not 0 < max_false_positive < 1:
        raise UsageError(f"--max-false-positive {max_false_positive:g}: expected a share between 0 and 1; 0.01 is 1 %")
    if verify and (out is None or dry_run):
        raise UsageError("--verify looks at the file that is written: give --out, and no --dry-run")
    if images and not verify:
        raise UsageError("--images are what --verify runs on; give both")
    files_to_verify = [Path(file) for file in options.image_files(images or [], "--images")]
    from hlnet.candidates import Limit, candidates, nodes_of_level, require_fit
    from hlnet.checkpoint import header_of, opened
    from hlnet.cli import cutting, expert_tables, output
    from hlnet.network import NetworkConfig
    from hlnet.profiling import profile, unit_costs
    from hlnet.remote_file import RemoteFile, in_parts
    from hlnet.selection import read_selections, select_classes

    several, writes = each is not None or selections is not None, out is not None and not dry_run
    limit = Limit.parse(under) if under else None
    source = in_parts(model, whole=writes and (verify or several))
    with opened(source) as file:
        header = header_of(file, source)
    config, tree = header.config, header.tree
    if not isinstance(config, NetworkConfig):
        raise UsageError(f"'{model}' is a plain network: it has no branches to choose from")
    within = None if classes is None else select_classes(tree, classes)
    if each is not None:
        choices = nodes_of_level(tree, each, within)
    elif selections is not None:
        choices = read_selections(selections, tree)
    else:
        choices = {classes or "the whole network": within or tuple(range(len(tree.leaves)))}

    # Counting takes a second, and the profile of one expert counts again: only where it is needed.
    units = unit_costs(config, header.transform)[0] if several or limit else []
    wanted = candidates(tree, units, choices) if units else []
    if limit and several and writes:
        over = [one.name for one in wanted if not limit.fits(one)]
        if len(over) < len(wanted):  # else there is nothing to write, and it is said below why
            wanted = [one for one in wanted if one.name not in over]
            choices = {one.name: choices[one.name] for one in wanted}
            if over:
                names = some(f"'{name}'" for name in over)
                output.hint(f"over the budget of {limit.text(limit.most)}, and not written: {names}")
    told: list[dict[str, Any]] = [{} for _ in choices]
    if out is not None and writes:
        files = [out / name for name in cutting.file_names(choices)] if several else [out]
        local = source.path if isinstance(source, RemoteFile) else source
        for path in files:
            if local is not None and path.resolve() == local.resolve():
                raise UsageError(f"--out: '{path}' is the model itself; choose another name")
        if limit:
            require_fit(wanted, limit, tree, units)
        with output.progress() as bar:
            # Whatever can be found wrong is, before the first file is written; and what is quick goes first.
            steps: list[cutting.Step] = []
            if calibrate is not None:
                from hlnet.cli.calibrating import Calibration

                calibration = Calibration(
                    calibrate,
                    split=split.value,
                    root=data_root,
                    max_false_positive=max_false_positive,
                    score=score.value if score else None,
                    device=device,
                    batch_size=batch_size,
                    workers=workers,
                    bar=bar,
                )
                for name, kept in choices.items():
                    try:
                        calibration.check(tree.prune(kept), header.transform)
                    except HlnetError as error:
                        raise type(error)(f"expert '{name}': {error}" if several else str(error)) from error
                steps = [calibration]
            if verify:
                assert local is not None
                steps = [cutting.Verification(local, files_to_verify), *steps]
            told = cutting.write_experts(source, tree, list(zip(choices.values(), files, strict=True)), steps, bar)

    kept, costs = next(iter(choices.values())), None
    if several:
        pairs = zip(wanted, told, strict=True)
        found: dict[str, Any] = {"experts": [expert_tables.described(one, tree, limit) | more for one, more in pairs]}
    else:
        found = told[0] | {"classes": [tree.classes[i] for i in kept]}
        if writes or (dry_run and classes is not None):
            indices = [index for i in kept if (index := tree.indices[i]) is not None]
            costs = profile(config, tree, header.transform, indices, header.provenance.parent_counts)
            found |= costs.model_dump(mode="json")
    if writes:
        found["fetched_bytes"] = source.fetched if isinstance(source, RemoteFile) else 0
    if limit:
        found["budget"] = expert_tables.budget_described(wanted, limit, tree, units, nodes=not several)
    if as_json:
        output.show_json(found)
        return
    if several:
        expert_tables.show_experts(wanted, told, limit, units)
    if costs:
        output.show_tree(tree.prune(kept) if writes else tree, kept=() if writes else kept)
        output.show_profile(costs)
    if limit and not several:
        expert_tables.show_budget(wanted[0], limit, tree, units, nodes=not writes)
    if writes:
        if calibrate is not None:
            from hlnet.cli.calibrating import show_calibration

            show_calibration(list(choices), told)
        expert_tables.show_written(
            told, f"{len(told)} experts" if several else f"{len(kept)} class{'es' if len(kept) > 1 else ''}", out
        )
    if dry_run:
        output.hint("nothing was written: --dry-run")


def _check(
    classes: str | None, each: int | None, selections: Path | None, out: Path | None, under: str | None, dry_run: bool
) -> None:
    """Refuse options that do not go together."""
    several = each is not None or selections is not None
    if each is not None and selections is not None:
        raise UsageError("--each and --selections both say which experts to make; give one")
    if selections is not None and classes is not None:
        raise UsageError("--selections brings its own classes; leave --classes out")
    if classes is None and not several and (out is not None or under is None):
        raise UsageError("--classes is needed: which classes is the expert for? (Or --each, or --selections.)")
    if out is None and not dry_run and under is None:
        raise UsageError("--out is needed: the file to write, or of several experts the folder; or give --dry-run")
    if out is not None and several == (out.suffix == ".safetensors"):
        expected = "of several experts, the name of a folder" if several else "a name that ends in .safetensors"
        raise UsageError(f"--out '{out}': expected {expected}")
