"""The simulator as a process of its own, with options that its command has not: `python -m tests.benchmarks.upstream`.

Takes one JSON object: `folder`, `page_size`, `seconds` (how long tasks take), `raised` (limits that nothing meets) and
`seeded` (so many tasks made before it answers). Prints where it answers; at its end it leaves the truth in the folder:
every task, and when it received which call.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from app.cli.simulator import describe
from app.simulator import BEIJING, Simulator, SimulatorOptions, serve
from app.simulator.options import Limits
from app.simulator.tasks import Order

RAISED = Limits(creates_per_second=100_000, running_tasks=10_000_000)
TASK_CALLS = ("query", "list", "cancel")


def seed(simulator: Simulator, count: int) -> list[str]:
    """Make tasks without a call, as if they had come in earlier; return their ids."""
    world = simulator.truth
    key = next(key for key in world.options.keys if key.region == BEIJING)
    order = Order("wan2.6-image", "seeded", 64, 64, 1)
    return [world.add_task(key, order, request_id=f"seeded-{number}").id for number in range(count)]


def truth(simulator: Simulator) -> dict[str, Any]:
    """Return what this simulator made and received."""
    world = simulator.truth
    tasks = [
        {"id": task.id, "made_at": task.created_at, "began_at": task.scheduled_at, "ended_at": task.ended_at}
        for task in world.tasks
    ]
    calls = [
        {"at": entry.at, "operation": entry.operation, "status": entry.status, "task": entry.task_id}
        for entry in world.journal
        if entry.operation in TASK_CALLS
    ]
    return {"tasks": tasks, "calls": calls, "now": world.clock.now()}


async def main(told: dict[str, Any]) -> None:
    """Serve until SIGTERM."""
    folder, low, high = Path(told["folder"]), *told["seconds"]
    options = SimulatorOptions(
        max_page_size=told["page_size"],
        duration_seconds=(low, high),
        limits=RAISED if told["raised"] else Limits(),
        seed=1,
    )
    running: list[Simulator] = []

    def announce(simulator: Simulator) -> None:
        running.append(simulator)
        (folder / "seeded.json").write_text(json.dumps(seed(simulator, told.get("seeded", 0))))
        print(json.dumps(describe(simulator)), flush=True)  # noqa: T201 -- whoever started it reads this

    await serve(options, host="127.0.0.1", port=0, control_port=0, announce=announce)
    (folder / "truth.json").write_text(json.dumps(truth(running[0])))


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
