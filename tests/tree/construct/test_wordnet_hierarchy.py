"""Hierarchies out of WordNet: each rule with a tiny dictionary."""

import pytest
from helpers import wordnet_files

from hlnet.errors import UsageError
from hlnet.tree.construct.wordnet import wordnet_hierarchy

tiny = wordnet_files.tiny


def hierarchy(tiny, *terms):
    """The tree, as nested mappings, and the notes."""
    found, notes = wordnet_hierarchy(terms, tiny[0])
    assert all("\n" not in note for note in notes)
    assert [leaf.index for leaf in sorted(found.leaves(), key=lambda leaf: leaf.index)] == list(range(len(terms)))
    return found.to_tree().to_nested(), notes


def ids_by_name(tiny, *terms):
    return {leaf.name: leaf.id for leaf in wordnet_hierarchy(terms, tiny[0])[0].leaves()}


def test_ids_and_names_mix(tiny):
    ids = tiny[1]
    terms = [ids["pelican"], "Heron", f"{ids['bulldozer'][1:]}-n", "lorry, truck", "no such thing, puppy"]
    found, notes = wordnet_hierarchy(terms, tiny[0], indices=[7, 5, 3, 1, 9])
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
    tree, notes = hierarchy(tiny, "beagle", "carnivore", "domestic animal")
    assert tree == {"carnivore": {"beagle": 0, "carnivore": 1}, "domestic animal": 2}
    assert f"'dog' ({tiny[1]['dog']}): under 'canine' rather than 'domestic animal'" in notes


def test_several_parents_of_equal_depth(tiny):
    tree, notes = hierarchy(tiny, "trolley", "lorry", "container")
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
    found, notes = wordnet_hierarchy([*others, "crane"], tiny[0])
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
    found, notes = wordnet_hierarchy(["crane, Hart Crane", "bulldozer"], tiny[0])
    assert found.leaves()[0].id == tiny[1]["crane poet"]
    assert notes == [f"'crane, Hart Crane': {tiny[1]['crane poet']}, of 3 senses those with most of its names"]


def test_missing_names(tiny):
    tree, notes = hierarchy(tiny, "police van", "lorries", "lorry", "qwert", "big police vans", "bulldozer", "asdf")
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
    assert hierarchy(tiny, "my domestic dog", "big-sea_birds", "seabird", "puppy") [0] == {
        "dog": {"my domestic dog": 0, "puppy": 3}, "seabird": {"big-sea_birds": 1, "seabird": 2}
    }  # fmt: skip


def test_missing_names_have_no_id(tiny):
    found = ids_by_name(tiny, "police van", "lorry", "qwert")
    assert found == {"police van": None, "lorry": tiny[1]["lorry"], "qwert": None}


@pytest.mark.parametrize("terms", [["dog", "beagle", "heron"], ["beagle", "dog", "heron"]])
def test_class_above_another(tiny, terms):
    tree, notes = hierarchy(tiny, *terms)
    assert tree == {"dog": {name: terms.index(name) for name in ("dog", "beagle")}, "heron": 2}
    assert f"'dog' ({tiny[1]['dog']}): has classes below it, and is a leaf beside them" in notes
    assert ids_by_name(tiny, *terms)["dog"] == tiny[1]["dog"]


def test_class_that_is_the_trunk(tiny):
    assert hierarchy(tiny, "puppy", "dog", "beagle")[0] == {"puppy": 0, "dog": 1, "beagle": 2}


def test_one_synset_twice(tiny):
    ids = tiny[1]
    assert ids_by_name(tiny, "domestic dog", "dog", "heron") == {
        "domestic dog": ids["dog"], "dog": None, "heron": ids["heron"]
    }  # fmt: skip
    tree, notes = hierarchy(tiny, "Domestic Dog", ids["dog"], "heron")
    assert tree == {"dog": {"Domestic Dog": 0, "dog": 1}, "heron": 2}
    assert "'Domestic Dog': the same synset as '" + ids["dog"] + "'; it has no id" in notes
    with pytest.raises(UsageError, match=f"'{ids['dog']}' and '{ids['dog'][1:]}-n' are one synset"):
        hierarchy(tiny, ids["dog"], "heron", f"{ids['dog'][1:]}-n")


def test_ids_of_one_name(tiny):
    keys = ["crane bird", "crane machine", "maillot", "tank suit", "heron", "spring", "other spring"]
    ids = [tiny[1][key] for key in keys]
    found, notes = wordnet_hierarchy(ids, tiny[0])
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
    tree, notes = hierarchy(tiny, "dimmer", "toggle", "AC/DC", "lorry")
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
        wordnet_hierarchy(terms, tiny[0], indices)


@pytest.mark.parametrize("terms", [["heron"], ["heron", "qwert"], ["entity", "heron"], ["police van"]])
def test_few_classes(tiny, terms):
    assert set(ids_by_name(tiny, *terms)) == set(terms) and hierarchy(tiny, *terms)
