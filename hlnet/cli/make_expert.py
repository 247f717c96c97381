"""``hlnet make-expert``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hlnet.cli.shared import options
from hlnet.errors import UsageError, some

if TYPE_CHECKING:
    from hlnet.expert.candidates import Candidate
    from hlnet.expert.write import Calibration, ExpertSource
    from hlnet.tree.construct.budget import Budget

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
        typer.Option(
            min=1, metavar="LEVEL", help="Make an expert for each node of a level; 1 is nearest to the trunk."
        ),
    ] = None,
    selections: Annotated[
        Path | None, typer.Option(help="YAML or JSON file of named selections; make an expert for each.")
    ] = None,
    under: Annotated[
        str | None,
        typer.Option(
            metavar="BUDGET",
            help="Write only experts within 15M, 4.2GMAC or 40MB; without --out, list the nodes whose experts fit.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the classes that would stay, and the cost; write nothing.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Check on random images that weights and logits are those of the full network.",
        ),
    ] = False,
    images: Annotated[
        list[Path] | None,
        typer.Option(help="Image to --verify on instead of random ones, or a folder of images; repeatable."),
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Images of its classes and of others: fit the threshold of 'none of these', and the temperature.",
            rich_help_panel=CALIBRATION,
        ),
    ] = None,
    split: Annotated[options.Split, typer.Option(help="Part of DATA.", rich_help_panel=CALIBRATION)] = "val",
    max_false_positive: Annotated[
        float,
        typer.Option(help="Share of images of other classes that may be accepted.", rich_help_panel=CALIBRATION),
    ] = 0.01,
    score: Annotated[
        options.Score | None,
        typer.Option(
            help="Score that separates images of its classes from others; default: probability after --loss bce, else "
            "energy.",
            rich_help_panel=CALIBRATION,
        ),
    ] = None,
    batch_size: options.BatchSize = 64,
    workers: options.Workers = 2,
    data_root: options.DataRoot = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Cut a smaller, faster network for some of the classes out of a trained one; no data, no training.

    The result is an expert: it keeps the trunk and the branches of --classes, and its logits are those of MODEL. MODEL
    is a full network or another expert. Writes a checkpoint that every command takes; for several experts, a folder of
    them. Reads only the selected rows. From hf-hub: it fetches only their bytes; for --verify, --each and --selections,
    the whole file. --calibrate also fits when the expert answers "none of these".

    **Examples**

        hlnet make-expert runs/digits/best.safetensors --classes 0-4 --out low.safetensors --verify

        hlnet make-expert imagenet.safetensors --classes 'animal -animal/cat,@wanted.txt' --dry-run

        hlnet make-expert imagenet.safetensors --each 2 --under 40MB --out experts

        hlnet make-expert runs/photos --classes animal/cat --out cats.safetensors --calibrate photos
    """
    _check(classes, each, selections, out, under, dry_run)
    _check_calibration(context, calibrate, out, dry_run, max_false_positive)
    _check_verify(verify, images, out, dry_run)
    files_to_verify = [Path(file) for file in options.image_files(images or [], "--images")]
    from hlnet.cli.shared import expert_tables, output
    from hlnet.expert import write
    from hlnet.expert.candidates import candidates, choose, require_fit
    from hlnet.tree.construct.budget import Budget

    several, target = each is not None or selections is not None, None if dry_run else out
    budget = Budget.parse(under) if under else None
    source = write.ExpertSource(model, whole=target is not None and (verify or several))
    tree, choices = source.tree, choose(source.tree, classes, each, selections)
    # Counting takes a second, and the profile of one expert counts again: only where it is needed.
    units = source.units if several or budget else []
    wanted = candidates(tree, units, choices) if units else []
    if budget and several and target is not None:
        wanted = _within_budget(wanted, budget)
        choices = {one.name: choices[one.name] for one in wanted}
    reports: list[dict[str, Any]] = [{} for _ in choices]
    if target is not None:
        files = write.expert_files(source, choices, target, several)
        if budget:
            require_fit(wanted, budget, tree, units)
        with output.progress() as bar:
            # All that can be wrong is checked before the first file is written, and the quick checks come first.
            on_step, steps = output.phases(bar), list[write.Step]()
            if calibrate is not None:
                fit: dict[str, Any] = {"max_false_positive": max_false_positive, "score": score, "on_step": on_step}
                fit |= {"batch_size": batch_size, "workers": workers, "device": options.pick_device(device)}
                steps = [_calibration(source, choices, several, (model, calibrate, split, data_root), **fit)]
            if verify:
                steps = [write.Verification(source, files_to_verify), *steps]
            reports = write.write_experts(source, list(zip(choices.values(), files, strict=True)), steps, on_step)
    counted = target is not None or (dry_run and classes is not None)
    shown = expert_tables.MadeExperts(source, choices, wanted, budget, several, reports, target, counted)
    output.result(as_json, shown.json, shown.show)
    if dry_run and not as_json:
        output.hint("nothing was written: --dry-run")


def _check_verify(verify: bool, images: list[Path] | None, out: Path | None, dry_run: bool) -> None:
    """Refuse --verify without a file, and --images without --verify."""
    if verify and (out is None or dry_run):
        raise UsageError("--verify checks the file that is written: give --out, and no --dry-run")
    if images and not verify:
        raise UsageError("--images are for --verify; give both")


def _within_budget(wanted: list[Candidate], budget: Budget) -> list[Candidate]:
    """The experts within the budget; all if none is, so that the refusal can name them."""
    from hlnet.cli.shared import output

    over = [f"'{one.name}'" for one in wanted if not budget.fits(one.cost)]
    if not over or len(over) == len(wanted):
        return wanted
    output.hint(f"over the budget of {budget.text(budget.limit)}, and not written: {some(over)}")
    return [one for one in wanted if budget.fits(one.cost)]


def _calibration(
    source: ExpertSource,
    choices: Mapping[str, Collection[int]],
    several: bool,
    data: tuple[str, str, options.Split, Path | None],
    **fit: Any,
) -> Calibration:
    """The step that fits "none of these".

    Args:
        source: the network.
        choices: positions of each expert's classes, by its name.
        several: whether they may be more than one.
        data: the network's name, then --calibrate, --split and --data-root.
        fit: as :class:`hlnet.expert.write.Calibration` takes it.

    Raises:
        DataError: if the data cannot serve for one of the experts.
    """
    from hlnet.cli.shared import used_images
    from hlnet.data.sources import load_data
    from hlnet.expert.write import Calibration

    model, name, split, root = data
    labelled = load_data(name, split, root)
    used_images.hint_before_fitting(model, source.provenance, labelled)
    calibration = Calibration(labelled, **fit)
    calibration.check(source, choices, several)
    return calibration


def _check_calibration(
    context: typer.Context, calibrate: str | None, out: Path | None, dry_run: bool, max_false_positive: float
) -> None:
    """Refuse options of --calibrate that do nothing, or do not go together."""
    if calibrate is None:
        sources = {name: context.get_parameter_source(name) for name in OF_CALIBRATION}
        given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
        if given:
            named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise UsageError(f"{named}: only --calibrate uses this; give both or none")
    elif out is None or dry_run:
        raise UsageError("--calibrate fits the file that is written: give --out, and no --dry-run")
    if not 0 < max_false_positive < 1:
        raise UsageError(f"--max-false-positive {max_false_positive:g}: expected a share between 0 and 1; 0.01 is 1 %")


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
