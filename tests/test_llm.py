"""Class trees nested by a language model: replies by hand, mangled replies, and a real server on loopback."""

import itertools
import json
import logging
import re
import sys
import time
import traceback
from collections import Counter
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_server import Reply, failure, serving

from hlnet.errors import DataError, RunError, TreeError, UsageError
from hlnet.llm.answer import parse_answer, parse_moves
from hlnet.llm.check import apply_repair, check_answer, place_rest, repair_prompt
from hlnet.llm.forms import CHILDREN_KEYS
from hlnet.llm.names import class_finder, group_name
from hlnet.llm.names import words as words_of
from hlnet.llm.nesting import nest_with_llm, tree_prompt
from hlnet.llm.server import ask_server
from hlnet.tree import ClassTree

CLASSES = ["tabby", "siamese", "beagle", "Egyptian cat", "chain saw", "no", "7", "potter's wheel"]
NESTED = {
    "animal": {"cat": ["tabby", "siamese", "Egyptian cat"], "dog": ["beagle"]},
    "tool": {"garden": ["chain saw", "7"], "other": ["no", "potter's wheel"]},
}
PLACES = {
    "tabby": ("animal/cat",),
    "siamese": ("animal/cat",),
    "Egyptian cat": ("animal/cat",),
    "beagle": ("animal/dog",),
    "chain saw": ("tool/garden",),
    "7": ("tool/garden",),
    "no": ("tool/other",),
    "potter's wheel": ("tool/other",),
}
GOOD = json.dumps(NESTED)


def check_text(text, classes=CLASSES):
    answer = parse_answer(text, classes)
    return check_answer(answer.nested, classes, answer.truncated)


def from_text(text, classes=CLASSES, **options):
    """As an answer from a file is read."""
    return nest_with_llm(classes, ask=lambda messages: text, rounds=0, **options)


def assert_whole(outline, classes):
    """Every class once, under its own name and position: counted naively."""
    tree = outline.to_tree()
    assert Counter(tree.classes) == Counter(classes)
    assert {leaf.name: leaf.index for leaf in tree.leaves} == {name: i for i, name in enumerate(classes)}
    return tree


def right(check):
    """Whether every class stood in the answer once, and nothing else did."""
    return not (check.missing or check.doubled or check.invented)


def as_objects(nested, name="name", children="children"):
    """The list of objects, with names and children, that says the same as nested mappings and lists."""
    if isinstance(nested, dict):
        return [{name: group, children: as_objects(below, name, children)} for group, below in nested.items()]
    return [
        found
        for item in nested
        for found in (as_objects(item, name, children) if isinstance(item, dict) else [{name: item}])
    ]


def as_moves(nested, path=()):
    """The mapping from classes to paths of groups that says the same."""
    if isinstance(nested, dict):
        pairs = [as_moves(below, (*path, group)) for group, below in nested.items()]
    else:
        pairs = [as_moves(item, path) if isinstance(item, dict) else {item: "/".join(path)} for item in nested]
    return {name: place for some in pairs for name, place in some.items()}


class Script:
    """A model that gives its replies in turn, an error where one is to be raised, and keeps what it was asked."""

    def __init__(self, *replies):
        self.replies, self.asked = list(replies), []

    def __call__(self, messages):
        self.asked.append(messages)
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply


# ---------------------------------------------------------------------- the prompt


def test_prompt_lists_the_classes_and_the_wanted_groups():
    prompt = tree_prompt(CLASSES, [2, 4])
    lines = prompt.splitlines()
    assert lines[lines.index("The classes:") + 1 :] == CLASSES
    assert "2 groups at level 1, 4 groups at level 2" in prompt and "JSON" in prompt and "exactly" in prompt
    form = next(json.loads(line) for line in lines if line.startswith("{"))
    assert list(form) == ["level 1 group"] and isinstance(form["level 1 group"]["level 2 group"], list)
    assert "at least one level" in tree_prompt(CLASSES)


@pytest.mark.parametrize("nodes", [[], [0], [3, 2], [9], [-1, 4]])
def test_prompt_refuses_numbers_of_groups(nodes):
    with pytest.raises(UsageError, match="nodes"):
        tree_prompt(CLASSES, nodes)


@pytest.mark.parametrize("classes", [[], ["a", "a"], ["a/b"], [" a"], ["a\nb"], "abc"])
def test_class_names_that_no_tree_takes_are_refused_before_asking(classes):
    model = Script()
    with pytest.raises(TreeError):
        nest_with_llm(classes, model)
    assert not model.asked


# ---------------------------------------------------------------------- reading

FORMS = {
    "plain": GOOD,
    "indented": json.dumps(NESTED, indent=2),
    "chatter": f"Sure! Here is the tree:\n\n{GOOD}\n\nNote: [1] I put 'no' under {{other}}. Let me know!",
    "stray bracket": f"I [think: this fits\n{GOOD}",
    "many brackets": f"Of the lists [{'[1], ' * 12}] I made this: {GOOD}",
    "fenced": f"Here you go:\n```json\n{json.dumps(NESTED, indent=2)}\n```\nEnjoy.",
    "draft": f'A list ["tabby"] and {{"cat": ["tabby"]}} first. {GOOD}',
    "thinking": f"<think>maybe {json.dumps({'all': CLASSES})}?</think>{GOOD}",
    "comments": GOOD.replace("],", "], // these\n"),
    "trailing commas": GOOD.replace("]", ",]").replace("}", ",}"),
    "no commas": GOOD.replace(",", " "),
    "byte order mark": "\ufeff" + GOOD,
    "python": repr(NESTED),
    "curly quotes": re.sub('"([^"]*)"', "“\\1”", GOOD),
    "no quotes": GOOD.replace('"', ""),
    "escapes": GOOD.replace("Egyptian cat", "Egyptian\\u0020cat").replace("chain saw", "chain\\_saw"),
    "yaml": yaml.safe_dump(NESTED, sort_keys=False),
    "yaml flow": yaml.safe_dump(NESTED, sort_keys=False, default_flow_style=None),
    "yaml fenced": f"Certainly:\n\n```yaml\n# by look\n{yaml.safe_dump(NESTED, sort_keys=False)}```\nA note: enjoy",
    "bullets": "The tree:\n\n- **animal**\n  - cat:\n    - tabby\n    - siamese\n    - `Egyptian cat`\n  - dog\n"
    "    * beagle\n\n- **tool**:\n  - garden\n    1. chain saw\n    2. 7\n  - other\n    - 'no'\n"
    '    - "potter\'s wheel"',
    "objects at the leaves": json.dumps(
        {a: {b: dict.fromkeys(names) for b, names in below.items()} for a, below in NESTED.items()}
    ),
    "numbered leaves": json.dumps(
        {a: {b: {name: i for i, name in enumerate(names)} for b, names in below.items()} for a, below in NESTED.items()}
    ),
    "list of objects": json.dumps([{a: [{b: names} for b, names in below.items()]} for a, below in NESTED.items()]),
    "objects": json.dumps(as_objects(NESTED)),
    "objects from a root": json.dumps({"name": "all things", "children": as_objects(NESTED)}),
    "objects in a tree": json.dumps({"tree": {"label": "root", "type": "x", "Sub-Groups": as_objects(NESTED)}}),
    "objects with subclasses": json.dumps(as_objects(NESTED, "title", "subclasses")),
    "objects with members": json.dumps({"groups": as_objects(NESTED, "group", "members")}),
    "objects with classes": json.dumps(
        [
            {
                "name": a,
                "groups": [{"id": i, "name": b, "classes": names} for i, (b, names) in enumerate(below.items())],
            }
            for a, below in NESTED.items()
        ]
    ),
    "objects with items": json.dumps({a: as_objects(below, "category", "items") for a, below in NESTED.items()}),
    "objects with empty children": json.dumps(as_objects(NESTED)).replace("}]", ', "children": []}]'),
    "objects without quotes": json.dumps(as_objects(NESTED)).replace('"', ""),
    "objects in yaml": yaml.safe_dump(as_objects(NESTED), sort_keys=False),
    "objects in yaml from a root": yaml.safe_dump({"name": "root", "children": as_objects(NESTED)}, sort_keys=False),
    "a title": json.dumps({"title": "My tree", **NESTED}),
    "class to path": json.dumps(as_moves(NESTED)),
    "class to path and itself": json.dumps({name: f"{path} > {name}" for name, path in as_moves(NESTED).items()}),
    "class to path, wrapped": json.dumps({"classes": as_moves(NESTED)}),
    "class to path under a heading": json.dumps({"my answer": as_moves(NESTED)}),
    "class to path in yaml": yaml.safe_dump(as_moves(NESTED), sort_keys=False),
    "class to path in lines": "The tree:\n" + "".join(f"- {a}: {path}\n" for a, path in as_moves(NESTED).items()),
    "rows": json.dumps([{"group": path, "class": name} for name, path in as_moves(NESTED).items()]),
    "group twice": '{"animal": {"cat": ["tabby", "siamese", "Egyptian cat"]}, "animal": {"dog": "beagle"}, '
    + json.dumps({"tool": NESTED["tool"]})[1:],
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS.keys())
def test_reads_many_forms(text):
    check = check_text(text)
    assert dict(check.places) == PLACES
    assert not check.truncated
    result = from_text(text)
    assert assert_whole(result.outline, CLASSES).counts == (2, 4, 8)


def test_good_answer_is_the_tree_itself():
    result = from_text(GOOD, nodes=[2, 4])
    numbered = {a: {b: {n: CLASSES.index(n) for n in s} for b, s in below.items()} for a, below in NESTED.items()}
    assert result.outline.to_tree() == ClassTree.from_nested(numbered)
    assert right(result.check) and result.notes == () and result.check.counts == (2, 4, 8)
    assert result.transcript[1] == {"role": "assistant", "content": GOOD}
    assert result.transcript[0] == {"role": "user", "content": tree_prompt(CLASSES, [2, 4])}


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
    assert check_answer(answer.nested, ["tabby", "beagle"]).outline.to_tree().to_nested() == nested


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


@pytest.mark.parametrize("value", [0, 281, True, None, "none", "N/A", ""])
def test_no_group_is_made_of_a_number_or_nothing(value):
    with pytest.raises(TreeError, match="expected a JSON object of groups"):
        parse_answer(json.dumps(dict.fromkeys(CLASSES, value)), CLASSES)


UNUSABLE = {
    "empty": ("", "empty"),
    "blank": (" \n\t", "empty"),
    "refusal": ("I'm sorry, but I cannot help with that request. " * 9, "I'm sorry, but I cannot help"),
    "error object": ('{"error": {"message": "quota"}}', "quota"),
    "flat list": (json.dumps(CLASSES), "groups"),
    "flat lines": ("\n".join(CLASSES), "groups"),
    "other names": ('{"bird": ["crane", "wren"]}', "crane"),
    "number": ("42", "42"),
    "only thought": (f"<think>{GOOD}</think>", "empty"),
    "brackets": ("[[[[{{{{]]", "reply"),
    "too deep": ('{"a":' * 5000 + '["tabby"]' + "}" * 5000, "64"),
    "too deep lists": ("[" * 100_000, "64"),
    "too deep, cut": ('{"a":' * 100 + '["tabby"', "64"),
}


@pytest.mark.parametrize("text, words", UNUSABLE.values(), ids=UNUSABLE.keys())
def test_unusable_reply(text, words):
    with pytest.raises(TreeError, match=re.escape(words)) as caught:
        from_text(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


@pytest.mark.parametrize("indent", [None, 1])
def test_cut_at_every_character(indent):
    """Exactly the classes whose names had ended are used; the rest is placed."""
    text = json.dumps(NESTED, indent=indent)
    for length in range(len(text) + 1):
        said = {name for name in CLASSES if json.dumps(name) in text[:length]}
        for reply in (text[:length], f"Sure:\n```json\n{text[:length]}"):
            if not said:
                with pytest.raises(TreeError):
                    from_text(reply)
                continue
            result = from_text(reply)
            assert set(result.check.places) == said and not result.check.invented
            assert all(result.check.places[name] == PLACES[name] for name in said)
            assert result.check.truncated == (length < len(text))
            assert_whole(result.outline, CLASSES)


@pytest.mark.parametrize("nested", [as_objects(NESTED), {"name": "all", "children": as_objects(NESTED)}])
def test_cut_objects_at_every_character(nested):
    text = json.dumps(nested)
    for length in range(text.index("tabby") + 6, len(text)):
        said = {name for name in CLASSES if json.dumps(name) in text[:length]}
        result = from_text(text[:length])
        assert set(result.check.places) == said and result.check.truncated
        assert all(result.check.places[name] == PLACES[name] for name in said)
        assert_whole(result.outline, CLASSES)


def test_cut_moves_at_every_character():
    text = json.dumps(as_moves(NESTED))
    for length in range(text.index("cat") + 4, len(text)):
        result = from_text(text[:length])
        assert result.check.places.items() <= PLACES.items() and result.check.places
        assert_whole(result.outline, CLASSES)


def test_cut_yaml_at_every_character():
    text = yaml.safe_dump(NESTED, sort_keys=False)
    for length in range(text.index("tabby") + 5, len(text)):
        assert_whole(from_text(text[:length]).outline, CLASSES)


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


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "written, meant",
    [
        ("tench, Tinca tinca", "tench, Tinca tinca"),
        ("tench", "tench, Tinca tinca"),
        ("Tinca Tinca", "tench, Tinca tinca"),
        ("tench (Tinca tinca)", "tench, Tinca tinca"),
        ("Sea-Horse", "sea_horse"),
        ("seahorses", "sea_horse"),
        ("ponies", "pony"),
        ("glass", "glasses"),
        ("tabby, tabby cat", "tabby"),
        (" tabby ", "tabby"),
        ("TABBY", "tabby"),
        ("Caf\u00e9", "cafe\u0301"),
        ("+", "+"),
        ("crane", None),  # two cranes
        ("boat", None),  # BOAT and Boat, neither of them exactly
        ("Boat", "Boat"),
        ("pan", None),
        ("*", None),
        ("", None),
        ("cat", None),
    ],
)
def test_spellings(written, meant):
    known = ["tench, Tinca tinca", "sea_horse", "pony", "glasses", "tabby", "cafe\u0301", "+", "-", "crane, bird"]
    assert class_finder([*known, "crane, machine", "Boat", "BOAT", "pane"])(written) == meant


@given(st.lists(st.text(), max_size=8), st.text())
def test_found_classes_are_classes(classes, written):
    find = class_finder(classes)
    assert find(written) in {None, *classes}
    assert all(find(name) == name for name in classes if name == name.strip())


@given(st.text())
def test_mended_group_names_fit_a_tree(written):
    name = group_name(written)
    if name:
        assert ClassTree.from_nested({name: ["x"]}).levels[0][0].name == name
    assert group_name(name) == name
    if "/" not in written and written == " ".join(written.split()) and written.isprintable():
        assert name == written


# ---------------------------------------------------------------------- checking


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
    assert check.outline.to_tree().to_nested() == {"cats and kitties": {"tabby": 0, "siamese": 1}, "dog": {"beagle": 2}}
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
    assert_whole(check.outline, classes)


def test_classes_beside_groups_stay_there():
    check = check_answer({"tabby": None, "dog": ["beagle"]}, ["tabby", "beagle"])
    assert check.places == {"tabby": ("",), "beagle": ("dog",)}
    assert check.outline.to_tree().to_nested() == {"tabby": 0, "dog": {"beagle": 1}}


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
        assert_whole(done.outline, check.classes)
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
    assert_whole(place_rest(check).outline, ["x", "y", "z"])


@pytest.mark.parametrize(
    "similarity, error", [(torch.eye(4), UsageError), ([1.0], UsageError), (torch.full((5, 5), torch.nan), DataError)]
)
def test_wrong_similarity_is_refused_before_asking(similarity, error):
    model = Script()
    with pytest.raises(error, match="similarity"):
        nest_with_llm(["a", "b", "c", "d", "e"], model, similarity=similarity)
    assert not model.asked


# ---------------------------------------------------------------------- the loop


def test_asks_again_only_for_what_is_wrong():
    model = Script('{"cat": ["tabby", "siamese"], "dog": ["siamese"]}', '{"beagle": "dog"}', '{"siamese": "cat"}')
    result = nest_with_llm(["tabby", "siamese", "beagle"], model)
    assert result.outline.to_tree().to_nested() == {"cat": {"tabby": 0, "siamese": 1}, "dog": {"beagle": 2}}
    first, second, third = model.asked
    assert [len(messages) for messages in model.asked] == [1, 1, 1]
    assert first[0]["content"] == tree_prompt(["tabby", "siamese", "beagle"])
    assert "- beagle\n" in second[0]["content"] and "- siamese: in cat or in dog\n" in second[0]["content"]
    assert "- beagle\n" not in third[0]["content"] and "- siamese: in cat or in dog\n" in third[0]["content"]
    assert [message["role"] for message in result.transcript] == ["user", "assistant"] * 3
    assert result.check.missing == ("beagle",) and len(result.notes) == 2


def test_stops_asking_after_the_rounds():
    model = Script('{"cat": ["tabby"]}', "{}", "I cannot say.", "never read")
    result = nest_with_llm(["tabby", "saw"], model, rounds=2)
    assert len(model.asked) == 3 and model.replies == ["never read"]
    assert [note.partition(":")[0] for note in result.notes] == ["asking again did not help"] * 2 + [
        "class 'saw' was missing; it joined 'tabby' in 'cat', by their names"
    ]
    assert_whole(result.outline, ["tabby", "saw"])


def test_asks_again_after_a_refusal():
    model = Script("I'm sorry, I can't.", GOOD)
    result = nest_with_llm(CLASSES, model, rounds=1)
    assert right(result.check) and len(result.transcript) == 4
    assert [message["role"] for message in model.asked[1]] == ["user", "assistant", "user"]
    assert "I'm sorry" in model.asked[1][2]["content"]
    with pytest.raises(TreeError, match="Never"):
        nest_with_llm(CLASSES, Script("I'm sorry.", "No.", "Never."))


def test_a_server_that_fails_later_loses_nothing():
    result = nest_with_llm(["tabby", "saw"], Script('{"cat": ["tabby"]}', RunError("gone"), RunError("gone")))
    assert sum("gone" in note for note in result.notes) == 2
    assert_whole(result.outline, ["tabby", "saw"])
    with pytest.raises(RunError, match="gone"):
        nest_with_llm(["tabby", "saw"], Script(RunError("gone")))


@pytest.mark.parametrize("nothing", [None, b"{}", 3])
def test_a_model_that_returns_no_text(nothing):
    with pytest.raises(RunError, match=r"ask returned .* instead of text"):
        nest_with_llm(["tabby", "saw"], Script(nothing))
    result = nest_with_llm(["tabby", "saw"], Script('{"cat": ["tabby"]}', nothing, '{"saw": "tool"}'))
    assert result.outline.to_tree().to_nested() == {"cat": {"tabby": 0}, "tool": {"saw": 1}}
    assert "ask returned" in result.notes[0] and all(message["content"] for message in result.transcript)


def test_other_numbers_of_groups_are_noted():
    assert from_text(GOOD, nodes=[2, 5]).notes == (
        "the levels above the classes have 2, 4 groups; asked for were 2, 5",
    )
    with pytest.raises(UsageError, match="rounds"):
        nest_with_llm(CLASSES, Script(), rounds=-1)


def test_hundreds_of_classes_cut_in_half_take_seconds():
    names = [f"{a} {b}" for a, b in itertools.product(["red", "green", "blue"], range(200))]
    text = json.dumps({f"g{i}": {f"s{j}": names[i * 100 + j * 10 :][:10] for j in range(10)} for i in range(6)})
    start = time.process_time()
    result = from_text(text[: len(text) // 2], names)
    assert time.process_time() - start < 30
    assert len(result.check.missing) > 250
    assert_whole(result.outline, names)


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).map(group_name).filter(bool)
NAMES = NAMES.filter(lambda name: "".join(words_of(name)) not in CHILDREN_KEYS)  # a group "items" alone is no level


@st.composite
def right_answers(draw):
    """Classes, and an answer that has each of them once, in some form."""
    classes = draw(st.lists(NAMES, min_size=1, max_size=8, unique=True))
    nested = {}
    for name in draw(st.permutations(classes)):
        place, path = (
            nested,
            draw(st.lists(st.sampled_from(["cat", "ä b", "it's", classes[0]]), min_size=1, max_size=3)),
        )
        for part in path:
            place = place.setdefault(part + "/", {})
        place.setdefault("", []).append(name)

    def plain(place):
        """Lists where there are only classes; else a list of both."""
        here, groups = place.get("", []), {key[:-1]: plain(below) for key, below in place.items() if key}
        return [*here, groups] if here and groups else here or groups

    return classes, plain(nested)


@settings(max_examples=150, deadline=None)
@given(
    right_answers(),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.sampled_from([("name", "children"), ("group", "members"), ("class", "subclasses")]),
)
def test_right_answers_are_taken_as_they_are(answer, indent, ascii_only, words):
    classes, nested = answer
    text = json.dumps(nested, indent=indent, ensure_ascii=ascii_only)
    result = from_text(text, classes)
    assert right(result.check) and not result.check.renamed and not result.check.truncated and not result.notes
    tree = assert_whole(result.outline, classes)
    below = as_objects(nested, *words)
    assert from_text(json.dumps(below, indent=indent), classes).outline.to_tree() == tree
    whole = {words[0]: "all of them", words[1]: below}
    assert from_text(json.dumps(whole, indent=indent), classes).outline.to_tree().classes == tree.classes


@settings(max_examples=300, deadline=None)
@given(right_answers(), st.data())
def test_any_mangling_gives_every_class_once_or_a_tree_error(answer, data):
    classes, nested = answer
    write = data.draw(st.sampled_from([json.dumps, partial(json.dumps, indent=2), yaml.safe_dump, repr, str]))
    form = data.draw(
        st.sampled_from(
            [lambda nested: nested, as_objects, lambda nested: as_objects(nested, "group", "items"), as_moves]
        )
    )
    text = write(form(nested))
    for _ in range(data.draw(st.integers(1, 4))):
        i, j = sorted(data.draw(st.integers(0, len(text))) for _ in range(2))
        junk = data.draw(
            st.sampled_from(["", text[i:j], "{", "}", "[", "]", '"', "'", ":", ",", "\\", "\n", "```", "x: "])
        )
        text = text[:i] + junk + text[j:]
    similarity = data.draw(st.sampled_from([None, np.eye(len(classes))]))
    try:
        result = from_text(text, classes, similarity=similarity)
    except TreeError:
        return
    assert_whole(result.outline, classes)
    assert right(result.check) or result.notes


@settings(max_examples=300, deadline=None)
@given(st.text("abc{}[]:,\"'`\\\n -#/<>", max_size=60), st.text("abc{}[]:,\"'\n -/", max_size=40))
def test_any_text_is_a_tree_or_a_tree_error(text, repair):
    try:
        result = nest_with_llm(["a", "b", "c"], Script(text, repair), rounds=1)
    except TreeError:
        return
    assert_whole(result.outline, ["a", "b", "c"])


@given(st.text("abc{}[]:,\"'`\\\n -", max_size=60))
def test_moves_are_of_classes(text):
    with suppress(TreeError):
        assert parse_moves(text, ["a", "b"]).keys() <= {"a", "b"}


# ---------------------------------------------------------------------- the server

SECRET = "sk-proj-0123456789abcdefghij"
MESSAGES = [{"role": "user", "content": "Nest these."}]


@pytest.fixture
def key(monkeypatch):
    pytest.importorskip("openai")
    for name in ("http_proxy", "https_proxy", "all_proxy", "openai_base_url", "openai_org_id", "openai_project_id"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    return SECRET


def fails(*replies, words, tries=None, timeout=10.0, retries=0):
    """That asking fails with these words, on one line, without the key, after so many tries."""
    with serving(*replies) as (url, requests):
        with pytest.raises(RunError, match=words) as caught:
            ask_server(MESSAGES, "tiny", url, timeout=timeout, retries=retries)
        assert len(requests) == (len(replies) if tries is None else tries)
    message = str(caught.value)
    assert url in message and "\n" not in message and len(message) < 450
    assert SECRET not in "".join(traceback.format_exception(caught.value)) and caught.value.__context__ is None
    return message


def test_asks_in_the_protocol(key, caplog):
    caplog.set_level(logging.DEBUG)
    with serving(Reply("Hello.")) as (url, requests):
        assert ask_server(MESSAGES, "tiny", url) == "Hello."
    [(path, headers, body)] = requests
    assert path == "/v1/chat/completions" and body == {"model": "tiny", "messages": MESSAGES}
    assert headers["authorization"] == f"Bearer {key}"
    assert key not in caplog.text


def test_address_from_the_environment(key, monkeypatch):
    with serving(Reply("Hello.")) as (url, requests):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        assert ask_server(MESSAGES, "tiny") == "Hello." and len(requests) == 1


def test_server_without_keys(key, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with serving(Reply("Hello.")) as (url, requests):
        assert ask_server(MESSAGES, "tiny", url) == "Hello."
    assert SECRET not in str(requests)
    with pytest.raises(UsageError, match="OPENAI_API_KEY"):
        ask_server(MESSAGES, "tiny")


def test_nests_over_a_server(key):
    replies = [
        Reply('```json\n{"cat": ["tabby", "siamese"], "dog": ["bea', finish="length"),
        Reply('{"beagle": "dog"}'),
    ]
    with serving(*replies) as (url, requests):
        result = nest_with_llm(["tabby", "siamese", "beagle"], partial(ask_server, model="tiny", base_url=url))
    assert result.outline.to_tree().to_nested() == {"cat": {"tabby": 0, "siamese": 1}, "dog": {"beagle": 2}}
    assert result.check.truncated and result.check.missing == ("beagle",)
    assert [body["messages"] for *_, body in requests] == [[result.transcript[0]], [result.transcript[2]]]


def test_a_refusing_model(key):
    with serving(*[Reply("I'm sorry, I can't help with that.")] * 2) as (url, requests):
        with pytest.raises(TreeError, match="I'm sorry, I can't help"):
            nest_with_llm(CLASSES, partial(ask_server, model="tiny", base_url=url), rounds=1)
        assert len(requests) == 2
    refusal = {"choices": [{"message": {"content": None, "refusal": "I won't."}, "finish_reason": "stop"}]}
    with serving(Reply(body=json.dumps(refusal))) as (url, _):
        assert ask_server(MESSAGES, "tiny", url) == "I won't."


def test_key_in_the_reply_is_scrubbed(key):
    with serving(Reply(f"Your key is {key}.")) as (url, _):
        assert ask_server(MESSAGES, "tiny", url) == "Your key is [key]."


def test_slow_server(key):
    start = time.monotonic()
    message = fails(Reply("late", wait=1.5), words="said nothing for 0.5 s; give it more time", timeout=0.5, retries=2)
    assert time.monotonic() - start < 5 and "give it more time" in message


@pytest.mark.parametrize(
    "reply, words",
    [
        (
            failure(401, f"Incorrect API key provided: {SECRET}."),
            r"refuses the key \(.*\[key\]\.\); set .*OPENAI_API_KEY",
        ),
        (failure(403, "x" * 190 + SECRET), "refuses the key"),
        (failure(404, "The model `tiny` does not exist"), r"no model 'tiny'.*does not exist.*/v1"),
        (failure(400, "prompt is\ntoo long"), r"status 400 \(prompt is too long\)"),
        (failure(429, "quota", code="insufficient_quota"), "quota"),
        (failure(429, "slow down", headers={"Retry-After": "3600"}), "slow down"),
        (Reply(status=422, body='{"detail": [{"msg": "field required"}]}'), "422.*field required"),
        (Reply(status=418, body="I'm a teapot"), "418.*teapot"),
        (Reply(body="{not json"), "nothing that is a chat completion"),
        (Reply(body=""), "nothing that is a chat completion"),
        (Reply(body="[1]"), "nothing that is a chat completion"),
        (Reply(body="null"), "nothing that is a chat completion"),
        (Reply(body='{"choices": []}'), "nothing that is a chat completion"),
        (Reply(body='{"choices": [{"message": "hi"}]}'), "nothing that is a chat completion"),
        (Reply(body='{"error": {"message": "no credits"}}'), r"nothing that is a chat completion \(no credits\)"),
        (Reply(body=f"<html>{SECRET}</html>", headers={"Content-Type": "text/html"}), r"\(<html>\[key\]</html>\)"),
        (Reply([{"type": "image"}]), "no text"),
        (Reply("", finish="length"), "broke off before the first word"),
    ],
)
def test_failures_that_are_not_tried_again(key, reply, words):
    message = fails(reply, words=words, retries=2)
    assert "sk-proj" not in message  # nor a part of it


def test_tries_again_when_the_server_is_busy(key):
    said = []
    busy = failure(429, f"too fast, {SECRET}", headers={"Retry-After": "0"})
    with serving(busy, failure(503, "warming up", headers={"Retry-After": "0.01"}), Reply("Hello.")) as (url, requests):
        assert ask_server(MESSAGES, "tiny", url, on_retry=said.append) == "Hello."
        assert len(requests) == 3
    assert [line.partition("; trying again in ")[2] for line in said] == ["0 s", "0.01 s"]
    assert "too fast, [key]" in said[0] and "warming up" in said[1] and SECRET not in str(said)


def test_gives_up_after_the_tries(key):
    broken = [failure(500, "internal", headers={"Retry-After": "0"})] * 3
    fails(*broken, words=r"status 500 \(internal\); try again later", retries=2)
    fails(failure(500, "internal"), words="500")


def test_pauses_longer_each_time(key, monkeypatch):
    pauses = []
    monkeypatch.setattr("hlnet.llm.server.time.sleep", pauses.append)
    server = failure(500, "internal"), failure(500, "internal", {"Retry-After": "soon"}), failure(500, "internal")
    fails(*server, words="500", retries=2)
    assert pauses == [0.5, 1.0]


def test_connection_refused(key):
    with serving() as (url, _):
        pass
    said = []
    with pytest.raises(RunError, match=r"cannot be reached \(.*refused\)") as caught:
        ask_server(MESSAGES, "tiny", url, retries=1, on_retry=said.append)
    assert url in str(caught.value) and len(said) == 1 and caught.value.__context__ is None


def test_connection_lost_in_the_middle(key):
    fails(Reply("Hello.", cut=50), words="cannot be reached|nothing that is")


def test_password_in_the_address_stays_secret(key):
    with serving() as (url, _):
        pass
    with pytest.raises(RunError) as caught:
        ask_server(MESSAGES, "tiny", url.replace("//", "//me:hunter2@") + "?token=abc", retries=0)
    assert "hunter2" not in str(caught.value) and "abc" not in str(caught.value) and "127.0.0.1" in str(caught.value)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://x/v1", "http://", "http://[::1", "http://h:99999", "http://a\nb"]
)
def test_wrong_address(key, url):
    with pytest.raises(UsageError, match="address"):
        ask_server(MESSAGES, "tiny", url)


@pytest.mark.parametrize("wrong", ["sk-é", "sk-a b", "sk-a\nb"])
def test_wrong_key(key, monkeypatch, wrong):
    monkeypatch.setenv("OPENAI_API_KEY", wrong)
    with pytest.raises(UsageError, match="OPENAI_API_KEY") as caught:
        ask_server(MESSAGES, "tiny", "http://127.0.0.1:9/v1")
    assert wrong not in str(caught.value)


@pytest.mark.parametrize("options", [{"timeout": 0}, {"timeout": float("nan")}, {"retries": -1}])
def test_wrong_options(key, options):
    with pytest.raises(UsageError):
        ask_server(MESSAGES, "tiny", "http://127.0.0.1:9/v1", **options)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UsageError, match="pip install openai"):
        ask_server(MESSAGES, "tiny", "http://127.0.0.1:9/v1")
