"""Any reply of a language model: a right one is taken as it is, any other gives every class once or a ``TreeError``."""

import json
from contextlib import suppress
from functools import partial

import numpy as np
import yaml
from helpers.llm_replies import Script, as_moves, as_objects, assert_whole, from_text, right
from hypothesis import given, settings
from hypothesis import strategies as st

from hlnet.errors import TreeError
from hlnet.tree.llm.answer import parse_moves
from hlnet.tree.llm.forms import CHILDREN_KEYS
from hlnet.tree.llm.names import group_name
from hlnet.tree.llm.names import words as words_of
from hlnet.tree.llm.nest import nest_with_llm
from hlnet.tree.nodes import normal_name

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).map(group_name).map(normal_name).filter(bool)
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
    tree = assert_whole(result.hierarchy, classes)
    below = as_objects(nested, *words)
    assert from_text(json.dumps(below, indent=indent), classes).hierarchy.to_tree() == tree
    whole = {words[0]: "all of them", words[1]: below}
    assert from_text(json.dumps(whole, indent=indent), classes).hierarchy.to_tree().classes == tree.classes


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
    assert_whole(result.hierarchy, classes)
    assert right(result.check) or result.notes


@settings(max_examples=300, deadline=None)
@given(st.text("abc{}[]:,\"'`\\\n -#/<>", max_size=60), st.text("abc{}[]:,\"'\n -/", max_size=40))
def test_any_text_is_a_tree_or_a_tree_error(text, repair):
    try:
        result = nest_with_llm(["a", "b", "c"], Script(text, repair), rounds=1)
    except TreeError:
        return
    assert_whole(result.hierarchy, ["a", "b", "c"])


@given(st.text("abc{}[]:,\"'`\\\n -", max_size=60))
def test_moves_are_of_classes(text):
    with suppress(TreeError):
        assert parse_moves(text, ["a", "b"]).keys() <= {"a", "b"}
