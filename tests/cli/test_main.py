"""The command line: real runs on tiny images, values against the library's, and every error as one line."""

import csv
import json
import os
from itertools import product

import numpy as np
import pytest
import torch
from helpers import command_line
from helpers.command_line import as_json, invoke
from PIL import Image
from safetensors.torch import save_file

import hlnet
from hlnet.data.images import open_image
from hlnet.model.cost import Latency
from hlnet.model.presets import network_config
from hlnet.model.trunk import create_backbone

failing = command_line.failing

CLASSES = ("cat", "dog", "Öl", "owl", "rook", "saw")
SMALL = "--backbone test_resnet --img-size 32 --epochs 1 --aa none --hflip 0 --batch-size 6 --workers 0 --device cpu"


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    """Paths of a data set, its tree, a trained full network, a plain one, an expert, and damaged files."""
    root = tmp_path_factory.mktemp("cli")
    pixels = np.random.default_rng(0).integers(0, 256, (9, 36, 40, 3), np.uint8)
    for name, i in product(CLASSES, range(9)):
        folder = root / "photos" / ("train" if i < 5 else "val") / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i] // (1 + CLASSES.index(name))).save(folder / f"{i}.png")
    nested = {"beast": {"mammal": ["cat", "dog"], "bird": ["owl", "rook"]}, "thing": ["saw", "Öl"]}
    (root / "n.json").write_text(json.dumps(nested))
    (root / "note.txt").write_text("cat\ncat\n")
    torch.manual_seed(1)
    save_file(create_backbone("test_resnet").state_dict(), root / "trunk.safetensors")
    at = {"root": str(root)} | {path.name.split(".")[0]: str(path) for path in root.iterdir()}
    at |= {name: str(root / f"{name}.safetensors") for name in ("expert", "cut")}
    at |= {"tree": str(root / "n.tree.json"), "image": str(root / "photos/val/cat/5.png")}
    invoke("build-tree {n} --out {tree}", **at)
    shape = "--widths 8,4,4 --trunk-weights {trunk}"
    at["run trained"] = as_json(f"train {{photos}} --tree {{tree}} --out {{root}}/run {shape} {SMALL}", **at)
    at["plain trained"] = as_json(f"train {{photos}} --tree {{tree}} --out {{root}}/plain --plain {SMALL}", **at)
    at |= {"full": f"{root}/run/best.safetensors", "plain": f"{root}/plain/best.safetensors"}
    at["cutting"] = as_json("make-expert {full} --classes bird,cat --out {expert} --verify", **at)
    whole = (root / "run/best.safetensors").read_bytes()
    (root / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    return at


@pytest.mark.parametrize(
    "line, counts",
    [
        ("{n}", (2, 4, 6)),
        ("{n} --levels 4", (2, 4, 6, 6)),
        ("{photos} --method parallel", (6, 6, 6)),
        ("{tree} --method parallel --levels 2", (6, 6)),
        ("digits --method parallel --levels 1", (10,)),
        ("{photos} --method cluster --nodes 2,3 --trunk-weights {trunk} --backbone test_resnet --workers 0", (2, 3, 6)),
    ],
)
def test_build_tree(at, tmp_path, line, counts):
    out = tmp_path / "new" / "x.tree.json"
    found = as_json(f"build-tree {line} --out {out}", **at)
    tree = hlnet.read_tree(out)
    assert tree.counts == counts
    assert found == {"out": str(out), "nodes": list(counts), "classes": list(tree.classes), "notes": []}
    assert set(tree.classes) == (set(CLASSES) if len(tree.classes) == 6 else set(map(str, range(10))))


@pytest.mark.parametrize("folder, kind", [("run", "HierarchicalNet"), ("plain", "PlainNet")])
def test_train_leaves_a_run(at, folder, kind):
    out, told = f"{at['root']}/{folder}", at[f"{folder} trained"]
    files = "best.safetensors classes.tree.json config.toml curves.png last.ckpt last.safetensors metrics.csv model"
    assert sorted(os.listdir(out)) == files.split()
    with open(f"{out}/metrics.csv") as file:
        (row,) = csv.DictReader(file)
    assert told["out"] == out and told["best_epoch"] == 1 and float(row["val_top1"]) == told["val_top1"]
    net = hlnet.load_checkpoint(f"{out}/best.safetensors")
    assert type(net).__name__ == kind and net.tree == hlnet.read_tree(at["tree"])
    found = as_json(f"eval {out}/best.safetensors --data {{photos}} --workers 0", **at)
    assert found["images"] == 24 and found["neutral"]["top1"] == pytest.approx(told["val_top1"])


def test_frozen_trunk_on_cached_features_keeps_the_given_weights(at, tmp_path):
    line = f"train {{photos}} --tree {{tree}} --out {tmp_path} --widths 8,4,4 --frozen-trunk --cache-views 2 {SMALL}"
    _, told = invoke(f"{line} --trunk-weights {{trunk}}", **at)
    assert "30 training images and 24 validation images of 6 classes" in told and "epoch   1/1" in told
    net, given = hlnet.load_checkpoint(tmp_path / "best.safetensors"), create_backbone("test_resnet")
    hlnet.model.trunk.load_trunk_weights(given, at["trunk"])
    expected = given.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in net.trunk_module.state_dict().items())


@pytest.mark.parametrize("options", ["", "--split train", "--classes bird,0"])
@pytest.mark.parametrize("kind, signal", [("plain", None), ("full", None), ("full", 1.0), ("full", 2.5)])
def test_eval_gives_the_numbers_of_the_library(at, options, kind, signal):
    cue = "" if signal is None else f" --attention-signal {signal}"
    found = as_json(f"eval {{{kind}}} --data {{photos}} --workers 0 {options}{cue}", **at)
    net = hlnet.load_checkpoint(at[kind])
    split = "train" if "train" in options else "val"
    images = hlnet.TreeData(hlnet.load_data(at["photos"], split), net.tree, hlnet.eval_transform(net.transform))
    classes = "bird,0" if "bird" in options else None
    policy = signal and hlnet.CuePolicy(strength=signal)
    told = hlnet.evaluate(net, images, classes, policy=policy)
    assert found == told.model_dump(mode="json")
    assert signal != 1.0 or found["cued"]["accuracy"] == found["cued"]["wrong"] == found["neutral"]


def test_expert_equals_the_full_network(at):
    assert at["cutting"]["max_logit_difference"] < 1e-9 and at["cutting"]["classes"] == ["cat", "owl", "rook"]
    lines = ("eval {full} --data {photos} --workers 0 --classes bird,cat", "eval {expert} --data {photos} --workers 0")
    restricted, own = (as_json(f"{line} --attention-signal 1.8", **at) for line in lines)
    assert own == restricted and own["images"] == own["left_out"] == 12 and own["classes"] == 3
    full, expert = hlnet.load_checkpoint(at["full"]), hlnet.load_checkpoint(at["expert"])
    kept = [full.tree.classes.index(name) for name in expert.tree.classes]
    images = torch.randn(2, *full.transform.input_size)
    torch.testing.assert_close(expert(images), full(images)[:, kept])


@pytest.mark.parametrize(
    "line, config, tree, classes",
    [
        ("test_resnet --nodes 2,3,6 --img-size 32 --classes 0-1", "test_resnet", (2, 3, 6), "0-1"),
        ("phl_resnet50 --nodes 2,4 --img-size 64 --classes 0", "phl_resnet50", (4, 4, 4), "0"),
        ("{full} --classes bird,cat", None, None, "bird,cat"),
        ("{full}", None, None, None),
    ],
)
def test_profile_gives_the_numbers_of_the_library(at, line, config, tree, classes):
    found = as_json(f"profile {line} --no-latency", **at)
    net = hlnet.load_checkpoint(at["full"])
    given = (net.config, net.tree, net.transform)
    if config:
        size = int(line.split("--img-size ")[1].split()[0])
        levels = hlnet.ClassTree.balanced(tree)
        given = (network_config(config, levels.num_levels), levels, net.transform.adjusted(size))
    wanted = hlnet.profile(*given, classes).model_dump(mode="json")
    assert found == wanted and (found["expert"] is None) == (classes is None)
    assert all(isinstance(found[name][what], int) for name in ("plain", "full") for what in ("params", "bytes"))


def test_profile_of_an_expert_file_names_its_parent(at):
    by_file = as_json("profile {expert} --no-latency", **at)
    assert by_file == as_json("profile {full} --no-latency --classes bird,cat", **at)
    assert by_file == {name: at["cutting"][name] for name in by_file}


def test_profile_times_each_combination(at, monkeypatch):
    def measure(models, size, batches, threads, **_):
        time = {"median_ms": 2, "low_ms": 1, "high_ms": 3}
        runs = [Latency(batch_size=b, threads=t, **time) for b in batches for t in threads]
        return dict.fromkeys(models, runs)

    monkeypatch.setattr("hlnet.model.latency.measure_latency", measure)
    found = as_json("profile {full} --classes 0 --batch-size 1,2 --threads 1,3", **at)
    timed = [found[name]["latency"] for name in ("plain", "full", "expert")]
    runs = [[(run["batch_size"], run["threads"]) for run in latency] for latency in timed]
    assert runs == 3 * [[(1, 1), (1, 3), (2, 1), (2, 3)]]
    assert "ms, batch 2, 3 threads" in invoke("profile {full} --batch-size 2 --threads 3", **at)[0]


@pytest.mark.parametrize("kind", ["full", "plain", "expert"])
def test_predict_labels_files_and_folders(at, kind):
    out, _ = invoke(f"predict {{{kind}}} {{image}} {{photos}}/val --top 2 --json --device cpu", **at)
    found = [json.loads(line) for line in out.splitlines()]
    assert len(found) == 25 and found[0]["image"] == at["image"] and found[0]["labels"] == found[1]["labels"]
    net = hlnet.load_checkpoint(at[kind])
    image = hlnet.eval_transform(net.transform)(open_image(at["image"]))
    with torch.no_grad():
        shares, places = net(image[None]).softmax(1)[0].topk(2)
    assert [label["path"] for label in found[0]["labels"]] == [net.tree.leaves[i].path for i in places]
    assert [label["probability"] for label in found[0]["labels"]] == pytest.approx(shares.tolist(), rel=1e-4)


def test_predict_goes_on_after_a_broken_file(at, failing):
    code, out, err = failing("predict {full} {note} {image} --json --top 1")
    broken, whole = map(json.loads, out.splitlines())
    assert code == 1 and err.splitlines()[-1] == "hlnet: 1 of 2 images could not be read"
    assert "error" in broken and at["note"] in broken["error"] and whole["labels"] and "error" not in whole


# Exit code, command line, and what the message must name.
ERRORS = """
2 | make-expert {full} --classes cat,owll --out {new}.safetensors | no class or node 'owll'. & Did you mean 'owl'
2 | make-expert {full} --classes cat --out {root}/run/../run/best.safetensors | the expert's file & is the model itself
2 | make-expert {plain} --classes cat --out {new}.safetensors | is a plain network & no branches & eval --classes
2 | merge {plain} {full} --out {new}.safetensors | is a plain network & no branches & eval --classes
2 | eval {root}/runn --data {photos} | there is no model file & expected a .safetensors file & Did you mean 'run' in
2 | tree show imagenette | there is no class tree 'imagenette' & Did you mean 'preset:imagenette'
2 | export {full} --out {root}/x.tflite | x.tflite & .onnx (onnx) & .pt2 (torch-export)
2 | train {photos} --tree {tree} --out {new} SMALL --plain --cue-aware | leave cue_aware or plain out
2 | train {photos} --tree {tree} --out {new} SMALL --loss hierarchcal | --loss & Did you mean 'hierarchical'
2 | build-tree {photos} --method clster --out {new}.json | --method 'clster': expected one of & Did you mean 'cluster'
1 | make-expert {cut} --classes cat --out {new}.safetensors | cut.safetensors' is not an intact safetensors file
2 | eval {full} --data {photos} --workers 0 --attention-signal -1 | signal -1 & between 0
2 | eval {plain} --data {photos} --workers 0 --attention-signal 2 | plain network & bias
2 | eval {full} --data '' | ''
2 | eval {full} --data {photos} --device warp | --device 'warp' cannot be used here
2 | eval {full} --data {photos} --device meta | --device 'meta' cannot be used here
2 | predict {full} '' | ''
2 | profile n3hl_resnet50 --nodes 26,6,100 | 26, 6, 100 & not decrease
2 | profile n3hl_resnet50 --nodes 6,26 | 2 level & 3
2 | profile test_vit --nodes 2,3 --img-size 33 --no-latency | 33
2 | build-tree {n} --method parallel --nodes 2,3 --out {new} | --nodes & --method balanced, cluster
2 | build-tree {photos} --out {new} --method cluster --by confusions | --by confusions & --model
2 | build-tree {photos} --out {new} --method cluster --nodes 2 --backbone test_resnet --std 0 --workers 0 | std
2 | train {photos} --tree {tree} --out {root}/run | run' already holds a run & --overwrite
1 | train digits --tree {tree} --out {new} SMALL | Only in the data: 0, 1 & Only in the tree, without an image here: cat
2 | train {photos} --tree '' --out {new} SMALL | ''
2 | train {photos} --tree {tree} --out {new} SMALL --widths 8,4 | widths & 3 levels
2 | train {photos} --tree {tree} --out {new} SMALL --widths 8,0,4 | widths & greater than 0
2 | train {photos} --tree {tree} --out {new} SMALL --backbone test_resnt | 'test_resnt' & Did you mean 'test_resnet'
2 | train {photos} --tree {tree} --out {new} SMALL --scale 2,1 | --scale
2 | train {photos} --tree {tree} --out {new} SMALL --device meta | --device 'meta' cannot be used here
2 | train {photos} --tree {tree} --out {new} SMALL --cache-views 2 | frozen_trunk
2 | eval {full} --data {photos} --wrong-cues 1.5 | --wrong-cues '1.5' & expected a number less than or equal to 1
2 | eval {full} --data {photos} --cue-mode bayes | --cue-mode 'bayes' & expected one of 'gain', 'bias', 'scale'
2 | eval {full} --data {photos} --wrong-cue confusable | --wrong-cue 'confusable' & expected one of 'random', 'sibling'
2 | evl {full} | No such command 'evl' & Did you mean 'eval'
2 | eval {full} | Missing option '--data'
2 | eval {full} --data {photos} --cue-mod bias | --cue-mod & --cue-mode
2 | predict {full} {photos}/val --out {root}/x.xlsx | x.xlsx & .csv, .jsonl or .txt
2 | predict {full} {photos}/val --json --out {root}/x.csv | is a name for csv, and --format says jsonl
2 | predict {full} {root}/nothing.jpg | nothing.jpg
"""


@pytest.mark.parametrize("case", ERRORS.strip().splitlines(), ids=str)
def test_errors_are_one_line(failing, tmp_path, case):
    code, line, words = case.replace("SMALL", SMALL).split(" | ")
    found, out, err = failing(line)
    *hints, told = err.splitlines() or [""]
    assert told.startswith("hlnet: ") and all(word in told for word in words.split(" & ")), told
    assert (found, out) == (int(code), "") and "--debug" not in told and not any("hlnet:" in hint for hint in hints)
    assert not list(tmp_path.rglob("*.safetensors")) + list(tmp_path.rglob("*.csv")) + list(tmp_path.rglob(".hlnet-*"))
