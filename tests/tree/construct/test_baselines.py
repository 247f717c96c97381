"""Controls: the asked counts, the same classes, even or random families."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlnet.errors import UsageError
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.construct.baselines import balanced_tree, random_tree


def flat(classes):
    """A tree of one level whose indices and ids tell more than the position."""
    tree = ClassTree.from_nested({f"c{i}": 3 * (classes - i) for i in range(classes)})
    return tree.with_ids({f"c{i}": f"id{i}" for i in range(0, classes, 2)})


def facts(tree):
    return [(leaf.name, leaf.index, leaf.id) for leaf in tree.leaves]


@st.composite
def classes_and_nodes(draw):
    classes = draw(st.integers(1, 30))
    return flat(classes), draw(st.lists(st.integers(1, classes), max_size=4).map(sorted))


@settings(max_examples=100, deadline=None)
@given(classes_and_nodes())
def test_balanced(case):
    tree, nodes = case
    found = balanced_tree(tree, nodes)
    assert found.counts == (*nodes, len(tree.leaves)) and facts(found) == facts(tree)
    for children in found.sibling_counts[1:]:
        assert max(children) - min(children) <= 1 and list(children) == sorted(children, reverse=True)
    nested = ClassTree.from_nested({"a": tree.to_nested()}).with_ids(tree.ids)
    assert balanced_tree(nested, nodes) == found  # the classes alone count


@settings(max_examples=100, deadline=None)
@given(classes_and_nodes(), st.integers(0, 10**9))
def test_random(case, seed):
    tree, nodes = case
    found = random_tree(tree, nodes, seed)
    assert found.counts == (*nodes, len(tree.leaves)) and sorted(facts(found)) == sorted(facts(tree))
    assert not any(node.continued for row in found.levels for node in row)
    assert random_tree(tree, tuple(nodes), seed) == found


def test_seeds_differ():
    trees = [random_tree(flat(12), [3, 5], seed) for seed in range(20)]
    assert len(set(trees)) == 20 and random_tree(flat(12), [3, 5]) == trees[0]
    assert len({tree.sibling_counts for tree in trees}) > 10 and len({tree.classes for tree in trees}) == 20


def test_random_sizes_and_members():
    """One child each, and 20 more that fall to any of 4 nodes alike; any two classes meet as often as any others."""
    trees = [random_tree(flat(24), [2, 4], seed) for seed in range(500)]
    sizes = np.array([tree.sibling_counts[2] for tree in trees])
    np.testing.assert_allclose(sizes.mean(axis=0), 6, atol=0.5)
    np.testing.assert_allclose(sizes.var(axis=0), 20 * 1 / 4 * 3 / 4, rtol=0.3)
    above = np.array([tree.sibling_counts[1][0] for tree in trees])
    assert set(above) == {1, 2, 3} and np.mean(above == 2) == pytest.approx(1 / 2, abs=0.1)
    together = np.zeros((24, 24))
    for tree in trees:
        group = {leaf.name: leaf.parent for leaf in tree.leaves}
        members = np.array([group[f"c{i}"] for i in range(24)])
        together += members[:, None] == members
    pairs = together[np.triu_indices(24, 1)] / 500
    np.testing.assert_allclose(pairs, (sizes * (sizes - 1)).sum(axis=1).mean() / (24 * 23), atol=0.1)


def test_names_of_groups_do_not_clash_with_classes():
    tree = ClassTree.parallel(["group 1.1", "group 2.1", "group 1.2"])
    for found in (balanced_tree(tree, [2, 2]), random_tree(tree, [2, 2])):
        assert found.counts == (2, 2, 3) and set(found.classes) == set(tree.classes)


@pytest.mark.parametrize("control", [balanced_tree, random_tree])
@pytest.mark.parametrize("nodes", [(0,), (-1,), (6,), (3, 2), (2, 6), (0, 5)])
def test_numbers_that_cannot_be_had(control, nodes):
    with pytest.raises(UsageError, match=",".join(map(str, nodes))):
        control(flat(5), nodes)


def test_twenty_thousand_classes():
    tree = flat(21_000)
    for found in (balanced_tree(tree, (150, 2500)), random_tree(tree, (150, 2500), seed=3)):
        assert found.counts == (150, 2500, 21_000)
        assert dict(zip(found.classes, found.indices, strict=True)) == dict(
            zip(tree.classes, tree.indices, strict=True)
        )
