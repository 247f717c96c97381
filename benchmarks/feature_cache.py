"""What cached features save: a tree trained behind a frozen trunk, with its features cached and without.

    python benchmarks/feature_cache.py --out feature_cache.json                       digits, about ten minutes
    python benchmarks/feature_cache.py --data PHOTOS --tree preset:imagenette \\
        --trunk-weights mobilenetv2_100.safetensors --out feature_cache.json
    python benchmarks/feature_cache.py --report feature_cache.json

N3HL on MobileNetV2, with half the paper's widths, on the CPU. Three forms take turns: the trunk runs on a fresh view of
every image in every epoch; on 4 views of each before the first epoch, whose features are written to a file; and not at
all, since the file is there. Each time is a whole run: opening or making the cache, training, and validation after each
epoch. *An epoch* is the median of those that came after the first. Seconds are the clock's; the processor's (this
process alone, so without those that load images) stand beside them, for machines that are not idle. Accuracies say what
the few views cost; digits are trained behind an untrained trunk unless weights are given.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ByteSize

import hlnet
from hlnet.data.feature_cache import cached_features
from hlnet.data.features import CachedFeatures
from hlnet.data.images import LabelledImages
from hlnet.files import replacing
from hlnet.model.trunk import load_trunk_weights
from hlnet.tree.construct.baselines import balanced_tree

BACKBONE, BACKBONE_ARGS = "mobilenetv2_100", {"pad_type": "same"}
WIDTHS, STRIDES = (64, 32, 16), (1, 1, 2)
FORMS = ("no cache", "cache, first run", "cache, again")


def network(tree: hlnet.ClassTree, weights: Path | None, img_size: int) -> hlnet.HierarchicalNet:
    torch.manual_seed(0)
    net = hlnet.create_model(BACKBONE, tree=tree, backbone_args=BACKBONE_ARGS, widths=WIDTHS, strides=STRIDES)
    if weights:
        load_trunk_weights(net.trunk_module, weights, net.trunk_names)
    net.transform = net.transform.adjusted(img_size, mean=0.5, std=0.5)
    return net


def thinned(images: LabelledImages, count: int | None) -> LabelledImages:
    """The first ``count`` images of each class."""
    seen: Counter[int] = Counter()
    kept = []
    for position, label in enumerate(images.labels):
        seen[label] += 1
        if count is None or seen[label] <= count:
            kept.append(position)
    labels, files = (tuple(row[i] for i in kept) if row else () for row in (images.labels, images.files))
    return replace(images, labels=labels, files=files, load=lambda i: images.load(kept[i]))


def run(form: str, args: argparse.Namespace, tree: hlnet.ClassTree, folder: Path) -> dict[str, Any]:
    """Train once; what it took and how well it went."""
    net = network(tree, args.trunk_weights, args.img_size)
    digits = args.data == "digits"
    aa, hflip, scale = ("none", 0.0, (0.7, 1.0)) if digits else ("rand-m9-mstd0.5", 0.5, (0.35, 1.0))
    transforms = {
        "train": hlnet.train_transform(net.transform, aa, scale, hflip),
        "val": hlnet.eval_transform(net.transform),
    }
    data: dict[str, Any] = {
        split: hlnet.TreeData(thinned(hlnet.load_data(args.data, split), args.images_per_class), tree, transform)
        for split, transform in transforms.items()
    }
    config = hlnet.TrainConfig(epochs=args.epochs, frozen_trunk=True, workers=args.workers, lr=2e-3)
    found: dict[str, Any] = {"images": [len(data[split]) for split in ("train", "val")]}
    started, cpu = time.perf_counter(), time.process_time()
    if form != "no cache":
        for split, views in (("val", 1), ("train", args.views)):
            data[split] = cached_features(net, data[split], views, workers=args.workers, folder=folder)
        assert isinstance(data["train"], CachedFeatures)
        found["cache"] = time.perf_counter() - started
        found["bytes"] = sum(file.stat().st_size for file in folder.glob("*.npy"))
        found["features"] = list(data["train"].features.shape[2:])
    epochs = hlnet.train(net, data["train"], data["val"], config, device="cpu")
    found["seconds"], found["cpu"] = time.perf_counter() - started, time.process_time() - cpu
    found["epoch"] = statistics.median(epoch.seconds for epoch in epochs[1:] or epochs)
    found["val_top1"] = max(epoch.val_top1 for epoch in epochs)
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    tree = hlnet.read_tree(args.tree) if args.tree else tree_of(args.data)
    found: dict[str, list[dict[str, Any]]] = {form: [] for form in FORMS}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for form in FORMS:
                found[form].append(run(form, args, tree, Path(folder)))
                print(
                    form, {name: found[form][-1][name] for name in ("seconds", "cpu", "epoch", "val_top1")}, flush=True
                )
    settings = {name: getattr(args, name) for name in ("epochs", "views", "img_size", "workers", "rounds")}
    settings |= {
        "data": Path(args.data).name,
        "pretrained": bool(args.trunk_weights),
        "threads": torch.get_num_threads(),
    }
    return {"torch": torch.__version__, "settings": settings, "nodes": tree.counts, "runs": found}


def tree_of(data: str) -> hlnet.ClassTree:
    """Two nodes, then five, then the classes."""
    return balanced_tree(hlnet.ClassTree.parallel(hlnet.load_data(data, "val").classes), (2, 5))


def print_report(found: dict[str, Any]) -> None:
    runs, settings = found["runs"], found["settings"]
    first = runs["cache, first run"][0]
    print(
        f"{settings['data']}: {first['images'][0]} training and {first['images'][1]} validation images, "
        f"{settings['img_size']} pixels, {settings['epochs']} epochs, {settings['views']} views, "
        f"{settings['threads']} thread(s), {settings['workers']} workers; features {first['features']}, "
        f"{ByteSize(first['bytes']).human_readable(decimal=True)} on disk; medians of {settings['rounds']} runs "
        "(least–most)\n"
    )
    print("| | whole run, s | speed-up | processor, s | speed-up | cache, s | an epoch, s | speed-up | top-1, % |")
    print("|---|---|---|---|---|---|---|---|---|")
    plain = {what: statistics.median(each[what] for each in runs["no cache"]) for what in ("seconds", "cpu", "epoch")}
    for form in FORMS:
        seconds = [each["seconds"] for each in runs[form]]
        middle = {what: statistics.median(each[what] for each in runs[form]) for what in (*plain, "val_top1")}
        cache = f"{statistics.median(each['cache'] for each in runs[form]):.2f}" if "cache" in runs[form][0] else "–"
        gain = {what: plain[what] / middle[what] for what in plain}
        print(
            f"| {form} | {middle['seconds']:.1f} ({min(seconds):.1f}–{max(seconds):.1f}) | {gain['seconds']:.1f} | "
            f"{middle['cpu']:.1f} | {gain['cpu']:.1f} | {cache} | {middle['epoch']:.2f} | {gain['epoch']:.1f} | "
            f"{100 * middle['val_top1']:.1f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="'digits', or a folder with train and val folders")
    parser.add_argument("--tree", help="of three levels; default: 2 and 5 nodes above the classes")
    parser.add_argument("--trunk-weights", type=Path)
    parser.add_argument("--img-size", type=int, help="default: 64 for digits, 160 otherwise")
    parser.add_argument("--images-per-class", type=int, help="the first so many of each split; default: all")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("feature_cache.json"))
    parser.add_argument("--report", type=Path, help="print this result as a table, and do nothing else")
    args = parser.parse_args()
    if args.report:
        print_report(json.loads(args.report.read_text()))
        return
    args.img_size = args.img_size or (64 if args.data == "digits" else 160)
    torch.set_num_threads(args.threads)
    found = measure(args)
    with replacing(args.out) as draft:
        draft.write_text(json.dumps(found, indent=1) + "\n")
    print_report(found)


if __name__ == "__main__":
    main()
