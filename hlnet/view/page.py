"""The page and the picture files of ``hlnet show``; the page holds its pictures within itself and needs no network."""

from __future__ import annotations

import io
from base64 import b64encode
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from hlnet.errors import UsageError
from hlnet.figures import own_style
from hlnet.files import make_folder, replacing
from hlnet.templates import render
from hlnet.view.look import CueRow, MapRow, View
from hlnet.view.pictures import activation_figure, cue_figure, map_figure

DPI = 150
PAGE = "show.html"


class Picture(NamedTuple):
    """One picture: its file name, what it is in words, its width in inches, and the PNG."""

    name: str
    alt: str
    width: float
    png: bytes

    @property
    def uri(self) -> str:
        """The picture as a part of a page."""
        return f"data:image/png;base64,{b64encode(self.png).decode()}"


def check_view_path(out: str | Path) -> None:
    """Refuse, before anything is computed, a name that is neither a folder's nor a page's.

    Raises:
        UsageError: if it ends as another file's would, or is a file that is no page.
    """
    path = Path(out)
    page = path.suffix.lower() in {".html", ".htm"}
    if not page and (path.suffix.lower() in {".png", ".jpg", ".jpeg", ".svg", ".pdf", ".json"} or path.is_file()):
        raise UsageError(f"'{out}': give a folder, for the page and its pictures, or a name that ends in .html")


def write_view(view: View, out: str | Path, title: str, about: str = "") -> list[Path]:
    """Write what :func:`hlnet.view.look.look` found.

    Args:
        view: what was found.
        out: a folder, for the page ``show.html`` and its pictures as PNG; or a name that ends in ``.html``, for the
            page alone, which holds the pictures too.
        title: of the page.
        about: what it says of the network.

    Returns:
        what was written, the page first.

    Raises:
        UsageError: as :func:`check_view_path`.
        RunError: if it cannot be written.
    """
    check_view_path(out)
    out = Path(out)
    maps = [_picture("maps.png", f"feature maps of {_listed(view.maps)}", map_figure(view))] if view.maps else []
    activations = []
    if view.activations:
        alt = f"class activation maps of {_listed(view.activations)}"
        activations = [_picture("activation.png", alt, activation_figure(view))]
    cues = []
    if view.cues:
        for number, name in enumerate(view.names):
            alt = f"{name} without a cue and under {len(view.cues)}"
            cues.append(_picture(f"cues-{number + 1}.png", alt, cue_figure(view, number)))
    page = render(
        "view/show.html.j2",
        title=title,
        about=about,
        view=view,
        maps=maps,
        activations=activations,
        cues=cues,
        ranks=best_classes(view),
    )
    single = out.suffix.lower() in {".html", ".htm"}
    files = {(out if single else out / PAGE): page.encode()}
    if not single:
        make_folder(out)
        files |= {out / picture.name: picture.png for picture in (*maps, *activations, *cues)}
    for path, content in files.items():
        with replacing(path) as draft:
            draft.write_bytes(content)
    return list(files)


def best_classes(view: View, most: int = 3, cue: CueRow | None = None) -> list[dict[str, float]]:
    """For each image its most probable classes with their probabilities, without a cue or under one."""
    found = view.shares if cue is None else cue.shares
    ranking = np.argsort(-found, axis=1, kind="stable")[:, :most]
    return [
        {view.classes[place]: float(shares[place]) for place in places}
        for places, shares in zip(ranking, found, strict=True)
    ]


# ---------------------------------------------------------------------- helpers


def _listed(rows: tuple[MapRow, ...]) -> str:
    return ", ".join(dict.fromkeys(row.path for row in rows))


def _picture(name: str, alt: str, figure: Figure) -> Picture:
    file = io.BytesIO()
    with own_style():
        figure.savefig(file, format="png", dpi=DPI)
    return Picture(name, alt, float(figure.get_figwidth()), file.getvalue())
