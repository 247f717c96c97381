"""Columns of a table: ranks, the class, ids, indices and parents, recognised by their headings.

Ranks that are known are put in order, coarse before fine, whatever order the columns come in. The words are those of
biology in several languages, of products and places, and the general ones (``superclass``, ``coarse label``).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

from hlnet.errors import TreeError

#: Ranks of biology, coarse to fine; of each rank, its words in English, Latin, German, French, Spanish, Portuguese,
#: Italian, Dutch, Swedish, Polish, Russian, Chinese and Japanese, without accents and blanks.
_BIOLOGY = (
    "domain superkingdom dominio",
    "kingdom regnum reich regne reino regno rijk rike krolestwo царство 界",
    "subkingdom subregnum unterreich",
    "superphylum",
    "phylum division stamm embranchement filo divisao stam typ тип 门 門",
    "subphylum unterstamm",
    "superclass superclassis",
    "class classis klasse classe clase klass gromada класс 纲 綱",
    "subclass subclassis unterklasse infraclass",
    "superorder superordo",
    "order ordo ordnung ordre orden ordem ordine orde ordning rzad отряд порядок 目",
    "suborder subordo unterordnung infraorder parvorder",
    "superfamily superfamilia uberfamilie",
    "family familia familie famille famiglia familj rodzina семеиство 科",
    "subfamily subfamilia unterfamilie",
    "tribe tribus",
    "subtribe",
    "genus gattung genre genero genere geslacht slakte rodzaj род 属",
    "subgenus untergattung section",
    "species art espece especie specie soort gatunek вид 种 種",
    "subspecies unterart sousespece subespecie variety varietas form forma infraspecificepithet",
)
_PRODUCTS = (
    "department aisle section",
    "manufacturer make brand vendor hersteller marke marque marca fabricante",
    "series productline range family",
    "model modell modele modelo",
    "variant trim version variante",
    "modelyear year baujahr",
)
_PLACES = ("continent", "country", "region state province", "county district", "city town", "site location place")
_GENERAL = ("group category type", "class label item product")  # what super, sub, coarse and fine stand before
_COARSE = re.compile(r"(super|coarse|parent|broad|main|top|major|general|ober|uber)")
_FINE = re.compile(r"(sub|fine|leaf|specific|detailed|minor|unter)")

#: Columns that name a node, the most telling first.
_NAMES = (
    "name", "classname", "labelname", "scientificname", "canonicalname", "speciesname", "label", "title",
    "displayname", "commonname", "vernacularname", "englishname", "preferredname",
)  # fmt: skip
_IDS = {
    "id", "wnid", "wordnetid", "synsetid", "synset", "nodeid", "taxonid", "taxonkey", "key", "uuid", "guid", "code",
    "identifier", "classid", "labelid", "originalid", "childid", "speciesid", "categoryid",
}  # fmt: skip
_NUMBERING = {"id", "classid", "labelid", "originalid", "categoryid"}  # ids that may be indices
_INDICES = {"index", "classindex", "labelindex", "originalindex", "idx", "number", "nr", "no"}
_PARENTS = {
    "parent", "parentid", "parentname", "parentnameusageid", "parentnameusage", "parentkey", "parenttaxonid",
    "parentnode", "parentnodeid", "parentclass", "broader", "source",
}  # fmt: skip
_CHILDREN = {"child", "childname", "childid", "childnode", "target"}
_OTHER = {
    "count", "images", "imagecount", "numimages", "n", "total", "frequency", "rank", "taxonrank", "status",
    "taxonomicstatus", "acceptednameusageid", "acceptednameusage", "author", "authorship",
    "scientificnameauthorship", "url", "link", "image", "file", "filename", "filepath", "path", "split", "description",
    "definition", "remarks", "note", "notes", "comment", "comments", "color", "colour", "isthing", "gloss",
}  # fmt: skip


@dataclass
class Columns:
    """What the columns of a table hold; numbers are positions of columns.

    Attributes:
        headings: as written; empty where the table has no header.
        levels: the ranks, coarse to fine; the last is the class.
        id, index: of the class or node.
        parent, key: in a table of edges, the parent, and what a parent is named by; ``None`` in a table of paths.
        name: in a table of edges, the node's name where ``key`` is only a key.
        unused: columns that say nothing of the tree.
        reordered: whether the ranks stand in another order in the table.
    """

    headings: list[str]
    levels: list[int] = field(default_factory=list)
    id: int | None = None
    index: int | None = None
    parent: int | None = None
    key: int | None = None
    name: int | None = None
    unused: list[int] = field(default_factory=list)
    reordered: bool = False


def normal_heading(written: str) -> str:
    """A heading without case, accents, marks, a prefix such as ``dwc:`` and what stands in parentheses.

    Example:
        >>> normal_heading("dwc:scientificName"), normal_heading("Espèce (auteur, an)"), normal_heading("Level 1")
        ('scientificname', 'espece', 'level1')
    """
    bare = re.sub(r"\([^)]*\)|\[[^\]]*\]", "", written.rpartition(":")[2]) or written
    folded = unicodedata.normalize("NFKD", bare.casefold())
    return re.sub(r"[\W_]", "", "".join(letter for letter in folded if not unicodedata.combining(letter)))


def is_header(first: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether a table's first row is a header.

    It is one if more than half of its cells are words that head columns, if its cells are one word with rising numbers
    (``L1``, ``L2``), or if it has text above a column of at least two numbers.

    Example:
        >>> is_header(["L1", "L2"], [["cat", "tabby"]]), is_header(["cat", "tabby"], [["cat", "siamese"]])
        (True, False)
    """
    words = [normal_heading(cell) for cell in first]
    written = [word for word in words if word]
    if {*written} & _PARENTS and {*written} & (_CHILDREN | _IDS | {*_NAMES}):
        return True
    if 2 * sum(_is_known(word) for word in written) > len(written):
        return True
    if not rows or len(set(words)) < len(words):
        return False
    if len(words) > 1 and _numbered(words):
        return True
    for column, cell in enumerate(first):
        below = [row[column] for row in rows if len(row) > column and row[column]]
        if len(below) > 1 and cell and not _is_number(cell) and all(map(_is_number, below)):
            return True
    return False


def name_columns(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Columns:
    """What the columns under these headings hold.

    Args:
        headings: as written.
        rows: the rows below, each as long as the header.

    Raises:
        TreeError: if two columns are of one kind, a column with cells has no heading, or ranks run from fine to coarse
            beside one that is not known.

    Example:
        >>> found = name_columns(["species", "genus", "family", "count"], [["Felis catus", "Felis", "Felidae", "3"]])
        >>> found.levels, found.unused
        ([2, 1, 0], [3])
    """
    words = [normal_heading(cell) for cell in headings]
    found = Columns(list(headings))
    cells = [[row[i] for row in rows if row[i]] for i in range(len(words))]
    for i, word in enumerate(words):
        if not word and cells[i] == [str(number) for number in range(len(rows))]:  # as pandas numbers rows
            words[i], found.headings[i] = "count", f"column {i + 1}"
        elif not word and cells[i]:
            raise TreeError(f"column {i + 1} has no heading; name it, or take the column away")
    free = [i for i, word in enumerate(words) if word and cells[i]]
    found.unused = [i for i in range(len(words)) if i not in free and words[i]]
    parents = [i for i, word in enumerate(words) if word in _PARENTS]
    children = [i for i, word in enumerate(words) if word in _CHILDREN]
    keys = [i for i in free if words[i] in _IDS or words[i] in _INDICES]
    names = sorted((i for i in free if words[i] in _NAMES), key=lambda i: _NAMES.index(words[i]))
    if len(parents) == 1 and (children or keys or names):
        _name_edges(found, words, cells, parents[0], children, keys, names)
    else:
        _name_paths(found, words, cells, free, keys, names)
    return found


def name_bare_columns(rows: Sequence[Sequence[str]]) -> Columns:
    """What the columns of a table without a header hold: all are ranks, but for a first column of ids or numbers.

    Example:
        >>> found = name_bare_columns([["a7-01", "aves", "barn owl"], ["a7-02", "mammalia", "cat"]])
        >>> found.id, found.levels
        (0, [1, 2])
    """
    width = max(map(len, rows))
    found = Columns([], list(range(width)))
    first = [row[0] for row in rows]
    if width > 1 and len(rows) > 1 and len(set(first)) == len(first) and all(first):
        if all(map(_is_number, first)):
            found.index = 0
        elif all(re.fullmatch(r"[\w-]*[0-9][\w-]*", cell, re.ASCII) and re.search(r"[0-9]{2}", cell) for cell in first):
            found.id = 0
    if found.id is not None or found.index is not None:
        found.levels = found.levels[1:]
    return found


# ---------------------------------------------------------------------- helpers


def _name_edges(
    found: Columns,
    words: list[str],
    cells: list[list[str]],
    parent: int,
    children: list[int],
    keys: list[int],
    names: list[int],
) -> None:
    """A table of edges: parents refer to the column that holds most of them."""
    found.parent = parent
    candidates = [*children, *keys, *names]
    parents = set(cells[parent])
    found.key = max(candidates, key=lambda i: (len(parents & set(cells[i])), -candidates.index(i)))
    if children and len(parents & set(cells[children[0]])) == len(parents & set(cells[found.key])):
        found.key = children[0]
    rest = [i for i in keys if i != found.key]
    if words[found.key] == "taxonid":  # Darwin Core has others beside it
        rest = [i for i in rest if words[i] in _INDICES]
    _describe(found, words, cells, rest)
    found.name = next((i for i in names if i != found.key), None)
    if found.id is None and found.name is not None and words[found.key] in _IDS:
        found.id = None if all(map(_is_number, cells[found.key])) else found.key
    used = {parent, found.key, found.index, found.id, found.name}
    found.unused = [i for i, word in enumerate(words) if word and i not in used]


def _name_paths(
    found: Columns, words: list[str], cells: list[list[str]], free: list[int], keys: list[int], names: list[int]
) -> None:
    """A table of paths: ranks in order, then the class."""
    _describe(found, words, cells, keys)
    described = {found.index, found.id}
    ranks = [i for i in free if i not in described and i not in names and words[i] not in _OTHER]
    biology = bool({words[i] for i in ranks} & set(" ".join(_BIOLOGY[i] for i in (0, 1, 4, 10, 17, 19)).split()))
    if "specificepithet" in words:
        epithet = words.index("specificepithet")
        ranks = [i for i in ranks if i != epithet]
        if not names and not any(words[i] in _BIOLOGY[19].split() for i in ranks):
            names = [epithet]
    # A column 'label' or 'name' beside ranks is the class; alone it is a rank like any other.
    found.levels = _in_order(found, words, ranks, biology) + names[:1]
    if not found.levels:
        raise TreeError("no column names the classes; expected one such as 'name', 'class' or 'species'")
    found.unused = sorted({*found.unused, *(i for i in free if i not in {*found.levels, *described})})


def _describe(found: Columns, words: list[str], cells: list[list[str]], keys: list[int]) -> None:
    """Find ids and original indices among these columns; ids that are whole numbers are indices."""
    named = [i for i in keys if words[i] in _INDICES]
    numbers = [i for i in keys if words[i] in _NUMBERING and cells[i] and all(map(_is_number, cells[i]))]
    indices = named or numbers[:1]
    ids = [i for i in keys if i not in indices]
    ids = [i for i in ids if words[i] == "taxonid"] or ids
    for kind in (indices, ids):
        if len(kind) > 1:
            written = " and ".join(f"'{found.headings[i]}'" for i in kind[:2])
            raise TreeError(f"{written} head columns of one kind; keep one of them")
    found.index, found.id = next(iter(indices), None), next(iter(ids), None)


def _in_order(found: Columns, words: list[str], ranks: list[int], biology: bool) -> list[int]:
    """Columns of ranks, coarse to fine."""
    keys = {i: _rank(words[i], biology) for i in ranks}
    if _numbered([words[i] for i in ranks]):
        keys = {i: float(re.sub(r"\D", "", words[i])) for i in ranks}
    for sequence in (_PRODUCTS, _PLACES):
        places = {i: _place(words[i], sequence) for i in ranks}
        if not biology and ranks and all(place is not None for place in places.values()):
            keys = {i: float(place) for i, place in places.items() if place is not None}
    known = [(i, key) for i, key in keys.items() if key is not None]
    if len(known) < len(ranks):
        descending = [key for _, key in known]
        if len(known) > 1 and descending == sorted(descending, reverse=True) and len(set(descending)) > 1:
            fine, coarse = found.headings[known[0][0]], found.headings[known[-1][0]]
            strange = next(found.headings[i] for i, key in keys.items() if key is None)
            raise TreeError(
                f"'{fine}' is finer than '{coarse}', and the rank of '{strange}' is not known: put the coarsest column "
                "first and the class last"
            )
        return ranks
    ordered = sorted(ranks, key=lambda i: keys[i] or 0.0)
    found.reordered = ordered != ranks
    return ordered


def _rank(word: str, biology: bool) -> float | None:
    """Where a rank stands between coarse (low) and fine (high); ``None`` if it is not known."""
    place = _place(word, _BIOLOGY)
    if place is not None and (biology or word not in {"class", "superclass", "subclass", "order", "section", "form"}):
        return 100.0 + place
    bare = re.sub(r"(name|label)$", "", word) or word
    coarse, fine = _COARSE.match(bare), _FINE.match(bare)
    depth = 0.0
    while (coarse or fine) and bare:
        depth += -10 if coarse else 10
        bare = bare[(coarse or fine).end() :]  # type: ignore[union-attr]
        coarse, fine = _COARSE.match(bare), _FINE.match(bare)
    base = _place(bare, _GENERAL)
    if base is None and bare and bare not in {"name", "label"}:
        return None
    if not depth and base is None:
        return None
    return (50.0 if biology and depth <= 0 else 200.0) + depth + (base or 0)


def _place(word: str, sequence: Sequence[str]) -> int | None:
    """The position of the rank that has this word."""
    return next((place for place, words in enumerate(sequence) if word in words.split()), None)


def _numbered(words: Sequence[str]) -> bool:
    """Whether the words are one word with different numbers, such as level1, level2."""
    parts = [re.fullmatch(r"([a-z]+)([0-9]{1,3})", word) for word in words]
    return len(parts) > 1 and all(parts) and len({part[1] for part in parts if part}) == 1


def _is_known(word: str) -> bool:
    known = {*_NAMES, *_IDS, *_INDICES, *_PARENTS, *_CHILDREN, *_OTHER, "specificepithet"}
    in_sequence = any(_place(word, sequence) is not None for sequence in (_BIOLOGY, _PRODUCTS, _PLACES))
    return word in known or in_sequence or _rank(word, False) is not None or bool(re.fullmatch(r"level[0-9]+", word))


def _is_number(cell: str) -> bool:
    return bool(re.fullmatch(r"[0-9]{1,18}([.,]0*)?", cell))
