"""A WordNet dictionary's nouns, each with one way up to the root.

Notable here: nltk reads the index, the lemmas and the rules of inflection, but not the hypernyms, which it keeps in a
set whose order changes from run to run; and it gets the files' contents, not their place, as it opens only its own
data folders, while the user may name any.
"""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from graphlib import TopologicalSorter
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from hlnet.errors import HlnetError, RunError, UsageError, one_line

SHARED = ("/usr/share/wordnet", "/usr/local/share/wordnet", "/usr/local/WordNet-3.0", "/opt/homebrew/opt/wordnet")
WAYS = "install Debian's wordnet-base, name the folder of a dictionary, or download one"
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
