"""Blame: the upstream refuses a call. What the operator hears of it; what is left alone for a while where our side is
at fault, and what is tried instead.

Owns the marks on keys and accounts that follow from a refused call; which key or account takes the next call is
routing's to know.
"""

from collections.abc import Collection
from datetime import timedelta

import structlog

from app.errors import NotSent
from app.lib.db import transaction
from app.resources import Resources
from app.routing.accounts import AccountInfo, UpstreamKey, all_accounts
from app.routing.catalogue import load_catalogue
from app.routing.keys import KEY_BAD_SECONDS, what_is_at_fault
from app.routing.store import bar_key_from_model, mark_key_bad, pause_account
from app.tasks import store
from app.tasks.attempts import Attempt, hold_on_to, is_late
from app.upstream.answers import Refused
from app.upstream.faults import AtFault, Fault, judge

log = structlog.get_logger()

ACCOUNT_PAUSE_SECONDS = 60.0


def tell_of_refusal(res: Resources, attempt: Attempt, refused: Refused) -> None:
    """Log a refusal; as an error where it says that our catalogue, or a switch of the account, may be wrong.

    The team is told the same, but cannot know that we thought otherwise. A model that no catalogue of ours lists was
    its own choice.
    """
    task, code = str(attempt.task_id), refused.code
    log.info("task.refused", task=task, status=refused.status, code=code, fault=str(refused.fault))
    if not judge(code, refused.message, status=refused.status).alerts:
        return
    if load_catalogue(res.settings.catalogue_file).find(attempt.model) is not None:
        where = {"account": attempt.account.name, "model": attempt.model, "path": attempt.path}
        log.error("upstream.contradicted", task=task, **where, code=code, message=refused.message)


async def find_another_key(res: Resources, attempt: Attempt, *, key: UpstreamKey, answer: object) -> UpstreamKey | None:
    """After a refusal that may be the key's: mark it and return the account's next one, else None.

    Certain that nothing was taken, so the same attempt may call once more with each key that is left. A key is marked
    only where another is left: without one the account is at fault.

    Raises:
        NotSent: another key is left, but no time for another call before the lease ends.
    """
    if not isinstance(answer, Refused) or answer.fault is not Fault.ACCOUNT:
        return None
    now = res.clock.now()
    other = (await _now_known(res, attempt)).key_for(attempt.model, now, but=key.id)
    fault = what_is_at_fault(answer.code, answer.status, keys_left=other is not None)
    if other is None or fault not in (AtFault.KEY, AtFault.KEY_MODEL):
        return None
    until = now + timedelta(seconds=KEY_BAD_SECONDS)
    log.error("key.refused", account=attempt.account.name, key=str(key.id), code=answer.code, at_fault=str(fault))

    async def mark() -> None:
        async with transaction(res) as session:
            # should the next answer be lost, the list will show the key that it was called with
            await store.note_key(session, attempt.task_id, attempt=attempt.number, account_key_id=other.id)
            if fault is AtFault.KEY:
                await mark_key_bad(session, key.id, until=until, reason=answer.code)
            else:
                await bar_key_from_model(session, key.id, attempt.model, until=until, reason=answer.code)

    await hold_on_to(res, attempt, mark)
    res.accounts.clear()
    if is_late(res, attempt):
        raise NotSent()
    return other


async def pause_what_is_at_fault(res: Resources, attempt: Attempt, refused: Refused) -> None:
    """Send nothing more for a while to what is at fault: the account, or this model on it.

    A model is left alone by barring it from the account's keys, so that its calls and its queue go to other accounts.
    """
    log.error("account.refused", account=attempt.account.name, code=refused.code, message=refused.message)
    fault = what_is_at_fault(refused.code, refused.status, keys_left=False)
    until = res.clock.now() + timedelta(seconds=ACCOUNT_PAUSE_SECONDS)
    async with transaction(res) as session:
        if fault is AtFault.ACCOUNT_MODEL:
            for key in sorted(attempt.account.keys, key=lambda key: key.id):
                await bar_key_from_model(session, key.id, attempt.model, until=until, reason=refused.code)
        else:
            await pause_account(session, attempt.account.id, until=until, reason=refused.code)
    res.accounts.clear()


async def has_another_account(res: Resources, attempt: Attempt, *, regions: Collection[str] | None = None) -> bool:
    """Tell whether another account takes calls of this model, in one of these regions if they are said.

    Whether it is the task's to go there is looked at when it is moved.
    """
    if attempt.pinned:
        return False
    now = res.clock.now()
    return any(
        account.id != attempt.account.id
        and (regions is None or account.region in regions)
        and account.takes_calls(now)
        and account.key_for(attempt.model, now) is not None
        for account in await all_accounts(res)
    )


async def _now_known(res: Resources, attempt: Attempt) -> AccountInfo:
    """Return the attempt's account with the marks that its keys have by now."""
    accounts = await all_accounts(res)
    return next((account for account in accounts if account.id == attempt.account.id), attempt.account)
