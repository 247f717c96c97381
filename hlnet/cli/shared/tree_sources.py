"""Where ``hlnet build-tree`` gets classes and hierarchies from: data sets, trunks, checkpoints, WordNet, a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hlnet.cli.shared import options, output
from hlnet.errors import UsageError
from hlnet.files import read_text
from hlnet.store.names import is_model_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hlnet.model.cost import Part
    from hlnet.model.trunk import Trunk
    from hlnet.tree.class_tree import ClassTree
    from hlnet.tree.construct.shape import Shape
    from hlnet.tree.hierarchy import Hierarchy


def shape_of(
    nodes: str | None,
    levels: int | None,
    budget: str | None,
    network: str,
    max_children: int | None,
    groups: Path | None,
) -> Shape:
    """The shape that the options ask for; the network is counted when its costs are needed, which takes a second."""
    from hlnet.tree.construct.budget import Budget
    from hlnet.tree.construct.shape import LEVELS, Shape

    def units() -> list[Part]:
        from hlnet.model.cost import unit_costs
        from hlnet.model.presets import PARALLEL, network_config

        if network in PARALLEL:
            raise UsageError(f"--network {network} has a chain for each class, whatever --budget is; name another")
        config = network_config(network, levels or LEVELS)
        if levels and levels != len(config.widths):
            raise UsageError(
                f"--levels {levels}: {network} has {len(config.widths)}; leave --levels out, or give "
                "--network a timm model"
            )
        return unit_costs(config)[0]

    limit = Budget.parse(budget) if budget else None
    return Shape(options.integers(nodes, "--nodes"), levels, limit, units, max_children, groups)


def classes_of(
    source: str, data_root: Path | None = None, format: str | None = None, header: bool | None = None
) -> ClassTree:
    """The classes of a tree, a list of names, a folder or a data set; whatever tree they are in."""
    from hlnet.tree.class_tree import ClassTree
    from hlnet.tree.construct.wordnet import with_names
    from hlnet.tree.io import read_tree

    if source.startswith("preset:") or Path(source).exists():
        return with_names(read_tree(source, format=format, header=header))
    from hlnet.data.sources import load_data

    return with_names(ClassTree.from_nested(list(load_data(source, "train", data_root).classes)))


def read(source: str, shape: Shape, format: str | None, header: bool | None) -> ClassTree:
    """SOURCE's own nesting; cut, if more is asked for than levels that its classes can be continued to."""
    from hlnet.tree.construct.wordnet import with_names
    from hlnet.tree.hierarchy import Hierarchy
    from hlnet.tree.io import read_tree

    if source == "digits":
        raise UsageError("'digits' has no nesting to read; give --method parallel, or --method cluster --nodes 2,5")
    found = read_tree(source, format=format, header=header)
    tree = with_names(found)
    if tree is not found:
        output.hint(
            f"the classes are called by WordNet ids: '{found.classes[0]}' is named '{tree.classes[0]}', and so on"
        )
    if tree.num_levels == 1 and len(tree.classes) > 2:
        output.hint("all classes lie side by side, in no groups; --method wordnet, cluster or llm finds some")
    reshaped = shape.reshaped(tree)
    if reshaped is not None or not shape.levels:
        return reshaped or tree
    return Hierarchy.of(tree).to_tree(shape.levels)


def control(classes: ClassTree, shape: Shape, seed: int | None) -> ClassTree:
    """A tree that knows nothing of the classes: balanced, or random by a seed."""
    from hlnet.tree.construct.controls import balanced_tree, random_tree

    nodes = shape.nodes_for(len(classes.leaves))
    return balanced_tree(classes, nodes) if seed is None else random_tree(classes, nodes, seed)


def check_linkage(linkage: str, distances: bool) -> None:
    """Refuse a linkage before anything is computed for it."""
    from hlnet.tree.construct.cluster import check_linkage

    check_linkage(linkage, distances)


def feature_trunk(
    backbone: str,
    split_point: int | None,
    pretrained: bool,
    weights: Path | None,
    backbone_arg: list[str],
    img_size: int | None,
    mean: str | None,
    std: str | None,
    device: str,
    seed: int,
) -> Trunk:
    """The trunk whose features tell the classes apart."""
    import torch

    from hlnet.model.trunk import Trunk, load_trunk_weights, size_arguments

    torch.manual_seed(seed)
    arguments = size_arguments(backbone, img_size) | options.settings(backbone_arg, "--backbone-arg")
    trunk = Trunk(backbone, split_point, pretrained, arguments)
    if weights:
        load_trunk_weights(trunk.model, weights)
    elif not pretrained:
        output.hint("the trunk is untrained; --pretrained or --trunk-weights makes its features more telling")
    given = {"mean": options.numbers(mean, "--mean"), "std": options.numbers(std, "--std")}
    trunk.transform = trunk.transform.adjusted(img_size, **given)
    return trunk.to(options.pick_device(device))


def feature_means(
    source: str, data_root: Path | None, trunk: Trunk, grid: int, batch_size: int, workers: int
) -> tuple[ClassTree, Tensor]:
    """The classes of a data set, and the mean features of each: ``[K, D]``."""
    from hlnet.data.sources import load_data
    from hlnet.data.tree_data import TreeData, eval_transform, loader
    from hlnet.tree.class_tree import ClassTree
    from hlnet.tree.construct.cluster import class_means
    from hlnet.tree.construct.wordnet import with_names

    images = load_data(source, "train", data_root)
    classes = with_names(ClassTree.from_nested(list(images.classes)))
    batches = loader(TreeData(images, classes, eval_transform(trunk.transform)), batch_size, workers)
    with output.progress() as bar:
        task = bar.add_task("features", total=len(batches))
        return classes, class_means(trunk, batches, len(classes.leaves), grid, on_batch=lambda: bar.advance(task))


def by_features(classes: ClassTree, means: Tensor, linkage: str | None) -> Hierarchy:
    """The dendrogram of class means."""
    from hlnet.tree.construct.cluster import dendrogram, merge_features

    return _named(dendrogram(merge_features(means, linkage or "ward", standardized=True), classes.classes), classes)


def by_weights(source: str, backbone: str, pretrained: bool, weights: Path | None, linkage: str | None) -> Hierarchy:
    """The dendrogram of a plain classifier's rows: of a checkpoint, or of a timm model with these classes."""
    from hlnet.model.plain import PlainNet
    from hlnet.model.trunk import create_backbone, load_trunk_weights
    from hlnet.tree.construct.cluster import classifier_rows, dendrogram, merge_features

    if is_model_name(source):
        net = options.load_model(source, "cpu")
        if not isinstance(net, PlainNet):
            raise UsageError(f"'{source}' has leaves in place of a classifier's rows; --by confusions takes it")
        merges = merge_features(classifier_rows(net.model), linkage or "ward")
        return _named(dendrogram(merges, net.tree.classes), net.tree)
    if not pretrained and not weights:
        raise UsageError("--by weights needs a trained classifier: a plain checkpoint as SOURCE, or --pretrained")
    leaves = sorted(classes_of(source).leaves, key=lambda leaf: leaf.index or 0)
    if [leaf.index for leaf in leaves] != list(range(len(leaves))):
        raise UsageError(f"the classes of '{source}' must be numbered from 0, as the classifier's rows are")
    model = create_backbone(backbone, {"num_classes": len(leaves)}, pretrained)
    if weights:
        load_trunk_weights(model, weights)
    merges = merge_features(classifier_rows(model), linkage or "ward")
    return dendrogram(merges, [leaf.name for leaf in leaves], [leaf.id for leaf in leaves])


def by_confusions(
    model: Path, source: str, data_root: Path | None, linkage: str | None, batch_size: int, workers: int, device: str
) -> Hierarchy:
    """The dendrogram of what a trained network takes for what, on a data set's validation images."""
    from hlnet.data.sources import load_data
    from hlnet.data.tree_data import TreeData, eval_transform, loader
    from hlnet.evaluation.logits import logits_of
    from hlnet.evaluation.metrics.accuracy import confusion_matrix
    from hlnet.tree.construct.cluster import dendrogram, merge_confusions

    net = options.load_optimized(model, device)
    images = TreeData(load_data(source, "val", data_root), net.tree, eval_transform(net.transform), subset=True)
    batches = loader(images, batch_size, workers)
    with output.progress() as bar:
        task = bar.add_task("confusions", total=len(batches))
        (logits,), labels = logits_of(net, batches, on_batch=lambda: bar.advance(task))
    merges = merge_confusions(confusion_matrix(logits, labels), linkage or "average")
    return _named(dendrogram(merges, net.tree.classes), net.tree)


def by_wordnet(classes: ClassTree, folder: Path | None, download: bool) -> tuple[Hierarchy, list[str]]:
    """WordNet's hierarchy over the classes, found by id where they have one, else by name; and what was decided."""
    from hlnet.tree.construct.wordnet import classes_hierarchy
    from hlnet.tree.dictionary import WordNet

    if download:
        WordNet.download()
    try:
        dictionary = WordNet(folder)
    except UsageError as error:
        raise UsageError(f"{error} (--wordnet FOLDER, --download)") from error
    return classes_hierarchy(classes, dictionary)


def name_groups(tree: ClassTree) -> tuple[ClassTree, list[str]]:
    """The tree, groups named by WordNet's word for what is in them where it has one; and which."""
    from hlnet.tree.construct.wordnet import name_groups
    from hlnet.tree.hierarchy import Hierarchy
    from hlnet.tree.vocabulary import default_wordnet

    hierarchy, wordnet = Hierarchy.of(tree), default_wordnet()
    if wordnet is None:
        return tree, []
    try:
        notes = name_groups(hierarchy, tree, wordnet)
    except UsageError:  # it knows none of the classes
        return tree, []
    return hierarchy.to_tree(tree.num_levels), notes


def write_prompt(path: Path, classes: ClassTree, nodes: Sequence[int] | None) -> None:
    """The question to a language model, for any chat window."""
    from hlnet.files import replacing
    from hlnet.tree.llm.nest import tree_prompt

    with replacing(path) as draft:
        draft.write_text(tree_prompt(classes.classes, nodes), encoding="utf-8")


def by_language_model(
    classes: ClassTree,
    nodes: Sequence[int] | None,
    answer: Path | None,
    model: str | None,
    base_url: str | None,
    means: Tensor | None,
) -> tuple[ClassTree, list[str]]:
    """What a language model answers, in a file or when it is asked; and what was mended."""
    from hlnet.tree.llm.nest import llm_tree
    from hlnet.tree.llm.server import ask_server

    reply = read_text(answer, f"--answer '{answer}'") if answer else None

    def ask(messages: list[dict[str, str]]) -> str:
        if reply is not None:
            return reply
        output.hint(f"asking {model} …")
        return ask_server(messages, str(model), base_url, on_retry=output.hint)

    similarity = None
    if means is not None:
        centred = means - means.mean(dim=0)
        unit = centred / centred.norm(dim=1, keepdim=True).clamp(min=1e-12)
        similarity = unit @ unit.T
    return llm_tree(classes, ask, nodes, rounds=0 if answer else 2, similarity=similarity)


def _named(hierarchy: Hierarchy, classes: ClassTree) -> Hierarchy:
    hierarchy.rename_classes(classes)
    return hierarchy
