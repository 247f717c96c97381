"""Rows of delimited texts, against csv's own writer and pandas' words for missing values."""

import csv
import io

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hlnet.errors import TreeError
from hlnet.tree.delimited import DELIMITERS, MISSING, split_rows

CELLS = st.text(st.sampled_from("ab ,;|é'"), min_size=1, max_size=6).map(str.strip).filter(bool)


@given(
    rows=st.integers(2, 4).flatmap(lambda width: st.lists(st.lists(CELLS, min_size=width, max_size=width), min_size=3)),
    delimiter=st.sampled_from(DELIMITERS),
    excel=st.booleans(),
)
def test_rows_are_those_that_were_written(rows, delimiter, excel):
    assume(not any(cell in MISSING or cell.startswith(("#", "sep=")) for row in rows for cell in row))
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows(rows)
    found = split_rows((f"sep={delimiter}\n" if excel else "") + text.getvalue(), delimiter)
    assert [cells for _, cells in found.cells] == rows and found.delimiter == delimiter


@pytest.mark.parametrize("delimiter", DELIMITERS)
@pytest.mark.parametrize("preferred", DELIMITERS)
def test_the_delimiter_is_that_of_most_rows(delimiter, preferred):
    heading = "species" if delimiter == "," else "species (author, year)"
    text = f"family{delimiter}{heading}\nSalmonidae{delimiter}Salmo salar\nCyprinidae{delimiter}Tinca\n"
    found = split_rows(text, preferred)
    assert found.delimiter == delimiter and [len(cells) for _, cells in found.cells] == [2, 2, 2]


@pytest.mark.parametrize("word", sorted(MISSING))
def test_words_for_a_missing_value_are_empty_and_counted(word):
    found = split_rows(f"a,b\nc,{word}\n")
    assert found.cells == [(1, ["a", "b"]), (2, ["c", ""])] and found.missing == 1


def test_missing_values_are_those_of_pandas():
    parsers = pytest.importorskip("pandas._libs.parsers", reason="pandas is not installed")
    assert {*MISSING, "", "#N/A N/A"} == parsers.STR_NA_VALUES


def test_comments_are_passed_over_and_counted():
    found = split_rows("# mine\na,b\n#x,y\n#N/A,c\n")
    assert [cells for _, cells in found.cells] == [["a", "b"], ["", "c"]] and found.comments == 2


def test_single_cells_that_hold_a_delimiter_are_refused():
    with pytest.raises(TreeError, match="row 2 is a single cell that holds 'a tab'"):
        split_rows("cat\ndog\tbeagle\nowl\n")
