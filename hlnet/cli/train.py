"""``hlnet train``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hlnet.cli import options
from hlnet.errors import UsageError

if TYPE_CHECKING:
    from hlnet.network import HierarchicalNet
    from hlnet.plain import PlainNet
    from hlnet.training import Epoch
    from hlnet.tree import ClassTree

NETWORK, TRUNK, IMAGES, TRAINING = "Network", "Trunk", "Images", "Training"


def train(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Folder with train/ and val/, 'digits', or one of timm's sources.")
    ],
    tree: Annotated[Path, typer.Option(help="Class tree file; classes are matched to the data by name or id.")],
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    backbone: Annotated[
        str, typer.Option(help="A preset (n3hl_resnet50 …) or any timm model.", rich_help_panel=NETWORK)
    ] = "n3hl_resnet50",
    plain: Annotated[
        bool, typer.Option("--plain", help="Train the timm model itself: the control.", rich_help_panel=NETWORK)
    ] = False,
    split_point: Annotated[
        int | None, typer.Option(help="The trunk's last stage, negative from the end.", rich_help_panel=NETWORK)
    ] = None,
    block: Annotated[str | None, typer.Option(help="bottleneck or convnext.", rich_help_panel=NETWORK)] = None,
    widths: Annotated[
        str | None, typer.Option(help="Of the blocks, by level: 128,64,32.", rich_help_panel=NETWORK)
    ] = None,
    strides: Annotated[
        str | None, typer.Option(help="Of the blocks, by level: 1,1,2.", rich_help_panel=NETWORK)
    ] = None,
    backbone_arg: Annotated[
        list[str], typer.Option(help="timm argument, name=value; repeatable.", rich_help_panel=NETWORK)
    ] = [],  # noqa: B006
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Fetch timm's pretrained trunk weights.", rich_help_panel=TRUNK)
    ] = False,
    trunk_weights: Annotated[
        Path | None, typer.Option(help="File of timm weights: safetensors or pth.", rich_help_panel=TRUNK)
    ] = None,
    frozen_trunk: Annotated[
        bool, typer.Option("--frozen-trunk", help="Train only what lies behind the trunk.", rich_help_panel=TRUNK)
    ] = False,
    cache_views: Annotated[
        int,
        typer.Option(
            min=0,
            help="With a frozen trunk: run it this often over each image, and keep the features in memory.",
            rich_help_panel=TRUNK,
        ),
    ] = 0,
    img_size: Annotated[int | None, typer.Option(min=8, help="Side in pixels.", rich_help_panel=IMAGES)] = None,
    mean: Annotated[str | None, typer.Option(help="Pixel means, one or three numbers.", rich_help_panel=IMAGES)] = None,
    std: Annotated[str | None, typer.Option(help="Pixel deviations, likewise.", rich_help_panel=IMAGES)] = None,
    aa: Annotated[
        str, typer.Option(help="timm's auto-augment policy, or 'none'.", rich_help_panel=IMAGES)
    ] = "rand-m9-mstd0.5",
    scale: Annotated[
        str, typer.Option(help="Share of the area that crops keep: low,high.", rich_help_panel=IMAGES)
    ] = "0.35,1",
    hflip: Annotated[float, typer.Option(min=0, max=1, help="Probability of a flip.", rich_help_panel=IMAGES)] = 0.5,
    data_root: options.DataRoot = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.", rich_help_panel=TRAINING)] = 30,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.", rich_help_panel=TRAINING)] = 32,
    opt: Annotated[str, typer.Option(help="timm optimizer: adamw, sgd, …", rich_help_panel=TRAINING)] = "adamw",
    lr: Annotated[float, typer.Option(help="Learning rate at the top of the cosine.", rich_help_panel=TRAINING)] = 1e-3,
    min_lr: Annotated[float, typer.Option(help="At the end of the cosine.", rich_help_panel=TRAINING)] = 1e-6,
    weight_decay: Annotated[
        float, typer.Option(help="Of convolutions and linear rows only.", rich_help_panel=TRAINING)
    ] = 0.05,
    warmup_epochs: Annotated[
        int, typer.Option(min=0, help="Epochs of rising learning rate.", rich_help_panel=TRAINING)
    ] = 2,
    smoothing: Annotated[float, typer.Option(help="Label smoothing.", rich_help_panel=TRAINING)] = 0.1,
    clip_grad: Annotated[
        float | None, typer.Option(help="Largest norm of the gradient.", rich_help_panel=TRAINING)
    ] = None,
    ema_decay: Annotated[
        float | None,
        typer.Option(help="Keep a moving average of the weights, decaying by this.", rich_help_panel=TRAINING),
    ] = None,
    mixed_precision: Annotated[str, typer.Option(help="auto, no, fp16 or bf16.", rich_help_panel=TRAINING)] = "auto",
    workers: options.Workers = 2,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that OUT holds.")] = False,
    as_json: options.Json = False,
) -> None:
    """Train a network.

    Reads DATA and a tree; writes a run folder: best.safetensors, last.safetensors, metrics.csv, curves.png and
    config.toml.

    **Examples**

        hlnet build-tree digits --method parallel --out digits.tree.json

        hlnet train digits --tree digits.tree.json --backbone resnet10t --img-size 32 --aa none --out runs/digits

        hlnet train photos --tree photos.tree.json --backbone resnet50 --pretrained --frozen-trunk --out runs/photos
    """
    from pydantic import ValidationError

    from hlnet import training
    from hlnet.cli import output
    from hlnet.data import TreeData, eval_transform, load_data, train_transform
    from hlnet.tree_io import read_tree
    from hlnet.trunk import check_size

    if (out / "metrics.csv").exists() and not overwrite:
        raise UsageError(f"'{out}' already holds a run; choose another --out, or give --overwrite")
    if Path(data).is_dir() and out.resolve() == Path(data).resolve():
        raise UsageError(f"--out '{out}' is the data folder; choose another one for the run")
    if pretrained and trunk_weights:
        raise UsageError("give either --pretrained or --trunk-weights")
    crop = options.floats(scale, "--scale", 2) or (0.35, 1.0)
    try:
        config = training.TrainConfig(
            epochs=epochs,
            batch_size=batch_size,
            opt=opt,
            lr=lr,
            min_lr=min_lr,
            weight_decay=weight_decay,
            warmup_epochs=warmup_epochs,
            smoothing=smoothing,
            clip_grad=clip_grad,
            ema_decay=ema_decay,
            mixed_precision=mixed_precision,  # type: ignore[arg-type]
            aa=aa,
            scale=(crop[0], crop[1]),
            hflip=hflip,
            frozen_trunk=frozen_trunk,
            cache_views=cache_views,
            workers=workers,
            seed=seed,
        )
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else "options"
        raise UsageError(f"{option} {first['input']!r}: {first['msg']}") from None
    place = options.pick_device(device)
    classes = read_tree(tree)
    net = _network(
        classes,
        plain,
        backbone,
        {
            "split_point": split_point,
            "block": block,
            "widths": options.integers(widths, "--widths"),
            "strides": options.integers(strides, "--strides"),
        },
        options.settings(backbone_arg, "--backbone-arg"),
        pretrained,
        trunk_weights,
        img_size,
        seed,
    )
    channels = net.transform.input_size[0]
    net.transform = net.transform.adjusted(
        img_size, options.floats(mean, "--mean", channels), options.floats(std, "--std", channels)
    )
    check_size(net.eval().features, net.transform)
    if frozen_trunk and not (pretrained or trunk_weights):
        output.hint("the frozen trunk is untrained: give --pretrained or --trunk-weights")
    train_data = TreeData(
        load_data(data, "train", data_root), net.tree, train_transform(net.transform, config.aa, config.scale, hflip)
    )
    val_data = TreeData(load_data(data, "val", data_root), net.tree, eval_transform(net.transform))
    output.hint(f"{len(train_data)} training and {len(val_data)} validation images of {len(net.tree.classes)} classes")
    started = time.perf_counter()
    with output.progress() as bar:
        task = bar.add_task("start", total=1)

        def on_batch(phase: str, step: int, steps: int) -> None:
            bar.update(task, description=phase, completed=step, total=steps)

        def on_epoch(epoch: Epoch) -> None:
            output.hint(
                f"epoch {epoch.epoch:>3}/{epochs}  loss {epoch.train_loss:.4f}  val loss {epoch.val_loss:.4f}  "
                f"val top-1 {100 * epoch.val_top1:.2f} %  lr {epoch.lr:.2g}  {epoch.seconds:.1f} s"
            )

        history = training.train(net, train_data, val_data, config, out, place, on_epoch, on_batch)
    best = max(history, key=lambda epoch: epoch.val_top1)
    seconds = time.perf_counter() - started
    result = {
        "out": str(out),
        "best_epoch": best.epoch,
        "val_top1": best.val_top1,
        "val_loss": best.val_loss,
        "seconds": seconds,
    }
    if as_json:
        output.show_json(result)
    else:
        output.show(
            f"best epoch {best.epoch}: top-1 {100 * best.val_top1:.2f} % on {len(val_data)} validation images, "
            f"after {seconds:.0f} s; {out / 'best.safetensors'}"
        )


def _network(
    tree: ClassTree,
    plain: bool,
    name: str,
    shape: dict[str, Any],
    backbone_args: dict[str, Any],
    pretrained: bool,
    weights: Path | None,
    img_size: int | None,
    seed: int,
) -> HierarchicalNet | PlainNet:
    import torch

    from hlnet.plain import PlainConfig, PlainNet
    from hlnet.presets import PRESETS, create_model
    from hlnet.trunk import load_trunk_weights, size_arguments

    torch.manual_seed(seed)
    backbone = PRESETS.get(name, {}).get("backbone", name)
    arguments = size_arguments(backbone, img_size) | backbone_args
    net: HierarchicalNet | PlainNet
    if plain:
        if unused := [option for option in ("block", "widths", "strides") if shape[option] is not None]:
            raise UsageError(f"--{unused[0]} shapes branches, and a plain network has none; leave it or --plain out")
        config = PlainConfig(backbone=backbone, split_point=shape["split_point"], backbone_args=arguments)
        net = PlainNet(config, tree, pretrained)
    else:
        net = create_model(name, tree, pretrained, backbone_args=arguments, **shape)
    if weights:
        load_trunk_weights(net.trunk_module, weights, net.trunk_names)
    return net
