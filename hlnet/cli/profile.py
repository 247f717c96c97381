"""``hlnet profile``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from hlnet.cli.shared import options
from hlnet.errors import TreeError, UsageError

if TYPE_CHECKING:
    from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
    from hlnet.model.transform import InputTransform
    from hlnet.tree.class_tree import ClassTree


def profile(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help=f"A preset (lean_resnet50, n3hl_resnet50 …), a timm model, or a saved network: {options.MODEL_NAMES}.",
        ),
    ],
    tree: Annotated[Path | None, typer.Option(help="Class tree file, for a preset or a timm model.")] = None,
    nodes: Annotated[str | None, typer.Option(help="Instead of a tree: nodes per level, such as 6,26,100.")] = None,
    classes: options.Classes = None,
    img_size: Annotated[int | None, typer.Option(min=8, help="Side of the image in pixels.")] = None,
    batch_size: Annotated[str, typer.Option(help="Batch sizes to time, such as 1,8.")] = "1",
    threads: Annotated[str, typer.Option(help="Thread counts to time, such as 1,2.")] = "1",
    latency: Annotated[bool, typer.Option(help="Measure latency.")] = True,
    split_point: Annotated[
        str | None,
        typer.Option(help="For a preset or a timm model: the trunk's last stage or block (2, -2, layer4.0)."),
    ] = None,
    sweep: Annotated[
        Literal["split-point", "blocks"] | None,
        typer.Option(help="Count the costs for each stage, or block, that the trunk may end at, instead."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="With --sweep: draw the costs, as .png, .svg or .pdf.")] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="List what the inference form does to the network.")
    ] = False,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    as_json: options.Json = False,
) -> None:
    """Count parameters and operations, and measure latency: plain, full and expert network.

    Parameters, multiply-accumulates (by fvcore), bytes and latency, by level. Writes nothing.

    **Examples**

        hlnet profile n3hl_resnet50 --nodes 6,26,100 --classes 0-19

        hlnet profile runs/digits/best.safetensors --classes 0-4 --batch-size 1,8 --threads 1,2 --json

        hlnet profile n3hl_resnet50 --nodes 6,26,100 --classes 0-4 --sweep split-point --plot splits.png
    """
    from hlnet.cli.shared import output, profile_tables
    from hlnet.expert.cut import cut_expert
    from hlnet.model import cost
    from hlnet.model.latency import random_network, with_latency

    batches = options.integers(batch_size, "--batch-size") or (1,)
    counts = options.integers(threads, "--threads") or (1,)
    options.check_picture(plot, "--plot")
    if plot and not sweep:
        raise UsageError("--plot draws the costs of --sweep; give --sweep split-point, too")
    if min(batches) < 1 or min(counts) < 1:
        raise UsageError("--batch-size and --threads must be at least 1")
    network = _network(model, tree, nodes, img_size, split_point, device)
    config, class_tree, transform, net = network
    parent_counts = net.provenance.parent_counts if net is not None else None
    if sweep:
        if parent_counts:
            raise UsageError(f"'{model}' is an expert, whose costs elsewhere depend on the whole tree: sweep that")
        _sweep(config, class_tree, transform, classes, plot, as_json, blocks=sweep == "blocks")
        return
    report = cost.profile(config, class_tree, transform, classes, parent_counts)
    if net is None and (latency or explain):
        net = random_network(config, class_tree).to(options.pick_device(device))
        net.transform = net.transform.adjusted(img_size)
    if latency and net is not None:
        with output.progress() as bar:
            bar.add_task("timing", total=None)
            expert = None if classes is None else cut_expert(net, classes)
            report = with_latency(report, net, expert, batches, counts, dtype=dtype)
    lines = _explained(net, batches, dtype) if explain and net is not None else []
    figures = report.model_dump(mode="json") | ({"inference": lines} if explain else {})
    descents = () if net is None else net.provenance.descent
    if descents:
        figures["descent"] = [one.model_dump(mode="json") for one in descents]
    output.result(as_json, figures, lambda: profile_tables.show_profile_report(report, lines, descents))


class _Profiled(NamedTuple):
    """A network to count: its config, tree and transform; and the network itself, of a checkpoint."""

    config: NetworkConfig
    tree: ClassTree
    transform: InputTransform | None
    net: HierarchicalNet | None


def _network(
    model: str, tree: Path | None, nodes: str | None, img_size: int | None, split_point: str | None, device: str
) -> _Profiled:
    """The network of a checkpoint, or of a preset or timm model with a tree."""
    from hlnet.model.base import require_branches
    from hlnet.model.hierarchical import HierarchicalNet
    from hlnet.model.presets import PRESETS, configure
    from hlnet.model.transform import InputTransform
    from hlnet.model.trunk import check_backbone, size_arguments
    from hlnet.store.names import is_model_name

    if is_model_name(model) or Path(model).exists():
        if tree or nodes or img_size or split_point is not None:
            raise UsageError(
                "--tree, --nodes, --img-size and --split-point are for presets; a checkpoint brings its own"
            )
        net = options.load_model(model, device)
        mend = f"see the first column of hlnet profile {net.config.backbone} --nodes 1,{len(net.tree.classes)}"
        require_branches(net, "to cost", mend, name=f"'{model}'")
        assert isinstance(net, HierarchicalNet)
        return _Profiled(net.config, net.tree, net.transform, net)
    if model not in PRESETS:
        check_backbone(model)
    class_tree = _tree(model, tree, nodes)
    arguments = size_arguments(PRESETS.get(model, {}).get("backbone", model), img_size)
    config, class_tree = configure(model, class_tree, backbone_args=arguments, split_point=split_point)
    transform = InputTransform().adjusted(img_size) if img_size else None  # of which only the size counts here
    return _Profiled(config, class_tree, transform, None)


def _sweep(
    config: NetworkConfig,
    tree: ClassTree,
    transform: InputTransform | None,
    classes: str | None,
    plot: Path | None,
    as_json: bool,
    blocks: bool,
) -> None:
    """Count, show and draw the costs for each split point."""
    from hlnet.cli.shared import output, profile_tables
    from hlnet.model.split_points import sweep_split_points

    with output.progress() as bar:
        task = bar.add_task("counting", total=None)
        done = lambda number, total: bar.update(task, completed=number, total=total)  # noqa: E731
        splits = sweep_split_points(config, tree, transform, classes, done, blocks)
    if plot:
        from hlnet.model.split_points import plot_splits

        plot_splits(splits, plot)

    figures = [split.model_dump(mode="json") for split in splits]
    output.result(as_json, figures, lambda: profile_tables.show_splits(splits, classes is not None))
    if plot and not as_json:
        output.hint(f"drawn in {plot}")


def _explained(net: HierarchicalNet, batches: tuple[int, ...], dtype: str) -> list[str]:
    """The steps of the inference form, for these batch sizes."""
    import torch

    from hlnet.model.fast.optimize import optimize

    fast = optimize(net, dtype)
    with torch.inference_mode():
        for batch in batches:
            fast(torch.zeros(batch, *net.transform.input_size, device=net.device))
    return fast.explain()


def _tree(model: str, tree: Path | None, nodes: str | None) -> ClassTree:
    from hlnet.tree.class_tree import ClassTree
    from hlnet.tree.io import read_tree

    if tree and nodes:
        raise UsageError("give either --tree or --nodes")
    if tree:
        return read_tree(tree)
    counts = options.integers(nodes, "--nodes")
    if counts is None:
        raise UsageError(
            f"'{model}' needs a class tree: give --tree FILE, or --nodes with the nodes per level, such as 6,26,100"
        )
    try:
        return ClassTree.balanced(counts)
    except TreeError as error:
        raise UsageError(f"--nodes: {error}") from error
