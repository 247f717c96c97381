"""What lean networks cost: closed formulas, counts by nodes alone, budgets."""

import pytest
import torch
from helpers.lean_nets import LEAN, lean_config

from hlnet.expert.candidates import candidates, floor
from hlnet.model.cost import count_macs, profile, total_cost, unit_costs
from hlnet.model.hierarchical import HierarchicalNet
from hlnet.model.presets import PRESETS, network_config
from hlnet.model.transform import InputTransform
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.construct.budget import Budget, affordable, expert_costs

TREE = ClassTree.from_nested({"x": {"xx": ["a", "b", "c"], "xy": ["d"]}, "y": {"yy": ["e", "f"]}})


def by_hand(n1, n2, classes):
    """Parameters and multiply-accumulates of ``lean_resnet50`` behind its trunk, at 224 pixels."""
    pixels = 7 * 7
    conv = {  # weights, and on how many pixels they work; the stage reduces at twice the side
        "shared stage": [(1024 * 256, 4 * pixels), (9 * 256 * 256 + 256 * 1024 + 1024 * 1024, pixels)],
        "level 1, shared by siblings": [(1024 * 64 + 1024 * 256, pixels)],
        "level 1": [(9 * 64 * 64 + 64 * 256, pixels)],
        "level 2, shared by siblings": [(256 * 32 + 256 * 128, pixels)],
        "level 2": [(9 * 32 * 32 + 32 * 128, pixels)],
        "level 3": [(128 * 8, pixels)],
    }
    norms = {  # channels, and pixels
        "shared stage": [(256, 4 * pixels), (256 + 1024 + 1024, pixels)],
        "level 1, shared by siblings": [(64 + 256, pixels)],
        "level 1": [(64 + 256, pixels)],
        "level 2, shared by siblings": [(32 + 128, pixels)],
        "level 2": [(32 + 128, pixels)],
        "level 3": [(8, pixels)],
    }
    nodes = {"shared stage": 1, "level 1, shared by siblings": 1, "level 1": n1, "level 2, shared by siblings": n1}
    nodes |= {"level 2": n2, "level 3": classes, "class rows": classes}
    params = {part: sum(w for w, _ in conv[part]) + sum(2 * c for c, _ in norms[part]) for part in conv}
    macs = {part: sum(w * p for w, p in conv[part]) + sum(2 * c * p for c, p in norms[part]) for part in conv}
    params |= {"level 3": params["level 3"] + 9, "class rows": 1025}  # a row of 8 or 1024 channels, and its bias
    macs |= {"level 3": macs["level 3"] + 8 * pixels + 8, "class rows": 1024}  # pooled, then weighed
    macs["shared stage"] += 1024 * pixels  # pooled for the rows
    return {part: (nodes[part], nodes[part] * params[part], nodes[part] * macs[part]) for part in nodes}


def test_lean_resnet50_is_its_closed_formula():
    units, _ = unit_costs(network_config("lean_resnet50", levels=3))
    for counts in ((1, 9, 10), (17, 161, 1000), (1, 1, 5)):
        trunk, *parts = total_cost(units, counts).parts
        assert (trunk.name, trunk.params) == ("trunk", 8_543_296)
        assert {part.name: (part.nodes, part.params, part.macs) for part in parts} == by_hand(*counts)


@pytest.mark.parametrize("lean", LEAN.values(), ids=LEAN)
def test_counts_are_those_of_the_real_network_and_its_expert(lean):
    config, size = lean_config(3, **lean), (3, 64, 64)
    transform = InputTransform(input_size=size)
    found = profile(config, TREE, transform, classes="a,b,d")
    for cost, tree in ((found.full, TREE), (found.expert, TREE.prune([0, 1, 3]))):
        net = HierarchicalNet(config, tree).eval()
        assert cost.params == sum(tensor.numel() for tensor in net.parameters())
        assert cost.bytes == sum(tensor.numel() * tensor.element_size() for tensor in net.state_dict().values())
        assert sum(part.params for part in cost.parts) == cost.params
        if lean["block"] == "bottleneck":  # of layer norms, one is computed for all siblings and counted for each
            assert cost.macs == count_macs(net, torch.zeros(1, *size))


def test_budgets_and_candidates_go_by_the_same_sums():
    config = lean_config(3, **LEAN["all"])
    units, _ = unit_costs(config)
    budget = Budget.parse("1M")
    for counts in ((1, 2, 6), (2, 3, 6), (3, 4, 9)):
        assert budget.spent(units, counts) == total_cost(units, counts).params
    [found] = candidates(TREE, units, {"half": (0, 1, 3)})
    assert found.cost == profile(config, TREE, classes=["a", "b", "d"]).expert
    assert expert_costs(TREE, {"half": ["a", "b", "d"]}, units, budget) == [found.cost.params]
    base = total_cost(units, (1, 1, 1)).parts[:3]
    assert [part.name for part in base] == ["trunk", "shared stage", "level 1, shared by siblings"]
    told = floor(Budget("params", 100), units)
    assert f"{sum(part.params for part in base) / 1e6:.4g}M" in told and "with what all classes share alone" in told
    limit = Budget("params", total_cost(units, (4, 12, 40)).params)
    chosen = list(affordable(units, 40, limit))
    costs = [total_cost(units, counts).params for counts in chosen]
    assert chosen and max(costs) <= limit.limit


@pytest.mark.parametrize("preset", sorted(name for name in PRESETS if name.startswith("lean_")))
def test_lean_presets_cost_less_than_their_plain_networks(preset):
    found = profile(network_config(preset, levels=3), ClassTree.balanced((17, 161, 1000)))
    assert found.full.gmacs <= 0.95 * found.plain.gmacs and found.full.params < found.plain.params
