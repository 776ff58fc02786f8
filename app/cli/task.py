"""`dashgate task …`: what became of tasks, and cancelling. Prompts and the upstream's links are never shown."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.console import AsJson, Report, run, table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from sqlalchemy import RowMapping

    from app.resources import Resources

app = typer.Typer(no_args_is_help=True, help="Tasks: what became of them.")

MOST_LISTED = 1_000
LISTED = ("id", "team", "state", "model", "region", "code", "created_at", "finished_at")
FACTS = (
    *("id", "team", "state", "model", "region", "account", "attempt", "mode", "tag", "code", "message"),
    *("request_id", "upstream_task_id", "upstream_request_id", "last_request_id", "oddity"),
    *("needs_operator", "refused_inline"),
    *("created_at", "queue_deadline_at", "sent_at", "submitted_at", "started_at", "made_at", "grace_until"),
    *("cancel_requested_at", "finished_at"),
)
DOUBT = ("attempt", "sent_at", "ends_at", "request_id", "looked_at", "absent_at", "next_look_at", "verdict")
CANDIDATE = ("task_id", "created_at", "word", "request_id", "api_key_id")
EVENT = ("at", "state", "attempt", "reason")
ASSET = ("position", "state", "reason", "content_type", "size_bytes", "sha256", "object_key", "stored_at")
ENTRY = ("kind", "unit", "tier", "quantity", "flag", "billed_at")
LINK = re.compile(r"(?i)\b[a-z][a-z0-9+.-]*://\S+|\bdata:\S+")
CANCELS = {
    "canceled": "Cancelled. Nothing was made and nothing is billed.",
    "requested": "Not decided yet: the upstream has been or will be asked, and the task's final state tells.",
    "refused": "Not cancelled: it does not wait any more, or it is a relay.",
}
NEEDS_OPERATOR = "it needs an operator: its upstream task is claimed twice, or processes died of it"
NO_DESTINATION = "the team had no destination when this task was accepted: links die with the upstream's"


@app.command()
def show(task_id: Annotated[str, typer.Argument(metavar="ID")], as_json: AsJson = False) -> None:
    """Show a task's whole life."""
    run(lambda res: _show(res, task_id), as_json=as_json)


@app.command("list")
def list_tasks(
    team: Annotated[str | None, typer.Option(help="Only this team's.")] = None,
    state: Annotated[str | None, typer.Option(help="Only in this state, e.g. doubtful.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MOST_LISTED, help="How many, the newest first.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List the newest tasks."""
    run(lambda res: _list(res, team, state, limit=limit), as_json=as_json)


@app.command()
def cancel(task_id: Annotated[str, typer.Argument(metavar="ID")], as_json: AsJson = False) -> None:
    """Cancel a task that waits, here or upstream, whosever it is; what runs goes on."""
    run(lambda res: _cancel(res, task_id), as_json=as_json)


@app.command()
def settle(
    task_id: Annotated[str, typer.Argument(metavar="ID")],
    adopt: Annotated[
        str | None, typer.Option(metavar="UPSTREAM_ID", help="The upstream took it: this is its task there.")
    ] = None,
    refused: Annotated[bool, typer.Option("--refused", help="The upstream did not take it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Decide a task in doubt by hand; without an option, show what is known."""
    run(lambda res: _settle(res, task_id, adopt=adopt, refused=refused), as_json=as_json)


async def _settle(res: Resources, asked: str, *, adopt: str | None, refused: bool) -> Report:
    from app.errors import CommandRefused
    from app.tasks.settle import settle_by_operator

    if adopt is not None and refused:
        raise CommandRefused("Either --adopt or --refused.")
    before = await _get(res, asked)
    doubts = await _doubts(res, before["id"])
    if adopt is not None or refused:
        await settle_by_operator(res, before["id"], upstream_task_id=adopt)
    after = await _get(res, asked)
    document = {
        **{name: before[name] for name in ("id", "team", "model", "region", "account")},
        "state_before": before["state"],
        "state": after["state"],
        "doubts": doubts,
    }
    told = f"State: {before['state']}, now {after['state']}." if adopt or refused else f"State: {after['state']}."
    return Report(document, [*_drawn_doubts(doubts), told])


async def _doubts(res: Resources, task_id: UUID) -> list[dict[str, Any]]:
    from app.lib.db import reading
    from app.tasks.store_doubts import read_doubts_all_teams

    async with reading(res) as session:
        rows = await read_doubts_all_teams(session, task_id)
    return [
        {
            **{name: row[name] for name in DOUBT},
            "candidates": [{name: one.get(name) for name in CANDIDATE} for one in row["candidates"]],
        }
        for row in rows
    ]


def _drawn_doubts(doubts: Sequence[dict[str, Any]]) -> list[Any]:
    parts: list[Any] = []
    for doubt in doubts:
        facts = [[name.replace("_", " "), _exact(doubt[name])] for name in DOUBT if doubt[name] is not None]
        parts.append(table(["doubt", ""], facts))
        rows = ([one[name] for name in CANDIDATE] for one in doubt["candidates"])
        heads = [name.replace("_", " ") for name in CANDIDATE]
        made = table(heads, rows, title="candidates, as the upstream's list showed them")
        parts.append(made if doubt["candidates"] else "No upstream task was listed that could be it.\n")
    return parts or ["There is no doubt about this task.\n"]


async def _cancel(res: Resources, asked: str) -> Report:
    from app.tasks.cancel import Cancel, cancel

    before = await _get(res, asked)
    result = await cancel(res, before["team_id"], before["id"])
    after = await _get(res, asked)
    document = {
        "task": before["id"],
        "team": before["team"],
        "result": str(result),
        "state_before": before["state"],
        "state": after["state"],
    }
    told = f"{CANCELS[result]} State: {before['state']}, now {after['state']}."
    return Report(document, [told], failed=result is Cancel.REFUSED)


async def _get(res: Resources, asked: str) -> RowMapping:
    from app.errors import CommandRefused
    from app.lib.db import reading
    from app.lib.ids import find_uuid
    from app.tasks.store_reads import find_task_all_teams

    task_id = find_uuid(asked)
    row = None
    if task_id is not None:
        async with reading(res) as session:
            row = await find_task_all_teams(session, task_id)
    if row is None:
        raise CommandRefused(f"There is no task {asked}.")
    return row


async def _show(res: Resources, asked: str) -> Report:
    row = await _get(res, asked)
    document = {**_facts(row), **await _parts(res, row["team_id"], row["id"])}
    document["doubts"] = await _doubts(res, row["id"])
    document["destination_missing"] = row["place_id"] is None
    document["warnings"] = _warnings(row)
    return Report(document, _drawn(document))


def _warnings(row: Mapping[Any, Any]) -> list[str]:
    """Return what an operator should know of a task that its facts do not say by themselves."""
    told = {
        NO_DESTINATION: row["place_id"] is None,
        NEEDS_OPERATOR: row["needs_operator"],
        f"the upstream said something odd of it ({row['oddity']}); it goes on": row["oddity"] is not None,
    }
    return [text for text, is_so in told.items() if is_so]


def _facts(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a task's facts; a link that the upstream quotes in its message is cut out."""
    facts = {name: row[name] for name in FACTS}
    facts["message"] = without_links(row["message"])
    return facts


async def _parts(res: Resources, team_id: UUID, task_id: UUID) -> dict[str, Any]:
    from app.delivery.store import read_assets
    from app.ledger.reports import plain
    from app.ledger.store import read_task_entries
    from app.lib.db import reading
    from app.tasks.store_reads import read_events_all_teams

    async with reading(res) as session:
        events = await read_events_all_teams(session, task_id)
        assets = await read_assets(session, team_id, task_id)
        entries = await read_task_entries(session, team_id, task_id)
    return {
        "events": [{name: event[name] for name in EVENT} for event in events],
        "assets": [{name: asset[name] for name in ASSET} for asset in assets],
        "ledger": [
            {**{name: entry[name] for name in ENTRY}, "quantity": plain(entry["quantity"])} for entry in entries
        ],
    }


def without_links(text: str | None) -> str | None:
    """Cut links and data out of a text that the upstream wrote.

    >>> without_links("Download of https://h/a.png?Signature=x failed"), without_links(None)
    ('Download of … failed', None)
    """
    return LINK.sub("…", text) if text else text


def _drawn(document: dict[str, Any]) -> list[Any]:
    known = [name for name in FACTS if document[name] is not None and document[name] is not False]
    facts = [[name.replace("_", " "), _exact(document[name])] for name in known if document[name] != ""]
    parts: list[Any] = [table(["task", ""], facts)]
    for name, columns in (("events", EVENT), ("assets", ASSET), ("ledger", ENTRY)):
        lines: Sequence[dict[str, Any]] = document[name]
        heads = [column.replace("_", " ") for column in columns]
        made = table(heads, ([_exact(line[column]) for column in columns] for line in lines), title=name)
        parts.append(made if lines else f"{name}: none\n")
    if document["doubts"]:
        parts += _drawn_doubts(document["doubts"])
    return [*parts, *(f"Warning: {text}." for text in document["warnings"])]


def _exact(value: object) -> object:
    """Write instants to the millisecond: events of one task lie close together."""
    return f"{value:%Y-%m-%d %H:%M:%S}.{value.microsecond // 1000:03}Z" if isinstance(value, datetime) else value


async def _list(res: Resources, team: str | None, state: str | None, *, limit: int) -> Report:
    from app.errors import CommandRefused
    from app.lib.db import reading
    from app.models.tasks import State
    from app.tasks.store_reads import list_tasks_all_teams
    from app.teams.teams import get_team

    if state is not None and state not in list(State):
        raise CommandRefused(f"There is no state {state}; there are: {', '.join(State)}.")
    if team is not None:
        await get_team(res, team)
    async with reading(res) as session:
        rows = await list_tasks_all_teams(session, team=team, state=state, limit=limit)
    tasks = [{name: row[name] for name in LISTED} for row in rows]
    columns = [name.removesuffix("_at") for name in LISTED]
    made = table(columns, ([task[name] for name in LISTED] for task in tasks))
    return Report({"tasks": tasks}, [made if tasks else "No such task."])
