"""What each call of the simulated API means: who may, what is refused in which order, what comes back.

Knows no HTTP framework: a `Visit` goes in, a `Reply` comes out, refusals are raised as `Problem`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from app.simulator import problems, wire
from app.simulator.catalogue import MODELS, Model
from app.simulator.journal import Entry, shortened
from app.simulator.links import LinkRefusedError, check
from app.simulator.options import SimulatorKey
from app.simulator.task_list import read_filter, select
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


def create(world: World, visit: Visit) -> Reply:
    """Accept an asynchronous create. The rate is judged before the parameters: bad requests count too."""
    key = _authenticate(world, visit)
    body = _read_json(visit)
    model = _choose_model(body, visit.part)
    if visit.headers.get("x-dashscope-async", "").lower() != "enable":
        raise problems.synchronous_not_supported()
    _admit(world, (key.main_account, key.region, body["model"]), limit=world.limits.creates_per_second)
    task = world.add_task(key, model.read_order(body), request_id=visit.request_id)
    visit.entry.task_id = task.id
    return Reply.json(wire.created_body(task, visit.request_id))


def query(world: World, visit: Visit) -> Reply:
    """Answer for one task, with HTTP 200 also when there is none."""
    visit.entry.task_id = visit.part
    key = _authenticate(world, visit)
    _admit_task_call(world, key)
    task = world.find_task(key, visit.part)
    if task is None:
        return Reply.json(wire.unknown_task_body(visit.part, visit.request_id))
    return Reply.json(wire.task_body(task, visit.request_id, file_base=f"http://{visit.host}"))


def list_tasks(world: World, visit: Visit) -> Reply:
    """Answer one page of the key's tasks, newest first."""
    key = _authenticate(world, visit)
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
    return Reply(200, picture.png(), "image/png", {"x-oss-request-id": visit.request_id})


def file_refusal(visit: Visit, code: str, message: str, *, status: int) -> Reply:
    """Make a refusal as the file host words it."""
    text = wire.oss_error(code, message, request_id=visit.request_id, host=visit.host)
    return Reply(status, text.encode(), "application/xml", {"x-oss-request-id": visit.request_id})


def unknown(world: World, visit: Visit) -> Reply:
    """Refuse a path that this simulator does not play; cancelling is one of them."""
    raise problems.not_found()


def _authenticate(world: World, visit: Visit) -> SimulatorKey:
    if visit.region not in world.options.regions:
        raise problems.not_found()
    secret = bearer(visit.headers)
    if not secret:
        raise problems.no_key()
    for key in world.options.keys:
        if key.secret == secret and key.region == visit.region:
            return key
    raise problems.wrong_key()


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


def _choose_model(body: dict[str, Any], service: str) -> Model:
    name = body.get("model")
    model = MODELS.get(name) if isinstance(name, str) else None
    if model is None:
        raise problems.unknown_model()
    if service != model.service:
        raise problems.wrong_path()
    return model


def _admit_task_call(world: World, key: SimulatorKey) -> None:
    """Queries and lists share one allowance."""
    _admit(world, (key.main_account, key.region, "task calls"), limit=world.limits.task_calls_per_second)


def _admit(world: World, counter: tuple[str, str, str], *, limit: int) -> None:
    if not world.rates.admit(counter, limit=limit, now=world.clock.now()):
        raise problems.rate_exceeded()
