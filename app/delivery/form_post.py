"""One file into the upstream's temporary store, by the form that a policy opens (dashscope-api.md 7.1).

Owns the form's fields and their order, where it may go, and the words for what the store answers. Must not know whose
file it is.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from html import unescape

import httpx
import structlog

from app.delivery.download import HostNotAllowed, SourceRefused, allowed_link
from app.errors import FileAway, UploadRefused, UpstreamAccountAtFault
from app.lib.guard import Refused
from app.lib.metrics import UPSTREAM_CALLS
from app.lib.multipart import File, Malformed, encode_form
from app.resources import Resources
from app.routing.accounts import AccountInfo
from app.upstream.answers import UploadPolicy

log = structlog.get_logger()

TOTAL_SECONDS = 3_600.0  # as long as the vendor's SDK waits; what comes slower than its policy lives is refused there
AWAY = "The upstream does not take the file now. Try again later."
ANSWER_MAX_BYTES = 4_096
LINE_END = b"\r\n"
_CODE = re.compile(rb"<Code>([A-Za-z0-9.]{1,64})</Code>")
_MESSAGE = re.compile(rb"<Message>([^<]{1,500})</Message>")
# Refusals of what we signed with, not of what the client sent.
OURS = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidPolicyDocument", "NoSuchBucket"})


async def put_file(res: Resources, account: AccountInfo, policy: UploadPolicy, *, file_name: str, file: File) -> str:
    """Send a file of known size to the store, as it is read; return the `oss://` link to it.

    What the file's own bytes raise is raised here, and the store then has no whole form.

    Raises:
        UploadRefused: the store refused it, in its own words.
        UpstreamAccountAtFault: the store is at a host we do not know, or refused the policy itself; told in the log.
        FileAway: the store cannot be reached, or is in trouble.
    """
    link = _checked_host(res, account, policy)
    key = f"{policy.upload_dir}/{file_name}"
    body = _Body(_fields(policy, key, content_type=file.content_type), replace(file, name="file", file_name=file_name))
    headers = {"Content-Type": body.content_type, "Content-Length": str(body.length_bytes)}
    try:
        async with (
            asyncio.timeout(TOTAL_SECONDS),
            res.outside.long_client.stream("POST", link, content=body, headers=headers) as answer,
        ):
            status, said = answer.status_code, await _beginning(answer)
    except (Refused, httpx.TransportError, TimeoutError) as trouble:
        if body.fault is not None:
            raise body.fault from None
        UPSTREAM_CALLS.labels("upload", "lost").inc()
        raise FileAway(AWAY) from trouble
    _judge(account, status, said=said)
    return f"oss://{key}"


def _checked_host(res: Resources, account: AccountInfo, policy: UploadPolicy) -> str:
    """Return where to send the form: the store of a known pattern, or a host that the operator named."""
    try:
        return allowed_link(res.outside, policy.upload_host, file_hosts=account.file_hosts)
    except (HostNotAllowed, SourceRefused) as refusal:
        log.error("upload.host_refused", account=account.name, host=getattr(refusal, "host", "unreadable"))
        raise UpstreamAccountAtFault() from None


def _fields(policy: UploadPolicy, key: str, *, content_type: str) -> list[tuple[str, str]]:
    """Return the form's fields in the order that the documentation gives."""
    return [
        ("OSSAccessKeyId", policy.oss_access_key_id),
        ("Signature", policy.signature),
        ("policy", policy.policy),
        ("key", key),
        ("x-oss-object-acl", policy.x_oss_object_acl),
        ("x-oss-forbid-overwrite", policy.x_oss_forbid_overwrite),
        ("success_action_status", "200"),
        ("x-oss-content-type", content_type),
    ]


async def _beginning(answer: httpx.Response) -> bytes:
    """Read as much of an answer as an error's code and message take."""
    read = b""
    async for chunk in answer.aiter_raw():
        read += chunk
        if len(read) >= ANSWER_MAX_BYTES:
            break
    return read[:ANSWER_MAX_BYTES]


def _judge(account: AccountInfo, status: int, *, said: bytes) -> None:
    """Turn an answer into what it means. Of a refusal only code and message pass: the rest may hold credentials."""
    if 200 <= status < 300:
        UPSTREAM_CALLS.labels("upload", "accepted").inc()
        return
    found = _CODE.search(said)
    code = found[1].decode() if found else ""
    if not 400 <= status < 500 or status in (408, 429) or not code:
        UPSTREAM_CALLS.labels("upload", "upstream").inc()
        raise FileAway(AWAY)
    if code in OURS:
        UPSTREAM_CALLS.labels("upload", "account").inc()
        log.error("upload.policy_refused", account=account.name, status=status, code=code)
        raise UpstreamAccountAtFault()
    UPSTREAM_CALLS.labels("upload", "caller").inc()
    message = _MESSAGE.search(said)
    text = unescape(message[1].decode("utf-8", "replace")) if message else None
    raise UploadRefused(text, status=status, code=code)


class _Body:
    """Passes a form on at the length that was announced for it, and keeps what goes wrong: the client would show a
    lost connection instead.

    A file's size is foretold from the length of the form it came in, as if that ended with a line end. Some clients
    write none: then the file is two bytes longer, and our own form does without its line end.
    """

    def __init__(self, fields: Sequence[tuple[str, str]], file: File) -> None:
        around = encode_form(fields, replace(file, size_bytes=0))  # all but the file
        form = encode_form(fields, replace(file, size_bytes=None))  # whose size is watched over here
        self._chunks = form.body
        self.content_type = form.content_type
        self.length_bytes = (around.length_bytes or 0) + (file.size_bytes or 0)
        self.fault: Exception | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        sent_bytes, last = 0, b""
        try:
            async for chunk in self._chunks:
                if sent_bytes + len(last) > self.length_bytes:
                    raise Malformed("the file is longer than its form said")
                if last:
                    yield last
                sent_bytes, last = sent_bytes + len(last), chunk
            yield self._ending(last, self.length_bytes - sent_bytes)
        except Exception as fault:
            self.fault = fault
            raise

    def _ending(self, last: bytes, left_bytes: int) -> bytes:
        if len(last) == left_bytes:
            return last
        if last.endswith(LINE_END) and len(last) == left_bytes + len(LINE_END):
            return last.removesuffix(LINE_END)
        raise Malformed("the file has not the size that its form said")
