"""Options that say what cues name and how they act."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hlnet.errors import UsageError

if TYPE_CHECKING:
    from hlnet.cues import Attention, Cue
    from hlnet.data import LabelledImages
    from hlnet.provenance import Provenance
    from hlnet.tree import ClassTree


class CueMode(StrEnum):
    """How cues act (``hlnet.cues``)."""

    gain = "gain"
    bias = "bias"
    scale = "scale"


class CueSite(StrEnum):
    """Where a gain acts."""

    leaves = "leaves"
    node = "node"
    path = "path"


AttentionSignal = Annotated[
    str | None,
    typer.Option(
        metavar="NUMBER|auto",
        help="How strongly a cue acts: the factor of a gain or scale (1 is neutral), the shift of a bias; auto takes "
        "what 'hlnet attend' stored.",
    ),
]
Mode = Annotated[
    CueMode | None,
    typer.Option(help="gain: scale features (the paper's, default); bias: shift logits; scale: multiply logits."),
]
SiteOption = Annotated[
    CueSite | None,
    typer.Option(help="Where a gain acts: the leaves under the node (default), the node's own block, the whole path."),
]
Reliability = Annotated[
    float | None,
    typer.Option(help="How often a cue is right, between 0 and 1, in place of a strength; below chance it inhibits."),
]


def attention(
    signal: str | None, mode: CueMode | None, site: CueSite | None, reliability: float | None, provenance: Provenance
) -> Attention:
    """How cues act, of these options.

    Raises:
        UsageError: for a signal that is no number, or ``auto`` where none is stored; for a reliability beside a signal,
            or outside 0 to 1.
    """
    from hlnet.cues import Attention

    if signal is not None and reliability is not None:
        raise UsageError("--attention-signal and --reliability both say how strongly a cue acts; give one of them")
    if reliability is not None and not 0 < reliability < 1:
        raise UsageError(
            f"--reliability {reliability:g} must lie between 0 and 1; of cues that are never wrong, --certain runs "
            "only what they name"
        )
    strength = None
    if signal is not None and signal != "auto":
        try:
            strength = float(signal)
        except ValueError:
            raise UsageError(f"--attention-signal '{signal}': expected a number such as 1.8, or auto") from None
        if not abs(strength) < float("inf") or (strength < 0 and mode is not CueMode.bias):
            raise UsageError(f"--attention-signal {signal} must be a number of at least 0 (1 is neutral, 1.8 enhances)")
    if signal == "auto" and provenance.attention is None:
        raise UsageError(
            "--attention-signal auto: the model holds no fitted attention; 'hlnet attend' finds and stores it"
        )
    return Attention(
        mode=mode.value if mode else "gain",
        site=site.value if site else "leaves",
        strength=strength,
        reliability=reliability,
    )


def wanted(*options: object) -> bool:
    """Whether any option about cues was given."""
    return any(option is not None and option is not False for option in options)


CuesFile = Annotated[
    Path | None,
    typer.Option("--cues", metavar="FILE", help="Cues from a .csv or .jsonl file: image, node, reliability."),
]


def read_cues(path: Path, tree: ClassTree, images: LabelledImages) -> dict[int, tuple[Cue, ...]]:
    """The cues of a file, by position among the images.

    Raises:
        UsageError: as :func:`hlnet.read_cues` and :func:`hlnet.match_cues`.
    """
    from hlnet.cue_files import read_cues
    from hlnet.cue_images import image_names, match_cues

    found = match_cues(read_cues(path, tree), image_names(images), f"'{path}'")
    return {position: tuple(cues) for position, cues in enumerate(found) if cues}


def read_prior(path: Path | None, tree: ClassTree) -> dict[str, float] | None:
    """The prior of a file, by class."""
    from hlnet.cue_prior import read_prior

    return None if path is None else dict(zip(tree.classes, read_prior(path, tree).tolist(), strict=True))
