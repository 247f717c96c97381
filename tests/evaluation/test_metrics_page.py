"""The worked examples of docs/metrics.md come out as written."""

import doctest
import re
from pathlib import Path

import hlnet

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_examples_come_out_as_written():
    text = PAGE.read_text(encoding="utf-8")
    examples = "\n".join(re.findall(r"^```pycon\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    test = doctest.DocTestParser().get_doctest(examples, {}, "metrics.md", str(PAGE), 0)
    assert len(test.examples) > 10
    told = []
    assert doctest.DocTestRunner().run(test, out=told.append).failed == 0, "".join(told)


def test_the_table_is_that_of_the_figures():
    """Heights and numbers of nodes as printed beside the tree."""
    rows = re.findall(
        r"(\d)    (\w+) +(\w+) +(\w+) +(\d) +(\d), (\d), (\d)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    tree = hlnet.ClassTree.from_nested(
        {"animal": {"cat": ["tabby", "siamese"], "dog": ["beagle"]}, "newt": {}, "tool": ["saw"]}
    )
    paths = {leaf.name: leaf.path.split("/") for leaf in tree.leaves}
    assert [row[0] for row in rows] == list("123456")
    for _, label, answer, meeting, height, *nodes in rows:
        ours, theirs = paths[answer], paths[label]
        common = [node for node in ours if node in theirs]
        assert [len(ours), len(theirs), len(common)] == [int(count) for count in nodes]
        assert meeting == (common[-1] if common else "trunk")
        below = [path for path in paths.values() if meeting in path or meeting == "trunk"]
        depth = 0 if meeting == "trunk" else below[0].index(meeting) + 1
        assert int(height) == max(map(len, below)) - depth
