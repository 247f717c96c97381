"""Cues out of a text by its meaning: the nodes whose names an embedding model puts nearest to it.

Notable here: a similarity is no probability, and some node is always the nearest. So below a threshold there is no cue;
and where several nodes are about as near, they are alternatives, which one cue names together.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np

from hlnet.cues.cue import Cue
from hlnet.cues.files import make_cue
from hlnet.errors import RunError, UsageError, one_line
from hlnet.optional import require, silence
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.selection import as_selection

log = logging.getLogger("hlnet")

#: A small model of sentence-transformers, as its hub calls it.
DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
#: What an encoder made of the names of a tree's nodes, which takes far longer than one text does.
_NAMES: WeakKeyDictionary[Encoder, dict[tuple[str, ...], np.ndarray[Any, Any]]] = WeakKeyDictionary()


class Encoder(Protocol):
    """What turns texts into vectors, such as a ``SentenceTransformer``."""

    def encode(self, sentences: list[str]) -> Any:
        """An array ``[texts, dimensions]``, or what numpy takes for one."""


def load_encoder(name: str | Path = DEFAULT_MODEL) -> Encoder:
    """A model of sentence-transformers, which comes with the extra ``hlnet[embed]``.

    Args:
        name: a folder that holds one, or its name on the hub, from where it is downloaded once.

    Raises:
        UsageError: if the package is not there.
        RunError: if the model cannot be loaded or downloaded.
    """
    package = require("sentence_transformers", "finding nodes by their meaning", "embed")
    try:
        with silence():
            encoder: Encoder = package.SentenceTransformer(str(name), device="cpu")
    except Exception as error:  # whatever the network, the hub's client or the model's own format come up with
        raise RunError(
            f"the embedding model '{name}' cannot be loaded: name a folder that holds one, or let it be downloaded "
            f"once, where there is a network ({one_line(error, 120)})"
        ) from error
    return encoder


def cues_from_embedding(
    text: str,
    tree: ClassTree,
    encoder: Encoder | str | Path = DEFAULT_MODEL,
    threshold: float = 0.5,
    margin: float = 0.05,
    reliability: float | None = None,
) -> list[Cue]:
    """A cue on the node whose name is nearest to a text in meaning, by cosine similarity.

    The text is taken as a whole: "a dog and a cat" lies between the two. This is for sentences; of sounds and single
    nouns :func:`hlnet.cues.words.cues_from_text` is far more often right (docs/attention.md has figures of both).

    Args:
        text: in the model's language.
        tree: the classes.
        encoder: the model, which is asked for the nodes' names once and taken for fixed then; or what
            :func:`hlnet.cues.embedding.load_encoder` takes, which is loaded at every call.
        threshold: the least similarity, up to 1. What it is worth depends on the model.
        margin: nodes whose similarity is less by no more than this are named too, as alternatives; but of two of which
            one holds the other, the nearer alone.
        reliability: of the cue; default: what the policy says.

    Returns:
        one cue, or none, if no node is near enough or all classes are.

    Raises:
        UsageError: if the text is empty, a number is out of range, or the encoder gives no vectors.
        RunError: if the model cannot be loaded.

    Example:
        >>> class Letters:
        ...     def encode(self, sentences):
        ...         return [[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in sentences]
        >>> tree = ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle"]})
        >>> cues_from_embedding("god", tree, Letters(), reliability=0.9)
        [Cue(node='dog', reliability=0.9, strength=None, mode=None)]
    """
    if not text.strip():
        raise UsageError("the text to find nodes for is empty")
    if not (-1 <= threshold <= 1 and margin >= 0):
        raise UsageError(f"threshold {threshold:g} must lie in -1..1, and margin {margin:g} must be at least 0")
    if isinstance(encoder, str | Path):
        encoder = load_encoder(encoder)
    paths, known = _nodes(tree, encoder)
    similarity = known @ _vectors(encoder, [text])[0]
    order = np.argsort(-similarity, kind="stable")
    best = int(order[0])
    near: dict[str, set[int]] = {}
    for i in order:
        if similarity[i] < max(threshold, similarity[best] - margin):
            break
        below = set(tree.leaves_under(paths[i]))
        if all(below.isdisjoint(other) for other in near.values()):
            near[paths[i]] = below
    classes = set().union(*near.values())
    if not 0 < len(classes) < len(tree.classes):
        said = one_line(text, 60)
        if classes:
            log.warning("'%s' is as near to all classes: %s", said, one_line(", ".join(near)))
        else:
            log.warning("no node is near '%s': '%s' is the nearest, at %.2f", said, paths[best], similarity[best])
        return []
    names = tuple(tree.classes[i] for i in sorted(classes))
    cue = make_cue(as_selection(tree, classes), reliability, classes=names)
    log.info("'%s' is nearest to %s (%.2f)", one_line(text, 60), one_line(cue.node), similarity[best])
    return [cue]


def _nodes(tree: ClassTree, encoder: Encoder) -> tuple[list[str], np.ndarray[Any, Any]]:
    """Paths of all nodes, and their names' vectors."""
    paths = list(tree.node_names.below)
    names = tuple(path.rsplit("/", 1)[-1].replace("_", " ") for path in paths)
    try:
        known = _NAMES.setdefault(encoder, {})
    except TypeError:  # it cannot be told from others, so nothing is kept
        known = {}
    if names not in known:
        known[names] = _vectors(encoder, list(names))
    return paths, known[names]


def _vectors(encoder: Encoder, texts: list[str]) -> np.ndarray[Any, Any]:
    """Of length 1, ``[texts, dimensions]``; a zero vector, which has no direction, stays."""
    try:
        found = np.asarray(encoder.encode(texts), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the encoder gives no vectors: {one_line(error)}") from error
    if found.ndim != 2 or len(found) != len(texts) or not np.isfinite(found).all():
        raise UsageError(f"the encoder gives {found.shape} for {len(texts)} texts; expected a finite vector for each")
    lengths: np.ndarray[Any, Any] = np.linalg.norm(found, axis=1, keepdims=True)
    directions: np.ndarray[Any, Any] = np.divide(found, lengths, out=np.zeros_like(found), where=lengths > 0)
    return directions
