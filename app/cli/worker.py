"""`dashgate worker`: the process that sends, polls and delivers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from app.cli.console import AsJson, Report, run_lasting, show, stop_on_signals

if TYPE_CHECKING:
    from app.resources import Resources


def worker(as_json: AsJson = False) -> None:
    """Run the worker's loops. SIGTERM and Ctrl-C end it: steps have 30 s, creates on the wire their own time limit.

    With DASHGATE_WORKER_LISTEN it answers /livez, and to the operators' token /readyz and /metrics.
    """
    run_lasting(lambda res: _work(res, as_json=as_json), as_json=as_json)


async def _work(res: Resources, *, as_json: bool) -> None:
    from app.tasks.poll import Watches
    from app.worker import loops, run_worker

    stop: asyncio.Event = stop_on_signals()
    if as_json:
        show(Report({"loops": list(loops(res, Watches()))}), as_json=True)
    async with asyncio.TaskGroup() as group:
        group.create_task(run_worker(res, stop=stop))
        if res.settings.worker_listen is not None:
            from app.main import serve

            group.create_task(serve(res, teams=None, operators=res.settings.worker_listen, stop=stop))
