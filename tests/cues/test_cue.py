"""Cues: neutral ones change no bit, a leaf's gain only its own logit, several add up, and a bias is Bayes' rule."""

import itertools
import math

import numpy as np
import pytest
import torch
from helpers.evaluated_nets import BCE, TREE, build
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from hlnet.cues.apply import BatchLogits
from hlnet.cues.cue import Cue, cue_evidence, curve_strength
from hlnet.cues.effect import cue_effect
from hlnet.cues.hard import hard_cue_classes, hard_cue_logits
from hlnet.cues.policy import CuePolicy
from hlnet.errors import SelectionError, UsageError
from hlnet.model.fast.optimize import optimize
from hlnet.model.fast.walk import FastTree
from hlnet.model.provenance import FittedAttention, Provenance
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.selection import select_classes

NODES = ("tabby", "siamese", "cat", "dog", "dog/beagle", "saw", "cat,saw", "*e*")
MODES = ("gain", "bias", "scale")
FITTED = FittedAttention(reliability=0.8, gain=((1.0, 2.0), (3.0, 6.0)), scale=((2.0, 3.0),))


@pytest.fixture(scope="module")
def net():
    found = build()
    found.provenance.attention, found.provenance.temperature = FITTED, 2.0
    return found


@pytest.fixture(scope="module")
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def under(net, images, cues, **attention):
    with torch.no_grad():
        return cue_effect(net, cues, CuePolicy(**attention)).logits(net, images)


def test_a_selection_is_read_anew(net, tmp_path):
    """A service that runs for weeks goes by what a file holds now."""
    file = tmp_path / "wanted.txt"
    for name in ("tabby", "saw"):
        file.write_text(name)
        effect = cue_effect(net, [[Cue(node=f"@{file}", strength=1.0)]], CuePolicy(mode="bias"))
        assert [TREE.classes[i] for i in effect.bias[0].nonzero()[:, 0]] == [name]


def test_a_strength_is_of_its_own_mode(net):
    """A factor is no shift, just because the cue that takes it acts by one."""
    with pytest.raises(UsageError, match=r"acts by bias, and the strength 1.8 is that of a gain"):
        cue_effect(net, [[Cue(node="cat", mode="bias")]], CuePolicy(strength=1.8))


@pytest.mark.parametrize("strength", [1e6 + 1, -2e6, math.inf, math.nan])
def test_strengths_are_numbers_that_float32_knows(strength):
    for made in (Cue, CuePolicy):
        with pytest.raises(ValueError, match="strength"):
            made(**({"node": "cat"} if made is Cue else {}), strength=strength)


# ---------------------------------------------------------------------- neutrality and locality


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", [lambda net: net, optimize], ids=["training", "inference"])
def test_neutral_cues_change_no_bit(net, images, mode, form):
    net = form(net)
    neutral = net(images)
    strength = 0.0 if mode == "bias" else 1.0
    cues = [[Cue(node="cat")], [], [Cue(node="saw"), Cue(node="dog/boxer")], [Cue(node="tabby")]]
    assert torch.equal(under(net, images, cues, mode=mode, strength=strength), neutral)
    assert torch.equal(under(net, images, [[], [], [], []], mode=mode, strength=7.0), neutral)
    chance = [[Cue(node="saw", reliability=1 / 6)]] * 4
    torch.testing.assert_close(under(net, images, chance, mode=mode), neutral, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("strength", [0.3, 2.5])
@pytest.mark.parametrize("node", NODES)
def test_only_cued_logits_of_cued_images_change(net, images, mode, strength, node):
    neutral = net(images)
    found = under(net, images, [[], [Cue(node=node)], [], [Cue(node=node)]], mode=mode, strength=strength)
    names = [leaf.path for leaf in TREE.leaves]
    listed = {
        "cat": ["cat/tabby", "cat/siamese"],
        "dog": ["dog/beagle", "dog/boxer"],
        "cat,saw": ["cat/tabby", "cat/siamese", "saw"],
        "*e*": ["cat/siamese", "dog/beagle", "dog/boxer", "axe"],
    }.get(node, [node if node in names else f"cat/{node}"])
    cued = torch.tensor([name in listed for name in names])
    assert torch.equal(found[[0, 2]], neutral[[0, 2]]) and torch.equal(found[:, ~cued], neutral[:, ~cued])
    changed = (found - neutral).abs()[[1, 3]][:, cued]
    assert (changed > 1e-5).all()
    if mode == "bias":
        torch.testing.assert_close(changed, torch.full_like(changed, strength))
    if mode == "scale":
        torch.testing.assert_close(found[[1, 3]][:, cued], strength * neutral[[1, 3]][:, cued])


def test_gain_is_the_networks_own(net, images):
    """Gains written by hand, on the leaves under the node."""
    position = {(level, node.path): i for i, (level, node) in enumerate(_numbered())}
    ways = {
        "cat": [(2, "cat/tabby"), (2, "cat/siamese")],
        "tabby": [(2, "cat/tabby")],
        "saw": [(2, "saw")],
        "dog/beagle,saw": [(2, "dog/beagle"), (2, "saw")],
    }
    for node, blocks in ways.items():
        gains = torch.ones(TREE.num_nodes)
        gains[[position[block] for block in blocks]] = 2.5
        found = under(net, images, [[Cue(node=node)]] * 4, strength=2.5)
        assert torch.equal(found, net(images, gains)), node


def _numbered():
    return [(level, node) for level, row in enumerate(TREE.levels, start=1) for node in row]


@pytest.mark.parametrize("mode", MODES)
def test_several_cues_are_independent(net, images, mode):
    pair = [Cue(node="cat", strength=3.0), Cue(node="tabby", strength=0.5)]
    both = cue_effect(net, [pair], CuePolicy(mode=mode))
    single = [cue_effect(net, [[cue]], CuePolicy(mode=mode)) for cue in pair]
    for name in ("gains", "scale", "bias"):
        parts = [getattr(effect, name) for effect in (both, *single)]
        if parts[0] is not None:
            expected = parts[1] + parts[2] if mode == "bias" else parts[1] * parts[2]
            torch.testing.assert_close(parts[0], expected)
            assert parts[0].unique().numel() == 3


# ---------------------------------------------------------------------- reliability


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-6, 6, width=32), min_size=2, max_size=7),
    st.floats(0.02, 0.98),
    st.data(),
)
def test_bias_is_bayes_rule(logits, reliability, data):
    """Against the joint distribution of class and cue, written out."""
    classes = len(logits)
    named = data.draw(st.sets(st.integers(0, classes - 1), min_size=1, max_size=classes - 1))
    image = softmax(np.array(logits, dtype=float))
    # P(cue | class), from P(class named | cue) = reliability under equally frequent classes
    odds = reliability / (1 - reliability) * (classes - len(named)) / len(named)
    likelihood = np.array([odds if place in named else 1.0 for place in range(classes)])
    posterior = image * likelihood / (image * likelihood).sum()
    shift = cue_evidence(reliability, len(named), classes) * np.array([place in named for place in range(classes)])
    np.testing.assert_allclose(softmax(np.array(logits) + shift), posterior, rtol=1e-9)
    flat = softmax(shift)  # an image that says nothing leaves the cue's own reliability
    assert flat[list(named)].sum() == pytest.approx(reliability)


def test_bias_takes_the_temperature_and_what_competes(net):
    whole = cue_effect(net, [[Cue(node="cat", reliability=0.7)]], CuePolicy(mode="bias"))
    evidence = math.log(0.7 / 0.3 * 4 / 2)
    torch.testing.assert_close(whole.bias, torch.tensor([[2 * evidence, 2 * evidence, 0, 0, 0, 0]]))
    among = cue_effect(net, [[Cue(node="cat", reliability=0.7)]], CuePolicy(mode="bias"), competing=[0, 2, 3])
    assert float(among.bias[0, 0]) == pytest.approx(2 * math.log(0.7 / 0.3 * 2 / 1))
    all_of_them = cue_effect(net, [[Cue(node="cat", reliability=0.7)]], CuePolicy(mode="bias"), competing=[0, 1])
    assert not all_of_them.bias.any()


@pytest.mark.parametrize(
    "evidence, factor",
    [(0, 1), (0.5, math.sqrt(2)), (1, 2), (2, math.sqrt(12)), (3, 6), (9, 6), (-1, 1 / 2), (-9, 1 / 6)],
)
def test_curves_are_lines_in_the_logarithm(evidence, factor):
    assert curve_strength(FITTED.gain, evidence) == pytest.approx(factor)


def test_where_a_strength_comes_from(net):
    """The cue's own word goes before the attention's, and that before what the file holds."""

    def gain(cue, **attention):
        return float(cue_effect(net, [[cue]], CuePolicy(mode="gain", **attention)).gains.max())

    by = {p: curve_strength(FITTED.gain, cue_evidence(p, 1, 6)) for p in (0.3, 0.5, 0.8)}
    saw = "saw"
    assert gain(Cue(node=saw, strength=4.0), strength=2.0) == 4.0
    assert gain(Cue(node=saw, reliability=0.3), strength=2.0) == pytest.approx(by[0.3])
    assert gain(Cue(node=saw), strength=2.0) == 2.0
    assert gain(Cue(node=saw), reliability=0.5) == pytest.approx(by[0.5])
    assert gain(Cue(node=saw)) == pytest.approx(by[0.8])
    assert float(cue_effect(net, [[Cue(node=saw, reliability=0.02)]], CuePolicy(mode="gain")).gains.min()) < 1


@pytest.mark.parametrize(
    "kind, cue, attention, words",
    [
        ("plain", {}, {"strength": 2.0}, "plain network has no branches"),
        ("full", {}, {"strength": -2.0}, "gain -2 must be at least 0"),
        ("full", {"strength": -2.0}, {"mode": "scale"}, "scale -2 must be at least 0"),
        ("full", {}, {}, "the cue on 'cat' has no strength: add --reliability"),
        ("full", {"reliability": 0.9}, {"mode": "gain"}, "holds no gain for a reliability"),
        ("full", {"reliability": 0.9}, {"mode": "scale"}, "holds no scale for a reliability"),
    ],
)
def test_what_cannot_act_is_refused(kind, cue, attention, words):
    found = build("plain" if kind == "plain" else "hierarchical")
    with pytest.raises(UsageError, match=words):
        cue_effect(found, [[Cue(node="cat", **cue)]], CuePolicy(**attention))


def test_misspelt_nodes_and_impossible_reliabilities(net):
    with pytest.raises(SelectionError, match="siamese"):
        cue_effect(net, [[Cue(node="siamse")]], CuePolicy(strength=2.0))
    for reliability in (0.0, 1.0, -0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="reliability"):
            Cue(node="cat", reliability=reliability)
        with pytest.raises(UsageError, match="reliability"):
            cue_evidence(reliability, 1, 3)


def test_a_cue_keeps_its_classes_in_another_tree(net):
    """By name, whatever the other tree calls them together; a cue of which nothing is left does nothing."""
    other = ClassTree.from_nested({"cat": ["saw", "boxer"], "pets": ["siamese", "beagle"]})
    assert [Cue(node=node).on(TREE).positions(other) for node in ("cat", "dog,saw", "axe")] == [(2,), (0, 1, 3), ()]
    assert Cue(node="cat").positions(other) == (0, 1)
    for policy in ({"reliability": 0.9}, {"strength": 3.0}, {"mode": "scale", "strength": 3.0}):
        effect = cue_effect(build(tree=other), [[Cue(node="axe").on(TREE)]], CuePolicy(**policy))
        assert torch.equal(effect.shifted(torch.ones(1, 4)), torch.ones(1, 4))
        assert effect.gains is None or (effect.gains == 1).all()


def test_cues_of_one_image_act_each_in_its_way(net, images):
    """Feature by feature and logit by logit, as each alone."""
    cues = [Cue(node="tabby", strength=3.0), Cue(node="dog", reliability=0.8, mode="bias")]
    cues += [Cue(node="saw", strength=2.0, mode="scale"), Cue(node="axe", strength=-1.0, mode="bias")]
    together = under(net, images, [cues] * 4)
    expected = net(images).clone()
    for cue in cues:
        alone = under(net, images, [[cue]] * 4)
        places = list(select_classes(TREE, cue.node))
        expected[:, places] = alone[:, places]
    torch.testing.assert_close(together, expected)


def test_a_reliability_is_weighed_against_the_prior(net):
    """An image that says nothing leaves the cue's reliability, and the prior's proportions within and without."""
    prior = {"tabby": 0.3, "siamese": 0.1, "beagle": 0.2, "boxer": 0.1, "saw": 0.2, "axe": 0.1}
    effect = cue_effect(net, [[Cue(node="cat", reliability=0.9)], []], CuePolicy(mode="bias", prior=prior))
    cued, uncued = (effect.bias / net.provenance.temperature).softmax(1)
    torch.testing.assert_close(uncued, torch.tensor(list(prior.values())))
    expected = [0.9 * 0.75, 0.9 * 0.25, *(0.1 * share / 0.6 for share in (0.2, 0.1, 0.2, 0.1))]
    torch.testing.assert_close(cued, torch.tensor(expected))
    both = cue_effect(net, [[Cue(node="cat", strength=3.0)]], CuePolicy(prior=prior))
    torch.testing.assert_close(both.bias[0], effect.bias[1])
    assert both.gains.max() == 3
    with pytest.raises(UsageError, match="says nothing of tabby, siamese"):
        cue_effect(net, [[]], CuePolicy(prior={"cat": 0.9, "dog": 0.1}))
    with pytest.raises(UsageError, match="above 0 for each class"):
        cue_effect(net, [[]], CuePolicy(prior=prior | {"axe": 0.0}))


def test_prior_of_detectors():
    """Classes trained one against all: each one's own odds change from 1 / K to the prior's."""
    net = build()
    net.provenance = Provenance(recipe=BCE)
    prior = dict(zip(TREE.classes, (0.5, 0.1, 0.1, 0.1, 0.1, 0.1), strict=True))
    effect = cue_effect(net, [[]], CuePolicy(prior=prior))
    at_chance = torch.tensor(1 / 6).logit()
    torch.testing.assert_close((at_chance + effect.bias[0]).sigmoid(), torch.tensor(list(prior.values())))


# ---------------------------------------------------------------------- hard cues


def test_certain_cues_run_only_their_expert(net, images):
    fast = optimize(net)
    cues = [[Cue(node="cat")], [Cue(node="dog"), Cue(node="boxer,saw")], [], [Cue(node="cat")]]
    found = hard_cue_logits(fast, fast.features(images), cues)
    kept = [{0, 1}, {3}, set(range(6)), {0, 1}]
    full = fast(images)
    for row, column in itertools.product(range(4), range(6)):
        if column in kept[row]:
            assert float(found[row, column]) == pytest.approx(float(full[row, column]), abs=1e-5)
        else:
            assert found[row, column] == -math.inf
    assert hard_cue_classes(fast.tree, cues[1]) == (3,)
    with pytest.raises(UsageError, match="leave no class"):
        hard_cue_classes(fast.tree, [Cue(node="cat"), Cue(node="saw")])
    with pytest.raises(UsageError, match="full network"):
        hard_cue_logits(optimize(build("plain")), images, cues)


def test_certain_cues_skip_branches(net, images, monkeypatch):
    """Only the leaves that are named run, in prediction, too: the full tree runs for the image without a cue alone."""
    fast = optimize(net)
    ran = []
    run = FastTree.run

    def noted(self, features, *rest):
        ran.append((len(features), len(rest[-1])))
        return run(self, features, *rest)

    monkeypatch.setattr(FastTree, "run", noted)
    cues = [[Cue(node="cat")], [Cue(node="saw")], [Cue(node="cat")], []]
    certain = CuePolicy(hard=True)
    BatchLogits(fast, images).under(cues, certain)
    assert sorted(ran) == [(1, 1), (1, 6), (2, 2)]
    with pytest.raises(UsageError, match="leave no class"):
        BatchLogits(fast, images).under(cues, certain, competing=[2, 3])
    with pytest.raises(UsageError, match="optimise the network"):
        BatchLogits(net, images).under(cues, certain)


def test_batches_compute_what_is_asked_for_once(net, images, monkeypatch):
    fast = optimize(net)
    ran = []
    run = FastTree.run
    monkeypatch.setattr(FastTree, "run", lambda self, x, g, *rest: ran.append(g is not None) or run(self, x, g, *rest))
    batch = BatchLogits(fast, images)
    batch.under([[Cue(node="cat")]] * 4, CuePolicy(strength=2.0))
    assert ran == [True]
    for _ in range(2):
        batch.under([[Cue(node="cat")]] * 4, CuePolicy(mode="bias", strength=2.0))
    assert ran == [True, False] and batch.neutral is batch.under([[]] * 4, CuePolicy())
