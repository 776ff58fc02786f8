"""Goal: what one task made is the input of the next, and an upload is one for its own team.
Method: a whole gateway over a database and the simulator, whose journal shows what the upstream was really given.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio

from app.simulator import BEIJING, SINGAPORE, Simulator
from tests.world import World, open_world

HOUR = 3600
PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest_asyncio.fixture
async def wide(still_sim: Simulator, database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A gateway with an account in two regions."""
    async with open_world(still_sim, database_url, tmp_path, regions=(BEIJING, SINGAPORE)) as world:
        yield world


def order_with(world: World, image: str) -> dict[str, Any]:
    order = world.order("the same boat at night")
    order["input"]["messages"][0]["content"][1]["image"] = image
    return order


async def make_again(world: World, image: str, **headers: str) -> str:
    """Give an image to a second task, which must succeed; return what the upstream was given in its place."""
    answer = await world.post(order_with(world, image), **headers)
    assert answer.status_code == 200, answer.text
    assert await world.finish(answer.json()["output"]["task_id"]) == "SUCCEEDED"
    given: str = world.sim.truth.journal.read(operation="create")[-1].body["input"]["messages"][0]["content"][1][
        "image"
    ]
    return given


async def first_image(world: World) -> tuple[str, str]:
    """Make an image; return our link to it, and the hash of its bytes."""
    task_id = await world.create()
    assert await world.finish(task_id) == "SUCCEEDED"
    (link,) = await world.links(task_id)
    (picture,) = world.sim.truth.tasks[-1].pictures
    return link, picture.sha256


async def test_the_output_of_one_task_is_the_input_of_the_next(world: World) -> None:
    link, _ = await first_image(world)
    given = await make_again(world, link)
    (picture,) = world.sim.truth.tasks[0].pictures
    assert given == f"http://{world.sim.file_host}{picture.path}?{picture.query}"
    assert world.sim.truth.uploads == ()


async def test_an_output_whose_source_has_died_is_passed_on_from_the_teams_storage(world: World) -> None:
    link, sha256 = await first_image(world)
    await world.advance(25 * HOUR)
    given = await make_again(world, link)
    (stored,) = world.sim.truth.uploads
    assert (given, stored.sha256) == (f"oss://{stored.key}", sha256)


async def test_an_output_of_one_region_is_an_input_of_another(wide: World) -> None:
    link, sha256 = await first_image(wide)
    given = await make_again(wide, link, **{"X-Dashgate-Region": SINGAPORE})
    (stored,) = wide.sim.truth.uploads
    assert (given, stored.sha256, stored.region) == (f"oss://{stored.key}", sha256, SINGAPORE)


async def test_an_output_is_no_input_of_another_team(world: World) -> None:
    link, _ = await first_image(world)
    answer = await world.post(order_with(world, link), "beta")
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidParameter")
    assert len(world.sim.truth.tasks) == 1


async def test_an_upload_is_an_input_of_its_own_team_in_its_own_region(wide: World) -> None:
    wanted = {"action": "getPolicy", "model": "wan2.6-image"}
    headers = wide.headers(**{"X-Dashgate-Region": SINGAPORE})
    policy = (await wide.http.get("/api/v1/uploads", params=wanted, headers=headers)).json()["data"]
    form = {
        "OSSAccessKeyId": policy["oss_access_key_id"],
        "Signature": policy["signature"],
        "policy": policy["policy"],
        "key": f"{policy['upload_dir']}/cup.png",
        "success_action_status": "200",
    }
    sent = await wide.http.post(policy["upload_host"], data=form, files={"file": ("cup.png", PICTURE)})
    assert sent.status_code == 200
    link, resolve = f"oss://{form['key']}", {"X-DashScope-OssResourceResolve": "enable"}
    assert await make_again(wide, link, **resolve) == link
    assert [task.region for task in wide.sim.truth.tasks] == [SINGAPORE]
    refused = await wide.post(order_with(wide, link), "beta", **resolve)
    assert (refused.status_code, refused.json()["code"]) == (400, "InvalidParameter")
    assert len(wide.sim.truth.tasks) == 1
