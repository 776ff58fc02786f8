"""Doubts: the account's owner looks in the upstream's list for what became of attempts whose answer was lost.

Owns when is listed, and what rows and attempts are shown to the evidence (evidence.py); what a verdict means for the
task is settle's. Every call goes through the owner (`Asker`), in its pace and under its lease.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import RowMapping

from app.errors import CouldNotFindOut, DashgateError
from app.lib.crypto import CryptoError
from app.lib.db import reading, transaction
from app.lib.ids import new_id
from app.lib.metrics import UPSTREAM_ORPHANS
from app.models.doubts import Verdict
from app.resources import Resources
from app.routing.accounts import AccountInfo, all_accounts
from app.tasks import evidence, store_doubts
from app.tasks.echoes import echo_of, prompt_of
from app.tasks.evidence import Adopt, Missing, Sending, Shown, Undecided
from app.tasks.keep import open_request
from app.tasks.listing_upstream import Asker, Listing, Window, list_window
from app.tasks.settle import Found, adopt, end_not_taken
from app.upstream.answers import Look, Succeeded, TaskRow
from app.upstream.client import Upstream

log = structlog.get_logger()

MOST_AT_ONCE = 1_000
EARLY_MARGIN = timedelta(minutes=2)  # around calls that are looked for before anything can be proven absent
MOST_WINDOW = timedelta(hours=6)
UNLISTED_PAUSE = timedelta(seconds=30)  # after a list that could not be read
MOST_KEPT_CANDIDATES = 20
MOST_ECHOES = 20  # results read in one look, for what they echo
NEIGHBOURS = timedelta(minutes=2)  # calls so far outside a window may have made a row inside it


async def doubt_due(res: Resources, work_key: str, *, owner: Asker) -> int:
    """Look for the doubtful attempts of one main account and region; return how many were settled.

    For each model with doubts that are due:
    1. Outside: the list over their windows, all pages; then the results of rows that may echo a prompt.
    2. Read, in this order, which attempts have no receipt and which rows are owned: whoever was listed had made its
       mark before, so it is among the first or the second. Judge (evidence.judge).
    3. Each verdict in a transaction of its own (settle); what decided nothing is noted with its candidates.

    A crash anywhere leaves the doubts due: what was judged is judged again.
    """
    main_account, _, region = work_key.rpartition("/")
    home = {"main_account": main_account, "region": region}
    async with reading(res) as session:
        due = await store_doubts.read_due_all_teams(session, home, limit=MOST_AT_ONCE, now=res.clock.for_sql())
    accounts = [one for one in await all_accounts(res) if (one.main_account, one.region) == (main_account, region)]
    asked = next((account for account in accounts if account.keys), None)
    if not due or asked is None:
        return 0
    settled = 0
    for window, doubts in windows_of(due, now=res.clock.now()):
        try:
            listing = await list_window(res, asked, window=window, owner=owner)
        except CouldNotFindOut as error:
            log.warning("account.list_failed", account=work_key, reason=error.reason)
            await _postpone(res, doubts)
            continue
        is_exclusive = all(account.exclusive for account in accounts)
        deadlines = {_name(doubt): doubt["call_deadline_at"] for doubt in doubts}
        looked = _Looked(home, window, listing, asked, owner, is_exclusive, deadlines)
        settled += await _resolve(res, looked)
    return settled


Due = Mapping[Any, Any]


def windows_of(due: Sequence[Due], *, now: datetime) -> list[tuple[Window, list[Due]]]:
    """Return what to list for doubts that are due: of one model each, wide enough to prove what may be proven now.

    >>> from datetime import UTC, datetime
    >>> def at(seconds): return datetime(2026, 11, 22, 12, tzinfo=UTC) + timedelta(seconds=seconds)
    >>> def doubt(model, sent):
    ...     return {"model": model, "sent_at": at(sent), "ends_at": at(sent), "call_deadline_at": at(sent + 30)}
    >>> windows = windows_of([doubt("a", 0), doubt("a", 60), doubt("a", 86_400), doubt("b", 0)], now=at(160))
    >>> [(window.model, len(doubts)) for window, doubts in windows]
    [('a', 1), ('a', 1), ('a', 1), ('b', 1)]
    >>> [(window.since - at(0)).total_seconds() for window, _ in windows]
    [-600.0, -60.0, 86280.0, -600.0]
    """
    parts: list[tuple[Window, list[Due]]] = []
    for doubt in sorted(due, key=lambda one: (one["model"], not _may_prove(one, now), one["sent_at"])):
        window = _window_of(doubt, now=now)
        last, doubts = parts[-1] if parts else (window, [])
        joins = (
            bool(doubts)
            and last.model == window.model
            and _may_prove(doubts[0], now) == _may_prove(doubt, now)
            and window.since <= last.until
            and window.until - last.since <= MOST_WINDOW
        )
        if joins:
            joined = Window(last.since, max(last.until, window.until), model=window.model)
            parts[-1] = (joined, [*doubts, doubt])
        else:
            parts.append((window, [doubt]))
    return parts


def _window_of(doubt: Due, *, now: datetime) -> Window:
    if _may_prove(doubt, now):
        since = doubt["sent_at"] - evidence.PROOF_MARGIN
        return Window(since, doubt["call_deadline_at"] + evidence.PROOF_MARGIN, model=doubt["model"])
    return Window(doubt["sent_at"] - EARLY_MARGIN, doubt["ends_at"] + EARLY_MARGIN, model=doubt["model"])


def _may_prove(doubt: Due, now: datetime) -> bool:
    return bool(now >= doubt["call_deadline_at"] + evidence.PROOF_AFTER)


@dataclass(frozen=True, slots=True)
class _Looked:
    """One list of one model, for whom it was read, and who reads more."""

    home: Mapping[str, str]
    window: Window
    listing: Listing
    account: AccountInfo
    owner: Asker
    is_exclusive: bool
    due: Mapping[evidence.Name, datetime]  # with the deadlines of their calls


async def _resolve(res: Resources, looked: _Looked) -> int:
    """Judge what was listed and write down what follows; return how many doubts were settled."""
    window, model = looked.window, looked.window.model or ""
    listed = [row for row in looked.listing.rows if row.model in ("", model)]
    since, until = window.since - NEIGHBOURS, window.until + NEIGHBOURS
    async with reading(res) as session:
        rows = await store_doubts.read_sendings_all_teams(session, looked.home, model=model, since=since, until=until)
        owned = await store_doubts.read_owned_all_teams(session, looked.home, [row.task_id for row in listed])
    keys = await _learn_keys(res, rows, listed, owned=owned)
    sendings = [_sending(row, keys) for row in rows]
    shown = _shown(looked, listed, owned=owned, keys=keys)
    verdicts = evidence.judge(sendings, shown)
    echoes = _kept_echoes(rows)
    if worth_reading := _worth_reading(verdicts, echoes):
        echoes |= await _read_echoes(res, looked, worth_reading)
    if any(echoes.values()):
        prompts = await _prompts(res, sendings)
        asked = [replace(sending, prompt=prompts.get(sending.name[0], "")) for sending in sendings]
        verdicts = evidence.judge(asked, replace(shown, echoes=echoes))
    settled = [await _apply(res, looked, name, verdict=verdict, echoes=echoes) for name, verdict in verdicts.items()]
    await _note_orphans(res, looked, shown, sendings=sendings)
    return sum(settled)


async def _apply(
    res: Resources, looked: _Looked, name: evidence.Name, *, verdict: evidence.Verdict, echoes: Mapping[str, str]
) -> bool:
    """Do what a verdict says, or note what was seen; tell whether that settled the doubt."""
    seen: dict[str, Any] = {}
    settled = False
    match verdict:
        case Adopt(row=row, why=why):
            settled = await adopt(res, name, Found(row.task_id, why, row.request_id, row.created_at))
        case Missing(is_proof=True):
            settled = await end_not_taken(res, name, Verdict.ABSENT, reason="proven absent upstream")
        case Missing(since=since):
            seen = {"absent_at": since, "candidates": []}
        case Undecided(candidates=rows) if rows:
            seen = {"absent_at": None, "candidates": [_kept(row, echoes) for row in rows[:MOST_KEPT_CANDIDATES]]}
    if settled:
        return True
    if name in looked.due:
        at = evidence.next_look(looked.due[name], seen.get("absent_at"), now=res.clock.now())
        seen |= {"looked_at": looked.listing.began_at, "next_look_at": at}
    if seen:
        async with transaction(res) as session:
            await store_doubts.note_look(session, name[0], attempt=name[1], seen=seen)
    return False


async def _postpone(res: Resources, doubts: Sequence[Due]) -> None:
    async with transaction(res) as session:
        names = [_name(doubt) for doubt in doubts]
        await store_doubts.postpone(session, names, until=res.clock.now() + UNLISTED_PAUSE)


async def _learn_keys(
    res: Resources, rows: Sequence[RowMapping], listed: Sequence[TaskRow], *, owned: Sequence[RowMapping]
) -> Mapping[UUID, str]:
    """Return the upstream's ids of our keys; those that a receipt tells for the first time are written down."""
    shown = {row.task_id: row.api_key_id for row in listed if row.api_key_id}
    told = {
        one["account_key_id"]: shown[one["upstream_task_id"]]
        for one in owned
        if one["account_key_id"] is not None and not one["doubted"] and one["upstream_task_id"] in shown
    }
    known = {row["account_key_id"]: row["api_key_id"] for row in rows if row["api_key_id"]}
    async with reading(res) as session:
        known |= await store_doubts.read_key_ids(session, list(told))
    if new := {key_id: told[key_id] for key_id in told.keys() - known.keys()}:
        async with transaction(res) as session:
            for key_id, upstream_key_id in new.items():
                await store_doubts.learn_key_id(session, key_id, upstream_key_id)
    return known | new


def _shown(
    looked: _Looked, listed: Sequence[TaskRow], *, owned: Sequence[RowMapping], keys: Mapping[UUID, str]
) -> Shown:
    receipts = {one["upstream_task_id"]: one for one in owned}
    times = [
        (row.created_at, one["sent_at"], one["submitted_at"])
        for row in listed
        if row.created_at is not None and (one := receipts.get(row.task_id)) is not None and not one["doubted"]
    ]
    return Shown(
        rows=[row for row in listed if row.task_id not in receipts],
        began_at=looked.listing.began_at,
        since=looked.window.since,
        until=looked.window.until,
        is_complete=looked.listing.is_complete,
        is_exclusive=looked.is_exclusive,
        offset=evidence.offset_of(times),
        keys=frozenset(keys.values()),
    )


def _sending(row: RowMapping, keys: Mapping[UUID, str]) -> Sending:
    return Sending(
        name=_name(row),
        sent_at=row["sent_at"],
        ends_at=row["ends_at"],
        call_deadline_at=row["call_deadline_at"],
        request_id=row["request_id"],
        api_key_id=keys.get(row["account_key_id"], ""),
        absent_at=row["absent_at"],
        is_open=row["is_open"],
    )


def _name(row: Mapping[Any, Any]) -> evidence.Name:
    return row["task_id"], row["attempt"]


async def _note_orphans(res: Resources, looked: _Looked, shown: Shown, *, sendings: Sequence[Sending]) -> None:
    """Write down rows that are ours by account or key, and that no attempt can have made. Nobody is given them."""
    orphans = {row.task_id: new_id() for row in evidence.find_orphans(sendings, shown, before=looked.listing.began_at)}
    if not orphans:
        return
    async with transaction(res) as session:
        new = await store_doubts.insert_orphans(session, looked.home, orphans, now=res.clock.for_sql())
    if new:
        UPSTREAM_ORPHANS.inc(len(new))
        log.error("account.orphans_listed", **looked.home, model=looked.window.model, upstream_tasks=new[:10])


# --- echoed prompts ------------------------------------------------------------------------------------------------


def _kept_echoes(rows: Sequence[RowMapping]) -> dict[str, str]:
    """Return what results have echoed, as far as they were read: hashes, "" for one that echoes nothing."""
    return {one["task_id"]: one["echo"] for row in rows for one in row["candidates"] if one.get("echo") is not None}


def _kept(row: TaskRow, echoes: Mapping[str, str]) -> dict[str, Any]:
    """Return what is kept of a candidate, for the next look and for the operator. No prompt: a hash of it."""
    created_at = row.created_at.isoformat() if row.created_at is not None else None
    facts = {"task_id": row.task_id, "created_at": created_at, "word": row.word, "request_id": row.request_id}
    return {**facts, "api_key_id": row.api_key_id, "echo": echoes.get(row.task_id)}


def _worth_reading(verdicts: Mapping[evidence.Name, evidence.Verdict], echoes: Mapping[str, str]) -> list[str]:
    """Return candidates that have succeeded and were not read yet, where no other of the same doubt was in vain."""
    wanted: list[str] = []
    for verdict in verdicts.values():
        rows = verdict.candidates if isinstance(verdict, Undecided) else []
        if all(echoes.get(row.task_id) != "" for row in rows):
            wanted += [row.task_id for row in rows if row.word == "SUCCEEDED" and row.task_id not in echoes]
    return list(dict.fromkeys(wanted))[:MOST_ECHOES]


async def _read_echoes(res: Resources, looked: _Looked, upstream_ids: Sequence[str]) -> dict[str, str]:
    echoes: dict[str, str] = {}
    for upstream_id in upstream_ids:
        try:
            look = await looked.owner.ask(res, looked.account, call=partial(_look, upstream_id))
        except DashgateError as error:
            log.warning("account.look_failed", account=looked.account.name, reason=error.code)
            continue
        if isinstance(look, Succeeded):
            echoes[upstream_id] = echo_of(look.answer)
    return echoes


async def _look(upstream_id: str, there: Upstream) -> Look:
    return await there.look(upstream_id)


async def _prompts(res: Resources, sendings: Sequence[Sending]) -> dict[UUID, str]:
    async with reading(res) as session:
        rows = await store_doubts.read_requests_all_teams(session, [sending.name[0] for sending in sendings])
    prompts: dict[UUID, str] = {}
    for row in rows:
        try:
            prompts[row["task_id"]] = prompt_of(await open_request(res, row["task_id"], row["request"]))
        except CryptoError as error:
            log.error("task.unreadable", task=str(row["task_id"]), reason=str(error))
    return prompts
