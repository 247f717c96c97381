"""`hlnet show`: what is drawn is what the network gives, on common scales; the page needs nothing but itself."""

import io
import json
import re
from base64 import b64decode

import numpy as np
import pytest
import torch
from helpers.command_line import failing, invoke  # noqa: F401
from helpers.random_nets import TREE, TREES, build, plain
from PIL import Image

from hlnet.cues.cue import Cue
from hlnet.cues.policy import CuePolicy
from hlnet.data.images import open_image
from hlnet.data.tree_data import eval_transform
from hlnet.errors import DataError, SelectionError, UsageError
from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
from hlnet.model.provenance import Provenance
from hlnet.model.transform import InputTransform
from hlnet.store.checkpoint import save_checkpoint
from hlnet.tree.class_tree import ClassTree
from hlnet.view.branch_maps import activity, colours, feature_maps
from hlnet.view.look import look
from hlnet.view.page import best_classes, write_view
from hlnet.view.pictures import activation_figure, cue_figure, map_figure

captum = pytest.mark.skipif(
    not __import__("importlib.util").util.find_spec("captum"), reason="the extra 'show' is not installed"
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = []
    for number in range(9):
        path = folder / f"photo {number}.png"
        Image.fromarray(generator.integers(0, 256, (70, 90, 3), np.uint8)).save(path)
        paths.append(path)
    return paths


def hierarchical(tree=TREE):
    net = build(tree=tree)
    with torch.no_grad():
        net.head.leaves.weight *= 5  # so that probabilities differ
    net.transform = InputTransform(input_size=(3, 64, 64), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    net.provenance = Provenance(temperature=1.5)
    return net


def tensors(net, paths):
    transform = eval_transform(net.transform)
    return torch.stack([transform(open_image(path)) for path in paths])


def shares_of(logits, temperature=1.5):
    return (logits / temperature).softmax(1).detach().numpy()


def test_maps_shares_and_pictures_are_the_networks(files):
    net = hierarchical()
    view, batch = look(net, files[:3], ["boxer", "cat", "dog/beagle"]), tensors(net, files[:3])
    assert [(row.path, row.level) for row in view.maps] == [("cat", 1), ("dog/boxer", 2), ("dog/beagle", 2)]
    expected = feature_maps(net, batch, ["cat", "boxer", "beagle"])
    for row, maps in zip(view.maps, expected.values(), strict=True):
        np.testing.assert_allclose(row.values, activity(maps).numpy(), rtol=1e-5)
    in_colour = look(net, files[:3], ["boxer"], rgb=True).maps[0]
    np.testing.assert_allclose(in_colour.values, colours(expected["dog/boxer"]).numpy(), rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        np.testing.assert_allclose(view.shares, shares_of(net(batch)), rtol=1e-4)
    neutral = tensors(hierarchical(), files[:3]) * torch.tensor((0.2, 0.3, 0.4))[:, None, None]
    pixels = (neutral + torch.tensor((0.4, 0.5, 0.6))[:, None, None]).movedim(1, -1).numpy()
    np.testing.assert_allclose(view.pictures, pixels, atol=1e-6)
    assert view.names == ("photo 0.png", "photo 1.png", "photo 2.png") and not view.activations and not view.cues


def test_grey_images_have_pictures_too(files):
    config = NetworkConfig(backbone="test_resnet", widths=(4, 4), strides=(1, 1), backbone_args={"in_chans": 1})
    net = HierarchicalNet(config, TREE)
    net.transform = InputTransform(input_size=(1, 64, 64), mean=(0.5,), std=(0.5,))
    view = look(net, files[:1])
    assert view.pictures.shape == (1, 64, 64, 3) and (view.pictures[..., 0] == view.pictures[..., 2]).all()


def test_a_gain_is_the_networks_own(files):
    net, chosen = hierarchical(), files[:2]
    batch, gains = tensors(net, chosen), torch.ones(TREE.num_nodes)
    gains[TREE.offsets[1] + 4] = 3.0
    row = look(net, chosen, cues=[Cue(node="boxer", strength=3)]).cues[0]
    with torch.no_grad():
        np.testing.assert_allclose(row.shares, shares_of(net(batch, gains)), rtol=1e-4)
    assert (row.classes, row.told) == ((4,), "gain 3") and len(row.branches) == 2
    before, after = (feature_maps(net, batch, ["boxer"], gains=how)["dog/boxer"] for how in (None, gains))
    for image, branch in enumerate(row.branches):
        assert branch.path == "dog/boxer" and not np.allclose(branch.before, branch.after)
        np.testing.assert_allclose(branch.before, activity(before)[image].numpy(), rtol=1e-5)
        np.testing.assert_allclose(branch.after, activity(after)[image].numpy(), rtol=1e-5)


def test_of_several_cued_classes_the_most_probable_is_shown(files):
    net, chosen = hierarchical(), files[:3]
    row = look(net, chosen, cues=[Cue(node="cat", strength=2)]).cues[0]
    for shares, branch in zip(row.shares, row.branches, strict=True):
        assert branch.path == TREE.leaves[int(shares[:3].argmax())].path


@pytest.mark.parametrize("make", [hierarchical, plain], ids=["tree", "plain"])
def test_a_bias_shifts_logits_and_leaves_features(files, make):
    net, chosen = make(), files[:2]
    cue = Cue(node="cat", reliability=0.75)
    row = look(net, chosen, cues=[cue], policy=CuePolicy(mode="bias")).cues[0]
    temperature = net.provenance.temperature or 1.0
    shift = temperature * (np.log(0.75 / 0.25) - np.log(3 / 3))
    with torch.no_grad():
        logits = net(tensors(net, chosen)) + torch.tensor([shift] * 3 + [0.0] * 3)
    np.testing.assert_allclose(row.shares, shares_of(logits, temperature), rtol=1e-4)
    assert row.told == f"bias {shift:+.2f}, 0.75 reliable" and row.classes == (0, 1, 2)
    assert bool(row.branches) == isinstance(net, HierarchicalNet)
    assert all((branch.before == branch.after).all() for branch in row.branches)


@pytest.mark.parametrize("mode, neutral", [("gain", 1.0), ("bias", 0.0), ("scale", 1.0)])
def test_a_neutral_cue_changes_nothing(files, mode, neutral):
    view = look(hierarchical(), files[:2], cues=[Cue(node="dog", strength=neutral)], policy=CuePolicy(mode=mode))
    assert (view.cues[0].shares == view.shares).all()
    assert all((branch.before == branch.after).all() for branch in view.cues[0].branches)


def test_default_nodes_tell_of_the_best_classes(files):
    net = hierarchical(TREES["deep"])
    view = look(net, files[:1])
    ranking = [net.tree.leaves[i].path for i in np.argsort(-view.shares[0])[:3]]
    above = [ranking[0][:end] for end in range(len(ranking[0])) if ranking[0][end] == "/"]
    leaves = [row.path for row in view.maps if row.level == 4]
    assert leaves == ranking and [row.path for row in view.maps if row.level < 4] == above
    assert [row.level for row in view.maps] == sorted(row.level for row in view.maps)
    several = look(net, files[:8])
    best = [net.tree.leaves[i].path for i in several.shares.argmax(1)]
    if len(set(best)) > 1:
        assert [row.path for row in several.maps] == list(dict.fromkeys(best))
    assert {row.level for row in look(net, files[:1], level=1).maps} == {1}


def test_default_of_a_parallel_network_has_no_chain(files):
    view = look(hierarchical(TREES["phl"]), files[:1])
    assert len(view.maps) == 3 and {row.level for row in view.maps} == {2}


@captum
def test_activation_maps_are_of_the_classes_among_the_nodes(files):
    from hlnet.view.class_activation import activation_maps

    net, chosen = hierarchical(), files[:2]
    view = look(net, chosen, ["boxer", "cat", "tabby"], cam=True, level=1)
    assert [(row.path, row.level) for row in view.activations] == [
        ("dog/boxer", 2),
        ("cat/tabby", 2),
        ("dog/boxer", 0),
        ("cat/tabby", 0),
    ]
    batch = tensors(net, chosen)
    for row, level in zip(view.activations, (None, None, 0, 0), strict=True):
        expected = activation_maps(net, batch, row.path, level)[:, 0].numpy()
        np.testing.assert_allclose(row.values, expected, rtol=1e-4, atol=1e-7)
    best = look(net, chosen, ["cat"], cam=True)
    paths = [TREE.leaves[i].path for i in dict.fromkeys(best.shares.argmax(1).tolist())]
    assert [row.path for row in best.activations] == paths * 2
    control = look(plain(), chosen, ["saw"], cam=True)
    assert [(row.path, row.level) for row in control.activations] == [("saw", -1), ("saw", 0)] and not control.maps


@pytest.mark.parametrize(
    "make, settings, error, said",
    [
        (hierarchical, {"count": 9}, UsageError, "9 images do not fit one page; give at most 8"),
        (hierarchical, {"count": 0}, UsageError, "no image"),
        (hierarchical, {"nodes": ["tabi"]}, SelectionError, "Did you mean 'tabby'"),
        (hierarchical, {"cues": [Cue(node="cat", strength=i) for i in range(5)]}, UsageError, "5 cues do not fit"),
        (hierarchical, {"cues": [Cue(node="cat")]}, UsageError, "the cue on 'cat' has no strength: add --reliability"),
        (plain, {"nodes": ["cat"]}, UsageError, "plain network has no branches"),
        (plain, {"level": 1, "cam": True}, UsageError, "plain network has no branches"),
        (plain, {"cues": [Cue(node="cat", strength=2)]}, UsageError, "plain network has no branches"),
    ],
    ids=["images", "no image", "node", "cues", "strength", "plain nodes", "plain level", "plain gain"],
)
def test_what_cannot_be_shown_is_refused(files, make, settings, error, said):
    with pytest.raises(error, match=said):
        look(make(), files[: settings.pop("count", 1)], **settings)


def test_too_many_nodes_and_unreadable_images_are_refused(files, tmp_path):
    net = hierarchical(TREES["many children"])
    with pytest.raises(UsageError, match="9 nodes do not fit one page"):
        look(net, files[:1], [f"x{i}" for i in range(9)])
    (tmp_path / "note.png").write_text("no image")
    with pytest.raises(DataError, match=r"note\.png"):
        look(net, [files[0], tmp_path / "note.png"])


# ---------------------------------------------------------------------- pictures


def drawn(figure):
    return [axes.images[0] for axes in figure.axes if axes.images]


def words(figure):
    return [text.get_text() for text in figure.texts]


@pytest.mark.parametrize("count", [1, 3], ids=["columns", "rows"])
def test_maps_of_one_level_share_a_scale(files, count):
    view = look(hierarchical(), files[:count], ["cat", "boxer", "beagle", "dog"])
    images = drawn(map_figure(view))
    assert len(images) == count * 5
    for row, values in enumerate(view.maps):
        for image in range(count):
            found = images[count * (1 + row) + image]
            np.testing.assert_array_equal(found.get_array(), values.values[image])
            level = np.stack([other.values for other in view.maps if other.level == values.level])
            assert found.get_clim() == pytest.approx((0, np.quantile(level, 0.995)))
    told = words(map_figure(view))
    assert {"cat", "dog", "boxer", "beagle", "level 1", "level 2", *view.names} <= set(told)


def test_colours_have_no_scale(files):
    view = look(hierarchical(), files[:1], ["cat"], rgb=True)
    figure = map_figure(view)
    assert len(figure.axes) == 2 and any("red, green and blue" in text for text in words(figure))


def test_bars_are_the_shares(files):
    view = look(hierarchical(), files[:2], cues=[Cue(node="saw", strength=40), Cue(node="dog", strength=0.5)])
    figure = cue_figure(view, 1)
    bars = [[bar.get_width() for bar in axes.patches] for axes in figure.axes if len(axes.patches) > 1]
    order = np.argsort(-view.shares[1])[:5].tolist()
    order += [place for place in (TREE.classes.index("saw"),) if place not in order]
    for found, shares in zip(bars, [view.shares[1], *(cue.shares[1] for cue in view.cues)], strict=True):
        np.testing.assert_allclose(found, shares[order], rtol=1e-5)
    told = words(figure)
    assert {"no cue", "cue: saw", "cue: dog", "gain 40", "gain 0.5", "without", "with the cue"} <= set(told)
    labels = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert sum("●" in label for label in labels) == 1 + sum(TREE.classes[i] in ("beagle", "boxer") for i in order)


def test_names_of_any_kind_are_drawn(tmp_path):
    name = "a$b^{c}$ " + "long " * 20 + "<b>"
    net = hierarchical(ClassTree.from_nested({"x": [name, "日本"], "y": ["z"]}))
    path = tmp_path / "$x$ y.png"
    Image.new("RGB", (64, 64)).save(path)
    view = look(net, [path], cues=[Cue(node="x", strength=2)])
    files = write_view(view, tmp_path / "out", "What <i>this</i> sees")
    page = files[0].read_text(encoding="utf-8")
    assert "&lt;b&gt;" in page and "<b>" not in page and "<i>" not in page


# ---------------------------------------------------------------------- page


@captum
def test_page_is_whole_in_itself(files, tmp_path):
    net = hierarchical()
    view = look(net, files[:2], cam=True, cues=[Cue(node="cat", strength=2)])
    written = write_view(view, tmp_path / "seen", "What it sees", "A small network.")
    names = ["show.html", "maps.png", "activation.png", "cues-1.png", "cues-2.png"]
    assert [path.name for path in written] == names
    page = written[0].read_text(encoding="utf-8")
    assert not re.search(r"https?:|//|<script|<link|@import|url\(", re.sub(r"base64,[^\"]*", "", page))
    assert "default-src 'none'; img-src data:" in page
    sources = re.findall(r'src="([^"]*)"', page)
    pictures = [b64decode(source.removeprefix("data:image/png;base64,"), validate=True) for source in sources]
    assert pictures == [path.read_bytes() for path in written[1:]]
    assert all(Image.open(io.BytesIO(picture)).width > 400 for picture in pictures)
    assert len(re.findall(r'alt="[^"]+"', page)) == 4
    for name, best in zip(view.names, best_classes(view), strict=True):
        assert re.search(rf"<th>{name}</th><td>{next(iter(best))}<span>{100 * next(iter(best.values())):.1f} %", page)
    alone = write_view(view, tmp_path / "alone" / "page.html", "What it sees", "A small network.")
    assert [path.name for path in alone] == ["page.html"] and alone[0].read_text(encoding="utf-8") == page
    assert [path.name for path in alone[0].parent.iterdir()] == ["page.html"]
    assert len(drawn(activation_figure(view))) == 2 * (1 + len(view.activations))


def test_same_view_same_bytes(files, tmp_path):
    pages = [write_view(look(hierarchical(), files[:1]), tmp_path / f"{i}.html", "x")[0].read_bytes() for i in (0, 1)]
    assert pages[0] == pages[1]


# ---------------------------------------------------------------------- command


@pytest.fixture(scope="module")
def at(tmp_path_factory, files):
    folder = tmp_path_factory.mktemp("nets")
    save_checkpoint(hierarchical(), folder / "full.safetensors")
    save_checkpoint(plain(), folder / "plain.safetensors")
    text = folder / "note.txt"
    text.write_text("note")
    return {
        "full": folder / "full.safetensors",
        "plain": folder / "plain.safetensors",
        "a": files[0],
        "b": files[1],
        "folder": files[0].parent,
        "text": text,
    }


def test_command_writes_the_page_and_tells_the_answers(at, files, tmp_path):
    line = "show {full} {a} {b} --nodes cat,boxer --cue dog=0.9 --cue 'tabby=0.1' --out {out}"
    said, _ = invoke(line, **at, out=tmp_path / "seen")
    names = {path.name for path in (tmp_path / "seen").iterdir()}
    assert names == {"show.html", "maps.png", "cues-1.png", "cues-2.png"}
    cues = [Cue(node="dog", reliability=0.9), Cue(node="tabby", reliability=0.1)]
    view = look(hierarchical(), files[:2], ["cat", "boxer"], cues=cues, policy=CuePolicy(mode="bias"))
    for name, best in zip(view.names, best_classes(view), strict=True):
        first, share = next(iter(best.items()))
        assert f"{name}: {first} {100 * share:.1f} %" in said
    assert "cue on dog (bias +" in said and "cue on tabby (bias -" in said
    told = json.loads(invoke(f"{line} --json", **at, out=tmp_path / "again.html")[0])
    assert told["files"] == [str(tmp_path / "again.html")]
    for image, (path, shares) in enumerate(zip(files[:2], view.shares, strict=True)):
        found = told["images"][image]
        assert found["image"] == str(path)
        expected = {view.classes[i]: pytest.approx(shares[i], abs=1e-5) for i in range(6)}
        assert len(found["probabilities"]) == 5 and found["probabilities"].items() <= expected.items()
        assert [cue["node"] for cue in found["cues"]] == ["dog", "tabby"]


@captum
def test_plain_networks_show_their_activation_maps(at, tmp_path):
    _, hinted = invoke("show {plain} {a} --out {out}", **at, out=tmp_path / "seen")
    assert "class activation maps are shown" in hinted
    assert {path.name for path in (tmp_path / "seen").iterdir()} == {"show.html", "activation.png"}


def test_an_attention_signal_makes_it_a_gain(at, tmp_path):
    said, _ = invoke("show {full} {a} --cue dog --attention-signal 1.8 --out {out}", **at, out=tmp_path / "x.html")
    assert "cue on dog (gain 1.8)" in said
    again, _ = invoke("show {full} {a} --cue dog=x1.8 --out {out}", **at, out=tmp_path / "y.html")
    assert again.splitlines()[:-1] == said.splitlines()[:-1]


@pytest.mark.parametrize(
    "line, said",
    [
        ("show {full} {a} --out x.png", "'x.png': give a folder"),
        ("show {full} {a} --out '{text}'", "give a folder"),
        ("show {full} {folder} --out seen", "more than 8 images do not fit one page"),
        ("show {full} {a} --nodes , --out seen", "names no node"),
        ("show {full} {a} --nodes tabi --out seen", "Did you mean 'tabby'"),
        ("show {full} {a} --level 3 --out seen", "levels 1, nearest to the trunk, to 2"),
        ("show {full} {a} --cue dog=fish --out seen", "neither a reliability"),
        ("show {full} {a} --cue dog=x2 --cue-mode bias --out seen", "is a factor, but a bias is a shift"),
        ("show {full} {a} --cue fish=0.9 --out seen", "no class or node 'fish'"),
        ("show {full} {a} --cue-mode gain --out seen", "none is given; add --cue"),
        ("show {full} {a} --cue dog --out seen", "has no strength: add --reliability"),
        ("show {plain} {a} --rgb --cam --out seen", "plain network has no branches"),
        ("show {full} {text} --out seen", "cannot read image"),
    ],
    ids=lambda value: value.partition(" --out")[0].partition("} ")[2] if "{" in value else "",
)
def test_nonsense_is_refused_in_one_line(failing, tmp_path, line, said):  # noqa: F811
    code, out, err = failing(line)
    assert code in (1, 2) and not out and said in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "seen").exists()
