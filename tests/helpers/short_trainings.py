"""Trainings of a few steps on coloured squares."""

import pytest
import torch
from PIL import Image

from hlnet.data.feature_cache import cached_features
from hlnet.data.images import LabelledImages
from hlnet.data.tree_data import TreeData, eval_transform
from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
from hlnet.model.plain import PlainConfig, PlainNet
from hlnet.model.transform import InputTransform
from hlnet.training import optimizers as optimizing
from hlnet.training.loop import train
from hlnet.training.train_config import TrainConfig
from hlnet.tree.class_tree import ClassTree

TREE = ClassTree.from_nested({"warm": ["red", "yellow"], "cold": ["green", "blue"]})
COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0), "yellow": (255, 255, 0)}  # another order
TRANSFORM = InputTransform(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0)


def build(kind="hierarchical", backbone="test_resnet", seed=0, **settings):
    torch.manual_seed(seed)
    if kind == "plain":
        net = PlainNet(PlainConfig(backbone=backbone, **settings), TREE)
    else:
        net = HierarchicalNet(NetworkConfig(backbone=backbone, widths=(4, 4), strides=(1, 1), **settings), TREE)
    net.transform = TRANSFORM
    return net


def squares(count, seed=0):
    """Coloured noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = tuple(i % len(COLOURS) for i in range(count))
    noise = torch.rand(count, 32, 32, 3, generator=generator) * 0.5 + 0.5
    tint = torch.tensor(list(COLOURS.values()))[list(labels)]
    pixels = (noise * tint[:, None, None]).byte().numpy()
    images = LabelledImages("squares", tuple(COLOURS), labels, lambda i: Image.fromarray(pixels[i]))
    return TreeData(images, TREE, eval_transform(TRANSFORM))


def config(**settings):
    quick = {"epochs": 2, "batch_size": 8, "warmup_epochs": 0, "workers": 0, "lr": 3e-3}
    return TrainConfig(**quick | settings)


def fit(net, settings=None, count=16, cache=False, **rest):
    data = [squares(count), squares(8, 1)]
    if cache:
        data = [cached_features(net, images, batch_size=8) for images in data]
    return train(net, *data, settings or config(), device="cpu", **rest)


@pytest.fixture
def optimizers(monkeypatch):
    """The optimizers that training makes."""
    made, create = [], optimizing.create_optimizer_v2
    monkeypatch.setattr(optimizing, "create_optimizer_v2", lambda *a, **k: made.append(create(*a, **k)) or made[-1])
    return made


def snapshot(net):
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def same(one, other):
    return {name for name, tensor in one.items() if torch.equal(tensor, other[name])}
