"""Deliver: each file is copied, verified and recorded; its trouble is never the task's, and its last file ends it."""

import asyncio
import hashlib
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

from app.delivery.deliver import deliver_due
from app.tasks.chores import chore_due
from app.tasks.poll import poll_due
from tests.api.parts import ScriptedUpstream, choices, receipt, scripted_upstream, state
from tests.steps.parts import DAY, locked, seconds_until_due, task, until_blocked, works
from tests.world import World

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40


async def made(world: World, n: int = 1, team: str = "alpha") -> str:
    """A task that is made upstream and whose files are to be copied."""
    task_id = await world.create(team=team, n=n)
    await look(world)
    assert (await task(world, task_id))["state"] == "delivering"
    return task_id


async def look(world: World) -> None:
    world.sim.advance(1.1)
    await poll_due(world.res, watches=world.watches)


async def assets(world: World) -> list[dict[str, Any]]:
    return await world.rows("SELECT * FROM assets ORDER BY position")


async def asset(world: World) -> dict[str, Any]:
    return await world.row("SELECT * FROM assets")


def files(world: World, team: str = "alpha") -> list[Path]:
    return sorted((world.folder / team).rglob("*.png"))


async def endings(world: World) -> list[str]:
    return [row["type"] for row in await world.rows("SELECT type FROM webhook_events")]


async def made_by(world: World, upstream: ScriptedUpstream, *names: str) -> str:
    """A task whose files a scripted upstream serves."""
    links = [upstream.link(name) for name in names]
    upstream.create, upstream.file = receipt(), (200, PNG)
    upstream.look = state("SUCCEEDED", choices=choices(*links), usage={"image_count": len(links)})
    task_id = await world.create()
    await look(world)
    return task_id


# --- stored --------------------------------------------------------------------------------------------------------


async def test_a_file_is_stored_with_its_facts_and_ends_its_task(world: World) -> None:
    task_id = await made(world)
    assert await deliver_due(world.res) == 1
    row, (path,) = await asset(world), files(world)
    (picture,) = world.sim.truth.tasks[0].pictures
    assert hashlib.sha256(path.read_bytes()).hexdigest() == row["sha256"] == picture.sha256
    assert (row["state"], row["content_type"], row["size_bytes"]) == ("stored", "image/png", picture.size_bytes)
    assert row["stored_at"] == world.res.clock.now()
    assert (await task(world, task_id))["state"] == "succeeded"
    assert await works(world, "deliver") == []


async def test_a_file_lies_under_its_teams_day_and_task(world: World) -> None:
    task_id = await made(world, n=2)
    await deliver_due(world.res)
    day = (await task(world, task_id))["created_at"]
    expected = [f"alpha/{day:%Y/%m/%d}/{task_id}/{position}.png" for position in (0, 1)]
    assert [row["object_key"] for row in await assets(world)] == expected
    assert [str(path.relative_to(world.folder / "alpha")) for path in files(world)] == expected


async def test_a_team_writes_to_its_own_place_alone(world: World) -> None:
    await made(world, team="beta")
    await deliver_due(world.res)
    assert (len(files(world, "alpha")), len(files(world, "beta"))) == (0, 1)


async def test_with_nothing_to_copy_it_is_idle(world: World) -> None:
    await world.create()
    assert await deliver_due(world.res) == 0


async def test_the_last_file_ends_the_task_and_none_before_it(world: World) -> None:
    task_id = await made(world, n=3)
    for stored in (1, 2):
        await deliver_due(world.res, limit=1)
        assert ((await task(world, task_id))["state"], len(files(world))) == ("delivering", stored)
        assert await endings(world) == []
    await deliver_due(world.res, limit=1)
    assert (await task(world, task_id))["state"] == "succeeded"
    assert await endings(world) == ["task.succeeded"]


async def test_files_that_finish_at_the_same_time_end_their_task_once(world: World) -> None:
    """None may look at the others before they are all written: held at their rows, then let go together."""
    task_id = await made(world, n=2)
    async with locked(world, "SELECT 1 FROM assets FOR UPDATE"):
        copying = asyncio.gather(*(deliver_due(world.res, limit=1) for _ in range(2)))
        await until_blocked(world, statements=2)
    assert await copying == [1, 1]
    assert len(files(world)) == 2
    assert (await task(world, task_id))["state"] == "succeeded"
    assert await endings(world) == ["task.succeeded"]


async def test_no_file_is_claimed_twice(world: World) -> None:
    await made(world, n=4)
    counts = await asyncio.gather(*(deliver_due(world.res, limit=3) for _ in range(3)))
    assert sum(counts) == 4
    assert len(world.sim.truth.journal.read(operation="file")) == 4


async def test_a_file_stored_after_the_grace_changes_nothing_but_itself(world: World) -> None:
    task_id = await made(world)
    world.sim.advance(121)
    await chore_due(world.res)
    ended = await task(world, task_id)
    assert ended["state"] == "succeeded"
    world.sim.advance(5)
    await deliver_due(world.res)
    assert (await asset(world))["state"] == "stored"
    assert await task(world, task_id) == ended
    assert await endings(world) == ["task.succeeded"]


# --- after a crash -------------------------------------------------------------------------------------------------


async def test_a_copy_that_was_made_but_never_recorded_is_found_and_taken(world: World) -> None:
    task_id = await made(world)
    picture = world.sim.truth.tasks[0].pictures[0]
    day = (await task(world, task_id))["created_at"]
    path = world.folder / "alpha" / f"alpha/{day:%Y/%m/%d}/{task_id}/0.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(picture.content())
    await deliver_due(world.res)
    assert (await asset(world))["state"] == "stored"
    assert files(world) == [path]


async def test_other_bytes_under_our_key_are_left_alone_and_a_person_is_asked(world: World) -> None:
    task_id = await made(world)
    day = (await task(world, task_id))["created_at"]
    path = world.folder / "alpha" / f"alpha/{day:%Y/%m/%d}/{task_id}/0.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"somebody else's")
    await deliver_due(world.res)
    row = await asset(world)
    assert (row["state"], row["reason"]) == ("blocked", "object_conflict")
    assert path.read_bytes() == b"somebody else's"


async def test_a_dead_copiers_file_is_copied_when_its_lease_has_lapsed(world: World) -> None:
    task_id = await made(world)
    lease = world.res.settings.delivery_lease_seconds
    until = world.res.clock.now() + timedelta(seconds=lease)
    dead = "UPDATE work SET due_at = $1, lease_until = $1, epoch = 1, attempts = 1 WHERE kind = 'deliver'"
    await world.rows(dead, until)
    assert await deliver_due(world.res) == 0
    world.sim.advance(lease + 1)
    assert await deliver_due(world.res) == 1
    assert (await task(world, task_id))["state"] == "succeeded"


async def test_a_file_that_five_copiers_died_of_is_held_and_an_operator_asked_for(world: World) -> None:
    await made(world)
    lapsed = "UPDATE work SET lease_id = gen_random_uuid(), attempts = $1, epoch = $1 WHERE kind = 'deliver'"
    await world.rows(lapsed, 5)
    await deliver_due(world.res)
    assert (await asset(world))["state"] == "waiting"
    assert (await asset(world))["reason"] == "its workers died"
    assert (await world.row("SELECT needs_operator FROM tasks"))["needs_operator"]
    assert await seconds_until_due(world, "deliver") == 900


async def test_a_file_that_four_copiers_died_of_is_tried_again(world: World) -> None:
    await made(world)
    await world.rows("UPDATE work SET lease_id = gen_random_uuid(), attempts = 4, epoch = 4 WHERE kind = 'deliver'")
    await deliver_due(world.res)
    assert (await asset(world))["state"] == "stored"


async def test_a_copier_that_lost_its_lease_still_records_what_it_stored(world: World) -> None:
    async with scripted_upstream(world) as upstream:
        task_id = await made_by(world, upstream, "1.png")
        upstream.hold()
        copying = asyncio.create_task(deliver_due(world.res))
        await upstream.arrived.wait()
        await world.rows("UPDATE work SET epoch = epoch + 1 WHERE kind = 'deliver'")  # another holds it now
        upstream.let_go()
        await copying
    assert (await asset(world))["state"] == "stored"
    assert (await task(world, task_id))["state"] == "succeeded"
    assert len(await works(world, "deliver")) == 1  # the other's to finish
    world.sim.advance(world.res.settings.delivery_lease_seconds + 1)
    await deliver_due(world.res)
    assert await works(world, "deliver") == []
    assert await endings(world) == ["task.succeeded"]


async def test_a_copier_that_lost_its_lease_says_nothing_of_its_failure(world: World) -> None:
    async with scripted_upstream(world) as upstream:
        await made_by(world, upstream, "1.png")
        upstream.file = (500, b"")
        upstream.hold()
        copying = asyncio.create_task(deliver_due(world.res))
        await upstream.arrived.wait()
        await world.rows("UPDATE work SET epoch = epoch + 1 WHERE kind = 'deliver'")
        upstream.let_go()
        await copying
    row = await asset(world)
    assert (row["state"], row["reason"]) == ("waiting", None)


async def test_a_failure_never_undoes_a_stored_file(world: World) -> None:
    async with scripted_upstream(world) as upstream:
        await made_by(world, upstream, "1.png")
        upstream.file = (404, b"")
        upstream.hold()
        copying = asyncio.create_task(deliver_due(world.res))
        await upstream.arrived.wait()
        stored = "UPDATE assets SET state = 'stored', stored_at = now(), object_key = 'k', sha256 = 's', "
        await world.rows(stored + "size_bytes = 1, content_type = 'image/png'")
        upstream.let_go()
        await copying
    assert (await asset(world))["state"] == "stored"


# --- trouble -------------------------------------------------------------------------------------------------------


async def test_a_source_in_trouble_is_asked_again_soon_and_then_later(world: World) -> None:
    await made(world)
    world.sim.fail_next("file", "5xx", times=2)
    await deliver_due(world.res)
    row = await asset(world)
    assert (row["state"], row["reason"]) == ("waiting", "source_fault")
    assert 1.6 <= await seconds_until_due(world, "deliver") <= 2.4
    assert await deliver_due(world.res) == 0
    world.sim.advance(2.5)
    await deliver_due(world.res)
    assert 4 <= await seconds_until_due(world, "deliver") <= 6
    world.sim.advance(6.1)
    await deliver_due(world.res)
    row = await asset(world)
    assert (row["state"], row["reason"]) == ("stored", None)


async def test_one_files_trouble_does_not_hold_up_the_others(world: World) -> None:
    task_id = await made(world, n=3)
    world.sim.fail_next("file", "5xx")
    await deliver_due(world.res)
    assert sorted(row["state"] for row in await assets(world)) == ["stored", "stored", "waiting"]
    assert (await task(world, task_id))["state"] == "delivering"
    await world.advance(3)
    assert (await task(world, task_id))["state"] == "succeeded"


async def test_a_host_that_is_not_allowed_holds_the_file_until_it_is(world: World) -> None:
    task_id = await made(world)
    await world.rows("UPDATE accounts SET file_hosts = '{}'")
    world.res.accounts.clear()
    await deliver_due(world.res)
    row = await asset(world)
    assert (row["state"], row["reason"]) == ("held", "host_not_allowed")
    assert world.sim.truth.journal.read(operation="file") == []
    await world.rows("UPDATE accounts SET file_hosts = ARRAY[$1]", world.sim.file_host)
    world.sim.advance(80)
    await deliver_due(world.res)
    assert (await asset(world))["state"] == "stored"
    assert (await task(world, task_id))["state"] == "succeeded"


async def test_a_storage_that_refuses_blocks_the_file_until_a_person_repairs_it(world: World) -> None:
    task_id = await made(world)
    place = world.folder / "alpha"
    shutil.rmtree(place)
    place.write_text("not a folder")
    await deliver_due(world.res)
    row = await asset(world)
    assert (row["state"], row["reason"]) == ("blocked", "storage_refused")
    assert 48 <= await seconds_until_due(world, "deliver") <= 72
    place.unlink()
    world.sim.advance(73)
    await deliver_due(world.res)
    assert ((await asset(world))["state"], (await task(world, task_id))["state"]) == ("stored", "succeeded")


async def test_a_file_that_is_gone_is_given_up_and_its_task_ends_all_the_same(world: World) -> None:
    async with scripted_upstream(world) as upstream:
        task_id = await made_by(world, upstream, "1.png", "2.png")
        upstream.file = (404, b"")
        await deliver_due(world.res)
    assert [(row["state"], row["reason"]) for row in await assets(world)] == [("given_up", "gone")] * 2
    assert (await task(world, task_id))["state"] == "succeeded"
    assert (await world.row("SELECT quantity FROM ledger_entries"))["quantity"] == 2  # made is billed
    assert await works(world, "deliver") == []


async def test_what_is_no_image_is_given_up(world: World) -> None:
    async with scripted_upstream(world) as upstream:
        await made_by(world, upstream, "1.png")
        upstream.file = (200, b"PK\x03\x04" + bytes(100))
        await deliver_due(world.res)
    row = await asset(world)
    assert (row["state"], row["reason"]) == ("given_up", "kind")
    assert files(world) == []


async def test_a_link_that_is_no_url_is_given_up(world: World) -> None:
    async with scripted_upstream(world) as upstream:
        upstream.create = receipt()
        upstream.look = state("SUCCEEDED", choices=choices(upstream.link("\ud83d.png")), usage={"image_count": 1})
        task_id = await world.create()
        await look(world)
        await deliver_due(world.res)
    row = await asset(world)
    assert (row["state"], row["reason"]) == ("given_up", "url")
    assert (await task(world, task_id))["state"] == "succeeded"


async def test_a_file_whose_link_died_before_it_could_be_copied_is_given_up(world: World) -> None:
    await made(world)
    world.sim.fail_next("file", "5xx")
    world.sim.advance(DAY + 1)
    await deliver_due(world.res)
    row = await asset(world)
    assert (row["state"], row["reason"]) == ("given_up", "source_fault")
    assert await works(world, "deliver") == []


async def test_a_place_that_was_removed_blocks_the_file_and_breaks_nothing(world: World) -> None:
    await made(world)
    await world.rows("DELETE FROM destinations")
    await deliver_due(world.res)
    assert (await asset(world))["state"] == "blocked"


async def test_a_file_goes_to_the_place_its_task_was_accepted_with(world: World) -> None:
    await made(world)
    elsewhere = world.folder / "elsewhere"
    await world.rows(
        "WITH new AS (INSERT INTO places (id, team_id, kind, prefix, links) SELECT gen_random_uuid(), id, 'file', $1, "
        "'gateway' FROM teams WHERE slug = 'alpha' RETURNING id, team_id) "
        "UPDATE destinations SET place_id = new.id FROM new WHERE destinations.team_id = new.team_id",
        str(elsewhere),
    )
    await deliver_due(world.res)
    assert len(files(world)) == 1
    assert not elsewhere.exists()
