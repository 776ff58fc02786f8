"""What the tests of several steps share."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.simulator import Simulator
from tests.steps.parts import let_go
from tests.world import World, open_world


@pytest.fixture
async def hasty(still_sim: Simulator, database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A gateway that lets clients wait for a twentieth of a second only; calls last as long as they like."""
    async with open_world(
        still_sim, database_url, tmp_path, inline_wait_seconds=0.05, call_timeout_seconds=30
    ) as world:
        yield world
        let_go(world)
