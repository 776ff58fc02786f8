"""Poll: the one owner of a main account and region looks at its open tasks, within the upstream's pace.

Owns the leases on `account` work and the memory of who was looked at when; both may be lost with the process, and are
never needed. The upstream's `/tasks` is called here and nowhere else. What a look means is outcome's affair.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

import structlog
from sqlalchemy import RowMapping

from app.errors import CouldNotFindOut, DashgateError
from app.lib import leases
from app.lib.db import reading, transaction
from app.lib.loop import side_by_side
from app.lib.metrics import LEASES_LOST, UPSTREAM_CALLS
from app.lib.pace import Pace
from app.resources import Resources
from app.routing.accounts import get_account, upstream_of
from app.tasks import schedule, store
from app.tasks.outcome import record_outcome
from app.upstream.answers import Gone

log = structlog.get_logger()

THROTTLED_PAUSE_SECONDS = 1.0
SUCCESSOR_WAIT_SECONDS = 1.0  # a new owner lets the old one's last call land before its own first
MOST_LOOKS_AT_ONCE = 8
ROUND_SECONDS = 2.0  # how long a step waits for the rounds it began; they go on without it


@dataclass(slots=True)
class Watch:
    """What the owner of one main account and region remembers. Lost with the process, never needed."""

    lease: leases.Lease
    pace: Pace
    looked_at: dict[UUID, float] = field(default_factory=dict)
    unknown: set[UUID] = field(default_factory=set)  # tasks the upstream does not know: said once
    round: asyncio.Task[int] | None = None  # the round under way: a slow account delays no other


Watches = dict[str, Watch]


async def poll_due(res: Resources, *, watches: Watches) -> int:
    """Look at the open tasks of every account this process owns; return how many looks taught something.

    1. One transaction: claim `account` work that is nobody's, renew what is ours and half over.
    2. For each owned account: read its open tasks, plan (schedule.due_looks), and ask the upstream one by one within
       the pace, checking the lease before each call. Each outcome is recorded in its own transaction
       (outcome.record_outcome). A look that learned nothing writes nothing.

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
    watch.looked_at = {task["id"]: watch.looked_at[task["id"]] for task in tasks if task["id"] in watch.looked_at}
    by_id = {task["id"]: task for task in tasks}
    now = res.clock.monotonic()
    due = schedule.due_looks(by_id, watch.looked_at, now=now, calls_per_second=res.settings.poll_calls_per_second)
    for task_id in due:
        watch.looked_at[task_id] = now
    return await _look_at(res, watch, [by_id[task_id] for task_id in due])


async def _look_at(res: Resources, watch: Watch, tasks: Sequence[RowMapping]) -> int:
    """Ask about tasks side by side, each after its slot of the pace, a few answers outstanding at most."""
    at_once = asyncio.Semaphore(MOST_LOOKS_AT_ONCE)

    async def look(task: RowMapping) -> bool:
        async with at_once:
            await watch.pace.take()
            if res.clock.monotonic() >= watch.lease.ends_monotonic:
                return False  # not ours any more: a successor may be asking
            return await _look(res, watch, task)

    return sum(await side_by_side(look(task) for task in tasks))


async def _look(res: Resources, watch: Watch, task: RowMapping) -> bool:
    """Ask once about one task and record what was learned; an unanswered question is asked again later."""
    try:
        account = await get_account(res, task["account_id"])
        outcome = await upstream_of(res, account).look(task["upstream_task_id"])
    except CouldNotFindOut as error:
        UPSTREAM_CALLS.labels("query", "unanswered").inc()
        log.warning("task.look_failed", task=str(task["id"]), reason=error.reason)
        if error.throttled:
            watch.pace.hold(THROTTLED_PAUSE_SECONDS)
        return False
    except DashgateError as error:
        log.error("task.look_impossible", task=str(task["id"]), reason=error.code)
        return False
    UPSTREAM_CALLS.labels("query", type(outcome).__name__.lower()).inc()
    learned = await record_outcome(res, task, outcome)
    if isinstance(outcome, Gone) and not learned and task["id"] not in watch.unknown:
        # Not an ending: we made this task less than a day ago. A wrong account, or the upstream is not itself.
        watch.unknown.add(task["id"])
        log.error("task.unknown_upstream", task=str(task["id"]), upstream_task=task["upstream_task_id"])
    return learned
