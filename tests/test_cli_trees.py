"""``hlnet build-tree`` and ``hlnet tree``: all methods and formats against the library or a count by hand; refusals."""

import functools
import json
import shlex
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from llm_server import Reply, failure, serving
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file
from scipy.cluster.hierarchy import linkage
from test_wordnet import TINY, write
from typer.testing import CliRunner

import hlnet
from hlnet.cli import main as cli
from hlnet.cli import output
from hlnet.clustering import cluster_tree, dendrogram, merge_confusions
from hlnet.condensing import condense
from hlnet.controls import balanced_tree, random_tree
from hlnet.data import eval_transform, open_image
from hlnet.errors import UsageError
from hlnet.llm.nesting import nest_with_llm, tree_prompt
from hlnet.outline import Outline
from hlnet.presets import network_config
from hlnet.profiling import profile
from hlnet.selection import select_classes
from hlnet.tree import ClassTree
from hlnet.tree_io import FORMATS, read_tree, shipped_trees, tree_to_json, write_tree
from hlnet.tree_measures import check_tree, compare_trees
from hlnet.trunk import Trunk, create_backbone, load_trunk_weights
from hlnet.wordnet import WordNet, wordnet_outline

CLASSES = ("cat", "dog", "owl", "rook", "saw", "Öl")
#: Its leaves are not in the order of the indices, which are those of the folders.
NESTED = {
    "thing": {"Öl": 5, "saw": 4},
    "beast": {"bird": {"rook": 3, "owl": 2}, "mammal": {"cat": 0, "dog": 1}},
}
SMALL = "--backbone test_resnet --img-size 32 --workers 0 --device cpu"
TRAIN = f"--aa none --hflip 0 --batch-size 6 {SMALL}"
ANSWER = {"animal": {"pet": ["cat", "dog"], "bird": ["owl", "rook"]}, "stuff": ["Öl", "saw"]}
SECRET = "sk-proj-0123456789abcdefghij"


def invoke(line, **places):
    """Run one command line that must succeed; what it prints to stdout, and to stderr."""
    result = CliRunner().invoke(cli.app, [part.format(**places) for part in shlex.split(line)])
    assert result.exit_code == 0, result.stderr or result.exception
    return result.stdout, result.stderr


def as_json(line, **places):
    return json.loads(invoke(f"{line} --json", **places)[0])


FILES = {
    "n.json": json.dumps(NESTED),
    "list.txt": "\n".join(CLASSES),
    "one.txt": "cat\n",
    "gap.json": '{"cat": 3, "dog": 4}',
    "hundred.txt": "\n".join(f"c{i}" for i in range(100)),
    "groups.yaml": "home: [cat, dog, saw]\ngarden: [rook, saw]\n",
    "few.yaml": "few: 1-5\n",
    "answer.txt": f"Here you are:\n```json\n{json.dumps(ANSWER)}\n```\n",
    "short.txt": '{"animal": ["cat", "dog", "owl", "rook"], "stuff": ["sa',
    "refusal.txt": "I'm sorry, I cannot do that.\n",
}


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    """Paths of images, of trees and lists of their classes, of trained networks, and of timm weights."""
    root = tmp_path_factory.mktemp("trees")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 36, 40, 3), np.uint8)
    for name, i in product(CLASSES, range(8)):
        folder = root / "photos" / ("train" if i < 5 else "val") / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i] // (1 + CLASSES.index(name))).save(folder / f"{i}.png")
    for name, text in FILES.items():
        (root / name).write_text(text, encoding="utf-8")
    (root / "binary.txt").write_bytes(b"\x89PNG\xff\0")
    write(root / "tiny", TINY)
    torch.manual_seed(1)
    save_file(create_backbone("test_resnet").state_dict(), root / "trunk.safetensors")
    save_file(create_backbone("test_resnet", {"num_classes": 6}).state_dict(), root / "rows.safetensors")
    at = {"root": str(root)} | {path.name.split(".")[0]: str(path) for path in root.iterdir()}
    at |= {"expert": f"{root}/expert.safetensors", "image": f"{root}/photos/val/cat/5.png"}
    invoke(f"train {{photos}} --tree {{n}} --out {{root}}/run --widths 8,4,4 --epochs 6 --lr 0.01 {TRAIN}", **at)
    invoke(f"train {{photos}} --tree {{n}} --out {{root}}/plain --plain --epochs 1 {TRAIN}", **at)
    at |= {"full": f"{root}/run/best.safetensors", "plain": f"{root}/plain/best.safetensors"}
    invoke("make-expert {full} --classes bird,cat --out {expert}", **at)
    return at


@pytest.fixture(scope="module")
def price():
    """What a network with so many nodes at each level costs, in parameters and in multiply-accumulates."""

    def price(counts, measure="params", network="n3hl_resnet50"):
        trunk, *levels = parts(network, len(counts))
        return getattr(trunk, measure) + sum(n * getattr(part, measure) for n, part in zip(counts, levels, strict=True))

    @functools.cache
    def parts(network, levels):
        return profile(network_config(network, levels), ClassTree.balanced([1] * levels)).full.parts

    return price


@pytest.fixture
def build(at, tmp_path):
    """Run ``build-tree``; the tree that it wrote, and its notes."""

    def run(line):
        out = tmp_path / "new" / "x.tree.json"
        told = as_json(f"build-tree {line} --out {out}", **at)
        tree = read_tree(out)
        notes = told.pop("notes")
        assert told == {"out": str(out), "nodes": list(tree.counts), "classes": list(tree.classes)}
        return tree, notes

    return run


@pytest.fixture
def failing(at, capsys, monkeypatch, tmp_path):
    """Run ``main()`` on one line that must fail, in an empty folder; its exit code, stdout and stderr."""

    def run(line):
        words = [part.format(**at, new=tmp_path / "new.json") for part in shlex.split(line)]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["hlnet", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, *capsys.readouterr()

    return run


def described(tree):
    """What must stay whatever the nesting: each class's original index and id."""
    return {leaf.name: (leaf.index, leaf.id) for leaf in tree.leaves}


# ---------------------------------------------------------------------- build-tree: read and shape


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
    assert first == "trunk · nodes a level: 2, 4, 6" and err == ""
    assert [line.strip("│├└─ ") for line in lines] == [
        "thing", "Öl 5", "saw 4", "beast", "bird", "rook 3", "owl 2", "mammal", "cat 0", "dog 1",
    ]  # fmt: skip
    assert last == f"6 classes in 3 level(s), written to {tmp_path}/x.tree.json"


def groups_of(tree, level):
    """The classes under each node of a level."""
    found = {}
    for i, name in enumerate(tree.classes):
        found.setdefault(tree.rows([i])[level], set()).add(name)
    return list(found.values())


def test_a_cut_keeps_the_classes_and_follows_the_hierarchy(build):
    tree, _ = build("preset:imagenet100 --nodes 3,10")
    whole = read_tree("preset:imagenet100")
    assert tree.counts == (3, 10, 100) and described(tree) == described(whole)
    assert tree == condense(Outline.of(whole), [3, 10]).to_tree(3)
    # A group is a part of one of the tree's six, or holds whole ones.
    tops = groups_of(whole, 0)
    for group in groups_of(tree, 0) + groups_of(tree, 1):
        touched = [top for top in tops if top & group]
        assert len(touched) == 1 or set().union(*touched) == group


@pytest.mark.parametrize(
    "budget, measure, limit, counts",
    [("25M", "params", 25e6, (6, 26, 100)), ("'4.2 GMACs'", "macs", 4.2e9, None), ("'18000 k'", "params", 18e6, None)],
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


# ---------------------------------------------------------------------- build-tree: controls


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


# ---------------------------------------------------------------------- build-tree: cluster


@pytest.mark.parametrize(
    "options, grid, size, arguments",
    [
        ("--nodes 2,3", 1, None, {"nodes": [2, 3]}),
        ("--nodes 1,4 --linkage average --grid 2", 2, None, {"nodes": [1, 4], "linkage": "average"}),
        ("--nodes 3,4 --max-children 3 --img-size 32 --std 0.2", 1, 32, {"nodes": [3, 4], "max_children": 3}),
        ("", 1, None, {"nodes": [2, 3]}),  # round(6 ** (1 / 3)), round(6 ** (2 / 3))
    ],
)
def test_cluster_by_features(build, at, options, grid, size, arguments):
    line = "{photos} --method cluster --backbone test_resnet --trunk-weights {trunk} --workers 0 --batch-size 7"
    tree, notes = build(f"{line} {options}")
    trunk = Trunk("test_resnet").eval()
    load_trunk_weights(trunk.model, at["trunk"])
    transform = trunk.transform.adjusted(size, None, (0.2,) * 3 if size else None)
    means = []
    for name in CLASSES:
        paths = [f"{at['photos']}/train/{name}/{i}.png" for i in range(5)]
        images = torch.stack([eval_transform(transform)(open_image(path)) for path in paths])
        with torch.no_grad():
            means.append(F.adaptive_avg_pool2d(trunk(images), grid).flatten(1).double().mean(0))
    assert tree == cluster_tree(torch.stack(means), CLASSES, **arguments) and notes == []


def test_features_of_an_untrained_trunk_are_the_seed_s(at, tmp_path):
    line = f"build-tree {{photos}} --method cluster {SMALL} --nodes 2,3 --seed 3 --out {tmp_path}"
    told = [invoke(f"{line}/{run}.json", **at)[1] for run in "ab"]
    assert told == ["the trunk is untrained; --pretrained or --trunk-weights makes its features more telling\n"] * 2
    assert read_tree(tmp_path / "a.json") == read_tree(tmp_path / "b.json")


@pytest.mark.parametrize(
    "line, names",
    [
        ("{plain} --method cluster --by weights", ["Öl", "saw", "rook", "owl", "cat", "dog"]),
        ("{list} --method cluster --by weights --backbone test_resnet --trunk-weights {rows}", CLASSES),
        ("{n} --method cluster --by weights --backbone test_resnet --trunk-weights {rows}", CLASSES),
    ],
)
@pytest.mark.parametrize("kind", ["ward", "single"])
def test_cluster_by_weights(build, at, line, names, kind):
    tree, _ = build(f"{line} --nodes 2,3 --linkage {kind}")
    tensors = load_file(at["plain"] if "{plain}" in line else at["rows"])
    (rows,) = (tensor.double().numpy() for name, tensor in tensors.items() if name.endswith("fc.weight"))
    merges = linkage(rows / np.linalg.norm(rows, axis=1, keepdims=True), kind)
    outline = dendrogram(merges, names)
    for leaf in outline.leaves():
        leaf.index = CLASSES.index(leaf.name)
    assert tree == condense(outline, [2, 3]).to_tree(3)


def test_cluster_by_confusions(build, at):
    tree, _ = build("{photos} --method cluster --by confusions --model {full} --nodes 2,3 --workers 0")
    net = hlnet.load_checkpoint(at["full"])
    confusions = torch.zeros(6, 6)
    for name, i in product(CLASSES, range(5, 8)):
        image = eval_transform(net.transform)(open_image(f"{at['photos']}/val/{name}/{i}.png"))
        with torch.no_grad():
            called = net.tree.classes[net(image[None]).argmax()]
        confusions[CLASSES.index(name), CLASSES.index(called)] += 1
    assert (confusions.sum(0) > 0).sum() > 1  # it tells some apart
    order = [CLASSES.index(name) for name in net.tree.classes]
    outline = dendrogram(merge_confusions(confusions[order][:, order]), net.tree.classes)
    for leaf in outline.leaves():
        leaf.index = CLASSES.index(leaf.name)
    assert tree == condense(outline, [2, 3]).to_tree(3)


@pytest.fixture(scope="module")
def arc(at):
    """Options that cluster a hundred classes whose rows lie on an arc, ever farther apart."""
    angles = torch.linspace(0, 1.2, 100).square()
    weights = create_backbone("test_resnet", {"num_classes": 100}).state_dict()
    weights["fc.weight"] = F.pad(torch.stack([angles.cos(), angles.sin()], dim=1), (0, 94))
    save_file(weights, f"{at['root']}/arc.safetensors")
    return "{hundred} --method cluster --by weights --backbone test_resnet --trunk-weights {root}/arc.safetensors"


@pytest.mark.parametrize("groups", ["", " --groups {few}"])
def test_a_dendrogram_deeper_than_a_tree_may_be(build, arc, groups):
    """Single linkage adds the classes one by one."""
    assert build(f"{arc} --linkage single --nodes 5,20{groups}")[0].counts == (5, 20, 100)


def test_max_children(build, arc):
    trees = [build(f"{arc} --nodes 10,40{limit}")[0] for limit in ("", " --max-children 6")]
    widest = [max(map(max, tree.sibling_counts[1:])) for tree in trees]
    assert widest[1] <= 6 < widest[0] and [tree.counts for tree in trees] == [(10, 40, 100)] * 2


# ---------------------------------------------------------------------- build-tree: wordnet


def test_wordnet_in_a_folder(build, at, tmp_path):
    (tmp_path / "names.txt").write_text("beagle\nheron\nsome blob\nlorry\n")
    tree, notes = build(f"{tmp_path}/names.txt --method wordnet --wordnet {{tiny}} --nodes 2")
    assert tree.counts == (2, 4) and described(tree).keys() == {"beagle", "heron", "some blob", "lorry"}
    assert tree.indices == (0, 1, 2, 3) and {"beagle", "heron"} in groups_of(tree, 0)
    assert "'some blob': not found; put into the group 'other'" in notes
    ids = WordNet(at["tiny"])
    assert {leaf.name: leaf.id for leaf in tree.leaves if leaf.id} == {
        name: ids.senses(name)[0] for name in ("beagle", "heron", "lorry")
    }


def test_folders_named_by_ids_get_names_and_keep_the_ids(build, at, tmp_path):
    wordnet = WordNet(at["tiny"])
    ids = [wordnet.senses(name)[0] for name in ("lorry", "beagle", "heron")]
    for id in ids:
        (tmp_path / "photos" / id).mkdir(parents=True)
    tree, _ = build(f"{tmp_path}/photos --method wordnet --wordnet {{tiny}} --nodes 2")
    by_id = sorted(zip(ids, ("lorry", "beagle", "heron"), strict=True))
    assert described(tree) == {name: (i, id) for i, (id, name) in enumerate(by_id)}


@pytest.fixture(scope="module")
def wordnet():
    try:
        return WordNet()
    except UsageError:
        pytest.skip("no WordNet here")


def test_wordnet_of_imagenet100(build, wordnet):
    tree, _ = build("preset:imagenet100 --method wordnet --nodes 5,20")
    preset = read_tree("preset:imagenet100")
    assert tree.counts == (5, 20, 100) and described(tree) == described(preset)
    outline, _ = wordnet_outline([leaf.id for leaf in preset.leaves], wordnet)
    outline.rename_classes(preset)
    assert tree == condense(outline, [5, 20]).to_tree(3)
    ids = [(tree.ids.get("/".join(leaf.path.split("/")[:end])), leaf.id) for leaf in tree.leaves for end in (1, 2)]
    hypernyms = [group in wordnet.chain(leaf) for group, leaf in ids if group]
    assert all(hypernyms) and len(hypernyms) > 50


def test_notes_of_wordnet_are_for_people(at, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(f"blob {i}x" for i in range(20)) + "\ndog\nlorry\n")
    line = f"build-tree {tmp_path}/names.txt --method wordnet --wordnet {{tiny}} --out {tmp_path}/x.json"
    notes = as_json(line, **at)["notes"]
    assert len(notes) > 20
    assert invoke(line, **at)[1].splitlines() == [*notes[:12], f"… and {len(notes) - 12} more notes: --json lists all"]


# ---------------------------------------------------------------------- build-tree: llm


def nested(answer):
    if isinstance(answer, list):
        return {name: CLASSES.index(name) for name in answer}
    return {name: nested(below) for name, below in answer.items()}


@pytest.mark.parametrize("shape, nodes", [("", None), ("--nodes 2,3", (2, 3)), ("--levels 4", (2, 2, 4))])
def test_prompt_is_the_library_s(at, tmp_path, shape, nodes):
    out, _ = invoke(f"build-tree {{list}} --method llm --prompt {tmp_path}/p.txt {shape}", **at)
    assert (tmp_path / "p.txt").read_text(encoding="utf-8") == tree_prompt(CLASSES, nodes)
    assert f"{tmp_path}/p.txt" in out and "--answer" in out


def test_prompt_for_a_budget(tmp_path):
    invoke(f"build-tree preset:imagenet100 --method llm --prompt {tmp_path}/p.txt --budget 25M")
    assert "6 groups at level 1, 26 groups at level 2" in (tmp_path / "p.txt").read_text(encoding="utf-8")


def test_prompt_as_json(at, tmp_path):
    told = as_json(f"build-tree {{list}} --method llm --prompt {tmp_path}/p.txt", **at)
    assert str(tmp_path / "p.txt") in told.values()


def test_good_answer(build):
    tree, notes = build("{n} --method llm --answer {answer}")
    assert tree == ClassTree.from_nested(nested(ANSWER)) and tree.counts == (2, 4, 6) and notes == []
    tree, notes = build("{n} --method llm --answer {answer} --nodes 2,3")
    assert tree.counts == (2, 4, 6) and len(notes) == 1 and "2, 3" in notes[0]
    assert build("{n} --method llm --answer {answer} --levels 4")[0].counts == (2, 4, 6, 6)


def test_truncated_answer(build, at):
    tree, notes = build("{n} --method llm --answer {short}")
    classes = read_tree(at["n"])
    assert notes == list(nest_with_llm(classes.classes, lambda _: FILES["short.txt"], rounds=0).notes)
    assert "breaks off" in notes[0] and all(any(f"'{name}'" in note for note in notes) for name in ("saw", "Öl"))
    assert described(tree) == described(classes) and {"cat", "dog", "owl", "rook"} <= max(groups_of(tree, 0), key=len)
    _, notes = build(f"{{photos}} --method llm --answer {{short}} --trunk-weights {{trunk}} {SMALL}")
    assert len([note for note in notes if "missing" in note and "by their features" in note]) == 2


@pytest.fixture
def key(monkeypatch):
    pytest.importorskip("openai")
    for name in ("http_proxy", "https_proxy", "all_proxy", "openai_base_url", "openai_org_id", "openai_project_id"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)


def test_asks_a_model(key, at, tmp_path):
    line = f"build-tree {{n}} --method llm --llm-model tiny --out {tmp_path}/x.json"
    replies = [Reply('{"beast": ["cat", "dog", "owl", "rook", "saw"]}'), Reply(f'{{"Öl": "beast"}} {SECRET}')]
    with serving(*replies) as (url, requests):
        out, told = invoke(f"{line} --prompt {tmp_path}/p.txt --base-url {url}", **at)
    first, second = (body["messages"] for *_, body in requests)
    assert [message["content"] for message in first] == [(tmp_path / "p.txt").read_text(encoding="utf-8")]
    assert "Öl" in second[0]["content"] and told.startswith("asking tiny …\n")
    assert read_tree(tmp_path / "x.json").to_nested() == nested({"beast": ["cat", "dog", "owl", "rook", "saw", "Öl"]})
    assert {headers["authorization"] for _, headers, _ in requests} == {f"Bearer {SECRET}"}
    assert SECRET not in out + told + "".join(path.read_text(encoding="utf-8") for path in tmp_path.iterdir())


@pytest.mark.parametrize("debug", ["", " --debug"])
@pytest.mark.parametrize(
    "replies, words",
    [
        ([failure(401, f"Incorrect key: {SECRET}.")], "refuses the key & OPENAI_API_KEY"),
        ([Reply(f"No. {SECRET}")] * 3, "the reply cannot be used & No."),
        ([failure(404, "no such model")], "no model 'tiny'"),
    ],
)
def test_a_model_that_does_not_answer(key, failing, tmp_path, replies, words, debug):
    with serving(*replies) as (url, requests):
        line = f"build-tree {{n}} --method llm --llm-model tiny --base-url {url} --out {{new}}{debug}"
        code, out, err = failing(line)
        assert len(requests) == len(replies)
    assert (code, out) == (1, "") and SECRET not in err and not list(tmp_path.iterdir())
    assert all(word in err.splitlines()[-1] for word in words.split(" & "))
    assert bool(debug) == ("Traceback" in err)


@pytest.mark.parametrize("out", ["", "--out {root}/x.cvs", "--out {photos}"])
def test_a_model_is_not_asked_for_what_cannot_be_written(key, failing, tmp_path, out):
    with serving(Reply(json.dumps(ANSWER))) as (url, requests):
        code, _, err = failing(f"build-tree {{n}} --method llm --llm-model tiny --base-url {url} --prompt p.txt {out}")
    assert code == 2 and ("--out" in err or "written to" in err or "is there" in err)
    assert requests == []  # an answer costs money


def test_a_model_that_cannot_be_asked(key, failing, monkeypatch):
    line = "build-tree {n} --method llm --llm-model m --out {new}"
    code, _, err = failing(f"{line} --base-url nowhere")
    assert code == 2 and "'nowhere' is no server's address" in err
    monkeypatch.delenv("OPENAI_API_KEY")
    code, _, err = failing(line)
    assert code == 2 and "set the environment variable OPENAI_API_KEY" in err


# ---------------------------------------------------------------------- build-tree: --list, help, refusals


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
for command in ["build-tree", "tree", "tree show", "tree check", "tree compare", "tree convert"]:
    result = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0 and "Usage: " in result.output, command
    assert command == "tree" or f"hlnet {command} " in result.output.partition("Examples")[2], command
heavy = {"torch", "timm", "numpy", "scipy", "networkx", "nltk", "openai", "matplotlib"} & set(sys.modules)
sys.exit(f"imported: {sorted(heavy)}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


#: What each method does not look at; a value is added where the option takes one.
SHAPE, CLUSTER = "--nodes=2,3 --budget=20M", "--by=features --linkage=ward --model={full}"
NARROW, NETWORK = "--max-children=5 --groups={groups}", "--network=resnet18"
TRUNK = (
    "--backbone=resnet50 --split-point=1 --pretrained --trunk-weights={trunk} --backbone-arg=a=1 --img-size=64 "
    "--mean=0.5 --std=0.5 --grid=2"
)
WORDNET, LLM = "--wordnet={tiny} --download", "--prompt=p.txt --answer={answer} --llm-model=m --base-url=http://h/v1"
UNSEEN = {
    "{n}": f"{CLUSTER} {TRUNK} {WORDNET} {LLM} {NETWORK}",
    "{n} --method parallel": f"{SHAPE} {NARROW} {CLUSTER} {TRUNK} {WORDNET} {LLM} {NETWORK}",
    "{n} --method balanced": f"{NARROW} {CLUSTER} {TRUNK} {WORDNET} {LLM} {NETWORK}",
    "{n} --method random": f"{NARROW} {CLUSTER} {TRUNK} {WORDNET} {LLM} {NETWORK}",
    "{n} --method wordnet --wordnet {tiny}": f"{CLUSTER} {TRUNK} {LLM} {NETWORK}",
    "{n} --method llm --answer {answer}": f"{NARROW} {CLUSTER} {WORDNET} {NETWORK} --grid=2 --img-size=64 "
    "--backbone=resnet50 --llm-model=m --base-url=http://h/v1",
    f"{{photos}} --method cluster {SMALL}": f"--model={{full}} {WORDNET} {LLM} {NETWORK}",
    "{plain} --method cluster --by weights": f"--model={{full}} {TRUNK} {WORDNET} {LLM} {NETWORK}",
    "{photos} --method cluster --by confusions --model {full} --workers 0": f"{TRUNK} {WORDNET} {LLM} {NETWORK}",
}


@pytest.mark.parametrize("line, options", UNSEEN.items(), ids=UNSEEN.keys())
def test_options_that_are_not_looked_at_are_refused(failing, tmp_path, line, options):
    taken = []
    for option in options.split():
        code, out, err = failing(f"build-tree {line} {option} --out {{new}}")
        told = err.startswith("hlnet: ") and len(err.splitlines()) == 1 and option.partition("=")[0] in err
        if (code, out) != (2, "") or not told or list(tmp_path.iterdir()):
            taken.append(option)
        (tmp_path / "new.json").unlink(missing_ok=True)
    assert taken == []


# Exit code, command line, and what the message must name.
ERRORS = """
2 | build-tree | SOURCE & --out
2 | build-tree {n} | --out
2 | build-tree --out {new} | SOURCE
2 | build-tree {n} --method llm --answer {answer} | --out
2 | build-tree {n}x --out {new} | no file or folder & n.jsonx
2 | build-tree {image} --out {new} | .png & .json
2 | build-tree {full} --out {new} | best.safetensors
1 | build-tree {binary} --out {new} | binary.txt
2 | build-tree digits --out {new} | 'digits' has no nesting & --method
2 | build-tree digitz --method random --out {new} | 'digitz'
2 | build-tree preset:imagenet1 --out {new} | preset:imagenet1' & Did you mean 'imagenet1k'
2 | build-tree preset:Imagenett --method balanced --out {new} | Did you mean 'imagenette'
2 | build-tree preset: --out {new} | preset:' & imagenette
2 | build-tree '' --out {new} | ''
2 | build-tree {n} --out new.cvs | '.cvs'. Did you mean '.csv'
2 | build-tree {n} --out {photos} | photos & .tree.json
1 | build-tree {n} --out {image}/x.json | cannot write & file and no folder
2 | build-tree {n} --nodes 2,3 --levels 3 --out {new} | --nodes & leave --levels
2 | build-tree {n} --nodes 2,3 --budget 20M --out {new} | --nodes & --budget
2 | build-tree {n} --nodes 2,three --out {new} | --nodes '2,three' & whole numbers
2 | build-tree {n} --nodes 3,2 --out {new} | nodes 3,2 & not decrease
2 | build-tree {n} --nodes 0,2 --out {new} | nodes 0,2 & positive
2 | build-tree {n} --nodes 2,7 --out {new} | nodes 2,7 & 6 classes
2 | build-tree {n} --method balanced --nodes 3,2 --out {new} | nodes 3,2 & not decrease
2 | build-tree {n} --method random --nodes 7 --out {new} | nodes 7 & 6 classes
2 | build-tree {n} --method wordnet --wordnet {tiny} --nodes 7 --out {new} | nodes 7 & 6 classes
2 | build-tree {n} --method llm --answer {answer} --nodes 7 --out {new} | 7 & 6 classes
2 | build-tree {n} --method llm --answer {answer} --levels 1 --out {new} | levels
1 | build-tree {n} --levels 65 --out {new} | 65 & 64
2 | build-tree {n} --network test_resnet --budget 25 --out {new} | budget '25' & 25M & 4.2GMAC
2 | build-tree {n} --network test_resnet --budget lots --out {new} | budget 'lots'
2 | build-tree {n} --budget 9M --out {new} | budget of 9M & too small & 6 classes & 9.963M
2 | build-tree {n} --budget 20M --network resnt18 --out {new} | 'resnt18' & Did you mean 'resnet18'
2 | build-tree {n} --max-children 2 --out {new} | 2 children & 3 nodes at level 1
2 | build-tree {n} --groups {root}/none.yaml --out {new} | none.yaml
2 | build-tree {n} --groups {list} --out {new} | list.txt' must hold a mapping
2 | build-tree {list} --nodes 2 --groups {new}.yaml --out {new} | new.json.yaml
2 | build-tree preset:cifar10 --groups {groups} --out {new} | groups.yaml', 'home' & no class or node 'saw'
2 | build-tree {list} --method cluster SMALL --out {new} | no data folder & list.txt
2 | build-tree {photos} --method cluster SMALL --linkage wart --out {new} | 'wart' & ward
2 | build-tree {photos} --method cluster SMALL --nodes 7 --out {new} | nodes 7 & 6 classes
2 | build-tree {photos} --method cluster SMALL --std 0 --out {new} | std
2 | build-tree {photos} --method cluster SMALL --mean 1,2 --out {new} | --mean '1,2' & 3 numbers
2 | build-tree {photos} --method cluster SMALL --split-point 9 --out {new} | 9
2 | build-tree {photos} --method cluster --backbone test_resnt --out {new} | 'test_resnt' & Did you mean 'test_resnet'
2 | build-tree {photos} --method cluster SMALL --backbone-arg depth --out {new} | --backbone-arg 'depth' & name=value
2 | build-tree {photos} --method cluster --by confusions --out {new} | --by confusions & --model
2 | build-tree {photos} --method cluster --by confusions --model {root}/no.safetensors --out {new} | no.safetensors
1 | build-tree {photos} --method cluster --by confusions --model {trunk} --out {new} | trunk.safetensors & not one of
2 | build-tree {photos} --method cluster --by confusions --model {full} --linkage ward --workers 0 --out {new} | 'ward'
2 | build-tree {full} --method cluster --by weights --out {new} | best.safetensors' & confusions
2 | build-tree {list} --method cluster --by weights --out {new} | --by weights & --pretrained
1 | build-tree {one} --method cluster --by weights --backbone test_resnet --trunk-weights {rows} --out {new} | (6, 96)
2 | build-tree {gap} --method cluster --by weights --trunk-weights {rows} --out {new} | must be numbered from 0
2 | build-tree {n} --method wordnet --wordnet {photos} --out {new} | no WordNet dictionary & photos' & data.noun
2 | build-tree {n} --method wordnet --wordnet {new} --out {new} | no WordNet dictionary
2 | build-tree {n} --method llm --out {new} | --prompt & --answer & --llm-model
2 | build-tree {n} --method llm --base-url http://h/v1 --out {new} | --llm-model
2 | build-tree {n} --method llm --answer {new} --out {new} | --answer & new.json' cannot be read
2 | build-tree {n} --method llm --answer {binary} --out {new} | --answer & not a text file
1 | build-tree {n} --method llm --answer {refusal} --out {new} | cannot be used & I'm sorry, I cannot
1 | build-tree {n} --method llm --prompt {root} | cannot write & folder
2 | tree show {n}x | no file or folder
2 | tree show preset:cifar1 | Did you mean 'cifar10'
2 | tree show {n} --classes beest | 'beest' & Did you mean 'beast'
2 | tree show {n} --classes 6-9 | '6-9' & 0-5
2 | tree show {n} --svg new.png | --svg 'new.png' & .svg
2 | tree show {n} --png new.svg | --png 'new.svg' & .png
2 | tree show {n} --html new.svg | new.svg & .html
2 | tree show {n} --svg new.svg --html new.svg | new.svg & .html
1 | tree show {trunk} | trunk.safetensors & not one of hlnet's
2 | tree show {root}/no.safetensors | no model file
1 | tree show {binary} | binary.txt
2 | tree check {n} --network resnt18 | Did you mean 'resnet18'
2 | tree check {n}x | no file or folder
1 | tree compare {n} preset:imagewoof | share 0
1 | tree compare {one} {n} | share 1
2 | tree compare {n} {n}x | no file or folder
2 | tree convert {n} new.cvs | Did you mean '.csv'
2 | tree convert {n} new.json --to newik | 'newik' & Did you mean 'newick'
2 | tree convert {n} new.json --to newick | newick & .nwk
2 | tree convert {n} {photos} | photos' is there
1 | tree convert {n} new.json --levels 2 | 3 levels deep
2 | tree convert {n}x new.json | no file or folder
"""


@pytest.mark.parametrize("case", ERRORS.strip().splitlines(), ids=str)
def test_errors_are_one_line(failing, tmp_path, case):
    code, line, words = case.replace("SMALL", SMALL).split(" | ")
    found, out, err = failing(line)
    *hints, told = err.splitlines() or [""]
    assert told.startswith("hlnet: ") and all(word in told for word in words.split(" & ")), told
    assert (found, out) == (int(code), "") and "--debug" not in told and not any("hlnet:" in hint for hint in hints)
    assert not list(tmp_path.iterdir())  # nothing is written


# ---------------------------------------------------------------------- tree show


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
    assert lines_of(out) == ["trunk · nodes a level: 2, 4, 6", *shown.split(", ")] and err == ""


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


# ---------------------------------------------------------------------- tree check, compare


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


# ---------------------------------------------------------------------- tree convert, and trees in checkpoints


@pytest.mark.parametrize("to, suffix", [(name, suffix) for name, suffixes in FORMATS.items() for suffix in suffixes])
def test_convert_there_and_back(at, tmp_path, to, suffix):
    ids = {"thing": "n1", "beast/mammal/cat": "n2"}
    write_tree(read_tree(at["n"]).with_ids(ids), tmp_path / "in.tree.json")
    tree, there = read_tree(tmp_path / "in.tree.json"), tmp_path / "new" / f"x{suffix}"
    out, _ = invoke(f"tree convert {tmp_path}/in.tree.json {there} --to {to}")
    assert out == f"6 classes in 3 level(s), written to {there}\n"
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
