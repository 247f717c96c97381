"""Class hierarchies out of WordNet: its nouns, each with one way up to the root, cut down to the given classes.

Notable here: nltk reads the index, the lemmas and the rules of inflection, but not the hypernyms, which it keeps in a
set whose order changes from run to run; and it gets the files' contents, not their place, as it opens only its own
data folders, while the user may name any.
"""

from __future__ import annotations

import os
import re
import textwrap
import warnings
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from graphlib import TopologicalSorter
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from hlnet.errors import HlnetError, RunError, UsageError, one_line
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.hierarchy import Outline
from hlnet.tree.nodes import is_wordnet_id

SHARED = ("/usr/share/wordnet", "/usr/local/share/wordnet", "/usr/local/WordNet-3.0", "/opt/homebrew/opt/wordnet")
WAYS = "install Debian's wordnet-base, name the folder of a dictionary, or download one"
#: Synsets so far up say nothing: entity, physical entity, object, whole.
_VAGUE = 4
_ID = re.compile(r"n(\d{8})|(\d{8})-n", re.IGNORECASE)


class WordNet:
    """The nouns of a WordNet dictionary; a synset is told by its id, such as ``"n02123045"`` (or ``"02123045-n"``).

    Args:
        folder: holds ``data.noun`` and ``index.noun``, itself or in its ``dict``; or a zip file of that. Default: the
            first that does of ``$WNSEARCHDIR``, ``$WNHOME/dict``, ``corpora/wordnet`` (or its zip file) among nltk's
            data, and the usual places of an installed WordNet.

    Raises:
        UsageError: if there is no dictionary, or no synset of the id that a method is given.
        RunError: if a file of the dictionary is damaged.

    Example:
        >>> wordnet = WordNet()  # doctest: +SKIP
        >>> wordnet.senses("Tabby_cat"), wordnet.lemmas("02123045-n")  # doctest: +SKIP
        (['n02123045'], ['tabby', 'tabby cat'])
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        places = _places() if folder is None else [Path(folder)]
        found = next((inner for place in places if (inner := _dictionary(place))), None)
        if found is None:
            where = "found" if folder is None else f"in '{folder}', where data.noun and index.noun should be"
            raise UsageError(f"no WordNet dictionary {where}; {WAYS}")
        self.place = str(found)
        with _readable(self.place):
            names = ("data.noun", "index.noun", "noun.exc")
            files = {name: (found / name).read_bytes() for name in names if (found / name).is_file()}
            self._hypernyms = _hypernyms(files["data.noun"])
            self._reader = _reader(files)
            self._parent: dict[str, str | None] = {}
            depth: dict[str | None, int] = {None: 0}
            for synset in TopologicalSorter(self._hypernyms).static_order():
                # max takes the first of equals: WordNet's order.
                parent = max(self._hypernyms[synset], key=depth.__getitem__, default=None)
                self._parent[synset], depth[synset] = parent, depth[parent] + 1

    @staticmethod
    def download() -> None:
        """Fetch nltk's package "wordnet" (WordNet 3.0) to where nltk keeps its data; RunError if that cannot be."""
        from nltk.downloader import Downloader

        try:
            Downloader().download("wordnet", quiet=True, raise_on_error=True, print_error_to=StringIO())
        except Exception as error:  # whatever the network, the disk or nltk's checks come up with
            mend = "install Debian's wordnet-base or name a folder"
            raise RunError(f"WordNet cannot be downloaded, {mend} ({one_line(error)})") from error

    def id(self, text: str) -> str:
        """The id as it is written here: ``"n02123045"`` for ``"02123045-n"``."""
        match = _ID.fullmatch(text.strip())
        synset = f"n{match[1] or match[2]}" if match else text
        if synset not in self._hypernyms:
            raise UsageError(f"WordNet in '{self.place}' has no noun '{text}'; are the ids those of its version?")
        return synset

    def senses(self, name: str) -> list[str]:
        """Synsets of this very name, most frequent first; case does not matter, nor a space or an underscore."""
        form = "_".join(name.split()).lower()
        with _readable(self.place):
            found = self._reader.synsets(form, "n")  # nltk adds those of the base form
            return [f"n{synset.offset():08}" for synset in found if form in map(str.lower, synset.lemma_names())]

    def base_form(self, name: str) -> str | None:
        """The entry that an inflected or hyphenated name belongs to: ``"polar bear"`` for ``"polar-bears"``."""
        with _readable(self.place):
            forms = ("_".join(re.split(blank, name.strip().lower())) for blank in (r"\s+", r"[\s-]+"))
            found = next(filter(None, (self._reader.morphy(form, "n") for form in forms)), "")
            return found.replace("_", " ") or None

    def lemmas(self, synset: str) -> list[str]:
        """The synset's names."""
        return [name.replace("_", " ") for name in self._synset(synset).lemma_names()]

    def definition(self, synset: str) -> str:
        """What the synset means, without the examples."""
        return str(self._synset(synset).definition())

    def hypernyms(self, synset: str) -> tuple[str, ...]:
        """The synsets right above, of which this one is a kind or an instance, in WordNet's order."""
        return self._hypernyms[self.id(synset)]

    def chain(self, synset: str) -> tuple[str, ...]:
        """The longest way from a root down to the synset itself; of equals, by the parent that WordNet names first."""
        chain = [self.id(synset)]
        while parent := self._parent[chain[-1]]:
            chain.append(parent)
        return tuple(reversed(chain))

    def _synset(self, synset: str) -> Any:
        offset = int(self.id(synset)[1:])
        with _readable(self.place):
            return self._reader.synset_from_pos_and_offset("n", offset)


def wordnet_outline(
    terms: Sequence[str], wordnet: WordNet, indices: Sequence[int] | None = None
) -> tuple[Outline, list[str]]:
    """The part of WordNet's hierarchy above the given classes, with one-line notes on what was decided for which.

    - *Several parents*: the one on the longest way to the root counts; of equals, the one that WordNet names first.
    - *Ambiguous names*: the sense nearest to the classes of one sense, by the mean depth of the lowest common ancestor;
      of equals, or without such classes, the most frequent.
    - *Missing names*: their base form is tried ("dogs", "polar-bear"), then their last two words and the last, as the
      group that they belong to ("postal van" under "van"); the rest forms the group "other".
    - *A class above another* becomes a leaf in the group of its name: dog/{dog, beagle}.
    - *Two names of one synset* are two leaves, of which one has the id: a class given by id, or else the first.
    - *Ids of one first lemma*: from the last to the first, while the name is shared, a class takes another lemma that
      is free; those that still share it add their parent's: "crane (wading bird)". A given name stays.
    - A ``/`` in a name becomes ``-``. The lowest common ancestor of all classes is the trunk; of a chain of groups with
      one child each the lowest stays, whose name says most.

    Args:
        terms: WordNet ids or names; of "organ, pipe organ" the first part that is found counts, in the senses that have
            most of the other parts as names too. A leaf has the name that was given, or its id's first lemma.
        wordnet: the dictionary.
        indices: original index of each class; default: its position.

    Raises:
        UsageError: if there are no classes, an id is unknown or given twice, a name is empty or given twice, or WordNet
            has none of the classes.

    Example:
        >>> outline, notes = wordnet_outline(["crane", "albatross", "pelican"], WordNet())  # doctest: +SKIP
        >>> [(leaf.name, leaf.id) for leaf in outline.leaves()]  # doctest: +SKIP
        [('crane', 'n02012849'), ('albatross', 'n02058221'), ('pelican', 'n02051845')]
        >>> notes[0]  # doctest: +SKIP
        "'crane': n02012849 (large long-necked wading bird of …), of 5 senses the nearest to the other classes"
    """
    if isinstance(terms, str) or not terms:
        raise UsageError(f"expected a list of WordNet ids or class names, got {terms!r}")
    if indices is not None and len(indices) != len(terms):
        raise UsageError(f"{len(indices)} indices for {len(terms)} classes; give one index a class")
    notes: list[str] = []
    classes = [_look_up(term.strip(), wordnet, notes) for term in terms]
    if not any(each.senses for each in classes):
        raise UsageError(f"WordNet in '{wordnet.place}' has none of the {len(terms)} classes, such as '{terms[0]}'")
    _choose_senses(classes, wordnet, notes)
    _give_ids(classes, notes)
    _give_names(classes, wordnet, notes)
    return _grow(classes, range(len(terms)) if indices is None else indices, wordnet, notes), notes


def classes_outline(classes: ClassTree, wordnet: WordNet) -> tuple[Outline, list[str]]:
    """WordNet's hierarchy over the classes of a tree, found by id where they have one, else by name.

    Args:
        classes: the tree; its classes alone count.
        wordnet: the dictionary.

    Returns:
        the hierarchy, with the classes' names, ids and original indices; and what was decided, one line each.

    Raises:
        UsageError: as :func:`wordnet_outline`.
    """
    outline, notes = wordnet_outline(_terms(classes), wordnet)
    words = {node.id: node.name for node in outline.leaves()}
    outline.rename_classes(classes)
    for node in outline.leaves():
        if node.name == node.id:  # a folder named by its id gets a name to read, and is still found by the id
            node.name = words[node.id]
    return outline, notes


def _terms(classes: ClassTree) -> list[str]:
    """What to look a tree's classes up by: their WordNet ids, or else their names."""
    return [leaf.id if leaf.id and is_wordnet_id(leaf.id) else leaf.name for leaf in classes.leaves]


def name_groups(outline: Outline, classes: ClassTree, wordnet: WordNet) -> list[str]:
    """Name groups that are called after their members ("beagle+pug") by WordNet's lowest common word for their classes,
    in place.

    A group keeps its name if WordNet has no word for all of its classes but those for anything ("object"), or if that
    word is taken: by a class, by a group above it, or by a group named before it, the largest first.

    Args:
        outline: the hierarchy; its classes are called as in ``classes``.
        classes: the tree that has their ids; of classes without, names are looked up as :func:`wordnet_outline` does.
        wordnet: the dictionary.

    Returns:
        one line for each group that got a name.

    Raises:
        UsageError: as :func:`wordnet_outline`.
    """
    found, _ = wordnet_outline(_terms(classes), wordnet)
    by_name = {classes.classes[leaf.index or 0]: leaf.id for leaf in found.leaves()}
    taken = set(by_name)
    taken |= {node.name for node in outline.walk()}
    groups = [node for node in outline.walk() if node.children and "+" in node.name and not node.id]
    notes = []
    for group in sorted(groups, key=lambda node: -len(node.leaves())):
        below = [by_name.get(leaf.name) for leaf in group.leaves()]
        if not all(below):
            continue
        chains = [wordnet.chain(str(synset)) for synset in below]
        shared = [nodes[0] for nodes in zip(*chains, strict=False) if len(set(nodes)) == 1]
        word = _plain(wordnet.lemmas(shared[-1])[0]) if len(shared) > _VAGUE else ""
        if word and word not in taken:
            taken.add(word)
            notes.append(f"'{group.name}' is named '{word}'")
            group.name, group.id = word, shared[-1]
    return notes


def with_names(tree: ClassTree) -> ClassTree:
    """The tree, with names for classes that are called by their WordNet ids, as ImageNet's folders are.

    The ids stay as ids. Names are those of ``preset:imagenet1k``, or where it lacks one those of timm, which knows some
    21,000 synsets; a tree that has another one stays as it is.
    """
    if not all(is_wordnet_id(name) for name in tree.classes):
        return tree
    from hlnet.tree.io import read_tree

    words = {leaf.id: leaf.name for leaf in read_tree("preset:imagenet1k").leaves if leaf.id}
    if not set(tree.classes) <= set(words):
        from timm.data import ImageNetInfo

        known = ImageNetInfo("imagenet-21k-goog")
        if not set(tree.classes) <= set(known.label_names()):
            return tree
        words = {name: known.label_name_to_description(name).split(",")[0].replace("/", "-") for name in tree.classes}
    words = {name: words[name] for name in tree.classes}
    shared = Counter(words.values())
    outline = Outline.of(tree)
    for leaf in outline.leaves():
        word = words[leaf.name]
        leaf.name, leaf.id = (word if shared[word] == 1 else f"{word} ({leaf.name})"), leaf.name
    return outline.to_tree(tree.num_levels)


# ---------------------------------------------------------------------- the dictionary's files


def _places() -> Iterator[Path]:
    if folder := os.environ.get("WNSEARCHDIR"):
        yield Path(folder)
    if folder := os.environ.get("WNHOME"):
        yield Path(folder, "dict")
    import nltk.data

    for folder in nltk.data.path:
        yield Path(folder, "corpora", "wordnet")
        yield Path(folder, "corpora", "wordnet.zip")
    yield from map(Path, SHARED)


def _dictionary(place: Path) -> Path | zipfile.Path | None:
    """Where in the place both files of the nouns are, if they are and may be seen."""
    try:
        root = zipfile.Path(place) if place.is_file() and zipfile.is_zipfile(place) else place
        for inner in (root, root / "dict", root / "wordnet"):
            if (inner / "data.noun").is_file() and (inner / "index.noun").is_file():
                return inner
    except (OSError, zipfile.BadZipFile):
        pass
    return None


def _hypernyms(data: bytes) -> dict[str, tuple[str, ...]]:
    """The synsets right above each, out of ``data.noun`` (see wndb(5)), which names synsets by their place in it."""
    above, place = {}, 0
    for line in data.splitlines(keepends=True):
        if not line.startswith(b" "):
            if line[:9] != b"%08d " % place:
                raise RunError(f"data.noun has no synset {place:08} at that byte; were its line ends changed?")
            pointers = re.findall(r" @i? (\d{8}) n 0000", line.partition(b" | ")[0].decode())
            above[f"n{place:08}"] = tuple(f"n{pointer}" for pointer in pointers)
        place += len(line)
    lost = {parent for parents in above.values() for parent in parents} - above.keys()
    if lost or not above:
        raise RunError(f"data.noun lacks {min(lost)}, a hypernym" if lost else "data.noun has no synsets")
    return above


def _reader(files: dict[str, bytes]) -> Any:
    from nltk.corpus.reader.wordnet import WordNetCorpusReader
    from nltk.data import PathPointer, SeekableUnicodeStreamReader

    # nltk asks for the names of the lexicographers' files, which not every dictionary has; none are used here.
    contents = {"lexnames": "".join(f"{number:02} noun 1\n" for number in range(100)).encode(), **files}

    class Nowhere(PathPointer):  # type: ignore[misc]
        open = file_size = join = None

    class Nouns(WordNetCorpusReader):  # type: ignore[misc]
        def open(self, file: str) -> Any:
            return SeekableUnicodeStreamReader(BytesIO(contents.get(file, b"")), "utf8")

        def map_wn(self, version: str = "wordnet") -> None:
            """No ids of other versions: the file that has them is not in every dictionary either."""

    return Nouns(Nowhere(), None)


@contextmanager
def _readable(place: str | Path) -> Iterator[None]:
    """Whatever nltk or the system stumbles over in a dictionary becomes one error of ours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        reason = one_line(error) if isinstance(error, HlnetError) else f"{type(error).__name__} {one_line(error)}"
        raise RunError(f"WordNet in '{place}' cannot be read, is it whole? ({reason.strip()})") from error


# ---------------------------------------------------------------------- the classes


@dataclass(slots=True, eq=False)
class _Class:
    term: str
    lemmas: list[str]  # names that the leaf may have; just the given one, unless that is an id
    senses: list[str]  # what the class may be, or belong to; the chosen one comes first
    by_id: bool = False
    itself: bool = True  # the senses are its own, not those of a group that it belongs to
    name: str = ""
    id: str | None = None


def _look_up(term: str, wordnet: WordNet, notes: list[str]) -> _Class:
    if is_wordnet_id(term):
        synset = wordnet.id(term)
        return _Class(term, wordnet.lemmas(synset), [synset], by_id=True)
    parts = [part for part in map(str.strip, term.split(",")) if part]
    if not parts:
        raise UsageError(f"a class has the empty name '{term}'")
    for form, itself in _forms(parts, wordnet):
        if senses := wordnet.senses(form):
            if form != parts[0]:
                notes.append(f"'{term}': " + (f"found as '{form}'" if itself else f"not found; put below '{form}'"))
            shared = Counter(sense for part in parts for sense in wordnet.senses(part) if sense in senses)
            likely = [sense for sense in senses if shared[sense] == max(shared.values(), default=0)]
            if len(likely) < len(senses):
                notes.append(f"'{term}': {', '.join(likely)}, of {len(senses)} senses those with most of its names")
            return _Class(term, [term], likely, itself=itself)
    notes.append(f"'{term}': not found; put into the group 'other'")
    return _Class(term, [term], [], itself=False)


def _forms(parts: list[str], wordnet: WordNet) -> Iterator[tuple[str, bool]]:
    """What to look for, best first, and whether it is the class itself."""
    yield from ((part, True) for part in parts)
    yield from ((base, True) for part in parts if (base := wordnet.base_form(part)))
    for words in (re.split(r"[\s_-]+", part) for part in parts):
        for head in (" ".join(words[-count:]) for count in (2, 1) if len(words) > count):
            if len(head) > 1 and not head.isnumeric():  # there are synsets of letters and numbers
                yield from ((form, False) for form in (head, wordnet.base_form(head)) if form)


def _choose_senses(classes: list[_Class], wordnet: WordNet, notes: list[str]) -> None:
    # Chains form a tree: what two of them share is the way to the lowest common ancestor, and its depth.
    shared = Counter(node for each in classes if len(each.senses) == 1 for node in wordnet.chain(each.senses[0]))
    for each in classes:
        if len(each.senses) > 1:
            scores = [sum(shared[node] for node in wordnet.chain(sense)) for sense in each.senses]
            best = each.senses[scores.index(max(scores))]
            gloss = textwrap.shorten(wordnet.definition(best), 40, placeholder=" …")
            why = "nearest to the other classes" if scores.count(max(scores)) == 1 else "most frequent of the nearest"
            notes.append(f"'{each.term}': {best} ({gloss}), of {len(scores)} senses the {why}")
            each.senses.insert(0, best)


def _give_ids(classes: list[_Class], notes: list[str]) -> None:
    owners: dict[str, _Class] = {}
    for each in sorted((each for each in classes if each.itself), key=lambda each: not each.by_id):
        owner = owners.setdefault(each.senses[0], each)
        if owner is each:
            each.id = each.senses[0]
        elif each.by_id:
            raise UsageError(f"classes '{owner.term}' and '{each.term}' are one synset; give each class once")
        else:
            notes.append(f"'{each.term}': the same synset as '{owner.term}'; it has no id")


def _plain(lemma: str) -> str:
    return lemma.replace("/", "-")


def _give_names(classes: list[_Class], wordnet: WordNet, notes: list[str]) -> None:
    sharing: defaultdict[str, list[_Class]] = defaultdict(list)
    for each in classes:
        each.lemmas = list(map(_plain, each.lemmas))
        each.name = each.lemmas[0]
        sharing[each.name].append(each)
        if each.name != each.term and not each.by_id:
            notes.append(f"'{each.term}': named '{each.name}', as '/' parts the names of a path")
    used = set(sharing)
    for name, group in sharing.items():
        if sum(not each.by_id for each in group) > 1:
            raise UsageError(f"class '{name}' is given twice; give WordNet ids, or names that differ")
        left = [*group]
        for each in reversed(group):
            free = next((lemma for lemma in each.lemmas if lemma not in used), None)
            if free and len(left) > 1:
                each.name = free
                left.remove(each)
                used.add(free)
        for each in left if len(left) > 1 else ():
            if each.by_id:
                above = [_plain(wordnet.lemmas(parent)[0]) for parent in wordnet.chain(each.term)[-2:-1]]
                marks = (f"{name} ({mark})" for mark in (*above, wordnet.id(each.term)))
                each.name = next((marked for marked in marks if marked not in used), each.term)
                used.add(each.name)
        notes += [
            f"'{each.term}': named '{each.name}', as {len(group)} classes are '{name}'"
            for each in group
            if each.name != name
        ]


def _grow(classes: list[_Class], indices: Sequence[int], wordnet: WordNet, notes: list[str]) -> Outline:
    root, other = Outline(""), Outline("other")
    groups: dict[str, Outline] = {}
    for each, index in zip(classes, indices, strict=True):
        above = root if each.senses else other
        for synset in wordnet.chain(each.senses[0]) if each.senses else ():
            if synset not in groups:
                groups[synset] = Outline(_plain(wordnet.lemmas(synset)[0]), id=synset)
                above.children.append(groups[synset])
            above = groups[synset]
        above.children.append(Outline(each.name, index=index, id=each.id))
    for each in classes:
        if each.id and any(child.children for child in groups[each.id].children):
            notes.append(f"'{each.name}' ({each.id}): has classes below it, and is a leaf beside them")
    for synset, group in groups.items():
        if len(parents := wordnet.hypernyms(synset)) > 1:
            taken = wordnet.chain(synset)[-2]
            refused = ", ".join(f"'{wordnet.lemmas(parent)[0]}'" for parent in parents if parent != taken)
            notes.append(f"'{group.name}' ({synset}): under '{wordnet.lemmas(taken)[0]}' rather than {refused}")
    outline = Outline("", root.contracted().children + [other] * bool(other.children))
    for node in outline.walk():
        if node.children and node.id and "/" in (lemma := wordnet.lemmas(node.id)[0]):
            notes.append(f"'{lemma}' ({node.id}): named '{node.name}', as '/' parts the names of a path")
    return outline
