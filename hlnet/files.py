"""Reading small text files, and writing files so that no reader ever sees half of one.

Notable here: a draft lies in a folder of its own beside its target. What a library writes on the way, under names that
only it knows, lies there too, and is gone or found with it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hlnet.errors import HlnetError, RunError, UsageError, did_you_mean

#: Names of image files end so; :data:`hlnet.data.pixels.FORMATS` are the formats behind them.
IMAGE_SUFFIXES = frozenset(
    {
        ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm",
        ".pbm", ".pnm", ".jp2", ".j2k",
    }
)  # fmt: skip
#: How the names of folders with drafts begin.
DRAFTS = ".hlnet-"


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's: macOS and Windows leave such behind.

    >>> is_hidden("._0.jpg"), is_hidden("__MACOSX"), is_hidden("Thumbs.db"), is_hidden("cat.jpg")
    (True, True, True, False)
    """
    return name.startswith(".") or name in {"__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir"}


def in_order(names: Iterable[str]) -> list[str]:
    """Names in alphabetical order; where all of them are numbers, in that of the numbers.

    >>> in_order(["10", "9", "1"]), in_order(["10", "9", "a"])
    (['1', '9', '10'], ['10', '9', 'a'])
    """
    every = list(names)
    if all(name.isascii() and name.isdecimal() for name in every):
        return sorted(every, key=lambda name: (int(name), name))
    return sorted(every)


def read_text(path: str | Path, name: str | None = None, error: type[HlnetError] = UsageError) -> str:
    """The text of a small file in UTF-8, with or without a byte order mark.

    Args:
        path: the file.
        name: what messages call it; default: its path in quotes.
        error: what is raised.

    Raises:
        UsageError: or ``error``, if the file cannot be read.

    >>> read_text("no/such.txt")
    Traceback (most recent call last):
    hlnet.errors.UsageError: 'no/such.txt' cannot be read: No such file or directory
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as cause:
        reason = getattr(cause, "strerror", None) or "not a text file"
        name = f"'{path}'" if name is None else name
        raise error(f"{name} cannot be read: {reason}") from cause


def nearby(path: str | Path, suffixes: Collection[str]) -> str:
    """``" Did you mean 'pets.json' in 'runs'?"``: files or folders that are called nearly like a missing one.

    Args:
        path: the missing one.
        suffixes: of the files to look for.

    >>> nearby("no/such.txt", [".txt"])
    " There is no folder 'no'."
    """
    folder, name = os.path.split(os.path.expanduser(path))
    try:
        entries = [*os.scandir(folder or ".")]
    except OSError:
        return f" There is no folder '{folder}'."
    names = [entry.name for entry in entries if entry.is_dir() or entry.name.lower().endswith(tuple(suffixes))]
    near = did_you_mean(name, names)
    return near.removesuffix("?") + f" in '{folder}'?" if near and folder else near


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield the path of a draft, yet to be written; on success it takes ``path``'s place in one step.

    On any error the draft is removed and whatever stood at ``path`` stays as it was.

    Raises:
        RunError: if the file cannot be written; an OSError within the block counts as that.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "note.txt"
    >>> with replacing(target) as draft:
    ...     _ = draft.write_text("whole")
    >>> target.read_text()
    'whole'
    """
    target = Path(path)
    if target.is_dir():
        raise RunError(f"cannot write '{target}': it is a folder; give a file name")
    with folder_beside(target) as folder:
        draft = folder / target.name
        try:
            yield draft
            # Some libraries make their files private; give it the mode that open() would have.
            umask = os.umask(0)
            os.umask(umask)
            draft.chmod(0o666 & ~umask)
            with draft.open("r+b") as written:  # only what is open for writing can be synced everywhere
                os.fsync(written.fileno())
            os.replace(draft, target)
            _settle(target.parent)
        except OSError as error:
            raise RunError(f"cannot write '{target}': {error.strerror or error}") from error


def check_writable(path: str | Path) -> None:
    """Find out that a file cannot be written before the work that it is to hold; what stands there stays.

    Raises:
        RunError: as :func:`replacing`.
    """
    target = Path(path)
    if target.is_dir():
        raise RunError(f"cannot write '{target}': it is a folder; give a file name")
    with folder_beside(target):
        pass


@contextmanager
def folder_beside(path: str | Path) -> Iterator[Path]:
    """Yield a new folder beside ``path``, which is private and hidden, and gone in the end.

    Raises:
        RunError: if it cannot be made.
    """
    target = Path(path)
    make_folder(target.parent)
    try:
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=DRAFTS))
    except OSError as error:
        raise RunError(f"cannot write '{target}': {error.strerror or error}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_drafts(folder: Path) -> None:
    """Remove what processes that were killed while writing have left in a folder, where none is at work."""
    for left in folder.glob(f"{DRAFTS}*"):
        shutil.rmtree(left, ignore_errors=True)


def _settle(folder: Path) -> None:
    """Let the new name outlive a power cut too, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def make_folder(path: str | Path) -> None:
    """Make a folder, and those above it, unless it is there.

    Raises:
        RunError: if that cannot be.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise RunError(f"cannot write into '{path}': it, or what it lies in, is a file and no folder") from error
    except OSError as error:
        raise RunError(f"cannot write into '{path}': {error.strerror or error}") from error
