"""Options that say what cues name and how they act."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hlnet.errors import UsageError

if TYPE_CHECKING:
    from hlnet.cues.apply import CueSource, CueUse
    from hlnet.cues.cue import Attention, Cue
    from hlnet.data.images import LabelledImages
    from hlnet.model.base import Network
    from hlnet.model.fast.optimize import InferenceNet
    from hlnet.model.provenance import Provenance
    from hlnet.tree.class_tree import ClassTree


#: How cues act, and where a gain does (``hlnet.cues``, which would import too much for ``--help``).
CueMode = Literal["gain", "bias", "scale"]
CueSite = Literal["leaves", "node", "path"]


def option(*names: str, **settings: Any) -> Any:
    """An option, listed under its own head."""
    return typer.Option(*names, rich_help_panel="Cues", **settings)


AttentionSignal = Annotated[
    str | None,
    option(
        metavar="NUMBER|auto",
        help="How strongly a cue acts: the factor of a gain or scale (1 is neutral), the shift of a bias; auto takes "
        "what 'hlnet attend' stored.",
    ),
]
Mode = Annotated[
    CueMode | None,
    option(
        help="gain: scale features (the paper's; default for factors); bias: shift logits (default for reliabilities "
        "and shifts); scale: multiply logits."
    ),
]
SiteOption = Annotated[
    CueSite | None,
    option(help="Where a gain acts: the leaves under the node (default), the node's own block, the whole path."),
]
Reliability = Annotated[
    float | None,
    option(help="How often a cue is right, between 0 and 1, in place of a strength; below chance it inhibits."),
]
CuesFile = Annotated[
    Path | None,
    option("--cues", metavar="FILE", help="Cues from a .csv or .jsonl file: image, node, reliability."),
]
CueOption = Annotated[
    list[str] | None,
    option(
        "--cue",
        metavar="NODE=VALUE",
        help="A cue on every image: a reliability (animal/cat=0.9), a factor (=x1.8) or a shift (=+2); repeatable.",
    ),
]
Text = Annotated[
    str | None,
    option("--text", help="Cue every image on what this names: a sound (meow), a caption, a noun."),
]
TextModel = Annotated[
    str | None,
    option(
        "--text-model",
        metavar="NAME|FOLDER",
        help="Find what --text means by this embedding model of sentence-transformers, not by its words.",
    ),
]
Prior = Annotated[
    Path | None,
    option("--prior", metavar="FILE", help="How frequent nodes are where images come from: node,probability."),
]
Certain = Annotated[bool, option("--certain", help="Take cues as certain: run only the classes that they name.")]


def attention(
    signal: str | None, mode: CueMode | None, site: CueSite | None, reliability: float | None, provenance: Provenance
) -> Attention:
    """How cues act that do not say it themselves: as these options say, or where they say nothing, as the file does.

    Raises:
        UsageError: for a signal that is no number, or ``auto`` where none is stored; for a reliability beside a signal,
            or outside 0 to 1.
    """
    from hlnet.cues.cue import MOST, stated_attention

    if signal is not None and reliability is not None:
        raise UsageError("--attention-signal and --reliability both say how strongly a cue acts; give one of them")
    if reliability is not None and not 0 < reliability < 1:
        raise UsageError(
            f"--reliability {reliability:g} must lie between 0 and 1, both excluded; of cues that are never wrong, "
            "--certain runs only what they name"
        )
    strength = None
    if signal is not None and signal != "auto":
        try:
            strength = float(signal)
        except ValueError:
            raise UsageError(f"--attention-signal '{signal}': expected a number such as 1.8, or auto") from None
        least, told = 0.0, "1 is neutral, 1.8 enhances; a shift takes --cue-mode bias"
        if mode == "bias":
            least, told = -MOST, "0 is neutral"
        if not least <= strength <= MOST:
            raise UsageError(f"--attention-signal {signal} must lie between {least:g} and {MOST:g} ({told})")
    if signal == "auto" and provenance.attention is None:
        raise UsageError(
            "--attention-signal auto: the model holds no fitted attention; 'hlnet attend' finds and stores it"
        )
    return stated_attention(provenance, mode, site or "leaves", strength, reliability)


def tell_stored(net: Network, how: Attention, cues: Iterable[Cue] | None, *stated: object) -> None:
    """Say, where cues go by what the file holds, what that is.

    Args:
        cues: that are given; ``None`` are cues from labels, which say nothing themselves.
        stated: --attention-signal and --reliability, which speak for the file where they are there.
    """
    from hlnet.cues.cue import is_silent, log_stored

    if all(one in (None, "auto") for one in stated) and (cues is None or any(map(is_silent, cues))):
        log_stored(net.provenance, how, len(net.tree.classes))


def wanted(*options: object) -> bool:
    """Whether any option about cues was given."""
    return any(option is not None and option is not False for option in options)


def read_cues(path: Path, net: Network, images: LabelledImages, mode: CueMode | None) -> dict[int, tuple[Cue, ...]]:
    """The cues of a file, by position among the images; of an expert, those that it knows of.

    Raises:
        UsageError: as :func:`hlnet.read_cues` and :func:`hlnet.match_cues`.
    """
    from hlnet.cues.cue import settled
    from hlnet.cues.files import match_cues, read_cues
    from hlnet.data.images import image_names

    by_name = read_cues(path, net.tree, skip_unknown=net.provenance.parent_counts is not None)
    found = match_cues(by_name, image_names(images), f"'{path}'")
    return {position: tuple(settled(cue, mode) for cue in cues) for position, cues in enumerate(found) if cues}


def read_prior(path: Path | None, tree: ClassTree) -> dict[str, float] | None:
    """The prior of a file, by class."""
    from hlnet.cues.prior import read_prior

    return None if path is None else dict(zip(tree.classes, read_prior(path, tree).tolist(), strict=True))


def check_certain(net: Network, model: str, *strengths: object, cues: Iterable[Cue] = ()) -> None:
    """Refuse what --certain cannot do, or would pass over; but what a file says of reliability may stand there.

    Raises:
        UsageError: for a plain network, or if one of these options or cues says how strongly it acts.
    """
    from hlnet.cues.cue import is_silent
    from hlnet.model.base import require_branches

    require_branches(net, "to skip", "leave --certain out", name=f"'{model}'")
    if wanted(*strengths) or not all(map(is_silent, cues)):
        raise UsageError(
            "--certain takes cues as facts, which have no strength; leave out what says how strongly they act"
        )


def cue_source(
    net: InferenceNet,
    everywhere: Sequence[Cue],
    file: Path | None,
    use: CueUse,
    mode: CueMode | None,
    stated: tuple[object, ...],
    images: Iterable[str] | None = None,
) -> tuple[CueSource, Callable[[], None]]:
    """What is known of images that come one by one, with what there is to tell; and what to call after the last.

    Args:
        net, everywhere, file, use, mode, images: as :func:`hlnet.cues.files.cue_source` takes them.
        stated: as :func:`tell_stored` takes it.
    """
    from hlnet.cli.shared import output
    from hlnet.cues.files import cue_source

    source, by_image = cue_source(net, everywhere, file, use, mode, images)
    if not use.certain and source.cues:
        tell_stored(net, use.attention, source.cues, *stated)
    if use.certain and everywhere:
        from hlnet.cues.certain import certain_classes, certain_gmacs

        left = len(certain_classes(net.tree, everywhere))
        cost, full = certain_gmacs(net, [everywhere, ()])
        output.hint(
            f"{left} of {len(net.tree.classes)} classes run, at {cost:.3f} instead of {full:.3f} GMACs an image"
        )
    return source, by_image.finish if by_image else lambda: None


def cues_for_all(
    tree: ClassTree, written: Sequence[str], text: str | None, text_model: str | None, mode: CueMode | None
) -> list[Cue]:
    """The cues on every image: those that are written, and what a text names.

    Raises:
        UsageError: if one is malformed or names what the tree does not have, or the text names nothing.
    """
    from hlnet.cues.cue import settled
    from hlnet.cues.embedding import cues_from_embedding
    from hlnet.cues.files import parse_cue
    from hlnet.cues.words import cues_from_text

    found = [settled(parse_cue(one, tree, mode), mode) for one in written]
    if text is None:
        if text_model is not None:
            raise UsageError("--text-model says how to understand a --text, and none is given")
        return found
    heard = cues_from_embedding(text, tree, text_model) if text_model else cues_from_text(text, tree)
    if not heard:
        why = "no node is near it" if text_model else "no word of it is known"
        raise UsageError(f"--text '{text}' gives no cue: {why}, or it names all classes; name nodes with --cue")
    return found + heard
