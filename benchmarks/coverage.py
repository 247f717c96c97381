"""How often answers along the path are right, and where they end: by a coverage that is asked for, and by confidence.

    python benchmarks/coverage.py --data CIFAR runs/full runs/plain

Temperature and thresholds come from the validation images (half of them each, as ``hlnet calibrate`` does), the figures
from the test images. The commands in docs/only-some-classes.md train the two networks of docs/predict.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

import hlnet
from hlnet.data.sources import load_data
from hlnet.data.tree_data import TreeData, eval_transform, loader
from hlnet.evaluation.calibration import calibrate_paths
from hlnet.evaluation.logits import logits_of
from hlnet.evaluation.metrics.conformal import descend_all, threshold_for
from hlnet.evaluation.metrics.paths import Descent, TreePaths


def percent(values: Tensor) -> str:
    return f"{100 * float(values.double().mean()):.1f}"


def judged(paths: TreePaths, down: Descent, labels: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Where each answer ends, whether it holds the image's class, and how many classes it leaves."""
    level = paths.answered(down, threshold)
    inside = paths.places[None] == paths.places[down.leaves][:, None]  # [N, K, levels]
    at = (level - 1).clamp(min=0)
    below = inside[torch.arange(len(level)), :, at] | (level == 0)[:, None]
    return level, below[torch.arange(len(level)), labels], below.sum(1)


def report(name: str, args: argparse.Namespace) -> None:
    net = hlnet.load_checkpoint(name)
    prepare, fast = eval_transform(net.transform), hlnet.optimize(net)
    parts = {split: TreeData(load_data(args.data, split), net.tree, prepare) for split in ("val", "test")}
    fitted = calibrate_paths(fast, parts["val"], workers=1)
    (logits,), labels = logits_of(fast, loader(parts["test"], 64, 1))
    paths = TreePaths(net.tree)
    down = descend_all(paths, logits, fast.provenance.temperature)
    best = logits.argmax(1)
    print(f"\n## {name}: {len(labels)} test images, {fitted.images} for the thresholds")
    print(f"top-1 {percent(best == labels)} %; at the end of the way {percent(down.leaves == labels)} %, ", end="")
    print(f"which is another class for {percent(down.leaves != best)} %\n")
    levels = range(net.tree.num_levels, -1, -1)
    print(f"| coverage | reached | worst class | {' | '.join(f'level {level}' for level in levels)} | classes left |")
    print("|---|---|---|---|" + "---|" * len(levels))
    for coverage in args.coverages:
        level, right, left = judged(paths, down, labels, threshold_for(fitted, coverage))
        worst = min(float(right[labels == place].double().mean()) for place in set(labels.tolist()))
        ends = " | ".join(percent(level == one) for one in levels)
        mean = float(left.double().mean())
        print(f"| {100 * coverage:g} | {percent(right)} | {100 * worst:.0f} | {ends} | {mean:.1f} |")
    print(f"\n| least confidence | {' | '.join(f'level {level}: answers, right' for level in levels)} |")
    print("|---|" + "---|" * len(levels))
    for confidence in args.confidences:
        level, right, _ = judged(paths, down, labels, confidence)
        cells = [f"{percent(level == one)}, {percent(right[level == one])}" for one in levels]
        print(f"| {confidence:g} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--data", type=Path, required=True, help="folder with val/ and test/, one folder a class")
    parser.add_argument("--coverages", type=float, nargs="+", default=[0.7, 0.8, 0.9, 0.95, 0.99])
    parser.add_argument("--confidences", type=float, nargs="+", default=[0.5, 0.8, 0.9])
    args = parser.parse_args()
    for name in args.models:
        report(name, args)


if __name__ == "__main__":
    main()
