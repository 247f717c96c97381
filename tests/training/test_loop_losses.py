"""The loss of the first step, by its formula or the loss that was asked for; images and labels that are mixed."""

import copy

import pytest
import torch
from helpers.short_trainings import TREE, build, config, fit, squares
from torch import nn

from hlnet.data.tree_data import loader
from hlnet.training.loop import train
from hlnet.training.losses import make_loss, prior_logit


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_first_loss_is_the_smoothed_cross_entropy(smoothing):
    net = build()
    with torch.no_grad():
        net.head.leaves.weight.copy_(torch.randn(4, 16))  # unlike logits
    naive, data = copy.deepcopy(net).train(), squares(8)
    images, labels = next(iter(loader(data, 8)))
    logits = naive(images).double()
    logs = logits - logits.exp().sum(1, keepdim=True).log()
    expected = -((1 - smoothing) * logs[range(8), labels] + smoothing * logs.mean(1)).mean().item()
    history = fit(net, config(epochs=1, smoothing=smoothing), count=8)
    assert history[0].train_loss == pytest.approx(expected, abs=1e-4)
    assert history[0].train_top1 == pytest.approx((logits.argmax(1) == labels).double().mean().item())


LOSSES = [
    {"loss": "bce", "smoothing": 0.3},
    {"loss": "hierarchical", "hierarchical_alpha": 0.7},
    {"loss": "soft-labels", "soft_labels_beta": 3.0},
]


@pytest.mark.parametrize("kind", ["hierarchical", "plain"])
@pytest.mark.parametrize("settings", LOSSES)
def test_first_loss_is_the_one_that_was_asked_for(settings, kind):
    net, data, settings = build(kind), squares(8), config(epochs=1, **settings)
    last = net.model.get_classifier() if kind == "plain" else net.head.leaves
    last.weight.data.normal_()  # unlike logits
    naive = copy.deepcopy(net).train()
    if settings.loss == "bce":
        last.bias.data.fill_(9.0)  # is put right
        (naive.model.get_classifier() if kind == "plain" else naive.head.leaves).bias.data.fill_(prior_logit(4))
    images, labels = next(iter(loader(data, 8)))
    logits = naive(images)
    expected = make_loss(settings, TREE)(logits, labels).item()
    assert fit(net, settings, count=8)[0].train_loss == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(make_loss(config(), TREE)(logits, labels).item(), abs=1e-2)


@pytest.mark.parametrize(("settings", "smooths"), [(LOSSES[0], True), (LOSSES[1], False), (LOSSES[2], False)])
def test_mixed_labels_are_smoothed_where_the_loss_smooths(settings, smooths):
    first, second = (
        fit(build(), config(epochs=1, mixup=0.5, **settings | {"smoothing": smoothing}))[0].train_loss
        for smoothing in (0.0, 0.4)
    )
    assert (first == second) == (not smooths)


def test_mixing_changes_images_and_labels_pair_by_pair(monkeypatch):
    """An odd last image is left out, and what is learnt from is a mean of two."""
    seen, step = [], nn.Module.__call__

    def note(self, *inputs, **more):
        if self is net and self.training:
            seen.append(inputs[0])
        return step(self, *inputs, **more)

    monkeypatch.setattr(nn.Module, "__call__", note)
    net, data = build(), squares(11)
    train(net, data, squares(8, 1), config(epochs=1, mixup=0.5), device="cpu")
    assert sorted(map(len, seen)) == [2, 8]
    images = torch.stack([data[i][0] for i in range(11)])
    for mixed in torch.cat(seen):
        weights = torch.linalg.lstsq(images.flatten(1).T, mixed.flatten()[:, None]).solution[:, 0]
        share, place = weights.topk(2)
        torch.testing.assert_close(share.sum(), torch.tensor(1.0))
        torch.testing.assert_close(share[0] * images[place[0]] + share[1] * images[place[1]], mixed)
