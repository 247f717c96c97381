"""How fast the stacked form runs: against one module per branch, and against the plain timm model, in one run.

    python benchmarks/forward.py --out forward.json

N3HL on ResNet50 at 224 pixels with random weights. The forms take turns; what is compared is the median of their CPU
time on one thread, which other processes on the machine do not touch. "Naive" is a loop over one timm block per node
(``tests/naive.py``), with the same weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch

import hlnet
from hlnet.files import replacing
from hlnet.network import BranchTree
from hlnet.presets import network_config
from hlnet.profiling import random_network

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from naive import NaiveTree, copy_weights

COUNTS = {10: (2, 5, 10), 100: (4, 34, 100), 1000: (10, 90, 1000)}
CHANNELS, SIDE = 1024, 14  # of ResNet50's trunk at 224 pixels


def medians(forms: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Median CPU time of each form, in milliseconds; they take turns for about ``seconds``, five rounds at least."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    for form in forms.values():
        form()
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(next(iter(times.values()))) < 5:
        for name, form in forms.items():
            start = time.process_time()
            form()
            times[name].append(1000 * (time.process_time() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def heads(classes: int) -> tuple[BranchTree, NaiveTree]:
    """Stacked and naive branches with the same weights."""
    config = network_config("n3hl_resnet50", 3)
    stacked = random_network(config, hlnet.ClassTree.balanced(COUNTS[classes])).head
    naive = NaiveTree(stacked.tree, CHANNELS, config.block, config.widths, config.strides)
    copy_weights(stacked, naive)
    return stacked.eval(), naive.eval()


def inference(classes: int, batch: int, seconds: float) -> dict[str, float]:
    stacked, naive = heads(classes)
    trunk = hlnet.Trunk("resnet50").eval()
    plain = timm.create_model("resnet50", num_classes=classes).eval()
    images, features = torch.randn(batch, 3, 224, 224), torch.rand(batch, CHANNELS, SIDE, SIDE)
    with torch.inference_mode():
        difference = (stacked(features) - naive(features)).abs().max() / naive(features).abs().max()
        assert difference < 1e-4, difference
        found = medians(
            {
                "naive head": lambda: naive(features),
                "stacked head": lambda: stacked(features),
                "trunk": lambda: trunk(images),
                "plain": lambda: plain(images),
            },
            seconds,
        )
    return found | {
        "head speed-up over naive": found["naive head"] / found["stacked head"],
        "whole speed-up over naive": (found["trunk"] + found["naive head"]) / (found["trunk"] + found["stacked head"]),
        "whole time over plain": (found["trunk"] + found["stacked head"]) / found["plain"],
    }


def training(classes: int, batch: int, seconds: float) -> dict[str, float]:
    stacked, naive = heads(classes)
    features = torch.rand(batch, CHANNELS, SIDE, SIDE)

    def step(head: torch.nn.Module) -> Callable[[], None]:
        def run() -> None:
            head.zero_grad(set_to_none=True)
            head(features).square().mean().backward()

        return run

    found = medians({"naive head": step(naive.train()), "stacked head": step(stacked.train())}, seconds)
    return found | {"head speed-up over naive": found["naive head"] / found["stacked head"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("forward.json"))
    parser.add_argument("--classes", type=int, nargs="+", choices=tuple(COUNTS), default=tuple(COUNTS))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each figure")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results: dict[str, Any] = {"torch": torch.__version__, "threads": 1}
    print("| classes | batch | | head over naive | whole over naive | whole time / plain |\n|---|---|---|---|---|---|")
    for classes in args.classes:
        for batch in args.batch:
            found = inference(classes, batch, args.seconds)
            results[f"inference, {classes} classes, batch {batch}"] = found
            ratios = [
                found[name]
                for name in ("head speed-up over naive", "whole speed-up over naive", "whole time over plain")
            ]
            print(
                f"| {classes} | {batch} | inference | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |",
                flush=True,
            )
        found = training(classes, max(args.batch), args.seconds)
        results[f"training, {classes} classes, batch {max(args.batch)}"] = found
        print(
            f"| {classes} | {max(args.batch)} | training | {found['head speed-up over naive']:.2f} | – | – |",
            flush=True,
        )
        with replacing(args.out) as draft:
            draft.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
