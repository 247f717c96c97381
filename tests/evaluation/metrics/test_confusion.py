"""The picture of a confusion matrix: its cells are the counts, its names fit, and its table is the matrix."""

import csv
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

from hlnet.errors import UsageError
from hlnet.evaluation.metrics.accuracy import answer_counts
from hlnet.evaluation.metrics.confusion import CONFUSION_FORMATS, confusion_figure, write_confusion
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.io import read_tree

PETS = ClassTree.from_nested({"pet": {"cat": ["tabby", "siamese"], "dog": ["beagle"]}, "tool": ["saw"], "newt": {}})
COUNTS = torch.tensor([[8, 2, 0, 0, 0], [4, 4, 0, 0, 0], [0, 1, 9, 0, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 3]])


def answered(tree, images=4000):
    generator = torch.Generator().manual_seed(0)
    classes = len(tree.classes)
    labels = torch.randint(classes, (images,), generator=generator)
    answers = (labels + torch.randint(-2, 3, (images,), generator=generator)).clamp(0, classes - 1)
    return answer_counts(answers, labels, classes)


def names(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def colours(figure):
    return np.asarray(figure.axes[0].images[0].get_array())[..., :3]


def test_right_answers_are_blue_mistakes_red_and_classes_without_images_grey():
    found = colours(confusion_figure(COUNTS, PETS))
    red, _, blue = np.moveaxis(found, -1, 0)
    right = np.eye(5, dtype=bool)
    empty = np.zeros((5, 5), bool)
    empty[3] = True
    assert (blue > red)[right & ~empty & (COUNTS.numpy() > 0)].all()
    assert (red > blue)[~right & (COUNTS.numpy() > 0)].all()
    assert (found[~empty & (COUNTS.numpy() == 0)] == 1).all()  # white
    assert (np.ptp(found[3], axis=-1) < 1e-6).all() and (found[3] < 0.95).all()
    # shares of the row count, not images: 4 of 8 is more than 1 of 4, which is more than 1 of 10
    shades = [found[place].sum() for place in ((1, 0), (4, 0), (2, 1))]
    assert shades == sorted(shades) and len(set(shades)) == 3


def test_small_matrices_show_their_counts():
    axes = confusion_figure(COUNTS, PETS).axes[0]
    cells = {text.get_position(): text.get_text() for text in axes.texts if text.get_text().isdigit()}
    assert cells == {(j, i): str(int(COUNTS[i, j])) for i, j in COUNTS.nonzero().tolist()}
    assert names(axes) == list(PETS.classes) == [label.get_text() for label in axes.get_xticklabels()]
    assert [text.get_text() for text in axes.texts if not text.get_text().isdigit()] == ["pet", "tool"]
    assert [bar.get_title() for bar in confusion_figure(COUNTS, PETS).axes[1:]] == [
        "right, % of row",
        "mistakes, % of row",
    ]


@pytest.mark.parametrize(
    ("preset", "all_named"), [("imagenette", True), ("cifar100", True), ("imagenet100", True), ("imagenet1k", False)]
)
def test_names_fit_and_do_not_meet(preset, all_named):
    tree = read_tree(f"preset:{preset}")
    figure = confusion_figure(answered(tree), tree)
    axes, renderer = figure.axes[0], FigureCanvasAgg(figure).get_renderer()
    assert (names(axes) == [leaf.name if len(leaf.name) <= 30 else f"{leaf.name[:29]}…" for leaf in tree.leaves]) == (
        all_named
    )
    if not all_named:
        inner = {node.name for row in tree.levels[:-1] for node in row}
        assert len(names(axes)) > 10 and {name for name in names(axes) if "…" not in name} <= inner
    for labels, low in ((axes.get_yticklabels(), "y0"), (axes.get_xticklabels(), "x0")):
        boxes = [label.get_window_extent(renderer) for label in labels]
        high = low.replace("0", "1")
        boxes.sort(key=lambda box: getattr(box, low))
        meeting = [(a, b) for a, b in pairwise(boxes) if getattr(b, low) < getattr(a, high) - 1]
        assert not meeting
        assert all(box.x0 >= 0 and box.y0 >= 0 for box in boxes)
    points = min(label.get_fontsize() for label in axes.get_yticklabels())
    assert points >= 5.5


def test_lines_part_the_groups():
    axes = confusion_figure(COUNTS, PETS).axes[0]
    edges = {tuple(sorted({round(float(y), 3) for (_, y), *_ in lines.get_segments()})) for lines in axes.collections}
    assert (2.5, 3.5) in edges and (1.5, 2.5, 3.5) in edges  # pet | tool | newt, and cat | dog | saw | newt


def test_groups_stand_in_for_classes_where_most_are_in_wide_ones():
    """Of 300 classes, a line of text takes nearly three."""
    tree = ClassTree.from_nested(
        {
            "wide": {"a": [f"a{i}" for i in range(100)], "b": [f"b{i}" for i in range(50)], "tiny": ["t"]},
            "narrow": {f"pair {i}": [f"p{i}", f"q{i}"] for i in range(74)},
            "lone": ["x"],
        }
    )
    axes = confusion_figure(answered(tree), tree).axes[0]
    assert names(axes) == ["a", "b", "narrow"]
    assert [text.get_text() for text in axes.texts] == ["wide"]


@pytest.mark.parametrize("suffix", CONFUSION_FORMATS)
def test_every_format_is_written_and_the_same_again(tmp_path, suffix):
    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for path in paths:
        write_confusion(COUNTS, PETS, path, "cats & <dogs>")
    contents = [path.read_bytes() for path in paths]
    assert contents[0] == contents[1] and sorted(tmp_path.iterdir()) == paths
    if suffix == ".png":
        assert min(Image.open(paths[0]).size) > 300
    elif suffix == ".svg":
        assert all(name in paths[0].read_text(encoding="utf-8") for name in (*PETS.classes, "cats &amp; &lt;dogs&gt;"))


def test_table_is_the_matrix(tmp_path):
    tree = ClassTree.parallel(["a, b", 'say "x"', "格"])
    labels, answers = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 0, 2, 2])
    write_confusion(answer_counts(answers, labels, 3), tree, tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header[1:] == [name for name, *_ in rows] == list(tree.classes)
    assert [[int(count) for count in row] for _, *row in rows] == sklearn_confusion_matrix(labels, answers).tolist()


@pytest.mark.parametrize(
    "counts", [torch.zeros(2, 2, dtype=torch.long), torch.tensor([[3, 0], [0, 5]]), torch.tensor([[0, 3], [5, 0]])]
)
def test_matrices_with_nothing_or_all_of_a_kind(counts, tmp_path):
    write_confusion(counts, ClassTree.parallel(["cat", "a name of many more than thirty letters"]), tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").size[0] > 200


def test_one_class(tmp_path):
    write_confusion(torch.tensor([[7]]), ClassTree.parallel(["cat"]), tmp_path / "x.svg")
    assert "7 images of 1 class<" in (tmp_path / "x.svg").read_text(encoding="utf-8")


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"x\.txt.*\.png, \.svg, \.pdf, \.csv"):
        write_confusion(COUNTS, PETS, tmp_path / "x.txt")
    for path in ("x.png", "x.csv"):
        with pytest.raises(UsageError, match=r"of 2 classes must be \[2, 2\], not \[5, 5\]"):
            write_confusion(COUNTS, ClassTree.parallel(["cat", "dog"]), tmp_path / path)
    assert not list(tmp_path.iterdir())
