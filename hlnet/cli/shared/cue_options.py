"""Options of cues: their targets, and how they act."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hlnet.errors import UsageError

if TYPE_CHECKING:
    from hlnet.cues.cue import Cue
    from hlnet.cues.policy import CuePolicy
    from hlnet.cues.table import CueTable
    from hlnet.model.base import Network
    from hlnet.model.fast.optimize import InferenceNet
    from hlnet.tree.class_tree import ClassTree


#: How cues act (``hlnet.cues``, which would import too much for ``--help``).
CueMode = Literal["gain", "bias", "scale"]


def option(*names: str, **settings: Any) -> Any:
    """An option, listed under its own head."""
    return typer.Option(*names, rich_help_panel="Cues", **settings)


AttentionSignal = Annotated[
    str | None,
    option(
        metavar="NUMBER|auto",
        help="Strength of a cue: the factor of a gain or scale (1 is neutral), or the shift of a bias; auto takes the "
        "one that 'hlnet attend' stored.",
    ),
]
Mode = Annotated[
    CueMode | None,
    option(
        help="gain: scale features (the paper's; default for factors); bias: shift logits (default for reliabilities "
        "and shifts); scale: multiply logits."
    ),
]
Reliability = Annotated[
    float | None,
    option(help="How often a cue is right, between 0 and 1, instead of a strength; below chance it inhibits."),
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
    option("--text", help="Cue every image on the classes that this names: a sound (meow), a caption, a noun."),
]
TextModel = Annotated[
    str | None,
    option(
        "--text-model",
        metavar="NAME|FOLDER",
        help="Interpret --text by this embedding model of sentence-transformers, not by its words.",
    ),
]
Prior = Annotated[
    Path | None,
    option("--prior", metavar="FILE", help="Frequencies of nodes where the images come from: node,probability."),
]
Hard = Annotated[bool, option("--hard", help="Hard cues: run only the classes that they name.")]


def cue_policy(
    signal: str | None,
    mode: CueMode | None,
    reliability: float | None,
    net: Network,
    hard: bool = False,
    prior: Path | None = None,
) -> CuePolicy:
    """The policy of these options.

    Raises:
        UsageError: for a signal that is no number, or ``auto`` where none is stored; for a reliability outside 0 to 1,
            or together with a signal.
    """
    from hlnet.cues.cue import MOST
    from hlnet.cues.policy import CuePolicy

    if signal is not None and reliability is not None:
        raise UsageError("--attention-signal and --reliability both say how strongly a cue acts; give one of them")
    if reliability is not None and not 0 < reliability < 1:
        raise UsageError(
            f"--reliability {reliability:g} must lie between 0 and 1, both excluded; of cues that are never wrong, "
            "--hard runs only what they name"
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
    if signal == "auto" and net.provenance.attention is None:
        raise UsageError(
            "--attention-signal auto: the model holds no fitted strength; 'hlnet attend --save' stores one"
        )
    return CuePolicy(
        mode=mode, strength=strength, reliability=reliability, hard=hard, prior=read_prior(prior, net.tree)
    )


def log_stored_cues(net: Network, policy: CuePolicy, cues: Iterable[Cue] | None) -> None:
    """Report the stored strength if cues act by it.

    Args:
        cues: that are given; ``None`` are cues from labels, which have no strength of their own.
    """
    if not policy.hard and (cues is None or any(cue.is_silent for cue in cues)):
        policy.log_stored(net.provenance, len(net.tree.classes))


def wanted(*options: object) -> bool:
    """Whether any option about cues was given."""
    return any(option is not None and option is not False for option in options)


def cue_table(path: Path | None, net: Network, everywhere: Sequence[Cue] = ()) -> CueTable:
    """The cues of a file, and those on every image; of an expert, those of the file that it knows of.

    Raises:
        UsageError: as :func:`hlnet.cues.files.read_cues`.
    """
    from hlnet.cues.files import read_cues
    from hlnet.cues.table import CueTable

    if path is None:
        return CueTable(everywhere=everywhere)
    by_image = read_cues(path, net.tree, skip_unknown=net.provenance.parent_counts is not None)
    return CueTable(by_image, everywhere, f"'{path}'")


def read_prior(path: Path | None, tree: ClassTree) -> dict[str, float] | None:
    """The prior of a file, by class."""
    from hlnet.cues.prior import read_prior

    return None if path is None else dict(zip(tree.classes, read_prior(path, tree).tolist(), strict=True))


def check_hard_cues(net: Network, model: str, *strengths: object, cues: Iterable[Cue] = ()) -> None:
    """Refuse what --hard cannot do, or would ignore; only the reliabilities of a file may be there.

    Raises:
        UsageError: for a plain network, or if one of these options or cues says how strongly it acts.
    """
    from hlnet.model.base import require_branches

    require_branches(net, "to skip", "leave --hard out", name=f"'{model}'")
    if wanted(*strengths) or not all(cue.is_silent for cue in cues):
        raise UsageError("--hard takes cues as facts, which have no strength; leave strengths and reliabilities out")


def log_hard_cues(net: InferenceNet, everywhere: Sequence[Cue]) -> None:
    """Say how many classes run, and at what cost, where cues on every image are hard."""
    from hlnet.cli.shared import output
    from hlnet.cues.hard import hard_cue_classes, hard_cue_gmacs

    left = len(hard_cue_classes(net.tree, everywhere))
    cost, full = hard_cue_gmacs(net, [everywhere, ()])
    output.hint(f"{left} of {len(net.tree.classes)} classes run, at {cost:.3f} instead of {full:.3f} GMACs per image")


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

    cues = [parse_cue(one, tree, mode) for one in written]
    if text is None:
        if text_model is not None:
            raise UsageError("--text-model interprets a --text, and none is given; add --text")
        return cues
    heard = cues_from_embedding(text, tree, text_model) if text_model else cues_from_text(text, tree)
    if not heard:
        why = "no node is near it" if text_model else "no word of it is known"
        raise UsageError(f"--text '{text}' gives no cue: {why}, or it names all classes; name nodes with --cue")
    return cues + heard
