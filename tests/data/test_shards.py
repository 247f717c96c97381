"""Shards: every sample is found where it lies, by one read, in any process; a flaw of the file is named."""

import io
import json
import multiprocessing
import os
import re
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import pytest
from helpers.shard_files import image_bytes, samples, write_shard
from hypothesis import given, settings
from hypothesis import strategies as st

from hlnet.data import shards
from hlnet.data.shards import index_shard
from hlnet.errors import DataError

KEYS = st.tuples(
    st.sampled_from(["", "a b/", "a.b/c/", "x" * 95 + "/"]), st.text("aZ09-_é", min_size=1, max_size=8)
).map("".join)
NO_SAMPLES = [("__info__", b"1"), ("__x__/1.jpg", b"1"), ("LICENSE", b"free"), ("a/.hidden.jpg", b"1")]
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
WHOLE = samples("cat", "dog", "cat")
END = len(WHOLE) * 1024  # a block for each header and one for each content; then comes the end mark


@st.composite
def archives(draw):
    """(key, name, content) of files in a tar, in any order; those of an image have its content."""
    content = st.binary(max_size=600) | st.just(bytes(1024))
    files = [("", *draw(st.sampled_from(NO_SAMPLES)))]
    for key in draw(st.lists(KEYS, min_size=1, max_size=5, unique=True)):
        field = draw(st.sampled_from(["jpg", "PNG", "webp", "jpeg"]))
        files += [(key, f"{key}.{field}", draw(content)), (key, f"{key}.cls", f" {key}\n".encode())]
        files += [(key, f"{key}.{other}", draw(content)) for other in draw(st.sets(st.sampled_from(["txt", "a.png"])))]
    return draw(st.permutations(files))


@settings(max_examples=60, deadline=None)
@given(files=archives(), format=st.sampled_from(FORMATS))
def test_every_image_is_found(files, format):
    with tempfile.TemporaryDirectory() as folder:
        shard = index_shard(write_shard(Path(folder) / "0.tar", [file[1:] for file in files], format))
        found = {
            label: (name, shard.image(i))
            for i, (name, label) in enumerate(zip(shard.members, shard.labels, strict=True))
        }
    image = re.compile(r"[^.]*[.](jpg|PNG|webp|jpeg)")
    expected = {
        key.strip(): (name, content) for key, name, content in files if key and image.fullmatch(name.rpartition("/")[2])
    }
    assert found == expected
    assert list(found) == [key.strip() for key in dict.fromkeys(key for key, *_ in files if key)]


def test_grouping_is_webdatasets(tmp_path):
    tariterators = pytest.importorskip("webdataset.tariterators")
    files = [*WHOLE, ("a.b/c.d.PNG", b"1"), ("a.b/c.jpg", b"2"), ("a.b/c.cls", b"3"), ("__x__/1.jpg", b""), ("b", b"")]
    path = write_shard(tmp_path / "0.tar", files)
    theirs = list(tariterators.tarfile_to_samples()([{"url": str(path)}]))
    shard = index_shard(path)
    ours = [
        (name.rpartition(".")[0], label, shard.image(i))
        for i, (name, label) in enumerate(zip(shard.members, shard.labels, strict=True))
    ]
    assert ours == [(s["__key__"], s["cls"].decode(), s.get("jpg", s.get("png"))) for s in theirs]


@pytest.mark.parametrize("cut", range(0, END + 1, 96))
def test_a_cut_shard_is_never_taken_for_a_whole_one(tmp_path, cut):
    path = write_shard(tmp_path / "0.tar", WHOLE)
    whole = path.read_bytes()
    assert not any(whole[END:])
    path.write_bytes(whole[:cut])
    with pytest.raises(DataError, match=r"^shard '.*0\.tar' is damaged or cut short after [^\n]*$") as error:
        index_shard(path)
    headers = [name for name, _ in WHOLE if whole.index(name.encode()) + 512 <= cut]
    assert not headers or f"after '{headers[-1]}'" in str(error.value)


@pytest.mark.parametrize("place", [0, 1, 2, 5])
def test_a_damaged_header_is_named(tmp_path, place):
    path = write_shard(tmp_path / "0.tar", WHOLE)
    content = bytearray(path.read_bytes())
    content[place * 1024 + 3] ^= 1  # each member is one block and its header
    path.write_bytes(content)
    after = f"'{WHOLE[place - 1][0]}'" if place else "its beginning"
    with pytest.raises(DataError, match=rf"0\.tar' is damaged or cut short after {after}"):
        index_shard(path)


JSON = [("1.jpg", b""), ("1.json", b"[7]")]
CLS = [("1.jpg", b""), ("1.cls", b"cat")]


@pytest.mark.parametrize(
    ("files", "field", "match"),
    [
        ([("1.jpg", b"")], "", r"^sample '1' of shard '.*0.tar' has no label: expected a file .cls or .json"),
        (
            [("a/1.cls", b"cat"), ("a/1.gif", b"")],
            "",
            r"^sample 'a/1' of .* no image: .*, \.webp, .* found \.cls, \.gif$",
        ),
        ([("1.jpg", b""), ("1.cls", b" \n")], "", r"no label: .* in its \.cls$"),
        ([("1.jpg", b""), ("1.cls", b"\xff")], "", r"no label: .* in its \.cls$"),
        (JSON, "", r"no label: .* entry cls or label or class of its \.json$"),
        ([JSON[0], ("1.json", b'{"label": true}')], "", "one class, by number or name"),
        ([JSON[0], ("1.json", b'{"label": [1, 2]}')], "", "one class, by number or name"),
        ([JSON[0], ("1.json", b"[" * 100_000)], "", "one class, by number or name"),
        (CLS, "real", r"expected a file \.json"),
        ([*CLS, ("1.json", b'{"label": 3}')], "real", r"entry real of its \.json$"),
        ([*CLS, *CLS], "", r"'1\.jpg' is twice in shard"),
    ],
)
def test_incomplete_samples_are_named(tmp_path, files, field, match):
    with pytest.raises(DataError, match=match) as error:
        index_shard(write_shard(tmp_path / "0.tar", files), field)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("entries", "field", "label"),
    [
        ({"label": 3}, "", "cat"),
        ({"label": 3, "real": 5}, "real", "5"),
        ({"real": " newt "}, "real", "newt"),
    ],
)
def test_a_label_is_from_cls_unless_a_field_is_named(tmp_path, entries, field, label):
    path = write_shard(tmp_path / "0.tar", [*CLS, ("1.json", json.dumps(entries).encode())])
    assert index_shard(path, field).labels == (label,)


@pytest.mark.parametrize("entries", [{"label": 3, "class": 4}, {"cls": 3, "label": 4}, {"class": "3"}])
def test_a_label_may_be_in_json(tmp_path, entries):
    path = write_shard(tmp_path / "0.tar", [CLS[0], ("1.json", json.dumps(entries).encode())])
    assert index_shard(path).labels == ("3",)


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_shards_are_refused(tmp_path, mode):
    with tarfile.open(tmp_path / "0.tar", mode) as archive:
        archive.addfile(tarfile.TarInfo("1.jpg"))
    tool = {"w:gz": "gunzip", "w:bz2": "bunzip2", "w:xz": "unxz"}[mode]
    with pytest.raises(DataError, match=f"0.tar' is compressed, .*; {tool} it first"):
        index_shard(tmp_path / "0.tar")


def test_a_missing_shard_is_named(tmp_path):
    for path in (tmp_path / "none.tar", tmp_path):
        with pytest.raises(DataError, match=f"shard '{path}' cannot be read"):
            index_shard(path)


def test_a_shard_is_walked_once(tmp_path, monkeypatch):
    path = write_shard(tmp_path / "0.tar", WHOLE)
    first = index_shard(path)
    assert index_shard(str(path)) is first
    os.utime(path, ns=(1, 1))
    assert index_shard(path) is not first and index_shard(path).labels == first.labels


def test_a_shard_that_changes_is_not_read_by_its_old_index(tmp_path):
    path = write_shard(tmp_path / "0.tar", WHOLE)
    before = index_shard(path)
    assert before.image(2) == WHOLE[4][1]
    path.rename(tmp_path / "old.tar")
    write_shard(path, [("0.png", b"other"), ("0.cls", b"cat")])
    assert index_shard(path).image(0) == b"other"
    assert before.image(2) == WHOLE[4][1]  # that file is still open
    shards._opened.cache_clear()
    with pytest.raises(DataError, match=r"0\.tar' has changed since it was indexed"):
        before.image(2)
    path.unlink()
    with pytest.raises(DataError, match=r"0\.tar' cannot be read: No such file"):
        before.image(2)


def test_a_shard_that_shrinks_is_noticed(tmp_path):
    path = write_shard(tmp_path / "0.tar", WHOLE)
    shard = index_shard(path)
    shard.image(0)
    os.truncate(path, 4 * 1024 + 520)
    assert shard.image(1) == WHOLE[2][1]
    with pytest.raises(DataError, match=r"0\.tar' ends too early"):
        shard.image(2)


def test_without_positioned_reads_the_same_is_read(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "pread")
    shard = index_shard(write_shard(tmp_path / "0.tar", WHOLE))
    assert [shard.image(i) for i in range(3)] == [content for name, content in WHOLE if name.endswith("png")]


@pytest.fixture
def twelve(tmp_path):
    """Twelve shards, and what is in each."""
    contents = [[image_bytes(20 * number + i) for i in range(3)] for number in range(12)]
    paths = [
        write_shard(
            tmp_path / f"{number}.tar",
            [(f"{i}.{f}", c) for i in range(3) for f, c in (("png", each[i]), ("cls", b"x"))],
        )
        for number, each in enumerate(contents)
    ]
    return [index_shard(path) for path in paths], contents


def right(found, contents, rounds=1):
    return [
        found[number].image(i) == contents[number][i] for _ in range(rounds) for number in range(12) for i in range(3)
    ]


def open_shards():
    links = (os.path.realpath(link) for link in Path("/proc/self/fd").iterdir())
    return sum(link.endswith(".tar") for link in links)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system does not tell which files are open")
def test_few_shards_stay_open(twelve, monkeypatch):
    before = open_shards()
    monkeypatch.setattr(shards, "_opened", lru_cache(maxsize=2)(shards._Opened))
    assert all(right(*twelve)) and open_shards() == before + 2


def test_threads_share_shards(twelve, monkeypatch):
    monkeypatch.setattr(shards, "_opened", lru_cache(maxsize=1)(shards._Opened))  # each closes the others' all the time
    with ThreadPoolExecutor(8) as pool:
        found = [future.result() for future in [pool.submit(right, *twelve, 20) for _ in range(8)]]
    assert all(map(all, found))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="the system cannot fork")
def test_forked_processes_share_open_shards(twelve):
    assert all(right(*twelve))  # open now
    with multiprocessing.get_context("fork").Pool(3) as pool:
        found = [each.get() for each in [pool.apply_async(right, (*twelve, 30)) for _ in range(3)]]
    assert all(map(all, found)) and all(right(*twelve))


def test_names_in_any_encoding_are_text(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        for name, content in (("é.jpg", b"1"), ("é.cls", b"cat"), ("è.jpg", b"2"), ("è.cls", b"dog")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    shard = index_shard(tmp_path / "0.tar")
    assert shard.labels == ("cat", "dog") and len({name.encode() for name in shard.members}) == 2
