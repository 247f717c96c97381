"""Other names for nodes: the paths change, and nothing else."""

import pytest
import torch
from helpers.command_line import as_json, invoke
from helpers.evaluated_nets import TREE, build

from hlnet.errors import SelectionError, TreeError
from hlnet.store.checkpoint import load_checkpoint, read_header, save_checkpoint
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.io import read_tree, write_tree
from hlnet.tree.rename import renamed
from hlnet.tree.selection import select_classes

NESTED = {"hound+pug": {"small": ["pug", "beagle"]}, "cat": ["tabby"], "saw": {}}


def test_new_names_on_the_same_nodes():
    tree = ClassTree.from_nested(NESTED, levels=3).with_ids({"beagle": "n02088364"})
    found = renamed(tree, {"hound+pug": "dog", "n02088364": "Beagle", "saw": "chain saw", "cat/tabby": "tabby cat"})
    assert found.classes == ("pug", "Beagle", "tabby cat", "chain saw")
    assert [leaf.path for leaf in found.leaves] == ["dog/small/pug", "dog/small/Beagle", "cat/tabby cat", "chain saw"]
    assert [leaf.id for leaf in found.leaves] == [None, "n02088364", "tabby", "saw"]
    assert (found.indices, found.counts) == (tree.indices, tree.counts)
    assert [[node.parent for node in row] for row in found.levels] == [[n.parent for n in row] for row in tree.levels]
    assert select_classes(found, "saw,tabby") == (2, 3)  # by what they were called
    assert renamed(tree, {"pug": "beagle", "beagle": "pug"}).classes == ("beagle", "pug", "tabby", "saw")


@pytest.mark.parametrize(
    "names, error, told",
    [
        ({"dog": "x"}, SelectionError, "no class or node 'dog'"),
        ({"pug": "a/b"}, TreeError, "'a/b' cannot be a node's name"),
        ({"pug": " "}, TreeError, "cannot be"),
        ({"pug": "beagle"}, TreeError, "beagle"),
        ({"hound+pug": "cat"}, TreeError, "cat"),
    ],
)
def test_refused(names, error, told):
    with pytest.raises(error, match=told):
        renamed(ClassTree.from_nested(NESTED, levels=3), names)


def test_command_renames_a_tree_file_and_a_network(tmp_path):
    write_tree(ClassTree.from_nested(NESTED, levels=3), tmp_path / "a.tree.json")
    invoke(f"tree rename {tmp_path}/a.tree.json hound+pug=dog 'pug=pug dog' --out {tmp_path}/a.tree.json")
    assert read_tree(tmp_path / "a.tree.json").classes[0] == "pug dog"
    net, new = tmp_path / "net.safetensors", tmp_path / "new.safetensors"
    save_checkpoint(build(), net)
    told = as_json(f"tree rename {net} cat=feline beagle=Beagle --out {new}")
    header = read_header(new)
    assert list(told["tree"])[:2] == ["feline", "dog"] and header.fingerprint == read_header(net).fingerprint
    assert header.tree == renamed(TREE, {"cat": "feline", "beagle": "Beagle"})
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(load_checkpoint(new)(images), load_checkpoint(net)(images))
