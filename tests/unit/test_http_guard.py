"""What may be reached: every form of address and URL of the attack list, as data."""

import asyncio
import contextlib
import doctest
import socket
from collections.abc import AsyncIterator

import aiohttp
import httpx
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.test_utils import unused_port

from app.lib import db
from app.lib import http as door
from app.lib.guard import AddressRefused, AllowList, Guard, UrlRefused
from app.lib.http import Outside, Wires

PUBLIC = ["8.8.8.8", "47.95.1.1", "1.1.1.1", "2400:3200::1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
INSIDE = [
    *("127.0.0.1", "127.255.255.254", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    *("100.64.0.1", "100.127.255.255", "::1", "fc00::1", "fd12:3456::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"),
]
NEVER = [
    *("169.254.169.254", "100.100.100.200", "168.63.129.16", "fd00:ec2::254", "fd20:ce::254"),
    *("0.0.0.0", "0.1.2.3", "::", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "ff02::1"),  # noqa: S104
    *("192.0.0.8", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "192.88.99.1", "2001:db8::1", "3fff::1"),
    *("fe80::1", "fe80::1%eth0", "fec0::1", "::127.0.0.1", "::8.8.8.8", "2002:7f00:1::", "2002:a9fe:a9fe::"),
    *("2002:808:808::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe"),
    *("::ffff:169.254.169.254", "::ffff:100.100.100.200", "64:ff9b::6464:64c8", "5f00::1", "100::1"),
]


def test_the_examples_in_the_module_are_true() -> None:
    assert doctest.testmod(door).failed == 0


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_may_be_reached(address: str) -> None:
    Guard(AllowList()).check_address(address, host="a.example", port=443)


@pytest.mark.parametrize("address", INSIDE + NEVER)
def test_no_other_address_may_be_reached(address: str) -> None:
    with pytest.raises(AddressRefused) as refusal:
        Guard(AllowList()).check_address(address, host="a.example", port=443)
    assert address not in str(refusal.value)


@pytest.mark.parametrize("address", PUBLIC + INSIDE)
def test_a_host_the_operator_named_may_be_inside(address: str) -> None:
    _guard("minio.internal", 9000).check_address(address, host="minio.internal", port=9000)


@pytest.mark.parametrize("address", NEVER)
def test_even_a_host_the_operator_named_is_never_at_metadata_or_link_local(address: str) -> None:
    with pytest.raises(AddressRefused):
        _guard("minio.internal", 9000).check_address(address, host="minio.internal", port=9000)


@pytest.mark.parametrize(("host", "port"), [("evil.example", 9000), ("minio.internal", 9001), ("10.0.0.5", 9000)])
def test_naming_one_host_opens_no_other(host: str, port: int) -> None:
    with pytest.raises(AddressRefused):
        _guard("minio.internal", 9000).check_address("10.0.0.5", host=host, port=port)


@pytest.mark.parametrize(
    "url",
    [
        "https://dashscope-result-bj.oss-cn-beijing.aliyuncs.com/1d/a.png?Expires=1&Signature=a%2Bb%2Fc%3D",
        "https://a.example",
        "https://a.example:443/",
        "https://A.Example/x?y=[1]&z='(a|b)'",
        "https://8.8.8.8/",
        "https://xn--fiqs8s.example/",
        "https://my_bucket.example/",
    ],
)
def test_https_to_a_public_name_on_443_is_allowed(url: str) -> None:
    assert Guard(AllowList()).check_url(url).scheme == "https"


REFUSED_URLS = [
    # the scheme
    *("http://a.example/", "file:///etc/passwd", "gopher://a.example/", "ftp://a.example/", "dict://a.example/"),
    *("unix:///run/x.sock", "data:text/plain,x", "javascript:alert(1)", "//a.example/", "a.example", "", "https:a.b/"),
    # the port
    *(f"https://a.example:{port}/" for port in (22, 25, 80, 5432, 6379, 0, 65536, 99999)),
    *("https://a.example:/", "https://a.example:0443/", "https://a.example:443:80/", "https://a.example:x/"),
    # addresses
    *(f"https://{address}/" for address in INSIDE + NEVER if ":" not in address),
    *(f"https://[{address}]/" for address in INSIDE + NEVER if ":" in address),
    *("https://[fe80::1%25eth0]/", "https://[::1]:443/", "https://[::1/", "https://[127.0.0.1]/"),
    # numbers that a resolver takes for addresses
    *(
        f"https://{host}/"
        for host in ("2130706433", "0x7f.1", "0177.0.0.1", "127.1", "0", "017700000001", "0x7f000001")
    ),
    *("https://1.2.3.4.5/", "https://127.0.0.1./", "https://0x/", "https://a.0x1/"),
    # names of one's own machines, and no names at all
    *("https://localhost/", "https://redis/", "https://a.example./", "https://a..example/", "https://.a.example/"),
    *("https:///x", "https://-a.example/", f"https://{'a' * 64}.example/", f"https://{'a.' * 127}example/"),
    # things parsers disagree about
    *("https://good\\@evil.example/", "https://good.example#@evil.example/", "https://user:pw@a.example/"),
    *(
        "https://user@a.example/",
        "https://@a.example/",
        "https://a.example/#x",
        "https://a.exa\tmple/",
        " https://a.b/",
    ),
    *("https://a.example/\r\nHost: b", "https://a.example/%00", "https://a%00.example/", "https://a.example/%zz"),
    *(
        "https://127。0。0。1/",
        "https://①②⑦.example/",
        "https://ａ.example/",
        "https://a.example/é",
        "https://a.example/a b",
    ),
    *("https://xn--zzzz--9.example/", "https://xn--junk-.example/", "https://a.example\n", "https://a.example/\x00"),
    # the length
    "https://a.example/" + "a" * 2_031,
]


@pytest.mark.parametrize("url", REFUSED_URLS, ids=lambda url: ascii(url)[:50])
def test_every_other_url_is_refused(url: str) -> None:
    with pytest.raises(UrlRefused):
        Guard(AllowList()).check_url(url)


def test_the_longest_url_given_by_people_is_allowed_and_a_signed_one_may_be_longer() -> None:
    guard = Guard(AllowList())
    assert guard.check_url("https://a.example/" + "a" * 2_030)
    assert guard.check_url("https://a.example/" + "a" * 4_000, max_chars=door.SIGNED_URL_MAX_CHARS)


def test_a_refusal_shows_no_query() -> None:
    for url in ("http://a.example/?Signature=hush", "https://a.example:22/?Signature=hush", "https://a b/?hush"):
        with pytest.raises(UrlRefused) as refusal:
            Guard(AllowList()).check_url(url)
        assert "hush" not in str(refusal.value)


@pytest.mark.parametrize(
    "url", ["http://minio:9000/b/k?X=1", "http://MINIO:9000/", "http://[::1]:9000/", "http://10.0.0.5:80/"]
)
def test_a_named_host_keeps_its_scheme_and_port(url: str) -> None:
    guard = _guard("minio", 9000)
    guard.allow_list.add("0:0::1", 9000, "http")
    guard.allow_list.add("10.0.0.5", 80, "http")
    assert guard.check_url(url).scheme == "http"


@pytest.mark.parametrize("url", ["https://minio:9000/", "http://minio:9001/", "http://minio/", "http://minio.:9000/"])
def test_a_named_host_opens_no_other_scheme_or_port(url: str) -> None:
    with pytest.raises(UrlRefused):
        _guard("minio", 9000).check_url(url)


def test_a_host_named_without_a_scheme_may_be_spoken_to_by_both() -> None:
    allow_list = AllowList()
    allow_list.add("minio", 9000)
    assert allow_list.schemes("minio", 9000) == {"http", "https"}


# --- on the wire ---


class Names(AbstractResolver):
    """A resolver that gives each answer once, the last one for ever."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self._answers = {name.replace("_", "."): list(lists) for name, lists in answers.items()}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        answers = self._answers[host]
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [_resolved(host, address, port) for address in addresses]

    async def close(self) -> None:
        """Nothing is held."""


class Canary:
    """Notes every connection and request; answers with a chirp and a cookie, which aiohttp would keep for a name."""

    def __init__(self) -> None:
        self.connections, self.requests, self.port = 0, list[bytes](), unused_port()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 5\r\n\r\nchirp")
        writer.close()


@contextlib.asynccontextmanager
async def listening() -> AsyncIterator[Canary]:
    canary = Canary()
    async with await asyncio.start_server(canary.answer, "127.0.0.1", canary.port):
        yield canary


async def _call_both_ways(outside: Outside, url: str, expected: type[Exception]) -> None:
    with pytest.raises(expected):
        await outside.client.get(url)
    with pytest.raises(expected):
        async with outside.exchange("GET", url):
            pass


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"]], ids=["alone", "beside a public one"])
async def test_a_name_with_a_private_address_is_refused(addresses: list[str]) -> None:
    async with Outside(wires=Wires(resolver=Names(evil_example=[addresses]))) as outside:
        await _call_both_ways(outside, "https://evil.example/", AddressRefused)


async def test_a_second_answer_of_dns_is_judged_like_the_first() -> None:
    guard = Guard(AllowList())
    rebinding = door._GuardedResolver(guard, Names(evil_example=[["8.8.8.8"], ["127.0.0.1"]]))
    assert await rebinding.resolve("evil.example", 443)
    with pytest.raises(AddressRefused):
        await rebinding.resolve("evil.example", 443)


class Turncoat(Names):
    """DNS that shows a public address to whoever looks first, and a private one to whoever connects."""

    class _Answer(dict[str, object]):
        def __getitem__(self, field: str) -> object:
            shown = super().__getitem__(field)
            self.update(host="127.0.0.1")
            return shown

    async def resolve(self, *args: object, **kwargs: object) -> list[ResolveResult]:
        return [self._Answer(_resolved("evil.example", "8.8.8.8", 443)) for _ in range(2)]  # type: ignore[misc]


async def test_the_socket_refuses_an_address_that_slipped_past_the_resolver() -> None:
    async with Outside(wires=Wires(resolver=Turncoat())) as outside:
        await _call_both_ways(outside, "https://evil.example/", AddressRefused)


async def test_a_request_that_does_not_come_through_the_door_gets_no_socket() -> None:
    async with listening() as canary:
        async with Wires().open_session(_guard("127.0.0.1", canary.port)) as session:
            with pytest.raises(LookupError):
                await session.get(f"http://127.0.0.1:{canary.port}/")
        assert canary.connections == 0


async def test_another_name_for_a_named_hosts_address_is_refused() -> None:
    async with listening() as canary:
        names = Names(minio_internal=[["127.0.0.1"]], evil_example=[["127.0.0.1"]])
        async with Outside(wires=Wires(resolver=names)) as outside:
            outside.allow("minio.internal", canary.port, "http")
            assert (await outside.client.get(f"http://minio.internal:{canary.port}/")).text == "chirp"
            await _call_both_ways(outside, f"http://evil.example:{canary.port}/", UrlRefused)
            await _call_both_ways(outside, "https://evil.example/", AddressRefused)


async def test_a_host_named_while_running_is_reached_on_both_ways() -> None:
    async with listening() as canary, Outside() as outside:
        url = f"http://127.0.0.1:{canary.port}/a"
        await _call_both_ways(outside, url, UrlRefused)
        outside.allow("127.0.0.1", canary.port, "http")
        assert (await outside.client.get(url)).text == "chirp"
        async with outside.exchange("GET", url) as answer:
            assert [chunk async for chunk in answer.aiter_raw()] == [b"chirp"]


async def test_both_ways_say_who_they_are_ask_for_no_encoding_and_keep_no_cookie() -> None:
    async with listening() as canary, Outside(wires=Wires(resolver=Names(minio_test=[["127.0.0.1"]]))) as outside:
        outside.allow("minio.test", canary.port, "http")
        for _ in range(2):
            await outside.client.get(f"http://minio.test:{canary.port}/")
            async with outside.exchange("GET", f"http://minio.test:{canary.port}/"):
                pass
    for request in map(bytes.lower, canary.requests):
        assert b"\r\nuser-agent: dashgate\r\n" in request
        assert b"\r\naccept-encoding: identity\r\n" in request
        assert b"cookie" not in request


async def test_a_proxy_in_the_environment_hears_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening() as proxy, listening() as store:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        async with Outside() as outside:
            outside.allow("127.0.0.1", store.port, "http")
            await outside.client.get(f"http://127.0.0.1:{store.port}/")
            async with outside.exchange("GET", f"http://127.0.0.1:{store.port}/"):
                pass
        assert (proxy.connections, len(store.requests)) == (0, 2)


async def test_calling_out_inside_a_transaction_is_refused_on_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = db._transaction_open.set(True)
    try:
        async with Outside() as outside:
            await _call_both_ways(outside, "https://a.example/", door.OutsideCallInTransaction)
    finally:
        db._transaction_open.reset(mark)


async def _speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, words: bytes) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(words)
    await writer.drain()
    writer.close()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (b"", httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", httpx.RemoteProtocolError),
        (b"\x16\x03\x01 not http\r\n\r\n", httpx.RemoteProtocolError),
    ],
    ids=["hangs up", "stops short", "speaks something else"],
)
async def test_a_server_that_breaks_off_is_never_taken_for_one_that_was_not_reached(
    words: bytes, expected: type[Exception]
) -> None:
    port = unused_port()
    server = await asyncio.start_server(lambda r, w: _speak(r, w, words), "127.0.0.1", port)
    async with server, Outside() as outside:
        outside.allow("127.0.0.1", port, "http")
        url = f"http://127.0.0.1:{port}/path?Signature=hush"
        with pytest.raises(expected) as of_httpx:
            await outside.client.post(url, json={})
        with pytest.raises(expected) as of_raw:
            async with outside.exchange("GET", url) as answer:
                async for _ in answer.aiter_raw():
                    pass
    assert "hush" not in f"{of_httpx.value}{of_raw.value}"


async def test_a_server_that_is_not_there_was_not_reached() -> None:
    async with Outside() as outside:
        outside.allow("127.0.0.1", port := unused_port(), "http")
        await _call_both_ways(outside, f"http://127.0.0.1:{port}/", httpx.ConnectError)
    with pytest.raises(httpx.ConnectTimeout), door._honest("GET", httpx.URL("https://a.example/")):
        raise aiohttp.ConnectionTimeoutError


async def test_a_server_that_says_nothing_is_a_read_timeout() -> None:
    port = unused_port()
    silent = asyncio.Event()

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await silent.wait()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", port)
    async with server, Outside(wires=Wires(read_seconds=0.05)) as outside:
        outside.allow("127.0.0.1", port, "http")
        await _call_both_ways(outside, f"http://127.0.0.1:{port}/?Signature=hush", httpx.ReadTimeout)
        silent.set()


async def test_a_full_pool_of_cancelled_calls_recovers() -> None:
    async with listening() as canary, Outside(wires=Wires(connections=2)) as outside:
        outside.allow("127.0.0.1", canary.port, "http")
        calls = [asyncio.create_task(outside.client.get(f"http://127.0.0.1:{canary.port}/")) for _ in range(20)]
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert (await outside.client.get(f"http://127.0.0.1:{canary.port}/")).status_code == 200


async def test_an_idle_connection_is_left_before_a_server_would_end_it() -> None:
    session = Wires().open_session(Guard(AllowList()))
    assert isinstance(session.connector, aiohttp.TCPConnector)
    assert session.connector._keepalive_timeout < 5  # uvicorn's; a call on a dying connection is a lost answer
    await session.close()


async def test_what_a_request_body_raises_is_raised_and_not_called_a_lost_connection() -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"some"
        raise ZeroDivisionError

    async with listening() as canary, Outside() as outside:
        outside.allow("127.0.0.1", canary.port, "http")
        with pytest.raises(ZeroDivisionError):
            async with outside.exchange(
                "PUT", f"http://127.0.0.1:{canary.port}/", headers={"Content-Length": "9"}, body=failing()
            ) as answer:
                await answer.aread()


def _guard(host: str, port: int) -> Guard:
    allow_list = AllowList()
    allow_list.add(host, port, "http")
    return Guard(allow_list)


def _resolved(host: str, address: str, port: int) -> ResolveResult:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=socket.AI_NUMERICHOST)
