"""What all tables share: one metadata with predictable names, and the column types we use."""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated
from uuid import UUID

from sqlalchemy import DateTime, LargeBinary, MetaData, Numeric, Text, Uuid
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import DeclarativeBase, mapped_column

NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}

Id = Annotated[UUID, mapped_column(Uuid, primary_key=True)]  # UUIDv7, made by lib/ids.py
Instant = Annotated[datetime, mapped_column(DateTime(timezone=True))]
Sealed = Annotated[bytes, mapped_column(LargeBinary)]  # encrypted by lib/crypto.py, bound to row and column
Quantity = Annotated[Decimal, mapped_column(Numeric(18, 6))]
Patterns = Annotated[list[str], mapped_column(ARRAY(Text))]


class Base(DeclarativeBase):
    """The metadata that migrations are compared with."""

    metadata = MetaData(naming_convention=NAMES)
    type_annotation_map = {  # noqa: RUF012 -- SQLAlchemy's own form
        str: Text,
        bytes: LargeBinary,
        datetime: DateTime(timezone=True),
        Decimal: Numeric(18, 6),
        UUID: Uuid,
    }


def one_of(column: str, words: type[StrEnum]) -> str:
    """Return the CHECK that a column holds one of an enum's words."""
    listed = ", ".join(f"'{word}'" for word in words)
    return f"{column} IN ({listed})"
