"""One safetensors file that carries a whole network: weights, config, tree, input transform, provenance.

Notable here: the file's metadata is ``{"format": "pt", "hlnet": <one versioned JSON string>}``, so that opening it
needs no pickle, no network and no other file; and the header alone tells which rows an expert wants.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hlnet.errors import BackboneError, CheckpointError, RunError, UsageError, one_line, with_article
from hlnet.files import replacing
from hlnet.model.base import TrainableNetwork
from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
from hlnet.model.plain import PlainConfig, PlainNet
from hlnet.model.provenance import Provenance
from hlnet.model.transform import InputTransform
from hlnet.store.locate import locate_model
from hlnet.store.remote_file import RemoteFile, in_parts
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.io import tree_from_json, tree_to_json
from hlnet.tree.rename import renamed

KEY, VERSION = "hlnet", 1


@dataclass(frozen=True)
class Header:
    """What a checkpoint says of itself, before any weight is read.

    Attributes:
        kind: ``"hierarchical"`` or ``"plain"``.
        config, tree, transform, provenance: as on the network.
        fingerprint: SHA-256 over the weights, taken when the file was written.
    """

    kind: Literal["hierarchical", "plain"]
    config: NetworkConfig | PlainConfig
    tree: ClassTree
    transform: InputTransform
    provenance: Provenance
    fingerprint: str

    @property
    def has_branches(self) -> bool:
        """Whether a tree of branches follows the trunk."""
        return self.kind == "hierarchical"


def save_checkpoint(model: TrainableNetwork, path: str | Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write the network to one ``.safetensors`` file, in one step.

    Args:
        model: the network.
        path: the file; an existing one is replaced.
        weights: what to write instead of the network's own, such as a moving average of them.

    Raises:
        UsageError: if the name does not end in ``.safetensors``, or ``model`` is an inference form.
        RunError: if the file cannot be written.

    Example:
        >>> import tempfile, hlnet
        >>> path = Path(tempfile.mkdtemp()) / "pets.safetensors"
        >>> save_checkpoint(hlnet.create_model("resnet18", tree=["cat", "dog"]), path)
        >>> load_checkpoint(path).tree.classes
        ('cat', 'dog')
    """
    if not isinstance(model, HierarchicalNet | PlainNet):
        raise UsageError(
            f"{with_article(type(model).__name__)} cannot be saved; save the network before hlnet.optimize"
        )
    weights = model.state_dict() if weights is None else weights
    kind: Literal["hierarchical", "plain"] = "plain" if isinstance(model, PlainNet) else "hierarchical"
    write_checkpoint(Header(kind, model.config, model.tree, model.transform, model.provenance, ""), weights, path)


def write_checkpoint(header: Header, weights: dict[str, Tensor], path: str | Path) -> None:
    """Write a header and weights to one ``.safetensors`` file, in one step; the fingerprint is taken here.

    Raises:
        UsageError, RunError: as :func:`save_checkpoint`.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UsageError(f"'{path}': a checkpoint's name ends in .safetensors")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    described = {
        "version": VERSION,
        "kind": header.kind,
        "config": header.config.model_dump(mode="json"),
        "tree": tree_to_json(header.tree),
        "transform": header.transform.model_dump(mode="json"),
        "provenance": header.provenance.model_dump(mode="json"),
        "fingerprint": _fingerprint(weights),
    }
    metadata = {"format": "pt", KEY: json.dumps(described, ensure_ascii=False)}
    try:
        with replacing(path) as draft:
            save_file(weights, draft, metadata=metadata)
    except (SafetensorError, OSError) as error:
        raise RunError(f"cannot write '{path}': {_reason(error)}") from error


def rename_nodes(path: str | Path, names: Mapping[str, str], out: str | Path) -> ClassTree:
    """Write a network's file with other names for some nodes; its weights, and all that was fitted to them, stay.

    Args:
        path: the network, as :func:`load_checkpoint` takes it.
        names: new names by node, :func:`hlnet.tree.rename.renamed`.
        out: the ``.safetensors`` file to write; it may be the network's own.

    Raises:
        UsageError, CheckpointError, RunError: as :func:`load_checkpoint` and :func:`save_checkpoint`.
        SelectionError, TreeError: as :func:`hlnet.tree.rename.renamed`.
    """
    with opened(path) as file:
        header = header_of(file, path)
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    tree = renamed(header.tree, names)
    write_checkpoint(replace(header, tree=tree), weights, out)
    return tree


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> TrainableNetwork:
    """Read a network back, in evaluation mode.

    Args:
        path: a file written by :func:`save_checkpoint`, or another name of a model: a folder, ``local-dir:FOLDER`` or
            ``hf-hub:OWNER/NAME``, see :func:`hlnet.store.locate.locate_model`.
        device: where to put the weights.

    Raises:
        UsageError: if there is no such file.
        CheckpointError: if it is damaged, truncated, not ours, or written by a newer version.
        RunError: if the model is on the Hub, and that cannot be reached.
    """
    with opened(path) as file:  # once: what a name on the Hub stands for may change
        model = build_without_weights(header_of(file, path))
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    fill(model, weights, path)
    return model.to(device)


def read_header(path: str | Path) -> Header:
    """What the file says of itself; reads no weights, and of a file on the Hub fetches no more than this.

    Raises:
        UsageError, CheckpointError, RunError: as :func:`load_checkpoint`.
    """
    with opened(in_parts(path)) as file:
        return header_of(file, path)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What the file says of itself, as it is written there.

    Raises:
        UsageError, CheckpointError, RunError: as :func:`load_checkpoint`.
    """
    with opened(in_parts(path)) as file:
        described: dict[str, Any] = json.loads(_metadata(file, path))
    return described


def header_of(file: Any, path: object) -> Header:
    """The header of a file that is open; errors name it as ``path``.

    Raises:
        CheckpointError: if it is not ours, damaged, or written by a newer version.
    """
    text = _metadata(file, path)
    try:
        data = json.loads(text)
        version = data["version"]
        if version != VERSION:
            raise CheckpointError(
                f"'{path}' has format version {version}, this hlnet reads version {VERSION}; update hlnet"
            )
        if data["kind"] not in ("hierarchical", "plain") or not isinstance(data["fingerprint"], str):
            raise CheckpointError(f"'{path}' has a damaged header: 'kind' or 'fingerprint' is wrong")
        config = (PlainConfig if data["kind"] == "plain" else NetworkConfig).model_validate(data["config"])
        tree = tree_from_json(data["tree"])
        if isinstance(config, NetworkConfig) and len(config.widths) != tree.num_levels:
            raise CheckpointError(
                f"'{path}' has a damaged header: widths {config.widths}, but {tree.num_levels} levels"
            )
        return Header(
            kind=data["kind"],
            config=config,
            tree=tree,
            transform=InputTransform.model_validate(data["transform"]),
            provenance=Provenance.model_validate(data["provenance"]),
            fingerprint=data["fingerprint"],
        )
    except CheckpointError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"'{path}' has a damaged header: {_reason(error)}") from error


def opened(path: str | Path | RemoteFile) -> Any:
    """``safetensors.safe_open`` on the file that a model's name stands for, with our errors.

    Args:
        path: the name; or what :func:`hlnet.store.remote_file.in_parts` found for it.

    Raises:
        UsageError, RunError: as :func:`hlnet.store.locate.locate_model`.
        CheckpointError: if it is no intact safetensors file.
    """
    if isinstance(path, RemoteFile):
        return path
    located = locate_model(path)
    try:
        return safe_open(located, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"'{path}' is not an intact safetensors file: damaged, cut short or of another kind; "
            "give a file written by hlnet train or make-expert"
        ) from error


def build_without_weights(header: Header) -> TrainableNetwork:
    """The network that a header describes, its branches without storage; :func:`fill` gives everything its values."""
    model: TrainableNetwork
    try:
        if isinstance(header.config, PlainConfig):
            model = PlainNet(header.config, header.tree)
        else:
            model = HierarchicalNet(header.config, header.tree, empty=True)
    except BackboneError as error:
        raise CheckpointError(f"this model cannot be built with the installed timm: {error}") from error
    model.transform, model.provenance = header.transform, header.provenance
    return model.eval()


def fill(model: TrainableNetwork, weights: dict[str, Tensor], path: str | Path) -> None:
    """Put the weights into an empty network.

    Raises:
        CheckpointError: as :func:`check_weights`.
    """
    check_weights(model, weights, path)
    # Where a tensor lies in a file depends on the header's length, and how sums are rounded on where a tensor lies in
    # memory: aligned as torch has it, the same weights give the same logits, whichever file they come from.
    aligned = {name: tensor if tensor.data_ptr() % 64 == 0 else tensor.clone() for name, tensor in weights.items()}
    model.load_state_dict(aligned, assign=True)


def check_weights(model: TrainableNetwork, weights: dict[str, Tensor], path: str | Path) -> None:
    """Whether the weights are this network's, by name, shape and kind; it may be one without storage.

    Raises:
        CheckpointError: if a tensor is missing, unknown or of another shape; ``path`` is named.
    """
    wanted = model.state_dict()
    problems = [f"lacks '{name}'" for name in wanted.keys() - weights.keys()]
    problems += [f"has an unknown '{name}'" for name in weights.keys() - wanted.keys()]
    for name, tensor in wanted.items():
        found = weights.get(name, tensor)
        if found.is_floating_point() != tensor.is_floating_point():
            problems.append(f"has '{name}' as {found.dtype} instead of {tensor.dtype}")
        elif found.shape != tensor.shape:
            problems.append(f"has '{name}' of shape {list(found.shape)} instead of {list(tensor.shape)}")
    if problems:
        raise CheckpointError(
            f"'{path}' does not fit its own header: it {sorted(problems)[0]} ({len(problems)} in all)"
        )


# ---------------------------------------------------------------------- helpers


def _metadata(file: Any, path: object) -> str:
    text: str | None = (file.metadata() or {}).get(KEY)
    if text is None:
        raise CheckpointError(
            f"'{path}' is a safetensors file, but not one of hlnet's; give a file written by hlnet train or make-expert"
        )
    return text


def _fingerprint(weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _reason(error: BaseException) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return one_line(error)
