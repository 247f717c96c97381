"""Names, folders, patterns and standard input: against Python's own glob, and no earlier than they are asked for."""

import glob
import io
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hlnet.data import image_files as module
from hlnet.data.image_files import are_files, image_files
from hlnet.errors import UsageError

FILES = (
    *("a.jpg", "b.PNG", "note.txt", "[1].png", ".hidden.jpg", "cats/a.jpg", "cats/c10.jpg", "cats/old/x.jpeg"),
    *("cats/old/b/x.jpg", "cats/.trash/y.jpg", "dogs/b/cats/z.webp", "dogs/b/z.gif", "dogs/b/z.mp4", "void/none.txt"),
)
IMAGES = [name for name in FILES if not name.endswith((".txt", ".mp4")) and "/." not in f"/{name}"]
PART = st.sampled_from(["*", "**", "cats", "b", "[a-c]*", "*s", "?ats", "*.jpg", "*.*", "x.jp*", "[!a]*", "old"])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    found = tmp_path_factory.mktemp("images")
    for name in FILES:
        (found / name).parent.mkdir(parents=True, exist_ok=True)
        (found / name).touch()
    return found


def found(root, *words, stdin=None):
    """What they mean, relative to the root."""
    return [os.path.relpath(name, root) for name in image_files(words, stdin)]


def test_folder_is_its_images_in_order(root):
    assert found(root, root) == [
        *("[1].png", "a.jpg", "b.PNG", "cats/a.jpg", "cats/c10.jpg", "cats/old/x.jpeg", "cats/old/b/x.jpg"),
        *("dogs/b/z.gif", "dogs/b/cats/z.webp"),
    ]
    assert sorted(found(root, str(root))) == sorted(IMAGES)
    assert found(root, root / "dogs", root / "a.jpg")[-1:] == ["a.jpg"]
    with pytest.raises(UsageError, match=r"no file or folder 'nowhere\.png'"):
        image_files([root, "nowhere.png"])


def test_folder_of_here(root, monkeypatch):
    monkeypatch.chdir(root)
    assert list(image_files(["cats/old"])) == ["cats/old/x.jpeg", "cats/old/b/x.jpg"]
    assert list(image_files(["*.jpg"])) == ["a.jpg"] and len(list(image_files(["**"]))) == len(IMAGES)
    assert list(image_files(["./dogs/**/*.gif"])) == ["dogs/b/z.gif"]


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(PART, min_size=1, max_size=4).filter(lambda parts: glob.has_magic(os.path.join(*parts))))
def test_patterns_are_those_of_glob(root, parts):
    """Images that it matches, and those in folders that it matches."""
    pattern = os.path.join(str(root), *parts)
    expected = set()
    for match in glob.glob(pattern, recursive=True):
        if os.path.isdir(match):
            expected |= {str(root / name) for name in IMAGES if str(root / name).startswith(match.rstrip("/") + "/")}
        elif os.path.splitext(match)[1].lower() in module.IMAGE_SUFFIXES:
            expected.add(match)
    if not expected:
        with pytest.raises(UsageError, match=r"matches no image \(\.avif, "):
            image_files([pattern])
        return
    names = list(image_files([pattern]))
    assert set(names) == expected and len(names) == len(expected)


def test_file_of_a_patterns_name_is_a_file(root, monkeypatch):
    monkeypatch.chdir(root)
    assert list(image_files(["[1].png"])) == ["[1].png"] and are_files(["[1].png", "nowhere.jpg"])
    assert not any(are_files([word]) for word in ("[2].png", "*.jpg", "cats", "-"))


@pytest.mark.parametrize(
    "word, told",
    [
        ("void", "'{}' is a folder without images"),
        ("void/*.jpg", "'{}' matches no image"),
        ("no/*", "'{}' matches no image"),
    ],
)
def test_nothing_is_an_error_at_once(root, word, told):
    path = str(root / word)
    with pytest.raises(UsageError) as error:
        image_files([root / "a.jpg", path], option="IMAGES")
    assert str(error.value).startswith("IMAGES ") and told.format(path) in str(error.value)


def test_standard_input(root):
    lines = f"{root}/a.jpg\n\n{root}/cats/old\r\nnowhere [1].png\n last name "
    assert list(image_files([root / "b.PNG", "-"], io.StringIO(lines))) == [
        *(f"{root}/b.PNG", f"{root}/a.jpg", f"{root}/cats/old/x.jpeg", f"{root}/cats/old/b/x.jpg"),
        *("nowhere [1].png", " last name "),
    ]
    with pytest.raises(UsageError, match="once only"):
        image_files(["-", "-"], io.StringIO(""))
    with pytest.raises(UsageError, match="no standard input"):
        image_files(["-"])
    assert list(image_files(["-"], io.StringIO(""))) == []


def test_nothing_is_read_before_it_is_asked_for(root, monkeypatch):
    def lines():
        yield "a.png\n"
        raise AssertionError("the second line was read")

    names = image_files(["-"], lines())
    assert next(names) == "a.png"
    seen, scan = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: seen.append(os.path.relpath(folder, root)) or scan(folder))
    names = image_files([root])  # looks for a first image only
    assert seen == ["."]
    assert [os.path.basename(next(names)) for _ in range(4)][-1] == "a.jpg" and seen == [".", ".", "cats"]


def test_links_are_followed_but_not_in_circles(root, tmp_path):
    (tmp_path / "data").symlink_to(root / "dogs")
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "again").symlink_to(tmp_path)
    (tmp_path / "up" / "lost.png").symlink_to(tmp_path / "gone.png")  # for who opens it to report
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    expected = ["self.png", "data/b/z.gif", "data/b/cats/z.webp", "up/lost.png"]
    assert found(tmp_path, tmp_path) == found(tmp_path, f"{tmp_path}/**/*.*[gfp]") == expected


def test_folder_that_cannot_be_read_is_not_passed_over(root, monkeypatch):
    scan = os.scandir

    def closed(folder):
        if str(folder).endswith("old"):
            raise PermissionError(13, "Permission denied", folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", closed)
    assert found(root, root / "cats") == ["cats/a.jpg", "cats/c10.jpg", "cats/old"]
    assert found(root, f"{root}/cats/**/x.jpg") == ["cats/old"]
    assert found(root, Path(root, "cats", "old")) == ["cats/old"]
