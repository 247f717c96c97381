"""``make-expert --calibrate``: what stands in the files is what the library fits, and predict and eval go by it."""

import json
import math

import pytest
from helpers.command_line import as_json, invoke
from PIL import Image
from typer.testing import CliRunner

import hlnet
from hlnet.cli.main import app
from hlnet.errors import DataError, UsageError
from hlnet.store.checkpoint import load_checkpoint, read_header

LINE = "make-expert {full} --calibrate digits --max-false-positive 0.1 --workers 0 --device cpu"


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    """A network of ten digits, untrained: what is promised of outside images holds for it as well."""
    root = tmp_path_factory.mktemp("calibrated")
    nested = {"low": {str(i): i for i in range(5)}, "high": {str(i): i for i in range(5, 10)}}
    tree = hlnet.ClassTree.from_nested(nested)
    net = hlnet.create_model("test_resnet", tree=tree, widths=(8, 4), strides=(1, 1))
    net.transform = net.transform.adjusted(32)
    hlnet.save_checkpoint(net, root / "full.safetensors")
    Image.new("RGB", (32, 32), "white").save(root / "white.png")
    return {
        name: str(root / f"{name}{end}") for name, end in (("full", ".safetensors"), ("white", ".png"), ("new", ""))
    }


@pytest.mark.parametrize("score", ["", "--score max-logit", "--score probability"])
def test_file_holds_what_the_library_fits(at, tmp_path, score):
    out = tmp_path / "low.safetensors"
    told = as_json(f"{LINE} {score} --classes low --out {out}", **at)
    net = hlnet.cut_expert(at["full"], "low")
    data = hlnet.TreeData(hlnet.load_data("digits", "val"), net.tree, hlnet.eval_transform(net.transform), outside=True)
    chosen = score.removeprefix("--score ") or None
    hlnet.calibrate(hlnet.optimize(net), data, 0.1, chosen)
    expected = net.provenance
    found = read_header(out).provenance
    assert found == expected and found.rejection.score == (chosen or "energy")
    assert told["calibration"]["rejection"]["threshold"] == found.rejection.threshold
    outside = found.rejection.metrics["outside_images"]
    assert found.rejection.metrics["outside_accepted"] <= math.floor(0.1 * (outside + 1)) / outside
    ours, full = load_checkpoint(out).state_dict(), net.state_dict()
    assert all(ours[name].equal(full[name]) for name in full)  # the weights stay as they were cut


def test_predict_and_eval_go_by_it(at, tmp_path):
    out = tmp_path / "low.safetensors"
    invoke(f"{LINE} --classes low --out {out}", **at)
    found = json.loads(invoke(f"predict {out} {{white}} --json --device cpu", **at)[0])
    assert found["rejected"] == (found["score"] < read_header(out).provenance.rejection.threshold)
    assert len(found["labels"]) == 5
    measured = as_json(f"eval {out} --data digits --workers 0 --device cpu")["detection"]
    fitted = read_header(out).provenance.rejection.metrics
    assert measured["own_accepted"] == pytest.approx(fitted["own_accepted"])  # the same images
    assert measured["auroc"] == pytest.approx(fitted["auroc"])


def test_each_expert_has_its_own_threshold(at, tmp_path):
    stdout, _ = invoke(f"{LINE} --each 1 --out {tmp_path / 'experts'}", **at)
    fitted = {read_header(path).provenance.rejection.threshold for path in (tmp_path / "experts").iterdir()}
    assert len(fitted) == 2 and "none of these" in stdout.lower()


@pytest.mark.parametrize("chosen", ["--each 1", "--selections {groups}"])
def test_what_cannot_be_calibrated_is_found_before_the_first_cut(at, tmp_path, chosen):
    """The first expert could be, the second has no image of its own; or there are too few of others for the third."""
    nested = {"low": ["0", "1"], "odd": ["x", "y"], "high": ["8", "9"]}
    net = hlnet.create_model("test_resnet", tree=nested, widths=(8, 4), strides=(1, 1))
    net.transform = net.transform.adjusted(32)
    hlnet.save_checkpoint(net, tmp_path / "net.safetensors")
    (tmp_path / "groups.json").write_text('{"one": "low", "two": "odd"}')
    line = f"{LINE} {chosen} --verify --out {{new}}"
    places = {"full": tmp_path / "net.safetensors", "groups": tmp_path / "groups.json", "new": tmp_path / "new"}
    result = CliRunner().invoke(app, line.format(**places).split())
    name = "odd" if "each" in chosen else "two"
    assert type(result.exception) is DataError and f"expert '{name}': digits holds no image" in str(result.exception)
    assert not (tmp_path / "new").exists() and result.stdout == ""


def test_experts_before_a_failure_are_told(at, tmp_path, monkeypatch):
    from hlnet.expert import write

    fit, done = write.calibrate, []

    def fails_later(net, *rest):
        if done:
            raise DataError("cannot read image 'x.png'")
        done.append(net)
        return fit(net, *rest)

    monkeypatch.setattr(write, "calibrate", fails_later)
    result = CliRunner().invoke(app, f"{LINE} --each 1 --out {tmp_path / 'many'}".format(**at).split())
    (written,) = (tmp_path / "many").iterdir()
    assert "x.png" in str(result.exception) and result.stdout == ""
    told = [line for line in result.stderr.splitlines() if "was not written" in line]
    assert len(told) == 1 and "1 of 2 experts" in told[0] and told[0].endswith(str(written))
    assert read_header(written).provenance.rejection is not None


@pytest.mark.parametrize(
    ["rest", "error", "words"],
    [
        ("--classes low", UsageError, "--out"),
        ("--classes low --out {new}/x.safetensors --dry-run", UsageError, "--dry-run"),
        ("--classes low --out {new}/x.safetensors --max-false-positive 0.0001", DataError, "9999 images"),
        ("--classes low,high --out {new}/x.safetensors", DataError, "outside"),
    ],
)
def test_refused(at, tmp_path, rest, error, words):
    line = f"{LINE} {rest}".format(**(at | {"new": tmp_path}))
    result = CliRunner().invoke(app, line.split())
    assert isinstance(result.exception, error) and words in str(result.exception)
    assert not (tmp_path / "x.safetensors").exists()
