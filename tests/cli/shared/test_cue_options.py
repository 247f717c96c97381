"""``hlnet attend`` and the cues of ``hlnet eval``: what they print and store is what the library finds."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from helpers.evaluated_nets import TREE, build, expert_of
from PIL import Image
from typer.testing import CliRunner

import hlnet
from hlnet.cli.main import app
from hlnet.cues.cue import Cue, cue_evidence
from hlnet.cues.files import parse_cue, read_cues
from hlnet.cues.table import CueMatching, CueTable
from hlnet.errors import UsageError
from hlnet.evaluation.cue_report import attend
from hlnet.model.fast.optimize import optimize
from hlnet.model.provenance import FittedAttention


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("cues")
    pixels = np.random.default_rng(0).integers(0, 256, (48, 32, 32, 3), np.uint8)
    for i, image in enumerate(pixels):
        path = root / "photos" / "val" / TREE.classes[i % 6] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (root / "even.csv").write_text("node,probability\nsaw,0.5\n")
    for name, net in {"full": build(), "plain": build("plain"), "other": build()}.items():
        hlnet.save_checkpoint(net, root / f"{name}.safetensors")
    return root


def command(files, line):
    words = [word.replace("@", f"{files}/") for word in line.split()]
    arguments = [words[0], *words[1:], "--data", str(files / "photos"), "--workers", "0", "--device", "cpu"]
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "160", "TERM": "dumb", "NO_COLOR": "1"})


def as_json(files, line):
    done = command(files, line + " --json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_attend_prints_and_stores_what_the_library_finds(files, tmp_path):
    picture, out = tmp_path / "cues.png", tmp_path / "cued.safetensors"
    line = f"attend @full.safetensors --plain @plain.safetensors --gains 1.8,5 --picture {picture} --out {out}"
    told = as_json(files, line)
    nets = [hlnet.load_checkpoint(files / f"{name}.safetensors") for name in ("full", "plain")]
    images = hlnet.load_data(files / "photos", "val")
    data = hlnet.TreeData(images, nets[0].tree, hlnet.eval_transform(nets[0].transform))
    found = attend(optimize(nets[0]), data, optimize(nets[1]), gains=(1.8, 5))
    assert told == found.model_dump(mode="json")
    assert Image.open(picture).size[0] > 500
    stored = hlnet.load_checkpoint(out).provenance
    assert stored.attention == found.attention and stored.temperature == found.network.temperature
    assert hlnet.load_checkpoint(files / "full.safetensors").provenance.attention is None  # the original is untouched
    auto = as_json(files, f"eval {out} --attention-signal auto")
    best = {choice.way: choice for choice in found.network.choices if choice.reliability == 0.9}
    mode = found.attention.mode
    ahead = [way for way in ("gain", "scale") if best[way].picked_against_bias.low > 0]
    assert mode == max(ahead or ["bias"], key=lambda way: best[way].picked_top1)
    fixed = as_json(files, f"eval {out} --cue-mode {mode} --reliability 0.9")
    assert auto["cued"] == fixed["cued"] and auto["cued"]["wrong_share"] == pytest.approx(0.1)
    gain = hlnet.cues.cue.curve_strength(found.attention.gain, cue_evidence(0.9, 1, 6))
    by_curve = as_json(files, f"eval {out} --attention-signal auto --cue-mode gain")["cued"]
    by_hand = as_json(files, f"eval {out} --attention-signal {gain!r}")["cued"]
    assert by_curve["accuracy"] == by_hand["accuracy"] and by_curve["wrong"] == by_hand["wrong"]


def test_attend_shows_wrong_cues_beside_right_ones_and_saves(files):
    done = command(files, "attend @other.safetensors --gains 3 --reliability 0.75 --wrong-cue sibling --save")
    assert done.exit_code == 0, done.output
    for words in ("all right", "(random)", "(sibling)", "99.9 %", "75 %"):
        assert words in done.output
    stored = hlnet.load_checkpoint(files / "other.safetensors").provenance.attention
    assert stored.reliability == 0.75 and stored.gain
    shown = command(files, "attend @full.safetensors --gains 3").output
    assert "nothing was stored" in shown
    plain = command(files, "attend @plain.safetensors")
    assert plain.exit_code == 0 and "bias" in plain.output and "gain" not in plain.output


def test_eval_takes_cues_from_a_file(files, tmp_path):
    """Right for images 0 and 1, wrong for 2; the others have none."""
    rows = ["image,node,strength", "0.png,cat/tabby,1000", "1.png,cat,1000", "2.png,saw,1000"]
    (tmp_path / "heard.csv").write_text("\n".join(rows))
    told = as_json(files, f"eval @full.safetensors --cues {tmp_path}/heard.csv --cue-mode bias")
    cued = told["cued"]
    assert (cued["images"], cued["wrong"], cued["named"]) == (3, None, pytest.approx(2 / 3))
    net = hlnet.load_checkpoint(files / "full.safetensors")
    images = hlnet.load_data(files / "photos", "val")
    found = hlnet.TreeData(images, net.tree, hlnet.eval_transform(net.transform))
    logits = net(torch.stack([image for image, _ in found])).detach()
    shift = {0: [0], 1: [0, 1], 2: [4]}
    for position, (source, _) in enumerate(found.samples):
        number = int(images.files[source].stem)
        logits[position, shift.get(number, [])] += 1000
    right = [int(row.argmax()) == label for row, label in zip(logits, found.labels, strict=True)]
    assert cued["accuracy"]["top1"] == pytest.approx(np.mean(right))
    assert (
        "3 of 48 images cued"
        in command(files, f"eval @full.safetensors --cues {tmp_path}/heard.csv --cue-mode bias").output
    )


def test_auto_on_a_plain_network_is_what_was_stored(files):
    out = files / "plain_fitted.safetensors"
    as_json(files, f"attend @plain.safetensors --out {out}")
    stored = hlnet.load_checkpoint(out).provenance.attention
    assert stored.mode in ("bias", "scale") and not stored.gain
    cued = as_json(files, f"eval {out} --attention-signal auto")["cued"]
    assert cued["attention"]["mode"] == stored.mode and cued["attention"]["reliability"] == 0.9


def test_certain_cues_outside_the_classes_are_refused(files):
    (files / "dogs.csv").write_text("image,node\n" + "".join(f"{i}.png,dog\n" for i in range(48)))
    done = command(files, f"eval @full.safetensors --cues {files}/dogs.csv --hard --classes cat")
    assert isinstance(done.exception, UsageError) and "leave no class" in str(done.exception)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_eval_mixes_right_and_wrong(files, share):
    cued = as_json(files, f"eval @full.safetensors --attention-signal 50 --wrong-cues {share}")["cued"]
    expected = (1 - share) * cued["accuracy"]["top1"] + share * cued["wrong"]["top1"]
    assert cued["mixed"] == pytest.approx(expected) and cued["wrong_share"] == share
    assert as_json(files, "eval @full.safetensors --cue-mode bias --reliability 0.7")["cued"]["wrong_share"] == (
        pytest.approx(0.3)
    )


def test_eval_runs_only_what_is_certain(files):
    cued = as_json(files, "eval @full.safetensors --cue-level 1 --hard")["cued"]
    net = hlnet.load_checkpoint(files / "full.safetensors")
    costs = [
        hlnet.profile(net.config, net.tree, net.transform, classes=name).expert.gmacs
        for name in ("cat", "dog", "saw", "axe")
    ]
    assert cued["gmacs"] == pytest.approx((2 * costs[0] + 2 * costs[1] + costs[2] + costs[3]) / 6)
    assert cued["wrong"]["top1"] == 0 and cued["accuracy"]["top1"] > cued["wrong"]["top1"]


def predictions(files, line):
    words = [word.replace("@", f"{files}/") for word in line.split()]
    done = CliRunner().invoke(app, ["predict", *words, "--device", "cpu", "--json"])
    assert done.exit_code == 0, done.output
    return [json.loads(row) for row in done.stdout.splitlines()]


def test_predict_cues_single_images_and_all(files, tmp_path):
    (tmp_path / "heard.csv").write_text("image,node,strength\n0.png,saw,3\n")
    (tmp_path / "prior.csv").write_text("node,probability\ncat,0.8\n")
    known = f"--cues {tmp_path}/heard.csv --prior {tmp_path}/prior.csv"
    found = predictions(files, f"@full.safetensors @photos/val --top 6 --cue cat=0.9 --cue-mode bias {known}")
    net = hlnet.load_checkpoint(files / "full.safetensors").eval()
    prepare = hlnet.eval_transform(net.transform)
    assert len(found) == 48
    for one in found:
        with torch.no_grad():
            logits = net(prepare(Image.open(one["image"]).convert("RGB"))[None])[0].double()
        logits[:2] += np.log(0.9 / 0.1) - np.log(0.8 / 0.2) + np.log(0.4 * 6)
        logits[2:] += np.log(0.05 * 6)
        first = one["image"].endswith("/0.png")
        logits[4] += 3 if first else 0
        shares = {label["name"]: label["probability"] for label in one["labels"]}
        assert shares == pytest.approx(dict(zip(TREE.classes, logits.softmax(0).tolist(), strict=True)), abs=1e-4)
        assert one["cues"] == (["cat", "saw"] if first else ["cat"])
    assert all("cues" not in one for one in predictions(files, "@full.safetensors @photos/val"))


def test_names_that_are_no_text_have_their_cues(files, tmp_path):
    image = tmp_path / "a\udce9.png"
    image.write_bytes((files / "photos/val/tabby/0.png").read_bytes())
    net = hlnet.load_checkpoint(files / "full.safetensors")
    matching = CueMatching(CueTable({image.name: [Cue(node="cat", reliability=0.9)]}))
    (found,) = hlnet.predict(net, [image], cues=matching)
    matching.finish()
    assert found.cues == ["cat"] and found.image.endswith(r"a\xe9.png")


def test_predict_by_gain_and_by_words(files):
    net = hlnet.load_checkpoint(files / "full.safetensors").eval()
    prepare = hlnet.eval_transform(net.transform)
    gained = predictions(files, "@full.safetensors @photos/val --top 6 --cue dog=x4")
    heard = predictions(files, "@full.safetensors @photos/val --top 6 --text woof! --attention-signal 4")
    assert gained == heard and gained[0]["cues"] == ["dog"]
    gains = torch.ones(TREE.num_nodes)
    gains[[TREE.offsets[-2] + 2, TREE.offsets[-2] + 3]] = 4
    for one in gained[:5]:
        with torch.no_grad():
            shares = net(prepare(Image.open(one["image"]).convert("RGB"))[None], gains)[0].softmax(0).tolist()
        expected = dict(zip(TREE.classes, shares, strict=True))
        assert {label["name"]: label["probability"] for label in one["labels"]} == pytest.approx(expected, abs=1e-4)


def test_predict_by_meaning(files, monkeypatch):
    class Model:
        def __init__(self, name, device):
            assert name == "some/model"

        def encode(self, texts):
            return [[1, "hunts mice" in text or text == "cat"] for text in texts]

    monkeypatch.setitem(sys.modules, "sentence_transformers", types.SimpleNamespace(SentenceTransformer=Model))
    line = ["predict", f"{files}/full.safetensors", f"{files}/photos/val", "--reliability", "0.9", "--json"]
    done = CliRunner().invoke(app, [*line, "--text", "what hunts mice", "--text-model", "some/model"])
    assert [json.loads(row) for row in done.stdout.splitlines()] == predictions(
        files, "@full.safetensors @photos/val --cue cat=0.9"
    )


def test_predict_runs_only_what_is_certain(files):
    certain = predictions(files, "@full.safetensors @photos/val --cue dog --hard")
    for one in certain:
        assert [label["path"][:4] for label in one["labels"]] == ["dog/", "dog/"]
        assert sum(label["probability"] for label in one["labels"]) == pytest.approx(1)
    hlnet.save_checkpoint(hlnet.cut_expert(files / "full.safetensors", "dog"), files / "dogs.safetensors")
    expert = predictions(files, "@dogs.safetensors @photos/val")
    for one, other in zip(certain, expert, strict=True):
        for ours, theirs in zip(one["labels"], other["labels"], strict=True):
            assert ours["name"] == theirs["name"] and ours["probability"] == pytest.approx(
                theirs["probability"], abs=1e-5
            )


@pytest.mark.parametrize(
    "line, words",
    [
        ("--cue babby=0.9", "no class or node 'babby'"),
        ("--cue cat=1.5", "must lie between 0 and 1"),
        ("--cue cat=x1e9", "must lie between -1e+06 and 1e+06"),
        ("--cue cat=0.9 --cue-mode gain", "holds no gain for a reliability"),
        ("--cue cat=+2 --cue-mode gain", "is a shift"),
        ("--cue cat", "the cue on 'cat' has no strength: add --reliability"),
        ("--hard", "none is given"),
        ("--reliability 0.9", "none is given"),
        ("--text blah", "gives no cue: no word of it is known"),
        ("--cue cat --hard --reliability 0.9", "takes cues as facts"),
        ("--cue cat=0.9 --hard", "takes cues as facts"),
        ("--prior @even.csv --hard", "none is given; add --cue, --text or --cues"),
        ("--prior @even.csv --reliability 0.9", "none is given; add --cue, --text or --cues"),
        ("--text-model some/model --cue cat=0.9", "none is given"),
        ("--cues @missing.csv", "missing.csv"),
        ("--cue cat=0.9 --coverage 0.9", "a coverage was fitted without cues"),
        ("--cue cat --cue dog --hard", "leave no class"),
    ],
)
def test_wrong_cues_of_predict(files, line, words):
    arguments = ["predict", f"{files}/full.safetensors", f"{files}/photos/val", "--workers", "0"]
    done = CliRunner().invoke(app, [*arguments, *(word.replace("@", f"{files}/") for word in line.split())])
    assert isinstance(done.exception, UsageError) and words in str(done.exception), done.exception


def test_a_cue_does_not_make_an_image_familiar(tmp_path):
    """Whether it is rejected is settled without the cue."""
    expert, _ = expert_of("cat,dog")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    names = sorted(tmp_path.iterdir())
    cues = CueTable(everywhere=[Cue(node="tabby")])
    policy = hlnet.CuePolicy(mode="bias", strength=50.0)
    plain, cued = (list(hlnet.predict(expert, names, **given)) for given in ({}, {"cues": cues, "policy": policy}))
    assert [(one.score, one.rejected) for one in plain] == [(one.score, one.rejected) for one in cued]
    assert {one.labels[0].name for one in cued} == {"tabby"} != {one.labels[0].name for one in plain}


def test_impossible_cues_are_told_before_the_first_image(files, tmp_path):
    """Also where that image could not be read, and of cues in a file."""
    (tmp_path / "x.png").write_text("no image")
    (tmp_path / "heard.csv").write_text("image,node,reliability\nx.png,saw,0.9\n")
    for cue in ("--cue cat=0.9", f"--cues {tmp_path}/heard.csv"):
        done = CliRunner().invoke(
            app, ["predict", f"{files}/full.safetensors", f"{tmp_path}/x.png", *cue.split(), "--cue-mode", "scale"]
        )
        assert isinstance(done.exception, UsageError) and "holds no scale" in str(done.exception)
        assert "cannot read" not in done.output


def test_each_cue_acts_as_it_is_written(files, tmp_path):
    """A factor beside a reliability does not turn that into a gain, nor a shift a file's factors into shifts."""
    (tmp_path / "heard.csv").write_text("image,node,strength\n0.png,saw,3\n")
    cues = f"--cues {tmp_path}/heard.csv --cue tabby=0.9 --cue dog=x4 --cue axe=+1"
    net = hlnet.load_checkpoint(files / "full.safetensors").eval()
    prepare = hlnet.eval_transform(net.transform)
    found = predictions(files, f"@full.safetensors @photos/val --top 6 {cues}")
    names = [one["image"] for one in found]
    everywhere = [parse_cue(text, TREE) for text in ("tabby=0.9", "dog=x4", "axe=+1")]
    table = CueTable(read_cues(tmp_path / "heard.csv", TREE), everywhere)
    library = hlnet.predict(optimize(net), names, top=6, cues=table)  # by the same rules
    assert found == [one.model_dump(mode="json", exclude_none=True) for one in library]
    for one in found:
        gains = torch.ones(TREE.num_nodes)
        gains[[TREE.offsets[-2] + 2, TREE.offsets[-2] + 3]] = 4
        if one["image"].endswith("/0.png"):
            gains[TREE.offsets[-2] + 4] = 3
        with torch.no_grad():
            logits = net(prepare(Image.open(one["image"]).convert("RGB"))[None], gains)[0].double()
        logits[0] += np.log(9 * 5)
        logits[5] += 1
        shares = {label["name"]: label["probability"] for label in one["labels"]}
        assert shares == pytest.approx(dict(zip(TREE.classes, logits.softmax(0).tolist(), strict=True)), abs=1e-4)


def test_what_a_file_holds_is_used_and_told(files, tmp_path):
    net = hlnet.load_checkpoint(files / "full.safetensors")
    net.provenance.attention = FittedAttention(reliability=0.8, mode="scale", scale=((2.0, 3.0),))
    hlnet.save_checkpoint(net, tmp_path / "fitted.safetensors")
    words = ["predict", f"{tmp_path}/fitted.safetensors", f"{files}/photos/val", "--cue", "saw", "--json"]
    done = CliRunner().invoke(app, words)
    assert "cues count as right in 80 % of cases and act, on one class, as a scale of 3" in done.stderr
    factor = hlnet.cues.cue.curve_strength(((2.0, 3.0),), cue_evidence(0.8, 1, 6))
    assert [json.loads(row) for row in done.stdout.splitlines()] == predictions(
        files, f"@full.safetensors @photos/val --cue saw=x{factor} --cue-mode scale"
    )
    for more in (["saw=0.9"], ["saw", "--reliability", "0.8"], ["saw", "--attention-signal", "2"]):
        assert "file holds it" not in CliRunner().invoke(app, [*words[:4], *more]).stderr
    for line, is_told in (("--cue-level 1", True), ("--reliability 0.8", False), ("--attention-signal 2", False)):
        assert ("file holds it" in command(files, f"eval {tmp_path}/fitted.safetensors {line}").stderr) == is_told
    hlnet.save_checkpoint(hlnet.cut_expert(tmp_path / "fitted.safetensors", "saw"), tmp_path / "one.safetensors")
    said = CliRunner().invoke(app, ["predict", f"{tmp_path}/one.safetensors", *words[2:]])
    assert said.exit_code == 0 and "file holds it" not in said.stderr
    assert not as_json(files, f"eval {tmp_path}/fitted.safetensors --hard")["cued"]["wrong_share"]


def test_an_expert_takes_what_it_knows_of_a_record(files, tmp_path):
    hlnet.save_checkpoint(hlnet.cut_expert(files / "full.safetensors", "cat,saw"), tmp_path / "expert.safetensors")
    (tmp_path / "heard.csv").write_text("image,node,reliability\n0.png,cat,0.9\n1.png,dog,0.9\n")
    line = ["predict", f"{tmp_path}/expert.safetensors", f"{files}/photos/val", "--cues", f"{tmp_path}/heard.csv"]
    done = CliRunner().invoke(app, [*line, "--json"])
    assert done.exit_code == 0
    assert "rows that name what this tree does not have are left out, 1 of them: dog" in done.stderr
    assert [row["image"][-6:] for row in map(json.loads, done.stdout.splitlines()) if "cues" in row] == ["/0.png"]
    done = command(files, f"eval {tmp_path}/expert.safetensors --cues {tmp_path}/heard.csv")
    assert done.exit_code == 0 and "1 of" in done.stdout
    (tmp_path / "heard.csv").write_text('image,node,reliability\n0.png,"cat,dog",0.9\n')
    half = [json.loads(row) for row in CliRunner().invoke(app, [*line, "--json"]).stdout.splitlines()]
    expert = f"{tmp_path}/expert.safetensors"
    assert [row["cues"] for row in half if "cues" in row] == [["cat"]]
    cued = predictions(files, f"{expert} @photos/val --cue cat=0.9")
    assert next(row["labels"] for row in half if "cues" in row) == next(
        row["labels"] for row in cued if row["image"].endswith("/0.png")
    )
    (tmp_path / "heard.csv").write_text("image,node,reliability\n1.png,dog,0.9\n")
    done = CliRunner().invoke(app, line)
    assert isinstance(done.exception, UsageError) and "names nothing that this tree has: dog" in str(done.exception)


def test_a_file_for_other_images_is_refused_before_the_first(files, tmp_path):
    (tmp_path / "heard.csv").write_text("image,node,reliability\nother.png,cat,0.9\n")
    line = ["predict", f"{files}/full.safetensors", f"{files}/photos/val", "--cues", f"{tmp_path}/heard.csv"]
    done = CliRunner().invoke(app, line)
    assert isinstance(done.exception, UsageError) and "none of the images named there (other.png)" in str(
        done.exception
    )
    assert not done.stdout


def test_cues_said_twice_are_told(files, tmp_path):
    (tmp_path / "heard.csv").write_text("image,node,reliability\n0.png,cat,0.9\n0.png,cat,0.9\n1.png,cat,0.9\n")
    line = ["predict", f"{files}/full.safetensors", f"{files}/photos/val", "--cues", f"{tmp_path}/heard.csv"]
    told = CliRunner().invoke(app, line).stderr
    assert "rows that repeat another's image and node count as independent evidence, 1 of them" in told


def test_eval_takes_a_prior(files, tmp_path):
    (tmp_path / "prior.csv").write_text("node,probability\nsaw,0.99\n")
    told = as_json(files, f"eval @full.safetensors --prior {tmp_path}/prior.csv")
    assert told["cued"]["images"] == 0 and told["cued"]["accuracy"]["per_class"]["saw"] > 0.5
    assert "prior from" in command(files, f"eval @full.safetensors --prior {tmp_path}/prior.csv").output


@pytest.mark.parametrize(
    "line, words",
    [
        ("eval @full.safetensors --attention-signal loud", "'loud': expected a number such as 1.8, or auto"),
        ("eval @full.safetensors --attention-signal auto", "holds no fitted strength"),
        ("eval @full.safetensors --attention-signal 2 --reliability 0.9", "give one of them"),
        ("eval @full.safetensors --reliability 1.5", "must lie between 0 and 1"),
        ("eval @full.safetensors --reliability 0.9 --cue-mode gain", "holds no gain for a reliability"),
        ("eval @plain.safetensors --attention-signal 2", "plain network has no branches"),
        ("eval @full.safetensors --cue-level 7 --attention-signal 2", "levels 1 to 2"),
        ("eval @full.safetensors --cues @missing.csv", "missing.csv"),
        ("eval @full.safetensors --cues @missing.csv --wrong-cues 0.5", "are for cues from labels"),
        ("eval @full.safetensors --cues @missing.csv --wrong-cue sibling", "are for cues from labels"),
        ("eval @full.safetensors --wrong-cue sibling", "the cues have no strength: add --reliability"),
        ("eval @full.safetensors --prior @even.csv --cue-mode bias", "the cues have no strength"),
        ("eval @full.safetensors --hard --cue-mode gain", "takes cues as facts"),
        ("eval @plain.safetensors --hard", "is a plain network, which has no branches to skip"),
        ("eval @full.safetensors --attention-signal 1e9", "must lie between 0 and 1e+06"),
        ("attend @full.safetensors --reliability 0", "must lie between 0 and 1"),
        ("attend @full.safetensors --gains 1,x", "--gains '1,x'"),
        ("attend @full.safetensors --save --out @new.safetensors", "give one of them"),
        ("attend @full.safetensors --save --cue-level 1", "leave --cue-level out"),
        ("attend @full.safetensors --out @new.pt", "ends in .safetensors"),
        ("attend @full.safetensors --plain @other.safetensors", "is no plain network"),
        ("attend @full.safetensors --picture @cues.txt", "must end in"),
        ("attend @full.safetensors --wrong-cue confusable --cue-level 1", "for classes"),
    ],
)
def test_wrong_usage_is_told_in_one_line(files, line, words):
    done = command(files, line)
    assert isinstance(done.exception, UsageError) and words in str(done.exception), done.exception
    assert "\n" not in str(done.exception) and not done.stdout
