"""The books of a gateway, kept by nobody's word but the simulator's truth and the database's rows.

Own SQL, own parsing; imports nothing of what it checks. Books that were tampered with must bring a complaint.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from tests.processes import RemoteSimulator

UNKNOWN = "Dashgate.OutcomeUnknown"


@dataclass
class Books:
    """Everything that can be known at the end, from outside: rows, the simulator's truth, files, what clients heard.

    Each create carries a nonce of its own, as its prompt and as its tag.
    """

    accepted: dict[str, str]  # task id by nonce, of every create that was answered with 2xx
    tasks: list[dict[str, Any]]
    ledger: list[dict[str, Any]]
    events: list[dict[str, Any]]
    assets: list[dict[str, Any]]
    orphans: list[dict[str, Any]]
    work: list[dict[str, Any]]
    upstream: list[dict[str, Any]]
    objects: dict[str, str]  # SHA-256 by key

    def complaints(self) -> list[str]:
        """Say what is wrong, in a sentence each; nothing is the only good answer."""
        made = {task["id"]: task for task in self.upstream}
        found = [*self._lost(), *self._sent_twice(), *self._left_over()]
        for task in self.tasks:
            found += [f"task {task['id']} ({task['state']} {task['code']}): {what}" for what in self._of(task, made)]
        stored = {asset["object_key"] for asset in self.assets if asset["state"] == "stored"}
        found += [f"object {key} belongs to nothing" for key in self.objects.keys() - stored]
        return found

    def _lost(self) -> list[str]:
        known = {str(task["id"]): task["tag"] for task in self.tasks}
        wrong = [
            f"{nonce} was accepted as {task_id}, which is no row of it"
            for nonce, task_id in self.accepted.items()
            if known.get(task_id) != nonce
        ]
        nonces = {task["tag"] for task in self.tasks}
        return wrong + [
            f"upstream made {task['id']} of no row" for task in self.upstream if task["prompt"] not in nonces
        ]

    def _sent_twice(self) -> list[str]:
        prompts = Counter(task["prompt"] for task in self.upstream)
        return [f"{nonce} was submitted {count} times" for nonce, count in prompts.items() if count > 1]

    def _left_over(self) -> list[str]:
        left = [f"{row['kind']} work {row['key']} is left over" for row in self.work]
        return left + [f"upstream task {row['upstream_task_id']} is an orphan" for row in self.orphans]

    def _of(self, task: dict[str, Any], made: dict[str, dict[str, Any]]) -> list[str]:
        if task["state"] not in ("succeeded", "failed", "canceled", "expired"):
            return ["has not ended"]
        truth = made.get(task["upstream_task_id"])
        events = [row["type"] for row in self.events if row["task_id"] == task["id"]]
        told = [f"task.{task['state']}"] if not task["refused_inline"] else []
        wrong = [] if events == told else [f"was told as {events}"]
        if task["upstream_task_id"] and (truth is None or truth["prompt"] != task["tag"]):
            wrong.append("has the upstream task of another")
        if task["code"] == UNKNOWN and task["upstream_task_id"]:
            wrong.append("is called unknown and is known")
        return wrong + self._bill_of(task, truth) + self._files_of(task, truth)

    def _bill_of(self, task: dict[str, Any], truth: dict[str, Any] | None) -> list[str]:
        lines = [(row["kind"], int(row["quantity"])) for row in self.ledger if row["task_id"] == task["id"]]
        due = [("usage", truth["billed_images"])] if truth and truth["billed_images"] else []
        if task["code"] == UNKNOWN:
            due = [("uncertain", task["most"])]
        return [] if lines == due else [f"is billed {lines} instead of {due}"]

    def _files_of(self, task: dict[str, Any], truth: dict[str, Any] | None) -> list[str]:
        assets = sorted((row for row in self.assets if row["task_id"] == task["id"]), key=lambda row: row["position"])
        images = [image["sha256"] for image in truth["images"]] if truth else []
        stored = [self.objects.get(row["object_key"] or "") for row in assets]
        known = [row["sha256"] for row in assets]
        return [] if stored == images == known else [f"stored {stored}, noted {known}, made {images}"]


async def open_books(database_url: str, sim: RemoteSimulator, folder: Path, accepted: dict[str, str]) -> Books:
    """Read everything: tables by our own SQL, the truth from the control port, files from where they lie."""
    connection = await asyncpg.connect(database_url)
    try:
        rows = {name: [dict(row) for row in await connection.fetch(query)] for name, query in QUERIES.items()}
    finally:
        await connection.close()
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".part")]
    objects = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return Books(accepted=accepted, upstream=await sim.tasks(), objects=objects, **rows)


QUERIES = {
    "tasks": "SELECT id, state, code, tag, most, attempt, upstream_task_id, refused_inline FROM tasks",
    "ledger": "SELECT task_id, kind, quantity FROM ledger_entries",
    "events": "SELECT task_id, type FROM webhook_events",
    "assets": "SELECT task_id, position, state, sha256, object_key FROM assets",
    "orphans": "SELECT upstream_task_id FROM upstream_orphans",
    "work": "SELECT kind, key FROM work WHERE kind IN ('submit', 'deliver')",
}


def good_books() -> Books:
    """Books of two tasks: one succeeded with an image, one of unknown outcome."""
    made = {"id": 1, "state": "succeeded", "code": None, "tag": "a", "upstream_task_id": "u1"}
    unknown = {"id": 2, "state": "failed", "code": UNKNOWN, "tag": "b", "upstream_task_id": None}
    return Books(
        accepted={"a": "1"},
        tasks=[{**task, "most": 1, "attempt": 1, "refused_inline": False} for task in (made, unknown)],
        ledger=[
            {"task_id": 1, "kind": "usage", "quantity": 1},
            {"task_id": 2, "kind": "uncertain", "quantity": 1},
        ],
        events=[{"task_id": 1, "type": "task.succeeded"}, {"task_id": 2, "type": "task.failed"}],
        assets=[{"task_id": 1, "position": 0, "state": "stored", "sha256": "x", "object_key": "k"}],
        orphans=[],
        work=[],
        upstream=[
            {"id": "u1", "prompt": "a", "billed_images": 1, "images": [{"sha256": "x"}]},
            {"id": "u2", "prompt": "b", "billed_images": 1, "images": [{"sha256": "y"}]},
        ],
        objects={"k": "x"},
    )


TAMPERINGS: dict[str, Callable[[Books], object]] = {
    "a lost task": lambda books: books.tasks.pop(0),
    "an answer with another's id": lambda books: books.accepted.update(a="2"),
    "a task sent twice": lambda books: books.upstream.append({**books.upstream[1], "id": "u3"}),
    "a task that hangs": lambda books: books.tasks[0].update(state="running"),
    "an upstream task of no row": lambda books: books.upstream.append({**books.upstream[1], "id": "u3", "prompt": "c"}),
    "another's upstream task": lambda books: books.tasks[0].update(upstream_task_id="u2"),
    "no bill": lambda books: books.ledger.pop(0),
    "two bills": lambda books: books.ledger.append(books.ledger[0]),
    "a wrong quantity": lambda books: books.ledger[0].update(quantity=2),
    "no word of doubt": lambda books: books.ledger.pop(),
    "told twice": lambda books: books.events.append(books.events[0]),
    "told to nobody": lambda books: books.events.pop(),
    "other bytes": lambda books: books.objects.update(k="z"),
    "no bytes": lambda books: books.objects.clear(),
    "bytes of nothing": lambda books: books.objects.update(k2="x"),
    "work left over": lambda books: books.work.append({"kind": "submit", "key": "1"}),
    "an orphan": lambda books: books.orphans.append({"upstream_task_id": "u2"}),
}
