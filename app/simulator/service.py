"""What each call of the simulated API means: who may, what is refused in which order, what comes back.

Knows no HTTP framework: a `Visit` goes in, a `Reply` comes out, refusals are raised as `Problem`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from app.simulator import problems, wire
from app.simulator.calls import Call
from app.simulator.catalogue import MODELS, Door, Mode
from app.simulator.faults import Operation
from app.simulator.journal import Entry, shortened
from app.simulator.links import LinkRefusedError, check
from app.simulator.options import SimulatorKey
from app.simulator.task_list import read_filter, select
from app.simulator.tasks import Order
from app.simulator.world import World


@dataclass(frozen=True, slots=True)
class Visit:
    """One request, as far as the upstream looks at it. `entry` is its line in the journal."""

    region: str
    method: str
    path: str
    raw_query: bytes
    headers: dict[str, str]
    body: bytes
    request_id: str
    entry: Entry
    part: str = ""  # the variable part of the path: a task id or a service path

    @property
    def host(self) -> str:
        """The host as the client knows it: links to files lead there, whatever name the client's network uses."""
        return self.headers.get("host", "localhost")

    @property
    def file_base(self) -> str:
        """What links to files begin with."""
        return f"http://{self.host}"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer before it is put on the wire."""

    status: int
    content: bytes
    media_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, body: wire.Json, status: int = 200) -> Reply:
        """Make a JSON answer."""
        return cls(status, json.dumps(body, ensure_ascii=False).encode())


def operation_of(headers: Mapping[str, str]) -> Operation:
    """Tell by its headers alone what a call of a service is: a create, a synchronous call or a stream.

    >>> operation_of({"x-dashscope-sse": "Enable"}).value, operation_of({}).value
    ('stream', 'sync')
    """
    if headers.get("x-dashscope-async", "").lower() == "enable":
        return Operation.CREATE
    return Operation.STREAM if headers.get("x-dashscope-sse", "").lower() == "enable" else Operation.SYNC


def create(world: World, visit: Visit) -> Reply:
    """Accept an asynchronous create."""
    key, order = _take_order(world, visit, mode=Mode.ASYNC)
    task = world.add_task(key, order, request_id=visit.request_id)
    visit.entry.task_id = task.id
    return Reply.json(wire.created_body(task, visit.request_id))


def begin_call(world: World, visit: Visit, *, streamed: bool) -> Call:
    """Accept a synchronous call; its answer comes later. Raises: `Problem` for what is refused at once."""
    key, order = _take_order(world, visit, mode=Mode.SYNC)
    if order.interleave and operation_of(visit.headers) is not Operation.STREAM:
        raise problems.interleave_not_streamed()
    return world.begin_call(key, order, request_id=visit.request_id, streamed=streamed)


def whole_answer(call: Call, visit: Visit) -> Reply:
    """Answer a synchronous call that has ended. Raises: `Problem` for one that has failed."""
    if call.failure is not None:
        raise problems.failed(call.failure)
    links = wire.links_to(call.pictures, visit.file_base)
    return Reply.json(wire.call_body(call.order, links, request_id=visit.request_id))


def query(world: World, visit: Visit) -> Reply:
    """Answer for one task, with HTTP 200 also when there is none."""
    visit.entry.task_id = visit.part
    key = authenticate(world, visit)
    _admit_task_call(world, key)
    task = world.find_task(key, visit.part)
    if task is None:
        return Reply.json(wire.unknown_task_body(visit.part, visit.request_id))
    return Reply.json(wire.task_body(task, visit.request_id, file_base=visit.file_base))


def cancel(world: World, visit: Visit) -> Reply:
    """Cancel a task that waits. Every other one is refused alike, also one that is not there."""
    visit.entry.task_id = visit.part
    key = authenticate(world, visit)
    admit(world, (key.main_account, key.region, "cancels"), limit=world.limits.cancels_per_second)
    if not world.cancel_task(key, visit.part):
        raise problems.not_cancelable()
    return Reply.json(wire.canceled_body(visit.request_id))


def list_tasks(world: World, visit: Visit) -> Reply:
    """Answer one page of the key's tasks, newest first."""
    key = authenticate(world, visit)
    _admit_task_call(world, key)
    wanted = {name: values[-1] for name, values in parse_qs(visit.raw_query.decode("latin-1")).items()}
    task_filter = read_filter(wanted, now=world.clock.now(), max_page_size=world.options.max_page_size)
    total, page = select(world.visible_tasks(key), task_filter)
    body = wire.list_body(
        page, visit.request_id, total=total, page_no=task_filter.page_no, page_size=task_filter.page_size
    )
    return Reply.json(body)


def read_file(world: World, visit: Visit) -> Reply:
    """Hand out a result file for a good link, or refuse in the file host's XML."""
    try:
        check(visit.path, visit.raw_query, method=visit.method, now=world.clock.now())
    except LinkRefusedError as refusal:
        return file_refusal(visit, refusal.code, refusal.message, status=403)
    picture = world.find_file(visit.path)
    if picture is None:
        return file_refusal(visit, "NoSuchKey", "The specified key does not exist.", status=404)
    visit.entry.task_id = picture.task_id
    return Reply(200, picture.content(), picture.media_type, {"x-oss-request-id": visit.request_id})


def file_refusal(visit: Visit, code: str, message: str, *, status: int) -> Reply:
    """Make a refusal as the file host words it."""
    text = wire.oss_error(code, message, request_id=visit.request_id, host=visit.host)
    return Reply(status, text.encode(), "application/xml", {"x-oss-request-id": visit.request_id})


def unknown(world: World, visit: Visit) -> Reply:
    """Refuse a path that this simulator does not play."""
    raise problems.not_found()


def authenticate(world: World, visit: Visit) -> SimulatorKey:
    """Return the key that a request carries. Raises: `Problem` 401, or 404 for an unknown region."""
    if visit.region not in world.options.regions:
        raise problems.not_found()
    secret = bearer(visit.headers)
    if not secret:
        raise problems.no_key()
    for key in world.options.keys:
        if key.secret == secret and key.region == visit.region:
            return key
    raise problems.wrong_key()


def named_model(visit: Visit) -> str:
    """Return the model that a request names, in its body or else in its query; an empty string where it names none."""
    if not visit.body:
        return parse_qs(visit.raw_query.decode("latin-1")).get("model", [""])[-1]
    try:
        body = json.loads(visit.body)
    except (ValueError, RecursionError):
        return ""
    name = body.get("model") if isinstance(body, dict) else None
    return name if isinstance(name, str) else ""


def check_inputs(world: World, visit: Visit, *, key: SimulatorKey, body: dict[str, Any]) -> None:
    """Let a call pass whose `oss://` inputs this key may read for this model. Raises: `Problem` 400."""
    resolves = visit.headers.get("x-dashscope-ossresourceresolve", "").lower() == "enable"
    world.temporary_store.check_inputs(body, reader=key, resolves=resolves, now=world.clock.now())


def bearer(headers: dict[str, str]) -> str:
    """Return the secret of an `Authorization: Bearer …` header, or an empty string."""
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else ""


def _read_json(visit: Visit) -> dict[str, Any]:
    """Read a create's body and note it in the journal; text that is no Unicode (lone surrogates) is refused."""
    try:
        body = json.loads(visit.body)
        noted = shortened(body)
        json.dumps(noted, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise problems.unreadable_body() from error
    visit.entry.body = noted
    if not isinstance(body, dict):
        raise problems.unreadable_body()
    return body


def _take_order(world: World, visit: Visit, *, mode: Mode) -> tuple[SimulatorKey, Order]:
    """Judge a call of a service. The rate is judged before the parameters: bad requests count too."""
    key = authenticate(world, visit)
    body = _read_json(visit)
    door = _choose_door(body, visit.part.rstrip("/"))
    if not door.allows(mode, key.region):
        raise _REFUSED_MODES[mode]()
    admit(world, (key.main_account, key.region, body["model"]), limit=world.limits.creates_per_second)
    order = door.read_order(body)
    check_inputs(world, visit, key=key, body=body)
    return key, order


_REFUSED_MODES = {
    Mode.ASYNC: problems.asynchronous_not_supported,
    Mode.SYNC: problems.synchronous_not_supported,
}


def _choose_door(body: dict[str, Any], service: str) -> Door:
    name = body.get("model")
    doors = MODELS.get(name) if isinstance(name, str) else None
    if doors is None:
        raise problems.unknown_model()
    if service not in doors:
        raise problems.wrong_path()
    return doors[service]


def _admit_task_call(world: World, key: SimulatorKey) -> None:
    """Queries and lists share one allowance."""
    admit(world, (key.main_account, key.region, "task calls"), limit=world.limits.task_calls_per_second)


def admit(world: World, counter: tuple[str, ...], *, limit: int) -> None:
    """Count a call of this second. Raises: `Problem` 429 above the limit."""
    if not world.rates.admit(counter, limit=limit, now=world.clock.now()):
        raise problems.rate_exceeded()
