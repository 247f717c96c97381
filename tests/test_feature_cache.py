"""The folder of features: what is in it is the trunk's, told apart by all that matters, whole, and within its limit."""

import errno
import gc
import json
import logging
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import zlib
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import hlnet.feature_cache
from hlnet.data import LabelledImages, TreeData, eval_transform, load_data, train_transform
from hlnet.errors import DataError, RunError, UsageError
from hlnet.feature_cache import cached_features, feature_key, parse_size, show_size
from hlnet.features import CachedFeatures
from hlnet.network import HierarchicalNet, NetworkConfig
from hlnet.plain import PlainConfig, PlainNet
from hlnet.sampling import mixed, seeded
from hlnet.tree import ClassTree
from hlnet.trunk import InputTransform

SHAPE = InputTransform(input_size=(3, 32, 32))
CLASSES = {"cat": 3, "dog": 2, "saw": 2}
TREE = ClassTree.from_nested({"pet": ["dog", "cat"], "saw": None})
AUGMENT = {"aa": "rand-m9-mstd0.5", "scale": (0.5, 1.0)}
BYTES = 2 * 7 * 192 * 2 * 2  # one view


def build(kind="hierarchical", seed=0, tree=TREE, **config):
    torch.manual_seed(seed)
    config = {"backbone": "test_resnet"} | config
    net = HierarchicalNet(NetworkConfig(widths=(4, 4), strides=(1, 1), **config), tree)
    if kind == "plain":  # on the same trunk
        plain = PlainNet(PlainConfig(**config), tree)
        plain.trunk_module.load_state_dict(net.trunk_module.state_dict(), strict=False)
        return plain
    return net


def photos(folder, transform=None, tree=TREE):
    """Seven noisy images; ``folder`` is filled unless it is already."""
    noise = np.random.default_rng(0)
    for name, count in () if (Path(folder) / "train").exists() else CLASSES.items():
        place = Path(folder) / "train" / name
        place.mkdir(parents=True)
        for number in range(count):
            Image.fromarray(noise.integers(0, 256, (40, 50, 3), np.uint8)).save(place / f"{number}.png")
    return TreeData(load_data(folder), tree, transform or eval_transform(SHAPE))


def augmented(folder, **settings):
    return photos(folder, train_transform(SHAPE, **AUGMENT | settings))


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def caches(folder):
    return sorted(folder.glob("*.npy"))


def one_file(folder):
    (file,) = caches(folder)
    return file


def computed(net):
    """The images that a network's trunk sees from now on, counted batch by batch."""
    seen, inner = [], net.features

    def features(images):
        seen.append(len(images))
        return inner(images)

    net.features = features
    return seen


def directly(net, data, views, seed):
    """The definition, image by image and without any cache."""
    rounds = []
    for view in range(views):
        images = []
        for position in range(len(data)):
            with seeded(mixed(seed, view, position)):
                images.append(data[position][0])
        with torch.no_grad():
            rounds.append(net.eval().features(torch.stack(images)))
    return torch.stack(rounds)


# ---------------------------------------------------------------------- what is in it


@pytest.mark.parametrize("kind", ["hierarchical", "plain"])
@pytest.mark.parametrize("where", ["memory", "folder"])
def test_features_are_the_trunks_of_seeded_views(tmp_path, cache, kind, where):
    net, data = build(kind), augmented(tmp_path)
    found = cached_features(net, data, views=3, batch_size=4, seed=5, folder=cache if where == "folder" else None)
    expected = directly(net, data, views=3, seed=5)
    assert (found.features.dtype, found.features.shape) == (torch.float16, (3, 7, 192, 2, 2))
    torch.testing.assert_close(found.features.float(), expected, rtol=2**-10, atol=1e-6)
    assert found.labels.tolist() == data.labels == [1, 1, 1, 0, 0, 2, 2]
    assert not torch.equal(found.features[0], found.features[1])  # the views do differ
    if where == "folder":
        assert np.array_equal(np.load(one_file(cache)), found.features.numpy())  # numpy reads the file


def test_neither_workers_nor_batches_nor_the_folder_matter(tmp_path, cache):
    net, data = build(), augmented(tmp_path)
    reference = cached_features(net, data, views=2, batch_size=5).features
    assert torch.equal(cached_features(net, data, views=2, batch_size=5, workers=2).features, reference)
    assert torch.equal(cached_features(net, data, views=2, batch_size=5, workers=2, folder=cache).features, reference)
    for batch_size in (1, 7, 100):
        other = cached_features(net, data, views=2, batch_size=batch_size).features
        torch.testing.assert_close(other, reference, rtol=2**-10, atol=1e-6)
    assert not torch.equal(cached_features(net, data, views=2, seed=1).features, reference)


@pytest.mark.parametrize("workers", [0, 1])
def test_no_generator_is_touched(tmp_path, cache, workers):
    """Or a run would depend on whether its features were there already."""
    net, data = build(), augmented(tmp_path)
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    cached_features(net, data, workers=workers, folder=cache)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


def test_the_second_time_nothing_is_computed(tmp_path, cache):
    net, data, steps = build(), augmented(tmp_path), []
    seen = computed(net)
    options = {"views": 2, "batch_size": 4, "folder": cache}
    first = cached_features(net, data, on_batch=lambda *step: steps.append(step), **options)
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)] and seen == [1, 4, 4, 4, 2]  # one to learn the shape
    again = cached_features(net, data, on_batch=lambda *step: steps.append(step), **options)
    other = cached_features(build("plain"), data, on_batch=lambda *step: steps.append(step), **options)  # same trunk
    assert len(steps) == 4 and len(seen) == 5
    for found in (again, other):
        assert torch.equal(found.features, first.features) and torch.equal(found.labels, first.labels)


def test_another_tree_gets_the_same_features_with_its_own_labels(tmp_path, cache):
    cached_features(build(), photos(tmp_path), folder=cache)
    tree = ClassTree.from_nested({"saw": None, "animal": ["cat", "dog"]})
    net, data = build(tree=tree), photos(tmp_path, tree=tree)
    seen = computed(net)
    found = cached_features(net, data, folder=cache)
    assert seen == [] and found.labels.tolist() == data.labels == [1, 1, 1, 2, 2, 0, 0]


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_unreadable_images_are_replaced_where_that_is_wanted(tmp_path, cache, where):
    data, folder = augmented(tmp_path), cache if where == "folder" else None
    (tmp_path / "train/cat/2.png").write_bytes(b"junk")  # the next image is a dog
    (tmp_path / "train/saw/1.png").write_bytes(b"junk")  # the next is the first of all
    net = build()
    with pytest.raises(DataError, match=r"2\.png"):
        cached_features(net, data, folder=folder)
    assert folder is None or not caches(folder)
    for _ in range(2):  # computed, then read
        found = cached_features(net, data, views=2, folder=folder, skip_unreadable=True)
        assert found.labels.tolist() == [1, 1, 0, 0, 0, 2, 1]
        with seeded(mixed(0, 1, 3)), torch.no_grad():
            expected = net.features(data[3][0][None])[0]
        torch.testing.assert_close(found.features[1, 2].float(), expected, rtol=2**-10, atol=1e-6)


def test_an_image_that_comes_and_goes_is_an_error():
    images, reads = [Image.new("RGB", (32, 32), (shade, 0, 0)) for shade in (0, 100, 200)], []

    def load(position):
        reads.append(position)
        if position == 1 and len(reads) > 6:
            raise DataError("the disk stutters; mend it")
        return images[position]

    data = TreeData(LabelledImages("flaky", ("cat", "dog"), (0, 1, 1), load), TREE, eval_transform(SHAPE), subset=True)
    with pytest.raises(DataError, match="image 1 of the data"):
        cached_features(build(), data, views=4, skip_unreadable=True)


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_overflow_is_refused_and_leaves_nothing(tmp_path, cache, where):
    net = build()
    with torch.no_grad():
        for parameter in net.trunk.parameters():
            parameter.mul_(50)
    with pytest.raises(DataError, match="float16"):
        cached_features(net, photos(tmp_path), folder=cache if where == "folder" else None)
    assert not cache.exists() or not [path for path in cache.iterdir() if path.suffix != ".lock"]


def test_data_that_does_not_know_its_images_stays_in_memory(cache):
    data = TensorDataset(torch.rand(3, 3, 32, 32), torch.tensor([2, 0, 1]))
    found = cached_features(build(), data)
    assert found.labels.tolist() == [2, 0, 1] and len(found) == 3
    with pytest.raises(UsageError, match="cache_dir"):
        cached_features(build(), data, folder=cache)
    with pytest.raises(UsageError, match="views"):
        cached_features(build(), data, views=0)


# ---------------------------------------------------------------------- the key


def rename_class(folder):
    (folder / "train/saw").rename(folder / "train/axe")
    return photos(
        folder, train_transform(SHAPE, **AUGMENT), ClassTree.from_nested({"pet": ["dog", "cat"], "axe": None})
    )


def touch(folder, **change):
    file = folder / "train/dog/1.png"
    if change.get("size"):
        status = file.stat()
        file.write_bytes(file.read_bytes() + b" ")
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        os.utime(file, (1, 1))
    return augmented(folder)


CHANGES = {
    "weights": lambda folder: {"net": build(seed=1)},
    "split": lambda folder: {"net": build(split_point=1)},
    "backbone": lambda folder: {"net": build(backbone="test_resnet.r160_in1k")},
    "backbone_args": lambda folder: {"net": build(backbone_args={"output_stride": 16})},
    "img_size": lambda folder: {"data": photos(folder, train_transform(SHAPE.adjusted(img_size=64), **AUGMENT))},
    "mean": lambda folder: {"data": photos(folder, train_transform(SHAPE.adjusted(mean=(0.5,) * 3), **AUGMENT))},
    "tiny mean": lambda folder: {
        "data": photos(folder, train_transform(SHAPE.adjusted(mean=(0.485, 0.456, 0.40600001)), **AUGMENT))
    },
    "aa": lambda folder: {"data": augmented(folder, aa="rand-m8-mstd0.5")},
    "scale": lambda folder: {"data": augmented(folder, scale=(0.5, 0.99))},
    "hflip": lambda folder: {"data": augmented(folder, hflip=0.5001)},
    "no augmentation": lambda folder: {"data": photos(folder)},
    "touched file": lambda folder: {"data": touch(folder)},
    "size of a file": lambda folder: {"data": touch(folder, size=True)},
    "renamed file": lambda folder: (
        (folder / "train/cat/0.png").rename(folder / "train/cat/00.png") and {"data": augmented(folder)}
    ),
    "one image less": lambda folder: (folder / "train/cat/0.png").unlink() or {"data": augmented(folder)},
    "renamed class": lambda folder: {"data": rename_class(folder)},
    "seed": lambda folder: {"seed": 1},
    "views": lambda folder: {"views": 3},
    "skip_unreadable": lambda folder: {"skip_unreadable": True},
}


@pytest.mark.parametrize("what", CHANGES)
def test_key_changes_with(tmp_path, what):
    request = {"net": build(), "data": augmented(tmp_path), "views": 2, "seed": 0}
    before = feature_key(**request)
    assert feature_key(**request) == before
    assert feature_key(**request | CHANGES[what](tmp_path)) != before


def no_count(net):
    for name, tensor in net.trunk.named_buffers():
        if name.endswith("num_batches_tracked"):
            tensor += 1
    return net


def other_branches(folder):
    torch.manual_seed(0)  # the trunk's weights are drawn first
    return {"net": HierarchicalNet(NetworkConfig(backbone="test_resnet", widths=(8, 8), strides=(1, 2)), TREE)}


def moved(folder):
    place = folder.with_name(folder.name + "_moved")
    return {"data": augmented(shutil.copytree(folder, place, copy_function=shutil.copy2))}


def unused_crop(folder):
    return {"data": photos(folder, train_transform(SHAPE.model_copy(update={"crop_pct": 0.5}), **AUGMENT))}


def other_order(folder):
    tree = ClassTree.parallel(["saw", "cat", "dog"])
    return {"data": photos(folder, train_transform(SHAPE, **AUGMENT), tree)}


SAME = {
    "branches": other_branches,
    "plain": lambda folder: {"net": build("plain")},
    "batches counted": lambda folder: {"net": no_count(build())},
    "training mode": lambda folder: {"net": build().train()},
    "split from the end": lambda folder: {"net": build(split_point=-2)},
    "order of the tree": other_order,
    "a crop that training does not use": unused_crop,
    "another place": moved,
}


@pytest.mark.parametrize("what", SAME)
def test_key_does_not_change_with(tmp_path, what):
    request = {"net": build(), "data": augmented(tmp_path), "views": 2, "seed": 0}
    before = feature_key(**request)
    assert feature_key(**request | SAME[what](tmp_path)) == before


def test_key_of_what_is_not_random_has_no_seed(tmp_path):
    net, data = build(), photos(tmp_path)
    assert feature_key(net, data, seed=0) == feature_key(net, data, seed=1)
    data.transform = lambda image: eval_transform(SHAPE)(image)  # but who knows what this does?
    assert feature_key(net, data, seed=0) != feature_key(net, data, seed=1)


def test_key_tells_apart_sources_and_transforms_that_say_nothing_of_themselves(tmp_path):
    net, data = build(), photos(tmp_path)

    def other(position):
        return data.images.load((position + 1) % 7)

    plain = replace(data.images, files=())
    keys = [
        feature_key(net, TreeData(images, TREE, transform))
        for images in (data.images, plain, replace(plain, load=other), replace(plain, name="another"))
        for transform in (eval_transform(SHAPE), lambda image: eval_transform(SHAPE)(image).mul(1.5))
    ]
    assert len({json.dumps(key, sort_keys=True) for key in keys}) == 8


def in_another_process(code, folder, **more):
    """Start a Python that knows this module's names."""
    start = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_feature_cache import *\n"
    start += f"torch.set_num_threads(1); folder = Path({str(folder)!r}); net = build()\n"
    command = [sys.executable, "-W", "ignore", "-c", start + code]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, **more)


def test_key_is_the_same_in_another_process(tmp_path):
    key = feature_key(build(), augmented(tmp_path), 2, 3)
    code = "print(json.dumps(feature_key(net, augmented(folder), 2, 3)))"
    other, _ = in_another_process(code, tmp_path, env=os.environ | {"PYTHONHASHSEED": "7"}).communicate(timeout=60)
    assert json.loads(other) == json.loads(json.dumps(key))


# ---------------------------------------------------------------------- files


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
    head = hlnet.feature_cache._head((1, 6, 192, 2, 2))
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
    spawned = DataLoader(part, batch_size=4, num_workers=1, multiprocessing_context="spawn")
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


# ---------------------------------------------------------------------- the limit


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_too_much_is_refused_before_it_is_computed(tmp_path, cache, where):
    net = build()
    seen = computed(net)
    with pytest.raises(UsageError) as error:
        cached_features(net, augmented(tmp_path), 100, folder=cache if where == "folder" else None, limit=10**6)
    assert seen == [1]
    for words in ("7 images in 100 view", "192x2x2", "1.08 MB", "limit of 1 MB", "cache_views", "cache_size"):
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


# ---------------------------------------------------------------------- the disk


def fails_after(count, number):
    append, done = hlnet.feature_cache._Part.append, []

    def failing(self, data):
        done.append(len(data))
        if len(done) > count:
            raise OSError(number, os.strerror(number))
        append(self, data)

    return failing


@pytest.mark.parametrize("count", [0, 2, 5])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, cache, monkeypatch, count):
    monkeypatch.setattr(hlnet.feature_cache._Part, "append", fails_after(count, errno.ENOSPC))
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
    with pytest.raises(RunError, match=r"cannot write .*1\d\.\d kB are needed, 1 kB free"):
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
    monkeypatch.setattr(hlnet.feature_cache.FileLock, "acquire", refuse)
    assert len(cached_features(net, photos(tmp_path), folder=cache)) == 7 and seen == []
    with pytest.raises(RunError, match=r"cannot write .*: Permission denied; .*cache_dir"):
        cached_features(net, augmented(tmp_path), folder=cache)


# ---------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [("0.5k", 500), ("1KB", 1000), ("1kiB", 1024), (" 2 MB ", 2 * 10**6), ("3TiB", 3 * 2**40), (".5GB", 5 * 10**8),
     ("7b", 7), ("12", 12)],
)  # fmt: skip
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "0", "-1GB", "1e9", "1 XB", "1.2.3MB", "inf", "0.1"])
def test_other_sizes_are_refused(text):
    with pytest.raises(UsageError, match="20GB"):
        parse_size(text)


@pytest.mark.parametrize("size", [1, 512, 999, 1000, 1499, 20e9, 999_499, 999_600, 123e9, 5e12, 9.9e14])
def test_sizes_are_shown_to_three_digits(size):
    shown = show_size(size)
    assert parse_size(shown) == pytest.approx(size, rel=0.005) and "e" not in shown
