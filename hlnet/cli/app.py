"""``hlnet app``."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

import typer

from hlnet.cli.shared import options


def app(
    model: options.Model,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0 takes a free one.")] = 7860,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    device: options.Device = "auto",
) -> None:
    """Open an interactive page: drop an image, cue and cut nodes, and watch what changes.

    Click nodes of the tree to cue them or to cut them. The page shows logits and probabilities, the cost of the
    network, and the feature maps of branches, before and after. Serves only this machine and sends no request to
    another one. Ctrl-C stops it. Writes nothing.

    **Examples**

        hlnet app runs/photos

        hlnet app cats.safetensors --port 0 --open
    """
    from hlnet.cli.shared import output
    from hlnet.view.app import create_app, serve
    from hlnet.view.live import LiveNet

    page = create_app(LiveNet(options.load_model(model, device)), title=f"hlnet: {options.short_name(model)}")

    def ready(address: str) -> None:
        output.show(address)
        output.hint("the page is there until Ctrl-C")
        if open_page:
            import webbrowser

            webbrowser.open(address)

    with suppress(KeyboardInterrupt):
        serve(page, port, ready)
