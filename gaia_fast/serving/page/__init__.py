"""The page to drop images on: the files beside this one, as they are, with nothing from elsewhere."""

import importlib.resources
from typing import Any

from gaia_fast import extras

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}

# A browser loads what this service serves and nothing else, and runs no script that stands in the page itself.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def page_routes() -> list[Any]:
    """Returns the routes of the page, `/`, and of its style and scripts, `/page/NAME`.

    Raises:
        BackendError: a package of the extra `serve` is missing.
    """
    routing = extras.load("starlette.routing", "serve", "gaia-fast serve")
    responses = extras.load("starlette.responses", "serve", "gaia-fast serve")

    def route(path: str, content: bytes, media_type: str) -> Any:
        async def answer(_: Any) -> Any:
            return responses.Response(content, media_type=media_type, headers=HEADERS)

        return routing.Route(path, answer, methods=["GET"])

    routes = []
    for file in importlib.resources.files(__name__).iterdir():
        stem, dot, suffix = file.name.rpartition(".")
        if media_type := _TYPES.get(dot + suffix):
            routes.append(route("/" if stem == "index" else f"/page/{file.name}", file.read_bytes(), media_type))
    return routes
