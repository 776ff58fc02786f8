"""The OpenAPI document of the teams' routes: what may be sent, and every answer that may come (design.md 6 and 7).

Written by hand, because most routes read the request themselves; tests hold it to the routes, and the routes to it.
`python -m app.api.openapi > docs/openapi.json` writes the copy that stands in docs/.
"""

import json
import sys
from typing import Any

from app import __version__
from app.api import openapi_shapes as shapes
from app.api.openapi_shapes import (
    DASHSCOPE,
    HEADERS,
    MODEL,
    OPENAI,
    PROBLEM,
    SCHEMAS,
    STORE,
    TEXT,
    WORDS,
    Document,
    answer,
    errors,
    ref,
)
from app.errors import (
    AccessDenied,
    FileAway,
    Gone,
    IdempotencyConflict,
    IdempotencyMismatch,
    InternalTrouble,
    InvalidApiKey,
    InvalidParameter,
    ModelNotFound,
    NotFound,
    StillRunning,
    StoreAway,
    Throttled,
    TooLarge,
    UnsupportedMediaType,
    UnsupportedOperation,
    UploadRefused,
    UpstreamAccountAtFault,
    UpstreamAway,
)
from app.tasks.accept import TAG_MAX_CHARS

NAME: Document = {"type": "string", "minLength": 1}
JSON = "application/json"
EVENTS = "text/event-stream"
DEFAULT_SERVER = "http://127.0.0.1:8080"
OVERVIEW = """\
What teams call. DashScope's own routes stand under `/api/v1`, image routes in OpenAI's shape under `/v1/images` and
`/compatible-mode/v1/images`. Trailing slashes are taken wherever DashScope's clients send them. Another method is
answered with 405, another path with 404, in the error shape of the route. What is no plain HTTP/1.1 request, has a
head that is too long, or does not arrive in time is answered with 400, 431 or 408 in DashScope's shape."""
REFUSED_UPSTREAM = "Or the upstream's own verdict on the request: status and body as it gave them."
ENDED_BADLY = "Or the call ran as a task that ended badly: the upstream's code and message, with the code's status."
UPSTREAMS_OWN = dict.fromkeys((400, 403, 404, 429), REFUSED_UPSTREAM) | dict.fromkeys((500, 503), ENDED_BADLY)
# A key, a request of ours that failed, a database that is away: of every route with a key.
KEYED = (InvalidApiKey, InvalidParameter, StoreAway, InternalTrouble)
CALLED = (
    *(AccessDenied, ModelNotFound, NotFound, IdempotencyConflict, IdempotencyMismatch, TooLarge),
    *(UnsupportedMediaType, Throttled, UpstreamAccountAtFault, UpstreamAway, StillRunning),
)
PICTURE = {
    "model": "wan2.6-image",
    "input": {"messages": [{"role": "user", "content": [{"text": "a paper boat on a lake at dawn"}]}]},
    "parameters": {"enable_interleave": True, "max_images": 1},
}
TEXT_TO_IMAGE = {"model": "qwen-image-plus", "input": {"prompt": "a paper boat"}, "parameters": {"n": 1}}
SERVICE_PATHS = {
    "messages": "aigc/multimodal-generation/generation",
    "task": "aigc/image-generation/generation",
    "prompt": "aigc/text2image/image-synthesis",
    "video": "aigc/video-generation/video-synthesis",
}


def document(server_url: str = DEFAULT_SERVER) -> Document:
    """Return the whole document, for a gateway at `server_url`."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Dashgate",
            "version": __version__,
            "description": OVERVIEW,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": server_url}],
        "security": [{"apiKey": []}],
        "paths": {**_services(), **_tasks(), **_uploads(), **_openai(), **_assets(), **_usage(), **_health()},
        "components": {
            "securitySchemes": {
                "apiKey": {"type": "http", "scheme": "bearer", "description": "a team's API key, dg_…"},
            },
            "headers": HEADERS,
            "schemas": SCHEMAS,
        },
    }


def as_text(described: Document) -> str:
    """Write a document as docs/openapi.json holds it."""
    return json.dumps(described, indent=2, ensure_ascii=False) + "\n"


def _parameter(name: str, place: str, *, schema: Document = TEXT, **more: Any) -> Document:
    return {"name": name, "in": place, "required": place == "path", "schema": schema, **more}


def _header(name: str, description: str, *, schema: Document = TEXT) -> Document:
    return _parameter(name, "header", schema=schema, description=description)


def _operation(summary: str, answers: Document, **more: Any) -> Document:
    return {"summary": summary, **more, "responses": answers}


def _services() -> Document:
    headers = [
        _header("X-DashScope-Async", "`enable`: make a task, answer with its id. Any other word counts as absent."),
        _header("X-DashScope-SSE", "`enable`: answer as a stream of events. Any other word counts as absent."),
        _header("X-DashScope-OssResourceResolve", "`enable`: inputs may be `oss://` uploads. Passed on."),
        _header("X-DashScope-DataInspection", "Passed on."),
        *_call_headers(),
    ]
    path = _parameter(
        "path",
        "path",
        schema=NAME,
        description="A DashScope service path; it has slashes.",
        examples={name: {"value": value} for name, value in SERVICE_PATHS.items()},
    )
    shown = {"picture": {"value": PICTURE}, "prompt": {"value": TEXT_TO_IMAGE}}
    made = {JSON: {"anyOf": [ref("Receipt"), ref("Made")]}, EVENTS: ref("Event")}
    return {
        "/api/v1/services/{path}": {
            "post": _operation(
                "Make a call: a task, a stream, or an answer on this connection",
                {
                    "200": answer(
                        "The receipt of a task; what was made; or events in DashScope's framing, the last with the "
                        "whole usage. A stream that breaks off ends with `event:error`.",
                        made,
                        headers=["X-Dashgate-Task-Id"],
                    ),
                    **errors(DASHSCOPE, *KEYED, *CALLED, more=UPSTREAMS_OWN),
                },
                description="Bodies are the upstream's to validate, and unknown fields are passed on. Answers come "
                "with this gateway's task ids and links. `X-DashScope-WorkSpace` is replaced by the account's; "
                "`X-DashScope-EncryptionKey` is refused.",
                parameters=[path, *headers],
                requestBody={"required": True, "content": {JSON: {"schema": ref("Call"), "examples": shown}}},
            )
        }
    }


def _call_headers() -> list[Document]:
    """Describe the headers of every call that makes something."""
    return [
        _header(
            "Idempotency-Key",
            "The same key and request stand for one task, from any process, for days. Of printable ASCII, no spaces.",
            schema={"type": "string", "pattern": "^[!-~]{1,255}$"},
        ),
        _header("X-Dashgate-Region", "Where the call is to go; one of the team's regions."),
        _header("X-Dashgate-Durable", "`false`: pass a synchronous call through instead of running it as a task."),
        _header(
            "X-Dashgate-Tag",
            "The team's own word for the call.",
            schema={"type": "string", "pattern": f"^[A-Za-z0-9_.:/-]{{0,{TAG_MAX_CHARS}}}$"},
        ),
    ]


def _tasks() -> Document:
    task_id = _parameter("task_id", "path", schema=NAME)
    wait = _parameter(
        "wait",
        "query",
        schema={"type": "string", "pattern": r"^([0-5]?[0-9](\.[0-9]{1,6})?|60(\.0{1,6})?)$"},
        description="Answer when the task has ended, or after so many seconds.",
    )
    unknown = "A task that does not exist, or is another team's, is `UNKNOWN`."
    return {
        "/api/v1/tasks/{task_id}": {
            "get": _operation(
                "Read a task",
                {
                    "200": answer(f"What became of it. {unknown}", {JSON: ref("Task")}),
                    **errors(DASHSCOPE, *KEYED, NotFound),
                },
                parameters=[task_id, wait],
            )
        },
        "/api/v1/tasks/{task_id}/events": {
            "get": _operation(
                "Follow a task until it has ended",
                {
                    "200": answer(
                        f"What a read would say, each time that it changes. {unknown}", {EVENTS: ref("Event")}
                    ),
                    **errors(DASHSCOPE, *KEYED, NotFound, Throttled),
                },
                parameters=[task_id],
            )
        },
        "/api/v1/tasks/{task_id}/cancel": {
            "post": _operation(
                "Cancel a task that waits",
                {
                    "200": answer("It is cancelled, or the wish is written down.", {JSON: ref("CancelHeard")}),
                    **errors(DASHSCOPE, *KEYED, UnsupportedOperation, NotFound),
                },
                parameters=[task_id],
            )
        },
        "/api/v1/tasks": {
            "get": _operation(
                "List the team's tasks, the newest first",
                {"200": answer("One page.", {JSON: ref("TaskPage")}), **errors(DASHSCOPE, *KEYED)},
                description="Of the last 24 hours unless told; a window is at most so long.",
                parameters=_filters(),
            )
        },
    }


def _filters() -> list[Document]:
    instant = {"type": "string", "pattern": "^([0-9]{14})?$", "maxLength": 14}
    count = {"type": "integer", "minimum": 1, "maximum": 999_999}
    texts = ("task_id", "model_name", "api_key_id", "region")
    return [
        _parameter("start_time", "query", schema=instant, description="YYYYMMDDhhmmss, UTC+8"),
        _parameter("end_time", "query", schema=instant, description="YYYYMMDDhhmmss, UTC+8"),
        _parameter("status", "query", description=f"One of {', '.join(WORDS)}; others match nothing."),
        _parameter("page_no", "query", schema=count),
        _parameter("page_size", "query", schema=count, description="More than 100 count as 100."),
        *(_parameter(name, "query", schema={"type": "string", "maxLength": 200}) for name in texts),
    ]


def _uploads() -> Document:
    store_says = "Or the store's own refusal, in its words."
    return {
        "/api/v1/uploads": {
            "get": _operation(
                "Open a folder for a local input file",
                {
                    "200": answer("A policy, good at this gateway.", {JSON: ref("UploadPolicy")}),
                    **errors(
                        *(DASHSCOPE, *KEYED, AccessDenied, ModelNotFound, UnsupportedOperation),
                        *(Throttled, UpstreamAccountAtFault, FileAway),
                        more=dict.fromkeys((400, 403, 404), REFUSED_UPSTREAM),
                    ),
                },
                parameters=[
                    _parameter("action", "query", schema={"type": "string", "enum": ["getPolicy"]})
                    | {"required": True},
                    _parameter("model", "query", schema=MODEL, example="wan2.6-image") | {"required": True},
                    _header("X-Dashgate-Region", "Where the call that needs the file is to go."),
                ],
            )
        },
        "/uploads/{upload_id}": {
            "post": _operation(
                "Send a local input file by the form of its policy",
                {
                    "200": answer("It is stored; name it as `oss://` with the form's `key`."),
                    **errors(
                        *(STORE, UploadRefused, UpstreamAccountAtFault, FileAway, StoreAway, NotFound, InternalTrouble),
                        more={
                            403: "`InvalidAccessKeyId`, `SignatureDoesNotMatch`, `AccessDenied`: not by this policy.",
                            409: store_says,
                            411: "`MissingContentLength`: the request's length must be said beforehand.",
                            412: "`PreconditionFailed`: it is no multipart/form-data.",
                        },
                    ),
                },
                description="The fields in the order of the policy, the file last. The policy is all the credentials "
                "that it needs.",
                parameters=[_parameter("upload_id", "path", schema=NAME)],
                requestBody={"required": True, "content": {"multipart/form-data": {"schema": ref("UploadForm")}}},
                security=[],
            )
        },
    }


def _openai() -> Document:
    wish = {"model": "wan2.6-t2i", "prompt": "a paper boat on a lake at dawn", "n": 1, "size": "1280x1280"}
    as_json = {JSON: {"schema": ref("ImageWish"), "examples": {"picture": {"value": wish}}}}
    as_form = {"multipart/form-data": {"schema": ref("ImageEditForm")}}
    described: Document = {}
    for prefix in ("", "/compatible-mode"):
        described[f"{prefix}/v1/images/generations"] = {"post": _images("Make images from a prompt", as_json)}
        described[f"{prefix}/v1/images/edits"] = {
            "post": _images("Make images from a prompt and at least one image, `image` or `image[]`", as_form)
        }
    return described


def _images(summary: str, content: Document) -> Document:
    return _operation(
        summary,
        {
            "200": answer("The images, in OpenAI's shape.", {JSON: ref("Images")}, headers=["X-Dashgate-Task-Id"]),
            **errors(OPENAI, *KEYED, *CALLED, FileAway, Gone, more=UPSTREAMS_OWN),
        },
        parameters=_call_headers(),
        requestBody={"required": True, "content": content},
    )


def _assets() -> Document:
    parameters = [
        _parameter("asset_id", "path", schema=NAME),
        _parameter("name", "path", schema=NAME, description="For people; not checked."),
        *(_parameter(name, "query") | {"required": True} for name in ("expires", "key", "signature")),
        _header("If-None-Match", "The `ETag` of a file that was read before."),
    ]
    refused = errors(PROBLEM, AccessDenied, NotFound, Gone, FileAway, StoreAway, InternalTrouble)
    whole = {"200": answer("The file.", {"*/*": shapes.FILE}), "304": answer("It is the one you have.")}
    without_body = {
        status: {name: part for name, part in said.items() if name != "content"}
        for status, said in {**whole, **refused}.items()
    }
    return {
        "/assets/{asset_id}/{name}": {
            "parameters": parameters,
            "get": _operation("Read a file by its signed link", {**whole, **refused}, security=[]),
            "head": _operation("Ask for a file's headers", without_body, security=[]),
        }
    }


def _usage() -> Document:
    month = {"type": "string", "pattern": "^20[0-9]{2}-(0[1-9]|1[0-2])$"}
    return {
        "/v1/usage": {
            "get": _operation(
                "Sum the team's usage by month, region, model and unit",
                {"200": answer("The sums.", {JSON: ref("Usage")}), **errors(PROBLEM, *KEYED)},
                parameters=[
                    _parameter("month", "query", schema=month, description="YYYY-MM; every month unless given.")
                ],
            )
        }
    }


def _health() -> Document:
    healthy = {JSON: ref("Health")}
    unready = {"503": answer("It cannot.", healthy)}
    return {
        "/livez": {"get": _operation("Does it run?", {"200": answer("It runs.", healthy)}, security=[])},
        "/readyz": {"get": _operation("Can it serve?", {"200": answer("It can.", healthy), **unready}, security=[])},
    }


if __name__ == "__main__":
    sys.stdout.write(as_text(document()))
