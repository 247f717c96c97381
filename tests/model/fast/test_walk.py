"""The tree of an inference form: its chunks fit the cache, are packed once, and change no logits."""

import pytest
import torch
from helpers import random_nets
from helpers.random_nets import TREES, assert_near, blocks, both_gains, build, images, run

import hlnet.model.fast.walk
from hlnet.model.fast.chunks import LeafChunk
from hlnet.model.fast.optimize import optimize
from hlnet.model.fast.walk import FastTree
from hlnet.model.hierarchical import BranchTree

packed = random_nets.packed


@blocks
@pytest.mark.parametrize("tree", [TREES["deep"], TREES["one class"], TREES["many children"]])
def test_size_of_the_cache_and_of_the_batch_does_not_matter(monkeypatch, block, tree):
    net = build(block, tree)
    maps = {count: run(net.features, images(count)) for count in (1, 3, 7)}
    expected = {count: [run(net.head, maps[count], *gains) for gains in both_gains(net, count)] for count in maps}
    for cache, batch in [(1, 8), (1, 1), (40_000, 2), (2**30, 3)]:
        monkeypatch.setattr(hlnet.model.fast.walk, "CACHE", cache)
        monkeypatch.setattr(hlnet.model.fast.walk, "BATCH", batch)
        fast = optimize(net)
        for count, logits in expected.items():
            for gains, same in zip(both_gains(net, count), logits, strict=True):
                assert_near(run(fast.head, maps[count], *gains), same)


@blocks
def test_chunks_fit_the_cache(monkeypatch, packed, block):
    """67 children at 4x4 pixels, 8 images, 4 bytes a number; a bottleneck is at most as wide as its width, ConvNeXt's
    block four times."""
    net = build(block, TREES["many children"], strides=(1, 1))
    assert net.trunk(images(1)).shape[2:] == (4, 4)
    widest = {"bottleneck": 6, "convnext": 24}[block]
    monkeypatch.setattr(hlnet.model.fast.walk, "CACHE", 20 * (8 * 4 * 4 * widest * 4) + 5)  # twenty and a bit
    fast = optimize(net)
    run(fast, images(3))
    first, *rest = [(start, end) for _, start, end, *_ in packed]
    assert first == (0, 2) and rest == [(0, 20), (20, 40), (40, 60), (60, 67), (67, 68)]
    assert {kind for kind, *_ in packed} == {block} and {batch for *_, batch, _ in packed} == {8}
    packed.clear()
    run(fast, images(17))
    assert not packed  # large batches run in parts of the kind that is there
    run(fast, images(1))
    assert [(start, end) for _, start, end, *_ in packed] == [(0, 2), (0, 67), (67, 68)]
    packed.clear()
    run(fast, images(2)), run(fast, images(1))
    assert not packed
    run(fast, images(3, (64, 96))), run(fast, images(1, (64, 96)))
    assert not packed  # other sizes run with what is there
    fast = optimize(net)
    run(fast, images(3, (64, 96)))
    assert {size for *_, size, _, _ in packed} == {(4, 6)}
    assert [end - start for _, start, end, *_ in packed] == [2, *[13] * 5, 2, 1]  # 20 * 4 / 6 is 13


@blocks
def test_packed_at_most_twice_whatever_the_sizes(packed, block):
    net = build(block)
    fast = optimize(net)
    for height in (48, 64, 80):
        for width in (48, 64, 96, 130):
            for batch in (1, 3):
                x = images(batch, (height, width))
                assert_near(run(fast, x), run(net, x))
    assert len(packed) == 2 * 4  # for each kind of batch, one of the first level and three of the last


@blocks
@pytest.mark.parametrize("batch", [1, 17])
def test_other_devices_get_whole_families_and_batches(monkeypatch, block, batch):
    """Not for their numbers, which this device does not have."""
    monkeypatch.setattr(hlnet.model.fast.walk, "CACHE", 1)
    head = BranchTree(TREES["many children"], 8, block, (8, 8), (1, 1)).eval()
    runs = []
    for device in ("cpu", "meta"):
        fast = FastTree(head.to(device), torch.float32)
        x = torch.zeros(batch, 8, 4, 4, device=device)
        with monkeypatch.context() as patched:
            seen = []
            kind = LeafChunk.forward
            patched.setattr(LeafChunk, "forward", lambda self, y, kind=kind, seen=seen: seen.append(y) or kind(self, y))
            assert fast(x).shape == (batch, 68)
        runs.append([(len(y), y.shape[1] // head.leaves.weight.shape[1]) for y in seen])
        fast(torch.zeros(3, 8, 4, 4, device=device))
    assert {children for _, children in runs[0]} == {1} and max(images for images, _ in runs[0]) <= 8
    assert runs[1] == [(batch, 67), (batch, 1)]
    assert [line.split(":")[0] for line in fast.explain()] == ["level 1, any batch", "level 2, any batch"]
