"""Class hierarchies out of WordNet, cut down to the given classes."""

from __future__ import annotations

import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hlnet.errors import UsageError
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.dictionary import WordNet
from hlnet.tree.hierarchy import Hierarchy
from hlnet.tree.nodes import is_wordnet_id

#: Synsets so far up say nothing: entity, physical entity, object, whole.
_VAGUE = 4


def wordnet_hierarchy(
    terms: Sequence[str], wordnet: WordNet, indices: Sequence[int] | None = None
) -> tuple[Hierarchy, list[str]]:
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
        >>> hierarchy, notes = wordnet_hierarchy(["crane", "albatross", "pelican"], WordNet())  # doctest: +SKIP
        >>> [(leaf.name, leaf.id) for leaf in hierarchy.leaves()]  # doctest: +SKIP
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


def classes_hierarchy(classes: ClassTree, wordnet: WordNet) -> tuple[Hierarchy, list[str]]:
    """WordNet's hierarchy over the classes of a tree, found by id where they have one, else by name.

    Args:
        classes: the tree; its classes alone count.
        wordnet: the dictionary.

    Returns:
        the hierarchy, with the classes' names, ids and original indices; and what was decided, one line each.

    Raises:
        UsageError: as :func:`wordnet_hierarchy`.
    """
    hierarchy, notes = wordnet_hierarchy(_terms(classes), wordnet)
    words = {node.id: node.name for node in hierarchy.leaves()}
    hierarchy.rename_classes(classes)
    for node in hierarchy.leaves():
        if node.name == node.id:  # a folder named by its id gets a name to read, and is still found by the id
            node.name = words[node.id]
    return hierarchy, notes


def _terms(classes: ClassTree) -> list[str]:
    """What to look a tree's classes up by: their WordNet ids, or else their names."""
    return [leaf.id if leaf.id and is_wordnet_id(leaf.id) else leaf.name for leaf in classes.leaves]


def name_groups(hierarchy: Hierarchy, classes: ClassTree, wordnet: WordNet) -> list[str]:
    """Name groups that are called after their members ("beagle+pug") by WordNet's lowest common word for their classes,
    in place.

    A group keeps its name if WordNet has no word for all of its classes but those for anything ("object"), or if that
    word is taken: by a class, by a group above it, or by a group named before it, the largest first.

    Args:
        hierarchy: the hierarchy; its classes are called as in ``classes``.
        classes: the tree that has their ids; of classes without, names are looked up as :func:`wordnet_hierarchy` does.
        wordnet: the dictionary.

    Returns:
        one line for each group that got a name.

    Raises:
        UsageError: as :func:`wordnet_hierarchy`.
    """
    found, _ = wordnet_hierarchy(_terms(classes), wordnet)
    by_name = {classes.classes[leaf.index or 0]: leaf.id for leaf in found.leaves()}
    taken = set(by_name)
    taken |= {node.name for node in hierarchy.walk()}
    groups = [node for node in hierarchy.walk() if node.children and "+" in node.name and not node.id]
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
    hierarchy = Hierarchy.of(tree)
    for leaf in hierarchy.leaves():
        word = words[leaf.name]
        leaf.name, leaf.id = (word if shared[word] == 1 else f"{word} ({leaf.name})"), leaf.name
    return hierarchy.to_tree(tree.num_levels)


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


def _grow(classes: list[_Class], indices: Sequence[int], wordnet: WordNet, notes: list[str]) -> Hierarchy:
    root, other = Hierarchy(""), Hierarchy("other")
    groups: dict[str, Hierarchy] = {}
    for each, index in zip(classes, indices, strict=True):
        above = root if each.senses else other
        for synset in wordnet.chain(each.senses[0]) if each.senses else ():
            if synset not in groups:
                groups[synset] = Hierarchy(_plain(wordnet.lemmas(synset)[0]), id=synset)
                above.children.append(groups[synset])
            above = groups[synset]
        above.children.append(Hierarchy(each.name, index=index, id=each.id))
    for each in classes:
        if each.id and any(child.children for child in groups[each.id].children):
            notes.append(f"'{each.name}' ({each.id}): has classes below it, and is a leaf beside them")
    for synset, group in groups.items():
        if len(parents := wordnet.hypernyms(synset)) > 1:
            taken = wordnet.chain(synset)[-2]
            refused = ", ".join(f"'{wordnet.lemmas(parent)[0]}'" for parent in parents if parent != taken)
            notes.append(f"'{group.name}' ({synset}): under '{wordnet.lemmas(taken)[0]}' rather than {refused}")
    hierarchy = Hierarchy("", root.contracted().children + [other] * bool(other.children))
    for node in hierarchy.walk():
        if node.children and node.id and "/" in (lemma := wordnet.lemmas(node.id)[0]):
            notes.append(f"'{lemma}' ({node.id}): named '{node.name}', as '/' parts the names of a path")
    return hierarchy
