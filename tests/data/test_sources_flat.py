"""A folder of class folders alone is what there is to evaluate on; to train takes a split."""

import logging

import pytest
from PIL import Image

from hlnet.data.sources import load_data
from hlnet.errors import UsageError


def write_images(folder, shades):
    for place, shade in shades.items():
        (folder / place).mkdir(parents=True)
        for number in range(2):
            Image.new("L", (8, 8), shade).save(folder / place / f"{number}.png")


@pytest.mark.parametrize("split", ["val", "test"])
def test_class_folders_alone(tmp_path, split, caplog):
    write_images(tmp_path, {"cat": 10, "pets/dog": 20})
    with caplog.at_level(logging.INFO, "hlnet"):
        found = load_data(tmp_path, split)
    assert sorted(found.classes) == ["cat", "dog"] and len(found) == 4
    assert f"has no '{split}' folder: all of its class folders are taken" in caplog.text
    with pytest.raises(UsageError, match="has no 'train' folder"):
        load_data(tmp_path, "train")


def test_a_folder_with_other_splits_is_not_taken_whole(tmp_path, caplog):
    write_images(tmp_path, {"train/cat": 10})
    with pytest.raises(UsageError, match="has no 'val' folder"):
        load_data(tmp_path, "val")
