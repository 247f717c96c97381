"""The paper's figures: every row of both tables in architecture.md, from profile() and from closed formulas."""

from functools import cache

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from helpers.naive import NaiveTree
from timm import create_model
from torch import nn

from hlnet.model.cost import count_macs, plain_cost, profile
from hlnet.model.hierarchical import HierarchicalNet
from hlnet.model.presets import network_config
from hlnet.model.trunk import Trunk
from hlnet.tree.class_tree import ClassTree

N3HL, PHL, N152, CNX = "n3hl_resnet50", "phl_resnet50", "n3hl_resnet152", "n3hl_convnextv2_tiny"
BLOCKS = {N3HL: "bottleneck", PHL: "bottleneck", N152: "bottleneck", CNX: "convnext"}
SIDES = {N3HL: (14, 14, 14, 7), PHL: (14, 7, 4, 2), N152: (14, 14, 14, 7), CNX: (14, 14, 14, 7)}  # of the feature maps

# First table. Trunk: preset -> true parameters, those that thop sees, MMACs of thop, of fvcore.
TRUNKS = {
    N3HL: (8_543_296, 8_543_296, "3319.845", "3298.871"),
    N152: (43_179_072, 43_179_072, "10790.048", "10746.194"),
    CNX: (12_378_240, 12_334_272, "3697.796", "3711.719"),
}
# Level by level: in channels, width, true parameters, those that thop sees; and MMACs of thop, of fvcore.
NODES = {
    "bottleneck": [(1024, 128, 870_912, 870_912), (512, 64, 218_368, 218_368), (256, 32, 55_041, 55_041)],
    "convnext": [(384, 256, 640_512, 636_928), (256, 128, 172_928, 171_008), (128, 64, 70_273, 69_185)],
}
MMACS = {
    N3HL: [("171.2005", "170.6988"), ("43.0510", "42.8001"), ("3.9516", "3.9107")],
    PHL: [("62.143", "61.980"), ("4.604", "4.579"), ("0.323", "0.319")],  # 4.579456; architecture.md: 4.580
    CNX: [("124.4867", "125.1139"), ("33.3420", "33.7183"), ("3.3682", "3.5096")],
}
TRUNKS[PHL], MMACS[N152] = TRUNKS[N3HL], MMACS[N3HL]

# Second table: rebuilt M parameters (true), GMACs of thop and fvcore, and what the paper prints for them.
PLAIN = [  # preset with the backbone, classes, parameters true, of thop, GMACs thop, fvcore; printed parameters, GMACs
    (N3HL, 5, "23.518", "23.518", "4.132", "4.109", "23.5", "4.13"),  # fvcore 4.10947; architecture.md: 4.110
    (N3HL, 10, "23.529", "23.529", "4.132", "4.109", "23.5", "4.13"),
    (N3HL, 100, "23.713", "23.713", "4.132", "4.110", "23.7", "4.13"),
    (N3HL, 1000, "25.557", "25.557", "4.134", "4.112", "25.6", "4.13"),
    (N152, 100, "58.349", "58.349", "11.602", "11.557", "58.3", None),
    (N152, 1000, "60.193", "60.193", "11.604", "11.559", "60.2", None),
    (CNX, 10, "27.874", "27.805", "4.4548", "4.470", "27.8", None),
    (CNX, 100, "27.943", "27.874", "4.4549", "4.470", "27.9", None),
    (CNX, 1000, "28.635", "28.566", "4.4556", "4.470", "28.6", "4.46"),  # the paper's one figure for all is this
]
TREES = [  # preset, nodes, true parameters, GMACs thop, fvcore, printed parameters (if of the true ones), GMACs
    (PHL, (10, 10, 10), "19.9865", "3.9905", "3.968", "20.0", "3.99"),
    (PHL, (5, 5, 5), "14.2649", "3.6552", "3.633", "14.3", "3.66"),
    (N3HL, (1, 9, 10), "11.9299", "3.9180", "3.894", "11.9", None),  # 3.91: see below
    (N3HL, (1, 5, 5), "10.7813", "3.7261", "3.703", "10.8", "3.73"),
    (N3HL, (6, 26, 100), "24.9504", "5.8615", "5.827", "25.0", "5.86"),
    (N3HL, (1, 15, 20), "13.7905", "4.2158", "4.190", "13.8", "4.22"),
    (N3HL, (17, 161, 1000), "113.547", "17.113", "17.002", "113.5", None),
    (N152, (6, 26, 100), "59.586", "13.332", "13.274", "59.6", None),
    (N152, (17, 161, 1000), "148.183", "24.583", "24.450", "148.2", None),
    (CNX, (1, 9, 10), "15.278", "4.156", "4.175", "15.3", None),
    (CNX, (6, 26, 100), "27.745", "5.648", "5.690", "27.7", None),
    (CNX, (17, 161, 1000), "121.381", "14.5503", "14.777", "121.4", "14.55"),
    (CNX, (1, 1, 5), "13.543", "3.8725", "3.888", None, "3.87"),  # 13.5: of thop's parameters
]
EXPERTS = [  # preset, full, expert, savings in %: rebuilt parameters (true), GMACs by thop; printed ones
    (PHL, (10, 10, 10), (5, 5, 5), "28.627", "8.404", "28.63", "8.40"),
    (N3HL, (1, 9, 10), (1, 5, 5), "9.629", "4.899", "9.63", "4.90"),
    (N3HL, (6, 26, 100), (1, 15, 20), "44.73", "28.08", None, "28"),  # -44.5: see below
    (CNX, (17, 161, 1000), (1, 1, 5), None, "73.386", None, "73.4"),  # -88.7: of thop's parameters
]
FULL_OF = {(preset, expert): full for preset, full, expert, *_ in EXPERTS}
EXPERT_OF = {(preset, full): expert for preset, full, expert, *_ in EXPERTS}


def rounds_to(value, printed):
    return f"{value:.{len(printed.partition('.')[2])}f}" == printed


def node_cost(preset, level):
    """Closed formulas for one node: true parameters, thop's, MACs of thop (BN at 4, no LayerNorm), of fvcore (2; 5)."""
    cin, w = NODES[BLOCKS[preset]][level][:2]
    side, out, leaf = SIDES[preset][level] ** 2, SIDES[preset][level + 1] ** 2, level == 2
    if BLOCKS[preset] == "bottleneck":
        convs = cin * w * side + (9 * w * w + 4 * w * w + 4 * cin * w) * out
        norm, channels = w * side + 9 * w * out, 4 * w
        params = seen = cin * w + 9 * w * w + 4 * w * w + 4 * cin * w + 20 * w + leaf * 129
        thop, fvcore = convs + 4 * norm, convs + 2 * norm
    else:
        k, channels = 1 if side == out else 4, w  # k: pixels of the first convolution's kernel
        params = 2 * cin + cin * w * k + w + 8 * w * w + 66 * w + leaf * (3 * w + 1)
        seen = cin * w * k + w + 50 * w + 8 * w * w + 5 * w + leaf * (w + 1)
        thop = (cin * w * k + 49 * w + 8 * w * w) * out
        fvcore = thop + 5 * cin * side + 5 * w * out + leaf * 5 * w
    # A leaf: one pooled sum (thop: and one division) a channel, and the dot product.
    return params, seen, thop + leaf * channels * (out + 2), fvcore + leaf * channels * (out + 1)


def shapes_cost(module, *shape):
    """The same four of any timm module on the meta device, from the shapes that its parts see."""
    rows = []

    def hook(part, inputs, output):
        counts, size = (0, 0), output.numel()
        if isinstance(part, nn.Conv2d | nn.Linear):
            counts = (size * part.weight[0].numel(),) * 2
        elif isinstance(part, nn.BatchNorm2d | nn.LayerNorm):
            counts = (4 * size, 2 * size) if isinstance(part, nn.BatchNorm2d) else (0, 5 * size)
        elif isinstance(part, nn.AdaptiveAvgPool2d):
            counts = inputs[0].numel() + size, inputs[0].numel()
        rows.append((sum(tensor.numel() for tensor in part.parameters()) if counts[0] else 0, *counts))

    for part in module.modules():
        if not list(part.children()):
            part.register_forward_hook(hook)
    module.eval()(torch.zeros(1, *shape, device="meta"))
    return sum(tensor.numel() for tensor in module.parameters()), *map(sum, zip(*rows, strict=True))


@cache
def backbone_cost(preset, classes=None):
    """The same four of the trunk, or of the plain network with so many classes."""
    name = network_config(preset, 3).backbone
    with torch.device("meta"):
        return shapes_cost(Trunk(name) if classes is None else create_model(name, num_classes=classes), 3, 224, 224)


def tree_cost(preset, counts):
    """Total = trunk + n1 * L1 + n2 * L2 + k * L3, for all four."""
    nodes = [node_cost(preset, level) for level in range(3)]
    levels = [[n * figure for figure in node] for n, node in zip(counts, nodes, strict=True)]
    return tuple(map(sum, zip(backbone_cost(preset), *levels, strict=True)))


@cache
def profiled(preset, full):
    """The profile for a full network of the second table, with the expert that the paper cuts from it, if any."""
    expert = EXPERT_OF.get((preset, full))
    return profile(network_config(preset, 3), ClassTree.balanced(expert or full), parent_counts=expert and full)


def column(preset, counts):
    """profile()'s column for a row of the second table."""
    full = FULL_OF.get((preset, counts))
    return profiled(preset, full).expert if full else profiled(preset, counts).full


@pytest.mark.parametrize("preset", TRUNKS)
def test_trunk_and_node_of_each_level(preset):
    nodes = zip(NODES[BLOCKS[preset]], MMACS[preset], strict=True)
    figures = [TRUNKS[preset], *((params, seen, *macs) for (_, _, params, seen), macs in nodes)]
    costs = [backbone_cost(preset), *(node_cost(preset, level) for level in range(3))]
    found = column(preset, (10, 10, 10) if preset == PHL else (6, 26, 100))
    for n, part, cost, row in zip((1, *found.nodes), found.parts, costs, figures, strict=True):
        assert cost[:2] == row[:2]
        assert rounds_to(cost[2] / 1e6, row[2]) and rounds_to(cost[3] / 1e6, row[3])
        assert (part.nodes, part.params, part.macs) == (n, n * cost[0], n * cost[3])
    assert sum(row[2] for row in NODES["bottleneck"]) == 1_144_321  # of a branch of PHL


@pytest.mark.parametrize(("preset", "classes", "true", "seen", "thop", "fvcore", "m", "g"), PLAIN)
def test_plain_network(preset, classes, true, seen, thop, fvcore, m, g):
    counted = backbone_cost(preset, classes)
    for value, rebuilt in zip(counted, (true, seen, thop, fvcore), strict=True):
        assert rounds_to(value / (1e6 if rebuilt in {true, seen} else 1e9), rebuilt)
    assert rounds_to(counted[1] / 1e6, m) and (g is None or rounds_to(counted[2] / 1e9, g))
    full = {10: (1, 9, 10), 100: (6, 26, 100), 1000: (17, 161, 1000)}.get(classes)
    found = profiled(preset, full).plain if full else plain_cost(network_config(preset, 3), classes, (3, 224, 224))
    assert (found.params, round(found.gmacs * 1e9), found.classes) == (counted[0], counted[3], classes)


@pytest.mark.parametrize(("preset", "counts", "true", "thop", "fvcore", "m", "g"), TREES)
def test_tree_network(preset, counts, true, thop, fvcore, m, g):
    counted = tree_cost(preset, counts)
    assert rounds_to(counted[0] / 1e6, true)
    assert rounds_to(counted[2] / 1e9, thop) and rounds_to(counted[3] / 1e9, fvcore)
    assert (m is None or rounds_to(counted[0] / 1e6, m)) and (g is None or rounds_to(counted[2] / 1e9, g))
    found = column(preset, counts)
    assert (found.params, round(found.gmacs * 1e9), found.nodes) == (counted[0], counted[3], counts)
    with torch.device("meta"):  # truly built, but without storage
        built = HierarchicalNet(network_config(preset, 3), ClassTree.balanced(counts))
    assert sum(tensor.numel() for tensor in built.parameters()) == counted[0]


@pytest.mark.parametrize(("preset", "full", "expert", "params", "thop", "printed_params", "printed_thop"), EXPERTS)
def test_savings_of_an_expert(preset, full, expert, params, thop, printed_params, printed_thop):
    whole, cut = tree_cost(preset, full), tree_cost(preset, expert)
    saved = [100 * (1 - small / large) for small, large in zip(cut, whole, strict=True)]
    assert rounds_to(saved[2], thop) and rounds_to(saved[2], printed_thop)
    assert all(figure is None or rounds_to(saved[0], figure) for figure in (params, printed_params))
    found = profiled(preset, full)
    changes = found.reductions["expert vs full"]
    assert changes["params"] == pytest.approx(-saved[0] / 100) and changes["gmacs"] == pytest.approx(-saved[3] / 100)
    assert (found.full.nodes, found.expert.nodes, found.plain.classes) == (full, expert, full[-1])


def test_figures_that_the_paper_takes_from_thops_parameters():
    """Table 2 mixes them: 121.4 and 119.9 are the same network, and the expert's -88.7 % is between two such."""
    (full, seen, *_), (small, small_seen, *_) = tree_cost(CNX, (17, 161, 1000)), tree_cost(CNX, (1, 1, 5))
    for value, rebuilt, printed in (
        (seen / 1e6, "119.879", "119.9"),
        (small_seen / 1e6, "13.488", "13.5"),
        (100 * (1 - small_seen / seen), "88.749", "88.7"),
    ):
        assert rounds_to(value, rebuilt) and rounds_to(value, printed)
    assert not rounds_to(100 * (1 - small / full), "88.7")  # the true ones give 88.8
    assert not rounds_to(backbone_cost(CNX, 10)[0] / 1e6, "27.8")  # the true ones give 27.9


def test_figures_that_the_paper_misprints():
    gmacs = tree_cost(N3HL, (1, 9, 10))[2] / 1e9
    assert not rounds_to(gmacs, "3.91") and int(100 * gmacs) / 100 == 3.91  # 3.9180, truncated
    saved = 100 * (1 - tree_cost(N3HL, (1, 15, 20))[0] / tree_cost(N3HL, (6, 26, 100))[0])
    assert not rounds_to(saved, "44.5") and not rounds_to(100 * (1 - 13.8 / 25.0), "44.5")  # nor from its own figures


def test_headline_is_against_the_full_tree_not_the_plain_network():
    found = profiled(CNX, (17, 161, 1000))
    assert found.full.gmacs / found.plain.gmacs == pytest.approx(3.3, abs=0.05)
    assert found.reductions["expert vs plain"]["gmacs"] == pytest.approx(-0.13, abs=0.005)
    assert found.reductions["expert vs plain"]["params"] == pytest.approx(-0.527, abs=0.0005)


def test_cut_of_ten_classes_gives_the_expert_rows():
    """The one pair of siblings straddles the split: either half is (1, 5, 5)."""
    found = profile(network_config(N3HL, 3), ClassTree.balanced((1, 9, 10)), classes="5-9")
    assert (found.full, found.expert) == (column(N3HL, (1, 9, 10)), column(N3HL, (1, 5, 5)))


@pytest.mark.parametrize(("preset", "counts"), [(N3HL, (1, 9, 10)), (N3HL, (1, 5, 5)), (PHL, (5, 5, 5))])
def test_fvcore_on_the_real_network_agrees(preset, counts):
    net = HierarchicalNet(network_config(preset, 3), ClassTree.balanced(counts)).eval()
    assert count_macs(net, torch.zeros(1, 3, 224, 224)) == tree_cost(preset, counts)[3]


@pytest.mark.parametrize("preset", [N3HL, PHL, CNX])
def test_fvcore_and_formulas_agree_on_timms_blocks(preset):
    config, nodes = network_config(preset, 3), [node_cost(preset, level) for level in range(3)]
    channels = NODES[config.block][0][0]
    naive = NaiveTree(ClassTree.balanced((1, 2, 3)), channels, config.block, config.widths, config.strides).eval()
    analysis = FlopCountAnalysis(naive, torch.zeros(1, channels, 14, 14))
    macs = analysis.unsupported_ops_warnings(False).tracer_warnings("none").by_module()
    parts = column(preset, (10, 10, 10) if preset == PHL else (6, 26, 100)).parts[1:]
    ours = [n * part.macs // part.nodes for n, part in enumerate(parts, start=1)]
    assert ours == [macs["rows.0"], macs["rows.1"], macs["rows.2"] + macs["leaves"]]
    expected = (sum(n * figure for n, figure in enumerate(figures, start=1)) for figures in zip(*nodes, strict=True))
    assert shapes_cost(naive.to("meta"), channels, 14, 14) == tuple(expected)
