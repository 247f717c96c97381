"""Groups that were found in data are named by WordNet's lowest common word, where it has one that says something."""

from helpers import tree_material, wordnet_files

import hlnet.tree.vocabulary
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.construct.wordnet import name_groups
from hlnet.tree.hierarchy import Hierarchy

real, at, build = wordnet_files.real, tree_material.at, tree_material.build


def named(nested, wordnet, ids=None):
    tree = ClassTree.from_nested(nested).with_ids(ids or {})
    hierarchy = Hierarchy.of(tree)
    notes = name_groups(hierarchy, tree, wordnet)
    return {
        node.name: [leaf.name for leaf in node.leaves()] for node in list(hierarchy.walk())[1:] if node.children
    }, notes


def test_lowest_common_word(real):
    groups, notes = named(
        {
            "beagle+pug": {"beagle+basset": ["beagle", "basset"], "pug": {}},
            "sparrow+raven": ["sparrow", "raven"],
            "lorry+van": ["lorry", "minivan"],
        },
        real,
    )
    assert groups == {
        "dog": ["beagle", "basset", "pug"],
        "hound": ["beagle", "basset"],
        "oscine": ["sparrow", "raven"],
        "truck": ["lorry", "minivan"],
    }
    assert "'beagle+pug' is named 'dog'" in notes and len(notes) == 4


def test_names_that_say_nothing_or_are_taken_stay(real):
    nested = {
        "beagle+hammer": ["beagle", "hammer"],
        "pug+boxer": ["pug", "Rottweiler"],
        "dog": ["basset"],
        "x+y": ["qwxz", "raven"],
    }
    assert named(nested, real)[0] == {name: list(classes) for name, classes in nested.items()}
    assert named({"own": ["beagle", "basset"], "b": ["pug"]}, real)[1] == []  # it is not called after its members


def test_ids_go_before_names(real):
    """Two cranes of different kinds: by their ids, one is a bird, the other a machine."""
    nested = {"crane+heron": ["crane", "heron"], "saw": {}}
    bird = named(nested, real, {"crane+heron/crane": "n02012849"})[0]
    machine = named(nested, real, {"crane+heron/crane": "n03126707"})[0]
    assert bird == {"wading bird": ["crane", "heron"]} and machine == {"crane+heron": ["crane", "heron"]}


def test_build_tree_names_the_clusters(build, real, monkeypatch):
    line = "{photos} --method cluster --backbone test_resnet --trunk-weights {trunk} --workers 0 --nodes 2,3"
    monkeypatch.setattr(hlnet.tree.vocabulary, "default_wordnet", lambda: None)
    plain, none = build(line)
    monkeypatch.setattr(hlnet.tree.vocabulary, "default_wordnet", lambda: real)
    tree, notes = build(line)
    assert none == [] and tree.counts == plain.counts and tree.classes == plain.classes
    hierarchy = Hierarchy.of(plain)
    assert notes == name_groups(hierarchy, plain, real) and tree == hierarchy.to_tree(3)
