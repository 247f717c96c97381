"""Comparing trees: Robinson–Foulds as dendropy's, cophenetic correlation over all pairs; what is odd about one."""

import itertools
import re
import statistics

import dendropy
import numpy as np
import pytest
from dendropy.calculate.treecompare import symmetric_difference
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr

from hlnet.errors import TreeError
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.measures import check_tree, compare_trees

SHAPES = st.recursive(st.none(), lambda below: st.lists(below, min_size=1, max_size=4), max_leaves=12).filter(bool)


@st.composite
def trees(draw, classes=12):
    """A tree of uneven depth, with chains, over a few of so many classes; perhaps continued."""
    numbers, names = itertools.count(), iter(draw(st.permutations(range(classes))))

    def mapping(shape):
        return {
            f"g{next(numbers)}" if below else f"c{next(names)}": mapping(below) if below else None for below in shape
        }

    nested = mapping(draw(SHAPES))
    tree = ClassTree.from_nested(nested)
    return ClassTree.from_nested(nested, tree.num_levels + draw(st.integers(0, 2)))


def newick(nested):
    below = (f"({newick(value)}){name}" if isinstance(value, dict) else name for name, value in nested.items())
    return ",".join(below)


def paths(tree):
    """The nodes above each class, by its name."""
    return {leaf.name: leaf.path.split("/")[:-1] for leaf in tree.leaves}


def naive_groups(tree, shared):
    above = paths(tree)
    nodes = {tuple(parts[:end]) for parts in above.values() for end in range(1, len(parts) + 1)}
    sets = {frozenset(name for name in shared if tuple(above[name][: len(node)]) == node) for node in nodes}
    return {group for group in sets if 1 < len(group) < len(shared)}


def naive_correlation(first, second, shared):
    """Of the number of groups that two classes share: how deep their lowest common ancestor lies, without chains."""

    def depths(groups):
        return [sum({a, b} <= group for group in groups) for a, b in itertools.combinations(shared, 2)]

    one, other = (depths(naive_groups(tree, shared)) for tree in (first, second))
    return None if len(set(one)) == 1 or len(set(other)) == 1 else pearsonr(one, other).statistic


@settings(max_examples=200, deadline=None)
@given(trees(), trees())
def test_comparison_is_the_naive_one(first, second):
    shared = sorted(set(first.classes) & set(second.classes))
    if len(shared) < 2:
        with pytest.raises(TreeError, match=f"share {len(shared)} of"):
            compare_trees(first, second)
        return
    found = compare_trees(first, second)
    ours, theirs = naive_groups(first, shared), naive_groups(second, shared)
    assert found.classes == len(shared)
    assert found.only_first == [name for name in first.classes if name not in shared]
    assert found.only_second == [name for name in second.classes if name not in shared]
    assert (found.groups, found.shared_groups) == ((len(ours), len(theirs)), len(ours & theirs))
    assert found.robinson_foulds == len(ours ^ theirs)
    share = len(ours ^ theirs) / (len(ours) + len(theirs)) if ours or theirs else 0
    assert found.normalized_robinson_foulds == pytest.approx(share)
    expected = naive_correlation(first, second, shared)
    assert found.cophenetic_correlation == (expected if expected is None else pytest.approx(expected, abs=1e-9))


@settings(max_examples=100, deadline=None)
@given(trees(), trees())
def test_robinson_foulds_is_dendropys(first, second):
    shared = set(first.classes) & set(second.classes)
    assume(len(shared) > 1)
    taxa = dendropy.TaxonNamespace(sorted(shared))
    one, other = (
        dendropy.Tree.get(
            data=f"({newick(tree.prune([i for i, name in enumerate(tree.classes) if name in shared]).to_nested())});",
            schema="newick",
            rooting="force-rooted",
            taxon_namespace=taxa,
        )
        for tree in (first, second)
    )
    assert compare_trees(first, second).robinson_foulds == symmetric_difference(one, other)


@settings(max_examples=50, deadline=None)
@given(trees())
def test_a_tree_is_like_itself(tree):
    assume(len(tree.classes) > 1)
    found = compare_trees(tree, tree)
    assert (found.robinson_foulds, found.normalized_robinson_foulds, found.only_first) == (0, 0, [])
    assert found.groups == (found.shared_groups,) * 2
    assert found.cophenetic_correlation is None or found.cophenetic_correlation == pytest.approx(1)


def test_comparison_by_hand():
    first = ClassTree.from_nested({"pet": ["cat", "dog"], "wild": {"feline": ["lion", "lynx"], "wolf": None}}, levels=4)
    second = ClassTree.from_nested({"feline": ["cat", "lion", "lynx"], "canine": ["dog", "wolf"], "saw": {}})
    found = compare_trees(first, second)
    assert (found.classes, found.only_first, found.only_second) == (5, [], ["saw"])
    assert (found.groups, found.shared_groups, found.robinson_foulds) == ((3, 2), 0, 5)
    # Depths of pairs: cat-dog, cat-lion, cat-lynx, cat-wolf, dog-lion, dog-lynx, dog-wolf, lion-lynx, lion-wolf, …
    depths = [1, 0, 0, 0, 0, 0, 0, 2, 1, 1], [0, 1, 1, 0, 0, 0, 1, 1, 0, 0]
    assert found.cophenetic_correlation == pytest.approx(statistics.correlation(*depths))


IDS = {"cat": "n1", "dog": "n2", "saw": "n3", "pet": "x"}


@pytest.mark.parametrize(
    ("missing", "shared", "only_first", "only_second"),
    [(None, 3, [], []), ("saw", 2, ["saw"], ["dog"]), ("chat", 2, ["cat"], ["chat"])],
)
def test_classes_are_matched_by_id(missing, shared, only_first, only_second):
    english = ClassTree.from_nested({"pet": ["cat", "dog"], "saw": {}})
    french = ClassTree.from_nested({"outil": ["dog"], "animal": ["chat", "chien"]})  # 'dog' is a saw's nickname
    ids = {"chat": "n1", "chien": "n2", "dog": "n3"}
    first = english.with_ids({name: mark for name, mark in IDS.items() if name != missing})
    second = french.with_ids({name: mark for name, mark in ids.items() if name != missing})
    found = compare_trees(first, second)
    assert (found.classes, found.only_first, found.only_second) == (shared, only_first, only_second)
    assert found.robinson_foulds == 0


def test_folders_named_by_ids_are_matched_with_names():
    named = ClassTree.from_nested({"pet": ["cat", "dog"], "saw": {}}).with_ids({"cat": "n1", "dog": "n2", "saw": "n3"})
    folders = ClassTree.from_nested({"a": ["n1", "n3"], "n2": {}})
    for one, other in ((named, folders), (folders, named)):
        found = compare_trees(one, other)
        assert (found.classes, found.robinson_foulds, found.only_first, found.only_second) == (3, 2, [], [])


def test_twenty_thousand_classes():
    """Numbers over 2e8 pairs stay exact: two partitions of 21,000 into 150 and 140, crossing each other."""
    one, other = (
        ClassTree.from_nested({f"g{g}": {f"c{i}": i for i in range(g, 21_000, groups)} for g in range(groups)})
        for groups in (150, 140)
    )
    found = compare_trees(one, other)
    pairs = 21_000 * 20_999 / 2
    p, q = 150 * (140 * 139 / 2) / pairs, 140 * (150 * 149 / 2) / pairs
    both = 2100 * (10 * 9 / 2) / pairs  # alike modulo 150 and 140, and so modulo 2100
    assert found.robinson_foulds == 290
    expected = (both - p * q) / np.sqrt(p * (1 - p) * q * (1 - q))
    assert found.cophenetic_correlation == pytest.approx(expected, rel=1e-6)


# ---------------------------------------------------------------------- oddities


def numbered(prefix, count):
    return [f"{prefix}{i}" for i in range(count)]


def groups(*sizes):
    return {f"g{i}": numbered(f"c{i}.", size) for i, size in enumerate(sizes)}


ODD = {
    "nothing": (groups(3, 4, 2), {}),
    "nothing in two levels": ({"a": groups(3, 2), "b": {"h": ["x", "y"], "i": ["z", "w"]}}, {}),
    "nothing in classes alone": (["a", "b", "c"], {}),
    "one class": (["a"], {}),
    "chain": ({"a": {"b": ["x", "y"]}, "c": {"d": ["z", "v"], "e": ["w", "u"]}}, {"chain": "level 2: .*'a/b'"}),
    "chain of classes": ({"a": ["x"], "b": ["y", "z"], "c": ["v", "w"]}, {"chain": "'a/x'", "private": "'a'"}),
    "four and more": (
        {"z": ["x", "y"]} | {name: [f"{name}1"] for name in "abcdef"},
        {"chain": "'d/d1' and 2 more$", "private": "'a', 'b', 'c', 'd' and 2 more$"},
    ),
    "level": (
        {"a": {"b": ["x", "y"]}, "c": {"d": ["z", "w"]}},
        {"level": "level 2 has as many nodes as level 1", "chain": "'a/b', 'c/d'"},
    ),
    "private": ({"g": ["x", "y"], "h": {}}, {"private": "one class: 'h'$"}),
    "private all": (dict.fromkeys("abc"), {}),
    "twenty children": (groups(20, 3, 4), {}),
    "twenty-one children": (groups(21, 3, 4), {"wide": "'g0' has 21 children, where 4 are usual"}),
    "five times the usual": (groups(25, 5, 5), {}),
    "more than five times": (groups(26, 5, 5), {"wide": "'g0' has 26 children, where 5 are usual"}),
    "half of the level": (groups(29, 7, 3, 4), {"wide": "where 5.5 are usual"}),
    "nine of ten": (
        {"g": {"h": numbered("x", 9), "y": {}}, "i": ["v", "w"]},
        {"lopsided": "'g': one of its 2 children holds 9 of 10 classes"},
    ),
    "eight of nine": ({"g": {"h": numbered("x", 8), "y": {}}, "i": ["v", "w"]}, {}),
    "nine of eleven": ({"g": {"h": numbered("x", 9), "y": {}, "z": {}}, "i": ["v", "w"]}, {}),
    "all of ten": ({"g": {"h": numbered("x", 10)}, "i": {"j": ["v", "w"], "k": ["r", "s"]}}, {"chain": "'g/h'"}),
}


@pytest.mark.parametrize("nested, kinds", ODD.values(), ids=ODD.keys())
def test_oddities(nested, kinds):
    found = check_tree(ClassTree.from_nested(nested))
    assert {oddity.kind for oddity in found} == set(kinds) and len(found) == len(kinds)
    for oddity in found:
        assert re.search(kinds[oddity.kind], oddity.message)
        assert "\n" not in oddity.message


def test_a_continued_class_is_no_oddity():
    tree = ClassTree.from_nested({"g": {"h": ["x", "y"], "i": ["v", "w"]}, "j": ["r", "s"]}, levels=4)
    assert check_tree(tree) == [] and check_tree(ClassTree.parallel(["a", "b"], levels=3)) == []
    assert [oddity.kind for oddity in check_tree(ClassTree.from_nested({"g": ["x", "y"], "z": {}}, levels=3))] == [
        "private"
    ]
