"""Cached features: the trunk's own output in evaluation mode, view by view, renumbered without mixing up labels."""

import pytest
import torch
from torch.utils.data import TensorDataset

from hlnet.data.feature_cache import cached_features
from hlnet.data.features import CachedFeatures
from hlnet.data.sampling import Seeded
from hlnet.errors import UsageError
from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
from hlnet.model.plain import PlainConfig, PlainNet
from hlnet.training.loop import TrainConfig, train
from hlnet.tree.class_tree import ClassTree

TREE = ClassTree.from_nested({"cat": ["tabby", "siamese"], "saw": None})
IMAGES = torch.randn(7, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([2, 0, 1, 1, 0, 2, 2])
DATA = TensorDataset(IMAGES, LABELS)


def build(kind):
    torch.manual_seed(0)
    if kind == "plain":
        return PlainNet(PlainConfig(backbone="test_resnet"), TREE)
    return HierarchicalNet(NetworkConfig(backbone="test_resnet", widths=(4, 4), strides=(1, 1)), TREE)


@pytest.mark.parametrize("kind", ["hierarchical", "plain"])
def test_features_are_the_trunks_in_evaluation_mode(kind):
    net, seen = build(kind).train(), []
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    found = cached_features(net, DATA, batch_size=4, on_batch=lambda *done: seen.append(done))
    with torch.no_grad():
        expected = net.eval().features(IMAGES)
    assert (found.features.dtype, found.features.shape) == (torch.float16, (1, *expected.shape))
    torch.testing.assert_close(found.features[0].float(), expected, rtol=2**-10, atol=1e-6)
    assert torch.equal(found.labels, LABELS) and seen == [(1, 2), (2, 2)]
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    item, label = found[4]
    assert torch.equal(item, found.features[0, 4].float()) and label == 0 and len(found) == 7
    with torch.no_grad():
        torch.testing.assert_close(net.head(item[None]), net(IMAGES[4:5]), rtol=0, atol=1e-2)


class Dimmed(TensorDataset):
    """Images of random brightness."""

    def __getitem__(self, position):
        image, label = super().__getitem__(position)
        return image * torch.rand(()), label


def test_views_are_those_of_seeded_data():
    net, data = build("hierarchical"), Dimmed(IMAGES, LABELS)
    found = cached_features(net, data, views=3, batch_size=3, seed=5)
    seen = Seeded(data, seed=5)
    with torch.no_grad():
        expected = torch.stack([net.features(torch.stack([seen[7 * v + i][0] for i in range(7)])) for v in range(3)])
    torch.testing.assert_close(found.features.float(), expected, rtol=2**-10, atol=1e-6)
    assert torch.equal(found.labels, LABELS) and not torch.equal(found.features[0], found.features[1])


def test_items_draw_every_view_and_no_other_image():
    features = torch.arange(3 * 5.0).view(3, 5, 1, 1, 1)
    cached = CachedFeatures(features, torch.arange(5))
    torch.manual_seed(0)
    for position in range(5):
        drawn = [cached[position][0].item() for _ in range(300)]
        shares = {value: drawn.count(value) / 300 for value in drawn}
        assert set(shares) == {position, position + 5, position + 10}
        assert all(abs(share - 1 / 3) < 0.12 for share in shares.values())


@pytest.mark.parametrize("classes", [[0, 2], [2, 0], [1], [2, 1, 0], (0, 1, 2)])
def test_restriction_renumbers_in_the_order_given(classes):
    cached = CachedFeatures(torch.arange(14.0).view(2, 7, 1, 1, 1), LABELS).restricted(iter(classes))
    kept = [i for i in range(7) if LABELS[i] in classes]
    assert cached.labels.tolist() == [list(classes).index(LABELS[i]) for i in kept] and len(cached) == len(kept)
    assert cached.features.flatten(1).tolist() == [[float(i) for i in kept], [float(i + 7) for i in kept]]


def settings(**more):
    quick = {"epochs": 1, "batch_size": 4, "workers": 0, "opt": "sgd", "lr": 0.01, "frozen_trunk": True}
    return TrainConfig(**quick | more)


@pytest.mark.parametrize("kind", ["hierarchical", "plain"])
def test_training_on_features_is_training_on_images(kind):
    """One view, no augmentation: the same run but for the float16 of the cache, whoever fills it."""
    images, found = TensorDataset(IMAGES, LABELS), []
    for who in ("nobody", "us", "train", "both"):
        net = build(kind)
        features = cached_features(net, DATA)
        train_data, val_data = (features if who in names else images for names in (("us", "both"), ("us",)))
        config = settings(cache_views=0 if who in ("nobody", "us") else 1)
        (epoch,) = train(net, train_data, val_data, config, device="cpu")
        found.append((epoch, dict(net.named_parameters())))
    for epoch, weights in found[1:]:
        assert epoch.train_loss == pytest.approx(found[0][0].train_loss, abs=1e-2)
        assert epoch.val_loss == pytest.approx(found[0][0].val_loss, abs=1e-2)
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, found[0][1][name], rtol=0, atol=2e-3)


def test_views_are_counted():
    steps, images = [], TensorDataset(IMAGES, LABELS)
    train(build("plain"), images, images, settings(cache_views=3), device="cpu", on_batch=lambda *s: steps.append(s))
    phases = [("features (val)", 2), ("features", 6), ("epoch 1", 2), ("validation", 1)]  # 7 images by 4
    assert steps == [(phase, step, of) for phase, of in phases for step in range(1, of + 1)]


def test_images_do_not_mix_with_cached_features_for_validation():
    net = build("hierarchical")
    with pytest.raises(UsageError, match="cached"):
        train(net, DATA, cached_features(net, DATA), settings(), device="cpu")
