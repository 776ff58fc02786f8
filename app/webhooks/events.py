"""Events for the team, written in the transaction of the fact they tell (the outbox)."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from app.lib.db import AnySession
from app.lib.ids import new_id
from app.webhooks import store


async def tell_end(session: AnySession, task: Mapping[str, Any], *, at: datetime) -> None:
    """Record that a task ended: ids, state and code; no prompt, no link."""
    payload = {
        "task_id": str(task["id"]),
        "state": task["state"],
        "model": task["model"],
        "region": task["region"],
        "code": task["code"],
        "tag": task["tag"],
        "finished_at": at.isoformat(),
    }
    values = {
        "id": new_id(),
        "team_id": task["team_id"],
        "task_id": task["id"],
        "type": f"task.{task['state']}",
        "payload": json.dumps(payload),
    }
    await store.insert_event(session, values)
