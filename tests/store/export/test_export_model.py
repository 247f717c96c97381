"""Exported files: in every runtime the network's logits, and inside them everything that is needed."""

import json
import logging
import os
import sys
from functools import cache

import numpy as np
import pytest
import torch
from helpers.exported_nets import SIDE, TREE, assert_near, build, cues, logits, pixels

import hlnet
from hlnet.errors import CheckpointError, RunError, UsageError
from hlnet.model.fast.optimize import optimize
from hlnet.model.plain import PlainConfig, PlainNet
from hlnet.model.provenance import Provenance
from hlnet.model.transform import InputTransform
from hlnet.optional import silence
from hlnet.store.checkpoint import read_header, save_checkpoint
from hlnet.store.export import writers
from hlnet.store.export.about import describe
from hlnet.store.export.export_model import export_model, file_size
from hlnet.store.export.runtimes import open_exported
from hlnet.store.export.writers import SUFFIXES
from hlnet.tree.io import tree_from_json

PACKAGES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino", "onnx", "onnxscript"),
    "executorch": ("executorch",),
}
# Every pair of format and block, with gains for one of the two.
CASES = [
    ("onnx", "bottleneck", True),
    ("onnx", "convnext", True),
    ("torch-export", "bottleneck", False),
    ("torch-export", "convnext", True),
    ("openvino", "bottleneck", True),
    ("openvino", "convnext", False),
    ("executorch", "bottleneck", True),
]


def need(format):
    for package in PACKAGES.get(format, ()):
        pytest.importorskip(package)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """By format, block and gains: a network, where it was exported to and what was said of that."""

    @cache
    def export(format, block, with_gains):
        need(format)
        net = build(block)
        folder = tmp_path_factory.mktemp("export")
        save_checkpoint(net, folder / "net.safetensors")
        out = folder / f"net{SUFFIXES[format]}"
        return net, out, export_model(folder / "net.safetensors", out, format, with_gains)

    return export


@pytest.fixture(params=CASES, ids=lambda found: "-".join(map(str, found)))
def exported(request, case):
    return case(*request.param)


def test_logits_of_batches_of_one_and_three_without_and_with_gains(exported):
    net, out, said = exported
    run = open_exported(out, threads=1)
    for count in (1, 3):
        images = pixels(count)
        assert_near(run(images), logits(net, images))
        if said.with_gains:
            gains = cues(net, count)
            assert_near(run(images, gains), logits(net, images, gains))
            assert_near(run(images, torch.ones_like(gains)), logits(net, images))
            assert float(np.abs(run(images, gains) - run(images)).max()) > 1e-2
        else:
            with pytest.raises(UsageError, match="--with-gains"):
                run(images, cues(net, count))


def test_report_and_what_the_file_says_of_itself(exported):
    net, out, said = exported
    about = open_exported(out).about
    fixed = 1 if said.format == "executorch" else None
    assert (about["classes"], about["indices"]) == (list(TREE.classes), list(TREE.indices))
    assert tree_from_json(about["tree"]) == TREE
    assert InputTransform.model_validate(about["transform"]) == net.transform
    assert about["provenance"] == net.provenance.model_dump(mode="json") and about["provenance"]["parent"] == "f00"
    assert about["fingerprint"] == read_header(out.with_name("net.safetensors")).fingerprint
    assert about["hlnet"] == hlnet.__version__ and about["temperature"] == 1.7
    assert about["rejection"] == {"score": "energy", "threshold": 0.5} and about["probabilities"] == "softmax"
    inputs = {name: given["shape"] for name, given in about["inputs"].items()}
    gains = {"gains": [fixed, TREE.num_nodes]} if said.with_gains else {}
    assert inputs == {"images": [fixed, 3, SIDE, SIDE]} | gains
    assert (
        said.bytes
        == file_size(out)
        == sum(f.stat().st_size for f in out.parent.iterdir() if f.stem == "net")
        - (out.with_name("net.safetensors").stat().st_size)
    )
    assert 0 < said.max_difference < 1e-5 * said.largest_logit and said.images == 5


def test_nothing_of_this_machine_and_no_draft_is_left(exported):
    _, out, said = exported
    files = {entry.name for entry in out.parent.iterdir()}
    assert files == {"net.safetensors", out.name} | ({"net.bin"} if said.format == "openvino" else set())
    places = [os.path.dirname(os.path.dirname(module.__file__)) for module in (hlnet, torch, np)]
    for name in files - {"net.safetensors"}:
        content = (out.parent / name).read_bytes()
        assert not any(word.encode() in content for word in (*places, ".hlnet-", str(out.parent)))


def test_onnx_is_sound_and_its_batch_free(case):
    _, onnx_file, _ = case("onnx", "bottleneck", True)
    import onnx
    import onnxruntime

    model = onnx.load(onnx_file)
    onnx.checker.check_model(model, full_check=True)
    assert [entry.key for entry in model.metadata_props] == ["hlnet"]
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    found = [(given.name, given.type, given.shape) for given in (*session.get_inputs(), *session.get_outputs())]
    shapes = {"images": [3, SIDE, SIDE], "gains": [TREE.num_nodes], "logits": [len(TREE.classes)]}
    assert found == [(name, "tensor(float)", ["batch", *shape]) for name, shape in shapes.items()]
    assert not {node.op_type for node in model.graph.node} & {"BatchNormalization", "If", "Loop"}
    assert not any(part.metadata_props for part in (*model.graph.node, *model.graph.value_info, *model.graph.input))
    convolutions = sum(node.op_type == "Conv" for node in model.graph.node)
    trunk = sum(isinstance(module, torch.nn.Conv2d) for module in build().trunk.modules())
    sizes = sum(len(set(counts)) for counts in TREE.sibling_counts)
    assert convolutions == trunk + 4 * sizes + 1


def test_torch_loads_what_torch_export_wrote(case):
    net, out, _ = case("torch-export", "bottleneck", False)
    extra = {"hlnet.json": ""}
    program = torch.export.load(out, extra_files=extra)
    assert json.loads(extra["hlnet.json"])["classes"] == list(TREE.classes)
    assert_near(program.module()(pixels(3)).detach(), logits(net, pixels(3)))


def test_plain_network(tmp_path):
    net = PlainNet(PlainConfig(backbone="test_resnet"), TREE)
    torch.nn.init.normal_(net.model.get_classifier().weight, std=0.1)
    net.transform = net.transform.adjusted(img_size=SIDE)
    export_model(net.train(), tmp_path / "net.pt2", "torch-export")
    assert net.training
    assert_near(open_exported(tmp_path / "net.pt2")(pixels(3)), logits(net.eval(), pixels(3)))
    with pytest.raises(UsageError, match="plain network"):
        export_model(net, tmp_path / "net.pt2", "torch-export", with_gains=True)


def test_file_that_gives_other_logits_is_not_kept(tmp_path, monkeypatch):
    out = tmp_path / "net.pt2"
    out.write_text("older")
    with pytest.raises(RunError, match="other logits: they differ by up to"):
        export_model(build(), out, "torch-export", tolerance=0.0)
    assert out.read_text() == "older" and os.listdir(tmp_path) == ["net.pt2"]
    net = build()
    with torch.no_grad():
        net.head.leaves.bias.fill_(torch.nan)
    with pytest.raises(RunError, match="other logits"):
        export_model(net, out, "torch-export")
    assert out.read_text() == "older" and os.listdir(tmp_path) == ["net.pt2"]


def test_a_graph_that_is_right_for_one_image_only_is_found_out(tmp_path, monkeypatch):
    opened = hlnet.store.export.export_model.open_exported

    def mixing_up(path):
        run = opened(path)
        return hlnet.store.export.runtimes.ExportedNet(
            run.runtime, run.about, lambda inputs: run.run(inputs)[::-1].copy()
        )

    monkeypatch.setattr(hlnet.store.export.export_model, "open_exported", mixing_up)
    with pytest.raises(RunError, match="other logits"):
        export_model(build(), tmp_path / "net.pt2", "torch-export")
    export_model(build(), tmp_path / "net.pt2", "torch-export", images=pixels(1))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": "tflite"}, "no format 'tflite'; expected onnx"),
        ({"format": None, "out": "net.tflite"}, "the ending says the format"),
        ({"out": "net.onnx"}, "ends in .pt2"),
        ({"out": "net"}, "ends in .pt2"),
        ({"model": lambda: optimize(build())}, "InferenceNet cannot be exported"),
        ({"model": lambda: "no/such.safetensors"}, "no model file"),
    ],
)
def test_what_cannot_be_meant_is_refused(change, told, tmp_path):
    given = {"model": build, "out": "net.pt2", "format": "torch-export"} | change
    with pytest.raises(UsageError, match=told):
        export_model(given["model"](), tmp_path / given["out"], given["format"])
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("format", "package", "extra"),
    [("onnx", "onnxscript", "onnx"), ("openvino", "openvino", "openvino"), ("executorch", "executorch", "executorch")],
)
def test_missing_package_is_named_with_its_extra(format, package, extra, tmp_path, monkeypatch):
    if format == "onnx":
        need("onnx")
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"needs the package {package}: pip install 'hlnet\[{extra}\]'"):
        export_model(build(), tmp_path / f"net{SUFFIXES[format]}", format)


def test_network_too_large_for_onnx_is_refused(tmp_path, monkeypatch):
    need("onnx")
    monkeypatch.setattr(writers, "LARGEST_ONNX", 10_000)
    with pytest.raises(UsageError, match="cut an expert"):
        export_model(build(), tmp_path / "net.onnx")


@pytest.mark.parametrize("suffix", SUFFIXES.values())
def test_what_is_no_export_is_refused(suffix, tmp_path):
    need(next(format for format, found in SUFFIXES.items() if found == suffix))
    path = tmp_path / f"net{suffix}"
    with pytest.raises(UsageError, match="no file"):
        open_exported(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="cannot be opened"):
        open_exported(path)
    with pytest.raises(UsageError, match="no exported network"):
        open_exported(tmp_path / "net.safetensors")


def test_foreign_file_is_refused(case, tmp_path):
    _, onnx_file, _ = case("onnx", "bottleneck", True)
    import onnx

    model = onnx.load(onnx_file)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(CheckpointError, match="does not say what it holds"):
        open_exported(tmp_path / "net.onnx")


def test_probabilities_of_detectors_are_sigmoids():
    net = build()
    net.provenance = Provenance(one_vs_rest=True)
    about = describe(net)
    assert (about["probabilities"], about["temperature"], about["rejection"]) == ("sigmoid", 1.0, None)


def test_noise_of_others_is_kept_from_the_user(capfd, caplog):
    with caplog.at_level(logging.DEBUG, logger="hlnet.optional"), silence():
        print("from Python")
        os.write(2, b"from C\n")
        logging.warning("from a log")
    assert capfd.readouterr() == ("", "")
    assert all(word in caplog.text for word in ("from Python", "from C", "from a log"))
    print("after")
    assert capfd.readouterr() == ("after\n", "")
