"""Inputs of a call that are ours to judge: `oss://` uploads, and our own links to files that earlier tasks made.

Owns who may use which as an input, and what the upstream gets in place of a link that only we can open. Knows no HTTP
of ours, and nothing of a body but its texts.
"""

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import UUID

import structlog
from sqlalchemy import RowMapping

from app.delivery import store
from app.delivery.download import NoImage
from app.delivery.form_post import put_file
from app.delivery.links import EXTENSIONS, check_link
from app.delivery.serve import OpenFile, open_asset
from app.delivery.storage import StoreTrouble
from app.delivery.uploads import ask_policy, is_file_name
from app.errors import (
    AccessDenied,
    DashgateError,
    FileAway,
    Gone,
    InvalidParameter,
    NotFound,
    PassingTrouble,
    UpstreamAccountAtFault,
)
from app.lib.db import DatabaseAway, reading
from app.lib.ids import find_uuid
from app.lib.multipart import File, FormRefused
from app.resources import Filled, Resources
from app.routing.accounts import AccountInfo, get_account
from app.tasks.attempts import LATE_SECONDS
from app.teams.authenticate import Caller

log = structlog.get_logger()

T = TypeVar("T")

NOT_YOUR_UPLOAD = "An oss:// input must be an upload of this team for this model."
NOT_YOUR_FILE = "An input that is a link of this gateway must be a file of this team, and the link must not have ended."
TWO_ACCOUNTS = "The oss:// inputs of a call must be uploads to the same region, made with the same upload policy."
INPUT_GONE = "An input of this gateway is gone."
INPUT_TOO_LARGE = "An input of this gateway is too large for this region, which takes no uploads."

LARGE_BYTES = 256 * 1024  # looked through in a thread from here on
LINK_MAX_CHARS = 4_096
MOST_INPUTS = 200
SOURCE_MUST_LIVE = timedelta(minutes=30)  # the upstream may read its inputs long after it took the call
DATA_URI_MAX_CHARS = 10_485_760  # what the upstream takes as one (dashscope-api.md 2.4), counted as text
FILL_SECONDS = LATE_SECONDS - 1  # a sender that lost more of its lease must not send; the next attempt finds it done
RESOLVE = {"x-dashscope-ossresourceresolve": "enable"}
_OSS = "oss://"
# A text of a JSON document; where it is a key, with its colon.
_TOKEN = re.compile(rb'("[^"\\]*(?:\\.[^"\\]*)*")(\s*:)?', re.DOTALL)
_ASSET_PATH = re.compile(r".*/assets/([0-9A-Fa-f-]{36})/[^/]+", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a call's inputs ask for: the account that holds its uploads, and whether our links are to be filled in."""

    account_id: UUID | None = None
    has_ours: bool = False


@dataclass(frozen=True, slots=True)
class _OurLink:
    """A link that we signed. `is_live` until its own end."""

    asset_id: UUID
    is_live: bool


async def check_inputs(res: Resources, caller: Caller, *, fields: Mapping[str, Any], body: bytes, model: str) -> Inputs:
    """Judge a call's inputs before it becomes a task.

    Raises:
        InvalidParameter: an upload or a file is not this team's, or not for this model, or gone; nobody learns which.
        DatabaseAway: it cannot be known now.
    """
    texts = await _apart(body, lambda: _input_texts(fields) if _may_have_inputs(body) else [])
    if len(texts) > MOST_INPUTS:
        raise InvalidParameter(f"A call may have at most {MOST_INPUTS} such inputs.")
    folders = {_folder(text) for text in texts if _is_oss(text)}
    links = [link for text in texts if (link := _find_our_link(res, text)) is not None]
    if not all(link.is_live for link in links):
        raise InvalidParameter(NOT_YOUR_FILE)
    if not folders and not links:
        return Inputs()
    asset_ids = {link.asset_id for link in links}
    async with reading(res) as session:
        uploads = await store.read_uploads(session, caller.team_id, model=model, folders=folders, at=res.clock.now())
        assets = await store.read_input_assets(session, caller.team_id, asset_ids)
    if {upload["folder"] for upload in uploads} != folders:
        raise InvalidParameter(NOT_YOUR_UPLOAD)
    if len(assets) != len(asset_ids):
        raise InvalidParameter(NOT_YOUR_FILE)
    accounts = {upload["account_id"] for upload in uploads}
    if len(accounts) > 1:
        raise InvalidParameter(TWO_ACCOUNTS)
    return Inputs(account_id=next(iter(accounts), None), has_ours=bool(links))


async def fill_inputs(res: Resources, *, team_id: UUID, account_id: UUID, model: str, body: bytes) -> Filled:
    """Put into a body, for each of our links, what the upstream can read: every other byte stays as it is.

    In this order: the upstream's own link while it lives and the account made it; a temporary upload through the
    account; a data URI, when the file is small and no upload was possible.

    Raises:
        InvalidParameter: a file is gone, or cannot be passed on: trying again is pointless.
        FileAway: not now. What was begun goes on, and the next attempt may find it done.
    """
    links = await _apart(body, lambda: _find_links(res, body))
    if not links:
        return Filled(body)
    asset_ids = set(links.values())
    try:
        async with reading(res) as session:
            assets = {asset["id"]: asset for asset in await store.read_input_assets(session, team_id, asset_ids)}
        if assets.keys() != asset_ids:
            raise InvalidParameter(INPUT_GONE)
        async with asyncio.timeout(FILL_SECONDS):
            account = await get_account(res, account_id)
            passed = {
                asset_id: await _pass_on(res, account, model=model, asset=assets[asset_id]) for asset_id in assets
            }
    except (TimeoutError, UpstreamAccountAtFault, DatabaseAway) as trouble:
        raise FileAway() from trouble
    log.info("inputs.filled", count=len(passed), uploads=sum(_is_oss(text) for text in passed.values()))
    texts = {token: json.dumps(passed[asset_id]).encode() for token, asset_id in links.items()}
    filled = await _apart(body, lambda: _replaced(body, texts))
    return Filled(filled, RESOLVE if any(map(_is_oss, passed.values())) else {})


async def _pass_on(res: Resources, account: AccountInfo, *, model: str, asset: RowMapping) -> str:
    """Return what the upstream can read in place of an asset."""
    lives_until = res.clock.now() + SOURCE_MUST_LIVE
    if asset["account_id"] == account.id and asset["source_expires_at"] >= lives_until:
        return res.keyring.open(asset["source"], place=f"assets.source:{asset['id']}").decode()
    try:
        key = (asset["id"], account.id, model)
        return await res.passed_on.get(key, lambda: _upload(res, account, model=model, asset_id=asset["id"]))
    except (Gone, NotFound):
        raise InvalidParameter(INPUT_GONE) from None
    except DashgateError as trouble:
        log.warning("input.upload_failed", asset=str(asset["id"]), account=account.name, code=trouble.code)
        return await _as_data_uri(res, asset["id"], instead_of=trouble)


async def _upload(res: Resources, account: AccountInfo, *, model: str, asset_id: UUID) -> str:
    """Put an asset into the upstream's temporary store; the same file is an input of many calls, so it is kept."""
    async with open_asset(res, asset_id) as opened:
        policy = await ask_policy(res, account, model)
        name = f"{asset_id}.{EXTENSIONS.get(opened.content_type, 'bin')}"
        file = File("file", name, opened.content_type, opened.size_bytes, _read(opened))
        try:
            return await put_file(res, account, policy, file_name=name, file=file)
        except FormRefused as trouble:  # the file was not as long as its storage said
            raise FileAway() from trouble


async def _as_data_uri(res: Resources, asset_id: UUID, *, instead_of: DashgateError) -> str:
    """Return a small asset as text.

    Raises:
        InvalidParameter: it is gone, or too large where there are no uploads.
        FileAway: it is too large, and the upload may succeed later; or its storage is away.
    """
    may_come_later = isinstance(instead_of, PassingTrouble | UpstreamAccountAtFault)
    try:
        async with open_asset(res, asset_id) as opened:
            head = f"data:{opened.content_type};base64,"
            if len(head) + -(-opened.size_bytes // 3) * 4 > DATA_URI_MAX_CHARS:
                raise FileAway() if may_come_later else InvalidParameter(INPUT_TOO_LARGE)
            read = b"".join([chunk async for chunk in _read(opened)])
    except (Gone, NotFound):
        raise InvalidParameter(INPUT_GONE) from None
    return head + base64.b64encode(read).decode()


async def _read(opened: OpenFile) -> AsyncIterator[bytes]:
    """Yield a file's bytes; what can go wrong on the way has one name here."""
    try:
        async for chunk in opened.chunks:
            yield chunk
    except (StoreTrouble, NoImage) as trouble:
        raise FileAway() from trouble


async def _apart(body: bytes, look: Callable[[], T]) -> T:
    """Look through a body; through a large one in a thread, as it would keep everybody waiting."""
    return await asyncio.to_thread(look) if len(body) > LARGE_BYTES else look()


def _may_have_inputs(body: bytes) -> bool:
    """Tell whether a body could name an input of ours, also where its letters are escaped."""
    return b"/assets" in body or b"\\u00" in body or b"oss:" in body.lower()


def _input_texts(fields: Mapping[str, Any]) -> list[str]:
    """Return every text value that is an `oss://` input or could be a link of ours.

    Without recursion, because the parser goes deeper than Python's own calls may.
    """
    found: list[str] = []
    waiting: list[Any] = [fields]
    while waiting:
        match waiting.pop():
            case dict() as members:
                waiting += members.values()
            case list() as items:
                waiting += items
            case str() as text if _is_oss(text) or _may_be_a_link(text):
                found.append(text)
    return found


def _is_oss(text: str) -> bool:
    return text.lstrip()[: len(_OSS)].lower() == _OSS


def _may_be_a_link(text: str) -> bool:
    return len(text) <= LINK_MAX_CHARS and "/assets/" in text


def _folder(text: str) -> str:
    """Return the folder that an `oss://` input lies in.

    >>> _folder("oss://dashscope-instant/1/cup.png")
    'dashscope-instant/1'
    >>> _folder("oss://dashscope-instant/1/..%2f2%2fcup.png")
    Traceback (most recent call last):
    app.errors.InvalidParameter: An oss:// input must be an upload of this team for this model.
    """
    folder, _, name = text.removeprefix(_OSS).rpartition("/")
    if not text.startswith(_OSS) or not is_file_name(name) or not is_file_name(unquote(name)):
        raise InvalidParameter(NOT_YOUR_UPLOAD)
    return folder


def _find_our_link(res: Resources, text: str) -> _OurLink | None:
    """Return the link of ours that a text is, whatever host it names: what we signed is ours.

    Raises:
        InvalidParameter: it leads to us, but we did not sign it so.
    """
    if not _may_be_a_link(text):
        return None
    try:
        parts = urlsplit(text.strip())
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    except ValueError:
        return None
    path = _ASSET_PATH.fullmatch(parts.path)
    asset_id = find_uuid(path[1]) if path else None
    if asset_id is None or parts.scheme not in ("http", "https"):
        return None
    try:
        check_link(res, asset_id, query)
    except Gone:
        return _OurLink(asset_id, is_live=False)
    except AccessDenied:
        if text.strip().startswith(f"{res.settings.public_url}/assets/"):
            raise InvalidParameter(NOT_YOUR_FILE) from None
        return None
    return _OurLink(asset_id, is_live=True)


def _find_links(res: Resources, body: bytes) -> dict[bytes, UUID]:
    """Return the JSON strings of a body that are links of ours, as they are written, with the assets they name.

    A link that has ended since the call was accepted still counts: the team gave it in time.
    """
    if not _may_have_inputs(body):
        return {}
    found: dict[bytes, UUID] = {}
    for token in _tokens(body):
        link = _find_our_link(res, json.loads(token))
        if link is not None:
            found[token] = link.asset_id
    return found


def _tokens(body: bytes) -> Iterator[bytes]:
    """Yield the texts of a JSON document that could be links, as they are written."""
    for match in _TOKEN.finditer(body):
        is_value, length = match[2] is None, match.end(1) - match.start(1)
        if is_value and length <= 6 * LINK_MAX_CHARS and _may_have_inputs(match[1]):
            yield match[1]


def _replaced(body: bytes, texts: Mapping[bytes, bytes]) -> bytes:
    r"""Put other texts in place of some, where they are values; keys and every other byte stay.

    >>> _replaced(b'{"a" : "a", "b":[ "a",1.50]}', {b'"a"': b'"x"'})
    b'{"a" : "x", "b":[ "x",1.50]}'
    """
    return _TOKEN.sub(lambda match: match[0] if match[2] else texts.get(match[1], match[0]), body)
