"""Writing files so that no reader ever sees half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hlnet.errors import RunError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes ``path``'s place in one step.

    On any error the temporary file is removed and whatever stood at ``path`` stays as it was.

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
    draft = _draft(target)
    try:
        yield draft
        # mkstemp makes the file private; give it the mode that open() would have.
        umask = os.umask(0)
        os.umask(umask)
        draft.chmod(0o666 & ~umask)
        with draft.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(draft, target)
        _settle(target.parent)
    except OSError as error:
        raise RunError(f"cannot write '{target}': {error.strerror or error}") from error
    finally:
        draft.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Find out that a file cannot be written before the work that it is to hold; what stands there stays.

    Raises:
        RunError: as :func:`replacing`.
    """
    _draft(Path(path)).unlink(missing_ok=True)


def _draft(target: Path) -> Path:
    """A new empty file beside the target."""
    if target.is_dir():
        raise RunError(f"cannot write '{target}': it is a folder; give a file name")
    make_folder(target.parent)
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".hlnet-", suffix=target.suffix)
    except OSError as error:
        raise RunError(f"cannot write '{target}': {error.strerror or error}") from error
    os.close(handle)
    return Path(name)


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
