"""How long a tree of 21,843 classes takes at every step: ImageNet-21k's ids (timm has them) over WordNet.

    python benchmarks/large_tree.py [--wordnet FOLDER]

Seconds of wall time, once each, on one thread: an order of magnitude, not a comparison.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from timm.data import ImageNetInfo

import hlnet
from hlnet.tree.construct.baselines import balanced_tree
from hlnet.tree.construct.levels import cut_to_levels
from hlnet.tree.construct.wordnet import WordNet, wordnet_hierarchy
from hlnet.tree.measures import check_tree, compare_trees

NODES = (40, 400, 3000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wordnet", type=Path, help="dictionary folder; default: an installed one")
    arguments = parser.parse_args()
    print("| step | seconds |\n|---|---|")

    def clock(step: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = call()
        print(f"| {step} | {time.perf_counter() - start:.2f} |")
        return result

    ids = ImageNetInfo("imagenet-21k-goog").label_names()
    wordnet = clock("open WordNet", lambda: WordNet(arguments.wordnet))
    hierarchy, _ = clock("hypernyms of all classes", lambda: wordnet_hierarchy(ids, wordnet))
    tree = clock("cut_to_levels, and build the tree", lambda: cut_to_levels(hierarchy, NODES).to_tree(4))
    clock("check", lambda: check_tree(tree))
    clock("prune to every fourth class", lambda: tree.prune(range(0, len(ids), 4)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.tree.json"
        clock("write", lambda: hlnet.write_tree(tree, path))
        assert clock("read", lambda: hlnet.read_tree(path)) == tree
    clock("compare with a balanced tree", lambda: compare_trees(tree, balanced_tree(tree, NODES)))
    inside = clock("ancestor matrix", tree.ancestors)
    print(
        f"\n{tree.counts} nodes; the ancestor matrix holds {inside.nnz} of {inside.shape[0] * inside.shape[1]} entries"
    )


if __name__ == "__main__":
    main()
