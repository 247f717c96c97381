"""``hlnet train``."""

from __future__ import annotations

import os
import shlex
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hlnet.cli.shared import options
from hlnet.errors import UsageError, some

if TYPE_CHECKING:
    from hlnet.data.images import Split
    from hlnet.training.run_config import RunConfig
    from hlnet.training.state import Epoch

RUN, NETWORK, TRUNK, IMAGES, TRAINING = "Run", "Network", "Trunk", "Images", "Training"

#: Options that say where and how to run; all others are settings of the run, as a recipe has them.
NO_SETTINGS = {
    "out", "config", "list_recipes", "resume", "overwrite", "save_minutes", "cache_dir", "cache_size", "log_with",
    "device", "as_json",
}  # fmt: skip


def _option(panel: str, help: str, default: str | None = None, *names: str, **more: Any) -> Any:
    """An option whose default is the recipe's: the text shows what it is without one."""
    return typer.Option(*names, help=help, show_default=default or False, rich_help_panel=panel, **more)


def train(
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="[DATA]",
            help="Folder with train/ and val/, 'digits', or one of timm's sources; default: the recipe's.",
            show_default=False,
        ),
    ] = None,
    tree: Annotated[
        str | None,
        typer.Option(
            help="Class tree file or preset:NAME; classes are matched to the data by name or id.", show_default=False
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to write.", show_default=False)] = None,
    config: Annotated[
        str | None,
        _option(RUN, "Recipe to start from: a shipped one's name, a TOML file, or an earlier run's config.toml."),
    ] = None,
    list_recipes: Annotated[bool, _option(RUN, "List the shipped recipes and stop.", None, "--list-recipes")] = False,
    resume: Annotated[bool, _option(RUN, "Go on where the run in OUT stopped.", None, "--resume")] = False,
    overwrite: Annotated[bool, _option(RUN, "Replace the run that OUT holds.", None, "--overwrite")] = False,
    save_minutes: Annotated[
        float, _option(RUN, "Save the state at least this often, and after each epoch.", "10", min=0.0)
    ] = 10.0,
    log_with: Annotated[str | None, _option(RUN, "Experiment tracker: tensorboard, wandb, mlflow, … or all.")] = None,
    allow_missing: Annotated[
        bool | None,
        _option(
            RUN, "Leave out images of classes that the tree lacks; classes may have no images.", "no-allow-missing"
        ),
    ] = None,
    backbone: Annotated[
        str | None, _option(NETWORK, "A preset (n3hl_resnet50 …) or any timm model.", "n3hl_resnet50")
    ] = None,
    plain: Annotated[bool | None, _option(NETWORK, "Train the timm model itself: the control.", "no-plain")] = None,
    split_point: Annotated[int | None, _option(NETWORK, "The trunk's last stage, negative from the end.")] = None,
    block: Annotated[str | None, _option(NETWORK, "bottleneck or convnext.")] = None,
    widths: Annotated[str | None, _option(NETWORK, "Of the blocks, by level: 128,64,32.")] = None,
    strides: Annotated[str | None, _option(NETWORK, "Of the blocks, by level: 1,1,2.")] = None,
    backbone_arg: Annotated[list[str] | None, _option(NETWORK, "timm argument, name=value; repeatable.")] = None,
    pretrained: Annotated[
        bool | None, _option(TRUNK, "Fetch timm's pretrained trunk weights.", "no-pretrained")
    ] = None,
    trunk_weights: Annotated[str | None, _option(TRUNK, "File of timm weights: safetensors or pth.")] = None,
    frozen_trunk: Annotated[
        bool | None, _option(TRUNK, "Train only what lies behind the trunk.", "no-frozen-trunk")
    ] = None,
    unfreeze_epochs: Annotated[
        int | None,
        _option(TRUNK, "Thaw one more of a frozen trunk's stages every so many epochs; 0 for never.", "0", min=0),
    ] = None,
    cache_views: Annotated[
        int | None,
        _option(TRUNK, "With a frozen trunk: run it this often over each image, and keep the features.", "0", min=0),
    ] = None,
    cache_dir: Annotated[
        Path | None, _option(TRUNK, "Keep cached features in files here, for later runs too; default: in memory.")
    ] = None,
    cache_size: Annotated[str | None, _option(TRUNK, "Most that these files may take: 500MB, 20GB …")] = None,
    layer_decay: Annotated[
        float | None, _option(TRUNK, "Factor on the learning rate per layer, from the branches back.")
    ] = None,
    img_size: Annotated[int | None, _option(IMAGES, "Side in pixels.", min=8)] = None,
    mean: Annotated[str | None, _option(IMAGES, "Pixel means, one or three numbers.")] = None,
    std: Annotated[str | None, _option(IMAGES, "Pixel deviations, likewise.")] = None,
    aa: Annotated[str | None, _option(IMAGES, "timm's auto-augment policy, or 'none'.", "rand-m9-mstd0.5")] = None,
    scale: Annotated[str | None, _option(IMAGES, "Share of the area that crops keep: low,high.", "0.35,1")] = None,
    hflip: Annotated[float | None, _option(IMAGES, "Probability of a flip.", "0.5", min=0, max=1)] = None,
    reprob: Annotated[
        float | None, _option(IMAGES, "Probability that a rectangle is erased.", "0.0", min=0, max=1)
    ] = None,
    mixup: Annotated[float | None, _option(IMAGES, "timm's mixup alpha.", "0.0", min=0)] = None,
    cutmix: Annotated[float | None, _option(IMAGES, "timm's cutmix alpha.", "0.0", min=0)] = None,
    skip_unreadable: Annotated[
        bool | None, _option(IMAGES, "Put another image in the place of one that cannot be read.", "no-skip-unreadable")
    ] = None,
    data_root: Annotated[
        str | None, _option(IMAGES, "Where timm's data sources (torch/…, hfds/…, wds/…) keep their files.")
    ] = None,
    epochs: Annotated[int | None, _option(TRAINING, "Passes over the training images.", "30", min=1)] = None,
    batch_size: Annotated[
        str | None, _option(TRAINING, "Images a step and process, or auto: the most that fit.", "32")
    ] = None,
    loss: Annotated[
        str | None, _option(TRAINING, "cross-entropy, bce, hierarchical or soft-labels.", "cross-entropy")
    ] = None,
    smoothing: Annotated[float | None, _option(TRAINING, "Label smoothing.", "0.1")] = None,
    hierarchical_alpha: Annotated[float | None, _option(TRAINING, "Of the hierarchical loss.", "0.1")] = None,
    soft_labels_beta: Annotated[float | None, _option(TRAINING, "Of the soft-labels loss.", "10.0")] = None,
    cue_aware: Annotated[
        bool | None,
        _option(TRAINING, "Train with random cues, so that a gain acts as evidence of its weight.", "no-cue-aware"),
    ] = None,
    cue_share: Annotated[
        float | None, _option(TRAINING, "Of training images that get a cue.", "0.5", min=0, max=1)
    ] = None,
    cue_reliability: Annotated[
        str | None, _option(TRAINING, "How often these cues are right: low,high.", "0.5,0.99")
    ] = None,
    opt: Annotated[str | None, _option(TRAINING, "timm optimizer: adamw, sgd, …", "adamw")] = None,
    lr: Annotated[float | None, _option(TRAINING, "Learning rate at the top of the schedule.", "0.001")] = None,
    momentum: Annotated[float | None, _option(TRAINING, "Of optimizers that have one.", "0.9")] = None,
    weight_decay: Annotated[float | None, _option(TRAINING, "Of convolutions and linear rows only.", "0.05")] = None,
    sched: Annotated[str | None, _option(TRAINING, "timm schedule: cosine, step, …", "cosine")] = None,
    min_lr: Annotated[float | None, _option(TRAINING, "At the end of the schedule.", "1e-06")] = None,
    warmup_epochs: Annotated[int | None, _option(TRAINING, "Epochs of rising learning rate.", "2", min=0)] = None,
    decay_epochs: Annotated[
        int | None, _option(TRAINING, "Epochs between the steps of schedules that have them.", "30", min=1)
    ] = None,
    decay_rate: Annotated[float | None, _option(TRAINING, "Their factor.", "0.1")] = None,
    clip_grad: Annotated[float | None, _option(TRAINING, "Largest norm of the gradient.")] = None,
    ema_decay: Annotated[
        float | None, _option(TRAINING, "Keep a moving average of the weights, decaying by this.")
    ] = None,
    mixed_precision: Annotated[str | None, _option(TRAINING, "auto, no, fp16 or bf16.", "auto")] = None,
    workers: Annotated[int | None, _option(TRAINING, "Processes that load images.", "2", min=0)] = None,
    seed: Annotated[int | None, _option(TRAINING, "Seed of all that is random.", "0", min=0)] = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Train a network.

    Settings come from a recipe (--config), and options replace them; without a recipe, the defaults below hold. Writes
    a run folder: best.safetensors, last.safetensors, metrics.csv, curves.png, model/ with a model card, last.ckpt to
    --resume from, and config.toml to repeat the run from. Ctrl-C saves and ends. For several processes put
    `accelerate launch -m` or `torchrun --nproc-per-node N -m` before hlnet; DATA and options stay the same.

    **Examples**

        hlnet build-tree digits --method parallel --out digits.tree.json

        hlnet train digits --tree digits.tree.json --backbone resnet10t --img-size 32 --aa none --out runs/digits

        hlnet train photos --tree photos.tree.json --config laptop --out runs/photos

        hlnet train --config runs/photos/config.toml --out runs/again
    """
    flags = {name: value for name, value in locals().items() if name not in NO_SETTINGS and value is not None}
    from hlnet.cli.shared import output
    from hlnet.data.sources import load_data
    from hlnet.data.tree_data import TreeData, eval_transform, train_transform
    from hlnet.store.hub import write_model_folder
    from hlnet.store.names import MODEL_FOLDER
    from hlnet.training import loop
    from hlnet.training.run_config import build_network, read_run_config, shipped_recipes
    from hlnet.training.run_folder import CONFIG_FILE, METRICS_FILE
    from hlnet.training.state import STATE_FILE
    from hlnet.training.stopping import Stopped
    from hlnet.tree.io import read_tree

    if list_recipes:
        output.show_table("Recipes", ["name", "what for"], [[name, text] for name, text in shipped_recipes().items()])
        return
    if out is None:
        raise UsageError("--out is needed: the run folder to write")
    if resume and overwrite:
        raise UsageError("--resume goes on with the run in --out, --overwrite replaces it; give one")
    if resume and config is None:
        if (out / CONFIG_FILE).exists():
            config = str(out / CONFIG_FILE)
        elif data is None or tree is None:
            raise UsageError(f"'{out}' holds no run to go on with; give DATA and --tree to begin one there")
    run = read_run_config(config, _nested(flags))
    if run.data is None or run.tree is None:
        missing = "DATA is" if run.data is None else "--tree (a file of hlnet build-tree's, or preset:NAME) is"
        raise UsageError(f"{missing} needed, unless a recipe (--config) has it")
    if any((out / name).exists() for name in (METRICS_FILE, STATE_FILE)) and not (overwrite or resume):
        raise UsageError(f"'{out}' already holds a run; give --resume, --overwrite or another --out")
    if Path(run.data).is_dir() and out.resolve() == Path(run.data).resolve():
        raise UsageError(f"--out '{out}' is the data folder; choose another one for the run")
    limit = options.byte_size(cache_size, "--cache-size")
    place = options.pick_device(device)
    net = build_network(run, read_tree(run.tree))
    settings = run.train
    # Notes of torch to its users' programmers: on its own gradient buckets, and on --workers, which is meant.
    warnings.filterwarnings("ignore", "Grad strides do not match|This DataLoader will create")
    if others := int(os.environ.get("RANK", "0")) > 0:  # of several processes, one speaks
        warnings.simplefilter("ignore")
    with output.quiet(others):
        if settings.frozen_trunk and not (run.network.pretrained or run.network.trunk_weights):
            output.hint("warning: the frozen trunk's weights are random; --pretrained or --trunk-weights give it some")
        augment = train_transform(net.transform, settings.aa, settings.scale, settings.hflip, settings.reprob)
        transforms: dict[Split, Any] = {"train": augment, "val": eval_transform(net.transform)}
        train_data, val_data = (
            TreeData(load_data(run.data, split, run.data_root), net.tree, transform, subset=run.allow_missing)
            for split, transform in transforms.items()
        )
        for data_set, name in ((train_data, "training"), (val_data, "validation")):
            if data_set.unknown:
                lacking = some(data_set.unknown)
                output.hint(f"{data_set.left_out} {name} images of classes that the tree lacks are left out: {lacking}")
            if data_set.absent:
                output.hint(f"classes without {name} images: {some(data_set.absent)}")
        output.hint(
            f"{len(train_data)} training and {len(val_data)} validation images of {len(net.tree.classes)} classes"
        )
        started = time.perf_counter()
        with output.progress() as bar:
            watch = output.TrainingProgress(bar, settings.epochs, len(train_data))

            def on_epoch(epoch: Epoch) -> None:
                watch.epoch_done()
                output.hint(
                    f"epoch {epoch.epoch:>3}/{settings.epochs}  loss {epoch.train_loss:.4f}  "
                    f"val loss {epoch.val_loss:.4f}  val top-1 {100 * epoch.val_top1:.2f} %  lr {epoch.lr:.2g}  "
                    f"{epoch.seconds:.1f} s"
                )

            try:
                history = loop.train(
                    net,
                    train_data,
                    val_data,
                    settings,
                    out,
                    place,
                    on_epoch,
                    watch.batch_done,
                    described=_described(run),
                    resume=resume,
                    save_minutes=save_minutes,
                    cache_dir=cache_dir,
                    cache_size=limit,
                    log_with=log_with,
                )
            except Stopped as stopped:
                raise typer.Exit(_stopped(str(stopped), out)) from None
    if others:
        return
    write_model_folder(net, out / MODEL_FOLDER)
    best = max(history, key=lambda epoch: epoch.val_top1)
    seconds = time.perf_counter() - started
    result = {
        "out": str(out),
        "best_epoch": best.epoch,
        "val_top1": best.val_top1,
        "val_loss": best.val_loss,
        "images": len(val_data),
        "seconds": seconds,
        "images_per_second": len(train_data) * len(history) / sum(epoch.seconds for epoch in history),
    }
    if as_json:
        output.show_json(result)
        return
    output.show(
        f"best epoch {best.epoch}: top-1 {100 * best.val_top1:.2f} % on {len(val_data)} validation images, "
        f"after {seconds:.0f} s ({result['images_per_second']:.0f} images/s); "
        f"{out / MODEL_FOLDER} has it with a model card"
    )


def _nested(flags: dict[str, Any]) -> dict[str, Any]:
    """The options as a recipe nests them."""
    from hlnet.training.run_config import NetworkSettings, RunConfig
    from hlnet.training.train_config import TrainConfig

    found: dict[str, Any] = {"network": {}, "transform": {}, "train": {}}
    if "backbone_arg" in flags:
        found["network"]["backbone_args"] = options.settings(flags.pop("backbone_arg"), "--backbone-arg")
    for name in ("widths", "strides"):
        if name in flags:
            flags[name] = options.integers(flags[name], f"--{name}")
    for name in ("scale", "cue_reliability"):
        if name in flags:
            flags[name] = options.numbers(flags[name], f"--{name.replace('_', '-')}")
    if "batch_size" in flags and flags["batch_size"] != "auto":
        if not flags["batch_size"].removeprefix("-").isdecimal():
            raise UsageError(f"--batch-size '{flags['batch_size']}': expected a whole number, or auto")
        flags["batch_size"] = int(flags["batch_size"])
    if "img_size" in flags:
        found["transform"]["input_size"] = flags["img_size"]
    for name in ("mean", "std"):
        if name in flags:
            found["transform"][name] = options.numbers(flags[name], f"--{name}")
    for name, value in flags.items():
        if name in TrainConfig.model_fields:
            found["train"][name] = value
        elif name in NetworkSettings.model_fields:
            found["network"][name] = value
        elif name in RunConfig.model_fields:
            found[name] = value
    return found


def _described(run: RunConfig) -> dict[str, Any]:
    """What the run folder's config.toml tells besides the network, its input and the training."""
    network = run.network.model_dump(include={"pretrained", "trunk_weights"}, exclude_none=True)
    return {**run.model_dump(include={"data", "data_root", "allow_missing"}, exclude_none=True), "network": network}


def _stopped(message: str, out: Path) -> int:
    """Tell how to go on; the exit code of a command that Ctrl-C ended."""
    from hlnet.cli.shared import output

    output.hint(f"{message}; go on with: hlnet train --resume --out {shlex.quote(str(out))}")
    return 130
