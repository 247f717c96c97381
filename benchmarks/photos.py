"""The paper's questions on real photographs: Tables 2, 3 and 4 at a scale that two CPU cores can carry.

For each data set and seed, on one frozen pretrained trunk and the same cached features: a plain network, PHL and N3HL;
the lower-5 and upper-5 experts beside the plain network restricted to the same classes and beside one trained on these
classes alone; and cues, by gain and by a plain logit bias, right and wrong.

    python benchmarks/photos.py --data PHOTOS --trunk-weights mobilenetv2_100.safetensors --out photos.json
    python benchmarks/photos.py --report photos.json

PHOTOS holds ``imagenette`` and ``imagewoof``, each with ``train``, ``val`` and ``test`` folders of one folder a class.
The file is rewritten after every network; run the command again to go on where it stopped. ``--report`` prints it as
the tables of docs/results.md.
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
from torch import Tensor

import hlnet
from hlnet.cues.effect import gains_for
from hlnet.data.feature_cache import cached_features
from hlnet.data.features import CachedFeatures
from hlnet.data.tree_data import TreeData, eval_transform, train_transform
from hlnet.evaluation.metrics.accuracy import accuracy
from hlnet.files import replacing
from hlnet.model.plain import PlainConfig
from hlnet.model.presets import network_config
from hlnet.model.transform import InputTransform
from hlnet.model.trunk import load_trunk_weights

BACKBONE, BACKBONE_ARGS = "mobilenetv2_100", {"pad_type": "same"}
#: Half the paper's widths, with its strides.
BRANCHES: dict[str, dict[str, Any]] = {
    "PHL": {"widths": (64, 32, 16), "strides": (2, 2, 2)},
    "N3HL": {"widths": (64, 32, 16), "strides": (1, 1, 2)},
}
GAINS = (1.1, 1.4, 1.8, 3.0, 10.0, 100.0)
BIASES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
VIEWS = 4


def network(kind: str, tree: hlnet.ClassTree, weights: Path) -> Any:
    """A network with its trunk's weights and the transform that they were trained with, at 160 pixels."""
    if kind == "plain":
        net: Any = hlnet.PlainNet(PlainConfig(backbone=BACKBONE, backbone_args=BACKBONE_ARGS), tree)
    else:
        shape = tree.parallelized() if kind == "PHL" else tree
        net = hlnet.create_model(BACKBONE, tree=shape, backbone_args=BACKBONE_ARGS, **BRANCHES[kind])
    load_trunk_weights(net.trunk_module, weights, net.trunk_names)
    half = (0.5, 0.5, 0.5)
    net.transform = net.transform.model_copy(update={"input_size": (3, 160, 160), "mean": half, "std": half})
    return net


def features(root: Path, tree: hlnet.ClassTree, weights: Path) -> dict[str, CachedFeatures]:
    """Augmented views for training; validation and test images as they are."""
    net = network("N3HL", tree, weights)
    found = {}
    for split in ("train", "val", "test"):
        training = split == "train"
        transform = train_transform(net.transform, "rand-m9-mstd0.5") if training else eval_transform(net.transform)
        data = TreeData(hlnet.load_data(root, split), tree, transform)  # type: ignore[arg-type]
        found[split] = cached_features(net, data, VIEWS if training else 1)
    return found


@torch.inference_mode()
def logits(net: Any, data: CachedFeatures, cued: Tensor | None = None, signal: float = 1.0) -> Tensor:
    """``[N, K]``; with ``cued`` (``[N]``), each image under a gain on that class."""
    net.eval()
    found = []
    for start in range(0, len(data), 100):
        part = data.features[0, start : start + 100].float()
        gains = () if cued is None else (gains_for(net.tree, cued[start : start + 100], signal),)
        found.append(net.head(part, *gains))
    return torch.cat(found)


def other_classes(classes: Tensor, count: int) -> Tensor:
    """For each image another class than its own, drawn at random: what a wrong cue names."""
    return (classes + torch.randint(1, count, classes.shape, generator=torch.Generator().manual_seed(0))) % count


def top1(scores: Tensor, labels: Tensor) -> float:
    return accuracy(scores, labels, map(str, range(scores.shape[1]))).top1


def cue_accuracies(net: Any, kind: str, data: CachedFeatures) -> dict[str, dict[str, tuple[float, float]]]:
    """For each mechanism and strength: top-1 under right cues and under wrong ones (a random other class)."""
    neutral = logits(net, data)
    labels, classes = data.labels, neutral.shape[1]
    wrong = other_classes(labels, classes)
    found: dict[str, dict[str, tuple[float, float]]] = {"bias": {}, "gain": {}}
    for bias in BIASES:
        shifted = (neutral + bias * torch.nn.functional.one_hot(cue, classes) for cue in (labels, wrong))
        right, misled = (top1(scores, labels) for scores in shifted)
        found["bias"][str(bias)] = (right, misled)
    for gain in GAINS if kind != "plain" else ():
        right, misled = (top1(logits(net, data, cue, gain), labels) for cue in (labels, wrong))
        found["gain"][str(gain)] = (right, misled)
    return found


def measure(
    kind: str, seed: int, epochs: int, tree: hlnet.ClassTree, data: dict[str, CachedFeatures], weights: Path
) -> Any:
    """Train one network and take every figure of it."""
    torch.manual_seed(seed)
    net = network(kind, tree, weights)
    started = time.perf_counter()
    config = hlnet.TrainConfig(epochs=epochs, seed=seed, frozen_trunk=True, cache_views=VIEWS)
    hlnet.train(net, data["train"], data["val"], config, device="cpu")
    result: dict[str, Any] = {"seconds": time.perf_counter() - started}
    halves = {name: half(tree, name) for name in ("lower 5", "upper 5")}
    for split in ("val", "test"):
        scores, labels = logits(net, data[split]), data[split].labels
        result[split] = {"all 10": top1(scores, labels)}
        for name, kept in halves.items():
            part = data[split].restricted(kept)
            restricted = top1(logits(net, part)[:, kept], part.labels)
            result[split][name] = restricted
            if kind != "plain":
                expert = hlnet.cut_expert(net, [tree.classes[i] for i in kept])
                result[split][f"{name}, expert"] = top1(logits(expert, part), part.labels)
        result[split]["cues"] = cue_accuracies(net, kind, data[split])
    return result


def measure_alone(
    name: str, seed: int, epochs: int, tree: hlnet.ClassTree, data: dict[str, CachedFeatures], weights: Path
) -> Any:
    """A plain network that has only ever seen these five classes."""
    kept = half(tree, name)
    torch.manual_seed(seed)
    net = network("plain", tree.prune(kept), weights)
    config = hlnet.TrainConfig(epochs=epochs, seed=seed, frozen_trunk=True, cache_views=VIEWS)
    part = {split: data[split].restricted(kept) for split in data}
    hlnet.train(net, part["train"], part["val"], config, device="cpu")
    return {split: {name: top1(logits(net, part[split]), part[split].labels)} for split in ("val", "test")}


def half(tree: hlnet.ClassTree, name: str) -> list[int]:
    """Positions of the classes with original indices 0-4 or 5-9."""
    return [i for i, index in enumerate(tree.indices) if (index < 5) == (name == "lower 5")]


def print_report(results: dict[str, Any]) -> None:
    """The tables, with means over the seeds and their standard deviation, in percent."""
    names = sorted({key.split("/")[0] for key in results})
    transform = InputTransform(input_size=(3, 160, 160))
    print("| network | nodes | parameters, M | GMACs | expert of 5: parameters, M | GMACs |\n|---|---|---|---|---|---|")
    for kind, shape in BRANCHES.items():
        tree = hlnet.read_tree("preset:imagenette")
        tree = tree.parallelized() if kind == "PHL" else tree
        config = network_config(BACKBONE, 3, backbone_args=BACKBONE_ARGS, **shape)
        cost = hlnet.profile(config, tree, transform, "0-4")
        if kind == "PHL":
            print(f"| plain | – | {cost.plain.params / 1e6:.3f} | {cost.plain.gmacs:.3f} | – | – |")
        assert cost.expert is not None
        columns = [f"{one.params / 1e6:.3f} | {one.gmacs:.3f}" for one in (cost.full, cost.expert)]
        print(f"| {kind} | {', '.join(map(str, tree.counts))} | {' | '.join(columns)} |")

    print("\n| top-1, % | " + " | ".join(f"{name} {split}" for name in names for split in ("val", "test")) + " |")
    print("|---|" + "---|" * 2 * len(names))
    for what in ("all 10", "lower 5", "upper 5"):
        for kind in ("plain", "PHL", "N3HL"):
            label = f"{kind}, {what}" if what == "all 10" else f"{kind}, {what} (logits restricted)"
            print(
                f"| {label} | "
                + " | ".join(spread(results, name, kind, s, what) for name in names for s in ("val", "test"))
                + " |"
            )
            if kind != "plain" and what != "all 10":
                cells = (spread(results, name, kind, s, f"{what}, expert") for name in names for s in ("val", "test"))
                print(f"| {kind}, {what}, expert | " + " | ".join(cells) + " |")
        if what != "all 10":
            cells = (spread(results, name, f"plain, {what} alone", s, what) for name in names for s in ("val", "test"))
            print(f"| plain, trained on the {what} alone | " + " | ".join(cells) + " |")

    for name in names:
        for kind in ("PHL", "N3HL"):
            print_cues(name, kind, seeds(results, name, kind), seeds(results, name, "plain"))


def print_cues(name: str, kind: str, runs: list[Any], plain: list[Any]) -> None:
    """Each gain beside the bias that does the same harm, on validation and test images together."""
    print(f"\n**{name}, {kind}**\n")
    print("| gain | right cue | wrong cue | bias, same harm | gain - bias, by seed | plain + bias, same harm |")
    print("|---|---|---|---|---|---|")
    neutral = [both(run, "neutral") for run in runs]
    untouched = mean_sd([both(run, "neutral") for run in plain])
    print(f"| 1 (neutral) | {mean_sd(neutral)} | {mean_sd(neutral)} | – | – | {untouched} |")
    for gain in GAINS:
        right, wrong = ([both(run, "gain", gain, which) for run in runs] for which in (0, 1))
        harms = [before - after for before, after in zip(neutral, wrong, strict=True)]
        row = [f"{gain:g}", mean_sd(right), mean_sd(wrong)]
        if statistics.mean(harms) < 0.002:  # too little harm to choose a bias by
            print(f"| {' | '.join(row)} | – | – | – |")
            continue
        same = [bias_at(run, harm) for run, harm in zip(runs, harms, strict=True)]
        other = [bias_at(run, harm) for run, harm in zip(plain, harms, strict=True)]
        deltas = ", ".join(f"{100 * (a - b):+.1f}" for a, b in zip(right, same, strict=True))
        print(f"| {' | '.join(row)} | {mean_sd(same)} | {deltas} | {mean_sd(other)} |")


def seeds(results: dict[str, Any], name: str, kind: str) -> list[Any]:
    return [results[key] for key in sorted(results) if key.rsplit("/", 1)[0] == f"{name}/{kind}"]


def spread(results: dict[str, Any], name: str, kind: str, split: str, what: str) -> str:
    return mean_sd([run[split][what] for run in seeds(results, name, kind)])


def mean_sd(shares: Any) -> str:
    shares = [100 * share for share in shares]
    deviation = f" ± {statistics.stdev(shares):.1f}" if len(shares) > 1 else ""
    return f"{statistics.mean(shares):.1f}{deviation}"


def both(run: Any, mechanism: str, strength: float = 1, which: int = 0) -> float:
    """Top-1 on the 1000 validation and 500 test images together; ``which`` is 0 for right cues, 1 for wrong ones."""

    def share(split: str) -> float:
        found = run[split]["all 10"] if mechanism == "neutral" else run[split]["cues"][mechanism][str(strength)][which]
        return float(found)

    return (2 * share("val") + share("test")) / 3


def bias_at(run: Any, harm: float) -> float:
    """Accuracy under right cues of the bias that costs ``harm`` when wrong, interpolated between the strengths."""
    neutral = both(run, "neutral")
    points = [(0.0, neutral), *((neutral - both(run, "bias", bias, 1), both(run, "bias", bias, 0)) for bias in BIASES)]
    harms, rights = zip(*sorted(points), strict=True)
    return float(np.interp(harm, harms, rights))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--trunk-weights", type=Path)
    parser.add_argument(
        "--report", type=Path, nargs="+", help="print these result files as tables, and do nothing else"
    )
    parser.add_argument("--out", type=Path, default=Path("photos.json"))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    if args.report:
        print_report({key: value for path in args.report for key, value in json.loads(path.read_text()).items()})
        return
    if not (args.data and args.trunk_weights):
        parser.error("--data and --trunk-weights are needed")
    results: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    for name in ("imagenette", "imagewoof"):
        tree = hlnet.read_tree(f"preset:{name}")
        data: dict[str, CachedFeatures] = {}
        for seed in range(args.seeds):
            for kind in ("plain", "N3HL", "PHL", "plain, lower 5 alone", "plain, upper 5 alone"):
                key = f"{name}/{kind}/{seed}"
                if key in results:
                    continue
                data = data or features(args.data / name, tree, args.trunk_weights)
                if kind.endswith("alone"):
                    half_name = kind.split(", ")[1].removesuffix(" alone")
                    results[key] = measure_alone(half_name, seed, args.epochs, tree, data, args.trunk_weights)
                else:
                    results[key] = measure(kind, seed, args.epochs, tree, data, args.trunk_weights)
                with replacing(args.out) as draft:
                    draft.write_text(json.dumps(results, indent=1))
                print(key, {k: v for k, v in results[key]["test"].items() if k != "cues"}, flush=True)


if __name__ == "__main__":
    main()
