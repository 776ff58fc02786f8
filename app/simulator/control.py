"""The control port: moves time, scripts trouble, tells the truth. JSON in, JSON out.

Never part of the simulated protocol, therefore on a port of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.simulator.calls import Call
from app.simulator.exchange import Exchange
from app.simulator.faults import make_fault
from app.simulator.front import native_path
from app.simulator.tasks import Picture, Task
from app.simulator.wire import Json

Body = dict[str, Any]


def create_control(exchange: Exchange) -> Starlette:
    """Make the ASGI app of the control port."""
    port = _ControlPort(exchange)
    return Starlette(
        routes=[
            Route("/control/state", port.state, methods=["GET"]),
            Route("/control/clock", port.clock, methods=["POST"]),
            Route("/control/durations", port.durations, methods=["POST"]),
            Route("/control/limits", port.limits, methods=["POST"]),
            Route("/control/faults", port.add_fault, methods=["POST"]),
            Route("/control/faults", port.clear_faults, methods=["DELETE"]),
            Route("/control/journal", port.journal, methods=["GET"]),
            Route("/control/tasks", port.tasks, methods=["GET"]),
            Route("/control/calls", port.calls, methods=["GET"]),
            Route("/control/uploads", port.uploads, methods=["GET"]),
            Route("/control/bill", port.bill, methods=["GET"]),
            Route("/control/reset", port.reset, methods=["POST"]),
        ],
        exception_handlers={HTTPException: _refuse, ValueError: _refuse_nonsense},
    )


class _ControlPort:
    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._world = exchange.world

    async def state(self, request: Request) -> Response:
        """Tell clock, limits, durations, faults to come, and the options."""
        return self._state()

    async def clock(self, request: Request) -> Response:
        """Move time: `advance_seconds`, `scale`, or both."""
        body = await _read(request, "advance_seconds", "scale")
        if "scale" in body:
            self._world.clock.set_scale(_number(body["scale"]))
        if "advance_seconds" in body:
            self._world.clock.advance(_number(body["advance_seconds"]))
        return self._state()

    async def durations(self, request: Request) -> Response:
        """Set how long tasks take: `{"seconds": [low, high]}`, with `"next_only": true` for the next create alone."""
        body = await _read(request, "seconds", "next_only")
        seconds = body.get("seconds")
        if not isinstance(seconds, list) or len(seconds) != 2:
            raise ValueError("seconds must be a list of two numbers")
        low, high = (_number(value) for value in seconds)
        self._world.set_durations(low, high, next_only=body.get("next_only") is True)
        return self._state()

    async def limits(self, request: Request) -> Response:
        """Change some of the limits."""
        self._world.set_limits(**await _read(request))
        return self._state()

    async def add_fault(self, request: Request) -> Response:
        """Script a fault: `operation`, `kind`, and what else `faults.Fault` knows."""
        body = await _read(request)
        self._world.faults.add(make_fault(str(body.pop("operation", "")), str(body.pop("kind", "")), **body))
        return self._state()

    async def clear_faults(self, request: Request) -> Response:
        """Forget the faults that have not happened yet."""
        self._world.faults.clear()
        return self._state()

    async def journal(self, request: Request) -> Response:
        """List received requests: of one `operation`, after the number `since`."""
        since = request.query_params.get("since", "0")
        entries = self._world.journal.read(operation=request.query_params.get("operation"), since=int(since))
        return JSONResponse({"entries": [asdict(entry) for entry in entries]})

    async def tasks(self, request: Request) -> Response:
        """Tell the truth about every task."""
        tasks = self._world.tasks
        # Files are drawn when their hashes are first asked for, which takes a while: hence the thread.
        return JSONResponse({"tasks": await asyncio.to_thread(lambda: [_truth(task) for task in tasks])})

    async def calls(self, request: Request) -> Response:
        """Tell the truth about every synchronous call."""
        calls = self._world.calls
        return JSONResponse({"calls": await asyncio.to_thread(lambda: [_truth_of_call(call) for call in calls])})

    async def uploads(self, request: Request) -> Response:
        """List every file ever uploaded."""
        return JSONResponse({"uploads": [asdict(upload) for upload in self._world.uploads]})

    async def bill(self, request: Request) -> Response:
        """Count what was made, by region and model: images, and every unit as a decimal number."""
        units = {
            region: {
                model: {unit: str(quantity) for unit, quantity in units.items()} for model, units in models.items()
            }
            for region, models in self._world.bill_units().items()
        }
        return JSONResponse({"images": self._world.bill(), "units": units})

    async def reset(self, request: Request) -> Response:
        """Begin again."""
        self._world.reset()
        self._exchange.release()
        return self._state()

    def _state(self) -> Response:
        world = self._world
        return JSONResponse(
            {
                "clock": {"now": world.clock.now(), "scale": world.clock.scale},
                "limits": asdict(world.limits),
                "duration_seconds": list(world.duration_seconds),
                "next_duration_seconds": [list(pair) for pair in world.next_durations],
                "faults": [asdict(fault) for fault in world.faults.waiting()],
                "hostility": asdict(world.options.hostility),
                "retention_seconds": world.options.retention_seconds,
                "link_seconds": world.options.link_seconds,
                "regions": {
                    region: {
                        "path": native_path(region),
                        "keys": [key.secret for key in world.options.keys if key.region == region],
                    }
                    for region in world.options.regions
                },
            }
        )


def _truth(task: Task) -> Json:
    return {
        "id": task.id,
        "request_id": task.request_id,
        "region": task.region,
        "model": task.model,
        "status": task.status.value,
        "prompt": task.prompt,
        "size": task.order.size,
        "created_at": task.created_at,
        "ended_at": task.ended_at,
        "billed_images": task.billed_images,
        "images": _files(task.pictures),
    }


def _truth_of_call(call: Call) -> Json:
    return {
        "id": call.id,
        "region": call.region,
        "model": call.model,
        "state": call.state.value,
        "prompt": call.prompt,
        "streamed": call.streamed,
        "hung_up": call.hung_up,
        "begun_at": call.begun_at,
        "ended_at": call.ended_at,
        "billed_images": call.billed_images,
        "images": _files(call.pictures),
    }


def _files(pictures: Sequence[Picture]) -> list[Json]:
    return [{"sha256": picture.sha256, "size_bytes": picture.size_bytes} for picture in pictures]


async def _read(request: Request, *known: str) -> Body:
    """Return the JSON object of a request; with `known` names, no others are allowed."""
    body = await request.json() if await request.body() else {}
    if not isinstance(body, dict):
        raise ValueError("the body must be a JSON object")
    if known and not body.keys() <= set(known):
        raise ValueError(f"only these fields are known: {', '.join(known)}")
    return body


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("a number is needed")
    return float(value)


async def _refuse(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return JSONResponse({"error": "not found" if status == 404 else str(error)}, status)


async def _refuse_nonsense(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 400)
