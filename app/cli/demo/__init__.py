"""`dashgate demo`: the whole gateway in one process, and one request through it by the vendor's own SDK. Nothing faked.

What stands in for others: the simulator for DashScope (unless a real key is given), an embedded Postgres for yours.
`stage` sets everything up, `journey` sends the request and proves the files, `story` tells it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli import console
from app.cli.troubles import clean_errors, load_settings

if TYPE_CHECKING:
    from app.cli.demo.journey import Journey
    from app.cli.demo.stage import Stage
    from app.cli.demo.story import Story
    from app.settings import Settings

# Below the state directory: a demo keeps apart from what is run in earnest, and one of the real upstream from others.
HOME, REAL_HOME = "demo", "demo-upstream"
LOG = "demo.log"


def demo(
    once: Annotated[bool, typer.Option("--once", help="End after the journey: 0 if all went well, else 1.")] = False,
    as_json: console.AsJson = False,
) -> None:
    """Send one image request through the whole gateway, show each state as it passes, then keep serving."""
    with clean_errors(as_json=as_json):
        import uvloop

        from app.cli.demo.story import Story
        from app.cli.embedding import own_database, with_secrets

        settings = _settings()
        settings.state_dir.mkdir(parents=True, exist_ok=True)
        with (settings.state_dir / LOG).open("w", encoding="utf-8", buffering=1) as log:
            console.log_to(log, settings.log_level)
            # Once more, because what went wrong may have to go to the log while that is open.
            with clean_errors(as_json=as_json), own_database(with_secrets(settings), lasting=True) as usable:
                is_whole = uvloop.run(_live(usable, Story(as_json=as_json), once=once))
    if not is_whole:
        raise typer.Exit(1)


def _settings() -> Settings:
    """Return the settings of a demo: a Postgres of its own unless one is given, and no Redis."""
    settings = load_settings()
    home = settings.state_dir / (HOME if settings.demo_account_key is None else REAL_HOME)
    return settings.model_copy(update={"embedded": True, "redis_url": None, "state_dir": home.resolve()})


async def _live(settings: Settings, story: Story, *, once: bool) -> bool:
    """Run gateway, worker and journey side by side; return whether the journey went well.

    Raises:
        CommandRefused: it was stopped before the journey's end.
    """
    from app.cli.demo.journey import travel
    from app.cli.demo.stage import open_stage
    from app.errors import CommandRefused
    from app.main import serve
    from app.worker import run_worker

    stop = console.stop_on_signals()
    async with open_stage(settings) as stage:
        story.begin(stage)
        async with asyncio.TaskGroup() as group:
            group.create_task(serve(stage.res, teams=stage.address, operators=None, stop=stop))
            group.create_task(run_worker(stage.res, stop=stop))
            try:
                journey = await _unless(stop, travel(stage, story))
                await _tell(stage, journey, story=story, stop=None if once else stop)
            finally:
                stop.set()
    if journey is None:
        raise CommandRefused("The demo was stopped before its journey ended.")
    return journey.trouble is None


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, Journey]) -> Journey | None:
    """Do the work; None when the stop came first."""
    working, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        stopped.cancel()


async def _tell(stage: Stage, journey: Journey | None, *, story: Story, stop: asyncio.Event | None) -> None:
    """Tell how it ended, and keep serving where somebody will stop us."""
    if journey is None:
        return
    story.end(stage, journey, is_last=stop is None)
    if stop is not None:
        await stop.wait()
