"""The line that says which images have served for a network before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hlnet.data.images import LabelledImages
    from hlnet.model.provenance import Provenance, Use

#: What images did for a network, as it is said.
DONE: dict[Use, str] = {
    "weights": "trained its weights",
    "epoch": "chose its epoch",
    "temperature": "fitted its temperature",
    "coverage": "fitted its thresholds of a coverage",
    "rejection": "fitted its threshold of 'none of these'",
    "attention": "fitted how strongly its cues act",
}


def hint_at_use(model: str, images: LabelledImages, uses: Sequence[Use], then: str) -> None:
    """Say so, where images have trained, chosen or fitted something of a network already.

    Args:
        model: what the network is called.
        images: the images.
        uses: what they did, :meth:`hlnet.model.provenance.Provenance.uses_of`.
        then: what follows from that.
    """
    from hlnet.cli.shared import output

    if uses:
        done = [DONE[use] for use in dict.fromkeys(uses)]
        told = " and ".join([", ".join(done[:-1]), done[-1]] if done[1:] else done)
        output.hint(
            f"note: these images ({images.name.strip(chr(39))}) {told} ('{model}'): {then}; a third split that served "
            "for nothing (--split test) is fair"
        )


def hint_before_fitting(model: str, known: Provenance, images: LabelledImages) -> None:
    """The same, before something is fitted to them: what else was fitted to them matters not."""
    uses = [use for use in known.uses_of(images.fingerprint()) if use in ("weights", "epoch")]
    hint_at_use(model, images, uses, "the network is surer of them than of fresh ones, and so is what is fitted here")
