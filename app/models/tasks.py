"""The tables `tasks`, `task_bodies`, `task_events` and `upstream_orphans`: the life of every billable call."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Id, Sealed, one_of


class Mode(StrEnum):
    """How the team called: by task id, waited for on a connection, or passed straight through."""

    ASYNC = "async"
    DURABLE = "durable"
    RELAY = "relay"


class UpstreamCall(StrEnum):
    """How we call the upstream; a `sync` call never shows in its list, so it can never be proven absent."""

    ASYNC = "async"
    SYNC = "sync"


class State(StrEnum):
    """Each state, and who moves a task into it. The allowed moves are in tasks/states.py."""

    QUEUED = "queued"  # accept; submit, when it is certain that nothing was taken
    SUBMITTING = "submitting"  # accept (inline) or dispatch, in the commit before the call
    DOUBTFUL = "doubtful"  # submit, when the answer was lost; rescue, when the caller died
    PENDING = "pending"  # submit, with the receipt
    RUNNING = "running"  # poll
    DELIVERING = "delivering"  # outcome, with assets and ledger line
    SUCCEEDED = "succeeded"  # finish
    FAILED = "failed"  # finish
    CANCELED = "canceled"  # finish
    EXPIRED = "expired"  # finish


TERMINAL = "'succeeded', 'failed', 'canceled', 'expired'"
OPEN = "'queued', 'submitting', 'doubtful', 'pending', 'running'"


class Task(Base):
    """One billable call. Every change of state is a compare-and-set in tasks/store.py, with its event."""

    __tablename__ = "tasks"
    __table_args__ = (
        CheckConstraint(one_of("mode", Mode), name="mode_known"),
        CheckConstraint(one_of("upstream_call", UpstreamCall), name="upstream_call_known"),
        CheckConstraint(one_of("state", State), name="state_known"),
        CheckConstraint(f"(finished_at IS NOT NULL) = (state IN ({TERMINAL}))", name="finished_iff_terminal"),
        CheckConstraint("state IN ('queued', 'failed', 'canceled') OR attempt > 0", name="attempt_counted"),
        CheckConstraint(
            "state NOT IN ('pending', 'running', 'delivering', 'succeeded') OR upstream_task_id IS NOT NULL"
            " OR upstream_call = 'sync'",
            name="upstream_task_known",
        ),
        Index(
            "uq_tasks_upstream_task",
            "main_account",
            "region",
            "upstream_task_id",
            unique=True,
            postgresql_where=text("upstream_task_id IS NOT NULL"),
        ),
        # room is counted here, under the account_models row lock
        Index("ix_tasks_open", "main_account", "region", "model", "state", postgresql_where=text(f"state IN ({OPEN})")),
        # what the account's owner reads
        Index("ix_tasks_polled", "main_account", "region", postgresql_where=text("state IN ('pending', 'running')")),
        # the queue of each team at each model, oldest first; also counts a team's queue against its cap
        Index(
            "ix_tasks_queue",
            *("team_id", "main_account", "region", "model", "id"),
            postgresql_where=text("state = 'queued'"),
        ),
        Index("ix_tasks_queued", "queue_deadline_at", postgresql_where=text("state = 'queued'")),
        Index("ix_tasks_doubtful", "sent_at", postgresql_where=text("state = 'doubtful'")),
        Index("ix_tasks_delivering", "grace_until", postgresql_where=text("state = 'delivering'")),
        Index("ix_tasks_team_id_created_at", "team_id", text("created_at DESC")),
        # a resend is looked for here; nearly always empty
        Index("ix_tasks_unanswered", "api_key_id", "request_hash", postgresql_where=text("unanswered_at IS NOT NULL")),
        Index("ix_tasks_waited", "waited_until", postgresql_where=text("waited_until IS NOT NULL")),
    )

    id: Mapped[Id]
    team_id: Mapped[UUID] = mapped_column(ForeignKey("teams.id"))
    api_key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    mode: Mapped[str]
    upstream_call: Mapped[str]
    state: Mapped[str]
    attempt: Mapped[int] = mapped_column(server_default="0")  # +1 with each move to submitting; facts are matched by it
    model: Mapped[str]
    path: Mapped[str]  # the service path at the upstream
    request_hash: Mapped[
        bytes | None
    ]  # SHA-256 over path, form of the call and body as sent: what makes a resend equal
    pinned: Mapped[bool] = mapped_column(server_default=text("false"))  # an oss:// input binds it to its account
    region: Mapped[str]
    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))  # fixed from the first submitting that stayed
    main_account: Mapped[str]
    account_key_id: Mapped[UUID | None]  # the upstream key of this attempt; evidence for doubtful tasks
    place_id: Mapped[UUID | None] = mapped_column(ForeignKey("places.id"))  # the destination's, as at accept
    tag: Mapped[str] = mapped_column(server_default="")  # X-Dashgate-Tag
    most: Mapped[int]  # the most images this request can make: the quantity of a presumed or uncertain line
    request_id: Mapped[str]  # ours, of the create
    upstream_task_id: Mapped[str | None]  # the receipt; written once per attempt
    upstream_request_id: Mapped[str | None]  # of the upstream's create answer, also of a 5xx: evidence
    last_request_id: Mapped[str | None]  # of the upstream's last answer that taught us something
    seen_usage: Mapped[dict[str, Any] | None] = mapped_column(JSONB)  # of a stream so far: billed if its process dies
    answer_status: Mapped[int | None]  # HTTP status of the upstream's own error, where that is the answer
    code: Mapped[str | None]  # why it failed: the upstream's word, or Dashgate.…
    message: Mapped[str | None]
    # a cancel the team asked for: set by tasks/cancel.py, done or cleared by the account's owner
    cancel_requested_at: Mapped[datetime | None]
    # someone waits for it on a connection, by a process that lives until then at least; written by tasks/wait.py
    waited_until: Mapped[datetime | None]
    # its caller left without an answer: the same request from the same key adopts it within ten minutes
    unanswered_at: Mapped[datetime | None]
    refused_inline: Mapped[bool] = mapped_column(server_default=text("false"))  # refused in the create's own answer
    # what the upstream said of it that no upstream should: fixed words, the first time; written by tasks/oddities.py
    oddity: Mapped[str | None]
    needs_operator: Mapped[bool] = mapped_column(server_default=text("false"))  # a stolen id, or a poison task
    created_at: Mapped[datetime] = mapped_column(server_default=text("now()"))
    queue_deadline_at: Mapped[datetime]  # a queued task fails with Dashgate.QueueTimeout then
    sent_at: Mapped[datetime | None]  # the mark "about to send" of this attempt
    call_deadline_at: Mapped[datetime | None]  # when this attempt's call is given up
    submitted_at: Mapped[datetime | None]  # the receipt came
    started_at: Mapped[datetime | None]  # first seen running
    made_at: Mapped[datetime | None]  # the outcome was learned
    grace_until: Mapped[datetime | None]  # while delivering: the chore `grace` ends it then
    finished_at: Mapped[datetime | None]


class TaskBody(Base):
    """What was asked and what was answered, apart from the hot row: packed, encrypted, deleted sooner."""

    __tablename__ = "task_bodies"
    __table_args__ = (Index("ix_task_bodies_forget_at", "forget_at", postgresql_where=text("request IS NOT NULL")),)

    task_id: Mapped[UUID] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True)
    headers: Mapped[dict[str, str]] = mapped_column(JSONB)  # the few request headers the upstream acts on
    request: Mapped[Sealed | None]  # as the team sent it, byte for byte
    forget_at: Mapped[datetime | None]  # when the request is deleted, a day after the end: written by finish
    answer: Mapped[Sealed | None]  # the upstream's final answer, as it came


class TaskEvent(Base):
    """Every transition, once. Read by `task show`; never changed."""

    __tablename__ = "task_events"

    task_id: Mapped[UUID] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(primary_key=True)  # the state moved to
    at: Mapped[datetime] = mapped_column(server_default=text("clock_timestamp()"))
    reason: Mapped[str | None]  # why, where the state alone does not say it: fixed words or an upstream code


class UpstreamOrphan(Base):
    """An upstream task that is nobody's: a receipt whose task had moved on, an id that was already another's, or one
    that the upstream's list shows under our keys and no attempt of ours can have made."""

    __tablename__ = "upstream_orphans"
    __table_args__ = (
        Index("uq_upstream_orphans_upstream_task", "main_account", "region", "upstream_task_id", unique=True),
    )

    id: Mapped[Id]
    main_account: Mapped[str]
    region: Mapped[str]
    upstream_task_id: Mapped[str]
    task_id: Mapped[UUID | None]  # the task whose attempt brought it, where known
    attempt: Mapped[int | None]
    reason: Mapped[str]
    seen_at: Mapped[datetime] = mapped_column(server_default=text("now()"))
