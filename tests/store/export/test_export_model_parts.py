"""Trunk and head in files of their own: together the whole network's logits, and no head behind another's trunk."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from helpers.exported_nets import assert_near, build, cues, logits, pixels
from helpers.lean_nets import LEAN, TREES, build_lean

import hlnet
from hlnet.errors import RunError, UsageError
from hlnet.model.plain import PlainConfig, PlainNet
from hlnet.store.export.about import trunk_fingerprint
from hlnet.store.export.export_model import export_model, file_size, part_files
from hlnet.store.export.runtimes import AsModule, open_exported
from hlnet.store.export.writers import SUFFIXES

# The format of the network's files, the kind of network, and whether with gains. An expert's are torch.export's, which
# takes the least time. OpenVINO and ExecuTorch start from the same program; test_export_model.py has whole networks.
CASES = [("torch-export", "paper", False), ("onnx", "all", True)]


def network(kind):
    return build() if kind == "paper" else build_lean(TREES["uneven"], LEAN[kind], torch.float32)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """By format, kind and gains: a network and an expert of it, each with its report of the export in parts."""

    @cache
    def export(format, kind, with_gains):
        if format == "onnx":
            pytest.importorskip("onnxscript")
            pytest.importorskip("onnxruntime")
        net = network(kind)
        expert = hlnet.cut_expert(net, "dog" if kind == "paper" else "x")
        folder = tmp_path_factory.mktemp("parts")
        files = (folder / f"full{SUFFIXES[format]}", folder / "expert.pt2")
        return [
            (each, export_model(each, file, with_gains=with_gains, parts=True))
            for each, file in zip((net, expert), files, strict=True)
        ]

    return export


@pytest.mark.parametrize("case", CASES, ids=lambda found: "-".join(map(str, found)))
def test_heads_of_a_network_and_an_expert_give_their_logits_on_the_features_of_one_trunk(case, parts):
    made = parts(*case)
    trunk = open_exported(made[0][1].trunk, threads=1)
    for count in (1, 3):
        images = pixels(count, side=made[0][0].transform.input_size[1])
        features = trunk(images)
        net = made[0][0]
        with torch.no_grad():
            mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (net.transform.mean, net.transform.std))
            assert_near(features, net.features((images - mean) / std))
        for each, said in made:
            head = open_exported(said.out, 1, trunk)
            assert_near(head(features), logits(each, images))
            if said.with_gains:
                gains = cues(each, count)
                assert_near(head(features, gains), logits(each, images, gains))


def test_together_they_are_the_whole_export(parts, tmp_path):
    net, said = parts("torch-export", "paper", False)[1]
    export_model(net, tmp_path / "whole.pt2")
    images = pixels(3)
    trunk = open_exported(said.trunk)
    both, whole = AsModule(trunk, open_exported(said.out, trunk=trunk)), open_exported(tmp_path / "whole.pt2")
    assert np.array_equal(both(images).numpy(), whole(images))


@pytest.mark.parametrize("case", CASES, ids=lambda found: "-".join(map(str, found)))
def test_files_and_what_they_say_of_themselves(case, parts):
    (net, full), (expert, small) = parts(*case)
    channels, *sides = net.features(torch.zeros(1, *net.transform.input_size)).shape[1:]
    features = {"features": [None, channels, *sides]}
    for each, said in ((net, full), (expert, small)):
        trunk, head = (open_exported(file).about for file in (said.trunk, said.out))
        assert (trunk["part"], head["part"]) == ("trunk", "head")
        assert trunk["trunk"] == head["trunk"] == trunk_fingerprint(net)
        shapes = {name: given["shape"] for name, given in head["inputs"].items()}
        assert shapes == features | ({"gains": [None, each.tree.num_nodes]} if said.with_gains else {})
        assert head["outputs"]["logits"]["shape"] == [None, len(each.tree.classes)]
        assert head["classes"] == list(each.tree.classes)
        assert {name: given["shape"] for name, given in trunk["inputs"].items()} == {
            "images": [None, *net.transform.input_size]
        }
        assert {name: given["shape"] for name, given in trunk["outputs"].items()} == features
        assert said.bytes == file_size(said.trunk) + file_size(said.out)
    first, second = (open_exported(said.trunk).about for said in (full, small))
    assert first == second and "classes" not in first


def test_a_foreign_trunk_is_refused(parts):
    _, said = parts("torch-export", "paper", False)[0]
    trunk, head = open_exported(said.trunk), open_exported(said.out)
    other = network("paper")
    with torch.no_grad():
        next(other.trunk.parameters()).add_(1e-3)
    foreign = replace(trunk, about=trunk.about | {"trunk": trunk_fingerprint(other)})
    with pytest.raises(UsageError, match="is the head of another trunk"):
        open_exported(said.out, trunk=foreign)
    whole = replace(trunk, about={name: value for name, value in trunk.about.items() if name != "part"})
    with pytest.raises(UsageError, match="trunk is a whole network, not a trunk"):
        open_exported(said.out, trunk=whole)
    with pytest.raises(UsageError, match=r"trunk.pt2' is a trunk, not a head"):
        open_exported(said.trunk, trunk=trunk)
    shape = ", ".join(map(str, trunk(pixels(1)).shape[1:]))
    with pytest.raises(UsageError, match=rf"takes features of shape \[N, {shape}\], got \[2, 3, 40, 40\]"):
        head(pixels(2))


def test_fingerprint_is_of_what_decides_on_features():
    net = build()
    same = hlnet.cut_expert(net, "cat")
    same.provenance.temperature = 3.0
    assert trunk_fingerprint(same) == trunk_fingerprint(net) == trunk_fingerprint(build())
    changed = build()
    changed.transform = changed.transform.adjusted(std=0.4)
    assert trunk_fingerprint(changed) != trunk_fingerprint(net)
    for name, tensor in build().trunk.state_dict().items():
        changed = build()
        changed.trunk.state_dict()[name].flatten()[:1].add_(1)
        counts = name.endswith("num_batches_tracked")
        assert tensor.is_floating_point() != counts
        assert (trunk_fingerprint(changed) == trunk_fingerprint(net)) == counts, name


def test_parts_that_give_other_logits_are_not_kept_and_a_plain_network_has_none(tmp_path):
    out = tmp_path / "net.pt2"
    with pytest.raises(RunError, match="other logits"):
        export_model(build(), out, "torch-export", tolerance=0.0, parts=True)
    assert not list(tmp_path.iterdir())
    plain = PlainNet(PlainConfig(backbone="test_resnet"), TREES["uneven"])
    with pytest.raises(UsageError, match="a plain network has no branches to export apart"):
        export_model(plain, out, "torch-export", parts=True)
    assert [place.name for place in part_files(tmp_path / "a.b.onnx")] == ["a.b.trunk.onnx", "a.b.head.onnx"]
