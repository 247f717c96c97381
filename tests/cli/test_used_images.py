"""``eval`` and the commands that fit say which images trained, chose or fitted something already."""

import pytest
from helpers.command_line import as_json, invoke
from helpers.short_trainings import build, fit

import hlnet
from hlnet.data.images import LabelledImages
from hlnet.store.checkpoint import load_checkpoint, read_header

REST = "--workers 0 --device cpu"


@pytest.fixture
def at(tmp_path):
    """A network that says of itself that it was trained on digits, and chose its epoch on the others."""
    nested = {"low": {str(i): i for i in range(5)}, "high": {str(i): i for i in range(5, 10)}}
    net = hlnet.create_model("test_resnet", tree=nested, widths=(8, 4), strides=(1, 1))
    net.transform = net.transform.adjusted(32)
    for use, split in (("weights", "train"), ("epoch", "val")):
        images = hlnet.load_data("digits", split)
        net.provenance.record(use, f"digits ({split})", images.fingerprint())
    hlnet.save_checkpoint(net, tmp_path / "net.safetensors")
    return {"net": str(tmp_path / "net.safetensors"), "new": str(tmp_path / "new.safetensors")}


def test_training_notes_its_images():
    net = build()
    fit(net)
    assert [use.use for use in net.provenance.images] == ["weights", "epoch"]
    fit(net, count=12)  # on another set, from these weights
    assert len({use.images for use in net.provenance.images}) == 3


def test_eval_says_what_its_images_did(at):
    _, hints = invoke(f"eval {{net}} --data digits {REST}", **at)
    assert "chose its epoch" in hints and "--split test" in hints and "trained" not in hints
    assert as_json(f"eval {{net}} --data digits {REST}", **at)["served"] == ["epoch"]
    _, hints = invoke(f"calibrate {{net}} --data digits --out {{new}} {REST}", **at)
    assert "chose its epoch" in hints
    assert as_json(f"eval {{new}} --data digits {REST}", **at)["served"] == ["epoch", "temperature", "coverage"]
    _, hints = invoke(f"eval {{new}} --data digits {REST}", **at)
    assert "chose its epoch, fitted its temperature and fitted its thresholds of a coverage" in hints
    _, hints = invoke(f"attend {{new}} --data digits --gains 2 --save {REST}", **at)
    assert {use.use for use in read_header(at["new"]).provenance.images} == {
        *("weights", "epoch", "temperature", "coverage", "attention")
    }


def test_other_images_are_passed_over_in_silence(at):
    """The same names, but not the same images; and an expert keeps what is true of its weights alone."""
    net = load_checkpoint(at["net"])
    net.provenance.temperature = 2.0
    val = hlnet.load_data("digits", "val")
    net.provenance.record("temperature", "digits", val.fingerprint())
    expert = hlnet.cut_expert(net, "low")
    assert expert.provenance.uses_of(val.fingerprint()) == ["epoch"]
    fewer = LabelledImages(val.name, val.classes, val.labels[:-1], val.load)
    data = hlnet.TreeData(fewer, net.tree, hlnet.eval_transform(net.transform))
    assert hlnet.evaluate(net, data).served == []
