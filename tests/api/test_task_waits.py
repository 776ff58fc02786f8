"""`?wait=SECONDS` and `/events`: told when it happens, without a database session held, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from app.api.tasks import MOST_STREAMS
from app.delivery.answers import task_answers
from app.lib.db import Database, DirectSession, Session
from app.lib.ids import new_id
from app.lib.together import Together
from app.lib.waiters import Waiters
from app.main import create_app
from app.resources import Resources
from app.tasks.poll import poll_due
from app.teams.teams import revoke_key
from tests.api.parts import without_database
from tests.steps.parts import queued, until
from tests.world import World

LONG_SECONDS = 60
QUICK_SECONDS = 5.0  # nothing here may take as long as a wait
Told = tuple[int, str, int, dict[str, Any]]


async def wait(world: World, task_id: str, seconds: object = LONG_SECONDS, team: str = "alpha") -> httpx.Response:
    return await world.http.get(f"/api/v1/tasks/{task_id}", params={"wait": str(seconds)}, headers=world.headers(team))


async def pending(world: World) -> str:
    """A task that waits upstream."""
    world.sim.set_limits(running_tasks=0)
    return await world.create()


async def waiting(world: World, count: int = 1) -> None:
    await until(lambda: len(world.res.waiters) == count)


async def finish(world: World) -> None:
    """Let everything upstream be made, and every step do its part."""
    world.sim.set_limits(running_tasks=1_000)
    for _ in range(8):
        await world.advance(5)


def without_links(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer but for what is made anew with each: its own id, and links, which change with the hour."""
    output = dict(answer["output"])
    (choice,) = output.pop("choices")
    assert choice["message"]["content"][0]["image"].startswith("http://gateway/assets/")
    return {**answer, "request_id": "", "output": {**output, "finish_reason": choice["finish_reason"]}}


# --- ?wait= --------------------------------------------------------------------------------------------------------


async def test_a_wait_is_answered_when_the_task_has_ended(world: World) -> None:
    task_id = await pending(world)
    held = asyncio.create_task(wait(world, task_id))
    await waiting(world)
    await finish(world)
    async with asyncio.timeout(QUICK_SECONDS):
        answer = await held
    assert without_links(answer.json()) == without_links(await world.read(task_id))
    assert len(world.res.waiters) == 0


async def test_a_task_that_has_ended_is_answered_at_once(world: World) -> None:
    task_id = await world.create()
    await world.finish(task_id)
    async with asyncio.timeout(QUICK_SECONDS):
        assert (await wait(world, task_id)).json()["output"]["task_status"] == "SUCCEEDED"


async def test_when_time_is_up_a_wait_says_how_things_stand(world: World) -> None:
    task_id = await pending(world)
    for seconds in ("0.05", "0", "00.1"):
        answer = await wait(world, task_id, seconds)
        assert (answer.status_code, answer.json()["output"]["task_status"]) == (200, "PENDING")


async def test_a_wait_tells_no_more_than_a_read_of_what_is_not_the_teams(world: World) -> None:
    foreign, never = await pending(world), str(new_id())
    async with asyncio.timeout(QUICK_SECONDS):
        for task_id in (foreign, never, "no-id"):
            body = (await wait(world, task_id, team="beta")).json()
            assert body["output"] == {"task_id": task_id, "task_status": "UNKNOWN"}


async def test_a_wait_never_gets_the_answer_of_a_second_ago(world: World) -> None:
    (task_id,) = await queued(world, 1)
    assert await world.status(task_id) == "PENDING"  # and cached
    held = asyncio.create_task(wait(world, task_id))
    await waiting(world)
    assert (await world.http.post(f"/api/v1/tasks/{task_id}/cancel", headers=world.headers())).status_code == 200
    assert (await held).json()["output"]["task_status"] == "CANCELED"


@pytest.mark.parametrize("seconds", ["-1", "61", "60.001", "ten", "", "nan", "1e1", "inf", "\u0661", "1 "])
async def test_a_wait_is_a_number_of_seconds_up_to_sixty(world: World, seconds: str) -> None:
    answer = await wait(world, str(new_id()), seconds)
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidParameter")


async def test_other_parameters_of_a_read_are_ignored(world: World) -> None:
    task_id = await world.create()
    answer = await world.http.get(f"/api/v1/tasks/{task_id}?colour=red", headers=world.headers())
    assert answer.status_code == 200


async def test_a_process_that_ends_answers_every_wait_as_things_stand(world: World) -> None:
    task_id = await pending(world)
    held = [asyncio.create_task(wait(world, task_id)) for _ in range(3)]
    await waiting(world, 3)
    world.res.waiters.end_all()
    async with asyncio.timeout(QUICK_SECONDS):
        answers = await asyncio.gather(*held)
        answers.append(await wait(world, task_id))  # and those that come late
    assert [answer.json()["output"]["task_status"] for answer in answers] == ["PENDING"] * 4


async def test_a_client_that_leaves_leaves_no_waiter(world: World) -> None:
    task_id = await pending(world)
    held = asyncio.create_task(wait(world, task_id))
    await waiting(world)
    held.cancel()
    await waiting(world, 0)


class CountingDatabase(Database):
    """A database that counts how often a session of it was lent, and how many are lent now."""

    lent = 0
    lent_now = 0

    @contextlib.asynccontextmanager
    async def connect(self, *, autocommit: bool) -> AsyncIterator[Session]:
        async with super().connect(autocommit=autocommit) as session:
            with self._counted():
                yield session

    @contextlib.asynccontextmanager
    async def connect_direct(self) -> AsyncIterator[DirectSession]:
        async with super().connect_direct() as session:
            with self._counted():
                yield session

    @contextlib.contextmanager
    def _counted(self) -> Any:
        self.lent += 1
        self.lent_now += 1
        try:
            yield
        finally:
            self.lent_now -= 1


@contextlib.asynccontextmanager
async def counted(world: World) -> AsyncIterator[tuple[Resources, CountingDatabase, httpx.AsyncClient]]:
    """A second web process of the same gateway, which counts its sessions."""
    db = CountingDatabase(world.database_url, pool_size=4)
    waiters: Waiters[Any] = Waiters(world.res.signals.hear_changes)
    res = dataclasses.replace(world.res, db=db, waiters=waiters, reads=Together(most=200))
    transport = httpx.ASGITransport(app=create_app("teams", res))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=LONG_SECONDS) as http:
        yield res, db, http
    await waiters.close()
    await db.close()


async def test_two_hundred_waits_hold_no_session_and_cost_a_few_queries(world: World) -> None:
    world.sim.set_limits(running_tasks=0)
    ids = [await world.create(f"boat {n}") for n in range(10)]
    async with counted(world) as (res, db, http):
        held = [
            asyncio.create_task(http.get(f"/api/v1/tasks/{task_id}?wait={LONG_SECONDS}", headers=world.headers()))
            for task_id in ids
            for _ in range(20)
        ]
        await until(lambda: len(res.waiters) == 200)
        await until(lambda: db.lent_now == 0)
        asked_before = db.lent
        await finish(world)
        async with asyncio.timeout(QUICK_SECONDS):
            answers = await asyncio.gather(*held)
    assert {answer.json()["output"]["task_status"] for answer in answers} == {"SUCCEEDED"}
    assert asked_before <= 20
    assert db.lent - asked_before <= 60  # a look for each change of the ten, and the answers; not one per waiter
    assert db.lent_now == 0


# --- /events -------------------------------------------------------------------------------------------------------


@dataclass
class Stream:
    """A stream of events as a browser holds it open: `leave` hangs up."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    received: bytes = b""
    ended: bool = False
    _gone: asyncio.Event = field(default_factory=asyncio.Event)
    _asked: bool = False

    def leave(self) -> None:
        self._gone.set()

    async def receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.received += message["body"]
            self.ended = not message.get("more_body", False)

    def events(self) -> list[Told]:
        """The events that were told: number, kind, HTTP status, data."""
        found = []
        for block in self.received.decode().split("\n\n"):
            lines = block.split("\n")
            if lines[0].startswith("id:"):
                assert [line.partition(":")[0] for line in lines] == ["id", "event", "", "data"]
                number, kind, status, data = (line.partition(":")[2] for line in lines)
                found.append((int(number), kind, int(status.removeprefix("HTTP_STATUS/")), json.loads(data)))
        return found

    def words(self) -> list[str]:
        return [data["output"]["task_status"] for _, _, _, data in self.events()]


@contextlib.asynccontextmanager
async def stream(
    world: World, task_id: str, team: str = "alpha", res: Resources | None = None
) -> AsyncIterator[Stream]:
    """Ask for a task's events and hold the stream open while the block runs; after it, it has ended."""
    opened = Stream()
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": f"/api/v1/tasks/{task_id}/events",
        "raw_path": b"",
        "query_string": b"",
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in world.headers(team).items()],
    }
    serving = asyncio.ensure_future(create_app("teams", res or world.res)(scope, opened.receive, opened.send))  # type: ignore[arg-type]
    try:
        yield opened
    finally:
        opened.leave()
        async with asyncio.timeout(QUICK_SECONDS):
            await serving


async def test_events_tell_each_word_once_until_the_end(world: World) -> None:
    world.sim.set_durations(10, 10)
    task_id = await pending(world)
    async with stream(world, task_id) as opened:
        await until(lambda: opened.words() == ["PENDING"])
        world.sim.set_limits(running_tasks=5)
        await world.advance(1.1)
        await until(lambda: opened.words() == ["PENDING", "RUNNING"])
        await world.advance(11)
        await until(lambda: opened.ended)
    assert opened.words() == ["PENDING", "RUNNING", "SUCCEEDED"]
    assert [(number, kind, status) for number, kind, status, _ in opened.events()] == [
        (number, "result", 200) for number in (1, 2, 3)
    ]
    read = await world.read(task_id)
    last = opened.events()[-1][3]
    assert last | {"request_id": ""} == read | {"request_id": ""}
    assert {data["request_id"] for *_, data in opened.events()} == {opened.headers["x-request-id"]}
    assert opened.headers["content-type"].startswith("text/event-stream")
    assert opened.headers["cache-control"] == "no-store"
    assert (len(world.res.waiters), world.res.streams) == (0, {})


async def test_the_events_of_a_task_that_has_ended_are_one(world: World) -> None:
    task_id = await world.create("[[forbidden]]")
    await world.finish(task_id)
    async with stream(world, task_id) as opened:
        await until(lambda: opened.ended)
    assert opened.words() == ["FAILED"]


async def test_events_tell_no_more_than_a_read_of_what_is_not_the_teams(world: World) -> None:
    foreign, never = await pending(world), str(new_id())
    told = []
    for task_id in (foreign, never, "no-id"):
        async with stream(world, task_id, "beta") as opened:
            await until(lambda: opened.ended)
        ((number, kind, status, data),) = opened.events()
        assert data["output"] == {"task_id": task_id, "task_status": "UNKNOWN"}
        told.append((number, kind, status, opened.status))
    assert told == [(1, "result", 200, 200)] * 3


async def test_events_need_a_key(world: World) -> None:
    answer = await world.http.get(f"/api/v1/tasks/{new_id()}/events")
    assert (answer.status_code, answer.json()["code"]) == (401, "InvalidApiKey")


async def test_a_client_that_leaves_its_events_leaves_nothing_behind(world: World) -> None:
    task_id = await pending(world)
    async with stream(world, task_id) as opened:
        await until(lambda: opened.words() == ["PENDING"])
        await waiting(world)
        assert list(world.res.streams.values()) == [1]
        opened.leave()
        await waiting(world, 0)
        await until(lambda: world.res.streams == {})
    assert opened.words() == ["PENDING"]


async def test_a_process_that_ends_ends_its_streams_at_once(world: World) -> None:
    task_id = await pending(world)
    async with stream(world, task_id) as opened:
        await waiting(world)
        world.res.waiters.end_all()
        await until(lambda: opened.ended)
    assert opened.words() == ["PENDING"]


async def test_a_team_has_so_many_streams_and_no_more(world: World) -> None:
    task_id = await pending(world)
    async with contextlib.AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(stream(world, task_id)) for _ in range(MOST_STREAMS)]
        await waiting(world, MOST_STREAMS)
        refused = await world.http.get(f"/api/v1/tasks/{task_id}/events", headers=world.headers())
        assert (refused.status_code, refused.json()["code"]) == (429, "Throttling.RateQuota")
        assert refused.headers["x-should-retry"] == "true"
        assert int(refused.headers["retry-after"]) >= 1
        async with stream(world, task_id, "beta") as other:
            await until(lambda: other.ended)
        assert other.status == 200  # another team's are counted apart
        opened[0].leave()
        await waiting(world, MOST_STREAMS - 1)
        async with stream(world, task_id) as again:
            await until(lambda: again.words() == ["PENDING"])


async def test_a_key_that_is_revoked_meanwhile_hears_nothing_more(world: World) -> None:
    task_id = await pending(world)
    async with stream(world, task_id) as opened:
        await waiting(world)
        await revoke_key(world.res, (await world.row("SELECT api_key_id FROM tasks"))["api_key_id"])
        world.res.api_keys.clear()
        await finish(world)
        await until(lambda: opened.ended)
    assert [(number, kind, status) for number, kind, status, _ in opened.events()] == [
        (1, "result", 200),
        (2, "error", 401),
    ]
    assert opened.events()[-1][3]["code"] == "InvalidApiKey"


async def test_while_the_database_is_away_events_end_with_an_error(world: World) -> None:
    await world.status(str(new_id()))  # the key is known
    async with without_database(world) as (res, _, _), stream(world, str(new_id()), res=res) as opened:
        await until(lambda: opened.ended)
    (event,) = opened.events()
    assert event[:3] == (1, "error", 503)
    assert event[3]["code"] == "ServiceUnavailable"


async def test_where_nothing_happens_silence_is_filled(world: World) -> None:
    task_id = await pending(world)
    (row,) = await world.rows("SELECT team_id FROM tasks")
    answers = task_answers(world.res, row["team_id"], task_id, request_id="r", silence_seconds=0.01)
    async with contextlib.aclosing(answers):
        first = await anext(answers)
        assert json.loads(first or b"")["output"]["task_status"] == "PENDING"
        assert [await anext(answers) for _ in range(3)] == [None] * 3
        world.sim.set_limits(running_tasks=5)
        world.sim.advance(1.1)
        await poll_due(world.res, watches=world.watches)
        assert json.loads(await anext(answers) or b"")["output"]["task_status"] == "RUNNING"
