"""``hlnet train``."""

from __future__ import annotations

import os
import shlex
import time
import warnings
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand
from typer.main import get_command

from hlnet.cli.shared import options
from hlnet.errors import UsageError

if TYPE_CHECKING:
    from hlnet.data.tree_data import TreeData
    from hlnet.model.base import TrainableNetwork
    from hlnet.training.run_config import RunConfig
    from hlnet.training.state import Epoch


def _option(panel: str, help: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **{"show_default": False} | more)


class TrainCommand(TyperCommand):
    """``hlnet train``, whose options are made when they are first needed.

    Their declarations import pydantic, and other commands, ``hlnet --help`` among them, need not wait for it.
    """

    @cached_property
    def _with_options(self) -> Any:
        from hlnet.cli.shared.setting_options import with_settings

        app = typer.Typer(add_completion=False)
        app.command()(with_settings(_run))
        return get_command(app)

    def get_params(self, ctx: Any) -> list[Any]:
        return list(self._with_options.get_params(ctx))

    def invoke(self, ctx: Any) -> Any:
        return self._with_options.invoke(ctx)


def train() -> None:
    """Train one classifier for all classes of a tree; make-expert cuts smaller ones out of it later.

    Needs labelled images (DATA) and a class tree (--tree; hlnet build-tree makes one). The early stages of a timm model
    (--backbone) are the trunk, which all classes share; each node of the tree gets a small block of its own.

    Settings come from a recipe (--config), and options override them; without a recipe, the defaults below hold. Writes
    a run folder, which every command takes as MODEL: best.safetensors, last.safetensors, metrics.csv, curves.png,
    model/ with a model card, last.ckpt to --resume from, and config.toml to repeat the run from. Ctrl-C saves and
    stops. For several processes put `accelerate launch -m` or `torchrun --nproc-per-node N -m` before hlnet; DATA and
    options stay the same.

    **Examples**

        hlnet build-tree digits --method parallel --out digits.tree.json

        hlnet train digits --tree digits.tree.json --backbone resnet10t --img-size 32 --aa none --out runs/digits

        hlnet train photos --tree photos.tree.json --config laptop --out runs/photos

        hlnet train --config runs/photos/config.toml --out runs/again
    """


def _run(
    *,
    config: Annotated[
        str | None,
        _option("Run", "Recipe to start from: a shipped one's name, a TOML file, or an earlier run's config.toml."),
    ] = None,
    list_recipes: Annotated[bool, _option("Run", "List the shipped recipes and stop.", "--list-recipes")] = False,
    resume: Annotated[bool, _option("Run", "Resume the run in OUT.", "--resume")] = False,
    overwrite: Annotated[bool, _option("Run", "Replace the run that OUT holds.", "--overwrite")] = False,
    save_minutes: Annotated[
        float, _option("Run", "Save the state at least this often, and after each epoch.", min=0.0, show_default="10")
    ] = 10.0,
    log_with: Annotated[str | None, _option("Run", "Experiment tracker: tensorboard, wandb, mlflow, … or all.")] = None,
    given: dict[str, Any],
    cache_dir: Annotated[
        Path | None, _option("Trunk", "Keep cached features in files here, for later runs too; default: in memory.")
    ] = None,
    cache_size: Annotated[str | None, _option("Trunk", "Size limit of these files: 500MB, 20GB …")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to write.", show_default=False)] = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    from hlnet.cli.shared import output
    from hlnet.training.run_config import shipped_recipes

    if list_recipes:
        output.show_table("Recipes", ["name", "what for"], [[name, text] for name, text in shipped_recipes().items()])
        return
    if out is None:
        raise UsageError("--out is needed: the run folder to write")
    from hlnet.model.cost import network_cost, plain_cost
    from hlnet.model.hierarchical import NetworkConfig
    from hlnet.model.presets import lean_preset
    from hlnet.store.hub import write_model_folder
    from hlnet.store.names import MODEL_FOLDER
    from hlnet.training.run_parts import build_network, load_run_data
    from hlnet.training.state import summary
    from hlnet.tree.io import read_tree

    run, tree = _read_run(config, given, out, resume, overwrite)
    limit = options.byte_size(cache_size, "--cache-size")
    chosen = options.pick_device(device)
    others = int(os.environ.get("RANK", "0")) > 0  # of several processes, the first one reports
    with output.quiet(others):
        net = build_network(run, read_tree(tree))
        if not others and isinstance(net.config, NetworkConfig):
            plain = plain_cost(net.config, net.num_classes, net.transform.input_size)
            output.hint_at_cost(network_cost(net), plain, lean_preset(net.config.backbone))
        data = load_run_data(run, net)
        how = {"save_minutes": save_minutes, "cache_dir": cache_dir, "cache_size": limit, "log_with": log_with}
        started = time.perf_counter()
        history = _train(net, data, run, out, chosen, resume=resume, **how)
    if others:
        return
    write_model_folder(net, out / MODEL_FOLDER)
    figures = summary(history, len(data[0]), len(data[1]), time.perf_counter() - started)
    text = _result(figures, out / MODEL_FOLDER)
    output.result(as_json, {"out": str(out), **figures}, lambda: output.show(text))


def _read_run(
    config: str | None, given: dict[str, Any], out: Path, resume: bool, overwrite: bool
) -> tuple[RunConfig, str]:
    """The settings of the run, and its tree.

    Raises:
        UsageError: if they are incomplete, or the run must not be written to ``out``.
    """
    from hlnet.training.run_config import read_run_config
    from hlnet.training.run_folder import CONFIG_FILE, METRICS_FILE
    from hlnet.training.state import STATE_FILE

    if resume and overwrite:
        raise UsageError("--resume continues the run in --out, --overwrite replaces it; give one")
    if resume and config is None:
        if (out / CONFIG_FILE).exists():
            config = str(out / CONFIG_FILE)
        elif not {"data", "tree"} <= given.keys():
            raise UsageError(f"'{out}' holds no run to resume; give DATA and --tree to begin one there")
    run = read_run_config(config, given)
    if run.data is None:
        raise UsageError("DATA is needed, unless a recipe (--config) has it")
    if run.tree is None:
        raise UsageError(
            "--tree (a file of hlnet build-tree's, or preset:NAME) is needed, unless a recipe (--config) has it"
        )
    if any((out / name).exists() for name in (METRICS_FILE, STATE_FILE)) and not (overwrite or resume):
        raise UsageError(f"'{out}' already holds a run; give --resume, --overwrite or another --out")
    if Path(run.data).is_dir() and out.resolve() == Path(run.data).resolve():
        raise UsageError(f"--out '{out}' is the data folder; choose another one for the run")
    return run, run.tree


def _train(
    net: TrainableNetwork, data: tuple[TreeData, TreeData], run: RunConfig, out: Path, device: str, **how: Any
) -> list[Epoch]:
    """Train with a progress bar and a line an epoch; Ctrl-C ends the command with how to go on."""
    from hlnet.cli.shared import output
    from hlnet.training import loop
    from hlnet.training.stopping import Stopped

    # Notes of torch to its users' programmers: on its own gradient buckets, and on --workers, which is meant.
    warnings.filterwarnings("ignore", "Grad strides do not match|This DataLoader will create")
    if output.stderr.quiet:
        warnings.simplefilter("ignore")
    epochs = run.train.epochs
    with output.progress() as bar:
        watch = output.TrainingProgress(bar, epochs, len(data[0]))

        def on_epoch(epoch: Epoch) -> None:
            watch.epoch_done()
            output.hint(
                f"epoch {epoch.epoch:>3}/{epochs}  loss {epoch.train_loss:.4f}  val loss {epoch.val_loss:.4f}  "
                f"val top-1 {100 * epoch.val_top1:.2f} %  lr {epoch.lr:.2g}  {epoch.seconds:.1f} s"
            )

        try:
            return loop.train(
                net, *data, run.train, out, device, on_epoch, watch.batch_done, described=run.described, **how
            )
        except Stopped as stopped:
            output.hint(f"{stopped}; go on with: hlnet train --resume --out {shlex.quote(str(out))}")
            raise typer.Exit(130) from None


def _result(figures: dict[str, float], folder: Path) -> str:
    return (
        f"best epoch {figures['best_epoch']}: top-1 {100 * figures['val_top1']:.2f} % on {figures['images']} "
        f"validation images, after {figures['seconds']:.0f} s ({figures['images_per_second']:.0f} images/s); "
        f"{folder} has it with a model card"
    )
