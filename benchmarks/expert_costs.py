"""What an expert costs on average, by the tree that it is cut from: ImageNet-1k, n3hl_resnet50.

    python benchmarks/expert_costs.py [--wordnet FOLDER] [--out expert_costs.json]

Two kinds of groups are asked for. *WordNet*: each synset with 5 to 100 of ImageNet's classes below it, such as "snake"
or "furniture". *Scenes*: the ten sets of examples/scenes.yaml, which cut across WordNet, such as what is in a kitchen.
All trees spend what the paper's (17, 161, 1000) nodes cost. Every figure is counted, none is timed; it takes a minute.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

import hlnet
from hlnet.files import replacing
from hlnet.model.cost import unit_costs
from hlnet.model.presets import network_config
from hlnet.tree.construct.baselines import balanced_tree, random_tree
from hlnet.tree.construct.budget import Budget, expert_costs, tree_for_budget
from hlnet.tree.construct.levels import cut_to_levels
from hlnet.tree.construct.wordnet import WordNet, wordnet_hierarchy
from hlnet.tree.hierarchy import Hierarchy
from hlnet.tree.selection import read_selections

PAPER = (17, 161)
SCENES = Path(__file__).parent.parent / "examples" / "scenes.yaml"


def wordnet_groups(hierarchy: Hierarchy) -> dict[str, list[str]]:
    """The classes below each synset that has 5 to 100 of them."""
    groups = {}
    for node in hierarchy.walk():
        names = [leaf.name for leaf in node.leaves()]
        if node.children and 5 <= len(names) <= 100:
            groups[f"{node.name} {node.id}"] = names
    return groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wordnet", type=Path, help="dictionary folder; default: an installed one")
    parser.add_argument("--out", type=Path, default=Path("expert_costs.json"))
    arguments = parser.parse_args()

    shipped = hlnet.read_tree("preset:imagenet1k")
    hierarchy, _ = wordnet_hierarchy([str(leaf.id) for leaf in shipped.leaves], WordNet(arguments.wordnet))
    hierarchy.rename_classes(shipped)
    units, _ = unit_costs(network_config("n3hl_resnet50", levels=3))
    found = read_selections(SCENES, shipped)
    scenes = {name: [shipped.classes[i] for i in chosen] for name, chosen in found.items()}
    results = []
    for kind, groups in {"WordNet": wordnet_groups(hierarchy), "scenes": scenes}.items():
        budgets = {m: Budget(m, 0) for m in ("params", "macs")}
        spent = {m: Budget(m, b.spent(units, (*PAPER, 1000))) for m, b in budgets.items()}
        capped = {"max_children": 20}
        trees = {
            "shipped, by reading": shipped,
            "even, over the shipped order": balanced_tree(shipped, PAPER),
            "random": random_tree(shipped, PAPER, seed=0),
            "WordNet": cut_to_levels(hierarchy, PAPER).to_tree(3),
            "WordNet, for these groups": cut_to_levels(hierarchy, PAPER, together=groups.values()).to_tree(3),
            "budget, for these groups": tree_for_budget(hierarchy, units, spent["macs"], groups),
            "the same, at most 20 children a node": tree_for_budget(hierarchy, units, spent["macs"], groups, **capped),
        }
        fewest = [sum(b.of(unit) * n for unit, n in zip(units, (1, 1, 1, 0), strict=True)) for b in budgets.values()]
        for name, tree in trees.items():
            row = {"groups": kind, "number": len(groups), "tree": name, "nodes": tree.counts}
            for (measure, budget), least in zip(budgets.items(), fewest, strict=True):
                costs = expert_costs(tree, groups, units, budget)
                sizes = np.array([len(names) for names in groups.values()])
                row[measure] = float(costs.mean())
                row[f"{measure} of the head"] = float(costs.mean() - budget.of(units[0]))
                row[f"least {measure}"] = float((least + sizes * budget.of(units[3])).mean())
                row[f"full {measure}"] = budget.spent(units, tree.counts)
            row["most children"] = max(max(counts) for counts in tree.sibling_counts[1:])
            results.append(row)
    with replacing(arguments.out) as draft:
        draft.write_text(json.dumps(results, indent=1) + "\n")
    report(results)


def report(results: list[dict]) -> None:
    """The results as a Markdown table."""
    print("| groups | tree | nodes | most children | mean expert: parameters, M | GMACs | of these, behind the trunk |")
    print("|---|---|---|---|---|---|---|")
    for row in results:
        nodes = ", ".join(map(str, row["nodes"]))
        print(
            f"| {row['groups']} ({row['number']}) | {row['tree']} | {nodes} | {row['most children']} "
            f"| {row['params'] / 1e6:.2f} | {row['macs'] / 1e9:.3f} | {row['macs of the head'] / 1e9:.3f} |"
        )
    for kind in dict.fromkeys(row["groups"] for row in results):
        row = next(row for row in results if row["groups"] == kind)
        print(
            f"\nThe least that these experts can cost ({kind}; one node of levels 1 and 2 each): "
            f"{row['least params'] / 1e6:.2f} M, {row['least macs'] / 1e9:.3f} GMACs."
        )


if __name__ == "__main__":
    main()
