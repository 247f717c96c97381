"""Class trees from files and folders, and the canonical tree file."""

import itertools
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hlnet.errors import HlnetError, RunError, SelectionError, TreeError, UsageError
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.io import read_tree, tree_from_json, tree_to_json, write_tree
from hlnet.tree.selection import select_classes

SHAPES = st.recursive(st.none(), lambda below: st.lists(below, min_size=1, max_size=4), max_leaves=12).filter(bool)
PETS = {"cat": {"tabby": 0, "siamese": 1}, "dog": {"beagle": 2}}
FILE = {
    "format": "hlnet.tree",
    "version": 1,
    "levels": 2,
    "tree": PETS,
    "ids": {"cat": "n02", "cat/tabby": "n021"},
}


@st.composite
def trees(draw):
    """A tree of uneven depth whose nodes have odd names and, some of them, ids; perhaps cut, perhaps continued."""
    numbers, ids = itertools.count(), {}

    def mapping(shape, above=""):
        result = {}
        for below in shape:
            name = draw(st.sampled_from(["n", "", "é, ", "no'\"", "\\", "格 ", "#"])) + str(next(numbers))
            if draw(st.booleans()):
                ids[above + name] = f"id {next(numbers)}"
            result[name] = mapping(below, f"{above}{name}/") if below else None
        return result

    plain = ClassTree.from_nested(mapping(draw(SHAPES)))
    levels = plain.num_levels + draw(st.integers(0, 2))
    tree = tree_from_json({**tree_to_json(plain), "levels": levels, "ids": ids})
    assert {node.path: node.id for row in tree.levels for node in row if node.id} == ids
    return tree.prune(draw(st.sets(st.integers(0, len(tree.leaves) - 1), min_size=1)))


def put(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def folders(root, *paths):
    for path in paths:
        (root / path).mkdir(parents=True, exist_ok=True)
    return root


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trees())
def test_written_tree_is_read_back(tmp_path, tree):
    path = tmp_path / "any.tree.json"
    write_tree(tree, path)
    assert read_tree(path) == tree and read_tree(path, tree.num_levels) == tree
    assert [entry.name for entry in tmp_path.iterdir()] == ["any.tree.json"]
    assert tree_from_json(tree_to_json(tree)) == tree


def test_canonical_file_by_hand(tmp_path):
    tree = read_tree(put(tmp_path, "pets.json", json.dumps(FILE)))
    assert [[node.id for node in row] for row in tree.levels] == [["n02", None], ["n021", None, None]]
    write_tree(tree, tmp_path / "again.tree.json")
    text = (tmp_path / "again.tree.json").read_text(encoding="utf-8")
    assert json.loads(text) == FILE and list(json.loads(text)) == list(FILE)
    assert text.endswith("}\n") and '\n "levels": 2,\n' in text


def test_ids_by_path_or_class_name():
    tree = ClassTree.from_nested({"cat": {"lion": 0}, "zoo": {"tiger": 1}}, levels=3)
    named = tree.with_ids({"lion": "n1", "zoo": "n2", "zoo/tiger": "n3", "tiger": "n4"})
    assert [[node.id for node in row] for row in named.levels] == [[None, "n2"], ["n1", "n3"], ["n1", "n3"]]
    assert named.with_ids({}) == tree


def test_id_of_an_inner_node_stays_off_the_class_of_that_name():
    tree = tree_from_json(FILE | {"tree": {"cat": {"lion": 0}, "zoo": {"cat": 1}}, "ids": {"cat": "n1"}})
    assert tree_to_json(tree)["ids"] == {"cat": "n1"}


def test_more_levels_keep_ids(tmp_path):
    tree = read_tree(put(tmp_path, "pets.json", json.dumps(FILE)), levels=3)
    assert tree.counts == (2, 3, 3) and [leaf.continued for leaf in tree.leaves] == [True] * 3
    assert [[node.id for node in row] for row in tree.levels] == [["n02", None], *[["n021", None, None]] * 2]


@pytest.mark.parametrize("levels", [1, 4])
def test_parallel_tree_is_read_back(tmp_path, levels):
    tree = ClassTree.parallel(["cat", "été", "tench, Tinca tinca"], levels)
    write_tree(tree, tmp_path / "new" / "phl.tree.json")
    assert read_tree(tmp_path / "new" / "phl.tree.json") == tree


def test_ten_thousand_classes(tmp_path):
    tree = ClassTree.from_nested({f"g{g}": {f"c{g}.{c}": f"id{g}.{c}" for c in range(100)} for g in range(100)}, 3)
    write_tree(tree, tmp_path / "big.tree.json")
    again = read_tree(tmp_path / "big.tree.json")
    assert again == tree and again.counts == (100, 10000, 10000) and again.leaves[1234].id == "id12.34"


@pytest.mark.parametrize(
    "name, text",
    [
        ("t.json", json.dumps(PETS)),
        ("t.json", "\ufeff" + json.dumps(PETS)),
        ("t.json", '{"cat": ["tabby", "siamese"], "dog": {"beagle": null}}'),
        ("t.yaml", "cat: [tabby, siamese]\ndog:\n  beagle:\n"),
        ("t.yml", "\ufeffcat: {tabby: 0, siamese: 1}\ndog: {beagle: 2}\n"),
        ("t.yaml", "cat: &cats [tabby, siamese]\ndog: {beagle: {}}\n"),
        ("t.yaml", json.dumps(FILE | {"ids": {}})),
    ],
)
def test_reads_nested(tmp_path, name, text):
    assert read_tree(put(tmp_path, name, text)) == ClassTree.from_nested(PETS)


@pytest.mark.parametrize("text", ["cat\ndog\n", "\ufeffcat\r\n\r\ndog  ", "\n\ncat\ndog"])
def test_reads_a_list(tmp_path, text):
    path = put(tmp_path, "t.txt", text)
    assert read_tree(str(path)) == ClassTree.from_nested(["cat", "dog"])
    assert read_tree(path, levels=3) == ClassTree.parallel(["cat", "dog"], 3)


def test_yaml_strings_and_numbers(tmp_path):
    tree = read_tree(put(tmp_path, "t.yaml", "'no': 'n01'\n7: n07\n'a: b': n1\n"))
    assert [(leaf.name, leaf.id) for leaf in tree.leaves] == [("no", "n01"), ("7", "n07"), ("a: b", "n1")]


@pytest.mark.parametrize(
    "name", ["010", "12:30", "1_000", "0x1F", "no", "yes", "1.0", "2024-01-01", "7", "null island"]
)
def test_yaml_names_stay_as_written(tmp_path, name):
    assert read_tree(put(tmp_path, "t.yaml", f"- {name}\n")).classes == (name,)
    assert read_tree(put(tmp_path, "t.yaml", f"{name}: 3\n")).to_nested() == {name: 3}


DAMAGED = {
    "cycle": ("t.yaml", "a: &x {b: *x}\n", "itself"),
    "list cycle": ("t.yaml", "a: &x [*x]\n", "node 'a'"),
    "list as key": ("t.yaml", "? [a, b]\n: c\n", "t.yaml"),
    "mapping as key": ("t.yaml", "a: {{x}}\n", "t.yaml"),
    "no number": ("t.yaml", "a: !!int b\n", "t.yaml"),
    "list tagged as mapping": ("t.yaml", "!!map [a]\n", "t.yaml"),
    "foreign tag": ("t.yaml", "!!python/object/apply:os.getcwd []\n", "t.yaml"),
    "shared node": ("t.yaml", "a: &x [p]\nb: *x\n", "node 'b'"),
    "doubled yaml key": ("t.yaml", "a:\n  b: 1\n  c: 2\n  b: 3\n", "'b' appears twice.*line 4"),
    "doubled json key": ("t.json", '{"a": {"b": 1, "c": 2, "b": 3}}', "'b' appears twice"),
    "empty yaml": ("t.yaml", "", "t.yaml"),
    "empty txt": ("t.txt", "\n \n", "empty"),
    "empty json": ("t.json", "{}", "empty"),
    "empty node": ("t.json", '{"a": {"b": []}}', "'a/b' is empty"),
    "cut json": ("t.json", json.dumps(FILE)[:-7], "JSON"),
    "text in json": ("t.json", '"abc"', "str"),
    "NaN": ("t.json", '{"a": NaN}', "nan"),
    "endless number": ("t.json", '{"a": ' + "1" * 5000 + "}", "t.json"),
    "not UTF-8": ("t.txt", "été".encode("latin-1"), "no text in UTF-8"),
    "UTF-16": ("t.json", json.dumps(PETS).encode("utf-16-le"), "JSON"),
    "slash": ("t.txt", "a/b\nc\nd\n", "a/b"),
    "doubled line": ("t.txt", "a\nb\na\n", "'a'"),
    "deep json": ("t.json", '{"a":' * 50000 + "1" + "}" * 50000, "t.json"),
    "deep list": ("t.json", "[" * 300 + "]" * 300, "t.json"),
    "rather deep json": ("t.json", '{"a":' * 200 + "1" + "}" * 200, "64"),
    "deep yaml": ("t.yaml", "{a: " * 3000 + "}" * 3000, "t.yaml"),
    "too few levels": ("t.txt", "a\nb\n", "levels=0"),
}


@pytest.mark.parametrize("name, text, words", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_file(tmp_path, name, text, words):
    with pytest.raises(TreeError, match=words) as caught:
        read_tree(put(tmp_path, name, text), levels=0 if "levels" in words else None)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


WRONG = {
    "newer": ({"version": 2}, "2.*update hlnet"),
    "no version": ({"version": None}, "version"),
    "ids of an inner name": ({"tree": {"animal": PETS}, "levels": 3, "ids": {"cat": "n02"}}, "cat"),
    "ids of no node": ({"ids": {"cat/lion": "n9"}}, "cat/lion"),
    "ids not text": ({"ids": {"cat": 3}}, "ids"),
    "ids no mapping": ({"ids": ["n02"]}, "ids"),
    "levels too small": ({"levels": 1}, "2 levels deep"),
    "levels no number": ({"levels": "2"}, "levels"),
    "no levels": ({"levels": None}, "levels"),
    "tree no mapping": ({"tree": ["cat"]}, "tree"),
    "no tree": ({"tree": None}, "tree"),
    "empty tree": ({"tree": {}, "ids": {}}, "empty"),
}


@pytest.mark.parametrize("change, words", WRONG.values(), ids=WRONG.keys())
def test_wrong_canonical_file(tmp_path, change, words):
    with pytest.raises(TreeError, match=words):
        read_tree(put(tmp_path, "t.tree.json", json.dumps({k: v for k, v in (FILE | change).items() if v is not None})))


@pytest.mark.parametrize("name", ["t.xlsx", "t", "photo.png"])
@pytest.mark.parametrize("content", [b"a", b"\x89PNG\xff\0"])
def test_unknown_kind(tmp_path, name, content):
    with pytest.raises(UsageError, match=name):
        read_tree(put(tmp_path, name, content))


@pytest.mark.parametrize("name", ["t.json", "no/t.yaml", "folder", "n" * 300])
def test_missing_file(tmp_path, name):
    with pytest.raises(UsageError, match=r"there is no class tree|cannot"):
        read_tree(tmp_path / name)


@pytest.mark.parametrize("train", ["", "train"])
def test_reads_folders(tmp_path, train):
    put(folders(tmp_path / train, "cat/tabby", "cat/siamese", "dog", ".git/x", "b.c") / "dog", "1.jpg", "")
    put(folders(tmp_path, *(["val/dog"] if train else [])), "overview.png", "")
    expected = {"b.c": 0, "cat": {"siamese": 1, "tabby": 2}, "dog": 3}
    assert read_tree(tmp_path) == ClassTree.from_nested(expected)


@pytest.mark.parametrize("name, words", [("mixed", "cat' holds both"), ("flat", "no folders")])
def test_refuses_folders(tmp_path, name, words):
    put(folders(tmp_path / "mixed", "cat/tabby", "dog") / "cat", "1.JPEG", "")
    put(folders(tmp_path / "flat", ".hidden"), "1.jpg", "")
    with pytest.raises(TreeError, match=words) as caught:
        read_tree(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_a_link_that_leads_back_up_is_passed_over(tmp_path):
    (folders(tmp_path, "a/b", "c") / "a" / "up").symlink_to(tmp_path)
    assert read_tree(tmp_path).to_nested() == {"a": {"b": 0}, "c": 1}


def test_folders_of_one_name_are_told_apart_by_their_groups(tmp_path):
    tree = read_tree(folders(tmp_path, "church/outdoor", "market/outdoor", "market/indoor"))
    assert tree.classes == ("outdoor (church)", "indoor", "outdoor (market)")
    assert select_classes(tree, "church/outdoor") == select_classes(tree, "outdoor (church)") == (0,)
    with pytest.raises(SelectionError, match=r"'outdoor'.*'market/outdoor' or 'church/outdoor'"):
        select_classes(tree, "outdoor")


def test_folders_called_by_numbers_are_in_their_order(tmp_path):
    tree = read_tree(folders(tmp_path, *map(str, range(12))))
    assert tree.classes == tuple(map(str, range(12)))
    assert [tree.classes[i] for i in select_classes(tree, "9-11")] == ["9", "10", "11"]


def test_folder_of_an_image_like_name(tmp_path):
    assert read_tree(folders(tmp_path, "a/x.png", "a/y")).classes == ("x.png", "y")


def test_failed_write_leaves_the_old_tree(tmp_path):
    path, tree = tmp_path / "t.tree.json", ClassTree.parallel(["cat"])
    write_tree(tree, path)
    with pytest.raises((HlnetError, UnicodeError)):
        write_tree(ClassTree.balanced((1,), ["\ud800"]), path)
    assert read_tree(path) == tree and [entry.name for entry in tmp_path.iterdir()] == ["t.tree.json"]
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(RunError, match="folder"):
        write_tree(tree, tmp_path / "folder.json")


def test_the_folder_of_a_network_is_no_tree(tmp_path):
    put(tmp_path, "best.safetensors", "")
    (tmp_path / "model").mkdir()
    with pytest.raises(TreeError, match=r"holds a network \('best.safetensors'\)"):
        read_tree(tmp_path)


@pytest.mark.parametrize(
    "name, text, format, header, nested",
    [
        ("t.csv", "class,order\na,b\n", None, False, {"class": {"order": 0}, "a": {"b": 1}}),
        ("t.csv", "old,new\na,b\n", None, True, {"a": {"b": 0}}),
        ("t.csv", "a,b\na,c\n", "edges", False, {"b": 0, "c": 1}),
        ("t.txt", "a;b\nc;d\n", "list", None, {"a;b": 0, "c;d": 1}),
        ("t.txt", "a,b\nc,d\n", "paths", None, {"a": {"b": 0}, "c": {"d": 1}}),
        ("t.json", '{"0": "a", "1": "b"}', "labels", None, {"a": 0, "b": 1}),
        ("t.dat", "(a,b);", "newick", None, {"a": 0, "b": 1}),
    ],
)
def test_format_and_header_overrule_the_guess(tmp_path, name, text, format, header, nested):
    assert read_tree(put(tmp_path, name, text), format=format, header=header).to_nested() == nested


@pytest.mark.parametrize("format, words", [("nweick", "newick"), ("folders", "is a file"), ("node-link", "no file of")])
def test_a_format_that_it_is_not(tmp_path, format, words):
    with pytest.raises(HlnetError, match=words):
        read_tree(put(tmp_path, "t.json", '{"a": 0}'), format=format)
