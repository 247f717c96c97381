"""Where a trunk may end: after a stage of the timm backbone, or after a block within one.

Notable here: timm hands out the output of whole stages. To end within one, what follows the block in it is replaced by
modules that do nothing, so that the block's output is the stage's. All that stays keeps its names.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

from torch import nn

from hlnet.errors import BackboneError, did_you_mean


@dataclass(frozen=True)
class BlockEnd:
    """The end of a block.

    Attributes:
        names: what timm calls the modules that end here, the largest first, such as ``("layer3", "layer3.5")``.
        stage: number of the stage that it lies in.
        whole: whether that ends here too.
    """

    names: tuple[str, ...]
    stage: int
    whole: bool

    @property
    def path(self) -> str:
        """The name of the largest module that ends here; of a stage, its own."""
        return self.names[0]

    @property
    def split_point(self) -> int | str:
        """The stage's number; within it, the module's name."""
        return self.stage if self.whole else self.path


def block_ends(model: nn.Module, stages: Sequence[dict[str, Any]]) -> list[BlockEnd]:
    """All places where a trunk may end, in the order in which they run.

    Known are blocks in an ``nn.Sequential``: that of a stage, one named ``blocks`` that ends it, or the one that the
    stages lie in. Backbones of other forms end after stages alone.

    Args:
        model: a timm model.
        stages: its ``feature_info``.

    Example:
        >>> import timm
        >>> model = timm.create_model("test_resnet", layers=[1, 1, 2, 3])
        >>> [end.split_point for end in block_ends(model, list(model.feature_info))]
        [0, 1, 2, 'layer3.0', 3, 'layer4.0', 'layer4.1', 4]
    """
    found: list[BlockEnd] = []
    done: set[str] = set()
    for number, stage in enumerate(stages):
        for path in _up_to(model, stage["module"]):
            if path not in done:
                done.add(path)
                found += [
                    BlockEnd(tuple(names), number, stage["module"] in names) for names in _ends_within(model, path)
                ]
    return found


def find_end(backbone: str, split_point: int | str | None, model: nn.Module, stages: list[dict[str, Any]]) -> BlockEnd:
    """The end that a split point names.

    Args:
        backbone: what errors call the model.
        split_point: a stage's number, negative from the end; or the name of a stage or of a block, as timm's modules
            are named. Default: as of :class:`hlnet.model.trunk.Trunk`.
        model, stages: as of :func:`block_ends`.

    Raises:
        BackboneError: if it has a single stage or no such place; the message names the nearest.
    """
    if len(stages) < 2:
        raise BackboneError(f"backbone '{backbone}' cannot be split: it has a single stage")
    ends = block_ends(model, stages)
    if isinstance(split_point, str) and split_point.strip().removeprefix("-").isdecimal():
        split_point = int(split_point)
    if split_point is None:
        shrinks = stages[-1]["reduction"] > stages[0]["reduction"]
        split_point = len(stages) - 2 if shrinks else len(stages) * 3 // 4 - 1
    if isinstance(split_point, str):
        found = next((end for end in ends if split_point in end.names), None)
    else:
        number = split_point % len(stages) if -len(stages) <= split_point < len(stages) else None
        found = next((end for end in ends if end.whole and end.stage == number), None)
    if found is None:
        raise BackboneError(_no_such_place(backbone, split_point, ends))
    return found


def ending_with(model: nn.Module, path: str) -> nn.Module:
    """A copy that shares the weights, in which nothing runs after the module at ``path`` in the stage around it."""
    return _without_later(model, path.split("."), [])


# ---------------------------------------------------------------------- helpers


def _up_to(model: nn.Module, path: str) -> list[str]:
    """The modules of the container that the stages lie in, up to this one; the stage alone, if there is none."""
    parent, _, name = path.rpartition(".")
    container = _submodule(model, parent) if parent else None
    if not isinstance(container, nn.Sequential) or name not in container._modules:
        return [path]
    names = list(container._modules)
    return [f"{parent}.{sibling}" for sibling in names[: names.index(name) + 1]]


def _ends_within(model: nn.Module, path: str) -> list[list[str]]:
    """The names of each end within a module, in order; the last one is that of the module."""
    module = _submodule(model, path)
    children = list(module.named_children()) if module is not None else []
    if not isinstance(module, nn.Sequential):
        # ConvNeXt's stages, Swin's and others have their blocks there, and nothing behind them.
        children = [pair for pair in children[-1:] if pair[0] == "blocks" and isinstance(pair[1], nn.Sequential)]
    found = [names for name, _ in children for names in _ends_within(model, f"{path}.{name}")]
    if not found:
        return [[path]]
    found[-1] = [path, *found[-1]]
    return found


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:  # timm describes some stages by names of no module
        return None


def _without_later(module: nn.Module, path: list[str], above: list[str]) -> nn.Module:
    twin, names = copy(module), list(module._modules)
    twin._modules = dict(module._modules)
    child = module._modules[path[0]]
    assert child is not None
    if len(path) > 1:
        twin._modules[path[0]] = _without_later(child, path[1:], [*above, path[0]])
    if above:  # what follows the stages themselves, timm does not run
        twin._modules |= {name: nn.Identity() for name in names[names.index(path[0]) + 1 :]}
    return twin


def _no_such_place(backbone: str, split_point: int | str, ends: list[BlockEnd]) -> str:
    stages = ", ".join(f"{end.stage}: {end.path}" for end in ends if end.whole)
    within = [end.path for end in ends if not end.whole]
    if isinstance(split_point, int):
        text = f"backbone '{backbone}' has no split point {split_point}; it has {stages}"
    else:
        near = did_you_mean(split_point, [name for end in ends for name in end.names])
        text = f"backbone '{backbone}' has no split point '{split_point}'.{near} It has {stages}"
    return text + (f"; and blocks within these, {within[0]} to {within[-1]}" if within else "")
