"""Class trees of every odd kind, for the tests of their formats, and the files that hold them."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from hlnet.errors import HlnetError
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.io import FORMATS, read_tree, write_tree

SHAPES = st.recursive(st.none(), lambda below: st.lists(below, min_size=1, max_size=4), max_leaves=12).filter(bool)
ODD = [
    "cat", "a_b", "it's", 'say "x"', "'q'", "a, b", "(c)", "[d]", "e: f;", "g; h", "\\", "é\\n", "格", "𝛼", "#1",
    "=1+1", "no", "~", "-", "0", "1.0", "''", '"', "a  b", "<<", "{x}", "&a", "train", "id", "index", "name",
    "parent", "child", "class", "level 1", "nodes", "links", "children", "tree", "format", "ids", "ß", "x" * 140,
]  # fmt: skip
FILES = [(format, suffix) for format, suffixes in FORMATS.items() for suffix in suffixes if suffix]
PETS = {"cat": {"tabby": 0, "siamese": 1}, "dog": 2}
#: The contents of a file: bytes, and text that is nearly something.
CONTENT = (
    st.binary(max_size=60) | st.text(st.sampled_from("(),;:'[]{}\"\\ab_ \t\n\r\0&*-#é"), max_size=40) | st.text()
).map(lambda content: content if isinstance(content, bytes) else content.encode())
in_one_folder = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def trees(draw, ids=True):
    """A tree of uneven depth, with chains, inner nodes of one name, original indices and ids; perhaps continued."""
    used, count = set(), draw(st.integers(0, 5))

    def mapping(shape, path=()):
        nonlocal count
        result = {}
        for below in shape:
            name = draw(st.sampled_from(ODD))
            while name in result or (below is None and name in used):
                name += str(len(used) + len(result))
            if below is None:
                used.add(name)
                count += draw(st.integers(1, 3))
                result[name] = count
            else:
                result[name] = mapping(below, (*path, name))
        return result

    nested = mapping(draw(SHAPES))
    tree = ClassTree.from_nested(nested)
    tree = ClassTree.from_nested(nested, tree.num_levels + draw(st.integers(0, 2)))
    paths = sorted({node.path for row in tree.levels for node in row})
    chosen = draw(st.sets(st.sampled_from(paths))) if ids else ()
    return tree.with_ids(
        {path: draw(st.sampled_from(["n", "7 ", 'a,"', "f000"])) + str(i) for i, path in enumerate(chosen)}
    )


def put(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def written_and_read(tree, path, format):
    """The tree as it comes back from a file, which is all that is left in its folder."""
    write_tree(tree, path, format)
    if format != "canonical":  # which alone keeps levels that hold continued classes only
        assert read_tree(path).num_levels == max(leaf.path.count("/") + 1 for leaf in tree.leaves)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    return read_tree(path, tree.num_levels)


def tree_or_error(path):
    """Whether a file gives a tree, or an error of ours that is one line and names it."""
    try:
        tree = read_tree(path)
    except HlnetError as error:
        return len(str(error).splitlines()) == 1 and str(path) in str(error)
    return isinstance(tree, ClassTree)


def nested_of(nested):
    """The nested tree with nothing but names, as nested lists of pairs, which keep order."""
    return [(name, nested_of(below) if isinstance(below, dict) else None) for name, below in nested.items()]


def without_indices(nested):
    return {name: without_indices(below) if isinstance(below, dict) else None for name, below in nested.items()}
