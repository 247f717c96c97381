"""Sources of ``hlnet build-tree``: classes and hierarchies from data sets, trunks, checkpoints, WordNet, a model."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Material:
    """The options that say which classes and images a tree is built from.

    Attributes:
        source, data_root, format, header: as the command line has them.
        batch_size, workers, device: for images that run through a network.
    """

    source: str
    data_root: Path | None = None
    format: str | None = None
    header: bool | None = None
    batch_size: int = 64
    workers: int = 2
    device: str = "auto"

    def classes(self) -> ClassTree:
        """The classes of a tree, a list of names, a folder or a data set; in whichever tree they are."""
        from hlnet.tree.class_tree import ClassTree
        from hlnet.tree.construct.wordnet import with_names
        from hlnet.tree.io import read_tree

        if self.source.startswith("preset:") or Path(self.source).exists():
            return with_names(read_tree(self.source, format=self.format, header=self.header))
        from hlnet.data.sources import load_data

        return with_names(ClassTree.from_nested(list(load_data(self.source, "train", self.data_root).classes)))


@dataclass(frozen=True)
class TrunkOptions:
    """The options of the trunk whose features classes are compared by."""

    backbone: str
    split_point: str | None
    pretrained: bool
    weights: Path | None
    backbone_arg: list[str]
    img_size: int | None
    mean: str | None
    std: str | None
    grid: int
    seed: int

    @property
    def trained(self) -> bool:
        """Whether its features come from a training."""
        return self.pretrained or self.weights is not None

    def trunk(self, device: str) -> Trunk:
        """The trunk, on the device."""
        import torch

        from hlnet.model.trunk import Trunk, load_trunk_weights, size_arguments

        torch.manual_seed(self.seed)
        arguments = size_arguments(self.backbone, self.img_size)
        arguments |= options.settings(self.backbone_arg, "--backbone-arg")
        trunk = Trunk(self.backbone, self.split_point, self.pretrained, arguments)
        if self.weights:
            load_trunk_weights(trunk.model, self.weights)
        elif not self.pretrained:
            output.hint("the trunk is untrained; --pretrained or --trunk-weights makes its features more informative")
        given = {"mean": options.numbers(self.mean, "--mean"), "std": options.numbers(self.std, "--std")}
        trunk.transform = trunk.transform.adjusted(self.img_size, **given)
        return trunk.to(options.pick_device(device))

    def class_means(self, material: Material) -> tuple[ClassTree, Tensor]:
        """The classes of a data set, and the mean features of each: ``[K, D]``."""
        from hlnet.data.sources import load_data
        from hlnet.data.tree_data import TreeData, eval_transform, loader
        from hlnet.tree.class_tree import ClassTree
        from hlnet.tree.construct.cluster import class_means
        from hlnet.tree.construct.wordnet import with_names

        trunk = self.trunk(material.device)
        images = load_data(material.source, "train", material.data_root)
        classes = with_names(ClassTree.from_nested(list(images.classes)))
        data = TreeData(images, classes, eval_transform(trunk.transform))
        batches = loader(data, material.batch_size, material.workers)
        with output.progress() as bar:
            task = bar.add_task("features", total=len(batches))
            on_batch = lambda: bar.advance(task)  # noqa: E731
            return classes, class_means(trunk, batches, len(classes.leaves), self.grid, on_batch=on_batch)


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


def read(material: Material, shape: Shape) -> ClassTree:
    """SOURCE's own nesting; cut to the shape, unless that only continues classes to more levels."""
    from hlnet.tree.construct.wordnet import with_names
    from hlnet.tree.hierarchy import Hierarchy
    from hlnet.tree.io import read_tree

    if material.source == "digits":
        raise UsageError("'digits' has no nesting to read; give --method parallel, or --method cluster --nodes 2,5")
    original = read_tree(material.source, format=material.format, header=material.header)
    tree = with_names(original)
    if tree is not original:
        output.hint(
            f"the classes are called by WordNet ids: '{original.classes[0]}' is named '{tree.classes[0]}', and so on"
        )
    if tree.num_levels == 1 and len(tree.classes) > 2:
        output.hint("the classes have no groups; --method wordnet, cluster or llm makes some")
    reshaped = shape.reshaped(tree)
    if reshaped is not None or not shape.levels:
        return reshaped or tree
    return Hierarchy.of(tree).to_tree(shape.levels)


def baseline(classes: ClassTree, shape: Shape, seed: int | None) -> ClassTree:
    """A baseline tree, which ignores what the classes are: balanced, or random by a seed."""
    from hlnet.tree.construct.baselines import balanced_tree, random_tree

    nodes = shape.nodes_for(len(classes.leaves))
    return balanced_tree(classes, nodes) if seed is None else random_tree(classes, nodes, seed)


def clustered(
    material: Material, trunk: TrunkOptions, by: str | None, model: Path | None, linkage: str | None
) -> Hierarchy:
    """The dendrogram of a clustering by features, weights or confusions."""
    if by == "weights":
        return by_weights(material.source, trunk, linkage)
    if by == "confusions":
        if model is None:
            raise UsageError("--by confusions needs --model, the trained network whose mistakes are counted")
        return by_confusions(model, material, linkage)
    return by_features(*trunk.class_means(material), linkage)


def by_features(classes: ClassTree, means: Tensor, linkage: str | None) -> Hierarchy:
    """The dendrogram of class means."""
    from hlnet.tree.construct.cluster import dendrogram, merge_features

    return _named(dendrogram(merge_features(means, linkage or "ward", standardized=True), classes.classes), classes)


def by_weights(source: str, trunk: TrunkOptions, linkage: str | None) -> Hierarchy:
    """The dendrogram of a plain classifier's rows: of a checkpoint, or of a timm model with these classes."""
    from hlnet.model.plain import PlainNet
    from hlnet.model.trunk import create_backbone, load_trunk_weights
    from hlnet.tree.construct.cluster import classifier_rows, dendrogram, merge_features

    if is_model_name(source):
        net = options.load_model(source, "cpu")
        if not isinstance(net, PlainNet):
            raise UsageError(
                f"'{source}' is a tree of branches, which has no rows of a classifier; --by confusions takes it"
            )
        merges = merge_features(classifier_rows(net.model), linkage or "ward")
        return _named(dendrogram(merges, net.tree.classes), net.tree)
    if not trunk.trained:
        raise UsageError("--by weights needs a trained classifier: a plain checkpoint as SOURCE, or --pretrained")
    leaves = sorted(Material(source).classes().leaves, key=lambda leaf: leaf.index or 0)
    if [leaf.index for leaf in leaves] != list(range(len(leaves))):
        raise UsageError(f"the classes of '{source}' must be numbered from 0, as the classifier's rows are")
    model = create_backbone(trunk.backbone, {"num_classes": len(leaves)}, trunk.pretrained)
    if trunk.weights:
        load_trunk_weights(model, trunk.weights)
    merges = merge_features(classifier_rows(model), linkage or "ward")
    return dendrogram(merges, [leaf.name for leaf in leaves], [leaf.id for leaf in leaves])


def by_confusions(model: Path, material: Material, linkage: str | None) -> Hierarchy:
    """The dendrogram of a trained network's confusions on a data set's validation images."""
    from hlnet.data.sources import load_data
    from hlnet.data.tree_data import TreeData, eval_transform, loader
    from hlnet.evaluation.logits import logits_of
    from hlnet.evaluation.metrics.accuracy import confusion_matrix
    from hlnet.tree.construct.cluster import dendrogram, merge_confusions

    net = options.load_optimized(model, material.device)
    images = load_data(material.source, "val", material.data_root)
    data = TreeData(images, net.tree, eval_transform(net.transform), subset=True)
    batches = loader(data, material.batch_size, material.workers)
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
    material: Material,
    trunk: TrunkOptions,
    shape: Shape,
    prompt: Path | None,
    answer: Path | None,
    model: str | None,
    base_url: str | None,
) -> tuple[ClassTree, list[str]] | None:
    """The tree in a language model's answer, and notes on corrections; ``None`` if only the prompt is written."""
    classes, means = trunk.class_means(material) if trunk.trained else (material.classes(), None)
    if shape.levels == 1:
        raise UsageError("--levels 1 leaves no level for groups; --method read gives the classes alone")
    nodes = shape.nodes_for(len(classes.leaves)) if shape.given else None
    if prompt:
        write_prompt(prompt, classes, nodes)
    if answer or model:
        return ask_language_model(classes, nodes, answer, model, base_url, means)
    if not prompt:
        raise UsageError("--method llm needs --prompt FILE to write the question, --answer FILE, or --llm-model")
    return None


def ask_language_model(
    classes: ClassTree,
    nodes: Sequence[int] | None,
    answer: Path | None,
    model: str | None,
    base_url: str | None,
    means: Tensor | None,
) -> tuple[ClassTree, list[str]]:
    """The tree in a language model's answer, from a file or a server; and notes on what was corrected."""
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
