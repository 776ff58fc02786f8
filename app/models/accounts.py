"""The tables `accounts`, `account_keys` and `account_models`: where calls may go, and how fast."""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Id, Patterns, Sealed, one_of


class Serving(StrEnum):
    """What the operator lets an account do: `active`; `paused` sends nothing, its queue waits; `draining` sends
    nothing, its queue moves to other accounts. What is upstream already is polled to its end in all three."""

    ACTIVE = "active"
    PAUSED = "paused"
    DRAINING = "draining"


class Account(Base):
    """One base URL with its keys in one region. Written by the operator's commands; `paused_until` also by submit."""

    __tablename__ = "accounts"
    __table_args__ = (
        CheckConstraint(one_of("serving", Serving), name="serving_known"),
        CheckConstraint("weight >= 0", name="weight_not_negative"),
        Index("ix_accounts_main_account_region", "main_account", "region"),
    )

    id: Mapped[Id]
    name: Mapped[str] = mapped_column(unique=True)
    region: Mapped[str]
    main_account: Mapped[str]  # what the upstream counts limits by; its owner polls
    base_url: Mapped[str]  # native base, ends in /api/v1; never derived from the region
    workspace: Mapped[str | None]
    exclusive: Mapped[bool] = mapped_column(server_default=text("false"))  # nobody else uses this main account
    file_hosts: Mapped[Patterns] = mapped_column(server_default=text("'{}'"))  # HOST:PORT beside the known pattern
    weight: Mapped[int] = mapped_column(server_default="1")  # its share of the calls among the accounts of its region
    serving: Mapped[str] = mapped_column(server_default="active")  # written by account pause|resume|drain
    paused_until: Mapped[datetime | None]  # a breaker: set by submit when the account is at fault, read by routing
    paused_reason: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=text("now()"))


class AccountKey(Base):
    """An upstream key, encrypted. An account may have several while one replaces another."""

    __tablename__ = "account_keys"

    id: Mapped[Id]
    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"), index=True)
    secret: Mapped[Sealed]
    upstream_key_id: Mapped[str | None]  # the list's `api_key_id`, once learned
    bad_until: Mapped[datetime | None]  # the upstream refused it (401): not used until then, if there is another
    bad_reason: Mapped[str | None]
    retired_at: Mapped[datetime | None]  # by `account key retire`: never used again
    created_at: Mapped[datetime] = mapped_column(server_default=text("now()"))


class AccountKeyModel(Base):
    """A model that a key may not call (`Model.AccessDenied`), until tried again. Written by submit."""

    __tablename__ = "account_key_models"

    account_key_id: Mapped[UUID] = mapped_column(ForeignKey("account_keys.id", ondelete="CASCADE"), primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    bad_until: Mapped[datetime]
    reason: Mapped[str]


class AccountModel(Base):
    """The limits and the pace of one model on one main account in one region.

    Its row lock is where room is counted: whoever marks a task `submitting` holds it. Limits come from the catalogue
    when the row is made, later from `account limit`.
    """

    __tablename__ = "account_models"
    __table_args__ = (
        CheckConstraint("rps > 0 AND running > 0 AND buffer >= 0", name="limits_positive"),
        # updated with every create: keep its page to itself
        {"postgresql_with": {"fillfactor": "50"}},
    )

    main_account: Mapped[str] = mapped_column(primary_key=True)
    region: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    rps: Mapped[Decimal]  # creates a second
    running: Mapped[int]  # tasks the upstream works on at once
    buffer: Mapped[int]  # tasks kept waiting upstream beyond that, so that its slots never idle
    next_submit_at: Mapped[datetime | None]  # the pace: the next create leaves no earlier; moved by accept and dispatch
    paused_until: Mapped[datetime | None]  # after a lost answer 5 s, after a 429 longer: no room until then
    backoff: Mapped[int] = mapped_column(server_default="0")  # refusals (429) in a row; the pause after each is longer
    # the pace after a refusal or a loss, from when it grows again by itself (room.pace_now); written with each of them
    slowed_to: Mapped[Decimal | None]
    slowed_at: Mapped[datetime | None]
    turn: Mapped[float] = mapped_column(server_default="0")  # virtual time of the queue: where a team that comes begins
    learned_seconds: Mapped[float | None]  # a moving average from receipt to finish; written with each success
