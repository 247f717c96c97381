"""Words that a tree does not have: what they are taken for is what WordNet says, and it is told."""

import logging

import pytest
from helpers import wordnet_files
from helpers.command_line import as_json, invoke

import hlnet.tree.synonyms
from hlnet.errors import SelectionError
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.construct.wordnet import with_names
from hlnet.tree.io import write_tree
from hlnet.tree.selection import known_part, select_classes

real, tiny = wordnet_files.real, wordnet_files.tiny

#: Folders of ImageNet: two dogs, a cat, a truck.
FOLDERS = ClassTree.from_nested(["n02085620", "n02106662", "n02123045", "n03930630"])
NAMED = with_names(FOLDERS)


def meant(tree, word, caplog):
    caplog.clear()
    with caplog.at_level(logging.INFO, "hlnet"):
        found = select_classes(tree, word)
    return [tree.leaves[i].id or tree.classes[i] for i in found], caplog.text


@pytest.fixture(params=["ids", "names"])
def tree(request):
    return FOLDERS if request.param == "ids" else NAMED


def test_without_a_dictionary_imagenets_tree_serves(tree, monkeypatch, caplog):
    monkeypatch.setattr(hlnet.tree.synonyms, "default_wordnet", lambda: None)
    found, told = meant(tree, "dogs", caplog)
    assert found == ["n02085620", "n02106662"] and "'dogs' is taken as" in told and "ImageNet" in told
    with pytest.raises(SelectionError, match="no class or node 'canine'"):
        select_classes(tree, "canine")


def test_words_of_a_dictionary(tiny, monkeypatch, caplog):
    wordnet, ids = tiny
    monkeypatch.setattr(hlnet.tree.synonyms, "default_wordnet", lambda: wordnet)
    nested = {"birds": ["heron", "pelican"], "others": ["beagle", "lorry"]}
    names = {f"{group}/{name}": ids[name] for group, found in nested.items() for name in found}
    tree = ClassTree.from_nested(nested).with_ids(names)
    for word, classes in (("canine", ["beagle"]), ("domestic dogs", ["beagle"]), ("wading bird", ["heron"])):
        found, told = meant(tree, word, caplog)
        assert found == [ids[name] for name in classes] and "by WordNet" in told
    with pytest.raises(SelectionError, match="puppy"):  # a kind of dog, but no dog here is one
        select_classes(tree, "puppy")


def test_real_dictionary_on_folders_of_ids(tree, real, monkeypatch, caplog):
    monkeypatch.setattr(hlnet.tree.synonyms, "default_wordnet", lambda: real)
    assert meant(tree, "canine", caplog)[0] == meant(tree, "dogs", caplog)[0] == ["n02085620", "n02106662"]
    assert meant(tree, "motor vehicle", caplog)[0] == ["n03930630"]


def test_other_forms_of_names(caplog):
    tree = ClassTree.from_nested({"house cats": ["tabby", "siamese"], "dog": ["beagle"]})
    for word, expected in (
        ("TABBY", ["tabby"]),
        ("Dogs", ["beagle"]),
        ("house cat,beagle", ["tabby", "siamese", "beagle"]),
    ):
        found, told = meant(tree, word, caplog)
        assert found == expected and "another form of its name" in told
    assert known_part(tree, "Dogs,tabby") == "tabby"  # what is merely left out is not looked for
    for word in ("animal/", "-", "dog/tabby", "*saw"):
        with pytest.raises(SelectionError):
            select_classes(tree, word)


def test_wanted_classes_that_a_network_lacks(tmp_path, real, monkeypatch):
    monkeypatch.setattr(hlnet.tree.synonyms, "default_wordnet", lambda: real)
    write_tree(NAMED, tmp_path / "a.tree.json")
    (tmp_path / "wanted.txt").write_text("canine\n# no dragons\nunicorn\n")
    told = as_json(f"tree match {tmp_path}/a.tree.json @{tmp_path}/wanted.txt Tabbies")
    names = {leaf.id: leaf.name for leaf in NAMED.leaves}
    assert [(one["word"], one["classes"], one["how"]) for one in told["wanted"]] == [
        ("canine", [names["n02085620"], names["n02106662"]], "WordNet"),
        ("unicorn", [], ""),
        ("Tabbies", [names["n02123045"]], "another form of its name"),
    ]
    assert told["lacking"] == ["unicorn"] and told["besides"] == [names["n03930630"]]
    text, _ = invoke(f"tree match {tmp_path}/a.tree.json unicorn")
    assert "lacks 1 of 1: unicorn" in text
