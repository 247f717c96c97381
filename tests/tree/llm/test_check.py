"""Checking a language model's class tree against a count by hand, and mending it."""

import json

import numpy as np
import pytest
import torch
from helpers.llm_replies import CLASSES, assert_whole, right

from hlnet.errors import TreeError
from hlnet.tree.llm.check import apply_repair, check_answer, place_rest, repair_prompt


def test_check_by_hand():
    classes = ["tabby", "siamese", "beagle", "boxer", "saw"]
    nested = {"cats/kitties": ["Tabby", "siamese", "unicorn"], "dog": ["siamese", "Beagles", "boxr"], "empty": []}
    check = check_answer(nested, classes)
    assert check.places == {
        "tabby": ("cats and kitties",),
        "siamese": ("cats and kitties", "dog"),
        "beagle": ("dog",),
    }
    assert check.missing == ("boxer", "saw") and check.doubled == {"siamese": ("cats and kitties", "dog")}
    assert check.invented == {"unicorn": None, "boxr": "boxer"}
    assert check.renamed == {"Tabby": "tabby", "Beagles": "beagle"}
    assert check.open == ("boxer", "saw", "siamese") and not right(check) and not check.truncated
    assert check.groups == ("cats and kitties", "dog") and check.counts == (2, 3)
    assert check.hierarchy.to_tree().to_nested() == {
        "cats and kitties": {"tabby": 0, "siamese": 1},
        "dog": {"beagle": 2},
    }
    assert [note for note in check.notes if "dropped" in note] == [
        "'unicorn' is no class and was dropped",
        "'boxr' is no class and was dropped",
    ]
    assert "group 'cats/kitties' was renamed 'cats and kitties'" in check.notes


@pytest.mark.parametrize(
    "nested",
    [
        {"cat": {"cat": ["cat", "dog"]}, "dog": ["saw"]},
        {"pet": ["cat", {"cat": ["dog", "saw"]}]},
        {"pet": [{"cat": ["dog"]}, "cat", {"cat (2)": ["saw"]}]},
        {"cat": ["dog"], "x": ["saw"], "": ["cat"]},
    ],
)
def test_groups_named_like_classes(nested):
    classes = ["cat", "dog", "saw"]
    check = check_answer(nested, classes)
    assert right(check) and not check.renamed
    assert_whole(check.hierarchy, classes)


def test_classes_beside_groups_stay_there():
    check = check_answer({"tabby": None, "dog": ["beagle"]}, ["tabby", "beagle"])
    assert check.places == {"tabby": ("",), "beagle": ("dog",)}
    assert check.hierarchy.to_tree().to_nested() == {"tabby": 0, "dog": {"beagle": 1}}


def test_wrong_types_are_no_error():
    nested = {
        "a": ["tabby", 7, None, True, {"b": 1.5, "c": [[["beagle"]]], "d": {}, "": ["no"]}],
        "e": b"x",
        3: "siamese",
    }
    check = check_answer(nested, CLASSES)
    assert check.places == {"tabby": ("a",), "7": ("a",), "beagle": ("a/c",), "no": ("a",), "siamese": ("3",)}
    for wrong in (None, 3, "tabby", [], {}, [["tabby"]], {"tabby": None}, {"": ["tabby"]}):
        with pytest.raises(TreeError):
            check_answer(wrong, CLASSES)


def test_cycle_ends():
    loop = {"a": ["tabby"]}
    loop["b"] = loop
    assert check_answer(loop, CLASSES).places == {"tabby": ("a",)}


# ---------------------------------------------------------------------- mending


def four(*extra):
    """tabby is in two groups, boxer and those after it in none."""
    nested = {"animal": {"cat": ["tabby", "siamese"], "dog": ["beagle", "tabby"]}, "tool": {"cat": ["saw"]}}
    return check_answer(nested, ["tabby", "siamese", "beagle", "saw", "boxer", *extra])


@pytest.mark.parametrize(
    "written, group",
    [
        ("animal/dog", "animal/dog"),
        ("Animal / Dog", "animal/dog"),
        ("animal > dog", "animal/dog"),
        ("/animal/dog/", "animal/dog"),
        ("dog", "animal/dog"),
        ("animal/dog/boxer", "animal/dog"),
        ("boxer", "boxer"),
        ("animal", "animal"),
        ("tool/sport", "tool/sport"),
        ("cat", None),  # two groups have this name
        ("none", None),
        ("N/A", None),
        ("", None),
        (None, None),
        ("a/" * 64 + "b", None),
    ],
)
def test_where_a_reply_puts_a_class(written, group):
    reply = json.dumps({"boxer": written, "tabby": "animal/cat"})
    assert apply_repair(four(), reply).places.get("boxer") == (None if group is None else (group,))


def test_repair_by_hand():
    check = apply_repair(
        four("wrench"), 'Of course: {"Tabby": "animal/cat", "wrench": "tool/hand", "saw": "animal/dog"} ok?'
    )
    assert check.places["tabby"] == ("animal/cat",) and check.places["wrench"] == ("tool/hand",)
    assert check.places["saw"] == ("tool/cat",)  # it was not asked for
    assert check.open == ("boxer",)
    assert check.notes == (
        "class 'wrench' was put into a new group, 'tool/hand', as the model said when asked again",
        "class 'tabby' was put into 'animal/cat', as the model said when asked again",
    )


def test_repair_of_a_class_in_two_groups_of_one_name():
    check = check_answer(
        {"a": {"cat": ["tabby"]}, "b": {"cat": ["tabby"], "x": ["saw"]}, "c": {"x": ["y"]}}, ["tabby", "saw", "y"]
    )
    assert apply_repair(check, '{"tabby": "b/cat"}').places["tabby"] == ("b/cat",)
    assert apply_repair(check, '{"tabby": "cat"}').places["tabby"] == ("a/cat", "b/cat")
    assert apply_repair(four(), '{"tabby": "cat"}').places["tabby"] == ("animal/cat",)  # never in the other


@pytest.mark.parametrize(
    "reply",
    [
        '{"boxer": "animal/dog", "tabby": "animal/cat"}',
        '{"animal": {"dog": ["boxer"], "cat": ["tabby"]}}',
        "boxer: animal/dog\ntabby: animal/cat",
        '[{"class": "boxer", "group": "animal/dog"}, {"class": "tabby", "group": "animal/cat"}]',
        '[{"name": "animal/dog", "children": ["boxer"]}, {"name": "animal/cat", "children": [{"name": "tabby"}]}]',
        '```\n{"animal/dog": ["boxer"], "animal/cat": ["tabby"]}\n```',
        '{"boxer": "animal/dog", "tabby": "animal/cat", "sa',
    ],
)
def test_forms_of_a_repair(reply):
    places = apply_repair(four(), reply).places
    assert places["boxer"] == ("animal/dog",) and places["tabby"] == ("animal/cat",)


@pytest.mark.parametrize("reply", ["", "Sorry, I can't.", "{}", '{"wren": "bird"}', "[1, 2]", "[" * 9999])
def test_unusable_repair(reply):
    with pytest.raises(TreeError):
        apply_repair(four(), reply)


def test_repair_prompt_is_complete_in_itself():
    prompt = repair_prompt(four("wrench"))
    lines = prompt.splitlines()
    for line in ("- animal/cat: tabby; siamese", "- tool/cat: saw", "- boxer", "- wrench"):
        assert line in lines
    assert "- tabby: in animal/cat or in animal/dog" in lines and "these 3 classes" in prompt
    only_missing = check_answer({"cat": ["tabby"]}, ["tabby", "saw"])
    assert "several" not in repair_prompt(only_missing)


def test_places_the_rest_by_features():
    check = four("wrench")
    like = torch.eye(6)
    like[0, 2] = 0.9  # tabby: nearer to the beagle than to the siamese
    like[0, 1] = 0.8
    like[4, 1] = 0.7  # boxer: to the siamese
    like[5, 3] = 0.1  # wrench: to the saw
    for similarity in (like, like.numpy(), like.tolist(), like.requires_grad_()):
        done = place_rest(check, similarity)
        assert right(done) and not done.open
        assert done.places["tabby"] == ("animal/dog",) and done.places["boxer"] == ("animal/cat",)
        assert done.places["wrench"] == ("tool/cat",)
        assert_whole(done.hierarchy, check.classes)
    assert done.notes == (
        "class 'tabby' stood in 'animal/cat' and 'animal/dog'; it stays in 'animal/dog', by their features",
        "class 'boxer' was missing; it joined 'siamese' in 'animal/cat', by their features",
        "class 'wrench' was missing; it joined 'saw' in 'tool/cat', by their features",
    )
    like = like.detach().clone()
    like[0, 1] = 0.95
    assert place_rest(check, like).places["tabby"] == ("animal/cat",)


def test_a_doubled_class_weighs_the_average_of_its_siblings():
    check = check_answer({"a": ["x", "p", "q"], "b": ["x", "r"]}, ["x", "p", "q", "r"])
    like = np.zeros((4, 4))
    like[0] = [1, 0.9, 0.1, 0.6]  # a: 0.5 on average, b: 0.6
    assert place_rest(check, like).places["x"] == ("b",)


@pytest.mark.parametrize(
    "missing, joined",
    [
        ("garter snake", "sea snake"),
        ("Sea Lions", "sea lion"),
        ("snowplow", "snowplough"),
        ("black bear", "brown bear"),
    ],
)
def test_places_the_rest_by_name(missing, joined):
    classes = ["sea snake", "sea lion", "snowplough", "brown bear", "black grouse", missing]
    check = check_answer({f"group of {name}": [name] for name in classes[:-1]}, classes)
    assert place_rest(check).places[missing] == (f"group of {joined}",)


def test_twice_in_one_group_is_once():
    check = check_answer({"cat": ["tabby", "tabby"], "dog": ["beagle"]}, ["tabby", "beagle"])
    assert not right(check) and not check.open
    done = place_rest(check)
    assert done.places["tabby"] == ("cat",) and done.notes == ("class 'tabby' stood in 'cat' twice",)


def test_all_doubled():
    check = check_answer({"a": ["x", "y"], "b": ["x", "y"]}, ["x", "y", "z"])
    assert_whole(place_rest(check).hierarchy, ["x", "y", "z"])
