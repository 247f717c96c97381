"""Accuracy against cost for experts of 1 to all classes, beside a plain network restricted to the same classes.

    hlnet train PHOTOS --tree preset:cifar100 … --out runs/full
    hlnet train PHOTOS --tree preset:cifar100 … --plain --out runs/plain
    python benchmarks/experts.py --model runs/full --plain runs/plain --data PHOTOS --plot experts.svg

For each number of classes, several draws of classes: at random, and neighbours in the tree. One pass over the images
gives the logits of both networks; an expert's are the full network's columns, which one expert of each size is run to
confirm. MACs are counted, latencies measured in turn, one image, one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import hlnet
from hlnet.data.sources import load_data
from hlnet.data.tree_data import TreeData, eval_transform, loader
from hlnet.evaluation.logits import logits_of
from hlnet.figures import BLUE, GREY, RED, save
from hlnet.files import replacing
from hlnet.model.cost import plain_cost, total_cost, unit_costs
from hlnet.model.latency import measure_latency


def top1(logits: Tensor, labels: Tensor, kept: list[int]) -> float:
    """Accuracy on the images of these classes, with only their logits competing."""
    column = torch.full((logits.shape[1],), -1)
    column[kept] = torch.arange(len(kept))
    own = column[labels] >= 0
    return float((logits[own][:, kept].argmax(1) == column[labels[own]]).float().mean())


def draws(classes: int, size: int, count: int, seed: int) -> dict[str, list[list[int]]]:
    """Choices of ``size`` classes: at random, and next to each other, as the tree has them."""
    generator = np.random.default_rng([seed, size])
    count = 1 if size == classes else count
    strewn = [sorted(generator.choice(classes, size, replace=False).tolist()) for _ in range(count)]
    starts = generator.integers(0, classes - size + 1, count).tolist()
    return {"random": strewn, "neighbours": [list(range(start, start + size)) for start in starts]}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    full, plain = (hlnet.load_checkpoint(path) for path in (args.model, args.plain))
    assert isinstance(full, hlnet.HierarchicalNet)
    if plain.tree.classes != full.tree.classes:
        raise SystemExit("the two networks must have the same classes in the same order")
    data = TreeData(load_data(args.data, args.split), full.tree, eval_transform(full.transform))
    (full_logits,), labels = logits_of(hlnet.optimize(full), loader(data, 64, 1))
    plain_data = TreeData(load_data(args.data, args.split), full.tree, eval_transform(plain.transform))
    (plain_logits,), _ = logits_of(hlnet.optimize(plain), loader(plain_data, 64, 1))
    units, size = unit_costs(full.config, full.transform)
    classes = len(full.tree.classes)
    sizes = [k for k in args.sizes if k < classes] + [classes]
    rows: list[dict[str, Any]] = []
    models: dict[str, Any] = {"plain": hlnet.optimize(plain)}
    for k in sizes:
        for how, chosen in draws(classes, k, args.draws, args.seed).items():
            costs = [total_cost(units, full.tree.prune(kept).counts) for kept in chosen]
            rows.append(
                {
                    "classes": k,
                    "draw": how,
                    "expert": [top1(full_logits, labels, kept) for kept in chosen],
                    "plain": [top1(plain_logits, labels, kept) for kept in chosen],
                    "gmacs": [cost.gmacs for cost in costs],
                    "params": [cost.params for cost in costs],
                }
            )
            expert = hlnet.cut_expert(full, [full.tree.classes[i] for i in chosen[0]])
            models[f"{k} {how}"] = hlnet.optimize(expert)
            images = torch.stack([data[i][0] for i in range(0, len(data), max(1, len(data) // 16))])
            with torch.inference_mode():
                whole, cut = hlnet.optimize(full)(images)[:, chosen[0]], models[f"{k} {how}"](images)
            assert torch.allclose(whole, cut, atol=1e-4 * float(whole.abs().max())), "an expert is not its full network"
    found = measure_latency(models, size, seconds=args.seconds)
    for row in rows:
        row["ms"] = found[f"{row['classes']} {row['draw']}"][0].median_ms
    cost = plain_cost(full.config, classes, size)
    return {
        "rows": rows,
        "plain": {"gmacs": cost.gmacs, "params": cost.params, "ms": found["plain"][0].median_ms},
        "images": len(labels),
        "data": Path(args.data).name,
        "torch": torch.__version__,
    }


def report(results: dict[str, Any]) -> None:
    plain = results["plain"]
    print(f"\n{results['data']}, {results['images']} images; mean of the draws, in percent\n")
    print("| classes | draw | expert (= full, restricted) | plain, restricted | GMACs | parameters, M | ms |")
    print("|---|---|---|---|---|---|---|")
    for row in results["rows"]:
        cells = [100 * statistics.mean(row["expert"]), 100 * statistics.mean(row["plain"])]
        costs = [statistics.mean(row["gmacs"]), statistics.mean(row["params"]) / 1e6]
        print(
            f"| {row['classes']} | {row['draw']} | {cells[0]:.1f} | {cells[1]:.1f} | {costs[0]:.4f} | {costs[1]:.3f} | "
            f"{row['ms']:.2f} |"
        )
    print(f"| any | plain | | | {plain['gmacs']:.4f} | {plain['params'] / 1e6:.3f} | {plain['ms']:.2f} |")


def draw(results: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")
    plain = results["plain"]
    for axes, (field, label) in zip(
        figure.subplots(1, 2, sharey=True), (("gmacs", "GMACs"), ("ms", "ms an image, one thread")), strict=True
    ):
        for how, colour in (("random", BLUE), ("neighbours", RED)):
            rows = [row for row in results["rows"] if row["draw"] == how]
            x = [statistics.mean(row[field]) if field == "gmacs" else row[field] for row in rows]
            y = [100 * statistics.mean(row["expert"]) for row in rows]
            axes.plot(x, y, "o-", color=colour, label=f"expert, {how}")
            for row, right, up in zip(rows, x, y, strict=True):
                axes.annotate(str(row["classes"]), (right, up), xytext=(4, 4), textcoords="offset points", fontsize=8)
            y = [100 * statistics.mean(row["plain"]) for row in rows]
            axes.plot([plain[field]] * len(y), y, "x", color=colour, alpha=0.6, label=f"plain, restricted, {how}")
        axes.set(xlabel=label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    axes.figure.axes[0].set_ylabel("top-1, % (numbers: classes)")
    axes.legend(frameon=False, labelcolor="#444", edgecolor=GREY, fontsize=8)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a trained hierarchical network")
    parser.add_argument("--plain", help="a plain network trained on the same classes")
    parser.add_argument("--data")
    parser.add_argument("--split", default="test")
    parser.add_argument(
        "--sizes", type=lambda text: [int(part) for part in text.split(",")], default=[1, 2, 5, 10, 20, 50]
    )
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=20.0, help="for the latencies of all networks together")
    parser.add_argument("--out", type=Path, default=Path("experts.json"))
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--report", type=Path, help="print this result file as a table, and draw it, and stop")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.report:
        results = json.loads(args.report.read_text())
    else:
        if not (args.model and args.plain and args.data):
            parser.error("--model, --plain and --data are needed")
        results = measure(args)
        with replacing(args.out) as draft:
            draft.write_text(json.dumps(results, indent=1) + "\n")
    report(results)
    if args.plot:
        draw(results, args.plot)


if __name__ == "__main__":
    main()
