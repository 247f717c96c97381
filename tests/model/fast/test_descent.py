"""A descent runs what its rule says, image by image, and what it runs has the full network's values."""

import math

import pytest
import torch
from helpers.lean_nets import LEAN, TREES, build_lean, build_undecided
from helpers.random_nets import assert_near, plain
from hypothesis import given, settings
from hypothesis import strategies as st

from hlnet.errors import UsageError
from hlnet.model.fast.chunks import LeafChunk
from hlnet.model.fast.optimize import optimize
from hlnet.tree.class_tree import ClassTree

SHAPES = st.recursive(st.none(), lambda below: st.lists(below, min_size=1, max_size=4), max_leaves=14).filter(bool)
ALL = LEAN["all"]


def nested(shape, path="n"):
    return {f"{path}{i}": nested(below, f"{path}{i}") if below else None for i, below in enumerate(shape)}


def images(batch=6, seed=0):
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def trained_and_fast(tree, lean=ALL, dtype=torch.float32):
    net = build_undecided(tree, lean)
    return net, optimize(net, dtype)


def naive(logits, rows, tree, threshold):
    """Logits of one image, one comparison at a time; and which classes ran."""
    families = [tuple(leaf.path.split("/")[:-1]) for leaf in tree.leaves]
    families = [leaf.parent for leaf in tree.leaves] if len(set(families)) == 1 else families
    mixed, ran = list(rows), set()
    while True:
        best = max(range(len(mixed)), key=mixed.__getitem__)
        rivals = [i for i in range(len(mixed)) if i != best and not (i in ran and best in ran)]
        if not rivals:
            return mixed, ran
        rival = max(rivals, key=mixed.__getitem__)
        if math.exp(mixed[rival] - mixed[best]) <= threshold:
            return mixed, ran
        wanted = tree.leaves[rival if best in ran else best].parent
        for i, leaf in enumerate(tree.leaves):
            if leaf.parent == wanted:
                mixed[i] = logits[i]
                ran.add(i)


@pytest.mark.parametrize("lean", ["all", "rows", "convnext, all"])
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_a_naive_descent_runs_the_same(tree, lean):
    net, fast = trained_and_fast(tree, LEAN[lean])
    with torch.no_grad():
        logits, rows = net(images(), with_rows=True)
    for threshold in (0.999, 0.9, 0.6, 0.1):
        found = fast.descend(images(), threshold)
        expected = [naive(*one, tree, threshold) for one in zip(logits.tolist(), rows.tolist(), strict=True)]
        assert [set(exact.nonzero()[:, 0].tolist()) for exact in found.exact] == [ran for _, ran in expected]
        assert_near(found.logits, torch.tensor([mixed for mixed, _ in expected], dtype=torch.float64))
        assert_near(found.rows, rows.double())


@settings(max_examples=12, deadline=None)
@given(SHAPES)
def test_any_tree_by_every_family_is_the_full_network(shape):
    _, fast = trained_and_fast(ClassTree.from_nested(nested(shape)))
    full = fast(images())
    found = fast.descend(images(), 1e-30)
    assert found.exact.all() or len(fast.tree.classes) == 1
    assert_near(torch.where(found.exact, found.logits, full), full.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_is_the_full_network_to_the_bit_and_one_the_rows(dtype):
    _, fast = trained_and_fast(TREES["n3hl"], dtype=dtype)
    found = fast.descend(images(), 0)
    assert torch.equal(found.logits, fast(images())) and found.exact.all()
    found = fast.descend(images(), 1)
    assert torch.equal(found.logits, found.rows) and not found.exact.any()


def test_images_stop_one_by_one_whatever_runs_beside_them():
    _, fast = trained_and_fast(TREES["n3hl"])
    together = fast.descend(images(), 0.8)
    alone = [fast.descend(images()[i : i + 1], 0.8) for i in range(6)]
    assert torch.equal(together.exact, torch.cat([one.exact for one in alone]))
    assert len({int(count) for count in together.exact.sum(dim=1)}) > 1
    assert_near(torch.cat([one.logits for one in alone]), together.logits.double())


def test_only_what_is_wanted_runs_and_once(monkeypatch):
    _, fast = trained_and_fast(TREES["n3hl"])
    ran, forward = [], LeafChunk.forward
    monkeypatch.setattr(LeafChunk, "forward", lambda self, y: ran.append(len(y) * len(self.bias)) or forward(self, y))
    exact = fast.descend(images(), 0.8).exact
    assert sum(ran) == int(exact.sum()) < exact.numel()


@pytest.mark.parametrize("classes", [[0, 1, 4], [8], range(9)])
def test_of_selected_classes(classes):
    net, fast = trained_and_fast(TREES["n3hl"])
    selected = fast.select(classes)
    with torch.no_grad():
        logits, rows = (found[:, list(classes)] for found in net(images(), with_rows=True))
    assert torch.equal(selected.descend(images(), 0).logits, selected(images()))
    found = selected.descend(images(), 0.7)
    assert_near(found.rows, rows.double())
    assert_near(found.logits, torch.where(found.exact, logits, rows).double())
    expected = [naive(*one, selected.tree, 0.7)[1] for one in zip(logits.tolist(), rows.tolist(), strict=True)]
    assert [set(exact.nonzero()[:, 0].tolist()) for exact in found.exact] == expected


def test_what_cannot_descend_is_refused():
    net, fast = trained_and_fast(TREES["uneven"])
    for threshold in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="expected a number between 0"):
            fast.descend(images(), threshold)
    with pytest.raises(UsageError, match="lacks; train a lean one"):
        optimize(build_lean(TREES["uneven"], LEAN["reduce"], torch.float32)).descend(images(), 0.5)
    with pytest.raises(UsageError, match="a plain network has no branches to descend"):
        optimize(plain()).descend(images(), 0.5)
    with torch.no_grad():
        net.head.leaves.bias += 1
    with pytest.raises(UsageError, match="changed"):
        fast.descend(images(), 0.5)
