"""Submit: one attempt, one call, one record; and every fact is kept, however late it comes."""

import json
from dataclasses import replace

from app.lib.ids import new_id
from app.simulator import BEIJING
from app.tasks.attempts import Attempt
from app.tasks.rescue import end_overdue, rescue_due
from app.tasks.submit import record_doubtful, record_receipt, send
from app.upstream.answers import Accepted
from tests.api.parts import UPSTREAM_ID, receipt, scripted_upstream
from tests.steps.parts import (
    DAY,
    attempt_of,
    hanging_create,
    model_limits,
    queued,
    seconds_until_due,
    sent,
    states,
    task,
    works,
)
from tests.world import World


async def given_up(world: World) -> tuple[str, Attempt]:
    """Make a task that the upstream took, whose sender never came back, and that rescue calls doubtful."""
    task_id, creating = await hanging_create(world)
    await creating
    attempt = await attempt_of(world, task_id)
    world.sim.advance(60)
    assert await rescue_due(world.res) == 1
    assert await states(world) == ["doubtful"]
    return task_id, attempt


def truth(world: World) -> Accepted:
    """The receipt that the upstream gave for its only task."""
    (made,) = world.sim.truth.tasks
    return Accepted(made.id, made.request_id)


# --- the usual ends ------------------------------------------------------------------------------------------------


async def test_a_receipt_makes_the_task_pending_under_the_upstreams_ids(world: World) -> None:
    row = await task(world, await world.create())
    (made,) = world.sim.truth.tasks
    assert (row["state"], row["upstream_task_id"], row["upstream_request_id"]) == ("pending", made.id, made.request_id)
    assert row["submitted_at"] == world.res.clock.now()


async def test_a_receipt_ends_the_work_of_sending(world: World) -> None:
    task_id = await world.create()
    assert await works(world, "submit") == []
    assert await world.events(task_id) == ["submitting", "pending"]


async def test_a_429_puts_the_task_back_and_its_model_off(world: World) -> None:
    world.sim.fail_next("create", "429")
    row = await task(world, await world.create())
    limits = await model_limits(world)
    assert (row["state"], row["attempt"], row["code"]) == ("queued", 1, None)
    assert limits["backoff"] == 1
    assert 0.8 <= (limits["paused_until"] - world.res.clock.now()).total_seconds() <= 1.2
    assert await seconds_until_due(world, "submit") == 0


async def test_each_429_in_a_row_puts_the_model_off_for_longer_and_a_success_ends_that(world: World) -> None:
    world.sim.fail_next("create", "429", times=3)
    task_id = await world.create()
    for _ in range(2):
        world.sim.advance(10)
        await world.dispatch()
    limits = await model_limits(world)
    assert limits["backoff"] == 3
    assert 4 <= (limits["paused_until"] - world.res.clock.now()).total_seconds() <= 6
    world.sim.advance(10)
    assert await world.finish(task_id) == "SUCCEEDED"
    assert (await model_limits(world))["backoff"] == 0


async def test_a_lost_answer_leaves_doubt_and_a_pause_and_nothing_to_send(world: World) -> None:
    world.sim.fail_next("create", "lost_answer")
    task_id = await world.create()
    assert await world.events(task_id) == ["submitting", "doubtful"]
    assert await works(world, "submit") == []
    pause = (await model_limits(world))["paused_until"] - world.res.clock.now()
    assert pause.total_seconds() == 5


async def test_a_task_in_doubt_is_never_sent_again(world: World) -> None:
    world.sim.fail_next("create", "lost_answer")
    await world.create()
    for _ in range(20):
        await world.advance(600)
    assert len(sent(world)) == 1


async def test_the_request_id_of_a_5xx_is_kept_as_evidence(world: World) -> None:
    async with scripted_upstream(world) as upstream:
        upstream.create = (500, b'{"code":"InternalError","message":"x","request_id":"evidence-7"}')
        row = await task(world, await world.create())
    assert (row["state"], row["upstream_request_id"]) == ("doubtful", "evidence-7")


async def test_a_call_of_which_no_byte_left_waits_and_goes_again(world: World) -> None:
    base_url = (await world.row("SELECT base_url FROM accounts"))["base_url"]
    async with scripted_upstream(world):
        pass  # nobody listens there any more
    task_id = await world.create()
    assert await states(world) == ["queued"]
    assert await seconds_until_due(world, "submit") == 5
    await world.rows("UPDATE accounts SET base_url = $1, file_hosts = ARRAY[$2]", base_url, world.sim.file_host)
    await world.advance(6)
    assert (await task(world, task_id))["attempt"] == 2
    assert await world.finish(task_id) == "SUCCEEDED"


async def test_a_sender_that_was_paused_sends_nothing_and_hands_its_task_back(world: World) -> None:
    (task_id,) = await queued(world, 1)
    await world.rows("UPDATE tasks SET state = 'submitting', attempt = 1")
    await world.rows("DELETE FROM work WHERE kind = 'submit'")  # rescue has been here
    attempt = replace(await attempt_of(world, task_id), ends_monotonic=world.res.clock.monotonic() + 11)
    assert await send(world.res, attempt) is None
    assert sent(world) == []
    assert await states(world) == ["queued"]
    assert await world.finish(task_id) == "SUCCEEDED"


# --- refusals ------------------------------------------------------------------------------------------------------


async def test_a_queued_task_that_the_upstream_refuses_fails_in_its_words(world: World) -> None:
    (task_id,) = await queued(world, 1)
    async with scripted_upstream(world) as upstream:
        upstream.create = (400, b'{"code":"InvalidParameter","message":"no such size","request_id":"r"}')
        await world.dispatch()
    row = await task(world, task_id)
    assert (row["state"], row["code"], row["message"]) == ("failed", "InvalidParameter", "no such size")
    assert not row["refused_inline"]
    assert (await world.read(task_id))["output"]["code"] == "InvalidParameter"


async def test_a_refused_task_tells_its_team_and_costs_nothing(world: World) -> None:
    await queued(world, 1)
    async with scripted_upstream(world) as upstream:
        upstream.create = (400, b'{"code":"InvalidParameter","message":"","request_id":"r"}')
        await world.dispatch()
    assert [row["type"] for row in await world.rows("SELECT type FROM webhook_events")] == ["task.failed"]
    assert await world.rows("SELECT 1 FROM ledger_entries") == []
    assert await works(world, "submit") == []


async def test_a_refusal_with_unstorable_text_is_recorded_all_the_same(world: World) -> None:
    (task_id,) = await queued(world, 1)
    async with scripted_upstream(world) as upstream:
        upstream.create = (400, b'{"code":"Invalid\\u0000Parameter","message":"half \\ud83d","request_id":"\\udc00"}')
        await world.dispatch()
    assert (await task(world, task_id))["code"] == "InvalidParameter"


async def test_a_refusal_that_comes_after_its_client_left_can_be_read(hasty: World) -> None:
    async with scripted_upstream(hasty) as upstream:
        upstream.create = (400, b'{"code":"InvalidParameter","message":"n","request_id":"r"}')
        upstream.hold()
        task_id = await hasty.create()
        upstream.let_go()
        await hasty.res.calls.drain(5)
    assert not (await task(hasty, task_id))["refused_inline"]
    assert (await hasty.read(task_id))["output"]["code"] == "InvalidParameter"


async def test_an_account_at_fault_pauses_and_the_queued_task_waits(world: World) -> None:
    (task_id,) = await queued(world, 1)
    async with scripted_upstream(world) as upstream:
        upstream.create = (400, b'{"code":"Arrearage","message":"pay","request_id":"r"}')
        await world.dispatch()
        world.sim.advance(30)
        assert await world.dispatch() == 0
        assert len(upstream.received) == 1
        upstream.create = receipt()
        world.sim.advance(31)
        assert await world.dispatch() == 1
    row = await task(world, task_id)
    assert (row["state"], row["attempt"]) == ("pending", 2)


async def test_the_accounts_trouble_is_not_on_the_waiting_task(world: World) -> None:
    (task_id,) = await queued(world, 1)
    async with scripted_upstream(world) as upstream:
        upstream.create = (400, b'{"code":"Arrearage","message":"account 1000 owes","request_id":"r"}')
        await world.dispatch()
    assert "owes" not in json.dumps(await world.read(task_id))
    assert (await task(world, task_id))["message"] is None


# --- facts that come late ------------------------------------------------------------------------------------------


async def test_a_receipt_that_comes_after_the_rescuer_still_settles_the_task(hasty: World) -> None:
    task_id, attempt = await given_up(hasty)
    assert await record_receipt(hasty.res, attempt, truth(hasty))
    assert await hasty.events(task_id) == ["submitting", "doubtful", "pending"]
    assert await hasty.finish(task_id) == "SUCCEEDED"
    line = await hasty.row("SELECT kind, quantity FROM ledger_entries")
    assert (line["kind"], line["quantity"]) == ("usage", 1)
    assert len(await hasty.rows("SELECT 1 FROM webhook_events")) == 1


async def test_the_senders_own_late_receipt_settles_the_task(hasty: World) -> None:
    async with scripted_upstream(hasty) as upstream:
        upstream.create = receipt()
        upstream.hold()
        task_id = await hasty.create()
        hasty.sim.advance(60)
        assert await rescue_due(hasty.res) == 1
        upstream.let_go()
        await hasty.res.calls.drain(5)
    row = await task(hasty, task_id)
    assert (row["state"], row["upstream_task_id"]) == ("pending", UPSTREAM_ID)


async def test_a_receipt_recorded_twice_is_one_receipt(hasty: World) -> None:
    task_id, attempt = await given_up(hasty)
    for _ in range(2):
        assert await record_receipt(hasty.res, attempt, truth(hasty))
    assert await hasty.events(task_id) == ["submitting", "doubtful", "pending"]
    assert await hasty.rows("SELECT 1 FROM upstream_orphans") == []


async def test_a_receipt_for_a_task_that_moved_on_is_an_orphan(hasty: World) -> None:
    task_id, attempt = await given_up(hasty)
    hasty.sim.advance(DAY)
    assert await end_overdue(hasty.res) == 1
    assert not await record_receipt(hasty.res, attempt, truth(hasty))
    orphan = await hasty.row("SELECT * FROM upstream_orphans")
    assert orphan["upstream_task_id"] == truth(hasty).task_id
    assert (str(orphan["task_id"]), orphan["attempt"], orphan["reason"]) == (task_id, 1, "late receipt")
    assert (await task(hasty, task_id))["code"] == "Dashgate.OutcomeUnknown"


async def test_a_receipt_of_an_earlier_attempt_is_not_taken_for_the_present_one(world: World) -> None:
    world.sim.fail_next("create", "429")
    task_id = await world.create()
    first = await attempt_of(world, task_id)
    world.sim.advance(10)
    await world.dispatch()
    assert not await record_receipt(world.res, first, Accepted("an-earlier-id", "r"))
    row = await task(world, task_id)
    assert (row["attempt"], row["upstream_task_id"]) == (2, world.sim.truth.tasks[0].id)
    assert (await world.row("SELECT attempt FROM upstream_orphans"))["attempt"] == 1


async def test_an_upstream_id_that_is_anothers_already_needs_an_operator_for_both(world: World) -> None:
    async with scripted_upstream(world) as upstream:
        upstream.create = receipt()
        owner = await world.create()
        robbed = await world.create(team="gamma")
    rows = [await task(world, task_id) for task_id in (owner, robbed)]
    assert [row["needs_operator"] for row in rows] == [True, True]
    assert [row["upstream_task_id"] for row in rows] == [UPSTREAM_ID, None]
    assert [row["state"] for row in rows] == ["pending", "submitting"]
    orphan = await world.row("SELECT task_id, reason FROM upstream_orphans")
    assert (str(orphan["task_id"]), orphan["reason"]) == (robbed, "stolen id")


async def test_the_same_id_in_two_regions_is_no_theft(world: World) -> None:
    first = await world.create()
    await world.rows("UPDATE tasks SET region = 'elsewhere' WHERE id = $1::uuid", first)
    async with scripted_upstream(world) as upstream:
        upstream.create = receipt(world.sim.truth.tasks[0].id)
        await world.create()
    assert await states(world) == ["pending", "pending"]


async def test_a_429_that_comes_after_the_rescuer_puts_the_task_back_to_be_sent(hasty: World) -> None:
    async with scripted_upstream(hasty) as upstream:
        upstream.create = (429, b'{"code":"Throttling.RateQuota","message":"","request_id":"r"}')
        upstream.hold()
        task_id = await hasty.create()
        hasty.sim.advance(60)
        assert await rescue_due(hasty.res) == 1
        upstream.let_go()
        await hasty.res.calls.drain(5)
        assert await states(hasty) == ["queued"]
        upstream.create = receipt()
        hasty.sim.advance(60)
        assert await hasty.dispatch() == 1
    assert (await task(hasty, task_id))["state"] == "pending"


async def test_a_refusal_that_comes_after_the_rescuer_ends_the_doubt(hasty: World) -> None:
    async with scripted_upstream(hasty) as upstream:
        upstream.create = (400, b'{"code":"InvalidParameter","message":"n","request_id":"r"}')
        upstream.hold()
        task_id = await hasty.create()
        hasty.sim.advance(60)
        assert await rescue_due(hasty.res) == 1
        upstream.let_go()
        await hasty.res.calls.drain(5)
    row = await task(hasty, task_id)
    assert (row["state"], row["code"]) == ("failed", "InvalidParameter")


async def test_a_late_doubt_takes_nothing_back(world: World) -> None:
    task_id = await world.create()
    await record_doubtful(world.res, await attempt_of(world, task_id), reason="late")
    assert (await task(world, task_id))["state"] == "pending"


async def test_a_receipt_of_a_task_nobody_knows_is_written_down(world: World) -> None:
    stranger = replace(await attempt_of(world, await world.create()), task_id=new_id())
    assert not await record_receipt(world.res, stranger, Accepted("nobodys", "r"))
    orphan = await world.row("SELECT main_account, region, upstream_task_id FROM upstream_orphans")
    assert tuple(orphan.values()) == (BEIJING, BEIJING, "nobodys")
