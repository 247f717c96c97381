"""What exported files say of themselves, and what ties a head to its trunk."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from hlnet.model.base import TrainableNetwork
from hlnet.model.hierarchical import HierarchicalNet
from hlnet.store.export.runtimes import KEY
from hlnet.store.export.writers import Format
from hlnet.tree.io import tree_to_json
from hlnet.version import __version__

#: What a configuration says of the trunk.
TRUNK = ("backbone", "split_point", "backbone_args")


def describe(
    model: TrainableNetwork, format: Format = "onnx", with_gains: bool = False, fingerprint: str | None = None
) -> dict[str, Any]:
    """What an exported file says of itself.

    Returns:
        - ``hlnet``: the version that wrote it;
        - ``classes``, ``indices``: names and original indices, in the order of the logits; ``tree``: as in a
          ``*.tree.json`` file;
        - ``inputs``, ``outputs``: shape (``None`` where it is free) and meaning of each; the graph normalises images
          itself;
        - ``transform``: size, interpolation and crop of the images, and the mean and std that are in the graph;
        - ``probabilities``: ``"softmax"``, or ``"sigmoid"`` where classes were trained one against all, to be taken
          after dividing by ``temperature``; ``rejection``: score and threshold of "none of these", or ``None``;
        - ``config``, ``provenance``: as in the checkpoint; ``fingerprint``: the checkpoint's, where it came from one.
    """
    known = model.provenance
    batch = 1 if format == "executorch" else None
    inputs = {"images": {"shape": [batch, *model.transform.input_size], "values": "pixels in 0..1, RGB or grey"}}
    if with_gains:
        inputs["gains"] = {"shape": [batch, model.tree.num_nodes], "values": "one factor a node, 1 is neutral"}
    return {
        KEY: __version__,
        "classes": list(model.tree.classes),
        "indices": list(model.tree.indices),
        "inputs": inputs,
        "outputs": {"logits": {"shape": [batch, len(model.tree.classes)], "values": "one logit a class"}},
        "transform": model.transform.model_dump(mode="json"),
        "probabilities": "sigmoid" if known.one_vs_rest else "softmax",
        "temperature": known.temperature or 1.0,
        "rejection": known.rejection and known.rejection.model_dump(mode="json", include={"score", "threshold"}),
        "tree": tree_to_json(model.tree),
        "config": model.config.model_dump(mode="json"),
        "provenance": known.model_dump(mode="json"),
        "fingerprint": fingerprint,
    }


def describe_parts(about: dict[str, Any], trunk: str, shape: tuple[int, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the files of a network's trunk and of its head say of themselves.

    Both have ``part``, which is ``"trunk"`` or ``"head"``, and ``trunk``, the trunk's fingerprint. All experts of a
    network share the trunk, and its file says nothing of their classes.

    Args:
        about: what the whole network would say, see :func:`describe`.
        trunk: see :func:`trunk_fingerprint`.
        shape: of one image's features, ``(C, h, w)``.
    """
    images, *gains = about["inputs"].items()
    batch = images[1]["shape"][0]
    features = {"features": {"shape": [batch, *shape], "values": "the trunk's output"}}
    ours = {name: about["config"][name] for name in TRUNK}
    first = {
        KEY: about[KEY],
        "part": "trunk",
        "trunk": trunk,
        "inputs": dict([images]),
        "outputs": features,
        "transform": about["transform"],
        "config": ours,
    }
    return first, about | {"part": "head", "trunk": trunk, "inputs": features | dict(gains)}


def trunk_fingerprint(net: HierarchicalNet) -> str:
    """SHA-256 over what decides on the features of an image: the trunk's weights and shape, and the normalisation.

    Experts cut from one network have that of the network.

    Example:
        >>> import hlnet
        >>> net = hlnet.create_model("test_resnet", tree=["cat", "dog", "cow"], widths=[8], strides=[1])
        >>> trunk_fingerprint(net) == trunk_fingerprint(hlnet.cut_expert(net, "cat,dog"))
        True
    """
    wanted = net.transform.model_dump(mode="json", include={"input_size", "mean", "std"})
    config = net.config.model_dump(mode="json")
    shape = {name: config[name] for name in TRUNK}
    digest = hashlib.sha256(json.dumps([wanted, shape], sort_keys=True).encode())
    for name, tensor in sorted(net.trunk.state_dict().items()):
        if tensor.is_floating_point():  # a norm's count of batches changes no feature
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().float().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
