"""The source wds/…: which shards a split is, what the labels mean; and it is trained on as a folder is."""

import json
import pickle

import numpy as np
import pytest
from helpers import runs
from helpers.cached_photos import SHAPE
from helpers.command_line import as_json
from helpers.shard_files import pack, samples, shades, write_shard
from PIL import Image

from hlnet.data.sources import load_data
from hlnet.data.tree_data import TreeData, eval_transform
from hlnet.errors import DataError, UsageError
from hlnet.tree.class_tree import ClassTree

NUMBERS = {"red": 2, "yellow": 0, "green": 3, "blue": 1}  # in no order
NAMES = sorted(NUMBERS, key=NUMBERS.get)
CATS = samples("cat", "dog")


def write_info(folder, name="_info.json", **info):
    (folder / name).write_text(json.dumps(info))  # JSON is YAML, too


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """20 and 8 images in folders, and the same in shards of three: ``data/`` and ``shards/``."""
    root = tmp_path_factory.mktemp("photos")
    runs.write_images(root)
    pack(root / "data", root / "shards")
    return root


# ---------------------------------------------------------------------- the same as a folder


def assert_same(found, expected):
    assert [found.classes[i] for i in found.labels] == [expected.classes[i] for i in expected.labels]
    assert len(found) == len(expected) > 4
    for i in range(len(found)):
        assert np.array_equal(np.asarray(found.load(i)), np.asarray(expected.load(i)))


@pytest.mark.parametrize("split", ["train", "val"])
def test_shards_hold_what_the_folder_holds(photos, split):
    assert_same(load_data("wds/photos", split, photos / "shards"), load_data(photos / "data", split))


@pytest.mark.parametrize("named", ["classes.txt", "list", "numbers"])
def test_numbers_are_classes_by_their_names(photos, tmp_path, named):
    pack(photos / "data", tmp_path, label=NUMBERS.get)
    if named == "classes.txt":
        (tmp_path / "classes.txt").write_text("\n".join(NAMES) + "\n\n", encoding="utf-8-sig")
    else:
        write_info(tmp_path, "info.yaml", classes=NAMES if named == "list" else NUMBERS)
    images = load_data("wds/photos", "train", tmp_path)
    assert images.classes == tuple(NAMES)
    assert_same(images, load_data(photos / "data"))
    tree = ClassTree.from_nested({"warm": ["red", "yellow"], "cold": ["green", "blue"]})
    data = TreeData(images, tree, eval_transform(SHAPE))
    reds = [position for position, label in enumerate(data.labels) if tree.classes[label] == "red"]
    assert [np.asarray(images.load(i))[..., 1:].max() for i in reds] == [0] * 5


def test_timm_yields_the_same(photos, tmp_path):
    pytest.importorskip("webdataset")
    from timm.data.readers.reader_wds import ReaderWds

    pack(photos / "data", tmp_path, label=NUMBERS.get)
    info = {
        folder: {
            "name": folder,
            "num_samples": count,
            "filenames": [f"photos-{split}-{i:04}.tar" for i in range(-(-count // 3))],
            "shard_lengths": [3] * (count // 3) + [count % 3],
        }
        for split, folder, count in (("train", "train", 20), ("val", "validation", 8))
    }
    write_info(tmp_path, splits=info, classes=NAMES)
    for split, folder in (("train", "train"), ("val", "validation")):
        images = load_data("wds/photos", split, tmp_path)
        theirs = list(ReaderWds(str(tmp_path), split=folder, input_img_mode="RGB"))
        assert images.labels == tuple(label for _, label in theirs) and len(theirs) > 4
        for i, (image, _) in enumerate(theirs):
            assert np.array_equal(np.asarray(images.load(i)), np.asarray(image))


@pytest.fixture(scope="module")
def trained(photos):
    """The run folders of an epoch on the folder and on the shards, each with two processes that load images."""
    line = f"--tree {photos / 'tree.json'} {runs.SMALL} --widths 8,4 --workers 2 --epochs 1 --seed 3"
    for name, data in (("folder", "{root}/data"), ("packed", "wds/photos --data-root {root}/shards")):
        code, told = runs.finish(
            f"train {data} {line} --out {{root}}/{name}".format(root=photos), photos / f"{name}.log"
        )
        assert code == 0, told
    return photos / "folder", photos / "packed"


def test_training_on_shards_is_training_on_the_folder(trained):
    folder, packed = trained
    assert runs.figures(packed) == runs.figures(folder) != []
    assert runs.weights(packed / "last.safetensors")[1] == runs.weights(folder / "last.safetensors")[1]
    assert 'data = "wds/photos"' in (packed / "config.toml").read_text()


def test_evaluation_on_shards_is_evaluation_on_the_folder(trained, photos):
    by_data = [
        as_json(f"eval {trained[1]} --data {data} --workers 2 --device cpu")
        for data in (photos / "data", f"wds/photos --data-root {photos / 'shards'}")
    ]
    used = [told.pop("served") for told in by_data]  # it was trained on the shards
    assert by_data[0] == by_data[1] and by_data[0]["images"] == 8 and used == [[], ["epoch"]]


def test_worker_processes_get_little(photos):
    images = load_data("wds/photos", "train", photos / "shards")
    images.load(0)  # a file is open
    sent = pickle.dumps(images)
    assert len(sent) < 6000  # 20 images, 7 shards
    assert_same(pickle.loads(sent), images)


# ---------------------------------------------------------------------- which shards


@pytest.fixture
def root(tmp_path):
    """Two training shards, one for validation; a sample's shade is its number."""
    write_shard(tmp_path / "pets-train-0.tar", samples("cat", "dog", start=10))
    write_shard(tmp_path / "pets-train-1.tar", samples("dog", start=12))
    write_shard(tmp_path / "pets-valid-0.tar", samples("dog", "cat", start=20))
    return tmp_path


TRAIN = [(10, "cat"), (11, "dog"), (12, "dog")]


@pytest.mark.parametrize(
    "spec",
    [
        *("pets", "", "anything", "pets-{train-{0..1},valid-0}.tar", "pets-train-{0..1}.tar::pets-valid-0.tar"),
        *("pets-train-{0..1}.tar|3::pets-valid-0.tar|2", "{root}/pets-{{train-0,train-1,valid-0}}.tar"),
    ],
)
def test_names_tell_the_split(root, spec):
    data = "wds/" + (spec.format(root=root) if "root" in spec else spec)
    assert shades(load_data(data, "train", root)) == TRAIN
    assert shades(load_data(data, "val", str(root))) == [(20, "dog"), (21, "cat")]
    with pytest.raises(
        UsageError, match=r"no shards of the split 'test' .* found .*pets-train-0\.tar, .* expected 'test'"
    ):
        load_data(data, "test", root)


def test_a_whole_path_may_lie_elsewhere(root, tmp_path_factory):
    data, elsewhere = f"wds/{root}/pets-{{train-{{0,1}},valid-0}}.tar", tmp_path_factory.mktemp("elsewhere")
    assert shades(load_data(data, "train", elsewhere)) == TRAIN


def test_a_folder_of_the_name_or_of_the_split_is_looked_into(root, tmp_path):
    inner = tmp_path / "all" / "pets"
    for split in ("train", "valid"):
        (inner / split).mkdir(parents=True)
        for file in root.glob(f"pets-{split}-*.tar"):
            file.rename(inner / split / file.name.removeprefix(f"pets-{split}-"))
    assert shades(load_data("wds/pets", "train", tmp_path / "all")) == TRAIN
    assert shades(load_data("wds/", "train", inner)) == TRAIN
    assert len(load_data("wds/pets", "val", tmp_path / "all")) == 2


def test_of_two_sets_in_one_folder_the_name_chooses(root):
    write_shard(root / "tools-train-0.tar", samples("saw"))
    write_shard(root / "contest-val-0.tar", samples("saw"))  # "test" is no word in it
    assert shades(load_data("wds/pets", "train", root)) == TRAIN
    assert load_data("wds/tools", "train", root).classes == ("saw",) == load_data("wds/contest", "val", root).classes


def test_a_shard_of_two_splits_is_refused(root):
    write_shard(root / "pets-train-for-val.tar", CATS)
    with pytest.raises(UsageError, match=r"'pets-train-for-val\.tar' has the names of several splits .*train, val"):
        load_data("wds/pets", "train", root)


def split(*files, **more):
    return {"filenames": list(files)} | more


@pytest.mark.parametrize("name", ["_info.json", "info.json", "_info.yaml", "info.yaml"])
def test_the_info_file_lists_splits(root, name):
    write_info(root, name, splits={
        "train": split("pets-valid-0.tar", "pets-train-1.tar", num_samples=3, shard_lengths=[2, 1]),
        "validation": split("pets-train-{0..0}.tar", name="validation", other=[]),
    })  # fmt: skip
    assert shades(load_data("wds/pets", "train", root)) == [(20, "dog"), (21, "cat"), (12, "dog")]
    assert shades(load_data("wds/pets", "val", root)) == TRAIN[:2]
    with pytest.raises(UsageError, match=r"no split 'test' in its info file; it has train, validation"):
        load_data("wds/pets", "test", root)


def test_an_alternative_label_may_leave_samples_out(tmp_path):
    pairs = []
    for number, label in enumerate([1, -1, 0]):
        about = json.dumps({"real": label}).encode()
        pairs += [*samples("0", start=number), (f"{number:06}.json", about)]
    write_shard(tmp_path / "a.tar", pairs)
    (tmp_path / "classes.txt").write_text("cat\ndog")
    write_info(tmp_path, splits={
        "train": split("a.tar", alt_label="real", num_samples=3), "test": split("a.tar", alt_label=None)
    })  # fmt: skip
    assert shades(load_data("wds/", "train", tmp_path)) == [(0, "dog"), (2, "cat")]
    assert shades(load_data("wds/", "test", tmp_path)) == [(0, "cat"), (1, "cat"), (2, "cat")]


@pytest.mark.parametrize(
    ("listed", "match"),
    [
        (split("pets-train-0.tar", shard_lengths=[3]), r"pets-train-0\.tar' has 2 samples, its info file says 3"),
        (split("pets-train-0.tar", num_samples=5), r"have 2 samples, their info file says 5"),
        (split("pets-train-7.tar"), r"pets-train-7\.tar' cannot be read: No such file"),
        (split("pets-{0..1.tar"), "brace"),
        (split("https://example.org/train-0.tar"), "not on this machine; download"),
        ({"num_samples": 3}, r"_info\.json' cannot be read \(splits\.train\.filenames: Field required\)"),
    ],
)
def test_an_info_file_that_does_not_fit_is_refused(root, listed, match):
    write_info(root, splits={"train": listed})
    with pytest.raises((DataError, UsageError), match=match) as error:
        load_data("wds/pets", "train", root)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"splits": 3}', '{"classes": 1000}', "\xff", "[" * 100_000, '{"classes": [[]]}']
)
@pytest.mark.parametrize("name", ["_info.json", "info.yaml"])
def test_a_broken_info_file_is_named(root, name, text):
    (root / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=rf"^'.*{name}' cannot be read(: not a text file| \([^\n]*)$"):
        load_data("wds/pets", "train", root)


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ("wds/https://example.org/pets-{0..3}.tar", "."),
        ("wds/pipe:curl -s https://example.org/train-0.tar", "."),
        ("wds/train-0.tar::pipe:cat val-0.tar", "."),
        ("wds/pets", "s3://bucket/pets"),
        ("wds/pets", "hf://datasets/somebody/pets"),
    ],
)
def test_remote_shards_are_to_be_downloaded_first(data, place):
    with pytest.raises(UsageError, match=r"is not on this machine; download the shards, and give their folder"):
        load_data(data, "train", place)


def test_a_folder_is_needed(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"'wds/pets' needs the folder of its shards as root \(--data-root\)$"):
        load_data("wds/pets")
    with pytest.raises(UsageError, match=r"'wds/pets': there is no folder '.*none'"):
        load_data("wds/pets", "train", tmp_path / "none")
    with pytest.raises(UsageError, match=r"no shards of the split 'train' .* there is no \.tar file"):
        load_data("wds/pets", "train", tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wds/pets/train/cat").mkdir(parents=True)
    Image.new("L", (8, 8)).save("wds/pets/train/cat/a.png")
    with pytest.raises(UsageError, match=r"for the folder of that name, write '\./wds/pets'"):
        load_data("wds/pets")
    assert load_data("./wds/pets").classes == ("cat",)
    with pytest.raises(UsageError, match="no data folder 'tfds/pets'"):
        load_data("tfds/pets", "train", tmp_path)
