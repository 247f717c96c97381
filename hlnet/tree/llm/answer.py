"""Reading a language model's reply: from any text to nested groups and class names.

Notable here: nothing is refused for its form alone. Brackets are read without a grammar (a missing comma, a foreign
quote or a cut end costs a name at most), lines without brackets (YAML, bullets) by their indentation; objects such as
``{"name": …, "children": […]}`` become nested groups; and of all readings of a reply, the one that puts most classes
into groups is taken, so that chatter needs no rules of its own. Nothing recurses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hlnet.errors import TreeError
from hlnet.tree.class_tree import MAX_LEVELS
from hlnet.tree.llm.forms import as_mappings
from hlnet.tree.llm.names import class_finder, is_no_group, path_parts, words

MAX_READINGS = 8  # chatter may hold brackets before those of the answer, but not that many


@dataclass(frozen=True, slots=True)
class Answer:
    """The content of a reply.

    Attributes:
        nested: mappings from group names to what lies below, and lists of class names.
        truncated: whether the reply breaks off; ``nested`` then holds what was complete.
    """

    nested: Any
    truncated: bool = False


def parse_answer(text: str, classes: Sequence[str]) -> Answer:
    """Find the nested answer in a reply: JSON, or something like it, or YAML; between chatter or in a fenced block.

    The answer may nest groups as mappings, as objects with a name and their children, or say of each class to which
    group, or path of groups, it belongs.

    Args:
        text: the reply.
        classes: the class names asked for; the reading that puts most of them into groups is taken.

    Raises:
        TreeError: if no class stands in any group, or the answer is nested deeper than a class tree can be.

    Example:
        >>> parse_answer('Sure! {"cat": ["tabby", "siamese"], "dog": ["bea', ["tabby", "siamese", "beagle"])
        Answer(nested={'cat': ['tabby', 'siamese'], 'dog': []}, truncated=True)
        >>> parse_answer('[{"name": "cat", "children": [{"name": "tabby"}]}]', ["tabby"]).nested
        [{'cat': ['tabby']}]
        >>> parse_answer('{"tabby": "pet/cat"}', ["tabby"]).nested
        [{'pet': {'cat': ['tabby']}}]
    """
    find = class_finder(classes)

    def score(nested: Any) -> tuple[int, ...]:
        found = list(placed(nested, find))
        in_groups = {name: path for path, _, name in found if name is not None and path}
        return len(in_groups), len(set(in_groups.values())) > 1, -sum(name is None for *_, name in found)

    def forms(nested: Any) -> list[Any]:
        return [nested, _turned(nested, find)]

    return _best_reading(text, forms, score, "a JSON object of groups that hold the class names")


def parse_moves(text: str, classes: Sequence[str]) -> dict[str, str]:
    """Find in a reply the group that each class is to go to, as written: ``{class: "group/subgroup"}``, or nested.

    Raises:
        TreeError: if the reply says this of no class.

    Example:
        >>> parse_moves('{"Tabby": "animal/cat", "tool": ["saw"]}', ["tabby", "saw"])
        {'saw': 'tool', 'tabby': 'animal/cat'}
    """
    find = class_finder(classes)

    def moves(nested: Any) -> dict[str, str]:
        direct = {name: value for _, key, value in entries(nested) if value and (name := find(key))}
        return {name: "/".join(path) for path, _, name in placed(nested, find) if name and path} | direct

    def score(nested: Any) -> tuple[int, ...]:
        return (len(moves(nested)),)

    expected = "a JSON object of classes and their groups"
    return moves(_best_reading(text, lambda nested: [nested], score, expected).nested)


def entries(nested: Any) -> Iterator[tuple[tuple[str, ...], str, str | None]]:
    """The lowest entries of a nested answer, in order.

    Yields:
        The group names above; the name; and the text after it: ``None`` for an item of a list, ``""`` for a key with
        nothing below.

    Raises:
        TreeError: if groups are nested deeper than a class tree can be.

    Example:
        >>> list(entries({"cat": ["tabby"], "tool": {"saw": None}}))
        [(('cat',), 'tabby', None), (('tool',), 'saw', '')]
    """
    waiting: list[tuple[tuple[str, ...], Any, Any]] = [((), None, nested)]
    seen: set[int] = set()  # a container that holds itself is read once
    while waiting:
        path, key, value = waiting.pop()
        if isinstance(value, Mapping | list | tuple):
            inside = (*path, str(key)) if key is not None and str(key).strip() else path
            if len(inside) >= MAX_LEVELS:
                raise TreeError(_TOO_DEEP)
            items = list(value.items()) if isinstance(value, Mapping) else [(None, item) for item in value]
            if items and id(value) not in seen:
                seen.add(id(value))
                waiting.extend((inside, *item) for item in reversed(items))
            elif key is not None and not items:
                yield path, str(key), ""
        elif key is not None:
            yield path, str(key), "" if value is None else str(value)
        elif value is not None and str(value).strip():
            yield path, str(value), None


def placed(nested: Any, find: Callable[[str], str | None]) -> Iterator[tuple[tuple[str, ...], str, str | None]]:
    """The names of a nested answer, as ``(group names above, name as written, the class or None)``.

    Example:
        >>> list(placed({"cat": {"Tabby": 0}, "tool": "saw"}, class_finder(["tabby", "saw"])))
        [(('cat',), 'Tabby', 'tabby'), (('tool',), 'saw', 'saw')]
    """
    for path, name, value in entries(nested):
        if value and (found := find(value)):
            yield (*path, name), value, found
        elif (found := find(name)) or value != "":  # with nothing below and no class, it is an empty group
            yield path, name, found


def _turned(nested: Any, find: Callable[[str], str | None]) -> list[Any]:
    """The same answer with groups for what it says of single classes: ``{"tabby": "pet/cat"}``.

    That is said outside all groups, or in a single one, which then is but a heading.
    """
    found = list(entries(nested))
    moves = [bool(value and not is_no_group(value) and find(name)) for _, name, value in found]
    headings = {path for (path, *_), moved in zip(found, moves, strict=True) if moved}
    turned: list[Any] = []
    for (path, name, value), moved in zip(found, moves, strict=True):
        item: Any = name if value is None else {name: value or None}
        if moved and (not path or len(headings) == 1):
            path, item = tuple(path_parts(value or "")), [name]
            if len(path) > 1 and words(path[-1]) == words(name):  # the class itself as the last part of its path
                path = path[:-1]
        for part in reversed(path):
            item = {part: item}
        turned.append(item)
    return turned


# ---------------------------------------------------------------------- readings

_TOO_DEEP = f"the answer is nested deeper than {MAX_LEVELS} levels; a class tree has a few"
_TOKEN = re.compile(
    r"""\s+ | //[^\n]* | (?P<end>```)
      | (?P<mark>[{}\[\]:,])
      | "(?P<double>(?:[^"\\\n]|\\.)*)"
      | '(?P<single>(?:[^'\\\n]|\\.)*)'(?=\s*[]},:])
      | “(?P<curly>[^”\n]*)”
      | (?P<bare>[^\s{}\[\]:,][^{}\[\]:,\n]*)""",
    re.VERBOSE,
)
_LINE = re.compile(r"(?P<indent>[ \t]*)(?P<bullet>(?:[-*•+]|\d+[.)])[ \t]+)?(?P<rest>[^\n]*)\n?")
_KEY = re.compile(r"""(?P<key>"[^"]*"|'[^']*'|[^\[{]*?)\s*:\**(?:\s+|$)""")
_NOTHING = {"", "null", "None", "~"}


def _best_reading(
    text: str, forms: Callable[[Any], list[Any]], score: Callable[[Any], tuple[int, ...]], expected: str
) -> Answer:
    """The first reading, in any of its forms, with the highest score; one whose first number is 0 is none."""
    # A model that reasons aloud drafts answers on the way; what counts comes after.
    text = text.rpartition("</think>")[2].rstrip()
    best: Answer | None = None
    highest: tuple[int, ...] = ()
    for reading in _readings(text):
        usable: list[tuple[tuple[int, ...], Any]] = []
        for plain in (
            as_mappings(reading.nested, reading.truncated),
            reading.nested,
        ):  # as it is, only where no objects are meant
            usable = usable or [(reached, form) for form in forms(plain) if (reached := score(form))[0]]
        for reached, form in usable:
            if reached > highest:
                best, highest = Answer(form, reading.truncated), reached
    if best is None:
        said = f"it begins {' '.join(text.split())[:80]!r}" if text else "it is empty"
        raise TreeError(f"the reply cannot be used ({said}); expected {expected}")
    return best


def _readings(text: str) -> Iterator[Answer]:
    """All that a reply may mean: from each bracket that opens outside a complete reading, then by indentation."""
    start = tries = 0
    while tries < MAX_READINGS and (opening := re.compile(r"[{\[]").search(text, start)):
        nested, end, truncated = _bracketed(text, opening.start())
        yield Answer(nested, truncated)
        start = opening.end() if truncated else end
        tries += 1
    for block, end_mark in re.findall(r"```[^\n]*\n(.*?)(```|\Z)", text, re.DOTALL) or [(text, "no fence")]:
        yield _indented(block, truncated=not end_mark)


def _bracketed(text: str, start: int) -> tuple[Any, int, bool]:
    """Read from the bracket at ``start`` to its partner. A key that stands twice keeps both values, in a list.

    Returns:
        What the bracket holds, where it ends, and whether that is only where the text breaks off.
    """
    root: list[Any] = []
    open_: list[tuple[Any, list[str]]] = [(root, [])]  # each open bracket, and the key in it that waits for its value

    def put(value: Any) -> None:
        place, waiting = open_[-1]
        if isinstance(place, list):
            place.append(value)
        else:
            key = waiting.pop() if waiting else ""
            before = place.get(key)
            place[key] = value if before is None else before if value is None else [before, value]

    position = start
    while (token := _TOKEN.match(text, position)) and not token["end"]:
        position = token.end()
        place, waiting = open_[-1]
        if token["mark"] and token["mark"] in "{[":
            below: Any = {} if token["mark"] == "{" else []
            put(below)
            open_.append((below, []))
            if len(open_) > 4 * MAX_LEVELS:
                raise TreeError(_TOO_DEEP)
        elif token["mark"] and token["mark"] in "}]":
            kind = dict if token["mark"] == "}" else list
            closing = any(isinstance(bracket, kind) for bracket, _ in open_[1:])
            while closing:  # a bracket left open inside ends with the one around it
                if open_[-1][1]:
                    put(None)
                closing = not isinstance(open_.pop()[0], kind)
            if len(open_) == 1:
                return root[0], position, False
        elif token["mark"] == "," and waiting:
            put(None)
        elif token.lastgroup in {"double", "single", "curly", "bare"}:
            if token["bare"] and position == len(text):
                break  # without a mark after it, who knows whether it is whole
            name = _plain(token["bare"]) if token["bare"] else _unescaped(token[token.lastgroup])
            if token["bare"] and name in _NOTHING:
                if waiting:
                    put(None)
            elif isinstance(place, dict) and not waiting:
                waiting.append(name)
            else:
                put(name)
    return root[0], len(text), True


def _indented(text: str, truncated: bool) -> Answer:
    """Read lines: what is indented further than a line lies below it."""
    root: list[Any] = []
    open_ = [(-1, root)]
    bare: list[tuple[list[Any], int, str]] = []
    position, after_blank = 0, False
    while position < len(text) and (line := _LINE.match(text, position)):
        position = line.end()
        rest = line["rest"] if line["rest"][:1] in {'"', "'"} else re.sub(r"(^|\s)#.*", "", line["rest"]).rstrip()
        if not rest or set(rest) <= set("-`="):
            after_blank = True
            continue
        # In YAML a list may stand as far left as the key above it; after an empty line, that was a sentence.
        indent, bullet = 2 * len(line["indent"].expandtabs(4)), bool(line["bullet"])
        while open_[-1][0] >= indent + (bullet and not after_blank):
            open_.pop()
        place, after_blank = open_[-1][1], False
        key = _KEY.match(rest)
        name, value = (_plain(key["key"]), rest[key.end() :]) if key else (_plain(rest), "")
        if (value if key else rest)[:1] in {"{", "["}:
            nested, end, cut = _bracketed(text, line.start("rest") + (key.end() if key else 0))
            place.append({name: nested} if key else nested)
            truncated |= cut
            position = max(position, text.find("\n", end) + 1 or len(text))
        elif value and value not in _NOTHING:
            place.append({name: _plain(value)})
        else:
            below: list[Any] = []
            if not key:
                bare.append((place, len(place), name))
            place.append({name: below})
            open_.append((indent + bullet, below))
    for place, slot, name in bare:
        if not place[slot][name]:
            place[slot] = name
    return Answer(root[0] if len(root) == 1 else root, truncated)


def _plain(written: str) -> str:
    """A name from running text, without what may stand around it: quotes, emphasis, a comma."""
    name = written.strip().rstrip(",;")
    for marks in ("**", "*", "`", '"', "'"):
        if len(name) > 2 * len(marks) and name.startswith(marks) and name.endswith(marks):
            name = name[len(marks) : -len(marks)]
    return _unescaped(name)


def _unescaped(name: str) -> str:
    if "\\" not in name:
        return name
    try:
        return str(json.loads(f'"{name}"', strict=False))
    except ValueError:
        return name.replace("\\", "")
