"""What language models reply: one right tree in several forms, scripts of replies, and what is made of a reply."""

import json
from collections import Counter

from hlnet.tree.llm.answer import parse_answer
from hlnet.tree.llm.check import check_answer
from hlnet.tree.llm.nest import nest_with_llm

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


def assert_whole(hierarchy, classes):
    """Every class once, under its own name and position: counted naively."""
    tree = hierarchy.to_tree()
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
