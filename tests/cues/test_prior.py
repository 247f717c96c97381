"""Priors: every stated probability comes out, the rest is even, and the shift is Bayes' rule."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hlnet.cues.prior import prior_shift, read_prior
from hlnet.errors import SelectionError, UsageError
from hlnet.tree.class_tree import ClassTree

TREE = ClassTree.from_nested(
    {
        "animal": {"cat": ["tabby", "siamese"], "dog": ["beagle", "boxer", "pug"]},
        "tool": {"saw": ["chain saw"]},
        "sky": {},
    }
)
SHAPES = st.recursive(st.none(), lambda below: st.lists(below, min_size=1, max_size=3), max_leaves=8).filter(bool)


@st.composite
def trees_and_priors(draw):
    """A random tree, and probabilities of some of its nodes, out of random ones of all classes."""
    counter = iter(range(1000))

    def mapping(shape):
        return {f"n{next(counter)}": mapping(below) if below else None for below in shape}

    tree = ClassTree.from_nested(mapping(draw(SHAPES)))
    weights = draw(st.lists(st.integers(1, 20), min_size=len(tree.leaves), max_size=len(tree.leaves)))
    whole = {path: sum(weights[i] for i in below) / sum(weights) for path, below in tree.node_names.below.items()}
    stated = draw(st.sets(st.sampled_from(sorted(whole)), min_size=1))
    seen = {}
    for path in sorted(stated):
        seen.setdefault(tree.leaves_under(path), path)  # of a chain, one
    return tree, {path: whole[path] for path in seen.values()}, whole


@settings(max_examples=80, deadline=None)
@given(trees_and_priors())
def test_what_is_stated_comes_out_and_the_rest_is_even(drawn):
    tree, stated, _ = drawn
    prior = read_prior(stated, tree)
    assert prior.dtype == torch.float64 and float(prior.sum()) == pytest.approx(1) and float(prior.min()) > 0
    for path, share in stated.items():
        assert float(prior[list(tree.leaves_under(path))].sum()) == pytest.approx(share)
    # Classes that lie under the same stated nodes are as probable.
    homes = [frozenset(path for path in stated if i in tree.leaves_under(path)) for i in range(len(tree.leaves))]
    for i, home in enumerate(homes):
        assert all(float(prior[i]) == pytest.approx(float(prior[j])) for j, other in enumerate(homes) if other == home)


@pytest.mark.parametrize(
    "stated, prior",
    [
        ({"cat": 0.5}, [0.25, 0.25, 0.1, 0.1, 0.1, 0.1, 0.1]),
        ({"animal": 0.6, "cat": 0.3}, [0.15, 0.15, 0.1, 0.1, 0.1, 0.2, 0.2]),
        ({"animal/cat": 0.3, "tabby": 0.25}, [0.25, 0.05, *[0.14] * 5]),
        ({"sky": 1 / 7}, [1 / 7] * 7),
        ({"animal": 0.7, "tool": 0.2, "sky": 0.1}, [*[0.14] * 5, 0.2, 0.1]),
        ({"animal": 0.333, "tool": 0.333, "sky": 0.3335}, None),
    ],
)
def test_by_hand(stated, prior):
    found = read_prior(stated, TREE)
    if prior is None:  # rounded thirds
        prior = [*[0.333 / 5] * 5, 0.333, 0.3335]
        prior = [share / sum(prior) for share in prior]
    torch.testing.assert_close(found, torch.tensor(prior, dtype=torch.float64))


@pytest.mark.parametrize(
    "name, text",
    [
        ("p.csv", "node,probability\ncat,0.3\ntabby,0.25\n"),
        ("p.csv", "probability;node\n0.25;tabby\n0.3;animal/cat\n"),
        ("p.jsonl", '{"node": "cat", "probability": 0.3}\n{"node": "tabby", "probability": 0.25}\n'),
    ],
)
def test_files(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_prior(tmp_path / name, TREE).tolist() == read_prior({"cat": 0.3, "tabby": 0.25}, TREE).tolist()


REFUSED = {
    "nothing": ({}, "names no node"),
    "zero": ({"cat": 0}, "'cat': probability 0 must be above 0"),
    "negative": ({"cat": -0.1}, "-0.1 must be above 0"),
    "count": ({"cat": 12}, "12 must be .* at most 1; counts are divided by their sum"),
    "no number": ({"cat": "much"}, "probability 'much' is no number"),
    "none": ({"cat": None}, "probability None is no number"),
    "nan": ({"cat": float("nan")}, "nan must be above 0"),
    "too much": ({"cat": 0.7, "tool": 0.5, "sky": 0.1}, "add up to 1.3, which is more than 1"),
    "nothing left for some": ({"cat": 0.7, "tool": 0.2, "sky": 0.1}, "leave nothing for 'beagle', 'boxer', 'pug'"),
    "too much of all": ({"animal": 0.7, "tool": 0.5, "sky": 0.1}, "add up to 1.3, which is more than 1"),
    "too little of all": ({"animal": 0.5, "tool": 0.2, "sky": 0.1}, "of all classes, add up to 0.8; expected 1"),
    "more below": ({"cat": 0.3, "tabby": 0.2, "siamese": 0.2}, "under 'animal/cat' add up to 0.4, .* more than 0.3"),
    "nothing left below": ({"cat": 0.3, "tabby": 0.3}, "under 'animal/cat' leave nothing for 'siamese'.*less than 0.3"),
    "nothing left": ({"animal": 1.0}, "leave nothing for 'chain saw', 'sky'"),
    "twice": ({"cat": 0.3, "animal/cat": 0.4}, "the classes of 'animal/cat' have a probability already"),
    "twice, as a chain": ({"tool": 0.3, "saw": 0.3}, "the classes of 'saw' have a probability already"),
    "unknown": ({"ct": 0.3}, "no class or node 'ct'. Did you mean 'cat'"),
}


@pytest.mark.parametrize("stated, told", REFUSED.values(), ids=REFUSED.keys())
def test_refused(tmp_path, stated, told):
    with pytest.raises(UsageError, match=told):
        read_prior(stated, TREE)
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(json.dumps({"node": node, "probability": share}) for node, share in stated.items()))
    with pytest.raises(UsageError) as caught:
        read_prior(path, TREE)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_line_of_an_error(tmp_path):
    (tmp_path / "p.csv").write_text("node,probability\ncat,0.5\n\nct,0.1\n")
    with pytest.raises(SelectionError, match=r"line 4: .*'ct'"):
        read_prior(tmp_path / "p.csv", TREE)


def test_all_classes_under_one_node():
    tree = ClassTree.from_nested({"object": {"cat": {}, "saw": {}}})
    assert read_prior({"object": 1.0, "cat": 0.75}, tree).tolist() == [0.75, 0.25]
    with pytest.raises(UsageError, match="a node that holds all classes has the probability 1"):
        read_prior({"object": 0.9}, tree)


@settings(max_examples=50, deadline=None)
@given(trees_and_priors(), st.sampled_from([0.5, 1.0, 2.5]), st.integers(0, 99))
def test_shift_is_bayes_rule(drawn, temperature, seed):
    tree, stated, _ = drawn
    prior = read_prior(stated, tree)
    logits = torch.randn(3, len(prior), generator=torch.Generator().manual_seed(seed))
    by_rule = (logits.double() / temperature).softmax(1) * prior
    found = ((logits + prior_shift(prior, temperature)) / temperature).softmax(1)
    torch.testing.assert_close(found.double(), by_rule / by_rule.sum(1, keepdim=True), rtol=1e-4, atol=1e-6)


def test_even_prior_is_neutral():
    shift = prior_shift(torch.full((8,), 1 / 8))
    assert shift.dtype == torch.float32 and torch.equal(shift, torch.zeros(8))
