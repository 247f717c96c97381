"""Options that say what cues name and how they act."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hlnet.errors import UsageError

if TYPE_CHECKING:
    from hlnet.cues.apply import CueSource, CueUse
    from hlnet.cues.cue import Attention, Cue
    from hlnet.data.images import LabelledImages
    from hlnet.model.fast.optimize import InferenceNet, Net
    from hlnet.model.provenance import Provenance
    from hlnet.tree.class_tree import ClassTree


class CueMode(StrEnum):
    """How cues act (``hlnet.cues.cue``)."""

    gain = "gain"
    bias = "bias"
    scale = "scale"


class CueSite(StrEnum):
    """Where a gain acts."""

    leaves = "leaves"
    node = "node"
    path = "path"


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
    from hlnet.cues.cue import MOST, Attention

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
        if mode is CueMode.bias:
            least, told = -MOST, "0 is neutral"
        if not least <= strength <= MOST:
            raise UsageError(f"--attention-signal {signal} must lie between {least:g} and {MOST:g} ({told})")
    fitted = provenance.attention
    if signal == "auto" and fitted is None:
        raise UsageError(
            "--attention-signal auto: the model holds no fitted attention; 'hlnet attend' finds and stores it"
        )
    if fitted is not None and strength is None and reliability is None:
        mode, reliability = mode or CueMode(fitted.mode), fitted.reliability
    mode = mode or (CueMode.gain if signal is not None else CueMode.bias)
    return Attention(mode=mode.value, site=site.value if site else "leaves", strength=strength, reliability=reliability)


def tell_stored(net: Net, how: Attention, cues: Iterable[Cue] | None, *stated: object) -> None:
    """Say, where cues go by what the file holds, what that is.

    Args:
        cues: that are given; ``None`` are cues from labels, which say nothing themselves.
        stated: --attention-signal and --reliability, which speak for the file where they are there.
    """
    from hlnet.cli.shared import output
    from hlnet.cues.cue import stored_effect

    fitted = net.provenance.attention
    goes_by_file = all(one in (None, "auto") for one in stated) and (cues is None or any(map(_is_silent, cues)))
    if fitted is None or not goes_by_file:
        return
    acting = net.provenance.model_copy(update={"attention": fitted.model_copy(update={"mode": how.mode})})
    if what := stored_effect(acting, len(net.tree.classes)):
        output.hint(
            f"as the model's file holds it, cues count as right in {100 * fitted.reliability:g} % of cases and act, on "
            f"one class, as {what}"
        )


def is_expert(net: Net) -> bool:
    """Whether other classes were cut away."""
    return net.provenance.parent_counts is not None


def settled(cue: Cue, mode: CueMode | None) -> Cue:
    """A cue that says how it acts: as is asked for, else a reliability as a bias and a strength as a gain."""
    if cue.mode is not None or _is_silent(cue):
        return cue
    return cue.model_copy(update={"mode": mode.value if mode else "bias" if cue.strength is None else "gain"})


def _is_silent(cue: Cue) -> bool:
    return cue.reliability is None and cue.strength is None


def wanted(*options: object) -> bool:
    """Whether any option about cues was given."""
    return any(option is not None and option is not False for option in options)


def read_cues(path: Path, net: Net, images: LabelledImages, mode: CueMode | None) -> dict[int, tuple[Cue, ...]]:
    """The cues of a file, by position among the images; of an expert, those that it knows of.

    Raises:
        UsageError: as :func:`hlnet.read_cues` and :func:`hlnet.match_cues`.
    """
    from hlnet.cues.files import match_cues, read_cues
    from hlnet.data.images import image_names

    found = match_cues(read_cues(path, net.tree, is_expert(net)), image_names(images), f"'{path}'")
    return {position: tuple(settled(cue, mode) for cue in cues) for position, cues in enumerate(found) if cues}


def read_prior(path: Path | None, tree: ClassTree) -> dict[str, float] | None:
    """The prior of a file, by class."""
    from hlnet.cues.prior import read_prior

    return None if path is None else dict(zip(tree.classes, read_prior(path, tree).tolist(), strict=True))


def check_certain(net: Net, model: str, *strengths: object, cues: Iterable[Cue] = ()) -> None:
    """Refuse what --certain cannot do, or would pass over; but what a file says of reliability may stand there.

    Raises:
        UsageError: for a plain network, or if one of these options or cues says how strongly it acts.
    """
    if not net.has_branches:
        raise UsageError(f"--certain skips branches, and '{model}' is a plain network, which has none")
    if wanted(*strengths) or not all(map(_is_silent, cues)):
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
    """What is known of images that come one by one; and what to call after the last of them.

    Args:
        everywhere: cues on every image, as :func:`cues_for_all` gives them.
        file: cues of single images; of an expert, those count that it knows of.
        use: how cues act.
        mode: that is asked for, if any.
        stated: as :func:`tell_stored` takes it.
        images: those that will come, if that is known; they are looked through up to the first that the file names.

    Raises:
        UsageError: if the file is malformed, names what the tree does not have or none of the images, or a cue cannot
            act as it is to: all before the first image.
    """
    from hlnet.cli.shared import output
    from hlnet.cues.apply import CueSource
    from hlnet.cues.cue import check_site
    from hlnet.cues.files import CuesByImage, read_cues

    by_name = read_cues(file, net.tree, is_expert(net)) if file is not None else {}
    by_name = {image: [settled(cue, mode) for cue in cues] for image, cues in by_name.items()}
    by_image = CuesByImage(by_name, f"'{file}'") if file is not None else None
    if by_image and images is not None and not any(map(by_image.of, images)):
        by_image.finish()  # which refuses a file for none of what may be many
    single = set(chain.from_iterable(by_name.values()))
    if not use.certain and (everywhere or single):
        check_site(use.attention, [*everywhere, *single])
        _check_acting(net, use, everywhere, "")
        _check_acting(net, use, single, f"'{file}': ")
        tell_stored(net, use.attention, [*everywhere, *single], *stated)
    if use.certain and everywhere:
        from hlnet.cues.certain import certain_classes, certain_gmacs

        left = len(certain_classes(net.tree, everywhere))
        cost, full = certain_gmacs(net, [everywhere, ()])
        output.hint(
            f"{left} of {len(net.tree.classes)} classes run, at {cost:.3f} instead of {full:.3f} GMACs an image"
        )

    def of(image: str) -> list[Cue]:
        return [*everywhere, *(by_image.of(image) if by_image else ())]

    finish = by_image.finish if by_image else lambda: None
    return CueSource(of, use), finish


def cues_for_all(
    tree: ClassTree, written: Sequence[str], text: str | None, text_model: str | None, mode: CueMode | None
) -> list[Cue]:
    """The cues on every image: those that are written, and what a text names.

    Raises:
        UsageError: if one is malformed or names what the tree does not have, or the text names nothing.
    """
    from hlnet.cues.embedding import cues_from_embedding
    from hlnet.cues.files import parse_cue
    from hlnet.cues.words import cues_from_text

    found = [settled(parse_cue(one, tree, mode.value if mode else None), mode) for one in written]
    if text is None:
        if text_model is not None:
            raise UsageError("--text-model says how to understand a --text, and none is given")
        return found
    heard = cues_from_embedding(text, tree, text_model) if text_model else cues_from_text(text, tree)
    if not heard:
        why = "no node is near it" if text_model else "no word of it is known"
        raise UsageError(f"--text '{text}' gives no cue: {why}, or it names all classes; name nodes with --cue")
    return found + heard


def _check_acting(net: Net, use: CueUse, cues: Iterable[Cue], where: str) -> None:
    """Let each cue act once, on nothing."""
    from hlnet.cues.effect import cue_effect

    try:
        for cue in cues:
            cue_effect(net, [[cue]], use.attention, prior=use.prior)
    except UsageError as error:
        raise type(error)(f"{where}{error}") from error
