"""``hlnet make-expert``: its files and figures against the library's own, and every refusal as one line."""

import json
import os
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.hub_server import hub_instead
from helpers.naive import randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import hlnet
from hlnet.cli import main as cli
from hlnet.cli.shared import expert_tables, output
from hlnet.data.images import open_image
from hlnet.data.tree_data import eval_transform
from hlnet.expert import write
from hlnet.expert.candidates import nodes_of_level
from hlnet.expert.cut import cut_expert
from hlnet.model.cost import profile
from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
from hlnet.model.plain import PlainConfig, PlainNet
from hlnet.model.transform import InputTransform
from hlnet.store import remote_file
from hlnet.store.checkpoint import load_checkpoint, read_header, save_checkpoint
from hlnet.tree.class_tree import ClassTree

NESTED = {
    "animal": {"cat": {"tabby": 281, "tiger": 282, "lynx": 287}, "dog": {"beagle": 162, "boxer": 242}},
    "tool-saw": {"saw": 491},
    "wheel": 7,
}
TREE = ClassTree.from_nested(NESTED)  # animal 0-4 with cat 0-2 and dog 3-4, tool-saw 5, wheel 6
CONFIG = NetworkConfig(backbone="test_resnet", split_point=-3, widths=(8, 6, 4), strides=(2, 1, 1))


def save(path, config=CONFIG):
    torch.manual_seed(0)
    net = HierarchicalNet(config, TREE)
    randomise(net.head)
    net.transform = InputTransform(input_size=(3, 32, 32), mean=(0.1, 0.2, 0.3))
    save_checkpoint(net.eval(), path)
    return net


# ---------------------------------------------------------------------- names of files


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("aAbß/\\:.-*é1é \0\n日", max_size=200) | st.text(), max_size=8, unique=True))
def test_file_names_are_safe_and_unique(names):
    found = write.file_names(names)
    assert len(found) == len(names) == len({name.casefold() for name in found})
    for name in found:
        stem = name.removesuffix(".safetensors")
        assert stem + ".safetensors" == name and len(name.encode()) < 200
        assert stem.isprintable() and stem == stem.strip(" .") and not set('/\\:*?"<>|') & set(stem)
    assert write.file_names(names) == found


def test_file_names_are_recognised():
    names = ["animal/big cat", "animal-big cat", "Animal-Big Cat", "..", "été", "CON", "tench, Tinca tinca", "été"]
    assert [name.removesuffix(".safetensors") for name in write.file_names(names)] == [
        *("animal-big cat", "animal-big cat-2", "Animal-Big Cat-3", "expert", "été"),
        *("CON-", "tench, Tinca tinca", "été-2"),
    ]


# ---------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    """Paths of a network, an expert of it, a plain network, two images and a file of selections."""
    root = tmp_path_factory.mktemp("experts")
    net = save(root / "full.safetensors")
    save_checkpoint(cut_expert(net, "animal"), root / "animals.safetensors")
    save_checkpoint(PlainNet(PlainConfig(backbone="test_resnet"), TREE), root / "plain.safetensors")
    (root / "images" / "deep").mkdir(parents=True)
    (root / "empty").mkdir()
    for name, seed in (("a.png", 0), ("deep/b.jpg", 1)):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 36, 3), np.uint8)
        Image.fromarray(pixels).save(root / "images" / name)
    (root / "images" / "note.txt").write_text("no image")
    (root / "groups.yaml").write_text("Pets/home: animal -lynx\nwheels: [wheel]\n'pets-home': 162-242\n")
    names = ("images", "empty", "groups.yaml", *(f"{name}.safetensors" for name in ("full", "animals", "plain")))
    return {"root": str(root)} | {name.split(".")[0]: str(root / name) for name in names}


@pytest.fixture
def run(at, tmp_path, monkeypatch):
    """Run ``make-expert`` on one line in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    for console in (output.stdout, output.stderr):
        monkeypatch.setattr(console, "_width", 160)

    def invoke(line):
        words = [part.format(**at) for part in shlex.split(line)]
        result = CliRunner().invoke(cli.app, ["make-expert", *words])
        code = result.exit_code
        if isinstance(result.exception, hlnet.HlnetError):
            code = result.exception.exit_code
            return code, result.stdout, f"{result.stderr}{result.exception}"
        assert code == 0 or isinstance(result.exception, SystemExit), result.exception
        return code, result.stdout, result.stderr

    return invoke


def told(run, line):
    code, out, err = run(f"{line} --json")
    assert code == 0, err
    return json.loads(out)


def assert_cut(path, source, classes):
    """The file is the library's cut, weights and all that it says of itself."""
    found, wanted = load_checkpoint(path), cut_expert(source, classes)
    assert (found.tree, found.config, found.transform) == (wanted.tree, wanted.config, wanted.transform)
    assert found.provenance == wanted.provenance
    ours, theirs = found.state_dict(), wanted.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    "selection, kept",
    [
        ("'animal -animal/dog'", ["tabby", "tiger", "lynx"]),
        ("-animal", ["saw", "wheel"]),
        ("animal,-281-284", ["lynx", "beagle", "boxer"]),
    ],
)
def test_minus(run, at, tmp_path, selection, kept):
    found = told(run, f"{{full}} --classes {selection} --out e.safetensors --verify")
    assert found["classes"] == kept and found["max_logit_difference"] < 1e-9 and found["out"] == "e.safetensors"
    assert_cut(tmp_path / "e.safetensors", at["full"], kept)


def test_dry_run_shows_what_stays_and_writes_nothing(run, at, tmp_path):
    line = "{full} --classes 'animal -animal/dog' --dry-run"
    for out in ("", " --out e.safetensors", " --out no/e.safetensors"):
        code, text, err = run(line + out)
        assert code == 0 and err == "nothing was written: --dry-run\n" and not os.listdir(tmp_path)
    marked = [row for row in text.splitlines() if "●" in row]
    assert [row.split("─ ")[1].split(" ●")[0] for row in marked] == ["animal", "cat", "tabby", "tiger", "lynx"]
    for name in ("dog", "beagle", "tool-saw", "wheel", "expert"):
        assert name in text
    found = told(run, line)
    net = load_checkpoint(at["full"])
    wanted = profile(net.config, net.tree, net.transform, "cat").model_dump(mode="json")
    assert found == {"classes": ["tabby", "tiger", "lynx"], **wanted} and not os.listdir(tmp_path)


def test_dry_run_of_an_expert_counts_from_the_full_network(run, at):
    found = told(run, "{animals} --classes dog --dry-run")
    assert found["full"]["classes"] == 7 and found["expert"]["classes"] == 2
    assert found == told(run, "{full} --classes dog --dry-run")


def test_partly_absent_range_is_told(run):
    code, _, err = run("{full} --classes 280-284 --out e.safetensors")
    assert code == 0 and err == "range '280-284': the tree lacks 3 of these 5 indices\n"


def limits(at, one):
    """What an expert of these classes costs, in each measure, as ``--under`` reads it: exactly."""
    net = load_checkpoint(at["full"])
    cost = profile(net.config, TREE, net.transform, one).expert
    return {"params": f"{cost.params / 1e6:.6f}M", "bytes": f"{cost.bytes / 1e6:.6f}MB"}


@pytest.mark.parametrize("measure", ["params", "bytes"])
def test_under_tells_what_fits(run, at, tmp_path, measure):
    budget = limits(at, "cat")[measure]
    found = told(run, f"{{full}} --under {budget}")
    assert found["classes"] == list(TREE.classes) and "full" not in found
    told_of = found["budget"]
    assert (told_of["measure"], told_of["fits"]) == (measure, False) and told_of["spare"] < 0
    assert [(row["node"], row["classes"]) for row in told_of["nodes"]] == [
        ("animal/cat", 3), ("animal/dog", 2), ("tool-saw", 1)
    ]  # fmt: skip
    assert told_of["nodes"][0][measure] == told_of["limit"] and told_of["nodes"][2][measure] == told_of["one_class"]
    within = told(run, f"{{full}} --classes dog --under {budget}")["budget"]
    assert within["fits"] and within["spare"] == within["limit"] - within["nodes"][0][measure] > 0
    assert [row["node"] for row in within["nodes"]] == ["animal/dog"]
    code, text, err = run(f"{{full}} --classes animal --under {budget}")
    assert (code, err) == (0, "") and "'animal' takes" in text and "over the budget of" in text
    assert "animal/cat" in text and "animal/dog" in text and "tool-saw" not in text and "one class alone takes" in text
    code, text, _ = run(f"{{full}} --classes wheel,boxer,tabby --under {budget}")
    assert code == 0 and "there is no inner node of these classes; one class alone takes" in text
    assert not os.listdir(tmp_path)


def test_under_the_trunk_tells_the_floor(run):
    for line in ("{full} --under 0.001M", "{full} --under 0.001M --each 1", "{full} --under 0.001M --classes dog"):
        code, text, _ = run(line)
        assert code == 0 and "the trunk alone takes" in text and "floor" in text
    found = told(run, "{full} --under 0.001M --each 1")
    assert found["budget"]["trunk"] > found["budget"]["limit"] and not any(one["fits"] for one in found["experts"])


def test_under_writes_only_what_fits(run, at, tmp_path):
    budget = limits(at, "cat")["params"]
    (tmp_path / "e.safetensors").write_text("older")
    code, text, err = run(f"{{full}} --classes animal --under {budget} --out e.safetensors")
    assert (code, text) == (1, "") and "over the budget" in err and "'animal/cat' (3 classes" in err and "\n" not in err
    code, text, err = run(f"{{full}} --each 2 --under {budget} --out many")
    assert code == 0 and sorted(os.listdir("many")) == [
        f"{n}.safetensors" for n in ("animal-cat", "animal-dog", "tool-saw-saw", "wheel")
    ]
    code, text, err = run(f"{{full}} --each 1 --under {budget} --out more")
    assert code == 0 and "and not written: 'animal'" in err and "animal" not in text
    assert sorted(os.listdir("more")) == ["tool-saw.safetensors", "wheel.safetensors"]
    code, text, err = run("{full} --each 1 --under 0.001M --out none")
    assert (code, text) == (1, "") and "\n" not in err
    assert not (tmp_path / "none").exists() and (tmp_path / "e.safetensors").read_text() == "older"
    code, text, _ = run(f"{{full}} --classes cat --under {budget} --out e.safetensors")
    assert code == 0 and "'cat' takes" in text and "0M to spare" in text and "Inner nodes" not in text
    assert_cut(tmp_path / "e.safetensors", at["full"], "cat")


def test_many_nodes_are_cut_short_but_for_json(run, monkeypatch):
    monkeypatch.setattr(expert_tables, "ROWS", 2)
    _, text, err = run("{full} --under 1GB")
    assert "│ animal/dog" not in text and "… and 2 more nodes: --json has them all" in err
    assert len(told(run, "{full} --under 1GB")["budget"]["nodes"]) == 4


@pytest.mark.parametrize("level", [1, 2, 3])
def test_each_node_of_a_level(run, at, tmp_path, level):
    nodes = nodes_of_level(TREE, level)
    found = told(run, f"{{full}} --each {level} --out many --verify")
    assert [one["name"] for one in found["experts"]] == list(nodes) and len(os.listdir("many")) == len(nodes)
    for one in found["experts"]:
        assert one["classes"] == [TREE.classes[i] for i in nodes[one["name"]]] and one["max_logit_difference"] < 1e-9
        assert_cut(tmp_path / one["out"], at["full"], one["classes"])
        header = read_header(tmp_path / one["out"])
        cost = profile(header.config, header.tree, header.transform, parent_counts=TREE.counts).expert
        assert all(one[name] == getattr(cost, name) for name in ("params", "gmacs", "bytes"))
    code, text, _ = run(f"{{full}} --each {level} --out many")
    rows = [row.split("│") for row in text.splitlines() if row.startswith("│")]
    assert code == 0 and [row[1].strip() for row in rows] == list(nodes)
    assert [f"{row[-2].strip()}.safetensors" for row in rows] == [
        os.path.basename(one["out"]) for one in found["experts"]
    ]
    assert f"{len(nodes)} experts, " in text and "written to many" in text


def test_each_node_within_a_selection(run, tmp_path):
    found = told(run, "{full} --each 2 --classes '-lynx -dog' --dry-run")
    named = {one["name"]: one["classes"] for one in found["experts"]}
    assert named == {"animal/cat": ["tabby", "tiger"], "tool-saw/saw": ["saw"], "wheel": ["wheel"]}
    assert not os.listdir(tmp_path) and "out" not in found["experts"][0]


def test_named_selections(run, at, tmp_path):
    found = told(run, "{full} --selections {groups} --out new/many")
    wanted = {
        "Pets/home": ("Pets-home", ["tabby", "tiger", "beagle", "boxer"]),
        "wheels": ("wheels", ["wheel"]),
        "pets-home": ("pets-home-2", ["beagle", "boxer"]),
    }
    assert {one["name"]: (os.path.basename(one["out"]), one["classes"]) for one in found["experts"]} == {
        name: (f"{file}.safetensors", classes) for name, (file, classes) in wanted.items()
    }
    for one in found["experts"]:
        assert_cut(tmp_path / one["out"], at["full"], one["classes"])


def test_no_half_written_file(run, at, tmp_path, monkeypatch):
    """The second of three fails when it is verified: the first is there, the second's older file is as it was."""
    (tmp_path / "many").mkdir()
    (tmp_path / "many/wheels.safetensors").write_text("older")
    cut = write.cut_checkpoint

    def fails_for_wheels(source, classes, out):
        cut(source, classes, out)
        if 7 in classes:
            net = load_checkpoint(out)
            next(net.parameters()).data += 1
            save_checkpoint(net, out)

    monkeypatch.setattr(write, "cut_checkpoint", fails_for_wheels)
    code, text, err = run("{full} --selections {groups} --out many --verify")
    assert (code, text) == (1, "") and "is not bitwise the full network's: it is not a cut of it" in err
    *_, told, _ = err.splitlines()
    assert told.startswith(f"'{os.path.join('many', 'wheels.safetensors')}' was not written; 1 of 3 experts")
    assert told.endswith(f": {os.path.join('many', 'Pets-home.safetensors')}")
    assert sorted(os.listdir("many")) == ["Pets-home.safetensors", "wheels.safetensors"]
    assert (tmp_path / "many/wheels.safetensors").read_text() == "older"


def test_verified_on_images(run, at, tmp_path, monkeypatch):
    seen, logits = [], hlnet.expert.verify.float64_logits

    def recording(net, batches):
        batches = list(batches)
        seen.append((len(net.tree.classes), batches))
        return logits(net, batches)

    monkeypatch.setattr(hlnet.expert.verify, "float64_logits", recording)
    monkeypatch.setattr(write, "BATCH", 2)
    code, text, _ = run("{full} --classes cat --out e.safetensors --verify --images {images} --images {images}/a.png")
    told_so = "verified: weights bitwise the full network's; logits equal on 3 images (largest difference"
    assert code == 0 and told_so in text
    files = [f"{at['images']}/{name}" for name in ("a.png", "deep/b.jpg", "a.png")]
    prepare = eval_transform(load_checkpoint(at["full"]).transform)
    assert [classes for classes, _ in seen] == [7, 3]
    for _, batches in seen:
        assert [len(batch) for batch in batches] == [2, 1]
        assert torch.equal(torch.cat(batches), torch.stack([prepare(open_image(file)) for file in files]))
    found = told(run, "{full} --classes cat --out e.safetensors --verify --images {images}")
    assert found["images"] == 2 and found["weights_bitwise"] is True and 0 <= found["max_logit_difference"] < 1e-9
    seen.clear()
    found = told(run, "{full} --each 2 --out many --verify --images {images}")
    assert [classes for classes, _ in seen] == [7, 3, 2, 1, 1]  # the full network runs once for all
    assert all(one["images"] == 2 and one["weights_bitwise"] for one in found["experts"])


def test_model_is_located_once(run, at, monkeypatch):
    asked, locate = [], remote_file.locate_or_pin
    monkeypatch.setattr(remote_file, "locate_or_pin", lambda name: (asked.append(name), locate(name))[1])
    for line in ("--each 2 --out many --verify", "--classes dog --out e.safetensors", "--under 1M"):
        told(run, f"{{full}} {line}")
    assert [name for name in asked if isinstance(name, str)] == [at["full"]] * 3
    assert {name for name in asked if not isinstance(name, str)} == {Path(at["full"])}  # what was found


@pytest.mark.parametrize(
    "line, least, most",
    [
        ("--classes wheel --dry-run", 0, 0.1),
        ("--each 1 --under 1M", 0, 0.1),
        ("--classes wheel --out e.safetensors", 0.1, 0.6),
        ("--each 1 --out many", 1, 1.05),
        ("--classes wheel --out e.safetensors --verify", 1, 1.05),
    ],
)
def test_model_on_the_hub_is_fetched_as_far_as_needed(run, tmp_path, monkeypatch, line, least, most):
    """To look, the header; for one expert, its rows; to verify or to cut several, the whole file, once."""
    save(tmp_path / "wide.safetensors", config=CONFIG.model_copy(update={"widths": (128, 96, 64)}))
    data = (tmp_path / "wide.safetensors").read_bytes()
    with hub_instead(monkeypatch, tmp_path) as hub:
        hub.put("me/wide", {"model.safetensors": data})
        found = told(run, f"hf-hub:me/wide {line}")
    assert found.get("fetched_bytes") == (hub.sent if "--out" in line else None)
    assert least * len(data) <= hub.sent <= most * len(data)
    assert sum("/main/" in path for _, path in hub.asked) == 1  # then its commit
    for path in tmp_path.glob("e.safetensors"):
        assert_cut(path, tmp_path / "wide.safetensors", "wheel")


@pytest.mark.parametrize("chosen", ["wheel", "animal", "*"])
def test_small_file_on_the_hub_is_never_fetched_twice(run, at, tmp_path, monkeypatch, chosen):
    with open(at["full"], "rb") as file, hub_instead(monkeypatch, tmp_path) as hub:
        data = file.read()
        hub.put("me/small", {"model.safetensors": data})
        found = told(run, f"hf-hub:me/small --classes {chosen} --out e.safetensors")
    assert found["fetched_bytes"] == hub.sent <= len(data) + (remote_file.FIRST if len(hub.parts) == 1 else 0)
    assert_cut(tmp_path / "e.safetensors", at["full"], chosen)


# Exit code, options, and what the message must name.
REFUSED = """
2 | {full} --out e.safetensors | --classes is needed & --each & --selections
2 | {full} | --classes is needed
2 | {full} --dry-run | --classes is needed
2 | {full} --classes cat --dry-run --verify | --verify & --dry-run
2 | {full} --under 1M --out e.safetensors | --classes is needed
2 | {full} --classes cat | --out is needed & --dry-run
2 | {full} --each 1 | --out is needed
2 | {full} --classes cat --out e.txt | --out 'e.txt' & .safetensors
2 | {full} --each 1 --out e.safetensors | --out 'e.safetensors' & folder
2 | {full} --each 1 --selections {groups} --out many | --each and --selections
2 | {full} --selections {groups} --classes cat --out many | --selections & leave --classes out
2 | {full} --selections none.yaml --out many | 'none.yaml'
2 | {full} --each 4 --out many | no level 4 & 1, nearest to the trunk, to 3
2 | {full} --each 0 --out many | --each
2 | {full} --classes cat --under 15 | '15' & 15M & 4.2GMAC & 40MB
2 | {full} --classes 'cat -dog' --dry-run | '-dog' takes nothing away & leave it out
2 | {full} --classes 'cat -animal' --out e.safetensors | empty & take away less
2 | {full} --classes cat --out e.safetensors --images {images} | --verify
2 | {full} --classes cat --out e.safetensors --verify --images {empty} | empty' is a folder without images
1 | {full} --classes cat --out e.safetensors --verify --images {images}/note.txt | note.txt
2 | {full} --classes cat --out e.safetensors --verify --images {images}/no.png | no.png
2 | {full} --each 1 --out many --verify --images {images} --images {images}/no.png | no.png
2 | {full} --selections {groups} --out many --verify --images {images} --images {empty} | --images & empty'
2 | {full} --classes cat --out e.safetensors --max-false-positive 0.01 | --max-false-positive & --calibrate
2 | {full} --classes cat --dry-run --score energy --split val | --split, --score: only --calibrate
2 | {full} --classes cat --out e.safetensors --batch-size 8 --workers 0 | --batch-size, --workers & --calibrate
2 | {full} --classes cat --out e.safetensors --verify --device cpu | --device & --calibrate
2 | {full} --classes cat --out e.safetensors --data-root {images} | --data-root & --calibrate
2 | none --classes cat --out e.safetensors --calibrate none --max-false-positive 0 | --max-false-positive 0: expected
2 | none --classes cat --out e.safetensors --calibrate none --max-false-positive 1 | --max-false-positive 1: expected
2 | none --classes cat --out e.safetensors --calibrate none --max-false-positive nan | --max-false-positive nan
2 | {full} --classes cat --out {root}/images/../full.safetensors | is the model itself
2 | {plain} --classes cat --dry-run | is a plain network & no branches
2 | {plain} --under 1M | is a plain network
2 | {root}/none.safetensors --classes cat --dry-run | none.safetensors
1 | {full} --each 1 --out {groups} | groups.yaml' & is a file
"""


@pytest.mark.parametrize("case", REFUSED.strip().splitlines())
def test_refused_on_one_line(run, at, tmp_path, case):
    code, line, words = case.split(" | ")
    found, text, err = run(line)
    told = err.splitlines()[-1] if "Usage:" not in err else err
    assert (found, text) == (int(code), "") and all(word in told for word in words.split(" & ")), err
    assert not os.listdir(tmp_path)


def test_folder_of_experts_never_replaces_the_model(run, at, tmp_path):
    save(tmp_path / "wheel.safetensors")
    before = (tmp_path / "wheel.safetensors").read_bytes()
    code, _, err = run("wheel.safetensors --each 1 --out .")
    assert code == 2 and "'wheel.safetensors' is the model itself" in err
    assert os.listdir(tmp_path) == ["wheel.safetensors"] and (tmp_path / "wheel.safetensors").read_bytes() == before
