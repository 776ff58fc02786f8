"""Look: the calls that an owner makes about its tasks, each in its slot, and what is done with their answers.

The upstream's `/tasks` is called here, and for doubts in listing_upstream.py, and nowhere else. What an outcome means
is outcome's affair; which call comes next is the plan's. An unanswered question is asked again later.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from typing import TypeVar

import structlog

from app.errors import CouldNotFindOut, DashgateError
from app.lib.db import DatabaseAway, transaction
from app.lib.metrics import FINISH_SEEN_SECONDS, UPSTREAM_CALLS
from app.resources import Resources
from app.routing.accounts import AccountInfo, all_accounts, get_account
from app.tasks import store
from app.tasks.outcome import record_outcome, record_started
from app.tasks.picture import Open
from app.tasks.schedule import Kind
from app.tasks.sweep import ENDED_WORDS, Sweep, Way
from app.tasks.watch import Watch
from app.upstream.answers import CancelRefused, Gone, Look, Pending, Running, Succeeded, TaskPage
from app.upstream.client import Upstream

log = structlog.get_logger()

T = TypeVar("T")

POISON_SECONDS = 60.0  # how long a task is left alone whose outcome could not be recorded,
DATABASE_AWAY_SECONDS = 1.0  # and how long if that is the database's trouble


async def look_at(res: Resources, watch: Watch, *, task: Open, kind: Kind) -> None:
    """Look at a task once and record what was learned."""
    async with _handed_back(res, watch, task):
        outcome = await _find_out(res, watch, task)
        if outcome is not None:
            await _record(res, watch, task, outcome=outcome)
            if kind is Kind.LOOK:
                watch.note_look(found_end=not isinstance(outcome, Pending | Running | Gone))


async def cancel(res: Resources, watch: Watch, *, task: Open) -> None:
    """Ask for a task to be cancelled and look at it at once: only the look says what became of it.

    The wish stands until the task has left PENDING, or until it is refused although it has not. When an answer was
    lost, or a process died before its look, the next cancel is refused because the task is cancelled already: that,
    too, the look says.
    """
    async with _handed_back(res, watch, task):
        answer = await _call(
            res, watch, task, operation="cancel", call=lambda there: there.cancel_task(task.upstream_id)
        )
        if answer is None:
            return
        is_refused = isinstance(answer, CancelRefused)
        UPSTREAM_CALLS.labels("cancel", "refused" if is_refused else "heard").inc()
        try:
            await watch.turn()
        except CouldNotFindOut:
            _leave_unanswered(res, watch, task)
            return
        outcome = await _find_out(res, watch, task)
        if outcome is None:
            return
        learned = await _record(res, watch, task, outcome=outcome)
        if is_refused and not learned:
            async with transaction(res) as session:
                await store.clear_cancel_all_teams(session, task.id)
            watch.picture.forget_wish(task)
            res.signals.tell(task.id)


async def read_page(res: Resources, watch: Watch) -> None:
    """Read the next page of a sweep, and tell the picture what it shows."""
    sweeps = watch.sweeps
    try:
        query = sweeps.next_query(res.clock.monotonic(), at=res.clock.now(), picture=watch.picture)
        account = await _lister(res, watch)
        page = await watch.call(res, account, operation="list", call=lambda there: there.list_tasks(query))
    except DashgateError as error:
        reason = error.reason if isinstance(error, CouldNotFindOut) else error.code
        log.warning("account.list_failed", account=watch.lease.key, reason=reason)
        sweeps.fail(res.clock.monotonic(), refused=reason.startswith("400"))
        return
    finally:
        watch.is_listing = False
    UPSTREAM_CALLS.labels("list", "page").inc()
    started = _take_in(res, watch, page, sweep=sweeps.current)
    whole = sweeps.take(page, now=res.clock.monotonic(), unfinished_count=watch.picture.unfinished_count)
    if whole is not None and whole.way is Way.UNFINISHED:
        _miss(res, watch, whole)
    if started:
        await record_started(res, [(task.id, task.attempt) for task in started])
        for task in started:
            task.is_running = True


def _take_in(res: Resources, watch: Watch, page: TaskPage, *, sweep: Sweep | None) -> list[Open]:
    """Tell the picture what a page shows; return the tasks that it is the first to show at work."""
    now, at = res.clock.monotonic(), res.clock.now().timestamp()
    started = []
    for row in page.rows:
        task = watch.picture.find_upstream(row.task_id)
        if row.word in ENDED_WORDS:
            if task is not None:
                ended_at = None if row.ended_at is None else row.ended_at.timestamp()
                watch.picture.say_finished(task, now=now, at=at, ended_at=ended_at)
            continue
        if sweep is not None:
            sweep.shown.add(row.task_id)
        if task is not None:
            watch.picture.saw_in_list(task, now=now, at=at)
            if row.word == "RUNNING" and not task.is_running:
                started.append(task)
    return started


def _miss(res: Resources, watch: Watch, whole: Sweep) -> None:
    """Tell the picture which tasks a whole walk through the unfinished did not show."""
    now, at = res.clock.monotonic(), res.clock.now().timestamp()
    for task in list(watch.picture.listed(at=whole.began_epoch)):
        if task.upstream_id not in whole.shown and (task.is_running or whole.asks_pending):
            watch.picture.say_missing(task, now=now, at=at)


async def _lister(res: Resources, watch: Watch) -> AccountInfo:
    """Return an account of this main account and region: each sees the tasks of all.

    Raises:
        CouldNotFindOut: none has a key.
    """
    accounts = await all_accounts(res)
    usable = [account for account in accounts if account.work_key == watch.lease.key and account.keys]
    if not usable:
        raise CouldNotFindOut("no key to list with")
    return usable[0]


async def _find_out(res: Resources, watch: Watch, task: Open) -> Look | None:
    outcome = await _call(res, watch, task, operation="query", call=lambda there: there.look(task.upstream_id))
    if outcome is not None:
        UPSTREAM_CALLS.labels("query", type(outcome).__name__.lower()).inc()
    return outcome


@contextlib.asynccontextmanager
async def _handed_back(res: Resources, watch: Watch, task: Open) -> AsyncIterator[None]:
    """Whatever goes wrong with a task, give it back to the picture, for later: nobody else would ask about it."""
    try:
        yield
    except Exception as error:
        # The database is away, or a bug met by one row: that must not keep the owner from the others.
        seconds = DATABASE_AWAY_SECONDS if isinstance(error, DatabaseAway) else POISON_SECONDS
        now, at = res.clock.monotonic(), res.clock.now().timestamp()
        watch.picture.leave_alone(task, seconds=seconds, now=now, at=at)
        raise


async def _record(res: Resources, watch: Watch, task: Open, *, outcome: Look) -> bool:
    """Record what was found out; tell whether it was news."""
    learned = await record_outcome(res, task.row(), outcome)
    watch.learned += learned
    now, at = res.clock.monotonic(), res.clock.now().timestamp()
    match outcome:
        case Pending() | Running():
            task.is_running |= isinstance(outcome, Running)
            watch.picture.say_unfinished(task, now=now, at=at)
        case Gone() if not learned:
            _say_unknown(task)
            watch.picture.say_unfinished(task, now=now, at=at)
        case _ if learned:
            _learn_duration(res, watch, task, outcome=outcome)
            watch.picture.end(task, now=now)
            watch.sweeps.note_end()
        case _:
            watch.picture.drop(task)  # somebody else was first, or it is in another attempt
            watch.sweeps.note_end()
    return learned


def _say_unknown(task: Open) -> None:
    """Say once that the upstream does not know a task. Not an ending: we made it less than a day ago.

    A wrong account, or the upstream is not itself.
    """
    if not task.is_unknown:
        task.is_unknown = True
        log.error("task.unknown_upstream", task=str(task.id), upstream_task=task.upstream_id)


def _learn_duration(res: Resources, watch: Watch, task: Open, *, outcome: Look) -> None:
    """Learn how long the model took, by the upstream's own clock, and how long its end went unseen."""
    seconds = seconds_taken(outcome) if isinstance(outcome, Succeeded) else None
    if seconds is not None:
        watch.picture.durations(task.model).add(seconds)
        unseen = res.clock.now().timestamp() - task.submitted_at - seconds
        FINISH_SEEN_SECONDS.observe(max(0.0, unseen))


def seconds_taken(made: Succeeded) -> float | None:
    """Return the seconds from a task's creation to its end; its stamps have no zone, but both have the same.

    >>> output = {"submit_time": "2026-11-22 10:00:00.100", "end_time": "2026-11-22 10:01:12.900"}
    >>> seconds_taken(Succeeded("r", {"output": output}, b"")), seconds_taken(Succeeded("r", {"output": {}}, b""))
    (72.8, None)
    """
    output = made.answer.get("output")
    stamps = [output.get(name) for name in ("submit_time", "end_time")] if isinstance(output, dict) else []
    try:
        submitted, ended = (datetime.fromisoformat(stamp) for stamp in stamps if isinstance(stamp, str))
        seconds = (ended - submitted).total_seconds()
    except (ValueError, TypeError):
        return None  # one is missing, is no stamp, or alone has a zone
    return seconds if seconds >= 0 else None


async def _call(
    res: Resources, watch: Watch, task: Open, *, operation: str, call: Callable[[Upstream], Awaitable[T]]
) -> T | None:
    """Make one call about a task; None: nothing was found out, and it will be asked about again."""
    try:
        account = await get_account(res, task.account_id)
        return await watch.call(res, account, operation=operation, call=call)
    except CouldNotFindOut as error:
        log.warning("task.call_failed", task=str(task.id), what=operation, reason=error.reason)
    except DashgateError as error:
        log.error("task.call_impossible", task=str(task.id), what=operation, reason=error.code)
    _leave_unanswered(res, watch, task)
    return None


def _leave_unanswered(res: Resources, watch: Watch, task: Open) -> None:
    watch.picture.say_unanswered(task, now=res.clock.monotonic(), at=res.clock.now().timestamp())
