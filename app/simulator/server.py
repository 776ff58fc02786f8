"""Serving a simulator over real HTTP inside a running event loop: two small uvicorn servers and a handle on them.

Installs no signal handlers (except `serve`, which is a whole program) and configures no logging.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.simulator.control import create_control
from app.simulator.exchange import HANG_UP, Exchange
from app.simulator.faults import make_fault
from app.simulator.front import create_front, native_path
from app.simulator.options import SimulatorOptions
from app.simulator.world import World

# Only idle keep-alive connections and answers already under way are waited for.
STOP_SECONDS = 2


@dataclass(frozen=True, slots=True)
class Simulator:
    """A running simulator.

    `truth` is its state, to be read: `.tasks`, `.calls`, `.bill()`, `.bill_units()`, `.uploads`, `.journal`, `.clock`.
    """

    truth: World
    host: str
    port: int
    control_port: int
    _exchange: Exchange

    @property
    def file_host(self) -> str:
        """Host and port of the links to files, when the client uses `base_url`."""
        return f"{self.host}:{self.port}"

    @property
    def control_url(self) -> str:
        """Where the control port listens."""
        return f"http://{self.host}:{self.control_port}/control"

    def base_url(self, region: str) -> str:
        """Return the native base URL of a region. Raises: `LookupError` for an unknown region."""
        self.key(region)
        return f"http://{self.host}:{self.port}{native_path(region)}"

    def key(self, region: str) -> str:
        """Return the first key of a region. Raises: `LookupError` for an unknown region."""
        for key in self.truth.options.keys:
            if key.region == region:
                return key.secret
        raise LookupError(f"the simulator has no region {region!r}")

    def advance(self, seconds: float) -> None:
        """Move the simulator's time forward."""
        self.truth.clock.advance(seconds)

    def fail_next(self, operation: str, kind: str, times: int = 1, **details: Any) -> None:
        """Script a fault for the next `times` requests of an operation: see `faults.Fault` for the details."""
        self.truth.faults.add(make_fault(operation, kind, times=times, **details))

    def set_durations(self, low: float, high: float, *, next_only: bool = False) -> None:
        """Let tasks created from now on, or only the next one, take between `low` and `high` seconds."""
        self.truth.set_durations(low, high, next_only=next_only)

    def set_limits(self, **changes: int) -> None:
        """Change some of the limits: see `options.Limits`."""
        self.truth.set_limits(**changes)

    def reset(self) -> None:
        """Forget everything, go back to the options, and let go of requests that hang."""
        self.truth.reset()
        self._exchange.release()


@contextlib.asynccontextmanager
async def running_simulator(
    options: SimulatorOptions | None = None, *, host: str = "127.0.0.1", port: int = 0, control_port: int = 0
) -> AsyncIterator[Simulator]:
    """Serve a simulator while the block runs; port 0 takes a free one. Raises: `OSError` when a port is taken."""
    exchange = Exchange(World(options or SimulatorOptions()))
    with _open_door(host, port) as door, _open_door(host, control_port) as control_door:
        simulator = Simulator(
            truth=exchange.world,
            host=_reachable(host),
            port=door.getsockname()[1],
            control_port=control_door.getsockname()[1],
            _exchange=exchange,
        )
        async with _served(create_front(exchange), door), _served(create_control(exchange), control_door):
            try:
                yield simulator
            finally:
                exchange.close()


async def serve(
    options: SimulatorOptions, *, host: str, port: int, control_port: int, announce: Callable[[Simulator], None]
) -> None:
    """Run a simulator until SIGINT or SIGTERM; `announce` is called once it answers."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signal_number, stop.set)
    async with running_simulator(options, host=host, port=port, control_port=control_port) as simulator:
        announce(simulator)
        await stop.wait()


def _open_door(host: str, port: int) -> socket.socket:
    """Listen on a port.

    asyncio switches Nagle's algorithm off only for sockets that name TCP as their protocol, and these do not: without
    the option, taken over by every accepted connection, each answer is 40 ms late.
    """
    door = socket.create_server((host, port))
    door.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return door


class _Protocol(HttpToolsProtocol):
    """uvicorn's own protocol, which also hands each request a way to hang up without an answer."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {HANG_UP: self.transport.abort}  # type: ignore[dict-item]  # ours, a callable


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.answering = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        self.answering.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the program around us."""
        yield


@contextlib.asynccontextmanager
async def _served(app: ASGIApp, door: socket.socket) -> AsyncIterator[None]:
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    server = _Server(config)
    running = asyncio.create_task(server.serve(sockets=[door]))
    try:
        await server.answering.wait()
        yield
    finally:
        server.should_exit = True
        await running


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "") else host  # noqa: S104 - recognised, not bound
