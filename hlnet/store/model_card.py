"""The model card: what a network is, what it costs, how well it does and how to use it, as the Hub's ``README.md``.

Notable here: nothing is typed in. Classes, costs, accuracy and recipe come out of the network and its provenance, so
that a card cannot say anything else than the file; only what no file knows is asked for (:class:`CardFacts`).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, TypedDict

from huggingface_hub import ModelCard, ModelCardData

from hlnet.cues.cue import stored_effect
from hlnet.cues.cue_aware import is_trained
from hlnet.errors import HlnetError, some
from hlnet.model.cost import Cost, network_cost, profile
from hlnet.model.hierarchical import HierarchicalNet
from hlnet.tree.selection import select_classes
from hlnet.version import __version__

if TYPE_CHECKING:
    from jinja2 import Template

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
    text = _template().render(
        title=title or f"{count} class{'es' if count > 1 else ''} on {model.config.backbone}",
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
    return ModelCard(f"---\n{front.to_yaml()}\n---\n\n{text}")


# ---------------------------------------------------------------------- helpers


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined
    )
    environment.filters |= {"code": _code, "fenced": _fenced, "figure": _figure}
    return environment.from_string(TEMPLATE)


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


def _figure(value: float) -> str:
    """Three decimals, or for small values three digits."""
    return f"{value:.3f}" if value >= 1 else f"{value:.3g}"


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


TEMPLATE = """\
# {{ title }}

{% if kind == "full" %}
An image classifier of hlnet's: the early stages of `{{ backbone }}` feed a tree of small branches, and each leaf gives
one class's logit. A network for some of the classes, an *expert*, is cut out of it in a moment, without images or
training; a cue from outside can enhance or inhibit the features of single branches.
{% elif kind == "expert" %}
An image classifier of hlnet's, and an *expert*: cut from a full network of {{ provenance.parent_counts[-1] }} classes
(the early stages of `{{ backbone }}`, and a tree of small branches), of which it keeps the paths to its own. Its logits
are those that the full network gives for these classes.
{% if provenance.parent %}
The full network's fingerprint is `{{ provenance.parent }}`.
{% endif %}
{% else %}
A plain image classifier, `{{ backbone }}` of timm's, as hlnet trains it for comparison with its hierarchical networks.
{% endif %}
Written by hlnet {{ version }}.

{% if about %}
{{ about }}

{% endif %}
## Classes

{{ count }} class{{ "es" if count > 1 }}: {{ classes }}.
{%- if kind != "plain" %} The class tree has {{ tree.counts | join(", ") }} nodes at its levels, level 1 nearest to the
trunk.
{%- endif %}


{% if folded %}
<details><summary>All of them</summary>

{% endif %}
{{ listing | fenced("text") }}
{% if folded %}

</details>
{% endif %}

## Data

Trained on: {{ data | code if data else "not stated" }}. Images are expected with {{ transform.input_size[0] }} channels
and {{ transform.input_size[1] }} × {{ transform.input_size[2] }} pixels ({{ transform.interpolation }}, {{
transform.crop_mode }} crop of {{ "%g" | format(100 * transform.crop_pct) }} %), normalised with mean {{
transform.mean | join(", ") }} and deviation {{ transform.std | join(", ") }}; the commands below see to that.
{% if license %}
Licence: {{ license }}.
{% else %}
No licence is stated.
{% endif %}

## Cost

One image, counted by `hlnet profile`; one fused multiply-add is one MAC.

|{% for name in costs %} | {{ name }}{% endfor %} |
|---|{{ "---|" * costs | length }}
| classes{% for cost in costs.values() %} | {{ cost.classes }}{% endfor %} |
| parameters{% for cost in costs.values() %} | {{ "{:,}".format(cost.params) }}{% endfor %} |
| GMACs{% for cost in costs.values() %} | {{ cost.gmacs | figure }}{% endfor %} |
| weights, MB{% for cost in costs.values() %} | {{ (cost.bytes / 1e6) | figure }}{% endfor %} |

{% if parts %}
By part:

| | nodes | parameters | GMACs |
|---|---|---|---|
{% for part in parts %}
| {{ part.name }} | {{ part.nodes }} | {{ "{:,}".format(part.params) }} | {{ (part.macs / 1e9) | figure }} |
{% endfor %}

{% endif %}
## Accuracy

{% if metrics %}
| | |
|---|---|
{% for name, value in metrics.items() %}
| {{ name }} | {{ value }} |
{% endfor %}

Measured during training{% if data %} on {{ data | code }}{% endif %}. Where validation images also chose the epoch,
their figure flatters a little; images that chose nothing tell more.
{% elif kind == "expert" %}
Not measured for this cut. On images of its classes it does what the full network does when only these compete.
{% else %}
Not measured.
{% endif %}
{% if cue is not none %}

A cue on a class that is right in {{ "%g" | format(100 * provenance.attention.reliability) }} % of cases
{{ "was trained to act as" if trained else "served best as" }} {{ cue }}
{%- if provenance.attention.data %}, on {{ provenance.attention.data | code }}{% endif %}.
{% endif %}

## Training

{% if recipe %}
{{ ("The full network's recipe:" if kind == "expert" else "The recipe:") }}
(Network, input and tree are in `config.json`.)

{{ recipe | fenced("toml") }}
{% else %}
No recipe came with the weights.
{% endif %}

## How to use

The name may also be `local-dir:FOLDER`, a copy of this folder.

```bash
hlnet predict {{ name }} photo.jpg
hlnet eval {{ name }} --data photos
{% if kind != "plain" %}
hlnet profile {{ name }}
{% if count > 1 %}
hlnet make-expert {{ name }} --classes {{ selection }} --out expert.safetensors --verify
{% endif %}
{% endif %}
```

```python
import hlnet

net = hlnet.load_checkpoint("{{ name }}")
for found in hlnet.predict(hlnet.optimize(net), ["photo.jpg"]):
    print(found.error or found.labels)
```

## Limits

{% if provenance.one_vs_all %}
- Each class's probability is its own (it was trained one against all): they need not add up to 100 %.
{% elif count == 1 %}
- With one class there is no probability, only a score.
{% else %}
- Probabilities are shares among this network's own {{ count }} classes: they add up to 100 % whatever the image shows,
  also if it shows none of them.
{% endif %}
{% if provenance.rejection %}
- It says "none of these" where its {{ provenance.rejection.score }} is below
  {{ "%.4g" | format(provenance.rejection.threshold) }}: fitted so that at most
  {{ "%g" | format(100 * provenance.rejection.max_false_positive) }} % of images of other classes are taken for its own,
  if they are like those it was fitted on.
{% else %}
- It cannot say "none of these": no threshold was fitted.
{% endif %}
{% if provenance.conformal %}
- Answers with `hlnet predict --coverage` hold as often as asked for images like the
  {{ provenance.conformal.images }} of {{ provenance.conformal.data | code }} that their thresholds were fitted on,
  on average over classes.
{% endif %}
{% if kind != "plain" %}
- An expert knows nothing of the classes that were left out.
- A cue helps only when it is right; a wrong one costs accuracy.
- The tree says which classes share features, and nothing about the world.
{% endif %}
- On images of another kind than it was trained with, its accuracy is unknown until somebody measures it: `hlnet eval`.

## Citation

The network is that of this paper; hlnet is an implementation of its own.

```bibtex
@inproceedings{kelm2024dynamic,
  title     = {Dynamic Inference and Top-down Attention in a Hierarchical Classification Network},
  author    = {Kelm, Andr{\\'e} Peter and Hannemann, Niels and Heberle, Bruno and Schmidt, Lucas and Rolff, Tim and
               Wilms, Christian and Yaghoubi, Ehsan and Frintrop, Simone},
  booktitle = {Pattern Recognition (ICPR 2024)},
  series    = {Lecture Notes in Computer Science},
  publisher = {Springer Nature Switzerland},
  pages     = {221--237},
  year      = {2024},
  doi       = {10.1007/978-3-031-78186-5_15}
}
```
"""
