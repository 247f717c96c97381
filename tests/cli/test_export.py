"""``hlnet export`` and what comes of it: int8 on digits, the example script without torch, refusals as one line."""

import json
import os
import subprocess
import sys
from copy import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import hlnet
from hlnet.cli import export as command
from hlnet.cli import main as cli
from hlnet.data.tree_data import eval_transform
from hlnet.errors import DataError, RunError
from hlnet.evaluation.metrics.rejection import rejection_scores
from hlnet.model.provenance import Provenance, Rejection
from hlnet.model.transform import InputTransform
from hlnet.store.export.about import describe
from hlnet.store.export.quantize import quantize_onnx, spread, unnormalised
from hlnet.store.export.runtimes import open_exported

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)

EXAMPLE = Path(hlnet.__file__).parents[1] / "examples/onnx_predict.py"
ROUND = {"closed": ["0", "6", "8", "9"], "open": ["3", "5"]}
TREE = hlnet.ClassTree.from_nested({"round": ROUND, "1": None, "4": None})


def invoke(line):
    """Run one command line that must succeed; what it prints to stdout."""
    result = CliRunner().invoke(cli.app, line.split())
    assert result.exit_code == 0, result.stderr or result.exception
    return result.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network that reads digits, in its file; it was exported with int8, and what the command said is there too."""
    folder = tmp_path_factory.mktemp("digits")
    torch.manual_seed(0)
    net = hlnet.create_model("test_resnet", tree=TREE, widths=(16, 8, 8), strides=(1, 1, 1), split_point=-3)
    net.transform = InputTransform(input_size=(3, 32, 32), mean=(0.4,) * 3, std=(0.3,) * 3, crop_pct=0.8)
    data = hlnet.TreeData(hlnet.load_data("digits", "train"), TREE, eval_transform(net.transform), subset=True)
    images, labels = torch.stack([image for image, _ in data]), torch.tensor(data.labels)
    optimizer = torch.optim.AdamW(net.train().parameters(), lr=3e-3)
    for _ in range(2):
        for batch in torch.randperm(len(images)).split(50):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimizer.step()
    hlnet.save_checkpoint(net.eval(), folder / "digits.safetensors")
    before = os.getcwd()
    os.chdir(folder)  # the name of the file is the command's own
    try:
        said = json.loads(invoke("export digits.safetensors --int8 --data digits --workers 0 --no-latency --json"))
    finally:
        os.chdir(before)
    return net, folder, said


@pytest.fixture
def photos(tmp_path):
    """Digits, some wider than high and some higher than wide, as colour and as grey images."""
    digits = hlnet.load_data("digits", "val")
    paths = [tmp_path / f"{i}.png" for i in range(8)]
    for i, path in enumerate(paths):
        size = [(41, 57), (90, 33), (64, 64), (20, 29)][i % 4]
        digits.load(7 * i).convert("RGB" if i < 4 else "L").resize(size).save(path)
    return paths


def test_int8_keeps_accuracy_and_says_so(trained):
    net, folder, said = trained
    small = said["int8"]
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert files.keys() == {"digits.safetensors", "digits.onnx", "digits.int8.onnx"}
    assert (said["bytes"], small["bytes"]) == (files["digits.onnx"], files["digits.int8.onnx"])
    assert small["bytes"] < 0.5 * said["bytes"]
    val = hlnet.TreeData(hlnet.load_data("digits", "val"), TREE, eval_transform(net.transform), subset=True)
    expected = hlnet.evaluate(net, val).neutral
    assert small["images"] == len(val) and small["calibration_images"] == 128
    assert small["accuracy"]["float32"] == expected.model_dump()
    assert expected.top1 > 0.8 and abs(small["accuracy"]["int8"]["top1"] - expected.top1) < 0.03
    assert said["images"] == 16 and said["max_difference"] < 1e-4 * said["largest_logit"]


def test_int8_is_int8_but_for_the_logits(trained):
    import onnx

    _, folder, _ = trained
    model = onnx.load(folder / "digits.int8.onnx")
    scaled = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    sums = [node for node in model.graph.node if node.op_type == "Conv"]
    assert [set(node.input[:2]) <= scaled for node in sums] == [*[True] * (len(sums) - 1), False]
    whole, rounded = (open_exported(folder / name) for name in ("digits.onnx", "digits.int8.onnx"))
    assert rounded.about == whole.about
    data = unnormalised(hlnet.load_data("digits", "val"), TREE, trained[0].transform)
    images = torch.cat(list(spread(data, 64)))
    difference = np.abs(rounded(images) - whole(images)).max()
    assert 0 < difference < 0.1 * np.abs(whole(images)).max()
    assert len(np.unique(rounded(images))) > 256


def test_int8_needs_images_and_onnx(trained, tmp_path):
    source = trained[1] / "digits.onnx"
    with pytest.raises(DataError, match="needs some images"):
        quantize_onnx(source, tmp_path / "small.onnx", [])
    for out in (source, tmp_path / "small.bin"):
        with pytest.raises(hlnet.UsageError, match="written to another"):
            quantize_onnx(source, out, [torch.rand(1, 3, 32, 32)])
    with pytest.raises(RunError, match="cannot be made int8"):
        quantize_onnx(source, tmp_path / "small.onnx", [torch.rand(1, 3, 32, 31)])
    assert not os.listdir(tmp_path)


def test_spread_is_even_and_never_more_than_there_is():
    data = [(torch.full((1,), float(i)), 0) for i in range(10)]
    found = {count: [int(image) for image in spread(data, count)] for count in (1, 4, 10, 99)}
    assert found == {1: [0], 4: [0, 3, 6, 9], 10: [*range(10)], 99: [*range(10)]}


def example(file, photos):
    """What the example says, in a process in which neither torch nor hlnet can be imported."""
    start = (
        "import runpy, sys; sys.modules.update(torch=None, hlnet=None, timm=None); sys.argv.pop(0); "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", start, EXAMPLE, file, *photos], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "rejecting"])
def test_example_without_torch_says_what_hlnet_predicts(trained, photos, tmp_path, kind):
    import onnx

    net, file = copy(trained[0]), trained[1] / "digits.onnx"
    if kind == "sigmoid":
        net.provenance = Provenance(recipe={"train": {"loss": "bce"}}, temperature=0.7)
    if kind == "rejecting":
        images = torch.stack([eval_transform(net.transform)(Image.open(path)) for path in photos])
        with torch.no_grad():
            scores = rejection_scores(net(images), "energy").sort().values
        middle = Rejection(score="energy", threshold=float(scores[3:5].mean()), max_false_positive=0.1)
        net.provenance = Provenance(temperature=2.5, rejection=middle)
    if kind != "softmax":  # the graph is the same
        model, file = onnx.load(file), tmp_path / "changed.onnx"
        onnx.helper.set_model_props(model, {"hlnet": json.dumps(describe(net))})
        onnx.save(model, file)
    expected = list(hlnet.predict(net, photos, top=1))
    assert sum(bool(found.rejected) for found in expected) == (4 if kind == "rejecting" else 0)
    assert len({found.labels[0].name for found in expected}) > 2
    for line, photo, found in zip(example(file, photos), photos, expected, strict=True):
        if found.rejected:
            assert line == f"{photo}: none of these"
            continue
        words, _, share = line.rpartition(" ")
        assert words == f"{photo}: {found.labels[0].name}"
        assert abs(float(share) - found.labels[0].probability) < 2e-4


def test_tables_for_a_person_and_gains_that_the_example_leaves_neutral(trained, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "SECONDS", 0.0)
    source, out = trained[1] / "digits.safetensors", tmp_path / "cued.onnx"
    said = " ".join(invoke(f"export {source} --out {out} --with-gains").split())
    for word in ("one thread", "torch, optimised", "onnxruntime", "batch 1", "batch 8", "5 images of noise"):
        assert word in said
    assert "8 classes" in said and f"written to {out}" in said and "int8" not in said
    assert open_exported(out).nodes == TREE.num_nodes
    assert example(out, photos) == example(trained[1] / "digits.onnx", photos)


def test_format_follows_the_ending_of_out(trained, tmp_path):
    source, out = trained[1] / "digits.safetensors", tmp_path / "digits.pt2"
    said = json.loads(invoke(f"export {source} --out {out} --no-latency --json"))
    assert (said["format"], said["out"]) == ("torch-export", str(out)) and open_exported(out).runtime == "torch.export"


def test_trunk_and_head_are_two_files_and_timed(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "SECONDS", 0.0)
    source, out = trained[1] / "digits.safetensors", tmp_path / "digits.pt2"
    said = " ".join(invoke(f"export {source} --out {out} --parts").split())
    files = [str(tmp_path / f"digits.{part}.pt2") for part in ("trunk", "head")]
    assert sorted(map(str, tmp_path.iterdir())) == sorted(files)
    for word in (f"written to {files[0]} and {files[1]}", "torch.export, trunk", "batch 8", "torch, optimised"):
        assert word in said
    trunk = open_exported(files[0])
    images = torch.rand(2, 3, 32, 32)
    whole = open_exported(trained[1] / "digits.onnx")(images)
    assert np.abs(open_exported(files[1], trunk=trunk)(trunk(images)) - whole).max() < 1e-4


@pytest.mark.parametrize(
    ("options", "told", "code"),
    [
        ("--format openvino --int8 --data digits", "--int8 is for --format onnx", 2),
        ("--int8", "--int8 needs --data", 2),
        ("--int8 --data digits --parts", "--int8 is for whole networks", 2),
        ("--out x.pt2 --format onnx", "ends in .onnx", 2),
        ("--out x.bin", "the ending says the format, and it is none of .onnx (onnx), .pt2", 2),
        ("--out x.pt2 --int8 --data digits", "--int8 is for --format onnx, not torch-export", 2),
        ("--data no/such/folder", "there is no data folder", 2),
        ("--out {file}/x.onnx", "is a file and no folder", 1),
    ],
)
def test_refusals_are_one_line(options, told, code, trained, tmp_path, capsys, monkeypatch):
    file = f"{trained[1]}/digits.safetensors"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["hlnet", "export", file, *options.format(file=file).split()])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (code, "")
    assert told in err and err.startswith("hlnet: ") and len(err.splitlines()) == 1
    assert not os.listdir(tmp_path)
