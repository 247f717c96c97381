"""Experts: a cut is the parent's rows and gives the parent's logits; only those rows are read from a file."""

from contextlib import contextmanager
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import randomise

import hlnet.expert
from hlnet.checkpoint import load_checkpoint, read_header, save_checkpoint
from hlnet.errors import CheckpointError, RunError, SelectionError, UsageError
from hlnet.expert import cut_expert, verify_expert
from hlnet.network import HierarchicalNet, NetworkConfig, Provenance
from hlnet.plain import PlainConfig, PlainNet
from hlnet.tree import ClassTree
from hlnet.trunk import InputTransform

SHAPES = st.recursive(st.none(), lambda below: st.lists(below, min_size=1, max_size=3), max_leaves=8).filter(bool)
PETS = {
    "cat": {"tabby": 281, "siamese": 284},
    "dog": {"spaniel": {"sussex": 9, "cocker": 3}, "beagle": 162},
    "saw": 491,
}
TREE = ClassTree.from_nested(PETS).with_ids({"cat": "n1", "cat/tabby": "n02123045", "saw": "n04"})


@st.composite
def trees_and_choices(draw):
    """A tree of uneven depth with indices and some ids, and a choice of its classes."""
    counter = iter(range(1000))

    def mapping(shape):
        return {f"n{next(counter)}": mapping(below) if below else 7 * next(counter) + 2 for below in shape}

    tree = ClassTree.from_nested(mapping(draw(SHAPES)))
    tree = tree.with_ids({leaf.path: f"id {leaf.index}" for leaf in tree.leaves[::2]})
    return tree, draw(st.sets(st.integers(0, len(tree.leaves) - 1), min_size=1))


def build(tree=TREE, block="bottleneck"):
    """A small network in float64 with random weights and settings unlike the defaults."""
    levels = tree.num_levels
    config = NetworkConfig(
        backbone="test_resnet", split_point=-3, block=block, widths=(4,) * levels, strides=(2,) + (1,) * (levels - 1)
    )
    torch.manual_seed(0)
    net = HierarchicalNet(config, tree).double()
    randomise(net.head)
    net.transform = InputTransform(input_size=(3, 32, 32), mean=(0.1, 0.2, 0.3))
    net.provenance = Provenance(recipe={"epochs": 3}, metrics={"top1": 0.9}, attention_signal=1.8)
    return net.eval()


@cache
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@torch.no_grad()
def logits(net):
    return net(images())


def assert_same(one, other):
    """Bit for bit, buffers included, and all settings."""
    assert (one.config, one.tree, one.transform) == (other.config, other.tree, other.transform)
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name


def assert_rows(expert, full, chosen):
    """The rows are those of the nodes above the chosen classes, found by path; the trunk is whole."""
    leaves = [leaf.path for position, leaf in enumerate(full.tree.leaves) if position in chosen]
    kept = [
        [i for i, node in enumerate(row) if any(f"{leaf}/".startswith(f"{node.path}/") for leaf in leaves)]
        for row in full.tree.levels
    ]
    whole = full.state_dict()
    assert whole.keys() == expert.state_dict().keys()
    for name, tensor in expert.state_dict().items():
        part, level = name.split(".")[1], name.split(".")[2]
        rows = {"levels": lambda level=level: kept[int(level)], "leaves": lambda: kept[-1]}.get(part)
        assert torch.equal(tensor, whole[name][rows()] if name.startswith("head.") else whole[name]), name


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
    assert verify_expert(expert, full, images()) < 1e-9


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


@pytest.mark.parametrize("block", ["bottleneck", "convnext"])
def test_every_subset_of_one_tree(block):
    full = build(block=block)
    everything = logits(full)
    for number in range(1, 2 ** len(TREE.leaves)):
        chosen = [i for i in range(len(TREE.leaves)) if number >> i & 1]
        expert = cut_expert(full, [TREE.classes[i] for i in chosen])
        assert_rows(expert, full, set(chosen))
        torch.testing.assert_close(logits(expert), everything[:, chosen], rtol=0, atol=1e-9)


def test_cut_of_phl_is_its_chains():
    full = build(ClassTree.parallel(["a", "b", "c", "d"]))
    expert = cut_expert(full, "b,d")
    assert (expert.tree.counts, expert.tree.classes, expert.tree.indices) == ((2, 2, 2), ("b", "d"), (1, 3))
    assert_rows(expert, full, {1, 3})


def test_all_classes_are_the_network_itself(tmp_path):
    full = build()
    save_checkpoint(full, tmp_path / "full.safetensors")
    for source in (full, tmp_path / "full.safetensors", str(tmp_path / "full.safetensors")):
        assert_same(cut_expert(source, "*"), full)


@pytest.mark.parametrize(
    ("selection", "classes"),
    [
        ("n02123045", ["tabby"]),
        (162, ["beagle"]),
        ("dog/spaniel,saw", ["sussex", "cocker", "saw"]),
        ("200-300", ["tabby", "siamese"]),
    ],
)
def test_selections_are_understood(selection, classes):
    assert list(cut_expert(build(), selection).tree.classes) == classes


def test_expert_shares_no_memory_with_the_network():
    full = build()
    before = {name: tensor.clone() for name, tensor in full.state_dict().items()}
    for tensor in cut_expert(full, "*").state_dict().values():
        tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in full.state_dict().items())


# ---------------------------------------------------------------------- reading


class Recorder:
    """Stands for an open file, and counts the rows that are read of each tensor."""

    def __init__(self, file):
        self.file, self.rows = file, {}

    def keys(self):
        return self.file.keys()

    def get_tensor(self, name):
        self.rows[name] = "whole"
        return self.file.get_tensor(name)

    def get_slice(self, name):
        recorder, stored = self, self.file.get_slice(name)

        class Slice:
            def __getitem__(self, rows):
                recorder.rows.setdefault(name, []).extend(range(stored.get_shape()[0])[rows])
                return stored[rows]

        return Slice()


@pytest.mark.parametrize(
    ("selection", "kept"),
    [
        ("sussex", [[1], [2], [2]]),
        ("tabby,beagle,saw", [[0, 1, 2], [0, 3, 4], [0, 4, 5]]),
        ("dog", [[1], [2, 3], [2, 3, 4]]),
    ],
)
def test_only_the_kept_rows_are_read(tmp_path, monkeypatch, selection, kept):
    path, opened, recorders = tmp_path / "full.safetensors", hlnet.expert.opened, []
    save_checkpoint(build(), path)

    @contextmanager
    def recording(name):
        with opened(name) as file:
            recorders.append(Recorder(file))
            yield recorders[-1]

    monkeypatch.setattr(hlnet.expert, "opened", recording)
    names = cut_expert(path, selection).state_dict()
    (recorder,) = recorders
    assert recorder.rows.keys() == names.keys()
    for name, rows in recorder.rows.items():
        parts = name.split(".")
        where = {"levels": parts[2], "leaves": -1}.get(parts[1])
        assert rows == ("whole" if parts[0] == "trunk" else kept[int(where)]), name


# ---------------------------------------------------------------------- provenance


def test_provenance_names_the_full_network(tmp_path):
    full, paths = build(), [tmp_path / f"{i}.safetensors" for i in range(3)]
    save_checkpoint(full, paths[0])
    expected = Provenance(recipe={"epochs": 3}, parent=read_header(paths[0]).fingerprint, parent_counts=(3, 5, 6))
    for source, target, selection in [(paths[0], paths[1], "dog,saw"), (paths[1], paths[2], "dog")]:
        expert = cut_expert(source, selection)
        assert expert.provenance == expected
        save_checkpoint(expert, target)
        assert read_header(target).provenance == expected
        assert cut_expert(load_checkpoint(target), "sussex").provenance == expected  # from memory, too
    assert len({read_header(path).fingerprint for path in paths}) == 3


def test_provenance_of_a_cut_from_memory_never_names_another_expert(tmp_path):
    full, path = build(), tmp_path / "expert.safetensors"
    expert = cut_expert(full, "dog")
    assert expert.provenance == Provenance(
        recipe={"epochs": 3}, parent_counts=(3, 5, 6), parent=expert.provenance.parent
    )
    save_checkpoint(expert, path)
    save_checkpoint(full, tmp_path / "full.safetensors")
    assert cut_expert(path, "sussex").provenance.parent in {
        None,
        read_header(tmp_path / "full.safetensors").fingerprint,
    }


# ---------------------------------------------------------------------- checks and wrong requests


@pytest.mark.parametrize("name", ["head.levels.1.conv2_weight", "head.leaves.bias", "trunk.model.conv1.0.weight"])
def test_tampered_expert_is_found_out(name):
    full = build().float()
    expert = cut_expert(full, "dog")
    assert verify_expert(expert, full) < 1e-9
    assert verify_expert(expert, full, images().float()) < 1e-9
    assert next(expert.parameters()).dtype == next(full.parameters()).dtype == torch.float32  # both as they were
    expert.state_dict()[name].view(-1)[0] += 1e-3
    with pytest.raises(RunError, match="not a cut"):
        verify_expert(expert, full)


def test_expert_with_swapped_or_broken_rows_is_found_out():
    full = build()
    expert = cut_expert(full, "cat")
    with torch.no_grad():
        expert.head.leaves.weight.copy_(expert.head.leaves.weight.flip(0))
    with pytest.raises(RunError, match="not a cut"):
        verify_expert(expert, full)
    torch.nn.init.constant_(expert.head.leaves.bias, float("nan"))
    with pytest.raises(RunError, match="not a cut"):
        verify_expert(expert, full)


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
    full, path = build(), tmp_path / "full.safetensors"
    save_checkpoint(full, path)
    for source in (full, path):
        with pytest.raises(SelectionError):
            cut_expert(source, selection)


def test_files_that_are_not_whole_are_refused(tmp_path):
    path = tmp_path / "full.safetensors"
    with pytest.raises(UsageError, match="no model file"):
        cut_expert(path, "dog")
    save_checkpoint(build(), path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="not an intact"):
        cut_expert(path, "dog")
