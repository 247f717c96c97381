"""The cue sweep and report: the same answers as cueing image by image, and figures that follow from them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.evaluated_nets import BCE, TRANSFORM, TREE, build, noise
from helpers.naive import randomise
from PIL import Image
from scipy.stats import binom

from hlnet.cues.cue import Cue, cue_evidence, curve_strength
from hlnet.cues.cue_aware import trained_attention
from hlnet.cues.effect import cue_effect
from hlnet.cues.oracle import label_cues, wrong_classes
from hlnet.cues.policy import CuePolicy
from hlnet.cues.table import CueTable
from hlnet.data.images import LabelledImages
from hlnet.data.tree_data import TreeData, eval_transform, loader
from hlnet.errors import UsageError
from hlnet.evaluation.cue_picture import cue_figure, plot_cue_report
from hlnet.evaluation.cue_report import RELIABILITIES, attend, report_cues, stored_gains
from hlnet.evaluation.cue_sweep import Frontier, SweptLogits, frontier, named_classes, right_answers, sweep_gains
from hlnet.evaluation.cue_trial import mixed
from hlnet.evaluation.evaluate import evaluate
from hlnet.evaluation.metrics.probability import fit_temperature
from hlnet.model.fast.optimize import optimize
from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
from hlnet.model.provenance import FittedAttention, Provenance
from hlnet.tree.class_tree import ClassTree

GAINS = (1.0, 3.0, 40.0)
DEEP = ClassTree.from_nested({"a": {"x": ["1", "2"], "y": ["3"]}, "b": {"z": ["4", "5", "6"]}, "c": {"w": ["7"]}})


@pytest.fixture(scope="module")
def swept():
    net, data = build(), noise()
    return net, data, sweep_gains(net, loader(data, 7), GAINS)


@pytest.mark.parametrize("level", [None, 1])
@pytest.mark.parametrize("mode, strengths", [("gain", GAINS), ("bias", (0.0, 0.7, 5.0)), ("scale", (1.0, 0.5, 4.0))])
@pytest.mark.parametrize("form", [lambda net: net, optimize], ids=["training", "inference"])
def test_sweep_is_cueing_image_by_image(swept, mode, strengths, level, form):
    net, data, found = swept
    labels = torch.tensor(data.labels)
    for cued in (labels, wrong_classes(TREE, labels, level=level)):
        named = named_classes(TREE, cued, level)
        for strength in strengths:
            cues = label_cues(TREE, cued.tolist(), level)
            images = torch.stack([image for image, _ in data])
            with torch.no_grad():
                logits = cue_effect(net, cues, CuePolicy(mode=mode, strength=strength)).logits(form(net), images)
            margin = logits.topk(2).values.diff().abs().min()
            assert margin > 1e-6  # or rounding could decide
            assert torch.equal(right_answers(found, named, mode, strength), logits.argmax(1) == labels)


def test_frontier_begins_at_no_cue_and_is_what_evaluate_finds(swept):
    net, data, found = swept
    labels = torch.tensor(data.labels)
    wrong = wrong_classes(TREE, labels, seed=3)
    curve = frontier(found, named_classes(TREE, labels), {"random": named_classes(TREE, wrong)}, "gain", GAINS)
    measured = evaluate(net, data, cues=CueTable.from_labels(seed=3), policy=CuePolicy(strength=3.0), batch_size=7)
    assert curve.right[0] == curve.wrong["random"][0] == pytest.approx(measured.neutral.top1)
    assert curve.right[1] == pytest.approx(measured.cued.accuracy.top1)
    assert curve.wrong["random"][1] == pytest.approx(measured.cued.wrong.top1)
    assert measured.cued.mixed is None and measured.cued.named == 1


@pytest.mark.parametrize("share", [0.0, 0.25, 0.9, 1.0])
def test_accuracy_is_linear_in_the_share_of_wrong_cues(swept, share):
    """Over all ways to choose which cues are wrong, each with its probability: here, image by image."""
    _, data, found = swept
    labels = torch.tensor(data.labels)
    named = named_classes(TREE, labels), named_classes(TREE, wrong_classes(TREE, labels))
    right, wrong = (right_answers(found, one, "gain", 40.0).double() for one in named)
    generator = np.random.default_rng(0)
    drawn = torch.from_numpy(generator.random((20000, len(labels))) < share)
    sampled = torch.where(drawn, wrong, right).mean(1).mean()
    assert float(sampled) == pytest.approx(mixed(float(right.mean()), float(wrong.mean()), share), abs=2e-3)


def test_equal_harm_is_read_off_the_curve():
    curve = Frontier(mode="bias", strengths=(0, 1, 2), right=(0.6, 0.8, 1.0), wrong={"random": (0.6, 0.5, 0.1)})
    assert [curve.right_at(wrong, "random") for wrong in (0.7, 0.6, 0.55, 0.3, 0.0)] == pytest.approx(
        [0.6, 0.6, 0.7, 0.9, 1.0]
    )


# ---------------------------------------------------------------------- what cues name


@pytest.mark.parametrize("level", [None, 1, 2, 3])
@pytest.mark.parametrize("kind", ["random", "sibling"])
def test_wrong_cues_name_other_nodes(kind, level):
    """Against the paths of the classes: another node at the level; of siblings, nothing nearer would have done."""
    classes = torch.arange(7).repeat(60)
    found = wrong_classes(DEEP, classes, kind, level, seed=1)
    paths = [leaf.path.split("/") for leaf in DEEP.leaves]
    depth = level or 3

    def shared(a, b):
        return next((i for i in range(3) if paths[a][i] != paths[b][i]), 3)

    drawn = {}
    for own, other in zip(classes.tolist(), found.tolist(), strict=True):
        assert shared(own, other) < depth
        drawn.setdefault(own, set()).add(other)
    for own, others in drawn.items():
        possible = [other for other in range(7) if shared(own, other) < depth]
        if kind == "sibling":
            nearest = max(shared(own, other) for other in possible)
            possible = [other for other in possible if shared(own, other) == nearest]
        assert others == set(possible)


def test_a_level_without_another_node_is_refused():
    one = ClassTree.from_nested({"dog": ["beagle", "boxer"]})
    with pytest.raises(UsageError, match="deeper level"):
        wrong_classes(one, torch.tensor([0]), level=1)
    with pytest.raises(UsageError, match="levels 1 to 2"):
        label_cues(one, [0], level=3)


def test_label_cues_name_nodes_of_the_level():
    assert [cues[0].node for cues in label_cues(DEEP, [2, 6], level=2)] == ["a/y", "c/w"]
    assert label_cues(DEEP, [2, -1]) == [(Cue(node="a/y/3", classes=("3",)),), ()]


# ---------------------------------------------------------------------- the report


def thirds(labels):
    """Positions of the images that choose strengths, that choose the way, and that report: every third one each."""
    order = np.random.default_rng(0).permutation(len(labels))
    order = order[np.argsort(labels.numpy()[order], kind="stable")]
    return np.sort(order[::3]), np.sort(order[1::3]), np.sort(order[2::3])


@pytest.fixture(scope="module")
def report():
    net, data = build(), noise(count=40)
    plain = build("plain")
    return net, attend(net, data, plain, gains=GAINS, batch_size=7)


def test_report_has_wrong_cues_beside_every_right_one(report):
    _, found = report
    assert (found.tuned_on, found.picked_on, found.reported_on) == (14, 13, 13)
    assert [one.mode for one in found.plain.frontiers] == ["bias", "scale"]
    for network in (found.network, found.plain):
        for curve in network.frontiers:
            assert set(curve.wrong) == {"random", "sibling", "confusable"}
            assert {len(shares) for shares in (curve.right, *curve.wrong.values())} == {len(curve.strengths)}
        shares = {choice.reliability for choice in network.choices}
        assert shares == set(RELIABILITIES)
        for choice in network.choices:
            assert choice.top1 == pytest.approx(mixed(choice.right, choice.wrong, 1 - choice.reliability))
            assert (choice.against_bias is None) == (choice.way == "bias")


def test_strengths_are_chosen_on_other_images(report):
    """By hand: the same thirds, the best strength of the first, the figures of the last."""
    net, found = report
    data = noise(count=40)
    labels = torch.tensor(data.labels)
    tune, pick, rest = thirds(labels)
    wrong = wrong_classes(TREE, labels)
    images = torch.stack([image for image, _ in data])
    right = {}
    with torch.no_grad():
        for gain in GAINS:
            for name, cued in (("right", labels), ("wrong", wrong)):
                cues = label_cues(TREE, cued.tolist())
                logits = cue_effect(net, cues, CuePolicy(strength=gain)).logits(net, images)
                right[gain, name] = (logits.argmax(1) == labels).double().numpy()
    for choice in found.network.choices:
        if choice.way == "gain":
            p = choice.reliability
            scores = {g: p * right[g, "right"][tune].mean() + (1 - p) * right[g, "wrong"][tune].mean() for g in GAINS}
            assert scores[choice.strength] == pytest.approx(max(scores.values())) == pytest.approx(choice.tuned_top1)
            picked = p * right[choice.strength, "right"] + (1 - p) * right[choice.strength, "wrong"]
            assert choice.picked_top1 == pytest.approx(picked[pick].mean())
            assert choice.right == pytest.approx(right[choice.strength, "right"][rest].mean())
            assert choice.wrong == pytest.approx(right[choice.strength, "wrong"][rest].mean())


def test_what_is_stored_acts_as_chosen(report):
    net, found = report
    fitted = found.attention
    assert fitted.data == "noise" and fitted.reliability == 0.9 and list(fitted.gain) == sorted(fitted.gain)
    factors = [factor for _, factor in fitted.gain]
    assert factors == sorted(factors)
    for choice in found.network.choices:
        if choice.way == "gain":
            point = curve_strength(fitted.gain, cue_evidence(choice.reliability, 1, 6))
            assert point >= choice.strength - 1e-5 and point in [pytest.approx(gain) for gain in GAINS]
    net.provenance.attention = fitted
    effect = cue_effect(net, [[Cue(node="saw")]], CuePolicy(mode="gain"))
    assert float(effect.gains.max()) == pytest.approx(curve_strength(fitted.gain, cue_evidence(0.9, 1, 6)))


def test_picture_shows_the_frontiers(report, tmp_path):
    """The lines of the SVG are read back: as many points as strengths, for each network, mode and kind."""
    _, found = report
    plot_cue_report(found, tmp_path / "cues.svg")
    assert (tmp_path / "cues.svg").read_text().count("<path") > 20
    figure = cue_figure(found)
    panels = dict(zip(("random", "sibling", "confusable"), figure.axes, strict=False))
    for kind, axes in panels.items():
        drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
        for name, network in (("", found.network), ("plain, ", found.plain)):
            for curve in network.frontiers:
                points = [[100 * x, 100 * y] for x, y in zip(curve.wrong[kind], curve.right, strict=True)]
                assert drawn[f"{name}{curve.mode}"] == [pytest.approx(point) for point in points]


@pytest.mark.parametrize("level", [1, 2])
def test_report_on_nodes_above(level):
    torch.manual_seed(0)
    net = HierarchicalNet(NetworkConfig(backbone="test_resnet", widths=(4, 4, 4), strides=(1, 1, 1)), DEEP)
    randomise(net.head)
    net.transform = TRANSFORM
    pixels = np.random.default_rng(0).integers(0, 256, (42, 32, 32, 3), np.uint8)
    noisy = LabelledImages("noise", DEEP.classes, tuple(range(7)) * 6, lambda i: Image.fromarray(pixels[i]))
    data = TreeData(noisy, DEEP, eval_transform(TRANSFORM))
    images, labels = torch.stack([image for image, _ in data]), torch.tensor(data.labels)
    found = attend(net.eval(), data, level=level, gains=(3.0,))
    assert found.attention is None and set(found.network.frontiers[0].wrong) == {"random", "sibling"}
    strong = found.network.frontier("bias")
    within = [{"1": "x", "2": "x", "3": "y", "4": "z", "5": "z", "6": "z", "7": "w"}[name] for name in DEEP.classes]
    if level == 1:
        within = [{"x": "a", "y": "a", "z": "b", "w": "c"}[name] for name in within]
    with torch.no_grad():
        logits = net(images)
    allowed = torch.tensor([[a == b for b in within] for a in within])[labels]
    alone = (torch.where(allowed, logits, -1e9).argmax(1) == labels).double()
    rest = thirds(labels)[2]
    assert strong.right[-1] == pytest.approx(float(alone[rest].mean()))  # so strong that only the cued classes compete


def test_temperature_is_the_stored_one_or_the_detectors():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(400, 7, generator=generator) - 2
    swept = SweptLogits(torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0], logits, {})

    def found(**known):
        return report_cues(DEEP, replace(swept, provenance=Provenance(**known))).network.temperature

    first = swept.part(torch.from_numpy(thirds(swept.labels)[0]))
    assert found(temperature=1.7) == found(temperature=1.7, recipe=BCE) == 1.7
    assert found() == fit_temperature(first.neutral, first.labels)
    assert found(recipe=BCE) == fit_temperature(first.neutral, first.labels, one_vs_rest=True)
    assert abs(found() - found(recipe=BCE)) > 0.1


def test_ties_go_to_the_weakest_and_curves_never_inhibit():
    """A perfect network: every strength is as good as none."""
    labels = torch.arange(7).repeat(12)
    logits = 50.0 * torch.eye(7)[labels]
    swept = SweptLogits(labels, logits, dict.fromkeys((0.0, 0.5, 1.0, 1.8), logits))
    found = report_cues(DEEP, swept)
    assert {choice.strength for choice in found.network.choices if choice.way == "gain"} == {1.0}
    assert all(factor == 1 for _, factor in found.attention.gain) and found.attention.mode == "bias"


def by_part(tuned, picked, reported, gain=4.0):
    """Logits that are other ones on each part of the images: ``(neutral, gained)`` each."""
    labels = torch.arange(7).repeat(24)
    whole = []
    for own in zip(tuned, picked, reported, strict=True):
        logits = torch.empty(len(labels), 7)
        for part, of in zip(thirds(labels), own, strict=True):
            logits[part] = of(labels[part]).float()
        whole.append(logits)
    return SweptLogits(labels, whole[0], {1.0: whole[0], gain: whole[1]}, Provenance(temperature=1.0))


def test_the_way_to_store_is_chosen_on_images_of_its_own():
    """A gain that is perfect on some images and harms on others, where nothing else can change an answer: it is stored
    if it serves on the images that choose the way, however it does on those that choose strengths or report."""
    one_hot = torch.nn.functional.one_hot

    def blind(labels):  # always the first class, by so much that no bias or scale that is tried helps
        return one_hot(torch.zeros_like(labels), 7) * 1e6 - 1e5

    def seeing(labels):  # under its own cue, the class wins; under another's, that stays far below
        return 3e6 * one_hot(labels, 7) - 2e6

    found = report_cues(DEEP, by_part((blind, seeing), (blind, seeing), (blind, blind)))
    best = {choice.way: choice for choice in found.network.choices if choice.reliability == 0.9}
    assert best["gain"].picked_top1 > best["bias"].picked_top1 and best["gain"].top1 <= best["bias"].top1
    assert found.attention.mode == "gain"
    found = report_cues(DEEP, by_part((blind, seeing), (blind, blind), (blind, seeing)))
    best = {choice.way: choice for choice in found.network.choices if choice.reliability == 0.9}
    assert best["gain"].tuned_top1 > best["bias"].tuned_top1 and best["gain"].top1 > best["bias"].top1
    assert found.attention.mode == "bias"


def test_a_lead_by_chance_leaves_the_bias():
    """The gain answers one more image of those that tune and of those that choose the way, and no cue of another kind
    changes an answer."""
    labels = torch.arange(7).repeat(24)
    logits = 1e6 * torch.nn.functional.one_hot(torch.zeros_like(labels), 7) - 1e5
    gained = logits.clone()
    for part in thirds(labels)[:2]:
        one = next(int(i) for i in part if labels[i])
        gained[one, labels[one]] = 2e6
    found = report_cues(DEEP, SweptLogits(labels, logits, {1.0: logits, 4.0: gained}, Provenance(temperature=1.0)))
    best = {choice.way: choice for choice in found.network.choices if choice.reliability == 0.9}
    assert best["gain"].strength == 4 and best["gain"].tuned_top1 > best["bias"].tuned_top1
    assert best["gain"].picked_top1 > best["bias"].picked_top1
    assert best["gain"].picked_against_bias.low == 0 and found.attention.mode == "bias"


def test_where_no_cue_helps_none_is_said_to_help():
    """Labels, logits and every gain's logits are drawn apart from one another, and cues are right as often as chance
    would have it. So every strength of every way has the same expected top-1, and whatever is chosen, each interval
    covers zero as often as it says. The best of twelve gains on the images that chose it looks better than it is."""
    classes, runs = 7, 40
    covered, flattered, stored = [], [], []
    for seed in range(runs):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(classes, (420,), generator=generator)
        gained = {float(gain): torch.randn(420, classes, generator=generator) for gain in range(1, 13)}
        swept = SweptLogits(labels, gained[1.0], gained, Provenance(temperature=1.0))
        found = report_cues(DEEP, swept, reliability=1 / classes, seed=seed)
        choices = {choice.way: choice for choice in found.network.choices if choice.reliability == 1 / classes}
        covered += [not choices["gain"].against_bias.excludes_zero]
        flattered += [choices["gain"].tuned_top1 - choices["gain"].top1]
        stored += [found.attention.mode]
    assert np.mean(flattered) > 0.01  # else there would be nothing to correct for
    assert sum(covered) >= binom(runs, 0.95).ppf(0.01)
    assert sum(mode != "bias" for mode in stored) <= binom(runs, 0.05).ppf(0.99)


def test_gains_that_the_file_holds_are_reported():
    net, data = build(), noise(count=40)
    for attention in (trained_attention(), FittedAttention(reliability=0.75, gain=((2.0, 3.0),))):
        net.provenance.attention = attention
        found = attend(net, data, gains=GAINS, batch_size=7)
        gains = {p: curve_strength(attention.gain, cue_evidence(p, 1, 6)) for p in RELIABILITIES}
        assert stored_gains(net) == gains and set(gains.values()) <= set(found.network.frontier("gain").strengths)
        labels, rest = torch.tensor(data.labels), thirds(torch.tensor(data.labels))[2]
        images = torch.stack([image for image, _ in data])
        with torch.no_grad():
            effect = cue_effect(net, label_cues(TREE, labels.tolist()), CuePolicy(mode="gain", reliability=0.99))
            right = (effect.logits(net, images).argmax(1) == labels).double()
        choice = found.network.choice("stored", 0.99)
        assert choice.strength == gains[0.99] and choice.right == pytest.approx(float(right[rest].mean()))
        metrics = {way: found.attention.metrics[f"{way}_top1"] for way in ("stored", "gain")}
        assert metrics == {way: found.network.choice(way, 0.9).top1 for way in metrics}
    assert {choice.way for choice in attend(net, data, level=1, gains=(2,)).network.choices} == {
        *("gain", "bias", "scale", "bayes")
    }


def test_gains_may_repeat_and_images_must_be_there():
    net, data = build(), noise(count=10)
    swept = sweep_gains(net, loader(data, 7), gains=[3, 3.0, 1])
    assert set(swept.gained) == {1.0, 3.0} and bool((swept.gained[1.0] == swept.neutral).all())
    with pytest.raises(UsageError, match="no images"):
        sweep_gains(net, [])
    with pytest.raises(UsageError, match="does not have"):
        report_cues(TREE, replace(swept, labels=swept.labels - 1))


@pytest.mark.parametrize("curve", [((1.0, 0.0),), ((2.0, 2.0), (1.0, 3.0)), ((-1.0, 2.0),)])
def test_curves_that_could_not_be_read_are_refused(curve):
    with pytest.raises(ValueError, match="curve"):
        FittedAttention(reliability=0.9, gain=curve)


def test_what_cannot_be_reported_is_refused():
    net, data = build(), noise()
    with pytest.raises(UsageError, match="reliability"):
        attend(net, data, reliability=1.0)
    with pytest.raises(UsageError, match="at least 0, got -1"):
        attend(net, data, gains=(-1.0,))
    with pytest.raises(UsageError, match="one class"):
        attend(build(tree=ClassTree.from_nested({"cat": ["tabby"]})), data)
    small = ClassTree.from_nested([name for name in TREE.classes if name != "axe"])
    with pytest.raises(UsageError, match="lacks classes of the network: axe"):
        attend(net, data, build("plain", small))
    swept = sweep_gains(net, loader(data, 7), gains=[1])
    with pytest.raises(UsageError, match="not those of the network"):
        report_cues(TREE, swept, replace(swept, labels=swept.labels.flip(0)))
    with pytest.raises(UsageError, match="confusable"):
        attend(net, data, wrong="confusable", level=1)


def test_the_plain_network_gets_images_prepared_its_own_way():
    net, plain, data = build(), build("plain"), noise(count=30)
    plain.transform = TRANSFORM.model_copy(update={"mean": (0.1,) * 3})
    own = TreeData(data.images, TREE, eval_transform(plain.transform), subset=True)
    seen = []
    plain.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    attend(net, data, plain, gains=(), batch_size=7)
    assert [len(batch) for batch in seen] == [7, 7, 7, 7, 2]
    assert torch.equal(torch.cat(seen), torch.stack([image for image, _ in own]))


@pytest.mark.parametrize("level, wrong", [(None, "random"), (None, "sibling"), (1, "random")])
def test_bias_by_formula_is_as_good_as_the_tuned_one(level, wrong):
    """Where probabilities are true and cues depend on the class alone, nothing needs tuning: within half a point."""
    generator = torch.Generator().manual_seed(0)
    logits = 1.5 * torch.randn(24_000, 7, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    found = report_cues(DEEP, SweptLogits(labels, 3 * logits, {}), level=level, wrong=wrong)  # at a temperature of 3
    assert found.network.temperature == pytest.approx(3, rel=0.03)
    for reliability in RELIABILITIES:
        tuned, formula = (found.network.choice(way, reliability) for way in ("bias", "bayes"))
        lead = formula.top1 - tuned.top1  # over nodes of different sizes, one tuned bias for all is behind
        assert -0.005 < lead < (0.005 if level is None else 0.02)
    assert found.network.choice("bayes", 0.9).top1 > found.network.neutral + 0.15
