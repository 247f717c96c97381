"""Options made from the settings of a run (``hlnet.training.settings``), and their values as a recipe nests them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from hlnet.cli.shared import options
from hlnet.errors import UsageError
from hlnet.training.run_config import run_settings
from hlnet.training.settings import Setting


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameter ``given`` is replaced by one option for each setting of a run.

    No option has a default of its own, for that is the recipe's; the help shows the value without a recipe.
    """
    settings = {setting.option: setting for setting in run_settings()}

    @wraps(command)
    def wrapper(**values: Any) -> None:
        given: dict[str, Any] = {}
        for name, setting in settings.items():
            value = values.pop(name)
            if value not in (None, []):
                table = given.setdefault(setting.table, {}) if setting.table else given
                table[setting.name] = _read(setting, value)
        command(given=given, **values)

    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        parameters += map(_parameter, settings.values()) if parameter.name == "given" else [parameter]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return wrapper


def _parameter(setting: Setting) -> inspect.Parameter:
    """The option of a setting; DATA is an argument."""
    shown = _shown(setting) or False
    if setting.option == "data":
        info = typer.Argument(metavar="[DATA]", help=setting.description, show_default=shown)
    else:
        low, high = _closed_range(setting)
        info = typer.Option(
            help=setting.description, show_default=shown, rich_help_panel=setting.panel or None, min=low, max=high
        )
    kind: Any = _option_type(setting)
    annotation = Annotated[kind, info]
    return inspect.Parameter(setting.option, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _shown(setting: Setting) -> str:
    """The default as the option is written; nothing where it depends on the network.

    >>> [_shown(one) for one in run_settings() if one.name in ("scale", "plain", "lr", "clip_grad")]
    ['no-plain', '0.35,1', '0.001', '']
    """
    match setting.default:
        case bool():
            return f"{'' if setting.default else 'no-'}{setting.option.replace('_', '-')}"
        case tuple():
            return ",".join(f"{value:g}" for value in setting.default)
        case None | {}:
            return ""
    return str(setting.default)


def _option_type(setting: Setting) -> Any:
    """The type of the option: a number or flag where the setting is one, else text that is read later."""
    if get_origin(setting.type) is dict:
        return list[str] | None
    return (setting.type if setting.type in (bool, int, float) else str) | None


def _closed_range(setting: Setting) -> tuple[float | None, float | None]:
    """Least and greatest value, which Typer checks; limits that are themselves excluded are left to the model."""
    bounds = setting.bounds
    if setting.type is int and "gt" in bounds:
        return bounds["gt"] + 1, bounds.get("le")
    return (None, None) if {"gt", "lt"} & bounds.keys() else (bounds.get("ge"), bounds.get("le"))


def _read(setting: Setting, value: Any) -> Any:
    """The value of an option as the setting's.

    Raises:
        UsageError: if it cannot be read as one.
    """
    option = f"--{setting.option.replace('_', '-')}"
    kinds = get_args(setting.type)
    if get_origin(setting.type) is dict:
        return options.settings(value, option)
    if get_origin(setting.type) is tuple:
        return options.integers(value, option) if int in kinds else options.numbers(value, option)
    if Literal["auto"] not in kinds or value == "auto":
        return value
    if not value.removeprefix("-").isdecimal():
        raise UsageError(f"{option} '{value}': expected a whole number, or auto")
    return int(value)
