"""Condensing: the documented rule, done naively; scipy's cuts of dendrograms; experts' sets kept together."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import cut_tree, linkage

from hlnet.errors import TreeError, UsageError
from hlnet.tree.construct.cluster import LINKAGES, dendrogram
from hlnet.tree.construct.levels import check_nodes, cut_to_levels, even_counts
from hlnet.tree.hierarchy import Hierarchy, group_name

SHAPES = st.recursive(st.none(), lambda below: st.lists(below, min_size=1, max_size=6), max_leaves=16).filter(bool)


def build(shape, indices, names=None):
    """An hierarchy of this shape: groups g…, some with ids; classes c0, c1, … with these indices."""
    names = names or itertools.count()
    if shape is None:
        index = next(indices)
        return Hierarchy(f"c{index}", index=index, id=f"id{index}" if index % 3 else None)
    number = next(names)
    return Hierarchy(f"g{number}", [build(below, indices, names) for below in shape], id=f"id-{number}")


@st.composite
def nodes_by_key(draw):
    root = build(draw(SHAPES), iter(draw(st.permutations(range(16)))))
    root.name, root.id = "", None
    return root


@st.composite
def outlines_and_nodes(draw):
    root = draw(nodes_by_key())
    counts = st.lists(st.integers(1, len(root.leaves())), max_size=3).map(sorted)
    return root, draw(counts)


def below(node):
    return frozenset(leaf.index for leaf in node.leaves())


def levels_of(hierarchy, nodes):
    """The sets of classes below the nodes of each level; a class that ends early stands at all further levels."""
    row, result = [hierarchy], []
    for _ in nodes:
        row = [child for node in row for child in node.children or [node]]
        result.append([below(node) for node in row])
    return result


class Naive:
    """The rule as the module's docstring has it, on sets of classes."""

    def __init__(self, hierarchy):
        self.halves, self.heights = {}, {}
        self.everything = self.in_halves(hierarchy)

    def in_halves(self, node):
        sets = [self.in_halves(child) for child in node.children] or [frozenset([node.index])]
        while len(sets) > 1:
            a, b, *others = sorted(sets, key=lambda s: (len(s), min(s)))
            self.halves[a | b] = (a, b)
            sets = [a | b, *others]
        self.heights[sets[0]] = self.heights.get(sets[0], node.height)
        return sets[0]

    def levels(self, nodes, max_children=None, together=()):
        units, result = [frozenset([i]) for i in self.everything], []
        for count in reversed(nodes):
            groups = [self.everything]
            while True:
                sizes = {group: sum(unit <= group for unit in units) for group in groups}
                too_large = [group for group in groups if sizes[group] > (max_children or len(self.everything))]
                if len(groups) >= count and not too_large:
                    break
                chosen = min(
                    (group for group in groups if sizes[group] > 1),
                    key=lambda g: (
                        g not in too_large,
                        sum(all(half & asked for half in self.halves[g]) for asked in together),
                        -self.heights.get(g, 0),
                        -sizes[g],
                        min(g),
                    ),
                )
                groups.remove(chosen)
                groups += self.halves[chosen]
            if len(groups) > count:
                return None  # cannot be had
            units = groups
            result.insert(0, set(groups))
        return result


@settings(max_examples=150, deadline=None)
@given(outlines_and_nodes(), st.sampled_from([None, None, 1, 2, 3, 5]))
def test_the_documented_rule(case, max_children):
    root, nodes = case
    before = [(node.name, node.id, node.index) for node in root.walk()]
    expected = Naive(root).levels(nodes, max_children)
    if expected is None:
        with pytest.raises(UsageError, match=f"keeping to {max_children} children"):
            cut_to_levels(root, nodes, max_children)
        return
    found = cut_to_levels(root, nodes, max_children)
    assert [set(level) for level in levels_of(found, nodes)] == expected
    tree = found.to_tree(len(nodes) + 1)
    assert tree.counts == (*nodes, len(root.leaves()))
    assert all(len(node.children) <= (max_children or 16) for node in list(found.walk())[1:])
    kept = {(leaf.name, leaf.index, leaf.id) for leaf in root.leaves()}
    assert {(leaf.name, leaf.index, leaf.id) for leaf in tree.leaves} == kept
    for node in found.walk():
        firsts = [min(below(child)) for child in node.children]
        assert firsts == sorted(firsts)
    assert [(node.name, node.id, node.index) for node in root.walk()] == before
    assert cut_to_levels(root, nodes, max_children).to_tree(len(nodes) + 1) == tree


@settings(max_examples=150, deadline=None)
@given(outlines_and_nodes())
def test_names(case):
    """A whole node keeps its name and id; siblings give theirs; all there is is named after the groups in it."""
    root, nodes = case
    whole = {below(node): node for node in root.walk()}  # of a chain, the lowest
    for group in list(cut_to_levels(root, nodes).walk())[1:]:
        node = whole.get(below(group))
        if node is root:  # all there is
            assert group.name == group_name([child.name for child in group.children])
            continue
        if node is not None:
            assert (group.name, group.id) == (node.name, node.id)
            continue
        over = whole[min((classes for classes in whole if classes > below(group)), key=len)]
        names = {whole[below(child)].name: below(child) for child in over.children if below(child) <= below(group)}
        first, *rest = group.name.replace("-more", "").split("+")
        listed = {first, *rest[:2]}
        assert len(listed) == min(3, len(names)) and listed <= names.keys() and group.id is None
        assert min(below(group)) in names[first]
        assert rest[2:] == ([str(len(names) - 3)] if len(names) > 3 else [])


@pytest.mark.parametrize("method", LINKAGES)
@pytest.mark.parametrize("nodes", [(1,), (4, 13), (2, 2, 9, 40)])
def test_dendrograms_are_cut_as_by_scipy(method, nodes):
    merges = linkage(np.random.default_rng(1).normal(size=(40, 3)), method)
    found = levels_of(cut_to_levels(dendrogram(merges, [f"c{i}" for i in range(40)]), nodes), nodes)
    for level, count in zip(found, nodes, strict=True):
        merged = [frozenset([i]) for i in range(40)]
        merged += [None] * 39
        for rank, (a, b) in enumerate(merges[: 40 - count, :2].astype(int), start=40):
            merged[rank], merged[a], merged[b] = merged[a] | merged[b], None, None
        assert set(level) == set(merged) - {None} and len(level) == count
        if method not in {"centroid", "median"}:  # whose merges are not in the order of their heights
            labels = cut_tree(merges, count)[:, 0]
            assert set(level) == {frozenset(np.flatnonzero(labels == label).tolist()) for label in range(count)}


def random_dendrogram(draw, classes):
    """Random merges of classes; the hierarchy, named c0, c1, …"""
    alive, merges = list(range(classes)), []
    for rank in range(classes - 1):
        a, b = draw.sample(alive, 2)
        alive = [node for node in alive if node not in (a, b)] + [classes + rank]
        merges.append((a, b, rank, 0))
    return dendrogram(np.array(merges, float), [f"c{i}" for i in range(classes)])


def random_sets(draw, classes, count):
    return [draw.sample(range(classes), draw.randint(1, classes // 2)) for _ in range(count)]


@pytest.mark.parametrize("seed", range(40))
def test_together_is_the_documented_rule(seed):
    draw = random.Random(seed)
    root, asked = random_dendrogram(draw, 14), random_sets(draw, 14, draw.randint(1, 5))
    nodes = sorted(draw.choices(range(1, 15), k=2))
    max_children = draw.choice([None, 6])
    expected = Naive(root).levels(nodes, max_children, [set(numbers) for numbers in asked])
    names = [[f"c{i}" for i in numbers] for numbers in asked]
    if expected is None:
        with pytest.raises(UsageError):
            cut_to_levels(root, nodes, max_children, iter(names))
    else:
        found = cut_to_levels(root, nodes, max_children, iter(names))
        assert [set(level) for level in levels_of(found, nodes)] == expected


@settings(max_examples=150, deadline=None)
@given(nodes_by_key(), st.data())
def test_sets_that_are_nodes_are_not_parted_before_they_must_be(root, data):
    """For disjoint nodes of the hierarchy: each is one group until all else is split; then no split is wasted."""
    places = data.draw(st.permutations(list(root.walk())[1:]))
    asked = []
    for node in places[: data.draw(st.integers(1, 4))]:
        asked += [below(node)] if not any(below(node) & other for other in asked) else []
    assume(asked)
    others = len(root.leaves()) - sum(map(len, asked))
    count = data.draw(st.integers(1, len(root.leaves())))
    names = [[f"c{i}" for i in numbers] for numbers in asked]
    (level,) = levels_of(cut_to_levels(root, [count], together=names), [count])
    touched = sum(bool(group & numbers) for group in level for numbers in asked)
    assert touched == max(len(asked), count - others)


def cuts(root):
    """Every way to cut a binary hierarchy into groups."""
    yield [below(root)]
    if root.children:
        left, right = root.children
        for one, other in itertools.product(list(cuts(left)), list(cuts(right))):
            yield one + other


def test_together_comes_near_the_best_cut():
    """Against all cuts with as many groups: never below the best, mostly there, and better than without sets."""
    found = []
    for seed in range(40):
        draw = random.Random(seed)
        root, asked = random_dendrogram(draw, 10), random_sets(draw, 10, 3)
        count = draw.randint(2, 8)
        names = [[f"c{i}" for i in numbers] for numbers in asked]

        def touched(groups, asked=asked):
            return sum(bool(group & set(numbers)) for group in groups for numbers in asked)

        best = min(touched(groups) for groups in cuts(root) if len(groups) == count)
        ours, plain = (
            touched(levels_of(cut_to_levels(root, [count], together=sets), [count])[0]) for sets in (names, [])
        )
        assert ours >= best
        found.append((best, ours, plain))
    best, ours, plain = np.array(found).T
    assert np.mean(ours == best) >= 0.7 > np.mean(plain == best) and ours.sum() <= 1.05 * best.sum()


def test_alike_siblings_are_paired():
    """Without any group in the hierarchy, classes that are asked for alike end up together."""
    root = Hierarchy("", [Hierarchy(f"c{i}", index=i) for i in range(12)])
    asked = [{i for i in range(12) if i % 3 == rest} for rest in range(3)]
    together = [[f"c{i}" for i in numbers] for numbers in asked]
    assert {frozenset(numbers) for numbers in asked} == set(
        levels_of(cut_to_levels(root, [3], together=together), [3])[0]
    )
    assert levels_of(cut_to_levels(root, [3]), [3])[0] != [frozenset(numbers) for numbers in asked]


def test_siblings_with_sets_in_common_are_paired():
    root = Hierarchy("", [Hierarchy(f"c{i}", index=i) for i in range(4)])
    together = [["c0", "c2"], ["c2", "c0"], ["c1", "c3"], ["c1", "c3"], ["c2"], ["c3"], ["c0", "c1"]]
    assert levels_of(cut_to_levels(root, [2], together=together), [2])[0] == [{0, 2}, {1, 3}]


@pytest.mark.parametrize(
    ("nodes", "max_children"), [((0,), None), ((-1, 3), None), ((3, 2), None), ((6,), None), ((2, 6), None), ((2,), 2)]
)
def test_numbers_that_cannot_be_had(nodes, max_children):
    root = Hierarchy("", [Hierarchy(f"c{i}") for i in range(5)])
    words = (
        "keeping to 2 children a node took 3 nodes at level 1, where 2 were"
        if max_children
        else ",".join(map(str, nodes))
    )
    with pytest.raises(UsageError, match=words) as caught:
        cut_to_levels(root, nodes, max_children)
    assert "\n" not in str(caught.value)
    if max_children is None:
        with pytest.raises(UsageError, match="5 classes"):
            check_nodes(nodes, 5)


@pytest.mark.parametrize(
    "leaves",
    [
        [Hierarchy("x"), Hierarchy("x"), Hierarchy("y")],
        [Hierarchy("x", index=1), Hierarchy("y", index=1), Hierarchy("z", index=1)],
        [Hierarchy("x", index=1), Hierarchy("y"), Hierarchy("z")],
    ],
    ids=["name", "index", "index, once by order"],
)
def test_class_that_stands_twice_is_refused(leaves):
    with pytest.raises(TreeError):
        cut_to_levels(Hierarchy("", leaves), [1]).to_tree()


def test_no_level_above_the_classes():
    root = Hierarchy("", [Hierarchy("g", [Hierarchy("b", index=1), Hierarchy("c", index=2)]), Hierarchy("a", index=0)])
    assert cut_to_levels(root, []).to_tree().to_nested() == {"a": 0, "b": 1, "c": 2}
    assert cut_to_levels(Hierarchy("", [Hierarchy("a")]), [1, 1]).to_tree(3).counts == (1, 1, 1)


def test_twenty_thousand_classes():
    draw = np.random.default_rng(0)
    nodes = [Hierarchy(f"c{i}", index=i) for i in range(21_000)]
    while len(nodes) > 1:  # wide and uneven, as WordNet's
        shares = draw.geometric(0.2, len(nodes))
        ends = [0, *np.cumsum(shares)[np.cumsum(shares) < len(nodes)].tolist(), len(nodes)]
        nodes = [
            nodes[a] if b - a == 1 else Hierarchy(f"g{len(nodes)}.{a}", nodes[a:b]) for a, b in itertools.pairwise(ends)
        ]
    sets = [[f"c{i}" for i in range(start, 21_000, 97)] for start in range(5)]
    for together in ([], sets):
        tree = cut_to_levels(nodes[0], (150, 2500), 40, together).to_tree(3)
        assert tree.counts == (150, 2500, 21_000) and max(max(counts) for counts in tree.sibling_counts[1:]) <= 40
    wide = Hierarchy("", [Hierarchy(f"c{i}", index=i) for i in range(21_000)])
    assert max(cut_to_levels(wide, (20, 1000)).to_tree().sibling_counts[1]) <= 64


def test_deep_dendrogram():
    """Single linkage of points 1, 2, 4, … would merge one class after the other."""
    merges = [(0 if i == 1 else 4998 + i, i, i, i + 1) for i in range(1, 5000)]
    root = dendrogram(np.array(merges, float), [f"c{i}" for i in range(5000)])
    found = cut_to_levels(root, [3, 10]).to_tree(3)
    assert found.counts == (3, 10, 5000) and found.sibling_counts[1:] == ((8, 1, 1), (4991, *[1] * 9))
    assert found.levels[0][0].name == "c0+c1+c2+4995-more"
    assert cut_to_levels(root, [3, 10], together=[["c0", "c4999"]]).to_tree(3).counts == (3, 10, 5000)


@pytest.mark.parametrize(
    ("classes", "levels", "expected"),
    [(1000, 3, (10, 100, 1000)), (64, 2, (8, 64)), (81, 4, (3, 9, 27, 81)), (7, 1, (7,)), (1, 3, (1, 1, 1))],
)
def test_even_counts_by_hand(classes, levels, expected):
    assert even_counts(classes, levels) == expected


@given(st.integers(1, 30_000), st.integers(1, 6))
def test_even_counts(classes, levels):
    counts = even_counts(classes, levels)
    check_nodes(counts[:-1], classes)
    assert len(counts) == levels and counts[-1] == classes
    for level, count in enumerate(counts, start=1):
        assert abs(count**levels - classes**level) <= max((count + 0.51) ** levels - count**levels, 1) or count == 1
