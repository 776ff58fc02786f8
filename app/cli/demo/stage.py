"""Sets the demo's stage: upstream, database, accounts, team, API key, folder. A second run finds what is there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from app.cli.migrate import bring_to_newest
from app.cli.serve import free_port
from app.delivery import store
from app.delivery.destinations import NewDestination, set_destination
from app.delivery.inputs import fill_inputs
from app.errors import CommandRefused
from app.lib.db import reading
from app.resources import Resources, check_ready, open_resources
from app.routing.accounts import NewAccount, all_accounts, renew_account
from app.teams.teams import create_team, get_team, issue_key, list_teams

if TYPE_CHECKING:
    from app.settings import Settings
    from app.simulator import Simulator

HOST = "127.0.0.1"
TEAM = "demo"
MAIN_ACCOUNT = "demo"
PICTURES = "pictures"
KEY_DAYS = 7  # each run issues a key, as none can be read again
SIMULATED_SECONDS = 120.0  # the journey takes about ten
REAL_SECONDS = 900.0  # the documented sample took almost four minutes
# Shared hosts; other regions have hosts of a workspace only (dashscope-api.md 1.2).
PUBLIC_BASES = {
    "cn-beijing": "https://dashscope.aliyuncs.com/api/v1",
    "ap-southeast-1": "https://dashscope-intl.aliyuncs.com/api/v1",
    "us-east-1": "https://dashscope-us.aliyuncs.com/api/v1",
    "cn-hongkong": "https://cn-hongkong.dashscope.aliyuncs.com/api/v1",
}


@dataclass(frozen=True, slots=True)
class Upstream:
    """What answers as DashScope. `truth` names the SHA-256 of a task's files where somebody independent knows them."""

    told: str
    accounts: Sequence[NewAccount]
    patience_seconds: float
    truth: Callable[[str], list[str] | None]


@dataclass(frozen=True, slots=True)
class Stage:
    """Everything that the journey needs. The gateway itself is started by the demo."""

    res: Resources
    upstream: Upstream
    address: str
    team_id: UUID
    api_key: str = field(repr=False)
    folder: Path
    schema: str

    @property
    def base_url(self) -> str:
        """What a team puts in place of DashScope's own base URL."""
        return f"http://{self.address}/api/v1"


@asynccontextmanager
async def open_stage(settings: Settings) -> AsyncIterator[Stage]:
    """Set the stage.

    Raises:
        CommandRefused: the database is in use by a real installation, or no base URL is known for the real region.
        NotReady: the database cannot be used.
    """
    async with AsyncExitStack() as stack:
        upstream = await _open_upstream(settings, stack)
        address = f"{HOST}:{free_port(HOST)}"
        ours = settings.model_copy(update={"public_url": f"http://{address}"})
        res = await stack.enter_async_context(open_resources(ours, fill_inputs=fill_inputs))
        _, schema = await bring_to_newest(res)
        await check_ready(res)
        await _add_accounts(res, upstream.accounts)
        team_id = await _add_team(res, [account.region for account in upstream.accounts])
        folder = settings.state_dir / PICTURES
        await _set_folder(res, team_id, folder)
        _, api_key = await issue_key(res, TEAM, name="demo", expires_in_days=KEY_DAYS)
        yield Stage(res, upstream, address, team_id, api_key, folder, str(schema))


async def _open_upstream(settings: Settings, stack: AsyncExitStack) -> Upstream:
    if settings.demo_account_key is None:
        return _simulated(await _start_simulator(settings, stack))
    region = settings.demo_region or ""
    if region not in PUBLIC_BASES:
        known = ", ".join(PUBLIC_BASES)
        raise CommandRefused(f"DASHGATE_DEMO_REGION must be one with a shared host: {known}.")
    key = settings.demo_account_key.get_secret_value()
    account = NewAccount(f"demo-{region}", region, PUBLIC_BASES[region], key, main_account=MAIN_ACCOUNT)
    return Upstream(f"the real one in {region}; this costs money", [account], REAL_SECONDS, lambda _: None)


async def _start_simulator(settings: Settings, stack: AsyncExitStack) -> Simulator:
    """Start it slightly hostile. Only a 503 to a create is left out: that doubt lasts until its deadline, a day."""
    from app.simulator import Hostility, ProductionRefusedError, SimulatorOptions, running_simulator

    hostility = replace(Hostility.slight(), create_unavailable_share=0.0)
    try:
        options = SimulatorOptions.slightly_hostile(hostility=hostility, environment=settings.environment)
    except ProductionRefusedError as error:
        raise CommandRefused(str(error)) from error
    return await stack.enter_async_context(running_simulator(options))


def _simulated(sim: Simulator) -> Upstream:
    accounts = [
        NewAccount(
            f"demo-{region}",
            region,
            sim.base_url(region),
            sim.key(region),
            main_account=MAIN_ACCOUNT,
            file_hosts=(sim.file_host,),
        )
        for region in sim.truth.options.regions
    ]

    def truth(upstream_task_id: str) -> list[str] | None:
        made = next((task for task in sim.truth.tasks if task.id == upstream_task_id), None)
        return [picture.sha256 for picture in made.pictures] if made else None

    regions = ", ".join(account.region for account in accounts)
    return Upstream(f"the simulator, slightly hostile: {regions}", accounts, SIMULATED_SECONDS, truth)


async def _add_accounts(res: Resources, accounts: Sequence[NewAccount]) -> None:
    """Add the demo's accounts, or move them: the simulator's port is another in each run."""
    strangers = {account.name for account in await all_accounts(res)} - {account.name for account in accounts}
    if strangers:
        names = ", ".join(sorted(strangers))
        raise CommandRefused(
            f"This database has accounts of its own ({names}), and the demo would mix with them: "
            "give it an empty database, or another DASHGATE_STATE_DIR."
        )
    for account in accounts:
        await renew_account(res, account)


async def _add_team(res: Resources, regions: Sequence[str]) -> UUID:
    if TEAM not in {team["slug"] for team in await list_teams(res)}:
        return await create_team(res, TEAM, regions=regions)
    team_id: UUID = (await get_team(res, TEAM))["id"]
    return team_id


async def _set_folder(res: Resources, team_id: UUID, folder: Path) -> None:
    """Deliver to the folder, unless that is so already: each setting makes a new version of the place."""
    async with reading(res) as session:
        place = await store.find_destination(session, team_id)
    if place is None or (place["kind"], place["prefix"]) != ("file", str(folder)):
        await set_destination(res, TEAM, NewDestination(url=folder.as_uri()))
