"""What bodies and answers look like, for the OpenAPI document: schemas, headers, and errors in their costumes.

Pure data and what builds it. An error's status, code and words are those of its class (errors.py), so that the
document cannot say another thing than the answer does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.api.openai_bodies import EXTRAS, IGNORED, MODEL_MAX_CHARS, MOST_ASKED
from app.errors import DashgateError
from app.tasks.states import UPSTREAM_WORDS

Document = dict[str, Any]

TEXT: Document = {"type": "string"}
TEXT_OR_NULL: Document = {"type": ["string", "null"]}
WHOLE_NUMBER: Document = {"type": "integer"}
DECIMAL: Document = {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?$"}
ID: Document = {"type": "string", "format": "uuid"}
FILE: Document = {"type": "string", "format": "binary"}
LINK: Document = {"type": "string", "format": "uri"}
WORDS = sorted({*UPSTREAM_WORDS.values(), "UNKNOWN"})
TASK_STATUS: Document = {"type": "string", "enum": WORDS}
UPSTREAM_TIME: Document = {
    "type": "string",
    "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}$",
    "description": "UTC+8, as DashScope writes it",
}
SIZE_FORM = "^(auto|1K|2K|4K|[1-9][0-9]{0,4}[x*][1-9][0-9]{0,4})$"
MODEL: Document = {"type": "string", "minLength": 1, "maxLength": MODEL_MAX_CHARS}


def ref(name: str) -> Document:
    """Point to a schema of this file."""
    return {"$ref": f"#/components/schemas/{name}"}


def fields(required: Mapping[str, Any], optional: Mapping[str, Any] | None = None, *, closed: bool = False) -> Document:
    """Describe an object; unless it is `closed`, more fields may come."""
    described: Document = {"type": "object", "properties": {**required, **(optional or {})}}
    if required:
        described["required"] = list(required)
    return described | ({"additionalProperties": False} if closed else {})


def rows(of: Document) -> Document:
    """Describe an array."""
    return {"type": "array", "items": of}


def or_null(described: Document) -> Document:
    """Let a field be null, which is as good as absent."""
    return {"anyOf": [described, {"type": "null"}]}


_TASK_ROW = {
    "task_id": ID,
    "status": TASK_STATUS,
    "model_name": TEXT,
    "region": TEXT,
    "request_id": TEXT,
    "gmt_create": {**WHOLE_NUMBER, "description": "milliseconds since 1970"},
    "api_key_id": TEXT,
    "caller_uid": {**TEXT, "description": "the team"},
    "caller_parent_id": {**TEXT, "description": "the team"},
    "user_api_unique_key": TEXT,
}
_TASK_TIMES = {"start_time": WHOLE_NUMBER, "end_time": {}}  # `tasks` writes `end_time` out
_PAGE = {name: {**WHOLE_NUMBER, "minimum": 0} for name in ("total", "total_page", "page_no", "page_size")}

OPENAI_PROMPT: Document = {"model": MODEL, "prompt": {"type": "string", "minLength": 1}}
OPENAI_CHOICES: Document = {
    "n": or_null({"type": "integer", "minimum": 1, "maximum": MOST_ASKED}),
    "size": or_null({"type": "string", "pattern": SIZE_FORM}),
    "response_format": or_null({"type": "string", "enum": ["url", "b64_json"]}),
    "stream": {"enum": [False, None]},
    "partial_images": {"enum": [0, None]},
    "background": {"enum": ["auto", "opaque", None]},
    "output_format": {"enum": ["png", None]},
    **{name: {"description": "taken, and without effect"} for name in sorted(IGNORED)},
    **{name: {"description": "DashScope's own, passed on"} for name in EXTRAS},
}

SCHEMAS: Document = {
    "Call": fields(
        {"model": MODEL},
        {
            "input": {"description": "as the model takes it; the upstream judges it"},
            "parameters": {"description": "as the model takes them; the upstream judges them"},
        },
    ),
    "Receipt": fields(
        {"request_id": TEXT, "output": fields({"task_id": ID, "task_status": {"type": "string", "enum": ["PENDING"]}})}
    ),
    "Made": fields(
        {"output": {"type": "object"}, "request_id": TEXT},
        {"usage": {"type": "object", "description": "the upstream's own count"}},
    ),
    "Task": fields(
        {
            "request_id": TEXT,
            "output": fields(
                {"task_id": TEXT, "task_status": TASK_STATUS},
                {
                    **dict.fromkeys(("submit_time", "scheduled_time", "end_time"), UPSTREAM_TIME),
                    **{name: {**TEXT, "description": "of a task that failed"} for name in ("code", "message")},
                },
            ),
        },
        {"usage": {"type": "object", "description": "the upstream's own count"}},
    ),
    "TaskRow": fields(_TASK_ROW, _TASK_TIMES),
    "TaskPage": fields(
        {**_PAGE, "request_id": TEXT, "data": rows(ref("TaskRow")), "tasks": rows(ref("TaskRow"))},
    ),
    "CancelHeard": fields({"request_id": TEXT}),
    "UploadPolicy": fields(
        {
            "request_id": TEXT,
            "data": fields(
                {
                    **dict.fromkeys(("policy", "signature", "upload_dir", "oss_access_key_id"), TEXT),
                    "upload_host": {**LINK, "description": "this gateway's"},
                    **dict.fromkeys(("x_oss_object_acl", "x_oss_forbid_overwrite"), TEXT),
                    **dict.fromkeys(("expire_in_seconds", "max_file_size_mb", "capacity_limit_mb"), WHOLE_NUMBER),
                }
            ),
        }
    ),
    "UploadForm": fields(
        {**dict.fromkeys(("OSSAccessKeyId", "Signature", "policy", "key"), TEXT), "file": FILE},
        dict.fromkeys(
            ("x-oss-object-acl", "x-oss-forbid-overwrite", "success_action_status", "x-oss-content-type"), TEXT
        ),
    ),
    "ImageWish": fields(OPENAI_PROMPT, OPENAI_CHOICES, closed=True),
    "ImageEditForm": fields(
        OPENAI_PROMPT,
        {"image": FILE, "image[]": rows(FILE), **dict.fromkeys(OPENAI_CHOICES, TEXT)},
        closed=True,
    ),
    "Images": fields(
        {
            "created": {**WHOLE_NUMBER, "description": "seconds since 1970"},
            "data": rows(fields({}, {"url": LINK, "b64_json": TEXT, "revised_prompt": TEXT})),
        }
    ),
    "Usage": fields(
        {
            "billing_timezone": TEXT,
            "lines": rows(
                fields(
                    {
                        **dict.fromkeys(("month", "team", "region", "model", "unit"), TEXT),
                        "tasks": WHOLE_NUMBER,
                        **dict.fromkeys(("quantity", "presumed", "uncertain"), DECIMAL),
                    }
                )
            ),
        }
    ),
    "Event": fields(
        {
            "event": {**TEXT, "description": "`result`, or `error` in place of what cannot come any more"},
            "data": {**TEXT, "contentMediaType": "application/json", "description": "an answer, or an error"},
        },
        {"id": TEXT},
    ),
    "Health": fields({"status": TEXT}),
    "DashscopeError": fields({"code": TEXT, "message": TEXT, "request_id": TEXT}),
    "OpenaiError": fields(
        {
            "error": fields({"message": TEXT, "type": TEXT, "param": TEXT_OR_NULL, "code": TEXT}),
            "request_id": TEXT,
        }
    ),
    "Problem": fields(
        {"type": TEXT, "title": TEXT, "status": WHOLE_NUMBER, "detail": TEXT, "instance": TEXT}, closed=True
    ),
}

YES_OR_NO: Document = {"type": "string", "enum": ["true", "false"]}
HEADERS: Document = {
    "X-Request-Id": {"required": True, "schema": ID, "description": "of this request, in our logs"},
    "X-Dashgate-Task-Id": {"schema": ID, "description": "the task behind this answer"},
    "x-should-retry": {"required": True, "schema": YES_OR_NO, "description": "whether to send it again by itself"},
    "retry-after": {"schema": WHOLE_NUMBER, "description": "seconds"},
    "WWW-Authenticate": {"required": True, "schema": {"type": "string", "enum": ["Bearer"]}},
}


@dataclass(frozen=True, slots=True)
class Costume:
    """The shape in which the errors of a route come."""

    media_type: str
    schema: Document


DASHSCOPE = Costume("application/json", ref("DashscopeError"))
OPENAI = Costume("application/json", ref("OpenaiError"))
PROBLEM = Costume("application/problem+json", ref("Problem"))
STORE = Costume("application/xml", {"type": "string"})


def answer(description: str, content: Mapping[str, Document] | None = None, *, headers: Sequence[str] = ()) -> Document:
    """Describe one answer; `content` is a schema by media type, `headers` are those that not every answer has."""
    named = {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-Id", *headers)}
    described: Document = {"description": description, "headers": named}
    if content:
        described["content"] = {media_type: {"schema": schema} for media_type, schema in content.items()}
    return described


def errors(costume: Costume, *kinds: type[DashgateError], more: Mapping[int, str] | None = None) -> Document:
    """Describe a route's errors by their status: ours by their classes, and with `more` what others say.

    >>> from app.errors import Gone, NotFound
    >>> {status: said["description"] for status, said in errors(PROBLEM, Gone, NotFound).items()}
    {'404': '`NotFound`: Nothing is served at this path.', '410': '`Gone`: This file is gone.'}
    """
    told: dict[int, list[str]] = {}
    for kind in kinds:
        sentence = (kind.__doc__ or "").strip().splitlines()[0]
        told.setdefault(kind.status, []).append(f"`{kind.code}`: {sentence}")
    for status, sentence in (more or {}).items():
        told.setdefault(status, []).append(sentence)
    return {str(status): _error(costume, status, sentences=told[status]) for status in sorted(told)}


def _error(costume: Costume, status: int, *, sentences: list[str]) -> Document:
    headers = ["x-should-retry", *(["WWW-Authenticate"] if status == 401 else [])]
    headers += ["retry-after"] if status in (429, 503) else []
    return answer("  \n".join(sentences), {costume.media_type: costume.schema}, headers=headers)
