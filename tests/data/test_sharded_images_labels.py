"""What shards' labels mean, what an unreadable image does, and what caches and run folders know them by."""

import os
import shutil

import pytest
from helpers.cached_photos import SHAPE, build
from helpers.shard_files import noise_bytes, samples, shades, write_shard

from hlnet.data.feature_cache import feature_key
from hlnet.data.sampling import Seeded
from hlnet.data.sources import load_data
from hlnet.data.tree_data import TreeData, eval_transform, loader
from hlnet.errors import DataError
from hlnet.tree.class_tree import ClassTree

PREPARE = eval_transform(SHAPE)
PETS = ClassTree.parallel(["dog", "cat"], levels=2)


def labelled(folder, *labels, names=None):
    write_shard(folder / "train-0.tar", samples(*labels))
    if names is not None:
        (folder / "classes.txt").write_text(names, encoding="utf-8")
    return load_data("wds/pets", "train", folder)


@pytest.mark.parametrize(
    ("labels", "names", "classes", "told"),
    [
        (["dog", "cat", "dog"], None, ("cat", "dog"), ["dog", "cat", "dog"]),
        (["dog", "1984"], None, ("1984", "dog"), ["dog", "1984"]),  # not a number of a class
        (["dog", "1"], "1\ndog", ("1", "dog"), ["dog", "1"]),
        (["1", "0", "01"], "dog\ncat\nnewt\n", ("dog", "cat", "newt"), ["cat", "dog", "cat"]),
        (["1", "0"], "0\n1", ("0", "1"), ["1", "0"]),
        (["chat  noir\n", "é"], "é\r\nchat  noir\r\n", ("é", "chat  noir"), ["chat  noir", "é"]),
    ],
)
def test_labels_become_names(tmp_path, labels, names, classes, told):
    images = labelled(tmp_path, *labels, names=names)
    assert images.classes == classes and shades(images) == list(enumerate(told))


@pytest.mark.parametrize(
    ("labels", "names", "match"),
    [
        ([1, 0], None, r"labels of 'wds/pets' are bare numbers.* put a file classes\.txt beside the shards"),
        (
            [1, 2],
            "cat\ndog",
            r"^'train-0\.tar:000001\.png' has the label '2', which is none of the 2 classes \(cat, dog\)",
        ),
        ([1, -1], "cat\ndog", r"^'train-0\.tar:000001\.png' has the label '-1', which"),
        (["cat", "newt"], "cat\ndog", r"^'train-0\.tar:000001\.png' has the label 'newt', which"),
        (["cat", 1], "cat\ndog", r"^'train-0\.tar:000001\.png' has the label '1', which"),
        ([1], "1\n0", r"so are names of its classes, at other places \(1, 0\)"),
        ([1], "cat\n\ndog", r"classes\.txt': class 1 has no name"),
        ([1], "", r"classes\.txt': class 0 has no name"),
        ([1], "cat\ncat", r"classes\.txt' has class names twice: cat"),
        (["9" * 5000], "cat", "none of the 1 classes"),
    ],
)
def test_labels_that_tell_no_class_are_refused(tmp_path, labels, names, match):
    with pytest.raises(DataError, match=match) as error:
        labelled(tmp_path, *labels, names=names)
    assert "\n" not in str(error.value)


def test_an_info_file_must_number_classes_from_0(tmp_path):
    (tmp_path / "info.json").write_text('{"classes": {"cat": 1, "dog": 2}}')
    with pytest.raises(DataError, match="numbers its 2 classes otherwise than from 0 on"):
        labelled(tmp_path, 1)


def test_no_samples_are_refused(tmp_path):
    write_shard(tmp_path / "train-0.tar", [("__info__", b"{}")])
    with pytest.raises(DataError, match=r"hold no samples, such as '.*train-0\.tar'"):
        load_data("wds/pets", "train", tmp_path)


# ---------------------------------------------------------------------- unreadable images

DAMAGE = {"empty": b"", "text": b"not an image", "truncated": noise_bytes()[:900]}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_unreadable_image_is_named_or_replaced(tmp_path, damage, caplog):
    pairs = samples("cat", "dog", "cat")
    pairs[2] = ("000001.jpg", DAMAGE[damage])
    write_shard(tmp_path / "train-0003.tar", pairs)
    data = TreeData(load_data("wds/pets", "train", tmp_path), PETS, PREPARE)
    named = r"^cannot read image 'train-0003\.tar:000001\.jpg': [^\n]*; remove or replace it$"
    for workers in (0, 1):
        with pytest.raises(DataError, match=named):
            list(loader(data, 1, workers))
    image, label = Seeded(data, seed=0, skip_unreadable=True)[1]
    assert image.equal(data[2][0]) and label == data[2][1]
    assert "'train-0003.tar:000001.jpg'" in caplog.text


# ---------------------------------------------------------------------- caches and run folders


def shard_data(folder):
    return TreeData(load_data("wds/pets", "train", folder), PETS, PREPARE)


@pytest.fixture
def original(tmp_path):
    """Two shards, and what caches and run folders know of them."""
    folder = tmp_path / "pets"
    write_shard(folder / "train-0.tar", samples("cat", "dog"))
    write_shard(folder / "train-1.tar", samples("dog"))
    data, net = shard_data(folder), build(tree=PETS)
    return folder, net, feature_key(net, data)["data"], data.digest()


def renamed(folder):
    (folder / "train-1.tar").rename(folder / "train-2.tar")


def written_later(folder):
    os.utime(folder / "train-1.tar", ns=(1, 1))


def longer(folder):
    with (folder / "train-1.tar").open("ab") as file:
        file.write(bytes(512))


def with_other_images(folder):
    write_shard(folder / "train-1.tar", samples("dog", start=7))


@pytest.mark.parametrize("change", [renamed, written_later, longer, with_other_images])
def test_features_of_other_shards_are_others(original, change):
    folder, net, key, _ = original
    change(folder)
    assert feature_key(net, shard_data(folder))["data"] != key


def test_features_of_moved_shards_stay(original, tmp_path):
    folder, net, key, digest = original
    shutil.copytree(folder, tmp_path / "copy")  # with times
    data = shard_data(tmp_path / "copy")
    assert (feature_key(net, data)["data"], data.digest()) == (key, digest)


@pytest.mark.parametrize("change", [renamed, with_other_images])
def test_a_run_does_not_go_on_with_other_images(original, change):
    folder, _, _, digest = original
    change(folder)
    assert shard_data(folder).digest() != digest
