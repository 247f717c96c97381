"""Growing: old rows and logits stay, and new logits are what their small trees say, node by node."""

import pytest
import torch
from helpers.graft_material import build
from helpers.naive import NaiveTree, copy_weights, randomise
from hypothesis import given, settings
from hypothesis import strategies as st

from hlnet.errors import TreeError, UsageError
from hlnet.expert.cut import cut_expert
from hlnet.expert.graft import best_parent
from hlnet.expert.grow import find_parent, grow, grown_tree, inner_nodes, new_branches, node_output
from hlnet.tree.class_tree import ClassTree

SHAPES = st.recursive(st.none(), lambda below: st.lists(below, min_size=1, max_size=3), max_leaves=6).filter(bool)
TREE = ClassTree.from_nested(
    {"animal": {"cat": ["tabby", "lynx"], "dog": ["boxer"]}, "tool": {"cat": ["saw"]}, "sky": {}}
)
TREE = TREE.with_ids({"animal/dog": "n02084071", "sky": "n09"})


@st.composite
def trees_and_grafts(draw):
    """A tree of uneven depth, and numbers of new classes under some of its inner nodes, the trunk among them."""
    counter = iter(range(1000))

    def mapping(shape):
        return {f"n{next(counter)}": mapping(below) if below else 3 * next(counter) for below in shape}

    tree = ClassTree.from_nested(mapping(draw(SHAPES)))
    parents = st.sampled_from(sorted(inner_nodes(tree)))
    grafts = draw(st.dictionaries(parents, st.integers(1, 2), min_size=1, max_size=3))
    return tree, {path: [f"new {path} {i}".replace("/", "|") for i in range(count)] for path, count in grafts.items()}


def by_nesting(tree, grafts):
    """The grown tree by nested mappings alone."""
    nested, index = tree.to_nested(), max(tree.indices)
    for path, names in grafts.items():
        place = nested
        for part in filter(None, path.split("/")):
            place = place[part]
        for name in names:
            place[name] = index = index + 1
    return ClassTree.from_nested(nested, tree.num_levels)


def by_hand(net, path, branch, images):
    """Logits of one small tree, on one timm block a node, from the trunk down to its parent and on."""
    config = net.config
    old = NaiveTree(net.tree, net.trunk.channels, config.block, config.widths, config.strides).double().eval()
    copy_weights(net.head, old)
    x, words = net.trunk(images), path.strip("/").split("/") if path != "/" else []
    for depth in range(len(words)):
        paths = [node.path for node in net.tree.levels[depth]]
        x = old.rows[depth][paths.index("/".join(words[: depth + 1]))](x)
    small = NaiveTree(branch.tree, x.shape[1], config.block, config.widths[len(words) :], config.strides[len(words) :])
    copy_weights(branch, small.double().eval())
    return small(x)


@settings(max_examples=25, deadline=None)
@given(trees_and_grafts(), st.sampled_from(["bottleneck", "convnext"]))
def test_grown_network_is_the_old_one_and_small_trees(drawn, block):
    tree, grafts = drawn
    net, images = build(tree, block), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    branches = {path: new_branches(net, path, dict.fromkeys(names)).double() for path, names in grafts.items()}
    for seed, branch in enumerate(branches.values(), start=1):
        randomise(branch.eval(), seed)
    grown = grow(net, branches)
    assert grown.tree == by_nesting(tree, grafts)
    assert (grown.config, grown.transform, grown.training) == (net.config, net.transform, False)
    place = {name: i for i, name in enumerate(grown.tree.classes)}
    with torch.no_grad():
        found, old = grown(images), net(images)
        torch.testing.assert_close(found[:, [place[name] for name in tree.classes]], old, rtol=0, atol=1e-9)
        for path, branch in branches.items():
            logits = found[:, [place[name] for name in grafts[path]]]
            torch.testing.assert_close(logits, branch(node_output(net.head, net.head.seen(net.trunk(images)), path)))
            torch.testing.assert_close(logits, by_hand(net, path, branch, images))
        # Of the old classes alone, it is the old network: the same tree, rows and so logits, bit for bit.
        cut = cut_expert(grown, [leaf.path for leaf in tree.leaves])
        assert cut.tree == tree and torch.equal(cut(images), old)
    weights = net.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in cut.state_dict().items())


def test_grown_tree_by_hand():
    small = {"animal/cat": ClassTree.parallel(["puma"], levels=1), "/": ClassTree.parallel(["sea", "air"], levels=3)}
    tree, rows = grown_tree(TREE, small)
    assert [leaf.path for leaf in tree.leaves] == [
        *("animal/cat/tabby", "animal/cat/lynx", "animal/cat/puma", "animal/dog/boxer", "tool/cat/saw", "sky"),
        *("sea", "air"),
    ]
    assert tree.indices == (0, 1, 5, 2, 3, 4, 6, 7) and tree.ids == TREE.ids
    assert rows == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5], [0, 1, 5, 2, 3, 4, 6, 7]]
    assert [node.continued for node in tree.levels[1]] == [False] * 3 + [True] * 3
    assert grown_tree(TREE, small, first_index=9)[0].indices == (0, 1, 9, 2, 3, 4, 10, 11)
    with pytest.raises(TreeError, match="'saw' appears more than once"):
        grown_tree(TREE, {"/": ClassTree.parallel(["saw"], levels=3)})


@pytest.mark.parametrize(
    "word, path",
    [
        *[("/", "/"), ("", "/"), ("animal", "animal"), ("/animal/cat/", "animal/cat"), ("tool/cat", "tool/cat")],
        *[("dog", "animal/dog"), ("n02084071", "animal/dog")],
    ],
)
def test_parents_by_path_name_or_id(word, path):
    assert find_parent(TREE, word) == path


@pytest.mark.parametrize(
    "word, told",
    [
        ("cat", r"'cat' names several nodes \(animal/cat, tool/cat\)"),
        ("boxer", "'boxer' is a class"),
        ("animal/dog/boxer", "is a class"),
        ("sky", "is a class"),
        ("anmal", "no inner node 'anmal'. Did you mean 'animal'"),
        ("animal/", None),
        ("animal//cat", "no inner node"),
    ],
)
def test_what_is_no_parent(word, told):
    if told is None:
        assert find_parent(TREE, word) == "animal"
        return
    with pytest.raises(UsageError, match=told):
        find_parent(TREE, word)


@settings(max_examples=60, deadline=None)
@given(trees_and_grafts(), st.data())
def test_best_parent_walks_down_the_largest_sums(drawn, data):
    tree, _ = drawn
    shares = data.draw(st.lists(st.integers(1, 50), min_size=len(tree.leaves), max_size=len(tree.leaves)))
    shares = torch.tensor(shares, dtype=torch.float64) / sum(shares)
    named = {leaf.path: float(share) for leaf, share in zip(tree.leaves, shares, strict=True)}

    def total(path):
        return sum(share for leaf, share in named.items() if leaf == path or leaf.startswith(f"{path}/"))

    path, share = best_parent(tree, shares)
    assert share == pytest.approx(1 if path == "/" else total(path))
    below = tree.to_nested()
    steps = [] if path == "/" else path.split("/")
    for depth, step in enumerate([*steps, None]):
        above = "/".join(steps[:depth])
        sums = {name: total(f"{above}/{name}".lstrip("/")) for name in below}
        top = max(sums.values())
        if step is None:  # it stopped, for the largest is a class
            assert any(isinstance(below[name], int) for name, value in sums.items() if value == pytest.approx(top))
        else:
            assert sums[step] == pytest.approx(top)
            below = below[step]


def test_a_grown_expert_takes_no_index_of_its_parent():
    full = build(ClassTree.from_nested({"cat": {"tabby": 281, "siamese": 282}, "dog": {"beagle": 283}}))
    expert = cut_expert(full, full.tree.classes[0])
    grown = grow(expert, {"/": new_branches(expert, "/", {"lynx": None})})
    assert grown.tree.indices[-1] == full.tree.next_index not in full.tree.indices
