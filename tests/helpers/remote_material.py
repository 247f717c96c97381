"""A small network on a Hub on loopback, for tests of files that are fetched in parts."""

import pytest
import torch

from helpers.hub_server import Storage, hub_instead, running
from helpers.naive import randomise
from hlnet.expert.cut import cut_expert
from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
from hlnet.store import byte_ranges, remote_file
from hlnet.store.checkpoint import save_checkpoint
from hlnet.tree.class_tree import ClassTree

TREE = ClassTree.from_nested({"cat": {"tabby": 281, "siamese": 284}, "dog": {"beagle": 162, "boxer": 9}, "saw": 491})
FINE = {"GAP": 100, "CHUNK": 20_000}  # so that a small file comes in many requests
NAME = "hf-hub:me/net"


def build(tree=TREE, widths=(4, 4)):
    torch.manual_seed(0)
    net = HierarchicalNet(NetworkConfig(backbone="test_resnet", widths=widths, strides=(1,) * len(widths)), tree)
    randomise(net.head)
    return net.eval()


def same(one, other):
    """Bit for bit, kinds and shapes included."""
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


def equal(expert, other):
    return (
        same(expert.state_dict(), other.state_dict())
        and (expert.tree, expert.config) == (other.tree, other.config)
        and expert.provenance == other.provenance
    )


def raw_header(path):
    """The header's bytes, and the file's size."""
    data = path.read_bytes()
    return data[8 : 8 + int.from_bytes(data[:8], "little")], len(data)


def cached(tmp_path):
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A small network's file, and what is cut from it here."""
    path = tmp_path_factory.mktemp("full") / "full.safetensors"
    save_checkpoint(build(), path)
    return path, cut_expert(path, "dog")


@pytest.fixture
def hub(monkeypatch, tmp_path, full):
    """The Hub with that file; nobody waits before an attempt."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with hub_instead(monkeypatch, tmp_path) as server:
        server.put("me/net", {"model.safetensors": full[0].read_bytes()})
        yield server


@pytest.fixture
def storage(hub):
    with running(Storage()) as server:
        hub.storage = server
        yield server


@pytest.fixture
def fine(monkeypatch):
    for name, value in FINE.items():
        monkeypatch.setattr(byte_ranges, name, value)
    monkeypatch.setattr(remote_file, "FIRST", 1000)
