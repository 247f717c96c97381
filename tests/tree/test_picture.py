"""Pictures of class trees: every name is there and readable, and red are the expert's paths, no more and no fewer."""

import itertools
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections import Counter
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from PIL import Image

from hlnet.errors import RunError, SelectionError, UsageError
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.picture import DPI, draw_tree, tree_figure, tree_page

RED = "#c4443c"
SVG = "{http://www.w3.org/2000/svg}"
WORDS = [
    "tench",
    "great white shark",
    "coho, cohoe, coho salmon, blue jack, silver salmon, Oncorhynchus kisutch",
    "Ägypt",
]
LONG = [f"{i} {WORDS[i % 4]}" for i in range(1000)]
DIGITS = ClassTree.from_nested({"low": {"round": ["0", "6"], "bent": ["2", "3", "8"]}, "high": {"straight": ["1"]}})


def uneven(count):
    """A tree whose classes end at all of its levels."""
    place = root = {}
    for i in range(count):
        place[f"class {i}"] = i
        if i % 7 == 3:
            place = (place if i % 4 else root).setdefault(f"kind {i}", {})
    return ClassTree.from_nested(root)


TREES = {
    "10": (DIGITS, [2, 5]),
    "1 class": (ClassTree.parallel(["cat"], 1), [0]),
    "1 level": (ClassTree.parallel(LONG[:12], 1), [0, 11]),
    "PHL": (ClassTree.parallel(LONG[:10]), [3]),
    "PHL of 300": (ClassTree.parallel(LONG[:300]), [3, 299]),
    "deep chain": (ClassTree.parallel(["cat", "dog"], 64), [1]),
    "uneven": (uneven(62), [0, 30, 61]),
    "100": (ClassTree.balanced((6, 26, 100), LONG[:100]), range(0, 100, 5)),
    "100 in one family": (ClassTree.balanced((1, 1, 100)), [0, 99]),
    "1000": (ClassTree.balanced((17, 161, 1000), LONG), range(281, 286)),
    "1000, large expert": (ClassTree.balanced((17, 161, 1000), LONG), range(0, 1000, 3)),
}


def texts(path):
    return [element.text or "" for element in ElementTree.parse(path).iter(f"{SVG}text")]


def drawn_lines(figure):
    """The nodes' lines as ``(colour, path)``."""
    collections = [artist for artist in figure.axes[0].collections if isinstance(artist, PathCollection)]
    return [(to_hex(lines.get_edgecolor()[0]), path) for lines in collections for path in lines.get_paths()]


def by_column(tree, figure):
    """The positions of the classes, column by column, as their names stand in the figure."""
    places, waiting = {}, iter(figure.axes[0].texts)
    for position, name in enumerate(tree.classes):
        start = name.removesuffix("…")[:8]
        place = next(text.get_position()[0] for text in waiting if text.get_text()[:8] == start)
        places.setdefault(round(place, 3), []).append(position)
    return list(places.values())


def expected_lines(tree, positions, columns):
    """A column draws the nodes above its classes."""
    inside = [set(positions) & set(column) for column in columns]
    return sum(len(row) for mine in inside if mine for row in tree.rows(mine))


@pytest.mark.parametrize("name, marked", [*((name, True) for name in TREES), ("10", False), ("1000", False)])
def test_labels_are_whole_and_apart(name, marked):
    tree, kept = TREES[name]
    figure = tree_figure(tree, kept if marked else (), "A title, neither short nor long")
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    found = [text for text in figure.axes[0].texts if text.get_text()]
    boxes = np.array([text.get_window_extent(canvas.get_renderer()).extents for text in found])
    width, height = canvas.get_width_height()
    assert (boxes >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
    low, high = boxes[:, None], boxes[None]
    meet = (low[..., :2] < high[..., 2:]).all(-1) & (high[..., :2] < low[..., 2:]).all(-1)
    np.fill_diagonal(meet, False)
    pairs = [(found[a].get_text(), found[b].get_text()) for a, b in np.argwhere(meet)]
    assert not pairs
    assert min(text.get_fontsize() for text in found) >= 7
    assert len(tree.classes) < 100 or 1.0 < width / height < 1.7


@pytest.mark.parametrize("name", ["10", "uneven", "100", "100 in one family"])
def test_no_line_runs_through_a_label(name):
    tree, kept = TREES[name]
    figure = tree_figure(tree, kept)
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    transform = figure.axes[0].transData
    lines = [transform.transform_path(path) for _, path in drawn_lines(figure)]
    for text in figure.axes[0].texts:
        box = text.get_window_extent(canvas.get_renderer())
        assert not any(line.intersects_bbox(box, filled=False) for line in lines), text.get_text()


@pytest.mark.parametrize("tree, kept", TREES.values(), ids=TREES.keys())
def test_red_are_the_paths_of_the_expert(tree, kept):
    figure = tree_figure(tree, kept)
    columns, everything = by_column(tree, figure), range(len(tree.classes))
    zoomed = any(text.get_text() == "the expert alone" for text in figure.axes[0].texts)
    assert zoomed == (len(tree.classes) > 200 and len(kept) * 20 <= len(tree.classes))
    colours = Counter(colour for colour, _ in drawn_lines(figure))
    red = expected_lines(tree, kept, columns)
    assert red >= sum(map(len, tree.rows(kept)))
    assert colours[RED] == red + (tree.prune(kept).num_nodes if zoomed else 0)
    assert len(colours) <= 2 and colours.total() - colours[RED] == expected_lines(tree, everything, columns) - red
    words = [text.get_text() for text in figure.axes[0].texts if to_hex(text.get_color()) == RED]
    counts = ", ".join(str(len(row)) for row in tree.rows(kept))
    classes = f"{len(tree.classes)} class" + "es" * (len(tree.classes) > 1)
    assert f"expert: {len(kept)} of {classes} · nodes kept {counts}" in words


def test_without_an_expert_nothing_is_red():
    figure = tree_figure(DIGITS)
    assert {colour for colour, _ in drawn_lines(figure)}.isdisjoint({RED}) and len(drawn_lines(figure)) == 11
    assert not [text for text in figure.axes[0].texts if to_hex(text.get_color()) == RED or "expert" in text.get_text()]


def test_zoom_names_all_that_is_kept():
    tree, kept = ClassTree.balanced((17, 161, 1000)), range(0, 1000, 25)
    counts = Counter(text.get_text() for text in tree_figure(tree, kept).axes[0].texts)
    assert all(counts[name] == 1 + (i % 25 == 0) for i, name in enumerate(tree.classes))


@pytest.mark.parametrize("name", ["10", "uneven", "100 in one family", "PHL of 300"])
def test_svg_holds_every_name_and_red_path(tmp_path, name):
    tree, kept = TREES[name]
    draw_tree(tree, tmp_path / "tree.svg", kept, "Title")
    found = texts(tmp_path / "tree.svg")
    shown = {word.removeprefix("↳ ") for word in found}
    groups = {node.name for row in tree.levels for node in row}
    long = {name for name in groups if len(name) > 40}
    assert "Title" in shown and groups - long <= shown
    assert all(any(word.endswith("…") and name.startswith(word[:-1]) for word in shown) for name in long)
    root = ElementTree.parse(tmp_path / "tree.svg").getroot()
    lines = [
        line
        for group in root.iter(f"{SVG}g")
        if group.get("id", "").startswith("PathC")
        for line in group.iter(f"{SVG}path")
    ]
    zoom = tree.prune(kept).num_nodes if "the expert alone" in found else 0
    red = expected_lines(tree, kept, by_column(tree, tree_figure(tree, kept)))
    assert sum(f"stroke: {RED}" in line.get("style", "") for line in lines) == red + zoom


def test_continued_nodes_are_dotted():
    tree = ClassTree.from_nested({"animal": {"cat": {"tabby": 0}}, "saw": 1})
    styles = {}
    for lines in (artist for artist in tree_figure(tree).axes[0].collections if isinstance(artist, PathCollection)):
        styles[lines.get_linestyle()[0][1] is not None] = len(lines.get_paths())
    assert styles == {False: 4, True: 2}
    assert any("continued" in text.get_text() for text in tree_figure(tree).axes[0].texts)
    assert not any("continued" in text.get_text() for text in tree_figure(DIGITS.prune([0])).axes[0].texts)


def test_family_parted_by_columns_is_marked():
    texts = Counter(text.get_text() for text in tree_figure(ClassTree.balanced((1, 2, 300))).axes[0].texts)
    columns = texts["↳ group 1.0"] + 1
    assert columns > 2 and texts["group 1.0"] == texts["group 2.0"] == texts["group 2.1"] == 1
    assert texts["↳ group 2.0"] + texts["↳ group 2.1"] in {columns - 1, columns - 2}
    assert texts["↳ goes on from the column before"] == 1


def test_more_than_2000_classes_are_counted():
    tree = ClassTree.balanced((3, 40, 2100))
    words = [text.get_text() for text in tree_figure(tree, [0, 2099]).axes[0].texts]
    counted = [re.fullmatch(r"(group 2\.\d+) \((\d+) classes\)", word) for word in words]
    found = {match[1]: int(match[2]) for match in counted if match}
    assert found == {node.name: count for node, count in zip(tree.levels[1], tree.sibling_counts[2], strict=True)}
    assert any("only levels 1 to 2 are drawn" in word for word in words) and "class 2099" in words
    assert "expert: 2 of 2100 classes · nodes kept 2, 2, 2" in words and "class 5" not in words


def test_too_wide_a_tree_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"2001.*page"):
        draw_tree(ClassTree.parallel([str(i) for i in range(2001)]), tmp_path / "tree.png")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------- files

ODD = ClassTree.from_nested(
    {"$x^2$ {": {"猫科": ["虎", "$\\alpha$"], "<b>&amp;": ["w" * 3000, "\u05d0"]}, "_^": ["🦊", "é"]}
)


@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf", ".PNG"])
def test_odd_names_are_drawn_in_silence_and_alike(tmp_path, suffix, caplog):
    paths = [tmp_path / f"{i}{suffix}" for i in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_tree(ODD, paths[0], [1], "$t$ 虎\n\0 \ud800")
        with matplotlib.rc_context(
            {"font.size": 30, "axes.facecolor": "red", "text.parse_math": True, "lines.marker": "x"}
        ):
            draw_tree(ODD, paths[1], iter([1, 1]), "$t$ 虎\n\0 \ud800")
            assert matplotlib.rcParams["font.size"] == 30
    assert paths[0].read_bytes() == paths[1].read_bytes() and not caplog.records
    if suffix == ".svg":
        assert {"$x^2$ {", "猫科", "虎", "$\\alpha$", "<b>&amp;", "\u05d0", "_^", "🦊", "é", "$t$ 虎"} <= set(
            texts(paths[0])
        )


def test_png_is_what_the_figure_says(tmp_path):
    draw_tree(DIGITS, tmp_path / "tree.png", [0])
    inches = tree_figure(DIGITS, [0]).get_size_inches()
    with Image.open(tmp_path / "tree.png") as image:
        np.testing.assert_allclose(image.size, inches * DPI, atol=1)
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert (pixels == [0xC4, 0x44, 0x3C]).all(1).any() and (pixels == 255).all(1).mean() > 0.7


@pytest.mark.parametrize("draw, name", [(draw_tree, "tree.jpg"), (draw_tree, "tree"), (tree_page, "tree.svg")])
def test_other_endings_are_refused(tmp_path, draw, name):
    with pytest.raises(UsageError, match=f"{name}'.*give a name"):
        draw(DIGITS, tmp_path / name)


@pytest.mark.parametrize("draw, name", [(draw_tree, "tree.svg"), (tree_page, "tree.html")])
def test_what_cannot_be_leaves_no_file(tmp_path, draw, name):
    with pytest.raises(SelectionError, match=r"0\.\.5"):
        draw(DIGITS, tmp_path / name, [6])
    assert not list(tmp_path.iterdir())
    (tmp_path / name).mkdir()
    with pytest.raises(RunError, match="folder"):
        draw(DIGITS, tmp_path / name)


# ---------------------------------------------------------------------- the page


class Page(HTMLParser):
    """The nodes of a page, in order: their depth, marks and texts; and what else a test asks for."""

    def __init__(self, path):
        super().__init__()
        self.items, self.tags, self.open, self.links, self.rows = [], [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [value for key, value in attributes.items() if key in {"src", "href", "data", "action"}]
        self.tags.append(tag)
        if tag in {"meta", "input"}:
            return
        self.open.append(tag)
        if tag == "li":
            kept = attributes.get("class") == "kept"
            self.items.append({"depth": self.open.count("li"), "kept": kept, "code": [], "name": "", "small": ""})
        elif tag == "details":
            self.items[-1]["unfolded"] = "open" in attributes
        elif tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        tag = self.open[-1] if self.open else ""
        if tag in {"th", "td"}:
            self.rows[-1].append(data)
        elif "li" in self.open and tag in {"b", "small"}:
            self.items[-1]["name" if tag == "b" else "small"] += data
        elif "li" in self.open and tag == "code":
            self.items[-1]["code"].append(data)


def page(folder, *arguments):
    tree_page(arguments[0], folder / "tree.html", *arguments[1:])
    return Page(folder / "tree.html")


def expected_items(tree, kept):
    """The nodes of the tree depth first, each once, by the paths of its classes."""
    result, seen = [], set()
    ids = tree.ids
    for leaf in tree.leaves:
        parts = leaf.path.split("/")
        for depth in range(1, len(parts) + 1):
            path = "/".join(parts[:depth])
            if path in seen:
                continue
            seen.add(path)
            below = tree.leaves_under(path)
            mine = len(set(below) & set(kept))
            item = {"depth": depth, "kept": mine > 0, "name": parts[depth - 1], "small": ""}
            item["code"] = [ids[path]] if path in ids else []
            if path == leaf.path:
                item["code"].append(str(leaf.index))
            else:
                item["small"] = f"{mine} of " * (mine > 0) + f"{len(below)} class" + "es" * (len(below) != 1)
            result.append(item)
    return result


WITH_IDS = ClassTree.from_nested({"cat": {"tabby": 281, "siamese": 284}, "dog": {"toy": {"pug": 254}}, "saw": 491})
WITH_IDS = WITH_IDS.with_ids({"cat": "n02", "tabby": "n0212", "saw": "<n9>"})


@pytest.mark.parametrize("tree", [WITH_IDS, ODD, uneven(62), TREES["PHL"][0], TREES["1000"][0]])
@pytest.mark.parametrize("kept", [(), (0,), (2, 1)])
def test_page_holds_the_tree(tmp_path, tree, kept):
    found = page(tmp_path, tree, kept)
    folds = [item.pop("unfolded", None) for item in found.items]
    assert found.items == expected_items(tree, kept) and not found.open and not found.links
    large = len(tree.classes) > 150
    assert folds == [None if not item["small"] else not large or item["kept"] for item in found.items]
    assert found.rows[1] == ["nodes", *map(str, tree.counts)]
    assert found.rows[2:] == ([["kept", *(str(len(row)) for row in tree.rows(kept))]] if kept else [])


def test_page_escapes_names(tmp_path):
    name, identifier = "<script>alert(1)", '"><img src=x onerror=alert(2)>'
    tree = ClassTree.from_nested({name: ["'\"&amp;"], "b": ["c"]}).with_ids({name: identifier})
    found = page(tmp_path, tree, [0], "</title><script>")
    assert found.tags.count("script") == 1 and "img" not in found.tags
    assert found.items[0]["name"] == name and found.items[0]["code"] == [identifier]
    assert found.items[1]["name"] == "'\"&amp;"
    text = (tmp_path / "tree.html").read_text(encoding="utf-8")
    assert text.count("&lt;/title&gt;&lt;script&gt;") == 2 and "alert(1)" in text and "<script>alert" not in text


def test_page_needs_nothing_from_outside(tmp_path):
    page(tmp_path, WITH_IDS)
    text = (tmp_path / "tree.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|url\(|@import|src=|\bimport\b", text) and "{{" not in text and "{%" not in text


# ---------------------------------------------------------------------- any tree

SHAPES = st.recursive(st.none(), lambda below: st.lists(below, min_size=1, max_size=4), max_leaves=30).filter(bool)


@st.composite
def trees_with_experts(draw):
    numbers = itertools.count()

    def mapping(shape):
        return {f"{draw(st.sampled_from('ag字W'))} {next(numbers)}": below and mapping(below) for below in shape}

    tree = ClassTree.from_nested(mapping(draw(SHAPES)))
    return tree, draw(st.sets(st.integers(0, len(tree.classes) - 1), min_size=1))


@settings(max_examples=25, deadline=None)
@given(trees_with_experts())
def test_any_tree(tmp_path_factory, tree_and_kept):
    tree, kept = tree_and_kept
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = tree_figure(tree, kept)
    assert Counter(colour == RED for colour, _ in drawn_lines(figure))[True] == tree.prune(kept).num_nodes
    assert len(drawn_lines(figure)) == tree.num_nodes
    found = page(tmp_path_factory.mktemp("page"), tree, kept)
    assert [(item["name"], item["kept"]) for item in found.items] == [
        (item["name"], item["kept"]) for item in expected_items(tree, kept)
    ]
