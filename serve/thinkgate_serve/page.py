"""The web page at `/`: static files, and what a browser may do with them.

The page is one more client of the API: it has no endpoint of its own and needs no key to load. Its
policy lets it talk to this server only and lets no script turn text into markup: a browser then
refuses by itself what model output might try.
"""

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

__all__ = ["add_page", "is_page"]

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # ask each time; unchanged files are a 304
}


def is_page(path: str) -> bool:
    """Whether `path` is the page or one of its files, which need no key."""
    return path == "/" or path.startswith("/ui/")


def add_page(app: FastAPI) -> None:
    """Serve the page at `/` and its files below `/ui/`."""
    folder = _folder()

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        """The chat page."""
        return FileResponse(folder / "index.html", headers=HEADERS)

    app.mount("/ui", _Files(directory=folder))


class _Files(StaticFiles):
    """The page's files, each with its headers."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(HEADERS)
        return response


def _folder() -> Path:
    """In a checkout `ui` lies beside the package; in a wheel it lies inside it."""
    package = Path(__file__).parent
    inside = package / "ui"
    return inside if inside.is_dir() else package.parent / "ui"
