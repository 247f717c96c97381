"""`hlnet demo`: what it writes is whole, linked, and says what the library says."""

import json
import re
from dataclasses import replace

import pytest
import torch

import hlnet
from hlnet.demo import DemoResult, run_demo
from hlnet.model.cost import Latency


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder, the result, and what was told on the way; latencies are made up, for they take long."""
    out, told = tmp_path_factory.mktemp("demo") / "new" / "folder", []

    def few(name, split):
        """A third of the digits to train on."""
        images = hlnet.load_data(name, split)
        if split != "train":
            return images
        return replace(images, labels=images.labels[::3], load=lambda position: images.load(3 * position))

    def measure(models, *_, **__):
        return {name: [Latency(batch_size=1, threads=1, median_ms=1, low_ms=1, high_ms=1)] for name in models}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hlnet.model.latency.measure_latency", measure)
        patch.setattr("hlnet.demo.load_data", few)
        return out, run_demo(out, epochs=1, on_stage=told.append), told


def test_files_are_those_listed(demo):
    out, result, told = demo
    assert result.files == sorted(path.name for path in out.iterdir())
    assert all((out / name).stat().st_size > 0 for name in result.files) and len(told) > 4
    assert {"best.safetensors", "expert.safetensors", "digits.tree.json", "report.html", "report.json"} <= {
        *result.files
    }


def test_report_links_only_what_exists(demo):
    out, result, _ = demo
    page = (out / "report.html").read_text(encoding="utf-8")
    links = re.findall(r'(?:src|href)="([^"#][^"]*)"', page)
    assert links and all((out / link).is_file() for link in links)
    assert {name for name in result.files if name.endswith(".png")} <= set(re.findall(r"[\w.-]+\.png", page))
    assert "{{" not in page and "{%" not in page and "None" not in page and "nan" not in page.split()


def test_report_json_is_the_result(demo):
    out, result, _ = demo
    text = (out / "report.json").read_text(encoding="utf-8")
    assert DemoResult.model_validate_json(text) == result and json.loads(text)["files"] == result.files


def evaluated(path, classes=None):
    net = hlnet.load_checkpoint(path)
    images = hlnet.TreeData(
        hlnet.load_data("digits", "val"), net.tree, hlnet.eval_transform(net.transform), subset=True
    )
    return hlnet.evaluate(net, images, classes, batch_size=100)


def test_accuracies_are_those_of_evaluate(demo):
    out, result, _ = demo
    full = evaluated(out / "best.safetensors")
    assert full.images == result.images == 360 and full.neutral.top1 == pytest.approx(result.top1)
    expert = evaluated(out / "expert.safetensors")
    restricted = evaluated(out / "best.safetensors", ",".join(result.expert_classes))
    assert expert.neutral.top1 == pytest.approx(result.expert_top1)
    assert restricted.neutral.top1 == pytest.approx(result.restricted_top1)
    assert restricted.neutral == expert.neutral
    at_one, at_eight = (next(row for row in result.sweep if row[0] == signal) for signal in (1.0, 8.0))
    assert at_one[1] == at_one[2] == result.noisy["no cue"]
    assert at_eight[1:] == (result.noisy["right cue"], result.noisy["wrong cue"])
    shares = [share for row in result.sweep for share in row[1:]] + list(result.noisy.values())
    assert all(0 <= share <= 1 for share in shares)


def test_expert_is_a_cut_of_the_network(demo):
    out, result, _ = demo
    full, expert = (hlnet.load_checkpoint(out / f"{name}.safetensors") for name in ("best", "expert"))
    assert 1 < len(expert.tree.classes) < 10 and list(expert.tree.classes) == result.expert_classes
    assert full.tree == hlnet.read_tree(out / "digits.tree.json") and sorted(result.classes) == [*"0123456789"]
    kept = [full.tree.classes.index(name) for name in expert.tree.classes]
    images = torch.randn(2, *full.transform.input_size)
    with torch.no_grad():
        torch.testing.assert_close(expert(images), full(images)[:, kept])
    assert result.difference < 1e-9 and hlnet.verify_expert(expert, full) < 1e-9


def test_costs_are_those_of_profile(demo):
    out, result, _ = demo
    full, expert = (hlnet.load_checkpoint(out / f"{name}.safetensors") for name in ("best", "expert"))
    assert result.cost.full.params == sum(tensor.numel() for tensor in full.parameters())
    assert result.cost.expert.params == sum(tensor.numel() for tensor in expert.parameters())
    assert all(cost.latency for cost in (result.cost.plain, result.cost.full, result.cost.expert))


@pytest.mark.parametrize("name", ["note", "note/below"])
def test_out_that_is_no_folder_is_refused(tmp_path, name):
    (tmp_path / "note").write_text("kept")
    with pytest.raises(hlnet.HlnetError, match="note"):
        run_demo(tmp_path / name, epochs=1)
    assert (tmp_path / "note").read_text() == "kept"
