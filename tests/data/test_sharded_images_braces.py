"""Braces in file names mean what they mean in bash."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlnet.data.sharded_images import expanded
from hlnet.errors import UsageError

WORD = st.text("ab-0.", max_size=3)
RANGE = st.builds(
    "{{{}..{}{}}}".format,
    *[st.sampled_from(["0", "1", "5", "12", "00", "07", "010"])] * 2,
    st.sampled_from(["", "..2", "..0"]),
)
PATTERNS = st.recursive(
    WORD | RANGE,
    lambda inner: st.lists(inner, min_size=2, max_size=3).flatmap(
        lambda parts: st.sampled_from(["".join(parts), "{" + ",".join(parts) + "}"])
    ),
    max_leaves=6,
)


@given(PATTERNS)
def test_expansion_is_braceexpands(pattern):
    braceexpand = pytest.importorskip("braceexpand").braceexpand
    assert expanded(pattern) == list(braceexpand(pattern))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", "a.tar"),
        ("{9..11}", "9 10 11"),
        ("{2..0}x", "2x 1x 0x"),
        ("p-{train-{000..001},val}.tar", "p-train-000.tar p-train-001.tar p-val.tar"),
        ("{a,b}{1,2}", "a1 a2 b1 b2"),
    ],
)
def test_expansion(pattern, names):
    assert expanded(pattern) == names.split()


@pytest.mark.parametrize(
    "pattern", ["{0..1", "0..1}", "}{a,b}", "{{a,b}", "{a,b}}", "{}", "{a}", "{a..c}", "{0..99999999}"]
)
def test_what_is_no_pattern_is_refused(pattern):
    with pytest.raises(UsageError, match=r"expected such as|is neither a range"):
        expanded(pattern)
