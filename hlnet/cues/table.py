"""Which cues an image has: from a file, from its label, or the same as all others.

Notable here: a file names images by the ends of their paths, ``cat/1.jpg`` or just ``1.jpg``, so that it fits wherever
the data lie; and images are asked for one by one, so that a stream of them needs no list.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

from hlnet.cues.cue import Cue
from hlnet.cues.effect import cue_effect
from hlnet.cues.hard import check_hard_cues
from hlnet.cues.oracle import DrawnCue
from hlnet.cues.policy import CuePolicy
from hlnet.errors import UsageError, some
from hlnet.model.base import Network
from hlnet.tree.nodes import normal_name

log = logging.getLogger("hlnet")


class LabelCues(NamedTuple):
    """Cues from labels, as :meth:`CueTable.from_labels` takes them."""

    level: int | None
    wrong: DrawnCue
    wrong_share: float | None
    seed: int


class CueTable:
    """The cues of images.

    Args:
        by_image: by image name, as :func:`hlnet.cues.files.read_cues` gives them: a file's name (``1.jpg``), or so
            many folders with it as tell it from others (``cat/1.jpg``, the path relative to the split's folder, or a
            whole path).
        everywhere: cues that every image has.
        source: what they were read from, for messages and reports.

    Attributes:
        by_name: cues by image name, in one form: ``/`` between folders, no ``.`` and ``..``.
        written: these names as they were written.
        lengths: how many parts these names have, in rising order.

    Example:
        >>> table = CueTable({"cat/1.jpg": [Cue(node="cat")]}, everywhere=[Cue(node="saw", reliability=0.2)])
        >>> [[cue.node for cue in cues] for cues in table.rows(["/data/val/cat/1.jpg", "/data/val/dog/1.jpg"])]
        [['saw', 'cat'], ['saw']]
    """

    #: Where cues come from labels.
    labels: LabelCues | None = None

    def __init__(
        self, by_image: Mapping[str, Sequence[Cue]] | None = None, everywhere: Sequence[Cue] = (), source: str = ""
    ) -> None:
        self.everywhere, self.source = tuple(everywhere), source
        self.by_name: dict[str, list[Cue]] = {}
        self.written: dict[str, str] = {}
        for name, own in (by_image or {}).items():
            key = os.path.normpath(normal_name(name).replace("\\", "/"))
            self.by_name.setdefault(key, []).extend(own)
            self.written.setdefault(key, name)
        self.lengths = sorted({key.count("/") + 1 for key in self.by_name})

    @classmethod
    def from_labels(
        cls,
        level: int | None = None,
        wrong: DrawnCue = "random",
        wrong_share: float | None = None,
        seed: int = 0,
    ) -> CueTable:
        """A cue on each image's own class, an oracle, and beside it one on a wrong class; for :func:`hlnet.evaluate`.

        Args:
            level: cue nodes of this level, 1 nearest to the trunk; default: classes.
            wrong: the oracle's opposite: ``random``, any other class, or ``sibling``.
            wrong_share: how many cues are to be wrong, 0 to 1; default: 1 - reliability, where that is given.
            seed: of wrong cues.

        Raises:
            UsageError: for a share outside 0 to 1, or another kind of wrong cues.
        """
        if wrong_share is not None and not 0 <= wrong_share <= 1:
            raise UsageError(f"a share of {wrong_share:g} wrong cues: expected a number between 0 and 1")
        if wrong not in get_args(DrawnCue):
            raise UsageError(f"wrong cues '{wrong}': expected {' or '.join(get_args(DrawnCue))}")
        table = cls(source="each image's own label (an oracle)")
        table.labels = LabelCues(level, wrong, wrong_share, seed)
        return table

    @property
    def all_cues(self) -> list[Cue]:
        """All cues that an image may have, each once; none of labels."""
        return list(dict.fromkeys([*self.everywhere, *(cue for own in self.by_name.values() for cue in own)]))

    def rows(self, images: Iterable[str | Path]) -> list[list[Cue]]:
        """The cues of each image of a whole list.

        Raises:
            UsageError: if a name fits two images, or no name fits any.
        """
        matching = CueMatching(self)
        found = [matching.cues_of(image) for image in images]
        matching.finish()
        return found

    def check(self, net: Network, policy: CuePolicy) -> None:
        """Let each cue act once, on nothing.

        Raises:
            UsageError: if one cannot act on the network as the policy has it, or cues come from labels.
        """
        if self.labels is not None:
            raise UsageError("cues from labels are for evaluate(); give those of a file, or cues on every image")
        cues = self.all_cues
        if cues and policy.hard:
            check_hard_cues(net)
        for cue in () if policy.hard else cues:
            try:
                cue_effect(net, [[cue]], policy)
            except UsageError as error:
                where = "" if cue in self.everywhere or not self.source else f"{self.source}: "
                raise type(error)(f"{where}{error}") from error


class CueMatching:
    """The cues of images that come one by one, and which names of the table they have fitted so far.

    Args:
        table: the cues.
    """

    def __init__(self, table: CueTable) -> None:
        self.table = table
        self._images: dict[str, str] = {}  # the image that each name was found to mean

    def cues_of(self, image: str | Path) -> list[Cue]:
        """The cues of one image: those on every image, then those that name it.

        Raises:
            UsageError: if a name in the file fits this image and another one that was asked for.
        """
        return [*self.table.everywhere, *self.cues_naming(image)]

    def cues_naming(self, image: str | Path) -> list[Cue]:
        """The cues that name one image.

        Raises:
            UsageError: as :meth:`cues_of`.
        """
        whole = normal_name(os.path.abspath(image)).replace("\\", "/")
        pieces = whole.split("/")
        found: list[Cue] = []
        for length in self.table.lengths:
            key = "/".join(pieces[-length:])
            if length > len(pieces) or key not in self.table.by_name:
                continue
            other = self._images.setdefault(key, whole)
            if other != whole:
                raise UsageError(
                    f"{self._where}: '{self.table.written[key]}' is both '{other}' and '{whole}'; write more of the "
                    "path"
                )
            found += self.table.by_name[key]
        return found

    def finish(self) -> None:
        """After the last image: tell, in the log ``hlnet``, of names that fitted none.

        Raises:
            UsageError: if no name fitted any.
        """
        names = self.table.written
        left = [name for key, name in names.items() if key not in self._images]
        if names and not self._images:
            raise UsageError(
                f"{self._where}: none of the images named there ({some(left, 3)}) is among those that were looked at; "
                "names are file names, or ends of paths such as cat/1.jpg"
            )
        if left:
            log.warning("%s: %d of %d images named there fit none: %s", self._where, len(left), len(names), some(left))

    @property
    def _where(self) -> str:
        return self.table.source or "the cues"
