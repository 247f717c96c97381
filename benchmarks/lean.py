"""How long the full lean networks take, against the plain ones, both in their inference form.

    python benchmarks/lean.py --out lean.json            one thread; about 6 minutes

Random weights, 1000 classes in a tree of (17, 161, 1000) nodes: balanced, or with families of unlike sizes
(``--uneven``). The two run in turn; each round gives a ratio, and the figure is the median of these. With one thread it
is CPU time,
which other processes hardly touch; with more it is wall time, and the machine must be idle. Beside it stands the ratio
of multiply-accumulates, which is what it would be if both ran at one rate.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import hlnet
from hlnet.files import replacing
from hlnet.model.cost import network_cost, plain_cost
from hlnet.model.latency import random_network
from hlnet.model.plain import PlainConfig, PlainNet
from hlnet.model.presets import network_config

PRESETS = ("lean_resnet50", "lean_convnextv2_tiny", "lean_mobilenetv2_100")
COUNTS = (17, 161, 1000)


def uneven_tree() -> hlnet.ClassTree:
    """A tree of these counts whose families are as unlike as chance makes them."""
    chance = random.Random(0)
    paths: list[tuple[str, ...]] = [()]
    for count in COUNTS:
        cuts = sorted(chance.sample(range(1, count), len(paths) - 1))
        sizes = [end - start for start, end in pairwise([0, *cuts, count])]
        paths = [(*path, f"{path[-1] if path else ''}.{child}") for path, n in zip(paths, sizes, strict=True)
                 for child in range(n)]  # fmt: skip
    nested: dict[str, Any] = {}
    for first, second, third in paths:
        nested.setdefault(first, {}).setdefault(second, []).append(third)
    return hlnet.ClassTree.from_nested(nested)


def ratios(ours: Callable[[], Any], theirs: Callable[[], Any], seconds: float) -> dict[str, float]:
    """Median time of each in ms, and the median and quartiles of the ratio, round by round."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for form in (ours, theirs, ours, theirs):
        form()
    times: list[tuple[float, float]] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(times) < 9:
        ticks = [clock()]
        for form in (ours, theirs):
            form()
            ticks.append(clock())
        times.append((ticks[1] - ticks[0], ticks[2] - ticks[1]))
    low, middle, high = statistics.quantiles([one / other for one, other in times], n=4)
    ms = [1000 * statistics.median(column) for column in zip(*times, strict=True)]
    return {"ratio": middle, "low": low, "high": high, "lean ms": ms[0], "plain ms": ms[1], "rounds": len(times)}


def measure(preset: str, tree: hlnet.ClassTree, batches: list[int], seconds: float, dtype: str) -> dict[str, Any]:
    """The ratios of one preset, by size of the batch."""
    net = random_network(network_config(preset, tree.num_levels), tree)
    plain = PlainNet(PlainConfig(backbone=net.config.backbone), tree)
    lean, other = hlnet.optimize(net, dtype), hlnet.optimize(plain, dtype)
    size = net.transform.input_size
    macs = network_cost(net).gmacs / plain_cost(net.config, len(tree.classes), size).gmacs
    found: dict[str, Any] = {"GMACs": macs}
    for batch in batches:
        images = torch.randn(batch, *size).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            features = lean.features(images)
            found[f"batch {batch}"] = ratios(partial(lean, images), partial(other, images), seconds)
            head = ratios(partial(lean.head, features), lambda: None, seconds / 4)
            found[f"batch {batch}"] |= {"head ms": head["lean ms"], "load": os.getloadavg()[0]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("lean.json"))
    parser.add_argument("--presets", nargs="+", default=list(PRESETS))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--uneven", action="store_true")
    parser.add_argument("--seconds", type=float, default=30.0, help="for each size of batch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    tree = uneven_tree() if args.uneven else hlnet.ClassTree.balanced(COUNTS)
    results: dict[str, Any] = {"torch": torch.__version__, "threads": args.threads, "dtype": args.dtype}
    print(
        "| preset | batch | GMACs, of plain | time, of plain | quartiles | ms | of which head | load |\n|" + "---|" * 8
    )
    for preset in args.presets:
        results[preset] = found = measure(preset, tree, args.batch, args.seconds, args.dtype)
        for batch in args.batch:
            one = found[f"batch {batch}"]
            spread = f"{one['low']:.2f} to {one['high']:.2f}"
            cells = [f"{found['GMACs']:.2f}", f"**{one['ratio']:.2f}**", spread, f"{one['lean ms']:.1f}"]
            print(
                f"| {preset} | {batch} | {' | '.join(cells)} | {one['head ms']:.1f} | {one['load']:.1f} |", flush=True
            )
        with replacing(args.out) as draft:
            draft.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
