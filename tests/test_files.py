"""Files: the whole new one, or the old one; text in UTF-8."""

import os
from pathlib import Path

import pytest

from hlnet.errors import DataError, RunError, UsageError
from hlnet.files import check_writable, nearby, read_text, remove_drafts, replacing


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("old", [None, "old"])
def test_success_replaces_in_one_step(tmp_path, old):
    target = tmp_path / "note.txt"
    if old:
        target.write_text(old)
    with replacing(str(target)) as draft:
        draft.write_text("new")
        assert draft.parent.parent == tmp_path and draft.name == "note.txt" and names_in(draft.parent) == ["note.txt"]
        assert (target.read_text() if target.exists() else None) == old
    assert target.read_text() == "new" and names_in(tmp_path) == ["note.txt"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", [None, "old"])
def test_error_leaves_the_old_file(tmp_path, error, old):
    target = tmp_path / "note.txt"
    if old:
        target.write_text(old)
    raised = RunError if error is OSError else error
    with pytest.raises(raised), replacing(target) as draft:  # noqa: PT012
        draft.write_text("half")
        raise error
    assert names_in(tmp_path) == (["note.txt"] if old else [])
    assert not old or target.read_text() == old


def test_what_else_was_written_on_the_way_is_gone(tmp_path):
    """Libraries have temporary files of their own, beside the one that they were asked for."""
    with replacing(tmp_path / "note.txt") as draft:
        draft.write_text("new")
        (draft.parent / ".tmpA5N7Zu").touch()
    assert names_in(tmp_path) == ["note.txt"]


def test_drafts_of_killed_processes_can_be_removed(tmp_path):
    for name in (".hlnet-a", ".other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".tmpA5N7Zu").touch()
    remove_drafts(tmp_path)
    assert names_in(tmp_path) == [".other"]


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_file_made_private_by_a_library_is_not(tmp_path, mode):
    with replacing(tmp_path / "note") as draft:
        draft.touch(mode)
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "note").stat().st_mode & 0o777 == 0o666 & ~umask


def test_failed_replacement_leaves_no_draft(tmp_path, monkeypatch):
    (tmp_path / "note.txt").write_text("old")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises((PermissionError, RunError)), replacing(tmp_path / "note.txt") as draft:
        draft.write_text("new")
    assert names_in(tmp_path) == ["note.txt"] and (tmp_path / "note.txt").read_text() == "old"


def test_draft_taken_away_leaves_the_old_file(tmp_path):
    (tmp_path / "note.txt").write_text("old")
    with pytest.raises((OSError, RunError)), replacing(tmp_path / "note.txt") as draft:
        draft.unlink()
    assert names_in(tmp_path) == ["note.txt"] and (tmp_path / "note.txt").read_text() == "old"


def test_makes_missing_folders(tmp_path):
    with replacing(tmp_path / "a" / "b" / "note") as draft:
        draft.write_bytes(b"\0\1")
    assert (tmp_path / "a" / "b" / "note").read_bytes() == b"\0\1" and names_in(tmp_path / "a" / "b") == ["note"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_mode_follows_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        with replacing(tmp_path / "note") as draft:
            draft.write_text("x")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert (tmp_path / "note").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("target", ["folder", "file/note", "file/deeper/note"])
def test_refuses_what_cannot_be_written(tmp_path, target):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    with pytest.raises(RunError, match="cannot write"), replacing(tmp_path / target):
        pytest.fail("nothing may be written")
    assert names_in(tmp_path) == ["file", "folder"] and Path(tmp_path / "file").read_text() == "kept"
    assert names_in(tmp_path / "folder") == []


def test_longest_file_name(tmp_path):
    name = "n" * 250 + ".json"
    (tmp_path / name).touch()
    with replacing(tmp_path / name) as draft:
        draft.write_text("new")
    assert (tmp_path / name).read_text() == "new"


def test_writability_is_found_out_and_leaves_nothing(tmp_path):
    older = tmp_path / "older.txt"
    older.write_text("older")
    check_writable(older)
    check_writable(tmp_path / "new" / "file.txt")
    assert (
        older.read_text() == "older" and not list((tmp_path / "new").iterdir()) and len(list(tmp_path.iterdir())) == 2
    )
    with pytest.raises(RunError, match="is a folder"):
        check_writable(tmp_path)
    with pytest.raises(RunError, match="older"):
        check_writable(older / "below.txt")


def test_text_is_read_with_or_without_a_byte_order_mark(tmp_path):
    path = tmp_path / "note.txt"
    for content in ("été\n".encode(), "été\n".encode("utf-8-sig")):
        path.write_bytes(content)
        assert read_text(path) == "été\n"
    path.write_bytes("été".encode("latin-1"))
    with pytest.raises(UsageError, match=r"note\.txt' cannot be read: not a text file$"):
        read_text(path)
    with pytest.raises(DataError, match=r"^the list cannot be read: Is a directory$"):
        read_text(tmp_path, "the list", DataError)


def test_names_like_a_missing_one(tmp_path, monkeypatch):
    (tmp_path / "pets").mkdir()
    for name in ("dogs.json", "dogs.txt"):
        (tmp_path / name).touch()
    assert nearby(tmp_path / "dog.json", [".json"]) == f" Did you mean 'dogs.json' in '{tmp_path}'?"
    assert nearby(tmp_path / "petz", []) == f" Did you mean 'pets' in '{tmp_path}'?"
    assert nearby(tmp_path / "zebra.tree", [".json"]) == ""
    assert nearby(tmp_path / "none" / "dogs.json", [".json"]) == f" There is no folder '{tmp_path / 'none'}'."
    monkeypatch.chdir(tmp_path)
    assert nearby("dog.txt", [".txt"]) == " Did you mean 'dogs.txt'?"
