"""What texts are worth as cues: how often a text gives one, how often that names the class meant, and how narrowly.

    python benchmarks/text_cues.py --tree preset:imagenet1k --tree preset:cifar100 --encoder FOLDER

By words (``hlnet.cues.words.cues_from_text``) and, with ``--encoder``, by meaning
(``hlnet.cues.embedding.cues_from_embedding``) at several thresholds. No text is the name of a node. They are WordNet's
definitions of the classes, which paraphrase as captions do; WordNet's other nouns for them; and the sounds and
everyday words of the table that comes with hlnet. All but the first are what the way by words looks up, so that it
finds these is no news. What is right is told by the ids of WordNet in the tree. Needs a WordNet dictionary.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

import hlnet
from hlnet.cues.embedding import cues_from_embedding, load_encoder
from hlnet.cues.words import cue_table, cues_from_text
from hlnet.tree.dictionary import WordNet
from hlnet.tree.nodes import is_wordnet_id
from hlnet.tree.selection import select_classes
from hlnet.tree.vocabulary import TreeWords, plain

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


class Remembering:
    """An encoder that does each text once."""

    def __init__(self, encoder: Any) -> None:
        self.encoder, self.known = encoder, dict[str, Any]()

    def encode(self, texts: list[str]) -> Any:
        if new := [text for text in texts if text not in self.known]:
            self.known |= dict(zip(new, self.encoder.encode(new), strict=True))
        return np.stack([self.known[text] for text in texts])


def texts_for(tree: hlnet.ClassTree, wordnet: WordNet) -> dict[str, dict[str, set[int]]]:
    """For each kind, texts and the classes that they mean."""
    words = TreeWords(tree, wordnet)
    found: dict[str, dict[str, set[int]]] = {"definitions": {}, "other nouns": {}, "sounds": {}, "everyday words": {}}
    for place, leaf in enumerate(tree.leaves):
        if leaf.id is None or not is_wordnet_id(leaf.id):
            continue
        texts = {"definitions": [wordnet.definition(leaf.id)], "other nouns": wordnet.lemmas(leaf.id)}
        for kind, these in texts.items():
            for text in these:
                if not words.named(plain(text)):
                    found[kind].setdefault(text.replace("_", " "), set()).add(place)
    for thing in cue_table():
        for kind, these in {"sounds": thing.sounds, "everyday words": thing.words}.items():
            for text in these:
                if (meant := words.below(thing.synset)) and not words.named(plain(text)):
                    found[kind].setdefault(text, set()).update(meant)
    return found


def judged(tree: hlnet.ClassTree, texts: Mapping[str, set[int]], find: Callable[[str], Sequence[hlnet.Cue]]) -> str:
    """Shares of texts with a cue and of right ones among these; and the mean number of classes that these name."""
    texts_cued, right, sizes = 0, [], []
    for text, meant in texts.items():
        cues = find(text)
        texts_cued += bool(cues)
        for named in (set(select_classes(tree, cue.node)) for cue in cues):
            right.append(len(named & meant) / len(meant))
            sizes.append(len(named))
    if not right:
        return "0; –; –"
    return f"{100 * texts_cued / len(texts):.0f}; {100 * np.mean(right):.0f}; {np.mean(sizes):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", action="append", required=True, help="with WordNet's ids; repeatable")
    parser.add_argument("--encoder", help="a model of sentence-transformers: a folder, or a name on the hub")
    args = parser.parse_args()
    logging.getLogger("hlnet").setLevel(logging.ERROR)  # what each text was taken for
    wordnet = WordNet()
    encoder = Remembering(load_encoder(args.encoder)) if args.encoder else None
    for source in args.tree:
        tree = hlnet.read_tree(source)
        print(f"\n{source}: texts that give a cue, %; cues that name what is meant, %; classes that they name, mean\n")
        kinds = texts_for(tree, wordnet)
        print(f"| way | {' | '.join(f'{kind} ({len(texts)})' for kind, texts in kinds.items())} |")
        print("|---|" + "---|" * len(kinds))
        ways: dict[str, Callable[[str], Sequence[hlnet.Cue]]] = {
            "words": partial(cues_from_text, tree=tree, wordnet=wordnet)
        }
        for least in THRESHOLDS if encoder else ():
            ways[f"meaning, from {least}"] = partial(cues_from_embedding, tree=tree, encoder=encoder, threshold=least)
        for name, find in ways.items():
            cells = [judged(tree, texts, find) if texts else "–" for texts in kinds.values()]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
