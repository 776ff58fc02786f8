"""The bare minimum beside a streamed call: a stub upstream with events at a pace, and a route that passes them.

`python -m tests.benchmarks.bare_stream upstream URL` or `… pass URL UPSTREAM_URL`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import httpx
import uvicorn
import uvloop
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from httpx_aiohttp import AiohttpTransport

EVENTS = 200
IMAGES = (60, 120, 199)  # of a call with three of them
EVERY_SECONDS = 0.05
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
READY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
LINK = (
    "https://dashscope-result-bj.oss-cn-beijing.aliyuncs.com/1d/{}.png?Expires=1999999999&OSSAccessKeyId=a&Signature=b"
)


def event(number: int) -> bytes:
    """An event that tells when it left."""
    made = sum(number >= place for place in IMAGES)
    item = {"type": "text", "text": f"left at {time.monotonic():.6f} "}
    content = [item, {"type": "image", "image": LINK.format(number)}] if number in IMAGES else [item]
    reason = "stop" if number == EVENTS - 1 else "null"
    choice = {"message": {"content": content, "role": "assistant"}, "finish_reason": reason}
    tokens = {"total_tokens": 28 + number, "output_tokens": number, "input_tokens": 28}
    usage = {**tokens, "image_count": made, "size": "1280*1280"}
    said = {"output": {"choices": [choice], "finished": reason == "stop"}, "usage": usage, "request_id": "r-1"}
    data = json.dumps(said, separators=(",", ":"))
    return f"id:{number + 1}\nevent:result\n:HTTP_STATUS/200\ndata:{data}\n\n".encode()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer calls with streams, one after another on a connection, and anything else with nothing much."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
            )
            await reader.readexactly(length)
            writer.write(HEAD if head.startswith(b"POST") else READY)
            began = time.monotonic()
            for number in range(EVENTS if head.startswith(b"POST") else 0):
                await asyncio.sleep(max(0.0, began + number * EVERY_SECONDS - time.monotonic()))
                said = event(number)
                writer.write(b"%x\r\n%b\r\n" % (len(said), said))
            if head.startswith(b"POST"):
                writer.write(b"0\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def serve_upstream(port: int) -> None:
    server = await asyncio.start_server(answer, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


def serve_pass(port: int, upstream_url: str) -> None:
    """Pass every stream through, chunk by chunk."""
    app = FastAPI(openapi_url=None)
    client = httpx.AsyncClient(transport=AiohttpTransport(limits=httpx.Limits(max_connections=1_000)), timeout=30)

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/api/v1/services/{path:path}")
    async def call(request: Request) -> StreamingResponse:
        body = await request.body()
        headers = {"content-type": "application/json", "authorization": "Bearer sk-stub"}
        asked = client.build_request("POST", upstream_url + request.url.path, content=body, headers=headers)
        answered = await client.send(asked, stream=True)

        async def chunks() -> AsyncIterator[bytes]:
            try:
                async for chunk in answered.aiter_raw():
                    yield chunk
            finally:
                await answered.aclose()

        return StreamingResponse(chunks(), answered.status_code, media_type="text/event-stream")

    uvicorn.run(app, host="127.0.0.1", port=port, access_log=False, log_level="error")


if __name__ == "__main__":
    role, url, *rest = sys.argv[1:]
    if role == "upstream":
        uvloop.run(serve_upstream(urlsplit(url).port or 0))
    else:
        serve_pass(urlsplit(url).port or 0, *rest)
