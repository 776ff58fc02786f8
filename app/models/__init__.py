"""Every table, constraint and index, one file per noun. Knows no query: those live in each room's `store.py`.

Import this package, not its modules, so that `Base.metadata` is whole.
"""

from app.models.accounts import Account, AccountKey, AccountKeyModel, AccountModel
from app.models.assets import Asset
from app.models.base import Base
from app.models.destinations import Destination, Place
from app.models.doubts import Doubt
from app.models.idempotency import IdempotencyKey
from app.models.installation import Installation
from app.models.ledger import LedgerEntry, UsageDaily
from app.models.queues import QueuePosition, QueueTurn
from app.models.tasks import Task, TaskBody, TaskEvent, UpstreamOrphan
from app.models.teams import ApiKey, Team
from app.models.uploads import Upload
from app.models.webhooks import WebhookEvent
from app.models.work import Work

__all__ = [
    "Account",
    "AccountKey",
    "AccountKeyModel",
    "AccountModel",
    "ApiKey",
    "Asset",
    "Base",
    "Destination",
    "Doubt",
    "IdempotencyKey",
    "Installation",
    "LedgerEntry",
    "Place",
    "QueuePosition",
    "QueueTurn",
    "Task",
    "TaskBody",
    "TaskEvent",
    "Team",
    "Upload",
    "UpstreamOrphan",
    "UsageDaily",
    "WebhookEvent",
    "Work",
]
