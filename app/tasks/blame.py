"""Blame: the upstream says that our side is at fault. What is left alone for a while, and what is tried instead.

Owns the marks on keys and accounts that follow from a refused call; which key or account takes the next call is
routing's to know.
"""

from datetime import timedelta

import structlog

from app.lib.db import transaction
from app.resources import Resources
from app.routing import room
from app.routing.accounts import UpstreamKey, all_accounts
from app.routing.keys import KEY_BAD_SECONDS, what_is_at_fault
from app.routing.store import bar_key_from_model, mark_key_bad, pause_account
from app.tasks.attempts import Attempt
from app.upstream.answers import Refused
from app.upstream.faults import Fault

log = structlog.get_logger()

ACCOUNT_PAUSE_SECONDS = 60.0


async def find_another_key(res: Resources, attempt: Attempt, *, key: UpstreamKey, answer: object) -> UpstreamKey | None:
    """After a refusal that may be the key's: mark it and return the account's next one, else None.

    Certain that nothing was taken, so the same attempt may call once more. A key is marked only where another is
    left: without one the account is at fault.
    """
    if not isinstance(answer, Refused) or answer.fault is not Fault.ACCOUNT or key is not attempt.key:
        return None  # once: two refused keys in a row are the account's trouble
    now = res.clock.now()
    other = attempt.account.key_for(attempt.model, now, but=key.id)
    fault = what_is_at_fault(answer.code, answer.status, keys_left=other is not None)
    if other is None or fault not in ("key", "key_model"):
        return None
    until = now + timedelta(seconds=KEY_BAD_SECONDS)
    log.error("key.refused", account=attempt.account.name, key=str(key.id), code=answer.code, at_fault=fault)
    async with transaction(res) as session:
        if fault == "key":
            await mark_key_bad(session, key.id, until=until, reason=answer.code)
        else:
            await bar_key_from_model(session, key.id, attempt.model, until=until, reason=answer.code)
    res.accounts.clear()
    return other


async def pause_what_is_at_fault(res: Resources, attempt: Attempt, refused: Refused) -> None:
    """Send nothing more for a while to what is at fault: the account, or this model on it."""
    log.error("account.refused", account=attempt.account.name, code=refused.code, message=refused.message)
    fault = what_is_at_fault(refused.code, refused.status, keys_left=False)
    async with transaction(res) as session:
        if fault == "account_model":
            key = room.model_key(attempt.account, attempt.model)
            await room.pause(session, res, key, seconds=ACCOUNT_PAUSE_SECONDS)
        else:
            until = res.clock.now() + timedelta(seconds=ACCOUNT_PAUSE_SECONDS)
            await pause_account(session, attempt.account.id, until=until, reason=refused.code)
    res.accounts.clear()


async def has_another_account(res: Resources, attempt: Attempt) -> bool:
    """Tell whether another account takes calls; whether this task may go there is looked at when it is moved."""
    if attempt.pinned:
        return False
    accounts = await all_accounts(res)
    return any(account.id != attempt.account.id and account.takes_calls(res.clock.now()) for account in accounts)
