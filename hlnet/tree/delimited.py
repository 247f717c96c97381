"""Rows of a delimited text: delimiter, comment lines and missing values.

The delimiter is judged by many rows, not by the first one: a heading may hold a comma where the cells are separated by
semicolons.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from typing import NamedTuple

from hlnet.errors import TreeError, one_line

DELIMITERS = (",", ";", "\t", "|")
#: What pandas and R write for a missing value.
MISSING = frozenset(
    "#N/A #NA -1.#IND -1.#QNAN -NaN -nan 1.#IND 1.#QNAN <NA> N/A NA NULL NaN None n/a nan null".split()  # noqa: SIM905
)
_JUDGED_ROWS = 500


class Rows(NamedTuple):
    """The rows of a table that hold anything.

    Attributes:
        cells: each row with its number in the text, from 1; missing values are empty.
        delimiter: what separates the cells.
        missing: number of cells that held a word for a missing value, such as ``NA``.
        comments: number of lines that began with ``#``.
    """

    cells: list[tuple[int, list[str]]]
    delimiter: str
    missing: int = 0
    comments: int = 0


def split_rows(text: str, delimiter: str = ",") -> Rows:
    """Cells of a delimited text, without blanks around them.

    Empty rows and lines that begin with ``#`` are passed over. A first line such as ``sep=;``, as Excel writes it,
    names the delimiter.

    Args:
        text: of the file.
        delimiter: preferred where several fit equally well.

    Raises:
        TreeError: if the text is empty, its quotes do not close, or no delimiter separates its cells.

    Example:
        >>> split_rows("family;species (author, year)\\nFelidae;Felis catus\\n").cells
        [(1, ['family', 'species (author, year)']), (2, ['Felidae', 'Felis catus'])]
    """
    lines = text.splitlines(keepends=True)
    named = re.fullmatch(r'"?sep=(.)"?', lines[0].strip("\r\n")) if lines else None
    comments = 0
    for number, line in enumerate(lines):
        # A cell in quotes may hold line breaks, but a line of it that begins with a mark is too rare to look for.
        if is_comment(line) or (number == 0 and named):
            comments += is_comment(line)
            lines[number] = "\n"
    plain = "".join(lines)
    chosen = named[1] if named else best_delimiter(plain, delimiter)
    parsed = _parsed(plain, chosen)
    missing = 0
    rows = []
    for number, cells in parsed:
        stripped = [cell.strip() for cell in cells]
        missing += sum(cell in MISSING for cell in stripped)
        kept = ["" if cell in MISSING else cell for cell in stripped]
        if any(kept):
            rows.append((number, kept))
    if not rows:
        raise TreeError("the table is empty")
    if max(len(cells) for _, cells in rows) == 1:
        for other in DELIMITERS[1:]:
            if number := next((number for number, (cell, *_) in rows if other in cell), 0):
                raise TreeError(
                    f"row {number} is a single cell that holds '{_shown(other)}'; its rows have different numbers of "
                    "cells: give all rows the same columns, or put names with that mark in quotes"
                )
    return Rows(rows, chosen, missing, comments)


def is_comment(line: str) -> bool:
    """Whether a line is a comment: it begins with ``#``, but not with a spreadsheet's ``#N/A``.

    Example:
        >>> is_comment("# my classes"), is_comment("#N/A,Felis"), is_comment("cat")
        (True, False, False)
    """
    return line.startswith("#") and not line.startswith(("#N/A", "#NA"))


def best_delimiter(text: str, preferred: str = ",") -> str:
    """The delimiter that gives most rows the same number of cells, at least two.

    Of equally good ones it is the preferred; another one must fit more than half of the rows.

    Example:
        >>> best_delimiter("a|b\\nc|d"), best_delimiter("cat,tabby; striped\\ndog,boxer"), best_delimiter("cat\\ndog")
        ('|', ',', ',')
    """
    agreeing = {}
    for delimiter in dict.fromkeys((preferred, *DELIMITERS)):
        try:
            widths = Counter(len(cells) for _, cells in _parsed(text, delimiter, _JUDGED_ROWS) if any(cells))
        except TreeError:
            continue
        several = max((count for width, count in widths.items() if width > 1), default=0)
        agreeing[delimiter] = several if delimiter == preferred or 2 * several > widths.total() else 0
    return max(agreeing, key=agreeing.__getitem__, default=preferred)


def _parsed(text: str, delimiter: str, most: int | None = None) -> list[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        for cells in reader:
            if most is not None and len(rows) >= most:
                break
            rows.append((len(rows) + 1, cells))
    except csv.Error as error:
        raise TreeError(f"line {reader.line_num} is not readable: {one_line(error)}") from error
    return rows


def _shown(delimiter: str) -> str:
    return "a tab" if delimiter == "\t" else delimiter
