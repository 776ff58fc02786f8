"""The command line as its users have it: real processes, their exit codes, and what they print where."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from app.delivery.destinations import NewDestination, set_destination
from app.embedded.__main__ import clean
from app.resources import Resources, open_resources
from app.routing.accounts import NewAccount, add_account, get_account_by_name
from app.simulator import BEIJING, SINGAPORE, Simulator
from app.teams.teams import create_team
from tests.databases import Databases, run_sql
from tests.world import SECRET_KEY, World, settings_for_tests

PATIENCE_SECONDS = 60
HEAVY = ("sqlalchemy", "fastapi", "asyncpg", "pydantic", "structlog", "httpx", "dashscope", "app.settings")


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout; anything beside it is an error."""
        lines = self.out.splitlines()
        assert len(lines) == 1, self.out + self.err
        return dict(json.loads(lines[0]))

    @property
    def error(self) -> dict[str, str]:
        """The error in the document of a command that failed."""
        assert self.code == 1, self.out + self.err
        assert "Traceback" not in self.err
        assert self.document.keys() == {"error"}
        return dict(self.document["error"])


Dashgate = Callable[..., Awaitable[Done]]


def start(*arguments: str, **settings: str) -> subprocess.Popen[str]:
    """Start a command; of this process's environment it gets nothing."""
    environment = {"PATH": os.defpath, "LC_ALL": "C.UTF-8", **settings}
    command = [sys.executable, "-m", "app.cli", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)


def finish(process: subprocess.Popen[str]) -> Done:
    """Wait for a command's end."""
    try:
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
    finally:
        process.kill()
    return Done(process.returncode, out, err)


async def run(*arguments: str, **settings: str) -> Done:
    """Run a command to its end, beside whatever this process serves."""
    return await asyncio.to_thread(lambda: finish(start(*arguments, **settings)))


@pytest_asyncio.fixture
async def dashgate(own_database: str, tmp_path: Path) -> AsyncIterator[Dashgate]:
    """Run commands on a migrated database of this test's own."""
    usual = {
        "DASHGATE_DATABASE_URL": own_database,
        "DASHGATE_SECRET_KEY": SECRET_KEY,
        "DASHGATE_STATE_DIR": str(tmp_path / "state"),
    }

    async def call(*arguments: str, **settings: str) -> Done:
        return await run(*arguments, **{**usual, **settings})

    yield call


@pytest_asyncio.fixture
async def res(own_database: str, tmp_path: Path) -> AsyncIterator[Resources]:
    """The same database from inside, to set the scene: quicker than commands."""
    async with open_resources(settings_for_tests(own_database, tmp_path)) as res:
        yield res


@pytest.fixture
def state_dir(tmp_path: Path) -> Iterator[Path]:
    """A state directory whose embedded server, and what it put elsewhere, is removed."""
    yield tmp_path / "state"
    clean(tmp_path / "state")


def test_the_command_line_is_quick_to_load_because_it_loads_nothing_heavy() -> None:
    seen = f"import sys, app.cli; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


async def test_without_a_database_a_command_says_what_to_set() -> None:
    for_people, for_programs, serving = await asyncio.gather(
        run("team", "list"), run("team", "list", "--json"), run("serve", "--json")
    )
    hint = "E01 no database: set DASHGATE_DATABASE_URL (postgresql://…), or DASHGATE_EMBEDDED=1"
    assert (for_people.code, for_people.out) == (1, "")
    assert for_people.err.startswith(f"dashgate: {hint}")
    assert for_programs.error["message"].startswith(hint)
    assert serving.error == for_programs.error


async def test_a_setting_that_cannot_be_used_is_named_and_its_value_is_not_shown() -> None:
    given = {"DASHGATE_SECRET_KEY": "hunter2", "DASHGATE_BILLING_TIMEZONE": "hunter3", "DASHGATE_PUBLIC_URL": "hunter4"}
    done, missing = await asyncio.gather(
        run("doctor", "--json", **given), run("doctor", "--json", DASHGATE_ADMIN_TOKEN_FILE="/hunter5")
    )
    assert done.error["message"].startswith("E07 3 settings cannot be used: ")
    assert all(name in done.error["message"] for name in given)
    assert missing.error["message"].startswith("E07 a file named by a DASHGATE_…_FILE setting cannot be read")
    assert "hunter" not in done.out + done.err + missing.out + missing.err


async def test_a_wrong_option_is_one_document_too() -> None:
    unknown, incomplete = await asyncio.gather(run("nonsense", "--json"), run("account", "add", "--json"))
    assert unknown.error == {"code": "Usage", "message": "No such command 'nonsense'."}
    assert incomplete.error["code"] == "Usage"


async def test_an_address_that_is_no_database_is_a_clean_error() -> None:
    usual = {"DASHGATE_SECRET_KEY": SECRET_KEY}
    away, nonsense = await asyncio.gather(
        run("team", "list", "--json", DASHGATE_DATABASE_URL="postgresql://u:hunter2@127.0.0.1:1/x", **usual),
        run("migrate", "--json", DASHGATE_DATABASE_URL="hunter2", **usual),
    )
    assert away.error["message"] == "E01 the database cannot be reached: check DASHGATE_DATABASE_URL and the server"
    assert nonsense.error["message"].startswith("E01 DASHGATE_DATABASE_URL is not a URL")
    assert "hunter2" not in away.out + away.err + nonsense.out + nonsense.err


async def test_migrate_tells_from_where_to_where_and_others_refuse_until_then(databases: Databases) -> None:
    name = f"dashgate_test_{secrets.token_hex(6)}"
    await run_sql(databases.server_url, f'CREATE DATABASE "{name}"')
    empty = {"DASHGATE_SECRET_KEY": SECRET_KEY, "DASHGATE_DATABASE_URL": _at(databases.server_url, name)}
    try:
        early = await run("team", "list", "--json", **empty)
        first = await run("migrate", "--json", **empty)
        again = await run("migrate", "--json", **empty)
        seen = await run("team", "list", "--json", **empty)
        other_key = {**empty, "DASHGATE_SECRET_KEY": "another secret key of 32 characters or more"}
        with_another_key = await run("worker", "--json", **other_key)
    finally:
        await run_sql(databases.server_url, f'DROP DATABASE "{name}" WITH (FORCE)')
    assert early.error["message"].startswith("E04 the database is at schema none")
    assert first.document["from"] is None
    assert again.document == {"from": first.document["to"], "to": first.document["to"]}
    assert seen.document["teams"] == []
    assert with_another_key.error["message"].startswith("E06 DASHGATE_SECRET_KEY is not the key")


async def test_an_operator_sets_up_a_team_and_no_secret_is_printed_twice(
    dashgate: Dashgate, still_sim: Simulator, tmp_path: Path
) -> None:
    key_file = tmp_path / "upstream.key"
    key_file.write_text(f"{still_sim.key(BEIJING)}\n")
    where = ("--region", BEIJING, "--base-url", still_sim.base_url(BEIJING))
    added = await dashgate("account", "add", "main", *where, "--api-key-file", str(key_file), "--json")
    assert added.document["name"] == "main"
    team = await dashgate("team", "create", "alpha", "--json")
    assert team.document["regions"] == [BEIJING]
    place = await dashgate("destination", "set", "alpha", "--url", f"file://{tmp_path}/pictures", "--json")
    assert place.document["links"] == "gateway"
    issued = await dashgate("key", "create", "alpha", "--expires-in", "3", "--model", "wan*", "--json")
    api_key = issued.document["api_key"]
    limited = await dashgate("account", "limit", "main", "wan2.6-image", "--rps", "2", "--running", "3", "--json")
    assert (limited.document["rps"], limited.document["running"]) == (2.0, 3)

    listed = await asyncio.gather(
        *(dashgate(*words, "--json") for words in [("account", "list"), ("team", "list"), ("key", "list", "alpha")])
    )
    accounts, teams, keys = (done.document for done in listed)
    shown = [
        (row["name"], row["weight"], row["serving"], row["keys"], row["keys_usable"]) for row in accounts["accounts"]
    ]
    assert shown == [("main", 1, "active", 1, 1)]
    assert [(row["slug"], row["has_destination"]) for row in teams["teams"]] == [("alpha", True)]
    assert teams["warnings"] == []
    assert [(row["id"], row["models"]) for row in keys["keys"]] == [(issued.document["id"], ["wan*"])]
    revoked = await dashgate("key", "revoke", issued.document["id"], "--json")
    assert revoked.document == {"id": issued.document["id"], "revoked": True}

    assert issued.out.count(api_key) == 1
    others = [added, team, place, limited, revoked, *listed]
    assert all(api_key not in done.out + done.err for done in others)
    assert all(still_sim.key(BEIJING) not in done.out + done.err for done in [issued, *others])


async def test_an_operator_replaces_an_upstream_key_and_holds_an_account_back(
    dashgate: Dashgate, res: Resources, tmp_path: Path
) -> None:
    old, new = "sk-0123456789abcdef-old", "sk-fedcba9876543210-new"
    await add_account(res, NewAccount("main", BEIJING, "https://dashscope.aliyuncs.com/api/v1", old))
    key_file = tmp_path / "upstream.key"
    key_file.write_text(new)
    (old_id,) = [key.id for key in (await get_account_by_name(res, "main")).keys]

    early = await dashgate("account", "key", "retire", "main", str(old_id), "--json")
    assert early.error["message"].startswith("The account main would have no usable key left")
    added = await dashgate("account", "key", "add", "main", "--api-key-file", str(key_file), "--json")
    retired = await dashgate("account", "key", "retire", "main", str(old_id), "--json")
    assert retired.document == {"account": "main", "id": str(old_id), "retired": True}
    listed, drawn = await asyncio.gather(
        dashgate("account", "key", "list", "main", "--json"), dashgate("account", "key", "list", "main")
    )
    keys = listed.document["keys"]
    assert [(key["id"], key["begins"], key["usable"]) for key in keys] == [
        (added.document["id"], "sk-fe…", True),
        (str(old_id), "sk-01…", False),
    ]
    assert "sk-fe…" in drawn.out

    changed = await dashgate("account", "set", "main", "--weight", "3", "--file-host", "files.example:443", "--json")
    assert (changed.document["weight"], changed.document["file_hosts"]) == (3, ["files.example:443"])
    paused = await dashgate("account", "pause", "main", "--reason", "a leak", "--json")
    assert paused.document["serving"] == "paused"
    (row,) = (await dashgate("account", "list", "--json")).document["accounts"]
    assert (row["serving"], row["paused_reason"], row["weight"], row["keys"]) == ("paused", "a leak", 3, 1)
    draining = await dashgate("account", "drain", "main", "--json")
    resumed = await dashgate("account", "resume", "main", "--json")
    assert (draining.document["serving"], resumed.document["serving"]) == ("draining", "active")
    everything = "".join(done.out + done.err for done in (early, added, retired, listed, drawn, changed, paused))
    assert old not in everything
    assert new not in everything


async def test_an_account_is_added_at_its_regions_own_address(dashgate: Dashgate) -> None:
    key = ("--api-key", "sk-1", "--json")
    shared, dedicated, needs_workspace, unknown, invented = await asyncio.gather(
        dashgate("account", "add", "a", "--region", SINGAPORE, *key),
        dashgate("account", "add", "b", "--region", "eu-central-1", "--workspace", "ws-1a2b", *key),
        dashgate("account", "add", "c", "--region", "eu-central-1", *key),
        dashgate("account", "add", "d", "--region", "atlantis", *key),
        dashgate("account", "add", "e", "--region", "atlantis", "--base-url", "http://127.0.0.1:1/api/v1", *key),
    )
    assert shared.document["base_url"] == "https://dashscope-intl.aliyuncs.com/api/v1"
    assert dedicated.document["base_url"] == "https://ws-1a2b.eu-central-1.maas.aliyuncs.com/api/v1"
    assert shared.document["warnings"] == dedicated.document["warnings"] == []
    assert "--workspace" in needs_workspace.error["message"]
    assert unknown.error["message"].endswith("give --base-url.")
    assert invented.document["warnings"][0].startswith("atlantis is no region of Alibaba's")


async def test_an_operator_sets_what_a_team_chose(dashgate: Dashgate, res: Resources) -> None:
    await create_team(res, "alpha", regions=[BEIJING])
    chosen = ("--durable", "off", "--hold", "on", "--allow-unlisted", "on", "--rps", "2.5", "--model", "wan*")
    before = await dashgate("team", "show", "alpha", "--json")
    after = await dashgate("team", "set", "alpha", *chosen, "--region", SINGAPORE, "--region", BEIJING, "--json")
    drawn = await dashgate("team", "show", "alpha")
    names = ("durable", "hold", "allow_unlisted_models", "rps", "models", "regions", "default_region")
    assert [before.document[name] for name in names] == [True, False, False, None, ["*"], [BEIJING], BEIJING]
    assert [after.document[name] for name in names] == [
        *(False, True, True, 2.5, ["wan*"]),
        *([SINGAPORE, BEIJING], SINGAPORE),
    ]
    assert drawn.code == 0
    assert "2.5" in drawn.out
    lifted, nothing, nonsense = await asyncio.gather(
        dashgate("team", "set", "alpha", "--rps", "none", "--json"),
        dashgate("team", "set", "alpha", "--json"),
        dashgate("team", "set", "alpha", "--rps", "NaN", "--json"),
    )
    assert (lifted.document["rps"], lifted.document["hold"]) == (None, True)
    assert nothing.error["message"] == "Say what to change."
    assert nonsense.error["message"] == "--rps takes a number, or none."


async def test_a_command_that_is_refused_says_why(dashgate: Dashgate, res: Resources) -> None:
    await create_team(res, "alpha", regions=[BEIJING])
    where = ("--region", BEIJING, "--base-url", "https://dashscope.aliyuncs.com/api/v1")
    refused = await asyncio.gather(
        dashgate("team", "create", "ünicode", "--json"),
        dashgate("account", "add", "main", *where, "--json"),
        dashgate("account", "add", "main", *where, "--api-key", "sk-sp-hunter2", "--json"),
        dashgate("account", "key", "add", "main", "--api-key", "sk-sp-hunter2", "--json"),
        dashgate("account", "key", "retire", "main", "not-an-id", "--json"),
        dashgate("destination", "set", "alpha", "--url", "file:///proc/nothing", "--json"),
        dashgate("task", "show", "not-an-id", "--json"),
    )
    words = [
        "A team's slug has",
        "Give --api-key or --api-key-file",
        "A subscription key",
        "A subscription key",
        "The account main has no key not-an-id.",
        "The destination does not work: PUT failed",
        "There is no task not-an-id.",
    ]
    for done, expected in zip(refused, words, strict=True):
        assert done.error["message"].startswith(expected)
        assert "hunter2" not in done.out + done.err


async def test_doctor_proves_each_line_by_a_call(
    dashgate: Dashgate, res: Resources, still_sim: Simulator, tmp_path: Path
) -> None:
    for name, region, key in (("good", BEIJING, BEIJING), ("mixed-up", SINGAPORE, BEIJING)):
        await add_account(res, NewAccount(name, region, still_sim.base_url(region), still_sim.key(key)))
    await add_account(res, NewAccount("gone", BEIJING, "http://127.0.0.1:1/api/v1", "sk-gone"))
    for team in ("alpha", "gamma"):
        await create_team(res, team, regions=[BEIJING])
    await set_destination(res, "alpha", NewDestination(f"file://{tmp_path}/pictures"))

    done = await dashgate("doctor", "--json")

    assert done.code == 1
    assert done.document["well"] is False
    found = {line["check"]: line for line in done.document["findings"]}
    assert {name: line["level"] for name, line in found.items()} == {
        "catalogue": "ok",
        "redis": "ok",
        "database": "ok",
        "secret key": "ok",
        "clock": "ok",
        "account good": "ok",
        "account mixed-up": "failed",
        "account gone": "failed",
        "main accounts": "warning",  # good and gone share a region: that they are two cannot be told
        "destination of alpha": "ok",
        "destination of gamma": "warning",
    }
    assert found["account mixed-up"]["text"].endswith("this key answers in cn-beijing: wrong region")
    lists = still_sim.truth.journal.read(operation="list", since=0)
    # One of each account whose upstream is there, and the one that found the key's region: a line proves something.
    assert len(lists) == 3


async def test_doctor_is_content_with_an_installation_that_is_only_new(dashgate: Dashgate) -> None:
    done = await dashgate("doctor", "--json")
    assert (done.code, done.document["well"]) == (0, True)
    assert [line["check"] for line in done.document["findings"] if line["level"] == "warning"] == ["accounts"]


async def test_a_redis_that_does_not_answer_is_found(dashgate: Dashgate) -> None:
    done = await dashgate("doctor", "--json", DASHGATE_REDIS_URL="redis://:hunter2@127.0.0.1:1/0")
    found = {line["check"]: line for line in done.document["findings"]}
    assert (done.code, found["redis"]["level"]) == (1, "failed")
    assert "hunter2" not in done.out + done.err


async def test_a_task_is_shown_with_its_whole_life_but_without_prompt_and_upstream_links(world: World) -> None:
    stored = await world.create("a secret prompt", n=2)
    unstored = await world.create("another secret prompt", team="gamma")
    await world.finish(stored)
    await world.finish(unstored, "gamma")
    usual = {"DASHGATE_DATABASE_URL": world.database_url, "DASHGATE_SECRET_KEY": SECRET_KEY}

    shown, drawn, warned, listed, report = await asyncio.gather(
        run("task", "show", stored, "--json", **usual),
        run("task", "show", stored, **usual),
        run("task", "show", unstored, "--json", **usual),
        run("task", "list", "--team", "alpha", "--state", "succeeded", "--json", **usual),
        run("usage", "report", "--team", "alpha", "--json", **usual),
    )

    task = shown.document
    assert [event["state"] for event in task["events"]] == ["submitting", "pending", "delivering", "succeeded"]
    assert (task["state"], task["team"], task["attempt"], task["destination_missing"]) == (
        "succeeded",
        "alpha",
        1,
        False,
    )
    truth = next(made for made in world.sim.truth.tasks if made.id == task["upstream_task_id"])
    assert [asset["sha256"] for asset in task["assets"]] == [picture.sha256 for picture in truth.pictures]
    assert [(line["kind"], line["quantity"]) for line in task["ledger"]] == [("usage", "2")]
    assert warned.document["destination_missing"] is True
    assert warned.document["warnings"]
    assert [row["id"] for row in listed.document["tasks"]] == [stored]
    assert [(line["team"], line["quantity"]) for line in report.document["lines"]] == [("alpha", "2")]
    assert all(asset["sha256"] in drawn.out for asset in task["assets"])
    everything = "".join(done.out + done.err for done in (shown, drawn, warned, listed))
    assert "secret prompt" not in everything
    assert world.sim.file_host not in everything


async def test_an_operator_cancels_what_waits_whosever_it_is_and_is_told_what_happened(world: World) -> None:
    running = await world.create(team="beta")
    world.sim.set_limits(running_tasks=0)
    world.sim.fail_next("create", "429")
    waiting = await world.create()
    usual = {"DASHGATE_DATABASE_URL": world.database_url, "DASHGATE_SECRET_KEY": SECRET_KEY}
    await world.rows("UPDATE tasks SET state = 'running' WHERE id = $1::uuid", running)

    cancelled, refused, drawn, unknown = await asyncio.gather(
        run("task", "cancel", waiting, "--json", **usual),
        run("task", "cancel", running, "--json", **usual),
        run("task", "cancel", running, **usual),
        run("task", "cancel", "0385dc79-5ff8-4d82-bcb6-000000000000", "--json", **usual),
    )

    assert cancelled.code == 0
    assert cancelled.document == {
        "task": waiting,
        "team": "alpha",
        "result": "canceled",
        "state_before": "queued",
        "state": "canceled",
    }
    assert await world.status(waiting) == "CANCELED"
    assert (refused.code, refused.document["result"], refused.document["state"]) == (1, "refused", "running")
    assert drawn.code == 1
    assert "Not cancelled" in drawn.out
    assert "There is no task" in unknown.error["message"]


async def test_serve_says_where_it_serves_and_a_second_one_there_is_a_clean_error(
    dashgate: Dashgate, own_database: str
) -> None:
    usual = {"DASHGATE_DATABASE_URL": own_database, "DASHGATE_SECRET_KEY": SECRET_KEY}
    process = start("serve", "--port", "0", "--surface", "operators", "--json", **usual)
    try:
        assert process.stdout is not None
        told = json.loads(await asyncio.to_thread(process.stdout.readline))
        port = told["operators"].rpartition(":")[2]
        assert told["teams"] is None
        second = await dashgate("serve", "--port", port, "--surface", "teams", "--json")
        assert "in use" in second.error["message"]
    finally:
        process.terminate()
        done = await asyncio.to_thread(finish, process)
    assert (done.code, done.out) == (0, "")
    assert SECRET_KEY not in done.err
    assert "settings.read" in done.err
    assert "accounts.missing" in done.err


async def test_a_worker_stops_when_it_is_asked_to(own_database: str) -> None:
    process = start("worker", "--json", DASHGATE_DATABASE_URL=own_database, DASHGATE_SECRET_KEY=SECRET_KEY)
    assert process.stdout is not None
    told = json.loads(await asyncio.to_thread(process.stdout.readline))
    process.terminate()
    done = await asyncio.to_thread(finish, process)
    assert "poll" in told["loops"]
    assert (done.code, done.out) == (0, "")


async def test_commands_share_the_embedded_server_of_the_process_that_runs_it(state_dir: Path) -> None:
    embedded = {"DASHGATE_EMBEDDED": "1", "DASHGATE_STATE_DIR": str(state_dir)}
    first = await run("migrate", "--json", **embedded)
    assert first.document["from"] is None
    kept = (state_dir / "secret.key").read_text()
    process = start("serve", "--port", "0", "--surface", "teams", "--json", **embedded)
    try:
        assert process.stdout is not None
        assert json.loads(await asyncio.to_thread(process.stdout.readline))["teams"]
        made = await run("team", "create", "alpha", "--json", **embedded)
    finally:
        process.terminate()
        done = await asyncio.to_thread(finish, process)
    after = await run("team", "list", "--json", **embedded)
    assert made.document["regions"] == [BEIJING]
    assert done.code == 0
    assert [team["slug"] for team in after.document["teams"]] == ["alpha"]
    assert (state_dir / "secret.key").stat().st_mode & 0o777 == 0o600
    assert not (state_dir / "embedded.url").exists()
    assert kept not in first.err + done.err


async def test_nothing_simulated_starts_in_production(state_dir: Path) -> None:
    production = {"DASHGATE_ENVIRONMENT": "production", "DASHGATE_STATE_DIR": str(state_dir)}
    simulator, demo = await asyncio.gather(
        run("simulator", "--json", **production), run("demo", "--once", "--json", **production)
    )
    assert simulator.error["message"].startswith("The simulator refuses to start")
    assert demo.error == simulator.error


def _at(server_url: str, database: str) -> str:
    from sqlalchemy.engine import make_url

    return make_url(server_url).set(database=database).render_as_string(hide_password=False)
