"""POST /v1/images/generations and /v1/images/edits, also under /compatible-mode: image calls in OpenAI's shape.

Translates (openai_bodies.py) and then makes the same synchronous call as the native routes do: the same tasks,
models, regions, resends and bill underneath. Errors are worded by rendering.py.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

import structlog
from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from app.api.bodies import LARGE_BYTES, read_json
from app.api.calls import answer_call
from app.api.departure import watched
from app.api.dependencies import caller, resources
from app.api.openai_bodies import (
    IMAGE_MAX_BYTES,
    NO_MASK,
    Wanted,
    data_uri,
    read_form,
    read_wanted,
    tell_images,
    translate,
)
from app.api.rendering import error_response, request_id
from app.api.services import check_rate, read_idempotency_key, read_tag, task_headers
from app.delivery.contents import read_files
from app.delivery.inputs import check_inputs
from app.errors import DashgateError, FileAway, InvalidParameter, TooLarge, UnsupportedMediaType, UpstreamRefused
from app.lib import multipart
from app.lib.db import DatabaseAway
from app.lib.multipart import Caps, Field, File, Form, FormRefused, NotMultipart
from app.resources import Resources
from app.routing.catalogue import load_catalogue
from app.routing.ways import Asked
from app.tasks.accept import Call
from app.tasks.leaving import mark_once
from app.teams.authenticate import Caller

log = structlog.get_logger()

router = APIRouter()

T = TypeVar("T")

MOST_FILES = 16  # as at OpenAI; what a model takes is the upstream's to say
MOST_FIELDS = 32
FIELD_MAX_BYTES = 128 * 1024  # OpenAI's longest prompt, 32,000 characters of up to four bytes
FILE_FIELDS = ("image", "image[]")
SILENCE_SECONDS = 60.0  # a client that says nothing for so long has gone
ANSWER_MAX_BYTES = 64 * 1024 * 1024  # of the files of one answer, before they become text


@router.post("/v1/images/generations")
@router.post("/compatible-mode/v1/images/generations")
async def generate(request: Request) -> Response:
    """Make images from a prompt."""
    res, who = resources(request), await caller(request)
    await check_rate(res, who)
    _, fields = await read_json(request, limit_bytes=res.settings.body_limit_bytes)
    return await _answer(request, res, who, ready=await _prepare(request, res, who, wanted=read_wanted(fields)))


@router.post("/v1/images/edits")
@router.post("/compatible-mode/v1/images/edits")
async def edit(request: Request) -> Response:
    """Make images from a prompt and images, which come as files of a form."""
    res, who = resources(request), await caller(request)
    await check_rate(res, who)
    return await _answer(request, res, who, ready=await _prepare(request, res, who, wanted=await _read_edit(request)))


@dataclass(frozen=True, slots=True)
class _Ready:
    """A call to be made, and how its images are wanted. Nothing else is held while it is waited for."""

    call: Call
    as_base64: bool


async def _answer(request: Request, res: Resources, who: Caller, *, ready: _Ready) -> Response:
    async with watched(request) as left:
        task_id, answer = await answer_call(res, who, ready.call, left=left)
        structlog.contextvars.bind_contextvars(task=str(task_id))
        if answer.status != 200:
            raise UpstreamRefused(answer.status, answer.body, task_id=str(task_id))
        output, created = json.loads(answer.body)["output"], int(res.clock.now().timestamp())
        if not ready.as_base64:
            body = tell_images(output, created=created)
            return Response(body, headers=task_headers(task_id), media_type="application/json")
        try:
            files = await read_files(res, who.team_id, task_id, most_bytes=ANSWER_MAX_BYTES)
        except (DashgateError, DatabaseAway) as trouble:
            await mark_once(res, task_id, request=ready.call.resent, left=left)
            return _made_but_not_read(request, task_id, trouble=trouble)
        body = await asyncio.to_thread(tell_images, output, created=created, files=files)
        if left.is_set():
            await mark_once(res, task_id, request=ready.call.resent, left=left)
    return Response(body, headers=task_headers(task_id), media_type="application/json")


def _made_but_not_read(request: Request, task_id: UUID, *, trouble: Exception) -> Response:
    """Say that images are made and paid for but cannot be sent: the same request gets them, and none by itself."""
    log.warning("answer.not_read", task=str(task_id), error=str(trouble))
    response = error_response(request, trouble if isinstance(trouble, DashgateError) else FileAway())
    response.headers.update(task_headers(task_id))
    return response


async def _prepare(request: Request, res: Resources, who: Caller, *, wanted: Wanted) -> _Ready:
    offer = load_catalogue(res.settings.catalogue_file).find(wanted.model)
    translated = await _apart(sum(map(len, wanted.images)), lambda: translate(wanted, offer))
    body, fields = translated.body, translated.fields
    if len(body) > res.settings.body_limit_bytes:
        raise TooLarge()
    inputs = await check_inputs(res, who, fields=fields, body=body, model=wanted.model)
    call = Call(
        asked=Asked(translated.path),
        body=body,
        model=wanted.model,
        parameters=translated.parameters,
        headers={},
        request_id=request_id(request),
        region=request.headers.get("x-dashgate-region"),
        tag=read_tag(request),
        durable=request.headers.get("x-dashgate-durable", "true").strip().lower() != "false",
        idempotency_key=read_idempotency_key(request),
        pinned_account=inputs.account_id,
    )
    return _Ready(call, wanted.as_base64)


async def _read_edit(request: Request) -> Wanted:
    try:
        fields, images = await _read_form(request, limit_bytes=resources(request).settings.body_limit_bytes)
    except FormRefused as refusal:
        raise _in_our_words(refusal) from None
    except ClientDisconnect:
        raise InvalidParameter("The body broke off.") from None
    if not images:
        raise InvalidParameter("image must be a file.", param="image")
    return read_wanted(fields, images)


async def _read_form(request: Request, *, limit_bytes: int) -> tuple[dict[str, Any], list[str]]:
    """Read a form as it arrives; return its fields, and its images as text, which together stay under the limit."""
    stated = request.headers.get("content-length", "0")
    if stated.isascii() and stated.isdigit() and int(stated) > limit_bytes:
        raise TooLarge()
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("The body must come without a content encoding.")
    caps = Caps(IMAGE_MAX_BYTES, files=MOST_FILES, fields=MOST_FIELDS, field_bytes=FIELD_MAX_BYTES)
    fields: list[Field] = []
    images: list[str] = []
    async for part in Form(request.headers.get("content-type", ""), _heard(request), caps=caps):
        if isinstance(part, File):
            images.append(await _read_image(part))
            if sum(map(len, images)) > limit_bytes:
                raise TooLarge()
        else:
            fields.append(part)
    return read_form(fields), images


async def _read_image(file: File) -> str:
    if file.name == "mask":
        raise InvalidParameter(NO_MASK, param="mask")
    if file.name not in FILE_FIELDS:
        raise InvalidParameter("The form has a file that this route does not know.")
    content = bytearray()
    async for chunk in file.chunks:
        content += chunk
    return await _apart(len(content), lambda: data_uri(bytes(content)))


async def _apart(size_bytes: int, work: Callable[[], T]) -> T:
    """Do what takes long on large bodies in a thread, as it would keep everybody waiting."""
    return await asyncio.to_thread(work) if size_bytes > LARGE_BYTES else work()


async def _heard(request: Request) -> AsyncIterator[bytes]:
    """Yield the body as it arrives; a client that has gone silent keeps nobody waiting."""
    body = request.stream()
    while True:
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                chunk = await anext(body, None)
        except TimeoutError:
            raise InvalidParameter("The body did not arrive in time.") from None
        if chunk is None:
            return
        yield chunk


def _in_our_words(refusal: FormRefused) -> DashgateError:
    match refusal:
        case NotMultipart():
            return UnsupportedMediaType("The body must be multipart/form-data.")
        case multipart.TooLarge():
            return TooLarge(f"The form is too large: an image may have {IMAGE_MAX_BYTES} bytes at most.")
    return InvalidParameter("The body is not well-formed multipart/form-data, or has too many files.")
