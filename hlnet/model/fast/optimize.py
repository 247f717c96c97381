"""The inference form of a network: the same logits to rounding, as fast as the machine's dense products go.

What :func:`optimize` does: batch norms and scales are folded into the convolutions before them; weights are laid out
once as the processor wants them; activations and sums are done along with the convolution before them, in the trunk
(:mod:`hlnet.model.fast.fuse`) too; the tree is walked depth first, one parent at a time, its children in chunks whose
inner results fit the cache (:mod:`hlnet.model.fast.walk`).

An inference form is of the weights as they were: parts of them are copied when they are first needed, others never.
When they have changed since, it refuses to run.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from types import SimpleNamespace
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn

from hlnet.errors import UsageError
from hlnet.model.base import Network, TrainableNetwork, require_branches
from hlnet.model.fast.descent import Descended, Descent
from hlnet.model.fast.fuse import fuse_or_why_not, what_was_fused
from hlnet.model.fast.select import SelectedTree
from hlnet.model.fast.walk import FastTree
from hlnet.model.fast.weight_watch import WeightWatch
from hlnet.model.hierarchical import HierarchicalNet
from hlnet.model.provenance import Provenance
from hlnet.tree.class_tree import ClassTree

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def optimize(model: TrainableNetwork, dtype: torch.dtype | str = torch.float32) -> InferenceNet:
    """The inference form of a network, of its weights as they are now.

    It keeps ``model`` beside its own copies of the weights, to pack them when they are first needed. Once they have
    changed (training, ``load_state_dict``, a move to another device), calling or selecting from the inference form
    raises a UsageError; optimise the network again.

    Args:
        model: full network, expert or plain network, on the device where it shall run; put in evaluation mode.
        dtype: ``torch.float32``, equal to the training form to about 1e-6 of the largest logit; or ``torch.bfloat16``,
            faster where the processor computes in it, with some two digits.

    Raises:
        UsageError: for another type, or what is no such network, an inference form among them.

    Example:
        >>> from hlnet.model.presets import create_model
        >>> net = create_model("resnet18", tree={"cat": ["tabby", "siamese"], "dog": ["beagle"]}).eval()
        >>> images = torch.randn(2, 3, 64, 64)
        >>> with torch.inference_mode():
        ...     torch.allclose(optimize(net)(images), net(images), atol=1e-5)
        True
    """
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        raise UsageError(f"dtype '{dtype}' is not one of {', '.join(DTYPES)}")
    assert isinstance(found, torch.dtype)
    if not isinstance(model, TrainableNetwork):
        raise UsageError(
            f"optimize() takes a HierarchicalNet or a PlainNet, got {type(model).__name__}"
            + ("; it is an inference form already" if isinstance(model, InferenceNet) else "")
        )
    return InferenceNet(model.eval(), found)


class InferenceNet(Network):
    """What :func:`optimize` returns: call it as the network that it was made of; it does not train.

    It stays where and as it was made: ``.to()`` another device or type, copies and pickles are refused with a
    UsageError.
    """

    def __init__(self, model: TrainableNetwork, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self._tree = model.config, model.tree
        self.transform = model.transform
        self.__dict__["_fitted"] = model  # not as a part of this one
        self.dtype, self._device = dtype, model.device
        self.head: FastTree | SelectedTree | None = FastTree(model.head, dtype) if model.has_branches else None
        trunk = model.trunk if isinstance(model, HierarchicalNet) else model.trunk_module
        probe = torch.zeros(1, *model.transform.input_size, device=self.device, dtype=dtype)
        fused, self._why_not_fused = fuse_or_why_not(trunk, probe)
        self.trunk: nn.Module = deepcopy(fused) if fused is trunk else fused  # its mode is its own
        self._weights = WeightWatch(trunk)
        self._descent: Descent | None = None

    _fitted: Any

    @torch.no_grad()
    def forward(self, images: Tensor, gains: Tensor | None = None) -> Tensor:
        """As :meth:`HierarchicalNet.forward`; float32 logits ``[B, classes]``.

        Raises:
            UsageError: if a plain network is given gains, ``gains`` has a wrong shape, or the weights of the network
                that it was made of have changed.
        """
        features = self.features(images)
        if self.head is not None:
            logits: Tensor = self.head(features, gains)
            return logits
        if gains is not None:
            require_branches(self, "to cue", "leave the gains out")
        return features.float()

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """The trunk's output ``[B, C, h, w]``; of a plain network, the logits.

        Raises:
            UsageError: if the trunk's weights have changed.
        """
        self._weights.check()
        result: Tensor = self.trunk(images.to(self.dtype, memory_format=torch.channels_last))
        return result

    def descend(self, images: Tensor, threshold: float) -> Descended:
        """Logits of all classes, of which only those that may still win are run through the tree.

        The classes' rows give each a first logit. Then families of leaves run, the one of the likeliest class first,
        until each class that has not run is at most ``threshold`` times as likely as the leading one. Images of a
        batch stop one by one. For networks with class rows; cues do not act on a descent.

        Args:
            images: ``[B, 3, H, W]``, normalised as ``self.transform`` says.
            threshold: 0 runs everything, and gives what calling the network gives, to the bit; 1 runs the rows alone.
                :func:`hlnet.evaluation.descent_fit.fit_descent` finds one for a wanted agreement with the full answer.

        Raises:
            UsageError: if the network has no class rows, the threshold is not in 0..1, or the network's weights have
                changed.

        Example:
            >>> from hlnet.model.presets import create_model
            >>> settings = {"shared_width": 16, "class_rows": True}
            >>> net = create_model("resnet18", tree={"cat": ["tabby", "siamese"], "dog": ["beagle"]}, **settings)
            >>> optimize(net).descend(torch.zeros(1, 3, 64, 64), threshold=1).exact
            tensor([[False, False, False]])
        """
        if self._descent is None:
            require_branches(self, "to descend", "call it")
            assert self.head is not None
            full, classes = (self.head, range(self.num_classes)) if isinstance(self.head, FastTree) else self.head.part
            self._descent = Descent(full, classes, self.head.plan)
        return self._descent(self.features(images), threshold)

    def train(self, mode: bool = True) -> Self:
        """It stays in evaluation mode."""
        return super().train(False)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Behind ``.to()``, ``.cuda()``, ``.double()`` and so on: they may ask for what is there already."""
        here = torch.empty(0, device=self.device, dtype=self.dtype)
        asked = fn(here)
        if (asked.device, asked.dtype) != (here.device, here.dtype):
            wanted = f"device '{asked.device}' and type '{str(asked.dtype).removeprefix('torch.')}'"
            raise UsageError(
                f"an inference form stays where and as it was made; optimise the network again on {wanted}"
            )
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise UsageError("an inference form is not copied; optimise a copy of the network that it was made of")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise UsageError("an inference form is not saved or copied; save the network and optimise it after loading")

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._device

    @property
    def provenance(self) -> Provenance:  # what is fitted to this form is fitted to its network
        """That of the network that it was made of; of a selection of fewer classes, one of its own."""
        found: Provenance = self._fitted.provenance
        return found

    @provenance.setter
    def provenance(self, provenance: Provenance) -> None:
        self._fitted.provenance = provenance

    @property
    def has_branches(self) -> bool:
        """Whether it has branches that can be cued."""
        return self.head is not None

    def select(self, classes: str | Iterable[str | int]) -> InferenceNet:
        """An expert at run time: it shares the trunk and the weights, and is made in about a millisecond.

        Where a quarter or more of a chunk of siblings is selected, all of it runs on the full network's packed weights,
        otherwise the selected ones run on views of the weights as they are. To run one choice for long, optimise a cut
        (:func:`hlnet.cut_expert`) instead.

        Args:
            classes: a selection, as :func:`hlnet.select_classes` takes it.

        Raises:
            SelectionError: if it names what the tree does not have.
            UsageError: for a plain network or a selection, or if the network's weights have changed.

        Example:
            >>> from hlnet.model.presets import create_model
            >>> net = optimize(create_model("resnet18", tree={"cat": ["tabby", "siamese"], "dog": ["beagle"]}))
            >>> net.select("cat")(torch.zeros(1, 3, 64, 64)).shape
            torch.Size([1, 2])
        """
        if not isinstance(self.head, FastTree):
            raise UsageError("classes are selected from an optimised full network; this is a plain one, or a selection")
        self._weights.check()
        self.head.weights.check()
        selected = InferenceNet.__new__(InferenceNet)
        selected.__dict__ |= self.__dict__ | {"_modules": dict(self._modules)}
        selected.head, selected._descent = SelectedTree(self.head, classes), None
        if len(selected.head.rows[-1]) < len(self.tree.classes):  # what was fitted was fitted to all of them
            unfitted = {"temperature": None, "rejection": None, "conformal": None, "descent": ()}
            selected.__dict__["_fitted"] = SimpleNamespace(provenance=self.provenance.model_copy(update=unfitted))
        return selected

    @property
    def tree(self) -> ClassTree:  # type: ignore[override] # of a selection, made when it is asked for
        """The class tree; ``tree.classes`` is the order of the logits."""
        return self._tree if self.head is None else self.head.tree

    def explain(self) -> list[str]:
        """What was done to the network, one line each; of the branches, for the batches that were run."""
        name = "plain network" if self.head is None else "trunk"
        line = what_was_fused(name, self.trunk, self._why_not_fused)
        first = f"computes in {str(self.dtype).removeprefix('torch.')}"
        return [first, line, *(self.head.explain() if isinstance(self.head, FastTree) else [])]
