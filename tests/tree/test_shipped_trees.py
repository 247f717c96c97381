"""The class trees in hlnet/tree/presets: the paper's counts and costs, the data sets' classes, WordNet's synsets."""

import importlib.util
import re
import sys
from functools import cache
from pathlib import Path

import pytest
from timm.data import ImageNetInfo

from hlnet.errors import TreeError, UsageError
from hlnet.model.cost import profile
from hlnet.model.presets import network_config
from hlnet.tree.dictionary import WordNet
from hlnet.tree.io import read_tree

ROOT = Path(__file__).parents[2]
COUNTS = {
    "imagenet1k": (17, 161, 1000),
    "imagenet100": (6, 26, 100),
    "imagenette": (1, 9, 10),
    "imagewoof": (1, 9, 10),
    "cifar10": (2, 5, 10),
    "cifar100": (8, 20, 100),
}
# The digits of Kaggle's ambityga/imagenet100, sorted.
IMAGENET100 = """
01440764 01443537 01484850 01491361 01494475 01496331 01498041 01514668 01514859 01531178 01537544 01560419 01582220
01592084 01601694 01608432 01614925 01622779 01630670 01632458 01632777 01644900 01664065 01665541 01667114 01667778
01675722 01677366 01685808 01687978 01693334 01695060 01698640 01728572 01729322 01729977 01734418 01735189 01739381
01740131 01742172 01749939 01751748 01753488 01755581 01756291 01770081 01770393 01773157 01773549 01773797 01774384
01774750 01775062 01776313 01795545 01796340 01798484 01806143 01818515 01819313 01820546 01824575 01828970 01829413
01833805 01843383 01847000 01855672 01860187 01877812 01883070 01910747 01914609 01924916 01930112 01943899 01944390
01950731 01955084 01968897 01978287 01978455 01984695 01985128 01986214 02002556 02006656 02007558 02011460 02012849
02013706 02018207 02018795 02027492 02028035 02037110 02051845 02058221 02077923
"""
TEN = {
    "imagenette": "01440764 02102040 02979186 03000684 03028079 03394916 03417042 03425413 03445777 03888257",
    "imagewoof": "02086240 02087394 02088364 02089973 02093754 02096294 02099601 02105641 02111889 02115641",
}
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CIFAR100 = """
aquatic_mammals: beaver dolphin otter seal whale
fish: aquarium_fish flatfish ray shark trout
flowers: orchid poppy rose sunflower tulip
food_containers: bottle bowl can cup plate
fruit_and_vegetables: apple mushroom orange pear sweet_pepper
household_electrical_devices: clock keyboard lamp telephone television
household_furniture: bed chair couch table wardrobe
insects: bee beetle butterfly caterpillar cockroach
large_carnivores: bear leopard lion tiger wolf
large_man-made_outdoor_things: bridge castle house road skyscraper
large_natural_outdoor_scenes: cloud forest mountain plain sea
large_omnivores_and_herbivores: camel cattle chimpanzee elephant kangaroo
medium_mammals: fox porcupine possum raccoon skunk
non-insect_invertebrates: crab lobster snail spider worm
people: baby boy girl man woman
reptiles: crocodile dinosaur lizard snake turtle
small_mammals: hamster mouse rabbit shrew squirrel
trees: maple_tree oak_tree palm_tree pine_tree willow_tree
vehicles_1: bicycle bus motorcycle pickup_truck train
vehicles_2: lawn_mower rocket streetcar tank tractor
"""


@cache
def shipped(name):
    return read_tree(ROOT / "hlnet" / "tree" / "presets" / f"{name}.tree.json")


def by_index(name):
    leaves = sorted(shipped(name).leaves, key=lambda leaf: leaf.index)
    assert [leaf.index for leaf in leaves] == list(range(len(leaves)))
    return leaves


def groups(name):
    """The classes under each path above the leaves."""
    tree = shipped(name)
    paths = {node.path for row in tree.levels for node in row} - {leaf.path for leaf in tree.leaves}
    return {path: [tree.leaves[i] for i in tree.leaves_under(path)] for path in paths}


@pytest.fixture(scope="module")
def wordnet():
    try:
        return WordNet()
    except UsageError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_trees", ROOT / "scripts" / "make_trees.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", COUNTS)
def test_counts_names_and_order(name):
    tree = shipped(name)
    assert tree.counts == COUNTS[name]
    assert all(re.fullmatch(r"n\d{8}", leaf.id) for leaf in tree.leaves)
    inner = [path.rpartition("/")[2] for path in groups(name)]
    names = [*tree.classes, *inner]
    # Unique whatever the case: names become folders; and no comma, which parts the terms of a selection.
    assert len({each.casefold() for each in names}) == len(names) and not [each for each in names if "," in each]
    assert [each for each in inner if each != each.lower()] == []
    for row in tree.levels:  # siblings in the order of their first class
        firsts = [(node.parent, min(tree.leaves[i].index for i in tree.leaves_under(node.path))) for node in row]
        assert firsts == sorted(firsts)


def test_no_other_tree_is_shipped():
    assert {path.name for path in (ROOT / "hlnet" / "tree" / "presets").glob("*.json")} == {
        f"{name}.tree.json" for name in COUNTS
    }


def test_imagenet1k_classes_are_timms():
    imagenet = ImageNetInfo("imagenet-1k")
    leaves = by_index("imagenet1k")
    assert [leaf.id for leaf in leaves] == imagenet.label_names()
    lemmas = [imagenet.index_to_description(index).split(", ") for index in range(1000)]
    renamed = {
        i: leaf.name for i, (leaf, names) in enumerate(zip(leaves, lemmas, strict=True)) if leaf.name != names[0]
    }
    assert renamed == {
        134: "crane (bird)",
        264: "Cardigan Welsh corgi",
        517: "crane (machine)",
        638: "maillot (tights)",
        639: "maillot (tank suit)",
    }


@pytest.mark.parametrize("name, largest, single", [("imagenet1k", 13, 0), ("imagenet100", 8, 1)])
def test_sizes_of_groups(name, largest, single):
    sizes = shipped(name).sibling_counts[2]
    assert max(sizes) == largest and sizes.count(1) == single


@pytest.mark.parametrize(
    "path, indices",
    [
        ("other mammal/house cats", range(281, 286)),
        ("dog", range(151, 269)),
        ("bird", [*range(7, 25), *range(80, 101), *range(127, 147)]),
        ("reptile and amphibian", range(25, 69)),
        ("fish", [*range(7), *range(389, 398)]),
        ("dog/retrievers", range(205, 210)),
        ("plant and fungus/mushrooms and other fungi", [947, *range(991, 998)]),
        ("clothing and people/people", [981, 982, 983]),
    ],
)
def test_groups_of_imagenet1k(path, indices):
    assert sorted(leaf.index for leaf in groups("imagenet1k")[path]) == list(indices)


def test_imagenet100_classes():
    assert [leaf.id for leaf in by_index("imagenet100")] == [f"n{digits}" for digits in IMAGENET100.split()]
    names = {leaf.id: leaf.name for leaf in by_index("imagenet1k")}
    assert all(names[leaf.id] == leaf.name for leaf in by_index("imagenet100"))


@pytest.mark.parametrize("name", TEN)
def test_pair_of_siblings_straddles_the_halves(name):
    assert [leaf.id for leaf in by_index(name)] == [f"n{digits}" for digits in TEN[name].split()]
    tree = shipped(name)
    (pair,) = [[leaf for leaf in tree.leaves if leaf.parent == i] for i in range(9) if tree.sibling_counts[2][i] == 2]
    assert pair[0].index < 5 <= pair[1].index
    halves = [[i for i, leaf in enumerate(tree.leaves) if leaf.index // 5 == half] for half in (0, 1)]
    assert [tree.prune(half).counts for half in halves] == [(1, 5, 5), (1, 5, 5)]


def test_cifar_classes():
    official = dict(line.split(": ") for line in CIFAR100.strip().splitlines())
    assert [leaf.name for leaf in by_index("cifar10")] == CIFAR10
    assert [leaf.name for leaf in by_index("cifar100")] == sorted(" ".join(official.values()).split())
    found = {path.rpartition("/")[2]: leaves for path, leaves in groups("cifar100").items() if "/" in path}
    assert {name: " ".join(sorted(leaf.name for leaf in leaves)) for name, leaves in found.items()} == official


@pytest.mark.parametrize("name", COUNTS)
def test_ids_are_synsets_of_those_names(name, wordnet):
    strangers = []
    for leaf in shipped(name).leaves:
        words = set(re.split(r"[ _-]", leaf.name.lower()))
        lemmas = {word for lemma in wordnet.lemmas(leaf.id) for word in re.split(r"[ _-]", lemma.lower())}
        strangers += [] if words & lemmas else [leaf.name]
    assert strangers == (["aquarium_fish"] if name == "cifar100" else [])


@pytest.mark.parametrize("name", ["imagenet1k", "imagenet100"])
def test_group_with_an_id_has_the_classes_of_that_synset(name, wordnet):
    def kind_of(synset, ancestor):
        return synset == ancestor or any(kind_of(parent, ancestor) for parent in wordnet.hypernyms(synset))

    ids = {path: shipped(name).ids[path] for path in groups(name) if path in shipped(name).ids}
    for path, synset in ids.items():
        assert [leaf for leaf in shipped(name).leaves if kind_of(leaf.id, synset)] == groups(name)[path]
    known = {"other mammal/house cats": "n02121808", "dog": "n02084071", "invertebrate": "n01905661"}
    assert known.items() <= ids.items() if name == "imagenet1k" else ids["mammal"] == "n01861778"


@pytest.mark.parametrize(
    "name, millions, printed",
    [("imagenet1k", "113.547", "113.5"), ("imagenet100", "24.9504", "25.0"), ("imagewoof", "11.92993", "11.9")],
)
def test_costs_of_the_paper(name, millions, printed):
    params = profile(network_config("n3hl_resnet50", 3), shipped(name)).full.params / 1e6
    assert f"{params:.{len(millions.partition('.')[2])}f}" == millions and f"{params:.1f}" == printed


def test_expert_of_the_house_cats():
    expert = profile(network_config("n3hl_convnextv2_tiny", 3), shipped("imagenet1k"), classes="house cats").expert
    assert expert.nodes == (1, 1, 5) and f"{expert.params / 1e6:.3f}" == "13.543"


def test_shipped_files_are_as_the_script_makes_them(script, wordnet, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["make_trees.py", "--check", "--wordnet", wordnet.place])
    assert script.main() == 0
    for path in script.TREES.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes().replace(b"tench", b"Tench"))
    (tmp_path / "cifar10.tree.json").unlink()
    monkeypatch.setattr(script, "TREES", tmp_path)
    stale = script.main()
    assert set(re.findall(r"\w+\.tree\.json", stale)) == {
        f"{name}.tree.json" for name in ("imagenet1k", "imagenet100", "imagenette", "cifar10")
    }
    assert not (tmp_path / "cifar10.tree.json").exists()


def test_closest_claim_wins_and_conflicts_are_listed(script):
    # pan is both pot and iron; a wok is a pan, a kettle a pot, a nail an iron
    parents = {"wok": {"pan"}, "pan": {"pot", "iron"}, "kettle": {"pot"}, "nail": {"iron"}}
    kitchen, workshop = ("home", "kitchen"), ("home", "workshop")

    def above(each):
        return frozenset({each}).union(*map(above, parents.get(each, ())))

    def resolve(*rows, classes="wok kettle nail"):
        names = {each: each.upper() for each in classes.split()}
        return script._resolved(rows, classes.split(), names, above)

    rows = (kitchen, "pot"), (workshop, "iron")
    assert resolve(*rows, (workshop, "pan")) == [
        ((*workshop, "WOK"), "wok"),
        ((*kitchen, "KETTLE"), "kettle"),
        ((*workshop, "NAIL"), "nail"),
    ]
    assert resolve(*rows, (kitchen, "wok"))[0] == ((*kitchen, "WOK"), "wok")
    with pytest.raises(TreeError, match=r"wok \(WOK\) belongs to home/kitchen and home/workshop$"):
        resolve(*rows)
    with pytest.raises(TreeError, match=r"nail \(NAIL\) belongs to no group"):
        resolve((kitchen, "pot"))
    with pytest.raises(TreeError, match=r"pan is listed twice; .*cup \(home/kitchen\) stands for no class"):
        resolve(*rows, (kitchen, "pan"), (workshop, "pan"), (kitchen, "cup"))
