"""A whole run as one TOML file: data, tree, network, input and training; shipped recipes, and replays of runs.

Notable here: a recipe, the ``config.toml`` of a run folder and the options of ``hlnet train`` have the same names. A
setting takes the last value it is given: default, file, option. Heavy modules are imported inside functions, because
the help pages need the declarations.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from hlnet.errors import UsageError, did_you_mean
from hlnet.files import read_text
from hlnet.training.settings import IMAGES, MAIN, NETWORK, PANELS, RUN, TRUNK, Setting, Settings, declared, setting
from hlnet.training.train_config import TrainConfig


class NetworkSettings(Settings):
    """Settings of the network to build; ``None`` stands for the backbone's or the preset's own."""

    backbone: str = setting("n3hl_resnet50", "A preset (lean_resnet50, n3hl_resnet50 …) or any timm model.", NETWORK)
    plain: bool = setting(False, "Train the timm model itself, without branches, as a baseline.", NETWORK)
    split_point: int | str | None = setting(
        None, "The trunk's last stage, negative from the end, or its last block: layer4.0.", NETWORK
    )
    block: str | None = setting(None, "Type of the blocks: bottleneck or convnext.", NETWORK)
    widths: tuple[int, ...] | None = setting(None, "Widths of the blocks, by level: 128,64,32.", NETWORK)
    strides: tuple[int, ...] | None = setting(None, "Strides of the blocks, by level: 1,1,2.", NETWORK)
    shared_width: int | None = setting(
        None, "Width of the blocks between trunk and tree that all classes share; 0 for none.", NETWORK, ge=0
    )
    shared_blocks: int | None = setting(None, "Number of these blocks.", NETWORK, ge=1)
    shared_stride: int | None = setting(None, "Stride of the first of them.", NETWORK, ge=1)
    class_rows: bool | None = setting(
        None, "Add to each logit a linear row of its class on what all classes share, pooled.", NETWORK
    )
    sharing: str | None = setting(None, "Parts that siblings share: none, shortcut, or reduce (and shortcut).", NETWORK)
    rank_leaves: bool | None = setting(
        None, "Leaves of the last width's rank: a 1x1 convolution instead of a block.", NETWORK
    )
    backbone_args: dict[str, Any] = setting(
        {}, "timm argument, name=value; repeatable.", NETWORK, option="backbone_arg"
    )
    pretrained: bool = setting(False, "Fetch timm's pretrained trunk weights.", TRUNK)
    trunk_weights: str | None = setting(None, "File of timm weights: safetensors or pth.", TRUNK)


class TransformSettings(Settings):
    """Settings of the input that have options; ``None`` stands for the backbone's own."""

    input_size: int | None = setting(None, "Side in pixels.", IMAGES, option="img_size", ge=8)
    mean: tuple[float, ...] | None = setting(None, "Pixel means, one or three numbers.", IMAGES)
    std: tuple[float, ...] | None = setting(None, "Pixel standard deviations, one or three numbers.", IMAGES)


class RunConfig(Settings):
    """Settings of a whole run."""

    data: str | None = setting(
        None, "Folder with train/ and val/, 'digits', or one of timm's sources; default: the recipe's.", MAIN
    )
    data_root: str | None = setting(None, "Folder of timm's data sources (torch/…, hfds/…, wds/…).", IMAGES)
    allow_missing: bool = setting(
        False, "Leave out images of classes that the tree lacks; classes may have no images.", RUN
    )
    tree: str | None = setting(
        None, "Class tree file or preset:NAME; classes are matched to the data by name or id.", MAIN
    )
    network: NetworkSettings = Field(default_factory=NetworkSettings, description="The network.")
    transform: dict[str, Any] = Field(
        default_factory=dict,
        description="Fields of hlnet.model.transform.InputTransform that replace the backbone's own; a single number "
        "for input_size, "
        "mean or std stands for all channels and sides.",
    )
    train: TrainConfig = Field(default_factory=TrainConfig, description="The training.")

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if self.network.plain and self.train.cue_aware:
            raise ValueError(
                "cue_aware training scales the features of branches, and a plain network has none: leave cue_aware or "
                "plain out"
            )
        return self

    @property
    def described(self) -> dict[str, Any]:
        """Entries of ``config.toml`` other than the network, its input and the training."""
        top = self.model_dump(include={"data", "data_root", "allow_missing"}, exclude_none=True)
        return top | {"network": self.network.model_dump(include={"pretrained", "trunk_weights"}, exclude_none=True)}


def run_settings() -> list[Setting]:
    """All settings of a run that have options, panel by panel.

    Example:
        >>> [setting.option for setting in run_settings()][:3]
        ['data', 'tree', 'allow_missing']
    """
    tables: dict[str, type[Settings]] = {"network": NetworkSettings, "transform": TransformSettings}
    tables |= {"train": TrainConfig, "": RunConfig}
    found = [one for table, model in tables.items() for one in declared(model, table)]
    return sorted(found, key=lambda one: PANELS.index(one.panel))


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
            are relative to the file's folder, or, else to the current folder.
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
    from hlnet.data.sources import is_source

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
    if first["type"] == "literal_error":
        choices = re.findall("'([^']+)'", first["ctx"]["expected"])
        message += f".{did_you_mean(str(first['input']), choices)}"
    return UsageError(f"{name}: {setting} ({option}) {first['input']!r}: {message.removesuffix('.')}")
