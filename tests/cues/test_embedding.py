"""Cues by meaning, with encoders that are a table of vectors; the real ones are third parties'."""

import logging
import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from hlnet.cues.embedding import cues_from_embedding, load_encoder
from hlnet.errors import HlnetError, RunError, UsageError
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.selection import select_classes

TREE = ClassTree.from_nested({"animal": {"cat": ["tabby", "siamese"], "big_dog": ["boxer"]}, "tool": {"saw": {}}})
#: Directions in degrees, so that the similarity of two texts is the cosine of what lies between them.
DEGREES = {
    "animal": 10,
    "cat": 30,
    "tabby": 33,
    "siamese": 37,
    "big dog": 60,
    "boxer": 62,
    "tool": 180,
    "saw": 190,
    "kitty": 30,
    "felines and canines": 45,
    "tomcat": 34,
    "hammer": 180,
    "nonsense": 270,
    "beast": 8,
}


class Compass:
    """Counts what it is asked, and gives vectors of any length."""

    def __init__(self):
        self.asked = []

    def encode(self, sentences):
        self.asked.append(list(sentences))
        angles = np.radians([DEGREES[text] for text in sentences])
        return np.stack([np.cos(angles), np.sin(angles)], 1) * np.arange(1, len(angles) + 1)[:, None]


class Giving:
    """Whatever a function makes of the texts."""

    def __init__(self, found):
        self.encode = found


def near(text, **settings):
    return [cue.node for cue in cues_from_embedding(text, TREE, Compass(), **settings)]


@pytest.mark.parametrize(
    "text, settings, nodes",
    [
        ("kitty", {"margin": 0}, ["animal/cat"]),
        ("kitty", {}, ["animal/cat"]),  # its classes are near, but lie under it
        ("tomcat", {"margin": 0}, ["animal/cat/tabby"]),
        ("tomcat", {"margin": 0.01}, ["animal/cat"]),  # both of its classes, each nearer than itself
        ("felines and canines", {"margin": 0, "threshold": 0.9}, ["animal/cat/siamese"]),
        # 8, 12, 15 and 15 degrees away: the other three come in
        ("felines and canines", {"margin": 0.05}, ["animal"]),
        ("beast", {"margin": 0}, ["animal"]),
        ("hammer", {}, ["tool"]),
        ("nonsense", {}, []),
        ("nonsense", {"threshold": 0.1}, ["tool"]),  # 80 degrees from its saw
        ("beast", {"threshold": 0.9999}, []),
        ("kitty", {"threshold": 1, "margin": 0}, ["animal/cat"]),
    ],
)
def test_nearest_nodes(text, settings, nodes):
    assert near(text, **settings) == nodes


def test_reliability_and_hints(caplog):
    with caplog.at_level(logging.INFO, "hlnet"):
        (cue,) = cues_from_embedding("kitty", TREE, Compass(), reliability=0.8)
        assert cue.reliability == 0.8 and select_classes(TREE, cue.node) == (0, 1)
        assert cues_from_embedding("nonsense", TREE, Compass()) == []
        assert cues_from_embedding("nonsense", TREE, Compass(), threshold=-1, margin=2) == []
    assert caplog.messages == [
        "'kitty' is nearest to animal/cat (1.00)",
        "no node is near 'nonsense': 'tool/saw' is the nearest, at 0.17",
        "'nonsense' is as near to all classes: tool/saw, animal",
    ]


def test_names_are_encoded_once():
    encoder, same = Compass(), ClassTree.from_nested({"cat": {}, "saw": {}})
    for tree in (TREE, same, ClassTree.from_nested({"cat": {}, "saw": {}})):
        for text in ("kitty", "hammer"):
            cues_from_embedding(text, tree, encoder)
    assert sorted(map(len, encoder.asked)) == [1] * 6 + [2, 8]
    assert [cue.node for cue in cues_from_embedding("kitty", same, encoder)] == ["cat"]


@dataclass
class Unhashable:
    direction: float

    def encode(self, sentences):
        return [[self.direction, text in ("cat", "kitty")] for text in sentences]


def test_encoders_need_not_be_hashable():
    tree = ClassTree.from_nested({"cat": {}, "saw": {}})
    encoder = Unhashable(0.5)
    assert [cue.node for cue in cues_from_embedding("kitty", tree, encoder)] == ["cat"]


@pytest.mark.parametrize("kind", [list, torch.tensor, lambda found: np.float32(found)])
def test_whatever_an_encoder_gives(kind):
    encoder = Giving(lambda texts: kind(Compass().encode(texts).tolist()))
    tree = ClassTree.from_nested({"cat": {}, "saw": {}})
    assert [cue.node for cue in cues_from_embedding("kitty", tree, encoder)] == ["cat"]


@pytest.mark.parametrize(
    "found",
    [lambda texts: 1, lambda texts: [[1.0]], lambda texts: ["x"] * len(texts), lambda texts: [[np.nan]] * len(texts)],
)
def test_what_is_no_vector(found):
    tree = ClassTree.from_nested({"cat": {}, "saw": {}})
    with pytest.raises(UsageError, match="the encoder gives"):
        cues_from_embedding("kitty", tree, Giving(found))


def test_zero_vectors_are_near_nothing():
    tree = ClassTree.from_nested({"cat": {}, "saw": {}})
    assert cues_from_embedding("kitty", tree, Giving(lambda texts: [[0.0, 0.0]] * len(texts))) == []


@pytest.mark.parametrize(
    "text, settings, told",
    [
        (" ", {}, "is empty"),
        ("kitty", {"threshold": 1.5}, r"threshold 1.5 must lie in -1..1"),
        ("kitty", {"threshold": float("nan")}, "threshold nan"),
        ("kitty", {"margin": -1}, "margin -1 must be at least 0"),
        ("kitty", {"reliability": 2}, "reliability 2"),
    ],
)
def test_refused(text, settings, told):
    with pytest.raises(UsageError, match=told):
        near(text, **settings)


def test_package_and_model_that_are_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    for call in (load_encoder, lambda: cues_from_embedding("kitty", TREE)):
        with pytest.raises(UsageError, match=r"needs the package sentence_transformers: pip install 'hlnet\[embed\]'"):
            call()

    def offline(name, device):
        raise OSError(f"We couldn't connect to load {name}\nto the {device}")

    package = types.SimpleNamespace(SentenceTransformer=offline)
    monkeypatch.setitem(sys.modules, "sentence_transformers", package)
    with pytest.raises(
        RunError, match=r"model 'some/model' cannot be loaded: name a folder.*We couldn't connect"
    ) as caught:
        cues_from_embedding("kitty", TREE, "some/model")
    assert "\n" not in str(caught.value) and isinstance(caught.value, HlnetError)
    package.SentenceTransformer = lambda name, device: Compass()
    assert [cue.node for cue in cues_from_embedding("kitty", TREE, "some/model")] == ["animal/cat"]
