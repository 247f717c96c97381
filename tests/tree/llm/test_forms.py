"""Objects in a language model's answer, with names and what is in them: as nested groups, and not taken for classes."""

import json

import pytest
from helpers.llm_replies import CLASSES, NESTED, PLACES, as_objects, assert_whole, check_text, from_text, right

from hlnet.tree.llm.answer import parse_answer
from hlnet.tree.llm.check import check_answer


@pytest.mark.parametrize(
    "text, nested",
    [
        ('{"tabby": "cat", "beagle": "dog"}', {"cat": {"tabby": 0}, "dog": {"beagle": 1}}),
        ('{"tabby": "cat", "dog": ["beagle"]}', {"cat": {"tabby": 0}, "dog": {"beagle": 1}}),
        ('[{"name": "a", "children": ["tabby", "beagle"]}]', {"a": {"tabby": 0, "beagle": 1}}),
        ('{"name": "a", "children": ["tabby", "beagle"]}', {"a": {"tabby": 0, "beagle": 1}}),
        ('{"name": "a", "children": ["tabby", {"name": "b", "items": ["beagle"]}]}', {"tabby": 0, "b": {"beagle": 1}}),
        ('[{"name": "a", "children": [{"name": "b", "children": ["tabby", "beag', {"a": {"b": {"tabby": 0}}}),
        ('{"children": ["tabby"], "adults": ["beagle"]}', {"children": {"tabby": 0}, "adults": {"beagle": 1}}),
    ],
)
def test_objects_and_moves_by_hand(text, nested):
    answer = parse_answer(text, ["tabby", "beagle"])
    assert check_answer(answer.nested, ["tabby", "beagle"]).hierarchy.to_tree().to_nested() == nested


def test_words_of_objects_may_be_classes_and_groups():
    nested = {
        "people": {"children": ["name", "label"], "adults": ["class"]},
        "name": {"groups": ["id"], "birds": ["x"]},
    }
    classes = ["name", "label", "class", "id", "x"]
    check = check_text(json.dumps(nested), classes)
    assert right(check) and check.places["label"] == ("people/children",) and check.places["x"] == ("name/birds",)
    check = check_text('{"word": {"name": 0, "label": 1, "x": 2}, "other": {"class": 3, "id": 4}}', classes)
    assert right(check) and check.groups == ("word", "other")
    check = check_text('{"name": "stationery", "label": "stationery", "x": "other"}', classes)
    assert check.places == {"name": ("stationery",), "label": ("stationery",), "x": ("other",)}


@pytest.mark.parametrize("nested", [as_objects(NESTED), {"name": "all", "children": as_objects(NESTED)}])
def test_cut_objects_at_every_character(nested):
    text = json.dumps(nested)
    for length in range(text.index("tabby") + 6, len(text)):
        said = {name for name in CLASSES if json.dumps(name) in text[:length]}
        result = from_text(text[:length])
        assert set(result.check.places) == said and result.check.truncated
        assert all(result.check.places[name] == PLACES[name] for name in said)
        assert_whole(result.hierarchy, CLASSES)
