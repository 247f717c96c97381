"""The figures on "none of these" in docs/none-of-these.md: experts of one, two and five classes, and their controls.

    python benchmarks/rejection.py --data IMAGEWOOF --unseen IMAGENETTE RUN [RUN ...]

Each RUN is a trained network of ten classes. It is run once over the validation and test images of both data sets
(logits are kept in RUN/logits.pt); everything else is counted from these, since an expert's logits are its network's.
Thresholds are fitted on validation images for at most 5 % of outside ones; figures are of test images, in percent, and
means over the experts of a size. *Others* are the data's other classes, which the network was trained to tell apart;
*unseen* those of the second data set, which it has never met.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hlnet
from hlnet.evaluation.logits import logits_of
from hlnet.evaluation.metrics.probability import calibration_error, class_probabilities, fit_temperature
from hlnet.evaluation.metrics.rejection import conformal_threshold, default_score, detection, rejection_scores

ALPHA = 0.05
EXPERTS = {1: [[i] for i in range(10)], 2: [[i, i + 5] for i in range(5)], 5: [list(range(5)), list(range(5, 10))]}
ALL_TEN = "softmax of all ten, summed"
SCORES = ("energy", "max-logit", ALL_TEN)
Logits = dict[tuple[str, str], tuple[Tensor, Tensor]]


def run(net: Any, folder: str, split: str) -> tuple[Tensor, Tensor]:
    """Logits and labels; -1 where all classes are foreign."""
    images = hlnet.load_data(folder, split)  # type: ignore[arg-type]
    foreign = not set(images.classes) & {name for leaf in net.tree.leaves for name in (leaf.name, leaf.id)}
    tree = hlnet.ClassTree.parallel(list(images.classes)) if foreign else net.tree
    data = hlnet.TreeData(images, tree, hlnet.eval_transform(net.transform))
    (found,), labels = logits_of(net, hlnet.loader(data, 64))
    return found, torch.full_like(labels, -1) if foreign else labels


def scores_of(logits: Tensor, kept: list[int], score: str) -> Tensor:
    if score == ALL_TEN:
        return logits.double().log_softmax(1)[:, kept].logsumexp(1)
    return rejection_scores(logits[:, kept], score)  # type: ignore[arg-type]


def figures(found: Logits, kept: list[int], score: str) -> list[float]:
    mine = torch.tensor(kept)
    (val, val_labels), (test, labels), (unseen, _) = found["own", "val"], found["own", "test"], found["unseen", "test"]
    own_val, own = torch.isin(val_labels, mine), torch.isin(labels, mine)
    threshold = conformal_threshold(scores_of(val, kept, score)[~own_val], ALPHA)
    scores = scores_of(test, kept, score)
    right = mine[test[own][:, kept].argmax(1)] == labels[own]
    others = detection(scores[own], scores[~own], "energy", threshold, right)
    strangers = detection(scores[own], scores_of(unseen, kept, score), "energy", threshold)
    told = [
        others.auroc,
        others.fpr_at_95_tpr,
        others.own_accepted,
        others.outside_accepted,
        float(right.double().mean()),
    ]
    told += [others.accuracy_accepted, strangers.auroc, strangers.fpr_at_95_tpr, strangers.outside_accepted]
    return [float("nan") if value is None else value for value in told]


def on_fresh_draws(found: Logits, draws: int = 200) -> float:
    """Mean FPR where half of the test images give the threshold, and the other half try it: images drawn alike."""
    logits, labels = found["own", "test"]
    generator, rates = torch.Generator().manual_seed(0), []
    for kept in EXPERTS[1]:
        scores = scores_of(logits, kept, "energy")[labels != kept[0]]
        for _ in range(draws):
            one, other = scores[torch.randperm(len(scores), generator=generator)].chunk(2)
            rates.append(float((other >= conformal_threshold(one, ALPHA)).double().mean()))
    return sum(rates) / len(rates)


def with_strangers(found: Logits) -> float:
    """Mean FPR of detectors on five unseen classes, where the other five of them joined the calibration."""
    (val, val_labels), rates = found["own", "val"], []
    for kept in EXPERTS[1]:
        outside = scores_of(val, kept, "energy")[val_labels != kept[0]]
        for first in (True, False):
            joined = scores_of(half(found["unseen", "val"][0], first), kept, "energy")
            threshold = conformal_threshold(torch.cat([outside, joined]), ALPHA)
            strangers = scores_of(half(found["unseen", "test"][0], not first), kept, "energy")
            rates.append(float((strangers >= threshold).double().mean()))
    return sum(rates) / len(rates)


def half(logits: Tensor, first: bool) -> Tensor:
    """Images come class by class, so these are of other classes than the other half."""
    return logits.chunk(2)[0 if first else 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", required=True)
    parser.add_argument("--unseen", required=True)
    parser.add_argument("runs", nargs="+")
    args = parser.parse_args()
    columns = "AUROC, FPR at 95 % TPR, TPR, FPR, top-1, top-1 accepted, AUROC unseen, FPR95 unseen, FPR unseen"
    for name in args.runs:
        net, kept_file = hlnet.load_checkpoint(name), Path(name) / "logits.pt"
        if not kept_file.exists():
            fast, places = hlnet.optimize(net), (("own", args.data), ("unseen", args.unseen))
            torch.save(
                {(key, split): run(fast, at, split) for key, at in places for split in ("val", "test")}, kept_file
            )
        found: Logits = torch.load(kept_file, weights_only=True)
        top1 = [
            float((logits.argmax(1) == labels).double().mean())
            for logits, labels in (found["own", "val"], found["own", "test"])
        ]
        print(f"\n{name} ({default_score(net.provenance)}): top-1 of ten {[round(100 * share, 1) for share in top1]}")
        print(f"classes | score | {columns.replace(', ', ' | ')}")
        for size, experts in EXPERTS.items():
            for score in SCORES:
                rows = torch.tensor([figures(found, kept, score) for kept in experts])
                print(size, score, *(f"{100 * value:.1f}" for value in rows.nanmean(0).tolist()), sep=" | ")
        print(f"FPR on images drawn alike: {100 * on_fresh_draws(found):.2f}")
        print(f"FPR on unseen classes, five others of them in the calibration: {100 * with_strangers(found):.1f}")
        one_vs_rest = net.provenance.one_vs_rest
        logits, labels = found["own", "val"]
        temperature = fit_temperature(logits, labels, one_vs_rest)
        for split in ("val", "test"):
            logits, labels = found["own", split]
            errors = [
                calibration_error(class_probabilities(logits, one_vs_rest, t), labels) for t in (1.0, temperature)
            ]
            print(f"ECE, {split}: {100 * errors[0]:.1f} at 1, {100 * errors[1]:.1f} at {temperature:.3f}")


if __name__ == "__main__":
    main()
