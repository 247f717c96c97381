"""Model cards: what they say is what the network, the profile and the command line say."""

import re
import shlex
import tomllib
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import typer.main
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image

import hlnet
from hlnet.cli.main import app
from hlnet.cues.cue_aware import trained_attention
from hlnet.expert.cut import cut_expert
from hlnet.model.cost import Cost, plain_cost, profile
from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
from hlnet.model.plain import PlainConfig, PlainNet
from hlnet.model.provenance import FittedAttention, PathConformal, Rejection
from hlnet.model.transform import InputTransform
from hlnet.store.hub import write_model_folder
from hlnet.store.model_card import make_model_card
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.selection import select_classes

TREE = ClassTree.from_nested({"beast": {"cat": ["tabby", "siamese"], "dog": ["beagle"]}, "saw": {}}, levels=3)
RECIPE = {
    "data": "hfds/somebody/pets",
    "train": {"lr": 1e-3, "scale": (0.35, 1.0), "clip_grad": None, "tags": ["a", None, ["```", {"b": None, "c": 1}]]},
}


def full(tree=TREE, **provenance):
    config = NetworkConfig(backbone="test_resnet", widths=(8, 4, 4), strides=(1, 1, 2))
    return filled(HierarchicalNet(config, tree, empty=True), provenance)


def plain(tree=TREE, **provenance):
    return filled(PlainNet(PlainConfig(backbone="test_resnet"), tree), provenance)


def filled(net, provenance):
    net.transform = InputTransform(input_size=(3, 48, 32))
    for name, value in provenance.items():
        setattr(net.provenance, name, value)
    return net


MARKDOWN = MarkdownIt().enable("table")


def section(card, title):
    """The text under one heading."""
    starts = [token.map[0] for token in MARKDOWN.parse(card.text) if token.type == "heading_open" and token.tag == "h2"]
    lines = card.text.splitlines(keepends=True)
    parts = [lines[start:end] for start, end in pairwise([*starts, len(lines)])]
    return {heading.removeprefix("## ").strip(): "".join(rest) for heading, *rest in parts}[title]


def table(text):
    """The first table of a text, by its first column."""
    rows = [line.removeprefix("|").removesuffix("|") for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)] for row in rows]
    return {first: others for first, *others in cells if any((first, *others))}


def blocks(text, language):
    """The contents of fenced blocks of code."""
    return [token.content for token in MARKDOWN.parse(text) if token.type == "fence" and token.info == language]


# ---------------------------------------------------------------------- front matter


def test_front_matter_is_what_the_hub_reads(tmp_path):
    make_model_card(full(recipe=RECIPE), license="cc-by-4.0").save(tmp_path / "README.md")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\n") and yaml.safe_load(text.split("---\n")[1]) == {
        "library_name": "hlnet",
        "license": "cc-by-4.0",
        "pipeline_tag": "image-classification",
        "tags": ["hlnet", "hierarchical-classification", "dynamic-inference", "timm"],
        "datasets": ["somebody/pets"],
    }
    read = ModelCard.load(tmp_path / "README.md")
    assert read.data.library_name == "hlnet" and read.text.lstrip().startswith("# 4 classes on test_resnet\n")


def test_without_facts_none_are_told():
    card = make_model_card(plain())
    assert "license" not in card.data.to_dict() and "datasets" not in card.data.to_dict()
    assert "not stated" in section(card, "Data") and "No licence is stated" in section(card, "Data")
    assert section(card, "Accuracy").strip() == "Not measured."
    assert "No recipe came with the weights." in section(card, "Training")


def test_given_facts_are_told():
    card = make_model_card(
        full(recipe=RECIPE), title="Pets", about="Of *my* pets.", data="200 photographs", repo_id="me/pets"
    )
    assert card.text.lstrip().startswith("# Pets\n") and "\n\nOf *my* pets.\n\n" in card.text
    assert "Trained on: `200 photographs`." in section(card, "Data") and "datasets" not in card.data.to_dict()
    assert "hf-hub:me/pets" in section(card, "How to use") and "OWNER" not in card.text
    with pytest.raises(TypeError, match="lisence"):
        make_model_card(full(), lisence="mit")


# ---------------------------------------------------------------------- what it is


def test_kinds_say_what_they_are():
    net = full()
    net.head.to_empty(device="cpu")
    expert = cut_expert(net, "cat")
    expert.provenance.parent = "f" * 64
    texts = [" ".join(make_model_card(net).text.split()) for net in (net, expert, plain())]
    kinds = [
        "tree of small branches, and each leaf",
        "cut from a full network of 4 classes",
        "A plain image classifier",
    ]
    assert [[kind in text for kind in kinds] for text in texts] == torch.eye(3).bool().tolist()
    assert "f" * 64 in texts[1] and "fingerprint" not in texts[0]
    assert "4 classes: `tabby`, `siamese`, `beagle`, `saw`. The class tree has 2, 3, 4 nodes" in texts[0]
    assert "2 classes: `tabby`, `siamese`. The class tree has 1, 1, 2 nodes" in texts[1]
    assert "class tree" not in texts[2].partition("Training")[0] and "make-expert" not in texts[2]
    assert all(f"Written by hlnet {hlnet.__version__}." in text for text in texts)


def test_one_class():
    net = full(ClassTree.parallel(["cat"]))
    text = " ".join(make_model_card(net).text.split())
    assert "# 1 class on" in text and "1 class: `cat`." in text and "With one class there is no probability" in text
    assert "add up to 100 %" not in text and "make-expert" not in text


def test_what_was_fitted_is_told():
    fitted = Rejection(score="energy", threshold=1.25, max_false_positive=0.05, data="photos")
    text = " ".join(make_model_card(full(rejection=fitted)).text.split())
    assert "energy is below 1.25" in text and "at most 5 %" in text and "no threshold" not in text
    text = " ".join(make_model_card(full(one_vs_rest=True)).text.split())
    assert "Each class's probability is its own" in text and "no threshold was fitted" in text


def test_whole_tree_is_there_and_folded_where_it_is_large():
    short = section(make_model_card(full()), "Classes")
    assert blocks(short, "text") == ["beast\n  cat\n    tabby\n    siamese\n  dog\n    beagle\nsaw\n"]
    assert "<details>" not in short
    long = section(make_model_card(full(ClassTree.balanced((2, 5, 40)))), "Classes")
    (listing,) = blocks(long, "text")
    assert len(listing.splitlines()) == 47 and listing.splitlines()[-1] == "    class 39"
    assert re.search(r"<details><summary>.*</summary>\n\n```text\n.*\n```\n\n</details>\n", long, re.DOTALL)
    assert "`class 9` and 30 more" in long
    (flat,) = blocks(section(make_model_card(plain()), "Classes"), "text")
    assert flat.splitlines() == list(TREE.classes)


NAMES = st.text(st.characters(exclude_characters="/")).filter(lambda name: name.isprintable() and name == name.strip())
AWKWARD = ["```", "`", "<b>", "a|b", "{{ x }}", "--all", "*", "a,b", "## Data", "@file", "$(ls)", "'"]


@settings(deadline=None)
@given(names=st.lists(NAMES.filter(bool) | st.sampled_from(AWKWARD), min_size=2, max_size=30, unique=True))
def test_names_of_any_kind_do_no_harm(names):
    tree = ClassTree.from_nested({"group": names}, levels=3)
    with patch(
        "hlnet.store.model_card._costs", return_value={"this network": Cost(classes=2, params=1, gmacs=1, bytes=1)}
    ):
        card = make_model_card(full(tree))
    (listing,) = blocks(section(card, "Classes"), "text")
    assert listing.splitlines()[0] == "group" and [line.strip() for line in listing.splitlines()[1:]] == names
    tokens = MARKDOWN.parse(card.text)
    assert sum(token.type == "heading_open" for token in tokens) == 9
    (sentence,) = [token for token in tokens if token.content.startswith(f"{len(names)} classes: ")]
    shown = [token.content for token in sentence.children if token.type == "code_inline"]
    assert shown == [" ".join(name.split()) for name in names[:10]]
    (line,) = [line for line in commands(card) if "make-expert" in line] or [None]
    if line:
        chosen = select_classes(tree, shlex.split(line)[shlex.split(line).index("--classes") + 1])
        assert 0 < len(chosen) <= len(names)


# ---------------------------------------------------------------------- cost


def test_costs_are_the_profile_s():
    net = full()
    found = profile(net.config, TREE, net.transform)
    rows = table(section(make_model_card(net), "Cost").partition("By part")[0])
    assert rows[""] == ["this network", "test_resnet itself"]
    own = sum(tensor.numel() for tensor in net.parameters())
    assert rows["parameters"] == [f"{own:,}", f"{found.plain.params:,}"] and found.full.params == own
    assert [float(cell) for cell in rows["GMACs"]] == pytest.approx([found.full.gmacs, found.plain.gmacs], rel=5e-3)
    assert [float(cell) for cell in rows["weights, MB"]] == pytest.approx(
        [found.full.bytes / 1e6, found.plain.bytes / 1e6], rel=5e-3
    )
    parts = table(section(make_model_card(net), "Cost").partition("By part")[2])
    assert [parts[part.name][:2] for part in found.full.parts] == [
        [str(part.nodes), f"{part.params:,}"] for part in found.full.parts
    ]


def test_costs_of_an_expert_stand_beside_the_full_network_s():
    net = full(TREE.prune([0, 1]), parent_counts=TREE.counts)
    found = profile(net.config, net.tree, net.transform, parent_counts=TREE.counts)
    rows = table(section(make_model_card(net), "Cost").partition("By part")[0])
    assert rows[""] == ["this expert", "full network", "test_resnet itself"] and rows["classes"] == ["2", "4", "4"]
    assert rows["parameters"] == [f"{cost.params:,}" for cost in (found.expert, found.full, found.plain)]


def test_costs_of_a_plain_network():
    net = plain()
    rows = table(section(make_model_card(net), "Cost"))
    cost = plain_cost(net.config, 4, (3, 48, 32))
    assert rows["parameters"] == [f"{cost.params:,}"] and "By part" not in make_model_card(net).text
    assert float(rows["GMACs"][0]) == pytest.approx(cost.gmacs, rel=5e-3)


# ---------------------------------------------------------------------- accuracy and recipe


def test_accuracy_is_what_the_provenance_holds():
    metrics = {"epoch": 3, "val_top1": 0.98765, "val_loss": 0.123456789, "ece|x": 0.5}
    fitted = FittedAttention(reliability=0.9, gain=((2.0, 3.0),), data="photos")
    card = make_model_card(full(metrics=metrics, recipe={"data": "digits"}, attention=fitted))
    rows = table(section(card, "Accuracy"))
    assert rows.pop("---") == ["---"] and rows == {
        "after epoch": ["3"],
        "top-1 on validation images": ["98.77 %"],
        "loss on validation images": ["0.123457"],
        "`ece\\|x`": ["0.5"],
    }
    told = section(card, "Accuracy")
    assert "on `digits`" in told
    assert "A cue on a class that is right in 90 % of cases\nserved best as a gain of 3, on `photos`." in told


@pytest.mark.parametrize(
    "attention, said",
    [
        ({"mode": "bias", "gain": ((2.0, 3.0),), "data": "photos"}, "served best as a bias of +6.59 on the logit, on"),
        ({"mode": "scale", "scale": ((2.0, 1.5),), "data": "photos"}, "served best as a scale of 1.5, on"),
        ({"mode": "gain", "gain": ((2.0, 3.0),)}, "served best as a gain of 3."),
        (trained_attention().model_dump(exclude={"reliability"}), "was trained to act as a gain of 2.28."),
    ],
)
def test_cues_act_as_the_file_says(attention, said):
    """Of four classes, one that is right in 90 % has ln 27 = 3.296 nats of evidence, at a temperature of 2."""
    card = make_model_card(full(temperature=2.0, attention=FittedAttention(reliability=0.9, **attention)))
    assert said in section(card, "Accuracy")


@pytest.mark.parametrize("recipe", [RECIPE, {"lr": 0.1, "epochs": 3}, {"a": {"b": {"c": [1, 2]}}, "d": True}])
def test_recipe_is_toml_whatever_it_holds(recipe):
    def told(value):
        """The recipe as TOML can say it: nothing is left out, in a list it is a word."""
        if isinstance(value, dict):
            return {key: told(inner) for key, inner in value.items() if inner is not None}
        if isinstance(value, (list, tuple)):
            return ["none" if inner is None else told(inner) for inner in value]
        return value

    (block,) = blocks(section(make_model_card(plain(recipe=recipe)), "Training"), "toml")
    assert tomllib.loads(block) == told(recipe)


# ---------------------------------------------------------------------- how to use


def commands(card):
    """The commands that a card shows."""
    return [line for block in blocks(section(card, "How to use"), "bash") for line in block.splitlines()]


@pytest.mark.parametrize("build", [full, plain])
def test_commands_parse(build):
    lines = commands(make_model_card(build(), repo_id="me/pets"))
    assert len(lines) == (4 if build is full else 2)
    group = typer.main.get_command(app)
    for line in lines:
        program, name, *words = shlex.split(line)
        context = group.commands[name].make_context(name, words)
        assert program == "hlnet" and context.params["model"] == "hf-hub:me/pets"


@pytest.mark.parametrize(
    "nested, chosen",
    [
        ({"beast": {"cat": ["tabby", "siamese"], "dog": ["beagle"]}, "saw": {}}, "beast"),
        ({"beast": {"cat": ["tabby", "siamese"], "dog": ["beagle"]}}, "beast/cat"),
        ({"beast, big": {"cat": ["tabby", "siamese"]}, "saw": {"x": ["y"]}}, "saw"),
        ({"big cat": ["tabby", "siamese"], "saw": ["y"]}, "big cat"),
        (["tabby", "siamese"], "tabby"),
        (["*", "--all", "@x"], "0"),
    ],
)
def test_shown_selection_is_one(nested, chosen):
    net = full(ClassTree.from_nested(nested, levels=3))
    (line,) = [line for line in commands(make_model_card(net)) if "make-expert" in line]
    selection = shlex.split(line)[shlex.split(line).index("--classes") + 1]
    assert selection == chosen and 0 < len(select_classes(net.tree, selection)) < len(net.tree.classes)


def test_python_runs(tmp_path, monkeypatch, capsys):
    net = plain()
    write_model_folder(net, tmp_path / "pets")
    Image.new("RGB", (50, 40)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(section(make_model_card(net), "How to use"), "python")
    exec(code.replace("hf-hub:OWNER/NAME", "local-dir:pets"), {})
    assert capsys.readouterr().out.count("Label(name=") == 4


def test_citation_agrees_with_the_project_s():
    cited = yaml.safe_load((Path(__file__).parents[2] / "CITATION.cff").read_text(encoding="utf-8"))
    (paper,) = cited["references"]
    (entry,) = blocks(section(make_model_card(plain()), "Citation"), "bibtex")
    assert f"{{{paper['title']}}}" in entry and f"{{{paper['doi']}}}" in entry and f"{{{paper['year']}}}" in entry
    assert f"{{{paper['start']}--{paper['end']}}}" in entry
    authors = re.search(r"author *= \{(.*?)\},\n", entry, re.DOTALL)[1].replace("{\\'e}", "é")
    names = [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
    assert re.split(r"\s+and\s+", authors) == names


def test_card_is_the_same_each_time():
    assert str(make_model_card(full(recipe=RECIPE))) == str(make_model_card(full(recipe=RECIPE)))


def test_card_tells_what_coverage_is_fitted_to():
    fitted = PathConformal(thresholds=(0.2, 0.3), images=500, data="photos (val)")
    text = make_model_card(full(conformal=fitted)).text
    assert "answers as often right as requested for images like the\n  500 of `photos (val)` that" in text
    assert "coverage" not in make_model_card(full()).text
