"""The bare minimum beside a relay: a stub upstream that answers at once, and a route that passes bytes through.

`python -m tests.benchmarks.bare_relay upstream URL` or `… pass URL UPSTREAM_URL`.
"""

import json
import sys
from urllib.parse import urlsplit

import httpx
import uvicorn
from fastapi import FastAPI, Request, Response
from httpx_aiohttp import AiohttpTransport

LINK = (
    "https://dashscope-result-bj.oss-cn-beijing.aliyuncs.com/1d/a.png?Expires=1999999999&OSSAccessKeyId=a&Signature=b"
)
MADE = json.dumps(
    {
        "output": {
            "choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": [{"image": LINK}]}}],
            "finished": True,
        },
        "usage": {"image_count": 1, "width": 1328, "height": 1328},
        "request_id": "11111111-2222-3333-4444-555555555555",
    }
).encode()
app = FastAPI(openapi_url=None)


@app.get("/ready")
async def ready() -> dict[str, str]:
    return {"status": "ok"}


def serve_upstream() -> None:
    """Answer every synchronous call with one picture, and every create with a new task."""
    created = iter(range(10**9))

    @app.post("/api/v1/services/{path:path}")
    async def call(request: Request) -> Response:
        await request.body()
        if request.headers.get("x-dashscope-async") == "enable":
            task_id = f"00000000-0000-4000-8000-{next(created):012}"
            receipt = {"output": {"task_status": "PENDING", "task_id": task_id}, "request_id": "r"}
            return Response(json.dumps(receipt), media_type="application/json")
        return Response(MADE, media_type="application/json")


def serve_pass(upstream_url: str) -> None:
    """Pass every call through."""
    client = httpx.AsyncClient(transport=AiohttpTransport(), timeout=30)

    @app.post("/api/v1/services/{path:path}")
    async def call(request: Request) -> Response:
        body = await request.body()
        headers = {"content-type": "application/json", "authorization": "Bearer sk-stub"}
        answer = await client.post(upstream_url + request.url.path, content=body, headers=headers)
        return Response(answer.content, answer.status_code, media_type="application/json")


if __name__ == "__main__":
    role, url, *rest = sys.argv[1:]
    if role == "upstream":
        serve_upstream()
    else:
        serve_pass(*rest)
    uvicorn.run(app, host="127.0.0.1", port=urlsplit(url).port or 0, access_log=False, log_level="error")
