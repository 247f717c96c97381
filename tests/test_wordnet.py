"""Hierarchies out of WordNet: each rule with a tiny dictionary, and all of ImageNet with the real one where it is."""

import doctest
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hlnet.wordnet
from hlnet.errors import RunError, UsageError
from hlnet.wordnet import WordNet, wordnet_outline

HEADER = "  1 This stands for the licence, whose lines begin with two blanks.  \n"

#: key -> lemmas, then "@ parents" and "@i parents"; a lemma's senses are listed in this order, most frequent first.
TINY = {
    "entity": "entity",
    "living": "living_thing @ entity",
    "animal": "animal creature @ living",
    "domestic": "domestic_animal @ animal",
    "bird": "bird @ animal",
    "wader": "wading_bird @ bird",
    "crane machine": "crane @ lifter",  # before the bird: the most frequent sense
    "crane bird": "crane @ wader",
    "heron": "heron @ wader",
    "seabird": "seabird sea_bird @ bird",
    "pelican": "pelican @ seabird",
    "carnivore": "carnivore @ animal",
    "canine": "canine canid @ carnivore",
    "dog": "dog domestic_dog Canis_familiaris @ domestic canine",  # the second parent lies deeper
    "beagle": "beagle @ dog",
    "puppy": "puppy @ dog",
    "person": "person @ living",
    "poet": "poet @ person",
    "crane poet": "Crane Hart_Crane @i poet",
    "leader": "van vanguard @ person",
    "artifact": "artifact @ entity",
    "container": "container @ artifact",
    "vehicle": "vehicle @ artifact",
    "trolley": "trolley cart @ vehicle container",  # of equal depth; the first comes later in the file
    "van vehicle": "van @ vehicle",
    "lorry": "lorry @ vehicle",
    "machine": "machine @ artifact",
    "lifter": "lifting_device @ machine",
    "bulldozer": "bulldozer @ machine",
    "spring": "spring @ machine",
    "other spring": "spring @ machine",
    "washer": "washer disc @ machine",
    "other washer": "washer disc laundry_machine @ machine",
    "switch": "on/off_switch @ machine",
    "dimmer": "dimmer 24/7_dimmer @ switch",
    "toggle": "toggle @ switch",
    "suit": "swimsuit @ artifact",
    "maillot": "maillot @ suit",
    "tank suit": "maillot tank_suit @ suit",
}


def parse(text):
    lemmas, parents, symbol = [], [], None
    for word in text.split():
        if word.startswith("@"):
            symbol = word
        elif symbol:
            parents.append((symbol, word))
        else:
            lemmas.append(word)
    return lemmas, parents


def write(folder, synsets, exceptions="geese goose\n"):
    """Write a dictionary as wndb(5) describes it; the ids of its synsets by key."""

    def line(key, place):
        lemmas, parents = parse(synsets[key])
        words = " ".join(f"{lemma} 0" for lemma in lemmas)
        pointers = "".join(f" {symbol} {places.get(parent, 0):08} n 0000" for symbol, parent in parents)
        children = "".join(
            f" ~ {places.get(child, 0):08} n 0000"
            for child in synsets
            if key in [parent for _, parent in parse(synsets[child])[1]]
        )
        count = f"{len(parents) + children.count('~'):03}"
        text = (
            f'{place:08} 03 n {len(lemmas):02x} {words} {count}{pointers}{children} | what {key} means; "an @ example"'
        )
        return text + "  \n"

    places = {}
    for _ in range(2):  # a line's length does not hang on the numbers in it, so the second round is right
        data = HEADER
        for key in synsets:
            places[key] = len(data.encode())
            data += line(key, places[key])
    senses = {}
    for key, text in synsets.items():
        for lemma in parse(text)[0]:
            senses.setdefault(lemma.lower(), []).append(places[key])
    index = HEADER + "".join(
        f"{lemma} n {len(found)} 1 @ {len(found)} 0 {' '.join(f'{place:08}' for place in found)}  \n"
        for lemma, found in sorted(senses.items())
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {"data.noun": data, "index.noun": index, "noun.exc": exceptions}.items():
        (folder / name).write_bytes(content.encode())
    return {key: f"n{place:08}" for key, place in places.items()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wordnet")
    ids = write(folder, TINY)
    return WordNet(folder), ids


def outline(tiny, *terms):
    """The tree, as nested mappings, and the notes."""
    found, notes = wordnet_outline(terms, tiny[0])
    assert all("\n" not in note for note in notes)
    assert [leaf.index for leaf in sorted(found.leaves(), key=lambda leaf: leaf.index)] == list(range(len(terms)))
    return found.to_tree().to_nested(), notes


def ids_by_name(tiny, *terms):
    return {leaf.name: leaf.id for leaf in wordnet_outline(terms, tiny[0])[0].leaves()}


# ---------------------------------------------------------------------- the dictionary


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
    for call in (tiny[0].id, tiny[0].lemmas, tiny[0].chain, lambda text: wordnet_outline([text], tiny[0])):
        with pytest.raises(UsageError, match=text):
            call(text)


def test_searches_its_places(tmp_path, monkeypatch):
    import nltk.data

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "data")])
    monkeypatch.setattr(hlnet.wordnet, "SHARED", (str(tmp_path / "share"),))
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
        wordnet_outline(["beagle", "heron"], WordNet(folder))
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
    code = "import sys, hlnet.wordnet; sys.exit('nltk' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---------------------------------------------------------------------- the rules


def test_ids_and_names_mix(tiny):
    ids = tiny[1]
    terms = [ids["pelican"], "Heron", f"{ids['bulldozer'][1:]}-n", "lorry, truck", "no such thing, puppy"]
    found, notes = wordnet_outline(terms, tiny[0], indices=[7, 5, 3, 1, 9])
    assert found.to_tree().to_nested() == {
        "animal": {"bird": {"pelican": 7, "Heron": 5}, "no such thing, puppy": 9},
        "artifact": {"bulldozer": 3, "lorry, truck": 1},
    }
    assert {node.name: node.id for node in found.walk()} == {
        "": None, "animal": ids["animal"], "bird": ids["bird"], "pelican": ids["pelican"], "Heron": ids["heron"],
        "no such thing, puppy": ids["puppy"], "artifact": ids["artifact"], "bulldozer": ids["bulldozer"],
        "lorry, truck": ids["lorry"],
    }  # fmt: skip
    assert notes[0] == "'no such thing, puppy': found as 'puppy'"


def test_several_parents(tiny):
    tree, notes = outline(tiny, "beagle", "carnivore", "domestic animal")
    assert tree == {"carnivore": {"beagle": 0, "carnivore": 1}, "domestic animal": 2}
    assert f"'dog' ({tiny[1]['dog']}): under 'canine' rather than 'domestic animal'" in notes


def test_several_parents_of_equal_depth(tiny):
    tree, notes = outline(tiny, "trolley", "lorry", "container")
    assert tree == {"vehicle": {"trolley": 0, "lorry": 1}, "container": 2}
    assert notes == [f"'trolley' ({tiny[1]['trolley']}): under 'vehicle' rather than 'container'"]


@pytest.mark.parametrize(
    "others, sense, why",
    [
        (["pelican"], "bird", "nearest to the other classes"),
        (["bulldozer"], "machine", "nearest to the other classes"),
        (["poet"], "poet", "nearest to the other classes"),
        (["pelican", "heron", "bulldozer"], "bird", "nearest to the other classes"),
        (["lorry", "container", "pelican"], "bird", "nearest to the other classes"),  # 6 shared nodes to 5
        (["lorry", "container", "trolley", "pelican"], "machine", "most frequent of the nearest"),  # 7 to 7
        (["van"], "machine", "most frequent of the nearest"),
        (["beagle"], "bird", "nearest to the other classes"),
        (["entity"], "machine", "most frequent of the nearest"),
        (["xyzzy"], "machine", "most frequent of the nearest"),
    ],
)
def test_ambiguous_name(tiny, others, sense, why):
    synset = tiny[1][f"crane {sense}"]
    found, notes = wordnet_outline([*others, "crane"], tiny[0])
    assert {leaf.name: leaf.id for leaf in found.leaves()}["crane"] == synset
    assert f"'crane': {synset} (what crane {sense} means), of 3 senses the {why}" in notes


def test_mean_depth_by_hand(tiny):
    """The rule in its own words: the mean depth of the lowest common ancestors, for each sense."""
    wordnet = tiny[0]
    others = ["poet", "lorry", "toggle", "heron", "beagle"]

    def depth(sense, other):
        common = set(wordnet.chain(sense)) & set(wordnet.chain(other))
        return max(len(wordnet.chain(synset)) for synset in common)

    senses = wordnet.senses("crane")
    means = [sum(depth(sense, wordnet.senses(other)[0]) for other in others) / len(others) for sense in senses]
    assert len(set(means)) == 3
    assert ids_by_name(tiny, "crane", *others)["crane"] == senses[means.index(max(means))]


def test_other_names_tell_the_sense(tiny):
    found, notes = wordnet_outline(["crane, Hart Crane", "bulldozer"], tiny[0])
    assert found.leaves()[0].id == tiny[1]["crane poet"]
    assert notes == [f"'crane, Hart Crane': {tiny[1]['crane poet']}, of 3 senses those with most of its names"]


def test_missing_names(tiny):
    tree, notes = outline(tiny, "police van", "lorries", "lorry", "qwert", "big police vans", "bulldozer", "asdf")
    assert tree == {
        "vehicle": {"van": {"police van": 0, "big police vans": 4}, "lorry": {"lorries": 1, "lorry": 2}},
        "bulldozer": 5,
        "other": {"qwert": 3, "asdf": 6},
    }
    assert set(notes) >= {
        "'police van': not found; put below 'van'",
        "'lorries': found as 'lorry'",
        "'lorry': the same synset as 'lorries'; it has no id",
        "'big police vans': not found; put below 'van'",
        "'qwert': not found; put into the group 'other'",
        "'asdf': not found; put into the group 'other'",
    }
    assert any(note.startswith(f"'police van': {tiny[1]['van vehicle']}") for note in notes)
    assert outline(tiny, "my domestic dog", "big-sea_birds", "seabird", "puppy") [0] == {
        "dog": {"my domestic dog": 0, "puppy": 3}, "seabird": {"big-sea_birds": 1, "seabird": 2}
    }  # fmt: skip


def test_missing_names_have_no_id(tiny):
    found = ids_by_name(tiny, "police van", "lorry", "qwert")
    assert found == {"police van": None, "lorry": tiny[1]["lorry"], "qwert": None}


@pytest.mark.parametrize("terms", [["dog", "beagle", "heron"], ["beagle", "dog", "heron"]])
def test_class_above_another(tiny, terms):
    tree, notes = outline(tiny, *terms)
    assert tree == {"dog": {name: terms.index(name) for name in ("dog", "beagle")}, "heron": 2}
    assert f"'dog' ({tiny[1]['dog']}): has classes below it, and is a leaf beside them" in notes
    assert ids_by_name(tiny, *terms)["dog"] == tiny[1]["dog"]


def test_class_that_is_the_trunk(tiny):
    assert outline(tiny, "puppy", "dog", "beagle")[0] == {"puppy": 0, "dog": 1, "beagle": 2}


def test_one_synset_twice(tiny):
    ids = tiny[1]
    assert ids_by_name(tiny, "domestic dog", "dog", "heron") == {
        "domestic dog": ids["dog"], "dog": None, "heron": ids["heron"]
    }  # fmt: skip
    tree, notes = outline(tiny, "Domestic Dog", ids["dog"], "heron")
    assert tree == {"dog": {"Domestic Dog": 0, "dog": 1}, "heron": 2}
    assert "'Domestic Dog': the same synset as '" + ids["dog"] + "'; it has no id" in notes
    with pytest.raises(UsageError, match=f"'{ids['dog']}' and '{ids['dog'][1:]}-n' are one synset"):
        outline(tiny, ids["dog"], "heron", f"{ids['dog'][1:]}-n")


def test_ids_of_one_name(tiny):
    keys = ["crane bird", "crane machine", "maillot", "tank suit", "heron", "spring", "other spring"]
    ids = [tiny[1][key] for key in keys]
    found, notes = wordnet_outline(ids, tiny[0])
    names = {leaf.id: leaf.name for leaf in found.leaves()}
    assert [names[synset] for synset in ids] == [
        "crane (wading bird)", "crane (lifting device)", "maillot", "tank suit", "heron", "spring (machine)",
        f"spring ({ids[6]})",
    ]  # fmt: skip
    assert f"'{ids[1]}': named 'crane (lifting device)', as 2 classes are 'crane'" in notes
    assert f"'{ids[3]}': named 'tank suit', as 2 classes are 'maillot'" in notes
    assert not any("named 'maillot'" in note or "heron" in note for note in notes)


def test_first_id_keeps_its_name(tiny):
    first, second = (tiny[1][key] for key in ("washer", "other washer"))
    assert ids_by_name(tiny, first, second) == {"washer": first, "disc": second}
    assert ids_by_name(tiny, second, first) == {"washer": second, "disc": first}
    assert ids_by_name(tiny, first, second, "disc") == {"washer": first, "laundry machine": second, "disc": None}


def test_given_name_stays(tiny):
    """Even where the given name means the same synset as the id."""
    ids = tiny[1]
    found = ids_by_name(tiny, ids["crane bird"], "crane", "maillot", ids["tank suit"])
    assert found == {
        "crane (wading bird)": ids["crane bird"],
        "crane": None,
        "maillot": None,
        "tank suit": ids["tank suit"],
    }
    found = ids_by_name(tiny, ids["maillot"], ids["tank suit"], "tank suit")
    other = f"maillot ({ids['tank suit']})"
    assert found == {"maillot (swimsuit)": ids["maillot"], other: ids["tank suit"], "tank suit": None}


def test_slash(tiny):
    tree, notes = outline(tiny, "dimmer", "toggle", "AC/DC", "lorry")
    assert tree == {"on-off switch": {"dimmer": 0, "toggle": 1}, "lorry": 3, "other": {"AC-DC": 2}}
    assert "'AC/DC': named 'AC-DC', as '/' parts the names of a path" in notes
    assert f"'on/off switch' ({tiny[1]['switch']}): named 'on-off switch', as '/' parts the names of a path" in notes


@pytest.mark.parametrize(
    "terms, indices, words",
    [
        ([], None, "list of WordNet ids"),
        ("dog", None, "'dog'"),
        (["dog", " "], None, "empty name"),
        (["dog", ","], None, "empty name ','"),
        (["dog", "heron", "dog"], None, "'dog' is given twice"),
        (["a/b", "a-b", "dog"], None, "'a-b' is given twice"),
        (["qwert", "asdf"], None, "none of the 2 classes, such as 'qwert'"),
        (["dog", "heron"], [1], "1 indices for 2"),
    ],
)
def test_refuses(tiny, terms, indices, words):
    with pytest.raises(UsageError, match=words):
        wordnet_outline(terms, tiny[0], indices)


@pytest.mark.parametrize("terms", [["heron"], ["heron", "qwert"], ["entity", "heron"], ["police van"]])
def test_few_classes(tiny, terms):
    assert set(ids_by_name(tiny, *terms)) == set(terms) and outline(tiny, *terms)


# ---------------------------------------------------------------------- against a naive counterpart


def plain(data):
    """Synsets above each synset, out of data.noun's bytes alone."""
    above = {}
    for line in data.decode().split("\n"):
        if line and line[:2] != "  ":
            fields = line.split(" | ")[0].split()
            words = int(fields[3], 16)
            start = 4 + 2 * words + 1
            pointers = [fields[i : i + 4] for i in range(start, start + 4 * int(fields[start - 1]), 4)]
            above["n" + fields[0]] = ["n" + offset for symbol, offset, *_ in pointers if symbol in ("@", "@i")]
    return above


def ways(synset, above):
    """Every way from a root to the synset."""
    return [[*way, synset] for parent in above[synset] for way in ways(parent, above)] or [[synset]]


def check(found, classes, above):
    """That the outline is the contracted union of the classes' longest ways."""
    chains = {synset: max(ways(synset, above), key=len) for synset in classes}
    children = {}
    for chain in chains.values():
        for upper, lower in zip([None, *chain], [*chain, "the class itself"], strict=True):
            children.setdefault(upper, set()).add(lower)
    splits = {synset for synset, below in children.items() if len(below) > 1}
    top = next((synset for synset in chains[classes[0]] if synset in splits), None)
    inner = [node for node in found.walk() if node.children]
    expected = splits - {None if None not in splits else "no synset", top if None not in splits else None}
    assert found.id is None and {node.id for node in inner[1:]} == expected
    assert len(inner) == max(len(splits), 1) and (len(classes) == 1 or all(len(node.children) > 1 for node in inner))
    parents = {id(child): node for node in found.walk() for child in node.children}
    leaves = sorted(found.leaves(), key=lambda leaf: leaf.index)
    assert [leaf.id for leaf in leaves] == classes
    for leaf in leaves:
        way, node = [], leaf
        while (node := parents[id(node)]) is not found:
            way.append(node.id)
        rest = [synset for synset in chains[leaf.id] if synset in expected]
        assert way[::-1] == rest
    return len(inner)


@st.composite
def dictionaries(draw):
    count = draw(st.integers(1, 12))
    synsets = {}
    for number in range(count):
        names = [f"name{draw(st.integers(0, 5))}", *([f"extra_{number}"] if draw(st.booleans()) else [])]
        parents = draw(st.lists(st.integers(0, number - 1), max_size=3, unique=True)) if number else []
        symbols = [f"{draw(st.sampled_from(['@', '@i']))} key{parent}" for parent in parents]
        synsets[f"key{number}"] = " ".join([*names, *symbols])
    return synsets, draw(st.lists(st.integers(0, count - 1), min_size=1, unique=True))


@settings(max_examples=60, deadline=None)
@given(dictionaries())
def test_any_dictionary(tmp_path_factory, drawn):
    synsets, chosen = drawn
    folder = tmp_path_factory.mktemp("any")
    ids = write(folder, synsets)
    wordnet = WordNet(folder)
    classes = [ids[f"key{number}"] for number in chosen]
    found, notes = wordnet_outline(classes, wordnet)
    check(found, classes, plain((folder / "data.noun").read_bytes()))
    names = [leaf.name for leaf in found.leaves()]
    assert len(set(names)) == len(names) == len(found.to_tree().leaves)
    for leaf in found.leaves():
        first = wordnet.lemmas(leaf.id)[0]
        assert leaf.name == first or any(note.startswith(f"'{leaf.id}': named '{leaf.name}'") for note in notes)


# ---------------------------------------------------------------------- the real dictionary


@pytest.fixture(scope="module")
def real():
    try:
        wordnet = WordNet()
        assert wordnet.lemmas("n02123045") == ["tabby", "tabby cat"]
    except (UsageError, AssertionError):
        pytest.skip("no WordNet 3.0 on this machine; Debian's wordnet-base has it")
    return wordnet


def imagenet(name):
    from timm.data import ImageNetInfo

    return ImageNetInfo(name).label_names()


def data_of(wordnet):
    place = Path(wordnet.place)
    if place.parent.suffix == ".zip":
        return zipfile.ZipFile(place.parent).read("wordnet/data.noun")
    return (place / "data.noun").read_bytes()


def test_imagenet(real):
    ids = imagenet("imagenet-1k")
    found, notes = wordnet_outline(ids, real)
    # 375 groups with the trunk: also what others count for the longest ways.
    assert check(found, ids, plain(data_of(real))) == 375
    assert sum("named" in note for note in notes) == 3
    tree = found.to_tree()
    assert sorted(tree.indices) == list(range(1000)) and len(set(tree.classes)) == 1000
    assert {"crane (wading bird)", "crane (lifting device)", "maillot", "tank suit"} < set(tree.classes)


def test_whole_imagenet(real):
    ids = imagenet("imagenet-21k-goog")
    found, _ = wordnet_outline(ids, real)
    leaves = sorted(found.leaves(), key=lambda leaf: leaf.index)
    assert [leaf.id for leaf in leaves] == ids and len({leaf.name for leaf in leaves}) == len(ids) == 21843
    assert all(len(node.children) != 1 for node in found.walk())
    assert found.to_tree().counts[-1] == 21843


@pytest.mark.parametrize(
    "terms, ids",
    [
        (["crane", "albatross", "pelican"], ["n02012849", "n02058221", "n02051845"]),
        (["crane", "bulldozer"], ["n03126707", "n02916179"]),
        (["mouse, computer mouse", "keyboard, keypad"], ["n03793489", "n03614007"]),
        (["postal vans", "police vans", "wolves", "polar-bears"], [None, "n03977966", "n02114100", "n02134084"]),
    ],
)
def test_real_names(real, terms, ids):
    found, _ = wordnet_outline(terms, real)
    assert {leaf.name: leaf.id for leaf in found.leaves()} == dict(zip(terms, ids, strict=True))


def test_docstrings(real):
    """The examples, which are skipped elsewhere as not every machine has a dictionary."""
    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder().find(hlnet.wordnet, globs=vars(hlnet.wordnet).copy()):
        for example in test.examples:
            example.options.pop(doctest.SKIP, None)
        runner.run(test)
    assert runner.summarize().attempted >= 5 and not runner.summarize().failed
