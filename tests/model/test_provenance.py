"""What a checkpoint says of its weights: old files and new ones, detectors and softmax."""

import pytest
import torch
from helpers.evaluated_nets import BCE, build

from hlnet.expert.cut import cut_checkpoint, cut_expert
from hlnet.model.fast.optimize import optimize
from hlnet.model.provenance import Provenance
from hlnet.store.checkpoint import load_checkpoint, save_checkpoint

SOFTMAX = {"train": {"loss": "cross-entropy"}}


@pytest.mark.parametrize(
    "written, one_vs_rest",
    [
        ({}, False),
        ({"recipe": SOFTMAX}, False),
        ({"recipe": BCE}, True),
        ({"recipe": {"train": "bce"}}, False),
        ({"recipe": BCE, "one_vs_rest": False}, False),
        ({"recipe": SOFTMAX, "one_vs_rest": True}, True),
    ],
)
def test_a_file_without_the_field_goes_by_its_recipe(written, one_vs_rest):
    assert Provenance.model_validate(written).one_vs_rest is one_vs_rest


def test_only_detectors_say_so():
    for provenance in (Provenance(), Provenance(recipe=SOFTMAX, temperature=2.0)):
        assert "one_vs_rest" not in provenance.model_dump(mode="json")
    detectors = Provenance(recipe=BCE).model_dump(mode="json")
    assert detectors["one_vs_rest"] is True and Provenance.model_validate(detectors).one_vs_rest


def test_cuts_stay_detectors(tmp_path):
    """Whatever their recipe says."""
    net = build()
    net.provenance = Provenance(one_vs_rest=True)
    save_checkpoint(net, tmp_path / "net.safetensors")
    cut_checkpoint(tmp_path / "net.safetensors", "dog", tmp_path / "dog.safetensors")
    found = [cut_expert(net, "cat"), load_checkpoint(tmp_path / "dog.safetensors"), optimize(net).select("cat")]
    assert all(one.provenance.one_vs_rest for one in found)
    assert torch.equal(found[1](torch.zeros(1, 3, 32, 32)), net(torch.zeros(1, 3, 32, 32))[:, 2:4])


@pytest.mark.parametrize("recipe", [{}, SOFTMAX, BCE])
@pytest.mark.parametrize("one_vs_rest", [False, True])
def test_what_is_written_is_read(recipe, one_vs_rest):
    provenance = Provenance(recipe=recipe, one_vs_rest=one_vs_rest)
    assert Provenance.model_validate(provenance.model_dump(mode="json")) == provenance
