"""All steps on scikit-learn's embedded digits, in about a minute: tree, training, expert, cost, cues, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from pydantic import BaseModel
from torch import Tensor

from hlnet.cues.effect import gains_for
from hlnet.cues.oracle import wrong_classes
from hlnet.data.images import LabelledImages
from hlnet.data.sources import load_data
from hlnet.data.tree_data import TreeData, eval_transform, loader, train_transform
from hlnet.errors import UsageError, with_article
from hlnet.evaluation.cue_sweep import Frontier, frontier, named_classes, sweep_gains
from hlnet.evaluation.evaluate import evaluate_with_baseline
from hlnet.evaluation.logits import logits_of
from hlnet.evaluation.metrics.accuracy import accuracy
from hlnet.expert.cut import cut_expert
from hlnet.expert.verify import verify_expert
from hlnet.figures import BLUE, GREY, LIGHT, RED, save, tidy
from hlnet.files import make_folder, replacing
from hlnet.model.cost import Profile, profile
from hlnet.model.hierarchical import HierarchicalNet
from hlnet.model.latency import with_latency
from hlnet.model.presets import create_model
from hlnet.model.trunk import Trunk
from hlnet.store.checkpoint import load_checkpoint, save_checkpoint
from hlnet.templates import render
from hlnet.training.loop import train
from hlnet.training.train_config import TrainConfig
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.construct.cluster import class_means, cluster_tree
from hlnet.tree.io import write_tree
from hlnet.tree.picture import draw_tree

BACKBONE, SPLIT_POINT = "resnet10t", 1

SHAPE: dict[str, Any] = {"split_point": SPLIT_POINT, "widths": (64, 32, 16), "strides": (2, 1, 2)}

SIZE, NODES, SIGNAL = 32, (2, 5), 8.0

SIGNALS = (0.0, 0.5, 1.0, 1.8, 3.0, 5.0, 8.0, 12.0)

BIASES = tuple(0.25 * step for step in range(25))

NOISE = 0.25  # of the pixels' range


class DemoResult(BaseModel):
    """Results of the demo, which the report shows.

    Attributes:
        top1: share of held-out digits that the full network gets right.
        expert_top1, restricted_top1: the expert on its own digits, and the full network with only their logits.
        noisy_expert_top1, noisy_restricted_top1: the same on noisy digits, where both make mistakes.
        difference: largest difference between the expert's and the full network's logits, in float64.
        noisy: on noisy digits, share right without a cue, with each image's own class cued, with a wrong class cued;
            and, for comparison, under right cues as a plain bias on the cued logit that costs as much when wrong.
        sweep: for each attention signal, the shares under right and under wrong cues.
        cost: plain, full and expert.
        files: what was written.
    """

    classes: list[str]
    expert_classes: list[str]
    images: int
    top1: float
    expert_top1: float
    restricted_top1: float
    noisy_expert_top1: float
    noisy_restricted_top1: float
    difference: float
    noisy: dict[str, float]
    sweep: list[tuple[float, float, float]]
    cost: Profile
    files: list[str]


def run_demo(
    out: str | Path,
    epochs: int = 12,
    seed: int = 0,
    device: str = "cpu",
    on_stage: Callable[[str], None] | None = None,
    on_batch: Callable[[str, int, int], None] | None = None,
) -> DemoResult:
    """Run every step and leave ``out`` with networks, pictures and ``report.html``.

    Args:
        out: folder to write.
        epochs: of training.
        seed: random seed.
        device: a torch device.
        on_stage: called with a sentence before each step.
        on_batch: see :func:`hlnet.train`.

    Raises:
        UsageError: if ``out`` holds another training run.
    """
    out = Path(out)
    if (out / "metrics.csv").exists() and not (out / "report.json").exists():
        raise UsageError(f"'{out}' holds a training run; choose another folder for the demo")
    make_folder(out)
    announce = on_stage or (lambda sentence: None)
    torch.manual_seed(seed)

    announce("building a class tree: clustering digits by an untrained trunk's features")
    train_images, held_out = load_data("digits", "train"), load_data("digits", "val")
    tree = _tree(train_images)
    write_tree(tree, out / "digits.tree.json")

    announce(f"training a hierarchical network on {len(train_images)} handwritten digits")
    full = _trained(tree, train_images, held_out, epochs, seed, out, device, on_batch)

    noisy_images = _noisy(held_out, seed)
    noisy = TreeData(noisy_images, tree, eval_transform(full.transform))
    batch = next(iter(loader(noisy, len(noisy))))
    family = _confused_family(full, batch)
    expert = cut_expert(out / "best.safetensors", family)
    announce(f"cut an expert for {', '.join(expert.tree.classes)}; proving its logits")
    difference = verify_expert(expert, full)
    save_checkpoint(expert, out / "expert.safetensors")

    announce("measuring accuracy, with and without cues")
    accuracies = _accuracies(full, expert, held_out, noisy_images)
    gain, bias = _frontiers(full, batch)
    sweep = list(zip(gain.strengths, gain.right, gain.wrong["random"], strict=True))

    announce("counting and timing")
    cost = with_latency(profile(full.config, full.tree, full.transform, family), full, expert)

    announce("drawing the report")
    kept = [full.tree.positions[name] for name in expert.tree.classes]
    draw_tree(tree, out / "tree.png", kept=kept)
    plot_sweep(sweep, out / "cues.png")
    plot_costs(cost, out / "costs.png")
    plot_examples(_examples(full, noisy, batch), out / "examples.png")
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    result = DemoResult(
        classes=list(tree.classes),
        expert_classes=list(expert.tree.classes),
        images=len(held_out),
        **accuracies,
        difference=difference,
        noisy=_with_cues(sweep, bias),
        sweep=sweep,
        cost=cost,
        files=sorted({*names, "report.html", "report.json"}),
    )
    _write_report(result, tree, out)
    return result


# ---------------------------------------------------------------------- helpers


def _trained(
    tree: ClassTree,
    train_images: LabelledImages,
    held_out: LabelledImages,
    epochs: int,
    seed: int,
    out: Path,
    device: str,
    on_batch: Callable[[str, int, int], None] | None,
) -> HierarchicalNet:
    """The best epoch of a training, as its run folder holds it."""
    net = create_model(BACKBONE, tree, **SHAPE)
    net.transform = net.transform.adjusted(SIZE)
    train_data = TreeData(train_images, tree, train_transform(net.transform, scale=(0.7, 1.0), hflip=0.0))
    val_data = TreeData(held_out, tree, eval_transform(net.transform))
    config = TrainConfig(epochs=epochs, lr=2e-3, aa="none", scale=(0.7, 1.0), hflip=0.0, workers=0, seed=seed)
    train(net, train_data, val_data, config, out, device, on_batch=on_batch)
    full = load_checkpoint(out / "best.safetensors")
    assert isinstance(full, HierarchicalNet)
    return full


def _accuracies(
    full: HierarchicalNet, expert: HierarchicalNet, held_out: LabelledImages, noisy: LabelledImages
) -> dict[str, float]:
    """Top-1 of the full network, of the expert, and of the full network restricted to the expert's classes."""
    whole = TreeData(held_out, full.tree, eval_transform(full.transform))
    (logits,), labels = logits_of(full, loader(whole, 120))
    found = {"top1": accuracy(logits, labels, full.tree.classes).top1}
    for prefix, images in (("", held_out), ("noisy_", noisy)):
        nets = {"expert": expert, "restricted": full}
        for name, run in evaluate_with_baseline(nets, images, batch_size=120).items():
            found[f"{prefix}{name}_top1"] = run.neutral.top1
    return found


def _with_cues(sweep: Sequence[tuple[float, float, float]], bias: Frontier) -> dict[str, float]:
    """Top-1 without a cue, and under right and wrong ones; as a bias, at the strength that costs as much when wrong."""
    right, wrong = {signal: shares for signal, *shares in sweep}[SIGNAL]
    neutral = {signal: right for signal, right, _ in sweep}[1.0]
    return {
        "no cue": neutral,
        "right cue": right,
        "wrong cue": wrong,
        "right cue as a bias": bias.right_at(wrong, "random"),
    }


def _write_report(result: DemoResult, tree: ClassTree, out: Path) -> None:
    """``report.json`` and ``report.html``."""
    with replacing(out / "report.json") as draft:
        draft.write_text(result.model_dump_json(indent=1), encoding="utf-8")
    page = render("demo.html.j2", result=result, signal=SIGNAL, nodes=tree.counts)
    with replacing(out / "report.html") as draft:
        draft.write_text(page, encoding="utf-8")


def _tree(images: LabelledImages) -> ClassTree:
    trunk = Trunk(BACKBONE, SPLIT_POINT)
    flat = ClassTree.from_nested(list(images.classes))
    data = TreeData(images, flat, eval_transform(trunk.transform.adjusted(SIZE)))
    means = class_means(trunk, loader(data, 128), len(images.classes), grid=2)
    return cluster_tree(means, images.classes, NODES)


def _confused_family(net: HierarchicalNet, batch: tuple[Tensor, Tensor]) -> str:
    """Path of the node above several classes, but not nearly all, whose classes the network confuses most."""
    tree = net.tree
    families = {node.path: tree.leaves_under(node.path) for row in tree.levels[:-1] for node in row}
    some = [path for path, below in families.items() if 1 < len(below) <= len(tree.classes) // 2]
    some = some or [path for path, below in families.items() if 1 < len(below) < len(tree.classes)]
    right = {path: _within(net, batch, families[path]) for path in some}
    return min(right, key=right.__getitem__)


@torch.inference_mode()
def _within(net: HierarchicalNet, batch: tuple[Tensor, Tensor], kept: Sequence[int]) -> tuple[float, str]:
    """Top-1 among these classes alone, on their images; and their names, of equals the first by these."""
    images, labels = batch
    mine = torch.isin(labels, torch.tensor(kept))
    answers = torch.tensor(kept)[net(images[mine])[:, list(kept)].argmax(1)]
    return float((answers == labels[mine]).double().mean()), ",".join(net.tree.classes[place] for place in kept)


def _noisy(images: LabelledImages, seed: int) -> LabelledImages:
    def load(position: int) -> Image.Image:
        pixels = np.asarray(images.load(position), dtype=float)
        noise = np.random.default_rng([seed, position]).normal(0, 255 * NOISE, pixels.shape)
        return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))

    return replace(images, name="noisy digits", load=load)


def _frontiers(net: HierarchicalNet, batch: tuple[Tensor, Tensor]) -> tuple[Frontier, Frontier]:
    """Top-1 when each image's own class is cued, and when a random other one is: by gain, and by bias."""
    swept = sweep_gains(net, [batch], SIGNALS)
    right = named_classes(net.tree, batch[1])
    wrong = {"random": named_classes(net.tree, wrong_classes(net.tree, batch[1]))}
    return frontier(swept, right, wrong, "gain", SIGNALS), frontier(swept, right, wrong, "bias", BIASES)


@torch.inference_mode()
def _examples(net: HierarchicalNet, data: TreeData, batch: tuple[Tensor, Tensor], count: int = 6) -> list[Example]:
    """Noisy digits that the network gets wrong without a cue, with what it says under each kind of cue."""
    images, labels = batch
    features = net.features(images)
    neutral = net.head(features)
    chosen = (neutral.argmax(1) != labels).nonzero().flatten()[:count]
    labels, part = labels[chosen], features[chosen]
    wrong = wrong_classes(net.tree, labels)
    runs = {
        "no cue": neutral[chosen],
        "right cue": net.head(part, gains_for(net.tree, labels, SIGNAL)),
        "wrong cue": net.head(part, gains_for(net.tree, wrong, SIGNAL)),
    }
    return [
        Example(
            image=np.asarray(data.images.load(data.samples[int(position)][0])),
            title=with_article(net.tree.classes[int(labels[row])]),
            shares={name: scores[row].softmax(0).tolist() for name, scores in runs.items()},
            cues={"right cue": net.tree.classes[int(labels[row])], "wrong cue": net.tree.classes[int(wrong[row])]},
            classes=net.tree.classes,
        )
        for row, position in enumerate(chosen)
    ]


@dataclass(frozen=True)
class Example:
    """One image with the shares that each class gets under each kind of cue, and the class that is cued."""

    image: Any
    title: str
    shares: dict[str, list[float]]
    cues: dict[str, str]
    classes: tuple[str, ...]


def plot_sweep(sweep: Sequence[tuple[float, float, float]], path: str | Path) -> None:
    """Accuracy against the attention signal: ``(signal, right cues, wrong cues)``."""
    figure = Figure(figsize=(5.4, 3.6), layout="constrained")
    axes = figure.subplots()
    signals, right, wrong = zip(*sweep, strict=True)
    axes.plot(signals, [100 * share for share in right], "o-", color=BLUE, label="the right class is cued")
    axes.plot(signals, [100 * share for share in wrong], "o-", color=RED, label="a wrong class is cued")
    axes.axvline(1, color=GREY, ls=":", lw=1)
    axes.annotate("neutral", (1, axes.get_ylim()[0]), xytext=(4, 4), textcoords="offset points", color=GREY)
    tidy(axes, xlabel="attention signal (gain)", ylabel="top-1 accuracy, %")
    axes.legend(frameon=False)
    save(figure, path)


def plot_costs(found: Profile, path: str | Path) -> None:
    """Parameters, GMACs and latency of plain, full and expert."""
    columns = [(name, cost) for name in ("plain", "full", "expert") if (cost := getattr(found, name)) is not None]
    measures = {
        "parameters, M": [cost.params / 1e6 for _, cost in columns],
        "MACs, M": [1e3 * cost.gmacs for _, cost in columns],
    }
    if all(cost.latency for _, cost in columns):
        run = columns[0][1].latency[0]
        label = f"ms, batch {run.batch_size}, {run.threads} thread{'s' if run.threads > 1 else ''}"
        measures[label] = [cost.latency[0].median_ms for _, cost in columns]
    figure = Figure(figsize=(3 * len(measures), 3.2), layout="constrained")
    for axes, (label, values) in zip(figure.subplots(1, len(measures)), measures.items(), strict=True):
        bars = axes.bar([name for name, _ in columns], values, color=[GREY, BLUE, RED][: len(columns)], width=0.65)
        axes.bar_label(bars, fmt="%.3g", padding=2)
        axes.margins(y=0.12)
        axes.set_title(label, fontsize=11)
        axes.set_yticks([])
        axes.spines[["top", "right", "left"]].set_visible(False)
    save(figure, path)


def plot_examples(examples: Sequence[Example], path: str | Path) -> None:
    """Each image above the shares of its classes under each kind of cue."""
    kinds = list(examples[0].shares) if examples else []
    figure = Figure(figsize=(2.2 * max(1, len(examples)), 1.9 + 1.4 * len(kinds)), layout="constrained")
    if not examples:
        figure.text(0.5, 0.5, "no image was mistaken", ha="center")
        save(figure, path)
        return
    grid = figure.subplots(1 + len(kinds), len(examples), squeeze=False, height_ratios=[1.5] + [1] * len(kinds))
    for column, example in enumerate(examples):
        top = grid[0][column]
        top.imshow(example.image, cmap="gray")
        top.set_title(example.title, fontsize=14)
        top.axis("off")
        truth = example.title.partition(" ")[2]
        for row, kind in enumerate(kinds, start=1):
            axes, shares = grid[row][column], example.shares[kind]
            best = shares.index(max(shares))
            colours = [LIGHT] * len(shares)
            colours[best] = BLUE if example.classes[best] == truth else RED
            axes.bar(example.classes, shares, color=colours)
            if kind in example.cues:
                axes.set_title(f"cue: {example.cues[kind]}", fontsize=12, pad=3)
            axes.set(ylim=(0, 1), yticks=[])
            axes.tick_params(length=0, labelsize=11)
            axes.spines[["top", "right", "left"]].set_visible(False)
            if column == 0:
                axes.set_ylabel(kind, fontsize=12)
    save(figure, path)
