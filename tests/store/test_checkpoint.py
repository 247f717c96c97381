"""Checkpoints: everything comes back as it was, and a file that is not whole or not ours is one clear error."""

import json
import pickle
import random

import pytest
import torch
from helpers.naive import randomise
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import hlnet.store.checkpoint
from hlnet.errors import CheckpointError, RunError, UsageError
from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
from hlnet.model.plain import PlainConfig, PlainNet
from hlnet.model.provenance import FittedAttention, Provenance
from hlnet.model.transform import InputTransform
from hlnet.store.checkpoint import load_checkpoint, read_header, save_checkpoint
from hlnet.tree.class_tree import ClassTree

TREE = ClassTree.from_nested({"cat": {"tabby": 281, "siamese": 284}, "été": {"x, y": 9}, "saw": 491}, levels=3)
TREE = TREE.with_ids({"cat": "n1", "cat/tabby": "n02123045", "saw": "outil 'à main'"})
SWIN_ARGS = {"img_size": 64, "window_size": 2, "embed_dim": 12, "depths": [2, 2, 2, 2]}
SWIN = {"backbone": "swin_tiny_patch4_window7_224", "backbone_args": SWIN_ARGS}
LEVELS = {"widths": (8, 4, 4), "strides": (1, 1, 2)}
BUILDERS = {
    "bottleneck": lambda: HierarchicalNet(NetworkConfig(backbone="test_resnet", **LEVELS), TREE),
    "convnext": lambda: HierarchicalNet(NetworkConfig(backbone="test_resnet", block="convnext", **LEVELS), TREE),
    "plain": lambda: PlainNet(PlainConfig(backbone="test_resnet", split_point=-3), TREE),
    "swin": lambda: HierarchicalNet(NetworkConfig(**SWIN, **LEVELS), TREE),
    "plain swin": lambda: PlainNet(PlainConfig(**SWIN), TREE),
}


def build(kind="bottleneck"):
    torch.manual_seed(0)
    model = BUILDERS[kind]().eval()
    if isinstance(model, HierarchicalNet):
        randomise(model.head)
    model.transform = InputTransform(input_size=(3, 64, 64), mean=(0.1, 0.2, 0.3), crop_pct=0.95, crop_mode="squash")
    model.provenance = Provenance(
        recipe={"lr": 0.1, "tags": ["a", None]},
        metrics={"a": 1 / 3},
        attention=FittedAttention(reliability=0.9, gain=((2.0, 3.0),)),
    )
    return model


@pytest.fixture
def saved(tmp_path):
    """A checkpoint, with its tensors and its header as plain data."""
    path = tmp_path / "net.safetensors"
    save_checkpoint(build(), path)
    return path, load_file(path), header_of(path)


def header_of(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["hlnet"])


def rewrite(path, tensors, header):
    save_file(tensors, path, {"format": "pt", "hlnet": header if isinstance(header, str) else json.dumps(header)})


def refused(path):
    """The message with which a file is refused."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500 and str(path) in message
    return message


def assert_same_tensors(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("kind", BUILDERS)
def test_network_comes_back_whole(kind, tmp_path):
    model, path, images = build(kind), tmp_path / "new folder" / "net.safetensors", torch.rand(2, 3, 64, 64)
    save_checkpoint(model, path)
    again = load_checkpoint(path)
    assert type(again) is type(model) and not again.training
    assert_same_tensors(model.state_dict(), again.state_dict())
    assert_same_tensors(dict(model.named_buffers()), dict(again.named_buffers()))  # those that no file holds, too
    assert (again.config, again.tree, again.transform) == (model.config, TREE, model.transform)
    assert again.provenance == model.provenance
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
    assert all(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_weights_are_written_in_place_of_its_own_and_keep_their_precision(dtype, tmp_path):
    model, path = build(), tmp_path / "net.safetensors"
    average = {name: tensor + 1 for name, tensor in model.to(dtype).state_dict().items()}
    save_checkpoint(model, path, weights=average)
    assert_same_tensors(average, load_checkpoint(path).state_dict())


@pytest.mark.parametrize(("kind", "written"), [("bottleneck", "hierarchical"), ("plain", "plain")])
def test_metadata_is_one_json_string(kind, written, tmp_path):
    model, path = build(kind), tmp_path / "net.safetensors"
    save_checkpoint(model, path)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "hlnet": json.dumps(header_of(path), ensure_ascii=False)}
    header, read = header_of(path), read_header(path)
    assert (header["version"], header["kind"], header["transform"]["crop_pct"]) == (1, written, 0.95)
    assert (read.kind, read.config, read.tree, read.transform) == (written, model.config, TREE, model.transform)
    assert (read.provenance, read.fingerprint) == (model.provenance, header["fingerprint"])


def test_fingerprint_is_of_the_weights_alone(tmp_path):
    def fingerprint(weights=None):
        save_checkpoint(model, tmp_path / "net.safetensors", weights)
        return header_of(tmp_path / "net.safetensors")["fingerprint"]

    model = build()
    first = fingerprint()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.provenance = Provenance()
    assert len(first) == 64 and fingerprint() == first == fingerprint(dict(reversed(weights.items())))
    weight, bias = weights["head.levels.0.conv1_bn_weight"], weights["head.levels.0.conv1_bn_bias"]
    swapped = weights | {"head.levels.0.conv1_bn_weight": bias, "head.levels.0.conv1_bn_bias": weight}
    assert fingerprint(swapped) != first
    weight.view(torch.int32)[0, 0] ^= 1  # a single bit
    assert fingerprint(weights) != first


DAMAGE = {
    "noise": lambda raw: random.Random(0).randbytes(5000),
    "a byte more": lambda raw: raw + b"\0",
    "header not JSON": lambda raw: raw[:8] + b"[" + raw[9:],
    "header without end": lambda raw: b"\xff" * 8 + raw[8:],
    "pickle": lambda raw: pickle.dumps({"state_dict": {}}),
}


@pytest.mark.parametrize("damage", [*DAMAGE, 0, 1, 7, 8, 9, 500, 50_000, -50_000, -1])
def test_damaged_or_truncated_file(saved, damage):
    path, raw = saved[0], saved[0].read_bytes()
    path.write_bytes(raw[:damage] if isinstance(damage, int) else DAMAGE[damage](raw))
    assert "not an intact safetensors file" in refused(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_foreign_safetensors(tmp_path, metadata):
    save_file({"weight": torch.zeros(2)}, tmp_path / "net.safetensors", metadata)
    assert "not one of hlnet's" in refused(tmp_path / "net.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda header: "", "damaged header"),
        (lambda header: json.dumps(header)[:-1], "damaged header"),
        (lambda header: "null", "damaged header"),
        (lambda header: "[3]", "damaged header"),
        (lambda header: "[" * 100_000, "damaged header"),
        (lambda header: header | {"tree": header["tree"] | {"levels": 1}}, "damaged header"),
        (lambda header: header | {"tree": header["tree"] | {"levels": 4}}, "net.safetensors"),  # its widths are for 3
        (lambda header: header | {"config": header["config"] | {"depth": 3}}, "damaged header"),
        (lambda header: header | {"version": 2, "config": "in a new form"}, "reads version 1; update hlnet"),
    ],
    ids=["empty", "cut off", "null", "list", "nested", "tree", "widths", "setting", "newer"],
)
def test_damaged_or_newer_header(saved, change, words):
    path, tensors, header = saved
    rewrite(path, tensors, change(header))
    assert words in refused(path)


@pytest.mark.parametrize("key", ["version", "kind", "config", "tree", "transform", "provenance", "fingerprint"])
@pytest.mark.parametrize("value", ["missing", None, 7, {"a": 1}])
def test_header_with_a_key_missing_or_wrong(saved, key, value):
    path, tensors, header = saved
    rewrite(path, tensors, {k: v for k, v in header.items() if k != key} | ({} if value == "missing" else {key: value}))
    refused(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weight: {}, "lacks 'head.leaves.weight'"),
        (lambda weight: {"head.leaves.weight": weight, "surplus": weight.clone()}, "unknown 'surplus'"),
        (lambda weight: {"head.leaves.weight": weight[:-1]}, "'head.leaves.weight' of shape [3, 16] instead of [4, "),
        (lambda weight: {"head.leaves.weight": weight.int()}, "'head.leaves.weight'"),
    ],
    ids=["missing", "surplus", "shape", "whole numbers"],
)
def test_tensors_that_do_not_fit_the_header(saved, change, words):
    path, tensors, header = saved
    rewrite(path, tensors | change(tensors.pop("head.leaves.weight")), header)
    assert words in refused(path)


@pytest.mark.parametrize("read", [load_checkpoint, read_header])
@pytest.mark.parametrize("name", ["absent.safetensors", "folder.safetensors", ""])
def test_no_such_file(tmp_path, monkeypatch, read, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(UsageError, match=f"no model file '{name}'"):
        read(name)


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("net.pt", UsageError, "ends in .safetensors"),
        ("folder.safetensors", RunError, "it is a folder"),
        ("file.txt/net.safetensors", RunError, "cannot write"),
    ],
)
def test_places_where_nothing_can_be_saved(tmp_path, name, error, words):
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "file.txt").touch()
    with pytest.raises(error, match=words):
        save_checkpoint(build(), tmp_path / name)
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["file.txt", "folder.safetensors"]


def test_failure_while_writing_leaves_the_old_file(saved, monkeypatch):
    def half(weights, path, metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    path, before = saved[0], saved[0].read_bytes()
    monkeypatch.setattr(hlnet.store.checkpoint, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(build(), path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_full_disk_is_a_clear_error_and_leaves_the_old_file(saved):
    resource = pytest.importorskip("resource")
    path, before, model = saved[0], saved[0].read_bytes(), build()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # no file may grow larger
    try:
        with pytest.raises(RunError, match="cannot write"):
            save_checkpoint(model, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_loading_never_unpickles(saved, monkeypatch):
    for module, name in [(torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")]:
        monkeypatch.delattr(module, name)
    assert_same_tensors(saved[1], load_checkpoint(saved[0]).state_dict())
