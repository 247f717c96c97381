"""Cues as a user writes them: one on the command line, or many in a file, which says for which image each is.

Notable here: what a cue names is looked up in the tree as it is read, so that an error comes with the line.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

from hlnet.cues.cue import MOST, Cue, Mode
from hlnet.cues.rows import read_rows
from hlnet.errors import UsageError, some
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.selection import known_part, select_classes

log = logging.getLogger("hlnet")

#: The sign of a strength, and a number; without a sign, that is a reliability.
_VALUE = re.compile(r"([x×*+-]?)\s*((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)", re.IGNORECASE)


def parse_cue(text: str, tree: ClassTree | None = None, mode: Mode | None = None) -> Cue:
    """Read a cue as it is written on the command line: what it names, then how much it says.

    - ``animal/cat``: no more than that; how strongly it acts is said elsewhere.
    - ``animal/cat=0.9``: a reliability, above 0 and below 1.
    - ``animal/cat=x1.8``: a strength, as the factor of a gain, or of a scale if that is the mode.
    - ``animal/cat=+2`` or ``=-2``: a strength, as the shift of a bias.

    What is named may be any selection (:func:`hlnet.select_classes`): ``tabby,siamese=0.9`` is one cue, which says that
    the class is one of the two. The last ``=`` counts, and blanks around it do not.

    Args:
        text: the cue.
        tree: where what is named is looked up, so that an error comes at once, and a name may hold a ``=``.
        mode: how the cue is to act, where that is known: a factor is no shift.

    Raises:
        UsageError: if nothing is named, what follows the ``=`` is none of these, or is none for this mode.
        SelectionError: if the tree has no such node, with those of names near to it.

    Example:
        >>> parse_cue("animal/cat=0.9"), parse_cue("tabby, siamese = x1.8").strength
        (Cue(node='animal/cat', reliability=0.9, strength=None, mode=None), 1.8)
    """
    node, sign, value = text.rpartition("=")
    found = _VALUE.fullmatch(value.strip()) if sign else None
    if tree is not None and text.strip() in tree.node_names.words:  # a name goes before any sign
        found = None
    elif sign and not found and not (tree and _selects(tree, text)):
        raise UsageError(
            f"cue '{text}': '{value.strip()}' is neither a reliability, such as =0.9, nor a strength, such as =x1.8 "
            "(a factor) or =+2 (a shift)"
        )
    node = (node if found else text).strip()
    if not node:
        raise UsageError(f"cue '{text}' names no node; expected one such as animal/cat, animal/cat=0.9 or tabby=x1.8")
    cue = make_cue(node) if tree is None else make_cue(node).on(tree)
    if not found:
        return cue
    kind, number = found[1], float(found[2])
    if not kind:
        return make_cue(node, number, classes=cue.classes)
    shifts = kind in "+-"
    if mode is not None and (mode == "bias") != shifts:
        kinds = ("a factor", "a bias is a shift, such as =+2")
        if mode != "bias":
            kinds = ("a shift", f"a {mode} is a factor, such as =x1.8")
        raise UsageError(f"cue '{text}': '{value.strip()}' is {kinds[0]}, but {kinds[1]}")
    cue = make_cue(node, strength=-number if kind == "-" else number, classes=cue.classes)
    return cue.model_copy(update={"mode": mode or ("bias" if shifts else "gain")})


def make_cue(
    node: str,
    reliability: float | None = None,
    strength: float | None = None,
    classes: tuple[str, ...] | None = None,
) -> Cue:
    """A cue of these values.

    Raises:
        UsageError: for a reliability outside 0 to 1 or a strength beyond a million; where both are given.

    Example:
        >>> make_cue("cat", 90)
        Traceback (most recent call last):
        hlnet.errors.UsageError: the cue on 'cat' has the reliability 90: it must lie between 0 and 1, both excluded; \
where a cue cannot be wrong, run only what it names (hard cues)
    """
    if reliability is not None and not 0 < reliability < 1:
        raise UsageError(
            f"the cue on '{node}' has the reliability {reliability:g}: it must lie between 0 and 1, both excluded; "
            "where a cue cannot be wrong, run only what it names (hard cues)"
        )
    if strength is not None and not abs(strength) <= MOST:
        raise UsageError(
            f"the cue on '{node}' has the strength {strength:g}: it must lie between -{MOST:g} and {MOST:g}"
        )
    if reliability is not None and strength is not None:
        raise UsageError(f"the cue on '{node}' has both a reliability and a strength; one replaces the other")
    return Cue(node=node, reliability=reliability, strength=strength, classes=classes)


def read_cues(path: str | Path, tree: ClassTree, skip_unknown: bool = False) -> dict[str, list[Cue]]:
    """Read a file of cues for images; of several for one image, each is there, in the file's order.

    That an image has a cue on the same node twice is told in the log ``hlnet``, since they count as independent.

    Args:
        path: a ``.csv`` file with the columns ``image`` and ``node``, and ``reliability`` or ``strength`` or both, of
            which a row fills at most one; or a ``.jsonl`` file, each line an object with these keys.
        tree: where nodes are looked up; each may be any selection (:func:`hlnet.select_classes`).
        skip_unknown: leave out what cues name and the tree does not have, and tell in the log how many are left out
            altogether: an expert has some of the nodes only that a station's record of sounds names.

    Returns:
        cues by the image's name as it is written; :class:`hlnet.cues.table.CueTable` finds an image's.

    Raises:
        UsageError: if the file cannot be read, holds no cue, or one that is not as it should be; with the line.
        SelectionError: if the tree has no such node; with the line.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "heard.csv"
        >>> _ = file.write_text("image,node,reliability\\n1.jpg,cat,0.9\\n")
        >>> read_cues(file, ClassTree.from_nested({"cat": ["tabby", "siamese"], "saw": {}}))
        {'1.jpg': [Cue(node='cat', reliability=0.9, strength=None, mode=None)]}
    """
    found: dict[str, list[Cue]] = {}
    classes: dict[str, tuple[str, ...] | None] = {}  # by node, since a file repeats them
    unknown: list[str] = []
    twice = 0
    for where, row in read_rows(path, ("image", "node"), ("reliability", "strength")):
        try:
            cue = make_cue(row["node"], _number(row, "reliability"), _number(row, "strength"))
            node = known_part(tree, cue.node) if skip_unknown else cue.node
            if not node:
                unknown.append(cue.node)
                continue
            if node not in classes:
                classes[node] = Cue(node=node).on(tree).classes
            cue = cue.model_copy(update={"node": node, "classes": classes[node]})
        except UsageError as error:
            raise type(error)(f"{where}: {error}") from error
        own = found.setdefault(row["image"], [])
        twice += any(cue.node == other.node for other in own)
        own.append(cue)
    if unknown and not found:
        raise UsageError(f"'{path}' names nothing that this tree has: {some(dict.fromkeys(unknown), 5)}")
    if unknown:
        log.warning(
            "'%s': rows that name what this tree does not have are left out, %d of them: %s",
            *(path, len(unknown), some(dict.fromkeys(unknown), 5)),
        )
    if twice:
        log.warning(
            "'%s': rows that repeat another's image and node count as independent evidence, %d of them", path, twice
        )
    return found


# ---------------------------------------------------------------------- helpers


def _selects(tree: ClassTree, text: str) -> bool:
    try:
        return bool(select_classes(tree, text))
    except UsageError:
        return False


def _number(row: Mapping[str, str], column: str) -> float | None:
    if column not in row:
        return None
    try:
        return float(row[column])
    except ValueError:
        wanted = "a probability such as 0.9" if column == "reliability" else "a factor or a shift such as 1.8"
        raise UsageError(f"{column} '{row[column]}' is no number; expected {wanted}") from None
