"""The model card: what a network is, what it costs, how well it does and how to use it, as the Hub's ``README.md``.

Notable here: nothing is typed in. Classes, costs, accuracy and recipe come out of the network and its provenance, so
that a card cannot say anything else than the file; only what no file knows is asked for (:class:`CardFacts`).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypedDict

from huggingface_hub import ModelCard, ModelCardData

from hlnet.cues.cue import stored_effect
from hlnet.cues.cue_aware import is_trained
from hlnet.errors import HlnetError, counted, some
from hlnet.model.cost import Cost, figure, network_cost, profile
from hlnet.model.hierarchical import HierarchicalNet
from hlnet.templates import render
from hlnet.tree.selection import select_classes
from hlnet.version import __version__

if TYPE_CHECKING:
    from hlnet.model.base import TrainableNetwork
    from hlnet.tree.class_tree import ClassTree

TAGS = ["hlnet", "hierarchical-classification", "dynamic-inference", "timm"]
LONG = 30  # lines of a listing; what is longer is folded away


class CardFacts(TypedDict, total=False):
    """What a card can say that no file knows.

    Attributes:
        title: its heading; default: of classes and backbone.
        about: a paragraph of your own, in Markdown.
        data: what the network was trained on; default: the recipe's ``data``, where that is a name.
        license: identifier for the Hub, such as ``cc-by-4.0``.
        repo_id: ``owner/name``, for the examples.
    """

    title: str | None
    about: str | None
    data: str | None
    license: str | None
    repo_id: str | None


def make_model_card(
    model: TrainableNetwork,
    *,
    title: str | None = None,
    about: str | None = None,
    data: str | None = None,
    license: str | None = None,
    repo_id: str | None = None,
) -> ModelCard:
    """A network's model card.

    Args:
        model: a full network, an expert or a plain network.
        title, about, data, license, repo_id: see :class:`CardFacts`.

    Returns:
        huggingface_hub's card: ``.data`` is its front matter, ``.text`` what follows, ``str()`` the whole file.

    Example:
        >>> import hlnet
        >>> net = hlnet.create_model("resnet18", tree={"cat": ["tabby", "siamese"], "saw": {}})
        >>> card = make_model_card(net, license="mit")
        >>> card.data.library_name, card.data.license, "3 classes: `tabby`, `siamese`, `saw`." in card.text
        ('hlnet', 'mit', True)
    """
    tree, found = model.tree, model.provenance
    named = found.recipe.get("data")
    data = data or (named if isinstance(named, str) else None)
    count = len(tree.classes)
    has_branches = isinstance(model, HierarchicalNet)
    costs = _costs(model)
    listing = list(_lines(tree.to_nested())) if has_branches else list(tree.classes)
    text = render(
        "store/card.md.j2",
        code=_code,
        fenced=_fenced,
        figure=figure,
        title=title or f"{counted(count, 'class')} on {model.config.backbone}",
        about=about,
        data=data,
        license=license,
        version=__version__,
        kind="plain" if not has_branches else "full" if found.parent_counts is None else "expert",
        backbone=model.config.backbone,
        classes=some(map(_code, tree.classes), 10),
        count=count,
        tree=tree,
        provenance=found,
        cue=_cue(model),
        trained=found.attention is not None and found.attention.mode == "gain" and is_trained(found.attention),
        listing="\n".join(listing),
        folded=len(listing) > LONG,
        transform=model.transform,
        costs=costs,
        parts=next(iter(costs.values())).parts,
        metrics={_metric(name): _value(name, value) for name, value in found.metrics.items()},
        recipe=_toml(found.recipe),
        name=f"hf-hub:{repo_id or 'OWNER/NAME'}",
        selection=_selection(tree),
    )
    front = ModelCardData(
        library_name="hlnet",
        pipeline_tag="image-classification",
        license=license,
        tags=TAGS,
        datasets=[data.removeprefix("hfds/")] if data and data.startswith("hfds/") else None,
    )
    return ModelCard(f"---\n{front.to_yaml()}\n---\n\n{text}\n")


# ---------------------------------------------------------------------- helpers


def _costs(model: TrainableNetwork) -> dict[str, Cost]:
    """What it costs, and what it is to be compared with; the network itself comes first."""
    if not isinstance(model, HierarchicalNet):
        return {"this network": network_cost(model)}
    parents = model.provenance.parent_counts
    found = profile(model.config, model.tree, model.transform, parent_counts=parents)
    plain = f"{model.config.backbone} itself"
    if found.expert is None:
        return {"this network": found.full, plain: found.plain}
    return {"this expert": found.expert, "full network": found.full, plain: found.plain}


def _cue(model: TrainableNetwork) -> str | None:
    """How a cue on a class acts by the fitted attention, if that was fitted to this network."""
    is_cut = model.provenance.parent_counts is not None
    return None if is_cut else stored_effect(model.provenance, len(model.tree.classes))


def _lines(nested: Mapping[str, Any], depth: int = 0) -> Iterator[str]:
    """A nested tree, one node a line, indented."""
    for name, below in nested.items():
        yield "  " * depth + name
        if isinstance(below, Mapping):
            yield from _lines(below, depth + 1)


def _selection(tree: ClassTree) -> str:
    """An argument of ``--classes`` that leaves something out: a node that can be written plainly, else a number."""
    for path in [node.path for row in tree.levels[:-1] for node in row if not node.continued] + list(tree.classes):
        try:
            if re.fullmatch(r"\w[\w /.'+-]*", path) and len(select_classes(tree, path)) < len(tree.classes):
                return shlex.quote(path)
        except HlnetError:
            continue
    return str(tree.indices[0])


def _metric(name: str) -> str:
    known = {
        "val_top1": "top-1 on validation images",
        "val_top5": "top-5 on validation images",
        "val_loss": "loss on validation images",
        "epoch": "after epoch",
    }
    return known.get(name) or _code(name).replace("|", "\\|")  # it stands in a table


def _value(name: str, value: float) -> str:
    if re.search(r"top\d$", name):
        return f"{100 * value:.2f} %"
    return f"{value:.6g}"


def _toml(settings: Mapping[str, Any]) -> str:
    """Settings as TOML, which has no word for nothing."""
    import tomli_w
    from pydantic_core import to_jsonable_python

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): kept(inner) for key, inner in value.items() if inner is not None}
        return [kept("none" if inner is None else inner) for inner in value] if isinstance(value, list) else value

    return tomli_w.dumps(kept(to_jsonable_python(settings, fallback=str))).strip()


def _ticks(text: str, least: int) -> str:
    """A row of backticks that the text does not hold."""
    return "`" * max(least, 1 + max(map(len, re.findall("`+", text)), default=0))


def _code(text: str) -> str:
    """Inline code, whatever the text holds."""
    text = " ".join(text.split())
    ticks, pad = _ticks(text, 1), " " if "`" in text else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def _fenced(text: str, language: str) -> str:
    """A block of code, whatever the text holds."""
    ticks = _ticks(text, 3)
    return f"{ticks}{language}\n{text}\n{ticks}"
