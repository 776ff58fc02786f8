"""Owner: the round in which one main account and region is looked after: slot by slot, what the plan says.

One loop decides, at the instant of each slot and from what is known then; so nothing ever waits in line behind a call
that was planned earlier. Calls, and readings of rows, go on beside it. Owns no lease: poll.py does.
"""

import asyncio
from collections.abc import Collection
from uuid import UUID

from app.lib.db import DatabaseAway, reading
from app.resources import Resources
from app.tasks import store_polled
from app.tasks.doubts import doubt_due
from app.tasks.look import cancel, look_at, read_page
from app.tasks.picture import Open
from app.tasks.schedule import Call, Kind, plan
from app.tasks.watch import Watch

MOST_UNDER_WAY = 32  # calls and their records: a slow database slows the calls down
READ_EVERY_SECONDS = 0.5  # all rows are read this often,
READ_EVERY_SECONDS_A_TASK = 0.001  # or as often as a core's hundredth allows; changes are told meanwhile
ROWS_AT_ONCE = 1_000
DOUBTS_EVERY_SECONDS = 5.0
PATIENCE_SECONDS = 0.25


async def run_round(res: Resources, watch: Watch) -> None:
    """Call what is to be called until there is nothing, or the account is not ours any more.

    1. Read the open rows that are not known yet (in the background where they are many).
    2. At each slot: plan, and begin the call, checking the lease. Its outcome is recorded in its own transaction.
    3. Wait for what is under way.

    A crash anywhere loses what was remembered, and nothing else: facts are in their rows.

    Raises:
        DatabaseAway: what was found out cannot be recorded, so nothing more is asked.
    """
    watch.away = None
    while watch.may_act(res) and watch.away is None:
        _begin_reading(res, watch)
        _begin_doubts(res, watch)
        call = plan(watch.situation(res))
        if call is None:
            if not watch.under_way:
                watch.pace.rest()
                break
            await watch.until_news()
        elif len(watch.under_way) >= MOST_UNDER_WAY:
            await watch.until_news()
        elif (wait_seconds := watch.wire.free_in()) > 0:
            await watch.until_news(most_seconds=wait_seconds)
        elif watch.pace.free_in() > 0:
            await watch.pace.reach(most_seconds=PATIENCE_SECONDS)
        else:
            watch.pace.spend()
            _begin_call(res, watch, call)
            await asyncio.sleep(0)  # it leaves now
    watch.refuse_asked()
    while watch.under_way:
        watch.refuse_asked()  # also whoever asks now
        await asyncio.wait(watch.under_way, timeout=PATIENCE_SECONDS)
    if watch.away is not None:
        raise watch.away


def _begin_call(res: Resources, watch: Watch, call: Call) -> None:
    watch.note_call(call.kind)
    task = call.task
    match call.kind:
        case Kind.ASKED:
            watch.grant()
        case Kind.LIST:
            watch.is_listing = True
            watch.start(read_page(res, watch))
        case Kind.CANCEL if isinstance(task, Open):
            watch.picture.take(task, cancels_at=res.clock.monotonic())
            watch.start(cancel(res, watch, task=task))
        case Kind.READ | Kind.LOOK if isinstance(task, Open):
            watch.picture.take(task)
            watch.start(look_at(res, watch, task=task, kind=call.kind))


def _begin_reading(res: Resources, watch: Watch) -> None:
    """Read rows beside the round where that is due: all of them now and then, those that have changed as it is told."""
    if watch.is_reading:
        return
    now = res.clock.monotonic()
    every = max(READ_EVERY_SECONDS, len(watch.picture) * READ_EVERY_SECONDS_A_TASK)
    if watch.read_at is None or now - watch.read_at >= every:
        watch.read_at = now
        watch.told.clear()
        watch.is_reading = True
        watch.start(_read(res, watch, None))
    elif watch.told:
        told, watch.told = watch.told, set()
        watch.is_reading = True
        watch.start(_read(res, watch, told))


def _begin_doubts(res: Resources, watch: Watch) -> None:
    """Look beside the round for attempts whose answer was lost, now and then; their calls are asked for like others."""
    now = res.clock.monotonic()
    if watch.is_settling or (watch.settled_at is not None and now - watch.settled_at < DOUBTS_EVERY_SECONDS):
        return
    watch.settled_at, watch.is_settling = now, True
    watch.start(_settle(res, watch))


async def _settle(res: Resources, watch: Watch) -> None:
    try:
        watch.learned += await doubt_due(res, watch.lease.key, owner=watch)
    finally:
        watch.is_settling = False


async def _read(res: Resources, watch: Watch, told: Collection[UUID] | None) -> None:
    try:
        if told is None:
            await _read_all(res, watch)
        else:
            await _read_told(res, watch, told)
    except DatabaseAway:
        watch.read_at = None  # what was told is lost
        raise
    finally:
        watch.is_reading = False


async def _read_all(res: Resources, watch: Watch) -> None:
    """Read all open rows, a part at a time; then forget what was not among them."""
    reading_number, after = watch.picture.begin_reading(), UUID(int=0)
    while True:
        rows = await _rows(res, watch, after=after)
        if len(rows) < ROWS_AT_ONCE:
            break
        after = rows[-1]
    watch.picture.end_reading(reading_number)


async def _read_told(res: Resources, watch: Watch, told: Collection[UUID]) -> None:
    """Read the rows that have changed; those that are open no more are forgotten."""
    left = list(told)
    while left:
        part, left = left[:ROWS_AT_ONCE], left[ROWS_AT_ONCE:]
        is_open = set(await _rows(res, watch, ids=part))
        for task_id in part:
            task = watch.picture.find(task_id)
            if task is not None and task_id not in is_open:
                watch.picture.drop(task)


async def _rows(
    res: Resources, watch: Watch, *, after: UUID | None = None, ids: Collection[UUID] | None = None
) -> list[UUID]:
    """Read rows into the picture; return their ids, ascending."""
    main_account, _, region = watch.lease.key.rpartition("/")
    async with reading(res) as session:
        part = store_polled.Part(after, ROWS_AT_ONCE, None if ids is None else list(ids))
        rows = await store_polled.read_polled_all_teams(session, main_account, region=region, part=part)
    now, at = res.clock.monotonic(), res.clock.now().timestamp()
    for row in rows:
        watch.picture.put(row, now=now, at=at)
    return [row["id"] for row in rows]
