"""The trunk: the early stages of a timm backbone, up to the split point.

Notable here: one mechanism for every family. timm's ``forward_intermediates`` gives any stage's output as
``[B, C, H, W]``, for CNNs and transformers alike, and ``prune_intermediate_layers`` drops what lies behind it. A stage
can be cut short (:mod:`hlnet.model.block_ends`). The parameters keep timm's names, so that timm's weight files fit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from copy import deepcopy
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_state_dict
from torch import Tensor, nn

from hlnet.errors import BackboneError, CheckpointError, RunError, UsageError, did_you_mean, one_line
from hlnet.model.block_ends import block_ends, ending_with, find_end
from hlnet.model.transform import InputTransform

log = logging.getLogger("hlnet")


class Trunk(nn.Module):
    """The stages of ``backbone`` up to and including the split point.

    Args:
        backbone: any timm model name.
        split_point: which of the backbone's feature stages is the last one kept, negative from the end; or the name of
            a stage or of a block, as timm's modules are named, such as ``"layer4.0"``. Default: all stages but the
            last, the paper's choice (Sec. 3.1); for backbones that do not shrink from stage to stage, such as ViT,
            three quarters of the blocks.
        pretrained: fetch timm's pretrained weights.
        backbone_args: further arguments of ``timm.create_model``, such as ``{"img_size": 160}``.

    Shape:
        ``[B, 3, H, W]`` to ``[B, channels, H / reduction, W / reduction]``.

    Raises:
        BackboneError: if timm has no such model, it gives no spatial map, or the split point does not exist.

    Example:
        >>> trunk = Trunk("resnet18")
        >>> trunk(torch.zeros(1, 3, 64, 64)).shape, trunk.stage
        (torch.Size([1, 256, 4, 4]), 'layer3')
        >>> Trunk("resnet18", "layer4.0")(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 512, 2, 2])
    """

    def __init__(
        self,
        backbone: str,
        split_point: int | str | None = None,
        pretrained: bool = False,
        backbone_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        model = create_backbone(backbone, backbone_args, pretrained)
        if not (hasattr(model, "forward_intermediates") and hasattr(model, "prune_intermediate_layers")):
            raise BackboneError(
                f"backbone '{backbone}' cannot be split: timm gives no intermediate feature maps for it "
                "(no forward_intermediates); choose one that has them, such as resnet50 or convnextv2_tiny"
            )
        #: All stages of the backbone, as timm describes them: ``module``, ``num_chs``, ``reduction``.
        self.stages = [dict(info) for info in model.feature_info]  # type: ignore[union-attr]
        end = find_end(backbone, split_point, model, self.stages)
        #: The number of the stage, or the name of the block within one.
        self.split_point = end.split_point
        #: All others that the backbone has, in order.
        self.split_points = [each.split_point for each in block_ends(model, self.stages)]
        self.backbone = backbone
        self.stage: str = end.path
        self.stage_number = end.stage
        self.channels: int = self.stages[end.stage]["num_chs"]
        self.reduction: int = self.stages[end.stage]["reduction"]
        self.transform = InputTransform.of(model, backbone_args)
        model.prune_intermediate_layers([end.stage], prune_norm=True, prune_head=True)  # type: ignore[operator]
        self.model = model if end.whole else ending_with(model, end.path)
        if not end.whole:
            self.channels, self.reduction = self._measured()

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` images to ``[B, channels, h, w]`` features."""
        return stage_output(self.model, self.stage_number, images)

    def _measured(self) -> tuple[int, int]:
        """Channels and reduction of the output, which timm tells of whole stages alone."""
        twin, size = deepcopy(self).to("meta").eval(), self.transform.input_size
        try:
            with torch.no_grad():
                _, channels, height, _ = twin(torch.zeros(1, *size, device="meta")).shape
        except Exception as error:  # whatever a stage says that cannot go without its last blocks
            raise BackboneError(
                f"backbone '{self.backbone}' cannot end after '{self.stage}': {one_line(error)}"
            ) from None
        return channels, round(size[1] / height)


def stage_output(model: nn.Module, stage: int, images: Tensor, stop_early: bool = False) -> Tensor:
    """The output of one of a timm model's stages, by its number: ``[B, C, h, w]``."""
    features: Tensor = model.forward_intermediates(  # type: ignore[operator]
        images, indices=[stage], output_fmt="NCHW", stop_early=stop_early, intermediates_only=True
    )[-1]
    return features


def trunk_channels(backbone: str, split_point: int | str | None = None, arguments: dict[str, Any] | None = None) -> int:
    """Channels of a trunk's output, without building its weights.

    Raises:
        BackboneError: as :class:`Trunk`.

    Example:
        >>> trunk_channels("resnet50"), trunk_channels("resnet50", 1)
        (1024, 256)
    """
    with torch.device("meta"):
        return Trunk(backbone, split_point, backbone_args=arguments).channels


def create_backbone(name: str, arguments: dict[str, Any] | None = None, pretrained: bool = False) -> nn.Module:
    """``timm.create_model`` with our errors.

    Args:
        name: a timm model name.
        arguments: further ones of ``timm.create_model``.
        pretrained: fetch timm's pretrained weights.

    Raises:
        BackboneError: for an unknown name (with the nearest ones) or arguments that the backbone refuses.
        RunError: if pretrained weights cannot be had.
    """
    arguments = arguments or {}
    check_backbone(name)
    if reserved := arguments.keys() & {"features_only", "pretrained", "model_name", "out_indices"}:
        raise BackboneError(f"backbone '{name}': argument '{min(reserved)}' is set by hlnet itself; leave it out")
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
    except Exception as error:  # each backbone has its own ways to refuse
        reason = f"{type(error).__name__}: {one_line(error)}"
        if pretrained:
            raise RunError(
                f"pretrained weights of '{name}' could not be had; check name and network, or give a local file "
                f"(trunk_weights). The cause: {reason}"
            ) from error
        given = f" with {arguments}" if arguments else ""
        raise BackboneError(f"backbone '{name}' cannot be built{given} ({reason})") from error
    return model


def backbone_no_weight_decay(model: nn.Module, prefix: str) -> set[str]:
    """What a timm model exempts from weight decay, such as position embeddings, each name with a prefix."""
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()  # type: ignore[operator]
    return {prefix + name for name in exempt}


def check_size(forward: Callable[[Tensor], Tensor], transform: InputTransform) -> Tensor:
    """Run one black image of the transform's size through a trunk.

    Returns:
        its features, ``[1, C, h, w]``.

    Raises:
        UsageError: if the backbone cannot take images of this size.
    """
    try:
        with torch.no_grad():
            return forward(torch.zeros(1, *transform.input_size))
    except (AssertionError, RuntimeError, ValueError) as error:
        side = "x".join(map(str, transform.input_size[1:]))
        raise UsageError(f"the backbone cannot take images of {side} pixels (img_size): {one_line(error)}") from error


def size_arguments(backbone: str, img_size: int | tuple[int, int] | None) -> dict[str, Any]:
    """What ``timm.create_model`` must be told of the image size: something for ViT and its like, nothing for CNNs.

    Args:
        backbone: a timm model name.
        img_size: the side of square images, or height and width.
    """
    fixed = (
        img_size and timm.is_model(backbone) and getattr(timm.get_pretrained_cfg(backbone), "fixed_input_size", False)
    )
    return {"img_size": img_size} if fixed else {}


def check_backbone(name: str) -> None:
    """Refuse what timm does not know, before anything else is done.

    Raises:
        BackboneError: for an unknown name, with the nearest ones.
    """
    architecture = name.split(".")[0]
    if timm.is_model(architecture) and timm.model_entrypoint(architecture).__module__.startswith("hlnet."):
        raise BackboneError(f"'{name}' is a preset of hlnet, not a backbone; name the timm model that it is built on")
    if ":" not in name and not timm.is_model(architecture):
        near = did_you_mean(name.split("/")[-1], timm.list_models())
        raise BackboneError(f"timm has no backbone '{name}'.{near} See timm.list_models() for all")


def load_trunk_weights(
    trunk: nn.Module, path: str | Path, names: Collection[str] | None = None, also: Collection[str] = ()
) -> None:
    """Fill a trunk from a file of timm weights: safetensors, or a ``.pth`` that loads with ``weights_only``.

    What the file holds beyond the trunk, such as the last stage and the classifier, is ignored. A prefix of all names,
    such as ``model.`` or ``module.encoder_q.``, is taken off, and the log says so.

    Args:
        trunk: the timm module to fill, such as ``Trunk.model``.
        path: the file.
        names: the module's tensors that are wanted; default: all.
        also: those that are taken where the file has them.

    Raises:
        UsageError: if there is no such file.
        CheckpointError: if it is unreadable, or lacks a tensor of the trunk, or has it in another shape.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"there is no weight file '{path}'")
    try:
        weights = load_state_dict(str(path), device="cpu", weights_only=True)
    except Exception as error:  # safetensors, zipfile and pickle each raise their own
        raise CheckpointError(
            f"'{path}' is no file of weights that can be read safely; give safetensors, or a .pth of tensors only"
        ) from error
    every = trunk.state_dict()
    wanted = {name: tensor for name, tensor in every.items() if names is None or name in names}
    if prefix := _common_prefix(weights, wanted):
        log.info("'%s': the prefix '%s' of its tensors' names was taken off", path, prefix)
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    wanted |= {name: every[name] for name in also if name in weights}
    optional = {name for name in wanted if name.endswith("num_batches_tracked")}
    missing = [name for name in wanted if name not in weights and name not in optional]
    if missing:
        raise CheckpointError(
            f"'{path}' lacks {len(missing)} of the trunk's {len(wanted)} tensors, the first being '{missing[0]}'; "
            "is it from another backbone?"
        )
    for name, tensor in wanted.items():
        shape = getattr(weights.get(name, tensor), "shape", None)
        if shape != tensor.shape:
            found = f"shape {tuple(shape)}" if shape is not None else "no shape"
            raise CheckpointError(f"'{path}': '{name}' has {found}, the trunk needs {tuple(tensor.shape)}")
    trunk.load_state_dict({name: weights[name] for name in wanted if name in weights}, strict=False)


# ---------------------------------------------------------------------- helpers


def _common_prefix(weights: Collection[str], wanted: Collection[str]) -> str:
    """What stands before the names that are wanted, such as ``model.`` or ``module.encoder_q.``; mostly nothing."""
    if not wanted or any(name in weights for name in wanted):
        return ""
    first = next(iter(wanted))
    prefixes = [name[: -len(first)] for name in weights if name.endswith(f".{first}")]
    return max(prefixes, key=lambda prefix: sum(prefix + name in weights for name in wanted), default="")
