"""Small networks on images of noise, with and without a fitted threshold; and their logits, one image at a time."""

import numpy as np
import torch
from PIL import Image

from helpers.naive import randomise
from hlnet.cues.policy import CuePolicy
from hlnet.data.images import LabelledImages
from hlnet.data.tree_data import TreeData, eval_transform
from hlnet.evaluation.metrics.rejection import rejection_scores
from hlnet.expert.cut import cut_expert
from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
from hlnet.model.plain import PlainConfig, PlainNet
from hlnet.model.provenance import Provenance, Rejection
from hlnet.model.transform import InputTransform
from hlnet.tree.class_tree import ClassTree

BCE = {"train": {"loss": "bce"}}
TREE = ClassTree.from_nested({"cat": {"tabby": 9, "siamese": 4}, "dog": {"beagle": 1, "boxer": 7}, "saw": 3, "axe": 5})
TRANSFORM = InputTransform(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0)


def build(kind="hierarchical", tree=TREE):
    torch.manual_seed(0)
    if kind == "plain":
        net = PlainNet(PlainConfig(backbone="test_resnet"), tree)
    else:
        net = HierarchicalNet(NetworkConfig(backbone="test_resnet", widths=(4, 4), strides=(1, 1)), tree)
        randomise(net.head)
    net.transform = TRANSFORM
    return net.eval()


def noise(tree=TREE, count=40, subset=False, outside=False):
    """Random images of TREE's classes, axe apart, numbered otherwise than in the tree."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
    classes = ("saw", "boxer", "beagle", "axe", "siamese", "tabby")
    labels = tuple((0, 1, 2, 4, 5)[i % 5] for i in range(count))
    images = LabelledImages("noise", classes, labels, lambda i: Image.fromarray(pixels[i]))
    return TreeData(images, tree, eval_transform(TRANSFORM), subset, outside)


def by_hand(net, data, gains=None):
    """Logits and labels, one image at a time."""
    with torch.no_grad():
        rows = [
            net(data[i][0][None], *(() if gains is None else (gains(data.labels[i]),)))[0] for i in range(len(data))
        ]
    return torch.stack(rows), torch.tensor(data.labels)


def expert_of(selection, score="energy", recipe=None):
    """An expert with a threshold in the middle of its scores, and away from each."""
    expert = cut_expert(build(), selection)
    data = noise(expert.tree, outside=True)
    logits, _ = by_hand(expert, data)
    threshold = float(rejection_scores(logits, score).sort().values[19:21].mean())
    fit = Rejection(score=score, threshold=threshold, max_false_positive=0.2)
    expert.provenance = Provenance(recipe=recipe or {}, temperature=2.5, rejection=fit)
    return expert, data


def signal_of(strength):
    """The paper's gain."""
    return CuePolicy(strength=strength)
