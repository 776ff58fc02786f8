"""The tables `queue_turns` and `queue_positions`: whose turn it is at a model, and who stands where. No truth: both may
be emptied at any time, and are rebuilt by dispatch and by the chore `positions`."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, Integer, Uuid
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base


class QueueTurn(Base):
    """How far a team has been served at a model, in the queue's virtual time: 1 / weight with each send.

    Written by dispatch under the model's lock. A team without a row begins at `account_models.turn`.
    """

    __tablename__ = "queue_turns"
    __table_args__ = ({"postgresql_with": {"fillfactor": "50"}},)

    main_account: Mapped[str] = mapped_column(primary_key=True)
    region: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    team_id: Mapped[UUID] = mapped_column(ForeignKey("teams.id", ondelete="CASCADE"), primary_key=True)
    served: Mapped[float]


class QueuePosition(Base):
    """A team's queue at a model as it stood a few seconds ago: some of its tasks, and how many go before each.

    Written by the chore `positions`; read, and never counted, when a queued task is looked at.
    """

    __tablename__ = "queue_positions"

    main_account: Mapped[str] = mapped_column(primary_key=True)
    region: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    team_id: Mapped[UUID] = mapped_column(ForeignKey("teams.id", ondelete="CASCADE"), primary_key=True)
    ids: Mapped[list[UUID]] = mapped_column(ARRAY(Uuid))  # ascending: the oldest tasks each, then every tenth, …
    places: Mapped[list[int]] = mapped_column(ARRAY(Integer))  # of these, from 1
    seconds_each: Mapped[float]  # how long one place takes, by what the model was seen to do
    taken_at: Mapped[datetime]
