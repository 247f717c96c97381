"""Lean networks cut, merged and grown: what siblings share goes by their parent, what all share goes along whole."""

import pytest
import torch
from helpers.expert_nets import trees_and_choices
from helpers.lean_nets import LEAN, build_lean, lean_settings, naive_of
from helpers.naive import copy_weights, randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open

from hlnet.data.feature_cache import cached_features
from hlnet.data.images import LabelledImages
from hlnet.data.tree_data import TreeData, eval_transform
from hlnet.expert.cut import cut_checkpoint, cut_expert
from hlnet.expert.graft import graft_config
from hlnet.expert.graft_training import NewBranches, extract_features, train_branches
from hlnet.expert.grow import grow, inner_nodes, new_branches, node_output
from hlnet.expert.merge import merge_experts
from hlnet.expert.verify import Reference
from hlnet.store.checkpoint import load_checkpoint, save_checkpoint
from hlnet.tree.class_tree import ClassTree

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TREE = ClassTree.from_nested({"cat": {"big": ["lion", "puma"], "small": ["tabby"]}, "dog": {"hound": ["beagle"]}})


@torch.no_grad()
def logits(net):
    return net(IMAGES)


def kept_rows(name, tensor, full, chosen):
    """The rows that an expert has of a tensor, found by the paths of nodes and by the tensor's name."""
    leaves = [f"{leaf.path}/" for position, leaf in enumerate(full.tree.leaves) if position in chosen]

    def kept(row):
        return [i for i, node in enumerate(row) if any(leaf.startswith(f"{node.path}/") for leaf in leaves)]

    _, part, number, *_ = name.split(".")
    if part in ("leaves", "class_rows"):
        return tensor[kept(full.tree.leaves)]
    if part != "levels":
        return tensor
    if "family_" not in name:
        return tensor[kept(full.tree.levels[int(number)])]
    assert len(tensor) == (len(full.tree.levels[int(number) - 1]) if int(number) else 1)  # a row a parent
    return tensor[kept(full.tree.levels[int(number) - 1])] if int(number) else tensor


@settings(max_examples=15, deadline=None)
@given(trees_and_choices(), lean_settings())
def test_every_cut_is_its_rows_and_logits(tmp_path_factory, drawn, lean):
    tree, chosen = drawn
    full, folder = build_lean(tree, lean), tmp_path_factory.mktemp("cut")
    save_checkpoint(full, folder / "full.safetensors")
    selection = [tree.leaves[i].path for i in chosen]
    cut_checkpoint(folder / "full.safetensors", selection, folder / "expert.safetensors")
    weights = full.state_dict()
    for expert in (cut_expert(full, selection), load_checkpoint(folder / "expert.safetensors")):
        assert expert.config == full.config
        assert expert.state_dict().keys() == weights.keys()
        for name, tensor in expert.state_dict().items():
            assert torch.equal(tensor, kept_rows(name, weights[name], full, chosen)), name
        torch.testing.assert_close(logits(expert), logits(full)[:, sorted(chosen)], rtol=0, atol=1e-12)
        Reference(full).check_weights(expert)


@settings(max_examples=10, deadline=None)
@given(trees_and_choices(), lean_settings(), st.data())
def test_merging_cuts_is_cutting_the_union(tmp_path_factory, drawn, lean, data):
    tree, first = drawn
    second = data.draw(st.sets(st.integers(0, len(tree.leaves) - 1), min_size=1))
    full, folder = build_lean(tree, lean), tmp_path_factory.mktemp("merge")
    save_checkpoint(full, folder / "full.safetensors")
    parts = [folder / "first.safetensors", folder / "second.safetensors"]
    for path, kept in zip(parts, (first, second), strict=True):
        cut_checkpoint(folder / "full.safetensors", [tree.classes[i] for i in kept], path)
    merged, expected = merge_experts(parts), cut_expert(full, [tree.classes[i] for i in first | second])
    assert merged.tree == expected.tree
    for name, tensor in merged.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name]), name


def by_hand(net, path, branch, pooled):
    """Logits of one small tree on one timm block a node, from the trunk down to its parent and on."""
    old = naive_of(net.config, net.tree, net.trunk.channels).double().eval()
    copy_weights(net.head, old)
    words = path.split("/") if path != "/" else []
    x = net.trunk(IMAGES) if old.stage is None else old.stage(net.trunk(IMAGES))
    for depth in range(len(words)):
        paths = [node.path for node in net.tree.levels[depth]]
        x = old.rows[depth][paths.index("/".join(words[: depth + 1]))](x)
    shape = net.config.model_dump() | {"shared_width": 0, "shared_blocks": 1, "shared_stride": 1}
    shape |= {name: getattr(net.config, name)[len(words) :] for name in ("widths", "strides")}
    config = net.config.model_validate(shape | {"class_rows": False})
    small = naive_of(config, branch.tree, x.shape[1]).double().eval()
    rows, branch.class_rows = branch.class_rows, None
    copy_weights(branch, small)
    branch.class_rows = rows
    return small(x) if rows is None else small(x) + rows(pooled)


@settings(max_examples=15, deadline=None)
@given(trees_and_choices(), lean_settings(), st.data())
def test_grown_network_is_the_old_one_and_small_trees(drawn, lean, data):
    tree, _ = drawn
    net = build_lean(tree, lean)
    paths = data.draw(st.sets(st.sampled_from(sorted(inner_nodes(tree))), min_size=1, max_size=2))
    branches = {path: new_branches(net, path, {f"new {i}": None}).double() for i, path in enumerate(sorted(paths))}
    for seed, branch in enumerate(branches.values(), start=1):
        shared = {name: tensor.clone() for name, tensor in branch.state_dict().items() if ".family_" in name}
        randomise(branch.eval(), seed)
        kept = {name: tensor for name, tensor in shared.items() if name.startswith("levels.0.")}
        branch.load_state_dict(kept, strict=False)  # the old siblings', which training leaves alone
    grown = grow(net, branches)
    place = {name: i for i, name in enumerate(grown.tree.classes)}
    with torch.no_grad():
        found, seen = grown(IMAGES), net.head.seen(net.trunk(IMAGES))
        torch.testing.assert_close(found[:, [place[name] for name in tree.classes]], logits(net), rtol=0, atol=1e-9)
        for path, branch in branches.items():
            pooled = None if branch.class_rows is None else branch.class_rows.pool(seen)
            expected = by_hand(net, path, branch, pooled)
            torch.testing.assert_close(found[:, [place[leaf.name] for leaf in branch.tree.leaves]], expected)
            own = branch.tree_logits(node_output(net.head, net.head.seen(net.trunk(IMAGES)), path))
            torch.testing.assert_close(own if pooled is None else own + branch.class_rows(pooled), expected)
        cut = cut_expert(grown, [leaf.path for leaf in tree.leaves])
        assert cut.tree == tree and torch.equal(logits(cut), logits(net))


@pytest.mark.parametrize("lean", ["all", "convnext, all", "reduce"])
def test_a_new_sibling_trains_only_what_is_its_own(lean):
    net = build_lean(TREE, LEAN[lean])
    branch = new_branches(net, "cat", {"lynx": None}).double().train()
    kept = {name: tensor.clone() for name, tensor in branch.state_dict().items() if "levels.0.family_" in name}
    weights = net.state_dict()
    assert kept and all(
        torch.equal(old, weights[f"head.{name}".replace("0", "1", 1)][:1]) for name, old in kept.items()
    )
    trained = {name for name, parameter in branch.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in branch.named_parameters()} - kept.keys()
    x = node_output(net.head, net.head.seen(net.trunk(IMAGES)), "cat").detach()
    optimizer = torch.optim.SGD([p for p in branch.parameters() if p.requires_grad], lr=0.1)
    branch.tree_logits(x).sum().backward()
    optimizer.step()
    assert all(torch.equal(branch.state_dict()[name], old) for name, old in kept.items())  # statistics too


def test_a_file_holds_what_it_needs_and_no_more(tmp_path):
    """Of the paper's networks, what their files said before lean ones were there."""
    new = {"shared_width", "shared_stride", "class_rows", "sharing", "rank_leaves"}
    for lean, fields in ({}, set()), (LEAN["all"], new):
        net = build_lean(TREE, {"block": "bottleneck"} | lean)
        save_checkpoint(net, tmp_path / "net.safetensors")
        with safe_open(tmp_path / "net.safetensors", framework="pt") as file:
            told = file.metadata()["hlnet"]
        before = {"backbone", "split_point", "block", "widths", "strides", "backbone_args"}
        assert net.config.model_dump().keys() == before | fields
        assert ("shared" in told) == bool(lean)
        assert load_checkpoint(tmp_path / "net.safetensors").config == net.config


def test_a_grafts_loss_counts_the_rows_alone():
    """By the weight that is given: of one step on all images, the difference is the rows' own cross-entropy."""
    tree = ClassTree.from_nested({"warm": ["red"], "cold": ["green"]})
    net, losses = build_lean(tree, LEAN["all"], torch.float32), {}
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 255, (6, 32, 32, 3), generator=generator, dtype=torch.uint8).numpy()
    images = LabelledImages("noise", ("red", "green", "blue"), (0, 1, 2) * 2, lambda i: Image.fromarray(pixels[i]))
    columns = ClassTree.from_nested(["red", "green", "blue"])
    data = TreeData(images, columns, eval_transform(net.transform))
    for weight in (0.0, 0.5):
        config = graft_config(net, epochs=1, batch_size=6, cache_views=1, workers=0, smoothing=0.0, rows_loss=weight)
        torch.manual_seed(0)
        branches = NewBranches(net, {"blue": "cold"}, {}, config)
        seen = extract_features(net, cached_features(net, data), config)
        rows = branches.rows(seen.pooled).detach()
        told = []
        train_branches(net, branches, seen, config, columns, lambda *_: None, told.append)
        losses[weight] = told[0].loss
    pooled = net.head.class_rows.pool(net.head.seen(net.trunk(torch.stack([image for image, _ in data]))))
    alone = torch.cat([net.head.class_rows(pooled), rows], dim=1)
    expected = torch.nn.functional.cross_entropy(alone, torch.tensor(images.labels)).item()
    assert losses[0.5] - losses[0.0] == pytest.approx(0.5 * expected, rel=1e-4)
