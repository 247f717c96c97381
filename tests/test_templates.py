"""Templates: pages are escaped, cards are not, and every name must be known."""

import pytest
from jinja2 import UndefinedError

from hlnet.store.model_card import make_model_card
from hlnet.templates import render


def test_pages_are_escaped_and_names_must_be_known():
    values = {"items": [], "classes": 1, "counts": (1,), "backbone": "b", "size": "8×8", "stops": "", "unfolded": True}
    page = render("view/app.html.j2", title="<i>", **values)
    assert "<title>&lt;i&gt;" in page and "<i>" not in page
    with pytest.raises(UndefinedError, match="'title' is undefined"):
        render("view/app.html.j2", **values)


def test_a_card_is_markdown_and_ends_with_a_line_break():
    import hlnet

    card = str(make_model_card(hlnet.create_model("test_resnet", tree=["a&b", "c<d"]), about="x < y"))
    assert "x < y" in card and "`a&b`" in card and card.endswith("```\n") and not card.endswith("\n\n")
