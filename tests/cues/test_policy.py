"""How cues act that leave it open: by their own word, the policy's, or what the network's file holds."""

import pytest

from hlnet.cues.cue import Cue
from hlnet.cues.policy import CuePolicy
from hlnet.model.provenance import FittedAttention, Provenance

FITTED = FittedAttention(reliability=0.8, mode="scale", scale=((2.0, 3.0),))


@pytest.mark.parametrize(
    "cue, policy, completed",
    [
        ({"reliability": 0.7}, {}, ("bias", None, 0.7)),
        ({"strength": 3.0}, {}, ("gain", 3.0, None)),
        ({"reliability": 0.7}, {"strength": 2.0}, ("bias", None, 0.7)),
        ({"strength": 3.0}, {"mode": "scale", "reliability": 0.6}, ("scale", 3.0, None)),
        ({"mode": "scale", "reliability": 0.7}, {"mode": "gain"}, ("scale", None, 0.7)),
        ({}, {"strength": 2.0}, ("gain", 2.0, None)),
        ({}, {"reliability": 0.6}, ("bias", None, 0.6)),
        ({}, {"mode": "gain", "reliability": 0.6}, ("gain", None, 0.6)),
        ({}, {}, ("scale", None, 0.8)),
        ({}, {"mode": "bias"}, ("bias", None, 0.8)),
        ({}, {"hard": True}, ("bias", None, None)),
    ],
)
def test_a_policy_completes_what_a_cue_leaves_open(cue, policy, completed):
    """The cue's own word, the policy's, and the file's, in this order; a second time it changes nothing."""
    known = Provenance(attention=FITTED)
    policy = CuePolicy(**policy)
    found = policy.complete(Cue(node="cat", **cue), known)
    assert (found.mode, found.strength, found.reliability) == completed
    assert policy.complete(found, known) == found


@pytest.mark.parametrize(
    "policy, said", [({}, "a scale of 3"), ({"mode": "bias"}, "a bias of +3"), ({"strength": 2.0}, "")]
)
def test_what_the_file_holds_is_logged(caplog, policy, said):
    """Of 6 classes, a reliability of 0.8 is evidence of ln 20 = 3.0, beyond the curve's end at 2."""
    caplog.set_level("INFO", "hlnet")
    CuePolicy(**policy).log_stored(Provenance(attention=FITTED), 6)
    assert said in caplog.text and bool(caplog.text) == bool(said)


def test_a_policy_survives_being_written():
    policy = CuePolicy(mode="bias", reliability=0.8, hard=True, prior={"cat": 0.5, "saw": 0.5})
    assert CuePolicy(**policy.model_dump()) == policy
