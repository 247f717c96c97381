"""Which cues an image has: by the end of its path, or the same as all others."""

from pathlib import Path

import pytest
from helpers.evaluated_nets import build
from hypothesis import given, settings
from hypothesis import strategies as st

from hlnet.cues.cue import Cue
from hlnet.cues.policy import CuePolicy
from hlnet.cues.table import CueMatching, CueTable
from hlnet.data.images import LabelledImages, image_names
from hlnet.errors import UsageError
from hlnet.model.fast.optimize import optimize


def cue(node):
    return Cue(node=node)


IMAGES = ["/data/val/cat/1.jpg", "/data/val/cat/2.jpg", "/data/val/saw/1.jpg", "/data/val/saw/x1.jpg"]


@pytest.mark.parametrize(
    "name, which",
    [
        *[("2.jpg", 1), ("x1.jpg", 3), ("cat/1.jpg", 0), ("saw/1.jpg", 2), ("val/saw/1.jpg", 2)],
        *[("./cat/1.jpg", 0), ("cat//1.jpg", 0), ("cat\\1.jpg", 0), ("/data/val/cat/1.jpg", 0)],
    ],
)
def test_images_by_the_ends_of_their_paths(name, which):
    found = CueTable({name: [cue("cat")]}).rows(IMAGES)
    assert found == [[cue("cat")] if i == which else [] for i in range(len(IMAGES))]


def test_names_of_one_image_add_up():
    cues = {"2.jpg": [cue("tabby")], "cat/2.jpg": [cue("cat"), cue("tool")], "./2.jpg": [cue("siamese")]}
    found = CueTable(cues).rows(map(Path, IMAGES))
    assert found[1] == [cue("tabby"), cue("siamese"), cue("cat"), cue("tool")] and not any(found[:1] + found[2:])


def test_one_name_of_two_images():
    with pytest.raises(UsageError, match=r"heard.csv: '1.jpg' is both '/data/val/cat/1.jpg' and '/data/val/saw/1.jpg'"):
        CueTable({"1.jpg": [cue("cat")]}, source="heard.csv").rows(IMAGES)
    assert CueTable({"1.jpg": [cue("cat")]}).rows(IMAGES[:2] + IMAGES[:1])[2] == [cue("cat")]  # the same image again


def test_relative_images_are_where_they_are(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    table = CueTable({str(tmp_path / "a" / "1.jpg"): [cue("cat")]})
    assert table.rows(["a/1.jpg", "./a/../a/1.jpg", "1.jpg"]) == [[cue("cat")], [cue("cat")], []]


@pytest.mark.parametrize("name", ["3.jpg", "at/1.jpg", "1", "dog/cat/1.jpg", "../1.jpg", "/1.jpg", "1.JPG", "jpg"])
def test_names_that_fit_nothing(name, caplog):
    with pytest.raises(UsageError, match=r"heard\.csv: none of the images named there"):
        CueTable({name: [cue("cat")]}, source="heard.csv").rows(IMAGES)
    found = CueTable({name: [cue("cat")], "2.jpg": [cue("tool")]}, source="heard.csv").rows(IMAGES)
    assert found == [[], [cue("tool")], [], []]
    assert caplog.messages == [f"heard.csv: 1 of 2 images named there fit none: {name}"]


PARTS = st.lists(st.sampled_from("ab"), min_size=1, max_size=3)


@settings(max_examples=100, deadline=None)
@given(st.sets(PARTS.map(tuple), min_size=1, max_size=4), st.sets(PARTS.map(tuple), min_size=1, max_size=4))
def test_any_names_and_images(names, images):
    """Against a comparison of every name with every image's last parts."""
    cues = {"/".join(name): [cue("/".join(name))] for name in names}
    images = sorted(images)
    fits = {name: [i for i, image in enumerate(images) if ("", *image)[-len(name) :] == name] for name in names}
    matching = CueMatching(CueTable(cues))
    try:
        found = [matching.cues_of("/" + "/".join(image)) for image in images]
    except UsageError:
        assert any(len(which) > 1 for which in fits.values())
        return
    assert not any(len(which) > 1 for which in fits.values())
    for i, own in enumerate(found):
        assert sorted(one.node for one in own) == sorted("/".join(name) for name in names if i in fits[name])
    if any(fits.values()):
        matching.finish()
    else:
        with pytest.raises(UsageError, match="none of the images"):
            matching.finish()


def test_what_images_of_a_data_set_are_called():
    files = (Path("/d/val/cat/1.jpg"), Path("/d/val/cat/2.jpg"))
    shown = {"name": "x", "classes": ("cat",), "labels": (0, 0), "load": None}
    assert image_names(LabelledImages(**shown, files=files)) == ["/d/val/cat/1.jpg", "/d/val/cat/2.jpg"]
    assert image_names(LabelledImages(**shown)) == ["0", "1"]
    sharded = LabelledImages(**shown, files=(Path("/d/0.tar"),) * 2, members=("cat/1.jpg", "cat/2.jpg"))
    assert CueTable({"2.jpg": [cue("cat")]}).rows(image_names(sharded)) == [[], [cue("cat")]]
    assert CueTable({"1": [cue("cat")]}).rows(image_names(LabelledImages(**shown))) == [[], [cue("cat")]]


def test_cues_on_every_image_go_first():
    table = CueTable({"1.jpg": [cue("cat")]}, everywhere=[cue("tool")])
    assert table.rows(["a/1.jpg", "a/2.jpg"]) == [[cue("tool"), cue("cat")], [cue("tool")]]
    assert table.all_cues == [cue("tool"), cue("cat")]
    alone = CueTable(everywhere=[cue("tool")])
    assert alone.rows(["1.jpg"]) == [[cue("tool")]] and CueTable().rows(["1.jpg"]) == [[]]


def test_cues_that_cannot_act_are_refused_with_their_source():
    net, scale = build(), CuePolicy(mode="scale", reliability=0.9)
    with pytest.raises(UsageError, match=r"^heard.csv: this network holds no scale"):
        CueTable({"1.jpg": [cue("cat")]}, source="heard.csv").check(net, scale)
    with pytest.raises(UsageError, match=r"^this network holds no scale"):
        CueTable(everywhere=[cue("cat")], source="heard.csv").check(net, scale)
    CueTable(everywhere=[cue("cat")]).check(net, CuePolicy(reliability=0.9))
    CueTable(everywhere=[cue("cat")]).check(optimize(net), CuePolicy(hard=True))


def test_cues_from_labels_are_for_evaluation():
    with pytest.raises(UsageError, match="are for evaluate"):
        CueTable.from_labels().check(build(), CuePolicy(strength=2.0))
    with pytest.raises(UsageError, match="between 0 and 1"):
        CueTable.from_labels(wrong_share=1.5)


def test_a_table_serves_one_folder_after_another():
    table = CueTable({"1.jpg": [Cue(node="cat")], "2.jpg": [Cue(node="saw")]})
    for folder in ("/a", "/b"):
        rows = table.rows([f"{folder}/1.jpg", f"{folder}/2.jpg"])
        assert [[cue.node for cue in row] for row in rows] == [["cat"], ["saw"]]
    with pytest.raises(UsageError, match="both"):
        table.rows(["/a/1.jpg", "/b/1.jpg"])
    with pytest.raises(UsageError, match="none of the images"):  # whatever an earlier list had
        table.rows(["/a/3.jpg"])


def test_another_kind_of_wrong_cue_is_refused():
    with pytest.raises(UsageError, match="'nonsense': expected random or sibling"):
        CueTable.from_labels(wrong="nonsense")


def test_certain_cues_are_refused_where_no_branch_could_be_skipped():
    table, policy = CueTable(everywhere=[Cue(node="cat")]), CuePolicy(hard=True)
    with pytest.raises(UsageError, match="plain network has no branches to skip"):
        table.check(build("plain"), policy)
    with pytest.raises(UsageError, match="optimise the network"):
        table.check(build(), policy)
    table.check(optimize(build()), policy)
