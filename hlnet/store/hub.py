"""Model folders, and how they get to the Hugging Face Hub.

Notable here: a model folder is what the Hub expects of a repository (``model.safetensors``, ``config.json``,
``README.md``), but the weights file says everything by itself. So only that file is ever fetched; the other two are for
people, and for the Hub's pages.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Unpack

from huggingface_hub import HfApi

from hlnet.files import replacing
from hlnet.store.locate import hub_errors, library
from hlnet.store.names import MODEL_FILE

if TYPE_CHECKING:
    from hlnet.model.base import TrainableNetwork
    from hlnet.store.model_card import CardFacts


def write_model_folder(model: TrainableNetwork, folder: str | Path, **card_facts: Unpack[CardFacts]) -> None:
    """Write a network as a finished product: ``model.safetensors``, ``config.json`` and ``README.md``, its model card.

    The weights file is what :func:`hlnet.save_checkpoint` writes, and enough by itself; ``config.json`` repeats what it
    says of itself. The folder is what the Hub expects of a repository, and every command takes it as a MODEL.

    Args:
        model: the network.
        folder: is made if need be. Files of these names are replaced, others stay.
        card_facts: what the card is to say, as :func:`hlnet.store.model_card.make_model_card` takes it.

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
    from hlnet.store.model_card import make_model_card

    card = make_model_card(model, **card_facts)  # first: what is wrong with the facts must not leave half a folder
    _write_weights(model, Path(folder))
    with replacing(Path(folder) / "README.md") as draft:
        card.save(draft)


def push_to_hub(
    model: TrainableNetwork,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    branch: str | None = None,
    commit_message: str = "Push model with hlnet",
    create_pr: bool | None = None,
    **card_facts: Any,
) -> str:
    """Publish a network: its model folder becomes a commit to a repository on the Hub, which is made if need be.

    Args:
        model: the network.
        repo_id: ``"owner/name"``.
        private: whether a new repository is private; default: the organisation's setting, else public.
        token: default: the one of ``HF_TOKEN``, or of ``hf auth login``.
        branch: to commit to; default: ``main``.
        commit_message: its first line.
        create_pr: open a pull request instead of committing.
        card_facts: what the model card is to say, as :func:`hlnet.store.model_card.make_model_card` takes it.

    Returns:
        the commit's address.

    Raises:
        UsageError: if the name is malformed.
        RunError: if the Hub cannot be reached, or does not take it.
    """
    with hub_errors(repo_id), TemporaryDirectory() as folder:
        write_model_folder(
            model, folder, repo_id=repo_id, **card_facts
        )  # first: wrong facts must not leave an empty repository
        api = HfApi(token=token, **library())
        made = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=made,
            folder_path=folder,
            commit_message=commit_message,
            revision=branch,
            create_pr=create_pr,
        )
        return str(commit)


# ---------------------------------------------------------------------- helpers


def _write_weights(model: TrainableNetwork, folder: Path) -> None:
    """``model.safetensors``, and what it says of itself as ``config.json``."""
    from hlnet.store.checkpoint import read_metadata, save_checkpoint

    save_checkpoint(model, folder / MODEL_FILE)
    described = {"library_name": "hlnet"} | read_metadata(folder / MODEL_FILE)
    with replacing(folder / "config.json") as draft:
        draft.write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
