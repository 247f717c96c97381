"""A tiny WordNet dictionary, written as wndb(5) describes such files, and the real one where it is."""

import pytest

from hlnet.errors import UsageError
from hlnet.tree.dictionary import WordNet

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


@pytest.fixture(scope="module")
def real():
    try:
        wordnet = WordNet()
        assert wordnet.lemmas("n02123045") == ["tabby", "tabby cat"]
    except (UsageError, AssertionError):
        pytest.skip("no WordNet 3.0 on this machine; Debian's wordnet-base has it")
    return wordnet
