"""Which stage of its backbone each parameter of a network belongs to, for rates by layer and for gradual unfreezing."""

from __future__ import annotations

from collections.abc import Callable

from timm.models import group_parameters

from hlnet.errors import UsageError
from hlnet.network import HierarchicalNet
from hlnet.plain import PlainNet


def layer_numbers(net: HierarchicalNet | PlainNet, coarse: bool = False) -> dict[str, int]:
    """The layer of each parameter by name, from 0 at the images; branches come last, as one.

    Args:
        net: the network; layers are its timm model's own ``group_matcher``'s.
        coarse: whole stages instead of single blocks.

    Raises:
        UsageError: if the timm model has no layers.

    Example:
        >>> import hlnet
        >>> net = hlnet.create_model("resnet18", tree=["cat", "dog"])
        >>> layers = layer_numbers(net, coarse=True)
        >>> layers["trunk.model.conv1.weight"], layers["trunk.model.layer3.0.conv1.weight"], layers["head.leaves.bias"]
        (0, 3, 4)
    """
    model = net.trunk_module
    matcher: Callable[..., object] | None = getattr(model, "group_matcher", None)
    if matcher is None:
        raise UsageError(
            f"backbone '{net.config.backbone}' does not tell its layers, which layer_decay and unfreeze need"
        )
    found = group_parameters(model, matcher(coarse=coarse), reverse=True)
    place = {id(parameter): int(found[name]) for name, parameter in model.named_parameters()}
    last = max((number for name, number in found.items() if name in net.trunk_names), default=-1) + 1
    return {name: place.get(id(parameter), int(last)) for name, parameter in net.named_parameters()}


def thaw(net: HierarchicalNet | PlainNet, stages: int) -> int:
    """Train the last stages of a frozen trunk too; their normalisation statistics stay.

    Args:
        net: with a frozen trunk.
        stages: how many, from the trunk's end; more than there are thaws it all.

    Returns:
        how many were thawed.

    Example:
        >>> import hlnet
        >>> net = hlnet.create_model("resnet18", tree=["cat", "dog"])
        >>> net.freeze_trunk()
        >>> model = net.trunk.model
        >>> thaw(net, 1), model.layer3[0].conv1.weight.requires_grad, model.conv1.weight.requires_grad
        (1, True, False)
    """
    layers = layer_numbers(net, coarse=True)
    trunk = {id(p) for name, p in net.trunk_module.named_parameters() if name in net.trunk_names}
    parameters = {name: parameter for name, parameter in net.named_parameters() if id(parameter) in trunk}
    numbers = sorted({layers[name] for name in parameters})
    thawed = set(numbers[max(0, len(numbers) - stages) :] if stages else [])
    for name, parameter in parameters.items():
        parameter.requires_grad_(layers[name] in thawed)
    return len(thawed)
