"""Prediction: softmax labels in the order of the images, whatever the batches; unreadable files keep their place."""

import numpy as np
import pytest
import torch
from naive import randomise
from PIL import Image

from hlnet.data import eval_transform
from hlnet.expert import cut_expert
from hlnet.network import HierarchicalNet, NetworkConfig
from hlnet.plain import PlainConfig, PlainNet
from hlnet.prediction import Prediction, predict
from hlnet.tree import ClassTree
from hlnet.trunk import InputTransform

TREE = ClassTree.from_nested({"cat": {"tabby": 9, "siamese": 0}, "dog": {"beagle": 162}, "saw": 491})


def build(kind="hierarchical"):
    torch.manual_seed(0)
    if kind == "plain":
        net = PlainNet(PlainConfig(backbone="test_resnet"), TREE)
    else:
        net = HierarchicalNet(NetworkConfig(backbone="test_resnet", widths=(4, 4), strides=(1, 1)), TREE)
        randomise(net.head)
    net.transform = InputTransform(input_size=(3, 32, 32))
    return net


@pytest.fixture
def files(tmp_path):
    """Seven files, of which the third and the last are no images."""
    generator, paths = np.random.default_rng(0), [tmp_path / f"{name}.png" for name in "gbxcadz"]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (40, 50, 3), np.uint8)).save(path)
    paths[2].write_text("no image")
    paths[6].unlink()
    return paths


def by_hand(net, path):
    """All classes of one image, most probable first."""
    with torch.no_grad():
        logits = net.eval()(eval_transform(net.transform)(Image.open(path).convert("RGB"))[None])[0].double().numpy()
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    return [(net.tree.leaves[i], shares[i]) for i in np.argsort(-shares)]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(("kind", "top"), [("hierarchical", 1), ("hierarchical", 3), ("plain", 4), ("expert", 9)])
def test_labels_are_the_softmax_in_order(files, kind, top, batch_size):
    net = cut_expert(build(), "tabby,saw,beagle") if kind == "expert" else build(kind)
    found = list(predict(net.train(), files, top, batch_size))
    assert [prediction.image for prediction in found] == [str(path) for path in files]
    for position, (prediction, path) in enumerate(zip(found, files, strict=True)):
        if position in (2, 6):
            assert prediction.labels == [] and path.name in prediction.error and "\n" not in prediction.error
            continue
        expected = by_hand(net, path)[:top]
        got = [(label.name, label.path, label.index) for label in prediction.labels]
        assert got == [(leaf.name, leaf.path, leaf.index) for leaf, _ in expected] and prediction.error is None
        shares = [label.probability for label in prediction.labels]
        assert shares == pytest.approx([share for _, share in expected], abs=1e-5)
        if top >= len(net.tree.classes):
            assert len(shares) == len(net.tree.classes) and sum(shares) == pytest.approx(1)


def test_nothing_but_bad_files(files):
    found = list(predict(build(), [files[2], str(files[6])], batch_size=1))
    assert [bool(prediction.error) for prediction in found] == [True, True]
    assert list(predict(build(), [])) == []


def test_results_come_batch_by_batch(files):
    read = []
    stream = predict(build(), (read.append(path) or path for path in files), batch_size=2)
    assert isinstance(next(stream), Prediction) and len(read) == 2


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "LAB", "I;16"])
def test_any_mode_gives_a_prediction(tmp_path, mode):
    path = tmp_path / "image.tiff"
    Image.new(mode, (40, 40)).save(path)
    (found,) = predict(build(), [path])
    assert (found.error is None) == (len(found.labels) == 4)
