"""The table `installation`: a few facts about this installation as a whole."""

from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base


class Installation(Base):
    """Facts by name. `secret_key_fingerprint`: a process with another key refuses to start."""

    __tablename__ = "installation"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]
