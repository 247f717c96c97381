"""Memory that a pass through the branches adds, and that a loaded network holds: ours against one module a branch.

    python benchmarks/memory.py --out memory.json           Linux only; about two minutes

N3HL on ResNet50 at 224 pixels, random weights. Each form runs in a process of its own. *Added* is the peak of resident
memory during a pass of the head over what was held before it (``VmHWM`` and ``VmRSS`` in /proc/self/status; the peak is
reset by /proc/self/clear_refs), after a first pass to warm up; malloc is told to give freed memory back at once. (The
naive form goes level by level and holds a level's outputs; ours goes depth first.)
*Held* is what is resident then beyond the same process with libraries imported and nothing built.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import hlnet
from hlnet.files import replacing
from hlnet.model.hierarchical import BranchTree
from hlnet.model.latency import random_network
from hlnet.model.presets import network_config

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from helpers.naive import NaiveTree

COUNTS = {10: (2, 5, 10), 100: (4, 34, 100), 1000: (10, 90, 1000)}
FORMS = ("naive", "training form", "optimize()")
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def resident(field: str) -> float:
    """``VmRSS`` or ``VmHWM`` (its peak), in MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6


def measure(form: str, classes: int, batch: int) -> dict[str, float]:
    """One form, in this process."""
    torch.set_num_threads(1)
    config = network_config("n3hl_resnet50", 3)
    tree = hlnet.ClassTree.balanced(COUNTS[classes])
    features = torch.randn(batch, 1024, 14, 14)
    idle = resident("VmRSS")
    head: torch.nn.Module
    if form == "naive":
        head = NaiveTree(tree, 1024, config.block, config.widths, config.strides).eval()
    else:
        net = random_network(config, tree).eval()
        assert isinstance(net.head, BranchTree)
        head = net.head
        if form == "optimize()":
            fast = hlnet.optimize(net).head
            assert fast is not None
            head = fast
    with torch.inference_mode():
        head(features)
        held = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        head(features)
        return {"added, MB": resident("VmHWM") - held, "held, MB": held - idle}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("memory.json"))
    parser.add_argument("--classes", type=int, nargs="+", choices=tuple(COUNTS), default=tuple(COUNTS))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.classes[0], args.batch)))
        return
    results: dict[str, Any] = {"torch": torch.__version__, "batch": args.batch}
    print("| classes | form | added, MB | over naive | held, MB |\n|---|---|---|---|---|")
    for classes in args.classes:
        for form in FORMS:
            command = [sys.executable, "-W", "ignore", __file__, "--one", form, "--classes", str(classes)]
            command += ["--batch", str(args.batch)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | GIVE_BACK)
            found = json.loads(done.stdout)
            results[f"{classes} classes, {form}"] = found
            ratio = found["added, MB"] / results[f"{classes} classes, naive"]["added, MB"]
            print(
                f"| {classes} | {form} | {found['added, MB']:.1f} | {ratio:.2f} | {found['held, MB']:.0f} |", flush=True
            )
    with replacing(args.out) as draft:
        draft.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
