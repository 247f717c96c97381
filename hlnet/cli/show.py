"""``hlnet show``."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hlnet.cli.shared import cue_options, options
from hlnet.errors import UsageError

if TYPE_CHECKING:
    from hlnet.model.base import TrainableNetwork
    from hlnet.tree.class_tree import ClassTree
    from hlnet.view.look import View


def show(
    model: options.Model,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES...", help="Image files, folders of them, or patterns in quotes; 8 images at most."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the page and its pictures, or NAME.html for the page alone.")],
    nodes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NODES",
            help="Classes and inner nodes between commas, 8 at most; repeatable. Default: of one image the path to its "
            "best class and the runners-up, of several each one's best class.",
        ),
    ] = None,
    level: Annotated[
        int | None, typer.Option(help="Show the blocks of this level above the nodes; 1 is nearest to the trunk.")
    ] = None,
    rgb: Annotated[
        bool, typer.Option("--rgb", help="Three channels as colours, as in the paper's Fig. 4, not their activity.")
    ] = False,
    cam: Annotated[
        bool, typer.Option("--cam", help="Class activation maps too (Grad-CAM; a plain network has only these).")
    ] = False,
    cue: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NODE=VALUE",
            help="Show each image under this cue, too: a reliability (animal/cat=0.9), a factor (=x1.8), a shift "
            "(=+2), or no value, but --reliability or --attention-signal; 4 at most, each alone.",
        ),
    ] = None,
    cue_mode: cue_options.Mode = None,
    attention_signal: cue_options.AttentionSignal = None,
    reliability: cue_options.Reliability = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Draw the feature maps of branches on a few images, and the effect of cues.

    Writes one HTML page that loads nothing from the internet, and its pictures as PNG: feature maps of branches, as in
    the paper's Fig. 4; with --cam, class activation maps; with --cue, probabilities and the cued branch, without and
    with each cue. Maps of one level share a scale.

    **Examples**

        hlnet show runs/photos photo.jpg --out seen

        hlnet show runs/photos dog.jpg fish.jpg --nodes dog,fish --cam --cue fish=0.9 --out seen.html
    """
    from hlnet.cli.shared import output
    from hlnet.cues.files import parse_cue
    from hlnet.model.plain import PlainNet
    from hlnet.view.look import MOST_IMAGES, look
    from hlnet.view.page import check_view_path, write_view

    check_view_path(out)
    files = list(islice(options.image_files(images, "IMAGES"), MOST_IMAGES + 1))
    if len(files) > MOST_IMAGES:
        raise UsageError(f"more than {MOST_IMAGES} images do not fit one page; name at most {MOST_IMAGES}")
    if not cue and cue_options.wanted(cue_mode, attention_signal, reliability):
        raise UsageError("these options say how cues act, but none is given; add --cue, such as --cue animal/cat=0.9")
    net = options.load_model(model, device)
    if isinstance(net, PlainNet) and not (cam or cue):
        cam = True
        output.hint("a plain network has no branches: its class activation maps are shown")
    policy = cue_options.cue_policy(attention_signal, cue_mode, reliability, net)
    words = _nodes(net.tree, nodes) if nodes is not None else None
    cues = [parse_cue(text, net.tree, cue_mode) for text in cue or ()]
    cue_options.log_stored_cues(net, policy, cues)
    view = look(net, files, words, level, cues, policy, cam, rgb)
    written = write_view(view, out, f"Feature maps of {options.short_name(model)}", _about(net))
    output.result(as_json, lambda: _figures(view, files, written), lambda: _show(view, written[0]))


def _figures(view: View, files: list[str], written: list[Path]) -> dict[str, Any]:
    """The best classes of each image, without and under each cue, for machines."""
    from hlnet.view.page import best_classes

    ranks = best_classes(view, 5)
    under = [(row, best_classes(view, 5, row)) for row in view.cues]
    images = [
        {
            "image": path,
            "probabilities": _rounded(ranks[i]),
            "cues": [{"node": row.node, "effect": row.told, "probabilities": _rounded(cued[i])} for row, cued in under],
        }
        for i, path in enumerate(files)
    ]
    return {"files": [str(path) for path in written], "images": images}


def _show(view: View, page: Path) -> None:
    """The same as lines."""
    from hlnet.cli.shared import output
    from hlnet.view.page import best_classes

    ranks = best_classes(view, 5)
    for i, name in enumerate(view.names):
        output.show(f"{name}: {_best(ranks[i])}")
        for row in view.cues:
            output.show(f"  cue on {row.node} ({row.told}): {_best(best_classes(view, 5, row)[i])}")
    output.show(f"page: {page}")


def _nodes(tree: ClassTree, texts: list[str]) -> list[str]:
    """The names between commas; a name that holds commas is taken as a whole if the tree has it."""
    names = []
    for text in texts:
        parts = [text] if text in tree.node_names.words else text.split(",")
        names += [part.strip() for part in parts if part.strip()]
    if not names:
        raise UsageError(f"--nodes {' '.join(map(repr, texts))} names no node; name some, such as 'animal/cat,tabby'")
    return names


def _about(net: TrainableNetwork) -> str:
    from hlnet.model.plain import PlainNet

    size = "×".join(map(str, net.transform.input_size[1:]))
    classes = len(net.tree.classes)
    known = f"{classes} {'class' if classes == 1 else 'classes'}, images of {size} pixels"
    if isinstance(net, PlainNet):
        return f"A plain network ({net.config.backbone}), without branches; {known}."
    counts = ", ".join(map(str, net.tree.counts))
    return f"A tree of branches, {counts} level by level, on a trunk of {net.config.backbone}; {known}."


def _rounded(shares: dict[str, float]) -> dict[str, float]:
    return {name: round(share, 6) for name, share in shares.items()}


def _best(shares: dict[str, float], most: int = 3) -> str:
    return ", ".join(f"{name} {100 * share:.1f} %" for name, share in list(shares.items())[:most])
