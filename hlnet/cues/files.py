"""Cues as a user writes them: one on the command line, or many in a file, which says for which image each is.

Notable here: a file names images by the ends of their paths, ``cat/1.jpg`` or just ``1.jpg``, so that it fits wherever
the data lie; and images are asked for one by one, so that a stream of them needs no list.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

from hlnet.cues.apply import CueSource, CueUse
from hlnet.cues.cue import MOST, Cue, Mode, check_site, settled
from hlnet.cues.effect import cue_effect
from hlnet.cues.rows import read_rows
from hlnet.errors import UsageError, some
from hlnet.model.base import Network
from hlnet.tree.class_tree import ClassTree
from hlnet.tree.selection import known_part, select_classes

log = logging.getLogger("hlnet")

#: The sign of a strength, and a number; without a sign, that is a reliability.
_VALUE = re.compile(r"([x×*+-]?)\s*((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)", re.IGNORECASE)


def parse_cue(text: str, tree: ClassTree | None = None, mode: Mode | None = None) -> Cue:
    """Read a cue as it is written on the command line: what it names, then how much it says.

    - ``animal/cat``: no more than that; how strongly it acts is said elsewhere.
    - ``animal/cat=0.9``: a reliability, above 0 and below 1.
    - ``animal/cat=x1.8``: a strength, as the factor of a gain, or of a scale if that is the mode.
    - ``animal/cat=+2`` or ``=-2``: a strength, as the shift of a bias.

    What is named may be any selection (:func:`hlnet.select_classes`): ``tabby,siamese=0.9`` is one cue, which says that
    the class is one of the two. The last ``=`` counts, and blanks around it do not.

    Args:
        text: the cue.
        tree: where what is named is looked up, so that an error comes at once, and a name may hold a ``=``.
        mode: how the cue is to act, where that is known: a factor is no shift.

    Raises:
        UsageError: if nothing is named, what follows the ``=`` is none of these, or is none for this mode.
        SelectionError: if the tree has no such node, with those of names near to it.

    Example:
        >>> parse_cue("animal/cat=0.9"), parse_cue("tabby, siamese = x1.8").strength
        (Cue(node='animal/cat', reliability=0.9, strength=None, mode=None), 1.8)
    """
    node, sign, value = text.rpartition("=")
    found = _VALUE.fullmatch(value.strip()) if sign else None
    if tree is not None and text.strip() in tree.node_names.words:  # a name goes before any sign
        found = None
    elif sign and not found and not (tree and _selects(tree, text)):
        raise UsageError(
            f"cue '{text}': '{value.strip()}' is neither a reliability, such as =0.9, nor a strength, such as =x1.8 "
            "(a factor) or =+2 (a shift)"
        )
    node = (node if found else text).strip()
    if not node:
        raise UsageError(f"cue '{text}' names no node; expected one such as animal/cat, animal/cat=0.9 or tabby=x1.8")
    if tree is not None:
        select_classes(tree, node)
    if not found:
        return make_cue(node)
    kind, number = found[1], float(found[2])
    if not kind:
        return make_cue(node, number)
    shifts = kind in "+-"
    if mode is not None and (mode == "bias") != shifts:
        kinds = ("a factor", "a bias is a shift, such as =+2")
        if mode != "bias":
            kinds = ("a shift", f"a {mode} is a factor, such as =x1.8")
        raise UsageError(f"cue '{text}': '{value.strip()}' is {kinds[0]}, but {kinds[1]}")
    cue = make_cue(node, strength=-number if kind == "-" else number)
    return cue.model_copy(update={"mode": mode or ("bias" if shifts else "gain")})


def make_cue(node: str, reliability: float | None = None, strength: float | None = None) -> Cue:
    """A cue of these values.

    Raises:
        UsageError: for a reliability outside 0 to 1 or a strength beyond a million; where both are given.

    Example:
        >>> make_cue("cat", 90)
        Traceback (most recent call last):
        hlnet.errors.UsageError: the cue on 'cat' has the reliability 90: it must lie between 0 and 1, both excluded; \
where a cue cannot be wrong, run only what it names (certain)
    """
    if reliability is not None and not 0 < reliability < 1:
        raise UsageError(
            f"the cue on '{node}' has the reliability {reliability:g}: it must lie between 0 and 1, both excluded; "
            "where a cue cannot be wrong, run only what it names (certain)"
        )
    if strength is not None and not abs(strength) <= MOST:
        raise UsageError(
            f"the cue on '{node}' has the strength {strength:g}: it must lie between -{MOST:g} and {MOST:g}"
        )
    if reliability is not None and strength is not None:
        raise UsageError(f"the cue on '{node}' has both a reliability and a strength; one replaces the other")
    return Cue(node=node, reliability=reliability, strength=strength)


def read_cues(path: str | Path, tree: ClassTree, skip_unknown: bool = False) -> dict[str, list[Cue]]:
    """Read a file of cues for images; of several for one image, each is there, in the file's order.

    That an image has a cue on the same node twice is told in the log ``hlnet``, since they count as independent.

    Args:
        path: a ``.csv`` file with the columns ``image`` and ``node``, and ``reliability`` or ``strength`` or both, of
            which a row fills at most one; or a ``.jsonl`` file, each line an object with these keys.
        tree: where nodes are looked up; each may be any selection (:func:`hlnet.select_classes`).
        skip_unknown: leave out what cues name and the tree does not have, and tell in the log how many are left out
            altogether: an expert has some of the nodes only that a station's record of sounds names.

    Returns:
        cues by the image's name as it is written; :class:`hlnet.cues.files.CuesByImage` finds an image's.

    Raises:
        UsageError: if the file cannot be read, holds no cue, or one that is not as it should be; with the line.
        SelectionError: if the tree has no such node; with the line.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "heard.csv"
        >>> _ = file.write_text("image,node,reliability\\n1.jpg,cat,0.9\\n")
        >>> read_cues(file, ClassTree.from_nested({"cat": ["tabby", "siamese"], "saw": {}}))
        {'1.jpg': [Cue(node='cat', reliability=0.9, strength=None, mode=None)]}
    """
    found: dict[str, list[Cue]] = {}
    unknown: list[str] = []
    twice = 0
    for where, row in read_rows(path, ("image", "node"), ("reliability", "strength")):
        try:
            cue = make_cue(row["node"], *(_number(row, column) for column in ("reliability", "strength")))
            if skip_unknown:
                part = known_part(tree, cue.node)
                if not part:
                    unknown.append(cue.node)
                    continue
                cue = cue.model_copy(update={"node": part})
            select_classes(tree, cue.node)
        except UsageError as error:
            raise type(error)(f"{where}: {error}") from error
        own = found.setdefault(row["image"], [])
        twice += any(cue.node == other.node for other in own)
        own.append(cue)
    if unknown and not found:
        raise UsageError(f"'{path}' names nothing that this tree has: {some(dict.fromkeys(unknown), 5)}")
    if unknown:
        log.warning(
            "'%s': rows that name what this tree does not have are left out, %d of them: %s",
            *(path, len(unknown), some(dict.fromkeys(unknown), 5)),
        )
    if twice:
        log.warning(
            "'%s': rows that repeat another's image and node count as independent evidence, %d of them", path, twice
        )
    return found


class CuesByImage:
    """Which cues an image has, by the end of its path.

    Args:
        cues: by image name, as :func:`hlnet.cues.files.read_cues` gives them: a file's name (``1.jpg``), or so many
            folders with it as tell it from others (``cat/1.jpg``, the path relative to the split's folder, or a whole
            path).
        source: what they were read from, for messages.

    Example:
        >>> cues = CuesByImage({"cat/1.jpg": [Cue(node="cat")]})
        >>> cues.of("/data/val/cat/1.jpg"), cues.of("/data/val/dog/1.jpg")
        ([Cue(node='cat', reliability=None, strength=None, mode=None)], [])
    """

    def __init__(self, cues: Mapping[str, Sequence[Cue]], source: str = "the cues") -> None:
        self.source = source
        self._cues: dict[str, list[Cue]] = {}
        self._written: dict[str, str] = {}
        for name, own in cues.items():
            key = os.path.normpath(name.replace("\\", "/"))
            self._cues.setdefault(key, []).extend(own)
            self._written.setdefault(key, name)
        self._lengths = sorted({key.count("/") + 1 for key in self._cues})
        self._images: dict[str, str] = {}  # the image that each name was found to mean

    def of(self, image: str | Path) -> list[Cue]:
        """The cues of one image; none if the file does not name it.

        Raises:
            UsageError: if a name in the file fits this image and another one that was asked for.
        """
        whole = os.path.abspath(image).replace("\\", "/")
        pieces = whole.split("/")
        found: list[Cue] = []
        for length in self._lengths:
            key = "/".join(pieces[-length:])
            if length > len(pieces) or key not in self._cues:
                continue
            other = self._images.setdefault(key, whole)
            if other != whole:
                raise UsageError(
                    f"{self.source}: '{self._written[key]}' is both '{other}' and '{whole}'; write more of the path"
                )
            found += self._cues[key]
        return found

    def finish(self) -> None:
        """After the last image: tell, in the log ``hlnet``, of names that fitted none.

        Raises:
            UsageError: if no name fitted any.
        """
        left = [name for key, name in self._written.items() if key not in self._images]
        if not self._images:
            raise UsageError(
                f"{self.source}: none of the images named there ({some(left, 3)}) is among those that were looked at; "
                "names are file names, or ends of paths such as cat/1.jpg"
            )
        if left:
            log.warning(
                "%s: %d of %d images named there fit none: %s", self.source, len(left), len(self._cues), some(left)
            )


def match_cues(
    cues: Mapping[str, Sequence[Cue]], images: Iterable[str | Path], source: str = "the cues"
) -> list[list[Cue]]:
    """The cues of each image of a list; see :class:`CuesByImage`, for a stream.

    Raises:
        UsageError: if a name fits two images, or no name fits any.

    Example:
        >>> match_cues({"1.jpg": [Cue(node="cat")]}, ["val/cat/0.jpg", "val/cat/1.jpg"])
        [[], [Cue(node='cat', reliability=None, strength=None, mode=None)]]
    """
    by_image = CuesByImage(cues, source)
    found = [by_image.of(image) for image in images]
    by_image.finish()
    return found


def cue_source(
    net: Network,
    everywhere: Sequence[Cue],
    file: Path | None,
    use: CueUse,
    mode: Mode | None = None,
    images: Iterable[str] | None = None,
) -> tuple[CueSource, CuesByImage | None]:
    """What is known of images that come one by one; and the file's cues, whose ``finish`` follows the last of them.

    Args:
        net: the network.
        everywhere: cues on every image.
        file: cues of single images; of an expert, those count that it knows of.
        use: how cues act.
        mode: that is asked for, if any.
        images: those that will come, if that is known; they are looked through up to the first that the file names.

    Raises:
        UsageError: if the file is malformed, names what the tree does not have or none of the images, or a cue cannot
            act as it is to: all before the first image.
    """
    by_image = None
    single: set[Cue] = set()
    if file is not None:
        by_name = read_cues(file, net.tree, skip_unknown=net.provenance.parent_counts is not None)
        by_name = {image: [settled(cue, mode) for cue in cues] for image, cues in by_name.items()}
        by_image, single = CuesByImage(by_name, f"'{file}'"), set(chain.from_iterable(by_name.values()))
        if images is not None and not any(map(by_image.of, images)):
            by_image.finish()  # which refuses a file for none of what may be many
    if not use.certain and (everywhere or single):
        check_site(use.attention, [*everywhere, *single])
        _check_acting(net, use, everywhere, "")
        _check_acting(net, use, single, f"'{file}': ")

    def of(image: str) -> list[Cue]:
        return [*everywhere, *(by_image.of(image) if by_image else ())]

    return CueSource(of, use, (*everywhere, *single)), by_image


# ---------------------------------------------------------------------- helpers


def _check_acting(net: Network, use: CueUse, cues: Iterable[Cue], where: str) -> None:
    """Let each cue act once, on nothing."""
    try:
        for cue in cues:
            cue_effect(net, [[cue]], use.attention, prior=use.prior)
    except UsageError as error:
        raise type(error)(f"{where}{error}") from error


def _selects(tree: ClassTree, text: str) -> bool:
    try:
        return bool(select_classes(tree, text))
    except UsageError:
        return False


def _number(row: Mapping[str, str], column: str) -> float | None:
    if column not in row:
        return None
    try:
        return float(row[column])
    except ValueError:
        wanted = "a probability such as 0.9" if column == "reliability" else "a factor or a shift such as 1.8"
        raise UsageError(f"{column} '{row[column]}' is no number; expected {wanted}") from None
