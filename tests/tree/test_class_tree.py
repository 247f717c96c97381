"""Class trees: what is built, refused, cut and written out again."""

import copy
import itertools
import pickle
from dataclasses import FrozenInstanceError, replace
from functools import reduce
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hlnet
from hlnet.cues.words import cues_from_text
from hlnet.errors import SelectionError, TreeError
from hlnet.tree.class_tree import MAX_LEVELS, ClassTree
from hlnet.tree.nodes import Node

PETS = {"animal": {"cat": {"tabby": 281, "siamese": 284}, "dog": {"beagle": 162}}, "saw": 491}
SHAPES = st.recursive(st.none(), lambda below: st.lists(below, min_size=1, max_size=4), max_leaves=14).filter(bool)
NAMES = st.lists(st.sampled_from(["n", "", "tench, ", "été ", "no", "1-", "*"]), min_size=1, max_size=5)


@st.composite
def nested_mappings(draw):
    """A nested mapping of uneven depth with unique names, whose leaves are all None, all indices, or all ids."""
    prefixes = itertools.cycle(draw(NAMES))
    names = (f"{prefix}{number}" for prefix, number in zip(prefixes, itertools.count(), strict=False))
    numbers = draw(st.permutations(range(0, 60, 4)))
    kind = draw(st.sampled_from(["plain", "indices", "ids"]))
    values = iter({"plain": [None] * 15, "indices": numbers, "ids": [f"id{n}" for n in numbers]}[kind])

    def mapping(shape):
        return {next(names): mapping(below) if below else next(values) for below in shape}

    return mapping(draw(SHAPES))


@st.composite
def trees_and_choices(draw):
    nested = draw(nested_mappings())
    depths = [len(parts) for parts, _ in leaves_of(nested)]
    chosen = draw(st.lists(st.integers(0, len(depths) - 1), min_size=1))
    return nested, ClassTree.from_nested(nested, max(depths) + draw(st.integers(0, 2))), chosen


def leaves_of(nested, above=()):
    for name, below in nested.items():
        if isinstance(below, dict):
            yield from leaves_of(below, (*above, name))
        else:
            yield (*above, name), below


def prefixes_at(leaves, level):
    """The distinct paths at a level, in order: the independent statement of what lies there."""
    return list(dict.fromkeys("/".join(parts[:level]) for parts, _ in leaves))


def chain(depth):
    return reduce(lambda below, number: {f"n{number}": below}, range(depth), None)


@settings(max_examples=80, deadline=None)
@given(trees_and_choices())
def test_nodes_are_the_prefixes_of_the_leaf_paths(case):
    nested, tree, _ = case
    leaves = list(leaves_of(nested))
    depth_of = {"/".join(parts): len(parts) for parts, _ in leaves}
    above = [""]
    for level, row in enumerate(tree.levels, start=1):
        assert [node.path for node in row] == prefixes_at(leaves, level)
        for node in row:
            assert node.name == node.path.split("/")[-1]
            assert node.continued == (level > depth_of.get(node.path, MAX_LEVELS))
            if level > 1:
                assert above[node.parent] == (node.path if node.continued else node.path.rpartition("/")[0])
        above = [node.path for node in row]
    values = [value for _, value in leaves]
    assert tree.indices == tuple(values if isinstance(values[0], int) else range(len(leaves)))
    assert [leaf.id for leaf in tree.leaves] == [value if isinstance(value, str) else None for value in values]
    assert all(node.index is None for row in tree.levels[:-1] for node in row)


@settings(max_examples=60, deadline=None)
@given(trees_and_choices())
def test_counts_add_up(case):
    nested, tree, _ = case
    leaves = list(leaves_of(nested))
    assert tree.counts == tuple(len(prefixes_at(leaves, level)) for level in range(1, tree.num_levels + 1))
    assert tree.offsets == tuple(itertools.accumulate(tree.counts, initial=0))
    assert tree.num_nodes == sum(tree.counts)
    assert [sum(children) for children in tree.sibling_counts] == list(tree.counts)
    assert [len(children) for children in tree.sibling_counts] == [1, *tree.counts[:-1]]
    parents = [p for children in tree.sibling_counts for p, count in enumerate(children) for _ in range(count)]
    assert parents == [node.parent for row in tree.levels for node in row]


@settings(max_examples=100, deadline=None)
@given(trees_and_choices(), st.data())
def test_prune_keeps_the_ancestors_composes_and_is_read_back(case, data):
    nested, tree, chosen = case
    expert, kept, rows = tree.prune(chosen), sorted(set(chosen)), tree.rows(chosen)
    leaves = [leaf for i, leaf in enumerate(leaves_of(nested)) if i in kept]
    for level in range(tree.num_levels):
        ours, theirs = expert.levels[level], [tree.levels[level][i] for i in rows[level]]
        assert rows[level] == tuple(sorted(set(rows[level])))
        assert [node.path for node in ours] == prefixes_at(leaves, level + 1)
        assert [replace(node, parent=0) for node in ours] == [replace(node, parent=0) for node in theirs]
        if level:
            parents = [tree.levels[level - 1][node.parent] for node in theirs]
            assert [expert.levels[level - 1][node.parent].path for node in ours] == [node.path for node in parents]
    again = data.draw(st.lists(st.integers(0, len(kept) - 1), min_size=1))
    assert expert.prune(again) == tree.prune([kept[i] for i in again])
    assert expert.prune(range(len(kept))) == expert and tree.prune(range(len(tree.leaves))) == tree
    for one in (tree, expert):
        without_ids = ClassTree(tuple(tuple(replace(node, id=None) for node in row) for row in one.levels))
        assert ClassTree.from_nested(one.to_nested(), one.num_levels) == without_ids


@settings(max_examples=60, deadline=None)
@given(trees_and_choices())
def test_ancestors_are_the_nodes_on_the_path(case):
    _, tree, chosen = case
    for one in (tree, tree.prune(chosen)):
        found = one.ancestors()
        assert found.dtype == bool and found.shape == (len(one.leaves), one.num_nodes)
        assert found.nnz == len(one.leaves) * one.num_levels
        nodes = [(level, node.path) for level, row in enumerate(one.levels, start=1) for node in row]
        expected = [[path == "/".join(leaf.path.split("/")[:level]) for level, path in nodes] for leaf in one.leaves]
        assert found.toarray().tolist() == expected


def test_uneven_depth_by_hand():
    tree = ClassTree.from_nested(PETS)
    assert [[node.path for node in row] for row in tree.levels] == [
        ["animal", "saw"],
        ["animal/cat", "animal/dog", "saw"],
        ["animal/cat/tabby", "animal/cat/siamese", "animal/dog/beagle", "saw"],
    ]
    continued = {(level, node.path) for level, row in enumerate(tree.levels, 1) for node in row if node.continued}
    assert continued == {(2, "saw"), (3, "saw")}
    assert tree.sibling_counts == ((2,), (2, 1), (2, 1, 1))
    assert (tree.indices, tree.offsets, tree.to_nested()) == ((281, 284, 162, 491), (0, 2, 5, 9), PETS)


def test_one_class():
    for nested in (["a"], ("a",), {"a": None}, {"a": {}}, {"a": 0}, MappingProxyType({"a": MappingProxyType({})})):
        assert ClassTree.from_nested(nested) == ClassTree(((Node("a", "a", 0, index=0),),))
    assert ClassTree.from_nested({7: [1]}).to_nested() == {"7": {"1": 0}}


@pytest.mark.parametrize("levels", [1, 3, 5])
def test_parallel_gives_every_class_its_own_chain(levels):
    tree = ClassTree.parallel(["cat", "dog", "saw"], levels)
    assert tree.counts == (3,) * levels and tree.sibling_counts == ((3,), *[(1, 1, 1)] * (levels - 1))
    assert [[node.continued for node in row] for row in tree.levels] == [[level > 0] * 3 for level in range(levels)]


LOOP = {"b": {}}
LOOP["b"]["c"] = LOOP
REFUSED = {
    "empty mapping": ({}, "empty"),
    "empty list": ([], "empty"),
    "empty node": ({"a": {"b": []}, "c": None}, "'a/b' is empty"),
    "doubled class": ({"a": ["x"], "b": ["x", "y"]}, "'x'"),
    "outer blank": ({"x": None, " x": None}, "' x'"),
    "number and text": ({1: None, "1": None}, "'1'"),
    "doubled index": ({"x": 3, "y": 3}, "index 3"),
    "some indices": ({"x": 3, "y": None}, "'y'"),
    "negative index": ({"x": -1}, "-1"),
    "cycle": (LOOP, "itself"),
    "slash": ({"x/y": None}, "x/y"),
    "empty name": ({" ": None}, "name"),
    "line break": (["x\ny"], "name"),
    "boolean name": ({False: 1}, "False"),
    "no name": ([None], "None"),
    "boolean value": ({"x": True}, "True"),
    "fraction": ({"x": 0.5}, "0.5"),
    "nothing": (None, "empty"),
    "deep mapping": (chain(5000), "64"),
    "deep list": ({"a": reduce(lambda below, _: [below], range(5000), [])}, "'a'"),
}


@pytest.mark.parametrize("nested, words", REFUSED.values(), ids=REFUSED.keys())
def test_refuses(nested, words):
    with pytest.raises(TreeError, match=words) as caught:
        ClassTree.from_nested(nested)
    assert "\n" not in str(caught.value)


def test_depth_limits():
    for levels in (-1, 0, 1, 2):
        with pytest.raises(TreeError, match="3 levels deep"):
            ClassTree.from_nested(PETS, levels)
    assert ClassTree.from_nested(chain(MAX_LEVELS)).num_levels == MAX_LEVELS
    with pytest.raises(TreeError, match=str(MAX_LEVELS)):
        ClassTree.from_nested(chain(MAX_LEVELS + 1))


@pytest.mark.parametrize("counts", [(1,), (6, 26, 100), (3, 3, 7), (2, 9, 10, 64)])
def test_balanced_spreads_evenly(counts):
    tree = ClassTree.balanced(counts)
    assert tree.counts == counts and tree.sibling_counts[0] == counts[:1]
    for above, count, children in zip(counts, counts[1:], tree.sibling_counts[1:], strict=False):
        assert sorted(children) == [count // above] * (above - count % above) + [count // above + 1] * (count % above)
    assert tree.classes == tuple(f"class {i}" for i in range(counts[-1])) and tree.indices == tuple(range(counts[-1]))
    names = tuple(f"n{i}" for i in range(counts[-1]))
    assert ClassTree.balanced(counts, names).classes == names and ClassTree.from_nested(tree.to_nested()) == tree


@pytest.mark.parametrize(
    "counts, classes",
    [((), None), ((0,), None), ((3, 2), None), ((1, 2), ["a"]), ((2,), ["a", "a"]), ((2,), ["a/b", "c"]), ((1,), [""])],
)
def test_balanced_refuses(counts, classes):
    with pytest.raises(TreeError):
        ClassTree.balanced(counts, classes)


A, B = Node("a", "a", 0, index=0), Node("b", "b", 0, index=1)
BROKEN = {
    "no level": ((), "at least one"),
    "empty level": (((A,), ()), "at least one"),
    "unknown parent": (((A,), (replace(B, parent=1),)), "level 2"),
    "childless": (((A, B), (replace(A, path="a/a"),)), "level 2"),
    "siblings apart": (((A, B), (A, replace(B, parent=1), Node("c", "c", 0, index=2))), "level 2"),
    "doubled path": (((A, replace(A, name="c", index=1)),), "path 'a'"),
    "no index": (((replace(A, index=None), replace(B, index=None)),), "needs its original index"),
}


@pytest.mark.parametrize("levels, words", BROKEN.values(), ids=BROKEN.keys())
def test_validates_levels(levels, words):
    with pytest.raises(TreeError, match=words):
        ClassTree(levels)


def test_immutable_and_hashable():
    tree, twin = ClassTree.from_nested(PETS), ClassTree.from_nested(PETS)
    assert tree.counts and tree == twin and len({tree, twin, tree.prune([0])}) == 2
    for thing, field in ((tree, "levels"), (tree.leaves[0], "name")):
        with pytest.raises(FrozenInstanceError):
            setattr(thing, field, None)


def test_positions():
    tree = ClassTree.from_nested({"cat": ["tabby", "siamese"], "catfish": ["wels"]})
    assert [tree.leaves_under(path) for path in ("cat", "catfish", "cat/siamese")] == [(0, 1), (2,), (1,)]
    for path in ("", "ca", "tabby", "cat/"):
        with pytest.raises(SelectionError):
            tree.leaves_under(path)
    for leaves in ([], [-1], [3], [0, 9]):
        with pytest.raises(SelectionError):
            tree.prune(leaves)


def test_ten_thousand_classes():
    names = [[f"c{100 * g + c}" for c in range(100)] for g in range(100)]
    tree = ClassTree.from_nested({f"g{g}": {n: 20000 - int(n[1:]) for n in row} for g, row in enumerate(names)})
    assert tree.counts == (100, 10000) and tree.indices == tuple(range(20000, 10000, -1))
    expert = tree.prune(range(50, 10000, 1000))
    assert expert.classes == tuple(f"c{n}" for n in range(50, 10000, 1000))
    assert [node.name for node in expert.levels[0]] == [f"g{g}" for g in range(0, 100, 10)]


def test_copies_hold_the_levels_alone():
    tree = ClassTree.from_nested({"cat": ["tabby", "siamese"], "saw": {}})
    bare = len(pickle.dumps(tree))
    assert tree.find_node("cat") and tree.class_paths.size and hlnet.select_classes(tree, "cat") == (0, 1)
    cues_from_text("meow", tree)
    assert len(pickle.dumps(tree)) == bare
    for copied in (pickle.loads(pickle.dumps(tree)), copy.deepcopy(tree)):
        assert copied == tree and copied.find_node("cat") == (0, 0) and copied.classes == tree.classes
