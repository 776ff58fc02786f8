"""The temporary store for input files: who may put what into it, how long it stays, which calls may read it.

Knows no HTTP, and keeps no bytes: their length and hash are enough for whoever wants to compare them.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from app.simulator import problems
from app.simulator.links import ACCESS_KEY_ID
from app.simulator.options import SimulatorKey
from app.simulator.upload_form import UploadForm, UploadRefusedError, invalid_argument
from app.simulator.wire import UPSTREAM_ZONE, Json

POLICY_SECONDS = 300
OBJECT_SECONDS = 48 * 60 * 60
ACL = "private"
FORBID_OVERWRITE = "true"
SCHEME = "oss://"
_SECRET = b"the simulator's policies protect nothing"
_MB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Upload:
    """One uploaded file, bound to main account, region and model; `uploaded_at` is simulated epoch seconds."""

    key: str
    size_bytes: int
    sha256: str
    model: str
    region: str
    main_account: str
    uploaded_at: float

    def serves(self, reader: SimulatorKey, model: str, *, now: float) -> bool:
        """Tell whether a call of `reader` for `model` may have this file as its input."""
        mine = (self.main_account, self.region, self.model) == (reader.main_account, reader.region, model)
        return mine and now < self.uploaded_at + OBJECT_SECONDS


@dataclass(frozen=True, slots=True)
class _Grant:
    """What one policy allows, and to whom."""

    key: SimulatorKey
    model: str
    folder: str
    max_size_mb: int
    expires_at: float


class TemporaryStore:
    """The policies given out and the files put in under them."""

    def __init__(self) -> None:
        self._grants: dict[str, _Grant] = {}  # by the policy's text
        self._uploads: dict[str, Upload] = {}

    @property
    def uploads(self) -> Sequence[Upload]:
        """Every file ever taken, also those that are gone; oldest first."""
        return tuple(self._uploads.values())

    def grant(self, key: SimulatorKey, model: str, *, max_size_mb: int, now: float) -> Json:
        """Allow uploads into a folder of their own; return the fields of the policy's answer, all but the host."""
        owner = hashlib.sha256(key.main_account.encode()).hexdigest()[:32]
        day = datetime.fromtimestamp(now, UPSTREAM_ZONE).strftime("%Y-%m-%d")
        grant = _Grant(
            key=key,
            model=model,
            folder=f"dashscope-instant/{owner}/{day}/{uuid4()}",
            max_size_mb=max_size_mb,
            expires_at=now + POLICY_SECONDS,
        )
        policy = _policy_text(grant)
        self._grants[policy] = grant
        return {
            "policy": policy,
            "signature": sign_policy(policy),
            "upload_dir": grant.folder,
            "expire_in_seconds": POLICY_SECONDS,
            "max_file_size_mb": max_size_mb,
            "capacity_limit_mb": 999999999,
            "oss_access_key_id": ACCESS_KEY_ID,
            "x_oss_object_acl": ACL,
            "x_oss_forbid_overwrite": FORBID_OVERWRITE,
        }

    def put(self, form: UploadForm, *, region: str, now: float) -> Upload:
        """Take a file. Raises: `UploadRefusedError` with the store's own words."""
        fields = form.fields
        grant = self._check_policy(fields, now=now)
        _check_conditions(grant, fields, region=region)
        if len(form.file) > grant.max_size_mb * _MB:
            raise UploadRefusedError(
                400, "EntityTooLarge", message="Your proposed upload exceeds the maximum allowed size."
            )
        if fields["key"] in self._uploads:
            raise UploadRefusedError(
                409, "FileAlreadyExists", message="The object you specified already exists and can not be overwritten."
            )
        upload = Upload(
            key=fields["key"],
            size_bytes=len(form.file),
            sha256=hashlib.sha256(form.file).hexdigest(),
            model=grant.model,
            region=region,
            main_account=grant.key.main_account,
            uploaded_at=now,
        )
        self._uploads[upload.key] = upload
        return upload

    def check_inputs(self, body: Json, *, reader: SimulatorKey, resolves: bool, now: float) -> None:
        """Let a call pass whose `oss://` inputs can all be read; `resolves` says that it asked for them to be resolved.

        Raises: `Problem` 400.
        """
        for link in oss_links(body.get("input")):
            if not resolves:
                raise problems.invalid(
                    "The provided URL does not appear to be valid. Ensure it is correctly formatted."
                )
            upload = self._uploads.get(link.removeprefix(SCHEME))
            if upload is None or not upload.serves(reader, str(body.get("model")), now=now):
                raise problems.invalid("download image failed")

    def _check_policy(self, fields: dict[str, str], *, now: float) -> _Grant:
        if fields["OSSAccessKeyId"] != ACCESS_KEY_ID:
            raise UploadRefusedError(
                403,
                "InvalidAccessKeyId",
                message="The OSS Access Key Id you provided does not exist in our records.",
            )
        if not hmac.compare_digest(sign_policy(fields["policy"]).encode(), fields["Signature"].encode()):
            raise UploadRefusedError(
                403,
                "SignatureDoesNotMatch",
                message="The request signature we calculated does not match the signature you provided. "
                "Check your key and signing method.",
            )
        grant = self._grants.get(fields["policy"])
        if grant is None:  # given out before a reset
            raise UploadRefusedError(400, "InvalidPolicyDocument", message="The policy is not known here.")
        if now >= grant.expires_at:
            raise _against_policy("Policy expired")
        return grant


def sign_policy(policy: str) -> str:
    """Return the signature that makes a policy good, in the form of OSS signature version 1."""
    return base64.b64encode(hmac.digest(_SECRET, policy.encode(), "sha1")).decode()


def oss_links(value: Any) -> Iterator[str]:
    """Find every `oss://` string in a JSON value, however deep.

    >>> list(oss_links({"messages": [{"content": [{"image": "oss://a/b.png"}, {"text": "a boat"}]}]}))
    ['oss://a/b.png']
    """
    waiting = [value]
    while waiting:
        match waiting.pop():
            case dict() as members:
                waiting += members.values()
            case list() as items:
                waiting += items
            case str() as text if text.startswith(SCHEME):
                yield text


def _policy_text(grant: _Grant) -> str:
    expiration = datetime.fromtimestamp(grant.expires_at, UTC).isoformat(timespec="milliseconds")
    policy = {
        "expiration": expiration.replace("+00:00", "Z"),
        "conditions": [
            ["content-length-range", 0, grant.max_size_mb * _MB],
            ["starts-with", "$key", grant.folder],
            {"x-oss-object-acl": ACL},
            {"x-oss-forbid-overwrite": FORBID_OVERWRITE},
        ],
    }
    return base64.b64encode(json.dumps(policy).encode()).decode()


def _check_conditions(grant: _Grant, fields: dict[str, str], *, region: str) -> None:
    """Hold the form to its policy. The store wants a name after the folder, or two files could not share a policy."""
    if not fields["key"].startswith(f"{grant.folder}/"):
        raise _against_policy(f'Policy Condition failed: ["starts-with", "$key", "{grant.folder}"]')
    for name, wanted in (("x-oss-object-acl", ACL), ("x-oss-forbid-overwrite", FORBID_OVERWRITE)):
        if fields[name] != wanted:
            raise _against_policy(f'Policy Condition failed: ["eq", "${name}", "{wanted}"]')
    if grant.key.region != region:
        raise _against_policy("Policy Condition failed: the bucket is another region's")
    if fields["success_action_status"] != "200":
        raise invalid_argument("success_action_status must be 200")


def _against_policy(reason: str) -> UploadRefusedError:
    return UploadRefusedError(403, "AccessDenied", message=f"Invalid according to Policy: {reason}")
