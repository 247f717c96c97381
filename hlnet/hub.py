"""Where models live: a file, a folder, or a repository on the Hugging Face Hub; and how they get there.

Notable here: a model folder is what the Hub expects of a repository (``model.safetensors``, ``config.json``,
``README.md``), but the weights file says everything by itself. So only that file is ever fetched; the other two are for
people, and for the Hub's pages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, Unpack

from huggingface_hub import ModelCard, ModelHubMixin, errors, hf_hub_download, hf_hub_url
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # it is documented

from hlnet.errors import CheckpointError, HlnetError, RunError, UsageError, one_line
from hlnet.files import make_folder, replacing
from hlnet.model_names import BEST_FILE, FOLDER, HUB, MODEL_FILE, is_model_name

if TYPE_CHECKING:
    from hlnet.model_card import CardFacts
    from hlnet.network import HierarchicalNet
    from hlnet.plain import PlainNet

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
        raise UsageError(f"there is no model file '{name}'{_perhaps_on_the_hub(text)}")
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
        return hf_hub_url(self.repo_id, MODEL_FILE, revision=self.commit), build_hf_headers(**_ourselves())


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
        found = hf_hub_download(repo_id, MODEL_FILE, revision=revision, dry_run=True, **_ourselves())
    pinned = PinnedFile(text, repo_id, found.commit_hash, found.file_size)
    return pinned.download() if found.is_cached else pinned


def write_model_folder(model: HierarchicalNet | PlainNet, folder: str | Path, **card_facts: Unpack[CardFacts]) -> None:
    """Write a network as a finished product: ``model.safetensors``, ``config.json`` and ``README.md``, its model card.

    The weights file is what :func:`hlnet.save_checkpoint` writes, and enough by itself; ``config.json`` repeats what it
    says of itself. The folder is what the Hub expects of a repository, and every command takes it as a MODEL.

    Args:
        model: the network.
        folder: is made if need be. Files of these names are replaced, others stay.
        card_facts: what the card is to say, as :func:`hlnet.make_model_card` takes it.

    Raises:
        RunError: if a file cannot be written.

    Example:
        >>> import tempfile, hlnet
        >>> folder = Path(tempfile.mkdtemp())
        >>> net = hlnet.create_model("resnet18", tree={"cat": ["tabby", "siamese"], "saw": {}})
        >>> write_model_folder(net, folder, data="pets, 200 photographs", license="cc-by-4.0")
        >>> sorted(path.name for path in folder.iterdir())
        ['README.md', 'config.json', 'model.safetensors']
        >>> hlnet.load_checkpoint(folder).tree.classes
        ('tabby', 'siamese', 'saw')
    """
    from hlnet.model_card import make_model_card

    card = make_model_card(model, **card_facts)  # first: what is wrong with the facts must not leave half a folder
    _write_weights(model, Path(folder))
    with replacing(Path(folder) / "README.md") as draft:
        card.save(draft)


class HubModel(ModelHubMixin):
    """What networks take over from huggingface_hub's mixin: ``save_pretrained``, ``push_to_hub``, ``from_pretrained``.

    ``model_card_kwargs`` of the first two are what :func:`hlnet.make_model_card` takes. As the mixin has it,
    ``save_pretrained`` leaves a card alone that the folder holds already; :func:`write_model_folder` replaces it.
    """

    # Set, it keeps the mixin from gathering constructor arguments (a whole class tree) on every network.
    _hub_mixin_config: ClassVar[dict[str, Any]] = {"library_name": "hlnet"}  # type: ignore[misc] # never set on one

    @classmethod
    def from_pretrained(  # type: ignore[override] # nothing else is handed on to a constructor
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
    ) -> Self:
        """Load a network from the Hub or from a folder, in evaluation mode.

        The mixin would fetch ``config.json`` first and build the network from it; our weights file is enough.

        Args:
            pretrained_model_name_or_path: ``"owner/name"``, unless there is such a file or folder; or any name that
                :func:`locate_model` takes.
            force_download: fetch the file although the cache has it.
            token: for private and gated repositories; default: of HF_TOKEN, or of ``hf auth login``.
            cache_dir: default: huggingface_hub's.
            local_files_only: take what the cache has, and ask nobody.
            revision: branch, tag or commit; default: ``main``.

        Raises:
            UsageError: if there is no such model, or it is of the other kind, hierarchical or plain.
            CheckpointError: if the file is damaged, not ours, or written by a newer version.
            RunError: if the Hub cannot be reached, or does not let us have the file.
        """
        from hlnet.checkpoint import load_checkpoint, read_header
        from hlnet.plain import PlainNet

        name = str(pretrained_model_name_or_path)
        if not name.startswith(HUB) and (is_model_name(name) or Path(name).exists()):
            path = locate_model(name)
        else:
            repo_id, inline = _parsed(HUB + name.removeprefix(HUB))
            if inline and revision:
                raise UsageError(f"'{name}' names revision '{inline}', and revision='{revision}' another; give one")
            path = _download(
                repo_id,
                revision or inline,
                force_download=force_download,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
            )
        try:
            plain = read_header(path).kind == "plain"
            if plain != issubclass(cls, PlainNet):
                kind, home = ("plain", "PlainNet") if plain else ("hierarchical", "HierarchicalNet")
                raise UsageError(f"'{name}' holds a {kind} network: load it with {home}.from_pretrained")
            network = load_checkpoint(path)
        except CheckpointError as error:
            raise error if name == str(path) else CheckpointError(f"'{name}': {error}") from error
        assert isinstance(network, cls)
        return network

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write a model folder; with ``push_to_hub=True``, publish it too. Options are the mixin's.

        Raises:
            RunError: if a file cannot be written, or the Hub does not take it.
        """
        make_folder(save_directory)
        return super().save_pretrained(save_directory, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Publish the network: its model folder becomes a commit to the repository, which is made if need be.

        Args:
            repo_id: ``"owner/name"``.
            options: the mixin's: ``private``, ``token``, ``branch``, ``commit_message``, ``create_pr``,
                ``model_card_kwargs`` and so on.

        Returns:
            the commit's address.

        Raises:
            UsageError: if the name is malformed.
            RunError: if the Hub cannot be reached, or does not take it.
        """
        options["model_card_kwargs"] = {"repo_id": repo_id} | (options.get("model_card_kwargs") or {})
        with hub_errors(repo_id):
            return super().push_to_hub(repo_id, **options)

    def generate_model_card(self, **card_facts: Any) -> ModelCard:
        """The model card, see :func:`hlnet.make_model_card`."""
        from hlnet.model_card import make_model_card

        return make_model_card(self, **card_facts)  # type: ignore[arg-type] # it is a network

    def _save_pretrained(self, save_directory: Path) -> None:
        _write_weights(self, save_directory)  # type: ignore[arg-type] # it is a network


# ---------------------------------------------------------------------- helpers


def _write_weights(model: HierarchicalNet | PlainNet, folder: Path) -> None:
    """``model.safetensors``, and what it says of itself as ``config.json``."""
    from hlnet.checkpoint import read_metadata, save_checkpoint

    save_checkpoint(model, folder / MODEL_FILE)
    described = {"library_name": "hlnet"} | read_metadata(folder / MODEL_FILE)
    with replacing(folder / "config.json") as draft:
        draft.write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


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


def _perhaps_on_the_hub(name: str) -> str:
    likely = REPO_ID.fullmatch(name) and not name.endswith(".safetensors")
    return f"; for a model on the Hub, write '{HUB}{name}'" if likely else ""


def _text(name: str | Path) -> str:
    return name.as_posix() if isinstance(name, Path) else name


def _ourselves() -> dict[str, Any]:
    import hlnet

    return {"library_name": "hlnet", "library_version": hlnet.__version__}


def _download(repo_id: str, revision: str | None, **options: Any) -> Path:
    with hub_errors(repo_id, revision):
        return Path(hf_hub_download(repo_id, MODEL_FILE, revision=revision, **_ourselves(), **options))


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
