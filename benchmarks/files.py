"""A network's file: tensors in it, loading it, and cutting an expert out of it; against plain ways of doing the same.

    python benchmarks/files.py --out files.json             about three minutes; 3 GB of disk

N3HL on ResNet50, 1000 classes (10 and 90 inner nodes), random weights; files are in the page cache. *Loading the
branches* builds them without storage and gives them a file's weights: ours, and one timm block a node with one tensor
for each of its weights; the whole network's loading adds the trunk's, which both have. *Cutting* five strewn classes
reads their rows and writes the expert; *copying* reads and writes as many bytes. The peak of memory is a process's
that cuts, beyond that of one that only imports the same libraries (Linux); for parents of three sizes. All of it is the
library's; the command ``make-expert`` adds its start and the table of costs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import hlnet
from hlnet.files import replacing
from hlnet.model.hierarchical import BranchTree
from hlnet.model.latency import random_network
from hlnet.model.presets import network_config

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from helpers.naive import NaiveTree, copy_weights

PARENTS = ((4, 34, 100), (10, 90, 1000), (20, 300, 4000))
CLASSES = (3, 207, 411, 650, 998)
ROUNDS = 7


def load_branches(kind: type[BranchTree | NaiveTree], path: Path) -> None:
    """Build the branches and give them their weights."""
    config, tree = network_config("n3hl_resnet50", 3), hlnet.ClassTree.balanced((10, 90, 1000))
    with torch.device("meta"):
        head = kind(tree, 1024, config.block, config.widths, config.strides)
    head.load_state_dict(load_file(path), assign=True)


def turns(forms: dict[str, Callable[[], Any]]) -> dict[str, dict[str, float]]:
    """Seconds of each, taking turns: median, least and most."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(ROUNDS):
        for name, form in forms.items():
            start = time.perf_counter()
            form()
            times[name].append(time.perf_counter() - start)
    return {name: {"median": statistics.median(v), "least": min(v), "most": max(v)} for name, v in times.items()}


def peak(code: str) -> float:
    """Peak of resident memory of a fresh Python that runs ``code``, in MB."""
    code += "\nprint(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    command = [sys.executable, "-W", "ignore", "-c", code]
    line = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(line.split()[1]) * 1024 / 1e6


def cutting_memory(folder: Path, counts: tuple[int, ...]) -> dict[str, float]:
    """The peak while five classes are cut out of a network of so many nodes per level."""
    full, expert = folder / "parent.safetensors", folder / "cut.safetensors"
    net = random_network(network_config("n3hl_resnet50", 3), hlnet.ClassTree.balanced(counts))
    hlnet.save_checkpoint(net, full)
    del net
    imports = "from hlnet.expert.cut import cut_checkpoint; import safetensors.torch, timm\n"
    classes = [number * counts[-1] // 5 for number in range(5)]
    used = peak(f"{imports}cut_checkpoint({str(full)!r}, {classes}, {str(expert)!r})") - peak(imports)
    found = {"parent": full.stat().st_size / 1e6, "expert": expert.stat().st_size / 1e6, "peak": used}
    full.unlink()
    return found


def measure(folder: Path) -> dict[str, Any]:
    full, ours, naive, expert, copy = (
        folder / f"{name}.safetensors" for name in ("full", "ours", "naive", "expert", "copy")
    )
    config, tree = network_config("n3hl_resnet50", 3), hlnet.ClassTree.balanced((10, 90, 1000))
    net = random_network(config, tree)
    assert isinstance(net.head, BranchTree)
    one_by_one = NaiveTree(tree, 1024, config.block, config.widths, config.strides)
    copy_weights(net.head, one_by_one)
    hlnet.save_checkpoint(net, full)
    save_file(net.head.state_dict(), ours)
    save_file(one_by_one.state_dict(), naive)
    found: dict[str, Any] = {
        "tensors of the branches": len(net.head.state_dict()),
        "tensors of the branches, naive": len(one_by_one.state_dict()),
        "file, MB": full.stat().st_size / 1e6,
        "peak memory of cutting five classes, MB": [cutting_memory(folder, counts) for counts in PARENTS],
    }
    forms = {
        "load branches": lambda: load_branches(BranchTree, ours),
        "load branches, naive": lambda: load_branches(NaiveTree, naive),
        "load the network": lambda: hlnet.load_checkpoint(full),
        "cut": lambda: hlnet.cut_checkpoint(full, CLASSES, expert),
        "copy": lambda: copy.write_bytes(expert.read_bytes()),
    }
    found["seconds"] = turns(forms)
    seconds = {name: values["median"] for name, values in found["seconds"].items()}
    found["loading the branches: naive over ours"] = seconds["load branches, naive"] / seconds["load branches"]
    found["cutting over copying"] = seconds["cut"] / seconds["copy"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("files.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    with replacing(args.out) as draft:
        draft.write_text(json.dumps({"torch": torch.__version__, **found}, indent=1) + "\n")
    print("| | |\n|---|---|")
    for name, value in found.items():
        if name == "seconds":
            for form, times in value.items():
                print(f"| {form}, s | {times['median']:.3g} ({times['least']:.3g} to {times['most']:.3g}) |")
        elif isinstance(value, list):
            for row in value:
                print(f"| {name}: parent of {row['parent']:.0f}, expert of {row['expert']:.0f} | {row['peak']:.0f} |")
        else:
            print(f"| {name} | {value:.4g} |")


if __name__ == "__main__":
    main()
