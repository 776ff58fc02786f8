"""Attacks on the wire, against a real `dashgate serve` and raw sockets (failure-model.md 4.7, rows 19, 39 to 49).

A gateway without an upstream account is enough: what is looked at happens before there is a call, and a create that
arrives whole is known by its 503. What takes time is shown by the same server in this process, with shorter times.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import uvicorn

from app.api.wire import Wire
from app.resources import open_resources
from app.teams.teams import create_team, issue_key
from tests.databases import Databases
from tests.processes import Gateway, running_fleet
from tests.world import CREATE_PATH, settings_for_tests

PATIENCE_SECONDS = 30
HOST = b"Host: gateway\r\n"
SECOND = b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n"
BODY_LIMIT_BYTES = 64 * 1024
MIB = 1024 * 1024
SPARE_KIB = 5 * 1024  # what the memory of a process may grow by, whatever is sent to it
ORDER = b'{"model":"wan2.6-image","input":{"messages":[]}}'


@dataclass(frozen=True)
class Door:
    """A running gateway, and a team's key for it."""

    gateway: Gateway
    key: str

    @property
    def port(self) -> int:
        return int(self.gateway.url.rpartition(":")[2])

    def memory_kib(self) -> int:
        """The most memory that the process ever had."""
        status = Path(f"/proc/{self.gateway.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found
        return int(found[1])

    def head(self, *lines: bytes, path: str = CREATE_PATH) -> bytes:
        """The head of a create, but for what says how long its body is."""
        own = (b"Authorization: Bearer " + self.key.encode(), b"Content-Type: application/json")
        first = f"POST {path} HTTP/1.1".encode()
        return b"\r\n".join([first, b"Host: gateway", *own, b"X-DashScope-Async: enable", *lines, b"", b""])


@pytest.fixture(scope="module")
def wire_database(databases: Databases) -> Iterator[str]:
    """A migrated database for the one gateway of this file."""
    url = databases.clone()
    yield url
    databases.drop(url)


@pytest_asyncio.fixture(scope="module")
async def door(wire_database: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Door]:
    url, folder = wire_database, tmp_path_factory.mktemp("wire")
    async with open_resources(settings_for_tests(url, folder)) as res:
        await create_team(res, "alpha", regions=["cn-beijing"])
        _, key = await issue_key(res, "alpha")
    async with running_fleet(folder, url, DASHGATE_BODY_LIMIT_BYTES=str(BODY_LIMIT_BYTES)) as fleet:
        door = Door(await fleet.gateway(), key)
        await talk(door.port, door.head(b"Content-Length: 2", b"Connection: close") + b"{}")  # it has loaded everything
        yield door


async def talk(port: int, sent: bytes, *, half_close: bool = False) -> bytes:
    """Say something and hear the answer to its end: the server must hang up by itself."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            with contextlib.suppress(ConnectionError):  # it may be cut off in the middle: the answer is there already
                writer.write(sent)
                if half_close:
                    writer.write_eof()
                await writer.drain()
            heard = bytearray()
            with contextlib.suppress(ConnectionError):
                while chunk := await reader.read(65536):
                    heard += chunk
            return bytes(heard)
    finally:
        writer.close()


def statuses(heard: bytes) -> list[int]:
    """The status of every answer in what was heard."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", heard)]


async def is_well(door: Door) -> bool:
    return statuses(await talk(door.port, b"GET /livez HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n")) == [
        200
    ]


# --- framing -------------------------------------------------------------------------------------------------------

POST = b"POST /api/v1/tasks/x/cancel HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
AMBIGUOUS = {
    "length and chunks": POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 4\r\nContent-Length: 40\r\n\r\nabcd",
    "the same length twice": POST + b"Content-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
    "a list of lengths": POST + b"Content-Length: 4, 4\r\n\r\nabcd",
    "a length with a sign": POST + b"Content-Length: +4\r\n\r\nabcd",
    "a negative length": POST + b"Content-Length: -1\r\n\r\n",
    "a length in hex": POST + b"Content-Length: 0x4\r\n\r\nabcd",
    "no length": POST + b"Content-Length: \r\n\r\n",
    "an endless length": POST + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n",
    "another coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a coding before chunks": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a coding behind chunks": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "two codings": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a tab that is none": POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "chunks in 1.0": CHUNKED.replace(b"1.1", b"1.0") + b"0\r\n\r\n",
    "a chunk of no size": CHUNKED + b"zz\r\nabc\r\n0\r\n\r\n",
    "a chunk of a negative size": CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n",
    "a chunk with a prefix": CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n",
    "a chunk that is longer": CHUNKED + b"3\r\nabcXX\r\n0\r\n\r\n",
    "a chunk beyond all sizes": CHUNKED + b"1ffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    "chunks in bare line feeds": CHUNKED + b"3\nabc\n0\n\n",
    "an extension without end": CHUNKED + b"3;" + b"x" * MIB + b"\r\nabc\r\n0\r\n\r\n",
    "extensions on every chunk": CHUNKED + b"1;xxxxxxxxxxxxxxxx\r\na\r\n" * 100_000 + b"0\r\n\r\n",
    "trailers without end": CHUNKED + b"0\r\n" + b"X: y\r\n" * 100_000 + b"\r\n",
}


@pytest.mark.parametrize("attack", AMBIGUOUS)
async def test_a_body_whose_end_is_in_doubt_is_refused_and_nothing_behind_it_is_read(door: Door, attack: str) -> None:
    heard = await talk(door.port, AMBIGUOUS[attack] + SECOND)
    refused = 401 if statuses(heard) == [401] else 400  # without a key, a handler may be done before its body is
    assert statuses(heard) == [refused]
    assert b'"ok"' not in heard


GET = b"GET /livez HTTP/1.1\r\n"
NO_HTTP = {
    "bare line feeds": b"GET /livez HTTP/1.1\nHost: gateway\n\n",
    "bare carriage returns": b"GET /livez HTTP/1.1\rHost: gateway\r\r",
    "a folded header": GET + HOST + b"X: a\r\n b\r\n\r\n",
    "a folded first header": GET + b" Host: gateway\r\n\r\n",
    "NUL in a header": GET + HOST + b"X: a\x00b\r\n\r\n",
    "a carriage return in a header": GET + HOST + b"X: a\rb\r\n\r\n",
    "a space in a name": GET + HOST + b"X Y: a\r\n\r\n",
    "a header without a name": GET + HOST + b": a\r\n\r\n",
    "a header without a colon": GET + HOST + b"X\r\n\r\n",
    "HTTP/0.9": b"GET /livez\r\n\r\n",
    "HTTP/0.9 by name": b"GET /livez HTTP/0.9\r\n\r\n",
    "HTTP/1.2": b"GET /livez HTTP/1.2\r\n" + HOST + b"\r\n",
    "HTTP/2 by name": b"GET /livez HTTP/2.0\r\n" + HOST + b"\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
    "bytes in the path": "GET /livéz HTTP/1.1\r\nHost: gateway\r\n\r\n".encode(),
    "a method in lower case": b"get /livez HTTP/1.1\r\n" + HOST + b"\r\n",
    "a method of nobody": b"BREW /livez HTTP/1.1\r\n" + HOST + b"\r\n",
    "a tunnel": b"CONNECT upstream:443 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a tunnel to a path": b"CONNECT /livez HTTP/1.1\r\n" + HOST + b"\r\n",
    "no host": GET + b"\r\n",
    "two hosts": GET + HOST + HOST + b"\r\n",
    "a host with a path": GET + b"Host: x/?a=\r\n\r\n",
    "a host with a fragment": GET + b"Host: a/#\r\n\r\n",
    "a host with a user": GET + b"Host: gateway@evil\r\n\r\n",
    "an empty host": GET + b"Host: \r\n\r\n",
}


@pytest.mark.parametrize("attack", NO_HTTP)
async def test_what_is_no_plain_http_is_refused_and_the_connection_ends(door: Door, attack: str) -> None:
    heard = await talk(door.port, NO_HTTP[attack] + SECOND)
    assert statuses(heard) == [400]
    head, _, body = heard.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert b"server:" not in head.lower()
    assert b'"code": "BadRequest.IllegalInput"' in body


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "[::1]:8080", "gateway", "a.b-c.example."])
async def test_a_host_decides_nothing(door: Door, host: str) -> None:
    asked = f"GET /livez HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-Host: evil\r\nConnection: close\r\n\r\n"
    assert statuses(await talk(door.port, asked.encode())) == [200]


# --- measure -------------------------------------------------------------------------------------------------------

TOO_LONG = {
    "a header of a megabyte": GET + HOST + b"X: " + b"a" * MIB + b"\r\n\r\n",
    "a header that never ends": GET + HOST + b"X: " + b"a" * 8 * MIB,
    "a name of a megabyte": GET + HOST + b"a" * MIB + b": x\r\n\r\n",
    "20,000 headers": GET + HOST + b"X: a\r\n" * 20_000 + b"\r\n",
    "sixty-five headers": GET + HOST + b"X: a\r\n" * 64 + b"\r\n",
    "a key of a megabyte": GET + HOST + b"Authorization: Bearer " + b"a" * MIB + b"\r\n\r\n",
    "a path of a megabyte": b"GET /" + b"a" * MIB + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "10,000 parameters": b"GET /livez?" + b"a=1&" * 10_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "empty lines": b"\r\n" * 4 * MIB,
}


@pytest.mark.parametrize("attack", TOO_LONG)
async def test_a_head_without_measure_is_refused_and_costs_no_memory(door: Door, attack: str) -> None:
    before = door.memory_kib()
    heard = await talk(door.port, TOO_LONG[attack])
    assert statuses(heard) == [431]
    assert door.memory_kib() - before < SPARE_KIB


async def test_a_large_body_is_refused_by_the_length_it_says(door: Door) -> None:
    heard = await talk(door.port, door.head(b"Content-Length: 1073741824", b"Connection: close"))
    assert statuses(heard) == [413]
    assert b"RequestTooLarge" in heard


@pytest.mark.parametrize("chunk_bytes", [65_536, 1])
async def test_a_body_without_end_is_refused_at_the_limit_and_costs_no_memory(door: Door, chunk_bytes: int) -> None:
    before, sent = door.memory_kib(), 0
    chunk = b"%x\r\n%b\r\n" % (chunk_bytes, b" " * chunk_bytes)
    chunks = chunk * max(1, 65_536 // len(chunk))
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    heard = asyncio.ensure_future(reader.readuntil(b"\r\n\r\n"))
    async with asyncio.timeout(PATIENCE_SECONDS):
        writer.write(door.head(b"Transfer-Encoding: chunked"))
        with contextlib.suppress(ConnectionError):
            while sent < 256 * MIB:  # it goes on although it was answered
                writer.write(chunks)
                await writer.drain()
                sent += len(chunks)
                if heard.done() and sent > 64 * MIB:
                    break
        assert statuses(await heard) == [413]
    writer.transport.abort()
    assert door.memory_kib() - before < SPARE_KIB
    assert await is_well(door)


async def test_ten_thousand_requests_at_once_are_answered_one_by_one(door: Door) -> None:
    before = door.memory_kib()
    last = b"GET /livez HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n"
    heard = await talk(door.port, SECOND * 9_999 + last)
    assert statuses(heard) == [200] * 10_000
    assert door.memory_kib() - before < 2 * SPARE_KIB


async def test_clients_that_leave_in_the_middle_leave_nothing_behind(door: Door) -> None:
    for sent in (GET, GET + HOST, door.head(b"Content-Length: 100") + b"{", SECOND):
        for _ in range(50):
            with socket.create_connection(("127.0.0.1", door.port)) as raw:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")  # a reset
                raw.sendall(sent)
    assert await is_well(door)
    loud = [line["event"] for line in door.gateway.process.lines() if line.get("level") in ("error", "warning")]
    assert set(loud) <= {"accounts.missing"}  # said at its start


async def test_a_client_that_says_its_last_word_early_is_let_go(door: Door) -> None:
    for sent in (b"", GET, SECOND):
        assert len(statuses(await talk(door.port, sent, half_close=True))) <= 1
    assert await is_well(door)


# --- methods, offers, echoes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["TRACE", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_a_method_that_a_path_does_not_take_is_a_405_that_names_those_it_does(door: Door, method: str) -> None:
    heard = await talk(door.port, f"{method} {CREATE_PATH} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    assert statuses(heard) == [405]
    assert b"allow: POST" in heard
    assert b"Host: a" not in heard  # nothing is echoed


async def test_a_request_may_ask_first_whether_its_body_is_wanted(door: Door) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    async with asyncio.timeout(PATIENCE_SECONDS):
        length = f"Content-Length: {len(ORDER)}".encode()
        writer.write(door.head(length, b"Expect: 100-continue", b"Connection: close"))
        assert statuses(await reader.readuntil(b"\r\n\r\n")) == [100]
        writer.write(ORDER)
        heard = await reader.read()
    writer.close()
    assert statuses(heard) == [503]
    assert b"Dashgate.UpstreamAccount" in heard


async def test_a_stranger_who_asks_first_is_refused_without_his_body(door: Door) -> None:
    asked = POST.replace(b"tasks/x/cancel", b"services/aigc/x") + b"Content-Length: 9\r\nExpect: 100-continue\r\n"
    assert statuses(await talk(door.port, asked + b"Connection: close\r\n\r\n")) == [401]


@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_an_offer_to_speak_another_protocol_is_declined_and_the_body_is_not_lost(
    door: Door, framing: str
) -> None:
    """Java's own client offers HTTP/2 with every request that it does not encrypt."""
    offer = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk")
    if framing == "length":
        sent = door.head(*offer, f"Content-Length: {len(ORDER)}".encode()) + ORDER
    else:
        sent = door.head(*offer, b"Transfer-Encoding: chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(ORDER), ORDER)
    heard = await talk(door.port, sent)
    assert statuses(heard) == [503]
    assert b"Dashgate.UpstreamAccount" in heard  # it was read: an empty body would be a 400


async def test_a_websocket_is_an_ordinary_request(door: Door) -> None:
    offer = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13\r\n"
    assert statuses(await talk(door.port, GET + HOST + offer + b"\r\n")) == [200]


@pytest.mark.parametrize("path", ["/api/v1/%0d%0aSet-Cookie:%20a=b", "/%0d%0a%0d%0aHTTP/1.1%20200%20OK"])
async def test_no_line_of_an_answer_is_a_clients(door: Door, path: str) -> None:
    echoed = "X-Request-Id: mine\r\nIdempotency-Key: mine\r\nX-Dashgate-Tag: mine\r\n"
    heard = await talk(door.port, f"GET {path} HTTP/1.1\r\nHost: a\r\n{echoed}Connection: close\r\n\r\n".encode())
    head = heard.partition(b"\r\n\r\n")[0]
    assert statuses(head) == [404]
    assert b"mine" not in head
    assert b"set-cookie" not in head.lower()


async def test_a_header_behind_the_body_is_none(door: Door) -> None:
    """Whoever judged the request has judged it without: here it would have been refused."""
    body = b"%x\r\n%b\r\n0\r\nX-DashScope-EncryptionKey: {}\r\nX-Dashgate-Region: mars\r\n\r\n" % (len(ORDER), ORDER)
    heard = await talk(door.port, door.head(b"Transfer-Encoding: chunked", b"Connection: close") + body)
    assert statuses(heard) == [503]


# --- time ----------------------------------------------------------------------------------------------------------


class HastyWire(Wire):
    """The same with less patience."""

    head_seconds = 0.4
    body_seconds = 0.4
    look_seconds = 0.05


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


@dataclass
class Hasty:
    """A server without patience, and what it was asked."""

    port: int
    asked: list[str]


@pytest_asyncio.fixture
async def hasty() -> AsyncIterator[Hasty]:
    asked: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope["path"])
        while scope["path"] != "/early":
            message = await receive()
            if message["type"] == "http.disconnect":
                asked.append("left")
                return
            if not message.get("more_body"):
                break
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, http=HastyWire, ws="none", log_config=None, access_log=False, lifespan="off", timeout_keep_alive=1
    )
    server = _Server(config)
    serving = asyncio.ensure_future(server.serve(sockets=[listening]))
    yield Hasty(listening.getsockname()[1], asked)
    server.should_exit = server.force_exit = True
    await serving


SLOW = {
    "a head that stops": (GET + b"Ho", [408]),
    "a first line that stops": (b"GE", [408]),
    "a body that stops": (POST + b"Content-Length: 10\r\n\r\nab", [408]),
    "a body that never begins": (POST + b"Content-Length: 10\r\nExpect: 100-continue\r\n\r\n", [100, 408]),
    "chunks that stop": (CHUNKED + b"3\r\nab", [408]),
    "a second head that stops": (SECOND + b"GET /", [200]),
    "nothing at all": (b"", []),
    "a body that nobody reads": (
        POST.replace(b"/api/v1/tasks/x/cancel", b"/early") + b"Content-Length: 9\r\n\r\n",
        [200],
    ),
}


@pytest.mark.parametrize("attack", SLOW)
async def test_a_client_that_does_not_go_on_is_not_waited_for(hasty: Hasty, attack: str) -> None:
    sent, expected = SLOW[attack]
    assert statuses(await talk(hasty.port, sent)) == expected
    if b"Content-Length" in sent and expected[-1] == 408:
        assert hasty.asked[-1] == "left"


@pytest.mark.parametrize("sent", [GET + b"X: ", POST + b"Content-Length: 1000000\r\n\r\n"], ids=["head", "body"])
async def test_a_client_that_sends_byte_by_byte_is_not_waited_for(hasty: Hasty, sent: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", hasty.port)

    async def drip() -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(sent)
            while True:
                writer.write(b"a")
                await asyncio.sleep(0.02)

    dripping = asyncio.ensure_future(drip())
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert statuses(await reader.read()) == [408]
    dripping.cancel()
    writer.close()


async def test_five_hundred_slow_clients_keep_nobody_from_being_answered(hasty: Hasty) -> None:
    slow = [asyncio.ensure_future(talk(hasty.port, GET + b"Ho")) for _ in range(500)]
    quick = await asyncio.gather(*(talk(hasty.port, SECOND) for _ in range(20)))
    assert [statuses(heard) for heard in quick] == [[200]] * 20
    assert {tuple(statuses(heard)) for heard in await asyncio.gather(*slow)} == {(408,)}


async def test_a_large_body_that_keeps_coming_is_waited_for(hasty: Hasty) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", hasty.port)
    writer.write(POST + b"Content-Length: 2000000\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(PATIENCE_SECONDS):
        for _ in range(20):
            writer.write(b"a" * 100_000)
            await writer.drain()
            await asyncio.sleep(0.06)  # three times the patience, all in all
        assert statuses(await reader.read()) == [200]
    writer.close()
