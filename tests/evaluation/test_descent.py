"""What descents answer and cost, computed from logits, is what they do; and a promise of agreement is kept."""

import math

import pytest
import torch
from helpers.lean_nets import LEAN, TREES, build_undecided
from hypothesis import given, settings
from hypothesis import strategies as st

from hlnet.evaluation import descent
from hlnet.model.cost import network_cost, unit_costs
from hlnet.model.fast.optimize import optimize
from hlnet.tree.class_tree import ClassTree

TREE = TREES["n3hl"]


@pytest.fixture(scope="module")
def net():
    return optimize(build_undecided(TREE, LEAN["all"]))


def random_logits(images=400, classes=9, change=0.5, seed=0):
    """The full network's and the rows', which differ by noise."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(images, classes, generator=generator)
    return rows + change * torch.randn(images, classes, generator=generator), rows


def batches(net, images=40):
    pixels = torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return [(part, torch.zeros(len(part), dtype=torch.long)) for part in pixels.split(16)]


def test_trajectories_are_what_descents_do(net):
    logits, rows, labels = descent.full_and_rows(net, batches(net))
    assert len(labels) == 40
    found = descent.Trajectories.of(net.tree, logits, rows)
    pixels = torch.cat([images for images, _ in batches(net)])
    for lead in (0.0, 0.05, 0.2, 0.5, 2.0):
        ran = net.descend(pixels, math.exp(-lead))
        assert torch.equal(ran.logits.argmax(dim=1), found.at(lead))
        assert torch.equal(ran.exact.sum(dim=1), found.nodes(lead)[:, -1])
    assert len(found.steps(0.2).unique()) > 1


def test_never_to_stop_is_the_full_answer():
    logits, rows = random_logits()
    found = descent.Trajectories.of(TREE, logits, rows)
    assert torch.equal(found.at(math.inf), logits.argmax(dim=1))
    assert found.nodes(math.inf).tolist() == [list(TREE.counts)] * 400


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_nodes_that_run_are_those_above_the_families(data):
    shape = data.draw(st.recursive(st.none(), lambda below: st.lists(below, min_size=1, max_size=3), max_leaves=10))
    build = lambda below, path: {f"{path}{i}": build(b, f"{path}{i}") if b else None for i, b in enumerate(below)}  # noqa: E731
    tree = ClassTree.from_nested(build(shape or [None, None], "n"))
    parents = len(tree.sibling_counts[-1])
    families = [*data.draw(st.lists(st.integers(0, parents - 1), max_size=parents, unique=True)), -1]
    nodes = {(len(tree.levels) - 1, i) for i, leaf in enumerate(tree.leaves) if leaf.parent in families}
    for depth in range(len(tree.levels) - 1, 0, -1):
        nodes |= {(depth - 1, tree.levels[depth][i].parent) for level, i in list(nodes) if level == depth}
    expected = [sum(level == depth for level, _ in nodes) for depth in range(len(tree.levels))]
    assert descent.nodes_run(tree, torch.tensor([families])).tolist() == [expected]


def test_cost_runs_from_trunk_and_rows_to_the_full_network(net):
    every = torch.tensor([TREE.counts])
    assert descent.descent_gmacs(net, every) == pytest.approx(network_cost(net).gmacs, rel=1e-9)
    trunk, *_, leaf = unit_costs(net.config, net.transform)[0]
    rows = next(part for part in leaf.pieces if part.name == "class rows")
    alone = sum(part.macs for part in trunk.pieces if not part.name.startswith("level")) + 9 * rows.macs
    assert descent.descent_gmacs(net, torch.zeros(3, 3).long()) == pytest.approx(alone / 1e9, rel=1e-9)
    both = torch.tensor([TREE.counts, (0, 0, 0)])
    assert descent.descent_gmacs(net, both) == pytest.approx((network_cost(net).gmacs + alone / 1e9) / 2, rel=1e-9)
