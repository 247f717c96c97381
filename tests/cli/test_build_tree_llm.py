"""``hlnet build-tree --method llm``: prompts, answers from a file, and a server on loopback."""

import json

import pytest
from helpers import command_line, llm_server, tree_material
from helpers.command_line import as_json, invoke
from helpers.llm_server import SECRET, Reply, failure, serving
from helpers.tree_material import ANSWER, CLASSES, FILES, SMALL, described, groups_of

from hlnet.tree.class_tree import ClassTree
from hlnet.tree.io import read_tree
from hlnet.tree.llm.nest import nest_with_llm, tree_prompt

failing = command_line.failing
key = llm_server.key
at, build = tree_material.at, tree_material.build


def nested(answer):
    if isinstance(answer, list):
        return {name: CLASSES.index(name) for name in answer}
    return {name: nested(below) for name, below in answer.items()}


@pytest.mark.parametrize("shape, nodes", [("", None), ("--nodes 2,3", (2, 3)), ("--levels 4", (2, 2, 4))])
def test_prompt_is_the_library_s(at, tmp_path, shape, nodes):
    out, _ = invoke(f"build-tree {{list}} --method llm --prompt {tmp_path}/p.txt {shape}", **at)
    assert (tmp_path / "p.txt").read_text(encoding="utf-8") == tree_prompt(CLASSES, nodes)
    assert f"{tmp_path}/p.txt" in out and "--answer" in out


def test_prompt_for_a_budget(tmp_path):
    invoke(f"build-tree preset:imagenet100 --method llm --prompt {tmp_path}/p.txt --budget 25M")
    assert "6 groups at level 1, 26 groups at level 2" in (tmp_path / "p.txt").read_text(encoding="utf-8")


def test_prompt_as_json(at, tmp_path):
    told = as_json(f"build-tree {{list}} --method llm --prompt {tmp_path}/p.txt", **at)
    assert str(tmp_path / "p.txt") in told.values()


def test_good_answer(build):
    tree, notes = build("{n} --method llm --answer {answer}")
    assert tree == ClassTree.from_nested(nested(ANSWER)) and tree.counts == (2, 4, 6) and notes == []
    tree, notes = build("{n} --method llm --answer {answer} --nodes 2,3")
    assert tree.counts == (2, 4, 6) and len(notes) == 1 and "2, 3" in notes[0]
    assert build("{n} --method llm --answer {answer} --levels 4")[0].counts == (2, 4, 6, 6)


def test_truncated_answer(build, at):
    tree, notes = build("{n} --method llm --answer {short}")
    classes = read_tree(at["n"])
    assert notes == list(nest_with_llm(classes.classes, lambda _: FILES["short.txt"], rounds=0).notes)
    assert "breaks off" in notes[0] and all(any(f"'{name}'" in note for note in notes) for name in ("saw", "Öl"))
    assert described(tree) == described(classes) and {"cat", "dog", "owl", "rook"} <= max(groups_of(tree, 0), key=len)
    _, notes = build(f"{{photos}} --method llm --answer {{short}} --trunk-weights {{trunk}} {SMALL}")
    assert len([note for note in notes if "missing" in note and "by their features" in note]) == 2


def test_asks_a_model(key, at, tmp_path):
    line = f"build-tree {{n}} --method llm --llm-model tiny --out {tmp_path}/x.json"
    replies = [Reply('{"beast": ["cat", "dog", "owl", "rook", "saw"]}'), Reply(f'{{"Öl": "beast"}} {SECRET}')]
    with serving(*replies) as (url, requests):
        out, told = invoke(f"{line} --prompt {tmp_path}/p.txt --base-url {url}", **at)
    first, second = (body["messages"] for *_, body in requests)
    assert [message["content"] for message in first] == [(tmp_path / "p.txt").read_text(encoding="utf-8")]
    assert "Öl" in second[0]["content"] and told.startswith("asking tiny …\n")
    assert read_tree(tmp_path / "x.json").to_nested() == nested({"beast": ["cat", "dog", "owl", "rook", "saw", "Öl"]})
    assert {headers["authorization"] for _, headers, _ in requests} == {f"Bearer {SECRET}"}
    assert SECRET not in out + told + "".join(path.read_text(encoding="utf-8") for path in tmp_path.iterdir())


@pytest.mark.parametrize("debug", ["", " --debug"])
@pytest.mark.parametrize(
    "replies, words",
    [
        ([failure(401, f"Incorrect key: {SECRET}.")], "refuses the key & OPENAI_API_KEY"),
        ([Reply(f"No. {SECRET}")] * 3, "the reply cannot be used & No."),
        ([failure(404, "no such model")], "no model 'tiny'"),
    ],
)
def test_a_model_that_does_not_answer(key, failing, tmp_path, replies, words, debug):
    with serving(*replies) as (url, requests):
        line = f"build-tree {{n}} --method llm --llm-model tiny --base-url {url} --out {{new}}{debug}"
        code, out, err = failing(line)
        assert len(requests) == len(replies)
    assert (code, out) == (1, "") and SECRET not in err and not list(tmp_path.iterdir())
    assert all(word in err.splitlines()[-1] for word in words.split(" & "))
    assert bool(debug) == ("Traceback" in err)


@pytest.mark.parametrize("out", ["", "--out {root}/x.cvs", "--out {photos}"])
def test_a_model_is_not_asked_for_what_cannot_be_written(key, failing, tmp_path, out):
    with serving(Reply(json.dumps(ANSWER))) as (url, requests):
        code, _, err = failing(f"build-tree {{n}} --method llm --llm-model tiny --base-url {url} --prompt p.txt {out}")
    assert code == 2 and ("--out" in err or "written to" in err or "is there" in err)
    assert requests == []  # an answer costs money


def test_a_model_that_cannot_be_asked(key, failing, monkeypatch):
    line = "build-tree {n} --method llm --llm-model m --out {new}"
    code, _, err = failing(f"{line} --base-url nowhere")
    assert code == 2 and "'nowhere' is no server's address" in err
    monkeypatch.delenv("OPENAI_API_KEY")
    code, _, err = failing(line)
    assert code == 2 and "set the environment variable OPENAI_API_KEY" in err
