"""Cue policy: mode, default strength, certainty and prior."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, model_validator

from hlnet.cues.cue import Cue, Mode, Probability, Strength, check_one, stored_effect
from hlnet.errors import UsageError
from hlnet.model.provenance import Provenance

log = logging.getLogger("hlnet")


class CuePolicy(BaseModel):
    """How cues act.

    A cue that states a mode, a strength or a reliability acts by that. Without any mode, a strength is a gain and a
    reliability a bias. A cue that states neither takes the policy's; if the policy has none, either, the mode and the
    reliability are those that the network's file holds (``hlnet attend``, ``train --cue-aware``).

    Attributes:
        mode: ``gain``, ``bias`` or ``scale``; of cues that state none.
        strength: of cues that state neither a strength nor a reliability.
        reliability: of these cues, in place of a strength.
        certain: whether cues are taken as facts: only the classes that they leave run, and can win. Strengths and
            reliabilities do not count.
        prior: how frequent each class is where the images come from, by class name. All images' logits are shifted by
            it (:func:`hlnet.cues.prior.prior_shift`), whatever the mode, and reliabilities are weighed against it.

    Raises:
        pydantic.ValidationError: for values out of range, or both a strength and a reliability.

    Example:
        >>> policy = CuePolicy(reliability=0.8)
        >>> [policy.complete(cue, Provenance()).mode for cue in (Cue(node="cat"), Cue(node="cat", strength=1.8))]
        ['bias', 'gain']
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode | None = None
    strength: Strength | None = None
    reliability: Probability | None = None
    hard: bool = False
    prior: Mapping[str, float] | None = None

    _one_of_two = model_validator(mode="after")(check_one)

    @property
    def is_silent(self) -> bool:
        """Whether it states neither a strength nor a reliability."""
        return self.strength is None and self.reliability is None

    def complete(self, cue: Cue, provenance: Provenance) -> Cue:
        """The cue with its mode, and with a strength or a reliability where one is known.

        Args:
            cue: what is stated in it stays.
            provenance: the network's, which holds what was fitted.

        Raises:
            UsageError: if the cue acts in another mode than the one that the policy's strength is for.
        """
        mode = cue.mode or self.mode
        if not cue.is_silent:
            return cue.model_copy(update={"mode": mode or ("bias" if cue.strength is None else "gain")})
        fitted = None if self.hard or not self.is_silent else provenance.attention
        if fitted is not None:
            return cue.model_copy(update={"mode": mode or fitted.mode, "reliability": fitted.reliability})
        if self.strength is None:
            return cue.model_copy(update={"mode": mode or "bias", "reliability": self.reliability})
        own = self.mode or "gain"
        if (mode or own) != own:
            raise UsageError(
                f"the cue on '{cue.node}' acts by {mode}, and the strength {self.strength:g} is that of a {own}; give "
                "the cue one of its own"
            )
        return cue.model_copy(update={"mode": own, "strength": self.strength})

    def log_stored(self, provenance: Provenance, classes: int) -> None:
        """Say, in the log ``hlnet``, how cues act that go by what the network's file holds.

        Args:
            provenance: the network's.
            classes: how many classes compete.
        """
        fitted = provenance.attention
        if fitted is None or not self.is_silent:
            return
        acting = fitted.model_copy(update={"mode": self.mode or fitted.mode})
        if what := stored_effect(provenance.model_copy(update={"attention": acting}), classes):
            log.info(
                "as the model's file holds it, cues count as right in %g %% of cases and act, on one class, as %s",
                *(100 * fitted.reliability, what),
            )
