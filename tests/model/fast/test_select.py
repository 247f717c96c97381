"""Classes chosen at run time: the logits of the expert that is cut for them, whatever runs packed."""

import copy

import pytest
import torch
from helpers import kernel_paths, random_nets
from helpers.random_nets import TREE, TREES, assert_near, blocks, both_gains, build, images, plain, random_gains, run

import hlnet.model.fast.walk
from hlnet.errors import SelectionError, UsageError
from hlnet.expert.cut import cut_expert
from hlnet.model.fast.chunks import UnpackedChunk
from hlnet.model.fast.optimize import optimize
from hlnet.model.presets import create_model
from hlnet.model.provenance import Rejection
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.selection import select_classes

both_paths, path = kernel_paths.both_paths, kernel_paths.path
packed = random_nets.packed

MANY = ClassTree.from_nested(
    {"x": {"xx": [f"a{i}" for i in range(9)], "xy": ["b"]}, "y": {"yy": [f"c{i}" for i in range(13)]}, "z": ["d"]}
)
#: Of "b,c3", the first level runs on views and what follows is packed, then the other way round.
WIDE = ClassTree.from_nested(
    {
        name: {f"{name}{i}": [f"{name}{i}{j}" for j in "xy"] for i in range(1 if name == "b" else 9)}
        for name in "abcdefghi"
    }
)
SELECTIONS = {
    "one": "a4",
    "one of each": "a4,c5",
    "few": "a0,a1,c12",
    "a run and another": "a1,a2,a3,a7,a8,c0,c1,c2",
    "some of many": "c3,c4,c5,c9,d,b",
    "every other": [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22],
    "all": "*",
    "all but one": [i for i in range(24) if i != 11],
}


@both_paths
@blocks
@pytest.mark.parametrize("classes", ["dog,saw,lion", "tabby,lion,boxer", "cat", "*"])
def test_selection_gives_the_experts_logits(block, classes):
    net = build(block)
    full, expert = optimize(net), cut_expert(net, classes)
    before, some = run(full, images()), full.select(classes)
    assert some.tree == expert.tree and full.tree == net.tree
    assert some.explain()[:2] == full.explain()[:2]
    for gains in both_gains(expert, 3):
        assert_near(run(some, images(), *gains), run(expert, images(), *gains))
    assert torch.equal(run(full, images()), before)
    with pytest.raises(UsageError, match="gains must have shape"):
        run(some, images(), torch.ones(expert.tree.num_nodes + 1))


@both_paths
@blocks
@pytest.mark.parametrize("cache", [1, 3000, 2**20])
def test_selection_whatever_is_packed(monkeypatch, block, cache):
    """In chunks of one, of some and of whole families; of which parts, or all, or nothing run packed."""
    monkeypatch.setattr(hlnet.model.fast.walk, "CACHE", cache)
    net = build(block, MANY)
    fast, blocks = optimize(net), set()
    maps = {batch: (run(net.features, images(batch)), fast.features(images(batch))) for batch in (1, 3, 9)}
    for classes in SELECTIONS.values():
        expert, some = cut_expert(net, classes), fast.select(classes)
        for batch, (features, seen) in maps.items():
            for gains in both_gains(expert, batch):
                assert_near(run(some.head, seen, *gains), run(expert.head, features, *gains))
        for size in (1, 8):
            plan = some.head.plan((4, 4), size)
            kinds = [type(part.siblings.block) for level in plan for parts in level.values() for part in parts]
            blocks |= set(kinds)
        assert some.tree == expert.tree
    assert len(blocks) == (1 if cache == 1 else 2)
    assert_near(run(fast, images()), run(net, images()))


@blocks
def test_chunk_of_which_a_quarter_is_selected_runs_whole_and_packed(packed, block):
    net = build(block, TREES["many children"])
    fast = optimize(net)
    few, enough = fast.select(list(range(0, 32, 2))), fast.select(list(range(0, 34, 2)))  # 16 and 17 of 67
    for _ in range(2):
        run(few, images(1))
        assert [(start, end) for _, start, end, *_ in packed] == [(0, 2)]
    run(enough, images(1))
    assert [(start, end) for _, start, end, *_ in packed] == [(0, 2), (0, 67)]
    run(fast, images(1)), run(fast.select("x"), images(1))
    assert [(start, end) for _, start, end, *_ in packed] == [(0, 2), (0, 67), (67, 68)]  # each but once
    parts = few.head.plan((4, 4), 1)[1][0]
    assert {type(part.siblings.block) for part in parts} == {UnpackedChunk} and len(parts) == 16


def test_views_copy_no_weight():
    net = build(tree=TREES["many children"])
    some = optimize(net).select("x3")
    (part,) = some.head.plan((4, 4), 1)[1][0]
    family = part.siblings.block._family
    for name, tensor in net.head.levels[1].state_dict().items():
        assert family[name].untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()


def test_selecting_makes_no_tree():
    some = optimize(build()).select("cat,dog")
    run(some, images()), run(some, images(), random_gains(7))
    with pytest.raises(UsageError, match=r"gains must have shape \[7\]"):
        run(some, images(), random_gains(9))
    assert "tree" not in vars(some.head)
    assert some.tree.num_nodes == 7


@both_paths
@blocks
@pytest.mark.parametrize(
    ("tree", "classes", "source"),
    [
        (TREE, "cat", torch.bfloat16),
        (MANY, "a4,c5", torch.float32),
        (MANY, "*", torch.float32),
        (WIDE, "b,c3", torch.float32),
        (WIDE, "b,c3", torch.float64),
    ],
)
def test_selection_in_bfloat16_comes_near(block, tree, classes, source):
    net = build(block, tree, widths=(16, 16, 16)[: tree.num_levels]).to(source)
    some = optimize(net, "bfloat16").select(classes)
    expert = cut_expert(copy.deepcopy(net).float(), classes)
    for gains in both_gains(expert, 3):
        assert_near(run(some, images(), *gains), run(expert, images(), *gains), 0.05)


@blocks
@pytest.mark.parametrize(("tree", "classes"), [(TREE, "cat"), (MANY, "a4,c5"), (MANY, "*"), (WIDE, "b,c3")])
@pytest.mark.parametrize("source", [torch.float64, torch.bfloat16])
def test_selection_of_a_network_of_another_type(block, tree, classes, source):
    net = build(block, tree).to(source)
    expected = run(copy.deepcopy(net).double(), images().double())
    columns = list(select_classes(tree, classes))
    assert_near(run(optimize(net).select(classes), images()), expected[:, columns])


@blocks
def test_selection_stays_in_evaluation_mode(block):
    net = build(block)
    some, expected = optimize(net).select("cat"), run(net, images())
    net.train()
    assert_near(run(some, images()), expected[:, :3])
    assert torch.equal(run(net.eval(), images()), expected)


@blocks
def test_selection_needs_no_inference_mode(block):
    net = build(block)
    assert_near(optimize(net).select("cat")(images()), run(net, images())[:, :3])


def test_selection_that_cannot_be_made_is_refused():
    fast = optimize(build())
    with pytest.raises(SelectionError, match="wolf"):
        fast.select("wolf")
    for form in (fast.select("cat"), optimize(plain())):
        with pytest.raises(UsageError, match="selected from an optimised full network"):
            form.select("cat")


def test_what_was_fitted_to_all_classes_is_not_the_selections():
    net = create_model("test_resnet", tree={"cat": ["tabby", "siamese"], "dog": ["beagle"]}).eval()
    net.provenance.temperature = 2.0
    net.provenance.rejection = Rejection(score="energy", threshold=1.0, max_false_positive=0.1)
    fast = optimize(net)
    chosen = fast.select("cat").provenance
    assert chosen.temperature is None and chosen.rejection is None
    assert fast.select("cat,dog").provenance == fast.provenance == net.provenance
