"""Cutting from a file on the Hub: against servers on loopback that count what they send, and that fail in many ways."""

import json
import logging
import sys
import threading
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import remote_material
from helpers.naive import randomise
from helpers.remote_material import NAME, TREE, build, cached, equal, raw_header, same
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hlnet.errors import CheckpointError, RunError, SelectionError, UsageError
from hlnet.expert.cut import cut_checkpoint, cut_expert
from hlnet.model.plain import PlainConfig, PlainNet
from hlnet.store import byte_ranges, remote_file
from hlnet.store.checkpoint import header_of, load_checkpoint, read_header, save_checkpoint
from hlnet.store.locate import locate_model
from hlnet.store.remote_file import DTYPES, RemoteFile, in_parts
from hlnet.tree.class_tree import ClassTree

full, hub, storage, fine = remote_material.full, remote_material.hub, remote_material.storage, remote_material.fine


# ---------------------------------------------------------------------- how much is fetched


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A network of 20 MB, most of it branches of more than a megabyte each."""
    nested = {f"g{g}": {f"h{g}.{h}": [f"c{g}.{h}.{c}" for c in range(2)] for h in range(2)} for g in range(2)}
    path = tmp_path_factory.mktemp("large") / "large.safetensors"
    save_checkpoint(build(ClassTree.from_nested(nested), widths=(128, 128, 128)), path)
    return path


@pytest.mark.parametrize("chosen", ["c0.0.0", "c0.1.1", "c1.1.1", "c0.0.1,c1.1.0"])
def test_what_is_sent_is_what_the_expert_needs(hub, large, tmp_path, chosen):
    hub.put("me/large", {"model.safetensors": large.read_bytes()})
    fetched = cut_checkpoint("hf-hub:me/large", chosen, tmp_path / "expert.safetensors")
    expert = load_checkpoint(tmp_path / "expert.safetensors")
    header, size = raw_header(large)
    needed = 8 + len(header) + sum(tensor.nbytes for tensor in expert.state_dict().values())
    assert needed <= hub.sent < 1.05 * needed and hub.sent < size / 2
    assert fetched == hub.sent == sum(end - begin for begin, end in hub.parts)
    assert equal(expert, cut_expert(large, chosen))
    assert hub.downloads() == [hub.downloads()[0]] * len(hub.parts) and not cached(tmp_path)
    assert len(hub.parts) < 40  # neighbours come together
    assert max(end - begin for begin, end in hub.parts) <= byte_ranges.CHUNK


def test_not_more_than_a_few_requests_at_a_time(hub, large, monkeypatch):
    monkeypatch.setattr(byte_ranges, "CHUNK", 100_000)
    monkeypatch.setattr(remote_file, "NEARLY_ALL", 2)
    running, most, changing = [0], [0], threading.Lock()

    def watched(handler, *answer):
        with changing:
            running[0] += 1
            most[0] = max(most[0], running[0])
        handler.reply(*answer)
        with changing:
            running[0] -= 1

    hub.put("me/large", {"model.safetensors": large.read_bytes()})
    hub.always = watched
    cut_expert("hf-hub:me/large", "*")
    assert len(hub.parts) > 100 and most[0] <= byte_ranges.CONNECTIONS


def test_without_tolerance_every_byte_is_needed(hub, full, monkeypatch):
    """Every byte that is sent is one of the header, the trunk or a kept row, and it is sent once."""
    path, expert = full
    monkeypatch.setattr(byte_ranges, "GAP", 0)
    header, _ = raw_header(path)
    monkeypatch.setattr(remote_file, "FIRST", 8 + len(header))
    assert equal(cut_expert(NAME, "dog"), expert)
    assert hub.sent == 8 + len(header) + sum(tensor.nbytes for tensor in expert.state_dict().values())


@pytest.mark.parametrize("first", [1000, 1 << 16, 200_000, 10**9])
@pytest.mark.parametrize("gap", [0, 1 << 16])
def test_nothing_is_fetched_twice(hub, full, monkeypatch, tmp_path, first, gap):
    """What came along with the header is taken from there; all that was sent is counted, and is less than the file."""
    monkeypatch.setattr(byte_ranges, "GAP", gap)
    monkeypatch.setattr(remote_file, "FIRST", first)
    monkeypatch.setattr(remote_file, "NEARLY_ALL", 2)
    with in_parts(NAME) as remote:
        assert header_of(remote, NAME) == read_header(full[0])
        fetched = cut_checkpoint(remote, "dog", tmp_path / "expert.safetensors")
    assert equal(load_checkpoint(tmp_path / "expert.safetensors"), full[1])
    parts = sorted(hub.parts)
    assert all(end <= begin for (_, end), (begin, _) in pairwise(parts))
    assert fetched == remote.fetched == hub.sent == sum(end - begin for begin, end in parts)
    assert fetched <= full[0].stat().st_size and sum("/main/" in path for _, path in hub.asked) == 1


def test_file_that_is_needed_nearly_whole_is_fetched_whole(hub, full, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "hlnet")
    monkeypatch.setattr(remote_file, "FIRST", 20_000)
    fetched = cut_checkpoint(NAME, "*", tmp_path / "expert.safetensors")
    assert "nearly all of it is needed" in caplog.text and len(hub.parts) == 1 and cached(tmp_path)
    assert fetched == hub.sent == 20_000 + full[0].stat().st_size
    assert equal(load_checkpoint(tmp_path / "expert.safetensors"), cut_expert(full[0], "*"))
    assert cut_checkpoint(NAME, "dog", tmp_path / "expert.safetensors") == 0  # it is in the cache now


def test_nearly_all_is_what_is_still_to_be_sent(hub, full, tmp_path, monkeypatch):
    """With a share just above what a cut still needs it comes in parts, with one just below whole."""
    header, size = raw_header(full[0])
    monkeypatch.setattr(remote_file, "FIRST", 8 + len(header))
    monkeypatch.setattr(remote_file, "NEARLY_ALL", 2)
    needed = cut_checkpoint(NAME, "dog", tmp_path / "expert.safetensors") - 8 - len(header)
    for share, whole in (((needed + 1) / size, False), (needed / size, True)):
        monkeypatch.setattr(remote_file, "NEARLY_ALL", share)
        assert equal(cut_expert(NAME, "dog"), full[1]) and bool(cached(tmp_path)) == whole


def test_whole_file_at_once(hub, full, tmp_path):
    with in_parts(NAME, whole=True) as remote:
        assert remote.path is not None and remote.path.read_bytes() == full[0].read_bytes()
        assert cut_checkpoint(remote, "dog", tmp_path / "expert.safetensors") == hub.sent == full[0].stat().st_size
    assert not hub.parts and equal(load_checkpoint(tmp_path / "expert.safetensors"), full[1])
    with pytest.raises(UsageError, match="the model itself"):
        cut_checkpoint(remote, "dog", remote.path)


def test_whole_file_that_is_another_is_an_error(hub, full, tmp_path):
    """Between the header and the rest it changes, to one of the same size or of another."""
    for other in (bytes(full[0].stat().st_size), full[0].read_bytes() + b"x"):
        hub.put("me/net", {"model.safetensors": full[0].read_bytes(), "README.md": other})
        commit = hub.commits["me/net", "main"][0]
        with in_parts(NAME) as remote:
            hub.commits["me/net", commit] = (commit, {"model.safetensors": other})
            with pytest.raises(RunError, match="changed"):
                cut_checkpoint(remote, "*", tmp_path / "expert.safetensors")
    assert not (tmp_path / "expert.safetensors").exists()


def test_only_the_header_is_fetched_to_read_it(hub, full, monkeypatch):
    header, _ = raw_header(full[0])
    for first in (9, len(header) + 7, len(header) + 8):  # in two requests or in one
        monkeypatch.setattr(remote_file, "FIRST", first)
        hub.sent = 0
        assert read_header(NAME) == read_header(full[0])
        assert hub.sent == 8 + len(header)


def test_what_cannot_be_cut_is_refused_before_any_weight_is_fetched(hub, full, tmp_path, monkeypatch):
    monkeypatch.setattr(remote_file, "FIRST", 1000)
    with pytest.raises(SelectionError, match="fish"):
        cut_expert(NAME, "fish")
    assert hub.sent == 8 + len(raw_header(full[0])[0])
    save_checkpoint(PlainNet(PlainConfig(backbone="test_resnet"), TREE), tmp_path / "plain.safetensors")
    hub.put("me/plain", {"model.safetensors": (tmp_path / "plain.safetensors").read_bytes()})
    hub.sent = 0
    with pytest.raises(UsageError, match="'hf-hub:me/plain' is a plain network"):
        cut_expert("hf-hub:me/plain", "dog")
    assert hub.sent == 8 + len(raw_header(tmp_path / "plain.safetensors")[0])


def test_it_is_said_how_much_was_fetched(hub, caplog):
    caplog.set_level(logging.INFO, "hlnet")
    cut_expert(NAME, "dog")
    (line,) = caplog.messages
    assert NAME in line and f"fetched {hub.sent / 1e6:.1f} of " in line


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 90)), max_size=12), st.integers(0, 40), st.integers(1, 50)
)
def test_requests_cover_the_pieces(pieces, gap, chunk):
    """Each byte once; not more than ``chunk`` at a time, and nothing that is far from both its neighbours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(byte_ranges, "GAP", gap)
        patch.setattr(byte_ranges, "CHUNK", chunk)
        place, given, start = bytearray(2000), [], 0
        for before, length in pieces:  # apart, as rows of a file are
            start += before
            given.append((start, memoryview(place)[start : start + length]))
            start += length
        groups = list(byte_ranges.requests(reversed(given)))
    for group in groups:
        ends = [start + len(target) for start, target in group]
        assert ends[-1] - group[0][0] <= chunk and all(len(target) for _, target in group)
        assert all(0 <= start - end <= gap for (start, _), end in zip(group[1:], ends, strict=False))
        for _, target in group:
            target[:] = bytes(byte + 1 for byte in target)
    wanted = {byte for start, target in given for byte in range(start, start + len(target))}
    assert all(place[byte] == (byte in wanted) for byte in range(2000))
    starts = [group[0][0] for group in groups]
    assert starts == sorted(starts)


# ---------------------------------------------------------------------- what comes of it


def test_every_selection_is_the_local_cut(hub, fine, full, tmp_path, monkeypatch):
    monkeypatch.setattr(byte_ranges, "CHUNK", 200_000)
    monkeypatch.setattr(remote_file, "NEARLY_ALL", 2)  # in parts, whatever is chosen
    for number in range(1, 2 ** len(TREE.classes)):
        chosen = [name for i, name in enumerate(TREE.classes) if number >> i & 1]
        assert equal(cut_expert(NAME, chosen), cut_expert(full[0], chosen)), chosen
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    assert cut_checkpoint(NAME, "tabby,saw", ours) > 0 == cut_checkpoint(full[0], "tabby,saw", theirs)
    assert read_header(ours) == read_header(theirs) and equal(load_checkpoint(ours), load_checkpoint(theirs))
    assert not cached(tmp_path)


def test_expert_of_an_expert_on_the_hub(hub, fine, full, tmp_path):
    cut_checkpoint(full[0], "dog,saw", tmp_path / "expert.safetensors")
    hub.put("me/expert", {"model.safetensors": (tmp_path / "expert.safetensors").read_bytes()})
    assert equal(cut_expert("hf-hub:me/expert", "boxer"), cut_expert(full[0], "boxer"))


@pytest.mark.parametrize("first", [8, 100, 10**9])
def test_all_kinds_of_numbers(hub, fine, tmp_path, monkeypatch, first):
    monkeypatch.setattr(remote_file, "FIRST", first)
    raw = torch.arange(6 * 7 * 16, dtype=torch.int32).view(torch.uint8)
    tensors = {}
    for kind, dtype in DTYPES.items():
        numbers = raw[: 42 * dtype.itemsize] % 2 if dtype is torch.bool else raw[: 42 * dtype.itemsize]
        tensors |= {
            f"{kind} rows": numbers.clone().view(dtype).view(6, 7),
            f"{kind} scalar": numbers[: dtype.itemsize].clone().view(dtype).view(()),
            f"{kind} empty": torch.empty(0, 3, dtype=dtype),
            f"{kind} thin": torch.empty(3, 0, dtype=dtype),
        }
    path = tmp_path / "kinds.safetensors"
    save_file(tensors, path)
    hub.put("me/kinds", {"model.safetensors": path.read_bytes()})
    runs = [(0, 1), (2, 4), (5, 6)]
    with in_parts("hf-hub:me/kinds") as remote, safe_open(path, framework="pt") as local:
        assert sorted(remote.keys()) == sorted(local.keys()) and remote.metadata() == (local.metadata() or {})
        assert all(remote.get_slice(name).get_shape() == local.get_slice(name).get_shape() for name in tensors)
        whole = remote.read(dict.fromkeys(tensors))
        rows = remote.read({name: runs for name in tensors if name.endswith("rows")})
        none = remote.read({name: [(0, tensor.shape[0])] for name, tensor in tensors.items() if tensor.numel() == 0})
        for name in tensors:
            found = local.get_tensor(name)
            assert whole[name].dtype == found.dtype and whole[name].shape == found.shape
            assert torch.equal(whole[name].reshape(-1).view(torch.uint8), found.reshape(-1).view(torch.uint8)), name
        for name, found in rows.items():
            expected = local.get_tensor(name)[[0, 2, 3, 5]]
            assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8)), name
        assert all(found.shape == tensors[name].shape for name, found in none.items())


def test_machine_of_the_other_byte_order(hub, tmp_path, monkeypatch):
    numbers = {"a": np.arange(12, dtype="<i4").reshape(3, 4), "b": np.linspace(0, 1, 3), "d": np.arange(3) + 2j}
    tensors = {name: torch.from_numpy(array) for name, array in numbers.items()}
    tensors |= {"d": tensors["d"].to(torch.complex64), "e": torch.tensor([True, False])}
    save_file(tensors, tmp_path / "net.safetensors")
    hub.put("me/order", {"model.safetensors": (tmp_path / "net.safetensors").read_bytes()})
    monkeypatch.setattr(sys, "byteorder", "big")  # so each number's bytes come turned round, as if this were one
    with in_parts("hf-hub:me/order") as remote:
        found = remote.read(dict.fromkeys(tensors))
    assert np.array_equal(found["a"].numpy(), numbers["a"].astype(">i4").view("<i4"))
    assert found["b"].numpy().tobytes() == numbers["b"].astype(">f8").tobytes()
    assert found["d"].numpy().tobytes() == numbers["d"].astype(">c8").tobytes()
    assert found["e"].tolist() == [True, False]


# ---------------------------------------------------------------------- the cache


def test_file_in_the_cache_is_used(hub, full, monkeypatch, tmp_path):
    located = locate_model(NAME)
    hub.sent = 0
    assert in_parts(NAME) == located and equal(cut_expert(NAME, "dog"), full[1]) and hub.sent == 0
    assert cut_checkpoint(NAME, "dog", tmp_path / "expert.safetensors") == 0
    with pytest.raises(UsageError, match="the model itself"):
        cut_checkpoint(NAME, "dog", located)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = list(hub.asked)
    assert equal(cut_expert(NAME, "dog"), full[1])
    with pytest.raises(RunError, match=r"me/other.*HF_HUB_OFFLINE"):
        cut_expert("hf-hub:me/other", "dog")
    assert hub.asked == asked


def test_file_in_the_cache_that_is_not_current_is_not_used(hub, full, tmp_path):
    located = locate_model(NAME)
    other = build()
    randomise(other.trunk)
    save_checkpoint(other, tmp_path / "other.safetensors")
    hub.put("me/net", {"model.safetensors": (tmp_path / "other.safetensors").read_bytes()})
    hub.sent = 0
    expert = cut_expert(NAME, "dog")
    assert hub.sent > 0 and same(expert.state_dict(), cut_expert(other, "dog").state_dict())
    assert equal(cut_expert(located, "dog"), full[1])  # which is still there
    hub.put("me/net", {"model.safetensors": located.read_bytes(), "README.md": b"of another commit, the same file"})
    hub.sent = 0
    assert equal(cut_expert(NAME, "dog"), full[1]) and hub.sent == 0


def test_server_that_sends_whole_files_only(hub, full, tmp_path, caplog):
    caplog.set_level(logging.INFO, "hlnet")
    hub.sends_parts = False
    assert cut_checkpoint("hf-hub:me/net", "dog", tmp_path / "expert.safetensors") == full[0].stat().st_size
    assert equal(load_checkpoint(tmp_path / "expert.safetensors"), full[1])
    assert equal(cut_expert(NAME, "dog"), full[1])
    assert "whole" in caplog.text and len(hub.parts) == 1 and cached(tmp_path)
    assert cut_checkpoint(NAME, "dog", tmp_path / "expert.safetensors") == 0 and len(hub.parts) == 1


def test_server_that_packs_what_it_sends(hub, full):
    hub.faults = [lambda handler, status, headers, body: handler.reply(206, headers | {"Content-Encoding": "gzip"})]
    assert equal(cut_expert(NAME, "dog"), full[1]) and len(hub.parts) == 1


# ---------------------------------------------------------------------- damaged files


def with_header(described, data=b"\0" * 8):
    raw = described if isinstance(described, bytes) else json.dumps(described).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def entry(**changes):
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


GOOD = with_header(entry())
DAMAGED = {
    "empty": b"",
    "shorter than a length": GOOD[:7],
    "without a header": GOOD[:8],
    "header cut short": GOOD[:-9],
    "data cut short": GOOD[:-1],
    "data too long": GOOD + b"x",
    "header of no end": b"\xff" * 8 + GOOD[8:],
    "header longer than the file": (len(GOOD) - 7).to_bytes(8, "little") + GOOD[8:],
    "no text": with_header(b"\xff\xfe"),
    "no JSON": with_header(b'{"a": }'),
    "nested too deep": with_header(b'{"a":' * 100_000),
    "list": with_header([entry()]),
    "number": with_header(b"3", b""),
    "null": with_header(b"null", b""),
    "entry is a list": with_header({"a": [1]}),
    "no kind": with_header({"a": {"shape": [2], "data_offsets": [0, 8]}}),
    "no shape": with_header({"a": {"dtype": "F32", "data_offsets": [0, 8]}}),
    "no place": with_header({"a": {"dtype": "F32", "shape": [2]}}),
    "unknown kind": with_header(entry(dtype="F31")),
    "kind is a list": with_header(entry(dtype=[])),
    "shape is text": with_header(entry(shape="2")),
    "shape is null": with_header(entry(shape=None)),
    "shape of fractions": with_header(entry(shape=[2.0])),
    "shape of truths": with_header(entry(shape=[2, True])),
    "negative shape": with_header(entry(shape=[-1, -2])),
    "shape does not fit": with_header(entry(shape=[3])),
    "shape beyond all numbers": with_header(entry(shape=[2**70, 2**70])),
    "one place": with_header(entry(data_offsets=[8])),
    "three places": with_header(entry(data_offsets=[0, 8, 8])),
    "places outside": with_header(entry(data_offsets=[8, 16])),
    "places backwards": with_header(entry(data_offsets=[8, 0])),
    "negative places": with_header(entry(data_offsets=[-8, 0])),
    "places in the header": with_header(entry(data_offsets=[-4, 4])),
    "overlap": with_header(entry() | {"b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}),
    "gap": with_header(entry() | {"b": {"dtype": "F32", "shape": [1], "data_offsets": [12, 16]}}, b"\0" * 16),
    "same place twice": with_header(entry() | {"b": entry()["a"]}),
    "metadata of numbers": with_header(entry() | {"__metadata__": {"hlnet": 3}}),
    "metadata is a list": with_header(entry() | {"__metadata__": ["hlnet"]}),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_damaged_header_is_refused(hub, tmp_path, how):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(DAMAGED[how])
    with pytest.raises((SafetensorError, OSError)):  # whose rules these are
        safe_open(path, framework="pt")
    hub.put("me/bad", {"model.safetensors": DAMAGED[how]})
    for use in (lambda name: cut_expert(name, "dog"), read_header):
        with pytest.raises(CheckpointError, match="'hf-hub:me/bad' is not an intact safetensors file") as caught:
            use("hf-hub:me/bad")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_good_header_is_taken(hub):
    hub.put("me/good", {"model.safetensors": GOOD})
    with in_parts("hf-hub:me/good") as remote:
        assert isinstance(remote, RemoteFile) and remote.read({"a": None})["a"].tolist() == [0, 0]
    with pytest.raises(CheckpointError, match="'hf-hub:me/good' is a safetensors file, but not one of hlnet's"):
        cut_expert("hf-hub:me/good", "dog")


@pytest.mark.parametrize(
    ("name", "word"),
    [("head.levels.7.conv1_weight", "unknown"), ("head.levels.x", "unknown"), ("head.leaves.bias", "")],
)
def test_file_that_does_not_fit_its_own_header(hub, fine, full, tmp_path, name, word):
    with safe_open(full[0], framework="pt") as file:
        metadata, weights = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(weights | {name: torch.zeros(3)}, tmp_path / "bad.safetensors", metadata=metadata)
    hub.put("me/bad", {"model.safetensors": (tmp_path / "bad.safetensors").read_bytes()})
    for source in ("hf-hub:me/bad", tmp_path / "bad.safetensors"):
        with pytest.raises(CheckpointError, match=f"does not fit its own header.*{word}.*{name}"):
            cut_expert(source, "dog")
