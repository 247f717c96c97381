"""One network that answers at once, while cues and cuts change: what ``hlnet app`` asks.

Notable here: an image passes the full network once, when it is first seen. A cut is an expert at run time of the
inference form, so an answer takes as long as the branches that are left; maps are taken from the training form, of the
few blocks that are looked at.
"""

from __future__ import annotations

import hashlib
import io
from base64 import b64encode
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from hlnet.cues.cue import Cue, Mode, Strength
from hlnet.cues.effect import Effect, cue_effect
from hlnet.cues.policy import CuePolicy
from hlnet.data.images import open_image
from hlnet.data.tree_data import eval_transform
from hlnet.errors import UsageError
from hlnet.evaluation.metrics.probability import class_probabilities
from hlnet.model.base import TrainableNetwork, require_branches
from hlnet.model.cost import total_cost, unit_costs
from hlnet.model.fast.optimize import InferenceNet, optimize
from hlnet.model.hierarchical import HierarchicalNet
from hlnet.tree.class_tree import ClassTree
from hlnet.view.branch_maps import Place, activity, block_outputs, path_at, path_places
from hlnet.view.look import Numbers, as_numbers, as_pixels, scale_end

MOST_CHOICES, MOST_MAPS, MOST_IMAGES = 8, 12, 8
COLOURS = "viridis"


class ForgottenImageError(UsageError):
    """The image was not seen, or too many others since."""


class Seen(BaseModel):
    """An image that was taken in: what it is called from now on, and what the network sees of it, as a data URI."""

    image: str
    picture: str


class Question(BaseModel):
    """What is asked of an image.

    Attributes:
        image: as :meth:`LiveNet.see` called it.
        cues: paths of nodes.
        mode, strength, reliability: how each cue acts, see :class:`hlnet.CuePolicy`.
        cut: paths of nodes that are cut away with all below them.
        looked_at: paths of nodes whose maps are wanted.
    """

    model_config = ConfigDict(extra="forbid")

    image: str
    cues: list[str] = []
    mode: Mode = "bias"
    strength: Strength | None = None
    reliability: float | None = Field(default=None, gt=0, lt=1)
    cut: list[str] = []
    looked_at: list[str] = []


class Choice(BaseModel):
    """A class's logit and probability, of the full network without a cue, and now; now there is none if it is cut."""

    name: str
    path: str
    logit: float
    probability: float
    logit_now: float | None
    probability_now: float | None


class CostNow(BaseModel):
    """What a network costs: its classes, its nodes by level, parameters, and 1e9 multiply-accumulates an image."""

    classes: int
    nodes: tuple[int, ...]
    params: int
    gmacs: float


class BranchMap(BaseModel):
    """A node's activity as data URIs, without and with the cues where these change it; ``top`` ends the colours' scale.

    Attributes:
        level: 1 is nearest to the trunk.
        after: ``None`` where cues leave it as it is.
    """

    path: str
    level: int
    before: str
    after: str | None
    top: float


class Answer(BaseModel):
    """What the network says now.

    Attributes:
        choices: the most probable classes now, then those that were the best without cues and cuts.
        full, now: what the full network costs, and what is left of it.
        maps: of the path to the best class, of what is cued, of what is looked at; level by level.
    """

    choices: list[Choice]
    full: CostNow
    now: CostNow
    maps: list[BranchMap]


class _Known(NamedTuple):
    """An image's features, and the full network's logits and probabilities without a cue."""

    features: Tensor
    logits: Numbers
    shares: Numbers


class LiveNet:
    """A network for one person at a time; calls from several threads wait for each other.

    Args:
        net: a full network or an expert; it is put in evaluation mode.

    Raises:
        UsageError: for a plain network.

    Example:
        >>> import hlnet
        >>> from hlnet.model.transform import InputTransform
        >>> net = hlnet.create_model("test_resnet", tree={"cat": ["tabby", "siamese"], "dog": ["beagle"]})
        >>> net.transform = InputTransform(input_size=(3, 32, 32))
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (40, 30)).save(file, "png")
        >>> live = LiveNet(net)
        >>> seen = live.see(file.getvalue())
        >>> answer = live.answer(Question(image=seen.image, cues=["cat"], reliability=0.9, cut=["dog"]))
        >>> answer.now.classes, answer.full.nodes, [choice.probability_now is None for choice in answer.choices]
        (2, (2, 3), [False, False, True])
    """

    def __init__(self, net: TrainableNetwork) -> None:
        require_branches(net, "to cue, cut or look at", "give a tree of branches")
        assert isinstance(net, HierarchicalNet)
        self.net = net.eval()
        self._fast = optimize(net)
        self._units, _ = unit_costs(net.config, net.transform)
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._lock = Lock()

    @property
    def tree(self) -> ClassTree:
        """The full network's class tree."""
        return self.net.tree

    def see(self, content: bytes, name: str = "image") -> Seen:
        """Take in an image file; ``name`` is for messages.

        Raises:
            DataError: if it cannot be read.
        """
        batch = eval_transform(self.net.transform)(open_image(name, io.BytesIO(content)))[None].to(self.net.device)
        image = hashlib.sha256(content).hexdigest()[:32]
        with self._lock, torch.inference_mode():
            features = self._fast.features(batch)
            self._known[image] = _Known(features, *self._run(self._fast, features, Effect()))
            while len(self._known) > MOST_IMAGES:
                self._known.popitem(last=False)
        pixels = (255 * as_pixels(batch, self.net.transform)[0]).round().astype(np.uint8)
        return Seen(image=image, picture=_uri(Image.fromarray(pixels)))

    def answer(self, question: Question) -> Answer:
        """What the network says of an image.

        Raises:
            ForgottenImageError: if the image is not there any more; see it again.
            UsageError: if nothing is left, or as :func:`hlnet.cues.effect.cue_effect`.
            SelectionError: for a path that the tree does not have.
        """
        with self._lock, torch.inference_mode():
            known = self._known.get(question.image)
            if known is None:
                raise ForgottenImageError("the image is not in memory any more; give it again")
            self._known.move_to_end(question.image)
            return self._answer(known, question)

    def _answer(self, known: _Known, question: Question) -> Answer:
        tree, (features, before, shares) = self.tree, known
        gone = {leaf for path in question.cut for leaf in tree.leaves_under(path)}
        kept = [leaf for leaf in range(len(tree.classes)) if leaf not in gone]
        if not kept:
            raise UsageError("every class is cut away; leave at least one")
        net = self._fast if not gone else self._fast.select([tree.indices[leaf] or 0 for leaf in kept])
        if gone:  # before and now are to be on one scale
            net.provenance.temperature = self._fast.provenance.temperature
        cued = [[leaf for leaf in tree.leaves_under(path) if leaf not in gone] for path in question.cues]
        cues = [
            Cue(node=path, classes=tuple(tree.classes[leaf] for leaf in leaves))
            for path, leaves in zip(question.cues, cued, strict=True)
            if leaves
        ]
        policy = CuePolicy(mode=question.mode, strength=question.strength, reliability=question.reliability)
        effect = cue_effect(net, [cues], policy)
        now, shares_now = self._run(net, features, effect)
        rank = {leaf: place for place, leaf in enumerate(kept)}
        leading, led = (np.argsort(-logits, kind="stable").tolist() for logits in (now, before))
        chosen = dict.fromkeys([*(kept[place] for place in leading[: MOST_CHOICES - 3]), *led[:3]])
        best = [max(leaves, key=lambda leaf: float(now[rank[leaf]])) for leaves in [kept, *cued] if leaves]
        choices = [
            Choice(
                name=tree.classes[leaf],
                path=tree.leaves[leaf].path,
                logit=float(before[leaf]),
                probability=float(shares[leaf]),
                logit_now=float(now[rank[leaf]]) if leaf in rank else None,
                probability_now=float(shares_now[rank[leaf]]) if leaf in rank else None,
            )
            for leaf in chosen
        ]
        looked_at = [tree.node_names.places[path] for path in question.looked_at if set(tree.leaves_under(path)) - gone]
        places = [*path_places(tree, best[0]), *((tree.num_levels - 1, leaf) for leaf in best[1:]), *looked_at]
        counts = [len(row) for row in tree.rows(kept)]
        return Answer(
            choices=choices,
            full=self._cost(tree.counts),
            now=self._cost(counts),
            maps=self._maps(features, places, _full_gains(tree, kept, effect.gains)),
        )

    def _run(self, net: InferenceNet, features: Tensor, effect: Effect) -> tuple[Numbers, Numbers]:
        """Logits and probabilities of one image, ``[classes]`` each."""
        assert net.head is not None
        logits = effect.shifted(net.head(features, effect.gains))
        shares = class_probabilities(logits, net.provenance.one_vs_rest, net.provenance.temperature)
        return as_numbers(logits[0]), as_numbers(shares[0])

    def _maps(self, features: Tensor, places: Iterable[Place], gains: Tensor | None) -> list[BranchMap]:
        """Level by level, on one scale a level."""
        shown = sorted(list(dict.fromkeys(places))[:MOST_MAPS], key=lambda place: place[0])
        runs = [block_outputs(self.net.head, features, shown, how) for how in (None, gains)]
        values = [{place: as_numbers(activity(run[place])[0]) for place in shown} for run in runs]
        tops = {
            level: scale_end([run[place] for run in values for place in shown if place[0] == level])
            for level, _ in shown
        }
        found = []
        for place in shown:
            before, after = (run[place] for run in values)
            found.append(
                BranchMap(
                    path=path_at(self.tree, place),
                    level=place[0] + 1,
                    before=_coloured(before, tops[place[0]]),
                    after=None if np.array_equal(before, after) else _coloured(after, tops[place[0]]),
                    top=tops[place[0]],
                )
            )
        return found

    def _cost(self, counts: Sequence[int]) -> CostNow:
        cost = total_cost(self._units, counts)
        return CostNow(classes=cost.classes, nodes=cost.nodes, params=cost.params, gmacs=cost.gmacs)


# ---------------------------------------------------------------------- helpers


def _full_gains(tree: ClassTree, kept: Sequence[int], gains: Tensor | None) -> Tensor | None:
    """Gains ``[1, nodes]`` of what is left, as gains of the full tree."""
    if gains is None:
        return None
    columns = [offset + row for offset, rows in zip(tree.offsets, tree.rows(kept), strict=False) for row in rows]
    found = gains.new_ones(1, tree.num_nodes)
    found[:, columns] = gains
    return found


def _coloured(values: Numbers, top: float) -> str:
    return _uri(Image.fromarray(colormaps[COLOURS](values / top, bytes=True)[..., :3]))


def _uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "png")
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"
