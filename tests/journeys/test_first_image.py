"""Goal: one image request, from a team's call to its own storage and its usage line.
Method: the whole gateway in one process over a real database, the simulator over real HTTP, one clock moved by hand.
"""

import hashlib

from tests.world import World


async def test_an_image_travels_from_the_request_to_the_teams_own_storage(world: World) -> None:
    task_id = await world.create("two paper boats", n=2)
    assert await world.status(task_id) == "PENDING"

    assert await world.finish(task_id) == "SUCCEEDED"

    (truth,) = world.sim.truth.tasks
    pictures = [picture.sha256 for picture in truth.pictures]
    links = await world.links(task_id)
    assert all(link.startswith("http://gateway/assets/") for link in links)
    served = [(await world.http.get(link)).content for link in links]
    assert [hashlib.sha256(body).hexdigest() for body in served] == pictures
    stored = sorted((world.folder / "alpha").rglob("*.png"))
    assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in stored] == pictures

    assert await world.events(task_id) == ["submitting", "pending", "delivering", "succeeded"]
    line = await world.row("SELECT kind, unit, quantity, flag, upstream_task_id FROM ledger_entries")
    assert (line["kind"], line["unit"], line["quantity"], line["flag"]) == ("usage", "image", 2, None)
    assert line["upstream_task_id"] == truth.id
    usage = (await world.http.get("/v1/usage", headers=world.headers())).json()["lines"]
    assert [(line["model"], line["quantity"]) for line in usage] == [("wan2.6-image", "2")]
    assert [row["type"] for row in await world.rows("SELECT type FROM webhook_events")] == ["task.succeeded"]
    assert [row["kind"] for row in await world.rows("SELECT kind FROM work WHERE kind IN ('submit', 'deliver')")] == []
