"""``hlnet make-expert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hlnet.cli import options
from hlnet.errors import UsageError

CALIBRATION = '"None of mine"'


def make_expert(
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
        bool, typer.Option("--verify", help="Prove on random images that the kept logits equal the full network's.")
    ] = False,
    images: Annotated[
        list[Path] | None,
        typer.Option(help="Image to --verify on instead, or folder of them; may be given several times."),
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Images of its own and of other classes: fit when it says 'none of mine', and its temperature.",
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
    batch_size: Annotated[int, typer.Option(min=1, help="Images that run together.", rich_help_panel=CALIBRATION)] = 64,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load images.", rich_help_panel=CALIBRATION)] = 2,
    data_root: Annotated[
        Path | None, typer.Option(help="Where timm's data sources keep their files.", rich_help_panel=CALIBRATION)
    ] = None,
    device: Annotated[str, typer.Option(help="Where the expert runs.", rich_help_panel=CALIBRATION)] = "auto",
    as_json: options.Json = False,
) -> None:
    """Cut an expert: keep only the wanted classes' paths.

    Out of a full network or another expert. Reads only the rows that it keeps; no training. Writes a checkpoint that
    every command takes; of several experts, a folder of them.

    **Examples**

        hlnet make-expert runs/digits/best.safetensors --classes 0-4 --out low.safetensors --verify

        hlnet make-expert imagenet.safetensors --classes 'animal -animal/cat,@wanted.txt' --dry-run

        hlnet make-expert imagenet.safetensors --each 2 --under 40MB --out experts

        hlnet make-expert runs/photos --classes animal/cat --out cats.safetensors --calibrate photos
    """
    _check(classes, each, selections, out, under, dry_run)
    if calibrate is not None and (out is None or dry_run):
        raise UsageError("--calibrate fits the file that is written: give --out, and no --dry-run")
    if images and not verify:
        raise UsageError("--images are what --verify runs on; give both")
    from hlnet.candidates import Limit, candidates, nodes_of_level, require_fit
    from hlnet.checkpoint import read_header
    from hlnet.cli import cutting, expert_tables, output
    from hlnet.network import NetworkConfig
    from hlnet.profiling import profile, unit_costs
    from hlnet.selection import read_selections, select_classes

    output.show_log()
    several, writes = each is not None or selections is not None, out is not None and not dry_run
    limit = Limit.parse(under) if under else None
    source = cutting.located(model, whole=writes and (verify or several))
    header = read_header(source)
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
    told: list[dict[str, Any]] = [{} for _ in choices]
    if out is not None and writes:
        files = [out / name for name in cutting.file_names(choices)] if several else [out]
        for file in files:
            if file.resolve() == Path(source).resolve():
                raise UsageError(f"--out: '{file}' is the model itself; choose another name")
        if limit:
            require_fit(wanted, limit, tree, units)
        steps: list[cutting.Step] = [cutting.Verification(source, images)] if verify else []
        with output.progress() as bar:
            if calibrate is not None:
                from hlnet.cli.calibrating import Calibration

                steps.append(
                    Calibration(
                        calibrate,
                        split.value,
                        data_root,
                        max_false_positive,
                        score.value if score else None,
                        device,
                        batch_size,
                        workers,
                        bar,
                    )
                )
            cuts = bar.track(list(zip(choices.values(), files, strict=True)), description="experts")
            told = [cutting.write_expert(source, tree, kept, file, steps) for kept, file in cuts]

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
