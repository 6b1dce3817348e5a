"""The page at ``/ui`` for people: files beside this module, read once, that load nothing from anywhere else.

Files are answered by name from a table, so no path that a client writes ever reaches the disk.
"""

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

_HEADERS = {
    # trusted types: no script of ours may turn text into markup, whatever a server or a person wrote
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # kept, but asked for again each time: page and endpoint change together
    "Cache-Control": "no-cache",
}
_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    etag: str


def ui_routes() -> list[Route]:
    """``/`` and the page with its files. Addresses are relative, so the page also works under a proxy's path."""
    found = _read()
    # its addresses are relative to /ui, under another address they would lead nowhere
    index = found.pop("index.html")

    async def home(_: Request) -> Response:
        return RedirectResponse("ui", headers=_HEADERS)

    async def page(request: Request) -> Response:
        return _answer(request, index)

    async def part(request: Request) -> Response:
        if (file := found.get(request.path_params["name"])) is None:
            raise HTTPException(404, "the page has no such file; it begins at /ui")
        return _answer(request, file)

    return [Route("/", home), Route("/ui", page), Route("/ui/{name}", part)]


def _read() -> dict[str, _File]:
    read = {}
    for entry in files("serving").joinpath("ui").iterdir():
        # what an editor leaves beside them is no file of the page
        if media_type := _MEDIA_TYPES.get(entry.name.rpartition(".")[2]):
            content = entry.read_bytes()
            read[entry.name] = _File(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return read


def _answer(request: Request, file: _File) -> Response:
    headers = {**_HEADERS, "ETag": file.etag}
    # a proxy that compresses marks the tag as weak
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if known & {file.etag, "*"}:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers={**headers, "Content-Type": file.media_type})
