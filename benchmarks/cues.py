"""What cues do: gain, bias and scale, right and wrong; with and without training for it; one object and several.

    python benchmarks/cues.py --data PHOTOS/imagewoof --tree preset:imagewoof --size 112 \
        --trunk-weights mobilenetv2_100.safetensors --out cues_imagewoof.json
    python benchmarks/cues.py --report cues_imagewoof.json cues_cifar100.json

On one frozen pretrained trunk and the same cached features, seed by seed: N3HL; N3HL trained with cues (cue-aware);
and as the plain control the head of N3HL's own blocks and cost of ``hierarchy.py``. Each is reported on as ``hlnet
attend`` does, on the validation and test images, a third of them to choose strengths and a third to report. Then
images of several objects are made of test images: the left half of one beside the right half of another, or four in
the quarters, all of different classes. The cue names one of them (found, if the network answers it), or a class that is
not there (harm, if it answers none of those there). The folder has ``train``, ``val`` and ``test``, with one folder a
class. The file is rewritten after every network; run the command again to go on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hierarchy import KINDS, features, network, spread
from PIL import Image
from torch import Tensor, nn

import hlnet
from hlnet.data.features import CachedFeatures
from hlnet.data.sources import load_data
from hlnet.data.tree_data import TreeData, eval_transform
from hlnet.evaluation.cue_report import EVIDENCE, GAINS, SCALES, report_cues, stored_gains
from hlnet.evaluation.cue_sweep import Frontier, right_answers, sweep_gains
from hlnet.files import replacing

TREE, AWARE, PLAIN = "N3HL", "N3HL, cue-aware", "plain head"
#: Points of harm by a wrong cue at which ways of cueing are compared.
HARMS = (1.0, 2.0, 5.0, 10.0, 20.0)


class OnFeatures(nn.Module):
    """A network whose images are its trunk's features already."""

    def __init__(self, net: Any, plain: bool) -> None:
        super().__init__()
        self.head, self.tree, self.provenance = net.head, net.tree, net.provenance
        self.has_branches, self.device = not plain, torch.device("cpu")

    def features(self, images: Tensor) -> Tensor:
        return images

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images)
        return logits


def batches(found: list[CachedFeatures], size: int = 100) -> list[tuple[Tensor, Tensor]]:
    return [
        (part.features[0, start : start + size].float(), part.labels[start : start + size])
        for part in found
        for start in range(0, len(part), size)
    ]


def trained(args: argparse.Namespace, kind: str, seed: int, tree: hlnet.ClassTree, data: Any) -> tuple[Any, float]:
    net = network("plain head" if kind == PLAIN else KINDS[-1], tree, args.size, args.trunk_weights, seed)
    config = hlnet.TrainConfig(
        epochs=args.epochs,
        seed=seed,
        batch_size=64,
        frozen_trunk=True,
        cache_views=1,
        cue_aware=kind == AWARE,
    )
    started = time.perf_counter()
    history = hlnet.train(net, data["train"], data["val"], config, device="cpu")
    print(f"{kind}, seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
    return OnFeatures(net, kind == PLAIN).eval(), max(epoch.val_top1 for epoch in history)


# ---------------------------------------------------------------------- several objects


def composed(parts: list[Image.Image], side: int) -> Image.Image:
    """Two images: the middle half of each, side by side. Four: one in each quarter."""
    canvas = Image.new("RGB", (side, side))
    half = side // 2
    for place, image in enumerate(parts):
        width, height = image.size
        edge = min(width, height)
        square = image.convert("RGB").crop(
            ((width - edge) // 2, (height - edge) // 2, (width + edge) // 2, (height + edge) // 2)
        )
        if len(parts) == 2:
            piece = square.resize((side, side), Image.Resampling.BICUBIC).crop((half // 2, 0, half // 2 + half, side))
            canvas.paste(piece, (place * half, 0))
        else:
            piece = square.resize((half, half), Image.Resampling.BICUBIC)
            canvas.paste(piece, (place % 2 * half, place // 2 * half))
    return canvas


@torch.inference_mode()
def scenes(args: argparse.Namespace, tree: hlnet.ClassTree, objects: int) -> tuple[CachedFeatures, Tensor]:
    """Features of composed images, with the class that is cued as their label; and all classes there, ``[N, n]``."""
    net = network(KINDS[-1], tree, args.size, args.trunk_weights, 0).eval()
    images = load_data(args.data, "test")
    data = TreeData(images, tree, eval_transform(net.transform))
    generator = np.random.default_rng(objects)
    pixels, present = [], []
    transform = eval_transform(net.transform.model_copy(update={"crop_pct": 1.0}))
    labels = np.array(data.labels)
    for _ in range(args.scenes):
        classes = generator.choice(len(tree.classes), objects, replace=False)
        chosen = [int(generator.choice(np.flatnonzero(labels == name))) for name in classes]
        parts = [images.load(data.samples[position][0]) for position in chosen]
        pixels.append(transform(composed(parts, args.size)))
        present.append(classes.tolist())
    there = torch.tensor(present)
    parts = [net.features(torch.stack(pixels[start : start + 50])) for start in range(0, len(pixels), 50)]
    return CachedFeatures(torch.cat(parts)[None], there[:, 0]), there


def search(net: Any, data: CachedFeatures, there: Tensor) -> dict[str, Any]:
    """Frontiers of finding the cued object against answering what is there when an absent class is cued."""
    swept = sweep_gains(net, batches([data]), GAINS if net.has_branches else ())
    classes = swept.neutral.shape[1]
    generator = np.random.default_rng(0)
    absent = torch.tensor([int(generator.choice(np.setdiff1d(np.arange(classes), row))) for row in there.tolist()])
    named, wrong = torch.eye(classes, dtype=torch.bool)[swept.labels], torch.eye(classes, dtype=torch.bool)[absent]

    def still_there(mode: Any, strength: float) -> float:
        answers = [
            right_answers(type(swept)(label, swept.neutral, swept.gained), wrong, mode, strength) for label in there.T
        ]
        return float(torch.stack(answers).any(0).double().mean())

    tried: dict[Any, Any] = {"bias": EVIDENCE, "scale": SCALES} | ({"gain": GAINS} if net.has_branches else {})
    found: dict[str, Any] = {
        mode: Frontier(
            mode=mode,
            strengths=strengths,
            right=tuple(float(right_answers(swept, named, mode, s).double().mean()) for s in strengths),
            wrong={"absent": tuple(still_there(mode, strength) for strength in strengths)},
        ).model_dump()
        for mode, strengths in tried.items()
    }
    return {"neutral found": found["bias"]["right"][0], "neutral there": found["bias"]["wrong"]["absent"][0]} | found


# ---------------------------------------------------------------------- running and reporting


def measure(args: argparse.Namespace, kind: str, seed: int, tree: hlnet.ClassTree, data: Any, made: Any) -> Any:
    net, val_top1 = trained(args, kind, seed, tree, data)
    found: dict[str, Any] = {"val top-1": val_top1}
    gains = (*GAINS, *stored_gains(net).values()) if net.has_branches else ()
    swept = sweep_gains(net, batches([data["val"], data["test"]]), gains)
    for level in (None, *range(1, tree.num_levels)):
        if level is not None and len({node.path for node in tree.levels[level - 1]}) < 2:
            continue
        kind_of_wrong = ("random", "sibling") if level is None else ("random",)
        for wrong in kind_of_wrong:
            report = report_cues(tree, swept, wrong=wrong, level=level, seed=seed)  # type: ignore[arg-type]
            found[f"{wrong}, level {level or 'classes'}"] = report.model_dump(mode="json")
    found |= {f"{objects} objects": search(net, *made[objects]) for objects in made}
    return found


def at_harm(found: dict[str, Any], mode: str, points: float) -> float:
    """Share of cued objects found, at the strength that does this much harm."""
    return 100 * Frontier(**found[mode]).right_at(found["neutral there"] - points / 100, "absent")


def report(paths: list[Path]) -> None:
    for path in paths:
        results = json.loads(path.read_text())
        runs: dict[str, list[Any]] = {
            kind: [run for key, run in sorted(results["runs"].items()) if key.rsplit("/", 1)[0] == kind]
            for kind in (TREE, AWARE, PLAIN)
        }
        print(f"\n## {results['name']}: {results['nodes']} nodes, {results['images']} training images")
        for key in next(run for found in runs.values() for run in found):
            if key.startswith(("random", "sibling")):
                show_choices(key, runs)
            elif key.endswith("objects"):
                show_search(key, runs)


def show_choices(key: str, runs: dict[str, list[Any]]) -> None:
    """Top-1 by reliability, mean over seeds; and what is above the tuned bias of the same network, seed by seed."""
    print(f"\n**Cues on {key.split(', ')[1]}, wrong ones {key.split(',')[0]}**\n")
    print("| network | no cue | way | 50 % right | 75 % | 90 % | 99 % | above tuned bias at 90 %, by seed |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, found in runs.items():
        for way in ("gain", "stored", "scale", "bias", "bayes"):
            reports = [run[key]["network"] for run in found]
            choices = [
                {choice["reliability"]: choice for choice in one["choices"] if choice["way"] == way} for one in reports
            ]
            if not choices or not choices[0]:
                continue
            cells = [spread([100 * one[share]["top1"] for one in choices], 1) for share in (0.5, 0.75, 0.9, 0.99)]
            leads = [one[0.9]["against_bias"] for one in choices]
            told = ", ".join(
                f"{100 * lead['mean']:+.1f} [{100 * lead['low']:+.1f}, {100 * lead['high']:+.1f}]"
                for lead in leads
                if lead
            )
            neutral = spread([100 * one["neutral"] for one in reports], 1)
            print(f"| {kind} | {neutral} | {way} | {' | '.join(cells)} | {told or '–'} |")


def show_search(key: str, runs: dict[str, list[Any]]) -> None:
    """Cued objects found at equal harm, mean over seeds; in brackets the lead over the bias, seed by seed."""
    print(f"\n**{key} an image: cued object found, %, at so many points of harm by a cue on an absent class**\n")
    print(f"| network | no cue | way | {' | '.join(f'{harm:g}' for harm in HARMS)} |")
    print("|---|---|---|" + "---|" * len(HARMS))
    for kind, found in runs.items():
        for way in ("gain", "scale", "bias"):
            own = [run[key] for run in found if way in run[key]]
            if not own:
                continue
            cells = []
            for harm in HARMS:
                values = [at_harm(run, way, harm) for run in own]
                leads = [value - at_harm(run, "bias", harm) for value, run in zip(values, own, strict=True)]
                told = "" if way == "bias" else f" ({', '.join(f'{lead:+.1f}' for lead in leads)})"
                cells.append(f"{statistics.mean(values):.1f}{told}")
            neutral = spread([100 * run["neutral found"] for run in own], 1)
            print(f"| {kind} | {neutral} | {way} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tree", help="a tree file or preset:NAME, of three levels")
    parser.add_argument("--trunk-weights", type=Path)
    parser.add_argument("--out", type=Path, default=Path("cues.json"))
    parser.add_argument("--size", type=int, default=160, help="side of the images in pixels")
    parser.add_argument("--views", type=int, default=2, help="augmented views of each training image")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--scenes", type=int, default=1000, help="images of several objects, of each kind")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cache-dir", type=Path)
    parser.add_argument("--report", type=Path, nargs="+", help="print these result files as tables, and stop")
    args = parser.parse_args()
    if args.report:
        report(args.report)
        return
    if not (args.data and args.tree and args.trunk_weights):
        parser.error("--data, --tree and --trunk-weights are needed")
    torch.set_num_threads(1)
    tree = hlnet.read_tree(args.tree)
    data = features(args.data, network(KINDS[-1], tree, args.size, args.trunk_weights, 0), args.views, args.cache_dir)
    made = {objects: scenes(args, tree, objects) for objects in (2, 4)}
    results: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"runs": {}}
    results |= {
        "name": args.data.name,
        "nodes": ", ".join(map(str, tree.counts)),
        "images": len(data["train"]),
        "settings": {name: str(value) for name, value in vars(args).items()},
        "torch": torch.__version__,
    }
    for seed in args.seeds:
        for kind in (TREE, AWARE, PLAIN):
            key = f"{kind}/{seed}"
            if key not in results["runs"]:
                results["runs"][key] = measure(args, kind, seed, tree, data, made)
                with replacing(args.out) as draft:
                    draft.write_text(json.dumps(results, indent=1) + "\n")
    report([args.out])


if __name__ == "__main__":
    main()
