"""The limit of a folder of features: what has to go, what stays, and how sizes are read and shown."""

import gc
import os

import pytest
from helpers import cached_photos
from helpers.cached_photos import BYTES, augmented, build, caches, computed, in_another_process, photos

from hlnet.cli.shared.options import byte_size
from hlnet.data.feature_cache import cached_features
from hlnet.errors import UsageError

cache = cached_photos.cache


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_too_much_is_refused_before_it_is_computed(tmp_path, cache, where):
    net = build()
    seen = computed(net)
    with pytest.raises(UsageError) as error:
        cached_features(net, augmented(tmp_path), 100, folder=cache if where == "folder" else None, limit=10**6)
    assert seen == [1]
    for words in ("7 images in 100 view", "192x2x2", "1.1MB", "limit of 1.0MB", "cache_views", "cache_size"):
        assert words in str(error.value)
    assert not cache.exists() or not [path for path in cache.iterdir() if path.suffix != ".lock"]
    assert len(cached_features(net, augmented(tmp_path), limit=BYTES)) == 7  # in memory, exactly


def size_of(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


def filled(tmp_path, cache, seeds, ages):
    """Caches of several seeds, used in the order of their ages; each one's file."""
    files = {}
    for seed in seeds:
        cached_features(build(), augmented(tmp_path), seed=seed, folder=cache)
        (files[seed],) = set(caches(cache)) - set(files.values())
    gc.collect()
    for seed, age in zip(seeds, ages, strict=True):
        os.utime(files[seed], (10**9 - age, 10**9 - age))
    return files


def test_the_least_recently_used_go_first(tmp_path, cache):
    files = filled(tmp_path, cache, (0, 1, 2), ages=(5, 9, 1))
    each = files[0].stat().st_size
    cached_features(build(), augmented(tmp_path), seed=3, folder=cache, limit=3 * each + 500)
    assert set(caches(cache)) >= {files[0], files[2]} and not files[1].exists() and len(caches(cache)) == 3
    gc.collect()
    cached_features(build(), augmented(tmp_path), seed=0, folder=cache)  # uses the oldest, which makes it the newest
    cached_features(build(), augmented(tmp_path), seed=4, folder=cache, limit=2 * each + 500)
    assert files[0] in caches(cache) and len(caches(cache)) == 2 and size_of(cache) <= 2 * each + 500


def test_what_is_in_use_stays(tmp_path, cache):
    files = filled(tmp_path, cache, (0, 1), ages=(9, 5))
    each = files[0].stat().st_size
    held = cached_features(build(), augmented(tmp_path), seed=0, folder=cache)
    os.utime(files[0], (1, 1))
    code = "found = cached_features(net, augmented(folder), seed=1, folder=folder / 'cache')\n"
    process = in_another_process(code + "print('held', flush=True); sys.stdin.read()", tmp_path)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UsageError, match="in use"):
        cached_features(build(), augmented(tmp_path), seed=2, folder=cache, limit=2 * each + 500)
    assert set(caches(cache)) == set(files.values())
    process.kill()
    process.communicate(timeout=60)
    cached_features(build(), augmented(tmp_path), seed=2, folder=cache, limit=2 * each + 500)
    assert files[0].exists() and not files[1].exists()
    features = held.restricted([0]).features.clone()
    del held
    gc.collect()
    cached_features(build(), augmented(tmp_path), seed=3, folder=cache, limit=each + 500)
    assert not files[0].exists() and len(caches(cache)) == 1 and features.isfinite().all()


def test_what_others_are_computing_counts(tmp_path, cache):
    photos(tmp_path)
    code = "cached_features(net, augmented(folder), batch_size=2, folder=folder / 'cache',"
    code += " on_batch=lambda step, steps: print(step, flush=True) or sys.stdin.read())"
    process = in_another_process(code, tmp_path)
    assert process.stdout.readline() == "1\n"
    with pytest.raises(UsageError, match="in use"):
        cached_features(build(), augmented(tmp_path), seed=1, folder=cache, limit=int(BYTES * 1.9))
    assert len(list(cache.glob(".*.part"))) == 1
    process.communicate(timeout=60)
    assert process.returncode == 0 and len(caches(cache)) == 1


def test_files_that_are_not_ours_are_left_alone(tmp_path, cache):
    cache.mkdir()
    foreign = [cache / "features.npy", cache / "features-1.npy", cache / "notes.part", cache / ("f" * 64 + ".npy")]
    for path in foreign:
        path.write_bytes(bytes(10**6))
    cached_features(build(), photos(tmp_path), folder=cache, limit=BYTES + 5000)
    assert all(path.exists() for path in foreign)


# ---------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [("0.5k", 500), ("1KB", 1000), ("1kiB", 1024), (" 2 MB ", 2 * 10**6), ("3TiB", 3 * 2**40), (".5GB", 5 * 10**8),
     ("7b", 7), ("12", 12)],
)  # fmt: skip
def test_sizes_are_read(text, size):
    assert byte_size(text, "--cache-size") == size


@pytest.mark.parametrize("text", ["", "GB", "0", "-1GB", "1e9", "1 XB", "1.2.3MB", "inf", "0.1"])
def test_other_sizes_are_refused(text):
    with pytest.raises(UsageError, match=r"--cache-size .* 20GB"):
        byte_size(text, "--cache-size")
