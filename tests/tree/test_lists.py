"""Class lists in plain text: what is clear is read, what is something else is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlnet.errors import TreeError
from hlnet.tree.lists import read_list

NESTED = {"cat": {"tabby": 0, "siamese": 1}, "dog": 2}


@pytest.mark.parametrize(
    "text",
    [
        "cat\n  tabby\n  siamese\ndog\n",
        "cat\n\ttabby\n\tsiamese\ndog",
        "- cat\n  - tabby\n  - siamese\n- dog\n",
        "- cat\n-- tabby\n-- siamese\n- dog\n",
        "* cat\n    * tabby\n    * siamese\n* dog\n",
        "cat:\n  tabby\n  siamese\ndog\n",
        "cat;tabby\ncat;siamese\ndog;\n",
        "cat|tabby\ncat|siamese\ndog|\n",
        "cat/tabby\ncat/siamese\ndog\n",
    ],
)
def test_hierarchies_in_text(text):
    assert read_list(text).to_tree().to_nested() == NESTED


@pytest.mark.parametrize(
    "text, indices, ids",
    [
        ("0: tench, Tinca tinca\n1: goldfish\n", [0, 1], [None, None]),
        ("3 tench, Tinca tinca\n1 goldfish\n", [3, 1], [None, None]),
        ("1. tench, Tinca tinca\n2. goldfish\n", [1, 2], [None, None]),
        ("0,tench\n7,goldfish\n", [0, 7], [None, None]),
        ("n01440764 tench, Tinca tinca\nn01443537 goldfish\n", [None, None], ["n01440764", "n01443537"]),
        ("n01440764: tench\nn01443537: goldfish\n", [None, None], ["n01440764", "n01443537"]),
    ],
)
def test_numbers_and_ids_before_names(text, indices, ids):
    leaves = read_list(text).leaves()
    assert [leaf.name.partition(",")[0] for leaf in leaves] == ["tench", "goldfish"]
    assert [leaf.index for leaf in leaves] == indices and [leaf.id for leaf in leaves] == ids


@pytest.mark.parametrize("text", ["1 0\n2 0\n3 1\n", "n00002452 -1\nn00005787 -1\nn00004475 0\n"])
def test_links_between_ids_are_refused(text):
    with pytest.raises(TreeError, match="list of links"):
        read_list(text)


@given(st.lists(st.sampled_from(["737 max", "a320", "b2", "great white", "7 up", "x, y"]), min_size=1, unique=True))
def test_other_lines_are_names(names):
    if not any(name[0].isalpha() for name in names):
        return
    assert [leaf.name for leaf in read_list("\n".join(names)).leaves()] == names


def test_plain_takes_lines_as_they_stand():
    assert [leaf.name for leaf in read_list("0: a\n1: b\n# c\n", plain=True).leaves()] == ["0: a", "1: b"]
