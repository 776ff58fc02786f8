"""From an Authorization header to a caller. Owns the judgement of API keys; says nothing of what a caller may see."""

from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from uuid import UUID

from app.errors import AccessDenied, InvalidApiKey
from app.lib.db import reading
from app.resources import Resources
from app.teams import store
from app.teams.keys import find_parts

MAC_PURPOSE = "api key"
HEADER_MAX_CHARS = 200


@dataclass(frozen=True, slots=True)
class Caller:
    """A team, by one of its API keys, with what the team chose. `regions` begins with the team's default."""

    team_id: UUID
    team: str
    api_key_id: str
    regions: tuple[str, ...]
    model_patterns: tuple[tuple[str, ...], ...]  # the team's and the key's: a model must match in both
    durable: bool  # sync calls run as tasks where possible, unless the call says otherwise
    hold: bool  # new async work is queued, not refused, while every allowed account is at fault
    allow_unlisted_models: bool  # models that the catalogue does not know are called all the same
    rps: float | None  # creates and sync calls a second; None: no limit of its own
    max_queued: int | None = None  # the most of its tasks that may wait; None: no cap
    queue_deadline_seconds: int | None = None  # how long each may; None: the setting decides


@dataclass(frozen=True, slots=True)
class _KnownKey:
    """What the cache holds of a key id: enough to judge, nothing that could be replayed."""

    secret_mac: bytes
    expires_at: datetime | None
    revoked: bool
    caller: Caller


async def authenticate(res: Resources, authorization: str | None) -> Caller:
    """Return who is calling.

    Raises:
        InvalidApiKey: no key, or a wrong, expired or revoked one; nobody learns which.
        DatabaseAway: it cannot be checked, which is never a 401.
    """
    if authorization is None:
        raise InvalidApiKey("No API-key provided.")
    scheme, _, text = authorization.partition(" ")
    parts = find_parts(text.strip()) if len(authorization) <= HEADER_MAX_CHARS and scheme.lower() == "bearer" else None
    if parts is None:
        raise InvalidApiKey()
    known: _KnownKey | None = await res.api_keys.get(parts.key_id, lambda: _load(res, parts.key_id))
    # Compare something even for an unknown id, so that the time taken does not tell which ids exist.
    expected = known.secret_mac if known else b""
    matches = res.keyring.mac_matches(MAC_PURPOSE, parts.secret.encode(), tag=expected)
    if known is None or not matches or known.revoked:
        raise InvalidApiKey()
    if known.expires_at is not None and known.expires_at <= res.clock.now():
        raise InvalidApiKey()
    return known.caller


def check_model(caller: Caller, model: str) -> None:
    """Refuse a model that the team or the key may not call.

    Raises:
        AccessDenied: no pattern of the team, or none of the key, matches.
    """
    for patterns in caller.model_patterns:
        if not any(fnmatchcase(model, pattern) for pattern in patterns):
            raise AccessDenied()


async def _load(res: Resources, key_id: str) -> _KnownKey | None:
    async with reading(res) as session:
        row = await store.find_api_key_all_teams(session, key_id)
    if row is None:
        return None
    others = [region for region in row["regions"] if region != row["default_region"]]
    return _KnownKey(
        secret_mac=row["secret_mac"],
        expires_at=row["expires_at"],
        revoked=row["revoked_at"] is not None,
        caller=Caller(
            team_id=row["team_id"],
            team=row["slug"],
            api_key_id=row["id"],
            regions=(row["default_region"], *others),
            model_patterns=(tuple(row["team_models"]), tuple(row["key_models"])),
            durable=row["durable"],
            hold=row["hold"],
            allow_unlisted_models=row["allow_unlisted_models"],
            rps=float(row["rps"]) if row["rps"] is not None else None,
            max_queued=row["max_queued"],
            queue_deadline_seconds=row["queue_deadline_seconds"],
        ),
    )
