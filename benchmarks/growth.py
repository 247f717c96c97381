"""How cost grows with the number of classes, 10 to 10,000: time, memory, file size, loading, cutting, counting.

    python benchmarks/growth.py --out growth.json --plot growth.svg

N3HL on ResNet50 at 224 pixels, random weights, one thread, one image. Each size runs in a process of its own, so that
memory is its own too; needs 8 GB of memory and 3 GB of disk for 10,000 classes, and about two minutes.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import hlnet
from hlnet.files import replacing
from hlnet.model.cost import profile
from hlnet.model.latency import random_network
from hlnet.model.presets import network_config

COUNTS = {10: (2, 5, 10), 100: (4, 34, 100), 1000: (10, 90, 1000), 10000: (30, 600, 10000)}


def measure(classes: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    config = network_config("n3hl_resnet50", 3)
    found: dict[str, Any] = {"classes": classes, "nodes": COUNTS[classes]}

    def clock(name: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = call()
        found[name] = time.perf_counter() - start
        return result

    net = random_network(config, hlnet.ClassTree.balanced(COUNTS[classes]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        clock("save, s", lambda: hlnet.save_checkpoint(net, path))
        found["file, MB"] = path.stat().st_size / 1e6
        clock("load, s", lambda: hlnet.load_checkpoint(path))
        clock("cut 5 classes out of the file, s", lambda: hlnet.cut_expert(path, [0, 3, 5, 7, 9]))
    clock("count, s", lambda: profile(config, net.tree, classes="0-4"))
    fast = clock("optimize(), s", lambda: hlnet.optimize(net))
    images = torch.randn(1, 3, 224, 224)
    times = []
    with torch.inference_mode():
        clock("first image after optimize(), s", lambda: fast(images))
        for _ in range(9):
            start = time.process_time()
            fast(images)
            times.append(time.process_time() - start)
    found["an image, s"] = sorted(times)[4]
    found["peak memory, MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return found


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    names = [name for name in rows[0] if name not in {"classes", "nodes"}]
    figure = Figure(figsize=(12, 8), layout="constrained")
    for axes, name in zip(figure.subplots(3, 3).flat, names, strict=True):
        values = [row[name] for row in rows]
        axes.loglog([row["classes"] for row in rows], values, "o-", color="#2c66a8")
        axes.set(xlabel="classes", ylim=(min(values) / 3, max(values) * 3))  # so that little change looks little
        axes.set_title(name, fontsize=10)
        axes.grid(alpha=0.3)
    with replacing(path) as draft:
        figure.savefig(draft, format="svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("growth.json"))
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--classes", type=int, nargs="+", choices=tuple(COUNTS), default=tuple(COUNTS))
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one)))
        return
    rows = []
    for classes in args.classes:
        command = [sys.executable, "-W", "ignore", __file__, "--one", str(classes)]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    with replacing(args.out) as draft:
        draft.write_text(json.dumps(rows, indent=1) + "\n")
    if args.plot:
        plot(rows, args.plot)
    names = list(rows[0])[2:]
    print(f"| classes | nodes | {' | '.join(names)} |\n|{'---|' * (len(names) + 2)}")
    for row in rows:
        figures = " | ".join(f"{row[name]:.3g}" if row[name] < 100 else f"{row[name]:.0f}" for name in names)
        print(f"| {row['classes']} | {', '.join(map(str, row['nodes']))} | {figures} |")


if __name__ == "__main__":
    main()
