"""``hlnet build-tree``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from hlnet.cli.shared import options
from hlnet.errors import UsageError, counted
from hlnet.store.names import is_model_name

if TYPE_CHECKING:
    from hlnet.tree.class_tree import ClassTree
    from hlnet.tree.construct.shape import Shape

SHAPE, CLUSTER, WORDNET, LLM = "Shape", "Method cluster", "Method wordnet", "Method llm"


#: Source of the hierarchy.
Method = Literal["read", "wordnet", "llm", "cluster", "parallel", "balanced", "random"]
#: Basis of a clustering.
By = Literal["features", "weights", "confusions"]

FEATURES = ("split_point", "backbone_arg", "img_size", "mean", "std", "grid")
WEIGHTS = ("backbone", "pretrained", "trunk_weights")

#: Options of some methods only, with these methods; the others refuse them.
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
            "features, weights or confusions. Baseline trees: parallel (PHL, a private chain for each class), "
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
            min=1,
            help="Levels, including that of the classes [default: 3, or SOURCE's].",
            rich_help_panel=SHAPE,
        ),
    ] = None,
    nodes: Annotated[
        str | None,
        typer.Option(help="Nodes of each level above the classes, such as 17,161.", rich_help_panel=SHAPE),
    ] = None,
    max_children: Annotated[
        int | None, typer.Option(min=2, help="Most children of a node; the trunk may have more.", rich_help_panel=SHAPE)
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Instead of --nodes: limit of the network's cost, 25M (parameters), 4.2GMAC or 40MB.",
            rich_help_panel=SHAPE,
        ),
    ] = None,
    network: Annotated[
        str, typer.Option(help="A preset or timm model: the network that --budget is for.", rich_help_panel=SHAPE)
    ] = "n3hl_resnet50",
    groups: Annotated[
        Path | None,
        typer.Option(
            help="YAML file of named selections that experts will be made for: makes these experts cheap.",
            rich_help_panel=SHAPE,
        ),
    ] = None,
    by: Annotated[
        By | None,
        typer.Option(
            help="features: a trunk's, on SOURCE's images [default]; weights: classifier rows of a plain network (the "
            "checkpoint SOURCE, or --backbone); confusions: --model's mistakes on SOURCE's validation images.",
            rich_help_panel=CLUSTER,
        ),
    ] = None,
    linkage: Annotated[
        str | None,
        typer.Option(help="Linkage of scipy: ward, average, complete, single …", rich_help_panel=CLUSTER),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Trained network, for confusions.", rich_help_panel=CLUSTER)
    ] = None,
    backbone: Annotated[
        str, typer.Option(help="timm model whose early stages give the features.", rich_help_panel=CLUSTER)
    ] = "resnet18",
    split_point: Annotated[
        str | None,
        typer.Option(help="Last stage to use, negative from the end, or block: layer4.0.", rich_help_panel=CLUSTER),
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
        Path | None, typer.Option(help="Write the question to this file; paste it into any chat.", rich_help_panel=LLM)
    ] = None,
    answer: Annotated[
        Path | None, typer.Option(help="File with the language model's answer.", rich_help_panel=LLM)
    ] = None,
    llm_model: Annotated[
        str | None, typer.Option(help="Ask this model directly, without the two files.", rich_help_panel=LLM)
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            help="Address of a server with OpenAI's API; its key is read from OPENAI_API_KEY.", rich_help_panel=LLM
        ),
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
    from hlnet.tree.io import write_tree

    if list_presets:
        _list_presets(as_json)
        return
    if source is None or (out is None and (prompt is None or answer or llm_model)):
        raise UsageError("give a SOURCE (a tree file, preset:NAME, a list of names, a folder, a data set) and --out")
    _check_given(context, method, source)
    _check_early(out, linkage, by)
    shape = sources.shape_of(nodes, levels, budget, network, max_children, groups)
    material = sources.Material(source, data_root, file_format, header, batch_size, workers, device)
    trunk = sources.TrunkOptions(
        backbone, split_point, pretrained, trunk_weights, backbone_arg, img_size, mean, std, grid, seed
    )
    notes: list[str] = []
    match method:
        case "read":
            tree = sources.read(material, shape)
        case "parallel":
            tree = material.classes().parallelized(levels or 3)
        case "balanced" | "random":
            tree = sources.baseline(material.classes(), shape, seed if method == "random" else None)
        case "wordnet":
            hierarchy, notes = sources.by_wordnet(material.classes(), wordnet, download)
            tree = shape.cut(hierarchy)
        case "cluster":
            tree, notes = sources.name_groups(shape.cut(sources.clustered(material, trunk, by, model, linkage)))
        case "llm":
            nested = sources.by_language_model(material, trunk, shape, prompt, answer, llm_model, base_url)
            if nested is None:
                _show_prompt(prompt, as_json)
                return
            tree, notes = nested
    if out is None:
        raise UsageError("give --out, the tree file to write")
    write_tree(tree, out)
    figures = {"out": str(out), "nodes": tree.counts, "classes": tree.classes, "notes": notes}
    output.result(as_json, figures, lambda: _show(tree, notes, out, shape, network))


def _show_prompt(prompt: Path | None, as_json: bool) -> None:
    """The file of the question, and the next step."""
    from hlnet.cli.shared import output

    line = f"prompt written to {prompt}; put it to a language model, and give its reply with --answer"
    output.result(as_json, {"prompt": str(prompt)}, lambda: output.show(line))


def _check_early(out: Path | None, linkage: str | None, by: By | None) -> None:
    """Refuse a bad file name or linkage now, as what follows may take long or cost money."""
    from hlnet.tree.construct.cluster import check_linkage
    from hlnet.tree.io import check_target

    if out and not out.suffix:
        raise UsageError(f"--out '{out}': give a name that ends in .tree.json")
    if out:
        check_target(out)
    if linkage:
        check_linkage(linkage, by == "confusions")


def _show(tree: ClassTree, notes: list[str], out: Path, shape: Shape, network: str) -> None:
    """The tree, notes on how it was made, and its cost."""
    from hlnet.cli.shared import output

    output.hints(notes, "--json lists all")
    output.show_tree(tree)
    output.show(f"{counted(len(tree.classes), 'class')} in {counted(tree.num_levels, 'level')}, written to {out}")
    if spent := shape.spent(tree):
        output.hint(f"{spent} with {network}")


def _check_given(context: typer.Context, method: Method, source: str) -> None:
    """Refuse options that the method does not use."""

    def given(name: str) -> bool:
        origin = context.get_parameter_source(name)
        return origin is not None and origin.name == "COMMANDLINE"

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
        refuse(
            ("backbone", *FEATURES),
            "goes with --pretrained or --trunk-weights, whose features measure how alike classes look",
        )
    if given("answer"):
        refuse(("llm_model",), "asks a language model, and --answer holds its reply already; leave one of them out")
    if not given("llm_model") and (given("answer") or given("prompt")):
        refuse(("base_url",), "goes with --llm-model")


def _list_presets(as_json: bool) -> None:
    from hlnet.cli.shared import output
    from hlnet.tree.io import read_tree, shipped_trees

    counts = {name: read_tree(f"preset:{name}").counts for name in shipped_trees()}
    rows = [[f"preset:{name}", ", ".join(map(str, nodes))] for name, nodes in counts.items()]
    table = ("Class trees that come with hlnet", ["", "nodes per level"], rows)
    output.result(as_json, counts, lambda: output.show_table(*table))
