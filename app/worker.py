"""The worker process: the list of loops, how they start and how they stop."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
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
COPIES_AT_ONCE = 6  # each in a loop of its own: one slow bucket holds up one of them


@dataclass(frozen=True, slots=True)
class LoopPlan:
    """A step, and how long to wait when it had nothing to do and nobody woke it. `kind` is what wakes it."""

    kind: str
    step: Callable[[], Awaitable[int]]
    idle_seconds: float


@dataclass(frozen=True, slots=True)
class WakeAll:
    """The wake-ups of all loops of one kind, as one."""

    events: Sequence[asyncio.Event]

    def set(self) -> None:
        """Wake them."""
        for event in self.events:
            event.set()


def loops(res: Resources, watches: Watches) -> Mapping[str, LoopPlan]:
    """Return every loop of a worker by name: its table of contents."""
    return {
        "dispatch": LoopPlan("submit", lambda: dispatch_due(res), 0.5),
        "rescue": LoopPlan("chore", lambda: rescue_due(res), 2.0),
        "poll": LoopPlan("account", lambda: poll_due(res, watches=watches), 0.25),
        "chores": LoopPlan("chore", lambda: chore_due(res), 1.0),
        **{f"deliver-{n}": LoopPlan("deliver", lambda: deliver_due(res, limit=1), 1.0) for n in range(COPIES_AT_ONCE)},
    }


async def run_worker(res: Resources, *, stop: asyncio.Event) -> None:
    """Run all loops until `stop`; then finish what is under way or leave it to its leases.

    Steps have 30 s; calls on the wire go on to their own time limit, since cutting one off would leave a doubt.

    Raises:
        RuntimeError: a loop ended by itself; a worker that limps is worse than one that is started again.
    """
    watches = Watches()
    await ensure_chores(res)
    plans = loops(res, watches)
    wakes = {name: asyncio.Event() for name in plans}
    kinds = {plan.kind for plan in plans.values()} - {"chore"}
    by_kind = {kind: WakeAll([wakes[name] for name, plan in plans.items() if plan.kind == kind]) for kind in kinds}
    running = [
        asyncio.create_task(
            run_loop(name, plan.step, idle_seconds=plan.idle_seconds, wake=wakes[name], stop=stop), name=name
        )
        for name, plan in plans.items()
    ]
    running.append(asyncio.create_task(res.signals.listen(by_kind, stop=stop), name="signals"))
    log.info("worker.started", loops=list(plans))
    lost = await _until_stopped(running, stop)
    _, late = await asyncio.wait(running, timeout=STOP_SECONDS)
    for task in late:
        log.warning("worker.cut_off", loop=task.get_name())
        task.cancel()
    await release(res, watches=watches)  # others go on with the accounts while synchronous calls end here
    await res.calls.drain(res.settings.drain_seconds)
    log.info("worker.stopped")
    if lost:
        raise RuntimeError(f"loops ended by themselves: {', '.join(lost)}")


async def _until_stopped(running: Sequence[asyncio.Task[None]], stop: asyncio.Event) -> list[str]:
    """Wait for the stop, or for a loop that ends without it; then stop the others, and return which it was."""
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait({stopped, *running}, return_when=asyncio.FIRST_COMPLETED)
    lost = [] if stop.is_set() else [task.get_name() for task in running if task.done()]
    for name in lost:
        log.error("worker.loop_lost", loop=name)
    stop.set()
    stopped.cancel()
    return lost
