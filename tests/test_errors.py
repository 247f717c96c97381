"""Error classes, their exit codes, and the nearest-name hint."""

import pytest

from hlnet import errors
from hlnet.errors import HlnetError, RunError, UsageError, did_you_mean


@pytest.mark.parametrize(
    "name, parent, code",
    [
        ("HlnetError", ValueError, 1),
        ("UsageError", HlnetError, 2),
        ("SelectionError", UsageError, 2),
        ("BackboneError", UsageError, 2),
        ("RunError", HlnetError, 1),
        ("TreeError", RunError, 1),
        ("CheckpointError", RunError, 1),
        ("DataError", RunError, 1),
    ],
)
def test_family_and_exit_code(name, parent, code):
    error = getattr(errors, name)
    assert error.__bases__ == (parent,) and error.exit_code == code
    assert str(error("one line")) == "one line"


@pytest.mark.parametrize(
    "name, known, hint",
    [
        ("taby", ["siamese", "tabby"], " Did you mean 'tabby'?"),
        ("TABBY", ["Tabby"], " Did you mean 'Tabby'?"),
        ("tabb", ["tabby", "tabbi", "saw"], {" Did you mean 'tabby' or 'tabbi'?", " Did you mean 'tabbi' or 'tabby'?"}),
        ("zebra", ["tabby"], ""),
        ("zebra", [], ""),
        ("", ["tabby"], ""),
    ],
)
def test_did_you_mean(name, known, hint):
    assert did_you_mean(name, iter(known)) in ({hint} if isinstance(hint, str) else hint)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_did_you_mean_limit(limit):
    hint = did_you_mean("class 1", [f"class 1{digit}" for digit in range(9)], limit)
    assert hint.count("'class 1") == limit and hint.count(" or ") == limit - 1
