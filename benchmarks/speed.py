"""How fast the branches run: against one module a branch, and against the plain network optimised in the same way.

    python benchmarks/speed.py --out speed.json --plot speed.svg           one thread; about 20 minutes
    python benchmarks/speed.py --out speed2.json --threads 2
    python benchmarks/speed.py --report speed.json speed2.json             the tables again, and the targets

Hierarchical networks on ResNet50, ConvNeXt V2 and a vision transformer, at 224 pixels with random weights. Within a run
the forms take turns, round by round; the figure of each is the median over the rounds. With one thread it is CPU time,
which other processes on the machine hardly touch; with more it is wall time, and the machine must be idle. *Naive* is a
loop over one timm block per node (tests/helpers) behind timm's trunk as it is. *Efficiency* is multiply-accumulates a
second of the whole network, over those of the plain timm network with its norms folded and weights packed by the same
code (``hlnet.model.fast.fuse.fuse``).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import timm
import torch
from matplotlib.figure import Figure

import hlnet
from hlnet.files import replacing
from hlnet.model.cost import plain_cost, total_cost, unit_costs
from hlnet.model.fast.fuse import fuse
from hlnet.model.hierarchical import BranchTree
from hlnet.model.latency import random_network
from hlnet.model.presets import network_config

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from helpers.naive import NaiveTree, copy_weights

COUNTS = {10: (2, 5, 10), 100: (4, 34, 100), 1000: (10, 90, 1000)}
OTHERS = {"convnextv2_tiny": "ConvNeXt V2 tiny", "vit_small_patch16_224": "ViT-S"}

#: What the study that this code started from set itself, for any number of threads: run, ratio, at least.
TARGETS = [
    ("N3HL, 1000 classes, batch 1", "efficiency", 0.90),
    ("N3HL, 1000 classes, batch 8", "efficiency", 0.95),
    ("N3HL, 100 classes, batch 1", "efficiency", 0.97),
    ("N3HL, 100 classes, batch 8", "efficiency", 0.97),
    ("N3HL, 10 classes, batch 1", "efficiency", 0.97),
    ("N3HL, 10 classes, batch 8", "efficiency", 0.97),
    ("PHL, 100 classes, batch 1", "efficiency", 0.97),
    ("N3HL, 1000 classes, batch 1", "head over naive", 7.5),  # of two threads
    ("N3HL, 1000 classes, batch 8", "head over naive", 2.05),
    ("N3HL, 1000 classes, batch 8", "whole: bfloat16 over float32", 2.0),
    ("training, 1000 classes, batch 8", "step over naive", 1.6),
    *(
        (f"experts of 5 of 1000, batch {batch}", f"{name}: time over GMACs", 1.0)
        for batch in (1, 8)
        for name in ("siblings", "strewn")
    ),
]


def medians(forms: dict[str, Callable[[], Any]], seconds: float) -> dict[str, dict[str, float]]:
    """Milliseconds of each form, median and quartiles; they take turns for about ``seconds``, five rounds at least."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in forms}
    for form in forms.values():
        form()
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(next(iter(times.values()))) < 5:
        for name, form in forms.items():
            start = clock()
            form()
            times[name].append(1000 * (clock() - start))
    found = {}
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        found[name] = {"median": middle, "low": low, "high": high, "rounds": len(values)}
    return found


def networks(classes: int, backbone: str = "resnet50", phl: bool = False) -> tuple[hlnet.HierarchicalNet, NaiveTree]:
    """A network with random weights, and its branches as one module each."""
    name = {"resnet50": "n3hl_resnet50", "convnextv2_tiny": "n3hl_convnextv2_tiny"}.get(backbone, backbone)
    config = network_config("phl_resnet50" if phl else name, 3)
    net = random_network(config, hlnet.ClassTree.balanced((classes,) * 3 if phl else COUNTS[classes]))
    naive = NaiveTree(net.tree, net.trunk.channels, config.block, config.widths, config.strides)
    assert isinstance(net.head, BranchTree)
    copy_weights(net.head, naive)
    return net, naive.eval()


def inference(
    classes: int, batch: int, seconds: float, backbone: str = "resnet50", phl: bool = False
) -> dict[str, Any]:
    net, naive = networks(classes, backbone, phl)
    fast, half = hlnet.optimize(net), hlnet.optimize(net, torch.bfloat16)
    plain = timm.create_model(backbone, num_classes=classes).eval()
    images = torch.randn(batch, 3, 224, 224)
    last = images.to(memory_format=torch.channels_last)
    folded = fuse(plain, images[:1])
    units, _ = unit_costs(net.config)
    macs = total_cost(units, net.tree.counts).gmacs
    plain_macs = plain_cost(net.config, classes, (3, 224, 224)).gmacs
    with torch.inference_mode():
        features = net.trunk(images)
        fast_features, half_features = fast.trunk(last), half.trunk(last.bfloat16())
        difference = (fast(images) - naive(features)).abs().max() / naive(features).abs().max()
        assert difference < 1e-4, difference
        times = medians(
            {
                "naive head": lambda: naive(features),
                "training form's head": lambda: net.head(features),
                "head": lambda: fast.head(fast_features),
                "head, bfloat16": lambda: half.head(half_features),
                "trunk as it is": lambda: net.trunk(images),
                "whole": lambda: fast(images),
                "whole, bfloat16": lambda: half(images),
                "plain as it is": lambda: plain(images),
                "plain, optimised": lambda: folded(last),
            },
            seconds,
        )
    ms = {name: value["median"] for name, value in times.items()}
    naive_ms, plain_rate = ms["trunk as it is"] + ms["naive head"], plain_macs / ms["plain, optimised"]
    ratios = {
        "head over naive": ms["naive head"] / ms["head"],
        "whole over naive": naive_ms / ms["whole"],
        "efficiency": macs / ms["whole"] / plain_rate,
        "naive efficiency": macs / naive_ms / plain_rate,
        "head: bfloat16 over float32": ms["head"] / ms["head, bfloat16"],
        "whole: bfloat16 over float32": ms["whole"] / ms["whole, bfloat16"],
        "plain: optimised over as it is": ms["plain as it is"] / ms["plain, optimised"],
    }
    return {"ms": times, "ratios": ratios, "largest relative difference to naive": float(difference)}


def experts(batch: int, seconds: float) -> dict[str, Any]:
    """Five of 1000 classes, strewn and siblings: is the time saved as much as the multiply-accumulates?"""
    net, _ = networks(1000)
    units, _ = unit_costs(net.config)
    siblings = net.tree.leaves_under(net.tree.levels[1][7].path)[:5]
    kept = {"siblings": siblings, "strewn": (3, 207, 411, 650, 998)}
    models = {"full": hlnet.optimize(net)}
    models |= {name: hlnet.optimize(hlnet.cut_expert(net, list(places))) for name, places in kept.items()}
    half = range(0, 1000, 2)
    models |= {"every second class": hlnet.optimize(hlnet.cut_expert(net, half))}
    chosen = {name: models["full"].select(places) for name, places in (kept | {"every second class": half}).items()}
    models |= {f"{name}, chosen at run time": model for name, model in chosen.items()}
    images = torch.randn(batch, 3, 224, 224)
    with torch.inference_mode():
        times = medians({name: (lambda model=model: model(images)) for name, model in models.items()}, seconds)
    macs = {name: total_cost(units, model.tree.counts).gmacs for name, model in models.items()}
    ratios = {
        f"{name} over cut": times[name]["median"] / times[name.split(", ")[0]]["median"]
        for name in models
        if ", " in name
    }
    for name in kept:
        ratios[f"{name}: time"] = times["full"]["median"] / times[name]["median"]
        ratios[f"{name}: GMACs"] = macs["full"] / macs[name]
        ratios[f"{name}: time over GMACs"] = ratios[f"{name}: time"] / ratios[f"{name}: GMACs"]
    return {"ms": times, "ratios": ratios}


def switching() -> dict[str, Any]:
    """Milliseconds that a loaded network of 1000 classes takes to serve others of its classes (``select``), and those
    that the first image after it takes longer than the second, once the full network has run."""
    net, _ = networks(1000)
    fast = hlnet.optimize(net)
    features = torch.zeros(1, 1024, 14, 14).contiguous(memory_format=torch.channels_last)
    ms: dict[str, list[float]] = {}
    with torch.inference_mode():
        fast.head(features)
        fast.select([0])  # the tree's index of names is made once
        for _ in range(9):
            for count in (5, 50, 500):
                ticks = [time.process_time()]
                head = fast.select(range(0, 1000, 1000 // count)).head
                ticks.append(time.process_time())
                for _ in range(2):
                    head(features)
                    ticks.append(time.process_time())
                switch, first, second = (1000 * (b - a) for a, b in pairwise(ticks))
                ms.setdefault(f"switching to {count} strewn", []).append(switch)
                ms.setdefault(f"first image of {count} strewn, beyond the second", []).append(first - second)
    quartiles = {name: statistics.quantiles(values, n=4) for name, values in ms.items()}
    found = {name: {"median": middle, "low": low, "high": high} for name, (low, middle, high) in quartiles.items()}
    return {"ms": found, "ratios": {}}


def training(classes: int, batch: int, seconds: float) -> dict[str, Any]:
    """A step of the head, forward and backward."""
    net, naive = networks(classes)
    features = torch.rand(batch, 1024, 14, 14)

    def step(head: torch.nn.Module) -> Callable[[], None]:
        def run() -> None:
            head.zero_grad(set_to_none=True)
            head(features).square().mean().backward()

        return run

    times = medians({"naive": step(naive.train()), "stacked": step(net.head.train())}, seconds)
    return {"ms": times, "ratios": {"step over naive": times["naive"]["median"] / times["stacked"]["median"]}}


def report(results: dict[str, Any]) -> None:
    """Times and ratios as Markdown tables, and the targets that this run can tell of."""
    threads = results["threads"]
    runs = {run: found for run, found in results.items() if isinstance(found, dict)}
    print(
        f"torch {results['torch']}, {threads} thread(s)\n\n| run | form | ms: median | quartiles |\n|---|---|---|---|"
    )
    for run, found in runs.items():
        for form, ms in found["ms"].items():
            print(f"| {run} | {form} | {ms['median']:.3g} | {ms['low']:.3g} to {ms['high']:.3g} |")
    print("\n| run | ratio | |\n|---|---|---|")
    for run, found in runs.items():
        for name, ratio in found["ratios"].items():
            print(f"| {run} | {name} | {ratio:.2f} |")
    print(f"\n| target, {threads} thread(s) | at least | reached | |\n|---|---|---|---|")
    for run, name, least in TARGETS:
        if run in runs:
            reached = runs[run]["ratios"][name]
            print(f"| {run}: {name} | {least:.2f} | {reached:.2f} | {'met' if reached >= least else 'missed'} |")


def plot(results: dict[str, Any], path: Path) -> None:
    """Efficiency of the naive form and ours, run by run."""
    runs = {name: found["ratios"] for name, found in results.items() if isinstance(found, dict)}
    runs = {name: ratios for name, ratios in runs.items() if "efficiency" in ratios}
    figure = Figure(figsize=(8, 0.8 + 0.42 * len(runs)), layout="constrained")
    axes = figure.add_subplot()
    for shift, key, colour in ((0.2, "naive efficiency", "#7d8894"), (-0.2, "efficiency", "#2c66a8")):
        values = [ratios[key] for ratios in runs.values()]
        label = "one module a branch" if key.startswith("naive") else "hlnet.optimize()"
        bars = axes.barh([place - shift for place in range(len(runs))], values, 0.38, color=colour, label=label)
        axes.bar_label(bars, fmt="%.2f", padding=-26, fontsize=8, color="white")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(runs)), list(runs))
    axes.invert_yaxis()
    axes.set_xlabel(f"MACs a second, over the plain network's (optimised alike); {results['threads']} thread(s)")
    figure.legend(loc="outside upper center", frameon=False, ncols=2)
    axes.set_xlim(0, 1.1)
    axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as draft:
        figure.savefig(draft, format="svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("speed.json"))
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--report", type=Path, nargs="+", help="print the tables of earlier runs, and stop")
    parser.add_argument("--classes", type=int, nargs="+", choices=tuple(COUNTS), default=tuple(COUNTS))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each table row")
    args = parser.parse_args()
    if args.report:
        for path in args.report:
            report(json.loads(path.read_text()))
        if args.plot:
            plot(json.loads(args.report[0].read_text()), args.plot)
        return
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    results: dict[str, Any] = {"torch": torch.__version__, "threads": args.threads}

    def keep(name: str, found: dict[str, Any]) -> None:
        results[name] = found
        print(name, {key: round(ratio, 2) for key, ratio in found["ratios"].items()}, flush=True)
        with replacing(args.out) as draft:
            draft.write_text(json.dumps(results, indent=1) + "\n")

    for classes in args.classes:
        for batch in args.batch:
            keep(f"N3HL, {classes} classes, batch {batch}", inference(classes, batch, args.seconds))
    if 100 in args.classes:
        keep("PHL, 100 classes, batch 1", inference(100, 1, args.seconds, phl=True))
        for backbone, label in OTHERS.items():
            for batch in args.batch:
                keep(f"{label}, 100 classes, batch {batch}", inference(100, batch, args.seconds, backbone))
    for classes in args.classes:
        keep(f"training, {classes} classes, batch 8", training(classes, 8, args.seconds))
    if 1000 in args.classes:
        for batch in args.batch:
            keep(f"experts of 5 of 1000, batch {batch}", experts(batch, args.seconds))
        keep("classes chosen at run time", switching())
    report(results)
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
