"""Grafting: new classes are learnt, the old network stays, and figures are what a recount gives."""

from itertools import pairwise

import pytest
import torch
from helpers.graft_material import build
from helpers.naive import randomise
from PIL import Image

import hlnet
from hlnet.data.feature_cache import cached_features
from hlnet.data.images import LabelledImages
from hlnet.data.tree_data import TreeData, eval_transform, train_transform
from hlnet.errors import DataError, RunError, TreeError, UsageError
from hlnet.expert import graft as grafting
from hlnet.expert.cut import cut_expert
from hlnet.expert.graft import best_parent, graft, graft_config
from hlnet.expert.graft_training import NewBranches, extract_features, train_branches
from hlnet.expert.grow import grow, node_output
from hlnet.model.fast.optimize import optimize
from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
from hlnet.model.plain import PlainConfig, PlainNet
from hlnet.model.provenance import Provenance
from hlnet.model.transform import InputTransform
from hlnet.store.checkpoint import read_header, save_checkpoint
from hlnet.store.model_card import make_model_card
from hlnet.training.losses import prior_logit
from hlnet.tree.class_tree import ClassTree

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0), "white": (255,) * 3}
OLD = ClassTree.from_nested({"warm": ["red"], "cold": ["green"]}).with_ids({"green": "n1"})


def squares(count, seed=0, colours=tuple(COLOURS), name="squares"):
    """Coloured noise, every colour as often."""
    noise = torch.rand(count, 32, 32, 3, generator=torch.Generator().manual_seed(seed)) * 0.5 + 0.5
    labels = tuple(i % len(colours) for i in range(count))
    tint = torch.tensor([COLOURS[colours[label]] for label in labels])
    pixels = (noise * tint[:, None, None]).byte().numpy()
    return LabelledImages(name, tuple(colours), labels, lambda i: Image.fromarray(pixels[i]))


def quick(net, **given):
    return graft_config(net, **{"epochs": 6, "batch_size": 8, "cache_views": 2, "workers": 0, "lr": 1e-2, **given})


@pytest.fixture(scope="module", params=["bottleneck", "convnext", "bce"])
def trained(request):
    """A network that tells red from green, one of them for each loss and block."""
    loss, block = ("bce", "bottleneck") if request.param == "bce" else ("cross-entropy", request.param)
    torch.manual_seed(0)
    net = HierarchicalNet(NetworkConfig(backbone="test_resnet", block=block, widths=(8, 8), strides=(1, 1)), OLD)
    net.transform = InputTransform(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0)
    data = [TreeData(squares(40, seed, ("green", "red")), OLD, eval_transform(net.transform)) for seed in (0, 1)]
    settings = {"epochs": 4, "batch_size": 8, "workers": 0, "lr": 3e-3, "warmup_epochs": 0, "loss": loss, "aa": "none"}
    history = hlnet.train(net, *data, hlnet.TrainConfig(**settings), device="cpu")
    assert max(epoch.val_top1 for epoch in history) == 1
    net.provenance.temperature = 2.0
    return net.eval()


def test_new_classes_are_learnt_and_old_ones_stay(trained, caplog):
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    settings, told = trained.provenance.model_copy(deep=True), []
    names = {"blue": "blue", "yellow": "lemon", "white": "white"}
    under = {"blue": "cold", "lemon": "warm", "white": "cold"}  # so that columns and families have different orders
    data = squares(100, 2), squares(50, 3)
    grown, report = graft(
        trained, names, *data, under, quick(trained), described={"data": "squares"}, on_epoch=told.append
    )
    assert grown.tree.classes == ("red", "lemon", "green", "blue", "white") and grown.tree.indices == (0, 4, 1, 2, 3)
    assert grown.tree.ids == OLD.ids | {"warm/lemon": "yellow"}
    assert (report.old_train_images, report.new_train_images) == (40, 60)
    assert (report.old_images, report.new_images) == (20, 30)
    assert report.new > 0.95 and report.old_before == 1 and report.old_after > 0.9
    assert {name: place.under for name, place in report.places.items()} == under
    (said,) = [record.getMessage() for record in caplog.records]
    assert report.max_logit_difference < 1e-9 and said == "features of 100 images are cached, views of each: 2"
    # What is reported, counted again by hand on the network as it stands.
    folders = dict(zip(grown.tree.classes, ("red", "yellow", "green", "blue", "white"), strict=True))
    prepare, hits = eval_transform(grown.transform), {name: [] for name in folders.values()}
    for i, label in enumerate(data[1].labels):
        with torch.no_grad():
            found = grown(prepare(data[1].load(i))[None])[0].argmax()
        hits[data[1].classes[label]].append(folders[grown.tree.classes[found]] == data[1].classes[label])
    shares = {name: sum(found) / len(found) for name, found in hits.items()}
    assert report.per_class == {name: pytest.approx(shares[folder]) for folder, name in names.items()}
    assert report.old_after == pytest.approx((shares["red"] + shares["green"]) / 2)
    assert report.new == pytest.approx(sum(report.per_class.values()) / 3)
    assert report.all == pytest.approx(sum(shares.values()) / 5)
    # The epochs, as they were told.
    assert [epoch.epoch for epoch in told] == list(range(1, 7)) and told[-1].loss < told[0].loss
    assert told[-1].top1 > 0.9 and all(epoch.seconds > 0 for epoch in told)
    # The old network is as it was.
    assert trained.provenance == settings and trained.tree == OLD and not trained.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())
    # What the new one tells of itself.
    recipe = grown.provenance.recipe
    assert {name: value for name, value in recipe.items() if name != "grafts"} == settings.recipe
    (record,) = recipe["grafts"]
    assert record["data"] == "squares" and record["classes"] == under and record["train"]["lr"] == 1e-2
    assert record["train"]["loss"] == settings.recipe["train"]["loss"] == quick(trained).loss
    metrics = {"val_top1": report.all, "old_val_top1": report.old_after, "new_val_top1": report.new}
    assert [use.use for use in grown.provenance.images][len(settings.images) :] == ["weights"]
    assert grown.provenance == Provenance(recipe=recipe, metrics=metrics, images=grown.provenance.images)
    # With detectors, new ones too say no by themselves: to old classes, and to each other.
    if record["train"]["loss"] == "bce":
        with torch.no_grad():
            yes = torch.stack([grown(prepare(data[1].load(i))[None])[0].sigmoid() for i in range(50)])
        place = grown.tree.classes.index("lemon")
        right = torch.tensor([data[1].classes[label] == "yellow" for label in data[1].labels])
        assert yes[right, place].mean() > 0.7 and yes[~right, place].mean() < 0.3


def test_a_graft_can_be_repeated_grafted_cut_and_kept(trained, tmp_path):
    data = squares(50, 2), squares(25, 3)
    first, again = (graft(trained, ["blue"], *data, config=quick(trained, epochs=2)) for _ in range(2))
    assert first[1] == again[1]
    weights = again[0].state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in first[0].state_dict().items())
    other = graft(trained, ["blue"], *data, config=quick(trained, epochs=2, seed=1))[0]
    assert not torch.equal(other.head.leaves.weight, first[0].head.leaves.weight)
    twice, report = graft(first[0], ["white"], *data, "/", quick(trained, epochs=1))
    assert report.old_images == 15 and [len(twice.provenance.recipe["grafts"]), twice.tree.indices[-1]] == [2, 3]
    save_checkpoint(twice, tmp_path / "twice.safetensors")
    assert read_header(tmp_path / "twice.safetensors").provenance == twice.provenance
    cut = cut_expert(tmp_path / "twice.safetensors", OLD.classes)
    weights = trained.state_dict()
    assert cut.tree == OLD and all(torch.equal(tensor, weights[name]) for name, tensor in cut.state_dict().items())
    make_model_card(twice)
    hlnet.profile(twice.config, twice.tree, twice.transform)


def test_features_are_bounded_and_kept_as_those_of_a_training(trained, tmp_path):
    data, config = (squares(50, 2), squares(25, 3)), quick(trained, epochs=2)
    with pytest.raises(UsageError, match=r"50 images in 2 views, .* need .*, more than the limit of 1.0KB"):
        graft(trained, ["blue", "yellow", "white"], *data, config=config, cache_size=1000)
    told, made = [], []
    for folder in (None, tmp_path, tmp_path):
        asked = {"cache_dir": folder, "on_batch": lambda phase, *_: told.append(phase)}
        made.append(graft(trained, ["blue", "yellow", "white"], *data, config=config, **asked)[0].state_dict())
        told.append("done")
    runs = " ".join(told).split("done")[:3]
    assert ["features" in run for run in runs] == [True, True, False]
    assert all(torch.equal(tensor, other[name]) for other in made[1:] for name, tensor in made[0].items())
    (file,) = tmp_path.glob("*.npy")
    columns = grafting._columns(OLD, dict.fromkeys(("blue", "yellow", "white")))
    augment = train_transform(trained.transform, config.aa, config.scale, config.hflip, config.reprob)
    kept = cached_features(trained, TreeData(data[0], columns, augment), 2, folder=tmp_path, on_batch=pytest.fail)
    assert kept.stored.shape[:2] == (2, 50) and list(tmp_path.glob("*.npy")) == [file]


def test_the_best_place_is_what_the_images_are_taken_for():
    """A network that calls everything green, by a bias."""
    net = build(OLD).float()
    net.head.leaves.bias.data.copy_(torch.tensor([0.0, 90.0]))
    grown, report = graft(net, ["yellow"], squares(20), squares(20), config=quick(net, epochs=1))
    assert report.places["yellow"].under == "cold" and report.places["yellow"].fit == pytest.approx(1)
    assert grown.tree.leaves[-1].path == "cold/yellow"
    _, report = graft(net, ["yellow"], squares(20), squares(20), "warm", quick(net, epochs=1))
    assert report.places["yellow"].under == "warm" and report.places["yellow"].fit == pytest.approx(0, abs=1e-6)


def test_without_old_images_there_is_a_warning(trained, caplog):
    new = ("blue", "white")
    _, report = graft(trained, new, squares(20, 2, new), squares(10, 3, new), config=quick(trained, epochs=1))
    assert (report.old_before, report.old_after, report.all) == (None, None, None) and report.new is not None
    first, second = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert "will win too often" in first and "cannot be reported" in second
    caplog.clear()
    some = ("blue", "red")
    _, report = graft(
        trained, ["blue"], squares(20, 2, (*some, "white")), squares(9, 3, ("red",)), None, quick(trained, epochs=1)
    )
    assert report.new is None and report.per_class == {} and report.old_before == 1
    told = [record.getMessage() for record in caplog.records]
    assert [told[0].split(": ")[1], told[1].split(": ")[1], told[2].split(": ")[1]] == ["green", "blue", "white"]


def test_an_expert_is_grown_too():
    full = build(ClassTree.from_nested({"a": ["red", "x"], "b": ["green"], "c": ["y", "z"]})).float()
    expert = cut_expert(full, "red,green")
    expert.provenance.parent = "f" * 64
    grown, _ = graft(expert, ["blue"], squares(20), squares(20), "a", quick(expert, epochs=1))
    assert grown.tree.classes == ("red", "blue", "green")
    assert grown.tree.indices == (0, 5, 2)  # 3 and 4 are of classes that another expert may have
    assert (grown.provenance.parent, grown.provenance.parent_counts, grown.provenance.parent_rows) == (None,) * 3


def test_a_step_is_one_of_the_plain_loss():
    """Two images, one epoch of plain SGD, by autograd on the grown network itself."""
    net = build(OLD, channels=2).float()
    given = {
        "epochs": 1,
        "batch_size": 2,
        "cache_views": 1,
        "workers": 0,
        "opt": "momentum",
        "momentum": 0.0,
        "lr": 0.5,
    }
    config = graft_config(
        net, **given, weight_decay=0.0, warmup_epochs=0, smoothing=0.1, aa="none", scale=(1, 1), hflip=0
    )
    images = squares(2, 5, ("green", "blue"))
    columns = grafting._columns(OLD, {"blue": None})
    data = TreeData(images, columns, eval_transform(net.transform), subset=True)
    torch.manual_seed(3)
    ours = NewBranches(net, {"blue": "cold"}, {}, config)
    randomise(ours.by_parent["cold"])
    grown = grow(net, ours.by_parent).train()
    seen = extract_features(net, cached_features(net, data), config)
    train_branches(net, ours, seen, config, columns, lambda *_: None, None)
    for module in (
        grown.trunk,
        grown.head,
    ):  # all that is old is in evaluation mode; the new leaf is a level of its own
        module.eval()
    frozen = grow(net, ours.by_parent)
    batch, labels = torch.stack([data[i][0] for i in range(2)]), torch.tensor([1, 2])  # red, green, blue
    level = grown.head.levels[1]
    features = node_output(net.head, net.trunk(batch).half().float(), "cold").detach()
    level.train()
    small = level(features, level.family(slice(2, 3)), None)[:, 0].mean((2, 3))
    new = small @ grown.head.leaves.weight[2] + grown.head.leaves.bias[2]
    logits = torch.cat([net.head(net.trunk(batch).half().float()).detach(), new[:, None]], dim=1)
    torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1).backward()
    for name, tensor in grown.head.named_parameters():
        if tensor.grad is not None:
            wanted = tensor.detach() - 0.5 * tensor.grad
            torch.testing.assert_close(frozen.head.get_parameter(name).detach()[2], wanted[2], msg=name)
    torch.testing.assert_close(frozen.head.levels[1].conv1_bn_mean, level.conv1_bn_mean)


def test_views_are_drawn_anew_and_columns_are_in_the_order_asked_for():
    net = build(OLD).float()
    config = quick(net, cache_views=3)
    data = TreeData(
        squares(10), grafting._columns(OLD, {"blue": None, "yellow": None, "white": None}), torch_noise, True
    )
    seen = extract_features(net, cached_features(net, data, 3), config)
    assert seen.labels.tolist() == 3 * [data.labels[i] for i in range(10)]
    views = seen.features.stored
    assert views.dtype == torch.float16 and views.shape[:2] == (3, 10)
    with torch.no_grad():
        assert torch.allclose(seen.logits, net.head(views.flatten(0, 1).float()), atol=1e-5)
        below = [node_output(net.head, views[0, :2].float(), path) for path in ("warm", "/")]
    assert all(not torch.equal(one, other) for one, other in pairwise(views))
    images = torch.stack([noise for noise, _ in (torch.utils.data.default_collate([data[0]]) for _ in range(2))])
    assert not torch.equal(images[0], images[1])
    branches = NewBranches(net, {"blue": "warm", "yellow": "/", "white": "warm"}, {}, graft_config(net, loss="bce"))
    assert [list(tree.tree.classes) for tree in branches.by_parent.values()] == [["blue", "white"], ["yellow"]]
    assert all(bool((tree.leaves.bias == prior_logit(5)).all()) for tree in branches.by_parent.values())
    for tree, values in zip(branches.trees, ([1.0, 3.0], [2.0]), strict=True):
        tree.leaves.weight.data.zero_()
        tree.leaves.bias.data.copy_(torch.tensor(values))
    logits = branches.eval()(below)
    assert logits.tolist() == [[1, 2, 3]] * 2
    exempt = branches.no_weight_decay()
    assert {name for name, tensor in branches.named_parameters() if tensor.dim() < 3} - exempt == {
        "trees.0.leaves.weight",
        "trees.1.leaves.weight",
    }


def torch_noise(image):
    return torch.rand(3, 32, 32)


def test_settings_are_the_networks_own():
    net = build(OLD)
    assert graft_config(net) == hlnet.TrainConfig(frozen_trunk=True, cache_views=4)
    train = {"loss": "bce", "hflip": 0.0, "aa": "none", "scale": [0.5, 1.0], "smoothing": 0.0, "lr": 9.0, "epochs": 99}
    net.provenance = Provenance(recipe={"train": {**train, "mixup": 0.2}})
    wanted = {"loss": "bce", "hflip": 0.0, "aa": "none", "scale": (0.5, 1.0), "smoothing": 0.0, "lr": 0.1}
    assert graft_config(net, lr=0.1) == hlnet.TrainConfig(frozen_trunk=True, cache_views=4, **wanted)
    net.provenance = Provenance(recipe={"train": {"loss": "soft-labels"}})
    assert graft_config(net).loss == "cross-entropy"
    with pytest.raises(UsageError, match=r"lr -1: .*greater than 0"):
        graft_config(net, lr=-1)


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "change, error, told",
    [
        ({"classes": ["blu"]}, UsageError, "squares has no class 'blu'. Did you mean 'blue'"),
        ({"classes": ["magenta"]}, UsageError, "has no class 'magenta'. New there: blue, yellow, white"),
        ({"classes": ["red"]}, UsageError, "class 'red' is in the tree already"),
        ({"classes": ["n1"]}, UsageError, "class 'n1' is in the tree already"),
        ({"classes": {"blue": "green"}}, UsageError, "class 'green' is in the tree already"),
        ({"classes": {"blue": "sea/blue"}}, TreeError, "'sea/blue' is no name"),
        ({"classes": {"blue": "x", "white": "x"}}, UsageError, "'x' is named twice"),
        ({"classes": ["blue", "blue"]}, UsageError, "'blue' is named twice"),
        ({"classes": []}, UsageError, "no new class"),
        ({"classes": {"blue": "warm"}, "under": "/"}, UsageError, "'warm' is an inner node already"),
        ({"under": "lukewarm"}, UsageError, "no inner node 'lukewarm'. Did you mean 'warm'"),
        ({"under": {"bleu": "warm"}}, UsageError, "'bleu', which is no new class. Did you mean 'blue'"),
        ({"under": "red"}, UsageError, "'red' is a class"),
        ({"train_images": squares(3)}, UsageError, "no training images of the new class 'yellow'"),
        ({"train_images": squares(1, 0, ("blue",)), "classes": ["blue"]}, UsageError, "a single training image"),
        ({"val_images": squares(3, 0, ("white",))}, DataError, "holds no image"),
        ({"config": {"cache_views": 0}}, UsageError, "one view"),
        ({"config": {"loss": "hierarchical"}}, UsageError, "cross-entropy or bce"),
        ({"config": {"opt": "adamx"}}, UsageError, "no optimizer 'adamx'"),
        ({"config": {"lr": 1e30}}, RunError, "the loss became"),
        ({"net": "plain"}, UsageError, "plain network has no branches"),
        ({"net": "optimized"}, UsageError, "InferenceNet cannot be grown"),
    ],
)
def test_what_cannot_be_grafted(change, error, told):
    net = build(OLD).float()
    others = {"plain": lambda: PlainNet(PlainConfig(backbone="test_resnet"), OLD), "optimized": lambda: optimize(net)}
    request = {
        "net": net,
        "classes": ["blue", "yellow"],
        "train_images": squares(20),
        "val_images": squares(10),
    } | change
    request["net"] = others[change["net"]]() if "net" in change else net
    request["config"] = quick(net, **{"epochs": 3} | change.get("config", {}))
    with pytest.raises(error, match=told):
        graft(**request)


def test_a_name_that_only_the_best_place_makes_wrong_is_refused():
    net = build(ClassTree.from_nested({"a": {"b": ["red"]}, "c": {"d": ["green"]}})).float()
    net.head.leaves.bias.data.copy_(torch.tensor([90.0, 0.0]))
    tree = net.tree
    assert best_parent(tree, torch.tensor([1.0, 0.0]))[0] == "a/b"
    with pytest.raises(UsageError, match="'a/b' is an inner node already"):
        graft(net, {"blue": "b"}, squares(10), squares(10), "a", quick(net, epochs=1))


def test_features_that_float16_cannot_hold_are_refused():
    net = build(OLD).float()
    forward = net.trunk.forward
    net.trunk.forward = lambda images: forward(images) + 1e5
    with pytest.raises(DataError, match="features exceed what float16 holds"):
        graft(net, ["blue"], squares(10), squares(10), "warm", quick(net, epochs=1))


@pytest.mark.parametrize("name", ["head.levels.0.conv2_weight", "trunk.model.conv1.0.weight", "head.leaves.bias"])
def test_a_changed_old_logit_is_found_out(monkeypatch, name):
    def spoiled(*given):
        grown = grow(*given)
        grown.state_dict()[name].flatten()[0].add_(1e-3)
        return grown

    monkeypatch.setattr(grafting, "grow", spoiled)
    net = build(OLD).float()
    with pytest.raises(RunError, match="not the old network's"):
        graft(net, ["blue"], squares(10), squares(10), "/", quick(net, epochs=1))
