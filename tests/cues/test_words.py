"""Cues out of text: what words name, with a tiny dictionary, with none, and with the real one where it is."""

import logging
import re

import pytest
from helpers import wordnet_files
from hypothesis import given, settings
from hypothesis import strategies as st

import hlnet.cues.words
import hlnet.tree.dictionary
from hlnet.cues.words import cue_table, cues_from_text
from hlnet.errors import UsageError
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.io import read_tree
from hlnet.tree.selection import select_classes
from hlnet.tree.vocabulary import TreeWords, forms, plain

real, tiny = wordnet_files.real, wordnet_files.tiny

#: Ids of the tiny dictionary's synsets, by path.
IDS = {
    "fauna/waders/crane (bird)": "crane bird",
    "fauna/waders/heron": "heron",
    "fauna/pelican": "pelican",
    "fauna/hounds": "dog",
    "fauna/hounds/beagle": "beagle",
    "fauna/hounds/mutt": "dog",
    "machinery/crane (machine)": "crane machine",
    "machinery/bulldozer": "bulldozer",
    "machinery/vehicle": "vehicle",
    "machinery/vehicle/van": "van vehicle",
    "machinery/vehicle/cart": "trolley",
}
NESTED = {
    "fauna": {"waders": ["crane (bird)", "heron"], "pelican": {}, "hounds": ["beagle", "mutt"]},
    "machinery": {"crane (machine)": {}, "bulldozer": {}, "vehicle": ["van", "cart"]},
}
PLAIN = ClassTree.from_nested(NESTED)  # without ids
FIVE = ClassTree.from_nested(
    {"house cats": ["tabby", "tiger cat"], "trucks and vans": ["moving van", "lorry"], "saw": {}, "sea lion": {}}
)


@pytest.fixture(scope="module")
def known(tiny):
    """The tree with ids of the tiny dictionary, and that dictionary. Two nodes cannot share an id: mutt has none."""
    wordnet, ids = tiny
    told = {path: ids[key] for path, key in IDS.items() if path != "fauna/hounds/mutt"}
    return ClassTree.from_nested(NESTED).with_ids(told), wordnet


@pytest.fixture
def no_wordnet(monkeypatch):
    monkeypatch.setattr(hlnet.cues.words, "default_wordnet", lambda: None)


def said(text, tree, wordnet=None):
    return [cue.node for cue in cues_from_text(text, tree, wordnet=wordnet)]


# ---------------------------------------------------------------------- words


@pytest.mark.parametrize(
    "text, words",
    [
        ("sweet_pepper", "sweet pepper"),
        ("  The DOG's bow-wow!? ", "the dog bow wow"),
        ("a,b;c/d", "a b c d"),
        ("Straße été 7", "strasse été 7"),
        ("dogs’ lion’s", "dogs lion"),
        ("…", ""),
    ],
)
def test_plain(text, words):
    assert plain(text) == words


@pytest.mark.parametrize(
    "plural, word",
    [
        *[("cats", "cat"), ("buses", "bus"), ("wolves", "wolf"), ("knives", "knife"), ("ponies", "pony")],
        *[
            ("women", "woman"),
            ("house cats", "house cat"),
            ("dog", "dog"),
            ("horses", "horse"),
            ("beehives", "beehive"),
        ],
    ],
)
def test_forms(plural, word):
    assert word in forms(plural) and forms(plural)[0] == plural


# ---------------------------------------------------------------------- the tree's names and WordNet's


@pytest.mark.parametrize(
    "text, nodes",
    [
        # names
        ("heron", ["fauna/waders/heron"]),
        ("HERONS", ["fauna/waders/heron"]),
        ("two pelicans.", ["fauna/pelican"]),
        ("Waders and a vehicle", ["fauna/waders", "machinery/vehicle"]),
        ("crane", ["fauna/waders/crane (bird),machinery/crane (machine)"]),
        ("crane bird", ["fauna/waders/crane (bird)"]),
        # WordNet downwards
        ("wading bird", ["fauna/waders"]),
        ("wading birds", ["fauna/waders"]),
        ("birds", ["fauna/waders,fauna/pelican"]),
        ("canid", ["fauna/hounds"]),
        ("Canis familiaris", ["fauna/hounds"]),
        ("animal", ["fauna"]),
        ("lifting device", ["machinery/crane (machine)"]),
        # both senses of a word, but not the poet's
        ("van", ["machinery/vehicle/van"]),
        ("trolley", ["machinery/vehicle/cart"]),
        # a second parent: a trolley is a container, too
        ("container", ["machinery/vehicle/cart"]),
        # WordNet upwards
        ("lorries", ["machinery/vehicle"]),
        # twice the same, and one within the other
        ("heron heron herons", ["fauna/waders/heron"]),
        ("a bird, a heron", ["fauna/waders/heron"]),
        ("beagle dog canine", ["fauna/hounds/beagle"]),
        ("a heron, a bulldozer, an animal", ["fauna/waders/heron", "machinery/bulldozer"]),
        # nothing
        ("living things", ["fauna"]),
        ("entity", []),
        ("toggle", []),
        ("poet", []),
        ("swimsuit", []),
        ("the a an it 12 x", []),
        ("zzyzx", []),
    ],
)
def test_with_ids(known, text, nodes):
    tree, wordnet = known
    assert said(text, tree, wordnet) == nodes
    for node in nodes:
        assert 0 < len(select_classes(tree, node)) < len(tree.classes)


@pytest.mark.parametrize(
    "text, nodes",
    [
        ("trolley", ["machinery/vehicle/cart"]),  # by another name of its synset
        ("lorry", ["machinery/vehicle"]),  # a kind of one
        ("bird", []),  # no node is called so
        ("domestic dog", []),
        ("toggle", []),
        ("hound", ["fauna/hounds"]),
    ],
)
def test_without_ids(tiny, text, nodes):
    assert said(text, PLAIN, tiny[0]) == nodes


def test_longest_words_first(tiny):
    """A "wading bird" is no other bird; and of what WordNet knows as a whole, the parts do not count."""
    tree = ClassTree.from_nested({"wading bird": ["heron"], "bird": ["pelican"], "domestic": {}, "animal": {}})
    assert said("wading bird", tree, tiny[0]) == ["wading bird"]
    assert said("bird wading", tree, tiny[0]) == ["bird"]
    assert said("dog domestic animal", ClassTree.from_nested(["animal", "domestic", "x"]), tiny[0]) == ["animal"]


def test_a_node_of_which_most_is_what_it_is_called(tiny):
    """Of what the tree calls vehicles, WordNet knows a bulldozer to be none; the node stays whole."""
    wordnet, ids = tiny
    tree = ClassTree.from_nested({"vehicle": ["van", "cart", "bulldozer"], "saw": {}})
    tree = tree.with_ids({"van": ids["van vehicle"], "cart": ids["trolley"], "bulldozer": ids["bulldozer"]})
    assert said("lorry", tree, wordnet) == ["vehicle"]
    # But a name alone does not make a crane of birds one of machines.
    tree = ClassTree.from_nested({"lifting device": {"a": ids["heron"], "b": ids["pelican"]}, "c": {}})
    assert TreeWords(tree, wordnet).of_senses([ids["crane machine"]]) == set()


def test_further_senses_do_not_climb(tiny):
    """A van is a leader, too, but hardly meant so."""
    tree = ClassTree.from_nested({"person": ["poet"], "vehicle": ["cart"], "x": {}})
    assert said("spring crane van vanguard", tree, tiny[0]) == ["person"]  # vanguard has that sense alone
    words = TreeWords(tree, tiny[0])
    first = [words.senses(word)[0] for word in ("crane", "van")]
    assert first == [tiny[1]["crane machine"], tiny[1]["leader"]]
    assert words.senses("hart crane") == [tiny[1]["crane poet"]]


NAMES = [node for row in PLAIN.levels for node in row if not node.continued]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4), st.sampled_from([", ", " and ", "; the ", " / "]))
def test_any_names_together(nodes, between):
    """A text of names gives their nodes in order: each once, and none that holds another one."""
    tree = PLAIN
    sets = {}
    for node in nodes:
        bare = re.sub(r" \(.*\)", "", node.name)  # "crane"
        named = [other.path for other in NAMES if re.sub(r" \(.*\)", "", other.name) == bare]
        sets[frozenset(i for path in named for i in tree.leaves_under(path))] = None
    expected = [tuple(sorted(one)) for one in sets if not any(other < one for other in sets)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hlnet.cues.words, "default_wordnet", lambda: None)
        found = said(between.join(re.sub(r" \(.*\)", "", node.name) for node in nodes), tree)
    assert [select_classes(tree, node) for node in found] == expected


# ---------------------------------------------------------------------- without a dictionary


@pytest.mark.parametrize(
    "text, nodes",
    [
        ("meow", ["house cats"]),
        ("Meowing kitties!", ["house cats"]),
        ("purring, mewing", ["house cats"]),
        ("engine", ["trucks and vans"]),
        ("vans", ["trucks and vans"]),
        ("cat", ["house cats"]),
        ("lion", ["sea lion"]),
        ("roar", ["sea lion"]),
        ("dog", []),
        ("bark", []),
        ("I saw it", ["saw"]),
    ],
)
def test_names_and_table_alone(no_wordnet, text, nodes):
    assert said(text, FIVE) == nodes


def test_hint_where_there_is_no_dictionary(monkeypatch, tmp_path, caplog):
    import nltk.data

    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(hlnet.tree.dictionary, "SHARED", ())
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path))
    monkeypatch.delenv("WNHOME", raising=False)
    hlnet.cues.words.default_wordnet.cache_clear()
    with caplog.at_level(logging.INFO, "hlnet"):
        assert said("a tabby cat and a canine", FIVE) == ["house cats/tabby"]
        assert said("canines", FIVE) == []
    hlnet.cues.words.default_wordnet.cache_clear()
    hints = [message for message in caplog.messages if "no WordNet dictionary here" in message]
    assert len(hints) == 1 and "wordnet-base" in hints[0]


def test_a_name_alone_opens_no_dictionary(monkeypatch):
    monkeypatch.setattr(hlnet.cues.words, "default_wordnet", lambda: pytest.fail("opened"))
    assert said("Tabby", FIVE) == ["house cats/tabby"] and said("the tiger cat", FIVE) == ["house cats/tiger cat"]
    assert said("meow", FIVE) == ["house cats"]


def test_a_dictionary_that_is_given_does_not_stay(known, no_wordnet):
    tree, wordnet = known
    assert said("canid", tree, wordnet) == ["fauna/hounds"] and said("canid", tree) == []


def test_dictionary_of_another_version(known):
    """The table's ids are unknown to it, or mean other things; then the nouns' first senses count."""
    tree, wordnet = known
    assert said("puppy", tree, wordnet) == said("bark", tree, wordnet) == said("dog", tree, wordnet) == ["fauna/hounds"]
    assert said("moo", tree, wordnet) == []


# ---------------------------------------------------------------------- what is told, and refused


def test_what_is_told(no_wordnet, caplog):
    with caplog.at_level(logging.INFO, "hlnet"):
        cues_from_text("meowing in trucks", FIVE)
        assert cues_from_text("nothing here", FIVE) == []
    assert caplog.messages == ["'meowing' means house cats", "'trucks' means trucks and vans"]


def test_reliability(no_wordnet):
    assert [cue.reliability for cue in cues_from_text("tabby saw", FIVE, 0.8)] == [0.8, 0.8]
    assert cues_from_text("tabby", FIVE)[0].reliability is None
    for text in ("tabby", "nothing"):
        with pytest.raises(UsageError, match="reliability 1: it must lie between 0 and 1"):
            cues_from_text(text, FIVE, 1)


@pytest.mark.parametrize("text", ["", " \n", "?!", "'"])
def test_no_words(text):
    with pytest.raises(UsageError, match="has no words"):
        cues_from_text(text, FIVE)


def test_words_for_all_classes(no_wordnet, caplog):
    tree = ClassTree.from_nested({"object": {"cat": {}, "dog": {}}})
    with caplog.at_level(logging.INFO, "hlnet"):
        assert said("an object", tree) == [] and not caplog.text
    assert said("an object, a cat", tree) == ["object/cat"]


# ---------------------------------------------------------------------- the shipped table


def test_table():
    words = [word for thing in cue_table() for word in (*thing.sounds, *thing.words)]
    assert len(set(words)) > 150 and len({thing.synset for thing in cue_table()}) == len(cue_table()) > 60
    for thing in cue_table():
        assert thing.sounds or thing.words
        assert all(word == word.strip() and plain(word) for word in (*thing.nouns, *thing.sounds, *thing.words))
        assert len({*thing.sounds, *thing.words}) == len(thing.sounds) + len(thing.words)
    asked = "meow purr bark woof howl tweet chirp moo neigh oink baa croak ribbit roar engine siren kitty puppy"
    assert set(asked.split()) <= set(words)


def test_table_agrees_with_wordnet(real):
    """Each id is a sense of one of its nouns, and each of these is a noun of WordNet's."""
    for thing in cue_table():
        lemmas = [lemma.lower() for lemma in real.lemmas(thing.synset)]
        assert set(map(str.lower, thing.nouns)) & set(lemmas), thing
        assert all(real.senses(noun) for noun in thing.nouns), thing


#: What ImageNet's own numbering says: house cats are 281-285, cats 281-293, dogs 151-268, insects 300-326.
IMAGENET = {
    "meow": set(range(281, 286)),
    "Kitten": set(range(281, 286)),
    "feline": set(range(281, 294)),
    "a dog barks in the street": set(range(151, 269)),
    "woof": set(range(151, 269)),
    "insects": set(range(300, 327)),
    "poodle": {265, 266, 267},
    "a photo of poodles": {265, 266, 267},
    "birdsong": {*range(7, 25), *range(80, 101), *range(127, 147)},
    "crane": {134, 517},
    "mouse": {673},
    "hot dog": {934},
    "siren": {407, 555, 734},
    "oinking": {341},
    "the lion's roar": {291},
}


@pytest.mark.parametrize("text, indices", IMAGENET.items(), ids=IMAGENET.keys())
def test_imagenet(real, imagenet, text, indices):
    (node,) = said(text, imagenet, real)
    assert {imagenet.indices[i] for i in select_classes(imagenet, node)} == indices


@pytest.mark.parametrize("text", ["meow", "Kitten", "woof", "birdsong", "crane", "mouse", "hotdog"])
def test_imagenet_without_a_dictionary(no_wordnet, text):
    tree = read_tree("preset:imagenet1k")
    (node,) = said(text, tree)
    expected = IMAGENET["hot dog" if text == "hotdog" else text]
    assert {tree.indices[i] for i in select_classes(tree, node)} == expected


@pytest.fixture(scope="module")
def imagenet():
    return read_tree("preset:imagenet1k")


def test_imagenet_two_words(real, imagenet):
    assert said("a dog barks; meow", imagenet, real) == ["dog", "other mammal/house cats"]
    assert said("tree", imagenet, real) == said("a brown street", imagenet, real) == []
