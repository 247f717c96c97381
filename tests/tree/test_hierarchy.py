"""Outlines: there and back from class trees, chains and classes taken out, names that stand twice."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlnet.errors import TreeError
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.hierarchy import Hierarchy, group_name

SHAPES = st.recursive(st.none(), lambda below: st.lists(below, min_size=1, max_size=4), max_leaves=14).filter(bool)


@st.composite
def trees(draw):
    """A tree of uneven depth, some of whose nodes have ids; perhaps continued, perhaps cut."""
    numbers, ids = itertools.count(), {}

    def mapping(shape, above=""):
        result = {}
        for below in shape:
            name = f"n{next(numbers)}"
            if draw(st.booleans()):
                ids[above + name] = f"id{next(numbers)}"
            result[name] = mapping(below, f"{above}{name}/") if below else None
        return result

    plain = ClassTree.from_nested(mapping(draw(SHAPES)))
    tree = ClassTree.from_nested(plain.to_nested(), plain.num_levels + draw(st.integers(0, 2))).with_ids(ids)
    return tree.prune(draw(st.sets(st.integers(0, len(tree.leaves) - 1), min_size=1)))


@st.composite
def nodes_by_key(draw):
    """An hierarchy with ids and heights; names of groups stand twice, those of classes do not."""
    numbers = itertools.count()

    def node(shape):
        identifier = draw(st.sampled_from([None, "id1", "id2"])) if shape else None
        name = draw(st.sampled_from(["g", "h", "g (2)"])) if shape else f"c{next(numbers)}"
        return Hierarchy(name, [node(below) for below in shape or ()], id=identifier, height=float(next(numbers)))

    return node(draw(SHAPES))


def plain(node):
    """All that a node holds, as nested tuples."""
    return node.name, node.index, node.id, node.height, [plain(child) for child in node.children]


def naive_walk(node):
    return [node, *(below for child in node.children for below in naive_walk(child))]


def naive_contracted(node):
    *own, _ = plain(node)
    below = [naive_contracted(child) for child in node.children]
    return below[0] if len(below) == 1 else (*own, below)


def naive_only(node, wanted):
    *own, children = plain(node)
    below = [kept for child in node.children if (kept := naive_only(child, wanted))]
    return (*own, below) if below or (not children and node.name in wanted) else None


@settings(max_examples=100, deadline=None)
@given(trees())
def test_tree_there_and_back(tree):
    root = Hierarchy.of(tree)
    assert root.to_tree(tree.num_levels) == tree
    named = [(node.name, node.id) for row in tree.levels for node in row if not node.continued]
    assert sorted((node.name, node.id) for node in list(root.walk())[1:]) == sorted(named)
    assert [(leaf.name, leaf.index) for leaf in root.leaves()] == list(zip(tree.classes, tree.indices, strict=True))
    assert all(node.index is None for node in root.walk() if node.children) and not root.name


@settings(max_examples=100, deadline=None)
@given(nodes_by_key(), st.sets(st.integers(0, 30)))
def test_operations_are_the_recursive_ones(root, numbers):
    before, wanted = plain(root), {f"c{number}" for number in numbers} | {"g"}  # a group's name asks for no class
    assert list(root.walk()) == naive_walk(root)
    assert root.leaves() == [node for node in naive_walk(root) if not node.children]
    contracted = naive_contracted(root)
    assert plain(root.contracted()) == (contracted if contracted[-1] else (root.name, None, None, 0.0, [contracted]))
    assert plain(root.only(wanted)) == (naive_only(root, wanted) or (root.name, None, None, 0.0, []))
    assert plain(root) == before


@settings(max_examples=100, deadline=None)
@given(nodes_by_key())
def test_doubled_names_of_groups(root):
    """The tree has the hierarchy's form; every name is the hierarchy's, or that with a mark; classes keep theirs."""
    tree = root.to_tree()
    assert tree.classes == tuple(leaf.name for leaf in root.leaves())
    assert tree.indices == tuple(range(len(tree.leaves)))

    def compare(ours, theirs):
        for one, other in zip(ours.children, theirs.children, strict=True):
            assert (one.id, bool(one.children)) == (other.id, bool(other.children))
            assert other.name == one.name or (other.name.startswith(f"{one.name} (") and one.children)
            compare(one, other)

    compare(root, Hierarchy.of(tree))


def test_marks_of_doubled_names_by_hand():
    ids = [None, "n1", "n2", "n2", None]
    root = Hierarchy("", [Hierarchy("g", [Hierarchy(f"c{i}")], id=mark) for i, mark in enumerate(ids)])
    assert [node.name for node in root.to_tree().levels[0]] == ["g", "g (n1)", "g (n2)", "g (2)", "g (3)"]
    apart = Hierarchy("", [Hierarchy(name, [Hierarchy("g", [Hierarchy(f"{name}1")])]) for name in "ab"])
    assert [node.path for node in apart.to_tree().levels[1]] == ["a/g", "b/g"]


@pytest.mark.parametrize("order", [1, -1])
def test_a_class_keeps_its_name_beside_a_group_of_that_name(order):
    root = Hierarchy("", [Hierarchy("cat", [Hierarchy("tabby")]), Hierarchy("cat", id="n1")][::order])
    assert set(root.to_tree().classes) == {"tabby", "cat"}


def test_indices_and_levels():
    root = Hierarchy("", [Hierarchy("a", index=7), Hierarchy("g", [Hierarchy("b", index=0)])])
    assert root.to_tree().indices == (7, 0) and root.to_tree(4).counts == (2, 2, 2, 2)


@pytest.mark.parametrize(
    "root",
    [
        Hierarchy(""),
        Hierarchy("", [Hierarchy("a", [Hierarchy("x")]), Hierarchy("b", [Hierarchy("x")])]),
        Hierarchy("", [Hierarchy("a", index=1), Hierarchy("b", index=1)]),
        Hierarchy("", [Hierarchy("a", index=1), Hierarchy("b")]),
        Hierarchy("", [Hierarchy("a/b")]),
    ],
    ids=["no class", "class twice", "index twice", "index twice, once by order", "slash"],
)
def test_refused(root):
    with pytest.raises(TreeError):
        root.to_tree()


def test_rename_classes():
    tree = ClassTree.from_nested({"cat": {"tabby": 281, "lion": 291}, "saw": 499}).with_ids({"saw": "n3", "cat": "n9"})
    found = Hierarchy(
        "", [Hierarchy("2+0", [Hierarchy("2", index=2, id="x"), Hierarchy("0", index=0, id="y")], id="z")]
    )
    found.children.append(Hierarchy("1", index=1))
    found.rename_classes(tree)
    result = found.to_tree()
    assert result.to_nested() == {"2+0": {"saw": 499, "tabby": 281}, "lion": 291}
    assert result.ids == {"2+0": "z", "2+0/saw": "n3", "2+0/tabby": "y"}  # its own id where the tree has none


def test_depth_is_no_limit():
    node, names = Hierarchy("c0", index=0), ["c0"]
    for depth in range(1, 5001):
        children = [node] if depth % 2 else [Hierarchy(f"c{depth}", index=depth), node]
        names += [] if depth % 2 else [f"c{depth}"]
        node = Hierarchy(f"g{depth}", children)
    assert {leaf.name for leaf in node.leaves()} == set(names) and len(list(node.walk())) == 7501
    assert len(list(node.contracted().walk())) == 2 * len(names) - 1
    assert [leaf.name for leaf in node.only(["c4", "c4000"]).contracted().leaves()] == ["c4000", "c4"]
    assert node.only(["c4", "c4000"]).contracted().to_tree().classes == ("c4000", "c4")
    with pytest.raises(TreeError, match="deep"):
        node.to_tree()


@pytest.mark.parametrize(
    ("names", "count", "expected"),
    [
        (["a"], None, "a"),
        (["a", "b", "c"], None, "a+b+c"),
        (["a", "b", "c", "d"], None, "a+b+c+1-more"),
        (["a", "b", "c"], 3, "a+b+c"),
        (["a", "b", "c"], 40, "a+b+c+37-more"),
    ],
)
def test_group_name(names, count, expected):
    assert group_name(names, count) == expected
