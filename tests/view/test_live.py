"""Answers under cues and cuts: the full network's, the expert's, and the expert's under the same cue."""

import io
from base64 import b64decode

import numpy as np
import pytest
import torch
from helpers.random_nets import TREE, TREES, build, plain
from matplotlib import colormaps
from PIL import Image

from hlnet.cues.cue import Cue
from hlnet.cues.effect import cue_effect
from hlnet.cues.policy import CuePolicy
from hlnet.data.tree_data import eval_transform
from hlnet.errors import DataError, SelectionError, UsageError
from hlnet.expert.cut import cut_expert
from hlnet.model.cost import profile
from hlnet.model.provenance import Provenance
from hlnet.tree.class_tree import ClassTree
from hlnet.view.branch_maps import activity, feature_maps
from hlnet.view.live import MOST_IMAGES, ForgottenImageError, LiveNet, Question


def photo(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (70, 90, 3), np.uint8))


def as_file(image):
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def network(tree=TREE):
    net = build(tree=tree)
    with torch.no_grad():
        net.head.leaves.weight *= 5
    net.provenance = Provenance(temperature=1.5)
    return net


@pytest.fixture(scope="module")
def live():
    return LiveNet(network())


def pixels(uri):
    return np.asarray(Image.open(io.BytesIO(b64decode(uri.removeprefix("data:image/png;base64,"), validate=True))))


def asked(live, **settings):
    return live.answer(Question(image=live.see(as_file(photo())).image, **settings))


def batch(net):
    return eval_transform(net.transform)(photo())[None]


def table(answer, tree=TREE):
    """Logits and probabilities of what is told, by class, without and with."""
    return {choice.name: choice for choice in answer.choices}


@torch.no_grad()
def expected(net, cues=(), attention=None):
    """Logits and probabilities by class, of a training form."""
    effect = cue_effect(net, [[Cue(node=node) for node in cues]], attention or CuePolicy())
    logits = effect.logits(net, batch(net))[0]
    shares = (logits / (net.provenance.temperature or 1)).softmax(0)
    return dict(zip(net.tree.classes, logits.tolist(), strict=True)), dict(
        zip(net.tree.classes, shares.tolist(), strict=True)
    )


QUESTIONS = {
    "nothing": {},
    "bias": {"cues": ["cat"], "reliability": 0.75},
    "gain": {"cues": ["dog/boxer", "saw"], "mode": "gain", "strength": 3},
    "scale": {"cues": ["dog"], "mode": "scale", "strength": 0.25},
    "cut": {"cut": ["dog/boxer", "saw"]},
    "cut and gain": {"cut": ["cat/siamese", "saw"], "cues": ["cat", "dog/boxer"], "mode": "gain", "strength": 4},
    "cut and bias": {"cut": ["dog", "dog/boxer"], "cues": ["cat/lion"], "reliability": 0.9},
    "what is cued is cut": {"cut": ["dog"], "cues": ["dog/boxer"], "reliability": 0.9},
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_answers_are_those_of_the_cut_network_under_the_cues(live, question):
    settings, full = QUESTIONS[question], network()
    answer = asked(live, **settings)
    gone = {name for path in settings.get("cut", []) for name in (TREE.classes[i] for i in TREE.leaves_under(path))}
    kept = [name for name in TREE.classes if name not in gone]
    expert = cut_expert(full, kept) if gone else full
    expert.provenance.temperature = full.provenance.temperature  # before and now are on one scale
    cues = [
        path for path in settings.get("cues", []) if set(TREE.leaves_under(path)) - set(map(TREE.classes.index, gone))
    ]
    attention = CuePolicy(
        mode=settings.get("mode", "bias"), strength=settings.get("strength"), reliability=settings.get("reliability")
    )
    logits, shares = expected(full)
    logits_now, shares_now = expected(expert, cues, attention)
    found = table(answer)
    for name, choice in found.items():
        assert choice.path == TREE.leaves[TREE.classes.index(name)].path
        assert choice.logit == pytest.approx(logits[name], abs=1e-4)
        assert choice.probability == pytest.approx(shares[name], abs=1e-5)
        if name in gone:
            assert choice.logit_now is choice.probability_now is None
        else:
            assert choice.logit_now == pytest.approx(logits_now[name], abs=1e-4)
            assert choice.probability_now == pytest.approx(shares_now[name], abs=1e-5)
    ranking = sorted(logits_now, key=logits_now.get, reverse=True)
    before = sorted(logits, key=logits.get, reverse=True)
    assert list(found) == list(dict.fromkeys(ranking[:5] + before[:3]))
    costs = profile(full.config, TREE, full.transform, kept if gone else None)
    now = costs.expert if gone else costs.full
    assert (answer.full.params, answer.full.nodes) == (costs.full.params, TREE.counts)
    assert (answer.now.params, answer.now.nodes) == (now.params, expert.tree.counts)
    assert answer.now.gmacs == pytest.approx(now.gmacs) and answer.full.gmacs == pytest.approx(costs.full.gmacs)


def test_maps_are_of_the_best_path_of_cues_and_of_what_is_looked_at(live):
    net = network()
    settings = {"cues": ["dog"], "mode": "gain", "strength": 3}
    answer = asked(live, looked_at=["saw", "cat"], **settings)
    best = next(iter(answer.choices))
    dogs = {choice.name: choice.logit_now for choice in answer.choices if choice.path.startswith("dog/")}
    logits, _ = expected(net, ["dog"], CuePolicy(strength=3))
    dog = max(("beagle", "boxer"), key=logits.get)
    wanted = {best.path, *([best.path.split("/")[0]] if "/" in best.path else []), f"dog/{dog}", "saw", "cat"}
    assert dogs and {found.path for found in answer.maps} == wanted
    assert [found.level for found in answer.maps] == sorted(found.level for found in answer.maps)
    gains = cue_effect(net, [[Cue(node="dog")]], CuePolicy(strength=3)).gains
    for found in answer.maps:
        before, after = (
            activity(feature_maps(net, batch(net), [found.path], gains=how)[found.path])[0].numpy()
            for how in (None, gains)
        )
        assert_coloured(found.before, before, found.top)
        assert (found.after is not None) == (not np.array_equal(before, after))
        if found.after is not None:
            assert found.path == f"dog/{dog}"
            assert_coloured(found.after, after, found.top)
    tops = {(found.level, found.top) for found in answer.maps}
    assert len(tops) == len({level for level, _ in tops})


def assert_coloured(uri, values, top):
    """The colours' lookup has 256 steps; a value at the edge of one may fall to either side."""
    exact = colormaps["viridis"](values / top)[..., :3]
    found = pixels(uri).astype(float) / 255
    assert found.shape == exact.shape and np.abs(found - exact).max() < 0.03


def test_gains_reach_the_maps_of_a_cut_network(live):
    """Numbered anew in the expert, its nodes must be cued in the full tree's numbering for the maps."""
    cut = asked(live, cues=["saw"], mode="gain", strength=3, cut=["cat", "dog/beagle"])
    whole = asked(live, cues=["saw"], mode="gain", strength=3)
    net, gains = network(), torch.ones(TREE.num_nodes)
    gains[TREE.offsets[1] + TREE.classes.index("saw")] = 3
    after = activity(feature_maps(net, batch(net), ["saw"], gains=gains)["saw"])[0].numpy()
    for answer in (cut, whole):
        found = {found.path: found for found in answer.maps}
        assert_coloured(found.pop("saw").after, after, answer.maps[-1].top)
        assert all(other.after is None for other in found.values())
    assert not any(found.path.startswith(("cat", "dog/beagle")) for found in cut.maps)


def test_what_the_network_sees_is_the_picture(live):
    seen = live.see(as_file(photo()))
    assert pixels(seen.picture).shape == (64, 64, 3)
    assert live.see(as_file(photo())).image == seen.image != live.see(as_file(photo(1))).image


def test_the_oldest_images_are_forgotten():
    live = LiveNet(network())
    seen = [live.see(as_file(photo(seed))).image for seed in range(MOST_IMAGES)]
    live.answer(Question(image=seen[0]))  # used, so no longer the oldest
    live.see(as_file(photo(MOST_IMAGES)))
    live.answer(Question(image=seen[0]))
    with pytest.raises(ForgottenImageError, match="not in memory any more"):
        live.answer(Question(image=seen[1]))


@pytest.mark.parametrize(
    "settings, error, said",
    [
        ({"cut": ["cat", "dog", "saw"]}, UsageError, "every class is cut away"),
        ({"cut": ["fish"]}, SelectionError, "no node 'fish'"),
        ({"cues": ["fish"], "reliability": 0.9}, SelectionError, "no node 'fish'"),
        ({"cues": ["cat"]}, UsageError, "has no strength"),
        ({"cues": ["cat"], "mode": "gain", "strength": -1}, UsageError, "at least 0"),
        ({"cues": ["cat"], "mode": "gain", "reliability": 0.9}, UsageError, "holds no gain"),
        ({"looked_at": ["fish"]}, SelectionError, "no node 'fish'"),
    ],
    ids=["all cut", "unknown cut", "unknown cue", "no strength", "negative", "no curve", "unknown look"],
)
def test_questions_without_an_answer_are_refused(live, settings, error, said):
    with pytest.raises(error, match=said):
        asked(live, **settings)


def test_no_image_and_no_branches_are_refused(live):
    with pytest.raises(DataError, match=r"'photo\.png': not an image"):
        live.see(b"no image", "photo.png")
    with pytest.raises(UsageError, match="plain network has no branches"):
        LiveNet(plain())


def test_a_node_is_not_taken_for_a_class_of_its_name():
    tree = ClassTree.from_nested({"cat": ["tabby", "siamese"], "toy": ["cat", "ball"]})
    answer = asked(LiveNet(network(tree)), cues=["cat"], mode="scale", strength=0)
    told = {choice.name: choice.logit_now for choice in answer.choices}
    assert told["tabby"] == told["siamese"] == 0 and told["cat"] != 0 != told["ball"]


def test_a_single_class_and_a_parallel_network():
    only = asked(LiveNet(network(TREES["one class"])), cues=["only"], reliability=0.9)
    assert [choice.probability_now for choice in only.choices] == [1.0] and [found.path for found in only.maps] == [
        "only"
    ]
    chains = asked(LiveNet(network(TREES["phl"])), looked_at=["saw"])
    assert {found.level for found in chains.maps} == {2} and len(chains.maps) <= 2
