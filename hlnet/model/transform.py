"""The input transform: size, crop and normalisation of the images that a network takes."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from timm.data import resolve_data_config
from torch import nn

from hlnet.errors import UsageError, did_you_mean

#: What timm can do with images, RandAugment among it; it would take a wrong name for another, or fail far from here.
INTERPOLATIONS = ("bicubic", "bilinear", "nearest")

CROP_MODES = ("center", "squash", "border")


class InputTransform(BaseModel):
    """How images must be prepared: timm's data config, stored with every network.

    Attributes:
        input_size: channels, height, width in pixels.
        mean, std: per channel, for pixel values in 0..1.
        interpolation, crop_pct, crop_mode: as in ``timm.data.create_transform``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    @classmethod
    def of(cls, model: nn.Module, backbone_args: dict[str, Any] | None = None) -> InputTransform:
        """The transform that a timm model was trained with.

        Args:
            model: the timm model.
            backbone_args: what it was built with; its ``img_size`` (one side, or height and width) and ``in_chans`` go
                before the model's defaults.

        Raises:
            UsageError: for ``in_chans`` other than 1 and 3.
        """
        given = backbone_args or {}
        found = resolve_data_config({}, model=model)
        channels, height, width = found["input_size"]
        if size := given.get("img_size"):
            height, width = (size, size) if isinstance(size, int) else size
        channels = given.get("in_chans", channels)
        if channels not in (1, 3):
            raise UsageError(f"in_chans {channels}: images have 3 channels, or 1 for grey ones; others are not read")
        if channels == 1:  # one channel is normalised with the mean over the colours
            found |= {name: (sum(found[name]) / len(found[name]),) for name in ("mean", "std")}
        found["input_size"] = (channels, height, width)
        return cls(**{name: found[name] for name in cls.model_fields})

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        channels = self.input_size[0]
        for name in ("mean", "std"):
            if len(value := getattr(self, name)) != channels:
                raise ValueError(f"{name} {value}: expected {channels} numbers, or one")
        for name, least in (("std", min(self.std)), ("crop_pct", self.crop_pct), ("input_size", min(self.input_size))):
            if least <= 0:
                raise ValueError(f"{name} {getattr(self, name)} must be above 0")
        for name, known in (("interpolation", INTERPOLATIONS), ("crop_mode", CROP_MODES)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name} '{value}': expected {', '.join(known)}")
        return self

    def adjusted(self, img_size: int | None = None, **given: Any) -> InputTransform:
        """The same with other settings.

        Args:
            img_size: side of the image in pixels.
            given: other fields by name, ``None`` for those that stay. For ``mean`` and ``std``, one number stands for
                all channels; for ``input_size``, for both sides.

        Raises:
            UsageError: if there is no such field, or a value does not make sense.

        Example:
            >>> InputTransform().adjusted(img_size=160, std=0.5)
            ... # doctest: +NORMALIZE_WHITESPACE
            InputTransform(input_size=(3, 160, 160), mean=(0.485, 0.456, 0.406), std=(0.5, 0.5, 0.5),
                           interpolation='bicubic', crop_pct=0.875, crop_mode='center')
        """
        if unknown := given.keys() - InputTransform.model_fields.keys():
            name = min(unknown)
            raise UsageError(f"transform has no setting '{name}'.{did_you_mean(name, InputTransform.model_fields)}")
        fields = {name: value for name, value in given.items() if value is not None}
        fields.setdefault("input_size", img_size or self.input_size)
        channels = self.input_size[0]
        if isinstance(side := fields.get("input_size"), int):
            fields["input_size"] = (channels, side, side)
        for name in fields.keys() & {"mean", "std"}:
            value = fields[name] if isinstance(fields[name], list | tuple) else [fields[name]]
            fields[name] = tuple(value) * channels if len(value) == 1 else tuple(value)
        try:
            return InputTransform.model_validate(self.model_dump() | fields)
        except ValidationError as error:
            first = error.errors()[0]
            message = first["msg"].removeprefix("Value error, ")
            name = str(first["loc"][0]) if first["loc"] else ""
            raise UsageError(f"{name} {fields.get(name)!r}: {message}" if name else message) from None
