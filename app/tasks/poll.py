"""Poll: which process looks after which accounts: the leases on `account` work, and the rounds under them.

Owns the claims and the share of each process; what happens in a round is owner.py's. A process that polls has a row of
its own in `work`, kind `owner`, which it keeps from becoming due: so that each knows how many share the accounts.
"""

import asyncio
import weakref
from collections.abc import Collection, Iterable
from functools import partial
from math import ceil
from uuid import UUID

import structlog

from app.lib import leases
from app.lib.db import Session, transaction
from app.lib.ids import new_id
from app.lib.metrics import LEASES_LOST
from app.lib.pace import Pace, Wire
from app.resources import Resources
from app.tasks.owner import run_round
from app.tasks.picture import Picture
from app.tasks.watch import Watch

log = structlog.get_logger()

SUCCESSOR_WAIT_SECONDS = 1.0  # a new owner lets the old one's last call land before its own first
ROUND_SECONDS = 2.0  # how long a step waits for the rounds it began; they go on without it
LONG_ROUND_SECONDS = 0.25  # and for those that were under way before
PRESENCE_SHARE = 1 / 3  # of the accounts' leases: a process that died is out of the count before they lapse
MOST_DEAD = 20


class Watches(dict[str, Watch]):
    """The accounts that this process owns, by their work's key, and its own presence."""

    def __init__(self) -> None:
        super().__init__()
        self.process = str(new_id())
        self.present_until = float("-inf")


async def poll_due(res: Resources, *, watches: Watches) -> int:
    """Look after the accounts that this process owns; return how many outcomes were recorded since the last time.

    1. One transaction: say that we are there, renew what is ours and half over, claim `account` work that is nobody's,
       up to our share of it. What is beyond our share is handed back, in a transaction of its own.
    2. For each account, begin its round (owner.run_round), where none is under way.

    A crash anywhere leaves the leases to lapse; a successor reads the same tasks from the same index.
    """
    surplus = await _keep_leases(res, watches)
    for watch in surplus:
        watch.is_stopping = True
    _begin_rounds(res, watches)
    await _wait_for_rounds(watches.values())
    await _hand_back(res, watches, [watch for watch in watches.values() if watch.is_stopping])
    return sum(_take_learned(watch) for watch in watches.values())


async def release(res: Resources, *, watches: Watches) -> None:
    """Finish the calls under way and hand the accounts back: a successor need not wait for the leases to lapse."""
    for watch in watches.values():
        watch.is_stopping = True
        watch.news.set()
    rounds = [watch.round for watch in watches.values() if watch.round is not None]
    if rounds:
        await asyncio.wait(rounds)
    await _hand_back(res, watches, list(watches.values()))
    async with transaction(res) as session:
        await leases.finish(session, _presence(watches))
    watches.present_until = float("-inf")


def _begin_rounds(res: Resources, watches: Watches) -> None:
    for watch in watches.values():
        watch.begin_round()


def _begin_round(res: Resources, lost: "weakref.ref[Watch]") -> None:
    """Begin a round, unless one is under way, or has failed and was not heard of yet."""
    watch = lost()
    if watch is None or watch.is_stopping:
        return
    if watch.round is None or (watch.round.done() and watch.round.exception() is None):
        watch.round_began_at = asyncio.get_running_loop().time()
        watch.round = asyncio.ensure_future(run_round(res, watch))


async def _wait_for_rounds(watches: Iterable[Watch]) -> None:
    """Wait for rounds that may soon end; one that goes on and on keeps no other account waiting."""
    now = asyncio.get_running_loop().time()
    under_way = [(watch.round, now - watch.round_began_at) for watch in watches if watch.round is not None]
    short = [round_ for round_, seconds in under_way if seconds < ROUND_SECONDS]
    long = [round_ for round_, _ in under_way]
    if short:
        await asyncio.wait(short, timeout=ROUND_SECONDS)
    elif long:
        await asyncio.wait(long, timeout=LONG_ROUND_SECONDS)


def _take_learned(watch: Watch) -> int:
    """Return what was learned since the last time; a round that failed is heard of here.

    Raises:
        DatabaseAway: as `run_round`.
    """
    learned, watch.learned = watch.learned, 0
    if watch.round is not None and watch.round.done():
        ended, watch.round = watch.round, None
        ended.result()
    return learned


async def _keep_leases(res: Resources, watches: Watches) -> Collection[Watch]:
    """Renew and claim; return the accounts beyond our share."""
    seconds = res.settings.account_lease_seconds
    monotonic, now = res.clock.monotonic(), res.clock.for_sql()
    tired = [key for key, watch in watches.items() if watch.lease.ends_monotonic - monotonic < seconds / 2]
    async with transaction(res) as session:
        await _be_present(session, res, watches)
        share = await _share(session, res)
        kept = {key: await leases.renew(session, watches[key].lease, lease_seconds=seconds, now=now) for key in tired}
        limit = share - len(watches)
        claimed = (
            await leases.claim(session, "account", limit=limit, lease_seconds=seconds, monotonic=monotonic, now=now)
            if limit > 0
            else []
        )
    # only now is it true
    for key, is_ours in kept.items():
        if is_ours:
            watches[key].lease = leases.lengthened(watches[key].lease, ends_monotonic=monotonic + seconds)
        else:
            LEASES_LOST.labels("account").inc()
            log.warning("account.lost", account=key)
            watches.pop(key).is_stopping = True
    for lease in claimed:
        watches[lease.key] = _watch(res, lease)
    return list(watches.values())[share:]


def _watch(res: Resources, lease: leases.Lease) -> Watch:
    """Begin to look after an account, with an empty memory."""
    calls_per_second = res.settings.poll_calls_per_second
    watch = Watch(
        lease,
        Pace(calls_per_second, monotonic=res.clock.monotonic),
        Wire(calls_per_second, monotonic=res.clock.monotonic),
        Picture(retention_seconds=res.settings.upstream_retention_seconds),
    )
    if lease.attempts > 1:
        watch.pace.hold(SUCCESSOR_WAIT_SECONDS)  # taken over from a dead owner, not handed over
    known = weakref.ref(watch)  # whoever wakes it must not keep it
    watch.begin_round = partial(_begin_round, res, known)
    res.signals.hear_changes(lambda keys: _hear(known, keys))
    return watch


def _hear(known: "weakref.ref[Watch]", keys: Collection[UUID]) -> None:
    watch = known()
    if watch is not None:
        watch.hear(keys)


async def _hand_back(res: Resources, watches: Watches, surplus: Collection[Watch]) -> None:
    """Hand accounts back whose rounds have ended; the next owner begins when our last call has landed."""
    ended = [watch for watch in surplus if watch.round is None or watch.round.done()]
    if not ended:
        return
    async with transaction(res) as session:
        for watch in ended:
            await leases.snooze(
                session, watch.lease, seconds=SUCCESSOR_WAIT_SECONDS, failed=False, now=res.clock.for_sql()
            )
    for watch in ended:
        watches.pop(watch.lease.key, None)


async def _be_present(session: Session, res: Resources, watches: Watches) -> None:
    """Keep our own row from becoming due, and delete those of processes that let theirs."""
    seconds = res.settings.account_lease_seconds * PRESENCE_SHARE
    monotonic, now = res.clock.monotonic(), res.clock.for_sql()
    if watches.present_until - monotonic > seconds / 2:
        return
    if not await leases.renew(session, _presence(watches), lease_seconds=seconds, now=now):
        await leases.enqueue(session, "owner", key=watches.process, now=now)
        await leases.renew(session, _presence(watches), lease_seconds=seconds, now=now)
    watches.present_until = monotonic + seconds
    dead = await leases.claim(session, "owner", limit=MOST_DEAD, lease_seconds=seconds, monotonic=monotonic, now=now)
    for lease in dead:
        await leases.finish(session, lease)


async def _share(session: Session, res: Resources) -> int:
    """Return how many accounts a process may own, by the processes there are."""
    accounts, _ = await leases.count(session, "account", now=res.clock.for_sql())
    _, owners = await leases.count(session, "owner", now=res.clock.for_sql())
    return ceil(accounts / max(1, owners))


def _presence(watches: Watches) -> leases.Lease:
    """Return our own row as its lease; it is never claimed, so its epoch stays."""
    return leases.Lease("owner", watches.process, 0, 0, None, None, None, watches.present_until)
