"""Evaluation by the class tree, and of one network against another: library and ``hlnet eval``."""

import csv
import json

import numpy as np
import pytest
import torch
from helpers.evaluated_nets import TREE, build, by_hand, expert_of, noise, signal_of
from PIL import Image
from sklearn.metrics import balanced_accuracy_score
from typer.testing import CliRunner

from hlnet.cli.main import app
from hlnet.cues.cue import Cue
from hlnet.cues.policy import CuePolicy
from hlnet.cues.table import CueTable
from hlnet.data.sources import load_data
from hlnet.errors import RunError, UsageError
from hlnet.evaluation.cue_trial import CueRuns
from hlnet.evaluation.evaluate import Evaluation, compare_evaluations, evaluate, evaluate_with_baseline
from hlnet.evaluation.metrics.accuracy import answer_counts
from hlnet.evaluation.metrics.comparison import compare
from hlnet.evaluation.metrics.hierarchy import lca_heights, measure_hierarchy
from hlnet.expert.cut import cut_expert
from hlnet.model.provenance import FittedAttention
from hlnet.store.checkpoint import save_checkpoint
from hlnet.tree.class_tree import ClassTree

RELIABLE = CuePolicy(mode="bias", reliability=0.8)


def flat():
    """The same classes the other way round, and in no groups."""
    return ClassTree.parallel(TREE.classes[::-1])


# ---------------------------------------------------------------------- one network


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
@pytest.mark.parametrize("kind", ["hierarchical", "plain"])
@pytest.mark.parametrize(
    ("classes", "kept"), [(None, range(6)), ("dog,tabby", [0, 2, 3]), ("cat", [0, 1]), ("cat,saw", [0, 1, 4])]
)
def test_figures_by_the_tree_are_of_the_classes_that_compete(kind, classes, kept):
    net, data = build(kind), noise()
    logits, labels = by_hand(net, data)
    used = [i for i in range(len(labels)) if labels[i] in kept]
    targets = torch.tensor([list(kept).index(labels[i]) for i in used])
    found = evaluate(net, data, classes, batch_size=7).neutral
    expected = measure_hierarchy(logits[used][:, list(kept)], targets, TREE.prune(kept))
    assert found.hierarchical.model_dump() == {
        name: pytest.approx(value, abs=1e-9) for name, value in expected.model_dump().items()
    }
    answers = logits[used][:, list(kept)].argmax(1)
    assert found.answers == answers.tolist()
    assert found.macro == pytest.approx(balanced_accuracy_score(targets, answers))


def test_likeliest_nodes_are_those_of_the_stored_temperature():
    expert, _ = expert_of("cat,dog,saw")
    data = noise(expert.tree, subset=True)
    logits, labels = by_hand(expert, data)
    kept = labels >= 0
    for temperature in (30.0, None):
        expert.provenance.temperature = temperature
        found = evaluate(expert, data, batch_size=7).neutral.hierarchical
        expected = measure_hierarchy(logits[kept], labels[kept], expert.tree, temperature)
        assert found.level_accuracy_summed == expected.level_accuracy_summed
        assert found.path_consistency == expected.path_consistency


@pytest.mark.parametrize("selection", ["tabby", "saw,axe"])
def test_where_the_tree_groups_nothing_it_has_no_figures(selection):
    expert = cut_expert(build(), selection)
    data = noise(expert.tree, subset=True)
    assert evaluate(expert, data, batch_size=7).neutral.hierarchical is None
    data = noise(flat())
    net = build("plain", flat())
    assert evaluate(net, data, batch_size=7).neutral.hierarchical is None


def test_cued_answers_have_figures_by_the_tree_too():
    data = noise()
    found = evaluate(build(), data, "cat,dog", policy=RELIABLE, batch_size=7)
    right, neutral = found.cued.accuracy.hierarchical, found.neutral.hierarchical
    assert right.lca_height < neutral.lca_height < found.cued.wrong.hierarchical.lca_height


def test_json_holds_the_figures_but_not_the_answers():
    data = noise()
    found = evaluate(build(), data, batch_size=7)
    told = json.loads(found.model_dump_json())
    assert told == found.model_dump(mode="json") and "labels" not in told and "answers" not in told["neutral"]
    assert told["neutral"]["hierarchical"]["level_nodes"] == [4, 6]
    assert len(found.labels) == len(found.neutral.answers) == 40


# ---------------------------------------------------------------------- two networks


def beside(policy=None, classes=None, **nets):
    return evaluate_with_baseline(nets, noise().images, classes, policy=policy)


@pytest.mark.parametrize("classes", [None, "cat,beagle,saw"])
def test_the_first_ones_tree_is_used_for_all(classes):
    found = beside(classes=classes, lead=build(), plain=build("plain", flat()))
    data = noise(flat())
    logits, labels = by_hand(build("plain", flat()), data)
    tree = TREE if classes is None else TREE.prune([0, 1, 2, 4])
    columns = [flat().classes.index(name) for name in tree.classes]
    targets = torch.tensor([columns.index(label) if label in columns else -1 for label in labels.tolist()])
    used = targets >= 0
    expected = measure_hierarchy(logits[used][:, columns], targets[used], tree)
    assert found["plain"].neutral.hierarchical == expected
    assert found["plain"].labels == found["lead"].labels == targets[used].tolist()


def test_comparison_is_of_the_answers_to_the_same_images():
    found = beside(policy=RELIABLE, tree=build(), plain=build("plain", flat()))
    compared = compare_evaluations(found["tree"], found["plain"], TREE)
    labels = torch.tensor(found["tree"].labels)
    for kind, runs in {
        "neutral": [run.neutral for run in found.values()],
        "cued": [run.cued.accuracy for run in found.values()],
        "wrong": [run.cued.wrong for run in found.values()],
    }.items():
        answers = [torch.tensor(run.answers) for run in runs]
        heights = tuple(lca_heights(TREE, given, labels) for given in answers)
        expected = compare(*(given == labels for given in answers), heights)
        assert getattr(compared, kind) == expected
        assert expected.top1.mean == pytest.approx(runs[0].top1 - runs[1].top1)
        assert expected.lca_height.mean == pytest.approx(
            runs[0].hierarchical.lca_height - runs[1].hierarchical.lca_height
        )
    assert compare_evaluations(found["tree"], found["tree"], TREE).neutral.p_value == 1


def test_comparison_without_groups_has_no_heights():
    found = beside(a=build("plain", flat()), b=build("plain"))
    assert compare_evaluations(found["a"], found["b"], flat()).neutral.lca_height is None
    assert compare_evaluations(found["a"], found["b"], flat()).cued is None


def test_evaluations_of_other_images_are_not_compared():
    found, other = beside(a=build()), beside(a=build(), classes="cat")
    read = Evaluation.model_validate_json(found["a"].model_dump_json())
    for second in (other["a"], read):
        with pytest.raises(UsageError, match="image by image"):
            compare_evaluations(found["a"], second, TREE)
    with pytest.raises(UsageError, match="image by image"):
        compare_evaluations(read, read, TREE)


PRIOR = dict.fromkeys(TREE.classes, 1 / 6)
CUES = {"0": [Cue(node="cat", reliability=0.7)], "3": [Cue(node="beagle"), Cue(node="saw", reliability=0.6)]}
LOUD = {"0": CUES["0"]}


def said(found):
    """What all cues are, once; of labels, which are all alike, without the node."""
    if found is None:
        return None
    cues = {cue for run in found.runs for own in run for cue in own}
    return {("" if found.table.labels else cue.node, cue.mode, cue.strength or cue.reliability) for cue in cues}


@pytest.mark.parametrize(
    ("by_image", "policy", "own", "fits"),
    [
        (None, RELIABLE, {("", "bias", 0.8)}, {("", "bias", 0.8)}),
        (None, CuePolicy(mode="gain", reliability=0.8), {("", "gain", 0.8)}, {("", "bias", 0.8)}),
        (None, CuePolicy(), {("", "gain", 0.8)}, {("", "bias", 0.8)}),
        (None, CuePolicy(strength=1.8), {("", "gain", 1.8)}, None),
        (None, CuePolicy(mode="scale", strength=1.8), {("", "scale", 1.8)}, {("", "scale", 1.8)}),
        (None, CuePolicy(reliability=0.8, hard=True), {("", "bias", 0.8)}, None),
        (None, CuePolicy(mode="bias", reliability=0.8, hard=True), {("", "bias", 0.8)}, None),
        (
            CUES,
            CuePolicy(mode="gain"),
            {("cat", "gain", 0.7), ("beagle", "gain", 0.8), ("saw", "gain", 0.6)},
            {("cat", "bias", 0.7), ("beagle", "bias", 0.8), ("saw", "bias", 0.6)},
        ),
        (
            CUES,
            CuePolicy(mode="gain", reliability=0.6),
            {("cat", "gain", 0.7), ("beagle", "gain", 0.6), ("saw", "gain", 0.6)},
            {("cat", "bias", 0.7), ("beagle", "bias", 0.6), ("saw", "bias", 0.6)},
        ),
        (LOUD, CuePolicy(mode="gain"), {("cat", "gain", 0.7)}, {("cat", "bias", 0.7)}),
        (LOUD, CuePolicy(), {("cat", "bias", 0.7)}, {("cat", "bias", 0.7)}),
        ({}, CuePolicy(prior=PRIOR), set(), set()),
        ({"0": [Cue(node="cat", strength=2)]}, CuePolicy(reliability=0.6), {("cat", "gain", 2)}, None),
    ],
)
def test_cues_fit_a_plain_network_as_a_bias_where_they_state_a_reliability(by_image, policy, own, fits):
    fitted = build()
    fitted.provenance.attention = FittedAttention(reliability=0.8, gain=((2.0, 1.5),), scale=((2.0, 1.5),))
    table = None if by_image is None else CueTable(by_image, source="x")
    found = CueRuns.for_network(fitted, noise(), range(6), table, policy)
    assert said(found) == own == said(found.fitting(fitted)) and found.fitting(fitted).attention == found.attention
    assert said(found.fitting(build())) in (own, fits)  # which holds no curve
    assert said(found.fitting(build("plain"))) == fits
    if by_image is None and fits:
        assert {("", found.fitting(build("plain")).attention.mode)} == {one[:2] for one in fits}


def test_cues_of_both_kinds_stay_what_they_are_beside():
    """Factors act on a network without a curve as here, and only what could not act there becomes a bias."""
    lead, other, data = build(), build(), noise()
    lead.provenance.attention = FittedAttention(reliability=0.8, gain=((2.0, 1.5),))
    cues = {
        "0": [Cue(node="cat", reliability=0.7, mode="gain")],
        "1": [Cue(node="saw")],
        "2": [Cue(node="dog", reliability=0.9)],
    }
    given = {"cues": CueTable(cues), "policy": CuePolicy(strength=3.0)}
    fitted = CueRuns.for_network(lead, data, range(6), given["cues"], given["policy"]).fitting(other)
    assert said(fitted) == {("cat", "bias", 0.7), ("saw", "gain", 3.0), ("dog", "bias", 0.9)}
    assert fitted.attention == CuePolicy(mode="gain", strength=3.0)
    found = evaluate_with_baseline({"lead": lead, "other": other}, data.images, **given)
    assert found["lead"].cued.modes == ["bias", "gain"] == found["other"].cued.modes
    cues["2"] = []
    found = evaluate_with_baseline(
        {"lead": lead, "other": other}, data.images, cues=CueTable(cues), policy=given["policy"]
    )
    assert found["lead"].cued.modes == ["gain"] and found["other"].cued.modes == ["bias", "gain"]


def test_a_prior_alone_reaches_networks_beside():
    nets = {"lead": build(), "plain": build("plain"), "other": build()}
    prior = dict(zip(TREE.classes, (0.5, 0.1, 0.1, 0.1, 0.1, 0.1), strict=True))
    given = {"cues": CueTable(), "policy": CuePolicy(mode="bias", prior=prior)}
    found = evaluate_with_baseline(nets, noise().images, **given)
    for name, net in nets.items():
        data = noise()
        alone = evaluate(net, data, batch_size=7, **given).cued
        assert found[name].cued.accuracy.top1 == alone.accuracy.top1 and alone.images == 0


def test_cues_on_images_that_do_not_count_are_none():
    images = noise()
    outside = {
        str(place): [Cue(node="saw", reliability=0.9)]
        for place, label in enumerate(images.labels)
        if TREE.classes[label] == "saw"
    }
    with pytest.raises(UsageError, match="none of the images evaluated has a cue"):
        evaluate_with_baseline({"a": build()}, images.images, "cat,dog", CueTable(outside), CuePolicy(prior=PRIOR))


def test_plain_network_beside_is_cued_by_the_bias():
    """Beside a network whose curve was fitted; its own logits are shifted as Bayes' rule has it."""
    tree, plain, data = build(), build("plain"), noise()
    tree.provenance.attention = FittedAttention(reliability=0.8, gain=((2.0, 1.5),))
    policy = CuePolicy(mode="gain", reliability=0.8)
    found = evaluate_with_baseline({"tree": tree, "plain": plain}, data.images, policy=policy)
    assert found["tree"].cued == evaluate(tree, data, policy=policy, batch_size=7).cued
    assert found["tree"].cued.attention.mode == "gain"
    alone = evaluate(plain, data, policy=RELIABLE, batch_size=7)
    assert found["plain"].cued == alone.cued and alone.cued.accuracy.top1 > alone.neutral.top1
    strength = evaluate_with_baseline({"tree": tree, "plain": plain}, data.images, policy=signal_of(1.8))
    assert strength["plain"].cued is None and strength["tree"].cued is not None


# ---------------------------------------------------------------------- the command


MANY = ClassTree.from_nested({f"group {g}": [f"class {g}{i}" for i in range(5)] for g in range(5)})


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Networks of TREE and of 25 classes, plain and not, and images of their classes."""
    root = tmp_path_factory.mktemp("eval")
    pixels = np.random.default_rng(0).integers(0, 256, (75, 32, 32, 3), np.uint8)
    for folder, names in (("few", [*TREE.classes, "sky"]), ("many", MANY.classes)):
        for i, image in enumerate(pixels):
            path = root / folder / "val" / names[i % len(names)] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    nets = {"tree": build(), "plain": build("plain"), "flat": build("plain", flat()), "many": build(tree=MANY)}
    for name, net in nets.items():
        save_checkpoint(net, root / f"{name}.safetensors")
    return root


def command(files, line, data="few"):
    words = [word.format(**{path.stem: path for path in files.glob("*.safetensors")}) for word in line.split()]
    arguments = ["eval", *words, "--data", str(files / data), "--workers", "0", "--device", "cpu"]
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "160", "TERM": "dumb", "NO_COLOR": "1"})


def shown(files, line, data="few"):
    done = command(files, line, data)
    assert done.exit_code == 0, done.output
    return done.output


def cells(output, name):
    """The figures of the first row with this name."""
    row = next(line for line in output.splitlines() if line.startswith(f"│ {name}"))
    return [cell.strip() for cell in row.split("│")[2:-1]]


def test_command_shows_the_figures_by_the_tree(files):
    told = shown(files, "{tree} --beside {flat}")
    found = json.loads(shown(files, "{tree} --beside {flat} --json"))
    runs = [found["neutral"], found["beside"][str(files / "flat.safetensors")]["neutral"]]
    by_tree = [run["hierarchical"] for run in runs]
    assert cells(told, "top-1") == [f"{100 * run['top1']:.2f} %" for run in runs]
    assert cells(told, "mean over classes") == [f"{100 * run['macro']:.2f} %" for run in runs]
    assert cells(told, "LCA height (0 to 2)") == [f"{run['lca_height']:.3f}" for run in by_tree]
    assert cells(told, "LCA height of mistakes") == [f"{run['lca_height_mistakes']:.3f}" for run in by_tree]
    for name, field in (("hierarchical precision", "precision"), ("hierarchical recall", "recall")):
        assert cells(told, name) == [f"{100 * run[field]:.2f} %" for run in by_tree]
    assert cells(told, "level 1 (4 nodes)") == [f"{100 * run['level_accuracy'][0]:.2f} %" for run in by_tree]
    summed = [f"{100 * run['level_accuracy_summed'][0]:.2f} %" for run in by_tree]
    assert cells(told, "level 1, likeliest node") == summed
    assert cells(told, "path consistency") == [f"{100 * run['path_consistency']:.2f} %" for run in by_tree]
    assert cells(told, "siamese")[0] == f"{100 * runs[0]['per_class']['siamese']:.1f} %"
    assert "LCA" not in shown(files, "{flat}") and "LCA" not in shown(files, "{tree} --classes saw,axe")


def test_many_classes_do_not_flood_the_screen(files):
    told, everything = shown(files, "{many}", "many"), shown(files, "{many} --per-class", "many")
    found = json.loads(shown(files, "{many} --json", "many"))["neutral"]["per_class"]
    rows = [line.split("│")[1].strip() for line in told.splitlines() if line.startswith("│ class ")]
    assert len(rows) == 10 and set(rows) <= set(found) and len(found) == 25
    kept = [found[name] for name in rows]
    others = [share for name, share in found.items() if name not in rows]
    assert kept == sorted(kept) and max(kept[:5]) <= min(others) and max(others) <= min(kept[5:])
    assert "5 worst and the 5 best" in told and "all 25 classes: --per-class" in told
    rows = [line.split("│")[1].strip() for line in everything.splitlines() if line.startswith("│ class ")]
    assert rows == list(MANY.classes) and "worst" not in everything
    assert "hierarchical precision" not in told  # it is the F, in a tree of one depth
    assert cells(told, "hierarchical F")


def test_confusion_matrix_is_that_of_the_answers(files, tmp_path):
    shown(files, f"{{tree}} --classes cat,dog --confusion {tmp_path}/matrix.csv")
    net, images = build(), load_data(files / "few", "val")
    found = evaluate_with_baseline({"tree": net}, images, "cat,dog")["tree"]
    expected = answer_counts(torch.tensor(found.neutral.answers), torch.tensor(found.labels), 4)
    header, *rows = csv.reader((tmp_path / "matrix.csv").read_text(encoding="utf-8").splitlines())
    assert header == ["class", "tabby", "siamese", "beagle", "boxer"]
    assert [[int(count) for count in row[1:]] for row in rows] == expected.tolist()
    told = shown(files, f"{{tree}} --confusion {tmp_path}/matrix.png")
    assert "the confusion matrix is in" in told and Image.open(tmp_path / "matrix.png").size[0] > 300


@pytest.mark.parametrize("option", ["--compare", "--baseline"])
def test_command_tests_one_network_against_another(files, option):
    found = json.loads(shown(files, f"{{tree}} {option} {{flat}} --cue-mode bias --reliability 0.8 --json"))
    name = str(files / "flat.safetensors")
    nets = {"tree": build(), "flat": build("plain", flat())}
    runs = evaluate_with_baseline(nets, load_data(files / "few", "val"), policy=RELIABLE)
    assert found["compare"] == {name: compare_evaluations(*runs.values(), TREE).model_dump(mode="json")}
    assert list(found["beside"]) == [name] and found["cost"]["gmacs"] > 0
    told = shown(files, f"{{tree}} {option} {{flat}} --cue-mode bias --reliability 0.8")
    difference = found["compare"][name]["cued"]["top1"]["mean"]
    assert "tree minus flat, on the same" in told and "all cues wrong" in told
    assert cells(told, "top-1, points")[1] == f"{100 * difference:+.2f}"
    assert cells(told, "only flat right")[0] == str(found["compare"][name]["neutral"]["only_second"])


def test_baseline_and_other_networks_together(files):
    line = "{tree} --beside {many} --beside {flat} --compare {flat} --baseline {plain} --attention-signal 1.8"
    assert "lacks the classes" in str(command(files, line).exception)
    told = shown(files, line.replace("--beside {many} ", ""))
    assert "tree minus plain" in told and "tree minus flat" in told and "plain network was not cued" in told
    assert "with every cue wrong" in told


def test_one_class_is_not_compared(files):
    told = shown(files, "{tree} --classes beagle --compare {plain}")
    assert "cannot be compared" in told and "McNemar" not in told
    assert "compare" not in json.loads(shown(files, "{tree} --classes beagle --compare {plain} --json"))


@pytest.mark.parametrize(
    ("line", "error", "words"),
    [
        ("{tree} --baseline {many}", UsageError, "is no plain network (train --plain); --compare takes any"),
        ("{tree} --baseline {tree}", UsageError, "the same model is given twice"),
        ("{tree} --compare {tree}", UsageError, "the same model is given twice"),
        ("{tree} --compare nope", UsageError, "there is no model file 'nope'"),
        ("{tree} --confusion x.bmp", UsageError, "--confusion 'x.bmp': its name must end in .png, .svg, .pdf, .csv"),
        ("{many} --confusion blocked/x.png", RunError, "cannot write into 'blocked'"),  # before it looks at the data
    ],
)
def test_command_refuses(files, tmp_path, monkeypatch, line, error, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blocked").touch()
    done = command(files, line)
    assert isinstance(done.exception, error) and words in str(done.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["blocked"]
