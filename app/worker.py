"""The worker process: the list of loops, how they start and how they stop."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog

from app.delivery.deliver import deliver_due
from app.lib.loop import run_loop
from app.resources import Resources
from app.tasks.chores import chore_due, ensure_chores
from app.tasks.dispatch import dispatch_due
from app.tasks.poll import Watches, poll_due, release
from app.tasks.rescue import rescue_due

log = structlog.get_logger()

STOP_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class LoopPlan:
    """A step, and how long to wait when it had nothing to do and nobody woke it. `kind` is what wakes it."""

    kind: str
    step: Callable[[], Awaitable[int]]
    idle_seconds: float


def loops(res: Resources, watches: Watches) -> Mapping[str, LoopPlan]:
    """Return every loop of a worker by name: its table of contents."""
    return {
        "dispatch": LoopPlan("submit", lambda: dispatch_due(res), 0.5),
        "rescue": LoopPlan("chore", lambda: rescue_due(res), 2.0),
        "poll": LoopPlan("account", lambda: poll_due(res, watches=watches), 0.25),
        "deliver": LoopPlan("deliver", lambda: deliver_due(res), 0.5),
        "chores": LoopPlan("chore", lambda: chore_due(res), 1.0),
    }


async def run_worker(res: Resources, *, stop: asyncio.Event) -> None:
    """Run all loops until `stop`; then finish what is under way or leave it to its leases, within 30 s."""
    watches: Watches = {}
    await ensure_chores(res)
    plans = loops(res, watches)
    wakes = {name: asyncio.Event() for name in plans}
    by_kind = {plan.kind: wakes[name] for name, plan in plans.items() if plan.kind != "chore"}
    running = [
        asyncio.create_task(
            run_loop(name, plan.step, idle_seconds=plan.idle_seconds, wake=wakes[name], stop=stop), name=name
        )
        for name, plan in plans.items()
    ]
    running.append(asyncio.create_task(res.signals.listen(by_kind, stop), name="signals"))
    log.info("worker.started", loops=list(plans))
    await stop.wait()
    _, late = await asyncio.wait(running, timeout=STOP_SECONDS)
    for task in late:
        log.warning("worker.cut_off", loop=task.get_name())
        task.cancel()
    await res.calls.drain(res.settings.call_timeout_seconds)
    await release(res, watches=watches)
    log.info("worker.stopped")
