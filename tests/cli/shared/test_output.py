"""Lines that a user must not miss: a network that costs more than the plain one, a threshold that loses images."""

import re

import pytest

from hlnet.cli.shared.calibration_tables import show_calibration
from hlnet.cli.shared.output import hint_at_cost
from hlnet.model.cost import network_cost, plain_cost
from hlnet.model.presets import create_model


@pytest.mark.parametrize(("widths", "dear"), [([64, 64], True), ([2, 2], False)])
def test_a_network_dearer_than_the_plain_one_is_told(widths, dear, capsys):
    net = create_model("test_resnet", tree={"a": ["b", "c"], "d": ["e"]}, widths=widths, strides=[1, 1])
    cost, plain = network_cost(net), plain_cost(net.config, net.num_classes, net.transform.input_size)
    assert dear == (cost.gmacs > plain.gmacs or cost.params > plain.params)
    hint_at_cost(cost, plain)
    found = " ".join(capsys.readouterr().err.split())
    times = re.search(r"costs (\S+) times the GMACs and (\S+) times the parameters", found)
    assert bool(times) == dear == ("--widths" in found)
    if times:
        assert [float(time) for time in times.groups()] == [
            pytest.approx(ours / theirs, abs=6e-3)
            for ours, theirs in ((cost.gmacs, plain.gmacs), (cost.params, plain.params))
        ]


def test_a_threshold_that_loses_own_images_is_told(capsys):
    metrics = {"own_images": 40, "outside_images": 40, "auroc": 0.8, "fpr_at_95_tpr": 0.6, "false_positive_bound": 0.1}
    for accepted, told in ((0.55, "45 % of the images of its classes"), (0.95, None)):
        fit = {"score": "energy", "threshold": 1.0, "max_false_positive": 0.05}
        one = {"temperature": None, "rejection": fit | {"metrics": metrics | {"own_accepted": accepted}}}
        show_calibration(["cats"], [{"calibration": one}])
        found = " ".join(capsys.readouterr().err.split())
        if told is None:
            assert "images of its classes, to accept" not in found
        else:
            assert told in found and "--max-false-positive" in found
