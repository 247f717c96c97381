"""The class tree: named nodes in levels below the trunk, whose leaves are the classes.

Notable here: siblings always lie next to each other within their level, so that the weights of one family are one
slice; all leaves lie on the last level, a class that ends early being *continued* by single-child nodes; and pruning
is a choice of rows per level, which is all that cutting an expert needs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from hlnet.errors import SelectionError, TreeError
from hlnet.tree.nodes import Node, NodeNames, normal_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from scipy.sparse import csr_array

MAX_LEVELS = 64


@dataclass(frozen=True)
class ClassTree:
    """An immutable, validated class tree. Build it with :meth:`from_nested`, :meth:`parallel` or ``read_tree``.

    Attributes:
        levels: the nodes of levels 1..L, level 1 nearest to the trunk; ``levels[-1]`` are the classes in the order of
            the network's logits.

    Raises:
        TreeError: if the nodes break a rule (an unknown parent, siblings apart, a node without children, a name twice).

    Example:
        >>> tree = ClassTree.from_nested({"animal": {"cat": ["tabby", "siamese"], "dog": ["beagle"]}, "tool": ["saw"]})
        >>> tree.counts, tree.classes
        ((2, 3, 4), ('tabby', 'siamese', 'beagle', 'saw'))
        >>> [node.path for node in tree.levels[1]]
        ['animal/cat', 'animal/dog', 'tool/saw']
        >>> tree.prune([0, 3]).counts
        (2, 2, 2)
    """

    levels: tuple[tuple[Node, ...], ...]

    def __getstate__(self) -> dict[str, Any]:
        """What is sent to other processes and copied: not what was worked out from it on the way."""
        return {"levels": self.levels}

    # ------------------------------------------------------------------ building

    @classmethod
    def from_nested(cls, nested: Mapping[Any, Any] | Sequence[Any], levels: int | None = None) -> ClassTree:
        """Build a tree from nested mappings.

        A key is a node's name, its value what lies below: a mapping, or a list of class names. A class is a name in a
        list, or a key whose value is empty (``{}`` or ``None``), a whole number (its original index) or a string (its
        id, such as the name of its image folder). A plain list of class names is a tree of one level.

        Args:
            nested: the mapping or list.
            levels: the number of levels, at least the depth of the mapping (the default). Classes that end early are
                continued to the last level.

        Raises:
            TreeError: for an empty node, a doubled class or index, a cycle, a name that holds ``/``, or a value that is
                none of the above.

        Example:
            >>> ClassTree.from_nested({"cat": {"tabby": 281, "siamese": 284}, "chain saw": 491}, levels=3).counts
            (2, 3, 3)
        """
        found = _flatten(nested)
        depth = max(path.count("/") + 1 for path, *_ in found)
        if levels is not None and not depth <= levels <= MAX_LEVELS:
            raise TreeError(
                f"the tree is {depth} levels deep: levels={levels} does not fit, ask for {depth} to {MAX_LEVELS}"
            )
        indices = _indices([(path, index) for path, is_leaf, index, _ in found if is_leaf])
        rows: list[list[Node]] = [[] for _ in range(levels or depth)]
        for path, is_leaf, _, identifier in found:
            *above, name = path.split("/")
            parent = len(rows[len(above) - 1]) - 1 if above else 0
            for level in range(len(above), len(rows) if is_leaf else len(above) + 1):
                index = indices[path] if is_leaf and level == len(rows) - 1 else None
                rows[level].append(Node(name, path, parent, level > len(above), index, identifier))
                parent = len(rows[level]) - 1
        return cls(tuple(map(tuple, rows)))

    @classmethod
    def parallel(cls, classes: Sequence[str], levels: int = 3) -> ClassTree:
        """The tree of the paper's PHL (Sec. 3.1): every class has a private chain of ``levels`` blocks.

        Example:
            >>> ClassTree.parallel(["cat", "dog"], levels=3).counts
            (2, 2, 2)
        """
        if isinstance(classes, str):
            raise TreeError(f"expected a list of class names, got the text {classes!r}")
        return cls.from_nested(list(classes), levels=levels)

    def parallelized(self, levels: int = 3) -> ClassTree:
        """The PHL of the same classes: their order, ids and original indices stay, the inner nodes go.

        Example:
            >>> ClassTree.from_nested({"cat": {"tabby": 281}, "saw": 491}).parallelized().counts
            (2, 2, 2)
        """
        flat = self.from_nested({leaf.name: leaf.index for leaf in self.leaves}, levels)
        return flat.with_ids({leaf.name: leaf.id for leaf in self.leaves if leaf.id is not None})

    @classmethod
    def balanced(cls, counts: Sequence[int], classes: Sequence[str] | None = None) -> ClassTree:
        """A tree with the given number of nodes at each level, children spread as evenly as they go.

        Costs depend on the counts alone, so this stands in for a tree that is not at hand.

        Args:
            counts: nodes per level, for instance ``(6, 26, 100)``; must not decrease.
            classes: names of the last level's nodes; default ``"class 0"``, ``"class 1"``, …

        Example:
            >>> ClassTree.balanced((1, 2, 5)).sibling_counts
            ((1,), (2,), (3, 2))
        """
        counts = tuple(counts)
        if not counts or counts[0] < 1 or any(a > b for a, b in pairwise(counts)):
            raise TreeError(
                f"node counts {counts} must be positive and not decrease from level to level, as in (6, 26, 100)"
            )
        if classes is not None and len(classes) != counts[-1]:
            raise TreeError(f"{len(classes)} class names for {counts[-1]} classes; give one name a class")
        _refuse_doubles("class", classes or ())
        root: dict[str, Any] = {}
        above = [root]
        for level, count in enumerate(counts, start=1):
            row = []
            for i in range(count):
                # Parents in proportion: floor division hands each parent its fair, contiguous share.
                parent = above[i * len(above) // count]
                if level < len(counts):
                    row.append(parent.setdefault(f"group {level}.{i}", {}))
                else:
                    parent[classes[i] if classes else f"class {i}"] = i
            above = row
        return cls.from_nested(root)

    def __post_init__(self) -> None:
        if not self.levels or not all(self.levels):
            raise TreeError("a class tree needs at least one class")
        above = 1
        for number, row in enumerate(self.levels, start=1):
            parents = [node.parent for node in row]
            if parents != sorted(parents) or sorted(set(parents)) != list(range(above)):
                raise TreeError(
                    f"level {number}: siblings must lie side by side, and each of the {above} nodes above needs a child"
                )
            above = len(row)
        if any(node.index is None for node in self.levels[-1]):
            raise TreeError("every class needs its original index")
        _refuse_doubles("class", self.classes)
        _refuse_doubles("original index", self.indices)
        _refuse_doubles("id", [leaf.id for leaf in self.leaves if leaf.id is not None])
        for row in self.levels:
            _refuse_doubles("path", [node.path for node in row])

    # ------------------------------------------------------------------ reading

    @property
    def num_levels(self) -> int:
        """Number of levels, L."""
        return len(self.levels)

    @property
    def leaves(self) -> tuple[Node, ...]:
        """The nodes of the last level, in the order of the logits."""
        return self.levels[-1]

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Nodes at each level, such as ``(6, 26, 100)``."""
        return tuple(len(row) for row in self.levels)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Position of each level's first node when all nodes are numbered level by level; then the number of nodes."""
        return tuple(sum(self.counts[:level]) for level in range(self.num_levels + 1))

    @property
    def num_nodes(self) -> int:
        """Nodes at all levels together: the length of a vector of gains."""
        return self.offsets[-1]

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return tuple(node.name for node in self.leaves)

    @cached_property
    def positions(self) -> dict[str, int]:
        """Position of each class by its name: the column of its logit."""
        return {name: position for position, name in enumerate(self.classes)}

    @cached_property
    def indices(self) -> tuple[int | None, ...]:
        """Original index of each class, in the order of the logits."""
        return tuple(node.index for node in self.leaves)

    @property
    def next_index(self) -> int:
        """The first original index above all that classes have."""
        return 1 + max(leaf.index or 0 for leaf in self.leaves)

    @property
    def ids(self) -> dict[str, str]:
        """The identifiers of all nodes that have one, by path."""
        return {node.path: node.id for row in self.levels for node in row if node.id is not None}

    @cached_property
    def sibling_counts(self) -> tuple[tuple[int, ...], ...]:
        """For each level, how many children each node of the level above has (level 1: all belong to the trunk)."""
        result = []
        above = 1
        for row in self.levels:
            children = Counter(node.parent for node in row)
            result.append(tuple(children[parent] for parent in range(above)))
            above = len(row)
        return tuple(result)

    @cached_property
    def node_names(self) -> NodeNames:
        """What may be written for the nodes, and which node or classes it means."""
        return NodeNames(self.levels)

    def find_node(self, word: str) -> tuple[int, int]:
        """The node that a word means: its level, as a position in ``levels``, and its position there.

        The word is, in this order of precedence, a class's name or id, a node's path, or an inner node's name or id,
        where only one has it. A class means its leaf, also where it ended at a level above. In a vector of gains, the
        node's number is ``offsets[level] + position``.

        Raises:
            SelectionError: if there is no such node, with those of names near to it, or several.

        Example:
            >>> tree = ClassTree.from_nested({"animal": {"cat": ["tabby", "siamese"], "dog": ["beagle"]}, "saw": {}})
            >>> tree.find_node("animal/cat"), tree.find_node("dog"), tree.find_node("saw")
            ((1, 0), (1, 1), (2, 3))
            >>> tree.find_node("taby")
            Traceback (most recent call last):
            hlnet.errors.SelectionError: the tree has no class or node 'taby'. Did you mean 'tabby'?
        """
        return self.node_names.places[self.node_names.path(word.strip())]

    def leaves_under(self, node: str | tuple[int, int]) -> tuple[int, ...]:
        """Positions of the classes at or under a node.

        Args:
            node: its path, or its place as :meth:`find_node` gives it.

        Raises:
            SelectionError: if no node has this path.

        Example:
            >>> tree = ClassTree.from_nested({"animal": {"cat": ["tabby", "siamese"], "dog": ["beagle"]}, "saw": {}})
            >>> tree.leaves_under("animal/cat"), tree.leaves_under(tree.find_node("cat"))
            ((0, 1), (0, 1))
        """
        path = node if isinstance(node, str) else self.levels[node[0]][node[1]].path
        if path not in self.node_names.below:
            raise SelectionError(f"the tree has no node '{path}'")
        return self.node_names.below[path]

    def node_over(self, classes: Iterable[int]) -> str | None:
        """The path of the node that holds just these classes, by position; of a chain, of its first from the trunk.

        Example:
            >>> tree = ClassTree.from_nested({"animal": {"cat": ["tabby", "siamese"], "dog": ["beagle"]}, "saw": {}})
            >>> tree.node_over([1, 0]), tree.node_over([2]), tree.node_over([0, 3])
            ('animal/cat', 'animal/dog', None)
        """
        return self.node_names.over.get(tuple(sorted(classes)))

    @cached_property
    def class_paths(self) -> NDArray[np.int64]:
        """Which node of each level lies on the path to each class: ``[classes, levels]``, positions within the level.

        Example:
            >>> ClassTree.from_nested({"cat": ["tabby", "siamese"], "saw": {}}).class_paths.tolist()
            [[0, 0], [0, 1], [1, 2]]
        """
        import numpy as np

        columns = [np.arange(len(self.leaves))]
        for row in reversed(self.levels[1:]):
            columns.append(np.array([node.parent for node in row])[columns[-1]])
        return np.stack(columns[::-1], axis=1)

    def ancestors(self) -> csr_array:
        """Which nodes lie on the path to each class: sparse, boolean, ``[classes, num_nodes]``, nodes level by level.

        Example:
            >>> ClassTree.from_nested({"cat": ["tabby", "siamese"], "saw": {}}).ancestors().toarray().astype(int)
            array([[1, 0, 1, 0, 0],
                   [1, 0, 0, 1, 0],
                   [0, 1, 0, 0, 1]])
        """
        import numpy as np
        from scipy.sparse import csr_array

        nodes = self.class_paths + np.array(self.offsets[:-1])
        filled = np.arange(0, nodes.size + 1, self.num_levels)
        return csr_array((np.ones(nodes.size, bool), nodes.ravel(), filled), shape=(len(nodes), self.num_nodes))

    # ------------------------------------------------------------------ cutting

    def rows(self, leaves: Iterable[int]) -> tuple[tuple[int, ...], ...]:
        """The nodes, as positions per level, that lie on the paths from the trunk to the given classes.

        Args:
            leaves: positions of classes in the order of the logits; order and repeats do not matter.

        Raises:
            SelectionError: if there are none, or one is out of range.
        """
        kept = sorted(set(leaves))
        if not kept:
            raise SelectionError("no class was selected; an expert needs at least one")
        if kept[0] < 0 or kept[-1] >= len(self.leaves):
            raise SelectionError(f"class positions must lie in 0..{len(self.leaves) - 1}, got {kept[0]}..{kept[-1]}")
        result = [tuple(kept)]
        for row in reversed(self.levels[1:]):
            kept = sorted({row[i].parent for i in kept})
            result.append(tuple(kept))
        return tuple(reversed(result))

    def prune(self, leaves: Iterable[int]) -> ClassTree:
        """The tree of only these classes: their order, names, ids and original indices are kept.

        Example:
            >>> tree = ClassTree.parallel(["cat", "dog", "saw"])
            >>> expert = tree.prune([2, 0])
            >>> expert.classes, expert.indices
            (('cat', 'saw'), (0, 2))
        """
        levels: list[tuple[Node, ...]] = []
        renumbered = {0: 0}
        for row, kept in zip(self.levels, self.rows(leaves), strict=True):
            levels.append(tuple(replace(row[i], parent=renumbered[row[i].parent]) for i in kept))
            renumbered = {old: new for new, old in enumerate(kept)}
        return ClassTree(tuple(levels))

    def with_ids(self, ids: Mapping[str, str]) -> ClassTree:
        """The same tree with these identifiers by node path or class name; others lose theirs.

        Raises:
            TreeError: if a key names no node.

        Example:
            >>> ClassTree.parallel(["tench"]).with_ids({"tench": "n01440764"}).leaves[0].id
            'n01440764'
        """
        ids = {normal_name(name): identifier for name, identifier in ids.items()}
        paths = {node.path for row in self.levels for node in row}
        by_path = {leaf.path: ids[leaf.name] for leaf in self.leaves if leaf.name in ids and leaf.name not in paths}
        by_path |= {path: ids[path] for path in paths & ids.keys()}
        if unknown := ids.keys() - paths - set(self.classes):
            raise TreeError(f"ids name nodes that the tree does not have: {', '.join(sorted(unknown)[:5])}")
        return ClassTree(tuple(tuple(replace(node, id=by_path.get(node.path)) for node in row) for row in self.levels))

    def to_nested(self) -> dict[str, Any]:
        """The tree as nested mappings whose leaves are original indices, as ``from_nested`` reads it; without ids."""
        root: dict[str, Any] = {}
        for leaf in self.leaves:
            *above, name = leaf.path.split("/")
            place = root
            for part in above:
                place = place.setdefault(part, {})
            place[name] = leaf.index
        return root


# ---------------------------------------------------------------------- helpers


def _flatten(nested: Mapping[Any, Any] | Sequence[Any]) -> list[tuple[str, bool, int | None, str | None]]:
    """All nodes depth first as ``(path, is a leaf, index or None, id or None)``."""
    found: list[tuple[str, bool, int | None, str | None]] = []
    seen: set[int] = set()  # a container met twice is a cycle, or doubles its classes

    def visit(value: Any, path: str, depth: int) -> None:
        where = f"node '{path}'" if path else "the tree"
        if depth >= MAX_LEVELS:
            raise TreeError(f"the tree is deeper than {MAX_LEVELS} levels; is it nested as it should be?")
        if id(value) in seen:
            raise TreeError(f"{where} contains itself, or stands in two places: a tree has no cycles")
        if not value:
            raise TreeError(f"{where} is empty: an inner node needs at least one class below it")
        seen.add(id(value))
        items = value.items() if isinstance(value, Mapping) else [(name, None) for name in value]
        for key, below in items:
            child = f"{path}/{_name(key, where)}".lstrip("/")
            if below is None or below == {}:
                found.append((child, True, None, None))
            elif isinstance(below, int) and not isinstance(below, bool):
                found.append((child, True, below, None))
            elif isinstance(below, str) and below.strip():
                found.append((child, True, None, below.strip()))
            elif isinstance(below, Mapping | list | tuple):
                found.append((child, False, None, None))
                visit(below, child, depth + 1)
            else:
                raise TreeError(
                    f"node '{child}': expected a mapping, a list of class names, an index or an id, got {below!r}"
                )

    if nested is None:
        raise TreeError("the tree is empty")
    if not isinstance(nested, Mapping | list | tuple):
        raise TreeError(f"a tree is a mapping or a list of class names, got {type(nested).__name__}")
    visit(nested, "", 0)
    _refuse_doubles("path", [path for path, *_ in found])
    return found


def _name(key: Any, where: str) -> str:
    if isinstance(key, Mapping | list | tuple):
        raise TreeError(f"{where}: a list holds class names only; write inner nodes as 'name: …' in a mapping")
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise TreeError(f"{where}: a name must be text, got {key!r}; put it in quotes")
    name = normal_name(str(key))
    if not name or "/" in name or not name.isprintable() or name != name.strip():
        raise TreeError(
            f"{where}: {name!r} is no name for a node: it must be printable, without '/' and without blanks around it"
        )
    return name


def _indices(leaves: list[tuple[str, int | None]]) -> dict[str, int]:
    """Original indices by path: as given, or by order of appearance where none is given."""
    given = [index for _, index in leaves if index is not None]
    if not given:
        return {path: position for position, (path, _) in enumerate(leaves)}
    if len(given) < len(leaves):
        missing = next(path for path, index in leaves if index is None)
        raise TreeError(f"class '{missing}' has no original index but others have; give all of them one, or none")
    if min(given) < 0:
        raise TreeError(f"original index {min(given)} is negative; indices start at 0")
    return {path: index for path, index in leaves if index is not None}


def _refuse_doubles(what: str, values: Sequence[Any]) -> None:
    doubled = [repr(value) for value, count in Counter(values).items() if count > 1]
    if doubled:
        raise TreeError(f"{what} {', '.join(doubled[:5])} appears more than once; each must be unique in the tree")
