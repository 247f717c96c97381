"""Hierarchies out of any dictionary, and of all of ImageNet out of the real one: against a naive counterpart."""

import zipfile
from pathlib import Path

import pytest
from helpers import wordnet_files
from helpers.wordnet_files import write
from hypothesis import given, settings
from hypothesis import strategies as st

from hlnet.tree.construct.wordnet import wordnet_hierarchy
from hlnet.tree.dictionary import WordNet

real = wordnet_files.real


def plain(data):
    """Synsets above each synset, out of data.noun's bytes alone."""
    above = {}
    for line in data.decode().split("\n"):
        if line and line[:2] != "  ":
            fields = line.split(" | ")[0].split()
            words = int(fields[3], 16)
            start = 4 + 2 * words + 1
            pointers = [fields[i : i + 4] for i in range(start, start + 4 * int(fields[start - 1]), 4)]
            above["n" + fields[0]] = ["n" + offset for symbol, offset, *_ in pointers if symbol in ("@", "@i")]
    return above


def ways(synset, above):
    """Every way from a root to the synset."""
    return [[*way, synset] for parent in above[synset] for way in ways(parent, above)] or [[synset]]


def check(found, classes, above):
    """That the hierarchy is the contracted union of the classes' longest ways."""
    chains = {synset: max(ways(synset, above), key=len) for synset in classes}
    children = {}
    for chain in chains.values():
        for upper, lower in zip([None, *chain], [*chain, "the class itself"], strict=True):
            children.setdefault(upper, set()).add(lower)
    splits = {synset for synset, below in children.items() if len(below) > 1}
    top = next((synset for synset in chains[classes[0]] if synset in splits), None)
    inner = [node for node in found.walk() if node.children]
    expected = splits - {None if None not in splits else "no synset", top if None not in splits else None}
    assert found.id is None and {node.id for node in inner[1:]} == expected
    assert len(inner) == max(len(splits), 1) and (len(classes) == 1 or all(len(node.children) > 1 for node in inner))
    parents = {id(child): node for node in found.walk() for child in node.children}
    leaves = sorted(found.leaves(), key=lambda leaf: leaf.index)
    assert [leaf.id for leaf in leaves] == classes
    for leaf in leaves:
        way, node = [], leaf
        while (node := parents[id(node)]) is not found:
            way.append(node.id)
        rest = [synset for synset in chains[leaf.id] if synset in expected]
        assert way[::-1] == rest
    return len(inner)


@st.composite
def dictionaries(draw):
    count = draw(st.integers(1, 12))
    synsets = {}
    for number in range(count):
        names = [f"name{draw(st.integers(0, 5))}", *([f"extra_{number}"] if draw(st.booleans()) else [])]
        parents = draw(st.lists(st.integers(0, number - 1), max_size=3, unique=True)) if number else []
        symbols = [f"{draw(st.sampled_from(['@', '@i']))} key{parent}" for parent in parents]
        synsets[f"key{number}"] = " ".join([*names, *symbols])
    return synsets, draw(st.lists(st.integers(0, count - 1), min_size=1, unique=True))


@settings(max_examples=60, deadline=None)
@given(dictionaries())
def test_any_dictionary(tmp_path_factory, drawn):
    synsets, chosen = drawn
    folder = tmp_path_factory.mktemp("any")
    ids = write(folder, synsets)
    wordnet = WordNet(folder)
    classes = [ids[f"key{number}"] for number in chosen]
    found, notes = wordnet_hierarchy(classes, wordnet)
    check(found, classes, plain((folder / "data.noun").read_bytes()))
    names = [leaf.name for leaf in found.leaves()]
    assert len(set(names)) == len(names) == len(found.to_tree().leaves)
    for leaf in found.leaves():
        first = wordnet.lemmas(leaf.id)[0]
        assert leaf.name == first or any(note.startswith(f"'{leaf.id}': named '{leaf.name}'") for note in notes)


# ---------------------------------------------------------------------- the real dictionary


def imagenet(name):
    from timm.data import ImageNetInfo

    return ImageNetInfo(name).label_names()


def data_of(wordnet):
    place = Path(wordnet.place)
    if place.parent.suffix == ".zip":
        return zipfile.ZipFile(place.parent).read("wordnet/data.noun")
    return (place / "data.noun").read_bytes()


def test_imagenet(real):
    ids = imagenet("imagenet-1k")
    found, notes = wordnet_hierarchy(ids, real)
    # 375 groups with the trunk: also what others count for the longest ways.
    assert check(found, ids, plain(data_of(real))) == 375
    assert sum("named" in note for note in notes) == 3
    tree = found.to_tree()
    assert sorted(tree.indices) == list(range(1000)) and len(set(tree.classes)) == 1000
    assert {"crane (wading bird)", "crane (lifting device)", "maillot", "tank suit"} < set(tree.classes)


def test_whole_imagenet(real):
    ids = imagenet("imagenet-21k-goog")
    found, _ = wordnet_hierarchy(ids, real)
    leaves = sorted(found.leaves(), key=lambda leaf: leaf.index)
    assert [leaf.id for leaf in leaves] == ids and len({leaf.name for leaf in leaves}) == len(ids) == 21843
    assert all(len(node.children) != 1 for node in found.walk())
    assert found.to_tree().counts[-1] == 21843


@pytest.mark.parametrize(
    "terms, ids",
    [
        (["crane", "albatross", "pelican"], ["n02012849", "n02058221", "n02051845"]),
        (["crane", "bulldozer"], ["n03126707", "n02916179"]),
        (["mouse, computer mouse", "keyboard, keypad"], ["n03793489", "n03614007"]),
        (["postal vans", "police vans", "wolves", "polar-bears"], [None, "n03977966", "n02114100", "n02134084"]),
    ],
)
def test_real_names(real, terms, ids):
    found, _ = wordnet_hierarchy(terms, real)
    assert {leaf.name: leaf.id for leaf in found.leaves()} == dict(zip(terms, ids, strict=True))
