"""Class trees as Newick, graphs and children objects: written and read back, by us and by others; nonsense is refused.

At the end, what is the same for every format that ``write_tree`` knows, tables and folders included.
"""

import json

import dendropy
import networkx
import newick
import pytest
import yaml
from helpers.trees import (
    CONTENT,
    FILES,
    PETS,
    in_one_folder,
    nested_of,
    put,
    tree_or_error,
    trees,
    without_indices,
    written_and_read,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from hlnet.errors import RunError, TreeError, UsageError
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.graphs import read_newick
from hlnet.tree.hierarchy import Hierarchy
from hlnet.tree.io import FORMATS, SUFFIXES, read_tree, write_tree

# ---------------------------------------------------------------------- writing


@pytest.mark.parametrize("format, suffix", [file for file in FILES if file[0] not in {"paths", "edges"}])
@settings(in_one_folder, max_examples=40)
@given(tree=trees())
def test_written_tree_is_read_back(tmp_path, format, suffix, tree):
    again = written_and_read(tree, tmp_path / f"any{suffix}", format)
    if format == "newick":
        assert again == ClassTree.from_nested(without_indices(tree.to_nested()), tree.num_levels)
    else:
        assert again == (tree.with_ids({}) if format == "nested" else tree)


@settings(in_one_folder, max_examples=40)
@given(tree=trees())
def test_dendropy_reads_our_newick(tmp_path, tree):
    def nested(node):
        return [(child.label, nested(child) if child.child_nodes() else None) for child in node.child_nodes()]

    write_tree(tree, tmp_path / "t.nwk")
    text = (tmp_path / "t.nwk").read_text(encoding="utf-8")
    # By the book, so that a bare underscore would be a blank.
    read = dendropy.Tree.get(data=text, schema="newick", suppress_leaf_node_taxa=True)
    assert nested(read.seed_node) == nested_of(tree.to_nested())


@settings(in_one_folder, max_examples=40)
@given(tree=trees())
def test_networkx_reads_our_node_link_file(tmp_path, tree):
    write_tree(tree, tmp_path / "t.json", "node-link")
    graph = networkx.node_link_graph(json.loads((tmp_path / "t.json").read_text(encoding="utf-8")), edges="links")
    assert networkx.is_arborescence(graph)
    root = next(node for node, count in graph.in_degree() if not count)
    labels = {
        "/".join(graph.nodes[node]["label"] for node in way[1:]): node
        for way in networkx.single_source_shortest_path(graph, root).values()
        for node in way[-1:]
    }
    assert labels.keys() - {""} == {node.path for row in tree.levels for node in row}
    assert {path: node for path, node in labels.items() if isinstance(node, str)} == tree.ids
    classes = {leaf.path: leaf.index for leaf in tree.leaves}
    assert {path: graph.nodes[node].get("index") for path, node in labels.items() if path in classes} == classes


def test_an_id_that_two_nodes_have_stays_with_the_class(tmp_path):
    tree = ClassTree.from_nested({"zoo": {"cat": 5}, "pen": {"owl": 3}})
    ids = {"zoo": "n1", "zoo/cat": "n1", "pen": "n1", "pen/owl": "n2"}
    write_tree(tree.with_ids(ids), tmp_path / "t.json", "node-link")
    assert read_tree(tmp_path / "t.json").ids == {"zoo/cat": "n1", "pen/owl": "n2"}
    write_tree(tree.with_ids(ids), tmp_path / "t.json", "children")
    assert read_tree(tmp_path / "t.json").ids == ids


def test_written_by_hand(tmp_path):
    tree = ClassTree.from_nested({"cat, big": {"lion": 7}, "saw's": 4}, levels=3).with_ids({"cat, big": "n1"})
    write_tree(tree, tmp_path / "t.nwk")
    assert (tmp_path / "t.nwk").read_bytes() == b"((lion)'cat, big','saw''s');\n"
    write_tree(ClassTree.parallel(["格"]), tmp_path / "t.yml")
    assert (tmp_path / "t.yml").read_text(encoding="utf-8") == "格: 0\n"
    write_tree(tree, tmp_path / "t.YAML")
    assert yaml.safe_load((tmp_path / "t.YAML").read_text()) == {"cat, big": {"lion": 7}, "saw's": 4}
    write_tree(tree, tmp_path / "t.json", "nested")
    assert json.loads((tmp_path / "t.json").read_text()) == {"cat, big": {"lion": 7}, "saw's": 4}
    write_tree(tree, tmp_path / "t.json", "children")
    cat = {"name": "cat, big", "id": "n1", "children": [{"name": "lion", "index": 7}]}
    assert json.loads((tmp_path / "t.json").read_text()) == {
        "name": "trunk",
        "children": [cat, {"name": "saw's", "index": 4}],
    }


# ---------------------------------------------------------------------- reading what others wrote

CAT = {"name": "cat", "children": [{"name": "tabby"}, {"name": "siamese", "size": 3}]}
NODES = [
    {"id": 0},
    {"id": 1, "label": "cat"},
    {"id": "tabby"},
    {"id": "s", "label": "siamese"},
    {"id": "d", "name": "dog"},
]
LINKS = [{"source": a, "target": b} for a, b in [(0, 1), (0, "d"), (1, "tabby"), (1, "s")]]
D_CAT = {"source": "d", "target": 1}
READ = {
    "newick": ("t.nwk", "((tabby,siamese)cat,dog)pet;"),
    "newick with lengths and comments": ("t.newick", "[&R] ((tabby[x]:1,siamese:.5e-3)cat:2[(y;],\n dog:3):0 ;\n"),
    "newick with quotes": ("t.tree", "\ufeff(('tabby','siamese')'cat','dog')"),
    "children": ("t.json", {"name": "pet", "children": [CAT, {"name": "dog", "children": []}]}),
    "children in YAML": ("t.yaml", "children:\n- name: cat\n  children: [{name: tabby}, {id: siamese}]\n- id: dog\n"),
    "children in a tree": ("t.json", {"version": 2, "tree": {"children": [CAT, {"name": "dog", "children": None}]}}),
    "node-link": ("t.json", {"directed": True, "graph": {}, "nodes": NODES, "links": LINKS}),
    "node-link with edges": ("t.json", {"directed": False, "multigraph": True, "nodes": NODES, "edges": LINKS}),
}  # fmt: skip


@pytest.mark.parametrize("name, content", READ.values(), ids=READ.keys())
def test_reads(tmp_path, name, content):
    nested = read_tree(put(tmp_path, name, content if isinstance(content, str) else json.dumps(content))).to_nested()
    assert nested == PETS and nested_of(nested) == nested_of(PETS)


@pytest.mark.parametrize(
    "nested",
    [
        {"children": ["boy", "girl"], "adults": ["man"]},
        {"nodes": ["a", "b"], "links": ["c"]},
        {"tree": {"children": ["oak"]}, "children": {"b": None}},
        {"name": "n01", "id": "n02", "children": {"nodes": {"links": None}}},
    ],
)
def test_nested_mappings_with_the_words_of_other_formats(tmp_path, nested):
    assert read_tree(put(tmp_path, "t.json", json.dumps(nested))) == ClassTree.from_nested(nested)


def test_a_hierarchy_of_wordnet_ids(tmp_path):
    names = {"n1": "bird", "f1": "", "n2": "crane", "n3": "crane", "n4": "crane", "n5": "hoist, lift"}
    nodes = [{"id": "f0", "label": None}, *({"id": id, "label": name} for id, name in names.items())]
    links = [("f0", "f1"), ("f0", "n1"), ("n1", "n2"), ("f1", "n4"), ("n4", "n3"), ("n4", "n5")]
    graph = {"nodes": nodes, "links": [{"source": above, "target": below, "weight": 1} for above, below in links]}
    tree = read_tree(put(tmp_path, "t.json", json.dumps(graph)))
    assert tree.to_nested() == {"f1": {"crane": {"crane (n3)": 0, "hoist, lift": 1}}, "bird": {"crane (n2)": 2}}
    assert tree.ids == {
        "f1": "f1", "bird": "n1", "bird/crane (n2)": "n2", "f1/crane": "n4", "f1/crane/crane (n3)": "n3",
        "f1/crane/hoist, lift": "n5",
    }  # fmt: skip
    below = [{"label": "bird", "id": "n1", "children": [{"id": "n2", "name": "crane", "index": 134}]}]
    below += [{"children": [{"id": "n3", "name": "crane", "index": 517}, {"name": "hoist", "id": 12, "index": 600}]}]
    tree = read_tree(put(tmp_path, "t.json", json.dumps({"id": "n0", "name": "entity", "children": below})))
    assert tree.to_nested() == {"bird": {"crane (n2)": 134}, "crane+hoist": {"crane (n3)": 517, "hoist": 600}}
    assert [leaf.id for leaf in tree.leaves] == ["n2", "n3", "12"]


def test_unnamed_groups():
    tree = read_newick("(((owl,rook),saw),(cat,dog,'a b',cow,pig):3,((hen)));").to_tree()
    assert without_indices(tree.to_nested()) == without_indices({
        "owl+rook+saw": {"owl+rook": {"owl": 0, "rook": 0}, "saw": 0},
        "cat+dog+a b+2-more": {"cat": 0, "dog": 0, "a b": 0, "cow": 0, "pig": 0},
        "hen": {"hen": {"hen": 0}},
    })  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(trees(ids=False), st.randoms(use_true_random=False))
def test_reads_the_newick_of_newick_and_dendropy(tree, chance):
    def node(name, below):
        comment = chance.choice([None, "x", "&&NHX:S=a", "(;',"])
        length = chance.choice([None, "1", "2.5e-3", "-1"])
        quoted = "'" + name.replace("'", "''") + "'"
        return newick.Node(quoted, length, comment, descendants=[node(*pair) for pair in below or []])

    below = nested_of(tree.to_nested())
    if not any("\\" in leaf.path for leaf in tree.leaves):  # which that library takes for the end of a label
        text = newick.dumps(newick.Node(descendants=[node(*pair) for pair in below]))
        assert nested_of(read_newick(text).to_tree().to_nested()) == below

    def branch(name, below):
        new = dendropy.Node(label=name, edge_length=chance.random())
        for pair in below or []:
            new.add_child(branch(*pair))
        return new

    drawn = dendropy.Tree(seed_node=branch(None, below))
    text = drawn.as_string("newick", suppress_leaf_node_labels=False, preserve_spaces=True)
    assert nested_of(read_newick(text).to_tree().to_nested()) == below


@settings(in_one_folder, max_examples=60)
@given(st.integers(2, 12), st.randoms(use_true_random=False), st.integers(0, 2))
def test_only_an_arborescence_is_read(tmp_path, size, chance, more):
    graph = networkx.DiGraph((chance.randrange(i), i) for i in range(1, size))
    graph.add_edges_from((chance.randrange(size), chance.randrange(size)) for _ in range(more))
    if more and chance.random() < 0.5:
        graph.remove_edge(*chance.choice(list(graph.edges)))
    graph = networkx.relabel_nodes(graph, {i: f"n{i}" for i in graph})
    data = networkx.node_link_data(graph, edges="links")
    chance.shuffle(data["links"])
    pairs = [(link["source"], link["target"]) for link in data["links"]]
    table = [("", "n0"), *pairs]
    files = {
        "t.json": (graph, json.dumps(data)),
        "t.csv": (networkx.DiGraph(table), "\n".join(map(",".join, [("parent", "child"), *table]))),
    }
    for name, (graph, text) in files.items():
        turned = graph.reverse()
        if name == "t.json" and not networkx.is_branching(graph) and networkx.is_branching(turned):
            graph = turned  # links that can only point from child to parent
        if networkx.is_arborescence(graph):
            tree = read_tree(put(tmp_path, name, text))
            root = next(node for node, count in graph.in_degree() if not count)
            paths = [[root, *node.path.split("/")] for row in tree.levels for node in row]
            assert {(path[-2], path[-1]) for path in paths} == set(graph.edges)
        else:
            with pytest.raises(TreeError, match=r"several parents|circle|pieces"):
                read_tree(put(tmp_path, name, text))


# ---------------------------------------------------------------------- nonsense

WRONG = {
    "cut newick": ("t.nwk", "((a,b)c,(d,", r"2 '\(' are not closed"),
    "newick, one more": ("t.nwk", "(a,b));", "t.nwk"),
    "newick, no label": ("t.nwk", "(a,(b,,c));", "class 3 of 4 has no name"),
    "newick, two words": ("t.nwk", "(chain saw,b);", "'saw' cannot follow the label 'chain'.*quotes"),
    "newick, label before": ("t.nwk", "(c(a,b));", r"'\(' cannot follow the label 'c'"),
    "newick, no comma": ("t.nwk", "((a)(b));", r"'\(' cannot follow '\)'"),
    "newick, no parentheses": ("t.nwk", "a,b;", "',' cannot follow the label 'a'"),
    "newick, no length": ("t.nwk", "(a:,b);", "',' cannot follow ':'"),
    "newick, two lengths": ("t.nwk", "(a:1:2,b);", "':' cannot follow 'length'"),
    "newick, two trees": ("t.nwk", "(a,b);\n(c,d);\n", "one tree"),
    "newick, open quote": ("t.nwk", "('a,b);", "quote"),
    "newick, open comment": ("t.nwk", "(a,b)[;", "comment"),
    "newick, a class twice": ("t.nwk", "(a,b,a);", "class 'a' appears more than once"),
    "newick, slash": ("t.nwk", "('a/b',c);", "a/b"),
    "newick, root alone": ("t.nwk", "cat;", "no class"),
    "nexus": ("t.tree", "#NEXUS\nbegin trees;\n", "'begin' cannot follow"),
    "empty newick": ("t.nwk", "", "no class"),
    "binary": ("t.nwk", b"\x89PNG\xff\0", "no text in UTF-8"),
    "children as text": ("t.json", {"children": [{"name": "a", "children": "bc"}]}, "'children' of 'a' must be a list"),
    "child as text": ("t.json", {"children": [{"name": "a", "children": ["b"]}]}, "children of 'a', got 'b'"),
    "class without a name": ("t.json", {"children": [{"name": "a"}, {"index": 3}]}, "class 2 of 2 has no name"),
    "name as a list": ("t.json", {"children": [{"name": ["a"]}]}, r"a child of ''?.*'name' must be text, got \['a'\]"),
    "index as text": ("t.json", {"children": [{"name": "a", "index": "3"}]}, "'index' must be a whole number, got '3'"),
    "negative index": ("t.json", {"children": [{"name": "a", "index": -3}]}, "-3 is negative"),
    "child among itself": ("t.yaml", "children: &x\n- name: a\n  children: *x\n", "children of 'a'.*themselves"),
    "one id twice": ("t.json", {"children": [{"name": "a", "id": "n"}, {"name": "b", "id": "n"}]}, "id 'n' appears"),
    "graph, parents": ("t.json", {"nodes": NODES, "links": [*LINKS, D_CAT]}, "'1' has several.*'0', 'd'"),
    "graph, roots": ("t.json", {"nodes": NODES, "links": LINKS[1:]}, "pieces, below '0', '1'"),
    "graph, cycle": ("t.json", {"nodes": NODES, "links": [*LINKS[1:], {"source": "s", "target": 1}]}, "'s'.*circle"),
    "graph, no such node": ("t.json", {"nodes": NODES[:-1], "links": LINKS}, "target of a link is none.*'d'"),
    "graph, no target": ("t.json", {"nodes": NODES, "links": [{"source": 1}]}, "target of a link"),
    "graph, id twice": ("t.json", {"nodes": [*NODES, NODES[3]], "links": LINKS}, "two nodes have the id 's'"),
    "graph, no id": ("t.json", {"nodes": [{"label": "a"}], "links": []}, "needs an 'id'.*'label': 'a'"),
    "graph, true": ("t.json", {"nodes": [{"id": True}], "links": []}, "needs an 'id'"),
    "graph, label": ("t.json", {"nodes": [{"id": 1, "label": {}}], "links": []}, "node '1': 'label' must be text"),
    "graph, root alone": ("t.json", {"nodes": [{"id": 1}], "edges": []}, "no class"),
    "cut json": ("t.json", json.dumps({"nodes": NODES, "links": LINKS})[:-9], "JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name, content, words", WRONG.values(), ids=WRONG.keys())
def test_wrong_file(tmp_path, name, content, words):
    with pytest.raises(TreeError, match=words) as caught:
        read_tree(put(tmp_path, name, content if isinstance(content, str | bytes) else json.dumps(content)))
    assert str(tmp_path / name) in str(caught.value) and len(str(caught.value).splitlines()) == 1


DEEP = {
    "t.nwk": "(" * 5000 + "x" + "".join(f")n{i}" for i in range(5000)),
    "bare.nwk": "(" * 5000 + "x" + ")" * 5000,
    "children.json": '{"children":[{"name":"a","children":[' * 5000 + "]}]}" * 5000,
    "t.json": json.dumps({
        "nodes": [{"id": i} for i in range(5000)], "links": [{"source": i - 1, "target": i} for i in range(1, 5000)],
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", DEEP)
def test_too_deep(tmp_path, name):
    with pytest.raises(TreeError, match=r"deeper than 64 levels|recursion"):
        read_tree(put(tmp_path, name, DEEP[name]))


def test_a_long_newick_is_an_outline_before_it_is_a_tree():
    root = read_newick("".join(f"(a{i}," for i in range(2000)) + "x" + ")" * 2000)
    assert isinstance(root, Hierarchy) and len(root.leaves()) == 2001 and len(list(root.walk())) == 4001


VALID = [row[1] if isinstance(row[1], str) else json.dumps(row[1]) for row in READ.values()]
WORDS = ["nodes", "links", "edges", "children", "name", "id", "label", "index", "tree", "source", "target", "format"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.floats() | st.sampled_from(["a", "b", "", "hlnet.tree", "a/b"]),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(WORDS), below, max_size=5),
    max_leaves=25,
)


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix not in {".csv", ".tsv"}])
@settings(in_one_folder, max_examples=50)
@given(content=CONTENT)
def test_any_content(tmp_path, suffix, content):
    assert tree_or_error(put(tmp_path, f"t{suffix}", content))
    assert tree_or_error(put(tmp_path, f"t{suffix}", b"parent,child,id,index\n" + content))


@settings(in_one_folder, max_examples=100)
@given(st.sampled_from(VALID), st.sampled_from(SUFFIXES), st.integers(0, 300), st.integers(0, 9), st.text(max_size=3))
def test_any_damage(tmp_path, text, suffix, start, length, put_in):
    start %= len(text)
    assert tree_or_error(put(tmp_path, f"t{suffix}", text[:start] + put_in + text[start + length :]))
    assert tree_or_error(put(tmp_path, f"t{suffix}", text[:start]))


@settings(in_one_folder, max_examples=200)
@given(st.dictionaries(st.sampled_from(WORDS), VALUES, max_size=5))
def test_any_object(tmp_path, data):
    assert tree_or_error(put(tmp_path, "t.json", json.dumps(data)))


# ---------------------------------------------------------------------- every format, and where none can be written


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "tree", [{"cat": 0}, {"cat": {"cat": {"cat": 0}}}, {"a": {"b": {"c": 0}, "d": 1}, "b": {"e": 2}}]
)
def test_small_trees(tmp_path, format, tree):
    path = tmp_path / f"t{FORMATS[format][0]}"
    write_tree(ClassTree.from_nested(tree), path, format)
    assert read_tree(path) == ClassTree.from_nested(tree)
    assert read_tree(path, levels=5).num_levels == 5


@pytest.mark.parametrize("format", FORMATS)
def test_as_deep_as_may_be(tmp_path, format):
    nested = {"x": 0}
    for i in range(63):
        nested = {f"n{i}": nested}
    tree, path = ClassTree.from_nested(nested), tmp_path / f"t{FORMATS[format][0]}"
    write_tree(tree, path, format)
    assert tree.num_levels == 64 and read_tree(path) == tree


@pytest.mark.parametrize(
    "name, format", [("t.tree.json", "canonical"), ("t.json", "canonical"), ("t.yml", "nested"), ("t.newick", "newick")]
)
def test_the_suffix_stands_for_a_format(tmp_path, name, format):
    tree = ClassTree.from_nested({"cat": {"lion": 7}}, levels=3)
    write_tree(tree, tmp_path / "new" / name)
    write_tree(tree, tmp_path / name, format)
    assert (tmp_path / name).read_bytes() == (tmp_path / "new" / name).read_bytes()


TREE = ClassTree.from_nested({"cat": {"lion": 7}, "saw": 4})
UNKNOWN = {
    "suffix": ("t.cvs", None, "not to '.cvs'. Did you mean '.csv'"),
    "image": ("t.png", None, r"written to \.json, .*\.tree or, without a suffix, as folders, not to '\.png'"),
    "format": ("t.nwk", "newik", "no format 'newik': choose from canonical, .*folders. Did you mean 'newick'"),
    "another suffix": ("t.json", "newick", r"newick a file name that ends in \.nwk or \.newick or \.tree"),
    "no suffix": ("t", "edges", r"\.csv or \.tsv"),
}


@pytest.mark.parametrize("name, format, words", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_unknown_format(tmp_path, name, format, words):
    with pytest.raises(UsageError, match=words):
        write_tree(TREE, tmp_path / name, format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["canonical", "edges", "paths", "children", "node-link"])
def test_an_id_that_no_file_holds_leaves_the_old_file(tmp_path, format):
    path = put(tmp_path, f"t{FORMATS[format][0]}", "old")
    with pytest.raises(TreeError, match=r"name or id that no file can hold"):
        write_tree(TREE.with_ids({"saw": "\ud800"}), path, format)
    assert path.read_text() == "old" and [entry.name for entry in tmp_path.iterdir()] == [path.name]


def in_alphabet(nested):
    return {name: in_alphabet(below) if isinstance(below, dict) else None for name, below in sorted(nested.items())}


@settings(in_one_folder, max_examples=40)
@given(tree=trees())
def test_written_folders_are_read_back(tmp_path_factory, tree):
    folder = tmp_path_factory.mktemp("x") / "photos"
    write_tree(tree, folder)
    assert read_tree(folder, tree.num_levels) == ClassTree.from_nested(in_alphabet(tree.to_nested()), tree.num_levels)
    assert [entry.name for entry in folder.parent.iterdir()] == ["photos"]


def test_folders_by_hand(tmp_path):
    for path in (tmp_path / "photos", tmp_path / "new" / "photos.v2"):
        write_tree(TREE, path, "folders")
        assert sorted(str(place.relative_to(path)) for place in path.rglob("*")) == ["cat", "cat/lion", "saw"]
    (tmp_path / "empty").mkdir()
    write_tree(ClassTree.from_nested(["train", "car"]), tmp_path / "empty")
    assert sorted(str(place.relative_to(tmp_path / "empty")) for place in (tmp_path / "empty").rglob("*")) == [
        "train", "train/car", "train/train",
    ]  # fmt: skip
    assert read_tree(tmp_path / "empty").classes == ("car", "train")


def test_folders_that_are_there(tmp_path):
    (tmp_path / "photos" / "old").mkdir(parents=True)
    put(tmp_path, "file", "x")
    for name in ("photos", "file"):
        with pytest.raises(UsageError, match=f"{name}' is there"):
            write_tree(TREE, tmp_path / name)
    with pytest.raises(RunError, match="file"):
        write_tree(TREE, tmp_path / "file" / "photos")
    assert sorted(str(place.relative_to(tmp_path)) for place in tmp_path.rglob("*")) == ["file", "photos", "photos/old"]


@pytest.mark.parametrize(
    "name, kind", [(".cat", UsageError), ("..", UsageError), (".", UsageError), ("x" * 300, RunError)]
)
def test_names_that_no_folder_has(tmp_path, name, kind):
    with pytest.raises(kind) as caught:
        write_tree(ClassTree.from_nested({"a": {name: 0}}), tmp_path / "photos")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
