"""Locations of models: a file, a folder, or a repository on the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import errors, hf_hub_download, hf_hub_url
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # it is documented

from hlnet.errors import HlnetError, RunError, UsageError, one_line
from hlnet.files import nearby
from hlnet.store.names import BEST_FILE, FOLDER, HUB, MODEL_FILE
from hlnet.version import __version__

REPO_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)  # huggingface_hub knows the finer rules

LOG_IN = "log in (hf auth login) or set HF_TOKEN"


def locate_model(name: str | Path) -> Path:
    """The file that a model's name stands for.

    Args:
        name: a ``.safetensors`` file; a folder that holds ``model.safetensors`` or, as a run does, else
            ``best.safetensors``; ``local-dir:FOLDER``, which is the same; or ``hf-hub:OWNER/NAME``, where
            ``@REVISION`` (a branch, tag or commit) may follow: that file is fetched into huggingface_hub's cache,
            unless it is there and current.

    Raises:
        UsageError: if the name is malformed, or there is no such file, folder, repository or revision.
        RunError: if the Hub cannot be reached, or does not let us have the file.

    Example:
        >>> import tempfile
        >>> run = Path(tempfile.mkdtemp())
        >>> (run / "best.safetensors").touch()
        >>> locate_model(run).name, locate_model(f"local-dir:{run}").name
        ('best.safetensors', 'best.safetensors')
    """
    text = _text(name)
    if text.startswith(HUB):
        return _download(*_parsed(text))
    if text.startswith(FOLDER):
        folder = Path(text.removeprefix(FOLDER)).expanduser()
        if text == FOLDER or not folder.is_dir():
            raise UsageError(f"'{text}': there is no folder '{text.removeprefix(FOLDER)}'; write {FOLDER}FOLDER")
        return _inside(folder, text)
    path = Path(name)
    if text and path.is_dir():
        return _inside(path, text)
    if not path.is_file():
        near = nearby(text, [".safetensors"])
        raise UsageError(f"there is no model file '{name}'{_expected(text)}{near and f'.{near}'}")
    return path


@dataclass(frozen=True)
class PinnedFile:
    """A model's file on the Hub, at one commit: whatever its revision comes to mean, this stays the same file.

    Attributes:
        name: as the user wrote it.
        repo_id: ``OWNER/NAME``.
        commit: the one that the revision stood for.
        size: bytes; ``None`` if the Hub does not tell.
    """

    name: str
    repo_id: str
    commit: str
    size: int | None

    def download(self) -> Path:
        """The whole file, in huggingface_hub's cache.

        Raises:
            RunError: if the Hub cannot be reached, or does not let us have the file.
        """
        return _download(self.repo_id, self.commit)

    def request(self) -> tuple[str, dict[str, str]]:
        """Where to ask for it, and with which headers; these may hold the user's token, for that host alone."""
        return hf_hub_url(self.repo_id, MODEL_FILE, revision=self.commit), build_hf_headers(**library())


def locate_or_pin(name: str | Path) -> Path | PinnedFile:
    """As :func:`locate_model`, but nothing is fetched: what the cache lacks is only pinned to its commit.

    Raises:
        UsageError, RunError: as :func:`locate_model`.
    """
    text = _text(name)
    if not text.startswith(HUB):
        return locate_model(name)
    repo_id, revision = _parsed(text)
    with hub_errors(repo_id, revision):
        found = hf_hub_download(repo_id, MODEL_FILE, revision=revision, dry_run=True, **library())
    pinned = PinnedFile(text, repo_id, found.commit_hash, found.file_size)
    return pinned.download() if found.is_cached else pinned


def _inside(folder: Path, name: str) -> Path:
    for file in (folder / MODEL_FILE, folder / BEST_FILE):
        if file.is_file():
            return file
    raise UsageError(f"there is no model file '{name}': it is a folder that holds neither {MODEL_FILE} nor {BEST_FILE}")


def _parsed(name: str) -> tuple[str, str | None]:
    """Repository and revision of ``hf-hub:OWNER/NAME@REVISION``."""
    repo_id, at, revision = name.removeprefix(HUB).partition("@")
    if not REPO_ID.fullmatch(repo_id) or (at and not revision):
        raise UsageError(f"'{name}' is no model's name on the Hub; write {HUB}OWNER/NAME or {HUB}OWNER/NAME@REVISION")
    return repo_id, revision or None


def _expected(name: str) -> str:
    """The rest of the message on a file that is not there."""
    if REPO_ID.fullmatch(name) and not name.endswith(".safetensors"):
        return f"; for a model on the Hub, write '{HUB}{name}'"
    return f"; expected a .safetensors file, a run or model folder, or {HUB}OWNER/NAME"


def _text(name: str | Path) -> str:
    return name.as_posix() if isinstance(name, Path) else name


def library() -> dict[str, Any]:
    """How we introduce ourselves to the Hub."""
    return {"library_name": "hlnet", "library_version": __version__}


def _download(repo_id: str, revision: str | None, **options: Any) -> Path:
    with hub_errors(repo_id, revision):
        return Path(hf_hub_download(repo_id, MODEL_FILE, revision=revision, **library(), **options))


@contextmanager
def hub_errors(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Whatever the Hub, the way there or the disk has to say, in one line of ours."""
    try:
        yield
    except (HlnetError, TypeError):  # a TypeError is a call that nobody foresaw
        raise
    except Exception as error:
        # A token that cannot be sent is quoted by the HTTP library; no traceback shall show it either.
        raise _explained(error, repo_id, revision) from (None if "Bearer" in str(error) else error)


def _explained(error: BaseException, repo_id: str, revision: str | None) -> HlnetError:
    """Our error for one of huggingface_hub's."""
    if isinstance(error, errors.LocalEntryNotFoundError):
        if error.__cause__ is None:
            return RunError(f"'{repo_id}' is not in the cache, and the Hub was not to be asked (local_files_only)")
        error = error.__cause__  # it is only said that the cache does not help either
    if isinstance(error, errors.OfflineModeIsEnabled):
        return RunError(f"'{repo_id}' is not at hand: it needs the Hub, which HF_HUB_OFFLINE forbids to ask")
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"'{repo_id}' is no repository's name; write OWNER/NAME")
    if isinstance(error, errors.GatedRepoError):
        return RunError(f"'{repo_id}' is gated: ask for access on its page, then {LOG_IN}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return UsageError(f"the Hub has no model '{repo_id}' for you: check the name; if it is private, {LOG_IN}")
    if isinstance(error, errors.RevisionNotFoundError):
        return UsageError(f"'{repo_id}' has no revision '{revision}'; give a branch, a tag or a commit")
    if isinstance(error, errors.EntryNotFoundError):
        return UsageError(f"'{repo_id}' holds no {MODEL_FILE}: it is no model of hlnet's")
    if isinstance(error, errors.HfHubHTTPError):
        status, said = error.response.status_code, one_line(error.server_message or "")
        mend = f"{LOG_IN} with a token that may do this" if status in (401, 403) else "try again later"
        return RunError(f"the Hub refused '{repo_id}' with status {status}{f' ({said})' if said else ''}; {mend}")
    said = "the token cannot be sent" if "Bearer" in str(error) else one_line(error, 300)
    return RunError(f"'{repo_id}' and the Hub: {type(error).__name__}: {said}")
