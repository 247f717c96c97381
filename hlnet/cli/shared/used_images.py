"""The warning that images have served for a network before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hlnet.data.images import LabelledImages
    from hlnet.model.provenance import Provenance, Use

#: Uses of images, as the warning words them.
DONE: dict[Use, str] = {
    "weights": "trained its weights",
    "epoch": "chose its epoch",
    "temperature": "fitted its temperature",
    "coverage": "fitted its thresholds of a coverage",
    "rejection": "fitted its threshold of 'none of these'",
    "attention": "fitted how strongly its cues act",
    "descent": "fitted where its descents stop",
}


def hint_at_use(model: str, images: LabelledImages, uses: Sequence[Use], then: str) -> None:
    """Warn if images have trained, chosen or fitted something of a network already.

    Args:
        model: name of the network.
        images: the images.
        uses: of :meth:`hlnet.model.provenance.Provenance.uses_of`.
        then: the consequence.
    """
    from hlnet.cli.shared import output

    if uses:
        done = [DONE[use] for use in dict.fromkeys(uses)]
        listed = " and ".join([", ".join(done[:-1]), done[-1]] if done[1:] else done)
        output.hint(
            f"note: these images ({images.name.strip(chr(39))}) {listed} ('{model}'): {then}; a third split that "
            "served for nothing (--split test) is fair"
        )


def hint_before_fitting(model: str, known: Provenance, images: LabelledImages) -> None:
    """The same warning, before something is fitted to the images; earlier fits do not matter."""
    uses = [use for use in known.uses_of(images.fingerprint()) if use in ("weights", "epoch")]
    hint_at_use(model, images, uses, "the network is more confident on them than on fresh ones, and so is the fit")
