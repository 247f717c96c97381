"""``hlnet build-tree --method cluster``: by features, weights and confusions, each against the library."""

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import tree_material
from helpers.command_line import invoke
from helpers.tree_material import CLASSES, SMALL
from safetensors.torch import load_file, save_file
from scipy.cluster.hierarchy import linkage

import hlnet
import hlnet.tree.vocabulary
from hlnet.data.images import open_image
from hlnet.data.tree_data import eval_transform
from hlnet.model.trunk import Trunk, create_backbone, load_trunk_weights
from hlnet.tree.construct.cluster import cluster_tree, dendrogram, merge_confusions
from hlnet.tree.construct.levels import cut_to_levels
from hlnet.tree.io import read_tree

at, build = tree_material.at, tree_material.build


@pytest.fixture(autouse=True)
def no_dictionary(request, monkeypatch):
    """Groups keep the names of their members, but where a test asks for WordNet's."""
    if "real" not in request.fixturenames:
        monkeypatch.setattr(hlnet.tree.vocabulary, "default_wordnet", lambda: None)


@pytest.mark.parametrize(
    "options, grid, size, arguments",
    [
        ("--nodes 2,3", 1, None, {"nodes": [2, 3]}),
        ("--nodes 1,4 --linkage average --grid 2", 2, None, {"nodes": [1, 4], "linkage": "average"}),
        ("--nodes 3,4 --max-children 3 --img-size 32 --std 0.2", 1, 32, {"nodes": [3, 4], "max_children": 3}),
        ("", 1, None, {"nodes": [2, 3]}),  # round(6 ** (1 / 3)), round(6 ** (2 / 3))
    ],
)
def test_cluster_by_features(build, at, options, grid, size, arguments):
    line = "{photos} --method cluster --backbone test_resnet --trunk-weights {trunk} --workers 0 --batch-size 7"
    tree, notes = build(f"{line} {options}")
    trunk = Trunk("test_resnet").eval()
    load_trunk_weights(trunk.model, at["trunk"])
    transform = trunk.transform.adjusted(size, std=(0.2,) * 3 if size else None)
    means = []
    for name in CLASSES:
        paths = [f"{at['photos']}/train/{name}/{i}.png" for i in range(5)]
        images = torch.stack([eval_transform(transform)(open_image(path)) for path in paths])
        with torch.no_grad():
            means.append(F.adaptive_avg_pool2d(trunk(images), grid).flatten(1).double().mean(0))
    assert tree == cluster_tree(torch.stack(means), CLASSES, **arguments) and notes == []


def test_features_of_an_untrained_trunk_are_the_seed_s(at, tmp_path):
    line = f"build-tree {{photos}} --method cluster {SMALL} --nodes 2,3 --seed 3 --out {tmp_path}"
    told = [invoke(f"{line}/{run}.json", **at)[1] for run in "ab"]
    assert told == ["the trunk is untrained; --pretrained or --trunk-weights makes its features more informative\n"] * 2
    assert read_tree(tmp_path / "a.json") == read_tree(tmp_path / "b.json")


@pytest.mark.parametrize(
    "line, names",
    [
        ("{plain} --method cluster --by weights", ["Öl", "saw", "rook", "owl", "cat", "dog"]),
        ("{list} --method cluster --by weights --backbone test_resnet --trunk-weights {rows}", CLASSES),
        ("{n} --method cluster --by weights --backbone test_resnet --trunk-weights {rows}", CLASSES),
    ],
)
@pytest.mark.parametrize("kind", ["ward", "single"])
def test_cluster_by_weights(build, at, line, names, kind):
    tree, _ = build(f"{line} --nodes 2,3 --linkage {kind}")
    tensors = load_file(at["plain"] if "{plain}" in line else at["rows"])
    (rows,) = (tensor.double().numpy() for name, tensor in tensors.items() if name.endswith("fc.weight"))
    merges = linkage(rows / np.linalg.norm(rows, axis=1, keepdims=True), kind)
    hierarchy = dendrogram(merges, names)
    for leaf in hierarchy.leaves():
        leaf.index = CLASSES.index(leaf.name)
    assert tree == cut_to_levels(hierarchy, [2, 3]).to_tree(3)


def test_cluster_by_confusions(build, at):
    tree, _ = build("{photos} --method cluster --by confusions --model {full} --nodes 2,3 --workers 0")
    net = hlnet.load_checkpoint(at["full"])
    confusions = torch.zeros(6, 6)
    for name, i in product(CLASSES, range(5, 8)):
        image = eval_transform(net.transform)(open_image(f"{at['photos']}/val/{name}/{i}.png"))
        with torch.no_grad():
            called = net.tree.classes[net(image[None]).argmax()]
        confusions[CLASSES.index(name), CLASSES.index(called)] += 1
    assert (confusions.sum(0) > 0).sum() > 1  # it tells some apart
    order = [CLASSES.index(name) for name in net.tree.classes]
    hierarchy = dendrogram(merge_confusions(confusions[order][:, order]), net.tree.classes)
    for leaf in hierarchy.leaves():
        leaf.index = CLASSES.index(leaf.name)
    assert tree == cut_to_levels(hierarchy, [2, 3]).to_tree(3)


@pytest.fixture(scope="module")
def arc(at):
    """Options that cluster a hundred classes whose rows lie on an arc, ever farther apart."""
    angles = torch.linspace(0, 1.2, 100).square()
    weights = create_backbone("test_resnet", {"num_classes": 100}).state_dict()
    weights["fc.weight"] = F.pad(torch.stack([angles.cos(), angles.sin()], dim=1), (0, 94))
    save_file(weights, f"{at['root']}/arc.safetensors")
    return "{hundred} --method cluster --by weights --backbone test_resnet --trunk-weights {root}/arc.safetensors"


@pytest.mark.parametrize("groups", ["", " --groups {few}"])
def test_a_dendrogram_deeper_than_a_tree_may_be(build, arc, groups):
    """Single linkage adds the classes one by one."""
    assert build(f"{arc} --linkage single --nodes 5,20{groups}")[0].counts == (5, 20, 100)


def test_max_children(build, arc):
    trees = [build(f"{arc} --nodes 10,40{limit}")[0] for limit in ("", " --max-children 6")]
    widest = [max(map(max, tree.sibling_counts[1:])) for tree in trees]
    assert widest[1] <= 6 < widest[0] and [tree.counts for tree in trees] == [(10, 40, 100)] * 2
