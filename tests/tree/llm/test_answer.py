"""Reading a language model's reply: many forms of one tree, replies of no use, and replies that break off anywhere."""

import itertools
import json
import re
import time

import pytest
import yaml
from helpers.llm_replies import CLASSES, GOOD, NESTED, PLACES, as_moves, as_objects, assert_whole, check_text, from_text

from hlnet.errors import TreeError
from hlnet.tree.llm.answer import parse_answer

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
    assert assert_whole(result.hierarchy, CLASSES).counts == (2, 4, 8)


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
            assert_whole(result.hierarchy, CLASSES)


def test_cut_moves_at_every_character():
    text = json.dumps(as_moves(NESTED))
    for length in range(text.index("cat") + 4, len(text)):
        result = from_text(text[:length])
        assert result.check.places.items() <= PLACES.items() and result.check.places
        assert_whole(result.hierarchy, CLASSES)


def test_cut_yaml_at_every_character():
    text = yaml.safe_dump(NESTED, sort_keys=False)
    for length in range(text.index("tabby") + 5, len(text)):
        assert_whole(from_text(text[:length]).hierarchy, CLASSES)


def test_hundreds_of_classes_cut_in_half_take_seconds():
    names = [f"{a} {b}" for a, b in itertools.product(["red", "green", "blue"], range(200))]
    text = json.dumps({f"g{i}": {f"s{j}": names[i * 100 + j * 10 :][:10] for j in range(10)} for i in range(6)})
    start = time.process_time()
    result = from_text(text[: len(text) // 2], names)
    assert time.process_time() - start < 30
    assert len(result.check.missing) > 250
    assert_whole(result.hierarchy, names)
