"""Descents on the command line: fitted, predicted with, evaluated, costed; all figures are the library's."""

import json

import pytest
from helpers.command_line import as_json, failing, invoke
from helpers.lean_nets import LEAN, build_undecided

import hlnet
from hlnet.evaluation.descent import evaluate_descent
from hlnet.model.fast.optimize import optimize

TREE = hlnet.ClassTree.from_nested({"low": {"a": ["0", "1", "2"], "b": ["3", "4"]}, "high": {"c": list("56789")}})
failing = failing


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    """A network that was fitted for two agreements, one without rows, and a folder of images without labels."""
    root = tmp_path_factory.mktemp("descents")
    hlnet.save_checkpoint(build_undecided(TREE, LEAN["all"]), root / "net.safetensors")
    hlnet.save_checkpoint(hlnet.create_model("test_resnet", tree=["0", "1"]), root / "norows.safetensors")
    images = hlnet.load_data("digits", "val")
    (root / "camera").mkdir()
    for i in range(70):
        images.load(i).save(root / "camera" / f"{i:03}.png")
    places = {"net": root / "net.safetensors", "norows": root / "norows.safetensors", "camera": root / "camera"}
    places["told"] = as_json("calibrate {net} --data digits --agreement 0.9,0.98 --workers 0 --device cpu", **places)
    return places


def test_what_is_fitted_is_told_and_stored(at):
    stored = hlnet.load_checkpoint(at["net"]).provenance.descent
    assert [one.model_dump(mode="json") for one in stored] == at["told"]["descent"]
    assert [one.agreement for one in stored] == [0.9, 0.98] and stored[0].threshold >= stored[1].threshold > 0
    profile = as_json("profile {net} --no-latency", **at)
    assert profile["descent"] == at["told"]["descent"]
    shown, _ = invoke("profile {net} --no-latency", **at)
    assert f"Descent at 90.0 % agreement: {stored[0].metrics['gmacs']:.4g} GMACs on average" in shown


def test_images_need_no_labels(at, tmp_path):
    shown, told = invoke(
        f"calibrate {{net}} --data {{camera}} --agreement 0.9 --out {tmp_path}/new.safetensors --workers 0", **at
    )
    assert "Descents on 70 images" in shown and "--agreement 0.9 uses it" in told
    (stored,) = hlnet.load_checkpoint(tmp_path / "new.safetensors").provenance.descent
    assert (stored.images, stored.data) == (70, str(at["camera"]))


def test_predictions_and_evaluation_are_the_librarys(at):
    net = optimize(hlnet.load_checkpoint(at["net"]))
    found = as_json("eval {net} --data digits --agreement 0.9 --workers 0", **at)["descent"]
    data = hlnet.TreeData(hlnet.load_data("digits", "val"), net.tree, hlnet.eval_transform(net.transform))
    expected = evaluate_descent(net, data, net.provenance.descent[0].threshold).model_dump(mode="json")
    for times in ("ms", "full_ms"):
        assert found.pop(times) > 0 and expected.pop(times) > 0
    assert found == expected
    shown, told = invoke("eval {net} --data digits --agreement 0.9 --workers 0", **at)
    assert "agreement with the full network" in shown and "fitted where its descents stop" in told
    expected = hlnet.predict(net, str(at["camera"]), agreement=0.9)
    lines, _ = invoke("predict {net} {camera} --agreement 0.9 --json", **at)
    assert [json.loads(line)["labels"] for line in lines.splitlines()] == [
        one.model_dump(mode="json")["labels"] for one in expected
    ]


def test_another_agreement_than_was_fitted_is_told(at):
    _, told = invoke("predict {net} {camera} --agreement 0.5 --json", **at)
    assert "as fitted for an agreement of 0.9 (asked for: 0.5)" in told
    _, told = invoke("predict {net} {camera} --agreement 0.9 --json", **at)
    assert "as fitted" not in told


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("predict {net} {camera} --agreement 0.99", r"was fitted for 0.9, 0.98: run hlnet calibrate"),
        ("predict {norows} {camera} --agreement 0.9", "was not fitted for a descent"),
        ("predict {net} {camera} --agreement 0.9 --cue 3=0.9", "leave them out, or the agreement"),
        ("calibrate {norows} --data digits --agreement 0.9", "the classes' rows, which this network lacks"),
        ("calibrate {net} --data {camera} --agreement 0.98", "it takes at least 149"),
        ("calibrate {net} --data digits --agreement 98", "must lie between 0 and 1"),
        ("calibrate {net} --data digits --agreement high", "expected numbers between commas"),
        ("calibrate {net} --data digits --agreement 0.9 --reject-own 0.1", "run --reject-own apart"),
        ("eval {net} --data digits --agreement 0.9 --classes 0-3", "make an expert of --classes"),
    ],
)
def test_wrong_usage_is_told_in_one_line(at, failing, line, said):
    code, out, told = failing(f"{line} --workers 0")
    assert code in (1, 2) and out == "" and said in told.splitlines()[-1]
