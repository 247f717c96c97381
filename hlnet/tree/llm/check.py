"""Checking a language model's class tree, and mending it until every class stands in it exactly once.

Notable here: a tree is held as the groups in which each class was put, ``{"tabby": ("animal/cat",)}``. No group is
missing, two are doubled; groups without classes do not exist; and a mend is a new choice for one class.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from hlnet.errors import DataError, TreeError, UsageError
from hlnet.tree.class_tree import MAX_LEVELS, ClassTree
from hlnet.tree.hierarchy import Hierarchy
from hlnet.tree.llm.answer import parse_moves, placed
from hlnet.tree.llm.names import class_finder, group_name, is_no_group, path_parts, words


@dataclass(frozen=True)
class AnswerCheck:
    """What a nested answer is worth, and all that was done to it.

    Attributes:
        classes: the class names asked for.
        places: the groups (paths such as ``"animal/cat"``; ``""`` is the trunk) in which each class stands.
        invented: names that are no classes, with the nearest class name if one comes near.
        renamed: names in another spelling, with the class that was understood.
        truncated: whether the reply broke off.
        notes: what was done to the answer, one line each.
    """

    classes: tuple[str, ...]
    places: Mapping[str, tuple[str, ...]]
    invented: Mapping[str, str | None]
    renamed: Mapping[str, str]
    truncated: bool = False
    notes: tuple[str, ...] = ()

    @cached_property
    def missing(self) -> tuple[str, ...]:
        """Classes that stand nowhere."""
        return tuple(name for name in self.classes if name not in self.places)

    @cached_property
    def doubled(self) -> dict[str, tuple[str, ...]]:
        """Classes that stand in more than one place, with these."""
        return {name: places for name, places in self.places.items() if len(places) > 1}

    @property
    def open(self) -> tuple[str, ...]:
        """Classes whose group is yet to be settled: the missing ones, and those in several groups."""
        return (*self.missing, *(name for name, places in self.doubled.items() if len(set(places)) > 1))

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Paths of all groups, in the order of the answer."""
        found: dict[str, None] = {}
        for places in self.places.values():
            for parts in (place.split("/") for place in places if place):
                found.update(dict.fromkeys("/".join(parts[: depth + 1]) for depth in range(len(parts))))
        return tuple(found)

    @property
    def hierarchy(self) -> Hierarchy:
        """The valid part: each class once, in the first group named for it, with its position in ``classes``.

        A group with the name of a class beside it gets a number in parentheses.
        """
        index = {name: i for i, name in enumerate(self.classes)}
        first = {name: places[0] for name, places in self.places.items()}
        taken: defaultdict[str, set[str]] = defaultdict(set)
        for name, place in first.items():
            taken[place].add(name)
        root = Hierarchy("")
        nodes = {"": root}
        for name, place in first.items():
            above = ""
            for part in place.split("/") if place else ():
                path = f"{above}/{part}".lstrip("/")
                if path not in nodes:
                    forms = (part, *(f"{part} ({number})" for number in range(2, len(taken[above]) + 3)))
                    nodes[path] = Hierarchy(next(form for form in forms if form not in taken[above]))
                    taken[above].add(nodes[path].name)
                    nodes[above].children.append(nodes[path])
                above = path
            nodes[place].children.append(Hierarchy(name, index=index[name]))
        return root

    @property
    def counts(self) -> tuple[int, ...]:
        """Nodes at each level of the valid part."""
        return self.hierarchy.to_tree().counts


def check_answer(nested: Any, classes: Sequence[str], truncated: bool = False) -> AnswerCheck:
    """Compare a nested answer with the classes that were asked for.

    Args:
        nested: mappings and lists, as :func:`hlnet.tree.llm.answer.parse_answer` finds them.
        classes: the class names.
        truncated: whether the reply broke off.

    Raises:
        TreeError: if no class stands in any group, the answer is too deep, or the class names cannot be a tree's.

    Example:
        >>> check = check_answer({"cat": ["Tabby", "unicorn"], "dog": ["beagle"]}, ["tabby", "beagle", "boxer"])
        >>> check.places, check.missing, check.invented
        ({'tabby': ('cat',), 'beagle': ('dog',)}, ('boxer',), {'unicorn': None})
    """
    classes = ClassTree.parallel(classes, levels=1).classes
    find = class_finder(classes)
    places: defaultdict[str, list[str]] = defaultdict(list)
    invented: dict[str, str | None] = {}
    renamed: dict[str, str] = {}
    groups: dict[str, str] = {}
    for path, written, name in placed(nested, find):
        if name is None:
            invented[written] = None
            continue
        if written.strip() != name:
            renamed[written] = name
        groups.update({part: group_name(part) for part in path})
        places[name].append("/".join(mended for part in path if (mended := groups[part])))
    if not any(map(any, places.values())):
        raise TreeError("the answer puts no class into a group; expected groups that hold the class names")
    by_lowercase = {name.lower(): name for name in classes if name not in places}
    for written in invented:
        near = difflib.get_close_matches(written.lower(), by_lowercase, n=1)
        invented[written] = by_lowercase[near[0]] if near else None
    notes = ["the reply breaks off; what was complete was used"] if truncated else []
    notes += [f"{written!r} was read as class {name!r}" for written, name in renamed.items()]
    notes += [f"group {written!r} was renamed {mended!r}" for written, mended in groups.items() if mended != written]
    notes += [f"{written!r} is no class and was dropped" for written in invented]
    settled = {name: tuple(some) for name, some in places.items()}
    return AnswerCheck(classes, settled, invented, renamed, truncated, tuple(notes))


def repair_prompt(check: AnswerCheck) -> str:
    """A question, complete in itself, that asks only where the missing and the doubled classes belong.

    Example:
        >>> check = check_answer({"cat": ["tabby"], "dog": ["beagle"]}, ["tabby", "beagle", "boxer"])
        >>> "- cat: tabby" in repair_prompt(check), "- boxer" in repair_prompt(check)
        (True, True)
    """
    members: defaultdict[str, list[str]] = defaultdict(list)
    for name, places in check.places.items():
        for place in dict.fromkeys(places):
            members[place].append(name)
    lines = [
        "The classes of an image classifier are being nested in groups of visually and semantically similar classes.",
        "These groups exist, each with some of its classes:",
        *(f"- {group}: {'; '.join(some[:4])}{'; …' * (len(some) > 4)}" for group, some in members.items() if group),
    ]
    if check.missing:
        lines += ["", "These classes have no group yet:", *(f"- {name}" for name in check.missing)]
    if several := [name for name in check.open if name in check.doubled]:
        lines += ["", "These classes stand in several groups, but may stand in one only:"]
        lines += [f"- {name}: in {' or in '.join(dict.fromkeys(check.doubled[name]))}" for name in several]
    lines += [
        "",
        f"Say for each of these {len(check.open)} classes to which one group it belongs.",
        "Use the groups above; name a new one, in the same way, only where none fits.",
        "Answer with one JSON object and nothing else, with all names spelled exactly as above:",
        '{"class name": "group/subgroup", "other class name": "other group/other subgroup"}',
    ]
    return "\n".join(lines) + "\n"


def apply_repair(check: AnswerCheck, text: str) -> AnswerCheck:
    """The check with the reply to :func:`repair_prompt` taken in; moves of classes that are settled are ignored.

    Raises:
        TreeError: if the reply says of no class where it belongs.

    Example:
        >>> check = check_answer({"pet": {"cat": ["tabby"]}, "dog": ["beagle"]}, ["tabby", "beagle", "boxer"])
        >>> apply_repair(check, '{"boxer": "dog", "tabby": "dog"}').places
        {'tabby': ('pet/cat',), 'beagle': ('dog',), 'boxer': ('dog',)}
    """
    moves = parse_moves(text, check.classes)
    places, notes = dict(check.places), []
    for name in check.open:
        group = _group(check, name, moves[name]) if name in moves else None
        if group is not None:
            places[name] = (group,)
            new = "" if group in check.groups else "a new group, "
            notes.append(f"class {name!r} was put into {new}{group!r}, as the model said when asked again")
    return replace(check, places=places, notes=(*check.notes, *notes))


def place_rest(check: AnswerCheck, similarity: Any = None) -> AnswerCheck:
    """Settle what is still open by similarity; the result has every class exactly once.

    A doubled class stays in that of its groups whose other classes are most like it, on average; a missing one joins
    the class that is most like it. Deterministic.

    Args:
        check: an answer's check.
        similarity: ``[K, K]``, how alike classes are, in the order of ``check.classes``, such as the cosines of their
            mean features; default: how alike their names are.

    Raises:
        UsageError: if ``similarity`` has another shape.
        DataError: if it is not finite.

    Example:
        >>> check = check_answer({"fish": ["shark"], "tool": ["saw"]}, ["shark", "saw", "chain saw"])
        >>> done = place_rest(check)
        >>> done.places["chain saw"], done.notes
        (('tool',), ("class 'chain saw' was missing; it joined 'saw' in 'tool', by their names",))
    """
    alike, means = similarity_of(check.classes, similarity)
    index = {name: i for i, name in enumerate(check.classes)}
    members: defaultdict[str, list[str]] = defaultdict(list)
    for name, some in check.places.items():
        for place in dict.fromkeys(some):
            members[place].append(name)

    def likeness(name: str, place: str) -> float:
        siblings = [index[other] for other in members[place] if other != name]
        return sum(alike(index[name], i) for i in siblings) / len(siblings) if siblings else float("-inf")

    places, notes = dict(check.places), []
    for name, some in check.doubled.items():
        options = list(dict.fromkeys(some))
        best = max(options, key=lambda place, name=name: likeness(name, place))  # type: ignore[misc]
        places[name] = (best,)
        chosen = f"; it stays in {_place(best)}, by their {means}" if len(options) > 1 else " twice"
        notes.append(f"class {name!r} stood in {' and '.join(map(_place, options))}{chosen}")
    settled = sorted(places, key=index.__getitem__)
    for name in check.missing:
        nearest = max(settled, key=lambda other, i=index[name]: alike(i, index[other]))  # type: ignore[misc]
        places[name] = places[nearest]
        notes.append(
            f"class {name!r} was missing; it joined {nearest!r} in {_place(places[name][0])}, by their {means}"
        )
    return replace(check, places=places, notes=(*check.notes, *notes))


def similarity_of(classes: Sequence[str], similarity: Any = None) -> tuple[Callable[[int, int], float], str]:
    """How alike two classes are, as a function of their positions; and by what: ``"features"`` or ``"names"``.

    Names are alike in shared words, in the last word (a *garter snake* is a snake), and in letters.

    Raises:
        UsageError, DataError: as :func:`place_rest`.
    """
    if similarity is not None:
        import numpy as np

        on_cpu = similarity.detach().cpu() if hasattr(similarity, "detach") else similarity
        matrix = np.asarray(on_cpu, dtype=float)
        if matrix.shape != (len(classes), len(classes)):
            given = "x".join(map(str, matrix.shape))
            raise UsageError(f"similarity is {given}; for {len(classes)} classes give {len(classes)}x{len(classes)}")
        if not np.isfinite(matrix).all():
            raise DataError("similarity holds numbers that are not finite; does a class have no features?")
        return lambda i, j: float(matrix[i, j]), "features"

    singular = [[word.removesuffix("s") for word in words(name)] for name in classes]
    heads = [[word.removesuffix("s") for word in words(name.partition(",")[0])][-1:] for name in classes]
    matcher = difflib.SequenceMatcher(autojunk=False)

    def alike(i: int, j: int) -> float:
        matcher.set_seq2(classes[i])  # prepared once for each i
        matcher.set_seq1(classes[j])
        one, other = set(singular[i]), set(singular[j])
        shared = 2 * len(one & other) / max(1, len(one) + len(other))
        return shared + (heads[i] == heads[j]) / 2 + matcher.ratio()

    return alike, "names"


# ---------------------------------------------------------------------- helpers


def _group(check: AnswerCheck, name: str, written: str) -> str | None:
    """The path of the group that a model means for a class, perhaps a new one; ``None`` if that is not clear."""
    parts = path_parts(written)
    if not parts or len(parts) >= MAX_LEVELS or is_no_group(written):
        return None
    if len(parts) > 1 and words(parts[-1]) == words(name) and "/".join(parts) not in check.groups:
        parts.pop()  # the class itself as the last part of its path
    path = "/".join(parts)
    for fits in (
        [group for group in check.groups if group == path],
        [group for group in check.groups if group.casefold() == path.casefold()],
        [group for group in check.groups if group.casefold().endswith("/" + path.casefold())],
    ):
        if len(fits) > 1:
            fits = [group for group in fits if group in check.places.get(name, ())]
            return fits[0] if len(fits) == 1 else None
        if fits:
            return fits[0]
    return path


def _place(path: str) -> str:
    return repr(path) if path else "no group"
