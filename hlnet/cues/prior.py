"""A prior: how frequent classes are where the images come from, as a shift of logits.

Notable here: a network that was trained on equally frequent classes is corrected for other frequencies by Bayes' rule
alone, without its weights (Saerens, Latinne and Decaestecker 2002, "Adjusting the Outputs of a Classifier to New a
Priori Probabilities"). A prior is thus what all images' cues have in common.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from hlnet.cues.rows import read_rows
from hlnet.errors import UsageError, some
from hlnet.tree.class_tree import ClassTree

#: By what share of it written probabilities may miss a sum, being rounded.
TOLERANCE = 1e-3


def read_prior(source: str | Path | Mapping[str, float], tree: ClassTree) -> Tensor:
    """The probability of each class, from those of some nodes.

    A node's probability is that of an image's class lying at or under it. So what is stated of a node that lies under
    another is part of the other's, and the rest of the other's is shared equally by its classes that are left; classes
    under no node named share equally what is missing to 1.

    Args:
        source: by node (its path, name or id), or a ``.csv`` or ``.jsonl`` file with the columns ``node`` and
            ``probability``.
        tree: the classes.

    Returns:
        ``[classes]``, float64, all above 0, their sum 1.

    Raises:
        UsageError: if the file cannot be read; if a probability is not above 0; if they add up to more than 1, or more
            than the node's above them; or if nothing is left for a class: one that cannot be is better left out, by an
            expert without it.
        SelectionError: if the tree has no such node.

    Example:
        >>> tree = ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle", "boxer", "pug"]})
        >>> read_prior({"cat": 0.5, "beagle": 0.25, "tabby": 0.375}, tree).tolist()
        [0.375, 0.125, 0.25, 0.125, 0.125]
    """
    name = "the prior"
    stated: list[tuple[str, str, float | str]]
    if isinstance(source, Mapping):
        stated = [(f"the prior, '{word}'", word, share) for word, share in source.items()]
    else:
        name = f"'{source}'"
        stated = [(where, row["node"], row["probability"]) for where, row in read_rows(source, ("node", "probability"))]
    shares: dict[tuple[int, ...], float] = {}
    for where, word, share in stated:
        try:
            place = tree.find_node(word)
        except UsageError as error:
            raise type(error)(f"{where}: {error}") from error
        classes = tree.leaves_under(place)
        if classes in shares:
            raise UsageError(f"{where}: the classes of '{word}' have a probability already; give each node one")
        shares[classes] = _probability(share, where)
    if not shares:
        raise UsageError(f"{name} names no node; give at least one, such as cat: 0.5")
    everything = tuple(range(len(tree.classes)))
    if abs(shares.pop(everything, 1.0) - 1) > TOLERANCE:
        raise UsageError(f"{name}: a node that holds all classes has the probability 1; name those below it")
    prior = torch.zeros(len(tree.classes), dtype=torch.float64)
    # Nodes hold one another or nothing in common, so the smaller ones first are all those below first.
    for classes in sorted({everything, *shares}, key=len):
        share, at = shares.get(classes, 1.0), list(classes)
        left = [i for i in classes if not prior[i]]
        rest = share - float(prior[at].sum())
        what = f"{name}: the probabilities" + ("" if classes == everything else f" under '{tree.node_over(classes)}'")
        if rest < -TOLERANCE * share:
            raise UsageError(f"{what} add up to {share - rest:.6g}, which is more than {share:g}")
        if not left and rest > TOLERANCE * share:
            raise UsageError(f"{what}, of all classes, add up to {share - rest:.6g}; expected {share:g}")
        if left and rest <= TOLERANCE * share:
            names = some((f"'{tree.classes[i]}'" for i in left), 3)
            raise UsageError(
                f"{what} leave nothing for {names}; let them add up to less than {share:g}, or cut an expert without "
                "the classes that cannot be"
            )
        if left:
            prior[left] = rest / len(left)
    return prior / prior.sum()


def prior_shift(prior: Tensor, temperature: float = 1.0, one_vs_rest: bool = False) -> Tensor:
    """What a prior adds to logits: ``T (ln prior - ln(1 / K))``, for classes that were equally frequent in training.

    Softmax of the shifted logits over T is then Bayes' rule: the network's probabilities times the prior, normalised.

    Args:
        prior: ``[classes]``, above 0, as :func:`read_prior` gives it.
        temperature: T, the network's fitted one if it has any.
        one_vs_rest: whether classes are detectors of their own, whose sigmoids are shifted: by the difference of
            ``ln(p / (1 - p))`` between prior and 1 / K.

    Returns:
        ``[classes]``, float32; an even prior gives zeros.

    Example:
        >>> prior_shift(torch.tensor([0.5, 0.25, 0.25]))
        tensor([ 0.4055, -0.2877, -0.2877])
    """
    if one_vs_rest and len(prior) > 1:
        return (temperature * (prior.double().logit() + math.log(len(prior) - 1))).float()
    return (temperature * (prior.double().log() + math.log(len(prior)))).float()


def _probability(share: object, where: str) -> float:
    try:
        value = float(share)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise UsageError(f"{where}: probability {share!r} is no number") from None
    if not 0 < value <= 1:
        raise UsageError(
            f"{where}: probability {value:g} must be above 0 and at most 1; counts are divided by their sum"
        )
    return value
