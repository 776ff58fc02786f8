"""GET /v1/usage: a team's own sums, and nobody else's."""

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from tests.api.parts import without_database
from tests.world import World


async def lines(world: World, team: str = "alpha", **query: str) -> list[dict[str, Any]]:
    answer = await world.http.get("/v1/usage", params=query, headers=world.headers(team))
    assert answer.status_code == 200, answer.text
    return list(answer.json()["lines"])


async def used(world: World, team: str = "alpha", **parameters: Any) -> None:
    await world.finish(await world.create(team=team, **parameters), team)


def month_of(world: World) -> str:
    return f"{datetime.fromtimestamp(world.sim.truth.clock.now(), ZoneInfo('Asia/Shanghai')):%Y-%m}"


async def test_a_team_that_used_nothing_has_no_lines(world: World) -> None:
    answer = await world.http.get("/v1/usage", headers=world.headers())
    assert answer.json() == {"billing_timezone": "Asia/Shanghai", "lines": []}


async def test_a_line_sums_what_the_upstream_says_it_made(world: World) -> None:
    await used(world, n=1)
    await used(world, n=3)
    assert await lines(world) == [
        {
            "month": month_of(world),
            "team": "alpha",
            "region": "cn-beijing",
            "model": "wan2.6-image",
            "unit": "image",
            "tasks": 2,
            "quantity": "4",
            "presumed": "0",
            "uncertain": "0",
        }
    ]


async def test_what_failed_costs_nothing(world: World) -> None:
    await world.finish(await world.create("[[broken]]"))
    await world.post(world.order(n=99))
    assert await lines(world) == []


async def test_what_may_have_been_made_stands_apart_from_the_bill(world: World) -> None:
    await world.create(n=2)
    world.sim.fail_next("create", "lost_answer")
    await world.create(n=3)
    await world.advance(86_401)
    (line,) = await lines(world)
    assert (line["quantity"], line["presumed"], line["uncertain"]) == ("0", "2", "3")


async def test_a_team_sees_its_own_lines_alone(world: World) -> None:
    await used(world, "alpha", n=3)
    await used(world, "gamma", n=1)
    assert [line["team"] for line in await lines(world, "gamma")] == ["gamma"]
    assert await lines(world, "beta") == []


async def test_no_parameter_opens_another_teams_sums(world: World) -> None:
    await used(world, "alpha")
    alpha = (await world.row("SELECT id FROM teams WHERE slug = 'alpha'"))["id"]
    for query in ({"team": "alpha"}, {"team_id": str(alpha)}, {"slug": "alpha"}):
        answer = await world.http.get("/v1/usage", params=query, headers=world.headers("beta"))
        assert answer.json()["lines"] == []
    answer = await world.http.get("/v1/usage", headers=world.headers("beta", **{"X-Team-Id": str(alpha)}))
    assert answer.json()["lines"] == []


async def test_a_month_can_be_asked_for(world: World) -> None:
    await used(world)
    assert len(await lines(world, month=month_of(world))) == 1
    assert await lines(world, month="2021-01") == []


async def test_months_are_those_of_the_billing_zone(world: World) -> None:
    now = datetime.fromtimestamp(world.sim.truth.clock.now(), UTC)
    last_hour = datetime(now.year + 1, 1, 31, 15, 59, 50, tzinfo=UTC)  # 23:59:50 in Shanghai
    world.sim.advance((last_hour - now).total_seconds())
    await used(world)
    world.sim.advance(60)
    await used(world)
    assert [line["month"] for line in await lines(world)] == [f"{now.year + 1}-01", f"{now.year + 1}-02"]


async def test_a_month_of_another_form_is_refused_without_an_echo(world: World) -> None:
    for month in (
        "2026-13",
        "2026-1",
        "26-01",
        "1999-01",
        "2026-01-01",
        "' OR 1=1 --",
        "",
        "\u0662\u0660\u0662\u0666-01",
    ):
        answer = await world.http.get("/v1/usage", params={"month": month}, headers=world.headers())
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json"), month
        assert answer.json()["detail"] == "month must be of the form YYYY-MM."


async def test_without_a_key_nothing_is_told(world: World) -> None:
    answer = await world.http.get("/v1/usage")
    assert (answer.status_code, answer.headers["content-type"]) == (401, "application/problem+json")
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_while_the_database_is_away_it_is_a_503(world: World) -> None:
    async with without_database(world) as (_, teams, _):
        answer = await teams.get("/v1/usage", headers=world.headers())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
