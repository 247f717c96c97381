"""Networks beside each other: each is evaluated as if alone, on the first one's classes; and ``hlnet eval``."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.evaluated_nets import TRANSFORM, TREE, build, by_hand, expert_of, noise, signal_of
from PIL import Image
from typer.testing import CliRunner

from hlnet.cli.main import app
from hlnet.cues.policy import CuePolicy
from hlnet.cues.table import CueTable
from hlnet.data.sources import load_data
from hlnet.data.tree_data import TreeData, eval_transform
from hlnet.errors import UsageError
from hlnet.evaluation.evaluate import evaluate, evaluate_with_baseline
from hlnet.expert.cut import cut_expert
from hlnet.model.fast.optimize import optimize
from hlnet.model.provenance import FittedAttention
from hlnet.store.checkpoint import load_checkpoint, save_checkpoint
from hlnet.tree.class_tree import ClassTree


def photos(count=40):
    """As :func:`noise` has them, before a tree numbers them; and which were loaded."""
    whole, loaded = noise(count=count).images, []
    return dataclasses.replace(whole, load=lambda i: loaded.append(i) or whole.load(i)), loaded


@pytest.mark.parametrize("signal", [None, 1.7])
@pytest.mark.parametrize("selection", ["cat,beagle", "dog", "saw"])
def test_beside_is_each_networks_own_evaluation(selection, signal):
    expert, data = expert_of(selection)
    nets = {"expert": expert, "full": optimize(build()), "plain": build("plain", mirrored())}
    images, loaded = photos()
    ticks = []
    found = evaluate_with_baseline(
        nets, images, policy=signal and signal_of(signal), batch_size=7, on_batch=lambda *given: ticks.append(given)
    )
    assert list(found) == list(nets) and sorted(loaded) == list(range(40))  # once for all three
    assert ticks == [(done, 6) for done in range(1, 7)]
    assert found["expert"] == evaluate(expert, data, policy=signal and signal_of(signal), batch_size=7)
    names = ",".join(expert.tree.classes)
    for name, cue in (("full", signal), ("plain", None)):
        whole = noise(nets[name].tree)
        alone = evaluate(nets[name], whole, names, policy=cue and signal_of(cue), score="energy", batch_size=7)
        assert found[name].neutral.per_class == alone.neutral.per_class
        assert found[name].neutral.top1 == alone.neutral.top1 and found[name].cued == alone.cued
        assert (found[name].images, found[name].left_out) == (alone.images, alone.left_out)
        assert found[name].detection == alone.detection and found[name].ece == pytest.approx(alone.ece, abs=2e-4)
    assert found["full"].neutral == found["expert"].neutral
    assert found["full"].detection.auroc == found["expert"].detection.auroc


def mirrored():
    """The same classes the other way round, and in another tree."""
    return ClassTree.parallel(TREE.classes[::-1])


def test_beside_reads_images_once_for_each_transform():
    small = build()
    small.transform = TRANSFORM.model_copy(update={"input_size": (3, 16, 16)})
    images, loaded = photos()
    nets = {"a": build(), "small": small, "c": build("plain")}
    found = evaluate_with_baseline(nets, images, "dog,tabby", batch_size=16)
    assert sorted(loaded) == sorted(2 * list(range(40)))
    assert {run.detection for run in found.values()} == {None} and {run.classes for run in found.values()} == {3}
    data = TreeData(images, TREE, eval_transform(small.transform))
    assert found["small"] == evaluate(small, data, "dog,tabby", batch_size=16)


def test_beside_measures_all_or_none():
    """A threshold that only a network beside holds waits for its own turn; a score that is asked for is of all."""
    expert, _ = expert_of("cat,beagle")
    images, _ = photos()
    found = evaluate_with_baseline({"full": build(), "other": build("plain")}, images, "cat,beagle", score="max-logit")
    assert {run.detection.score for run in found.values()} == {"max-logit"}
    nets = {"lead": cut_expert(build(), "cat,beagle"), "fitted": expert}
    assert all(run.detection is None for run in evaluate_with_baseline(nets, images).values())
    found = evaluate_with_baseline(dict(reversed(nets.items())), images)
    assert found["fitted"].detection.threshold is not None and found["lead"].detection.threshold is None


def test_beside_without_the_classes_is_refused():
    images, loaded = photos()
    with pytest.raises(UsageError, match="'small' lacks the classes tabby, siamese, saw, axe, so"):
        evaluate_with_baseline({"full": build(), "small": cut_expert(build(), "dog")}, images)
    with pytest.raises(UsageError, match="plain network has no branches"):
        evaluate_with_baseline({"plain": build("plain"), "full": build()}, images, policy=signal_of(2.0))
    assert (
        evaluate_with_baseline({"full": build(), "small": cut_expert(build(), "dog")}, images, "dog")["small"].images
        == 16
    )
    assert loaded


# ---------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A full network, a plain one, experts with and without a threshold, and photographs of TREE's classes and more."""
    root = tmp_path_factory.mktemp("eval")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), np.uint8)
    names = [*TREE.classes, "sky"]
    for i, image in enumerate(pixels):
        path = root / "photos" / "val" / names[i % 7] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    nets = {"full": build(), "plain": build("plain"), "cats": expert_of("cat")[0], "axe": cut_expert(build(), "axe")}
    for name, net in nets.items():
        (root / name).mkdir()
        save_checkpoint(net, root / name / "best.safetensors")
    return root


def command(files, line):
    words = [word.format(**{p.name: p / "best.safetensors" for p in files.iterdir()}) for word in line.split()]
    arguments = ["eval", *words, "--data", str(files / "photos"), "--workers", "0", "--device", "cpu"]
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "160", "TERM": "dumb", "NO_COLOR": "1"})


def test_command_gives_the_librarys_figures_beside_each_other(files):
    done = command(files, "{cats} --beside {full} --beside {plain} --json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    beside = {Path(name).parent.name: run for name, run in told.pop("beside").items()}
    nets = {name: load_checkpoint(files / name / "best.safetensors") for name in ("cats", "full", "plain")}
    found = evaluate_with_baseline(nets, load_data(files / "photos", "val"))
    for name, run in {"cats": told, **beside}.items():
        cost = run.pop("cost")
        assert cost["params"] == sum(tensor.numel() for tensor in nets[name].parameters())
        assert cost["gmacs"] > 0 and run == found[name].model_dump(mode="json")
    assert told["detection"]["outside"] == 42 and beside["plain"]["detection"]["threshold"] is None
    alone = json.loads(command(files, "{cats} --json").stdout)
    assert alone == told and "cost" not in alone


def test_command_shows_tables_and_writes_the_curve(files, tmp_path):
    done = command(files, f"{{cats}} --beside {{full}} --roc {tmp_path}/roc.csv --attention-signal 1.8")
    assert done.exit_code == 0, done.output
    for words in ("Accuracy on 18 images of 2 classes", "with every cue wrong", "GMACs", "AUROC", "FPR at 95 % TPR"):
        assert words in done.output
    assert "18 images of its own classes, 42 of others" in done.output and "at most 20 %" in done.output
    assert {row["name"] for row in csv.DictReader((tmp_path / "roc.csv").open())} == {"cats", "full"}
    single = command(files, "{axe}").output
    assert "top-1" not in single and "AUROC" in single and "threshold" not in single
    other = command(files, "{cats} --classes tabby").output
    assert "threshold is for all 2 classes" in other and "AUROC" in other
    assert "left out" in command(files, "{full} --classes cat").output


@pytest.mark.parametrize(
    "line, words",
    [
        ("{cats} --beside {cats}", "the same model is given twice"),
        ("{full} --beside {cats}", "lacks the classes"),
        ("{full} --roc roc.png", "--roc needs images of other classes"),
        ("{cats} --roc roc.xlsx", "--roc 'roc.xlsx'"),
    ],
)
def test_command_refuses(files, tmp_path, monkeypatch, line, words):
    monkeypatch.chdir(tmp_path)
    done = command(files, line)
    assert isinstance(done.exception, UsageError) and words in str(done.exception) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("level", [None, 1])
def test_cues_reach_a_network_of_another_tree_by_name(level):
    """The plain network has no inner nodes; what the first one's nodes name is told it class by class."""
    images, _ = photos()
    cues = {"cues": CueTable.from_labels(level), "policy": CuePolicy(mode="bias", strength=3.0)}
    found = evaluate_with_baseline({"full": build(), "flat": build("plain", mirrored())}, images, **cues)
    alone = evaluate_with_baseline({"same": build("plain", TREE)}, images, **cues)  # with the first one's tree
    assert found["flat"].cued.images == 40 and found["flat"].cued.named == 1
    net, data = build("plain", mirrored()), noise(mirrored())
    logits, labels = by_hand(net, data)
    parents = {"tabby": "cat", "siamese": "cat", "beagle": "dog", "boxer": "dog", "saw": "saw", "axe": "axe"}
    group = [parents[name] if level else name for name in net.tree.classes]
    shift = torch.tensor([[3.0 * (group[label] == one) for one in group] for label in labels.tolist()])
    right = ((logits + shift).argmax(1) == labels).double().mean()
    assert found["flat"].cued.accuracy.top1 == pytest.approx(float(right))
    assert alone["same"].cued.images == 40


def test_a_network_without_a_curve_is_cued_by_a_bias_beside_one_that_has_it():
    images, _ = photos()
    full, other = build(), build()
    full.provenance.attention = FittedAttention(reliability=0.8, gain=((2.0, 3.0),))
    found = evaluate_with_baseline(
        {"full": full, "other": other}, images, policy=CuePolicy(mode="gain", reliability=0.8)
    )
    assert (found["full"].cued.attention.mode, found["other"].cued.attention.mode) == ("gain", "bias")
    auto = evaluate_with_baseline({"full": full, "other": other}, images, policy=CuePolicy())
    assert auto["full"].cued == found["full"].cued and auto["other"].cued == found["other"].cued
