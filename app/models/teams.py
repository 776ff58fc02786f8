"""The tables `teams` and `api_keys`: who calls, and with what."""

from datetime import datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, text
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Id, Patterns


class Team(Base):
    """Who calls and pays. Written by the operator's commands only."""

    __tablename__ = "teams"
    __table_args__ = (
        CheckConstraint("slug ~ '^[a-z0-9][a-z0-9-]{0,62}$'", name="slug_form"),
        CheckConstraint("rps > 0", name="rps_positive"),
        CheckConstraint("weight > 0", name="weight_positive"),
        CheckConstraint("max_queued > 0 AND queue_deadline_seconds > 0", name="caps_positive"),
        CheckConstraint("cardinality(regions) > 0 AND default_region = ANY (regions)", name="default_region_allowed"),
    )

    id: Mapped[Id]
    slug: Mapped[str] = mapped_column(unique=True)
    regions: Mapped[Patterns]  # where its calls may go, in order of preference
    default_region: Mapped[str]
    models: Mapped[Patterns] = mapped_column(server_default=text("'{*}'"))  # patterns it may call
    durable: Mapped[bool] = mapped_column(server_default=text("true"))  # sync calls run as tasks where possible
    hold: Mapped[bool] = mapped_column(server_default=text("false"))  # queue while every account is at fault, or 503
    allow_unlisted_models: Mapped[bool] = mapped_column(server_default=text("false"))
    rps: Mapped[Decimal | None]  # creates and sync calls a second; null: no limit of its own
    weight: Mapped[int] = mapped_column(server_default="1")  # its share of the sends while several teams wait
    max_queued: Mapped[int | None]  # the most of its tasks that may wait; null: no cap
    queue_deadline_seconds: Mapped[int | None]  # how long a task of its may wait; null: the setting decides
    resubmit: Mapped[bool] = mapped_column(server_default=text("false"))  # a task proven absent upstream is sent again
    created_at: Mapped[datetime] = mapped_column(server_default=text("now()"))


class ApiKey(Base):
    """A team's secret for us. Only an HMAC of it is stored; it was shown once."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)  # the 8 characters in the key itself
    team_id: Mapped[UUID] = mapped_column(ForeignKey("teams.id"), index=True)
    name: Mapped[str] = mapped_column(server_default="")
    secret_mac: Mapped[bytes]
    models: Mapped[Patterns] = mapped_column(server_default=text("'{*}'"))  # narrower than the team's, never wider
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]  # set once by `key revoke`; every process obeys within five seconds
    created_at: Mapped[datetime] = mapped_column(server_default=text("now()"))
