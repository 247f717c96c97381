"""Class trees nested by a language model (paper, Sec. 3.2): ask, check the answer, ask again, place the rest.

Notable here: the model is any function from messages to text. ``hlnet.tree.llm.server`` asks one; an answer that a chat
window gave, read from a file, is another. Whatever it says, either every class ends up in the tree exactly once, or
there is an error; and each thing that was done to the answer is noted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hlnet.errors import RunError, TreeError, UsageError
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.construct.levels import check_nodes
from hlnet.tree.hierarchy import Hierarchy
from hlnet.tree.llm.answer import parse_answer
from hlnet.tree.llm.check import AnswerCheck, apply_repair, check_answer, place_rest, repair_prompt, similarity_of

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class LlmTree:
    """A class tree nested by a language model.

    Attributes:
        hierarchy: the tree, with every class exactly once; ``hierarchy.to_tree()`` is the class tree.
        notes: what was done to the answer until it was that tree, one line each.
        check: the first usable answer as it was, before it was mended.
        transcript: all messages, ``{"role": "user" or "assistant", "content": …}``, in the order they were exchanged.
    """

    hierarchy: Hierarchy
    notes: tuple[str, ...]
    check: AnswerCheck
    transcript: tuple[Message, ...]


def tree_prompt(classes: Sequence[str], nodes: Sequence[int] | None = None) -> str:
    """The question to a language model: to nest these classes in groups.

    Args:
        classes: the class names.
        nodes: how many groups each level above the classes should have, such as ``(17, 161)``; default: as many
            levels and groups as the model finds fitting.

    Raises:
        TreeError: if the class names cannot be a tree's (a name twice, a ``/``).
        UsageError: if the numbers of groups cannot be had.

    Example:
        >>> tree_prompt(["tabby", "beagle", "saw"], nodes=[2]).splitlines()[6:]
        ['{"level 1 group": ["class name", "another class name"]}', '', 'The classes:', 'tabby', 'beagle', 'saw']
    """
    classes = ClassTree.parallel(classes, levels=1).classes
    levels = "Make at least one level of groups; part groups that are large and mixed into subgroups."
    if nodes is not None:
        if not nodes:
            raise UsageError("nodes is empty; give the number of groups of at least one level, or leave it out")
        check_nodes(nodes, len(classes))
        wanted = ", ".join(f"{count} group{'s' * (count > 1)} at level {i}" for i, count in enumerate(nodes, start=1))
        levels = f"Level 1 is the most general. Make about {wanted}; the classes lie below level {len(nodes)}."
    example: Any = ["class name", "another class name"]
    for level in range(len(nodes) if nodes else 2, 0, -1):
        example = {f"level {level} group": example}
    return "\n".join(
        [
            f"Nest the {len(classes)} classes of an image classifier, listed below, in a tree of groups.",
            "Classes that look alike and are alike in meaning belong under a shared superclass.",
            "Name each group with an ordinary word or two that tell what its classes have in common, without '/'.",
            levels,
            "Every class stands in exactly one group, spelled exactly as in the list. Leave none out and add none.",
            "Answer with one JSON object and nothing else. The lowest groups are lists of class names; its form:",
            json.dumps(example),
            "",
            "The classes:",
            *classes,
            "",
        ]
    )


def nest_with_llm(
    classes: Sequence[str],
    ask: Callable[[list[Message]], str],
    nodes: Sequence[int] | None = None,
    rounds: int = 2,
    similarity: Any = None,
) -> LlmTree:
    """A class tree from a language model, with every class in it exactly once.

    Args:
        classes: the class names; the leaves' original indices are their positions.
        ask: the model, a function from the messages so far to its reply: :func:`hlnet.tree.llm.server.ask_server` with
            its model filled in; or, with ``rounds=0``, one that returns the text of a file.
        nodes: the wanted number of groups per level, see :func:`tree_prompt`.
        rounds: how often, at most, to ask again for what is wrong with the answer.
        similarity: ``[K, K]``, by which classes without a clear group are placed in the end, see
            :func:`hlnet.tree.llm.check.place_rest`; default: their names.

    Raises:
        UsageError: if the request is wrong.
        TreeError: if the class names cannot be a tree's, or no reply was usable.
        RunError: if ``ask`` returns no text, or raises one, as long as there is no usable answer; later that is noted.

    Example:
        >>> replies = iter(['{"cat": ["tabby", "Siamese"]}', '{"beagle": "dog"}'])
        >>> result = nest_with_llm(["tabby", "siamese", "beagle"], ask=lambda messages: next(replies))
        >>> result.hierarchy.to_tree().to_nested()
        {'cat': {'tabby': 0, 'siamese': 1}, 'dog': {'beagle': 2}}
        >>> result.check.missing, len(result.notes), len(result.transcript)
        (('beagle',), 2, 4)
    """
    if rounds < 0:
        raise UsageError(f"rounds={rounds} must be 0 or more")
    prompt = tree_prompt(classes, nodes)
    classes = ClassTree.parallel(classes, levels=1).classes
    similarity_of(classes, similarity)  # a wrong one is an error before anything is asked
    transcript: list[Message] = []

    def reply_to(messages: list[Message]) -> str:
        transcript.append(messages[-1])
        text = ask([dict(message) for message in messages])
        if not isinstance(text, str):
            raise RunError(f"ask returned {type(text).__name__} instead of text; expected the model's reply as a str")
        transcript.append({"role": "assistant", "content": text})
        return text

    messages = [{"role": "user", "content": prompt}]
    for left in range(rounds, -1, -1):
        text = reply_to(messages)
        try:
            answer = parse_answer(text, classes)
            first = check = check_answer(answer.nested, classes, answer.truncated)
            break
        except TreeError as error:
            if not left:
                raise
            again = f"This could not be used: {error}. Answer with the JSON object described above and nothing else."
            messages = [*messages, transcript[-1], {"role": "user", "content": again}]
    while check.open and left:
        left -= 1
        try:
            # Complete in itself: the memory of a small model would not hold the exchange so far.
            check = apply_repair(check, reply_to([{"role": "user", "content": repair_prompt(check)}]))
        except RunError as error:
            check = replace(check, notes=(*check.notes, f"asking again did not help: {error}"))
    done = place_rest(check, similarity)
    notes = done.notes
    if nodes is not None and done.counts[:-1] != tuple(nodes):
        got, wanted = (", ".join(map(str, numbers)) for numbers in (done.counts[:-1], nodes))
        notes += (f"the levels above the classes have {got} groups; asked for were {wanted}",)
    return LlmTree(done.hierarchy, notes, first, tuple(transcript))


def llm_tree(
    classes: ClassTree,
    ask: Callable[[list[Message]], str],
    nodes: Sequence[int] | None = None,
    rounds: int = 2,
    similarity: Any = None,
) -> tuple[ClassTree, list[str]]:
    """The classes of a tree, nested by a language model, with their ids and original indices.

    Args:
        classes: the tree; its classes alone count.
        ask, nodes, rounds, similarity: as :func:`nest_with_llm` takes them.

    Returns:
        the tree, of at least the levels asked for, and what was done to the answer, one line each.

    Raises:
        UsageError, TreeError, RunError: as :func:`nest_with_llm`.
    """
    found = nest_with_llm(classes.classes, ask, nodes, rounds, similarity)
    found.hierarchy.rename_classes(classes)
    tree = found.hierarchy.to_tree()
    wanted = len(nodes) + 1 if nodes else 0
    return (tree if tree.num_levels >= wanted else found.hierarchy.to_tree(wanted)), list(found.notes)
