"""``hlnet tree show``, ``check``, ``compare``, ``convert``, ``match`` and ``rename``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hlnet.cli.shared import options
from hlnet.errors import HlnetError, UsageError, counted
from hlnet.store.names import is_model_folder, is_model_name

if TYPE_CHECKING:
    from hlnet.tree.class_tree import ClassTree

app = typer.Typer(
    help="Class trees: show, check, compare, convert, match, rename.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Tree = Annotated[
    str,
    typer.Argument(
        metavar="TREE",
        help="A tree file, preset:NAME, a folder of image folders, or a network's checkpoint or run folder.",
    ),
]


@app.command()
def show(
    tree: Tree,
    classes: options.Classes = None,
    depth: Annotated[int | None, typer.Option(min=1, help="Print only so many levels.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Print at most so many nodes, besides the marked ones.")] = 200,
    svg: Annotated[Path | None, typer.Option(help="Write a picture; the text stays text.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write a picture.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page to search and unfold.")] = None,
    as_json: options.Json = False,
) -> None:
    """Print a tree, and draw it; with --classes, the paths of that expert are marked.

    Reads a tree; writes the requested pictures.

    **Examples**

        hlnet tree show preset:imagenet100 --depth 2

        hlnet tree show preset:imagenet1k --classes 281-285 --svg cats.svg --html cats.html
    """
    from hlnet.cli.shared import output
    from hlnet.tree.io import tree_to_json
    from hlnet.tree.selection import select_classes

    class_tree = read(tree)
    kept = select_classes(class_tree, classes) if classes else ()
    for path, suffix in ((svg, ".svg"), (png, ".png"), (html, ".html")):
        if path and path.suffix.lower() != suffix:
            raise UsageError(f"--{suffix[1:]} '{path}': give a name that ends in {suffix}")
    if svg or png or html:
        from hlnet.tree.picture import draw_tree, tree_page

        for path in filter(None, (svg, png)):
            draw_tree(class_tree, path, kept)
        if html:
            tree_page(class_tree, html, kept)

    def show() -> None:
        output.show_tree(class_tree, limit, kept, depth)
        for path in filter(None, (svg, png, html)):
            output.hint(f"written to {path}")

    output.result(as_json, tree_to_json(class_tree) | {"kept": [class_tree.leaves[i].path for i in kept]}, show)


@app.command()
def check(
    tree: Tree,
    network: Annotated[
        str | None,
        typer.Option(
            help="A preset or timm model: what the tree costs with it [default: n3hl_resnet50, for a tree of other "
            "than three levels resnet50]."
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Report problems of a tree, and the cost of a network with it, before you train.

    Reads a tree; writes nothing. Such problems are no errors: the exit code is 0.

    **Examples**

        hlnet tree check preset:imagenet1k

        hlnet tree check photos.tree.json --network mobilenetv2_100 --json
    """
    from hlnet.cli.shared import output
    from hlnet.model.cost import profile
    from hlnet.model.presets import configure
    from hlnet.tree.measures import check_tree

    class_tree = read(tree)
    oddities = check_tree(class_tree)
    cost = profile(*configure(network or ("n3hl_resnet50" if class_tree.num_levels == 3 else "resnet50"), class_tree))
    listed = [{"kind": oddity.kind, "message": oddity.message} for oddity in oddities]

    def show() -> None:
        rows = []
        for level, counts in enumerate(class_tree.sibling_counts, start=1):
            children = "–" if level == 1 else f"{min(counts)} – {max(counts)}"
            continued = sum(node.continued for node in class_tree.levels[level - 1])
            rows.append([f"level {level}", str(class_tree.counts[level - 1]), children, str(continued)])
        output.show_table("The tree", ["", "nodes", "children per parent", "only continue a class"], rows)
        for oddity in oddities:
            output.show(f"{oddity.kind}: {oddity.message}")
        if not oddities:
            output.show("Nothing odd.")
        output.show_profile(cost)

    output.result(as_json, {"nodes": class_tree.counts, "oddities": listed, "cost": cost.model_dump(mode="json")}, show)


@app.command()
def compare(
    first: Tree,
    second: Annotated[str, typer.Argument(metavar="TREE", help="Another one.")],
    as_json: options.Json = False,
) -> None:
    """Compare two trees on the classes that they share.

    The Robinson-Foulds distance counts the groups of classes that only one of the trees has. The cophenetic correlation
    says whether classes that are close in one tree are close in the other. Reads two trees; writes nothing.

    **Examples**

        hlnet tree compare preset:imagenet1k wordnet.tree.json

        hlnet tree compare preset:imagenette other.tree.json --json
    """
    from hlnet.cli.shared import output
    from hlnet.tree.measures import compare_trees

    comparison = compare_trees(read(first), read(second))

    def show() -> None:
        correlation = comparison.cophenetic_correlation
        rows = [
            ["classes in both", str(comparison.classes)],
            [
                "groups of at least two classes: first, second, both",
                f"{comparison.groups[0]}, {comparison.groups[1]}, {comparison.shared_groups}",
            ],
            ["Robinson-Foulds distance", str(comparison.robinson_foulds)],
            ["normalised: 0 the same groups, 1 none in common", f"{comparison.normalized_robinson_foulds:.3f}"],
            ["cophenetic correlation", "–" if correlation is None else f"{correlation:.3f}"],
        ]
        output.show_table("Two trees", ["", ""], rows)
        for name, only in (("first", comparison.only_first), ("second", comparison.only_second)):
            if only:
                output.hint(f"only in the {name}: {', '.join(only[:10])}{' …' if len(only) > 10 else ''}")

    output.result(as_json, comparison, show)


@app.command()
def convert(
    tree: Tree,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File or folder to write, in the format of its suffix.")],
    to: Annotated[
        str | None,
        typer.Option(help="canonical, nested, paths, edges, newick, node-link, children or folders."),
    ] = None,
    file_format: options.TreeFormat = None,
    header: options.Header = None,
    levels: Annotated[
        int | None, typer.Option(min=1, help="Continue classes that end early to so many levels.")
    ] = None,
) -> None:
    """Write a tree in another format.

    .tree.json is hlnet's own and loses nothing; .yaml is nested; .csv holds paths (--to edges: parent and child); .nwk
    is Newick; .json with --to node-link is networkx's; a name without a suffix becomes a folder of nested folders.

    **Examples**

        hlnet tree convert preset:imagenette imagenette.nwk

        hlnet tree convert taxonomy.csv photos.tree.json --levels 3
    """
    from hlnet.cli.shared import output
    from hlnet.tree.io import read_tree, write_tree

    class_tree = read(tree, levels, file_format, header)
    write_tree(class_tree, out, to)
    try:
        with output.no_hints():  # how it is read was said of the source
            whole = read_tree(out, class_tree.num_levels) == class_tree
    except HlnetError:
        whole = False
    if not whole:
        output.hint("read back, it is another tree: ids, original indices or the order are not all kept in this format")
    output.show(
        f"{counted(len(class_tree.classes), 'class')} in {counted(class_tree.num_levels, 'level')}, written to {out}"
    )


@app.command()
def match(
    tree: Tree,
    wanted: Annotated[
        list[str], typer.Argument(metavar="CLASSES...", help="Wanted classes, or @FILE with one on each line.")
    ],
    as_json: options.Json = False,
) -> None:
    """Compare wanted classes with those of a tree or network: which it has, lacks, and has besides.

    Upper and lower case, singular and plural count as the same. So do WordNet's words for a class or for a node above.

    **Examples**

        hlnet tree match runs/photos @targets.txt

        hlnet tree match preset:imagenet1k canine 'motor vehicle' unicorn --json
    """
    from hlnet.cli.shared import output
    from hlnet.errors import some
    from hlnet.tree.synonyms import match_classes

    words = [word for text in wanted for word in _words(text)]
    matches, besides = match_classes(read(tree), words)
    lacking = [one.word for one in matches if not one.classes]

    def show() -> None:
        rows = [[one.word, some(one.classes) or "–", one.how] for one in matches]
        output.show_table("Wanted classes", ["wanted", "has", "found by"], rows)
        output.show(
            f"lacks {len(lacking)} of {len(matches)}: {some(lacking, 20)}" if lacking else "It has all of them."
        )
        output.show(f"has besides: {some(besides, 20)}" if besides else "It has no others.")

    listed = [one._asdict() for one in matches]
    output.result(as_json, {"wanted": listed, "lacking": lacking, "besides": besides}, show)


def _words(text: str) -> list[str]:
    """The words in a file, or the one given."""
    from hlnet.files import read_text

    if not text.startswith("@"):
        return [text]
    lines = read_text(text[1:], f"the file of wanted classes '{text[1:]}'").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


@app.command()
def rename(
    tree: Tree,
    names: Annotated[
        list[str], typer.Argument(metavar="OLD=NEW...", help="A node by path or name, and its new name; repeatable.")
    ],
    out: Annotated[
        Path, typer.Option(help="File to write: a tree file, or of a network a .safetensors file; may be TREE itself.")
    ],
    as_json: options.Json = False,
) -> None:
    """Give nodes other names, in a tree file or in a network's file; nothing else changes.

    A class keeps its old name as its id, so that data sets and selections still find it.

    **Examples**

        hlnet tree rename photos.tree.json 'Rhodesian ridgeback+hound=hounds' --out photos.tree.json

        hlnet tree rename runs/photos animal/cat=feline tabby='tabby cat' --out renamed.safetensors
    """
    from hlnet.cli.shared import output
    from hlnet.tree.io import check_target, tree_to_json, write_tree
    from hlnet.tree.rename import renamed

    pairs = dict(_old_and_new(pair) for pair in names)
    if not (is_model_name(tree) or is_model_folder(tree)):
        check_target(out)
        new_tree = renamed(read(tree), pairs)
        write_tree(new_tree, out)
    else:
        from hlnet.store.checkpoint import rename_nodes

        new_tree = rename_nodes(tree, pairs, out)
    output.result(
        as_json, tree_to_json(new_tree), lambda: output.show(f"{counted(len(pairs), 'node')} renamed, written to {out}")
    )


def _old_and_new(pair: str) -> tuple[str, str]:
    old, sign, new = pair.rpartition("=")
    if not sign or not old or not new:
        raise UsageError(f"'{pair}': expected OLD=NEW, such as 'hound+pug=dog'")
    return old, new


def read(source: str, levels: int | None = None, format: str | None = None, header: bool | None = None) -> ClassTree:
    """A tree from wherever one may be: also out of a checkpoint or a run folder."""
    from hlnet.tree.hierarchy import Hierarchy
    from hlnet.tree.io import read_tree

    if not is_model_name(source) and not is_model_folder(source):
        return read_tree(source, levels, format, header)
    from hlnet.store.checkpoint import read_header  # which needs torch

    tree = read_header(source).tree
    return tree if levels is None else Hierarchy.of(tree).to_tree(levels)
