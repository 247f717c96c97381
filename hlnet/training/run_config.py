"""A whole run as one TOML file: data, tree, network, input and training; shipped recipes, and replays of runs.

Notable here: a recipe, the ``config.toml`` of a run folder and the flags of ``hlnet train`` have the same names. What
is given later replaces what was given before: defaults, file, flags.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hlnet.data.sources import is_source
from hlnet.errors import UsageError, did_you_mean
from hlnet.files import read_text
from hlnet.model.presets import PRESETS, create_model
from hlnet.model.trunk import check_size, load_trunk_weights, size_arguments
from hlnet.training.train_config import TrainConfig

if TYPE_CHECKING:
    from hlnet.model.base import TrainableNetwork
    from hlnet.tree.class_tree import ClassTree


class NetworkSettings(BaseModel):
    """Which network to build.

    Attributes:
        backbone: a preset or any timm model.
        plain: the timm model itself, without branches.
        split_point, block, widths, strides: see :class:`hlnet.NetworkConfig`; default: the preset's.
        backbone_args: further arguments of ``timm.create_model``.
        pretrained: fetch timm's pretrained weights of the trunk.
        trunk_weights: take them from this file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    backbone: str = "n3hl_resnet50"
    plain: bool = False
    split_point: int | None = None
    block: str | None = None
    widths: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None
    backbone_args: dict[str, Any] = Field(default_factory=dict)
    pretrained: bool = False
    trunk_weights: str | None = None


class RunConfig(BaseModel):
    """A whole run.

    Attributes:
        data: a folder, or a source's name; see :func:`hlnet.load_data`.
        data_root: where timm's sources keep their files.
        allow_missing: leave out images of classes that the tree lacks, and let classes of the tree have no images.
        tree: a tree file or ``preset:NAME``.
        network: the network.
        transform: fields of :class:`hlnet.InputTransform` that replace the backbone's own; a single number for
            ``input_size``, ``mean`` or ``std`` stands for all channels and sides.
        train: the training.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str | None = None
    data_root: str | None = None
    allow_missing: bool = False
    tree: str | None = None
    network: NetworkSettings = Field(default_factory=NetworkSettings)
    transform: dict[str, Any] = Field(default_factory=dict)
    train: TrainConfig = Field(default_factory=TrainConfig)


def shipped_recipes() -> dict[str, str]:
    """Name of each recipe that comes with hlnet, and its first line.

    Example:
        >>> "laptop" in shipped_recipes()
        True
    """
    return {name: text.splitlines()[0].removeprefix("# ") for name, text in _shipped()}


def read_run_config(source: str | Path | None = None, given: Mapping[str, Any] | None = None) -> RunConfig:
    """A run from a file, with changes.

    Args:
        source: a shipped recipe's name or a TOML file; default: only defaults. Paths of a tree, of data and of weights
            are relative to the file's folder, or, where it has none of that name, to where we are.
        given: what replaces the file's settings, nested as in the file.

    Raises:
        UsageError: if there is no such recipe or file, or it has unknown or wrong settings.

    Example:
        >>> read_run_config("laptop", {"train": {"epochs": 3}}).train.epochs
        3
    """
    text, name = ("", "the settings") if source is None else _read(str(source))
    try:
        settings = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{name} is no TOML: {error}") from error
    if source is not None and Path(source).is_file():
        _beside(settings, Path(source).parent)
    try:
        return RunConfig.model_validate(_merged(settings, given or {}))
    except ValidationError as error:
        raise _wrong(error, name) from None


def build_network(run: RunConfig, tree: ClassTree) -> TrainableNetwork:
    """The network that a run trains, with its trunk's weights and its input transform.

    Raises:
        UsageError: for settings that do not go together, or images of a size that the backbone cannot take.
        BackboneError, RunError: as :func:`hlnet.create_model`.

    Example:
        >>> from hlnet.tree.class_tree import ClassTree
        >>> run = read_run_config(given={"network": {"backbone": "resnet18"}, "transform": {"input_size": [3, 64, 64]}})
        >>> build_network(run, ClassTree.from_nested(["cat", "dog"])).transform.input_size
        (3, 64, 64)
    """
    from hlnet.model.plain import PlainConfig, PlainNet

    network = run.network
    if network.pretrained and network.trunk_weights:
        raise UsageError("pretrained and trunk_weights are two sources of the trunk's weights; give one")
    torch.manual_seed(run.train.seed)
    backbone = PRESETS.get(network.backbone, {}).get("backbone", network.backbone)
    size = run.transform.get("input_size")
    side = size[-1] if isinstance(size, list | tuple) and size else size
    arguments = size_arguments(backbone, side if isinstance(side, int) else None) | network.backbone_args
    net: TrainableNetwork
    if network.plain:
        if unused := [name for name in ("block", "widths", "strides") if getattr(network, name) is not None]:
            raise UsageError(f"{unused[0]} shapes branches, and a plain network has none; leave it or plain out")
        config = PlainConfig(backbone=backbone, split_point=network.split_point, backbone_args=arguments)
        net = PlainNet(config, tree, network.pretrained)
    else:
        shape = {name: getattr(network, name) for name in ("split_point", "block", "widths", "strides")}
        net = create_model(network.backbone, tree, network.pretrained, backbone_args=arguments, **shape)
    if network.trunk_weights:
        load_trunk_weights(net.trunk_module, Path(network.trunk_weights), net.trunk_names)
    net.transform = net.transform.adjusted(**run.transform)
    check_size(net.eval().features, net.transform)
    return net


# ---------------------------------------------------------------------- helpers


def _shipped() -> Iterator[tuple[str, str]]:
    for file in sorted(resources.files("hlnet.training").joinpath("recipes").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".toml"):
            yield file.name.removesuffix(".toml"), file.read_text(encoding="utf-8")


def _read(source: str) -> tuple[str, str]:
    """A recipe's text, and what to call it in messages."""
    shipped = dict(_shipped())
    if source in shipped:
        return shipped[source], f"recipe '{source}'"
    path = Path(source)
    if not path.is_file():
        raise UsageError(
            f"there is no recipe or file '{source}'.{did_you_mean(source, shipped)} Recipes: {', '.join(shipped)}"
        )
    return read_text(path), f"'{path}'"


def _beside(settings: dict[str, Any], folder: Path) -> None:
    """Make paths that lie beside the file whole."""
    paths = [(settings, "tree"), (settings, "data"), (settings, "data_root")]
    places: list[tuple[Any, str]] = [*paths, (settings.get("network"), "trunk_weights")]
    for table, name in places:
        value = table.get(name) if isinstance(table, dict) else None
        if isinstance(value, str) and not (name == "data" and is_source(value)) and (folder / value).exists():
            table[name] = str(folder / value)


def _merged(settings: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(settings)
    for name, value in given.items():
        before = merged.get(name, {})
        if isinstance(value, Mapping):  # where the file has no table, it is wrong, and its reader shall say so
            merged[name] = _merged(before, value) if isinstance(before, Mapping) else before
        else:
            merged[name] = value
    return merged


def _wrong(error: ValidationError, name: str) -> UsageError:
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        tables: dict[str, type[BaseModel]] = {"network": NetworkSettings, "train": TrainConfig}
        known = (tables.get(place[0], RunConfig) if len(place) > 1 else RunConfig).model_fields
        return UsageError(f"{name} has an unknown setting '{'.'.join(place)}'.{did_you_mean(place[-1], known)}")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":  # of settings that do not go together; it names them itself
        return UsageError(f"{name}: {message}")
    setting = place[1] if place[0] in ("network", "train") and len(place) > 1 else place[0]
    option = "--" + setting.replace("_", "-")
    return UsageError(f"{name}: {setting} ({option}) {first['input']!r}: {message}")
