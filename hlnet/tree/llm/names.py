"""Names as a language model writes them: which class is meant, and which name of a group a class tree takes.

Notable here: a spelling is bridged only where it can mean one class; for what might be two, nothing is guessed.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence

from hlnet.tree.nodes import normal_name


def group_name(written: str) -> str:
    """The nearest name that a class tree takes; empty if nothing is left.

    >>> group_name(" cars/trucks ")
    'cars and trucks'
    """
    printable = "".join(letter if letter.isprintable() else " " for letter in normal_name(written))
    return " ".join(" and ".join(part for part in printable.split("/") if part.strip()).split())


def path_parts(written: str) -> list[str]:
    """The groups of a path as a model writes it, each with the nearest name that a class tree takes.

    >>> path_parts("animal / cat"), path_parts("animal > cat")
    (['animal', 'cat'], ['animal', 'cat'])
    """
    return [part for part in map(group_name, re.split(r"/|->|→|>", written)) if part]


def is_no_group(written: str) -> bool:
    """Whether a model that writes this names no group.

    >>> is_no_group("N/A"), is_no_group("281"), is_no_group("cat")
    (True, True, False)
    """
    own = words(written)
    return all(word.isdecimal() for word in own) or " ".join(own) in {"none", "null", "unknown", "n a", "true", "false"}


def words(name: str) -> list[str]:
    """The words of a name, in lower case and without the marks between them.

    >>> words("Sea_Horse, seahorse")
    ['sea', 'horse', 'seahorse']
    """
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", name).casefold())


def class_finder(classes: Sequence[str]) -> Callable[[str], str | None]:
    """A function from a name as a model writes it to the one class that it can mean, or ``None``.

    Differences of case, marks, blanks and plural are bridged, and one of a name's synonyms (parted by commas, as
    WordNet lists them) stands for all; a name that would fit two classes fits none.

    Example:
        >>> find = class_finder(["tench, Tinca tinca", "sea_horse", "crane, bird", "crane, machine"])
        >>> find("Tench"), find("Sea horses"), find("crane")
        ('tench, Tinca tinca', 'sea_horse', None)
    """
    known = set(classes)
    whole: defaultdict[str, set[str]] = defaultdict(set)
    parts: defaultdict[str, set[str]] = defaultdict(set)
    for name in classes:
        for table, forms in ((whole, [name]), (parts, name.split(","))):
            for form in map(words, forms):
                table[" ".join(form)].add(name)
                table["".join(form)].add(name)

    def look_up(table: dict[str, set[str]], written: str) -> set[str]:
        own = words(written)
        for spellings in ([" ".join(own)], ["".join(own)], _plurals("".join(own))) if own else ():
            if found := set[str]().union(*(table.get(spelling, ()) for spelling in spellings)):
                return found
        return set()

    def find(written: str) -> str | None:
        if written.strip() in known:
            return written.strip()
        found = look_up(whole, written) or look_up(parts, written)
        found = found or set[str]().union(*(look_up(parts, part) for part in written.split(",")))
        return found.pop() if len(found) == 1 else None

    return find


def _plurals(word: str) -> list[str]:
    """A word's possible plurals, and what it may be the plural of."""
    forms = [word + "s", word + "es", re.sub("y$", "ies", word), re.sub("ies$", "y", word)]
    return [*forms, *(word.removesuffix(end) for end in ("s", "es") if word.endswith(end) and len(word) > 3)]
