"""The plain network: the timm model itself, with our class names. It is what every figure of ours is compared with."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from hlnet.errors import BackboneError
from hlnet.model.base import TrainableNetwork
from hlnet.model.block_ends import ending_with
from hlnet.model.provenance import Provenance
from hlnet.model.transform import InputTransform
from hlnet.model.trunk import Trunk, backbone_no_weight_decay, create_backbone, stage_output
from hlnet.tree.class_tree import ClassTree


class PlainConfig(BaseModel):
    """What defines a plain network besides its classes.

    Attributes:
        backbone: the timm model.
        split_point: where the trunk of the compared network ends; only what lies behind it trains when frozen.
        backbone_args: further arguments of ``timm.create_model``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str
    split_point: int | str | None = None
    backbone_args: dict[str, Any] = Field(default_factory=dict)


class PlainNet(TrainableNetwork):
    """A timm model with a tree's classes, in the tree's order: the control beside a :class:`HierarchicalNet`.

    Args:
        config: its backbone and split point.
        tree: names and order of the classes; its inner nodes do not matter here.
        pretrained: fetch timm's pretrained weights; only the classifier starts from random ones.

    Raises:
        BackboneError: if the backbone is unknown or has no such split point.

    Example:
        >>> net = PlainNet(PlainConfig(backbone="resnet18"), ClassTree.parallel(["cat", "dog"]))
        >>> images = torch.zeros(2, 3, 64, 64)
        >>> net(images).shape, net.features(images).shape
        (torch.Size([2, 2]), torch.Size([2, 256, 4, 4]))
    """

    has_branches = False
    config: PlainConfig

    def __init__(self, config: PlainConfig, tree: ClassTree, pretrained: bool = False) -> None:
        super().__init__()
        with torch.device("meta"):  # only its names are wanted
            trunk = Trunk(config.backbone, config.split_point, backbone_args=config.backbone_args)
        self._trunk_names = set(trunk.model.state_dict())
        self._stage, self._stage_number = trunk.stage, trunk.stage_number
        arguments = config.backbone_args | {"num_classes": len(tree.classes)}
        self.model = create_backbone(config.backbone, arguments, pretrained)
        self.config = config.model_copy(update={"split_point": trunk.split_point})
        self.tree = tree
        self.transform = InputTransform.of(self.model, config.backbone_args)
        self.provenance = Provenance()
        self.frozen = False

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` images to ``[B, classes]`` logits."""
        logits: Tensor = self.model(images.to(self.dtype))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """The trunk's output, up to the split point: ``[B, C, h, w]``."""
        whole = isinstance(self.config.split_point, int)
        model = self.model if whole else ending_with(self.model, self._stage)
        return stage_output(model, self._stage_number, images.to(self.dtype), stop_early=True)

    @cached_property
    def head(self) -> nn.Sequential:
        """What comes after the trunk: features to logits. It shares this network's weights.

        Raises:
            BackboneError: for backbones whose later stages do not simply follow one another on the spatial map (ViT,
                Swin, …), and for those that were built with a dropout that is no module of theirs.
        """
        if getattr(self.model, "drop_rate", 0) and not any(isinstance(m, nn.Dropout) for m in self.model.modules()):
            raise BackboneError(
                f"backbone '{self.config.backbone}' applies its drop_rate outside its modules, so its features cannot "
                "be cached; train it without drop_rate or without cached features"
            )
        rest = nn.Sequential(*_modules_after(self.model, self._stage.split(".")))
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(1, *self.transform.input_size, generator=generator).to(next(self.parameters()).device)
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                same = torch.allclose(rest(self.features(probe)), self(probe), atol=1e-4)
        except Exception:  # whatever a stage says that was given what it cannot take
            same = False
        finally:
            self.train(was_training)
        if not same:
            raise BackboneError(
                f"backbone '{self.config.backbone}' does not run from its features after '{self._stage}' alone, "
                "so its features cannot be cached; train it without cached features"
            )
        return rest

    @property
    def trunk_module(self) -> nn.Module:
        """The timm module that trunk weights are loaded into."""
        return self.model

    @property
    def trunk_names(self) -> set[str]:
        """Names, within ``trunk_module``, of the tensors that belong to the trunk."""
        return self._trunk_names

    @property
    def pretrained_names(self) -> set[str]:
        """Names, within ``trunk_module``, of all tensors but the classifier's."""
        named = getattr(self.model, "default_cfg", {}).get("classifier") or ()
        classifiers = tuple(f"{name}." for name in ([named] if isinstance(named, str) else named))
        return {name for name in self.model.state_dict() if not name.startswith(classifiers)}

    def no_weight_decay(self) -> set[str]:
        """Names of what the backbone exempts from weight decay, for timm's optimizers."""
        return backbone_no_weight_decay(self.model, "model.")

    def freeze_trunk(self, frozen: bool = True) -> None:
        """Train only what lies behind the split point. Or undo that."""
        self.frozen = frozen
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not frozen or name not in self._trunk_names)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if mode and self.frozen:
            for module in self._trunk_modules():
                module.eval()
        return self

    def _trunk_modules(self) -> list[nn.Module]:
        """Modules whose tensors all belong to the trunk, with whatever lies in them."""
        tensors = self.model.state_dict().keys()
        found = []
        for name, module in self.model.named_modules():
            own = [tensor for tensor in tensors if tensor.startswith(f"{name}.")]
            if name and own and self._trunk_names.issuperset(own):
                found.append(module)
        return found


def _modules_after(module: nn.Module, path: list[str]) -> list[nn.Module]:
    """The modules that run after the one at ``path``, siblings of its parents included."""
    names = [name for name, _ in module.named_children()]
    position = names.index(path[0])
    inside = _modules_after(getattr(module, path[0]), path[1:]) if len(path) > 1 else []
    return inside + [child for _, child in list(module.named_children())[position + 1 :]]
