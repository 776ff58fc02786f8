"""GET /api/v1/uploads: a policy for local input files; POST /uploads/{id}: the form that it opens, passed on as it is
read. The second speaks the language of the upstream's object storage, as its callers think it is that.
"""

import asyncio
import json
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from app.api.dependencies import caller, resources
from app.api.rendering import NO_STORE, request_id
from app.delivery.uploads import open_upload, take_file
from app.errors import InvalidParameter, UploadRefused
from app.lib.multipart import Caps, Field, Form, FormRefused, NotMultipart, TooLarge, until_file

router = APIRouter()

MODEL_MAX_CHARS = 200
MOST_FIELDS = 32
FIELD_MAX_BYTES = 8_192
SILENCE_SECONDS = 60.0  # a client that says nothing for so long has gone
FILE_FIELD = "file"


@router.get("/api/v1/uploads")
@router.get("/api/v1/uploads/", include_in_schema=False)
async def open_folder(request: Request) -> Response:
    """Return an upload policy in DashScope's shape (dashscope-api.md 7.1), good at this gateway."""
    res, who = resources(request), await caller(request)
    action, model = request.query_params.get("action"), request.query_params.get("model", "")
    if action != "getPolicy":
        raise InvalidParameter("action must be getPolicy.")
    if not 0 < len(model) <= MODEL_MAX_CHARS:
        raise InvalidParameter("model must be the name of a model.")
    data = await open_upload(res, who, model=model, region=request.headers.get("x-dashgate-region"))
    answer = json.dumps({"request_id": request_id(request), "data": data})
    return Response(answer, headers=NO_STORE, media_type="application/json")


@router.post("/uploads/{upload_id}")
async def put_file(upload_id: str, request: Request) -> Response:
    """Take a file by the form of its policy, which is all the credentials it needs."""
    res = resources(request)
    stated = request.headers.get("content-length", "")
    try:
        form = Form(
            request.headers.get("content-type", ""),
            _heard(request),
            caps=Caps(res.settings.upload_limit_bytes, fields=MOST_FIELDS, field_bytes=FIELD_MAX_BYTES),
            length_bytes=int(stated) if stated.isascii() and stated.isdigit() else None,
        )
        fields, file = await until_file(form)
        if file.name != FILE_FIELD:
            raise UploadRefused("Bucket POST must contain a field named 'file'.")
        await take_file(res, upload_id, fields=_by_name(fields), file=file)
    except FormRefused as refusal:
        raise _in_store_words(refusal) from None
    except ClientDisconnect:
        raise UploadRefused("The request body terminated unexpectedly.", code="IncompleteBody") from None
    return Response(headers={"x-oss-request-id": request_id(request)})


def _by_name(fields: list[Field]) -> dict[str, str]:
    named = dict(fields)
    if len(named) != len(fields):
        raise UploadRefused("A field of your POST request was given twice.", code="MalformedPOSTRequest")
    return named


async def _heard(request: Request) -> AsyncIterator[bytes]:
    """Yield the body as it arrives; a client that has gone silent keeps nobody waiting."""
    body = request.stream()
    while True:
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                chunk = await anext(body, None)
        except TimeoutError:
            raise UploadRefused("Your connection was silent for too long.", code="RequestTimeout") from None
        if chunk is None:
            return
        yield chunk


def _in_store_words(refusal: FormRefused) -> UploadRefused:
    match refusal:
        case NotMultipart():
            text = "Bucket POST must be of the enclosure-type multipart/form-data."
            return UploadRefused(text, status=412, code="PreconditionFailed")
        case TooLarge():
            return UploadRefused("Your proposed upload exceeds the maximum allowed size.", code="EntityTooLarge")
    text = "The body of your POST request is not well-formed multipart/form-data."
    return UploadRefused(text, code="MalformedPOSTRequest")
