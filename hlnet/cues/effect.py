"""The effect of cues on one batch: gains on features, factors and shifts on logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hlnet.cues.cue import Cue, Mode, cue_evidence, curve_strength
from hlnet.cues.policy import CuePolicy
from hlnet.cues.prior import prior_shift
from hlnet.errors import UsageError, some
from hlnet.model.base import Network, require_branches
from hlnet.model.provenance import Provenance
from hlnet.tree.class_tree import ClassTree


@dataclass(frozen=True)
class Effect:
    """What cues do to a batch; ``None`` where they do nothing, so that without cues nothing is computed.

    Attributes:
        gains: ``[B, nodes]``, as :meth:`HierarchicalNet.forward` takes them.
        scale: ``[B, classes]``, factors on the logits.
        bias: ``[B, classes]``, added to the logits.
    """

    gains: Tensor | None = None
    scale: Tensor | None = None
    bias: Tensor | None = None

    def shifted(self, logits: Tensor) -> Tensor:
        """What scale and bias make of logits ``[B, classes]``."""
        if self.scale is not None:
            logits = logits * self.scale
        return logits if self.bias is None else logits + self.bias

    def logits(self, net: Network, images: Tensor) -> Tensor:
        """Logits ``[B, classes]`` of images ``[B, 3, H, W]`` under the cues."""
        return self.shifted(net(images) if self.gains is None else net(images, self.gains))


def gains_for(tree: ClassTree, classes: Tensor, signal: float) -> Tensor:
    """One gain per image and node: ``signal`` on the leaf of the cued class, 1 elsewhere.

    Args:
        tree: the network's tree.
        classes: ``[B]``, position in ``tree.classes`` of the class that is cued for each image.
        signal: the factor; 1 is neutral, more enhances, less inhibits. At least 0.

    Returns:
        ``[B, tree.num_nodes]``, as :meth:`HierarchicalNet.forward` takes it.

    Raises:
        UsageError: if the signal is negative or not a number, or a class is out of range.

    Example:
        >>> tree = ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle"]})
        >>> gains_for(tree, torch.tensor([2]), 1.8)
        tensor([[1.0000, 1.0000, 1.0000, 1.0000, 1.8000]])
    """
    if not 0 <= signal < float("inf"):
        raise UsageError(f"attention signal {signal} must be a number of at least 0 (1 is neutral, 1.8 enhances)")
    if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < len(tree.classes):
        raise UsageError(f"cued classes must be positions in 0..{len(tree.classes) - 1}")
    gains = torch.ones(len(classes), tree.num_nodes, device=classes.device)
    gains[torch.arange(len(classes), device=classes.device), tree.offsets[-2] + classes] = signal
    return gains


def cue_effect(
    net: Network,
    cues: Sequence[Sequence[Cue]],
    policy: CuePolicy | None = None,
    competing: Sequence[int] | None = None,
) -> Effect:
    """What cues do to the images of one batch.

    Several cues on an image count as independent: factors multiply and shifts add, also where they act in different
    ways. A cue of no evidence, a factor of 1 and a shift of 0 leave logits as they are, bit by bit.

    - ``bias``: with reliability p, the logits of the m cued of K classes are shifted by ``T * cue_evidence(p, m, K)``.
      That is Bayes' rule where probabilities are ``softmax(logits / T)``, T the network's fitted temperature or 1.
    - ``gain``, ``scale``: a factor on features or on logits. From a reliability only for a network that holds a curve.
      A gain acts at the input of the last convolution of each leaf under the cued node, as in the paper's Sec. 4.4.
      A scale depends on where the logits' zero is, which softmax does not: it lifts a cued logit above 0 and lowers one
      below.

    Args:
        net: the network; a plain one takes ``bias`` and ``scale``.
        cues: of each of the B images; none for an image without a cue.
        policy: how cues act that do not say it themselves, and the prior; default: as :class:`hlnet.CuePolicy`.
        competing: positions of the classes that compete, where not all do; they set K and m.

    Raises:
        UsageError: for a gain on a plain network, a negative factor, or a strength that is neither given nor fitted.
        SelectionError: if a cue names what the tree does not have.

    Example:
        >>> from hlnet.model.presets import create_model
        >>> net = create_model("resnet18", tree={"cat": ["tabby", "siamese"], "dog": ["beagle", "boxer"]})
        >>> effect = cue_effect(net, [[Cue(node="cat", reliability=0.75)], []])
        >>> effect.bias
        tensor([[1.0986, 1.0986, 0.0000, 0.0000],
                [0.0000, 0.0000, 0.0000, 0.0000]])
    """
    tree, provenance = net.tree, net.provenance
    policy = policy or CuePolicy()
    competing = range(len(tree.classes)) if competing is None else competing
    frequency, shift = np.ones(len(tree.classes)), None
    if policy.prior is not None:
        frequency = _frequencies(tree, policy.prior, competing)
        shares = torch.from_numpy(frequency / frequency.sum())
        same = prior_shift(shares, provenance.temperature or 1.0, provenance.one_vs_rest)
        shift = same.to(net.device).expand(len(cues), -1)
    if not any(cues):
        return Effect(bias=shift)
    among = np.zeros(len(tree.classes), dtype=bool)
    among[list(competing)] = True
    frequency = frequency * among
    known: dict[Cue, tuple[Mode, np.ndarray, float]] = {}
    made: dict[Mode, np.ndarray] = {}
    for row, own in enumerate(cues):
        for cue in own:
            if cue not in known:
                known[cue] = _acting(net, policy.complete(cue, provenance), frequency)
            mode, columns, strength = known[cue]
            if mode not in made:
                width = tree.num_nodes if mode == "gain" else len(tree.classes)
                made[mode] = np.full((len(cues), width), 0 if mode == "bias" else 1, dtype=np.float32)
            if mode == "bias":
                made[mode][row, columns] += strength
            else:
                made[mode][row, columns] *= strength
    values = {mode: torch.from_numpy(effect).to(net.device) for mode, effect in made.items()}
    bias = values.get("bias")
    if shift is not None:
        bias = shift if bias is None else bias + shift
    return Effect(gains=values.get("gain"), scale=values.get("scale"), bias=bias)


def _acting(net: Network, cue: Cue, frequency: np.ndarray) -> tuple[Mode, np.ndarray, float]:
    """The mode of a complete cue, the columns on which it acts (nodes for a gain, else classes), and its strength."""
    mode = cue.mode
    assert mode is not None
    if mode == "gain":
        require_branches(net, "whose features could be scaled", "cue it by a bias or a scale")
    named = np.array(cue.positions(net.tree), dtype=int)
    strength = _strength(cue, mode, net.provenance, frequency[named].sum(), frequency.sum())
    return mode, named + net.tree.offsets[-2] if mode == "gain" else named, strength


def _strength(cue: Cue, mode: Mode, provenance: Provenance, named: float, classes: float) -> float:
    """The factor or shift of one complete cue; how frequent the classes named are, and all that compete."""
    if cue.strength is not None:
        if mode != "bias" and cue.strength < 0:
            raise UsageError(f"{mode} {cue.strength:g} must be at least 0 (1 is neutral, 1.8 enhances, 0.5 inhibits)")
        return cue.strength
    if cue.reliability is None:
        raise UsageError(
            f"the cue on '{cue.node}' has no strength: add --reliability 0.9 or --attention-signal 1.8 (in Python "
            "reliability=0.9 or strength=1.8), or fit one (hlnet attend)"
        )
    evidence = cue_evidence(cue.reliability, named, classes) if named else 0.0
    if mode == "bias":
        return evidence * (provenance.temperature or 1.0)
    fitted = provenance.attention
    curve = (fitted.gain if mode == "gain" else fitted.scale) if fitted else ()
    if not curve:
        raise UsageError(
            f"this network holds no {mode} for a reliability: give a strength, cue by a bias, or fit one (hlnet attend)"
        )
    return curve_strength(curve, evidence)


def _frequencies(tree: ClassTree, prior: Mapping[str, float], competing: Sequence[int]) -> np.ndarray:
    """The prior of each class; of those that do not compete, whatever it may be."""
    if lacking := [tree.classes[place] for place in competing if tree.classes[place] not in prior]:
        raise UsageError(
            f"the prior says nothing of {some(lacking)}; it takes every class by name, as "
            "hlnet.cues.prior.read_prior spreads "
            "probabilities of nodes over their classes"
        )
    found = np.array([prior.get(name, 0.0) for name in tree.classes])
    if not (found[list(competing)] > 0).all():
        raise UsageError("a prior must be above 0 for each class; cut an expert without those that cannot be")
    found[found <= 0] = found[found > 0].min()
    return found
