"""Clustering: groups are scipy's, nested and as many as asked for; what they are found in is the naive thing."""

import numpy as np
import pytest
import timm
import torch
from scipy.cluster.hierarchy import cut_tree, fcluster, linkage, to_tree
from scipy.spatial.distance import squareform
from sklearn.cluster import AgglomerativeClustering
from timm.models.resnetv2 import ResNetV2
from torch import nn

from hlnet.errors import DataError, UsageError
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.construct.cluster import (
    LINKAGES,
    class_means,
    classifier_rows,
    cluster_tree,
    dendrogram,
    merge_confusions,
    merge_features,
)


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


@pytest.mark.parametrize("nodes", [(0,), (-1,), (5,), (3, 2), (2, 9)])
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


# ---------------------------------------------------------------------- what is clustered


MODELS = {"test_resnet": "fc", "test_vit": "head", "test_efficientnet": "classifier", "test_convnext": "head.fc"}


@pytest.mark.parametrize("name", [*MODELS, "convolution"])
def test_classifier_rows(name):
    """One row a class, in the classifier's order, of length one; the model is left as it was."""
    if name == "convolution":
        model, layer = ResNetV2((1, 1), channels=(128, 128), num_classes=7), "head.fc"
    else:
        model, layer = timm.create_model(name, num_classes=7), MODELS[name]
    weight = model.get_submodule(layer).weight
    assert weight.ndim == (4 if name == "convolution" else 2)
    torch.nn.init.normal_(weight, std=3)
    before, rows = weight.detach().clone(), classifier_rows(model)
    assert rows.dtype == torch.float64 and not rows.requires_grad and rows.shape == (7, weight.shape[1])
    expected = before.numpy().reshape(7, -1).astype(float)
    np.testing.assert_allclose(rows.numpy(), expected / np.linalg.norm(expected, axis=1, keepdims=True))
    assert torch.equal(weight, before)


@pytest.mark.parametrize("build", [lambda: timm.create_model("test_resnet", num_classes=0), nn.Flatten])
def test_model_without_a_classifier_is_refused(build):
    model = build()
    with pytest.raises(UsageError, match=f"{type(model).__name__} has no linear classifier"):
        classifier_rows(model)


@pytest.mark.parametrize("method", LINKAGES)
@pytest.mark.parametrize("standardized", [False, True])
def test_features_are_merged_as_by_scipy(method, standardized):
    values = np.random.default_rng(0).normal(size=(12, 4)) * [1, 20, 3, 0] + 5
    rows = torch.from_numpy(values.copy())
    scaled = (values - values.mean(0)) / [*values.std(0)[:3], 1] if standardized else values
    np.testing.assert_allclose(merge_features(rows, method, standardized), linkage(scaled, method))
    assert np.array_equal(rows.numpy(), values)


def confusions(classes, seed=0):
    """Few images of some classes, many of others; mistakes go both ways, but not alike."""
    draw = np.random.default_rng(seed)
    return torch.from_numpy(
        draw.integers(0, 9, (classes, classes)) * draw.integers(1, 9, (classes, 1)) + np.eye(classes)
    )


@pytest.mark.parametrize("method", ["average", "complete", "single", "weighted"])
@pytest.mark.parametrize("kind", [torch.int64, torch.float32])
def test_confusions_are_merged_by_the_mean_share(method, kind):
    counts = confusions(9).to(kind)
    distances = np.zeros((9, 9))
    for i in range(9):
        for j in range(9):
            taken = (float(counts[i, j] / counts[i].sum()), float(counts[j, i] / counts[j].sum()))
            distances[i, j] = 1 - sum(taken) / 2 if i != j else 0
    np.testing.assert_allclose(merge_confusions(counts, method), linkage(squareform(distances), method), atol=1e-6)
    default = method == "average"
    assert np.array_equal(merge_confusions(counts), merge_confusions(counts, method)) == default


@pytest.mark.parametrize("method", ["ward", "centroid", "median"])
def test_linkage_of_points_is_refused_for_confusions(method):
    with pytest.raises(UsageError, match=f"'{method}' needs points"):
        merge_confusions(confusions(4), method)


@pytest.mark.parametrize(
    "call", [merge_features, merge_confusions, lambda rows, word: cluster_tree(rows, "abcd", [2], linkage=word)]
)
@pytest.mark.parametrize("word", ["wards", "Ward", ""])
def test_unknown_linkage_is_refused(call, word):
    with pytest.raises(UsageError, match=f"linkage '{word}' is not one of ward, average"):
        call(confusions(4), word)


def test_what_cannot_be_clustered_is_refused():
    for value in (np.nan, np.inf, -np.inf):
        for standardized in (False, True):
            with pytest.raises(DataError, match="not finite"):
                merge_features(torch.tensor([[1.0, 2.0], [value, 3.0], [0.0, 1.0]]), standardized=standardized)
    with pytest.raises(DataError, match="at least one image"):
        merge_confusions(torch.tensor([[3, 1, 0], [0, 0, 0], [1, 0, 2]]))


@pytest.mark.parametrize("method", LINKAGES)
def test_dendrogram_is_scipys(method):
    names, ids = [f"class {i}" for i in range(15)], [f"n{i}" if i % 2 else None for i in range(15)]
    merges = linkage(np.random.default_rng(3).normal(size=(15, 2)), method)
    nodes = {node.id: node for node in to_tree(merges, rd=True)[1]}

    def compare(hierarchy, node):
        members = sorted(node.pre_order())
        if node.is_leaf():
            assert (hierarchy.name, hierarchy.index, hierarchy.id) == (names[node.id], node.id, ids[node.id])
            assert not hierarchy.children and hierarchy.height == 0
            return
        shown = [names[i] for i in members[:3]] + [f"{len(members) - 3}-more"] * (len(members) > 3)
        assert (hierarchy.name, hierarchy.index, hierarchy.id) == ("+".join(shown), None, None)
        assert hierarchy.height == node.id - 14  # merges are ranked, as the distances of some linkages go down again
        for child, other in zip(hierarchy.children, (node.left, node.right), strict=True):
            compare(child, other)

    compare(dendrogram(merges, names, ids), nodes[28])
    assert all(node.id is None for node in dendrogram(merges, names).walk())


def test_dendrogram_of_one_class():
    (only,) = dendrogram(np.empty((0, 4)), ["cat"], ["n1"]).children
    assert (only.name, only.index, only.id, only.children) == ("cat", 0, "n1", [])


@pytest.mark.parametrize("method", LINKAGES)
def test_tree_by_any_linkage(method):
    values = np.random.default_rng(4).normal(size=(25, 3))
    names = [f"class{i}" for i in range(25)]
    tree = cluster_tree(torch.from_numpy(values), names, [4, 11], linkage=method)
    merges = linkage((values - values.mean(0)) / values.std(0), method)
    for level, count in enumerate((4, 11)):
        if method in {"centroid", "median"}:  # scipy cuts them by height, which is not the order of merging
            clusters = dict(enumerate({i} for i in range(25)))
            for rank, (a, b) in enumerate(merges[: 25 - count, :2].astype(int), start=25):
                clusters[rank] = clusters.pop(a) | clusters.pop(b)
            expected = set(map(frozenset, clusters.values()))
        else:
            expected = partition(cut_tree(merges, count)[:, 0])
        assert groups_at(tree, level, names) == expected


def test_tree_with_few_children_a_node():
    means = torch.from_numpy(np.random.default_rng(5).normal(size=(25, 3)))
    names = [f"class{i}" for i in range(25)]
    free = cluster_tree(means, names, [6, 9])
    most = max(map(max, free.sibling_counts[1:]))
    assert cluster_tree(means, names, [6, 9], max_children=most) == free
    tree = cluster_tree(means, names, [6, 9], max_children=most - 1)
    assert tree.counts == free.counts and max(map(max, tree.sibling_counts[1:])) == most - 1
    with pytest.raises(UsageError, match="keeping to 2 children"):
        cluster_tree(means, names, [6, 9], max_children=2)
