"""``hlnet build-tree``: trees that are read, cut and grouped, and controls; against the library or a count by hand."""

import json
import subprocess
import sys

import numpy as np
import pytest
from helpers import command_line, tree_material
from helpers.command_line import as_json, invoke
from helpers.tree_material import described, groups_of

from hlnet.tree.construct.baselines import balanced_tree, random_tree
from hlnet.tree.construct.levels import cut_to_levels
from hlnet.tree.hierarchy import Hierarchy
from hlnet.tree.io import read_tree, shipped_trees
from hlnet.tree.selection import select_classes

failing = command_line.failing
at, build, price = tree_material.at, tree_material.build, tree_material.price


@pytest.mark.parametrize(
    "line, counts",
    [
        ("{n}", (2, 4, 6)),
        ("{n} --levels 3", (2, 4, 6)),
        ("{n} --levels 5", (2, 4, 6, 6, 6)),
        ("{n} --levels 2", (2, 6)),
        ("{n} --levels 1", (6,)),
        ("{n} --nodes 1,2,5", (1, 2, 5, 6)),
        ("{photos}", (6,)),
        ("{list} --levels 3", (6, 6, 6)),
        ("{list} --nodes 2,3", (2, 3, 6)),
        ("{one} --nodes 1,1", (1, 1, 1)),
        ("preset:imagenet1k", (17, 161, 1000)),
    ],
)
def test_read(build, at, line, counts):
    tree, notes = build(line)
    source = line.split()[0].format(**at)
    assert tree.counts == counts and described(tree) == described(read_tree(source)) and notes == []
    if "--" not in line:
        assert tree == read_tree(source)


def test_a_tree_in_text_and_where_it_is(at, tmp_path):
    out, err = invoke(f"build-tree {{n}} --out {tmp_path}/x.tree.json", **at)
    first, *lines, last = out.splitlines()
    assert first == "trunk · nodes per level: 2, 4, 6" and err == ""
    assert [line.strip("│├└─ ") for line in lines] == [
        "thing", "Öl 5", "saw 4", "beast", "bird", "rook 3", "owl 2", "mammal", "cat 0", "dog 1",
    ]  # fmt: skip
    assert last == f"6 classes in 3 levels, written to {tmp_path}/x.tree.json"


def test_a_cut_keeps_the_classes_and_follows_the_hierarchy(build):
    tree, _ = build("preset:imagenet100 --nodes 3,10")
    whole = read_tree("preset:imagenet100")
    assert tree.counts == (3, 10, 100) and described(tree) == described(whole)
    assert tree == cut_to_levels(Hierarchy.of(whole), [3, 10]).to_tree(3)
    # A group is a part of one of the tree's six, or holds whole ones.
    tops = groups_of(whole, 0)
    for group in groups_of(tree, 0) + groups_of(tree, 1):
        touched = [top for top in tops if top & group]
        assert len(touched) == 1 or set().union(*touched) == group


@pytest.mark.parametrize(
    "budget, measure, limit, counts",
    [
        ("25M", "params", 25e6, (6, 26, 100)),
        ("'4.2 GMACs'", "macs", 4.2e9, None),
        ("'18000 k'", "params", 18e6, None),
        ("100MB", "bytes", 1e8, None),
    ],
)
def test_budget_is_spent_and_kept(build, price, budget, measure, limit, counts):
    tree, _ = build(f"preset:imagenet100 --budget {budget}")
    top, middle, _ = tree.counts
    assert price(tree.counts, measure) <= limit < price((top, middle + 1, 100), measure)
    assert counts in {None, tree.counts} and described(tree) == described(read_tree("preset:imagenet100"))


def test_budget_for_another_network_of_other_levels(build, price):
    tree, _ = build("preset:imagenet100 --budget 25M --network test_resnet --levels 4")
    assert tree.num_levels == 4 and price(tree.counts, network="test_resnet") <= 25e6


@pytest.mark.parametrize("option", ["--levels 2", "--network phl_resnet50"])
def test_budget_that_an_option_has_no_part_in(failing, price, tmp_path, option):
    """A preset has three levels; and a PHL parts every class, so that its tree saves nothing."""
    code, _, err = failing(f"build-tree preset:imagenet100 --budget 25M {option} --out {{new}}")
    assert code == 2 and option.split()[0] in err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", ["--nodes 6,26", "--budget 25M", "--budget 30M --max-children 30"])
def test_groups_make_experts_no_dearer(build, price, tmp_path, shape):
    groups = {"water": "tench,goldfish,2-6,*frog*,*crab*,albatross", "few": "cock,hammerhead,*snake*", "one": "7"}
    (tmp_path / "g.yaml").write_text(json.dumps(groups))
    plain, _ = build(f"preset:imagenet100 {shape}")
    tree, _ = build(f"preset:imagenet100 {shape} --groups {tmp_path}/g.yaml")

    def mean_expert(tree):
        return np.mean([price(tree.prune(select_classes(tree, chosen)).counts) for chosen in groups.values()])

    assert mean_expert(tree) < mean_expert(plain) and described(tree) == described(plain)
    assert tree.counts == plain.counts if "nodes" in shape else price(tree.counts) <= 30e6
    assert "max" not in shape or max(map(max, tree.sibling_counts[1:])) <= 30


# ---------------------------------------------------------------------- controls


@pytest.mark.parametrize("source", ["{n}", "{photos}", "preset:cifar10"])
def test_controls(build, at, source):
    classes = read_tree(source.format(**at))
    parallel, _ = build(f"{source} --method parallel")
    assert parallel == classes.parallelized(3) and set(parallel.counts) == {len(classes.classes)}
    balanced, _ = build(f"{source} --method balanced --nodes 2,3")
    assert balanced == balanced_tree(classes, [2, 3]) and balanced.classes == classes.classes
    assert all(max(row) - min(row) <= 1 for row in balanced.sibling_counts)
    drawn = [build(f"{source} --method random --nodes 2,3 --seed {seed}")[0] for seed in (0, 7, 7)]
    assert drawn[0] == random_tree(classes, [2, 3], 0) == build(f"{source} --method random --nodes 2,3")[0]
    assert drawn[1] == drawn[2] != drawn[0] and drawn[0].counts[:2] == (2, 3)
    assert all(described(tree) == described(classes) for tree in (parallel, balanced, *drawn))


@pytest.mark.parametrize("method", ["balanced", "random"])
def test_shapes_of_controls(build, method):
    assert build(f"preset:imagenet100 --method {method} --budget 25M")[0].counts == (6, 26, 100)
    assert build(f"preset:imagenet100 --method {method} --levels 2")[0].counts == (10, 100)  # about as many each
    assert build(f"{{n}} --method {method}")[0].num_levels == 3
    assert build("{n} --method parallel --levels 1")[0].counts == (6,)


# ---------------------------------------------------------------------- --list, help


def test_list():
    counts = {name: read_tree(f"preset:{name}").counts for name in shipped_trees()}
    assert as_json("build-tree --list") == {name: list(nodes) for name, nodes in counts.items()}
    out, _ = invoke("build-tree --list")
    assert all(f"preset:{name} " in out and ", ".join(map(str, nodes)) in out for name, nodes in counts.items())


def test_help_needs_no_heavy_import():
    script = """
import sys
from typer.testing import CliRunner
from hlnet.cli.main import app
trees = ["tree show", "tree check", "tree compare", "tree convert", "tree match", "tree rename"]
for command in ["build-tree", "tree", *trees]:
    result = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0 and "Usage: " in result.output, command
    assert command == "tree" or f"hlnet {command} " in result.output.partition("Examples")[2], command
heavy = {"torch", "timm", "numpy", "scipy", "networkx", "nltk", "openai", "matplotlib"} & set(sys.modules)
sys.exit(f"imported: {sorted(heavy)}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
