"""SQL of the queue: who waits where, whose turn it is, the claim that serves it, and the snapshot of its positions.

A queue is one team's tasks at one model of one main account and region, oldest first: `ix_tasks_queue`. Every
statement here touches as many rows as it was asked for, however long the queues are; only the snapshot reads them all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping, text

from app.lib.db import AnySession, Session, Statement, fetch

_NOW = "coalesce(cast(:now AS timestamptz), now())"

# Each step of the recursion jumps to the next queue: as many index probes as there are queues, not tasks.
_QUEUES = text("""
    WITH RECURSIVE queue AS (
        (SELECT team_id, main_account, region, model FROM tasks WHERE state = 'queued'
         ORDER BY team_id, main_account, region, model LIMIT 1)
        UNION ALL
        SELECT next.* FROM queue CROSS JOIN LATERAL (
            SELECT team_id, main_account, region, model FROM tasks
            WHERE state = 'queued' AND (team_id, main_account, region, model)
                  > (queue.team_id, queue.main_account, queue.region, queue.model)
            ORDER BY team_id, main_account, region, model LIMIT 1
        ) AS next
    )
    SELECT main_account, region, model, array_agg(team_id ORDER BY team_id) AS teams
    FROM queue GROUP BY main_account, region, model ORDER BY main_account, region, model
""")

_TURNS = text("""
    SELECT teams.id AS team_id, teams.weight, coalesce(account_models.turn, 0) AS base,
           greatest(coalesce(queue_turns.served, 0), coalesce(account_models.turn, 0)) AS turn
    FROM teams
    LEFT JOIN account_models ON account_models.main_account = :main_account AND account_models.region = :region
          AND account_models.model = :model
    LEFT JOIN queue_turns ON queue_turns.main_account = :main_account AND queue_turns.region = :region
          AND queue_turns.model = :model AND queue_turns.team_id = teams.id
    WHERE teams.id = ANY (cast(:teams AS uuid[]))
    ORDER BY turn, teams.id
""")

# One queue from its oldest task on. Said as a range and not as an equality, because the order by id alone would tempt
# the planner to walk the primary key through everybody's tasks.
_FROM_THERE = """tasks.state = 'queued' AND (tasks.team_id, tasks.main_account, tasks.region, tasks.model)
                      >= (lane.team_id, :main_account, :region, :model)"""
_STILL_THERE = """oldest.team_id = lane.team_id AND oldest.main_account = :main_account AND oldest.region = :region
                  AND oldest.model = :model"""

MOST_AT_ONCE = 20  # of one claim
_LOOKED_AT = 100  # of each team's oldest: some may be due a little later, after a call that could not be sent

# `nearness`: no more teams than places can be served, those whose turn comes first. `waited`: of all teams, since what
# somebody waits for on a connection goes before everything else. What waits for an account that takes no calls
# (pinned) must not stand in the way of what is behind it. The limits inside are constants, so that no plan, however
# old its statistics, reads whole queues.
_CLAIM = text(f"""
    WITH lane AS (
        SELECT * FROM unnest(cast(:teams AS uuid[]), cast(:weights AS int[]), cast(:turns AS float8[]))
                      WITH ORDINALITY AS lane (team_id, weight, turn, nearness)
    ), candidate AS (
        SELECT lane.*, due.id, due.priority
        FROM lane CROSS JOIN LATERAL (
            SELECT oldest.id, work.priority
            FROM (
                SELECT team_id, main_account, region, model, id FROM tasks
                WHERE {_FROM_THERE} AND (NOT pinned OR account_id = ANY (cast(:accounts AS uuid[])))
                ORDER BY team_id, main_account, region, model, id LIMIT {_LOOKED_AT}
            ) AS oldest
            JOIN work ON work.kind = 'submit' AND work.key = cast(oldest.id AS text) AND work.due_at <= {_NOW}
            WHERE {_STILL_THERE}
            ORDER BY oldest.id LIMIT {MOST_AT_ONCE}
        ) AS due
        WHERE lane.nearness <= {MOST_AT_ONCE}
        UNION
        SELECT lane.*, waited.id, waited.priority
        FROM lane CROSS JOIN LATERAL (
            SELECT tasks.id, work.priority
            FROM work JOIN tasks ON tasks.id = cast(work.key AS uuid)
            WHERE work.kind = 'submit' AND work.priority > 0 AND work.team_id = lane.team_id
              AND work.due_at <= {_NOW} AND tasks.state = 'queued' AND tasks.main_account = :main_account
              AND tasks.region = :region AND tasks.model = :model
              AND (NOT tasks.pinned OR tasks.account_id = ANY (cast(:accounts AS uuid[])))
            ORDER BY work.key LIMIT {MOST_AT_ONCE}
        ) AS waited
    ), chosen AS (
        SELECT id, priority, weight,
               turn + (row_number() OVER (PARTITION BY team_id ORDER BY priority DESC, id) - 1) / cast(weight AS float8)
                   AS turn
        FROM candidate
        ORDER BY priority DESC, turn, id LIMIT :limit
    )
    SELECT work.key, tasks.id, tasks.team_id, tasks.account_id, tasks.pinned, tasks.upstream_call, tasks.model,
           chosen.weight, chosen.turn
    FROM chosen JOIN tasks USING (id) JOIN work ON work.kind = 'submit' AND work.key = cast(tasks.id AS text)
    WHERE tasks.state = 'queued' AND work.due_at <= {_NOW}
    ORDER BY chosen.priority DESC, chosen.turn, tasks.id
    FOR UPDATE OF work, tasks SKIP LOCKED
""")  # noqa: S608 -- the only thing put in is our own constant

_MARK = text("""
    WITH sent AS (
        SELECT * FROM unnest(cast(:ids AS uuid[]), cast(:account_ids AS uuid[]), cast(:key_ids AS uuid[]),
                             cast(:lease_ids AS uuid[]), cast(:sent_at AS timestamptz[]),
                             cast(:call_seconds AS float8[]), cast(:lease_seconds AS float8[]))
                      AS sent (id, account_id, key_id, lease_id, sent_at, call_seconds, lease_seconds)
    ), leased AS (
        UPDATE work SET lease_id = sent.lease_id, epoch = work.epoch + 1, attempts = work.attempts + 1,
               lease_until = sent.sent_at + make_interval(secs => sent.lease_seconds),
               due_at = sent.sent_at + make_interval(secs => sent.lease_seconds)
        FROM sent WHERE work.kind = 'submit' AND work.key = cast(sent.id AS text)
        RETURNING sent.id, work.epoch
    ), task AS (
        UPDATE tasks SET state = 'submitting', attempt = tasks.attempt + 1, account_id = sent.account_id,
               account_key_id = sent.key_id, sent_at = sent.sent_at,
               call_deadline_at = sent.sent_at + make_interval(secs => sent.call_seconds),
               submitted_at = CASE WHEN tasks.upstream_call = 'sync' THEN sent.sent_at END
        FROM sent WHERE tasks.id = sent.id AND tasks.state = 'queued' AND (SELECT count(*) FROM leased) >= 0
        RETURNING tasks.id, tasks.team_id, tasks.attempt, tasks.mode, tasks.path, tasks.place_id
    ), event AS (
        INSERT INTO task_events (task_id, attempt, state) SELECT id, attempt, 'submitting' FROM task
    )
    SELECT task.*, leased.epoch, task_bodies.headers, task_bodies.request
    FROM task JOIN leased USING (id) JOIN task_bodies ON task_bodies.task_id = task.id
""")

_CHARGE = text("""
    INSERT INTO queue_turns (main_account, region, model, team_id, served)
    SELECT :main_account, :region, :model, sent.team_id, :base + sent.cost
    FROM unnest(cast(:teams AS uuid[]), cast(:costs AS float8[])) AS sent (team_id, cost)
    ORDER BY sent.team_id
    ON CONFLICT (main_account, region, model, team_id) DO UPDATE
    SET served = greatest(queue_turns.served, :base) + excluded.served - :base
""")

_ADVANCE = text("""
    UPDATE account_models SET turn = greatest(turn, :turn)
    WHERE main_account = :main_account AND region = :region AND model = :model
""")

_HOMELESS = text(f"""
    SELECT work.key, tasks.id, tasks.path, tasks.mode, tasks.upstream_call, teams.regions, teams.default_region
    FROM unnest(cast(:teams AS uuid[])) AS lane (team_id) CROSS JOIN LATERAL (
        SELECT team_id, main_account, region, model, id FROM tasks WHERE {_FROM_THERE} AND NOT pinned
        ORDER BY team_id, main_account, region, model, id LIMIT {MOST_AT_ONCE}
    ) AS oldest
    JOIN tasks USING (id) JOIN work ON work.kind = 'submit' AND work.key = cast(tasks.id AS text)
    JOIN teams ON teams.id = tasks.team_id
    WHERE {_STILL_THERE} AND tasks.state = 'queued' AND teams.regions && cast(:regions AS text[])
    ORDER BY work.priority DESC, tasks.id LIMIT :limit
    FOR UPDATE OF work, tasks SKIP LOCKED
""")  # noqa: S608

_REHOME = text("""
    WITH moved AS (
        UPDATE work SET account_id = :account_id WHERE kind = 'submit' AND key = :key RETURNING 1
    )
    UPDATE tasks SET account_id = :account_id, main_account = :main_account, region = :region, path = :path
    WHERE id = cast(:key AS uuid) AND state = 'queued' AND (SELECT count(*) FROM moved) >= 0
""")

_IS_FULL = Statement("""
    SELECT count(*) >= :most AS is_full
    FROM (SELECT 1 FROM tasks WHERE team_id = :team_id AND state = 'queued' LIMIT :most) AS waiting
""")

# Of a long queue only every tenth, then every hundredth task is kept: a position is off by a hundredth at most.
_STANDING = text(f"""
    SELECT ranked.main_account, ranked.region, ranked.model, ranked.team_id, teams.weight,
           greatest(coalesce(queue_turns.served, 0), coalesce(account_models.turn, 0)) AS turn,
           array_agg(ranked.id ORDER BY ranked.rank)
               FILTER (WHERE rank <= 100 OR rank <= 1000 AND rank % 10 = 0 OR rank % 100 = 0) AS ids,
           array_agg(ranked.rank ORDER BY ranked.rank)
               FILTER (WHERE rank <= 100 OR rank <= 1000 AND rank % 10 = 0 OR rank % 100 = 0) AS ranks,
           count(*) AS queued, account_models.rps, account_models.running, account_models.slowed_to,
           account_models.learned_seconds, {_NOW} AS taken_at
    FROM (
        SELECT team_id, main_account, region, model, id,
               row_number() OVER (PARTITION BY team_id, main_account, region, model ORDER BY id) AS rank
        FROM tasks WHERE state = 'queued'
    ) AS ranked
    JOIN teams ON teams.id = ranked.team_id
    LEFT JOIN account_models USING (main_account, region, model)
    LEFT JOIN queue_turns USING (main_account, region, model, team_id)
    GROUP BY ranked.main_account, ranked.region, ranked.model, ranked.team_id, teams.weight, queue_turns.served,
             account_models.turn, account_models.rps, account_models.running, account_models.slowed_to,
             account_models.learned_seconds
""")  # noqa: S608

_FORGET_POSITIONS = text("DELETE FROM queue_positions")

_WRITE_POSITION = text("""
    INSERT INTO queue_positions (main_account, region, model, team_id, ids, places, seconds_each, taken_at)
    VALUES (:main_account, :region, :model, :team_id, :ids, :places, :seconds_each, :taken_at)
""")

# A team that has had no more than everybody begins there anyway: its row says nothing.
_FORGET_TURNS = text("""
    DELETE FROM queue_turns USING account_models
    WHERE account_models.main_account = queue_turns.main_account AND account_models.region = queue_turns.region
      AND account_models.model = queue_turns.model AND queue_turns.served <= account_models.turn
""")

_QUEUED_TEAMS = Statement("SELECT DISTINCT team_id FROM queue_positions")

_POSITION = Statement("""
    SELECT coalesce(places[width_bucket(tasks.id, ids)], 1) AS place, seconds_each
    FROM tasks JOIN queue_positions USING (main_account, region, model, team_id)
    WHERE tasks.id = :task_id AND tasks.team_id = :team_id AND tasks.state = 'queued' AND NOT tasks.refused_inline
""")


@dataclass(frozen=True, slots=True)
class Claim:
    """A locked queued task, the key of its work, and what its sending costs its team: `turn` and 1 / weight."""

    key: str
    task_id: UUID
    team_id: UUID
    account_id: UUID
    pinned: bool  # to that account
    upstream_call: str
    model: str
    weight: int
    turn: float


async def read_queues_all_teams(session: Session) -> Sequence[RowMapping]:
    """Read at which models of which main accounts tasks wait, and whose."""
    return (await session.execute(_QUEUES)).mappings().all()


async def read_turns_all_teams(
    session: Session, model_key: dict[str, str], teams: Sequence[UUID]
) -> Sequence[RowMapping]:
    """Read whose turn it is among teams that wait at a model, the first one first."""
    return (await session.execute(_TURNS, {**model_key, "teams": list(teams)})).mappings().all()


async def claim_queued_all_teams(
    session: Session,
    model_key: dict[str, str],
    *,
    lanes: Sequence[Mapping[Any, Any]],
    accounts: Sequence[UUID],
    limit: int,
    now: datetime | None,
) -> list[Claim]:
    """Lock up to `limit` due queued tasks of one model, with their work, until the transaction ends.

    In the order in which they go: what is waited for, then by turns, each team's oldest first.
    """
    params = {
        **model_key,
        "teams": [lane["team_id"] for lane in lanes],
        "weights": [lane["weight"] for lane in lanes],
        "turns": [lane["turn"] for lane in lanes],
        "accounts": list(accounts),
        "limit": limit,
        "now": now,
    }
    rows = await session.execute(_CLAIM, params)
    return [
        Claim(
            *(row.key, row.id, row.team_id, row.account_id, row.pinned, row.upstream_call, row.model),
            *(row.weight, row.turn),
        )
        for row in rows
    ]


async def mark_submitting(session: Session, marks: Sequence[dict[str, Any]]) -> Sequence[RowMapping]:
    """Mark locked queued tasks "about to send", with their leases; return them with what their teams asked for."""
    columns = ("ids", "account_ids", "key_ids", "lease_ids", "sent_at", "call_seconds", "lease_seconds")
    return (await session.execute(_MARK, {name: [mark[name] for mark in marks] for name in columns})).mappings().all()


async def charge_turns_all_teams(
    session: Session, model_key: dict[str, str], *, costs: Mapping[UUID, float], base: float, turn: float
) -> None:
    """Note what each team was served, counted from where the queue was, and how far it has come. Under the model's
    lock."""
    params = {**model_key, "teams": list(costs), "costs": list(costs.values()), "base": base}
    await session.execute(_CHARGE, params)
    await session.execute(_ADVANCE, {**model_key, "turn": turn})


async def claim_homeless_all_teams(
    session: Session, model_key: dict[str, str], *, teams: Sequence[UUID], regions: Sequence[str], limit: int
) -> Sequence[RowMapping]:
    """Lock queued tasks of a model whose accounts take no calls, with what decides where else they may go.

    Those of teams that may call none of the regions stand in nobody's way.
    """
    params = {**model_key, "teams": list(teams), "regions": list(regions), "limit": limit}
    return (await session.execute(_HOMELESS, params)).mappings().all()


async def rehome(session: Session, values: dict[str, Any]) -> None:
    """Give a locked queued task to another account."""
    await session.execute(_REHOME, values)


async def is_full(session: AnySession, team_id: UUID, *, most: int) -> bool:
    """Tell whether a team has as many tasks waiting as it may."""
    return bool((await fetch(session, _IS_FULL, {"team_id": team_id, "most": most}))[0]["is_full"])


async def read_standing_all_teams(session: Session, *, now: datetime | None) -> Sequence[RowMapping]:
    """Read all queues with what decides who goes when: the one statement that looks at every queued task."""
    return (await session.execute(_STANDING, {"now": now})).mappings().all()


async def write_positions_all_teams(session: Session, positions: Sequence[dict[str, Any]]) -> None:
    """Replace the snapshot of all queues, and forget turns that say nothing any more."""
    await session.execute(_FORGET_POSITIONS)
    if positions:
        await session.execute(_WRITE_POSITION, list(positions))
    await session.execute(_FORGET_TURNS)


async def read_queued_teams_all_teams(session: AnySession) -> frozenset[UUID]:
    """Read which teams had a queue in the last snapshot."""
    return frozenset(row["team_id"] for row in await fetch(session, _QUEUED_TEAMS, {}))


async def find_position(session: AnySession, team_id: UUID, task_id: UUID) -> Mapping[str, Any] | None:
    """Read where a team's queued task stood in the last snapshot; None: it is not queued, or was not then."""
    rows = await fetch(session, _POSITION, {"team_id": team_id, "task_id": task_id})
    return rows[0] if rows else None
