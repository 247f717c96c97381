"""Class trees in tables of paths and edges: written and read back, by us and by csv; nonsense is refused."""

import csv

import pytest
from helpers.trees import CONTENT, PETS, in_one_folder, nested_of, put, tree_or_error, trees, written_and_read
from hypothesis import given, settings
from hypothesis import strategies as st

from hlnet.errors import TreeError
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.io import SUFFIXES, read_tree, write_tree

# ---------------------------------------------------------------------- writing


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("format", ["paths", "edges"])
@settings(in_one_folder, max_examples=40)
@given(tree=trees())
def test_written_tree_is_read_back(tmp_path, format, suffix, tree):
    classes = {leaf.path for leaf in tree.leaves}
    kept = {path: id for path, id in tree.ids.items() if format == "edges" or path in classes}
    assert written_and_read(tree, tmp_path / f"any{suffix}", format) == tree.with_ids(kept)


@pytest.mark.parametrize("suffix, delimiter", [(".csv", ","), (".tsv", "\t")])
@settings(in_one_folder, max_examples=40)
@given(tree=trees())
def test_tables_hold_every_class_and_edge(tmp_path, suffix, delimiter, tree):
    def rows(format):
        write_tree(tree, tmp_path / f"t{suffix}", format)
        with (tmp_path / f"t{suffix}").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, delimiter=delimiter))

    paths = [[row[f"level {i}"] for i in range(1, 99) if row.get(f"level {i}")] for row in rows("paths")]
    assert ["/".join(path) for path in paths] == [leaf.path for leaf in tree.leaves]
    assert [int(row["index"]) for row in rows("paths")] == list(tree.indices)
    assert [row.get("id") or None for row in rows("paths")] == [leaf.id for leaf in tree.leaves]
    nodes = {node.path: node for row in tree.levels for node in row if not node.continued}
    edges = rows("edges")
    assert sorted(row.get("name", row["child"]) for row in edges) == sorted(node.name for node in nodes.values())
    names = {"": ""} | {row["child"]: row.get("name", row["child"]) for row in edges}
    links = [(path.split("/")[-2] if "/" in path else "", node.name) for path, node in nodes.items()]
    assert sorted((names[row["parent"]], names[row["child"]]) for row in edges) == sorted(links)


def test_written_by_hand(tmp_path):
    tree = ClassTree.from_nested({"cat, big": {"lion": 7}, "saw's": 4}, levels=3).with_ids({"cat, big": "n1"})
    write_tree(tree, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_bytes() == b'level 1,level 2,index\n"cat, big",lion,7\nsaw\'s,,4\n'
    write_tree(tree, tmp_path / "t.csv", "edges")
    expected = b'parent,child,id,index\n,"cat, big",n1,\n"cat, big",lion,,7\n,saw\'s,,4\n'
    assert (tmp_path / "t.csv").read_bytes() == expected


def test_edges_of_nodes_that_share_a_name(tmp_path):
    write_tree(ClassTree.from_nested({"zoo": {"cat": {"lion": 0}}, "cat": {"tabby": 1}}), tmp_path / "t.csv", "edges")
    assert (tmp_path / "t.csv").read_text().splitlines()[:4] == [
        "parent,child,name,index", ",zoo,zoo,", "zoo,zoo/cat,cat,", "zoo/cat,zoo/cat/lion,lion,0",
    ]  # fmt: skip


# ---------------------------------------------------------------------- reading what others wrote

READ = {
    "edges": ("t.csv", "parent,child\n,cat\ncat,tabby\ncat,siamese\n,dog\n"),
    "edges from a root": ("t.csv", "source,weight,target\npet,1,cat\npet,,dog\ncat,2,tabby\ncat,,siamese\n"),
    "edges, children first": ("t.csv", "Child, PARENT\ntabby,cat\nsiamese,cat\ncat,pet\ndog,pet\n"),
    "edges by keys": ("t.tsv", "\ufeffparent\tchild\tlabel\n\t1\tcat\n1\t2\ttabby\n1\t3\tsiamese\n\tdog\t\n"),
    "edges with indices": ("t.csv", "parent,child,index\r\n,cat,\r\ncat,tabby,0.0\r\ncat,siamese,1.0\r\n,dog,2.0\r\n"),
    "paths": ("t.csv", "cat,tabby\ncat,siamese\n\ndog,\n"),
    "ragged paths": ("t.csv", "cat,tabby\ncat,siamese,,\ndog"),
    "paths with a header": ("t.csv", '\ufeffSuperclass,Class,,\r\n cat, "tabby",,\r\ncat ,siamese\r\ndog\r\n'),
    "paths with an index": ("t.csv", "index,id,level_1,Level 2\n0,,cat,tabby\n2,,dog,\n1,,cat,siamese\n"),
    "paths with semicolons": ("t.csv", "\ufeffClassID;Super-Class;class_name\r\n0,0;cat;tabby\r\n2;dog\n1;cat;siamese"),
    "paths with semicolons, no header": ("t.csv", '\n"cat";tabby\ncat;siamese\ndog\n'),
    "paths with tabs in a csv": ("t.csv", "cat\ttabby\ncat\tsiamese\ndog\n"),
    "edges with semicolons": ("t.csv", "parent;child\n;cat\ncat;tabby\ncat;siamese\n;dog\n"),
    "paths in a tsv": ("t.TSV", "cat\ttabby\ncat\tsiamese\ndog\n"),
}  # fmt: skip


@pytest.mark.parametrize("name, content", READ.values(), ids=READ.keys())
def test_reads(tmp_path, name, content):
    nested = read_tree(put(tmp_path, name, content)).to_nested()
    assert nested == PETS and nested_of(nested) == nested_of(PETS)


@pytest.mark.parametrize("name, text", [("t.csv", "source,target\na,b\na,c\nd,e\n"), ("t.csv", "a,b\na,c\nd,e\n")])
def test_several_roots_are_level_1(tmp_path, name, text):
    assert read_tree(put(tmp_path, name, text)).to_nested() == {"a": {"b": 0, "c": 1}, "d": {"e": 2}}


def test_an_empty_parent_keeps_a_single_root(tmp_path):
    assert read_tree(put(tmp_path, "t.csv", "parent,child\n,a\na,b\n")).to_nested() == {"a": {"b": 0}}
    assert read_tree(put(tmp_path, "t.csv", "parent,child\na,b\n")).to_nested() == {"b": 0}


HEADERS = [
    "group,class_name", "Category,class", "coarse_label,fine_label", "Coarse Label,fine-label", "superclass,label",
    "parent_class,class", "super_category,name", "Group Name,Sub Group", "kingdom,species", "level-1,LEVEL_2",
    "category,leaf", "group,subclass,", "parent label,label",
]  # fmt: skip


@pytest.mark.parametrize("first", HEADERS)
def test_usual_headings_are_no_class(tmp_path, first):
    assert read_tree(put(tmp_path, "t.csv", f"{first}\na,b\na,c\n")).to_nested() == {"a": {"b": 0, "c": 1}}


@pytest.mark.parametrize("first", ["music,order", "kingdoms,level", "x,id", "name,x", "class,,x", "family,bird,owl"])
def test_a_first_row_is_a_header_if_more_than_half_of_it_is_known(tmp_path, first):
    path = first.replace(",,", ",")
    tree = read_tree(put(tmp_path, "t.csv", f"{path}\n3,b\n"))
    assert [leaf.path for leaf in tree.leaves] == [path.replace(",", "/"), "3/b"]
    tree = read_tree(put(tmp_path, "t.csv", f"{path},label,genus,species\n3,b\n"))
    assert [leaf.name for leaf in tree.leaves] in (["b"], ["3"])


@pytest.mark.parametrize(
    "text, ids",
    [
        ("wnid,class\nn1,a\nn2,b\n", ["n1", "n2"]),
        ("class,WordNet ID,group\na,n1\nb,n2\n", ["n1", "n2"]),
        ("synset,name\ncat.n.01,a\n,b\n", ["cat.n.01", None]),
        ("class_id,class_name\nc1,a\n2,b\n", ["c1", "2"]),
    ],
)
def test_ids_under_other_headings(tmp_path, text, ids):
    tree = read_tree(put(tmp_path, "t.csv", text))
    assert [leaf.name for leaf in tree.leaves] == ["a", "b"] and [leaf.id for leaf in tree.leaves] == ids


@pytest.mark.parametrize("heading", ["class_id", "label index", "Index", "original-index"])
def test_indices_under_other_headings(tmp_path, heading):
    tree = read_tree(put(tmp_path, "t.csv", f"group,class,{heading}\nx,a,7\nx,b,3\n"))
    assert {leaf.name: (leaf.index, leaf.id) for leaf in tree.leaves} == {"a": (7, None), "b": (3, None)}


def test_levels_are_in_the_order_of_their_numbers(tmp_path):
    rows = "Level 10,index,level_2,level 9\ntabby,4,pet,cat\nsaw,2,tool,\n".splitlines()
    tree = read_tree(put(tmp_path, "t.csv", "\n".join(rows)))
    assert tree.to_nested() == {"pet": {"cat": {"tabby": 4}}, "tool": {"saw": 2}}
    tree = read_tree(put(tmp_path, "t.csv", "\n".join([*rows[:2], "saw,2,tool,hand"])))
    assert tree.to_nested() == {"pet": {"cat": {"tabby": 4}}, "tool": {"hand": {"saw": 2}}}


def test_a_semicolon_beside_a_comma_is_part_of_a_name(tmp_path):
    assert read_tree(put(tmp_path, "t.csv", "a,b;c\na,d\n")).classes == ("b;c", "d")
    with pytest.raises(TreeError, match="row 1 is a single cell that holds ';'"):
        read_tree(put(tmp_path, "t.tsv", "a;b\nc\n"))


def test_ids_and_indices_of_tables(tmp_path):
    tree = read_tree(put(tmp_path, "t.csv", "class,id,Index\ntabby,n1,281\nsaw,,0499\n"))
    assert [(leaf.name, leaf.id, leaf.index) for leaf in tree.leaves] == [("tabby", "n1", 281), ("saw", None, 499)]
    tree = read_tree(put(tmp_path, "t.csv", "parent,child,id,index\n,cat,n1,\ncat,tabby,n2,281\n"))
    assert tree.ids == {"cat": "n1", "cat/tabby": "n2"} and tree.indices == (281,)


# ---------------------------------------------------------------------- nonsense

WRONG = {
    "several parents": ("t.csv", "parent,child\na,x\nb,x\n", r"'x' has several parents \('a', 'b'\)"),
    "the trunk and a parent": ("t.csv", "parent,child\n,a\na,b\n,b\n", r"'b' has several parents \('a', the trunk\)"),
    "cycle": ("t.csv", "parent,child\na,b\nb,c\nc,a\n", "'a', 'b', 'c' go in a circle"),
    "cycle beside a tree": ("t.csv", "parent,child\nr,a\nx,y\ny,x\n", "'x', 'y' go in a circle"),
    "loop": ("t.csv", "parent,child\na,a\n", "'a' go in a circle"),
    "pieces": ("t.csv", "parent,child\n,a\nb,c\n", "pieces, below the trunk, 'b'"),
    "edge twice": ("t.csv", "parent,child\n,a\n\n,a\n", "row 4.*'a' under the trunk"),
    "no child": ("t.csv", "parent,child\n,a\nb,\n", "row 3 names no child"),
    "header alone": ("t.csv", "parent,child\n", "no class"),
    "paths' header alone": ("t.csv", "level 1\n", "no class"),
    "headings twice": ("t.csv", "parent,child,ID,id\n,a,x,y\n", "'ID' and 'id' head columns of one kind"),
    "two ids": ("t.csv", "wnid,synset,class\nn1,a.n.1,a\n", "'wnid' and 'synset' head columns of one kind"),
    "no heading": ("t.csv", ",class\n5,a\n1,b\n", "column 1 has no heading"),
    "long row": ("t.csv", "class\na\nb,c\n", "row 3 has more cells"),
    "only an id": ("t.csv", "class,id\na,1\n,2\n", "row 3 names no class"),
    "class twice": ("t.csv", "class,index\na,1\na,2\n", "row 3: 'a' is the class of row 2"),
    "class above a class": ("t.csv", "a,b\na,b,c\n", "row 2: 'a/b' is the class of row 1"),
    "class above a class, later": ("t.csv", "a,b,c\na,b\n", "row 2: 'a/b' is a group of an earlier row"),
    "class in two groups": ("t.csv", "a,x\nb,x\n", "class 'x' appears more than once"),
    "no number": ("t.csv", "class,index\na,1.5\n", "row 2: the index.*'1.5'"),
    "some indices": ("t.csv", "class,index\na,1\nb,\n", "'b' has no index"),
    "index twice": ("t.csv", "class,index\na,1\nb,1\n", "original index 1 appears"),
    "open quote": ("t.csv", 'a,b\n"c,d\n', "line 2.*end of data"),
    "slash": ("t.csv", "a,b/c\n", "b/c.*no name"),
    "line in a name": ("t.csv", '"a\nb",c\n"a\nb",d\n"a\nb"\n', "row 3"),
    "empty table": ("t.tsv", " \n\t\n", "empty"),
    "binary table": ("t.csv", b"\x89PNG\xff\0", "no text in UTF-8"),
    "UTF-16": ("t.csv", "a,b\n".encode("utf-16-le"), "no name for a node"),
}  # fmt: skip


@pytest.mark.parametrize("name, content, words", WRONG.values(), ids=WRONG.keys())
def test_wrong_file(tmp_path, name, content, words):
    with pytest.raises(TreeError, match=words) as caught:
        read_tree(put(tmp_path, name, content))
    assert str(tmp_path / name) in str(caught.value) and len(str(caught.value).splitlines()) == 1


DEEP = {
    "edges": "parent,child\n" + "".join(f"n{i},n{i + 1}\n" for i in range(5000)),
    "paths": ",".join(f"n{i}" for i in range(5000)),
}


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP.keys())
def test_too_deep(tmp_path, text):
    with pytest.raises(TreeError, match="deeper than 64 levels"):
        read_tree(put(tmp_path, "t.csv", text))


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@settings(in_one_folder, max_examples=50)
@given(content=CONTENT)
def test_any_content(tmp_path, suffix, content):
    assert tree_or_error(put(tmp_path, f"t{suffix}", content))
    assert tree_or_error(put(tmp_path, f"t{suffix}", b"parent,child,id,index\n" + content))


VALID = [text for _, text in READ.values()]


@settings(in_one_folder, max_examples=100)
@given(st.sampled_from(VALID), st.sampled_from(SUFFIXES), st.integers(0, 300), st.integers(0, 9), st.text(max_size=3))
def test_any_damage(tmp_path, text, suffix, start, length, put_in):
    start %= len(text)
    assert tree_or_error(put(tmp_path, f"t{suffix}", text[:start] + put_in + text[start + length :]))
    assert tree_or_error(put(tmp_path, f"t{suffix}", text[:start]))
