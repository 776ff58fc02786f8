"""One image is fetched whole, or it is said in one word why not."""

import asyncio
import contextlib
import doctest
import gzip
import hashlib
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from app.delivery import download
from app.delivery.download import (
    Facts,
    HostNotAllowed,
    Limits,
    LinkExpired,
    SourceFault,
    SourceGone,
    SourceRefused,
    open_source,
)
from app.lib.clock import Clock
from app.lib.http import Outside, Wires

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40
JPEG = b"\xff\xd8\xff\xe0" + bytes(100)
WEBP = b"RIFF\x24\x00\x00\x00WEBPVP8 " + bytes(100)
RESULT_HOST = "dashscope-result-bj.oss-cn-beijing.aliyuncs.com"


@dataclass
class FileServer:
    """A server that gives every request the same scripted bytes, right or wrong."""

    answer: bytes
    rest: bytes = b""  # sent when `go` is set, or never
    go: asyncio.Event = field(default_factory=asyncio.Event)
    requests: list[bytes] = field(default_factory=list)
    port: int = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def link(self, target: str = "/a.png?Expires=1&Signature=hush") -> str:
        return f"http://{self.host}{target}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(self.answer)
            await writer.drain()
            if self.rest:
                await self.go.wait()
                writer.write(self.rest)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def serving(answer: bytes, rest: bytes = b"", *, tls: ssl.SSLContext | None = None) -> AsyncIterator[FileServer]:
    files = FileServer(answer, rest)
    listener = await asyncio.start_server(files.serve, "127.0.0.1", 0, ssl=tls)
    files.port = listener.sockets[0].getsockname()[1]
    async with listener:
        yield files
        files.go.set()


def answer(body: bytes, *headers: str, status: int = 200, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def fetch(files: FileServer, link: str | None = None, **limits: float) -> tuple[bytes, Facts]:
    async with Outside() as outside:
        asked = Limits(file_hosts=(files.host,), **limits)  # type: ignore[arg-type]
        async with open_source(outside, link or files.link(), limits=asked) as source:
            body = b"".join([chunk async for chunk in source.chunks()])
            return body, source.facts()


def test_the_examples_in_the_module_are_true() -> None:
    assert doctest.testmod(download).failed == 0


@pytest.mark.parametrize(
    ("body", "content_type", "extension"),
    [(PNG, "image/png", "png"), (JPEG, "image/jpeg", "jpg"), (WEBP, "image/webp", "webp")],
    ids=["png", "jpeg", "webp"],
)
async def test_an_image_arrives_whole_with_its_facts(body: bytes, content_type: str, extension: str) -> None:
    async with serving(answer(body, "Content-Type: text/html")) as files:
        got, facts = await fetch(files)
    assert got == body
    assert facts == Facts(
        content_type,
        extension,
        len(body),
        hashlib.sha256(body).hexdigest(),
        hashlib.md5(body).hexdigest(),  # noqa: S324
    )


@pytest.mark.parametrize(
    ("name", "body", "content_type"),
    [
        ("a.mp4", b"\x00\x00\x00\x1cftypisom" + bytes(100), "video/mp4"),
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", "image/svg+xml"),
        ("a.svg", b"<?xml version='1.0'?><svg></svg>", "image/svg+xml"),
        ("a.json", b'{"transcripts": []}', "application/json"),
    ],
    ids=["film", "drawing", "drawing with a prologue", "transcript"],
)
async def test_a_film_a_drawing_or_a_transcript_arrives_whole(name: str, body: bytes, content_type: str) -> None:
    async with serving(answer(body)) as files:
        got, facts = await fetch(files, files.link(f"/{name}?Expires=1"))
    assert (got, facts.content_type, facts.extension) == (body, content_type, name.rpartition(".")[2])


@pytest.mark.parametrize("name", ["a.png", "a.mp4", "a.svg"])
async def test_an_error_in_json_is_no_file(name: str) -> None:
    async with serving(answer(b'{"code": "InternalError"}')) as files:
        with pytest.raises(SourceFault):
            await fetch(files, files.link(f"/{name}?Expires=1"))


async def test_a_film_may_be_larger_than_an_image_but_has_a_bound_too() -> None:
    film = b"\x00\x00\x00\x1cftypisom" + bytes(1_000)
    async with serving(answer(film)) as files:
        link = files.link("/a.mp4?Expires=1")
        assert (await fetch(files, link, max_bytes=100))[0] == film
        with pytest.raises(SourceRefused) as refusal:
            await fetch(files, link, max_film_bytes=100)
    assert refusal.value.why == "too_large"


async def test_an_image_in_small_pieces_arrives_whole() -> None:
    async with serving(answer(PNG)[: -len(PNG)] + PNG[:3], PNG[3:]) as files:
        files.go.set()
        assert (await fetch(files))[0] == PNG


async def test_the_link_is_asked_for_byte_for_byte_by_get_without_encoding() -> None:
    target = "/1d/a%20b.png?Expires=1&OSSAccessKeyId=LTAI&Signature=a%2Fb%2Bc%3D%3D"
    async with serving(answer(PNG)) as files:
        await fetch(files, files.link(target))
    request = files.requests[0].lower()
    assert files.requests[0].startswith(f"GET {target} HTTP/1.1\r\n".encode())
    assert b"accept-encoding: identity" in request
    assert b"dashgate" in request


async def test_the_facts_are_not_given_before_the_end() -> None:
    async with (
        serving(answer(PNG)) as files,
        Outside() as outside,
        open_source(outside, files.link(), limits=Limits(file_hosts=(files.host,))) as source,
    ):
        assert source.size_bytes == len(PNG)
        with pytest.raises(RuntimeError):
            source.facts()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        *(
            (answer(b"", "Location: http://169.254.169.254/", status=status), "redirect")
            for status in (301, 302, 307, 308)
        ),
        (answer(gzip.compress(PNG), "Content-Encoding: gzip"), "encoding"),
        (answer(PNG, length=50 * 1024 * 1024 + 1), "too_large"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + PNG, "length"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "length"),
        (answer(b"", status=400), "status"),
        (answer(PNG, status=206), "status"),
        (answer(b"GIF89a" + bytes(100)), "kind"),
        (answer(b"PK\x03\x04" + bytes(100)), "kind"),
        (answer(b"\x89PNG"), "kind"),
    ],
)
async def test_what_is_no_image_of_ours_is_refused_for_good(given: bytes, why: str) -> None:
    async with serving(given) as files:
        with pytest.raises(SourceRefused) as refusal:
            await fetch(files)
    assert refusal.value.why == why
    assert len(files.requests) == 1


@pytest.mark.parametrize(("status", "expected"), [(403, LinkExpired), (404, SourceGone), (410, SourceGone)])
async def test_a_dead_link_says_how_it_died(status: int, expected: type[Exception]) -> None:
    async with serving(answer(b"<Error><Code>AccessDenied</Code></Error>", status=status)) as files:
        with pytest.raises(expected):
            await fetch(files)


@pytest.mark.parametrize(
    "given",
    [
        answer(b"", status=500),
        answer(b"", status=503),
        answer(b"", status=429),
        answer(b"<!DOCTYPE html><html>please log in</html>"),
        answer(b"\xef\xbb\xbf\n <html>"),
        answer(b'{"error": "busy"}'),
        answer(b""),
        answer(PNG[:5_000], length=len(PNG)),
        answer(PNG[:10], length=len(PNG)),
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"",
    ],
)
async def test_a_failing_storage_is_tried_again(given: bytes) -> None:
    async with serving(given) as files:
        with pytest.raises(SourceFault) as fault:
            await fetch(files)
    assert "hush" not in str(fault.value)


async def test_a_storage_that_is_not_there_is_tried_again() -> None:
    async with serving(b"") as files:
        pass
    with pytest.raises(SourceFault):
        await fetch(files)


async def test_a_storage_that_falls_silent_is_given_up_in_time() -> None:
    async with serving(answer(PNG[:5_000], length=len(PNG)), rest=PNG[5_000:]) as files:
        with pytest.raises(SourceFault):
            await fetch(files, total_seconds=0.1)


class HandClock(Clock):
    """A clock that moves by `step_seconds` at each look, and by hand."""

    def __init__(self, step_seconds: float = 0.0) -> None:
        self.now_seconds, self._step_seconds = 0.0, step_seconds

    def monotonic(self) -> float:
        self.now_seconds += self._step_seconds
        return self.now_seconds


async def test_a_storage_that_drips_is_given_up() -> None:
    async with serving(answer(PNG)) as files, Outside() as outside:
        with pytest.raises(SourceFault, match="bytes in 60 s"):
            async with open_source(
                outside, files.link(), limits=Limits(file_hosts=(files.host,)), clock=HandClock(step_seconds=60)
            ):
                pass


async def test_a_slow_reader_is_not_taken_for_a_slow_storage() -> None:
    clock = HandClock()
    async with serving(answer(PNG[:100], length=len(PNG)), rest=PNG[100:]) as files, Outside() as outside:
        limits = Limits(file_hosts=(files.host,))
        async with open_source(outside, files.link(), limits=limits, clock=clock) as source:
            files.go.set()
            async for _ in source.chunks():
                clock.now_seconds += 1_000
            assert source.facts().size_bytes == len(PNG)


async def test_what_the_reader_raises_is_not_called_a_fault_of_the_storage() -> None:
    async with serving(answer(PNG)) as files, Outside() as outside:
        with pytest.raises(ConnectionResetError):
            async with open_source(outside, files.link(), limits=Limits(file_hosts=(files.host,))):
                raise ConnectionResetError


@pytest.mark.parametrize(
    "link",
    [
        "https://evil.example/a.png",
        "https://x.oss-cn-beijing.aliyuncs.com/a.png",
        f"https://{RESULT_HOST}.evil.io/a.png",
        f"https://evil{RESULT_HOST}/a.png",
        "https://dashscope-result-bj.oss-cn-beijing.aliyuncs.com.cn/a.png",
        "https://127.0.0.1/a.png",
        "http://169.254.169.254/latest/meta-data/",
        "https:///a.png",
        "http://127.0.0.1:1/a.png",
    ],
)
async def test_a_link_to_another_host_is_held(link: str) -> None:
    async with Outside() as outside:
        with pytest.raises(HostNotAllowed):
            async with open_source(outside, link, limits=Limits(file_hosts=("127.0.0.1:2",))):
                pass


@pytest.mark.parametrize(
    "link",
    [
        "",
        "file:///etc/passwd",
        f"https://user:pw@{RESULT_HOST}/a",
        f"https://{RESULT_HOST}:22/a",
        f"https://{RESULT_HOST}/\n",
        f"https://{RESULT_HOST}/#a",
        f"http://{RESULT_HOST}:80/" + "a" * 9_000,
    ],
    ids=ascii,
)
async def test_a_link_that_is_no_link_of_ours_is_refused(link: str) -> None:
    async with Outside() as outside:
        with pytest.raises(SourceRefused) as refusal:
            async with open_source(outside, link):
                pass
    assert refusal.value.why == "url"


class AskedFor(AbstractResolver):
    """A resolver that notes what it was asked and knows one address."""

    def __init__(self, address: str) -> None:
        self.asked: list[tuple[str, int]] = []
        self._address = address

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        self.asked.append((host, port))
        found = ResolveResult(
            hostname=host, host=self._address, port=port, family=socket.AF_INET, proto=0, flags=socket.AI_NUMERICHOST
        )
        return [found]

    async def close(self) -> None:
        """Nothing is held."""


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_the_upstreams_hosts_are_spoken_to_by_https_only(scheme: str) -> None:
    resolver = AskedFor("10.0.0.1")
    async with Outside(wires=Wires(resolver=resolver)) as outside:
        with pytest.raises(HostNotAllowed):
            async with open_source(outside, f"{scheme}://{RESULT_HOST}/a.png?Expires=1"):
                pass
    assert resolver.asked == [(RESULT_HOST, 443)]


async def test_a_file_host_without_a_port_is_upgraded_too() -> None:
    resolver = AskedFor("169.254.169.254")
    async with Outside(wires=Wires(resolver=resolver)) as outside:
        with pytest.raises(HostNotAllowed):
            async with open_source(outside, "http://p4.example/a", limits=Limits(file_hosts=("p4.example",))):
                pass
    assert resolver.asked == [("p4.example", 443)]


async def test_a_certificate_must_be_one_that_is_trusted(tmp_path: Path) -> None:
    server_tls, ca_file = _certificate_for_loopback(tmp_path)
    async with serving(answer(PNG), tls=server_tls) as files:
        link, limits = f"https://{files.host}/a.png", Limits(file_hosts=(files.host,))
        async with Outside() as outside:
            with pytest.raises(SourceFault, match="certificate"):
                async with open_source(outside, link, limits=limits):
                    pass
        async with (
            Outside(wires=Wires(tls=ssl.create_default_context(cafile=ca_file))) as outside,
            open_source(outside, link, limits=limits) as source,
        ):
            assert source.kind.extension == "png"


def _certificate_for_loopback(folder: Path) -> tuple[ssl.SSLContext, str]:
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name.from_rfc4514_string("CN=loopback")
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "ca.pem").write_bytes(pem)
    (folder / "server.pem").write_bytes(private + pem)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "server.pem")
    return tls, str(folder / "ca.pem")
