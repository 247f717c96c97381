"""Merging: the union of experts is the expert of the union, bit for bit; what does not belong together is refused."""

import copy
import logging

import pytest
import torch
from helpers.expert_nets import build, trees_and_choices
from helpers.naive import randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from hlnet.cli.main import app
from hlnet.errors import TreeError, UsageError
from hlnet.expert.cut import cut_checkpoint, cut_expert
from hlnet.expert.grow import grow, new_branches
from hlnet.expert.merge import merge_experts
from hlnet.model.hierarchical import HierarchicalNet
from hlnet.model.plain import PlainConfig, PlainNet
from hlnet.store.checkpoint import load_checkpoint, read_header, save_checkpoint
from hlnet.tree.class_tree import ClassTree

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def files(tmp_path):
    """The full network's file, and a function that cuts experts to files."""
    full = tmp_path / "full.safetensors"
    save_checkpoint(build(), full)

    def cut(selection, source=full):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        save_checkpoint(cut_expert(source, selection), path)
        return path

    return full, cut


def assert_same(one, other):
    assert (one.tree, one.config, one.transform, one.provenance) == (
        other.tree,
        other.config,
        other.transform,
        other.provenance,
    )
    weights, expected = one.state_dict(), other.state_dict()
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, expected[name]), name


@settings(max_examples=8, deadline=None)
@given(trees_and_choices(), st.data())
def test_union_is_the_direct_cut(tmp_path_factory, found, data):
    tree, first = found
    second = data.draw(st.sets(st.integers(0, len(tree.leaves) - 1), min_size=1))
    folder = tmp_path_factory.mktemp("merge")
    full, *parts = (folder / f"{name}.safetensors" for name in ("full", "a", "b"))
    save_checkpoint(build(tree), full)
    for path, kept in zip(parts, (first, second), strict=True):
        save_checkpoint(cut_expert(full, [tree.classes[i] for i in kept]), path)
    expected = cut_expert(full, [tree.classes[i] for i in first | second])
    for order in (parts, parts[::-1], [full, parts[0]]):
        merged = merge_experts(order)
        assert_same(merged, expected if full not in order else cut_expert(full, "*"))


def test_experts_of_experts_and_three_at_once(files, tmp_path, caplog):
    full, cut = files
    dogs = cut("dog")
    merged = merge_experts([cut("sussex", dogs), cut("saw"), cut("beagle", dogs)])
    assert_same(merged, cut_expert(full, "sussex,saw,beagle"))
    again = tmp_path / "again.safetensors"
    save_checkpoint(merged, again)
    assert_same(merge_experts([again, cut("cat")]), cut_expert(full, "sussex,saw,beagle,cat"))  # and so on
    assert not caplog.records


def separately_trained(tree, seed, trunk_of):
    """Another network on the same trunk."""
    net = HierarchicalNet(trunk_of.config, tree).double()
    torch.manual_seed(seed)
    randomise(net.head)
    net.trunk.load_state_dict(trunk_of.trunk.state_dict())
    net.transform = trunk_of.transform
    return net.eval()


def test_other_parents_on_the_same_trunk(caplog):
    one = build()
    other = separately_trained(ClassTree.from_nested({"bird": {"owl": {}, "rook": {}}, "hammer": {}}, levels=3), 7, one)
    with caplog.at_level(logging.WARNING, "hlnet"):
        merged = merge_experts([one, other])
    assert "were not trained against each other" in caplog.text
    assert merged.tree.classes == one.tree.classes + other.tree.classes
    assert merged.tree.indices == (*one.tree.indices, *other.tree.indices) and merged.provenance.parent is None
    with torch.no_grad():
        expected = torch.cat([one(IMAGES), other(IMAGES)], dim=1)
        torch.testing.assert_close(merged(IMAGES), expected, rtol=0, atol=1e-12)


def test_colliding_indices_are_replaced():
    one = build()
    other = separately_trained(ClassTree.from_nested({"owl": 281, "rook": 5}, levels=3), 7, one)
    assert merge_experts([one, other]).tree.indices == (*one.tree.indices, 492, 5)


def test_a_grown_network_and_its_ancestor():
    """They share nodes, whose weights are the same; the new one goes where it was."""
    old = build()
    branches = new_branches(old, "dog/spaniel", {"clumber": None}).double()
    grown = grow(old, {"dog/spaniel": branches})
    merged = merge_experts([cut_expert(old, "cat"), cut_expert(grown, "dog")])
    with torch.no_grad():
        full = dict(zip(grown.tree.classes, grown(IMAGES).T, strict=True))
        for name, logits in zip(merged.tree.classes, merged(IMAGES).T, strict=True):
            torch.testing.assert_close(logits, full[name], rtol=0, atol=1e-12)
    assert merged.tree.classes == ("tabby", "siamese", "sussex", "cocker", "clumber", "beagle")


def retrained():
    net = build()
    with torch.no_grad():
        next(net.head.levels[1].parameters()).add_(1.0)
    return net


def other_trunk():
    net = build()
    with torch.no_grad():
        next(net.trunk.parameters()).add_(1.0)
    return net


def other_transform():
    net = build()
    net.transform = net.transform.adjusted(64)
    return net


@pytest.mark.parametrize(
    ["other", "words"],
    [
        (retrained, ["'cat", "has other weights in network 2 than in network 1"]),
        (other_trunk, ["network 2", "1 of the trunk's", "tensors differ", "another parent"]),
        (other_transform, ["network 2", "prepared in another way"]),
        (lambda: build(split_point=-2), ["split_point is 3, here 2"]),
        (lambda: build(block="convnext"), ["block is 'convnext', here 'bottleneck'"]),
        (lambda: PlainNet(PlainConfig(backbone="test_resnet"), ClassTree.parallel(["a"])), ["plain network"]),
        (lambda: torch.nn.Linear(1, 1), ["Linear cannot be merged"]),
    ],
)
def test_what_does_not_belong_together_is_refused(other, words):
    with pytest.raises(UsageError) as error:
        merge_experts([build(), other()])
    assert all(word in str(error.value) for word in words), error.value


def test_a_class_in_two_places_is_refused():
    one = build()
    with pytest.raises(TreeError, match="'tabby'"):
        merge_experts([one, separately_trained(ClassTree.from_nested({"feline": {"tabby": 1000}}, levels=3), 3, one)])


def test_one_is_not_enough():
    with pytest.raises(UsageError, match="two"):
        merge_experts([build()])


def test_command(files, tmp_path):
    full, cut = files
    cats, dogs, out = cut("cat"), cut("dog"), tmp_path / "pets.safetensors"
    result = CliRunner().invoke(app, ["merge", str(cats), str(dogs), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "5 classes" in result.stdout and str(out) in result.stdout.replace("\n", "")
    direct = tmp_path / "direct.safetensors"
    save_checkpoint(cut_expert(full, "cat,dog"), direct)
    assert read_header(out) == read_header(direct)
    assert_same(load_checkpoint(out), load_checkpoint(direct))
    for line in ([str(cats), "--out", str(out)], [str(cats), str(dogs), "--out", str(dogs)]):
        assert isinstance(CliRunner().invoke(app, ["merge", *line]).exception, UsageError)


@pytest.mark.parametrize("order", [1, -1])
def test_detectors_and_a_softmax_are_refused(order):
    one = build()
    other = separately_trained(ClassTree.from_nested({"owl": 1000}, levels=3), 7, one)
    other.provenance.one_vs_rest = True
    with pytest.raises(UsageError, match="one-vs-rest"):
        merge_experts([one, other][::order])


def test_an_earlier_class_keeps_its_index():
    one = build(ClassTree.from_nested({"p": {"a": 0}, "q": {"b": 7}}, levels=2))
    other = separately_trained(ClassTree.from_nested({"p2": {"c": 7}, "r": {"d": 3}}, levels=2), 7, one)
    found = merge_experts([one, other]).tree
    assert dict(zip(found.classes, found.indices, strict=True)) == {"a": 0, "b": 7, "c": 8, "d": 3}


def test_unlike_types_are_told(tmp_path):
    net = build()
    save_checkpoint(net, tmp_path / "one.safetensors")
    save_checkpoint(copy.deepcopy(net).to(torch.bfloat16), tmp_path / "other.safetensors")
    for name, classes in (("one", net.tree.classes[0]), ("other", net.tree.classes[1])):
        cut_checkpoint(tmp_path / f"{name}.safetensors", classes, tmp_path / f"{name}_cut.safetensors")
    with pytest.raises(UsageError, match="its weights are bfloat16, here float64"):
        merge_experts([tmp_path / "one_cut.safetensors", tmp_path / "other_cut.safetensors"])
