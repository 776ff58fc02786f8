"""tasks/resend.py, tasks/leaving.py: the same request once more, by its key or because it was never answered."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.delivery.inputs import fill_inputs
from app.lib.db import Database
from app.main import create_app
from app.resources import Resources, open_resources
from app.tasks.rescue import mark_unanswered, rescue_due
from app.tasks.resend import forget_keys
from app.tasks.waiting import say_still_waiting
from app.teams.teams import issue_key
from tests.api.calling import FickleDatabase, Line, call, create, ledger, relay_order, served
from tests.api.parts import scripted_upstream
from tests.doors import CommitDoor
from tests.steps.parts import DAY, let_go, locked, until, until_blocked
from tests.world import CREATE_PATH, SimulatorTime, World

KEY = {"Idempotency-Key": "order-7"}
ASYNC = {"X-DashScope-Async": "enable"}
WEEK = 7 * DAY
MINUTES = 60


def id_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.headers["X-Dashgate-Task-Id"])


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


async def rows(world: World) -> list[dict[str, Any]]:
    """All tasks, the oldest first."""
    return await world.rows("SELECT * FROM tasks ORDER BY created_at, id")


def submissions(world: World) -> int:
    """How often anything was asked of the upstream that it would make."""
    return len([entry for entry in world.sim.truth.journal.read() if entry.operation in ("create", "sync")])


def time_is_up(world: World) -> None:
    """Let everybody who waits for a row have waited long enough."""
    for waiter in [one for waiters in world.res.waiters._waiting.values() for one in waiters]:
        waiter.leave()


# --- by its key ----------------------------------------------------------------------------------------------------


async def test_the_same_create_with_the_same_key_is_the_same_task(world: World) -> None:
    first, second = [await world.post(world.order(), **KEY) for _ in range(2)]
    assert id_of(first) == id_of(second)
    assert first.json()["output"] == second.json()["output"]
    assert (submissions(world), len(await rows(world))) == (1, 1)


async def test_a_hundred_at_once_with_one_key_are_one_task(world: World) -> None:
    answers = await asyncio.gather(*(world.post(world.order(), **KEY) for _ in range(100)))
    assert len({id_of(answer) for answer in answers}) == 1
    assert (submissions(world), len(await rows(world))) == (1, 1)


@pytest.mark.parametrize("order", ["durable", "relay"])
async def test_many_calls_at_once_with_one_key_have_one_answer(world: World, order: str) -> None:
    body = world.order() if order == "durable" else relay_order()
    lines = [Line(world, body, **KEY) for _ in range(20)]
    await until(lambda: submissions(world) == 1)
    await until(lambda: len(world.res.waiters) >= 19)
    first = await served(world, lines[0])
    await world.drain()
    answers = [await line.answer() for line in lines]
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.headers["X-Dashgate-Task-Id"] for answer in answers} == {first.headers["X-Dashgate-Task-Id"]}
    usages = {json.dumps(answer.json()["usage"]) for answer in answers}
    assert (len(usages), submissions(world)) == (1, 1)


async def test_a_key_is_the_teams_own(world: World) -> None:
    mine, theirs = [await world.post(world.order(), team, **KEY) for team in ("alpha", "beta")]
    assert id_of(mine) != id_of(theirs)
    assert submissions(world) == 2


async def test_another_api_key_of_the_team_may_repeat_a_call(world: World) -> None:
    first = await world.post(world.order(), **KEY)
    _, world.keys["alpha"] = await issue_key(world.res, "alpha")
    assert id_of(await world.post(world.order(), **KEY)) == id_of(first)


async def test_a_key_used_for_another_request_is_refused(world: World) -> None:
    await world.post(world.order(), **KEY)
    others = [
        await world.post(world.order("another boat"), **KEY),
        await Line(world, world.order(), **KEY, **ASYNC).answer(),  # at the other path
        await Line(world, world.order(), path=CREATE_PATH, **KEY).answer(),
        await Line(world, world.order(), path=CREATE_PATH, **{**KEY, "X-DashScope-SSE": "enable"}).answer(),
    ]
    assert {refusal(answer) for answer in others} == {(422, "IdempotencyKeyReused")}
    assert {answer.headers["x-should-retry"] for answer in others} == {"false"}
    assert (submissions(world), len(await rows(world))) == (1, 1)


@pytest.mark.parametrize("key", ["", "two words", "k" * 256, "\u00fcber".encode(), "a\tb"])
async def test_a_key_of_another_form_is_refused(world: World, key: Any) -> None:
    sent = {**world.headers(), "X-DashScope-Async": "enable", "Idempotency-Key": key}
    answer = await world.http.post(CREATE_PATH, json=world.order(), headers=sent)
    assert refusal(answer) == (400, "InvalidParameter")


async def test_two_keys_are_refused(world: World) -> None:
    sent = [*world.headers().items(), ("X-DashScope-Async", "enable"), *(("Idempotency-Key", key) for key in "ab")]
    answer = await world.http.post(CREATE_PATH, json=world.order(), headers=sent)
    assert refusal(answer) == (400, "InvalidParameter")
    assert await rows(world) == []


async def test_a_twin_waits_as_long_as_the_first_until_the_upstream_has_spoken(world: World) -> None:
    world.sim.fail_next("create", "hang", seconds=60)
    first = await create(world, **KEY)
    await until(lambda: len(world.sim.truth.tasks) == 1)
    twin = await create(world, **KEY)
    await until(lambda: len(world.res.waiters) == 1)
    assert not twin.is_answered
    let_go(world)
    assert id_of(await first.answer()) == id_of(await twin.answer())
    assert submissions(world) == 1


async def test_a_twin_is_its_task_even_when_nobody_can_look_what_became_of_it(world: World) -> None:
    db = FickleDatabase(world.database_url)
    world.sim.fail_next("create", "hang", seconds=60)
    first = await create(world, **KEY)
    await until(lambda: len(world.sim.truth.tasks) == 1)
    twin = Line(world, world.order(), path=CREATE_PATH, res=dataclasses.replace(world.res, db=db), **ASYNC, **KEY)
    await until(lambda: len(world.res.waiters) == 1)
    db.is_away = True
    time_is_up(world)
    let_go(world)
    assert id_of(await twin.answer()) == id_of(await first.answer())
    await db.close()


@pytest.mark.parametrize("when", ["at once", "later"])
async def test_the_twin_of_a_refused_create_is_refused_alike(world: World, when: str) -> None:
    verdict = b'{"code":"InvalidParameter","message":"n \xe4\xb8\xad","request_id":"r-1" }'
    async with scripted_upstream(world) as upstream:
        upstream.create = (422, verdict)
        upstream.hold()
        first = await create(world, **KEY)
        await upstream.arrived.wait()
        if when == "at once":
            twin = await create(world, **KEY)
            await until(lambda: len(world.res.waiters) == 1)
        upstream.let_go()
        answers = [await first.answer()]
        twin = twin if when == "at once" else await create(world, **KEY)
        answers.append(await twin.answer())
        assert len(upstream.received) == 1
    assert [(answer.status_code, answer.content) for answer in answers] == [(422, verdict)] * 2
    assert [answer.headers["x-should-retry"] for answer in answers] == ["false", "false"]


@pytest.mark.parametrize("order", ["create", "durable", "relay"])
async def test_after_a_fault_of_our_account_the_key_is_free_again(world: World, order: str) -> None:
    async def ask() -> Line:
        if order == "create":
            return await create(world, **KEY)
        return Line(world, relay_order() if order == "relay" else world.order(), **KEY)

    operation = "sync" if order == "relay" else "create"
    world.sim.fail_next(operation, "error", status=400, code="Arrearage", message="no money")
    assert refusal(await (await ask()).answer()) == (503, "Dashgate.UpstreamAccount")
    assert refusal(await (await ask()).answer()) == (503, "Dashgate.UpstreamAccount")  # nobody is asked now
    world.sim.advance(61)
    line = await ask()
    await until(lambda: submissions(world) == 2)
    answer = await served(world, line)
    assert answer.status_code == 200
    assert answer.headers["X-Dashgate-Task-Id"] != str((await rows(world))[0]["id"])


async def test_after_a_commit_that_broke_off_the_key_is_free_again(world: World) -> None:
    async with CommitDoor(world.database_url) as door:
        res = dataclasses.replace(world.res, db=Database(door.url))
        door.arm("INSERT INTO tasks", "after", door.shut)
        line = Line(world, world.order(), path=CREATE_PATH, res=res, **KEY, **ASYNC)
        assert refusal(await line.answer()) == (503, "ServiceUnavailable")
        door.open()
        await res.calls.drain(10)
        (withdrawn,) = await rows(world)
        assert (withdrawn["state"], withdrawn["refused_inline"]) == ("failed", True)
        await res.db.close()
    assert id_of(await world.post(world.order(), **KEY)) != str(withdrawn["id"])
    assert submissions(world) == 1


async def test_a_key_stands_for_its_task_for_a_week_and_then_for_another(world: World) -> None:
    first = id_of(await world.post(world.order(), **KEY))
    world.sim.advance(WEEK - 1)
    assert await forget_keys(world.res) == 0
    assert id_of(await world.post(world.order(), **KEY)) == first
    world.sim.advance(2)
    assert id_of(await world.post(world.order("another request"), **KEY)) != first
    world.sim.advance(WEEK + 1)
    assert await forget_keys(world.res) == 1
    assert await world.rows("SELECT 1 FROM idempotency_keys") == []


async def test_a_key_without_room_for_its_relay_stands_for_nothing(world: World) -> None:
    world.sim.fail_next("sync", "429")
    line = Line(world, relay_order(), **KEY)
    await until(lambda: len(world.res.lines) == 1)  # its first try is over, its second stands in line
    twin = Line(world, relay_order(), **KEY)
    await until(lambda: world.res.lines._standing.total() == 2)
    world.sim.advance(5)
    await until(lambda: len(world.sim.truth.calls) == 1)
    first = await served(world, line)
    await world.drain()
    assert id_of(first) == id_of(await twin.answer())
    assert len(world.sim.truth.calls) == 1


@pytest.fixture
async def neighbour(world: World) -> AsyncIterator[Resources]:
    """Another process on the same database."""
    async with open_resources(world.res.settings, clock=SimulatorTime(world.sim), fill_inputs=fill_inputs) as res:
        yield res
        await res.calls.drain(5)


async def test_a_key_is_known_to_every_process(world: World, neighbour: Resources) -> None:
    here = await create(world, **KEY)
    there = Line(world, world.order(), path=CREATE_PATH, res=neighbour, **KEY, **ASYNC)
    assert id_of(await here.answer()) == id_of(await there.answer())
    assert submissions(world) == 1


async def test_a_twin_in_another_process_waits_for_the_commit_of_the_first(world: World, neighbour: Resources) -> None:
    answers = await asyncio.gather(
        *(
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app=create_app("teams", res)), base_url="http://gateway"
            ).post(CREATE_PATH, json=world.order(), headers=world.headers(**KEY, **ASYNC))
            for res in (world.res, neighbour) * 10
        )
    )
    assert len({id_of(answer) for answer in answers}) == 1
    assert submissions(world) == 1


async def test_a_durable_call_is_waited_for_in_another_process_too(world: World, neighbour: Resources) -> None:
    here = await call(world, **KEY)
    there = Line(world, world.order(), res=neighbour, **KEY)
    await until(lambda: len(neighbour.waiters) == 1)
    first = await served(world, here)
    assert id_of(first) == id_of(await there.answer())
    assert submissions(world) == 1


# --- because it was never answered ---------------------------------------------------------------------------------


async def left(world: World, line: Line) -> str:
    """Hang up, and wait until that is noticed; return the task."""
    line.hang_up()

    async def marked() -> bool:
        return any(row["unanswered_at"] for row in await rows(world))

    async with asyncio.timeout(5):
        while not await marked():  # noqa: ASYNC110 -- the database has no event for it
            await asyncio.sleep(0.005)
    return str((await rows(world))[-1]["id"])


@pytest.fixture
async def cut(world: World) -> str:
    """A create whose client was cut off while the upstream was asked, and whose answer was lost, too."""
    world.sim.fail_next("create", "hang", seconds=60)
    line = await create(world)
    await until(lambda: len(world.sim.truth.tasks) == 1)
    task_id = await left(world, line)
    let_go(world)
    await line.answer()
    return task_id


async def test_a_client_that_was_cut_off_and_asks_again_gets_its_task(world: World, cut: str) -> None:
    answer = await world.post(world.order())
    assert (id_of(answer), submissions(world)) == (cut, 1)
    assert (await rows(world))[0]["unanswered_at"] is None


async def test_it_gets_it_once(world: World, cut: str) -> None:
    again, new = [id_of(await world.post(world.order())) for _ in range(2)]
    assert (again, new == cut, len(await rows(world))) == (cut, False, 2)


async def test_it_gets_it_for_ten_minutes(world: World, cut: str) -> None:
    world.sim.advance(10 * MINUTES + 1)
    assert id_of(await world.post(world.order())) != cut


@pytest.mark.parametrize("what", ["another body", "another path", "another form", "another API key", "another team"])
async def test_only_the_same_request_by_the_same_api_key_gets_it(world: World, cut: str, what: str) -> None:
    if what == "another API key":
        _, world.keys["alpha"] = await issue_key(world.res, "alpha")
    if what == "another form":
        answer = await served(world, Line(world, world.order(), path=CREATE_PATH))
    elif what == "another path":
        answer = await Line(world, world.order(), **{"X-DashScope-Async": "enable"}).answer()
    else:
        body = world.order("another boat") if what == "another body" else world.order()
        answer = await world.post(body, "beta" if what == "another team" else "alpha")
    assert id_of(answer) != cut
    assert (await rows(world))[0]["unanswered_at"] is not None


async def test_equal_requests_that_were_answered_are_never_one(world: World) -> None:
    ids = {id_of(await world.post(world.order())) for _ in range(3)}
    assert (len(ids), submissions(world)) == (3, 3)


async def test_equal_calls_that_were_answered_are_never_one(world: World) -> None:
    for body in (world.order(), relay_order()):
        ids = {id_of(await served(world, await call(world, body))) for _ in range(2)}
        world.sim.advance(1)
        assert len(ids) == 2
    assert submissions(world) == 4


async def test_many_at_once_adopt_a_task_once(world: World, cut: str) -> None:
    answers = await asyncio.gather(*(world.post(world.order()) for _ in range(10)))
    ids = [id_of(answer) for answer in answers]
    assert (ids.count(cut), len(set(ids))) == (1, 10)


async def test_a_task_that_is_being_written_to_is_waited_for_and_not_passed_by(world: World, cut: str) -> None:
    async with locked(world, "UPDATE tasks SET last_request_id = 'a look at it'"):
        again = await create(world)
        await until_blocked(world)
    assert id_of(await again.answer()) == cut


async def test_a_client_that_asks_again_while_the_first_is_under_way_waits_with_it(world: World) -> None:
    world.sim.fail_next("create", "hang", seconds=60)
    first = await create(world)
    await until(lambda: len(world.sim.truth.tasks) == 1)
    first.hang_up()
    again = await create(world)  # within a moment, as one of the SDKs does
    await until(lambda: len(world.res.waiters) == 1)
    let_go(world)
    await first.answer()
    assert id_of(await again.answer()) == str((await rows(world))[0]["id"])
    assert (submissions(world), (await rows(world))[0]["unanswered_at"]) == (1, None)


async def test_a_client_that_is_cut_off_again_gets_its_task_again(world: World, cut: str) -> None:
    await world.rows("UPDATE tasks SET state = 'submitting', upstream_task_id = NULL")  # it takes long
    again = await create(world)
    await until(lambda: len(world.res.waiters) == 1)
    assert await left(world, again) == cut
    await world.rows("UPDATE tasks SET state = 'pending', upstream_task_id = 'x'")
    assert id_of(await world.post(world.order())) == cut
    assert submissions(world) == 1


async def test_a_create_refused_while_its_client_was_cut_off_is_refused_again_by_the_upstream(world: World) -> None:
    async with scripted_upstream(world) as upstream:
        upstream.create = (400, b'{"code":"InvalidParameter","message":"no","request_id":"r"}')
        upstream.hold()
        line = await create(world)
        await upstream.arrived.wait()
        await left(world, line)
        upstream.let_go()
        await line.answer()
        assert refusal(await world.post(world.order())) == (400, "InvalidParameter")
        assert len(upstream.received) == 2


async def test_a_client_of_a_queued_task_that_was_cut_off_gets_its_task(world: World) -> None:
    world.sim.fail_next("create", "429")
    await world.post(world.order("in front"))
    async with locked(world, "SELECT 1 FROM account_models FOR UPDATE"):
        line = await create(world)
        await until_blocked(world)
        line.hang_up()
    await line.answer()
    row = (await rows(world))[-1]
    assert (row["state"], row["unanswered_at"] is not None) == ("queued", True)
    assert id_of(await world.post(world.order())) == str(row["id"])


# --- because its process died --------------------------------------------------------------------------------------


async def killed(world: World, line: Line) -> dict[str, Any]:
    """Let the process that serves a request die: it is cut off, and so is what goes on behind it."""
    for under_way in list(world.res.calls._under_way):
        under_way.cancel()
    line._serving.cancel()
    await asyncio.wait({line._serving})
    world.res.awaited.clear()
    return (await rows(world))[-1]


async def test_a_create_whose_process_died_submitting_is_got_by_the_same_request(world: World) -> None:
    world.sim.fail_next("create", "hang", seconds=60)
    line = await create(world)
    await until(lambda: len(world.sim.truth.tasks) == 1)
    row = await killed(world, line)
    assert (row["state"], row["unanswered_at"]) == ("submitting", None)
    let_go(world)
    world.sim.advance(20)
    assert await rescue_due(world.res) == 1
    assert id_of(await world.post(world.order())) == str(row["id"])
    assert (submissions(world), [task["state"] for task in await rows(world)]) == (1, ["doubtful"])


async def test_before_its_lease_has_lapsed_the_same_request_is_a_new_task(world: World) -> None:
    world.sim.fail_next("create", "hang", seconds=60)
    line = await create(world)
    await until(lambda: len(world.sim.truth.tasks) == 1)
    row = await killed(world, line)
    let_go(world)
    assert id_of(await world.post(world.order())) != str(row["id"])  # a limit that is told in the manual
    assert submissions(world) == 2


async def test_a_call_whose_process_died_waiting_is_got_by_the_same_request(world: World) -> None:
    line = await call(world)
    await until(lambda: len(world.res.awaited) == 1)
    row = await killed(world, line)
    assert (row["state"], row["waited_until"] is not None) == ("pending", True)
    world.sim.advance(59)
    assert await mark_unanswered(world.res) == 0
    world.sim.advance(2)
    assert await mark_unanswered(world.res) == 1
    answer = await served(world, Line(world, world.order()))
    assert (id_of(answer), submissions(world)) == (str(row["id"]), 1)
    assert await ledger(world) == [("usage", "image", 1)]


async def test_a_call_that_is_still_waited_for_is_not_taken_for_one_that_is_not(world: World) -> None:
    world.sim.set_limits(running_tasks=0)
    line = await call(world)
    await until(lambda: len(world.res.awaited) == 1)
    for _ in range(5):
        world.sim.advance(40)
        assert await say_still_waiting(world.res) == 1
        assert await mark_unanswered(world.res) == 0
    world.sim.set_limits(running_tasks=5)
    assert (await served(world, line)).status_code == 200
    assert await say_still_waiting(world.res) == 0


async def test_an_answer_that_was_given_is_given_to_nobody_else(world: World) -> None:
    answer = await served(world, await call(world))
    await world.res.calls.drain(5)
    row = (await rows(world))[0]
    assert (row["waited_until"], row["unanswered_at"]) == (None, None)
    world.sim.advance(61)
    assert await mark_unanswered(world.res) == 0
    assert id_of(await served(world, await call(world))) != id_of(answer)


async def test_a_process_that_stood_still_and_answers_after_all_takes_the_mark_away(world: World) -> None:
    world.sim.set_limits(running_tasks=0)
    line = await call(world)
    await until(lambda: len(world.res.awaited) == 1)
    world.sim.advance(61)
    assert await mark_unanswered(world.res) == 1  # nobody has heard of it for a minute
    world.sim.set_limits(running_tasks=5)
    first = await served(world, line)
    await world.res.calls.drain(5)
    assert (await rows(world))[0]["unanswered_at"] is None
    assert id_of(await served(world, await call(world))) != id_of(first)


async def test_what_was_adopted_is_waited_for_again(world: World) -> None:
    world.sim.set_limits(running_tasks=0)
    line = await call(world)
    await until(lambda: len(world.res.awaited) == 1)
    await killed(world, line)
    world.sim.advance(61)
    await mark_unanswered(world.res)
    again = Line(world, world.order())
    await until(lambda: len(world.res.awaited) == 1)
    await killed(world, again)
    world.sim.advance(61)
    assert await mark_unanswered(world.res) == 1
    world.sim.set_limits(running_tasks=5)
    answer = await served(world, Line(world, world.order()))
    assert (answer.status_code, submissions(world), len(await rows(world))) == (200, 1, 1)


async def test_a_call_under_way_whose_database_goes_away_is_never_sent_again_by_an_sdk(world: World) -> None:
    async with CommitDoor(world.database_url) as door:
        res = dataclasses.replace(world.res, db=Database(door.url))
        line = Line(world, world.order(), res=res)
        await until(lambda: len(world.res.awaited) == 1)
        door.shut()
        time_is_up(world)
        answer = await line.answer()
        await res.db.close()
    assert refusal(answer) == (504, "RequestTimeOut")
    assert answer.headers["x-should-retry"] == "false"
    assert submissions(world) == 1
