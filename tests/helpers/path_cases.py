"""Trees with a few images' probabilities, and the sums over paths that answers are compared with."""

from itertools import pairwise

from hypothesis import strategies as st

from helpers.trees import trees

PARTS = 2**20  # shares are multiples of 1 / PARTS: their sums are exact in whatever order


@st.composite
def cases(draw):
    """A tree, and a few images' shares of its classes, some of them equal or zero."""
    tree = draw(trees(ids=False))
    count = len(tree.leaves)
    cuts = st.lists(st.integers(0, PARTS) | st.sampled_from([0, PARTS // 2]), min_size=count - 1, max_size=count - 1)
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        ends = [0, *sorted(draw(cuts)), PARTS]
        rows.append([(b - a) / PARTS for a, b in pairwise(ends)])
    return tree, rows


def under(tree, row, path):
    """The summed share of the classes at or under a path."""
    pairs = zip(tree.leaves, row, strict=True)
    return sum(share for leaf, share in pairs if f"{leaf.path}/".startswith(f"{path}/"))
