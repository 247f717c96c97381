"""Candidate experts: prices and nodes against path arithmetic and cut networks; limits to the last parameter."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlnet.errors import RunError, SelectionError, UsageError
from hlnet.expert.candidates import candidates, classes_by_node, fitting, nodes_of_level, require_fit
from hlnet.expert.cut import cut_expert
from hlnet.model.cost import Part, profile, unit_costs
from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
from hlnet.model.transform import InputTransform
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.construct.budget import Budget

SHAPES = st.recursive(st.none(), lambda below: st.lists(below, min_size=1, max_size=4), max_leaves=12).filter(bool)
NESTED = {
    "animal": {"cat": {"tabby": 281, "tiger": 282, "lynx": 287}, "dog": {"beagle": 162, "boxer": 242}},
    "tool-saw": {"saw": 491},
    "wheel": 7,
}
TREE = ClassTree.from_nested(NESTED)  # animal 0-4 with cat 0-2 and dog 3-4, tool-saw 5, wheel 6


@st.composite
def priced_trees(draw):
    """A random tree, prices of its trunk and its levels' nodes, and choices of classes."""
    counter = iter(range(1000))

    def mapping(shape):
        return {f"n{next(counter)}": mapping(below) if below else None for below in shape}

    tree = ClassTree.from_nested(mapping(draw(SHAPES)))
    prices = draw(st.lists(st.integers(0, 90), min_size=tree.num_levels + 1, max_size=tree.num_levels + 1))
    units = [Part(name="any", nodes=1, params=p, macs=7 * p, bytes=4 * p + 1) for p in prices]
    every = range(len(tree.leaves))
    choices = draw(st.dictionaries(st.sampled_from("abc"), st.sets(st.sampled_from(every), min_size=1), min_size=1))
    return tree, units, choices


def price(tree, units, classes, of):
    """By path: at each level a class takes the node of so many first parts of its path, or itself, if it has ended."""
    nodes = {(level, *tree.leaves[i].path.split("/")[: level + 1]) for i in classes for level in range(tree.num_levels)}
    return of(units[0]) + sum(of(units[1 + level]) for level, *_ in nodes)


@settings(max_examples=60, deadline=None)
@given(priced_trees(), st.data())
def test_prices_nodes_and_what_fits(drawn, data):
    tree, units, choices = drawn
    for one in candidates(tree, units, choices):
        assert one.classes == tuple(sorted(choices[one.name]))
        assert one.cost.params == price(tree, units, one.classes, lambda unit: unit.params)
        assert one.cost.bytes == price(tree, units, one.classes, lambda unit: unit.bytes)
    paths = [leaf.path for leaf in tree.leaves]
    above = {path.rsplit("/", end)[0] for path in paths for end in range(1, path.count("/") + 1)}
    under = {node: tuple(i for i, path in enumerate(paths) if path.startswith(f"{node}/")) for node in above}
    assert classes_by_node(tree) == under
    some = next(iter(choices.values()))
    assert classes_by_node(tree, some) == {node: classes for node, classes in under.items() if some >= set(classes)}
    for level in range(1, tree.num_levels + 1):
        found = nodes_of_level(tree, level)
        assert list(found) == [node.path for node in tree.levels[level - 1]]
        assert all(
            found[node] == under.get(node, (i,)) for i, path in enumerate(paths) for node in found if node == path
        )
        assert all(classes == under[node] for node, classes in found.items() if node in under)
        cut = {node: tuple(i for i in classes if i in some) for node, classes in found.items()}
        assert nodes_of_level(tree, level, some) == {node: classes for node, classes in cut.items() if classes}
    nodes = candidates(tree, units, under)
    limit = Budget("macs", data.draw(st.sampled_from([one.cost.gmacs * 1e9 for one in nodes] or [0])) + 1e-3)
    within = {node for node in under if price(tree, units, under[node], lambda unit: unit.macs) <= limit.limit}
    found = fitting(nodes, limit)
    assert {one.name for one in found} == within and len(found) == len(within)
    sizes = [(len(one.classes), limit.of(one.cost)) for one in found]
    assert sizes == sorted(sizes, reverse=True)


def test_prices_are_those_of_the_cut_network():
    net = HierarchicalNet(
        NetworkConfig(backbone="test_resnet", split_point=-3, widths=(8, 6, 4), strides=(2, 1, 1)), TREE
    )
    net.transform = InputTransform(input_size=(3, 32, 32))
    units, _ = unit_costs(net.config, net.transform)
    for one in candidates(TREE, units, classes_by_node(TREE) | {"mixed": (0, 4, 6)}):
        indices = [TREE.indices[i] for i in one.classes]
        assert one.cost == profile(net.config, TREE, net.transform, indices).expert
        cut = cut_expert(net, indices)
        assert one.cost.params == sum(tensor.numel() for tensor in cut.parameters())
        assert one.cost.bytes == sum(tensor.numel() * tensor.element_size() for tensor in cut.state_dict().values())


def test_no_class_and_no_level_are_refused():
    units = [Part(name="any", nodes=1, params=1, macs=1, bytes=1)] * 4
    with pytest.raises(SelectionError, match="no class"):
        candidates(TREE, units, {"none": ()})
    for level in (0, 4):
        with pytest.raises(UsageError, match=f"no level {level}; its levels are 1, nearest to the trunk, to 3"):
            nodes_of_level(TREE, level)


@pytest.mark.parametrize(
    "text, measure, most, shown",
    [
        ("15M", "params", 15e6, "15M parameters"),
        ("15m", "params", 15e6, "15M parameters"),
        ("1500K", "params", 1.5e6, "1.5M parameters"),
        ("4.2GMAC", "macs", 4.2e9, "4.2 GMACs"),
        (" .5 gmacs ", "macs", 0.5e9, "0.5 GMACs"),
        ("850MMAC", "macs", 0.85e9, "0.85 GMACs"),
        ("40MB", "bytes", 40e6, "40 MB of weights"),
        ("40 mb", "bytes", 40e6, "40 MB of weights"),
        ("512kB", "bytes", 512e3, "0.512 MB of weights"),
        ("1.5GB", "bytes", 1.5e9, "1500 MB of weights"),
    ],
)
def test_limits(text, measure, most, shown):
    limit = Budget.parse(text)
    assert (limit.measure, limit.limit, limit.text(limit.limit)) == (measure, pytest.approx(most), shown)


@pytest.mark.parametrize("text", ["", "15", "M", "MB", "0MB", "0M", "-3M", "1e3M", "nanMB", "15MiB", "4.2G", "15M 3MB"])
def test_no_limits(text):
    with pytest.raises(UsageError, match=r"such as 15M.*4\.2GMAC.*40MB") as caught:
        Budget.parse(text)
    assert f"'{text}'" in str(caught.value)


def test_to_cost_just_as_much_is_to_fit():
    units = [Part(name="any", nodes=1, params=p, macs=p, bytes=8 * p) for p in (100, 30, 10, 1)]
    (cat,) = candidates(TREE, units, {"cat": (0, 1, 2)})  # one node of 30, one of 10, three of 1
    for measure, cost in (("params", 143), ("macs", 143), ("bytes", 8 * 143)):
        assert Budget(measure, cost).fits(cat.cost) and not Budget(measure, cost - 0.5).fits(cat.cost)
    require_fit([cat], Budget("params", 143), TREE, units)
    everything = candidates(TREE, units, {"all": range(7), "cat": (0, 1, 2), "tools": (5, 6)})
    messages = {
        142: "'cat' takes 0.000143M parameters, 1e-06M over the budget of 0.000142M; no inner node of it fits, "
        "one class alone takes 0.000141M parameters",
        140: "no expert keeps to it: one class alone takes 0.000141M parameters, of which the trunk 0.0001M",
        99: "the trunk alone takes 0.0001M parameters, which is the floor of every expert's cost",
    }
    for most, words in messages.items():
        with pytest.raises(RunError) as caught:
            require_fit([cat], Budget("params", most), TREE, units)
        assert words in str(caught.value) and caught.value.exit_code == 1
    with pytest.raises(RunError, match=r"the largest node of it that fits is 'animal/cat' \(3 classes, 0.000143M\)"):
        require_fit(everything[:1], Budget("params", 150), TREE, units)
    with pytest.raises(RunError, match=r"^2 of 3 experts are over the budget of 0.00015M parameters: 'all' .*'tools'"):
        require_fit(everything, Budget("params", 150), TREE, units)
