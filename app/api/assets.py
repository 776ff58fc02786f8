"""GET /assets/{id}/{name}: a file by signed link, from the team's place or, until it is there, from the upstream."""

from contextlib import AsyncExitStack

from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.api.dependencies import ResourcesDep
from app.delivery.links import check_link
from app.delivery.serve import OpenFile, open_asset
from app.errors import NotFound
from app.lib.ids import find_uuid

router = APIRouter()

SAFE_HEADERS = {
    "Cache-Control": "private, max-age=3600",
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "cross-origin",
}
TO_KEEP = {"Content-Disposition": "attachment"}  # a browser must not open what can carry a script
OPENED = ("image/png", "image/jpeg", "image/webp", "video/mp4")


class FileResponse(StreamingResponse):
    """A streamed file that closes what it was opened from, also when the reader is gone before the first byte."""

    def __init__(self, file: OpenFile, opened: AsyncExitStack) -> None:
        super().__init__(file.chunks, headers=_headers(file), media_type=file.content_type)
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._opened:
            await super().__call__(scope, receive, send)


@router.api_route("/assets/{asset_id}/{name}", methods=["GET", "HEAD"])
async def read(asset_id: str, name: str, request: Request, res: ResourcesDep) -> Response:
    """Read a file. The name is for people; the signature covers the id and the end."""
    found = find_uuid(asset_id)
    if found is None:
        raise NotFound("There is no such file.")
    check_link(res, found, request.query_params)
    async with AsyncExitStack() as stack:
        file = await stack.enter_async_context(open_asset(res, found))
        if file.etag is not None and request.headers.get("if-none-match") == file.etag:
            return Response(status_code=304, headers={**SAFE_HEADERS, "ETag": file.etag})
        if request.method == "HEAD":
            return Response(headers=_headers(file), media_type=file.content_type)
        return FileResponse(file, stack.pop_all())


def _headers(file: OpenFile) -> dict[str, str]:
    etag = {"ETag": file.etag} if file.etag is not None else {}
    kept = {} if file.content_type in OPENED else TO_KEEP
    return {**SAFE_HEADERS, "Content-Length": str(file.size_bytes), **etag, **kept}
