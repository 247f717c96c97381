"""Layers of a backbone: as timm's own models number them; rates by layer and unfreezing, by the formulas."""

import pytest
import timm
import torch
from helpers import short_trainings
from helpers.short_trainings import build, config, fit, snapshot
from timm.models import group_parameters

import hlnet
from hlnet.errors import UsageError
from hlnet.model.plain import PlainConfig
from hlnet.training.optimizers import make_optimizer
from hlnet.training.train_config import TrainConfig

optimizers = short_trainings.optimizers

BACKBONES = {"resnet18": {}, "convnext_atto": {}, "vit_tiny_patch16_224": {"img_size": 32}, "test_resnet": {}}


def create(backbone, kind="hierarchical", split_point=None):
    arguments = BACKBONES[backbone]
    tree = hlnet.ClassTree.from_nested({"pet": ["cat", "dog"], "tool": ["saw"]})
    if kind == "plain":
        return hlnet.PlainNet(PlainConfig(backbone=backbone, split_point=split_point, backbone_args=arguments), tree)
    return hlnet.create_model(
        backbone, tree, widths=(4, 4), strides=(1, 1), split_point=split_point, backbone_args=arguments
    )


def own_name(net, name):
    """A trunk parameter's name in the timm model; ``None`` for what lies behind the trunk."""
    prefix = "model." if isinstance(net, hlnet.PlainNet) else "trunk.model."
    name = name.removeprefix(prefix) if name.startswith(prefix) else ""
    return name if name in net.trunk_names else None


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("kind", ["hierarchical", "plain"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_numbers_are_those_of_the_timm_model(backbone, kind, coarse):
    net, whole = create(backbone, kind), timm.create_model(backbone, **BACKBONES[backbone])
    expected = group_parameters(whole, whole.group_matcher(coarse=coarse), reverse=True)
    found = net.layer_numbers(coarse)
    assert found.keys() == {name for name, _ in net.named_parameters()}
    inside = {name: own_name(net, name) for name in found}
    assert {name: found[name] for name, own in inside.items() if own} == {
        name: expected[own] for name, own in inside.items() if own
    }
    behind = {found[name] for name, own in inside.items() if not own}
    last = max(found[name] for name, own in inside.items() if own)
    if kind == "hierarchical":
        assert behind == {last + 1}  # branches are one layer
    else:
        assert min(behind) >= last and behind == {expected[name.removeprefix("model.")] for name in found} - set(
            range(min(behind))
        )


def test_numbers_of_a_resnet_are_its_stages():
    found = create("resnet18").layer_numbers(coarse=True)
    stages = {"conv1": 0, "bn1": 0, "layer1": 1, "layer2": 2, "layer3": 3}
    for name, number in found.items():
        part = name.removeprefix("trunk.model.").split(".")[0]
        assert number == stages.get(part, 4), name


@pytest.mark.parametrize("kind", ["hierarchical", "plain"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_rates_fall_by_layer(backbone, kind):
    net = create(backbone, kind)
    settings = TrainConfig(lr=0.1, layer_decay=0.7, weight_decay=0.2)
    optimizer = make_optimizer(net, settings)
    rates = {id(p): group["lr"] * group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    layers = net.layer_numbers()
    for name, parameter in net.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.1 * 0.7 ** (max(layers.values()) - layers[name])), name
    assert all(rates[id(p)] == pytest.approx(0.1) for name, p in net.named_parameters() if name.startswith("head."))
    assert len(set(rates.values())) == 1 + max(layers.values())


def test_schedule_keeps_the_proportions(optimizers):
    found = []

    def note(phase, step, of):
        if phase.startswith("epoch"):
            found.append([(group["lr"], group["lr_scale"]) for group in optimizers[0].param_groups])

    history = fit(build(), config(layer_decay=0.5, warmup_epochs=1, epochs=3), on_batch=note)
    for groups in found:
        (top,) = {round(lr / scale, 12) for lr, scale in groups}
        assert max(lr for lr, _ in groups) == pytest.approx(top)
    assert [epoch.lr for epoch in history] == pytest.approx([1e-6, *(max(found[i])[0] for i in (1, 3))])


def test_backbone_that_tells_no_layers_is_refused(monkeypatch):
    net = create("resnet18")
    monkeypatch.setattr(type(net.trunk.model), "group_matcher", None)
    for attempt in (lambda: make_optimizer(net, TrainConfig(layer_decay=0.5)), lambda: net.unfreeze(1)):
        with pytest.raises(UsageError, match=r"^backbone 'resnet18' does not tell its layers"):
            attempt()


@pytest.mark.parametrize("kind", ["hierarchical", "plain"])
@pytest.mark.parametrize(
    "backbone, stages",
    [
        ("resnet18", ["layer3", "layer2", "layer1", "conv1"]),
        ("convnext_atto", ["stages.2", "stages.1", "stages.0", "stem"]),
        ("vit_tiny_patch16_224", [*(f"blocks.{i}" for i in range(8, -1, -1)), "patch_embed"]),
    ],
)
def test_unfreezing_goes_from_the_end(backbone, stages, kind):
    net = create(backbone, kind)
    net.freeze_trunk()
    behind = {name for name, p in net.named_parameters() if p.requires_grad}
    assert behind and not any(own_name(net, name) for name in behind)
    for count in [*range(len(stages) + 1), 99, 1, 0]:  # and back
        assert net.unfreeze(count) == min(count, len(stages))
        trains = {own_name(net, name) for name, p in net.named_parameters() if p.requires_grad and name not in behind}
        expected = {
            name
            for name, _ in net.trunk_module.named_parameters()
            if name in net.trunk_names
            and (count >= len(stages) or any(f"{name}.".startswith(f"{stage}.") for stage in stages[:count]))
        }
        assert trains == expected
        assert behind <= {name for name, p in net.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", ["hierarchical", "plain"])
def test_unfreezed_stages_change_and_statistics_stay(kind):
    net, seen = build(kind, "resnet18"), {}
    net.transform = net.transform.adjusted(img_size=32)
    before = snapshot(net)

    def note(epoch):
        after = snapshot(net)
        seen[epoch.epoch] = {own_name(net, name) for name in before if not torch.equal(before[name], after[name])} - {
            None
        }

    fit(net, config(epochs=5, frozen_trunk=True, unfreeze_epochs=2, weight_decay=0.2), on_epoch=note)
    weights = {name for name, _ in net.trunk_module.named_parameters() if name in net.trunk_names}
    assert seen[1] == seen[2] == set()
    assert seen[3] == seen[4] == {name for name in weights if name.startswith("layer3.")}
    assert seen[5] == {name for name in weights if name.startswith(("layer3.", "layer2."))}
    assert any("running_mean" in name for name in net.trunk_names)
