"""Names as a language model writes them: the class that is meant, and names of groups that fit a tree."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlnet.tree.class_tree import ClassTree
from hlnet.tree.llm.names import class_finder, group_name
from hlnet.tree.nodes import normal_name


@pytest.mark.parametrize(
    "written, meant",
    [
        ("tench, Tinca tinca", "tench, Tinca tinca"),
        ("tench", "tench, Tinca tinca"),
        ("Tinca Tinca", "tench, Tinca tinca"),
        ("tench (Tinca tinca)", "tench, Tinca tinca"),
        ("Sea-Horse", "sea_horse"),
        ("seahorses", "sea_horse"),
        ("ponies", "pony"),
        ("glass", "glasses"),
        ("tabby, tabby cat", "tabby"),
        (" tabby ", "tabby"),
        ("TABBY", "tabby"),
        ("Caf\u00e9", "cafe\u0301"),
        ("+", "+"),
        ("crane", None),  # two cranes
        ("boat", None),  # BOAT and Boat, neither of them exactly
        ("Boat", "Boat"),
        ("pan", None),
        ("*", None),
        ("", None),
        ("cat", None),
    ],
)
def test_spellings(written, meant):
    known = ["tench, Tinca tinca", "sea_horse", "pony", "glasses", "tabby", "cafe\u0301", "+", "-", "crane, bird"]
    assert class_finder([*known, "crane, machine", "Boat", "BOAT", "pane"])(written) == meant


@given(st.lists(st.text(), max_size=8), st.text())
def test_found_classes_are_classes(classes, written):
    find = class_finder(classes)
    assert find(written) in {None, *classes}
    assert all(find(name) == name for name in classes if name == name.strip())


@given(st.text())
def test_mended_group_names_fit_a_tree(written):
    name = group_name(written)
    if name:
        assert ClassTree.from_nested({name: ["x"]}).levels[0][0].name == name
    assert group_name(name) == name
    if "/" not in written and written == " ".join(written.split()) and written.isprintable():
        assert name == normal_name(written)
