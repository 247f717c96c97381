"""What the tests of ``hlnet build-tree`` and ``hlnet tree`` work on: images, trees, answers, trained networks."""

import functools
import json
import tempfile
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from helpers.command_line import as_json, invoke
from helpers.wordnet_files import TINY, write
from hlnet.model.cost import profile
from hlnet.model.presets import network_config
from hlnet.model.trunk import create_backbone
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.io import read_tree

CLASSES = ("cat", "dog", "owl", "rook", "saw", "Öl")
#: Its leaves are not in the order of the indices, which are those of the folders.
NESTED = {
    "thing": {"Öl": 5, "saw": 4},
    "beast": {"bird": {"rook": 3, "owl": 2}, "mammal": {"cat": 0, "dog": 1}},
}
SMALL = "--backbone test_resnet --img-size 32 --workers 0 --device cpu"
TRAIN = f"--aa none --hflip 0 --batch-size 6 {SMALL}"
ANSWER = {"animal": {"pet": ["cat", "dog"], "bird": ["owl", "rook"]}, "stuff": ["Öl", "saw"]}
FILES = {
    "n.json": json.dumps(NESTED),
    "list.txt": "\n".join(CLASSES),
    "one.txt": "cat\n",
    "gap.json": '{"cat": 3, "dog": 4}',
    "hundred.txt": "\n".join(f"c{i}" for i in range(100)),
    "groups.yaml": "home: [cat, dog, saw]\ngarden: [rook, saw]\n",
    "few.yaml": "few: 1-5\n",
    "answer.txt": f"Here you are:\n```json\n{json.dumps(ANSWER)}\n```\n",
    "short.txt": '{"animal": ["cat", "dog", "owl", "rook"], "stuff": ["sa',
    "refusal.txt": "I'm sorry, I cannot do that.\n",
}


@pytest.fixture(scope="session")
def at(tmp_path_factory):
    """Paths of images, of trees and lists of their classes, of trained networks, and of timm weights."""
    return material(tmp_path_factory.getbasetemp())


@functools.cache  # each module that takes ``at`` from here has a fixture of its own
def material(base):
    root = Path(tempfile.mkdtemp(prefix="trees", dir=base))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 36, 40, 3), np.uint8)
    for name, i in product(CLASSES, range(8)):
        folder = root / "photos" / ("train" if i < 5 else "val") / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i] // (1 + CLASSES.index(name))).save(folder / f"{i}.png")
    for name, text in FILES.items():
        (root / name).write_text(text, encoding="utf-8")
    (root / "binary.txt").write_bytes(b"\x89PNG\xff\0")
    write(root / "tiny", TINY)
    torch.manual_seed(1)
    save_file(create_backbone("test_resnet").state_dict(), root / "trunk.safetensors")
    save_file(create_backbone("test_resnet", {"num_classes": 6}).state_dict(), root / "rows.safetensors")
    at = {"root": str(root)} | {path.name.split(".")[0]: str(path) for path in root.iterdir()}
    at |= {"expert": f"{root}/expert.safetensors", "image": f"{root}/photos/val/cat/5.png"}
    invoke(f"train {{photos}} --tree {{n}} --out {{root}}/run --widths 8,4,4 --epochs 6 --lr 0.01 {TRAIN}", **at)
    invoke(f"train {{photos}} --tree {{n}} --out {{root}}/plain --plain --epochs 1 {TRAIN}", **at)
    at |= {"full": f"{root}/run/best.safetensors", "plain": f"{root}/plain/best.safetensors"}
    invoke("make-expert {full} --classes bird,cat --out {expert}", **at)
    return at


@pytest.fixture(scope="module")
def price():
    """What a network with so many nodes at each level costs, in parameters and in multiply-accumulates."""

    def price(counts, measure="params", network="n3hl_resnet50"):
        trunk, *levels = parts(network, len(counts))
        return getattr(trunk, measure) + sum(n * getattr(part, measure) for n, part in zip(counts, levels, strict=True))

    @functools.cache
    def parts(network, levels):
        return profile(network_config(network, levels), ClassTree.balanced([1] * levels)).full.parts

    return price


@pytest.fixture
def build(at, tmp_path):
    """Run ``build-tree``; the tree that it wrote, and its notes."""

    def run(line):
        out = tmp_path / "new" / "x.tree.json"
        told = as_json(f"build-tree {line} --out {out}", **at)
        tree = read_tree(out)
        notes = told.pop("notes")
        assert told == {"out": str(out), "nodes": list(tree.counts), "classes": list(tree.classes)}
        return tree, notes

    return run


def described(tree):
    """What must stay whatever the nesting: each class's original index and id."""
    return {leaf.name: (leaf.index, leaf.id) for leaf in tree.leaves}


def groups_of(tree, level):
    """The classes under each node of a level."""
    found = {}
    for i, name in enumerate(tree.classes):
        found.setdefault(tree.rows([i])[level], set()).add(name)
    return list(found.values())
