"""Every error that hlnet raises on purpose.

    HlnetError (a ValueError)
    ├── UsageError            what was asked for cannot be meant        exit code 2
    │   ├── SelectionError    a class or node that the tree does not have
    │   └── BackboneError     a backbone that timm lacks or that cannot be split
    └── RunError              the request was fine, the material was not  exit code 1
        ├── TreeError         a class tree that is not one
        ├── CheckpointError   a file that is damaged, foreign or too new
        └── DataError         images or labels that do not fit

A message is one line: the thing, the value, what was expected, and the mend.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class HlnetError(ValueError):
    """Base of all errors meant for the user; ``exit_code`` is what the command line returns."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        # From a worker process, torch hands on the error with the worker's whole traceback as its message.
        if "Original Traceback" in message:
            message = message.strip().splitlines()[-1].partition(": ")[2]
        super().__init__(message)


class UsageError(HlnetError):
    """The request itself is wrong: an option, a name, a combination."""

    exit_code = 2


class SelectionError(UsageError):
    """A selection names classes or nodes that the tree does not have."""


class BackboneError(UsageError):
    """timm has no such backbone, or it gives no spatial map to branch from."""


class RunError(HlnetError):
    """The run failed although the request made sense."""


class TreeError(RunError):
    """The class tree is not a tree, or breaks a rule of class trees."""


class CheckpointError(RunError):
    """The model file is damaged, not ours, or written by a newer version."""


class DataError(RunError):
    """The images or labels cannot be read, or do not fit the tree."""


def one_line(said: BaseException | str, limit: int = 200) -> str:
    """What another library's error, or any text, says, on one line of at most ``limit`` characters.

    >>> one_line(OSError("no  such file")), one_line("too long", limit=3)
    ('no such file', 'too')
    """
    return " ".join(str(said).split())[:limit]


def some(words: Iterable[str], limit: int = 5) -> str:
    """The first few of many words, and how many more there are.

    >>> some("abcdefg"), some("ab"), some("abcd", limit=3)
    ('a, b, c, d, e and 2 more', 'a, b', 'a, b, c and 1 more')
    """
    found = list(words)
    return ", ".join(found[:limit]) + (f" and {len(found) - limit} more" if len(found) > limit else "")


def counted(number: int, noun: str) -> str:
    """A number of things, in the singular where it is one; ``noun`` may have words before it.

    >>> counted(1, "image"), counted(3, "class"), counted(0, "plain leaf")
    ('1 image', '3 classes', '0 plain leaves')
    """
    if number == 1:
        return f"1 {noun}"
    if noun.endswith("leaf"):
        return f"{number} {noun[:-1]}ves"
    return f"{number} {noun}{'es' if noun.endswith(('s', 'x', 'ch', 'sh')) else 's'}"


def with_article(noun: str) -> str:
    """A noun with "a" or "an", by its first letter; of a number, by how it is read.

    >>> with_article("ResNet"), with_article("EfficientNet"), with_article("8")
    ('a ResNet', 'an EfficientNet', 'an 8')
    """
    return f"{'an' if re.match('[aeio]|8|11$|18$', noun, re.IGNORECASE) else 'a'} {noun}"


def did_you_mean(name: str, known: Iterable[str], limit: int = 3) -> str:
    """``" Did you mean 'tabby' or 'tiger'?"``, or nothing when no known name comes near.

    >>> did_you_mean("taby", ["tabby", "siamese"])
    " Did you mean 'tabby'?"
    """
    by_lowercase = {word.lower(): word for word in known}
    near = difflib.get_close_matches(name.lower(), by_lowercase, n=limit, cutoff=0.6)
    if not near:
        return ""
    return " Did you mean " + " or ".join(f"'{by_lowercase[word]}'" for word in near) + "?"
