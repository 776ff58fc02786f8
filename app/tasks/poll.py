"""Poll: the one owner of a main account and region looks at its open tasks, within the upstream's pace.

Owns the leases on `account` work and the memory of who was looked at when; both may be lost with the process, and are
never needed. The upstream's `/tasks` is called here and nowhere else, also for the cancels that teams asked for. What
a look means is outcome's affair.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar
from uuid import UUID

import structlog
from sqlalchemy import RowMapping

from app.errors import CouldNotFindOut, DashgateError
from app.lib import leases
from app.lib.db import reading, transaction
from app.lib.loop import side_by_side
from app.lib.metrics import LEASES_LOST, UPSTREAM_CALLS
from app.lib.pace import Pace
from app.models.tasks import State
from app.resources import Resources
from app.routing.accounts import get_account, upstream_of
from app.routing.keys import leave_refused_key
from app.tasks import schedule, store
from app.tasks.outcome import record_outcome
from app.upstream.answers import CancelRefused, Gone, Look
from app.upstream.client import Upstream

log = structlog.get_logger()

T = TypeVar("T")
What = Literal["look", "cancel"]

THROTTLED_PAUSE_SECONDS = 1.0
SUCCESSOR_WAIT_SECONDS = 1.0  # a new owner lets the old one's last call land before its own first
MOST_LOOKS_AT_ONCE = 8
ROUND_SECONDS = 2.0  # how long a step waits for the rounds it began; they go on without it
CALLS_A_CANCEL = 2  # the cancel and its look
OPERATIONS: dict[What, str] = {"look": "query", "cancel": "cancel"}  # as the metrics name them


@dataclass(slots=True)
class Watch:
    """What the owner of one main account and region remembers. Lost with the process, never needed."""

    lease: leases.Lease
    pace: Pace
    looked_at: dict[UUID, float] = field(default_factory=dict)
    cancel_asked_at: dict[UUID, float] = field(default_factory=dict)
    unknown: set[UUID] = field(default_factory=set)  # tasks the upstream does not know: said once
    round: asyncio.Task[int] | None = None  # the round under way: a slow account delays no other


Watches = dict[str, Watch]
Question = Callable[[Resources, Watch, RowMapping], Awaitable[bool]]


async def poll_due(res: Resources, *, watches: Watches) -> int:
    """Look at the open tasks of every account this process owns; return how many looks taught something.

    1. One transaction: claim `account` work that is nobody's, renew what is ours and half over.
    2. For each owned account: read its open tasks, plan (schedule.due_looks), and ask the upstream one by one within
       the pace, checking the lease before each call: cancels that teams wait for first, then looks. Each outcome is
       recorded in its own transaction (outcome.record_outcome). A look that learned nothing writes nothing.

    A crash anywhere leaves the leases to lapse; a successor reads the same tasks from the same index.
    """
    await _keep_leases(res, watches)
    for key, watch in watches.items():
        if watch.round is None:
            watch.round = asyncio.ensure_future(_poll_account(res, key, watch))
    rounds = [watch.round for watch in watches.values() if watch.round is not None]
    if rounds:
        await asyncio.wait(rounds, timeout=ROUND_SECONDS)
    ended = [watch for watch in watches.values() if watch.round is not None and watch.round.done()]
    return sum(await side_by_side(_take_round(watch) for watch in ended))


async def _take_round(watch: Watch) -> int:
    """Return what an ended round learned; the next may begin."""
    ended, watch.round = watch.round, None
    return await ended if ended is not None else 0


async def release(res: Resources, *, watches: Watches) -> None:
    """Finish the looks under way and hand the accounts back: a successor need not wait for the leases to lapse."""
    rounds = [watch.round for watch in watches.values() if watch.round is not None]
    if rounds:
        await asyncio.wait(rounds)
    async with transaction(res) as session:
        for watch in watches.values():
            await leases.snooze(
                session, watch.lease, seconds=SUCCESSOR_WAIT_SECONDS, failed=False, now=res.clock.for_sql()
            )
    watches.clear()


async def _keep_leases(res: Resources, watches: Watches) -> None:
    seconds = res.settings.account_lease_seconds
    monotonic, now = res.clock.monotonic(), res.clock.for_sql()
    tired = [key for key, watch in watches.items() if watch.lease.ends_monotonic - monotonic < seconds / 2]
    async with transaction(res) as session:
        kept = {key: await leases.renew(session, watches[key].lease, lease_seconds=seconds, now=now) for key in tired}
        claimed = await leases.claim(session, "account", limit=100, lease_seconds=seconds, monotonic=monotonic, now=now)
    # only now is it true
    for key, is_ours in kept.items():
        if is_ours:
            watches[key].lease = leases.lengthened(watches[key].lease, ends_monotonic=monotonic + seconds)
        else:
            LEASES_LOST.labels("account").inc()
            log.warning("account.lost", account=key)
            del watches[key]
    for lease in claimed:
        pace = Pace(res.settings.poll_calls_per_second, monotonic=res.clock.monotonic)
        if lease.attempts > 1:
            pace.hold(SUCCESSOR_WAIT_SECONDS)  # taken over from a dead owner, not handed over
        watches[lease.key] = Watch(lease, pace)


async def _poll_account(res: Resources, key: str, watch: Watch) -> int:
    main_account, _, region = key.rpartition("/")
    async with reading(res) as session:
        tasks = await store.read_polled_all_teams(session, main_account, region)
    by_id = {task["id"]: task for task in tasks}
    unwanted = [task["id"] for task in tasks if task["state"] == State.PENDING and task["cancel_requested_at"]]
    calls_per_second = res.settings.poll_calls_per_second
    cancels = _due(res, watch.cancel_asked_at, unwanted, calls_per_second=calls_per_second / CALLS_A_CANCEL)
    learned = await _ask_about(res, watch, [by_id[task_id] for task_id in cancels], question=_cancel)
    watch.looked_at.update({task_id: watch.cancel_asked_at[task_id] for task_id in cancels})
    looks = _due(res, watch.looked_at, by_id, calls_per_second=calls_per_second)
    return learned + await _ask_about(res, watch, [by_id[task_id] for task_id in looks], question=_look)


def _due(
    res: Resources, asked_at: dict[UUID, float], tasks: Collection[UUID], *, calls_per_second: float
) -> list[UUID]:
    """Return the tasks to ask about now, and remember that they are; forget those that are not there any more."""
    now = res.clock.monotonic()
    for gone in asked_at.keys() - set(tasks):
        del asked_at[gone]
    due = schedule.due_looks(tasks, asked_at, now=now, calls_per_second=calls_per_second)
    asked_at.update(dict.fromkeys(due, now))
    return due


async def _ask_about(res: Resources, watch: Watch, tasks: Sequence[RowMapping], *, question: Question) -> int:
    """Ask about tasks side by side, a few answers outstanding at most; return from how many something was learned."""
    at_once = asyncio.Semaphore(MOST_LOOKS_AT_ONCE)

    async def ask(task: RowMapping) -> bool:
        async with at_once:
            return await question(res, watch, task)

    return sum(await side_by_side(ask(task) for task in tasks))


async def _look(res: Resources, watch: Watch, task: RowMapping) -> bool:
    """Look at a task once and record what was learned; an unanswered question is asked again later."""
    outcome = await _find_out(res, watch, task)
    return outcome is not None and await _record(res, watch, task, outcome=outcome)


async def _cancel(res: Resources, watch: Watch, task: RowMapping) -> bool:
    """Ask for a task to be cancelled and look at it at once: only the look says what became of it.

    The wish stands until the task has left PENDING, or until it is refused although it has not. When an answer was
    lost, or a process died before its look, the next cancel is refused because the task is cancelled already: that,
    too, the look says.
    """
    answer = await _call(res, watch, task, what="cancel", call=lambda there, task_id: there.cancel_task(task_id))
    if answer is None:
        return False
    is_refused = isinstance(answer, CancelRefused)
    UPSTREAM_CALLS.labels("cancel", "refused" if is_refused else "heard").inc()
    outcome = await _find_out(res, watch, task)
    if outcome is None:
        return False
    learned = await _record(res, watch, task, outcome=outcome)
    if is_refused and not learned:
        async with transaction(res) as session:
            await store.clear_cancel_all_teams(session, task["id"])
        res.signals.tell(task["id"])
    return learned


async def _find_out(res: Resources, watch: Watch, task: RowMapping) -> Look | None:
    outcome = await _call(res, watch, task, what="look", call=lambda there, task_id: there.look(task_id))
    if outcome is not None:
        UPSTREAM_CALLS.labels("query", type(outcome).__name__.lower()).inc()
    return outcome


async def _record(res: Resources, watch: Watch, task: RowMapping, *, outcome: Look) -> bool:
    learned = await record_outcome(res, task, outcome)
    if isinstance(outcome, Gone) and not learned and task["id"] not in watch.unknown:
        # Not an ending: we made this task less than a day ago. A wrong account, or the upstream is not itself.
        watch.unknown.add(task["id"])
        log.error("task.unknown_upstream", task=str(task["id"]), upstream_task=task["upstream_task_id"])
    return learned


async def _call(
    res: Resources, watch: Watch, task: RowMapping, *, what: What, call: Callable[[Upstream, str], Awaitable[T]]
) -> T | None:
    """Make one call about a task in its slot of the pace, while the lease lasts; None: nothing was found out."""
    await watch.pace.take()
    if res.clock.monotonic() >= watch.lease.ends_monotonic:
        return None  # not ours any more: a successor may be asking
    try:
        account = await get_account(res, task["account_id"])
        key = account.any_key(res.clock.now())
        return await call(upstream_of(res, account, key=key), task["upstream_task_id"])
    except CouldNotFindOut as error:
        if key is not None and error.reason.startswith("401"):
            await leave_refused_key(res, account, key, reason=error.reason)
        UPSTREAM_CALLS.labels(OPERATIONS[what], "unanswered").inc()
        log.warning("task.call_failed", task=str(task["id"]), what=what, reason=error.reason)
        if error.throttled:
            watch.pace.hold(THROTTLED_PAUSE_SECONDS)
    except DashgateError as error:
        log.error("task.call_impossible", task=str(task["id"]), what=what, reason=error.code)
    return None
