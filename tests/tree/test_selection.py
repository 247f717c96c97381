"""Selections: what each kind of term picks, and in which order of precedence."""

import itertools
import json
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlnet.errors import HlnetError, SelectionError, UsageError
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.io import tree_from_json
from hlnet.tree.selection import MOST_TEXTS, known_part, read_selections, select_classes

SHAPES = st.recursive(st.none(), lambda below: st.lists(below, min_size=1, max_size=4), max_leaves=12).filter(bool)
NESTED = {
    "animal": {
        "cat": {"tabby": 281, "tiger": 282, "siamese": 284},
        "dog": {"Yorkshire terrier": 187, "bull terrier": 181},
        "tench, Tinca tinca": 0,
    },
    "tool": {"cat": {"D9": 5}, "3": 7, "saw": 3},
    "wels": {"cat fish": 12, "wels": 13},
}
IDS = {"animal": "n1", "animal/cat": "n12", "animal/cat/tabby": "n123", "tool/saw": "siamese", "tool/cat": "n2 c"}
TREE = tree_from_json({"format": "hlnet.tree", "version": 1, "levels": 4, "tree": NESTED, "ids": IDS})
# positions: 0 tabby, 1 tiger, 2 siamese, 3 Yorkshire, 4 bull, 5 tench, 6 D9, 7 "3", 8 saw, 9 cat fish, 10 wels


@st.composite
def trees_and_terms(draw):
    """A random tree with terms for it, each with the positions that it means by plain prefix and range arithmetic."""
    names, indices = (f"n{i}" for i in itertools.count()), iter(draw(st.permutations(range(5, 65, 5))))

    def mapping(shape):
        return {next(names): mapping(below) if below else next(indices) for below in shape}

    nested, leaves = mapping(draw(SHAPES)), []

    def collect(below, above):
        for name, value in below.items():
            if isinstance(value, dict):
                collect(value, (*above, name))
            else:
                leaves.append(((*above, name), value))

    collect(nested, ())
    known = {}
    for parts, _ in leaves:
        for end in range(1, len(parts) + 1):
            path = "/".join(parts[:end])
            glob = f"{path[:-1]}[{path[-1]}]"
            under = {i for i, (other, _) in enumerate(leaves) if other[:end] == parts[:end]}
            known |= {path: under, parts[end - 1]: under, glob: under}
    for first, last in draw(st.lists(st.tuples(st.integers(0, 70), st.integers(0, 70)), max_size=4)):
        if inside := {i for i, (_, index) in enumerate(leaves) if first <= index <= last}:
            known[f"{first}-{last}"] = inside
    known |= {index: {i} for i, (_, index) in enumerate(leaves)} | {"*": set(range(len(leaves)))}
    terms = draw(st.lists(st.sampled_from(list(known)), min_size=1, max_size=5))
    return ClassTree.from_nested(nested), terms, known


@settings(max_examples=80, deadline=None)
@given(trees_and_terms())
def test_union_of_terms(case):
    tree, terms, known = case
    for term in terms:
        assert set(select_classes(tree, term)) == known[term]
    union = tuple(sorted(set().union(*(known[term] for term in terms))))
    assert select_classes(tree, terms) == select_classes(tree, iter(terms)) == union
    assert select_classes(tree, ", ".join(map(str, terms))) == union


@settings(max_examples=80, deadline=None)
@given(trees_and_terms(), st.data())
def test_minus_is_the_difference_of_sets(case, data):
    tree, terms, known = case
    taken = data.draw(st.lists(st.sampled_from(list(known)), min_size=1, max_size=3))
    terms = data.draw(st.sampled_from([terms, []]))
    everything = set(range(len(tree.leaves)))
    union = set().union(*(known[term] for term in terms)) if terms else everything
    written = data.draw(st.permutations([*map(str, terms), *(f"-{term}" for term in taken)]))
    forms = (written, ", ".join(written), " , ".join(written))
    if all(term.startswith("-") for term in written[1:]):
        forms += (" ".join(written),)
    barren = [term for term in taken if not union & known[term]]
    left = union.difference(*(known[term] for term in taken))
    for form in forms:
        if left and not barren:
            assert select_classes(tree, form) == tuple(sorted(left))
        else:
            with pytest.raises(SelectionError, match="nothing"):
                select_classes(tree, form)


NAMES = st.text("ab-, *@1", min_size=1, max_size=7).filter(lambda name: name == name.strip())


@settings(max_examples=200, deadline=None)
@given(st.lists(NAMES, min_size=2, max_size=6, unique=True))
def test_names_go_before_signs(names):
    """Whatever commas, blanks, hyphens and signs a class's name has, it is found, taken away, and listed in a file."""
    tree = ClassTree.parallel(names, levels=1)
    for position, name in enumerate(names):
        others = tuple(i for i in range(len(names)) if i != position)
        assert select_classes(tree, name) == select_classes(tree, [f" {name} "]) == (position,)
        for minus in {f"-{name}", f"- {name}"}.difference(names):
            assert select_classes(tree, minus) == select_classes(tree, [minus, *names]) == others


PICKS = {
    "class": ("tabby", {0}),
    "class id": ("n123", {0}),
    "inner id": ("n12", {0, 1, 2}),
    "id with a blank": ("n2 c", {6}),
    "class before id": ("siamese", {2}),
    "path of a class": ("animal/cat/tabby", {0}),
    "path": ("animal/cat", {0, 1, 2}),
    "path over uneven depth": ("animal", {0, 1, 2, 3, 4, 5}),
    "inner name": ("dog", {3, 4}),
    "class before inner node": ("wels", {10}),
    "comma in a name": ("tench, Tinca tinca", {5}),
    "blanks around": ("  tabby ", {0}),
    "class before index": ("3", {7}),
    "index": ("281", {0}),
    "index as a number": (281, {0}),
    "index zero": (0, {5}),
    "range": ("181-187", {3, 4}),
    "range with gaps": ("4-12", {6, 7, 9}),
    "range of one": ("282-282", {1}),
    "range over all": ("0-99999", set(range(11))),
    "range starting at a class's name": ("3-5", {6, 8}),
    "several": ("tabby, dog,13,,", {0, 3, 4, 10}),
    "repeats": ("tabby,281,animal/cat/tabby,n123", {0}),
    "list": (["tench, Tinca tinca", "D9", 12], {5, 6, 9}),
    "tuple of lists of terms": (("tabby,tiger", "saw"), {0, 1, 8}),
    "glob on names": ("*terrier", {3, 4}),
    "glob on one letter": ("t?ger", {1}),
    "glob on paths": ("animal/*", {0, 1, 2, 3, 4, 5}),
    "glob on inner paths": ("*/cat", {0, 1, 2, 6}),
    "glob on ids": ("n12*", {0, 1, 2}),
    "glob on a class and a node": ("wel*", {9, 10}),
    "glob on a set": ("t[ai]*r", {1}),
    "glob on a negated set": ("D[!0-8]", {6}),
    "glob on all": ("*", set(range(11))),
    "minus a node": ("animal -animal/dog", {0, 1, 2, 5}),
    "minus after a comma": ("animal,-animal/dog", {0, 1, 2, 5}),
    "minus after a comma and a blank": ("animal, -animal/dog", {0, 1, 2, 5}),
    "minus and a blank": ("animal - animal/dog", {0, 1, 2, 5}),
    "minus in a list": (["animal", "-dog"], {0, 1, 2, 5}),
    "all but": ("-animal", {6, 7, 8, 9, 10}),
    "all but several": ("-animal -tool", {9, 10}),
    "minus before what it is taken from": ("-dog,animal", {0, 1, 2, 5}),
    "a minus outlasts other terms": ("animal -dog,bull terrier", {0, 1, 2, 5}),
    "minus a class": ("animal/cat -tabby", {1, 2}),
    "minus an id": ("animal/cat -n123", {1, 2}),
    "minus an index": ("animal/cat -281", {1, 2}),
    "range minus an index": ("281-284 -282", {0, 2}),
    "range minus a range": ("0-300 -181-282", {2, 5, 6, 7, 8, 9, 10}),
    "index minus an index": ("*,281 -282", set(range(11)) - {1}),
    "range with blanks": ("281 - 284", {0, 1, 2}),
    "range with blanks among others": ("saw, 281 - 284 ,D9", {0, 1, 2, 6, 8}),
    "minus a range with blanks": ("* -281 - 284", set(range(3, 11))),
    "minus a glob": ("animal -*terrier", {0, 1, 2, 5}),
    "minus a name with a blank": ("animal -bull terrier", {0, 1, 2, 3, 5}),
    "minus a name with a comma": ("animal -tench, Tinca tinca", {0, 1, 2, 3, 4}),
    "a name with a comma among others": ("D9,tench, Tinca tinca,saw", {5, 6, 8}),
    "minus all of a node but one": ("-animal,-wels,-cat fish,-3,-saw", {6}),
}


@pytest.mark.parametrize("selection, positions", PICKS.values(), ids=PICKS.keys())
def test_picks(selection, positions):
    assert select_classes(TREE, selection) == tuple(sorted(positions))


REFUSED = {
    "unknown": ("taby", "'taby'.*Did you mean 'tabby'"),
    "misspelt inner node": ("anmal", "'animal'"),
    "unknown among others": ("tabby,quux", "'quux'"),
    "ambiguous": ("cat", "animal/cat.*tool/cat.*path"),
    "path in part": ("cat/tabby", "'cat/tabby'.*animal/cat/tabby"),
    "path with a slash too much": ("animal/", "animal"),
    "absent index": ("4", "'4'.*0-284"),
    "negative index": (-1, "-1"),
    "backwards": ("285-281", "backwards.*281-285"),
    "backwards by one": ("282-281", "backwards.*281-282"),
    "barren range": ("14-180", "'14-180'"),
    "barren glob": ("zebra*", r"zebra\*"),
    "glob in the wrong case": ("TABB*", r"TABB\*"),
    "endless number": ("1" * 5000, "111"),
    "no terms": ([], "empty"),
    "nothing": ("", "empty"),
    "blank": ("  ", "empty"),
    "commas": (" , ,", "empty"),
    "blank terms": (["", ","], "empty"),
    "minus what is unknown": ("animal -animal/dgo", "'animal/dgo'.*Did you mean 'animal/dog'"),
    "minus what is ambiguous": ("-cat", "animal/cat.*tool/cat.*path"),
    "minus an absent index": ("animal -4", "'4'.*0-284"),
    "minus what is not there": ("tool -animal/dog", "'-animal/dog' takes nothing away.*leave it out"),
    "minus what is not there, among others": ("animal -dog -saw", "'-saw' takes nothing away"),
    "minus a glob that is not there": ("tool -*terrier", "'-\\*terrier' takes nothing away"),
    "two indices and no range": ("281 -282", "'-282' takes nothing away"),
    "minus everything": ("animal -animal", "empty.*'-animal'.*take away less"),
    "minus everything by parts": ("dog -bull terrier -187", "empty: nothing is left after '-bull terrier', '-187'"),
    "all but all": ("-*", "empty.*nothing is left"),
    "minus alone": ("-", "minus stands alone"),
    "minus at the end": ("animal -", "minus stands alone"),
    "minus twice": ("animal --dog", "no class or node '-dog'"),
    "negative number": (["animal", -281], "-281.*'-281' as text"),
}


@pytest.mark.parametrize("selection, words", REFUSED.values(), ids=REFUSED.keys())
def test_refuses(selection, words):
    with pytest.raises(SelectionError, match=words) as caught:
        select_classes(TREE, selection)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize(
    "text, positions",
    [
        ("tabby\n", (0,)),
        ("# mine\n\n  dog  \n\t# more, of them\n13\n", (3, 4, 10)),
        ("tench, Tinca tinca\r\n*terrier\r\n", (3, 4, 5)),
        ("tabby,D9\n281-284", (0, 1, 2, 6)),
        ("\ufefftabby\n", (0,)),
        ("animal\n-dog\n", (0, 1, 2, 5)),
        ("-bull terrier\nanimal -animal/cat\n# -187", (3, 5)),
    ],
)
def test_file(tmp_path, text, positions):
    (tmp_path / "mine.txt").write_bytes(text.encode())
    assert select_classes(TREE, f"@{tmp_path / 'mine.txt'}") == positions
    assert select_classes(TREE, ["saw", f"@{tmp_path / 'mine.txt'}"]) == tuple(sorted({8, *positions}))


@pytest.mark.parametrize("selection", ["saw,@{}", "@{},saw", "saw, @{} ,3"])
def test_file_among_commas(tmp_path, selection):
    (tmp_path / "mine.txt").write_text("tabby\n")
    extra = {7} if selection.endswith("3") else set()
    assert select_classes(TREE, selection.format(tmp_path / "mine.txt")) == tuple(sorted({0, 8} | extra))


def test_minus_and_files(tmp_path):
    """A file's lines stand as if they were written in its place; after a minus, what they select as a whole goes."""
    (tmp_path / "no dogs.txt").write_text("animal\n-dog\n")
    (tmp_path / "less -dogs, cats.txt").write_text("-dog\n-animal/cat\n")
    some, less = f"@{tmp_path / 'no dogs.txt'}", f"@{tmp_path / 'less -dogs, cats.txt'}"
    for selection, found in {
        f"{some},bull terrier": (0, 1, 2, 5),
        f"-{some}": (3, 4, 6, 7, 8, 9, 10),
        f"animal -{some}": (3, 4),
        f"- {some}, tool/cat": None,
        less: (5, 6, 7, 8, 9, 10),
        f"animal,{less}": (5,),
        f"saw,-@{tmp_path / 'none.txt'}": None,
        f"animal -{less}": (0, 1, 2, 3, 4),
    }.items():
        if found is None:
            with pytest.raises(SelectionError, match=r"none\.txt|takes nothing away"):
                select_classes(TREE, selection)
        else:
            assert select_classes(TREE, selection) == found


def test_a_minus_in_a_name():
    tree = ClassTree.from_nested({"-a": ["x", "-x", "b -c"], "b": ["y", "z-1", "-", "-p, q"]})  # 0 x … 6 -p, q
    picks = {"-x": (1,), "-a": (0, 1, 2), "--a": (3, 4, 5, 6), "-a --x": (0, 2), "-a,--x,b -c": (0, 2), "b -c": (2,)}
    picks |= {"b -y": (4, 5, 6), "-a -b -c": (0, 1), "z-1": (4,), "b -z-1": (3, 5, 6), "-": (5,), "b --": (3, 4, 6)}
    picks |= {"y,-p, q": (3, 6), "b --p, q": (3, 4, 5)}
    assert {term: select_classes(tree, term) for term in picks} == picks


@pytest.mark.parametrize(
    "selection, told",
    [
        ("281-285", ["range '281-285': the tree lacks 2 of these 5 indices"]),
        ("0-10,saw", ["range '0-10': the tree lacks 7 of these 11 indices"]),
        ("animal -282-285", ["range '282-285': the tree lacks 2 of these 4 indices"]),
        ("281-282,animal,281", []),
    ],
)
def test_range_in_part_is_told(caplog, selection, told):
    with caplog.at_level("INFO", "hlnet"):
        select_classes(TREE, selection)
    assert caplog.messages == told


@pytest.mark.parametrize("line", ["@{}", "tabby,@{}", "@other.txt", "tabby\n  @{}"])
def test_file_cannot_name_a_file(tmp_path, line):
    path = tmp_path / "mine.txt"
    path.write_text(line.format(path))
    with pytest.raises(SelectionError, match="cannot name another"):
        select_classes(TREE, f"@{path}")


@pytest.mark.parametrize("content", [None, b"", b"\n# only a note\n", "été".encode("latin-1"), b"quux\n"])
def test_file_refused(tmp_path, content):
    path = tmp_path / "mine.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SelectionError, match="quux" if content == b"quux\n" else r"mine\.txt"):
        select_classes(TREE, f"@{path}")


@pytest.mark.parametrize("name", ["", ".", "no/such", "a\0b", "n" * 300])
def test_file_that_is_none(name):
    with pytest.raises(SelectionError, match="cannot be read"):
        select_classes(TREE, f"@{name}")


def test_class_with_an_at_sign(tmp_path):
    tree = ClassTree.from_nested(["@home", "work"])
    (tmp_path / "mine.txt").write_text("@home\n")
    assert select_classes(tree, "@home") == select_classes(tree, f"@{tmp_path / 'mine.txt'}") == (0,)


def test_path_before_inner_name():
    assert select_classes(ClassTree.from_nested({"wild": {"cat": ["lion"]}, "cat": ["tabby"]}), "cat") == (1,)


def test_id_of_two_classes_is_refused():
    with pytest.raises(HlnetError, match="n1"):
        select_classes(ClassTree.from_nested({"a": "n1", "b": "n1"}), "n1")


def test_expert_keeps_original_indices():
    expert = TREE.prune([1, 4, 8])
    assert [select_classes(expert, term) for term in ("282", "181-281", "cat", "3")] == [(0,), (1,), (0,), (2,)]
    with pytest.raises(SelectionError):
        select_classes(expert, "tabby")


def test_one_class():
    tree = ClassTree.parallel(["cat"])
    assert [select_classes(tree, term) for term in ("cat", "0", 0, "0-9", "c*", "[bc]at")] == [(0,)] * 6


def test_ten_thousand_classes():
    tree = ClassTree.from_nested({f"g{g}": {f"c{g}.{c}": 100 * g + c for c in range(100)} for g in range(100)}, 3)
    assert select_classes(tree, "g7,5000-5009,c9.9*,c99.99,42") == tuple(
        sorted({*range(700, 800), *range(5000, 5010), 909, *range(990, 1000), 9999, 42})
    )
    assert select_classes(tree, [leaf.name for leaf in tree.leaves]) == tuple(range(10000))
    with pytest.raises(SelectionError, match=r"Did you mean 'c5\.11'"):
        select_classes(tree, "c5.1111")


# ---------------------------------------------------------------------- several, from a file


SEVERAL = {
    "cats": "tabby,tiger",
    "tools": ["saw", "D9"],
    "one": 281,
    "comma": ["tench, Tinca tinca"],
    "mixed": [3, "dog"],
}
FOUND = {"cats": (0, 1), "tools": (6, 8), "one": (0,), "comma": (5,), "mixed": (3, 4, 8)}


@pytest.mark.parametrize(
    "name, text",
    [
        ("groups.json", json.dumps(SEVERAL)),
        ("groups.yaml", json.dumps(SEVERAL, indent=2)),
        (
            "groups.yml",
            "\ufeff# mine\ncats: tabby,tiger\ntools: [saw, D9]\none: 281\n"
            "comma:\n- tench, Tinca tinca\nmixed:\n- 3\n- dog\n",
        ),
    ],
)
def test_several(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    for where in (path, str(path)):
        found = read_selections(where, TREE)
        assert found == FOUND and list(found) == list(FOUND)


def test_several_name_files_and_ranges(tmp_path):
    (tmp_path / "mine.txt").write_text("tabby\nD9\n")
    (tmp_path / "groups.yaml").write_text(f"file: '@{tmp_path / 'mine.txt'}'\nrange: 281-282\nall: '*'\n7: [saw]\n")
    found = read_selections(tmp_path / "groups.yaml", TREE)
    assert found == {"file": (0, 6), "range": (0, 1), "all": tuple(range(11)), "7": (8,)}


def test_several_with_minus(tmp_path):
    """A number is an original index, with a minus too; as text it may be a class's name."""
    text = "a: animal -dog\nb: -animal\nc: -281\nd: [animal/cat, -281]\ne:\n- tool\n- -3\nf: [tool, '-3']\n"
    (tmp_path / "groups.yaml").write_text(text)
    first = {"a": (0, 1, 2, 5), "b": (6, 7, 8, 9, 10), "c": tuple(range(1, 11)), "d": (1, 2)}
    assert read_selections(tmp_path / "groups.yaml", TREE) == first | {"e": (6, 7), "f": (6, 8)}


@pytest.mark.parametrize("name", ["no", "on", "010", "1.0", "12:30", "2024-01-01"])
def test_names_stay_as_written(tmp_path, name):
    """As in tree files: neither a selection's name nor a class's is taken for a truth value, an octal or a date."""
    tree = ClassTree.from_nested({"a": ["x"], "b": [name]})
    (tmp_path / "groups.yaml").write_text(f"{name}: x\nlisted: [{name}]\nalone: {name}\n")
    assert read_selections(tmp_path / "groups.yaml", tree) == {name: (0,), "listed": (1,), "alone": (1,)}


NO_MAPPING = {
    "empty": "",
    "only a note": "# nothing\n",
    "list": "[tabby, saw]",
    "text": "tabby",
    "empty mapping": "{}",
    "cut": '{"cats": ["tabby"',
    "no value": "cats:\n",
    "mapping": "cats: {a: tabby}",
    "list of lists": "cats: [[tabby], saw]",
    "cycle": "cats: &x [*x]",
    "list as a name": "? [a, b]\n: tabby\n",
    "truth value": "cats: [!!bool true]",
    "doubled name": "cats: tabby\ndogs: dog\ncats: tiger\n",
    "deep": "cats: " + "[" * 3000 + "]" * 3000,
    "not UTF-8": "cats: été".encode("latin-1"),
    "foreign tag": "cats: !!python/object/apply:os.getcwd []",
}


@pytest.mark.parametrize("text", NO_MAPPING.values(), ids=NO_MAPPING.keys())
def test_files_that_hold_no_selections(tmp_path, text):
    path = tmp_path / "groups.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=r"groups\.yaml") as caught:
        read_selections(path, TREE)
    assert not isinstance(caught.value, SelectionError) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no/such.yaml", ".", "a\0b"])
def test_selections_that_cannot_be_read(tmp_path, name):
    with pytest.raises(UsageError, match=r"the file of selections .* cannot be read"):
        read_selections(f"{tmp_path}/{name}", TREE)


@pytest.mark.parametrize(
    "text, words",
    [
        ("cats: tabby\ndogs: [dog, taby]", r"groups\.yaml', 'dogs': .*'taby'.*Did you mean 'tabby'"),
        ("cats: []", r"'cats': the selection is empty"),
        ("cats: ''", r"'cats': the selection is empty"),
        ("cats: 4", r"'cats': .*'4'"),
        ("cats: cat", r"'cats': .*several nodes"),
        ("cats: '@no.txt'", r"'cats': .*no\.txt"),
    ],
)
def test_selection_of_several_that_finds_nothing(tmp_path, text, words):
    (tmp_path / "groups.yaml").write_text(text)
    with pytest.raises(SelectionError, match=words) as caught:
        read_selections(tmp_path / "groups.yaml", TREE)
    assert "\n" not in str(caught.value)


def test_whole_numbers_of_any_library():
    assert select_classes(TREE, np.int64(281)) == select_classes(TREE, [np.int64(281)]) == select_classes(TREE, 281)
    for wrong in (True, 1.0, None, [1.5], [None], [True]):
        with pytest.raises(SelectionError):
            select_classes(TREE, wrong)


@pytest.mark.parametrize(
    "text, part",
    [
        ("cat", "cat"),
        ("cat,dog", "cat"),
        ("unknown", ""),
        ("cat -tabby,dog", "cat,-tabby"),
        ("dog -tabby", ""),
        ("*a*,dog", "*a*"),
        ("281-285,dog", "281-285"),
        ("tench, Tinca tinca,dog", "tench, Tinca tinca"),
    ],
)
def test_what_a_tree_knows_of_a_selection(text, part):
    tree = ClassTree.from_nested({"cat": {"tabby": 281, "siamese": 284}, "tench, Tinca tinca": 0})
    assert known_part(tree, text) == part
    assert not part or select_classes(tree, part)


def test_texts_are_looked_up_once_but_files_each_time(tmp_path, caplog):
    tree = ClassTree.from_nested({"cat": {"tabby": 281, "siamese": 284}, "saw": 491})
    with caplog.at_level(logging.INFO, "hlnet"):
        for _ in range(3):
            assert select_classes(tree, "280-290") == (0, 1)
    assert len(caplog.messages) == 1
    for name in ("tabby", "saw"):
        (tmp_path / "wanted").write_text(name)
        assert select_classes(tree, f"@{tmp_path}/wanted") == (tree.classes.index(name),)
    for number in range(MOST_TEXTS + 100):
        select_classes(tree, f"0-{500 + number}")
    assert len(tree.__dict__["_selector"].texts) <= MOST_TEXTS
