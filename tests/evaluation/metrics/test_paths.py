"""The way down the tree, against sums over the names of paths."""

import torch
from helpers.path_cases import PARTS, cases, under
from hypothesis import given, settings
from hypothesis import strategies as st

from hlnet.evaluation.metrics.paths import TreePaths
from hlnet.tree.class_tree import ClassTree

TREE = ClassTree.from_nested({"animal": {"cat": ["tabby", "siamese"], "dog": ["beagle"]}, "saw": {}, "axe": {}})


def naive_way(tree, row):
    """Paths from level 1 to a class, always the likeliest child, the first of equals."""
    way, here = [], ""
    while here not in {leaf.path for leaf in tree.leaves}:
        level = here.count("/") + 1 if here else 0
        above = f"{here}/" if here else ""
        children = [node.path for node in tree.levels[level] if node.path.startswith(above) and not node.continued]
        here = max(children, key=lambda path: under(tree, row, path))  # the first of equals, too
        way.append(here)
    return way


@settings(deadline=None)
@given(cases(), st.integers(0, PARTS))
def test_way_down_is_the_naive_one(case, part):
    tree, rows = case
    paths, shares, threshold = TreePaths(tree), torch.tensor(rows, dtype=torch.double), part / PARTS
    down = paths.descend(shares)
    levels = paths.answered(down, threshold).tolist()
    for i, row in enumerate(rows):
        way = naive_way(tree, row)
        assert tree.leaves[down.leaves[i]].path == way[-1]
        expected = [under(tree, row, path) for path in way]
        assert down.probabilities[i, : len(way)].tolist() == expected
        assert (down.probabilities[i, len(way) :] == expected[-1]).all()  # continued nodes
        likely = [path for path in way if under(tree, row, path) >= threshold]
        assert levels[i] == len(likely)
        if threshold > 0.5:  # then there is no other such node
            every = {node.path for level in tree.levels for node in level}
            assert set(likely) == {path for path in every if under(tree, row, path) >= threshold}


@settings(deadline=None)
@given(cases())
def test_probabilities_of_nodes_and_along_paths(case):
    tree, rows = case
    paths = TreePaths(tree)
    nodes = paths.node_probabilities(torch.tensor(rows, dtype=torch.double))
    assert [level.shape for level in nodes] == [(len(rows), count) for count in tree.counts]
    for level, row in zip(nodes, tree.levels, strict=True):
        assert level.tolist() == [[under(tree, shares, node.path) for node in row] for shares in rows]
    every = torch.arange(len(tree.leaves)).expand(len(rows), -1)
    along = paths.along(nodes, every).tolist()
    for i, shares in enumerate(rows):
        for j, leaf in enumerate(tree.leaves):
            steps = ["/".join(leaf.path.split("/")[:end]) for end in range(1, leaf.path.count("/") + 2)]
            expected = [under(tree, shares, step) for step in steps]
            assert along[i][j] == expected + [expected[-1]] * (tree.num_levels - len(expected))


def test_way_down_may_miss_the_likeliest_class():
    """Three animals of a quarter each outweigh a saw of 0.3, in the answer, though not in the labels."""
    paths = TreePaths(TREE)
    down = paths.descend(torch.tensor([[0.25, 0.2, 0.25, 0.3, 0.0]]))
    assert TREE.leaves[down.leaves[0]].path == "animal/cat/tabby"
    assert torch.allclose(down.probabilities[0], torch.tensor([0.7, 0.45, 0.25], dtype=torch.double))


def test_rounding_never_lifts_a_node_above_its_parent():
    generator = torch.Generator().manual_seed(0)
    tree = ClassTree.balanced((3, 10, 40, 200))
    shares = torch.randn(500, 200, generator=generator).mul(3).softmax(1)  # float32: sums are not exactly 1
    found = TreePaths(tree).descend(shares).probabilities
    assert (found.diff(dim=1) <= 0).all() and found.max() <= 1


def test_no_numbers_answer_nothing():
    paths = TreePaths(TREE)
    down = paths.descend(torch.full((2, 5), torch.nan))
    assert paths.answered(down, 0.0).tolist() == [0, 0]
