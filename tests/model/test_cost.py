"""What a network costs: the counter, the three columns, their sums and relative changes, latencies, wrong requests."""

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from timm.layers import Attention
from torch import nn

import hlnet.model.cost
from hlnet.errors import BackboneError, SelectionError, UsageError
from hlnet.expert.cut import cut_expert
from hlnet.model.cost import Cost, Latency, Profile, count_macs, plain_cost, profile
from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
from hlnet.model.latency import measure_latency, with_latency
from hlnet.model.plain import PlainConfig, PlainNet
from hlnet.model.transform import InputTransform
from hlnet.store.checkpoint import save_checkpoint
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.selection import select_classes

TREE = ClassTree.balanced((2, 3, 5))
CONFIG = NetworkConfig(backbone="test_resnet", widths=(8, 4, 4), strides=(1, 1, 2))
CONVNEXT = NetworkConfig(backbone="test_convnext2", block="convnext", widths=(16, 8, 8), strides=(1, 2, 1))
VIT = NetworkConfig(backbone="test_vit", widths=(8, 4, 4), strides=(1, 1, 2))
SWIN_ARGS = {"img_size": 64, "window_size": 2, "embed_dim": 12, "depths": (2, 2, 2, 2)}
SWIN = NetworkConfig(
    backbone="swin_tiny_patch4_window7_224", widths=(8, 4, 4), strides=(1, 1, 2), backbone_args=SWIN_ARGS
)


class Attend(nn.Module):
    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (1, 3, 10, 10), 10 * 10 * 8 * 3 * 9),
        (nn.Conv2d(8, 4, 3, stride=2, padding=1, groups=4), (2, 8, 5, 5), 2 * 3 * 3 * 4 * 2 * 9),
        (nn.Linear(8, 4), (3, 8), 3 * 8 * 4),
        (nn.BatchNorm2d(8).eval(), (1, 8, 5, 5), 2 * 8 * 5 * 5),
        (nn.LayerNorm(8), (1, 3, 8), 5 * 3 * 8),
        (nn.AdaptiveAvgPool2d(1), (1, 8, 5, 5), 8 * 5 * 5),
        (nn.Sequential(nn.ReLU(), nn.GELU(), nn.MaxPool2d(2)), (1, 8, 4, 4), 0),
    ],
)
def test_count_of_single_layers(module, shape, expected):
    assert count_macs(module, torch.zeros(shape)) == expected


def test_count_takes_other_handlers():
    assert count_macs(nn.LayerNorm(8), torch.zeros(3, 8), handlers={"aten::layer_norm": lambda ins, outs: 7}) == 7


@pytest.mark.parametrize(("queries", "keys", "width", "values"), [(5, 5, 8, 8), (5, 7, 8, 16), (1, 9, 4, 2)])
def test_attention_is_two_products(queries, keys, width, values):
    q, k, v = torch.zeros(2, 3, queries, width), torch.zeros(2, 3, keys, width), torch.zeros(2, 3, keys, values)
    assert count_macs(Attend(), q, k, v) == 2 * 3 * (queries * keys * width + queries * keys * values)


@pytest.mark.parametrize("fused", [True, False])
def test_attention_layer_counts_the_same_fused_or_not(fused):
    layer, n, d = Attention(64, num_heads=4).eval(), 10, 64
    layer.fused_attn = fused
    assert count_macs(layer, torch.zeros(1, n, d)) == 4 * n * d * d + 2 * n * n * d


def test_vit_is_its_closed_formula():
    n, d, hidden = 101, 64, 192  # tokens at 160 pixels, class token included
    norm = 5 * n * d
    block = norm + 4 * n * d * d + 2 * n * n * d + norm + 2 * n * d * hidden
    found = profile(VIT, TREE)
    assert found.input_size == (3, 160, 160)
    assert round(found.plain.gmacs * 1e9) == 100 * 3 * 16 * 16 * d + 6 * block + norm + 5 * d
    assert found.full.parts[0].macs == 100 * 3 * 16 * 16 * d + 4 * block  # three quarters of the blocks


@pytest.mark.parametrize("config", [CONFIG, CONVNEXT, VIT], ids=lambda config: config.backbone)
def test_totals_are_sums_over_trunk_and_levels(config):
    full = profile(config, TREE).full
    assert [part.name for part in full.parts] == ["trunk", "level 1", "level 2", "level 3"]
    assert [part.nodes for part in full.parts] == [1, 2, 3, 5]
    assert (full.classes, full.nodes) == (5, (2, 3, 5))
    assert full.params == sum(part.params for part in full.parts)
    assert full.bytes == sum(part.bytes for part in full.parts)
    assert full.gmacs == sum(part.macs for part in full.parts) / 1e9
    single = profile(config, ClassTree.balanced((1, 1, 1))).full.parts
    for part, unit in zip(full.parts, single, strict=True):
        n = part.nodes
        assert (part.params, part.macs, part.bytes) == (n * unit.params, n * unit.macs, n * unit.bytes)


def test_count_is_that_of_the_real_network():
    net, full = HierarchicalNet(CONFIG, TREE).eval(), profile(CONFIG, TREE).full
    assert full.params == sum(tensor.numel() for tensor in net.parameters())
    assert round(full.gmacs * 1e9) == count_macs(net, torch.zeros(1, 3, 160, 160))


@pytest.mark.parametrize("classes", [[1, 4], "group 1.1"])
def test_expert_column_is_the_profile_of_the_pruned_tree(classes):
    pruned = TREE.prune(select_classes(TREE, classes))
    found = profile(CONFIG, TREE, classes=classes)
    assert found.expert == profile(CONFIG, pruned).full
    assert found.full == profile(CONFIG, TREE).full and found.plain.classes == 5
    # The same from the expert's side.
    assert profile(CONFIG, pruned, parent_counts=TREE.counts) == found


def test_expert_of_an_expert_is_compared_with_the_full_network():
    found = profile(CONFIG, TREE.prune([0, 1, 4]), classes="4", parent_counts=TREE.counts)
    assert (found.full.nodes, found.expert.nodes, found.plain.classes) == ((2, 3, 5), (1, 1, 1), 5)


def test_network_without_a_cut_has_no_expert():
    found = profile(CONFIG, TREE)
    assert found.expert is None and set(found.reductions) == {"full vs plain"}


def test_macs_grow_with_the_image_and_parameters_do_not():
    small, large = (profile(CONFIG, TREE, InputTransform(input_size=(3, n, n))) for n in (64, 128))
    assert small.input_size == (3, 64, 64)
    assert [4 * part.macs for part in small.full.parts[:3]] == [part.macs for part in large.full.parts[:3]]
    assert (small.full.params, small.plain.params) == (large.full.params, large.plain.params)
    assert small.plain.gmacs < large.plain.gmacs


def test_plain_cost_is_that_of_the_plain_network():
    found = plain_cost(PlainConfig(backbone="test_resnet"), 5, (3, 160, 160))
    assert found == plain_cost(CONFIG, 5, (3, 160, 160)) == profile(CONFIG, TREE).plain
    net = PlainNet(PlainConfig(backbone="test_resnet"), TREE).eval()
    assert found.params == sum(tensor.numel() for tensor in net.parameters())
    assert round(found.gmacs * 1e9) == count_macs(net, torch.zeros(1, 3, 160, 160))
    assert (found.nodes, found.parts) == ((), [])


@pytest.mark.parametrize("config", [CONFIG, CONVNEXT, VIT], ids=lambda config: config.backbone)
def test_bytes_are_those_of_a_saved_checkpoint(config, tmp_path):
    full, plain = HierarchicalNet(config, TREE), PlainNet(PlainConfig(backbone=config.backbone), TREE)
    found = profile(config, TREE, classes="0,4")
    for name, model in {"plain": plain, "full": full, "expert": cut_expert(full, "0,4")}.items():
        path = tmp_path / f"{name}.safetensors"
        save_checkpoint(model, path)
        with safe_open(path, framework="pt") as file:
            stored = [file.get_tensor(key) for key in file.keys()]  # noqa: SIM118 - not a mapping
        assert getattr(found, name).bytes == sum(tensor.numel() * tensor.element_size() for tensor in stored), name


def cost(classes, params, gmacs, size, *milliseconds):
    latency = [Latency(batch_size=1, threads=1, median_ms=ms, low_ms=ms, high_ms=ms) for ms in milliseconds]
    return Cost(classes=classes, params=params, gmacs=gmacs, bytes=size, latency=latency)


def test_reductions_are_relative_changes():
    plain, full = cost(8, 100, 2.0, 1000, 10.0), cost(8, 400, 5.0, 1600, 25.0, 1.0)
    found = hlnet.model.cost.with_reductions(
        Profile(input_size=(3, 8, 8), plain=plain, full=full, expert=cost(2, 50, 1.0, 800))
    )
    assert found.reductions == {
        "full vs plain": {"params": 3.0, "gmacs": 1.5, "bytes": pytest.approx(0.6), "latency": 1.5},
        "expert vs full": {"params": -0.875, "gmacs": -0.8, "bytes": -0.5},
        "expert vs plain": {"params": -0.5, "gmacs": -0.5, "bytes": pytest.approx(-0.2)},
    }


class Clocked(nn.Module):
    """Writes down its calls: its name, the batch, the threads, the mode."""

    def __init__(self, name, calls):
        super().__init__()
        self.name, self.calls, self.weight = name, calls, nn.Parameter(torch.ones(1))

    def forward(self, x):
        self.calls.append((self.name, tuple(x.shape), torch.get_num_threads(), self.training, x.requires_grad))
        return x * self.weight


def test_latency_runs_the_models_in_turn_for_every_combination():
    calls, rounds, before = [], [], torch.get_num_threads()
    models = {name: Clocked(name, calls) for name in ("plain", "full")}
    found = measure_latency(models, (3, 4, 5), (1, 2), (1, 2), seconds=0, on_round=lambda: rounds.append(1))
    turns = [
        (name, (batch, 3, 4, 5), threads, False, False)
        for threads in (1, 2)
        for batch in (1, 2)
        for _ in range(1 + 5)  # to warm up, then five rounds
        for name in models
    ]
    assert calls == turns and len(rounds) == 4 * 5
    assert list(found) == ["plain", "full"]
    for latencies in found.values():
        assert [(one.threads, one.batch_size) for one in latencies] == [(1, 1), (1, 2), (2, 1), (2, 2)]
        assert all(0 < one.low_ms <= one.median_ms <= one.high_ms < math.inf for one in latencies)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("classes", "parent_counts", "measured"),
    [(None, None, ["plain", "full"]), ("0", None, ["plain", "full", "expert"]), (None, (2, 3, 9), ["plain", "expert"])],
    ids=["full", "full and cut", "expert"],
)
def test_latencies_are_put_into_their_columns(monkeypatch, classes, parent_counts, measured):
    def fake(models, size, batch_sizes, threads, on_round=None, device="cpu"):
        assert (size, batch_sizes, threads) == ((3, 160, 160), (2,), (1,))
        outputs = [model.eval()(torch.zeros(1, 3, 64, 64)).shape[1] for model in models.values()]
        return {name: cost(1, 1, 1, 1, 10.0 * n).latency for name, n in zip(models, outputs, strict=True)}

    monkeypatch.setattr(hlnet.model.latency, "measure_latency", fake)
    bare = profile(CONFIG, TREE, classes=classes, parent_counts=parent_counts)
    net = HierarchicalNet(CONFIG, TREE)
    found = with_latency(bare, net, None if classes is None else cut_expert(net, classes), (2,), (1,))
    columns = {name: column for name in ("plain", "full", "expert") if (column := getattr(found, name))}
    assert [name for name, column in columns.items() if column.latency] == measured
    assert all(columns[name].latency[0].median_ms == 10.0 * columns[name].classes for name in measured)
    for pair, changes in found.reductions.items():
        assert ("latency" in changes) == (set(pair.split(" vs ")) <= set(measured))


@pytest.mark.parametrize("config", [CONFIG, CONVNEXT, SWIN], ids=lambda config: config.backbone)
def test_random_network_runs_and_keeps_computed_buffers(config):
    net, real = hlnet.model.latency.random_network(config, TREE), HierarchicalNet(config, TREE)
    real.load_state_dict(net.state_dict())  # the same names and shapes
    for (name, ours), (_, theirs) in zip(net.named_buffers(), real.named_buffers(), strict=True):
        assert torch.equal(ours, theirs), name
    assert net.eval()(torch.zeros(1, *net.transform.input_size)).isfinite().all()


@pytest.mark.parametrize(
    ("config", "arguments", "error", "words"),
    [
        (CONFIG, {"classes": "class 9"}, SelectionError, "'class 9'"),
        (CONFIG, {"classes": ""}, SelectionError, "empty"),
        (CONFIG, {"parent_counts": (2, 3)}, UsageError, "(2, 3) nodes a level"),
        (CONFIG.model_copy(update={"widths": (8, 4), "strides": (1, 2)}), {}, UsageError, "3 levels"),
        (CONFIG.model_copy(update={"backbone": "test_resent"}), {}, BackboneError, "Did you mean 'test_resnet'"),
        (CONFIG.model_copy(update={"split_point": 9}), {}, BackboneError, "split point 9"),
        (CONFIG, {"parent_counts": (2, 3, 4)}, UsageError, "4"),  # a parent with fewer classes than its expert
    ],
)
def test_wrong_requests(config, arguments, error, words):
    with pytest.raises(error) as caught:
        profile(config, TREE, **arguments)
    assert words in str(caught.value) and "\n" not in str(caught.value)
