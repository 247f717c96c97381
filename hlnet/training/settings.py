"""Declaration of settings: once, each with its default, bounds, description and panel.

Notable here: the options of ``hlnet train``, the tables in ``docs/training.md`` and the attributes in the docstrings of
the models are all made from these declarations. Only pydantic is imported, so that help pages need nothing heavier.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

#: Groups of settings on help pages, in their order; the first is for what nearly every run is given.
MAIN, RUN, NETWORK, TRUNK, IMAGES, TRAINING = PANELS = ("", "Run", "Network", "Trunk", "Images", "Training")


class Settings(BaseModel):
    """Base of models whose fields are made by :func:`setting`; their docstrings list the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Append the attributes to the class's docstring."""
        super().__pydantic_init_subclass__(**kwargs)
        lines = [f"    {name}: {field.description}" for name, field in cls.model_fields.items()]
        cls.__doc__ = "\n".join([f"{inspect.cleandoc(cls.__doc__ or '')}\n", "Attributes:", *lines])


@dataclass(frozen=True)
class Setting:
    """One setting of a run.

    Attributes:
        table: the recipe's table: ``""`` for the top, ``network``, ``transform`` or ``train``.
        name: the setting's name in that table.
        option: name of the option on the command line, with underscores.
        panel: one of ``PANELS``.
        description: one sentence.
        default: the value without a recipe and options; ``None`` for no use, or the network's own.
        type: type of the value, without ``None``.
        bounds: limits of a number, by pydantic's names: ``gt``, ``ge``, ``lt``, ``le``.
    """

    table: str
    name: str
    option: str
    panel: str
    description: str
    default: Any
    type: Any
    bounds: dict[str, float]


def setting(default: Any, description: str, panel: str, *, option: str | None = None, **bounds: Any) -> Any:
    """A field of :class:`Settings`.

    Args:
        default: its default.
        description: one sentence, for help pages and documents.
        panel: one of ``PANELS``.
        option: name of the option, if it is not the field's.
        bounds: further arguments of ``pydantic.Field``, such as ``ge``.
    """
    return Field(default, description=description, json_schema_extra={"panel": panel, "option": option}, **bounds)


def declared(model: type[Settings], table: str = "") -> Iterator[Setting]:
    """The settings of a model, in order; fields that are tables themselves are left out.

    Example:
        >>> class Rates(Settings):
        ...     '''Learning rates.'''
        ...     lr: float | None = setting(0.1, "Learning rate.", TRAINING, gt=0)
        >>> [(one.option, one.type, one.bounds, one.default) for one in declared(Rates, "train")]
        [('lr', <class 'float'>, {'gt': 0}, 0.1)]
    """
    for name, field in model.model_fields.items():
        if isinstance(more := field.json_schema_extra, dict):
            kind, bounds = _type_and_bounds(field.annotation, _bounds(field.metadata))
            yield Setting(
                table=table,
                name=name,
                option=str(more["option"] or name),
                panel=str(more["panel"]),
                description=field.description or "",
                default=field.default,
                type=kind,
                bounds=bounds,
            )


def _type_and_bounds(annotation: Any, bounds: dict[str, float]) -> tuple[Any, dict[str, float]]:
    """The type inside ``Annotated`` and ``| None``, and its bounds."""
    parts = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _type_and_bounds(parts[0], bounds | _bounds(parts[1:]))
    if get_origin(annotation) in (Union, UnionType):
        values = [part for part in parts if part is not NoneType]
        return _type_and_bounds(values[0], bounds) if len(values) == 1 else (annotation, bounds)
    return annotation, bounds


def _bounds(marks: Iterable[Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for mark in marks:
        if isinstance(mark, FieldInfo):
            found |= _bounds(mark.metadata)
        found |= {name: getattr(mark, name) for name in ("gt", "ge", "lt", "le") if hasattr(mark, name)}
    return found
