"""Standing: where a queued task stands, and how long it will take, from a snapshot a few seconds old.

Owns the snapshot and how it is read. Nothing is counted when somebody asks: a team with 100,000 tasks that asks for
each of them costs a row each. Nothing is decided by it either; whose turn it is, dispatch knows.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping

from app.lib.db import DatabaseAway, direct_reading, reading, transaction
from app.lib.ids import find_uuid
from app.resources import Resources
from app.routing.room import UNLEARNED_SECONDS
from app.tasks import store_queue as store

MOST_STEPS = 200_000  # of one model's calculation: with very many teams, fewer of each team's tasks are placed
SLACK = 1e-9  # thirds do not add up


@dataclass(frozen=True, slots=True)
class Lane:
    """One team's queue at a model: its length, and where its first task stands in virtual time (dispatch.py)."""

    weight: int
    turn: float
    queued: int


@dataclass(frozen=True, slots=True)
class Standing:
    """A queued task's place, from 1, and the seconds until it is sent, as far as anyone can tell."""

    place: int
    seconds: int


async def note_positions(res: Resources) -> int:
    """Take the snapshot: the one place where all queued tasks are looked at. Returns 0: nothing becomes due by it."""
    async with reading(res) as session:
        rows = await store.read_standing_all_teams(session, now=res.clock.for_sql())
    queues: dict[tuple[str, str, str], list[RowMapping]] = defaultdict(list)
    for row in rows:
        queues[row["main_account"], row["region"], row["model"]].append(row)
    positions = [position for lanes in queues.values() for position in _positions(lanes)]
    async with transaction(res) as session:
        await store.write_positions_all_teams(session, positions)
    return 0


async def find_standing(res: Resources, team_id: UUID, asked_id: str) -> Standing | None:
    """Return where a team's task stood a moment ago; None: it is not queued, or not the team's.

    Two seconds old at most in this process, beside the age of the snapshot. A team without a queue costs nothing.
    Database away: None, since whoever asks was told what matters.
    """
    task_id = find_uuid(asked_id)
    try:
        if task_id is None or team_id not in await res.standings.get(None, lambda: _load_teams(res)):
            return None
        found: Standing | None = await res.standings.get((team_id, task_id), lambda: _load(res, team_id, task_id))
    except DatabaseAway:
        return None
    return found


async def _load_teams(res: Resources) -> frozenset[UUID]:
    async with direct_reading(res) as session:
        return await store.read_queued_teams_all_teams(session)


async def _load(res: Resources, team_id: UUID, task_id: UUID) -> Standing | None:
    async with direct_reading(res) as session:
        found = await store.find_position(session, team_id, task_id)
    return Standing(found["place"], ceil(found["place"] * found["seconds_each"])) if found else None


def place_of(rank: int, lane: Lane, *, others: Sequence[Lane]) -> int:
    """Return how many tasks go before a team's `rank`-th one, and itself: its own, and those of the teams in between.

    >>> long, short = Lane(1, 0.0, 100_000), Lane(1, 0.0, 2)
    >>> [place_of(rank, short, others=[long]) for rank in (1, 2)]
    [1, 3]
    >>> [place_of(rank, long, others=[short]) for rank in (3, 9)]
    [5, 11]
    >>> heavy, light = Lane(3, 0.0, 90), Lane(1, 0.0, 30)
    >>> place_of(2, light, others=[heavy]), place_of(4, heavy, others=[light])
    (5, 5)
    """
    turn = lane.turn + (rank - 1) / lane.weight
    return rank + sum(
        min(other.queued, ceil((turn - other.turn) * other.weight - SLACK)) for other in others if turn > other.turn
    )


def seconds_each(rps: float | None, *, running: int | None, learned_seconds: float | None) -> float:
    """Return how long one place in the queue takes: as quick as calls may leave and as upstream places become free.

    >>> seconds_each(5, running=5, learned_seconds=90), seconds_each(5, running=1000, learned_seconds=90)
    (18.0, 0.2)
    >>> seconds_each(None, running=None, learned_seconds=None)
    120.0
    """
    return max(1 / (rps or 1), (learned_seconds or UNLEARNED_SECONDS) / (running or 1))


def _positions(rows: Sequence[RowMapping]) -> list[dict[str, Any]]:
    """Return the snapshot of one model's queues."""
    lanes = [Lane(row["weight"], row["turn"], row["queued"]) for row in rows]
    marks = sum(len(row["ids"]) for row in rows)
    stride = max(1, ceil(marks * len(rows) / MOST_STEPS))
    positions = []
    for number, row in enumerate(rows):
        others = [*lanes[:number], *lanes[number + 1 :]]
        ranks = row["ranks"][::stride]
        rps = float(row["rps"]) if row["rps"] is not None else None
        positions.append(
            {
                **{name: row[name] for name in ("main_account", "region", "model", "team_id", "taken_at")},
                "ids": row["ids"][::stride],
                "places": [place_of(rank, lanes[number], others=others) for rank in ranks],
                "seconds_each": seconds_each(rps, running=row["running"], learned_seconds=row["learned_seconds"]),
            }
        )
    return positions
