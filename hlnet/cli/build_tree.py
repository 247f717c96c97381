"""``hlnet build-tree``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hlnet.cli import options
from hlnet.errors import UsageError

if TYPE_CHECKING:
    from hlnet.data import LabelledImages
    from hlnet.tree import ClassTree
    from hlnet.trunk import Trunk


class Method(StrEnum):
    """Where the tree comes from."""

    read = "read"
    parallel = "parallel"
    cluster = "cluster"


def build_tree(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A tree file, a folder of image folders, a data set, or 'digits'.")
    ],
    out: Annotated[Path, typer.Option(help="The tree file to write: NAME.tree.json.")],
    method: Annotated[
        Method,
        typer.Option(
            help="read: take the nesting of SOURCE as it is; parallel: a private chain for each class (PHL); "
            "cluster: group the classes of a data set by a trunk's features."
        ),
    ] = Method.read,
    levels: Annotated[int | None, typer.Option(min=1, help="Levels; classes that end early go on to the last.")] = None,
    nodes: Annotated[
        str | None, typer.Option(help="cluster: nodes of each level above the classes, such as 6,26.")
    ] = None,
    backbone: Annotated[
        str, typer.Option(help="cluster: timm model whose early stages give the features.")
    ] = "resnet18",
    split_point: Annotated[int | None, typer.Option(help="cluster: last stage to use, negative from the end.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="cluster: fetch timm's pretrained weights.")] = False,
    trunk_weights: Annotated[Path | None, typer.Option(help="cluster: file of timm weights.")] = None,
    backbone_arg: Annotated[list[str], typer.Option(help="cluster: timm argument, name=value; repeatable.")] = [],  # noqa: B006
    img_size: Annotated[int | None, typer.Option(min=8, help="cluster: side of the images in pixels.")] = None,
    mean: Annotated[str | None, typer.Option(help="cluster: pixel means, one or three numbers.")] = None,
    std: Annotated[str | None, typer.Option(help="cluster: pixel deviations, one or three numbers.")] = None,
    grid: Annotated[
        int, typer.Option(min=1, help="cluster: average features over a grid of this many cells a side.")
    ] = 1,
    batch_size: options.BatchSize = 64,
    workers: options.Workers = 2,
    data_root: options.DataRoot = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Make a class tree.

    Reads SOURCE: nested JSON or YAML, a list of names (.txt), nested image folders, or for *cluster* any data set with
    training images. Writes the canonical tree file that the other commands take.

    **Examples**

        hlnet build-tree photos/ --method parallel --out photos.tree.json

        hlnet build-tree digits --method cluster --nodes 2,5 --grid 2 --img-size 32 --out digits.tree.json
    """
    from hlnet.cli import output
    from hlnet.tree_io import read_tree, write_tree

    given = {
        "--nodes": nodes,
        "--trunk-weights": trunk_weights,
        "--pretrained": pretrained or None,
        "--split-point": split_point,
        "--img-size": img_size,
        "--mean": mean,
        "--std": std,
    }
    if method is not Method.cluster and (unused := [option for option, value in given.items() if value is not None]):
        raise UsageError(f"{unused[0]} goes with --method cluster")
    if method is Method.cluster:
        from hlnet.data import load_data

        if nodes is None:
            raise UsageError("--method cluster needs --nodes: how many each level above the classes has, such as 6,26")
        if levels is not None:
            raise UsageError("--levels does not go with --method cluster: --nodes says how many there are")
        tree = _cluster(
            load_data(source, "train", data_root),
            options.integers(nodes, "--nodes") or (),
            _trunk(backbone, split_point, pretrained, trunk_weights, backbone_arg, img_size, mean, std, device, seed),
            grid,
            batch_size,
            workers,
        )
    elif method is Method.parallel:
        tree = _classes(source, data_root).parallelized(levels or 3)
    elif source == "digits":
        raise UsageError("'digits' has no nesting to read; give --method parallel, or --method cluster --nodes 2,5")
    else:
        tree = read_tree(source, levels)
    write_tree(tree, out)
    if as_json:
        output.show_json({"out": str(out), "nodes": tree.counts, "classes": tree.classes})
    else:
        output.show_tree(tree)
        output.show(f"{len(tree.classes)} classes in {tree.num_levels} level(s), written to {out}")


def _trunk(
    backbone: str,
    split_point: int | None,
    pretrained: bool,
    weights: Path | None,
    backbone_arg: list[str],
    img_size: int | None,
    mean: str | None,
    std: str | None,
    device: str,
    seed: int,
) -> Trunk:
    import torch

    from hlnet.cli import output
    from hlnet.trunk import Trunk, load_trunk_weights, size_arguments

    torch.manual_seed(seed)
    arguments = size_arguments(backbone, img_size) | options.settings(backbone_arg, "--backbone-arg")
    trunk = Trunk(backbone, split_point, pretrained, arguments)
    if weights:
        load_trunk_weights(trunk.model, weights)
    elif not pretrained:
        output.hint("the trunk is untrained; --pretrained or --trunk-weights makes its features more telling")
    channels = trunk.transform.input_size[0]
    trunk.transform = trunk.transform.adjusted(
        img_size, options.floats(mean, "--mean", channels), options.floats(std, "--std", channels)
    )
    return trunk.to(options.pick_device(device))


def _cluster(
    images: LabelledImages, nodes: tuple[int, ...], trunk: Trunk, grid: int, batch_size: int, workers: int
) -> ClassTree:
    from hlnet.cli import output
    from hlnet.data import TreeData, eval_transform, loader
    from hlnet.clustering import class_means, cluster_tree
    from hlnet.tree import ClassTree

    data = TreeData(images, ClassTree.from_nested(list(images.classes)), eval_transform(trunk.transform))
    batches = loader(data, batch_size, workers)
    with output.progress() as bar:
        task = bar.add_task("features", total=len(batches))
        means = class_means(trunk, batches, len(images.classes), grid, on_batch=lambda: bar.advance(task))
    return cluster_tree(means, images.classes, nodes)


def _classes(source: str, data_root: Path | None) -> ClassTree:
    """The classes of a tree file, a folder or a data set."""
    from hlnet.tree import ClassTree
    from hlnet.tree_io import read_tree

    if Path(source).exists():
        return read_tree(source)
    from hlnet.data import load_data

    return ClassTree.from_nested(list(load_data(source, "train", data_root).classes))
