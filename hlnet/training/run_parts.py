"""The network and the data of a run, as its settings say."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from hlnet.data.sources import load_data
from hlnet.data.tree_data import TreeData, eval_transform, train_transform
from hlnet.errors import UsageError, counted, some
from hlnet.model.base import TrainableNetwork
from hlnet.model.hierarchical import NetworkConfig
from hlnet.model.plain import PlainConfig, PlainNet
from hlnet.model.presets import PRESETS, create_model
from hlnet.model.trunk import check_size, load_trunk_weights, size_arguments
from hlnet.training.run_config import RunConfig
from hlnet.tree.class_tree import ClassTree

log = logging.getLogger("hlnet")


def build_network(run: RunConfig, tree: ClassTree) -> TrainableNetwork:
    """The network that a run trains, with its trunk's weights and its input transform.

    Raises:
        UsageError: for settings that do not go together, or images of a size that the backbone cannot take.
        BackboneError, RunError: as :func:`hlnet.create_model`.

    Example:
        >>> from hlnet.training.run_config import read_run_config
        >>> run = read_run_config(given={"network": {"backbone": "resnet18"}, "transform": {"input_size": [3, 64, 64]}})
        >>> build_network(run, ClassTree.from_nested(["cat", "dog"])).transform.input_size
        (3, 64, 64)
    """
    network = run.network
    if network.pretrained and network.trunk_weights:
        raise UsageError("pretrained and trunk_weights are two sources of the trunk's weights; give one")
    torch.manual_seed(run.train.seed)
    backbone = PRESETS.get(network.backbone, {}).get("backbone", network.backbone)
    arguments = size_arguments(backbone, _sides(run.transform.get("input_size"))) | network.backbone_args
    net: TrainableNetwork
    fields = [name for name in NetworkConfig.model_fields if name not in ("backbone", "backbone_args")]
    shape = {name: getattr(network, name) for name in fields}
    if network.plain:
        if unused := [name for name in fields if name != "split_point" and shape[name] is not None]:
            raise UsageError(f"{unused[0]} shapes branches, and a plain network has none; leave it or plain out")
        config = PlainConfig(backbone=backbone, split_point=network.split_point, backbone_args=arguments)
        net = PlainNet(config, tree, network.pretrained)
    else:
        net = create_model(network.backbone, tree, network.pretrained, backbone_args=arguments, **shape)
    if run.train.frozen_trunk and not (network.pretrained or network.trunk_weights):
        log.warning("the frozen trunk's weights are random; pretrained or trunk_weights give it some")
    if network.trunk_weights:
        load_trunk_weights(net.trunk_module, Path(network.trunk_weights), net.trunk_names, net.pretrained_names)
    if network.plain and (network.pretrained or network.trunk_weights):
        log.info("all weights but the classifier's are pretrained")
    net.transform = net.transform.adjusted(**run.transform)
    check_size(net.eval().features, net.transform)
    return net


def load_run_data(run: RunConfig, net: TrainableNetwork) -> tuple[TreeData, TreeData]:
    """Training images, augmented, and validation images of a run; what is left out of them is logged.

    Raises:
        UsageError: if there are no such data, or timm has no such augmentation.
        DataError: if data and tree have other classes, and ``allow_missing`` is off.

    Example:
        >>> from hlnet.training.run_config import read_run_config
        >>> run = read_run_config(given={"data": "digits", "network": {"backbone": "resnet18", "plain": True}})
        >>> net = build_network(run, ClassTree.from_nested([str(digit) for digit in range(10)]))
        >>> [len(images) for images in load_run_data(run, net)]
        [1437, 360]
    """
    assert run.data is not None
    augment = train_transform(net.transform, run.train.aa, run.train.scale, run.train.hflip, run.train.reprob)
    images = [load_data(run.data, split, run.data_root) for split in ("train", "val")]
    train_data = TreeData(images[0], net.tree, augment, subset=run.allow_missing)
    val_data = TreeData(images[1], net.tree, eval_transform(net.transform), subset=run.allow_missing)
    for data, name in ((train_data, "training"), (val_data, "validation")):
        if data.unknown:
            lacking = some(data.unknown)
            log.info(f"left out: {counted(data.left_out, f'{name} image')} of classes that the tree lacks ({lacking})")
        if data.absent:
            log.info(f"classes without {name} images: {some(data.absent)}")
    classes = len(net.tree.classes)
    log.info(
        f"{counted(len(train_data), 'training image')} and {counted(len(val_data), 'validation image')} of "
        f"{counted(classes, 'class')}"
    )
    return train_data, val_data


def _sides(size: object) -> int | tuple[int, int] | None:
    """Height and width in a setting of the input's size: one side, or channels, height and width."""
    if isinstance(size, list | tuple) and len(size) == 3:
        height, width = size[1:]
        return height if height == width else (height, width)
    return size if isinstance(size, int) else None
