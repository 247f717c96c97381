"""Seven photos, networks with one trunk, and the folders of features that it computes; in other processes, too."""

import json  # noqa: F401 - for the code
import subprocess
import sys
import zlib  # noqa: F401 - for the code
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import scripts
from hlnet.data.feature_cache import cached_features, feature_key  # noqa: F401 - for the code
from hlnet.data.sampling import mixed, seeded
from hlnet.data.sources import load_data
from hlnet.data.tree_data import TreeData, eval_transform, train_transform
from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
from hlnet.model.plain import PlainConfig, PlainNet
from hlnet.model.transform import InputTransform
from hlnet.tree.class_tree import ClassTree

SHAPE = InputTransform(input_size=(3, 32, 32))
CLASSES = {"cat": 3, "dog": 2, "saw": 2}
TREE = ClassTree.from_nested({"pet": ["dog", "cat"], "saw": None})
AUGMENT = {"aa": "rand-m9-mstd0.5", "scale": (0.5, 1.0)}
BYTES = 2 * 7 * 192 * 2 * 2  # one view


def build(kind="hierarchical", seed=0, tree=TREE, **config):
    torch.manual_seed(seed)
    config = {"backbone": "test_resnet"} | config
    net = HierarchicalNet(NetworkConfig(widths=(4, 4), strides=(1, 1), **config), tree)
    if kind == "plain":  # on the same trunk
        plain = PlainNet(PlainConfig(**config), tree)
        plain.trunk_module.load_state_dict(net.trunk_module.state_dict(), strict=False)
        return plain
    return net


def photos(folder, transform=None, tree=TREE):
    """Seven noisy images; ``folder`` is filled unless it is already."""
    noise = np.random.default_rng(0)
    for name, count in () if (Path(folder) / "train").exists() else CLASSES.items():
        place = Path(folder) / "train" / name
        place.mkdir(parents=True)
        for number in range(count):
            Image.fromarray(noise.integers(0, 256, (40, 50, 3), np.uint8)).save(place / f"{number}.png")
    return TreeData(load_data(folder), tree, transform or eval_transform(SHAPE))


def augmented(folder, **settings):
    return photos(folder, train_transform(SHAPE, **AUGMENT | settings))


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def caches(folder):
    return sorted(folder.glob("*.npy"))


def one_file(folder):
    (file,) = caches(folder)
    return file


def computed(net):
    """The images that a network's trunk sees from now on, counted batch by batch."""
    seen, inner = [], net.features

    def features(images):
        seen.append(len(images))
        return inner(images)

    net.features = features
    return seen


def directly(net, data, views, seed):
    """The definition, image by image and without any cache."""
    rounds = []
    for view in range(views):
        images = []
        for position in range(len(data)):
            with seeded(mixed(seed, view, position)):
                images.append(data[position][0])
        with torch.no_grad():
            rounds.append(net.eval().features(torch.stack(images)))
    return torch.stack(rounds)


def in_another_process(code, folder):
    """Run code in a process that knows this module's names, the cache, ``folder`` and a network, ``net``."""
    return scripts.Other(_with_names, code, folder)


def in_a_new_interpreter(code, folder, **more):
    """The same in a Python of its own, which takes seconds to import torch."""
    start = f"import sys; from pathlib import Path; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
    start += f"from helpers.cached_photos import _with_names; _with_names({code!r}, Path({str(folder)!r}))"
    command = [sys.executable, "-W", "ignore", "-c", start]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, **more)


def _with_names(code, folder):
    torch.set_num_threads(1)
    names = {"folder": folder, "net": build()}
    exec(code, globals() | names)
