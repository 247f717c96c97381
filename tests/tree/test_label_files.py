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
        *((read_yaml(text), [("cat", 0, None), ("dog", 1, None)]) for text in (
            "train: a\nval: b\nnames: [cat, dog]\n",
            "names: {0: cat, 1: dog}\n",
            "names: {1: dog, 0: cat}\n",
            "names: [cat, dog]\n",
            "names:\n- cat\n- dog\n",
            "nc: 2\nnames: [cat, dog]\n",
            "names: {cat: 0, dog: 1}\nnc: 2\n",
            "pets:\n  path: x\n  train: [a, b]\n  val: b\n  names: {0: cat, 1: dog}\n",
        )),
        (read_yaml("names: {0: 7, 1: no}\nnc: 2\n"), [("7", 0, None), ("no", 1, None)]),
        (read_yaml("names: {3: {}}\nother: {}\n"), None),
        (read_yaml("names: {given: [anna], family: [berg]}\n"), None),
        (read_yaml("names: {anna: 0, berg: 1}\n"), None),
    ],
)  # fmt: skip
def test_flat_label_files(data, leaves):
    found = read_labels(data)
    assert (found and [(leaf.name, leaf.index, leaf.id) for leaf in found.leaves()]) == leaves
    assert found is None or found.to_tree().num_levels == 1


def test_groups_of_numbered_names():
    pets = {"cats": {"3": "tabby", "1": "siamese"}, "dogs": {"0": "beagle"}}
    nested = {"pets": pets, "tools": {"2": ["n04", "saw"]}}
    tree = read_labels(nested).to_tree()
    assert tree.to_nested() == {
        "pets": {"cats": {"siamese": 1, "tabby": 3}, "dogs": {"beagle": 0}},
        "tools": {"saw": 2},
    }
    assert tree.ids["tools/saw"] == "n04"
    assert read_labels({"pets": {"0": "cat", "dog": "n1"}}) is None


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
    "data, words", [([{"label": "a"}], "'label', a format"), ({"type": "FeatureCollection"}, "GeoJSON"),
                    ({"path": "a", "train": "b", "val": "c", "nc": 2}, "without the 'names'"),
                    ({"train": "b", "nc": 2, "names": "coco.names"}, "neither a list nor numbered names"),
                    ({"train": "b", "nc": 2, "names": {"cat": None}}, "neither a list nor numbered names")],
)  # fmt: skip
def test_what_is_known_and_no_tree(data, words):
    with pytest.raises(TreeError, match=words):
        read_labels(data)
