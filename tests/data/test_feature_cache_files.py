"""Files of cached features: whole or made anew, shared by processes, and no trouble on a full disk."""

import errno
import logging
import os
import pickle
import shutil
import signal
import zlib
from collections import namedtuple

import numpy as np
import pytest
import torch
from helpers import cached_photos, runs
from helpers.cached_photos import (
    BYTES,
    augmented,
    build,
    caches,
    computed,
    directly,
    in_another_process,
    one_file,
    photos,
)
from torch.utils.data import DataLoader

import hlnet.data.feature_cache
from hlnet.data.feature_cache import cached_features
from hlnet.data.features import CachedFeatures
from hlnet.errors import RunError

cache = cached_photos.cache


def cut(content):
    return content[:-1]


def flip(place):
    def change(content):
        content = bytearray(content)
        content[place if isinstance(place, int) else int(place * len(content))] ^= 4
        return bytes(content)

    return change


def other_shape(content):
    """A whole file of another array, with a right sum."""
    found = np.frombuffer(content, "<f2", BYTES // 2, 128).reshape(1, 7, 192, 2, 2)
    tail = content[128 + BYTES : -4]
    head = hlnet.data.feature_cache._head((1, 6, 192, 2, 2))
    body = head + found[:, :6].tobytes() + tail
    return body + zlib.crc32(body).to_bytes(4, "little")


def other_origin(content):
    body = content[:-4].replace(b'"seed": null', b'"seed": 1234')
    assert body != content[:-4]
    return body + zlib.crc32(body).to_bytes(4, "little")


DAMAGES = {
    "truncated": cut,
    "half": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "a few bytes": lambda content: content[:3],
    "longer": lambda content: content + b"\0",
    "zeros": lambda content: bytes(len(content)),
    "flipped in the magic": flip(0),
    "flipped in the header": flip(65),
    "flipped early": flip(0.1),
    "flipped in the middle": flip(0.5),
    "flipped in the description": flip(-20),
    "flipped in the sum": flip(-1),
    "another shape": other_shape,
    "made from something else": other_origin,
    "text": lambda content: b"not features\n" * 1000,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_noticed_and_made_anew(tmp_path, cache, caplog, damage):
    net, data = build(), photos(tmp_path)
    whole = cached_features(net, data, folder=cache).features.clone()
    file = one_file(cache)
    content = file.read_bytes()
    assert len(content) == 128 + BYTES + len(content[128 + BYTES :])
    file.write_bytes(DAMAGES[damage](content))
    seen = computed(net)
    with caplog.at_level(logging.WARNING, "hlnet"):
        found = cached_features(net, data, folder=cache)
    assert torch.equal(found.features, whole) and sum(seen) == 8
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "damaged" in record.message and file.name in record.message and "\n" not in record.message
    assert file.read_bytes() == content
    cached_features(net, data, folder=cache)
    assert sum(seen) == 8


def test_a_killed_run_leaves_nothing_that_is_taken_for_whole(tmp_path, cache):
    photos(tmp_path)
    code = "cached_features(net, augmented(folder), batch_size=2, folder=folder / 'cache',"
    code += " on_batch=lambda step, steps: print(step, flush=True) or step < 3 or sys.stdin.read())"
    for signal_number in (signal.SIGKILL, signal.SIGTERM):
        process = in_another_process(code, tmp_path)
        assert [process.stdout.readline() for _ in range(3)] == ["1\n", "2\n", "3\n"]
        process.send_signal(signal_number)
        process.communicate(timeout=60)
    assert not caches(cache) and len(list(cache.glob(".*.part"))) == 1
    cached_features(build(), photos(tmp_path), folder=cache)  # other features, which sweeps
    assert len(caches(cache)) == 1 and not list(cache.glob(".*.part"))
    found = cached_features(build(), augmented(tmp_path), folder=cache)
    torch.testing.assert_close(
        found.features.float(), directly(build(), augmented(tmp_path), 1, 0), rtol=2**-10, atol=1e-6
    )


def test_several_processes_share_the_work(tmp_path, cache):
    photos(tmp_path)
    code = "sys.stdin.readline(); steps = []\n"
    code += "found = cached_features(net, augmented(folder), 3, 1, folder=folder / 'cache', "
    code += "on_batch=lambda *step: steps.append(step))\n"
    code += "print(len(steps), zlib.crc32(found.features.numpy().tobytes()))"
    processes = [in_another_process(code, tmp_path) for _ in range(3)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    found = [process.communicate(timeout=120)[0].split() for process in processes]
    assert sorted(int(steps) for steps, _ in found) == [0, 0, 21]
    assert len({total for _, total in found}) == 1 and len(caches(cache)) == 1


def test_a_mapped_cache_is_sent_by_its_name(tmp_path, cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = cached_features(build(), augmented(tmp_path), views=2, folder="cache")
    part = found.restricted([2, 0])
    for data in (found, part):
        sent = pickle.dumps(data)
        assert len(sent) < 4000 < BYTES
        monkeypatch.chdir("/")
        again = pickle.loads(sent)
        monkeypatch.chdir(tmp_path)
        assert torch.equal(again.features, data.features) and torch.equal(again.labels, data.labels)
    spawned = DataLoader(part, batch_size=4, num_workers=1, multiprocessing_context=runs.server)
    ((features, labels),) = spawned
    assert labels.tolist() == [1, 1, 0, 0] and features.dtype == torch.float32
    views = torch.stack([(features == view.float()).flatten(1).all(1) for view in part.features])
    assert views.any(0).all()  # each is one of its image's views


def test_a_restricted_cache_shares_the_map(tmp_path, cache):
    found = cached_features(build(), augmented(tmp_path), views=2, folder=cache)
    part = found.restricted([2, 0])
    assert part.stored.data_ptr() == found.stored.data_ptr()
    assert torch.equal(part.features, found.features[:, 3:]) and part.labels.tolist() == [1, 1, 0, 0]
    smaller = part.restricted([0])  # what was class 2
    assert torch.equal(smaller.features, found.features[:, 5:]) and smaller.labels.tolist() == [0, 0]
    assert torch.equal(CachedFeatures(found.features.clone(), found.labels).restricted([2]).features, smaller.features)
    item, label = smaller[1]
    assert label == 0 and any(torch.equal(item, view.float()) for view in found.features[:, 6])
    assert found.restricted([]).features.shape == (2, 0, 192, 2, 2)


# ---------------------------------------------------------------------- the disk


def fails_after(count, number):
    append, done = hlnet.data.feature_cache._Part.append, []

    def failing(self, data):
        done.append(len(data))
        if len(done) > count:
            raise OSError(number, os.strerror(number))
        append(self, data)

    return failing


@pytest.mark.parametrize("count", [0, 2, 5])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, cache, monkeypatch, count):
    monkeypatch.setattr(hlnet.data.feature_cache._Part, "append", fails_after(count, errno.ENOSPC))
    with pytest.raises(
        RunError, match=r"^cannot write '.*features-.*\.npy': No space left on device; .*cache_dir"
    ) as e:
        cached_features(build(), photos(tmp_path), batch_size=2, folder=cache)
    assert "\n" not in str(e.value) and not [path for path in cache.iterdir() if path.suffix != ".lock"]
    monkeypatch.undo()
    assert len(cached_features(build(), photos(tmp_path), folder=cache)) == 7


def test_too_little_room_is_told_before_it_is_computed(tmp_path, cache, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9, 1000))
    net = build()
    seen = computed(net)
    with pytest.raises(RunError, match=r"cannot write .*1\d\.\dKB are needed, 1\.0KB free"):
        cached_features(net, photos(tmp_path), folder=cache)
    assert seen == [1] and not [path for path in cache.iterdir() if path.suffix != ".lock"]


def test_a_file_for_a_folder_is_refused(tmp_path):
    (tmp_path / "cache").write_text("no folder")
    with pytest.raises(RunError, match="cache"):
        cached_features(build(), photos(tmp_path), folder=tmp_path / "cache")


def test_a_folder_that_may_only_be_read_serves(tmp_path, cache, monkeypatch):
    net = build()
    cached_features(net, photos(tmp_path), folder=cache)
    seen = computed(net)

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(hlnet.data.feature_cache.FileLock, "acquire", refuse)
    assert len(cached_features(net, photos(tmp_path), folder=cache)) == 7 and seen == []
    with pytest.raises(RunError, match=r"cannot write .*: Permission denied; .*cache_dir"):
        cached_features(net, augmented(tmp_path), folder=cache)
