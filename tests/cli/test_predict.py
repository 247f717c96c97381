"""``hlnet predict``: what it writes and where, from what it is given; alone, and as several processes."""

import csv
import io
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import runs
from helpers.naive import randomise
from PIL import Image
from typer.testing import CliRunner

from hlnet.cli import predict as command
from hlnet.cli.main import app
from hlnet.cli.shared import output, prediction_formats
from hlnet.cli.shared import processes as sharing
from hlnet.cli.shared.processes import Share
from hlnet.errors import DataError, RunError, UsageError
from hlnet.evaluation.prediction import Label, PathAnswer, Prediction, predict
from hlnet.expert.cut import cut_expert
from hlnet.model.fast.optimize import optimize
from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
from hlnet.model.provenance import PathConformal, Provenance, Rejection
from hlnet.model.transform import InputTransform
from hlnet.store.checkpoint import load_checkpoint, save_checkpoint
from hlnet.tree.class_tree import ClassTree

TREE = ClassTree.from_nested({"beast": {"cat": ["tabby", "siamese"], "dog": ["beagle"]}, "saw, old": {}})
NAMES = ("b", "a, odd", "c/x", "c/bad", "c/é", "d/1", "d/2", "d/3", "d/4")


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    """A network, its files, and the folder of nine images, one of which is none."""
    root = tmp_path_factory.mktemp("predict")
    torch.manual_seed(0)
    net = HierarchicalNet(NetworkConfig(backbone="test_resnet", widths=(4, 4, 4), strides=(1, 1, 1)), TREE)
    randomise(net.head)
    net.transform = InputTransform(input_size=(3, 32, 32))
    net.provenance = Provenance(temperature=4.0, conformal=PathConformal(thresholds=(0.3, 0.6), images=9))
    save_checkpoint(net, root / "net.safetensors")
    save_checkpoint(cut_expert(net, "beagle"), root / "one.safetensors")
    net.provenance = Provenance(recipe={"train": {"loss": "bce"}})
    save_checkpoint(net, root / "bce.safetensors")
    generator = np.random.default_rng(0)
    for name in NAMES:
        path = root / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40, 50, 3), np.uint8)).save(path)
    (root / "photos/c/bad.png").write_text("no image")
    return root


def run(*words, code=1, stdin=None):
    """stdout and stderr of one command line; the bad image makes the exit code 1."""
    result = CliRunner().invoke(app, ["predict", *map(str, words), "--device", "cpu"], input=stdin)
    error = result.exception
    assert (error.exit_code if isinstance(error, DataError | RunError | UsageError) else result.exit_code) == code, (
        error
    )
    return result.stdout, result.stderr, str(error)


def expected(at, model="net", **settings):
    photos = at / "photos"
    names = ("a, odd", "b", "c/bad", "c/x", "c/é", "d/1", "d/2", "d/3", "d/4")
    return list(
        predict(
            optimize(load_checkpoint(at / f"{model}.safetensors")), [photos / f"{n}.png" for n in names], **settings
        )
    )


# ---------------------------------------------------------------------- what is written


def test_jsonl_is_the_librarys(at):
    stdout, stderr, told = run(at / "net.safetensors", at / "photos", "--json", "--top", 2, "--min-confidence", 0.5)
    found = [Prediction.model_validate_json(line) for line in stdout.splitlines()]
    assert found == expected(at, top=2, min_confidence=0.5)
    assert "cannot read image" in stderr and "c/bad.png" in stderr and told == "1 of 9 images could not be read"


@pytest.mark.parametrize("settings", ["", "--coverage 0.501", "--coverage 0.5"])
def test_csv_has_fixed_columns(at, tmp_path, settings):
    out = tmp_path / "new" / "answers.csv"
    _, stderr, _ = run(at / "net.safetensors", at / "photos", "--out", out, *settings.split())
    rows = list(csv.DictReader(io.StringIO(out.read_text(encoding="utf-8"))))
    head = "image,class,answer,level,probability,classes,leaf,leaf_probability,score,rejected,error"
    columns = head.split(",")
    assert list(rows[0]) == columns and f"9 images; the answers are in '{out}'" in stderr
    assert os.listdir(out.parent) == ["answers.csv"]
    coverage = float(settings.split()[-1]) if settings else None
    for row, found in zip(rows, expected(at, coverage=coverage), strict=True):
        assert row["image"] == found.image and row["score"] == row["rejected"] == ""
        if found.error:
            assert row["error"] == found.error and {row[name] for name in columns[1:-1]} == {""}
            continue
        best = found.labels[0]
        assert (row["class"], row["leaf"], row["leaf_probability"]) == (best.name, best.path, f"{best.probability:.6g}")
        answer = found.answer
        values = (best.path, len(best.path.split("/")), best.probability, 1)
        if answer:
            values = (answer.path, answer.level, answer.probability, answer.classes)
        path, *numbers = values
        assert row["answer"] == path
        assert [float(row[name]) for name in ("level", "probability", "classes")] == pytest.approx(numbers, rel=1e-5)


def label(path, *shares, probability=None):
    alone = shares[-1] if probability is None else probability
    return Label(
        name=path.split("/")[-1], path=path, index=0, probability=alone, path_probabilities=list(shares) or None
    )


def ended(level, *shares):
    path = ["animal", "cat", "tabby"][:level]
    probability = shares[level - 1] if level else 1
    return PathAnswer(
        path="/".join(path), level=level, probability=probability, classes=1, way="animal/cat/tabby",
        way_probabilities=list(shares),
    )  # fmt: skip


TABBY = label("animal/cat/tabby", 0.991, 0.97, 0.41)
FITTED, FROM = Rejection(score="energy", threshold=0.5, max_false_positive=0.1), "accepted from 0.5"
ONE = {"score": 0.3, "score_name": "probability"}
ACCEPTED, REJECTED = ({"score": 1.25, "score_name": "energy", "rejected": rejected} for rejected in (False, True))


@pytest.mark.parametrize(
    "labels, told, rejection, lines",
    [
        ([TABBY, label("saw", 0.004)], {}, None, ["animal 0.99 / cat 0.97 / tabby 0.41", "saw <0.01"]),
        ([label("animal/cat", 1, 0.7, probability=0.2)], {}, None, ["animal 1.00 / cat 0.70  (by itself 0.20)"]),
        ([TABBY], {"answer": ended(2, 0.991, 0.97, 0.41)}, None, ["animal 0.99 / cat 0.97  (then tabby 0.41)"]),
        ([TABBY], {"answer": ended(3, 0.991, 0.97, 0.92)}, None, ["animal 0.99 / cat 0.97 / tabby 0.92"]),
        ([TABBY], {"answer": ended(0, 0.6, 0.5, 0.4)}, None, ["not sure  (then animal 0.60 / cat 0.50 / tabby 0.40)"]),
        ([TABBY], ACCEPTED, FITTED, ["animal 0.99 / cat 0.97 / tabby 0.41"]),
        ([TABBY], REJECTED, FITTED, ["none of these  (energy 1.25, accepted from 0.5)"]),
        ([TABBY], REJECTED | {"score": None}, FITTED, ["none of these  (energy –, accepted from 0.5)"]),
        ([label("animal/cat", probability=0.3)], ACCEPTED, FITTED, [f"accepted  animal/cat  (energy 1.25, {FROM})"]),
        ([label("saw", probability=0.3)], ONE, None, ["perhaps  saw  (probability 0.3)"]),
    ],
)
def test_text(labels, told, rejection, lines):
    text = prediction_formats.writer("text", rejection, labels="answer" not in told)
    assert text(Prediction(image=":cat:[b].png", labels=labels, **told)) == "\n  ".join([":cat:[b].png", *lines]) + "\n"
    assert text(Prediction(image="x.png", error="no image")) == ""


def test_labels_beside_an_answer_are_shown_if_asked_for(at):
    words = (at / "net.safetensors", at / "photos/b.png", "--min-confidence", 1)
    alone, both = (run(*words, *more, code=0)[0].splitlines() for more in ([], ["--top", 2]))
    assert len(alone) == 2 and "not sure  (then " in alone[1] and both[:2] == alone and len(both) == 4


def test_detectors_show_their_own_probability_too(at):
    lines = run(at / "bce.safetensors", at / "photos/b.png", "--top", 1, code=0)[0].splitlines()
    (found,) = predict(load_checkpoint(at / "bce.safetensors"), [at / "photos/b.png"], top=1)
    assert f"  (by itself {found.labels[0].probability:.2f})" in lines[1]


@pytest.mark.parametrize("name, first", [("x.csv", "image,"), ("x.JSONL", "{"), ("x.txt", "/"), ("x", "/")])
def test_format_follows_the_files_name(at, tmp_path, name, first):
    run(at / "net.safetensors", at / "photos/b.png", "--out", tmp_path / name, code=0)
    assert (tmp_path / name).read_text().startswith(first)
    agree = first != "image,"
    told = run(
        *(at / "net.safetensors", at / "photos/b.png", "--out", tmp_path / name, "--format", "jsonl"),
        code=0 if agree else 2,
    )[2]
    if not agree:
        assert "is a name for csv, and --format says jsonl" in told
        return
    assert json.loads((tmp_path / name).read_text())["image"].endswith("b.png")


# ---------------------------------------------------------------------- what it is given


def test_patterns_folders_and_names_from_standard_input(at):
    photos = at / "photos"
    stdin = f"{photos}/d\n{photos}/b.png\n"
    stdout, _, _ = run(at / "net.safetensors", f"{photos}/**/[1x].png", "-", "--format", "csv", code=0, stdin=stdin)
    found = [Path(row["image"]).relative_to(photos).as_posix() for row in csv.DictReader(io.StringIO(stdout))]
    assert found == ["c/x.png", "d/1.png", "d/1.png", "d/2.png", "d/3.png", "d/4.png", "b.png"]


def test_no_names_are_no_error(at):
    stdout, stderr, _ = run(at / "net.safetensors", "-", "--format", "csv", code=0, stdin="\n")
    assert stdout.splitlines() == [",".join(prediction_formats.COLUMNS)] and "no names" in stderr


@pytest.mark.parametrize(
    "line, words",
    [
        ("{net} {photos} --min-confidence 0.5 --coverage 0.9", ["--min-confidence and --coverage", "give one"]),
        ("{net} {photos} --json --format csv", ["--json is --format jsonl", "csv"]),
        ("{net} {photos}/*.gif", ["IMAGES", "*.gif' matches no image"]),
        ("{net} - -", ["once only"]),
        ("{net} {photos} --coverage 0.9", ["0.9 takes at least 9 labelled images", "hlnet calibrate"]),
        ("{one} {photos} --coverage 0.9", ["one class (beagle)", "make-expert --calibrate"]),
        ("{bce} {photos} --coverage 0.9", ["hlnet calibrate MODEL --data DATA"]),
    ],
)
def test_refused(at, line, words):
    places = {name: at / f"{name}.safetensors" for name in ("net", "one", "bce")} | {"photos": at / "photos"}
    stdout, _, told = run(*line.format(**places).split(), code=2)
    assert all(word in told for word in words) and "\n" not in told and stdout == ""


def test_failure_leaves_the_older_file(at, tmp_path, monkeypatch):
    out = tmp_path / "answers.csv"
    out.write_text("older")
    run(at / "net.safetensors", at / "photos", "--out", tmp_path, code=1)
    monkeypatch.setattr(prediction_formats, "_values", lambda found: 1 / 0)
    run(at / "net.safetensors", at / "photos", "--out", out, code=1)
    assert out.read_text() == "older" and os.listdir(tmp_path) == ["answers.csv"]


def test_bar_learns_how_many_there_are(at):
    class Bar:
        def __init__(self):
            self.total, self.done = None, 0

        def add_task(self, name, total):
            assert total is None

        def update(self, task, total):
            self.total = total

        def advance(self, task):
            self.done += 1

    for words, share, total in (
        ([at / "photos"], Share(), 9),
        ([at / "photos"], Share(1, 2), 4),
        (["-"], Share(), None),
    ):
        bar = Bar()
        assert list(command._with_progress(iter("abc"), bar, [str(word) for word in words], share)) == ["a", "b", "c"]
        end = time.monotonic() + 30
        while bar.total != total and time.monotonic() < end:
            time.sleep(0.005)
        assert (bar.total, bar.done) == (total, 3)


@pytest.mark.parametrize("to_file", [True, False])
def test_bar_is_drawn_where_results_are_not(tmp_path, monkeypatch, to_file):
    drawn, out = [], tmp_path / "x.txt" if to_file else None
    monkeypatch.setattr(command, "_with_progress", lambda found, bar, images, share: drawn.append(images) or found)
    monkeypatch.setattr(output.stderr, "_force_terminal", True)
    found = Prediction(image="x.png")
    for terminal in (False, True):
        stdout = io.StringIO()
        stdout.isatty = lambda terminal=terminal: terminal
        monkeypatch.setattr(sys, "stdout", stdout)
        counts = command._write(iter([found]), lambda one: f"<{one.image}>", "head ", out, Share(), ["x.png"])
        assert counts["images"] == 1 and (out.read_text() if out else stdout.getvalue()) == "head <x.png>"
    assert len(drawn) == (2 if to_file else 1)  # on a terminal, the results themselves tell how far it is


# ---------------------------------------------------------------------- processes


def begin(at, out, rank, *words, prepare=None, port=None, world=2):
    """One of several processes, with what ``torchrun`` would tell it."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    line = f"predict {at / 'net.safetensors'} {at / 'photos'} --device cpu --workers 0 {' '.join(words)}"
    environment = {name: str(value) for name, value in told.items()} | {"OMP_NUM_THREADS": "1"}
    return runs.start(f"{line} --out {out}", f"{out}.log{rank}", prepare, **environment)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", ["x.csv", "x.txt", "x.jsonl"])
def test_several_write_what_one_writes(at, tmp_path, name, world):
    port, out = free_port(), tmp_path / "several" / name
    out.parent.mkdir()
    processes = [begin(at, out, rank, "--min-confidence 0.5", port=port, world=world) for rank in range(world)]
    codes = [runs.ended(process, 120) for process in processes]
    said = [Path(f"{out}.log{rank}").read_text() for rank in range(world)]
    assert codes == [1] + [0] * (world - 1), said  # the bad image is told once, by the first
    assert said[0].count("c/bad.png") == 1 and "hlnet: 1 of 9 images could not be read" in said[0]
    assert said[1:] == [""] * (world - 1)
    run(at / "net.safetensors", at / "photos", "--out", tmp_path / name, "--min-confidence", 0.5)
    assert alike(out) == alike(tmp_path / name)
    assert sorted(path.name for path in out.parent.iterdir()) == sorted(
        [name, *(f"{name}.log{r}" for r in range(world))]
    )


def alike(file):
    """Its lines; numbers, which depend on who else is in a batch, as far as they are exact."""
    words = [
        part for line in file.read_text(encoding="utf-8").splitlines() for part in line.replace(",", " ").split(" ")
    ]
    return [f"{float(word):.4f}" if word.replace(".", "", 1).isdigit() else word for word in words]


def fails():
    sharing.MEETING = sharing.timedelta(seconds=3)
    command._device = lambda device, share: os._exit(7) if share.number else device


def pauses():
    """The second process stops for good at its first image."""
    of = Share.of

    def slow(self, items):
        for item in of(self, items):
            if self.number:
                time.sleep(1000)
            yield item

    Share.of = slow


@pytest.mark.parametrize("prepare, kills", [(fails, False), (pauses, True)])
def test_a_lost_process_is_noticed(at, tmp_path, prepare, kills):
    port, out = free_port(), tmp_path / "x.csv"
    processes = [begin(at, out, rank, prepare=prepare, port=port) for rank in (0, 1)]
    if kills:
        runs.wait_for(lambda: list(tmp_path.glob(".hlnet-*/part-*")), *processes, seconds=120)
        processes[1].kill()
    codes = [runs.ended(process, 120) for process in processes]
    told = Path(f"{out}.log0").read_text()
    assert codes == [1, -signal.SIGKILL if kills else 7], told
    assert "another process of this run has stopped" in told.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.csv.log0", "x.csv.log1"]


def test_sigterm_leaves_nothing_behind(at, tmp_path):
    out = tmp_path / "x.csv"
    process = begin(at, out, 0, prepare=lost, world=1)
    runs.wait_for(lambda: list(tmp_path.glob(".hlnet-*/x.csv")), process, seconds=120)
    os.kill(process.pid, signal.SIGTERM)
    assert runs.ended(process, 60) == 143
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv.log0"]


def lost():
    """At its first image."""
    Share.of = lambda self, items: (time.sleep(1000) for _ in items)


def test_several_cannot_share_standard_streams(at, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    assert "--out" in run(at / "net.safetensors", at / "photos", code=2)[2]
    assert "one standard input" in run(at / "net.safetensors", "-", "--out", at / "x.csv", code=2)[2]


@pytest.mark.parametrize(
    "told, share",
    [
        ({}, Share()),
        ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, Share()),
        ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "x"}, Share(3, 4, 1)),
        ({"WORLD_SIZE": "4", "RANK": "3", "MASTER_ADDR": "x"}, Share(3, 4, 3)),
        ({"WORLD_SIZE": "4", "RANK": "3"}, None),
        ({"WORLD_SIZE": "4", "MASTER_ADDR": "x"}, None),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "x"}, None),
        ({"WORLD_SIZE": "two", "RANK": "0", "MASTER_ADDR": "x"}, None),
        ({"WORLD_SIZE": "0", "RANK": "0"}, None),
    ],
)
def test_which_process_this_is(monkeypatch, told, share):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    if share is None:
        with pytest.raises(UsageError, match="torchrun"):
            Share.ours()
        return
    assert Share.ours() == share


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("items", [0, 1, 4, 5, 11])
def test_shares_come_back_in_order(count, items):
    shares = [iter([f"{item}\n" for item in Share(number, count).of(range(items))]) for number in range(count)]
    assert list(sharing._alternating(shares)) == [str(item) for item in range(items)]


@pytest.mark.parametrize("gpus, device", [(0, "auto"), (1, "cuda:0"), (2, "cuda:1"), (4, "cuda:3")])
def test_each_process_has_its_gpu(monkeypatch, gpus, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert command._device("auto", Share(7, 8, 3)) == device
    assert command._device("cpu", Share(7, 8, 3)) == "cpu" and command._device("auto", Share()) == "auto"
