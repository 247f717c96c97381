"""Does the hierarchy matter? N3HL with the shipped tree beside trees that know nothing, and beside plain heads.

    python benchmarks/hierarchy.py --data PHOTOS/imagewoof --tree preset:imagewoof \
        --trunk-weights mobilenetv2_100.safetensors --out imagewoof.json
    python benchmarks/hierarchy.py --report imagewoof.json cifar100.json

On one frozen pretrained trunk and the same cached features, with the same settings, seed by seed: the plain network; a
plain head of N3HL's own blocks and multiply-accumulates (three wide bottlenecks and one linear layer); PHL; N3HL with
the given tree, with a tree clustered from the trunk's features, and with a random tree of the same counts (another one
for each seed); the lean network with these trees, and a plain head of its cost (one wide bottleneck and one linear
layer). Descents of the lean networks are fitted on ``val`` and measured on ``test``. The folder has ``train``, ``val``
and ``test``, with one folder a class. The file is rewritten after every network; run the command again to go on where
it stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from timm.models.resnet import Bottleneck, downsample_conv
from torch import Tensor, nn

import hlnet
from hlnet.data.feature_cache import cached_features
from hlnet.data.features import CachedFeatures
from hlnet.data.sources import load_data
from hlnet.data.tree_data import TreeData, eval_transform, loader, train_transform
from hlnet.evaluation.descent import Trajectories, measured
from hlnet.evaluation.descent_fit import fit_descent
from hlnet.files import replacing
from hlnet.model.cost import count_macs
from hlnet.model.fast.descent import margin_of
from hlnet.model.plain import PlainConfig
from hlnet.model.presets import network_config
from hlnet.model.trunk import load_trunk_weights
from hlnet.tree.construct.baselines import random_tree
from hlnet.tree.construct.cluster import class_means, cluster_tree

BACKBONE: dict[str, Any] = {"backbone": "mobilenetv2_100", "backbone_args": {"pad_type": "same"}}
WIDTHS, STRIDES = (64, 32, 16), (1, 1, 2)  # half the paper's widths
#: As the preset for this backbone, with its input.
LEAN = network_config("lean_mobilenetv2_100", levels=3, backbone_args=BACKBONE["backbone_args"])
KINDS = (
    *("plain", "plain head", "PHL", "N3HL, random tree", "N3HL, clustered tree", "N3HL, given tree"),
    *("plain, one block", "lean, random tree", "lean, clustered tree", "lean, given tree"),
)
#: By kind, the network that it is compared with, seed by seed.
LEAD = {kind: "lean, given tree" if kind in KINDS[6:] else "N3HL, given tree" for kind in KINDS}


class PlainHead(nn.Module):
    """Bottlenecks in a row and a linear layer: what branches would be without a tree.

    Args:
        tree: of which only the classes count.
        channels: of the trunk's output.
        widths, strides: of the bottlenecks.
    """

    class_rows = None  # which training asks for

    def __init__(self, tree: hlnet.ClassTree, channels: int, widths: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__()
        self.tree = tree
        blocks = []
        for width, stride in zip(widths, strides, strict=True):
            shortcut = downsample_conv(channels, 4 * width, kernel_size=1, stride=stride)
            blocks.append(Bottleneck(channels, width, stride, shortcut))
            channels = 4 * width
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, len(tree.classes))

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.blocks(features).mean((2, 3)))
        return logits


def network(kind: str, tree: hlnet.ClassTree, size: int, weights: Path, seed: int) -> Any:
    """A network with its trunk's weights and the input that they were trained with."""
    torch.manual_seed(seed)
    if kind == "plain":
        net: Any = hlnet.PlainNet(PlainConfig(**BACKBONE), tree)
    elif kind.startswith("lean") or kind == "plain, one block":
        net = hlnet.HierarchicalNet(LEAN, tree)
    else:
        shape = {"widths": WIDTHS, "strides": (2, 2, 2) if kind == "PHL" else STRIDES}
        config = hlnet.NetworkConfig(**BACKBONE, block="bottleneck", **shape)
        net = hlnet.HierarchicalNet(config, tree.parallelized() if kind == "PHL" else tree)
    load_trunk_weights(net.trunk_module, weights, net.trunk_names)
    half = (0.5, 0.5, 0.5)
    net.transform = net.transform.model_copy(update={"input_size": (3, size, size), "mean": half, "std": half})
    if kind in ("plain head", "plain, one block"):
        three = kind == "plain head"
        shapes = [((4 * unit, 2 * unit, unit), STRIDES) if three else ((unit,), (2,)) for unit in range(8, 200, 2)]
        with torch.no_grad():
            features = net.eval().features(torch.zeros(1, 3, size, size))
        wanted, channels = count_macs(net.head, features), features.shape[1]
        net.head = min(
            (PlainHead(tree, channels, *shape) for shape in shapes),
            key=lambda head: abs(count_macs(head.eval(), features) - wanted),
        )
    return net


def features(root: Path, net: Any, views: int, cache: Path | None) -> dict[str, CachedFeatures]:
    found = {}
    for split in ("train", "val", "test"):
        training = split == "train"
        transform = train_transform(net.transform, "rand-m9-mstd0.5") if training else eval_transform(net.transform)
        data = TreeData(load_data(root, split), net.tree, transform)  # type: ignore[arg-type]
        found[split] = cached_features(net, data, views if training else 1, folder=cache)
    return found


@torch.inference_mode()
def predictions(net: Any, data: CachedFeatures) -> Tensor:
    net.eval()
    parts = [net.head(data.features[0, i : i + 200].float()).argmax(1) for i in range(0, len(data), 200)]
    return torch.cat(parts)


def severity(tree: hlnet.ClassTree, found: Tensor, labels: Tensor) -> float:
    """Mean height, over the mistakes, of the lowest node that contains both classes: 1 for siblings."""
    lines = []  # of each class, its nodes from the first level down
    for row in range(len(tree.classes)):
        line = []
        for level in reversed(tree.levels):
            line.append(row)
            row = level[row].parent
        lines.append(line)
    pairs = zip(found.tolist(), labels.tolist(), strict=True)
    heights = [
        sum(a != b for a, b in zip(lines[guess], lines[truth], strict=True)) for guess, truth in pairs if guess != truth
    ]
    return statistics.mean(heights) if heights else 0.0


def measure(args: argparse.Namespace, kind: str, seed: int, trees: dict[str, hlnet.ClassTree], data: Any) -> Any:
    tree = trees.get(kind.split(", ")[-1], trees["given tree"])
    if kind.endswith("random tree"):
        tree = random_tree(trees["given tree"], tree.counts[:-1], seed)
    net = network(kind, tree, args.size, args.trunk_weights, seed)
    config = hlnet.TrainConfig(
        epochs=args.epochs, seed=seed, batch_size=args.batch_size, frozen_trunk=True, cache_views=1
    )
    # Columns of the logits follow the tree; labels of the cached features follow the given one.
    place = {name: position for position, name in enumerate(net.tree.classes)}
    order = torch.tensor([place[name] for name in trees["given tree"].classes])
    own = {split: CachedFeatures(found.features, order[found.labels]) for split, found in data.items()}
    started = time.perf_counter()
    hlnet.train(net, own["train"], own["val"], config, device="cpu")
    seconds = time.perf_counter() - started
    probe = data["val"].features[0, :1].float()
    back = torch.argsort(order)
    found: dict[str, Any] = {
        "seconds": seconds,
        "parameters of the head": sum(p.numel() for p in net.head.parameters()),
        "MACs of the head": count_macs(net.head, probe),
    }
    for split in ("val", "test"):
        guesses, labels = back[predictions(net, own[split])], data[split].labels
        found[split] = {
            "top-1": float((guesses == labels).float().mean()),
            "severity": severity(trees["given tree"], guesses, labels),
        }
    if kind.startswith("lean"):
        found["descent"] = descents(net, own)
    return found


@torch.inference_mode()
def descents(net: hlnet.HierarchicalNet, data: dict[str, CachedFeatures]) -> dict[str, Any]:
    """By agreement: what descents whose threshold was fitted to ``val`` do on ``test``, and the rows alone."""
    both = {}
    for split in ("val", "test"):
        parts = [
            net.head(data[split].features[0, i : i + 200].float(), with_rows=True)
            for i in range(0, len(data[split]), 200)
        ]
        both[split] = [torch.cat(part) for part in zip(*parts, strict=True)]
    labels, (logits, rows) = data["test"].labels, both["test"]
    runs = Trajectories.of(net.tree, logits, rows)
    found: dict[str, Any] = {"rows": float((rows.argmax(1) == labels).double().mean())}
    for fitted in fit_descent(net, *both["val"], agreements=(0.95, 0.98, 0.99)):
        lead = margin_of(fitted.threshold)
        found[f"{fitted.agreement:g}"] = {
            "threshold": fitted.threshold,
            "agreement on val": fitted.metrics["agreement"],
            "agreement": float((runs.at(lead) == logits.argmax(1)).double().mean()),
            "top-1": float((runs.at(lead) == labels).double().mean()),
            **measured(net, runs, lead),
        }
    return found


def report(paths: list[Path]) -> None:
    """Tables: mean over seeds ± standard deviation, and the difference to the given tree, seed by seed."""
    found_in: dict[str, Any] = {}
    for path in paths:  # files of one data set are one table: its seeds may have run side by side
        results = json.loads(path.read_text())
        runs = found_in.get(results["name"], {}).get("runs", {}) | results["runs"]
        found_in[results["name"]] = results | {"runs": runs}
    for results in found_in.values():
        print(f"\n**{results['name']}**, {results['nodes']} nodes, {results['images']} training images\n")
        print(
            "| network | head: parameters, M | GMACs | val top-1, % | test top-1, % | lead of the given tree, test ",
            end="",
        )
        print("| severity, test | training, s |\n|---|---|---|---|---|---|---|---|")
        runs = {
            kind: [r for key, r in sorted(results["runs"].items()) if key.rsplit("/", 1)[0] == kind] for kind in KINDS
        }
        for kind, found in runs.items():
            if not found:
                continue
            leads = [
                100 * (ours["test"]["top-1"] - theirs["test"]["top-1"])
                for ours, theirs in zip(runs[LEAD[kind]], found, strict=False)  # where both have run
            ]
            cells = [
                kind,
                f"{found[0]['parameters of the head'] / 1e6:.3f}",
                f"{found[0]['MACs of the head'] / 1e9:.4f}",
                spread([100 * run["val"]["top-1"] for run in found], 1),
                spread([100 * run["test"]["top-1"] for run in found], 1),
                "–" if kind == LEAD[kind] else ", ".join(f"{lead:+.1f}" for lead in leads),
                spread([run["test"]["severity"] for run in found], 2),
                f"{statistics.mean(run['seconds'] for run in found):.0f}",
            ]
            print(f"| {' | '.join(cells)} |")
        report_descents({kind: found for kind, found in runs.items() if found and "descent" in found[0]})


def report_descents(runs: dict[str, list[Any]]) -> None:
    """A table of what descents do on test images: means over seeds ± standard deviation."""
    if not runs:
        return
    print("\n| network | asked for | agreement, % | top-1, % | after the rows, % | families | GMACs | full |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, found in runs.items():
        print(f"| {kind} | rows alone | | {spread([100 * run['descent']['rows'] for run in found], 1)} | 100 | 0 | | |")
        for asked in [name for name in found[0]["descent"] if name != "rows"]:
            told = [run["descent"][asked] for run in found]
            columns = [(100, "agreement", 1), (100, "top-1", 1), (100, "rows_alone", 0), (1, "families", 2)]
            columns += [(1, "gmacs", 4), (1, "full_gmacs", 4)]
            cells = [spread([factor * one[name] for one in told], digits) for factor, name, digits in columns]
            print(f"| {kind} | {100 * float(asked):g} % | {' | '.join(cells)} |")


def spread(values: list[float], digits: int) -> str:
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tree", help="a tree file or preset:NAME, of three levels")
    parser.add_argument("--trunk-weights", type=Path)
    parser.add_argument("--out", type=Path, default=Path("hierarchy.json"))
    parser.add_argument("--size", type=int, default=160, help="side of the images in pixels")
    parser.add_argument("--views", type=int, default=2, help="augmented views of each training image")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--cache-dir", type=Path)
    parser.add_argument("--report", type=Path, nargs="+", help="print these result files as tables, and stop")
    args = parser.parse_args()
    if args.report:
        report(args.report)
        return
    if not (args.data and args.tree and args.trunk_weights):
        parser.error("--data, --tree and --trunk-weights are needed")
    torch.set_num_threads(1)
    given = hlnet.read_tree(args.tree)
    first = network("N3HL, given tree", given, args.size, args.trunk_weights, 0)
    data = features(args.data, first, args.views, args.cache_dir)
    plain_images = TreeData(load_data(args.data, "train"), given, eval_transform(first.transform))
    means = class_means(first.trunk, loader(plain_images, 64), len(given.classes), grid=2)
    ids = [leaf.id for leaf in given.leaves]
    trees = {"given tree": given, "clustered tree": cluster_tree(means, given.classes, given.counts[:-1], ids)}
    results: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"runs": {}}
    results |= {
        "name": args.data.name,
        "nodes": ", ".join(map(str, given.counts)),
        "images": len(data["train"]),
        "settings": {name: str(value) for name, value in vars(args).items()},
        "torch": torch.__version__,
    }
    for seed in args.seeds:
        for kind in args.kinds:
            key = f"{kind}/{seed}"
            if key not in results["runs"]:
                results["runs"][key] = measure(args, kind, seed, trees, data)
                with replacing(args.out) as draft:
                    draft.write_text(json.dumps(results, indent=1) + "\n")
                print(key, json.dumps(results["runs"][key]), flush=True)
    report([args.out])


if __name__ == "__main__":
    main()
