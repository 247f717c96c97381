"""Budgets: counts against all that there are, prices against profiles, trees against their promises."""

import itertools
import math
import random
from statistics import pstdev

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlnet.errors import UsageError
from hlnet.model.cost import Part, profile, unit_costs
from hlnet.model.hierarchical import HierarchicalNet
from hlnet.model.presets import network_config
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.construct.budget import Budget, affordable, expert_costs, fit_counts, sorted_by_group, tree_for_budget
from hlnet.tree.construct.cluster import dendrogram
from hlnet.tree.construct.levels import cut_to_levels
from hlnet.tree.hierarchy import Hierarchy


def parts(trunk, *prices):
    """Units with these parameters, and ten times the multiply-accumulates, the levels' in reverse; and bytes."""
    macs = [10 * price for price in (trunk, *reversed(prices))]
    return [
        Part(name="any", nodes=1, params=price, macs=count, bytes=4 * price + 1)
        for price, count in zip((trunk, *prices), macs, strict=True)
    ]


@st.composite
def requests(draw, measures=("params", "macs", "bytes")):
    """Units of one to four levels, up to 14 classes, and a budget that allows one node a level, or somewhat more."""
    units = parts(draw(st.integers(0, 50)), *draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    classes, budget = draw(st.integers(1, 14)), Budget(draw(st.sampled_from(measures)), 0)
    levels = len(units) - 1
    least, most = (budget.spent(units, (count,) * (levels - 1) + (classes,)) for count in (1, classes))
    return units, classes, Budget(budget.measure, draw(st.integers(least, most + 5)) + draw(st.sampled_from([0, 0.5])))


def all_counts(units, classes, budget):
    """All counts within a budget that one more node at the last level above the classes would break.

    None is more than half the next, so that nodes have two children on average, unless it is 1.
    """

    def allowed(counts):
        halves = all(above == 1 or 2 * above <= below for above, below in itertools.pairwise(counts))
        return halves and budget.spent(units, counts) <= budget.limit

    for inner in itertools.product(range(1, classes + 1), repeat=len(units) - 2):
        counts = (*inner, classes)
        more = (*inner[:-1], inner[-1] + 1, classes) if inner else None
        if allowed(counts) and (more is None or not allowed(more)):
            yield counts


def unevenness(counts):
    return pstdev(math.log(below / above) for above, below in itertools.pairwise((1, *counts)))


@settings(max_examples=150, deadline=None)
@given(requests())
def test_all_counts_that_spend_a_budget(case):
    levels = len(case[0]) - 1
    expected, found = list(all_counts(*case)), list(affordable(*case))
    assert sorted(found) == sorted(expected)
    best = fit_counts(*case)
    assert best in expected
    assert unevenness(best) == pytest.approx(min(map(unevenness, expected)), abs=1e-9)
    few = list(affordable(*case, choices=3))
    assert few and set(few) <= set(expected) and len(few) <= max(3, 2 ** (levels - 2))


@settings(max_examples=50, deadline=None)
@given(requests())
def test_too_small_a_budget(case):
    units, classes, budget = case
    least = (1,) * (len(units) - 2) + (classes,)
    exactly = budget.spent(units, least)
    assert next(affordable(units, classes, Budget(budget.measure, exactly))) == least
    with pytest.raises(UsageError, match=f"too small: {classes} classes .*{','.join(map(str, least))} nodes"):
        fit_counts(units, classes, Budget(budget.measure, exactly - 0.5))


def test_counts_by_hand():
    units = parts(100, 50, 10, 1)
    assert Budget("params", 0).spent(units, (2, 5, 20)) == 100 + 2 * 50 + 5 * 10 + 20
    assert Budget("macs", 0).spent(units, (2, 5, 20)) == 10 * (100 + 2 * 1 + 5 * 10 + 20 * 50)
    assert fit_counts(units, 20, Budget("params", 290)) == (2, 7, 20)  # not (1, 12) nor (3, 2)
    steps = affordable(units, 1000, Budget("params", 1e6), choices=4)
    assert list(steps) == [(count, 500, 1000) for count in (1, 10, 100)]


@pytest.mark.parametrize(
    ("text", "measure", "limit"),
    [
        ("25M", "params", 25e6),
        (" 100k ", "params", 1e5),
        (".5m", "params", 5e5),
        ("4.2GMAC", "macs", 4.2e9),
        ("850 MMACs", "macs", 850e6),
        ("850mmacs", "macs", 850e6),
        ("20K macs", "macs", 2e4),
        ("40MB", "bytes", 40e6),
        (" 1.5 gb", "bytes", 1.5e9),
    ],
)
def test_budgets_that_are_read(text, measure, limit):
    assert Budget.parse(text) == Budget(measure, pytest.approx(limit))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "M",
        "25",
        "GMAC",
        "0M",
        "0.0GMAC",
        "-5M",
        "25T",
        "2.M",
        "1e6",
        "25 MFLOPs",
        "25M params",
        "4,2G",
        "nanM",
        "25MM",
    ],
)
def test_budgets_that_are_none(text):
    with pytest.raises(UsageError, match="expected parameters, such as 15M") as caught:
        Budget.parse(text)
    assert f"'{text}'" in str(caught.value) and "\n" not in str(caught.value)


def test_amounts_are_told():
    assert Budget("params", 1).text(25_613_800) == "25.61M parameters"
    assert Budget("bytes", 1).text(40e6) == "40 MB of weights"
    assert Budget("macs", 1).text(4.2e9) == "4.2 GMACs"


# ---------------------------------------------------------------------- experts


TREE = ClassTree.from_nested({"cat": {"wild": ["lion", "lynx"], "tabby": {}}, "dog": ["pug", "boxer"], "saw": {}})
GROUPS = {"one": ["saw"], "cats": ("lion", "lynx", "tabby"), "mixed": {"lynx", "pug"}, "twice": ["pug", "pug"]}


@pytest.mark.parametrize("backbone", ["test_resnet", "n3hl_resnet50"])
def test_prices_are_the_experts_profiles(backbone):
    config = network_config(backbone, levels=3)
    units, _ = unit_costs(config)
    params, macs = (expert_costs(TREE, GROUPS, units, Budget(measure, 1)) for measure in ("params", "macs"))
    assert params.shape == macs.shape == (len(GROUPS),)
    for number, names in enumerate(GROUPS.values()):
        if backbone == "test_resnet" or number == 2:
            cost = profile(config, TREE, classes=list(names)).expert
            assert (params[number], macs[number]) == (cost.params, pytest.approx(cost.gmacs * 1e9, rel=1e-12))
        if backbone == "test_resnet":
            expert = HierarchicalNet(config, TREE.prune([TREE.classes.index(name) for name in names]))
            assert params[number] == sum(tensor.numel() for tensor in expert.parameters())


def outline_of(draw, classes):
    """A random hierarchy of classes c0, c1, … — numbered in another order than they stand."""
    nodes = [Hierarchy(f"c{i}", index=i) for i in draw.sample(range(classes), classes)]
    while len(nodes) > 1:
        start = draw.randrange(len(nodes))
        chosen = nodes[start : start + draw.randint(1, 5)]
        nodes[start : start + len(chosen)] = [Hierarchy(f"g{chosen[0].name}.{len(nodes)}", chosen)]
        if len(chosen) == 1:
            nodes[start] = chosen[0]
    return nodes[0] if nodes[0].children else Hierarchy("", nodes)


def random_groups(draw, classes):
    names = [f"c{i}" for i in range(classes)]
    return {f"e{i}": draw.sample(names, draw.randint(1, max(1, classes // 3))) for i in range(draw.randint(1, 5))}


def naive_price(tree, names, units, budget):
    paths = {leaf.name: leaf.path.split("/") for leaf in tree.leaves}
    price = budget.of(units[0])
    for level in range(tree.num_levels):
        price += budget.of(units[level + 1]) * len({tuple(paths[name][: level + 1]) for name in names})
    return price


@pytest.mark.parametrize("seed", range(25))
def test_tree_for_budget(seed):
    """It keeps to the budget; its experts are no dearer than those of the same counts cut without their groups."""
    draw = random.Random(seed)
    classes, levels = draw.randint(1, 30), draw.randint(1, 4)
    units = parts(draw.randint(1, 99), *(draw.randint(1, 60) for _ in range(levels)))
    budget = Budget(draw.choice(["params", "macs", "bytes"]), 0)
    least, most = (budget.spent(units, (count,) * (levels - 1) + (classes,)) for count in (1, classes))
    budget = Budget(budget.measure, draw.randint(least, most))
    root, groups = outline_of(draw, classes), random_groups(draw, classes)
    kept = sorted((leaf.name, leaf.index) for leaf in root.leaves())

    plain = tree_for_budget(root, units, budget)
    assert plain.counts == fit_counts(units, classes, budget)
    assert plain == cut_to_levels(root, plain.counts[:-1]).to_tree(levels)
    tree = tree_for_budget(root, units, budget, groups)
    for found in (plain, tree):
        assert budget.spent(units, found.counts) <= budget.limit and found.num_levels == levels
        assert sorted((leaf.name, leaf.index) for leaf in found.leaves) == kept
    costs = expert_costs(tree, groups, units, budget)
    assert costs.tolist() == [naive_price(tree, names, units, budget) for names in groups.values()]
    for other in affordable(units, classes, budget, choices=40):
        without = cut_to_levels(root, other[:-1]).to_tree(levels)
        assert costs.mean() <= expert_costs(without, groups, units, budget).mean()
    assert tree == tree_for_budget(root, units, budget, groups)


def test_expert_of_a_group_is_cheap_where_the_hierarchy_parts_it():
    """Three groups across three others: sorted by group, each expert needs one node a level."""
    root = Hierarchy("", [Hierarchy(f"g{i}", [Hierarchy(f"c{i}{k}") for k in range(3)]) for i in range(3)])
    groups = {f"e{k}": [f"c{i}{k}" for i in range(3)] for k in range(3)}
    units, budget = parts(1, 40, 1), Budget("params", 1 + 3 * 40 + 9)
    assert expert_costs(tree_for_budget(root, units, budget), groups, units, budget).tolist() == [1 + 3 * 40 + 3] * 3
    tree = tree_for_budget(root, units, budget, groups)
    assert expert_costs(tree, groups, units, budget).tolist() == [1 + 40 + 3] * 3


@pytest.mark.parametrize("groups", [None, {"e": ["c0", "c5", "c9", "c3"]}, {"e": ["c0", "c5"]}])
def test_max_children(groups):
    root, units = Hierarchy("", [Hierarchy(f"c{i}") for i in range(16)]), parts(1, 9, 1)
    budget = Budget("params", 1 + 4 * 9 + 16)
    for limit in (4, 5, 16):
        tree = tree_for_budget(root, units, budget, groups, max_children=limit)
        assert tree.counts == (4, 16) and max(tree.sibling_counts[1]) <= limit
    with pytest.raises(UsageError, match="keeping to 3 children"):
        tree_for_budget(root, units, budget, groups, max_children=3)


def test_class_of_a_group_that_is_none():
    units, budget = parts(1, 1, 1), Budget("params", 99)
    with pytest.raises(UsageError, match="'newt'"):
        expert_costs(TREE, {"all": ["pug"], "wrong": ["saw", "newt"]}, units, budget)
    with pytest.raises(UsageError, match="'newt'"):
        tree_for_budget(Hierarchy.of(TREE), units, budget, {"wrong": ["saw", "newt"]})


# ---------------------------------------------------------------------- sorted by group


@pytest.mark.parametrize(
    "names", [["e0", "e1", "e2"], ["other", "e1", "e2"], ["e0", "e1", "e0+e1"], ["home/office", "e1", "e2"]]
)
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_sorted_by_group(names, twice):
    """One node for each combination of groups, the hierarchy's groups within, whatever the groups are called."""
    draw = random.Random(0)
    root = outline_of(draw, 20)
    groups = {name: draw.sample([f"c{i}" for i in range(20)], 7) for name in names}
    given = {name: members + members[:3] * twice for name, members in groups.items()}
    combinations = {}
    for leaf in root.leaves():
        inside = tuple(name for name in names if leaf.name in groups[name])
        combinations.setdefault(inside, set()).add(leaf.name)
    assert len(combinations) == 8
    found = sorted_by_group(root, given)
    expected = {frozenset(members): inside for inside, members in combinations.items()}
    for child in found.children:
        members = {leaf.name for leaf in child.leaves()}
        assert frozenset(members) in expected
        assert child.contracted().to_tree() == root.only(members).contracted().to_tree()
    assert len(found.children) == 8
    tree = found.to_tree()
    assert set(zip(tree.classes, tree.indices, strict=True)) == {(leaf.name, leaf.index) for leaf in root.leaves()}


def test_sorted_dendrogram_is_cut_by_height():
    """Both groups go across the last merge; sorted, both are parted there, before any pair is."""
    pairs = [(0, 1), (4, 5), (2, 3), (6, 7), (8, 10), (9, 11), (12, 13)]
    merges = np.array([(*pair, rank, 0) for rank, pair in enumerate(pairs)], float)
    root = dendrogram(merges, [f"c{i}" for i in range(8)])
    groups = {"one": ["c0", "c1", "c4", "c5"], "other": ["c2", "c3", "c6", "c7"]}
    for hierarchy in (root, sorted_by_group(root, groups)):
        found = cut_to_levels(hierarchy, [4], together=groups.values())
        assert [[leaf.index for leaf in node.leaves()] for node in found.children] == [[0, 1], [2, 3], [4, 5], [6, 7]]
