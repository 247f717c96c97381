"""Make the class trees that come with hlnet, presets/NAME.tree.json, from the groupings in scripts/trees/NAME.yaml.

    python scripts/make_trees.py [--wordnet FOLDER] [--check]

A grouping nests names down to the classes, each with its WordNet id. Those of ImageNet-1k and ImageNet-100 end in lists
of ids instead: a class belongs to the group that lists it, or else to the one that lists the closest synset above it,
by any way up. There timm gives the names of the classes, and a group that is exactly the classes of a synset gets that
synset's id. Siblings come in the order of their first classes.

Where the facts come from: scripts/trees/README.md.
"""

import argparse
import sys
import tempfile
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import yaml
from timm.data import ImageNetInfo

from hlnet.errors import HlnetError, TreeError
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.dictionary import WordNet
from hlnet.tree.io import write_tree

GROUPINGS = Path(__file__).parent / "trees"
TREES = Path(__file__).parent.parent / "hlnet" / "tree" / "presets"
COUNTS = {
    "imagenet1k": (17, 161, 1000),
    "imagenet100": (6, 26, 100),
    "imagenette": (1, 9, 10),
    "imagewoof": (1, 9, 10),
    "cifar10": (2, 5, 10),
    "cifar100": (8, 20, 100),
}
# Classes whose first lemma is another one's too, be it in another case.
RENAMED = {
    "n02012849": "crane (bird)",
    "n03126707": "crane (machine)",
    "n02113186": "Cardigan Welsh corgi",
    "n03710637": "maillot (tights)",
    "n03710721": "maillot (tank suit)",
}


def make(name, above):
    """The class tree of a grouping; ``above(synset)`` is the synset with all that are above it."""
    rows = list(_rows(yaml.safe_load((GROUPINGS / f"{name}.yaml").read_text(encoding="utf-8"))))
    listed = name in {"imagenet1k", "imagenet100"}
    if listed:
        imagenet = ImageNetInfo("imagenet-1k")
        classes = imagenet.label_names() if name == "imagenet1k" else [synset for _, synset in rows]
        names = {each: imagenet.label_name_to_description(each).split(", ")[0] for each in classes} | RENAMED
        rows = _resolved(rows, classes, names, above)
    # The data sets number their classes by name (CIFAR) or by id (ImageNet and its parts).
    rows.sort(key=lambda row: row[0][-1] if name.startswith("cifar") else row[1])
    nested, ids = {}, {}
    for index, (path, synset) in enumerate(rows):
        place = nested
        for group in path[:-1]:
            place = place.setdefault(group, {})
        place[path[-1]] = index
        ids["/".join(path)] = synset
    tree = ClassTree.from_nested(nested, levels=3).with_ids(ids | (_group_ids(rows, above) if listed else {}))
    if tree.counts != COUNTS[name]:
        raise TreeError(f"{name}: the grouping gives {tree.counts} nodes, expected {COUNTS[name]}")
    return tree


def _rows(grouping, path=()):
    """Each id of the grouping, with the names that lead to it."""
    for name, below in grouping.items():
        if isinstance(below, dict):
            yield from _rows(below, (*path, name))
        else:
            yield from (((*path, name), synset) for synset in ([below] if isinstance(below, str) else below))


def _resolved(rows, classes, names, above):
    """The classes that the lists stand for, as rows whose path ends in the name of the class."""
    claims = {synset: path for path, synset in rows}
    problems = [
        f"{synset} is listed twice" for synset, count in Counter(synset for _, synset in rows).items() if count > 1
    ]
    resolved, used = [], set()
    for each in classes:
        near = above(each) & claims.keys()
        closest = {claim for claim in near if not any(claim in above(other) for other in near - {claim})}
        groups = sorted({claims[claim] for claim in closest})
        if len(groups) == 1:
            resolved.append(((*groups[0], names[each]), each))
        else:
            claimants = " and ".join(map("/".join, groups)) or "no group"
            problems.append(f"{each} ({names[each]}) belongs to {claimants}")
        used |= closest
    problems += [
        f"{synset} ({'/'.join(path)}) stands for no class" for synset, path in claims.items() if synset not in used
    ]
    if problems:
        raise TreeError("; ".join(problems))
    return resolved


def _group_ids(rows, above):
    """By path, the lowest synset that has exactly the classes of a group."""
    groups, below = defaultdict(set), defaultdict(set)
    for path, each in rows:
        for end in range(1, len(path)):
            groups["/".join(path[:end])].add(each)
        for synset in above(each):
            below[synset].add(each)
    lowest = {}
    for synset, classes in below.items():
        key = frozenset(classes)
        if key not in lowest or lowest[key] in above(synset):
            lowest[key] = synset
    shared = {path: frozenset(classes) for path, classes in groups.items() if len(classes) > 1}
    return {path: lowest[classes] for path, classes in shared.items() if classes in lowest}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--wordnet", metavar="FOLDER", help="holds WordNet's data.noun; default: where it is installed")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a tree is not as it would be made")
    arguments = parser.parse_args()
    wordnet = WordNet(arguments.wordnet)

    @cache
    def above(synset):
        return frozenset({synset}).union(*map(above, wordnet.hypernyms(synset)))

    stale = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in COUNTS:
            kept, made = (folder / f"{name}.tree.json" for folder in (TREES, Path(scratch)))
            write_tree(make(name, above), made if arguments.check else kept)
            if arguments.check and not (kept.exists() and kept.read_bytes() == made.read_bytes()):
                stale.append(kept.name)
    return f"not as it would be made: {', '.join(stale)}" if stale else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HlnetError as error:
        sys.exit(f"error: {error}")
