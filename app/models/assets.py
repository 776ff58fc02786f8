"""The table `assets`: one generated file of a task."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Id, Sealed, one_of


class AssetState(StrEnum):
    """`waiting`: made by tasks/outcome.py, to be copied. `stored`: copied and verified, by delivery/deliver.py.
    `held`: its host is not on the allow-list. `blocked`: the storage refuses. `given_up`: its link is dead."""

    WAITING = "waiting"
    STORED = "stored"
    HELD = "held"
    BLOCKED = "blocked"
    GIVEN_UP = "given_up"


class Asset(Base):
    """A file the upstream made. Its row appears with the outcome, before anything is copied."""

    __tablename__ = "assets"
    __table_args__ = (
        CheckConstraint(one_of("state", AssetState), name="state_known"),
        CheckConstraint(
            "(state = 'stored') = (stored_at IS NOT NULL) AND (stored_at IS NULL OR (object_key IS NOT NULL"
            " AND sha256 IS NOT NULL AND size_bytes IS NOT NULL AND content_type IS NOT NULL))",
            name="stored_is_known",
        ),
        UniqueConstraint("task_id", "position"),
        Index(
            "uq_assets_object", "place_id", "object_key", unique=True, postgresql_where=text("object_key IS NOT NULL")
        ),
    )

    id: Mapped[Id]
    task_id: Mapped[UUID] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"))
    team_id: Mapped[UUID] = mapped_column(ForeignKey("teams.id"))
    position: Mapped[int]  # its place in the answer, from 0
    json_path: Mapped[str]  # where in the answer's output its link stands, e.g. choices.0.message.content.0.image
    source: Mapped[Sealed]  # the upstream's signed link, byte for byte: a bearer secret
    source_expires_at: Mapped[datetime]
    state: Mapped[str]
    reason: Mapped[str | None]  # why it is not stored; fixed words, never an address
    place_id: Mapped[UUID | None] = mapped_column(ForeignKey("places.id"))  # pinned at accept; null: no destination
    object_key: Mapped[str | None]
    content_type: Mapped[str | None]
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    sha256: Mapped[str | None]  # hexadecimal, of the bytes as downloaded
    stored_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=text("now()"))
