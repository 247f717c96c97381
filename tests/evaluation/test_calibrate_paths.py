"""``hlnet calibrate``: half of the images give the temperature, half the thresholds; both stay with the weights that
they are of."""

import json

import numpy as np
import pytest
import torch
from helpers.command_line import as_json, invoke
from helpers.evaluated_nets import BCE, TREE, build, by_hand, expert_of, noise
from helpers.path_cases import under
from PIL import Image
from typer.testing import CliRunner

from hlnet.cli.main import app
from hlnet.errors import DataError, RunError, UsageError
from hlnet.evaluation.calibration import calibrate, calibrate_paths
from hlnet.evaluation.metrics.conformal import threshold_for
from hlnet.evaluation.metrics.probability import calibration_error, class_probabilities, fit_temperature
from hlnet.evaluation.prediction import predict
from hlnet.expert.cut import cut_expert
from hlnet.expert.merge import merge_experts
from hlnet.model.fast.optimize import optimize
from hlnet.model.provenance import PathConformal, Provenance, Rejection
from hlnet.store.checkpoint import load_checkpoint, read_header, save_checkpoint

FITTED = {"temperature", "conformal"}


def halves(count):
    """Which images give the temperature, and which the thresholds."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order[: count - count // 2], order[count - count // 2 :]


def first_miss(tree, shares, label):
    """The share of the first node on the likeliest way that the class is not under, by names; 0 without one."""
    here = ""
    while here not in {leaf.path for leaf in tree.leaves}:
        depth = here.count("/") + 1 if here else 0
        nodes = [
            node.path for node in tree.levels[depth] if node.path.rpartition("/")[0] == here and not node.continued
        ]
        here = max(nodes, key=lambda path: under(tree, shares, path))
        if not f"{tree.leaves[label].path}/".startswith(f"{here}/"):
            return under(tree, shares, here)
    return 0.0


@pytest.mark.parametrize("kind", ["full", "plain", "expert", "optimised"])
@pytest.mark.parametrize("recipe", [{}, BCE], ids=["softmax", "bce"])
def test_fit_is_of_two_halves(kind, recipe):
    net = build("plain" if kind == "plain" else "hierarchical")
    net = cut_expert(net, "cat,saw") if kind == "expert" else net
    net.provenance = Provenance(recipe=recipe)
    data, ticks = noise(net.tree, subset=not recipe, outside=bool(recipe)), []
    if kind == "optimised":
        net = optimize(net)
    report = calibrate_paths(net, data, batch_size=7, on_batch=lambda: ticks.append(1))
    found = net.provenance
    assert {use.use for use in found.images} == {"temperature", "coverage"}
    kept = found.model_copy(update={"temperature": None, "conformal": None, "images": ()})
    assert len(ticks) == -(-len(data) // 7) and kept == Provenance(recipe=recipe) and report is found.conformal
    logits, labels = by_hand(net, data)
    first, second = halves(len(data))
    if not recipe:
        first = first[labels[first] >= 0]
    second = second[labels[second] >= 0]
    temperature = fit_temperature(logits[first], labels[first], bool(recipe))
    assert found.temperature == pytest.approx(temperature, rel=1e-4)
    fitted = found.conformal
    assert (fitted.images, fitted.data) == (len(second), "noise")
    shares = (logits[second].double() / temperature).softmax(1).tolist()
    pairs = zip(shares, labels[second].tolist(), strict=True)
    scores = sorted((first_miss(net.tree, row, label) for row, label in pairs), reverse=True)
    for coverage in (0.5, 0.55, 0.8):
        rank = int((1 - coverage) * (len(second) + 1) + 1e-9)
        assert threshold_for(fitted, coverage) == pytest.approx(scores[rank - 1], abs=1e-4)
    assert fitted.metrics["temperature_images"] == len(first)
    for name, value in (("ece_before", 1.0), ("ece", temperature)):
        error = calibration_error(class_probabilities(logits[second], bool(recipe), value), labels[second])
        assert fitted.metrics[name] == pytest.approx(error, abs=1e-4)
    assert 1 <= fitted.metrics["classes@0.8"] <= len(net.tree.leaves)


def test_what_is_promised_of_a_network(tmp_path):
    """On the images of the thresholds themselves, the nodes that predict answers with hold the class often enough."""
    net, data = build(), noise(subset=True)
    calibrate_paths(net, data, batch_size=8)
    _, second = halves(len(data))
    paths = []
    for i in second.tolist():
        data.images.load(data.samples[i][0]).save(tmp_path / f"{i}.png")
        paths.append(tmp_path / f"{i}.png")
    for coverage in (0.5, 0.7, 0.9):
        answers = [found.answer.path for found in predict(net, paths, coverage=coverage)]
        truths = [TREE.leaves[data.labels[i]].path for i in second.tolist()]
        pairs = zip(answers, truths, strict=True)
        held = sum(not answer or f"{truth}/".startswith(f"{answer}/") for answer, truth in pairs)
        assert held >= coverage * len(second)


def test_fit_stays_with_its_weights(tmp_path):
    net, data = build(), noise(subset=True)
    calibrate_paths(net, data, batch_size=8)
    save_checkpoint(net, tmp_path / "net.safetensors")
    assert load_checkpoint(tmp_path / "net.safetensors").provenance == net.provenance
    assert net.provenance.model_dump(include=FITTED).keys() == FITTED and net.provenance.conformal
    for name, selection in (("cats", "cat"), ("dogs", "dog"), ("all", "*")):
        expert = cut_expert(tmp_path / "net.safetensors", selection)
        assert expert.provenance.conformal is None and cut_expert(net, selection).provenance.conformal is None
        save_checkpoint(expert, tmp_path / f"{name}.safetensors")
    merged = merge_experts([tmp_path / "cats.safetensors", tmp_path / "dogs.safetensors"])
    assert merged.provenance.conformal is None and net.provenance.after_training({}).conformal is None
    fast = optimize(net)
    assert fast.provenance.conformal and fast.select("*").provenance.conformal
    assert fast.select("cat").provenance.conformal is None
    with pytest.raises(UsageError, match="has no thresholds for a coverage"):
        predict(fast.select("cat"), [], coverage=0.6)


def test_rejection_stays_and_refitting_it_drops_the_thresholds():
    expert, data = expert_of("cat,dog")
    rejection = expert.provenance.rejection
    own = noise(expert.tree, subset=True)
    calibrate_paths(expert, own, batch_size=8)
    assert expert.provenance.rejection == rejection and expert.provenance.conformal
    again = calibrate(expert, data, 0.2)  # at another temperature
    assert (
        expert.provenance.conformal is None and expert.provenance.rejection == again
    )  # they were of another temperature


def test_what_cannot_be_fitted():
    net, data = build(), noise(subset=True)
    with pytest.raises(UsageError, match=r"one class \(saw\).*make-expert --calibrate"):
        calibrate_paths(cut_expert(net, "saw"), data)
    few = noise(subset=True)
    few.samples = few.samples[:1]
    with pytest.raises(DataError, match="noise holds too few images"):
        calibrate_paths(net, few)
    with torch.no_grad():
        net.head.leaves.bias.fill_(torch.nan)
    with pytest.raises(RunError, match="not numbers"):
        calibrate_paths(net, data)


def test_classes_without_images_are_named(caplog):
    net, data = build(), noise(subset=True)
    calibrate_paths(net, data)
    assert "noise has no images of axe: nothing is promised" in caplog.text


# ---------------------------------------------------------------------- the command


@pytest.fixture
def at(tmp_path):
    """A network in a run folder, and photographs of its classes and of another one."""
    net = build()
    net.provenance = Provenance(rejection=Rejection(score="energy", threshold=1.0, max_false_positive=0.1))
    (tmp_path / "run").mkdir()
    save_checkpoint(net, tmp_path / "run/best.safetensors")
    save_checkpoint(cut_expert(net, "saw"), tmp_path / "one.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), np.uint8)
    for i, image in enumerate(pixels):
        path = (
            tmp_path / "photos/val" / ("saw", "boxer", "beagle", "axe", "siamese", "tabby", "yak")[i % 7] / f"{i}.png"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return {name: str(tmp_path / name) for name in ("run", "photos", "new.safetensors", "one.safetensors")} | {
        "best": str(tmp_path / "run/best.safetensors"), "new": str(tmp_path / "new.safetensors"),
        "one": str(tmp_path / "one.safetensors"),
    }  # fmt: skip


LINE = "calibrate {run} --data {photos} --workers 0 --device cpu"


def test_command_writes_the_models_own_file(at):
    before = read_header(at["best"])
    told = as_json(LINE, **at)
    after = read_header(at["best"])
    assert after.fingerprint == before.fingerprint and after.provenance.rejection == before.provenance.rejection
    assert told["out"] == at["best"] and told["left_out"] == 10 and "thresholds" not in told["conformal"]
    assert told["temperature"] == after.provenance.temperature and after.provenance.conformal.images == 30
    assert told["conformal"] == json.loads(after.provenance.conformal.model_dump_json(exclude={"thresholds"}))
    answer = invoke("predict {run} {photos}/val/saw --coverage 0.9 --json --device cpu", **at)[0].splitlines()[0]
    assert "answer" in json.loads(answer) or json.loads(answer)["rejected"]


def test_command_writes_another_file_and_tells(at):
    before = read_header(at["best"])
    stdout, stderr = invoke(f"{LINE} --out {{new}}", **at)
    assert read_header(at["best"]).provenance == before.provenance
    fitted = read_header(at["new"]).provenance
    assert f"{fitted.temperature:.3f}" in stdout and f"{threshold_for(fitted.conformal, 0.9):.4f}" in stdout
    assert "95 %" in stdout and "99 %" not in stdout  # for which 30 images are too few
    assert "10 images of other classes left out" in stderr and "--coverage 0.9" in stderr


@pytest.mark.parametrize(
    "line, error, words",
    [
        ("calibrate hf-hub:owner/pets --data {photos}", UsageError, "is on the Hub; name the file to write with --out"),
        ("calibrate {run} --data {photos} --out x.pt", UsageError, "ends in .safetensors"),
        ("calibrate {one} --data {photos} --workers 0", UsageError, "one class (saw)"),
        ("calibrate {run} --data {run}", UsageError, "'val' folder"),
        ("calibrate {run} --data digits", DataError, "holds no image of the tree's classes"),
    ],
)
def test_refused(at, line, error, words):
    before = read_header(at["best"])
    result = CliRunner().invoke(app, line.format(**at).split())
    assert type(result.exception) is error and words in str(result.exception)
    assert read_header(at["best"]) == before


def test_record_is_small_whatever_the_images():
    from hlnet.evaluation.metrics.conformal import fit_path_conformal

    fitted = fit_path_conformal(torch.rand(50_000, generator=torch.Generator().manual_seed(0)), "photos")
    assert len(fitted.model_dump_json()) < 6000
    assert PathConformal.model_validate_json(fitted.model_dump_json()) == fitted
