"""/livez, /readyz, /metrics and /admin/v1: what machines and operators are told, and that nobody else is."""

from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from app.api.openapi import document
from app.main import create_app
from app.resources import open_resources
from app.simulator import Simulator
from tests.api.parts import without_database
from tests.world import ADMIN_TOKEN, World, open_world, settings_for_tests

OPERATORS_OWN = ("/metrics", "/admin/v1/usage", "/openapi.json")


async def metrics(world: World) -> dict[tuple[str, ...], float]:
    """Return every sample by its name and label values."""
    answer = await world.operators.get("/metrics")
    assert answer.status_code == 200
    families = text_string_to_metric_families(answer.text)
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def client_of(app: Any, **headers: str) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers)


# --- alive and ready -----------------------------------------------------------------------------------------------


async def test_a_running_process_is_alive_on_both_surfaces_without_any_key(world: World) -> None:
    for client in (world.http, client_of(create_app("operators", world.res))):
        answer = await client.get("/livez")
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_it_is_alive_but_not_ready_while_the_database_is_away(world: World) -> None:
    async with without_database(world) as (_, teams, operators):
        assert (await teams.get("/livez")).status_code == 200
        short, full = await teams.get("/readyz"), await operators.get("/readyz")
    assert (short.status_code, short.json()) == (503, {"status": "unready"})
    assert full.status_code == 503
    assert full.json()["problem"].startswith("E01")


async def test_a_ready_gateway_tells_teams_only_that(world: World) -> None:
    answer = await world.http.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_having_no_account_is_a_warning_and_no_refusal(
    still_sim: Simulator, database_url: str, tmp_path: Path
) -> None:
    async with open_world(still_sim, database_url, tmp_path, regions=()) as world:
        answer = await world.operators.get("/readyz")
    assert answer.status_code == 200
    assert answer.json()["warnings"][0].startswith("W01")


async def test_another_secret_key_is_not_ready(world: World) -> None:
    await world.operators.get("/readyz")  # the first process leaves the fingerprint
    settings = settings_for_tests(world.database_url, world.folder, secret_key="another key of more than 32 characters")
    async with open_resources(settings) as res:
        answer = await client_of(create_app("teams", res)).get("/readyz")
    assert (answer.status_code, answer.json()) == (503, {"status": "unready"})


async def test_another_schema_is_not_ready(world: World) -> None:
    (row,) = await world.rows("SELECT version_num FROM alembic_version")
    await world.rows("UPDATE alembic_version SET version_num = 'of_tomorrow'")
    try:
        answer = await world.operators.get("/readyz")
    finally:
        await world.rows("UPDATE alembic_version SET version_num = $1", row["version_num"])
    assert answer.status_code == 503
    assert answer.json()["problem"].startswith("E04")


# --- who is an operator --------------------------------------------------------------------------------------------


async def test_only_the_admin_token_opens_the_operators_surface(world: World) -> None:
    wrong = [
        {},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer wrong"},
        {"Authorization": ADMIN_TOKEN},
        {"Authorization": f"Basic {ADMIN_TOKEN}"},
        {"Authorization": f"Bearer {ADMIN_TOKEN}x"},
        {"Authorization": f"Bearer {ADMIN_TOKEN[:-1]}"},
        {"Authorization": b"Bearer caf\xe9"},
        world.headers(),
    ]
    async with client_of(create_app("operators", world.res)) as stranger:
        for path in OPERATORS_OWN:
            statuses = [(await stranger.get(path, headers=headers)).status_code for headers in wrong]
            assert statuses == [401] * len(wrong), path


async def test_operators_get_the_document_of_the_teams_routes_for_their_own_address(world: World) -> None:
    answer = await world.operators.get("/openapi.json")
    assert answer.status_code == 200
    assert answer.json() == document(world.res.settings.public_url)


async def test_without_an_admin_token_set_nobody_is_an_operator(database_url: str, tmp_path: Path) -> None:
    async with open_resources(settings_for_tests(database_url, tmp_path, admin_token=None)) as res:
        for given in ("Bearer ", "Bearer None", f"Bearer {ADMIN_TOKEN}"):
            client = client_of(create_app("operators", res), Authorization=given)
            assert (await client.get("/metrics")).status_code == 401


async def test_the_admin_token_is_no_teams_key(world: World) -> None:
    sent = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    assert (await world.http.get("/v1/usage", headers=sent)).status_code == 401
    assert (await world.http.get("/api/v1/tasks/x", headers=sent)).status_code == 401


async def test_the_teams_surface_has_nothing_of_the_operators(world: World) -> None:
    sent = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    others = ("/admin/v1", "/console", "//metrics", "/METRICS", "/admin;x", "/api/v1/openapi.json")
    for path in (*OPERATORS_OWN, *others):
        assert (await world.http.get(path, headers=sent)).status_code == 404, path


async def test_the_operators_surface_has_nothing_of_the_teams(world: World) -> None:
    for path in ("/v1/usage", "/api/v1/tasks/x", "/assets/x/y"):
        assert (await world.operators.get(path)).status_code == 404, path


async def test_nothing_else_is_served_on_either_surface(world: World) -> None:
    for path in ("/docs", "/redoc", "/debug", "/.git/config", "/env", "/"):
        for client in (world.http, world.operators):
            assert (await client.get(path)).status_code == 404, path


# --- metrics and usage ---------------------------------------------------------------------------------------------


async def test_the_metrics_count_what_stands_in_the_tables(world: World) -> None:
    world.sim.fail_next("create", "429")
    await world.create()
    world.sim.fail_next("create", "lost_answer")
    await world.create()  # behind the first: it waits too
    seen = await metrics(world)
    assert seen["dashgate_tasks_open", "queued"] == 2
    assert seen["dashgate_tasks_open", "pending"] == 0
    assert seen["dashgate_work_due", "submit"] == 2
    assert seen["dashgate_work_oldest_seconds", "submit"] >= 0


async def test_the_metrics_fall_back_to_zero_when_all_is_done(world: World) -> None:
    await world.finish(await world.create())
    seen = await metrics(world)
    assert all(value == 0 for name, value in seen.items() if name[0] == "dashgate_tasks_open")


async def test_labels_stay_few_whatever_is_asked_for(world: World) -> None:
    boats = ("boat-1", "boat-2", "boat-3")
    for name in boats:
        await world.http.get(f"/api/v1/tasks/{name}", headers=world.headers())
        await world.http.get(f"/no/such/{name}")
    text = (await world.operators.get("/metrics")).text
    assert not any(name in text for name in boats)
    assert 'route="/api/v1/tasks/{task_id}"' in text


async def test_the_operator_reads_the_usage_of_all_teams(world: World) -> None:
    for team in ("alpha", "gamma"):
        await world.finish(await world.create(team=team), team)
    body = (await world.operators.get("/admin/v1/usage")).json()
    assert [(line["team"], line["quantity"]) for line in body["lines"]] == [
        ("alpha", "1"),
        ("gamma", "1"),
    ]
    assert body["billing_timezone"] == "Asia/Shanghai"


async def test_a_malformed_month_is_a_problem_for_the_operator_too(world: World) -> None:
    answer = await world.operators.get("/admin/v1/usage", params={"month": "soon"})
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
