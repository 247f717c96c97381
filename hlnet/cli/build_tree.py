"""``hlnet build-tree``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from hlnet.cli.shared import options
from hlnet.errors import UsageError, counted
from hlnet.store.names import is_model_name

if TYPE_CHECKING:
    from torch import Tensor

    from hlnet.tree.class_tree import ClassTree

SHAPE, CLUSTER, WORDNET, LLM = "Shape", "Method cluster", "Method wordnet", "Method llm"


#: Where the hierarchy comes from.
Method = Literal["read", "wordnet", "llm", "cluster", "parallel", "balanced", "random"]
#: What classes are clustered by.
By = Literal["features", "weights", "confusions"]

FEATURES = ("split_point", "backbone_arg", "img_size", "mean", "std", "grid")
WEIGHTS = ("backbone", "pretrained", "trunk_weights")

#: Options that only some methods look at, with these methods; the others refuse them.
GOES_WITH: list[tuple[tuple[str, ...], set[Method]]] = [
    (("nodes", "budget", "network"), {*get_args(Method)} - {"parallel"}),
    (("max_children", "groups"), {"read", "wordnet", "cluster"}),
    (("by", "linkage", "model"), {"cluster"}),
    ((*FEATURES, *WEIGHTS), {"cluster", "llm"}),
    (("wordnet", "download"), {"wordnet"}),
    (("prompt", "answer", "llm_model", "base_url"), {"llm"}),
]


def build_tree(
    context: typer.Context,
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            help="A tree file, preset:NAME, a table (.csv), a list of class names (.txt), another tool's label file, a "
            "folder of image folders, or a data set.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The tree file to write: NAME.tree.json.")] = None,
    method: Annotated[
        Method,
        typer.Option(
            help="read: SOURCE's own nesting; wordnet: its hypernyms; llm: a language model's nesting; cluster: by "
            "features, weights or confusions; and the controls: parallel (PHL, a private chain for each class), "
            "balanced, random."
        ),
    ] = "read",
    file_format: options.TreeFormat = None,
    header: options.Header = None,
    list_presets: Annotated[
        bool, typer.Option("--list", help="List the trees that come with hlnet, and stop.")
    ] = False,
    levels: Annotated[
        int | None,
        typer.Option(
            min=1, help="Levels, the classes' included [default: 3, or those of SOURCE].", rich_help_panel=SHAPE
        ),
    ] = None,
    nodes: Annotated[
        str | None,
        typer.Option(help="Nodes of each level above the classes, such as 17,161.", rich_help_panel=SHAPE),
    ] = None,
    max_children: Annotated[
        int | None, typer.Option(min=2, help="No node gets more children; only the trunk may.", rich_help_panel=SHAPE)
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="In place of --nodes: what the network may cost, 25M (parameters), 4.2GMAC or 40MB.",
            rich_help_panel=SHAPE,
        ),
    ] = None,
    network: Annotated[
        str, typer.Option(help="A preset or timm model: the network that --budget is for.", rich_help_panel=SHAPE)
    ] = "n3hl_resnet50",
    groups: Annotated[
        Path | None,
        typer.Option(
            help="File of named selections (YAML) that will be asked for together: make experts for them cheap.",
            rich_help_panel=SHAPE,
        ),
    ] = None,
    by: Annotated[
        By | None,
        typer.Option(
            help="features: of a trunk, on SOURCE's images [default]; weights: rows of a plain classifier, of the "
            "checkpoint SOURCE or of --backbone; confusions: of --model on SOURCE's validation images.",
            rich_help_panel=CLUSTER,
        ),
    ] = None,
    linkage: Annotated[
        str | None,
        typer.Option(help="scipy's: ward, average, complete, single …", rich_help_panel=CLUSTER),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Trained network, for confusions.", rich_help_panel=CLUSTER)
    ] = None,
    backbone: Annotated[
        str, typer.Option(help="timm model whose early stages give the features.", rich_help_panel=CLUSTER)
    ] = "resnet18",
    split_point: Annotated[
        int | None, typer.Option(help="Last stage to use, negative from the end.", rich_help_panel=CLUSTER)
    ] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Fetch timm's pretrained weights.", rich_help_panel=CLUSTER)
    ] = False,
    trunk_weights: Annotated[Path | None, typer.Option(help="File of timm weights.", rich_help_panel=CLUSTER)] = None,
    backbone_arg: Annotated[
        list[str], typer.Option(help="timm argument, name=value; repeatable.", rich_help_panel=CLUSTER)
    ] = [],  # noqa: B006
    img_size: Annotated[
        int | None, typer.Option(min=8, help="Side of the images in pixels.", rich_help_panel=CLUSTER)
    ] = None,
    mean: Annotated[str | None, typer.Option(help="Pixel means, one or three.", rich_help_panel=CLUSTER)] = None,
    std: Annotated[str | None, typer.Option(help="Pixel deviations, likewise.", rich_help_panel=CLUSTER)] = None,
    grid: Annotated[
        int,
        typer.Option(min=1, help="Average features over a grid of this many cells a side.", rich_help_panel=CLUSTER),
    ] = 1,
    wordnet: Annotated[
        Path | None, typer.Option(help="Dictionary folder [default: an installed one].", rich_help_panel=WORDNET)
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch WordNet first, with nltk.", rich_help_panel=WORDNET)
    ] = False,
    prompt: Annotated[
        Path | None, typer.Option(help="Write the question to this file, for any chat window.", rich_help_panel=LLM)
    ] = None,
    answer: Annotated[Path | None, typer.Option(help="File with the answer to it.", rich_help_panel=LLM)] = None,
    llm_model: Annotated[
        str | None, typer.Option(help="Ask this model in place of files.", rich_help_panel=LLM)
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(help="Of a server that speaks OpenAI's protocol; key: OPENAI_API_KEY.", rich_help_panel=LLM),
    ] = None,
    batch_size: options.BatchSize = 64,
    workers: options.Workers = 2,
    data_root: options.DataRoot = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Make a class tree, by any of seven methods.

    Reads SOURCE and writes the canonical tree file that the other commands take. Hierarchies that are deeper than a
    network (wordnet, cluster, or a file with --nodes or --budget) are cut to --nodes, --budget or --levels.

    **Examples**

        hlnet build-tree preset:imagenet1k --out imagenet1k.tree.json

        hlnet build-tree digits --method parallel --out digits.tree.json

        hlnet build-tree photos --method cluster --pretrained --nodes 2,5 --out photos.tree.json

        hlnet build-tree classes.txt --method wordnet --budget 25M --out classes.tree.json
    """
    from hlnet.cli.shared import output
    from hlnet.cli.shared import tree_sources as sources
    from hlnet.tree.io import check_target, write_tree

    if list_presets:
        _list_presets(as_json)
        return
    if source is None or (out is None and (prompt is None or answer or llm_model)):
        raise UsageError("give a SOURCE (a tree file, preset:NAME, a list of names, a folder, a data set) and --out")
    _check_given(context, method, source)
    if out and not out.suffix:
        raise UsageError(f"--out '{out}': give a name that ends in .tree.json")
    if out:
        check_target(out)  # now, as what follows may take long or cost money
    if linkage:
        sources.check_linkage(linkage, by == "confusions")
    shape = sources.shape_of(nodes, levels, budget, network, max_children, groups)

    def classes() -> ClassTree:
        return sources.classes_of(source, data_root, file_format, header)

    def features() -> tuple[ClassTree, Tensor]:
        trunk = sources.feature_trunk(
            backbone, split_point, pretrained, trunk_weights, backbone_arg, img_size, mean, std, device, seed
        )
        return sources.feature_means(source, data_root, trunk, grid, batch_size, workers)

    tree: ClassTree
    notes: list[str] = []
    match method:
        case "read":
            tree = sources.read(source, shape, file_format, header)
        case "parallel":
            tree = classes().parallelized(levels or 3)
        case "balanced" | "random":
            tree = sources.control(classes(), shape, seed if method == "random" else None)
        case "wordnet":
            hierarchy, notes = sources.by_wordnet(classes(), wordnet, download)
            tree = shape.cut(hierarchy)
        case "cluster" if by == "weights":
            tree = shape.cut(sources.by_weights(source, backbone, pretrained, trunk_weights, linkage))
        case "cluster" if by == "confusions":
            if model is None:
                raise UsageError("--by confusions needs --model, the trained network whose mistakes are counted")
            tree = shape.cut(sources.by_confusions(model, source, data_root, linkage, batch_size, workers, device))
        case "cluster":
            tree = shape.cut(sources.by_features(*features(), linkage))
        case "llm":
            known, means = features() if pretrained or trunk_weights else (classes(), None)
            if levels == 1:
                raise UsageError("--levels 1 leaves no level for groups; --method read gives the classes alone")
            wanted = shape.nodes_for(len(known.leaves)) if shape.given else None
            if prompt:
                sources.write_prompt(prompt, known, wanted)
            if not answer and not llm_model:
                if not prompt:
                    raise UsageError(
                        "--method llm needs --prompt FILE to write the question, --answer FILE, or --llm-model"
                    )
                line = f"prompt written to {prompt}; put it to a language model, and give its reply with --answer"
                output.result(as_json, {"prompt": str(prompt)}, lambda: output.show(line))
                return
            tree, notes = sources.by_language_model(known, wanted, answer, llm_model, base_url, means)
    if out is None:
        raise UsageError("give --out, the tree file to write")
    if method == "cluster":
        tree, notes = sources.name_groups(tree)
    write_tree(tree, out)

    def show() -> None:
        output.hints(notes, "--json lists all")
        output.show_tree(tree)
        output.show(f"{counted(len(tree.classes), 'class')} in {counted(tree.num_levels, 'level')}, written to {out}")
        if spent := shape.spent(tree):
            output.hint(f"{spent} with {network}")

    output.result(as_json, {"out": str(out), "nodes": tree.counts, "classes": tree.classes, "notes": notes}, show)


def _check_given(context: typer.Context, method: Method, source: str) -> None:
    """Refuse options that the method would not look at."""

    def given(name: str) -> bool:
        found = context.get_parameter_source(name)
        return found is not None and found.name == "COMMANDLINE"

    def refuse(names: tuple[str, ...], where: str) -> None:
        for name in filter(given, names):
            raise UsageError(f"--{name.replace('_', '-')} {where}")

    for names, methods in GOES_WITH:
        if method not in methods:
            refuse(names, f"goes with --method {', '.join(sorted(methods))}, not with {method}")
    if not given("budget"):
        refuse(("network",), "goes with --budget")
    by = context.params.get("by")
    if method == "cluster" and by != "confusions":
        refuse(("model",), "goes with --by confusions")
    if method == "cluster" and by in {"weights", "confusions"}:
        refuse(FEATURES, "goes with --by features")
    if method == "cluster" and by == "confusions":
        refuse(WEIGHTS, "goes with --by features or weights; --by confusions takes --model's")
    if method == "cluster" and by == "weights" and is_model_name(source):
        refuse(WEIGHTS, f"goes with a timm model; '{source}' has weights of its own")
    if method == "llm" and not given("pretrained") and not given("trunk_weights"):
        refuse(("backbone", *FEATURES), "goes with --pretrained or --trunk-weights, which say how alike classes look")
    if given("answer"):
        refuse(("llm_model",), "asks a model where --answer gives the reply; leave one of them out")
    if not given("llm_model") and (given("answer") or given("prompt")):
        refuse(("base_url",), "goes with --llm-model")


def _list_presets(as_json: bool) -> None:
    from hlnet.cli.shared import output
    from hlnet.tree.io import read_tree, shipped_trees

    counts = {name: read_tree(f"preset:{name}").counts for name in shipped_trees()}
    rows = [[f"preset:{name}", ", ".join(map(str, nodes))] for name, nodes in counts.items()]
    table = ("Class trees that come with hlnet", ["", "nodes a level"], rows)
    output.result(as_json, counts, lambda: output.show_table(*table))
