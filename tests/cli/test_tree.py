"""``hlnet tree``: show, check, compare and convert, against the library or a count by hand."""

import numpy as np
import pytest
from helpers import tree_material
from helpers.command_line import as_json, invoke
from helpers.tree_material import CLASSES
from PIL import Image
from rich.console import Console

from hlnet.cli.shared import output
from hlnet.model.cost import profile
from hlnet.model.presets import network_config
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.io import FORMATS, read_tree, tree_to_json, write_tree
from hlnet.tree.measures import check_tree, compare_trees

at, price = tree_material.at, tree_material.price


def lines_of(text):
    return [line.strip("│├└─ ") for line in text.splitlines()]


@pytest.mark.parametrize(
    "options, shown",
    [
        ("", "thing, Öl 5, saw 4, beast, bird, rook 3, owl 2, mammal, cat 0, dog 1"),
        ("--depth 1", "thing 2 classes, beast 4 classes"),
        ("--depth 2", "thing, Öl 5, saw 4, beast, bird 2 classes, mammal 2 classes"),
        ("--depth 9", "thing, Öl 5, saw 4, beast, bird, rook 3, owl 2, mammal, cat 0, dog 1"),
        ("--limit 5", "thing 2 classes, beast 4 classes"),
        ("--limit 1", "thing 2 classes, … 1 more at level 1"),
        (
            "--classes rook,thing --depth 1",
            "thing ● 2 classes, Öl ● 5, saw ● 4, beast ● 4 classes, bird ● 2 classes, rook ● 3",
        ),
    ],
)
def test_show(at, options, shown):
    out, err = invoke(f"tree show {{n}} {options}", **at)
    assert lines_of(out) == ["trunk · nodes per level: 2, 4, 6", *shown.split(", ")] and err == ""


def test_limit_is_of_all_nodes(at):
    out, _ = invoke("tree show {n} --depth 3 --limit 7", **at)
    assert len([line for line in lines_of(out)[1:] if "…" not in line]) <= 7


def test_show_marks_the_paths_of_an_expert(at, monkeypatch):
    console = Console(force_terminal=True, color_system="standard", width=120)
    monkeypatch.setattr(output, "stdout", console)
    with console.capture() as told:
        invoke("tree show {n} --classes bird,cat", **at)
    marked = [part.partition("\x1b[0m")[0] for part in told.get().split("\x1b[1;31m")[1:]]
    assert marked == [f"{name} ●" for name in ("beast", "bird", "rook", "owl", "mammal", "cat")]


def test_show_as_json(at):
    tree = read_tree(at["n"])
    assert as_json("tree show {n}", **at) == tree_to_json(tree) | {"kept": []}
    kept = as_json("tree show {n} --classes mammal,3", **at)["kept"]
    assert kept == ["beast/bird/rook", "beast/mammal/cat", "beast/mammal/dog"]


def test_show_draws(at, tmp_path):
    places = [f"--{suffix} {tmp_path}/new/x.{suffix}" for suffix in ("svg", "png", "html")]
    _, told = invoke(f"tree show {{n}} --classes bird {' '.join(places)}", **at)
    assert told.splitlines() == [f"written to {tmp_path}/new/x.{suffix}" for suffix in ("svg", "png", "html")]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["x.html", "x.png", "x.svg"]
    names = {"thing", "beast", "mammal", "bird", *CLASSES}
    for path in (tmp_path / "new/x.svg", tmp_path / "new/x.html"):
        text = path.read_text(encoding="utf-8")
        assert all(name in text for name in names)
    with Image.open(tmp_path / "new/x.png") as image:
        assert image.format == "PNG" and min(image.size) > 100
    unmarked = tmp_path / "plain.svg"
    invoke(f"tree show {{n}} --svg {unmarked} --json", **at)
    assert unmarked.read_bytes() != (tmp_path / "new/x.svg").read_bytes()


# ---------------------------------------------------------------------- check, compare


def test_check(at, price):
    found = as_json("tree check {n}", **at)
    assert found["nodes"] == [2, 4, 6] and found["oddities"] == []
    full = found["cost"]["full"]
    assert full["params"] == price((2, 4, 6)) and full["gmacs"] == pytest.approx(price((2, 4, 6), "macs") / 1e9)
    assert [part["nodes"] for part in full["parts"]] == [1, 2, 4, 6]
    cost = as_json("tree check {n} --network test_resnet", **at)["cost"]
    assert cost == profile(network_config("test_resnet", 3), read_tree(at["n"])).model_dump(mode="json")


def test_check_of_an_odd_tree_succeeds(at, tmp_path):
    classes = {f"c{i}": None for i in range(30)}
    write_tree(ClassTree.from_nested({"a": {"b": classes}, "x": {"y": {"z": None}}, "lone": None}), tmp_path / "t.json")
    found = as_json(f"tree check {tmp_path}/t.json --network test_resnet")
    listed = [(oddity["kind"], oddity["message"]) for oddity in found["oddities"]]
    assert listed == [(oddity.kind, oddity.message) for oddity in check_tree(read_tree(tmp_path / "t.json"))]
    assert {"private", "level", "chain"} <= {kind for kind, _ in listed}
    out, _ = invoke(f"tree check {tmp_path}/t.json --network test_resnet")
    assert all(f"{kind}: {message}" in out.replace("\n", " ") for kind, message in listed) and "Nothing odd" not in out
    assert "Nothing odd." in invoke("tree check {n} --network test_resnet", **at)[0]


def test_check_needs_no_network_of_as_many_levels(at):
    assert as_json("tree check {list}", **at)["nodes"] == [6]


def test_compare(at, tmp_path):
    other = {"beast": {"bird": ["owl", "saw"], "mammal": ["cat", "dog"]}, "thing": ["rook", "wren"]}
    write_tree(ClassTree.from_nested(other), tmp_path / "o.yaml")
    found = as_json(f"tree compare {{n}} {tmp_path}/o.yaml", **at)
    # Of cat, dog, owl, rook, saw. First: cat dog, owl rook, and these four. Second: cat dog, owl saw, and these four.
    assert found["classes"] == 5 and found["only_first"] == ["Öl"] and found["only_second"] == ["wren"]
    assert (found["groups"], found["shared_groups"], found["robinson_foulds"]) == ([3, 3], 1, 4)
    assert found["normalized_robinson_foulds"] == pytest.approx(4 / 6)
    # Depth of the lowest common ancestor of cd co cr cs do dr ds or os rs: by hand in both.
    depths = [2, 1, 1, 0, 1, 1, 0, 2, 0, 0], [2, 1, 0, 1, 1, 0, 1, 0, 2, 0]
    assert found["cophenetic_correlation"] == pytest.approx(np.corrcoef(*depths)[0, 1])
    out, told = invoke(f"tree compare {{n}} {tmp_path}/o.yaml", **at)
    assert "3, 3, 1" in out and "0.667" in out and told == "only in the first: Öl\nonly in the second: wren\n"


def test_compare_with_itself_and_with_no_tree(at):
    same = as_json("tree compare {n} {n}", **at)
    assert (same["robinson_foulds"], same["cophenetic_correlation"]) == (0, pytest.approx(1)) and same["classes"] == 6
    flat = as_json("tree compare {n} {list}", **at)
    assert flat["normalized_robinson_foulds"] == 1 and flat["cophenetic_correlation"] is None
    assert flat == compare_trees(read_tree(at["n"]), read_tree(at["list"])).model_dump(mode="json")
    assert "–" in invoke("tree compare {n} {list}", **at)[0]


# ---------------------------------------------------------------------- convert, and trees in checkpoints


@pytest.mark.parametrize("to, suffix", [(name, suffix) for name, suffixes in FORMATS.items() for suffix in suffixes])
def test_convert_there_and_back(at, tmp_path, to, suffix):
    ids = {"thing": "n1", "beast/mammal/cat": "n2"}
    write_tree(read_tree(at["n"]).with_ids(ids), tmp_path / "in.tree.json")
    tree, there = read_tree(tmp_path / "in.tree.json"), tmp_path / "new" / f"x{suffix}"
    out, _ = invoke(f"tree convert {tmp_path}/in.tree.json {there} --to {to}")
    assert out == f"6 classes in 3 levels, written to {there}\n"
    write_tree(tree, tmp_path / f"y{suffix}", to)
    if suffix:  # else a folder
        assert there.read_bytes() == (tmp_path / f"y{suffix}").read_bytes()
    invoke(f"tree convert {there} {tmp_path}/back.tree.json --levels 3")
    back = read_tree(tmp_path / "back.tree.json")
    assert back.counts == tree.counts and {leaf.path for leaf in back.leaves} == {leaf.path for leaf in tree.leaves}
    if to in {"newick", "folders"}:  # which hold neither indices nor ids
        assert back.indices == tuple(range(6)) and back.ids == {}
    else:
        assert back == tree.with_ids({"nested": {}, "paths": {"beast/mammal/cat": "n2"}}.get(to, ids))


def test_the_suffix_says_the_format(at, tmp_path):
    for name in ("x.tree.json", "x.csv", "x.yml", "x.nwk", "folders"):
        invoke(f"tree convert {{n}} {tmp_path}/{name} --levels 4", **at)
        assert read_tree(tmp_path / name, 4).counts == (2, 4, 6, 6)
    text = (tmp_path / "x.nwk").read_text(encoding="utf-8")
    assert text == "((Öl,saw)thing,((rook,owl)bird,(cat,dog)mammal)beast);\n"


def test_trees_out_of_checkpoints(at, tmp_path):
    tree = read_tree(at["n"])
    for kind, expected in {"full": tree, "plain": tree, "expert": tree.prune([2, 3, 4])}.items():
        shown = as_json(f"tree show {{{kind}}}", **at)
        assert shown == tree_to_json(expected) | {"kept": []}
        invoke(f"tree convert {{{kind}}} {tmp_path}/{kind}.tree.json", **at)
        assert read_tree(tmp_path / f"{kind}.tree.json") == expected
        assert as_json(f"tree compare {{{kind}}} {{n}}", **at)["robinson_foulds"] == 0
    assert as_json("tree check {expert} --network test_resnet", **at)["nodes"] == [1, 2, 3]


def test_levels_of_a_tree_out_of_a_checkpoint(at, tmp_path):
    invoke(f"tree convert {{full}} {tmp_path}/x.tree.json --levels 5", **at)
    assert read_tree(tmp_path / "x.tree.json") == read_tree(at["n"], 5)
