"""The sweep over split points: costs are those of networks that are built so, and the leaves' maps keep their size."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from hlnet.cli.main import app
from hlnet.errors import UsageError
from hlnet.model.cost import count_macs
from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
from hlnet.model.split_points import balanced_strides, sweep_split_points
from hlnet.model.transform import InputTransform
from hlnet.tree.class_tree import ClassTree

TREE = ClassTree.from_nested({"cat": ["tabby", "siamese"], "dog": ["beagle"]})


@given(st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=4), st.integers(1, 5), st.integers(0, 5))
def test_strides_keep_the_size_of_the_leaves_maps(strides, at, wanted):
    found = balanced_strides(tuple(strides), 2**at, 2**wanted)
    before, after = 2**at, 2**wanted
    for stride, other in zip(strides, found, strict=True):
        before, after = before * stride, after * other
    assert after == before or (max(found) == 1 and after > before)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext"])
def test_costs_are_those_of_networks_that_are_built_so(backbone):
    config = NetworkConfig(backbone=backbone, widths=(8, 4), strides=(1, 2))
    splits = sweep_split_points(config, TREE, InputTransform().adjusted(64), "cat")
    assert [split.split_point for split in splits] == list(range(len(splits))) and len(splits) > 2
    assert [split.split_point for split in splits if split.chosen] == [HierarchicalNet(config, TREE).trunk.split_point]
    for split in splits:
        built = config.model_copy(update={"split_point": split.split_point, "strides": split.strides})
        for cost, tree in ((split.costs.full, TREE), (split.costs.expert, TREE.prune([0, 1]))):
            net = HierarchicalNet(built, tree).eval()
            assert cost.params == sum(tensor.numel() for tensor in net.parameters())
        features = net.features(torch.zeros(1, 3, 64, 64))
        assert features.shape[1:] == (split.channels, 64 // split.reduction, 64 // split.reduction)
        assert cost.gmacs * 1e9 >= count_macs(net.trunk, torch.zeros(1, 3, 64, 64)) > 0


def test_command(tmp_path):
    line = ["profile", "test_resnet", "--nodes", "2,3", "--img-size", "64", "--sweep", "split-point"]
    picture = tmp_path / "splits.svg"
    result = CliRunner().invoke(app, [*line, "--classes", "0", "--plot", str(picture)])
    assert result.exit_code == 0, result.exception
    assert "│ *" in result.stdout and "expert M" in result.stdout and "<svg" in picture.read_text()
    found = json.loads(CliRunner().invoke(app, [*line, "--json"]).stdout)
    assert all(split["costs"]["expert"] is None for split in found) and found[0]["split_point"] == 0
    result = CliRunner().invoke(app, ["profile", "test_resnet", "--nodes", "2,3", "--plot", "x.png"])
    assert isinstance(result.exception, UsageError) and "--sweep" in str(result.exception)


def test_split_point_of_a_preset():
    line = ["profile", "test_resnet", "--nodes", "2,3", "--img-size", "64", "--no-latency", "--json"]
    costs = [json.loads(CliRunner().invoke(app, [*line, *more]).stdout) for more in ([], ["--split-point", "0"])]
    assert costs[1]["full"]["parts"][0]["macs"] < costs[0]["full"]["parts"][0]["macs"]
