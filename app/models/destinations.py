"""The tables `destinations` and `places`: where a team's files go."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, text
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Id, Sealed, one_of


class PlaceKind(StrEnum):
    FILE = "file"
    S3 = "s3"


class LinkMode(StrEnum):
    """What a team sees in place of the upstream's link: ours, or the storage's own presigned one."""

    GATEWAY = "gateway"
    PRESIGNED = "presigned"


class Place(Base):
    """A versioned location, never changed: `destination set` adds one, tasks keep the one they were accepted with."""

    __tablename__ = "places"
    __table_args__ = (
        CheckConstraint(one_of("kind", PlaceKind), name="kind_known"),
        CheckConstraint(one_of("links", LinkMode), name="links_known"),
        CheckConstraint("kind = 'file' OR bucket IS NOT NULL", name="s3_has_bucket"),
    )

    id: Mapped[Id]
    team_id: Mapped[UUID] = mapped_column(ForeignKey("teams.id"), index=True)
    kind: Mapped[str]
    endpoint: Mapped[str | None]  # null: the vendor's own for the region
    region: Mapped[str | None]
    bucket: Mapped[str | None]
    prefix: Mapped[str]  # key prefix in the bucket; for a folder its absolute path
    links: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=text("now()"))


class Destination(Base):
    """A team's present place, with the credentials for all its places: those are always the newest."""

    __tablename__ = "destinations"

    team_id: Mapped[UUID] = mapped_column(ForeignKey("teams.id"), primary_key=True)
    place_id: Mapped[UUID] = mapped_column(ForeignKey("places.id"))
    credentials: Mapped[Sealed | None]  # write-only: no command and no route shows them
    updated_at: Mapped[datetime] = mapped_column(server_default=text("now()"))
