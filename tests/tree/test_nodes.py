"""Names of nodes: each word finds what plain path arithmetic says, and selections written for classes read back."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlnet.errors import SelectionError
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.selection import as_selection, select_classes

SHAPES = st.recursive(st.none(), lambda below: st.lists(below, min_size=1, max_size=3), max_leaves=10).filter(bool)
TREE = ClassTree.from_nested(
    {
        "animal": {"cat": ["tabby", "siamese"], "dog": {"hound": {"hound dog": ["beagle", "boxer"]}}},
        "tool": {"cat": ["D9"], "saw": {}},
        "wels": {"wels": {}, "cat fish": {}},
        "sky": {},
    }
)
TREE = TREE.with_ids({"animal/dog": "n02084071", "sky": "n09", "animal/cat/tabby": "siamese", "animal": "tool"})


@st.composite
def trees_of_few_names(draw):
    """A random tree of uneven depth whose inner nodes share names."""
    counter = itertools.count()

    def mapping(shape):
        names = [draw(st.sampled_from("abc")) if below else f"c{next(counter)}" for below in shape]
        return {name: mapping(below) if below else None for name, below in zip(names, shape, strict=True)}

    nested = mapping(draw(SHAPES))
    return ClassTree.from_nested(nested)


def by_paths(tree, word):
    """Paths of the nodes that a word means, most specific rule first."""
    leaves = [leaf.path for leaf in tree.leaves]
    paths = {node.path for row in tree.levels for node in row}
    if found := [path for path in leaves if path.split("/")[-1] == word]:
        return found
    return [word] if word in paths else sorted(path for path in paths if path.split("/")[-1] == word)


def under(tree, path):
    return tuple(i for i, leaf in enumerate(tree.leaves) if f"{leaf.path}/".startswith(f"{path}/"))


@settings(max_examples=80, deadline=None)
@given(trees_of_few_names())
def test_words_mean_what_paths_say(tree):
    paths = sorted({node.path for row in tree.levels for node in row})
    for word in {*paths, *(path.split("/")[-1] for path in paths)}:
        meant = by_paths(tree, word)
        if len({under(tree, path) for path in meant}) > 1:
            with pytest.raises(SelectionError, match=f"'{word}' names several nodes") as caught:
                tree.find_node(word)
            assert all(path in str(caught.value) for path in meant[:4])
            continue
        level, position = tree.find_node(f" {word} ")
        path = min(meant, key=len)
        assert tree.levels[level][position].path == path
        assert level == (tree.num_levels - 1 if path in [leaf.path for leaf in tree.leaves] else path.count("/"))
        assert tree.leaves_under((level, position)) == tree.leaves_under(path) == under(tree, path)
        assert select_classes(tree, word) == under(tree, path)


@settings(max_examples=80, deadline=None)
@given(trees_of_few_names(), st.data())
def test_selections_written_for_classes(tree, data):
    """They read back, and no two of their nodes could be one."""
    classes = data.draw(st.sets(st.sampled_from(range(len(tree.leaves))), min_size=1))
    text = as_selection(tree, classes)
    assert select_classes(tree, text) == tuple(sorted(classes))
    nodes = text.split(",")
    assert [tree.leaves_under(node) for node in nodes] == sorted(tree.leaves_under(node) for node in nodes)
    whole = {path for path in tree.node_names.below if set(under(tree, path)) <= classes}
    assert all(any(f"{path}/".startswith(f"{node}/") for node in nodes) for path in whole)


@pytest.mark.parametrize(
    "word, path",
    [
        *[("animal/cat", "animal/cat"), ("animal/cat/tabby", "animal/cat/tabby"), ("beagle", None)],
        *[("n02084071", "animal/dog"), ("n09", "sky"), ("sky", "sky"), ("dog", "animal/dog")],
        ("siamese", "animal/cat/siamese"),  # a class's name before another's id
        ("tool", "tool"),  # a path before an id
        ("wels", "wels/wels"),  # a class before an inner node
        ("hound", "animal/dog/hound"),
    ],
)
def test_words(word, path):
    level, position = TREE.find_node(word)
    found = TREE.levels[level][position]
    assert found.path == (path or "animal/dog/hound/hound dog/beagle")
    assert level == (4 if found.index is not None else path.count("/"))


def test_a_chain_of_one_name_is_its_first_node():
    tree = ClassTree.from_nested({"a": {"dog": {"dog": ["x", "y"]}}, "b": ["z"]})
    assert tree.find_node("dog") == (1, 0) and tree.find_node("a/dog/dog") == (2, 0)


def test_numbers_are_places_in_a_vector_of_gains():
    tree = ClassTree.from_nested({"cat": ["tabby", "siamese"], "saw": {}})
    nodes = [node for row in tree.levels for node in row]
    for word, path in {"cat": "cat", "tabby": "cat/tabby", "saw": "saw"}.items():
        level, position = tree.find_node(word)
        assert nodes[tree.offsets[level] + position].path == path
    level, position = tree.find_node("saw")
    assert tree.offsets[level] + position == 4 and nodes[4].continued


@pytest.mark.parametrize(
    "word, told",
    [
        ("taby", "no class or node 'taby'. Did you mean 'tabby'"),
        ("animal/dgo", "Did you mean 'animal/dog'"),
        ("cat", r"'cat' names several nodes \(animal/cat, tool/cat\); write the path"),
        ("cat/tabby", "'cat/tabby'.*Did you mean 'animal/cat/tabby'"),
        ("xyzzy", "no class or node 'xyzzy'. It has "),
        ("", "no class or node ''"),
        ("281", "'281'"),
    ],
)
def test_words_for_no_node(word, told):
    with pytest.raises(SelectionError, match=told):
        TREE.find_node(word)


def test_many_nodes_of_one_name_are_told_in_part():
    tree = ClassTree.from_nested({f"g{i}": {"same": [f"c{i}"]} for i in range(7)})
    with pytest.raises(SelectionError, match=r"\(g0/same, g1/same, g2/same, g3/same and 3 more\)"):
        tree.find_node("same")


def test_selection_of_a_node_whose_path_is_a_class():
    assert as_selection(TREE, (6, 7)) == "wels/wels,wels/cat fish"
    assert as_selection(TREE, range(9)) == "animal,tool,wels/wels,wels/cat fish,sky"
    tree = ClassTree.from_nested({"a": {}, "b": {}, "a,b": {}})
    assert [select_classes(tree, as_selection(tree, some)) for some in ((0, 1), (2,))] == [(0, 1), (2,)]
    for wrong in ((), (9,), (-1,)):
        with pytest.raises(SelectionError):
            as_selection(TREE, wrong)


@settings(deadline=None)
@given(trees_of_few_names(), st.data())
def test_columns_of_classes_and_the_node_over_them(tree, data):
    assert [tree.positions[name] for name in tree.classes] == list(range(len(tree.classes)))
    chosen = data.draw(st.sets(st.sampled_from(range(len(tree.classes))), min_size=1))
    paths = {"/".join(leaf.path.split("/")[:end]) for leaf in tree.leaves for end in range(1, 9)}
    over = [
        path
        for path in sorted(paths, key=len)
        if {i for i, leaf in enumerate(tree.leaves) if f"{leaf.path}/".startswith(f"{path}/")} == chosen
    ]
    assert tree.node_over(chosen) == (over[0] if over else None)
