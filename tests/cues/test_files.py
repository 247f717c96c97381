"""Cues as they are written: on the command line and in files."""

import json

import pytest

from hlnet.cues.cue import Cue
from hlnet.cues.files import make_cue, parse_cue, read_cues
from hlnet.errors import SelectionError, UsageError
from hlnet.tree.class_tree import ClassTree

TREE = ClassTree.from_nested(
    {"animal": {"cat": ["tabby", "siamese"], "tench, Tinca tinca": {}}, "tool": ["E=mc2", "x=2", "chain saw"]}
)


def cue(node, reliability=None, strength=None, mode=None):
    return Cue(node=node, reliability=reliability, strength=strength, mode=mode)


# ---------------------------------------------------------------------- one cue


@pytest.mark.parametrize(
    "text, found",
    [
        ("animal/cat", cue("animal/cat")),
        ("animal/cat=0.9", cue("animal/cat", 0.9)),
        (" animal/cat = .9 ", cue("animal/cat", 0.9)),
        ("tabby=9e-1", cue("tabby", 0.9)),
        ("tabby=x1.8", cue("tabby", strength=1.8, mode="gain")),
        ("tabby=*1.8", cue("tabby", strength=1.8, mode="gain")),
        ("tabby=×2", cue("tabby", strength=2, mode="gain")),
        ("tabby= x 0", cue("tabby", strength=0, mode="gain")),
        ("tabby=+2.5", cue("tabby", strength=2.5, mode="bias")),
        ("tabby=-2", cue("tabby", strength=-2, mode="bias")),
        ("chain saw=0.5", cue("chain saw", 0.5)),
        ("tabby, siamese=0.8", cue("tabby, siamese", 0.8)),
        ("animal -tabby=0.8", cue("animal -tabby", 0.8)),
        ("tench, Tinca tinca=0.8", cue("tench, Tinca tinca", 0.8)),
        ("E=mc2=0.7", cue("E=mc2", 0.7)),
        ("E=mc2=x3", cue("E=mc2", strength=3, mode="gain")),
    ],
)
def test_a_cue(text, found):
    assert parse_cue(text) == found and parse_cue(text, TREE) == found.on(TREE)


@pytest.mark.parametrize("text", ["E=mc2", "x=2", " tool/x=2 ", "tabby,E=mc2"])
def test_a_name_goes_before_a_sign(text):
    assert parse_cue(text, TREE) == cue(text.strip()).on(TREE)


@pytest.mark.parametrize(
    "text, told",
    [
        ("", "names no node"),
        ("=0.9", "names no node"),
        ("  = x2", "names no node"),
        ("tabby=", "'' is neither a reliability, such as =0.9, nor a strength"),
        ("tabby=high", "'high' is neither"),
        ("tabby=90%", "'90%' is neither"),
        ("tabby=x", "'x' is neither"),
        ("tabby=x-1", "'x-1' is neither"),
        ("tabby=0,9", "'0,9' is neither"),
        ("tabby=nan", "'nan' is neither"),
        ("tabby=1", "reliability 1: it must lie between 0 and 1.*hard"),
        ("tabby=0", "reliability 0: it must"),
        ("tabby=90", "reliability 90: it must"),
        ("tabby=x1e999", "strength inf: it must lie between"),
    ],
)
def test_what_is_no_cue(text, told):
    for tree in (TREE, None):
        with pytest.raises(UsageError, match=told) as caught:
            parse_cue(text, tree)
        assert "\n" not in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize(
    "text, told",
    [("taby=0.9", "Did you mean 'tabby'"), ("animal/cta", "Did you mean 'animal/cat'"), ("E=mc3=1e-2", "E=mc")],
)
def test_cue_on_nothing(text, told):
    with pytest.raises(SelectionError, match=told):
        parse_cue(text, TREE)


@pytest.mark.parametrize(
    "text, modes", [("cat=x1.8", {"gain", "scale"}), ("cat=+2", {"bias"}), ("cat=-2", {"bias"}), ("cat=0.9", None)]
)
def test_a_factor_is_no_shift(text, modes):
    for mode in ("gain", "bias", "scale"):
        if modes is None or mode in modes:
            said = mode if text != "cat=0.9" else None
            assert parse_cue(text, TREE, mode) == parse_cue(text).model_copy(update={"mode": said}).on(TREE)
        else:
            with pytest.raises(UsageError, match=rf"but a {mode} is a (shift, such as =\+2|factor, such as =x1.8)"):
                parse_cue(text, TREE, mode)


def test_reliability_replaces_strength():
    with pytest.raises(UsageError, match="both a reliability and a strength"):
        make_cue("cat", 0.9, 2.0)


# ---------------------------------------------------------------------- files


FOUND = {"cat/1.jpg": [cue("cat", 0.9), cue("chain saw", strength=-2.0)], "2.jpg": [cue("tench, Tinca tinca")]}
CSV = 'image,node,reliability,strength\ncat/1.jpg,cat,0.9,\n2.jpg,"tench, Tinca tinca"\ncat/1.jpg,chain saw,,-2\n'
ROWS = [
    {"image": "cat/1.jpg", "node": "cat", "reliability": 0.9},
    {"image": "2.jpg", "node": "tench, Tinca tinca", "strength": None},
    {"image": "cat/1.jpg", "node": " chain saw ", "strength": -2},
]
FILES = {
    "plain": ("c.csv", CSV),
    "in any order": ("c.csv", "Node,Image\ncat,1.jpg\n"),
    "semicolons and decimal points": ("c.csv", "image;node;reliability\n1.jpg;cat;0.5\n"),
    "tabs": ("c.CSV", "image\tnode\n1.jpg\tcat\n"),
    "Windows": ("c.csv", "\ufeff" + CSV.replace("\n", "\r\n")),
    "empty lines and blanks": ("c.csv", "\n" + CSV.replace(",cat,", " , cat ,  ").replace("\n", "\n\n")),
    "objects": ("c.jsonl", "\n".join(map(json.dumps, ROWS))),
    "objects, Windows": ("c.jsonl", "\ufeff" + "\r\n\r\n".join(map(json.dumps, ROWS)) + "\r\n"),
    "number for a name": ("c.jsonl", '{"image": 7, "node": 0}'),
}


@pytest.mark.parametrize("name, text", FILES.values(), ids=FILES.keys())
def test_files(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    others = {"in any order": [cue("cat")], "semicolons and decimal points": [cue("cat", 0.5)], "tabs": [cue("cat")]}
    found = read_cues(str(tmp_path / name), TREE)
    which = next(key for key, value in FILES.items() if value == (name, text))
    expected = {"7": [cue("0")]} if which == "number for a name" else FOUND
    expected = {"1.jpg": others[which]} if which in others else expected
    assert found == {image: [one.on(TREE) for one in own] for image, own in expected.items()}
    assert list(found) == list(dict.fromkeys(found))


REFUSED = {
    "no file": ("c.csv", None, "cannot be read: No such file"),
    "another kind": ("c.txt", "image,node\n1,cat\n", r"must be a .csv or a .jsonl file, not '.txt'"),
    "empty": ("c.csv", "", "has no rows"),
    "only a header": ("c.csv", "image,node\n", "has no rows"),
    "no objects": ("c.jsonl", "\n \n", "has no rows"),
    "binary": ("c.csv", b"\xff\xfe\x00", "not a text file"),
    "no header": ("c.csv", "1.jpg,cat,0.9\n2.jpg,cat,0.9\n", "line 2: there is no column '1.jpg'"),
    "misspelt column": ("c.csv", "image,node,relability\n1,cat,0.9\n", "no column 'relability'. Did you mean 'reliab"),
    "column twice": ("c.csv", "image,node,node\n1,cat,cat\n", "heading of its own"),
    "column without a heading": ("c.csv", "image,node,\n1,cat,0.9\n", "heading of its own"),
    "no node": ("c.csv", "image,node\n1.jpg,cat\n2.jpg,\n", "line 3: no node is given"),
    "no image": ("c.jsonl", '{"node": "cat"}', "line 1: no image is given"),
    "too many cells": ("c.csv", "image,node\n1,tench, Tinca tinca\n", "3 cells under 2 headings.*double quotes"),
    "quote without end": ("c.csv", 'image,node\n1,"cat\n', "not readable as CSV"),
    "no number": ("c.csv", "image,node,reliability\n1,cat,high\n", "line 2: reliability 'high' is no number"),
    "decimal comma": ("c.csv", "image;node;reliability\n1;cat;0,9\n", "'0,9' is no number"),
    "out of range": (
        "c.csv",
        "image,node,reliability\n\n1,cat,1.0\n",
        "line 3: .* has the reliability 1: it",
    ),
    "nan": ("c.jsonl", '{"image": "1", "node": "cat", "reliability": NaN}', "line 1: .*reliability nan"),
    "endless": ("c.csv", "image,node,strength\n1,cat,inf\n", "strength inf"),
    "both": ("c.csv", "image,node,reliability,strength\n1,cat,.9,2\n", "both a reliability and a strength"),
    "unknown node": ("c.csv", "image,node\n1,cat\n2,taby\n", "line 3: .*no class or node 'taby'. Did you mean 'tabby'"),
    "no JSON": ("c.jsonl", '{"image": "1", "node": "cat"}\n{"image": \n', "line 2: not JSON"),
    "no object": ("c.jsonl", '["1", "cat"]', "line 1: expected an object"),
    "list of nodes": ("c.jsonl", '{"image": "1", "node": ["cat"]}', "'node' must be text or a number"),
    "truth value": ("c.jsonl", '{"image": "1", "node": true}', "'node' must be text or a number, not True"),
    "deep": ("c.jsonl", "[" * 100000, "line 1: not JSON"),
}


@pytest.mark.parametrize("name, text, told", REFUSED.values(), ids=REFUSED.keys())
def test_files_refused(tmp_path, name, text, told):
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=told) as caught:
        read_cues(path, TREE)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
