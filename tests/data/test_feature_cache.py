"""The folder of features: what is in it is the trunk's, image by image, and is computed once."""

import random

import numpy as np
import pytest
import torch
from helpers import cached_photos
from helpers.cached_photos import SHAPE, TREE, augmented, build, caches, computed, directly, one_file, photos
from PIL import Image
from torch.utils.data import TensorDataset

from hlnet.data.feature_cache import cached_features
from hlnet.data.images import LabelledImages
from hlnet.data.sampling import mixed, seeded
from hlnet.data.tree_data import TreeData, eval_transform
from hlnet.errors import DataError, UsageError
from hlnet.tree.class_tree import ClassTree

cache = cached_photos.cache


@pytest.mark.parametrize("kind", ["hierarchical", "plain"])
@pytest.mark.parametrize("where", ["memory", "folder"])
def test_features_are_the_trunks_of_seeded_views(tmp_path, cache, kind, where):
    net, data = build(kind), augmented(tmp_path)
    found = cached_features(net, data, views=3, batch_size=4, seed=5, folder=cache if where == "folder" else None)
    expected = directly(net, data, views=3, seed=5)
    assert (found.features.dtype, found.features.shape) == (torch.float16, (3, 7, 192, 2, 2))
    torch.testing.assert_close(found.features.float(), expected, rtol=2**-10, atol=1e-6)
    assert found.labels.tolist() == data.labels == [1, 1, 1, 0, 0, 2, 2]
    assert not torch.equal(found.features[0], found.features[1])  # the views do differ
    if where == "folder":
        assert np.array_equal(np.load(one_file(cache)), found.features.numpy())  # numpy reads the file


def test_neither_workers_nor_batches_nor_the_folder_matter(tmp_path, cache):
    net, data = build(), augmented(tmp_path)
    reference = cached_features(net, data, views=2, batch_size=5).features
    assert torch.equal(cached_features(net, data, views=2, batch_size=5, workers=2).features, reference)
    assert torch.equal(cached_features(net, data, views=2, batch_size=5, workers=2, folder=cache).features, reference)
    for batch_size in (1, 7, 100):
        other = cached_features(net, data, views=2, batch_size=batch_size).features
        torch.testing.assert_close(other, reference, rtol=2**-10, atol=1e-6)
    assert not torch.equal(cached_features(net, data, views=2, seed=1).features, reference)


@pytest.mark.parametrize("workers", [0, 1])
def test_no_generator_is_touched(tmp_path, cache, workers):
    """Or a run would depend on whether its features were there already."""
    net, data = build(), augmented(tmp_path)
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    cached_features(net, data, workers=workers, folder=cache)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


def test_the_second_time_nothing_is_computed(tmp_path, cache):
    net, data, steps = build(), augmented(tmp_path), []
    seen = computed(net)
    options = {"views": 2, "batch_size": 4, "folder": cache}
    first = cached_features(net, data, on_batch=lambda *step: steps.append(step), **options)
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)] and seen == [1, 4, 4, 4, 2]  # one to learn the shape
    again = cached_features(net, data, on_batch=lambda *step: steps.append(step), **options)
    other = cached_features(build("plain"), data, on_batch=lambda *step: steps.append(step), **options)  # same trunk
    assert len(steps) == 4 and len(seen) == 5
    for found in (again, other):
        assert torch.equal(found.features, first.features) and torch.equal(found.labels, first.labels)


def test_another_tree_gets_the_same_features_with_its_own_labels(tmp_path, cache):
    cached_features(build(), photos(tmp_path), folder=cache)
    tree = ClassTree.from_nested({"saw": None, "animal": ["cat", "dog"]})
    net, data = build(tree=tree), photos(tmp_path, tree=tree)
    seen = computed(net)
    found = cached_features(net, data, folder=cache)
    assert seen == [] and found.labels.tolist() == data.labels == [1, 1, 1, 2, 2, 0, 0]


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_unreadable_images_are_replaced_where_that_is_wanted(tmp_path, cache, where):
    data, folder = augmented(tmp_path), cache if where == "folder" else None
    (tmp_path / "train/cat/2.png").write_bytes(b"junk")  # the next image is a dog
    (tmp_path / "train/saw/1.png").write_bytes(b"junk")  # the next is the first of all
    net = build()
    with pytest.raises(DataError, match=r"2\.png"):
        cached_features(net, data, folder=folder)
    assert folder is None or not caches(folder)
    for _ in range(2):  # computed, then read
        found = cached_features(net, data, views=2, folder=folder, skip_unreadable=True)
        assert found.labels.tolist() == [1, 1, 0, 0, 0, 2, 1]
        with seeded(mixed(0, 1, 3)), torch.no_grad():
            expected = net.features(data[3][0][None])[0]
        torch.testing.assert_close(found.features[1, 2].float(), expected, rtol=2**-10, atol=1e-6)


def test_an_image_that_comes_and_goes_is_an_error():
    images, reads = [Image.new("RGB", (32, 32), (shade, 0, 0)) for shade in (0, 100, 200)], []

    def load(position):
        reads.append(position)
        if position == 1 and len(reads) > 6:
            raise DataError("the disk stutters; mend it")
        return images[position]

    data = TreeData(LabelledImages("flaky", ("cat", "dog"), (0, 1, 1), load), TREE, eval_transform(SHAPE), subset=True)
    with pytest.raises(DataError, match="image 1 of the data"):
        cached_features(build(), data, views=4, skip_unreadable=True)


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_overflow_is_refused_and_leaves_nothing(tmp_path, cache, where):
    net = build()
    with torch.no_grad():
        for parameter in net.trunk.parameters():
            parameter.mul_(50)
    with pytest.raises(DataError, match="float16"):
        cached_features(net, photos(tmp_path), folder=cache if where == "folder" else None)
    assert not cache.exists() or not [path for path in cache.iterdir() if path.suffix != ".lock"]


def test_data_that_does_not_know_its_images_stays_in_memory(cache):
    data = TensorDataset(torch.rand(3, 3, 32, 32), torch.tensor([2, 0, 1]))
    found = cached_features(build(), data)
    assert found.labels.tolist() == [2, 0, 1] and len(found) == 3
    with pytest.raises(UsageError, match="cache_dir"):
        cached_features(build(), data, folder=cache)
    with pytest.raises(UsageError, match="views"):
        cached_features(build(), data, views=0)
