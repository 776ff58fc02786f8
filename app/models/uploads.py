"""The table `uploads`: whose a temporary upload is. The upstream lets every key of an account read every upload."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Id, Sealed


class Upload(Base):
    """One upload policy of the upstream and the folder it opens (dashscope-api.md 7.1). Written by delivery/uploads.

    An `oss://` input is looked up by its folder: it pins the account, and must be the caller's own.
    """

    __tablename__ = "uploads"
    __table_args__ = (
        Index("uq_uploads_folder", "folder", unique=True),
        Index("ix_uploads_expires_at", "expires_at"),
    )

    id: Mapped[Id]
    team_id: Mapped[UUID] = mapped_column(ForeignKey("teams.id"))
    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    model: Mapped[str]
    folder: Mapped[str]  # the policy's upload_dir
    policy: Mapped[Sealed]  # the upstream's policy answer, whole: its signature is a credential
    most_bytes: Mapped[int] = mapped_column(BigInteger)  # the largest file the policy takes
    policy_expires_at: Mapped[datetime]
    expires_at: Mapped[datetime]  # the upstream deletes the files then
    created_at: Mapped[datetime] = mapped_column(server_default=text("now()"))
