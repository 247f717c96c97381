"""Which images belong together: by folder, by the time in the file, by a part of the path."""

from datetime import datetime, timedelta

import pytest
from PIL import Image

from hlnet.data.bursts import grouping, taken_at
from hlnet.errors import UsageError

START = datetime(2024, 5, 17, 23, 59, 30)


def photo(path, seconds=None, tag="camera"):
    path.parent.mkdir(parents=True, exist_ok=True)
    tags = Image.Exif()
    if seconds is not None:
        text = (START + timedelta(seconds=seconds)).strftime("%Y:%m:%d %H:%M:%S")
        if tag == "camera":
            tags.get_ifd(0x8769)[0x9003] = text
        else:
            tags[0x0132] = text
    Image.new("RGB", (8, 8)).save(path, exif=tags)
    return str(path)


@pytest.mark.parametrize("tag", ["camera", "file"])
def test_time_in_the_file(tmp_path, tag):
    assert taken_at(photo(tmp_path / "a.jpg", 45, tag)) == START + timedelta(seconds=45)  # past midnight
    assert taken_at(photo(tmp_path / "b.jpg")) is None
    (tmp_path / "c.jpg").write_text("no image")
    assert taken_at(str(tmp_path / "c.jpg")) is None


@pytest.mark.parametrize(
    "rule, events", [("event", [0, 0, 0, 3, 3]), ("event:40", [0, 0, 2, 3, 3]), ("event:500", [0] * 5)]
)
def test_events_of_a_camera(tmp_path, rule, events):
    """An event goes on as long as each image follows the one before it soon enough."""
    paths = [photo(tmp_path / f"{i}.jpg", at) for i, at in enumerate([0, 30, 85, 300, 305])]
    key = grouping(rule)
    assert [key(path) for path in paths] == [paths[i] for i in events]
    other = photo(tmp_path / "other" / "0.jpg", 306)  # another camera
    assert key(other) == other
    assert key(none := photo(tmp_path / "none.jpg")) == none


def test_folders_and_patterns():
    paths = ["a/x/1.jpg", "a/x/2.jpg", "a/y/3.jpg", "4.jpg"]
    assert [grouping("folder")(path) for path in paths] == ["a/x", "a/x", "a/y", "."]
    names = ["cam7_001.jpg", "b/cam7_002.jpg", "cam8_001.jpg", "x.jpg"]
    assert [grouping("cam[0-9]+")(name) for name in names] == ["cam7", "cam7", "cam8", "x.jpg"]
    assert grouping("(cam)([0-9])")("cam7_1") == "cam_7"
    for rule in ("(", "event:soon"):
        with pytest.raises(UsageError, match=r"folder|SECONDS"):
            grouping(rule)
