"""Rows of values under named columns: of a CSV file with a header, or of the objects of a JSONL file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hlnet.errors import UsageError, did_you_mean, one_line
from hlnet.files import read_text


def read_rows(
    path: str | Path, needed: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a ``.csv`` file with a header, or the objects of a ``.jsonl`` file; empty values are left out.

    Args:
        path: the file. In place of commas, where the first line has none, ``;`` or tabs are taken.
        needed: columns that every row fills.
        optional: others that it may have.

    Yields:
        where the row is, for messages, and its values by column.

    Raises:
        UsageError: if the file cannot be read, has no row, or one that is not as it should be; with the line.
    """
    path = Path(path)
    readers = {".csv": _csv_rows, ".jsonl": _json_rows}
    if path.suffix.lower() not in readers:
        raise UsageError(f"'{path}' must be a .csv or a .jsonl file, not '{path.suffix}'")
    text = read_text(path)
    columns = (*needed, *optional)
    line = 0
    for line, values in readers[path.suffix.lower()](text, str(path)):
        where = f"'{path}', line {line}"
        row = {column: value for column, value in values.items() if value}
        if unknown := [column for column in row if column not in columns]:
            near = did_you_mean(unknown[0], columns) or f" Expected: {', '.join(columns)}"
            raise UsageError(f"{where}: there is no column '{unknown[0]}'.{near}")
        if lacking := [column for column in needed if column not in row]:
            raise UsageError(f"{where}: no {lacking[0]} is given; expected {', '.join(columns)}")
        yield where, row
    if not line:
        raise UsageError(f"'{path}' has no rows; expected some with {', '.join(columns)}")


def _csv_rows(text: str, path: str) -> Iterator[tuple[int, dict[str, str]]]:
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = next((sign for sign in ",;\t" if sign in first), ",")
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    header: list[str] = []
    try:
        for cells in lines:
            stripped = [cell.strip() for cell in cells]
            if not any(stripped):
                continue
            if not header:
                header = [cell.lower() for cell in stripped]
                if "" in header or len(set(header)) < len(header):
                    raise UsageError(f"'{path}', line {lines.line_num}: each column needs a heading of its own")
                continue
            if len(stripped) > len(header):
                raise UsageError(
                    f"'{path}', line {lines.line_num}: {len(stripped)} cells under {len(header)} headings; names with "
                    "commas go in double quotes"
                )
            yield lines.line_num, dict(zip(header, stripped, strict=False))
    except csv.Error as error:
        raise UsageError(f"'{path}', line {lines.line_num}: not readable as CSV: {one_line(error)}") from error


def _json_rows(text: str, path: str) -> Iterator[tuple[int, dict[str, str]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"'{path}', line {number}: not JSON: {one_line(error)}") from error
        if not isinstance(found, dict):
            raise UsageError(f"'{path}', line {number}: expected an object, such as {{\"image\": …}}")
        for key, value in found.items():
            if isinstance(value, bool) or not isinstance(value, str | int | float | None):
                raise UsageError(
                    f"'{path}', line {number}: '{key}' must be text or a number, not {one_line(repr(value), 40)}"
                )
        yield number, {key: str(value).strip() for key, value in found.items() if value is not None}
