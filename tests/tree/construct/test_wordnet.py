"""WordNet's dictionary: read with a tiny one, found in its places, refused where it is damaged, and downloaded."""

import doctest
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers import wordnet_files
from helpers.wordnet_files import TINY, write

import hlnet.tree.construct.wordnet
import hlnet.tree.dictionary
from hlnet.errors import RunError, UsageError
from hlnet.tree.construct.wordnet import wordnet_hierarchy
from hlnet.tree.dictionary import WordNet

real, tiny = wordnet_files.real, wordnet_files.tiny


def test_reads_synsets(tiny):
    wordnet, ids = tiny
    assert wordnet.id(f"{ids['dog'][1:]}-n") == wordnet.id(ids["dog"].upper()) == ids["dog"]
    assert wordnet.lemmas(ids["dog"]) == ["dog", "domestic dog", "Canis familiaris"]
    assert wordnet.definition(ids["dog"]) == "what dog means"
    assert wordnet.hypernyms(ids["dog"]) == (ids["domestic"], ids["canine"])
    assert wordnet.hypernyms(ids["crane poet"]) == (ids["poet"],) and wordnet.hypernyms(ids["entity"]) == ()
    assert wordnet.chain(ids["crane poet"]) == tuple(
        ids[key] for key in ("entity", "living", "person", "poet", "crane poet")
    )


def test_finds_names(tiny):
    wordnet, ids = tiny
    assert wordnet.senses("CRANE") == [ids[f"crane {which}"] for which in ("machine", "bird", "poet")]
    assert wordnet.senses("canis Familiaris") == wordnet.senses("Canis_familiaris") == [ids["dog"]]
    assert wordnet.senses("dogs") == wordnet.senses("") == wordnet.senses("sea-bird") == []
    forms = {"dogs": "dog", "domestic dogs": "domestic dog", "Sea-Birds": "sea bird", "dog": "dog"}
    assert {form: wordnet.base_form(form) for form in forms} == forms
    assert [wordnet.base_form(form) for form in ("geese", "dogss", "sea-dog", "")] == [None] * 4


def test_exceptions_file(tmp_path):
    write(tmp_path, {"goose": "goose"})
    assert WordNet(tmp_path).base_form("geese") == "goose"
    (tmp_path / "noun.exc").unlink()
    assert WordNet(tmp_path).base_form("geese") is None


@pytest.mark.parametrize("text", ["n00000000", "12345678-n", "n99999999"])
def test_refuses_unknown_id(tiny, text):
    for call in (tiny[0].id, tiny[0].lemmas, tiny[0].chain, lambda text: wordnet_hierarchy([text], tiny[0])):
        with pytest.raises(UsageError, match=text):
            call(text)


def test_searches_its_places(tmp_path, monkeypatch):
    import nltk.data

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "data")])
    monkeypatch.setattr(hlnet.tree.dictionary, "SHARED", (str(tmp_path / "share"),))
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path / "search"))
    monkeypatch.setenv("WNHOME", str(tmp_path / "home"))
    with pytest.raises(UsageError, match=r"wordnet-base.*folder of a dictionary.*download"):
        WordNet()
    (tmp_path / "data").mkdir()
    write(tmp_path / "zipped" / "wordnet", TINY)
    for place, inside in [
        ("share", "dict"),
        ("data", ""),
        ("data", "corpora/wordnet"),
        ("home", "dict"),
        ("search", ""),
    ]:
        if (place, inside) == ("data", ""):
            expected = tmp_path / "data" / "corpora" / "wordnet.zip"
            expected.parent.mkdir()
            pack(tmp_path / "zipped", expected)
        else:
            expected = tmp_path / place / inside
            write(expected, TINY)
        found = WordNet()
        assert Path(found.place) in {expected, expected / "wordnet"} and len(found.senses("crane")) == 3
    assert nltk.data.path == [str(tmp_path / "data")]


def pack(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*.*"):
            archive.write(file, file.relative_to(folder))


def test_given_folder(tmp_path):
    write(tmp_path / "dict", TINY)
    assert WordNet(str(tmp_path)).place == WordNet(tmp_path / "dict").place == str(tmp_path / "dict")


def test_reads_what_nltk_would_not(tmp_path):
    """Files that a group may write, in a folder that all may, and links: the user named them."""
    write(tmp_path / "real", TINY)
    folder = tmp_path / "named"
    folder.mkdir()
    for file in (tmp_path / "real").iterdir():
        file.chmod(0o666)
        (folder / file.name).symlink_to(file)
    folder.chmod(0o777)
    assert WordNet(folder).lemmas(WordNet(folder).senses("puppy")[0]) == ["puppy"]


def edit(old, new, name="data.noun"):
    def change(folder):
        content = (folder / name).read_bytes()
        assert old in content
        (folder / name).write_bytes(content.replace(old, new, 1))

    return change


DAMAGED = {
    "empty folder": (lambda folder: [file.unlink() for file in folder.iterdir()], "data.noun and index.noun"),
    "no index": (lambda folder: (folder / "index.noun").unlink(), "data.noun and index.noun"),
    "no data": (lambda folder: (folder / "data.noun").unlink(), "data.noun and index.noun"),
    "index a folder": (
        lambda folder: ((folder / "index.noun").unlink(), (folder / "index.noun").mkdir()),
        "index.noun",
    ),
    "empty data": (lambda folder: (folder / "data.noun").write_bytes(b""), "no synsets"),
    "garbage data": (lambda folder: (folder / "data.noun").write_bytes(bytes(range(256)) * 9), "data.noun"),
    "garbage index": (lambda folder: (folder / "index.noun").write_bytes(bytes(range(256)) * 9), "whole"),
    "garbage exceptions": (lambda folder: (folder / "noun.exc").write_bytes(b"\n\xff"), "whole"),
    "index cut": (edit(b"beagle n 1 1 @ 1 0", b"beagle n 1", "index.noun"), "whole"),
    "index astray": (edit(b"beagle n 1 1 @ 1 0 0", b"beagle n 1 1 @ 1 0 9", "index.noun"), "whole"),
    "empty index": (lambda folder: (folder / "index.noun").write_bytes(b""), "whole|has none"),
    "line ends": (edit(b"licence", b"licence\r"), "line ends"),
    "cut line": (edit(b" 03 n 01 beagle 0 ", b" 03 n 09 beagle 0 "), "whole"),
    "not UTF-8": (edit(b" beagle ", b" beagl\xe9 "), "whole"),
    "circle": (edit(b"entity 0 002 ~", b"entity 0 002 @"), "cycle"),
    "lost parent": (edit(b"beagle 0 001 @ 0", b"beagle 0 001 @ 9"), "n9"),
    "a file": (lambda folder: [file.unlink() for file in folder.iterdir()] + [folder.rmdir(), folder.touch()], "where"),
    "a bad zip file": (
        lambda folder: [file.unlink() for file in folder.iterdir()] + [folder.rmdir(), bad_zip(folder)],
        "where",
    ),
}


def bad_zip(path):
    path.write_bytes(b"PK\5\6" + b"\0\0\0\0\1\0\1\0" + b"\xff" * 8 + b"\0\0")
    assert zipfile.is_zipfile(path)


@pytest.mark.parametrize("change, words", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_dictionary(tmp_path, change, words):
    folder = tmp_path / "wordnet"
    write(folder, TINY)
    change(folder)
    with pytest.raises((UsageError, RunError), match=words) as caught:
        wordnet_hierarchy(["beagle", "heron"], WordNet(folder))
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert "nltk" not in str(caught.value).replace("nltk's", "").lower()


@pytest.mark.parametrize("folder", ["no/such", "n" * 300, "a\0b", "~nobody/x"])
def test_missing_folder(tmp_path, folder):
    with pytest.raises(UsageError, match="no WordNet dictionary in"):
        WordNet(tmp_path / folder)


def test_closed_places(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    for folder in (tmp_path, None):
        with pytest.raises(UsageError, match="no WordNet dictionary"):
            WordNet(folder)


def test_download_offline(monkeypatch, capsys):
    def no_name(*args, **kwargs):
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket, "getaddrinfo", no_name)
    monkeypatch.setattr(socket.socket, "connect", no_name)
    with pytest.raises(RunError, match=r"WordNet cannot be downloaded, .*[(]\w") as caught:
        WordNet.download()
    assert "\n" not in str(caught.value) and capsys.readouterr() == ("", "")


def test_download(tmp_path, monkeypatch):
    import nltk.data
    from nltk.downloader import Downloader

    def fetch(self, package, quiet, **options):
        assert package == "wordnet" and quiet
        write(tmp_path / "wordnet", TINY)
        (tmp_path / "data" / "corpora").mkdir(parents=True)
        with zipfile.ZipFile(tmp_path / "data" / "corpora" / "wordnet.zip", "w") as archive:
            for file in (tmp_path / "wordnet").iterdir():
                archive.write(file, f"wordnet/{file.name}")
        return True

    for name in ("WNSEARCHDIR", "WNHOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "data")])
    monkeypatch.setattr(Downloader, "download", fetch)
    WordNet.download()
    assert WordNet().senses("trolley") and "wordnet.zip" in WordNet().place


def test_nltk_comes_late():
    code = "import sys, hlnet.tree.construct.wordnet; sys.exit('nltk' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_docstrings(real):
    """The examples, which are skipped elsewhere as not every machine has a dictionary."""
    runner = doctest.DocTestRunner()
    modules = (hlnet.tree.construct.wordnet, hlnet.tree.dictionary)
    for test in [
        test for module in modules for test in doctest.DocTestFinder().find(module, globs=vars(module).copy())
    ]:
        for example in test.examples:
            example.options.pop(doctest.SKIP, None)
        runner.run(test)
    assert runner.summarize().attempted >= 5 and not runner.summarize().failed
