"""Class trees nested by a language model: the prompt, and what is asked again until every class has a place."""

import json

import pytest
import torch
from helpers.llm_replies import CLASSES, GOOD, NESTED, Script, assert_whole, from_text, right

from hlnet.errors import DataError, RunError, TreeError, UsageError
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.llm.nest import nest_with_llm, tree_prompt


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


@pytest.mark.parametrize(
    "similarity, error", [(torch.eye(4), UsageError), ([1.0], UsageError), (torch.full((5, 5), torch.nan), DataError)]
)
def test_wrong_similarity_is_refused_before_asking(similarity, error):
    model = Script()
    with pytest.raises(error, match="similarity"):
        nest_with_llm(["a", "b", "c", "d", "e"], model, similarity=similarity)
    assert not model.asked


def test_good_answer_is_the_tree_itself():
    result = from_text(GOOD, nodes=[2, 4])
    numbered = {a: {b: {n: CLASSES.index(n) for n in s} for b, s in below.items()} for a, below in NESTED.items()}
    assert result.hierarchy.to_tree() == ClassTree.from_nested(numbered)
    assert right(result.check) and result.notes == () and result.check.counts == (2, 4, 8)
    assert result.transcript[1] == {"role": "assistant", "content": GOOD}
    assert result.transcript[0] == {"role": "user", "content": tree_prompt(CLASSES, [2, 4])}


# ---------------------------------------------------------------------- the loop


def test_asks_again_only_for_what_is_wrong():
    model = Script('{"cat": ["tabby", "siamese"], "dog": ["siamese"]}', '{"beagle": "dog"}', '{"siamese": "cat"}')
    result = nest_with_llm(["tabby", "siamese", "beagle"], model)
    assert result.hierarchy.to_tree().to_nested() == {"cat": {"tabby": 0, "siamese": 1}, "dog": {"beagle": 2}}
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
    assert_whole(result.hierarchy, ["tabby", "saw"])


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
    assert_whole(result.hierarchy, ["tabby", "saw"])
    with pytest.raises(RunError, match="gone"):
        nest_with_llm(["tabby", "saw"], Script(RunError("gone")))


@pytest.mark.parametrize("nothing", [None, b"{}", 3])
def test_a_model_that_returns_no_text(nothing):
    with pytest.raises(RunError, match=r"ask returned .* instead of text"):
        nest_with_llm(["tabby", "saw"], Script(nothing))
    result = nest_with_llm(["tabby", "saw"], Script('{"cat": ["tabby"]}', nothing, '{"saw": "tool"}'))
    assert result.hierarchy.to_tree().to_nested() == {"cat": {"tabby": 0}, "tool": {"saw": 1}}
    assert "ask returned" in result.notes[0] and all(message["content"] for message in result.transcript)


def test_other_numbers_of_groups_are_noted():
    assert from_text(GOOD, nodes=[2, 5]).notes == (
        "the levels above the classes have 2, 4 groups; asked for were 2, 5",
    )
    with pytest.raises(UsageError, match="rounds"):
        nest_with_llm(CLASSES, Script(), rounds=-1)
