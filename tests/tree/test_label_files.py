"""Label files of other tools."""

import pytest

from hlnet.errors import TreeError
from hlnet.tree.label_files import read_labels
from hlnet.tree.strict_yaml import read_yaml


@pytest.mark.parametrize(
    "data, leaves",
    [
        ({"1": ["n01443537", "goldfish"], "0": ["n01440764", "tench"]},
         [("tench", 0, "n01440764"), ("goldfish", 1, "n01443537")]),
        ({"0": "tench", "10": "goldfish"}, [("tench", 0, None), ("goldfish", 10, None)]),
        ({"architectures": ["ViT"], "id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0}},
         [("a", 0, None), ("b", 1, None)]),
        ({"n01440764": "tench", "n01443537": "goldfish"},
         [("tench", None, "n01440764"), ("goldfish", None, "n01443537")]),
        ([["n01440764", "tench"], ["n01443537", "goldfish"]],
         [("tench", None, "n01440764"), ("goldfish", None, "n01443537")]),
        (read_yaml("path: pets\ntrain: train\nnc: 2\nnames: {0: cat, 1: dog}\n"), [("cat", 0, None), ("dog", 1, None)]),
        (read_yaml("train: a\nval: b\nnames: [cat, dog]\n"), [("cat", 0, None), ("dog", 1, None)]),
    ],
)  # fmt: skip
def test_flat_label_files(data, leaves):
    assert [(leaf.name, leaf.index, leaf.id) for leaf in read_labels(data).leaves()] == leaves


COCO = [
    {"supercategory": "person", "id": 1, "name": "person"},
    {"supercategory": "vehicle", "id": 3, "name": "car"},
    {"supercategory": "vehicle", "id": 2, "name": "bicycle"},
]


@pytest.mark.parametrize("data", [COCO, {"images": [], "annotations": [], "categories": COCO}])
def test_coco(data):
    nested = read_labels(data).to_tree().to_nested()
    assert nested == {"person": {"person": 1}, "vehicle": {"car": 3, "bicycle": 2}}


def test_open_images_takes_the_first_place_of_a_label():
    below = [{"LabelName": "/m/1", "Subcategory": [{"LabelName": "/m/3"}]}, {"LabelName": "/m/2"}]
    data = {"LabelName": "/m/0", "Subcategory": [*below, {"LabelName": "/m/3"}]}
    tree = read_labels(data).to_tree()
    assert tree.to_nested() == {"m.1": {"m.3": 0}, "m.2": 1} and tree.ids["m.1/m.3"] == "/m/3"


@pytest.mark.parametrize("data", [{"cat": {"tabby": 0}}, {"a": "b"}, ["cat", "dog"], {"0": {"1": 2}}, {}, [], None, 3])
def test_what_is_none_of_them(data):
    assert read_labels(data) is None


@pytest.mark.parametrize(
    "data, words", [([{"label": "a"}], "'label', a format"), ({"type": "FeatureCollection"}, "GeoJSON")]
)
def test_what_is_known_and_no_tree(data, words):
    with pytest.raises(TreeError, match=words):
        read_labels(data)
