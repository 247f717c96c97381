"""Data: labels go by name, every odd image file is read right or named, orders and splits are fixed."""

import pickle
from collections import Counter
from unicodedata import normalize

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from hlnet.data.images import LabelledImages, open_image
from hlnet.data.sources import load_data
from hlnet.data.tree_data import TreeData, eval_transform, loader, train_transform
from hlnet.errors import DataError, UsageError
from hlnet.model.transform import InputTransform
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.io import read_tree
from hlnet.tree.selection import select_classes

TINY = InputTransform(input_size=(3, 8, 8), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), crop_pct=1.0)
PREPARE = eval_transform(TINY)


def write_images(folder, shades):
    """Two grey images for each place; the shade tells the class."""
    for place, shade in shades.items():
        (folder / place).mkdir(parents=True)
        for number in range(2):
            Image.new("L", (8, 8), shade).save(folder / place / f"{number}.png")


def shades_by_class(data, tree):
    """What a tree's classes look like, from pixels and labels alone."""
    found = {}
    for i in range(len(data)):
        image, label = data[i]
        found.setdefault(tree.classes[label], set()).add(round((image[0].mean().item() * 0.5 + 0.1) * 255))
    return found


@pytest.mark.parametrize(
    "tree",
    [
        ["class2", "class10", "class1"],
        {"class10": 7, "class1": 5, "class2": 3},
        {"b": ["class2"], "a": {"c": ["class10", "class1"]}},
    ],
    ids=["list", "indices", "nested"],
)
@pytest.mark.parametrize("above", ["", "odd/", "odd/deep/"])
def test_labels_go_by_name(tmp_path, tree, above):
    shades = {f"{above}class1": 10, "class2": 20, "class10": 100}
    write_images(tmp_path / "train", shades)
    tree = ClassTree.from_nested(tree)
    data = TreeData(load_data(tmp_path), tree, PREPARE)
    assert shades_by_class(data, tree) == {"class1": {10}, "class2": {20}, "class10": {100}}
    assert data.labels == [data[i][1] for i in range(len(data))] and (len(data), data.left_out) == (6, 0)


def test_labels_go_by_id_and_names_before_ids(tmp_path):
    write_images(tmp_path / "train", {"n1": 10, "n2": 20, "saw": 30})
    tree = ClassTree.from_nested({"cat": "n2", "n1": "cat", "saw": "tool"})
    data = TreeData(load_data(tmp_path), tree, PREPARE)
    assert shades_by_class(data, tree) == {"n1": {10}, "cat": {20}, "saw": {30}}


def test_two_classes_of_the_data_never_become_one(tmp_path):
    write_images(tmp_path / "train", {"n1": 10, "n2": 20})
    tree = ClassTree.from_nested({"n1": "n2", "saw": "n3"})  # n1 by name, n2 by id
    with pytest.raises(DataError, match="n1"):
        TreeData(load_data(tmp_path), tree, PREPARE, subset=True)


def test_error_in_a_worker_process_is_one_line(tmp_path):
    write_images(tmp_path / "train", {"cat": 10})
    (tmp_path / "train" / "cat" / "junk.png").write_bytes(b"junk")
    data = TreeData(load_data(tmp_path), ClassTree.from_nested(["cat"]), PREPARE)
    with pytest.raises(DataError, match=r"^cannot read image '.*junk.png': not an image; remove or replace it$"):
        list(loader(data, 1, workers=1))


def labelled(classes, labels):
    return LabelledImages("made up", tuple(classes), tuple(labels), lambda i: Image.new("L", (8, 8), i))


def test_differing_classes_are_named_on_both_sides():
    images, tree = labelled(["cat", "dog", "newt"], [0, 1, 2, 1]), ClassTree.parallel(["saw", "dog", "axe"])
    with pytest.raises(DataError, match=r"data: cat, newt\. Only in the tree, without an image here: saw, axe\."):
        TreeData(images, tree, PREPARE)
    with pytest.raises(DataError, match=r"differ\. Only in the tree, without an image here: saw\."):
        TreeData(labelled(["dog"], [0]), ClassTree.parallel(["dog", "saw"]), PREPARE)


def test_subset_drops_and_counts():
    images, tree = labelled(["cat", "dog", "newt"], [0, 1, 2, 1, 0]), ClassTree.parallel(["newt", "saw", "cat"])
    data = TreeData(images, tree, PREPARE, subset=True)
    assert (data.labels, data.left_out) == ([2, 0, 2], 2)
    assert [round((data[i][0][0, 0, 0].item() * 0.5 + 0.1) * 255) for i in range(3)] == [0, 2, 4]
    with pytest.raises(DataError, match="saw"):
        TreeData(images, ClassTree.parallel(["saw"]), PREPARE, subset=True)


@pytest.mark.parametrize(("places", "match"), [([".", "cat"], "outside"), ([], "no images")])
def test_bad_folders_are_refused(tmp_path, places, match):
    (tmp_path / "train").mkdir()
    for place in places:
        (tmp_path / "train" / place).mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / "train" / place / "a.PNG")
    with pytest.raises(DataError, match=match):
        load_data(tmp_path)


def test_folders_of_one_name_match_the_tree_of_the_same_folders(tmp_path):
    places = {"church/outdoor": 1, "market/outdoor": 2, "market/indoor": 1}
    write_images(tmp_path / "train", places)
    write_images(tmp_path / "val", {"market/outdoor": 3})  # alone, its name is not told apart
    tree = read_tree(tmp_path)
    train, val = (TreeData(load_data(tmp_path, split), tree, PREPARE, subset=True) for split in ("train", "val"))
    assert Counter(tree.leaves[label].path for label in train.labels) == {
        "church/outdoor (church)": 2, "market/outdoor (market)": 2, "market/indoor": 2
    }  # fmt: skip
    assert {tree.leaves[label].path for label in val.labels} == {"market/outdoor (market)"}


@pytest.mark.parametrize("data, tree", ["CD", "DC"])
def test_names_are_compared_in_one_unicode_form(tmp_path, data, tree):
    names = ["\u00c9pervier", "\u00dcbung"]
    write_images(tmp_path / "train", {normalize(f"NF{data}", name): 1 for name in names})
    classes = ClassTree.parallel([normalize(f"NF{tree}", name) for name in names])
    assert TreeData(load_data(tmp_path), classes, PREPARE).labels == [0, 0, 1, 1]
    assert select_classes(classes, normalize("NFD", names[1])) == (1,)


def test_what_is_no_image_is_counted_and_told(tmp_path, caplog):
    write_images(tmp_path / "train", {"cat": 2, "__MACOSX/cat": 1})
    for name in ("._1.png", "Thumbs.db", "a.heic", "b.heic", "README"):
        (tmp_path / "train" / "cat" / name).touch()
    (tmp_path / "train" / "cat" / "up").symlink_to(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "train" / "cat" / "c.jfif", "JPEG")
    with caplog.at_level("INFO", "hlnet"):
        assert len(load_data(tmp_path)) == 3
    assert "passed over what is no image that is read: .heic 2, no suffix 1" in caplog.text


def test_hidden_folders_are_no_classes(tmp_path):
    write_images(tmp_path / "train", {"cat": 1, "cat/.thumbnails": 2, ".cache/dog": 3})
    assert load_data(tmp_path).classes == ("cat",)  # as read_tree sees it


@pytest.mark.parametrize(("folder", "split"), [("val", "val"), ("validation", "val"), ("training", "train")])
def test_split_folders_have_synonyms(tmp_path, folder, split):
    write_images(tmp_path / folder, {"cat": 1})
    assert len(load_data(tmp_path, split)) == len(load_data(str(tmp_path), split)) == 2
    with pytest.raises(UsageError, match=f"'test' folder.*{folder}"):
        load_data(tmp_path, "test")


@pytest.mark.parametrize("data", ["nowhere", "torch/nothing", "torch/image_folder", "wds/none", "digit"])
def test_unknown_source_is_refused(tmp_path, data):
    with pytest.raises(UsageError, match=data):
        load_data(data, "train", tmp_path / "nowhere")


def test_unknown_split_is_refused(tmp_path):
    write_images(tmp_path / "train", {"cat": 1})
    for data in (tmp_path, "digits"):
        with pytest.raises(UsageError, match="trian"):
            load_data(data, "trian")


def pixels(images):
    return np.stack([np.asarray(images.load(i)) for i in range(len(images))])


def test_digits_are_split_once_and_for_all():
    train, val, test = (load_data("digits", split) for split in ("train", "val", "test"))
    assert (len(train), len(val)) == (1437, 360) and val.labels == test.labels
    counts = [np.bincount(images.labels) for images in (train, val)]
    assert (np.abs(counts[0] / 4 - counts[1]) < 1.5).all()  # stratified
    assert load_data("digits").labels == train.labels and np.array_equal(pixels(load_data("digits")), pixels(train))
    # Together they are scikit-learn's images, each once, with its label.
    ours = np.concatenate([pixels(train), pixels(val)]).reshape(1797, -1)
    digits = load_digits()
    theirs = np.floor(digits.data * 255 / 16)
    ours = np.column_stack([ours, np.array(train.labels + val.labels)])
    theirs = np.column_stack([theirs, digits.target])
    assert np.array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])


def test_timm_source_reads_the_same_folders(tmp_path):
    write_images(tmp_path / "train", {"class2": 20, "class10": 100})
    write_images(tmp_path / "validation", {"class2": 21, "class10": 101})
    tree = ClassTree.parallel(["class2", "class10"])
    for split, more in (("train", 0), ("val", 1)):
        data = TreeData(load_data("torch/image_folder", split, tmp_path), tree, PREPARE)
        assert shades_by_class(data, tree) == {"class2": {20 + more}, "class10": {100 + more}}


@pytest.mark.parametrize("source", ["folder", "timm"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_unreadable_image_is_named(tmp_path, source, damage):
    bad = tmp_path / "train" / "cat" / "bad.png"
    bad.parent.mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(bad)
    whole = bad.read_bytes()
    bad.write_bytes({"truncated": whole[:2000], "empty": b"", "text": b"not an image"}[damage])
    images = load_data(tmp_path) if source == "folder" else load_data("torch/image_folder", "train", tmp_path)
    with pytest.raises(DataError, match=r"bad\.png" if source == "folder" else "image_folder"):
        images.load(0)


def test_missing_image_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.png"):
        open_image(tmp_path / "none.png")


MODES = "L.png LA.png RGBA.png P.gif I;16.png I;16.tiff CMYK.jpg CMYK.tiff YCbCr.jpg RGB.webp 1.png"


@pytest.mark.parametrize(("mode", "suffix"), [name.split(".") for name in MODES.split()])
def test_every_mode_shows_the_same_grey(tmp_path, mode, suffix):
    level = 255 if mode == "1" else 128
    image = Image.new("RGB", (9, 9), (level, level, level))
    if mode == "I;16":
        image = Image.fromarray(np.full((9, 9), level * 257, np.uint16))
    elif mode == "P":
        image = image.quantize(2)
    elif mode != "RGB":
        image = image.convert(mode)
    image.save(tmp_path / f"image.{suffix}")
    expected = (level / 255 - torch.tensor(TINY.mean)) / torch.tensor(TINY.std)
    found = PREPARE(open_image(tmp_path / f"image.{suffix}"))
    torch.testing.assert_close(found, expected[:, None, None].expand(3, 8, 8), rtol=0, atol=2.1 / 255 / 0.5)


def test_eval_transform_is_torchvisions():
    shape = InputTransform(input_size=(3, 32, 32), crop_pct=0.8)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8))
    steps = [transforms.Resize(40, InterpolationMode.BICUBIC), transforms.CenterCrop(32), transforms.ToTensor()]
    by_hand = transforms.Compose([*steps, transforms.Normalize(shape.mean, shape.std)])
    torch.testing.assert_close(eval_transform(shape)(image), by_hand(image), rtol=0, atol=1e-5)


def test_one_channel_networks_get_one_channel():
    shape = InputTransform(input_size=(1, 8, 8), mean=(0.25,), std=(0.5,), crop_pct=1.0)
    image = Image.new("RGB", (8, 8), (200, 100, 50))
    expected = (round(0.299 * 200 + 0.587 * 100 + 0.114 * 50) / 255 - 0.25) / 0.5
    for prepare in (eval_transform(shape), train_transform(shape)):
        torch.testing.assert_close(prepare(image), torch.full((1, 8, 8), expected), rtol=0, atol=1e-2)


def test_train_transform_crops_and_normalises():
    image = Image.new("RGB", (30, 20), (51, 102, 153))
    expected = (torch.tensor([0.2, 0.4, 0.6]) - torch.tensor(TINY.mean)) / torch.tensor(TINY.std)
    found = train_transform(TINY)(image)  # every crop of a constant is that constant
    torch.testing.assert_close(found, expected[:, None, None].expand(3, 8, 8), rtol=0, atol=1e-2)
    ramp = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8), (64, 1)))
    full = train_transform(TINY, scale=(1.0, 1.0), hflip=1.0)(ramp)
    assert (full[0].diff(dim=1) < 0).all()  # mirrored
    train_transform(TINY, aa="rand-m9-mstd0.5")(image)
    for policy in ("nonsense", "rand-q9"):
        with pytest.raises(UsageError, match=policy):
            train_transform(TINY, aa=policy)


def test_data_can_be_sent_to_a_worker_process(tmp_path):
    write_images(tmp_path / "train", {"cat": 10})
    for images in (load_data(tmp_path), load_data("digits")):
        data = TreeData(images, ClassTree.parallel(images.classes), PREPARE)
        again = pickle.loads(pickle.dumps(data))  # where processes are spawned: macOS, Windows, Python 3.14
        assert torch.equal(again[1][0], data[1][0])
