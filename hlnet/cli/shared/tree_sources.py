"""Where ``hlnet build-tree`` gets classes and hierarchies from: data sets, trunks, checkpoints, WordNet, a model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hlnet.cli.shared import options, output
from hlnet.errors import TreeError, UsageError
from hlnet.store.names import is_model_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hlnet.model.cost import Part
    from hlnet.model.trunk import Trunk
    from hlnet.tree.class_tree import ClassTree
    from hlnet.tree.hierarchy import Outline


@dataclass(frozen=True)
class Shape:
    """What a tree made of a deeper hierarchy should look like, as the options say it."""

    nodes: tuple[int, ...] | None
    levels: int | None
    budget: str | None
    network: str
    max_children: int | None
    groups: Path | None

    def __post_init__(self) -> None:
        if self.nodes and (self.budget or self.levels):
            raise UsageError("--nodes says how many levels there are and what they cost: leave --levels, --budget out")

    @property
    def given(self) -> bool:
        """Whether anything was asked for."""
        asked = (self.nodes, self.levels, self.budget, self.max_children, self.groups)
        return any(value is not None for value in asked)

    def nodes_for(self, classes: int) -> tuple[int, ...]:
        """Nodes of each level above so many classes: as given, by budget, or evenly over the levels."""
        from hlnet.tree.build.budget import Budget, fit_counts
        from hlnet.tree.build.levels import even_counts

        if self.nodes:  # the classes' own count may be there, as "profile --nodes" has it
            return self.nodes[:-1] if len(self.nodes) > 1 and self.nodes[-1] == classes > 1 else self.nodes
        if self.budget:
            budget = Budget.parse(self.budget)  # before the network is counted, which takes a second
            return fit_counts(self.units(), classes, budget)[:-1]
        return even_counts(classes, self.levels or 3)[:-1]

    def cut(self, outline: Outline) -> ClassTree:
        """The class tree of this shape."""
        from hlnet.tree.build.budget import Budget, tree_for_budget
        from hlnet.tree.build.levels import condense
        from hlnet.tree.hierarchy import Outline
        from hlnet.tree.selection import read_selections

        groups: dict[str, list[str]] = {}
        if self.groups:
            try:
                tree = outline.to_tree()  # so that a selection can name a node of the hierarchy
            except TreeError:  # a dendrogram, deeper than any class tree; its nodes have no names worth writing
                tree = Outline("", outline.leaves()).to_tree()
            found = read_selections(self.groups, tree)
            groups = {name: [tree.classes[i] for i in chosen] for name, chosen in found.items()}
        if self.budget and groups:
            return tree_for_budget(outline, self.units(), Budget.parse(self.budget), groups, self.max_children)
        nodes = self.nodes_for(len(outline.leaves()))
        return condense(outline, nodes, self.max_children, groups.values()).to_tree(len(nodes) + 1)

    def bought(self, tree: ClassTree) -> str | None:
        """What the tree costs, of the budget."""
        from hlnet.tree.build.budget import Budget

        if self.budget is None:
            return None
        limit = Budget.parse(self.budget)
        return f"{limit.text(limit.spent(self.units(), tree.counts))} of {limit.text(limit.limit)} with {self.network}"

    def units(self) -> list[Part]:
        """What the trunk and one node of each level of the network cost."""
        from hlnet.model.cost import unit_costs
        from hlnet.model.presets import PARALLEL, network_config

        if self.network in PARALLEL:
            raise UsageError(f"--network {self.network} has a chain for each class, whatever --budget is; name another")
        config = network_config(self.network, self.levels or 3)
        if self.levels and self.levels != len(config.widths):
            raise UsageError(
                f"--levels {self.levels}: {self.network} has {len(config.widths)}; leave --levels out, or give "
                "--network a timm model"
            )
        return unit_costs(config)[0]


def classes_of(source: str, data_root: Path | None = None) -> ClassTree:
    """The classes of a tree, a list of names, a folder or a data set; whatever tree they are in."""
    from hlnet.tree.class_tree import ClassTree
    from hlnet.tree.io import read_tree

    if source.startswith("preset:") or Path(source).exists():
        return readable(read_tree(source))
    from hlnet.data.sources import load_data

    return readable(ClassTree.from_nested(list(load_data(source, "train", data_root).classes)))


def readable(tree: ClassTree) -> ClassTree:
    """Classes that are called by their WordNet ids, as ImageNet's folders are, get names; the ids stay ids."""
    from hlnet.tree.build.wordnet import is_wordnet_id
    from hlnet.tree.hierarchy import Outline

    if not all(is_wordnet_id(name) for name in tree.classes):
        return tree
    from timm.data import ImageNetInfo  # which knows some 21,000

    known = ImageNetInfo("imagenet-21k-goog")
    if not set(tree.classes) <= set(known.label_names()):
        return tree
    words = {name: known.label_name_to_description(name).split(",")[0].replace("/", "-") for name in tree.classes}
    shared = Counter(words.values())
    outline = Outline.of(tree)
    for leaf in outline.leaves():
        word = words[leaf.name]
        leaf.name, leaf.id = (word if shared[word] == 1 else f"{word} ({leaf.name})"), leaf.name
    return outline.to_tree(tree.num_levels)


def read(source: str, shape: Shape) -> ClassTree:
    """SOURCE's own nesting; cut, if more is asked for than levels that its classes can be continued to."""
    from hlnet.tree.hierarchy import Outline
    from hlnet.tree.io import read_tree

    if source == "digits":
        raise UsageError("'digits' has no nesting to read; give --method parallel, or --method cluster --nodes 2,5")
    tree = read_tree(source)
    if not replace(shape, levels=None).given and (shape.levels is None or shape.levels >= tree.num_levels):
        return read_tree(source, shape.levels)
    only_nodes = shape.nodes is not None and not replace(shape, nodes=None).given
    if only_nodes and shape.nodes_for(tree.counts[-1]) == tree.counts[:-1]:
        return tree  # it has these already
    if not shape.nodes and not shape.levels and not shape.budget:
        shape = replace(shape, nodes=tree.counts[:-1])
    return shape.cut(Outline.of(tree))


def control(classes: ClassTree, shape: Shape, seed: int | None) -> ClassTree:
    """A tree that knows nothing of the classes: balanced, or random by a seed."""
    from hlnet.tree.build.controls import balanced_tree, random_tree

    nodes = shape.nodes_for(len(classes.leaves))
    return balanced_tree(classes, nodes) if seed is None else random_tree(classes, nodes, seed)


def check_linkage(linkage: str, distances: bool) -> None:
    """Refuse a linkage before anything is computed for it."""
    from hlnet.tree.build.cluster import check_linkage

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
    from hlnet.tree.build.cluster import class_means
    from hlnet.tree.class_tree import ClassTree

    images = load_data(source, "train", data_root)
    classes = readable(ClassTree.from_nested(list(images.classes)))
    batches = loader(TreeData(images, classes, eval_transform(trunk.transform)), batch_size, workers)
    with output.progress() as bar:
        task = bar.add_task("features", total=len(batches))
        return classes, class_means(trunk, batches, len(classes.leaves), grid, on_batch=lambda: bar.advance(task))


def by_features(classes: ClassTree, means: Tensor, linkage: str | None) -> Outline:
    """The dendrogram of class means."""
    from hlnet.tree.build.cluster import dendrogram, merge_features

    return _named(dendrogram(merge_features(means, linkage or "ward", standardized=True), classes.classes), classes)


def by_weights(source: str, backbone: str, pretrained: bool, weights: Path | None, linkage: str | None) -> Outline:
    """The dendrogram of a plain classifier's rows: of a checkpoint, or of a timm model with these classes."""
    from hlnet.model.plain import PlainNet
    from hlnet.model.trunk import create_backbone, load_trunk_weights
    from hlnet.tree.build.cluster import classifier_rows, dendrogram, merge_features

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
) -> Outline:
    """The dendrogram of what a trained network takes for what, on a data set's validation images."""
    from hlnet.data.sources import load_data
    from hlnet.data.tree_data import TreeData, eval_transform, loader
    from hlnet.evaluation.logits import logits_of
    from hlnet.evaluation.metrics.accuracy import confusion_matrix
    from hlnet.tree.build.cluster import dendrogram, merge_confusions

    net = options.load_optimized(model, device)
    images = TreeData(load_data(source, "val", data_root), net.tree, eval_transform(net.transform), subset=True)
    batches = loader(images, batch_size, workers)
    with output.progress() as bar:
        task = bar.add_task("confusions", total=len(batches))
        (logits,), labels = logits_of(net, batches, on_batch=lambda: bar.advance(task))
    merges = merge_confusions(confusion_matrix(logits, labels), linkage or "average")
    return _named(dendrogram(merges, net.tree.classes), net.tree)


def by_wordnet(classes: ClassTree, folder: Path | None, download: bool) -> tuple[Outline, list[str]]:
    """WordNet's hierarchy over the classes, found by id where they have one, else by name; and what was decided."""
    from hlnet.tree.build.wordnet import WordNet, is_wordnet_id, wordnet_outline

    if download:
        WordNet.download()
    terms = [leaf.id if leaf.id and is_wordnet_id(leaf.id) else leaf.name for leaf in classes.leaves]
    try:
        dictionary = WordNet(folder)
    except UsageError as error:
        raise UsageError(f"{error} (--wordnet FOLDER, --download)") from error
    outline, notes = wordnet_outline(terms, dictionary)
    words = {node.id: node.name for node in outline.leaves()}
    outline.rename_classes(classes)
    for node in outline.leaves():
        if node.name == node.id:  # a folder named by its id gets a name to read, and is still found by the id
            node.name = words[node.id]
    return outline, notes


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
    from hlnet.tree.llm.nest import nest_with_llm
    from hlnet.tree.llm.server import ask_server

    reply = options.read_text(answer, "--answer") if answer else None

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
    found = nest_with_llm(classes.classes, ask, nodes, rounds=0 if answer else 2, similarity=similarity)
    outline = _named(found.outline, classes)
    tree = outline.to_tree()
    wanted = len(nodes) + 1 if nodes else 0
    return (tree if tree.num_levels >= wanted else outline.to_tree(wanted)), list(found.notes)


def _named(outline: Outline, classes: ClassTree) -> Outline:
    outline.rename_classes(classes)
    return outline
