"""SQL of the commands themselves: what `doctor` asks the server beyond what the rooms know."""

from datetime import datetime

from sqlalchemy import func, select

from app.lib.db import Session


async def server_now(session: Session) -> datetime:
    """Read the database's clock."""
    now: datetime = (await session.execute(select(func.clock_timestamp()))).scalar_one()
    return now
