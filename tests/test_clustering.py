"""Nesting: groups are Ward's, nested and as many as asked for; class means are the naive ones."""

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.cluster import AgglomerativeClustering
from torch import nn

from hlnet.errors import DataError, UsageError
from hlnet.clustering import class_means, cluster_tree
from hlnet.tree import ClassTree


def partition(labels):
    groups = {}
    for i, label in enumerate(labels):
        groups.setdefault(label, set()).add(i)
    return {frozenset(group) for group in groups.values()}


def groups_at(tree, level, names):
    """Classes below each node of a level."""
    return {
        frozenset(names.index(leaf.name) for leaf in tree.leaves if f"{leaf.path}/".startswith(f"{node.path}/"))
        for node in tree.levels[level]
    }


@pytest.mark.parametrize("nodes", [(1,), (3,), (6, 26), (2, 2), (1, 5, 17, 30), (30,), (29, 30)])
@pytest.mark.parametrize("seed", [0, 1])
def test_groups_are_wards(nodes, seed):
    values = np.random.default_rng(seed).normal(size=(30, 5)) * [1, 10, 0.1, 3, 0] + 7
    names = [f"class{i}" for i in range(30)]
    means = torch.from_numpy(values)
    tree = cluster_tree(means, names, nodes)
    assert tree.counts == (*nodes, 30) and sorted(tree.classes) == sorted(names)
    assert all(names[leaf.index] == leaf.name for leaf in tree.leaves)
    scaled = (values - values.mean(0))[:, :4] / values.std(0)[:4]
    merges = linkage(scaled, method="ward")
    for level, count in enumerate(nodes):
        found = groups_at(tree, level, names)
        assert found == partition(fcluster(merges, t=count, criterion="maxclust"))
        assert found == partition(AgglomerativeClustering(count, linkage="ward").fit_predict(scaled))
    for above, below in zip(tree.levels, tree.levels[1:], strict=False):
        assert all(f"{node.path}/".startswith(f"{above[node.parent].path}/") for node in below)
    again = cluster_tree(means, names, nodes)
    assert again == tree and torch.equal(means, torch.from_numpy(values))


def test_order_and_units_of_features_do_not_matter():
    means = torch.from_numpy(np.random.default_rng(0).normal(size=(12, 4)))
    names = [f"c{i}" for i in range(12)]
    expected = cluster_tree(means, names, [4])
    assert cluster_tree(means[:, [2, 0, 3, 1]] * torch.tensor([1e3, 1, 1e-3, 5]) - 4, names, [4]) == expected
    assert cluster_tree(means.float(), names, (4,)) == expected


def test_groups_are_named_after_their_first_members():
    means = torch.tensor([[0.0], [0.1], [0.2], [0.3], [9.0], [5.0]])
    tree = cluster_tree(means, ["a", "b", "c", "d", "e", "f"], [3])
    assert tree.to_nested() == {"a+b+c+1-more": {"a": 0, "b": 1, "c": 2, "d": 3}, "e": 4, "f": 5}


@pytest.mark.parametrize("classes", [["only"], ["one", "two"]])
def test_ids_go_with_their_classes(classes):
    means = torch.arange(3.0 * len(classes)).view(len(classes), 3)
    ids = [f"n{i}" for i in range(len(classes))]
    tree = cluster_tree(means, classes, [1], ids)
    assert {leaf.name: leaf.id for leaf in tree.leaves} == dict(zip(classes, ids, strict=True))
    assert cluster_tree(means, classes, [1]).ids == {}


def test_one_class_is_a_chain():
    assert cluster_tree(torch.ones(1, 3), ["only"], [1, 1]) == ClassTree.parallel(["only"], levels=3)


@pytest.mark.parametrize("nodes", [(), (0,), (-1,), (5,), (3, 2), (2, 9)])
@pytest.mark.parametrize("classes", [1, 4])
def test_wrong_numbers_of_nodes_are_refused(nodes, classes):
    with pytest.raises(UsageError, match="nodes"):
        cluster_tree(torch.randn(classes, 3), [f"c{i}" for i in range(classes)], nodes)


class Poly(nn.Module):
    """A trunk that halves the sides, remembers its mode, and can be recomputed by hand."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0]))

    def forward(self, images):
        if self.training:
            return images.new_full((len(images), 2, 1, 1), torch.nan)
        halved = images.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean((3, 5))
        return torch.cat([halved * weight for weight in self.weight], dim=1)


@pytest.mark.parametrize("grid", [1, 2])
def test_class_means_are_the_naive_ones(grid):
    images = torch.randn(9, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels, ticks = torch.tensor([2, 0, 1, 2, 2, 0, 1, 2, 2]), []
    batches = [(images[i : i + 4], labels[i : i + 4]) for i in range(0, 9, 4)]
    found = class_means(Poly().train(), batches, 3, grid, on_batch=lambda: ticks.append(1))
    assert found.dtype == torch.float64 and len(ticks) == 3 and not found.is_inference()
    side = 8 // grid
    for label in range(3):
        chosen = images[labels == label].double().numpy()
        expected = [
            weight * chosen[:, c, i * side : (i + 1) * side, j * side : (j + 1) * side].mean()
            for weight in (1, -2)
            for c in range(3)
            for i in range(grid)
            for j in range(grid)
        ]
        np.testing.assert_allclose(found[label].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("labels", [[0, 0], [1, 2], None])
def test_class_without_images_is_refused(labels):
    batches = [] if labels is None else [(torch.ones(2, 3, 8, 8), torch.tensor(labels))]
    with pytest.raises(DataError, match="at least one image"):
        class_means(Poly(), batches, 3)
