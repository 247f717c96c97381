"""What the networks have in common: device, classes, and a trunk whose stages can be frozen and trained again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

import torch
from timm.models import group_parameters
from torch import Tensor, nn

from hlnet.errors import UsageError
from hlnet.model.provenance import Provenance
from hlnet.model.transform import InputTransform
from hlnet.tree.class_tree import ClassTree


class BackboneChoice(Protocol):
    """The part of a network's config that says which timm model its trunk comes from, and where that ends."""

    @property
    def backbone(self) -> str: ...
    @property
    def split_point(self) -> int | str | None: ...
    @property
    def backbone_args(self) -> dict[str, Any]: ...
    def model_dump(self, *, mode: str = "python") -> dict[str, Any]: ...


class MayHaveBranches(Protocol):
    """A network, or what a file says of one."""

    @property
    def has_branches(self) -> bool: ...


def require_branches(net: MayHaveBranches, purpose: str, mend: str = "", name: str | None = None) -> None:
    """Refuse a plain network where branches are needed.

    Args:
        net: any network, or the header of a checkpoint.
        purpose: what the branches are for, such as ``"to cue"``.
        mend: what to do instead.
        name: what the message calls the network, such as ``"'pets.safetensors'"``.

    Raises:
        UsageError: if it has no branches.

    Example:
        >>> from hlnet.model.plain import PlainConfig, PlainNet
        >>> net = PlainNet(PlainConfig(backbone="resnet18"), ClassTree.parallel(["cat", "dog"]))
        >>> require_branches(net, "to cue", "leave the gains out")
        Traceback (most recent call last):
        hlnet.errors.UsageError: a plain network has no branches to cue; leave the gains out
    """
    if not net.has_branches:
        subject = "a plain network" if name is None else f"{name} is a plain network, which"
        raise UsageError(f"{subject} has no branches {purpose}" + (f"; {mend}" if mend else ""))


class Network(nn.Module, ABC):
    """A classifier with a trunk: a :class:`hlnet.HierarchicalNet`, a :class:`hlnet.PlainNet` or an inference form.

    Attributes:
        config: the network's shape.
        head: what follows the trunk: features to logits.
        tree: the class tree; ``tree.classes`` is the order of the logits.
        transform: the input that the network wants.
        provenance: where the weights came from, and what was fitted to them.
    """

    config: BackboneChoice
    head: Any  # of a class of its own in each kind of network
    tree: ClassTree
    transform: InputTransform
    provenance: Provenance

    @property
    @abstractmethod
    def has_branches(self) -> bool:
        """Whether a tree of branches follows the trunk."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def num_classes(self) -> int:
        """Number of logits; timm's scripts ask for it."""
        return len(self.tree.classes)

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The input that the network wants, where timm's ``resolve_data_config`` looks for it."""
        return self.transform.model_dump()

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """The trunk's output for images ``[B, 3, H, W]``: ``[B, C, h, w]``."""


class TrainableNetwork(Network):
    """A network that trains; base of :class:`hlnet.HierarchicalNet` and :class:`hlnet.PlainNet`.

    Attributes:
        frozen: whether the trunk keeps its weights.
    """

    frozen: bool

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights; images are taken over in it."""
        return next(self.parameters()).dtype

    @property
    @abstractmethod
    def trunk_module(self) -> nn.Module:
        """The timm module that trunk weights are loaded into."""

    @property
    @abstractmethod
    def trunk_names(self) -> set[str]:
        """Names, within ``trunk_module``, of the tensors that belong to the trunk."""

    @property
    def pretrained_names(self) -> set[str]:
        """Names, within ``trunk_module``, of the tensors that pretrained weights fill."""
        return self.trunk_names

    @abstractmethod
    def freeze_trunk(self, frozen: bool = True) -> None:
        """Train only what lies behind the split point. Or undo that."""

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Which layer a parameter belongs to, as timm's optimizers ask for rates by layer (``layer_decay``)."""
        return self.layer_numbers(coarse).__getitem__

    def layer_numbers(self, coarse: bool = False) -> dict[str, int]:
        """The layer of each parameter by name, from 0 at the images; branches come last, as one.

        Layers are those of the timm model's own ``group_matcher``.

        Args:
            coarse: whole stages instead of single blocks.

        Raises:
            UsageError: if the timm model has no layers.

        Example:
            >>> import hlnet
            >>> net = hlnet.create_model("resnet18", tree=["cat", "dog"])
            >>> layers = net.layer_numbers(coarse=True)
            >>> layers["trunk.model.conv1.weight"], layers["trunk.model.layer3.0.conv1.weight"]
            (0, 3)
            >>> layers["head.leaves.bias"]
            4
        """
        model = self.trunk_module
        matcher: Callable[..., object] | None = getattr(model, "group_matcher", None)
        if matcher is None:
            raise UsageError(
                f"backbone '{self.config.backbone}' does not tell its layers, which layer_decay and unfreeze need"
            )
        found = group_parameters(model, matcher(coarse=coarse), reverse=True)
        place = {id(parameter): int(found[name]) for name, parameter in model.named_parameters()}
        last = max((number for name, number in found.items() if name in self.trunk_names), default=-1) + 1
        return {name: place.get(id(parameter), int(last)) for name, parameter in self.named_parameters()}

    def unfreeze(self, stages: int) -> int:
        """Train the last stages of a frozen trunk too; their normalisation statistics stay.

        Args:
            stages: how many, from the trunk's end; more than there are unfreeze it all.

        Returns:
            how many were unfrozen.

        Example:
            >>> import hlnet
            >>> net = hlnet.create_model("resnet18", tree=["cat", "dog"])
            >>> net.freeze_trunk()
            >>> model = net.trunk.model
            >>> net.unfreeze(1), model.layer3[0].conv1.weight.requires_grad, model.conv1.weight.requires_grad
            (1, True, False)
        """
        layers = self.layer_numbers(coarse=True)
        trunk = {id(p) for name, p in self.trunk_module.named_parameters() if name in self.trunk_names}
        parameters = {name: parameter for name, parameter in self.named_parameters() if id(parameter) in trunk}
        numbers = sorted({layers[name] for name in parameters})
        unfrozen = set(numbers[max(0, len(numbers) - stages) :] if stages else [])
        for name, parameter in parameters.items():
            parameter.requires_grad_(layers[name] in unfrozen)
        return len(unfrozen)
