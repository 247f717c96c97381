"""Faster trunks: normalisation folded into convolutions, activations and sums done along with them.

Notable here: what follows what is read off a trace (torch.fx), so it works for any timm model that can be traced and
changes nothing where it sees no pattern. A model that cannot be traced, or whose trace gives another result, runs as it
is. Whatever the type to compute in, norms are folded and the result is checked in float32.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from copy import copy, deepcopy
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hlnet.errors import one_line
from hlnet.model.fast.kernels import Conv, Linear

_Module = TypeVar("_Module", bound=nn.Module)

_MODULES: list[tuple[type[nn.Module], str]] = [
    (nn.ReLU6, "relu6"),
    (nn.ReLU, "relu"),
    (nn.SiLU, "swish"),
    (nn.Hardswish, "hardswish"),
    (nn.GELU, "gelu"),
]
_FUNCTIONS: dict[Any, str] = {F.relu: "relu", torch.relu: "relu", F.silu: "swish", F.gelu: "gelu", F.relu6: "relu6"}
#: How far a trace may be from the model, in relation to the largest output.
_TOLERANCE = 1e-5
_SUMS = (operator.add, operator.iadd, torch.add)


def fuse(module: nn.Module, images: Tensor) -> nn.Module:
    """The same function of images, run faster; in evaluation mode only.

    Args:
        module: from images to features or logits; it stays as it is.
        images: of the size that it will mostly see, ``[1, 3, H, W]``, and of the type to compute in; only these count.

    Returns:
        a traced module, or ``module`` itself (of another type: a copy) where tracing fails or gives another result.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> [type(part).__name__ for part in fuse(net, torch.zeros(1, 3, 16, 16)).children()]
        ['Conv']
    """
    return fuse_or_why_not(module, images)[0]


def fuse_or_why_not(module: nn.Module, images: Tensor) -> tuple[nn.Module, str]:
    """As :func:`fuse`, and why the module runs as it is; empty if it does not."""
    dtype = images.dtype
    exact = _in_type(module.eval(), torch.float32)
    probe = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(images.device)
    # Without the short products of some GPUs, whose rounding would hide what the trace does.
    with torch.inference_mode(False), torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = exact(probe)
        try:
            fused = _fused(exact, probe, torch.float32)
            found = fused(probe.clone())
            difference, scale = float((found - expected).abs().max()), float(expected.abs().max())
            if found.shape != expected.shape:
                why = f"its trace gave other outputs: shape {list(found.shape)} instead of {list(expected.shape)}"
            elif not difference <= _TOLERANCE * max(scale, 1e-6):  # so that NaN is no match
                why = f"its trace gave other outputs: max difference {difference:.1e}, largest output {scale:.1e}"
            else:
                if dtype is not torch.float32:
                    fused = _fused(exact if exact is not module else deepcopy(module), probe, dtype).to(dtype)
                    fused(probe.to(dtype))
                return fused, ""
        except Exception as error:  # tracing runs the model's own code, which may do anything
            why = f"{type(error).__name__}: {one_line((str(error).splitlines() or [''])[0])}"
    return _in_type(module, dtype), why


def what_was_fused(name: str, module: nn.Module, why_not: str) -> str:
    """A line on what :func:`fuse_or_why_not` gave."""
    if why_not:
        return f"{name}: runs as it is, since {why_not}"
    modules = list(module.modules())
    convs = [module for module in modules if isinstance(module, Conv | Linear)]
    packed = sum(conv.packed for conv in convs)
    acts = sum(conv.activation != "none" for conv in convs)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in modules)
    return (
        f"{name}: {len(convs)} convolutions and linear maps, {packed} with weights packed for oneDNN, "
        f"{acts} with their activation; {norms} batch norms left"
    )


# ---------------------------------------------------------------------- helpers


def _in_type(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module, or a copy if its numbers are of another type."""
    tensors = (*module.parameters(), *module.buffers())
    same = all(tensor.dtype is dtype for tensor in tensors if tensor.is_floating_point())
    return module if same else deepcopy(module).to(dtype)


def _notrace_modules() -> tuple[type[nn.Module], ...]:
    """Modules that timm says cannot be traced; a private name, without which fewer models are."""
    try:
        from timm.models._features_fx import get_notrace_modules

        found: list[Any] = get_notrace_modules()
        return tuple(found)
    except (ImportError, AttributeError):
        return ()


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, qualname: str) -> bool:
        leaves: tuple[type[nn.Module], ...] = (nn.BatchNorm2d, *_notrace_modules())
        return isinstance(m, leaves) or super().is_leaf_module(m, qualname)


class _Sum(nn.Module):
    """A convolution's output, added to something else."""

    def __init__(self, conv: Conv) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """``activation(conv(x) + y)``."""
        return self.conv.add(y, x)


def _fused(module: nn.Module, images: Tensor, dtype: torch.dtype) -> nn.Module:
    """The trace; its convolutions and linear maps compute in ``dtype``, what else it is made of stays as it is."""
    traced = fx.GraphModule(module, _Tracer().trace(module))
    _fold_norms(traced)
    ShapeProp(traced).propagate(images)
    order = {node: i for i, node in enumerate(traced.graph.nodes)}
    for node in list(order):
        part = _module(traced, node)
        if type(part) is nn.Linear:
            after, activation = _with_activation(traced, node)
            rows = math.prod(_shape(node)[:-1])
            _replace(traced, node, after, Linear(part.weight.to(dtype), _to(part.bias, dtype), activation, rows), order)
        elif type(part) is nn.Conv2d and part.padding_mode == "zeros" and not isinstance(part.padding, str):
            summed, other = _with_sum(node)
            after, activation = _with_activation(traced, summed)
            if other is not None and activation not in {"none", "relu"}:
                after, activation = summed, "none"  # what goes along with a sum
            geometry: dict[str, Any] = {
                name: getattr(part, name) for name in ("stride", "padding", "dilation", "groups")
            }
            height, width = _shape(node.args[0])[2:]
            weight, bias = part.weight.to(dtype), _to(part.bias, dtype)
            conv = Conv(weight, bias, **geometry, activation=activation, size=(height, width))
            if other is None:
                _replace(traced, node, after, conv, order)
            else:
                _replace(traced, node, after, _Sum(conv), order, other)
    traced.graph.eliminate_dead_code()
    # A new module of what is still called, as the traced one shares its parts with the original.
    called = {str(node.target) for node in traced.graph.nodes if node.op in {"call_module", "get_attr"}}
    return fx.GraphModule({name: _attribute(traced, name) for name in called}, traced.graph)


def _to(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


def _attribute(module: nn.Module, path: str) -> Any:
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part)
    return own_mode(found) if isinstance(found, nn.Module) else found


def own_mode(module: _Module) -> _Module:
    """A copy, in evaluation mode, that shares the weights: training the original does not put it in training."""
    twin = copy(module)
    twin._modules = {name: None if child is None else own_mode(child) for name, child in module._modules.items()}
    twin.training = False
    return twin


def _fold_norms(traced: fx.GraphModule) -> None:
    """Fold each batch norm into the convolution before it; what activation it brings along follows by itself."""
    targets = [(node.op, str(node.target)) for node in traced.graph.nodes]
    # A tensor that is read by itself counts as a call of the module that it belongs to.
    calls = Counter(target.rpartition(".")[0] if op == "get_attr" else target for op, target in targets)
    for node in list(traced.graph.nodes):
        norm = _module(traced, node)
        before = node.args[0] if node.args else None
        if not isinstance(norm, nn.BatchNorm2d) or not isinstance(before, fx.Node) or len(before.users) > 1:
            continue
        conv = _module(traced, before)
        if not isinstance(conv, nn.Conv2d) or type(conv) not in (nn.Conv2d, Conv2dSame):
            continue
        if calls[str(before.target)] > 1:  # it runs elsewhere too, or its weight is read
            continue
        if norm.running_mean is None:  # it goes by the batch
            continue
        traced.add_submodule(str(before.target), fuse_conv_bn_eval(conv, norm))
        new = before
        for part in ("drop", "act"):  # of timm's BatchNormAct2d
            if isinstance(getattr(norm, part, None), nn.Module) and not isinstance(getattr(norm, part), nn.Identity):
                with traced.graph.inserting_before(node):
                    new = traced.graph.call_module(f"{node.target}.{part}", (new,))
        node.replace_all_uses_with(new)
        traced.graph.erase_node(node)
    traced.recompile()


def _module(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape)


def _with_sum(node: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """The sum that the node goes into and its other part, if that is all it goes into."""
    user = _only_user(node)
    if user is None or user.op != "call_function" or user.target not in _SUMS or len(user.args) != 2 or user.kwargs:
        return node, None
    other = user.args[1] if user.args[0] is node else user.args[0]
    if not isinstance(other, fx.Node) or other is node or not _shape(other) == _shape(user) == _shape(node):
        return node, None
    if _shape(node)[2:] == (1, 1):  # of one pixel, a sum that spreads it looks like any other
        return node, None
    return user, other


def _with_activation(traced: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, str]:
    """The activation that the node goes into, if that is all it goes into, and its name."""
    user = _only_user(node)
    name = None if user is None else _activation(traced, user)
    return (node, "none") if user is None or name is None else (user, name)


def _replace(
    traced: fx.GraphModule, first: fx.Node, last: fx.Node, module: nn.Module, order: dict[fx.Node, int], *more: fx.Node
) -> None:
    """Put a module in the place of the nodes from ``first`` to ``last``."""
    name = f"fused_{order[first]}"
    traced.add_module(name, module)
    with traced.graph.inserting_after(last):
        new = traced.graph.call_module(name, (first.args[0], *more))
    order[new], new.meta = order[last], last.meta
    last.replace_all_uses_with(new)


def _activation(traced: fx.GraphModule, node: fx.Node) -> str | None:
    if node.op == "call_function" and not (node.args[1:] or set(node.kwargs) - {"inplace"}):
        return _FUNCTIONS.get(node.target)
    module = _module(traced, node)
    if isinstance(module, nn.GELU) and module.approximate != "none":
        return None
    return next((name for kind, name in _MODULES if isinstance(module, kind)), None)
