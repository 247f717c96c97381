"""The page of ``hlnet app``: drop an image, cue and cut nodes of the tree, and watch answers, cost and maps.

Notable here: one page and two requests, all from this machine to itself. The server listens on loopback only, answers
no other host name, and takes nothing that a page of somebody else's could send without asking.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from hlnet.errors import HlnetError, UsageError, one_line
from hlnet.optional import require
from hlnet.templates import render
from hlnet.tree.class_tree import ClassTree
from hlnet.view.live import COLOURS, ForgottenImageError, LiveNet, Question

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HOST = "127.0.0.1"
NAMES = [HOST, "localhost"]
PORT = 7860
LARGEST = 64 * 2**20  # bytes of an image file
UNFOLDED = 60  # classes that the page shows at first
PURPOSE = "the interactive page"
#: Beside the policy that the page states of itself, which cannot say these.
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
}


def create_app(live: LiveNet, title: str = "hlnet") -> Starlette:
    """The page and what it asks, as an ASGI application.

    Args:
        live: the network.
        title: of the page.

    Raises:
        UsageError: if the packages of the extra ``app`` are missing.
    """
    applications, routing, responses, concurrency, middleware, hosts = (
        require(f"starlette.{name}", PURPOSE, "app")
        for name in ("applications", "routing", "responses", "concurrency", "middleware", "middleware.trustedhost")
    )
    html = app_page(live, title)

    def page(_: Request) -> Response:
        answer: Response = responses.HTMLResponse(html, headers=HEADERS)
        return answer

    def refused(told: str, status: int = 400) -> Response:
        answer: Response = responses.JSONResponse({"error": told}, status)
        return answer

    async def answered(request: Request, kind: str, ask: Callable[[bytes], BaseModel]) -> Response:
        """Run what takes time beside the loop; say in one line what was wrong."""
        if request.headers.get("content-type", "").partition(";")[0] != kind:
            return refused(f"expected {kind}", 415)  # what a browser sends to its own server only
        try:
            found: BaseModel = await concurrency.run_in_threadpool(ask, await _body(request))
        except ForgottenImageError as error:
            return refused(str(error), 410)
        except ValidationError as error:
            return refused(f"the request is not understood: {one_line(error)}")
        except HlnetError as error:
            return refused(str(error))
        answer: Response = responses.Response(found.model_dump_json(), media_type="application/json")
        return answer

    async def see(request: Request) -> Response:
        return await answered(request, "application/octet-stream", live.see)

    async def answer(request: Request) -> Response:
        return await answered(
            request, "application/json", lambda content: live.answer(Question.model_validate_json(content))
        )

    app: Starlette = applications.Starlette(
        routes=[
            routing.Route("/", page),
            routing.Route("/see", see, methods=["POST"]),
            routing.Route("/answer", answer, methods=["POST"]),
        ],
        middleware=[middleware.Middleware(hosts.TrustedHostMiddleware, allowed_hosts=NAMES, www_redirect=False)],
    )
    return app


def serve(app: Starlette, port: int = PORT, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve on loopback until interrupted.

    Args:
        app: what :func:`create_app` gives.
        port: 0 takes a free one.
        on_ready: called with the page's address once it listens.

    Raises:
        UsageError: if the port is taken or not allowed, or the packages of the extra ``app`` are missing.
    """
    uvicorn = require("uvicorn", PURPOSE, "app")
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with listening:
        try:
            listening.bind((HOST, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or "it must lie in 0..65535"
            raise UsageError(
                f"port {port} cannot be used ({reason}); give another one, or 0 for any free port"
            ) from error
        address = f"http://{HOST}:{listening.getsockname()[1]}/"

        class Server(uvicorn.Server):  # type: ignore[name-defined,misc]
            async def startup(self, sockets: Any = None) -> None:
                await super().startup(sockets)
                if on_ready:  # not before an interrupt would end it in good order
                    on_ready(address)

        Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listening])


def app_page(live: LiveNet, title: str) -> str:
    """The page, whole in itself."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    stops = ", ".join(to_hex(colormaps[COLOURS](step / 8)) for step in range(9))
    size = "×".join(map(str, live.net.transform.input_size[1:]))
    return render(
        "view/app.html.j2",
        title=title,
        items=tree_items(live.tree),
        classes=len(live.tree.classes),
        counts=live.tree.counts,
        backbone=live.net.config.backbone,
        size=size,
        stops=stops,
        unfolded=len(live.tree.classes) <= UNFOLDED,
    )


def tree_items(tree: ClassTree) -> list[dict[str, Any]]:
    """The tree's nodes nested as a template walks them: ``name``, ``path``, number of ``classes``, and ``below``.

    Example:
        >>> tree_items(ClassTree.from_nested({"cat": ["tabby", "siamese"], "saw": {}}))[1]
        {'name': 'saw', 'path': 'saw', 'classes': 1, 'below': []}
    """
    made: dict[str, dict[str, Any]] = {}
    top: list[dict[str, Any]] = []
    for row in tree.levels:
        for node in row:
            if node.path in made:
                continue
            item = {"name": node.name, "path": node.path, "classes": len(tree.leaves_under(node.path)), "below": []}
            above, _, _ = node.path.rpartition("/")
            (made[above]["below"] if above else top).append(item)
            made[node.path] = item
    return top


# ---------------------------------------------------------------------- helpers


async def _body(request: Request) -> bytes:
    """What was sent, unless it is too much."""
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > LARGEST:
            raise UsageError(f"the file is larger than {LARGEST // 2**20} MB")
    return b"".join(parts)
