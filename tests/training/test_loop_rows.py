"""The class rows' own loss: the first step's by its formula, and what a weight of 0 leaves out."""

import copy

import pytest
import torch
from helpers.short_trainings import TREE, build, config, fit, squares

from hlnet.data.tree_data import loader
from hlnet.training.losses import make_loss, prior_logit

ROWS = {"class_rows": True, "shared_width": 4, "rank_leaves": True}


@pytest.mark.parametrize("loss", ["cross-entropy", "bce"])
@pytest.mark.parametrize("cache", [False, True])
def test_first_loss_is_that_of_the_logits_and_so_much_of_the_rows(loss, cache):
    found = {}
    images, labels = next(iter(loader(squares(8), 8)))
    for weight in (0.0, 0.3, 2.0):
        settings = config(epochs=1, loss=loss, rows_loss=weight, frozen_trunk=cache)
        net = build(**ROWS)
        net.freeze_trunk(cache)
        net.head.class_rows.weight.data.normal_()
        naive = copy.deepcopy(net).train()
        if loss == "bce":
            naive.head.class_rows.bias.data.fill_(prior_logit(4))
        with torch.no_grad():
            logits, rows = naive(images, with_rows=True)
            loss_of = make_loss(settings, TREE)
            expected = loss_of(logits, labels) + weight * loss_of(rows, labels)
        found[weight] = fit(net, settings, count=8, cache=cache)[0].train_loss
        assert found[weight] == pytest.approx(expected.item(), rel=2e-3 if cache else 1e-5)  # features are float16
    assert found[0.0] + 0.1 < found[0.3] < found[2.0]


def test_networks_without_rows_do_not_heed_it():
    one, other = (fit(build(), config(rows_loss=weight)) for weight in (0.0, 5.0))
    assert [epoch.train_loss for epoch in one] == [epoch.train_loss for epoch in other]
