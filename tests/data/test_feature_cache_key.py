"""The key of cached features: changed by all that they depend on, and by nothing else."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from helpers.cached_photos import AUGMENT, SHAPE, TREE, augmented, build, in_a_new_interpreter, photos

from hlnet.data.feature_cache import feature_key
from hlnet.data.tree_data import TreeData, eval_transform, train_transform
from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
from hlnet.tree.class_tree import ClassTree


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


def test_key_is_the_same_in_a_new_interpreter(tmp_path):
    key = feature_key(build(), augmented(tmp_path), 2, 3)
    code = "print(json.dumps(feature_key(net, augmented(folder), 2, 3)))"
    other, _ = in_a_new_interpreter(code, tmp_path, env=os.environ | {"PYTHONHASHSEED": "7"}).communicate(timeout=60)
    assert json.loads(other) == json.loads(json.dumps(key))
