"""Experts: a cut is the parent's rows and gives the parent's logits; only those rows are read from a file."""

import json
from contextlib import contextmanager
from hashlib import sha256

import pytest
import torch
from helpers.expert_nets import DOGS, TREE, build, trees_and_choices
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import hlnet.expert.cut
from hlnet.errors import CheckpointError, RunError, SelectionError, UsageError
from hlnet.expert.cut import cut_checkpoint, cut_expert
from hlnet.expert.verify import Reference, verify_expert
from hlnet.model.fast.optimize import optimize
from hlnet.model.plain import PlainConfig, PlainNet
from hlnet.model.provenance import Provenance
from hlnet.store.checkpoint import load_checkpoint, read_header, save_checkpoint
from hlnet.tree.class_tree import ClassTree

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@torch.no_grad()
def logits(net):
    return net(IMAGES)


def assert_same(one, other):
    """Bit for bit, buffers included, and all settings."""
    assert (one.config, one.tree, one.transform) == (other.config, other.tree, other.transform)
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name


def level_of(name):
    """Which level's rows a tensor holds; None for the trunk's."""
    _, part, number, *_ = name.split(".")
    return {"levels": number, "leaves": -1}.get(part)


def assert_rows(expert, full, chosen):
    """The rows are those of the nodes above the chosen classes, found by path; the trunk is whole."""
    leaves = [f"{leaf.path}/" for position, leaf in enumerate(full.tree.leaves) if position in chosen]
    kept = [
        [i for i, node in enumerate(row) if any(leaf.startswith(f"{node.path}/") for leaf in leaves)]
        for row in full.tree.levels
    ]
    weights, whole = expert.state_dict(), full.state_dict()
    assert weights.keys() == whole.keys()
    for name, tensor in whole.items():
        level = level_of(name)
        assert torch.equal(weights[name], tensor if level is None else tensor[kept[int(level)]]), name


@settings(max_examples=12, deadline=None)
@given(trees_and_choices(), st.sampled_from(["bottleneck", "convnext"]))
def test_every_cut_is_its_rows_and_logits(tmp_path_factory, drawn, block):
    tree, chosen = drawn
    full, path = build(tree, block), tmp_path_factory.mktemp("cut") / "full.safetensors"
    save_checkpoint(full, path)
    selection = [tree.leaves[i].path for i in chosen]
    expert = cut_expert(full, selection)
    assert_same(expert, cut_expert(path, selection))
    assert_rows(expert, full, chosen)
    kept = [leaf for i, leaf in enumerate(tree.leaves) if i in chosen]
    found = [(leaf.name, leaf.path, leaf.index, leaf.id) for leaf in expert.tree.leaves]
    assert found == [(leaf.name, leaf.path, leaf.index, leaf.id) for leaf in kept]
    assert (expert.config, expert.transform, expert.training) == (full.config, full.transform, False)
    torch.testing.assert_close(logits(expert), logits(full)[:, sorted(chosen)], rtol=0, atol=1e-9)
    assert verify_expert(expert, full, IMAGES) < 1e-9


@settings(max_examples=8, deadline=None)
@given(trees_and_choices(), st.data())
def test_expert_of_an_expert_is_the_direct_cut(tmp_path_factory, drawn, data):
    tree, chosen = drawn
    folder = tmp_path_factory.mktemp("cut")
    fewer = data.draw(st.sets(st.sampled_from(sorted(chosen)), min_size=1))
    outer, inner = ([tree.leaves[i].index for i in positions] for positions in (chosen, fewer))
    save_checkpoint(build(tree), folder / "full.safetensors")
    save_checkpoint(cut_expert(folder / "full.safetensors", outer), folder / "expert.safetensors")
    direct, nested = (cut_expert(folder / name, inner) for name in ("full.safetensors", "expert.safetensors"))
    assert_same(nested, direct)
    assert nested.provenance == direct.provenance


@pytest.mark.parametrize(
    ("tree", "block"),
    [(TREE, "bottleneck"), (TREE, "convnext"), (ClassTree.parallel(list("abcd")), "bottleneck")],
    ids=["bottleneck", "convnext", "phl"],
)
def test_every_subset_of_one_tree(tree, block):
    full = build(tree, block)
    everything = logits(full)
    for number in range(1, 2 ** len(tree.leaves)):
        chosen = [i for i in range(len(tree.leaves)) if number >> i & 1]
        expert = cut_expert(full, [tree.classes[i] for i in chosen])
        assert_rows(expert, full, chosen)
        torch.testing.assert_close(logits(expert), everything[:, chosen], rtol=0, atol=1e-9)


def subsets(items):
    return [[item for i, item in enumerate(items) if number >> i & 1] for number in range(1, 2 ** len(items))]


def test_every_subset_of_every_subset_through_files(tmp_path):
    """An expert of an expert, file to file, is to the bit the one that is cut at once, and tells the same of itself."""
    tree = ClassTree.from_nested({"spaniel": DOGS["spaniel"], "saw": 491})
    full, outer, inner, direct = (tmp_path / f"{name}.safetensors" for name in ("full", "outer", "inner", "direct"))
    save_checkpoint(build(tree), full)
    for classes in subsets(tree.classes):
        cut_checkpoint(full, classes, outer)
        for fewer in subsets(classes):
            cut_checkpoint(outer, fewer, inner)
            cut_checkpoint(full, fewer, direct)
            assert header_and_tensors(inner) == header_and_tensors(direct), (classes, fewer)


def test_all_classes_are_the_network_itself(tmp_path):
    full = build()
    save_checkpoint(full, tmp_path / "full.safetensors")
    for source in (full, tmp_path / "full.safetensors", str(tmp_path / "full.safetensors")):
        assert_same(cut_expert(source, "*"), full)


def test_cut_keeps_what_a_backbone_computes_and_no_file_holds(tmp_path):
    arguments = {"img_size": 32, "window_size": 2, "embed_dim": 12, "depths": [2, 2, 2, 2]}
    full, path = build(backbone="swin_tiny_patch4_window7_224", backbone_args=arguments), tmp_path / "full.safetensors"
    save_checkpoint(full, path)
    for source in (full, path):
        torch.testing.assert_close(logits(cut_expert(source, "cat")), logits(full)[:, :2], rtol=0, atol=1e-9)


def test_expert_shares_no_memory_with_the_network():
    full = build()
    before = {name: tensor.clone() for name, tensor in full.state_dict().items()}
    for tensor in cut_expert(full, "*").state_dict().values():
        tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in full.state_dict().items())


class Recorder:
    """Stands for an open file, or for one of its tensors, and writes down which rows are read."""

    def __init__(self, source, read):
        self.source, self.read = source, read
        for name in ("keys", "get_shape", "metadata"):
            setattr(self, name, getattr(source, name, None))

    def get_tensor(self, name):
        self.read[name] = "whole"
        return self.source.get_tensor(name)

    def get_slice(self, name):
        return Recorder(self.source.get_slice(name), self.read.setdefault(name, []))

    def __getitem__(self, rows):
        self.read.extend(range(self.source.get_shape()[0])[rows])
        return self.source[rows]


@pytest.mark.parametrize(
    ("selection", "kept"),
    [("tabby,beagle,saw", [[0, 1, 2], [0, 3, 4], [0, 4, 5]]), ("dog", [[1], [2, 3], [2, 3, 4]])],
)
def test_only_the_kept_rows_are_read(tmp_path, monkeypatch, selection, kept):
    path, opened, read = tmp_path / "full.safetensors", hlnet.expert.cut.opened, {}
    save_checkpoint(build(), path)

    @contextmanager
    def recording(name):
        with opened(name) as file:
            yield Recorder(file, read)

    monkeypatch.setattr(hlnet.expert.cut, "opened", recording)
    assert cut_expert(path, selection).state_dict().keys() == read.keys()
    for name, rows in read.items():
        assert rows == ("whole" if level_of(name) is None else kept[int(level_of(name))]), name


def test_from_file_to_file_is_the_same_file(tmp_path):
    full, cut, ours = (tmp_path / f"{name}.safetensors" for name in ("full", "cut", "ours"))
    save_checkpoint(build(), full)
    save_checkpoint(cut_expert(full, "dog,saw"), cut)
    cut_checkpoint(full, "dog,saw", ours)
    assert read_header(ours) == read_header(cut)
    assert_same(load_checkpoint(ours), load_checkpoint(cut))


def header_and_tensors(path):
    """What a safetensors file says of itself and holds, read by its published layout with nothing but json."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    described = json.loads(raw[8:start])
    metadata = described.pop("__metadata__")
    places = {name: [start + end for end in entry["data_offsets"]] for name, entry in described.items()}
    shapes = {name: (entry["dtype"], entry["shape"]) for name, entry in described.items()}
    return json.loads(metadata["hlnet"]), shapes, {name: raw[begin:end] for name, (begin, end) in places.items()}


def test_file_tells_by_plain_json_what_the_expert_is(tmp_path):
    """Its parent's hash, its own, which rows of the parent it has, original indices, names, ids, tree and transform."""
    full, expert = tmp_path / "full.safetensors", tmp_path / "expert.safetensors"
    save_checkpoint(build(), full)
    cut_checkpoint(full, "tabby,dog", expert)
    whole, shapes, contents = header_and_tensors(full)
    told, kept_shapes, kept = header_and_tensors(expert)
    for described, tensors in ((whole, contents), (told, kept)):
        assert (
            described["fingerprint"] == sha256(b"".join(n.encode() + tensors[n] for n in sorted(tensors))).hexdigest()
        )
    assert told["provenance"]["parent"] == whole["fingerprint"] != told["fingerprint"]
    assert told["provenance"]["parent_counts"] == [3, 5, 6]
    assert told["provenance"]["parent_rows"] == [[0, 1], [0, 2, 3], [0, 2, 3, 4]]
    assert told["tree"]["tree"] == {"cat": {"tabby": 281}, "dog": DOGS} and told["tree"]["levels"] == 3
    assert told["tree"]["ids"] == {"cat": "n1", "cat/tabby": "n02123045"}
    assert told["transform"] == whole["transform"] and told["transform"]["mean"] == [0.1, 0.2, 0.3]
    assert told["config"] == whole["config"] and told["kind"] == "hierarchical"
    for name, (dtype, shape) in shapes.items():
        level = level_of(name)
        if level is None:
            assert (kept_shapes[name], kept[name]) == ((dtype, shape), contents[name])
            continue
        rows, size = told["provenance"]["parent_rows"][int(level)], len(contents[name]) // shape[0]
        assert kept_shapes[name] == (dtype, [len(rows), *shape[1:]])
        assert kept[name] == b"".join(contents[name][size * row : size * (row + 1)] for row in rows), name


def test_what_cannot_be_cut_or_saved_is_refused(tmp_path):
    full = tmp_path / "full.safetensors"
    net = build()
    save_checkpoint(net, full)
    before = full.read_bytes()
    with pytest.raises(UsageError, match="the model itself"):
        cut_checkpoint(full, "cat", full)
    with pytest.raises(UsageError, match="InferenceNet cannot be cut"):
        cut_expert(optimize(net), "cat")
    with pytest.raises(UsageError, match="InferenceNet cannot be saved"):
        save_checkpoint(optimize(net), full)
    assert full.read_bytes() == before


SPOILED = {
    "too few rows": ("head.levels.1.conv2_weight", lambda tensor: tensor[:-1].contiguous()),
    "another shape": ("head.levels.1.conv2_weight", lambda tensor: tensor[..., :1].contiguous()),
    "another kind": ("head.leaves.bias", lambda tensor: tensor.int()),
    "of the trunk": ("trunk.model.conv1.0.weight", lambda tensor: tensor[:, :1].contiguous()),
    "missing": ("head.leaves.weight", lambda tensor: None),
}


@pytest.mark.parametrize("how", SPOILED)
def test_cut_of_a_spoiled_file_is_refused(tmp_path, how):
    full, bad, out = (tmp_path / f"{name}.safetensors" for name in ("full", "bad", "out"))
    save_checkpoint(build(), full)
    with hlnet.expert.cut.opened(full) as file:
        metadata, weights = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name, spoil = SPOILED[how]
    weights[name] = spoil(weights[name])
    save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, bad, metadata=metadata)
    with pytest.raises(CheckpointError, match=name):
        cut_checkpoint(bad, "cat", out)
    assert not out.exists()


def test_provenance_names_the_full_network(tmp_path):
    full, paths = build(), [tmp_path / f"{i}.safetensors" for i in range(3)]
    save_checkpoint(full, paths[0])
    known = {"recipe": {"epochs": 3}, "parent": read_header(paths[0]).fingerprint}
    known |= {"parent_counts": (3, 5, 6), "next_index": 492, "attention": full.provenance.attention}
    dogs = ((1,), (2, 3), (2, 3, 4))  # the rows of the full network, whatever they are of the expert between
    for source, target, selection, rows in [
        (paths[0], paths[1], "dog,saw", ((1, 2), (2, 3, 4), (2, 3, 4, 5))),
        (paths[1], paths[2], "dog", dogs),
    ]:
        expected = Provenance(**known, parent_rows=rows)
        save_checkpoint(cut_expert(source, selection), target)
        assert cut_expert(source, selection).provenance == read_header(target).provenance == expected
        sussex = Provenance(**known, parent_rows=((1,), (2,), (2,)))
        assert cut_expert(load_checkpoint(target), "sussex").provenance == sussex  # from memory, too


def test_provenance_of_a_cut_from_memory_never_names_another_expert(tmp_path):
    full, paths = build(), [tmp_path / f"{i}.safetensors" for i in range(2)]
    for net, path in zip((full, cut_expert(full, "dog")), paths, strict=True):
        save_checkpoint(net, path)
    found = cut_expert(paths[1], "sussex").provenance
    assert found.parent in {None, read_header(paths[0]).fingerprint} and found.parent_counts == (3, 5, 6)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda weights: weights["head.levels.1.conv2_weight"].add_(1e-4),
        lambda weights: weights["trunk.model.conv1.0.weight"].add_(1e-4),
        lambda weights: weights["head.leaves.weight"].copy_(weights["head.leaves.weight"].flip(0)),
        lambda weights: weights["head.leaves.bias"].fill_(torch.nan),
    ],
    ids=["branch", "trunk", "leaves swapped", "not a number"],
)
def test_tampered_expert_is_found_out(tamper):
    full = build().float()
    expert = cut_expert(full, "dog")
    assert verify_expert(expert, full) < 1e-9
    assert next(expert.parameters()).dtype == next(full.parameters()).dtype == torch.float32  # both as they were
    tamper(expert.state_dict())
    with pytest.raises(RunError, match="not a cut"):
        verify_expert(expert, full)


def test_weights_are_compared_bit_for_bit():
    """A zero that turned negative changes no logit, and yet the weights are other ones."""
    full = build()
    full.state_dict()["head.leaves.weight"][3, 0] = 0.0
    expert, reference = cut_expert(full, "dog"), Reference(full)
    reference.check_weights(expert)
    weight = expert.state_dict()["head.leaves.weight"]
    assert weight[1, 0] == 0
    weight[1, 0] = -0.0
    assert reference.difference(expert) < 1e-9
    with pytest.raises(RunError, match=r"'head\.leaves\.weight' is not bitwise the full network's"):
        reference.check_weights(expert)
    with pytest.raises(RunError, match="not bitwise"):
        reference.check_weights(cut_expert(full, "dog").float())
    with pytest.raises(RunError, match="classes that the full network lacks"):
        Reference(cut_expert(full, "cat")).check_weights(expert)


def test_largest_difference_of_all_batches_counts():
    full = build()
    expert, reference = cut_expert(full, "dog"), Reference(full, lambda: iter([IMAGES[:1], IMAGES[1:], IMAGES]))
    assert [len(found) for found in reference.logits] == [1, 1, 2] and reference.difference(expert) < 1e-12
    reference.logits[1][0, 3] += 3e-10
    reference.logits[2][0, 2] -= 2e-10
    reference.logits[0][0, 0] += 1  # of a class that the expert lacks
    assert reference.difference(expert) == pytest.approx(3e-10, rel=1e-3)
    reference.logits[0][0, 4] = torch.nan
    with pytest.raises(RunError, match="nan"):
        reference.difference(expert)


def test_expert_of_another_network_is_refused():
    with pytest.raises(RunError):
        verify_expert(cut_expert(build(ClassTree.parallel([f"c{i}" for i in range(5)])), "c4"), build())


def test_plain_network_is_refused(tmp_path):
    plain = PlainNet(PlainConfig(backbone="test_resnet"), TREE)
    save_checkpoint(plain, tmp_path / "plain.safetensors")
    for source in (tmp_path / "plain.safetensors", plain):
        with pytest.raises(UsageError, match="plain network"):
            cut_expert(source, "dog")


@pytest.mark.parametrize("selection", ["tabi", "", [], 5, "5-8", ["tabby", "fish"], "*.png"])
def test_selection_that_names_nothing_is_refused(tmp_path, selection):
    save_checkpoint(build(), tmp_path / "full.safetensors")
    for source in (build(), tmp_path / "full.safetensors"):
        with pytest.raises(SelectionError):
            cut_expert(source, selection)
