"""Which images trained, chose or fitted what stays with the weights that it is true of."""

from pathlib import Path

import pytest

from hlnet.data.images import LabelledImages
from hlnet.model.provenance import ImageUse, PathConformal, Provenance, Rejection


def images(*files, name="photos/val", classes=("cat", "dog")):
    labels = tuple(classes.index(Path(file).parent.name) for file in files)
    return LabelledImages(f"'{name}'", classes, labels, lambda _: None, tuple(map(Path, files)))


def test_fingerprint_says_which_images_these_are():
    some = images("photos/val/cat/1.png", "photos/val/dog/1.png")
    assert some.fingerprint() == images("photos/val/dog/1.png", "photos/val/cat/1.png").fingerprint()
    moved = images("/x/y/val/cat/1.png", "/x/y/val/dog/1.png", name="/x/y/val")
    assert some.fingerprint() == moved.fingerprint()
    renumbered = images("photos/val/cat/1.png", "photos/val/dog/1.png", classes=("dog", "cat"))
    assert some.fingerprint() == renumbered.fingerprint()
    others = [
        images("photos/val/cat/1.png"),
        images("photos/val/cat/1.png", "photos/val/dog/2.png"),
        images("photos/test/cat/1.png", "photos/test/dog/1.png", name="photos/test"),
    ]
    assert len({some.fingerprint(), *(other.fingerprint() for other in others)}) == 4
    digits = [LabelledImages("digits", ("0", "1"), labels, lambda _: None) for labels in ((0, 1), (0, 1), (1, 0))]
    assert digits[0].fingerprint() == digits[1].fingerprint() != digits[2].fingerprint()


@pytest.mark.parametrize(
    "use, fitted",
    [
        ("temperature", {"temperature": 1.5}),
        ("coverage", {"conformal": PathConformal(thresholds=(0.5,), images=3)}),
        ("rejection", {"rejection": Rejection(score="energy", threshold=1.0, max_false_positive=0.1)}),
    ],
)
def test_what_is_not_there_any_more_was_fitted_by_nobody(use, fitted):
    known = Provenance(**fitted)
    known.record("epoch", "'photos/val'", "a")
    known.record(use, "'photos/val'", "a")
    assert known.uses_of("a") == ["epoch", use] and known.images[0].data == "photos/val"
    known.record(use, "photos/test", "b")  # fitted anew, by others
    assert known.uses_of("a") == ["epoch"] and known.uses_of("b") == [use]
    assert known.after_training({}).uses_of("b") == [] and known.after_training({}).uses_of("a") == ["epoch"]


def test_trained_on_more_is_trained_on_both_and_files_hold_it():
    known = Provenance()
    for data in ("a", "b", "a"):
        known.record("weights", data, data)
    assert sorted(use.images for use in known.images) == ["a", "b"]
    assert Provenance.model_validate(known.model_dump(mode="json")) == known
    assert known.images[0] == ImageUse(use="weights", data="b", images="b")
    assert "images" not in Provenance().model_dump()  # as in files that lack it
