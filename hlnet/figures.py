"""The style of hlnet's figures, and how they are written."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from hlnet.files import replacing

STYLE = {"svg.fonttype": "none", "svg.hashsalt": "hlnet", "pdf.fonttype": 42}

#: What else would differ from one time to the next.
UNDATED: dict[str, dict[str, Any]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {}}

RENDERER: Any = RendererAgg(1, 1, 72)  # type: ignore[no-untyped-call] # to measure letters with

BLUE, RED, GREY, LIGHT = "#3465a4", "#c4443c", "#8a8a8a", "#d5d9de"


@contextmanager
def own_style() -> Iterator[None]:
    """The same picture whatever the user's settings are; boxes for scripts that the font lacks, in silence."""
    with matplotlib.style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        yield


@lru_cache(maxsize=8192)
def text_width(text: str, weight: str = "normal") -> float:
    """Width of a text in ems."""
    width: float = RENDERER.get_text_width_height_descent(text, FontProperties(size=72, weight=weight), False)[0]
    return width / 72


def save(figure: Figure, path: str | Path, dpi: int = 130, **settings: Any) -> None:
    """Write a figure in one step; the same figure gives the same bytes, and the text of an SVG stays text."""
    with own_style(), replacing(path) as draft:
        figure.savefig(draft, dpi=dpi, metadata=UNDATED.get(draft.suffix.lower()), **settings)


def tidy(axes: Any, **labels: str) -> None:
    """Label the axes, with a light grid and no box around."""
    axes.set(**labels)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
