"""Uploads: a team's local files into the upstream's temporary store, through us and nobody else.

Owns whose an upload is, and the policy that a team gets in place of the upstream's: in the same shape, good only here,
with nothing of the upstream's credentials in it. Knows no HTTP of ours.
"""

import base64
import json
import random
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from hmac import compare_digest
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import RowMapping

from app.delivery import store
from app.delivery.form_post import put_file
from app.errors import (
    CouldNotFindOut,
    FileAway,
    ModelNotFound,
    Throttled,
    UnsupportedOperation,
    UploadRefused,
    UpstreamAccountAtFault,
    UpstreamRefused,
)
from app.lib.db import reading, transaction
from app.lib.ids import find_uuid, new_id
from app.lib.metrics import UPSTREAM_CALLS
from app.lib.multipart import File
from app.resources import Resources
from app.routing.accounts import AccountInfo, UpstreamKey, all_accounts, get_account, upstream_of
from app.routing.catalogue import PLAIN_NAME, Offer, load_catalogue, unlisted_offer
from app.routing.choice import Wish, choose
from app.routing.keys import what_is_at_fault
from app.routing.ways import Asked
from app.tasks.accept import candidates_for
from app.teams.authenticate import Caller, check_model
from app.upstream.answers import Refused, UploadPolicy
from app.upstream.faults import AtFault, Fault

log = structlog.get_logger()

MAC_PURPOSE = "upload policy"
ACCESS_KEY_ID = "dashgate"  # stands where the upstream has its key id
FILE_LIFE = timedelta(hours=48)  # the upstream deletes an upload then
MIB = 1024 * 1024
NO_UPLOADS = "The upstream of this region takes no uploads."
POLICY_AWAY = "The upstream gives no upload policy now. Try again later."
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,100}/[A-Za-z0-9!#$&^_.+-]{1,100}")
_FILE_NAME = re.compile(r"[^/\\\x00-\x1f\x7f]{1,255}")


async def open_upload(res: Resources, caller: Caller, *, model: str, region: str | None) -> dict[str, Any]:
    """Open a folder for a team's input files of one model; return the `data` of DashScope's answer.

    1. Choose the account as a create would. 2. Outside: ask it for a policy. 3. One transaction: whose the folder is,
    with the policy sealed; the team's uploads that are gone upstream are forgotten. A crash before 3 leaves a policy
    that nobody knows.

    Raises:
        AccessDenied, ModelNotFound, InvalidParameter, UpstreamRefused, UnsupportedOperation: the request is at fault.
        UpstreamAccountAtFault, Throttled, FileAway: no account gives a policy now.
    """
    check_model(caller, model)
    account = await _choose_account(res, caller, model=model, region=region)
    now = res.clock.now()
    policy = await ask_policy(res, account, model)
    upload_id, policy_expires_at = new_id(), now + timedelta(seconds=policy.expire_in_seconds)
    most_bytes = min(policy.max_file_size_mb * MIB, res.settings.upload_limit_bytes)
    values = {
        "id": upload_id,
        "team_id": caller.team_id,
        "account_id": account.id,
        "model": model,
        "folder": policy.upload_dir,
        "policy": res.keyring.seal(json.dumps(asdict(policy)).encode(), place=_place(upload_id)),
        "most_bytes": most_bytes,
        "policy_expires_at": policy_expires_at,
        "expires_at": now + FILE_LIFE,
    }
    async with transaction(res) as session:
        await store.forget_uploads(session, caller.team_id, before=now)
        is_new = await store.insert_upload(session, values)
    if not is_new:
        # Whose the files in it are could not be told any more.
        log.error("upload.folder_repeated", account=account.name, model=model)
        raise FileAway(POLICY_AWAY)
    log.info("upload.opened", upload=str(upload_id), model=model, region=account.region)
    shown = {"max_file_size_mb": min(policy.max_file_size_mb, max(1, most_bytes // MIB))}
    return {**_shown(policy), **shown, **_credentials(res, upload_id, policy_expires_at)}


async def take_file(res: Resources, upload_id: str, *, fields: Mapping[str, str], file: File) -> None:
    """Pass a file on into the folder that its form's policy opens.

    Raises:
        UploadRefused: the form is not what its policy says, or the store refused it; in the store's words.
        UpstreamAccountAtFault, FileAway: as form_post.put_file.
    """
    upload = await _get_upload(res, upload_id, fields)
    file_name = _file_name(upload, fields.get("key", ""))
    if file.size_bytes is None:
        raise UploadRefused("You must provide the Content-Length HTTP header.", status=411, code="MissingContentLength")
    if file.size_bytes > upload["most_bytes"]:
        raise UploadRefused("Your proposed upload exceeds the maximum allowed size.", code="EntityTooLarge")
    policy = UploadPolicy(**json.loads(res.keyring.open(upload["policy"], place=_place(upload["id"]))))
    account = await get_account(res, upload["account_id"])
    kind = fields.get("x-oss-content-type", "")
    typed = replace(file, content_type=kind) if _MEDIA_TYPE.fullmatch(kind) else file
    await put_file(res, account, policy, file_name=file_name, file=typed)
    log.info("upload.stored", upload=str(upload["id"]), size_bytes=file.size_bytes)


async def ask_policy(res: Resources, account: AccountInfo, model: str) -> UploadPolicy:
    """Ask an account's upstream for a policy; refused because of its key, once more with the account's next one.

    Raises:
        UpstreamRefused, UnsupportedOperation: the upstream gives none for this model.
        UpstreamAccountAtFault, Throttled, FileAway: it gives none now.
    """
    now = res.clock.now()
    key = account.key_for(model, now)
    if key is None:
        raise UpstreamAccountAtFault()
    answer = await _ask(res, account, model=model, key=key)
    other = account.key_for(model, now, but=key.id)
    if other is not None and _is_the_keys_fault(answer):
        answer = await _ask(res, account, model=model, key=other)
    match answer:
        case UploadPolicy():
            UPSTREAM_CALLS.labels("policy", "accepted").inc()
            return answer
        case Refused(fault=fault):
            UPSTREAM_CALLS.labels("policy", fault).inc()
            raise _refusal(account, answer)


async def _ask(res: Resources, account: AccountInfo, *, model: str, key: UpstreamKey) -> UploadPolicy | Refused:
    try:
        return await upstream_of(res, account, key=key).get_upload_policy(model)
    except CouldNotFindOut as trouble:
        UPSTREAM_CALLS.labels("policy", "lost").inc()
        raise FileAway(POLICY_AWAY) from trouble


def _is_the_keys_fault(answer: UploadPolicy | Refused) -> bool:
    """Tell whether another key may be welcome. The key is marked by the next create that meets the same refusal."""
    if not isinstance(answer, Refused) or answer.fault is not Fault.ACCOUNT:
        return False
    return what_is_at_fault(answer.code, answer.status, keys_left=True) in (AtFault.KEY, AtFault.KEY_MODEL)


def _refusal(account: AccountInfo, refused: Refused) -> Exception:
    """Say what a refused policy is to the team; details of our account stay with the operator."""
    match refused:
        case Refused(fault=Fault.LOAD):
            return Throttled(refused.retry_after_seconds or 1)
        case Refused(fault=Fault.ACCOUNT):
            log.error("account.refused", account=account.name, code=refused.code, message=refused.message)
            return UpstreamAccountAtFault()
        case Refused(code=""):
            return UnsupportedOperation(NO_UPLOADS)
    return UpstreamRefused(refused.status, refused.body)


async def _choose_account(res: Resources, caller: Caller, *, model: str, region: str | None) -> AccountInfo:
    """Choose as a create does; which form the call will have is not known yet, so any form counts as offered."""
    offer = _offer(res, caller, model)
    now = res.clock.now()
    candidates = candidates_for(await all_accounts(res), model, now=now)
    asked = Asked(offer.path or offer.sync_path or "", is_async=True)
    wish = Wish(caller.regions, asked, wanted=region, draw=random.random())  # noqa: S311 -- spreads load
    return await get_account(res, choose(offer, candidates, wish=wish, now=now).candidate.id)


def _offer(res: Resources, caller: Caller, model: str) -> Offer:
    offer = load_catalogue(res.settings.catalogue_file).find(model)
    if offer is not None:
        return offer
    if not caller.allow_unlisted_models or PLAIN_NAME.fullmatch(model) is None:
        raise ModelNotFound()
    return unlisted_offer("unlisted", is_async=True)  # no call goes there: only the region is asked for


def _shown(policy: UploadPolicy) -> dict[str, Any]:
    """Return what a team may see of a policy."""
    hidden = ("policy", "signature", "oss_access_key_id", "upload_host")
    return {name: value for name, value in asdict(policy).items() if name not in hidden}


def _credentials(res: Resources, upload_id: UUID, expires_at: datetime) -> dict[str, str]:
    """Return what stands in place of the upstream's credentials: good for this upload, here, until its end."""
    expiration = expires_at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    policy = base64.b64encode(json.dumps({"expiration": expiration}).encode()).decode()
    return {
        "upload_host": f"{res.settings.public_url}/uploads/{upload_id}",
        "oss_access_key_id": ACCESS_KEY_ID,
        "policy": policy,
        "signature": _sign(res, upload_id, policy),
    }


def _sign(res: Resources, upload_id: UUID, policy: str) -> str:
    return base64.b64encode(res.keyring.mac(MAC_PURPOSE, f"{upload_id}|{policy}".encode())).decode()


async def _get_upload(res: Resources, upload_id: str, fields: Mapping[str, str]) -> RowMapping:
    """Return the upload whose policy a form carries; nothing is looked up for a stranger."""
    found = find_uuid(upload_id)
    if fields.get("OSSAccessKeyId") != ACCESS_KEY_ID:
        raise UploadRefused(
            "The OSS Access Key Id you provided does not exist in our records.", status=403, code="InvalidAccessKeyId"
        )
    signature, policy = fields.get("Signature", ""), fields.get("policy", "")
    if found is None or not compare_digest(_sign(res, found, policy).encode(), signature.encode()):
        raise UploadRefused(
            "The request signature we calculated does not match the signature you provided.",
            status=403,
            code="SignatureDoesNotMatch",
        )
    async with reading(res) as session:
        upload = await store.find_upload_all_teams(session, found)
    if upload is None or upload["policy_expires_at"] <= res.clock.now():
        raise _against_policy("Policy expired")
    return upload


def _file_name(upload: RowMapping, key: str) -> str:
    """Return the file's name in its upload's folder, where alone it may go."""
    folder, _, name = key.rpartition("/")
    if folder != upload["folder"] or not is_file_name(name):
        raise _against_policy('Policy Condition failed: ["starts-with", "$key", upload_dir]')
    return name


def is_file_name(name: str) -> bool:
    """Tell whether a name is one plain name, which leads nowhere else.

    >>> [is_file_name(name) for name in ("cup.png", "杯 1.png", "..", "a/b", "")]
    [True, True, False, False, False]
    """
    return _FILE_NAME.fullmatch(name) is not None and name not in (".", "..")


def _against_policy(reason: str) -> UploadRefused:
    return UploadRefused(f"Invalid according to Policy: {reason}", status=403, code="AccessDenied")


def _place(upload_id: UUID) -> str:
    return f"uploads.policy:{upload_id}"
