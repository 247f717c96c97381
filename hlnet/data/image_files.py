"""Image files by name, folder or pattern: found one after the other, while the first ones are at work already.

Notable here: nothing is listed beforehand, so that a million files take no more memory than one folder's names. Within
a folder names are sorted: the order is the same on every machine and for every process.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path
from typing import TextIO

from hlnet.errors import UsageError
from hlnet.files import IMAGE_SUFFIXES, in_order, is_hidden

log = logging.getLogger("hlnet")

#: In place of a name: the names are read from standard input, one a line.
STDIN = "-"


def image_files(words: Iterable[str | Path], stdin: TextIO | None = None, option: str = "images") -> Iterator[str]:
    """The files that these words mean, in their order, found as they are asked for.

    Args:
        words: files; folders, of which all images are meant, those of subfolders too; patterns, in which ``*``, ``?``
            and ``[a-z]`` stand for parts of one name and ``**`` for any number of folders; or once ``-``, for lines of
            ``stdin``, each of which is a file or folder; whether these are there is left to who opens them. In
            folders and by patterns, only what has an image's suffix is found, and no name that begins with a dot; a
            folder's own files come before those of its subfolders.
        stdin: where names come from.
        option: what the words are called in messages.

    Raises:
        UsageError: at once, if a named file is missing, a folder holds no image or a pattern matches nothing, or ``-``
            stands there twice.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> for name in ("b.png", "a.jpg", "note.txt"):
        ...     (root / name).touch()
        >>> [Path(file).name for file in image_files([root, root / "?.png", root / "note.txt"])]
        ['a.jpg', 'b.png', 'b.png', 'note.txt']
    """
    found = [str(word) for word in words]
    if found.count(STDIN) > 1:
        raise UsageError(f"{option}: standard input ('{STDIN}') can be read once only")
    for word in found:
        if word == STDIN and stdin is None:
            raise UsageError(f"{option}: there is no standard input to read names from")
        if word != STDIN and not os.path.lexists(word) and not _is_magic(word):
            raise UsageError(f"{option}: there is no file or folder '{word}'; look at its name")
        if word != STDIN and next(_meant(word), None) is None:
            what = "is a folder without images" if os.path.isdir(word) else "matches no image"
            raise UsageError(f"{option} '{word}' {what} ({', '.join(sorted(IMAGE_SUFFIXES))}; others go by name)")
    return chain.from_iterable(_lines(stdin) if word == STDIN and stdin else _meant(word) for word in found)


def image_folders(root: Path) -> tuple[dict[tuple[str, ...], list[Path]], Counter[str]]:
    """Folders below ``root`` that hold images, in order, each with them.

    Each folder is visited once, by whatever links lead there. Hidden files and folders are passed over.

    Returns:
        images by the names of the folders on the way; and how many other files there are, by suffix.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "cat").mkdir()
        >>> for name in ("1.jpg", "._1.jpg", "notes.txt"):
        ...     (root / "cat" / name).touch()
        >>> folders, others = image_folders(root)
        >>> {path: [file.name for file in files] for path, files in folders.items()}, dict(others)
        ({('cat',): ['1.jpg']}, {'.txt': 1})
    """
    found: dict[tuple[str, ...], list[Path]] = {}
    others: Counter[str] = Counter()
    visited = set()
    waiting: list[tuple[str, ...]] = [()]
    while waiting:
        above = waiting.pop()
        folder = root.joinpath(*above)
        if (real := os.path.realpath(folder)) in visited:
            continue
        visited.add(real)
        with os.scandir(folder) as entries:
            names = {entry.name: _is_folder(entry) for entry in entries if not is_hidden(entry.name)}
        files = sorted(name for name, inner in names.items() if not inner)
        if images := [folder / name for name in files if _suffix(name) in IMAGE_SUFFIXES]:
            found[above] = images
        others.update(_suffix(name) or "no suffix" for name in files if _suffix(name) not in IMAGE_SUFFIXES)
        waiting += [(*above, name) for name in reversed(in_order(name for name, inner in names.items() if inner))]
    return found, others


def counted(kinds: Counter[str]) -> str:
    """Numbers of files by suffix, the most first: ``".txt 2, .heic 1"``."""
    return ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())


def are_files(words: Iterable[str | Path]) -> bool:
    """Whether each word means one file, so that their number is known."""
    return not any(word == STDIN or os.path.isdir(word) or _is_pattern(word) for word in map(str, words))


# ---------------------------------------------------------------------- helpers


def _meant(word: str) -> Iterator[str]:
    if os.path.isdir(word):
        others: Counter[str] = Counter()
        yield from _inside(word, others=others)
        if others:
            log.info("'%s': passed over what is no image that is read: %s", word, counted(others))
    elif _is_pattern(word):
        parts = list(Path(word).parts)
        files = parts[-1] != "**"
        while parts[-1:] == ["**"]:  # all images in the folders that the rest matches
            parts.pop()
        fixed = next((i for i, part in enumerate(parts) if _is_magic(part)), len(parts))
        folder = os.path.join(*parts[:fixed]) if fixed else ""
        yield from _inside(folder or ".") if fixed == len(parts) else _matches(folder, parts[fixed:], {0}, files)
    else:
        yield word


def _lines(stdin: TextIO) -> Iterator[str]:
    for line in stdin:
        if name := line.rstrip("\r\n"):
            yield from _inside(name) if os.path.isdir(name) else [name]


def _is_pattern(word: str) -> bool:
    return _is_magic(word) and not os.path.lexists(word)  # a file may be called [1].png


def _is_magic(part: str) -> bool:
    return any(sign in part for sign in "*?[")


def _inside(folder: str, above: tuple[tuple[int, int], ...] = (), others: Counter[str] | None = None) -> Iterator[str]:
    """Images in a folder and its subfolders; a folder that cannot be read, too, for its reader to find out why."""
    files, folders, here = _entries(folder, others)
    if here in above:  # a link to a folder that we are in
        return
    yield from files
    for inner in folders:
        yield from _inside(inner, (*above, here) if here else above, others)


def _matches(
    folder: str, parts: Sequence[str], places: set[int], files: bool, above: tuple[tuple[int, int], ...] = ()
) -> Iterator[str]:
    """What a pattern matches in a folder; each file once, by whatever way the pattern gets there.

    Args:
        folder: where to look.
        parts: of the pattern.
        places: how many parts the folders on the way may have used up.
        files: whether files can match, not only folders.
        above: the folders on the way.
    """
    places = {last for place in places for last in _passed(parts, place)}
    names, folders, here = _entries(folder)
    if here is None:
        yield from names
    if here is None or here in above:
        return
    if files and len(parts) - 1 in places:
        yield from (name for name in names if fnmatch(os.path.basename(name), parts[-1]))
    for inner in folders:
        name = os.path.basename(inner)
        after = {place if parts[place] == "**" else place + 1 for place in places if fnmatch(name, parts[place])}
        if len(parts) in after:  # the folder itself is meant
            yield from _inside(inner, (*above, here))
        elif after:
            yield from _matches(inner, parts, after, files, (*above, here))


def _passed(parts: Sequence[str], place: int) -> Iterator[int]:
    """The place, and those after it that are reached through no folder at all."""
    yield place
    if parts[place] == "**":
        yield from _passed(parts, place + 1)


def _entries(folder: str, others: Counter[str] | None = None) -> tuple[list[str], list[str], tuple[int, int] | None]:
    """Images, folders, and which folder it is; one that cannot be read stands for itself, as the only file of none."""
    try:
        status = os.stat(folder or ".")
        with os.scandir(folder or ".") as found:
            names = {entry.name: _is_folder(entry) for entry in found if not is_hidden(entry.name)}
    except (FileNotFoundError, NotADirectoryError):
        return [], [], None
    except OSError:
        return [folder], [], None
    files = [name for name in names if not names[name] and _suffix(name) in IMAGE_SUFFIXES]
    folders = [name for name in names if names[name]]
    if others is not None:
        others.update(_suffix(name) or "no suffix" for name in names if not names[name] and name not in {*files})
    images, inner = ([os.path.join(folder, name) for name in sorted(kind)] for kind in (files, folders))
    return images, inner, (status.st_dev, status.st_ino)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
