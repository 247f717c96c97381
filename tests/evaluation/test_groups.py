"""One answer for a group of images: the mean of their probabilities, by hand; and classes that every answer has."""

import csv
import json

import numpy as np
import pytest
from helpers.command_line import as_json, invoke
from helpers.evaluated_nets import BCE, TREE, build
from PIL import Image

from hlnet.errors import SelectionError, UsageError
from hlnet.evaluation.prediction import predict
from hlnet.model.provenance import PathConformal, Provenance, Rejection
from hlnet.store.checkpoint import save_checkpoint


@pytest.fixture
def photos(tmp_path):
    generator = np.random.default_rng(0)
    paths = []
    for name in ("a/1", "a/2", "a/3", "b/1", "c/1", "c/2"):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
        paths.append(str(path))
    return paths


def by_folder(path):
    return path.split("/")[-2]


def shares(found):
    return {label.name: label.probability for label in found.labels}


@pytest.mark.parametrize("recipe", [{}, BCE], ids=["softmax", "bce"])
def test_mean_of_the_images(photos, recipe):
    net = build()
    net.provenance = Provenance(recipe=recipe, temperature=3.0)
    alone = list(predict(net, photos, top=6))
    found = list(predict(net, photos, top=6, group=by_folder, batch_size=2))
    assert [(one.image, one.images) for one in found] == [("a", 3), ("b", 1), ("c", 2)]
    for one, members in zip(found, (alone[:3], alone[3:4], alone[4:]), strict=True):
        mean = {name: np.mean([shares(member)[name] for member in members]) for name in TREE.classes}
        assert shares(one) == pytest.approx(mean, rel=1e-6)
        assert one.labels[0].name == max(mean, key=mean.get)


def test_answer_has_a_level(photos):
    net = build()
    found = list(predict(net, photos, group=by_folder, min_confidence=0.6))
    single = list(predict(net, photos, top=6))
    members = {"cat": ["tabby", "siamese"], "dog": ["beagle", "boxer"], "saw": ["saw"], "axe": ["axe"]}
    for one, images in zip(found, (single[:3], single[3:4], single[4:]), strict=True):
        nodes = {node: np.mean([sum(shares(im)[c] for c in members[node]) for im in images]) for node in members}
        best = max(nodes, key=nodes.get)
        assert one.answer.way.split("/")[0] == best and (one.answer.level == 0) == (nodes[best] < 0.6)
        assert one.answer.way_probabilities[0] == pytest.approx(nodes[best])


def test_rejected_images_do_not_count(photos):
    """Of a group, those that the threshold accepts; rejected if it accepts none."""
    net = build()
    net.provenance.rejection = Rejection(score="energy", threshold=-1e9, max_false_positive=0.1)
    scores = [one.score for one in predict(net, photos)]
    limit = sorted(scores[:3])[1]  # of group a, two are accepted
    net.provenance.rejection = Rejection(score="energy", threshold=limit, max_false_positive=0.1)
    alone = list(predict(net, photos, top=6))
    found = {one.image: one for one in predict(net, photos, top=6, group=by_folder)}
    kept = [one for one in alone[:3] if not one.rejected]
    assert len(kept) == 2 and not found["a"].rejected
    mean = {name: np.mean([shares(one)[name] for one in kept]) for name in TREE.classes}
    assert shares(found["a"]) == pytest.approx(mean, rel=1e-5)
    for name, members in (("a", alone[:3]), ("b", alone[3:4]), ("c", alone[4:])):
        assert found[name].rejected == all(one.rejected for one in members)
        assert found[name].score == pytest.approx(max(one.score for one in members))


def test_always_gives_these_classes(photos):
    net = build()
    alone = list(predict(net, photos, top=6))
    found = list(predict(net, photos, top=1, always="dog,saw"))
    for one, whole in zip(found, alone, strict=True):
        assert list(one.always) == [name for name in TREE.classes if name in ("beagle", "boxer", "saw")]
        assert one.always == pytest.approx({name: shares(whole)[name] for name in one.always})
        assert len(one.labels) == 1
    with pytest.raises(SelectionError, match="no class or node 'fish'"):
        predict(net, photos, always="fish")
    net.provenance.conformal = PathConformal(thresholds=(0.5,), images=9)
    with pytest.raises(UsageError, match="not to groups"):
        predict(net, photos, group=by_folder, coverage=0.5)


def test_command_writes_both(photos, tmp_path):
    net = build()
    save_checkpoint(net, tmp_path / "net.safetensors")
    (tmp_path / "targets.txt").write_text("# wanted\nsaw\nbeagle\n")
    folder, out = tmp_path / "photos", tmp_path / "answers.csv"
    (folder / "c" / "bad.png").write_text("no image")
    line = (
        f"predict {tmp_path}/net.safetensors {{files}} --device cpu --always @{tmp_path}/targets.txt --group-by folder"
    )
    _, hints = invoke(f"{line.format(files=folder / 'a')} {folder / 'b'} --out {out}")
    assert "4 images in 2 groups" in hints
    rows = list(csv.DictReader(out.read_text().splitlines()))
    expected = list(predict(net, photos[:4], group=lambda path: path.rpartition("/")[0], always="saw,beagle"))
    assert [row["image"] for row in rows] == [str(folder / "a"), str(folder / "b")]
    for row, found in zip(rows, expected, strict=True):
        assert (row["images"], row["class"]) == (str(found.images), found.labels[0].name)
        assert {name: float(row[f"p({name})"]) for name in found.always} == pytest.approx(found.always, rel=1e-5)
    told = as_json(line.format(files=folder / "b"))
    assert told["images"] == 1 and json.dumps(told["always"]).startswith('{"beagle"')
    text, _ = invoke(line.format(files=folder / "a"))
    assert text.splitlines()[0] == f"{folder / 'a'}  (3 images)" and text.splitlines()[1].startswith(
        "  always: beagle 0."
    )
