"""Class activation maps: the closed form where there is one, autograd by hand where there is none."""

import pytest
import torch
from helpers.naive import NaiveTree, copy_weights
from helpers.random_nets import STRIDES, TREE, WIDTHS, blocks, build, images, plain

from hlnet.errors import SelectionError, UsageError
from hlnet.model.fast.optimize import optimize
from hlnet.tree.class_tree import ClassTree
from hlnet.view.branch_maps import feature_maps
from hlnet.view.class_activation import activation_maps

pytest.importorskip("captum", reason="the extra 'show' is not installed")


def by_hand(logits, layer):
    """Grad-CAM's definition: channels weighted by the mean gradient of each image's logit, summed, cut off at 0."""
    (gradient,) = torch.autograd.grad(logits.sum(), layer)  # images do not mix, so the sum's gradient is each one's
    return (gradient.mean((2, 3), keepdim=True) * layer).sum(1).relu().detach()


def test_a_leaf_shows_each_places_share_of_its_logit():
    """Pooling and one linear map behind the block: the closed form, and positive and negative shares make the logit."""
    net = build()
    found = activation_maps(net, images(2), "tabby,boxer")
    maps = feature_maps(net, images(2), ["tabby", "boxer"])
    for column, (row, block) in enumerate(zip((0, 4), maps.values(), strict=True)):
        shares = torch.einsum("c,bchw->bhw", net.head.leaves.weight[row].detach(), block) / block[0, 0].numel()
        torch.testing.assert_close(found[:, column], shares.relu(), rtol=1e-4, atol=1e-6)
        with torch.no_grad():
            logits = net(images(2))[:, row]
        torch.testing.assert_close(shares.sum((1, 2)) + net.head.leaves.bias[row].detach(), logits)
    assert found.shape == (2, 2, *block.shape[2:]) and found.max() > 0


@blocks
@pytest.mark.parametrize("level", [0, 1, 2, None])
def test_any_level_is_autograd_on_the_naive_network(block, level):
    net = build(block)
    naive = NaiveTree(TREE, net.trunk.channels, block, WIDTHS[:2], STRIDES[:2]).eval()
    copy_weights(net.head, naive)
    with torch.no_grad():
        x = net.features(images(2))
    layers = []
    for depth, row in enumerate((1, 4)):  # dog, boxer
        layers.append(x := x.requires_grad_() if not layers else x)
        x = naive.rows[depth][row](x)
    layers.append(x)
    expected = by_hand(naive.leaves[4](x), layers[-1 if level is None else level])
    torch.testing.assert_close(activation_maps(net, images(2), "boxer", level)[:, 0], expected, rtol=1e-3, atol=1e-6)


def test_classes_stand_in_the_order_of_the_logits_and_frozen_weights_do_not_matter():
    net = build()
    both = activation_maps(net, images(2), "boxer,siamese")
    net.requires_grad_(False)
    torch.testing.assert_close(
        torch.cat([activation_maps(net, images(2), name) for name in ("siamese", "boxer")], 1), both
    )
    with torch.inference_mode(False), torch.no_grad():  # as a caller may have it
        torch.testing.assert_close(activation_maps(net, images(2), "boxer,siamese"), both)


def test_nothing_is_left_behind():
    net = build()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    activation_maps(net, images(2), "cat")
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())


def test_plain_networks_are_the_control():
    net = plain()
    last = net.model.forward_features(images(2)).detach()
    weight = net.model.get_classifier().weight.detach()[4]
    shares = torch.einsum("c,bchw->bhw", weight, last) / last[0, 0].numel()
    torch.testing.assert_close(activation_maps(net, images(2), "boxer")[:, 0], shares.relu(), rtol=1e-4, atol=1e-6)
    start = net.features(images(2)).detach().requires_grad_()
    expected = by_hand(net.head(start)[:, 4], start)
    found = activation_maps(net, images(2), "boxer", level=0)
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-3, atol=1e-6)
    assert found.shape[2:] == start.shape[2:] != last.shape[2:]


@pytest.mark.parametrize(
    "make, classes, level, error, said",
    [
        (build, "tabi", None, SelectionError, "Did you mean 'tabby'"),
        (build, "tabby", 3, UsageError, r"0 \(the trunk\) and levels 1 to 2"),
        (build, "tabby", -1, UsageError, r"0 \(the trunk\) and levels 1 to 2"),
        (plain, "tabby", 1, UsageError, "plain network has no levels"),
        (lambda: optimize(build()), "tabby", None, UsageError, "InferenceNet"),
        (lambda: plain("test_vit", img_size=64), "tabby", None, UsageError, "no spatial map"),
    ],
    ids=["unknown", "level 3", "level -1", "plain level", "inference form", "ViT"],
)
def test_what_has_no_map_is_refused(make, classes, level, error, said):
    net = make()
    with pytest.raises(error, match=said):
        activation_maps(net, torch.zeros(1, *net.transform.input_size), classes, level)


def test_tree_of_one_class():
    net = build(tree=ClassTree.parallel(["only"], levels=3))
    assert activation_maps(net, images(2), "only").shape[:2] == (2, 1)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "captum.attr", None)
    with pytest.raises(UsageError, match=r"class activation map needs the package captum: pip install 'hlnet\[show\]'"):
        activation_maps(build(), images(2), "tabby")
