"""An object under our key is exactly our bytes: against a real S3 with signature checks, and in a folder."""

import asyncio
import contextlib
import doctest
import errno
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from socket import AF_INET, AddressFamily

import httpx
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.test_utils import unused_port

from app.delivery import bucket as bucket_store
from app.delivery import places, storage
from app.delivery.storage import ObjectConflict, PlaceSpec, S3Credentials, StoreFault, StoreRefused, open_store, probe
from app.lib.http import Outside, Wires
from tests.rclone import RunningS3, running_s3

KEY = "2026/11/ü +%&=#?~.png"
BODY = bytes(range(256)) * 1_000
PAIR = S3Credentials("AKIDFORTESTS00000001", "never-checked-0000000000000000000000000")


@pytest.fixture(scope="module")
def s3() -> Iterator[RunningS3]:
    with running_s3() as running:
        yield running


@pytest.fixture
async def outside() -> AsyncIterator[Outside]:
    async with Outside() as opened:
        yield opened


@pytest.fixture(params=["s3", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path, outside: Outside) -> storage.Store:
    prefix = f"team-a/{tmp_path.name}"
    if request.param == "folder":
        return open_store(PlaceSpec("file", root=str(tmp_path), prefix=prefix), None, outside=outside)
    return bucket(request.getfixturevalue("s3"), outside, prefix=prefix)


def bucket(s3: RunningS3, outside: Outside, *, prefix: str = "", secret: str = "", name: str = "") -> storage.Store:
    spec = PlaceSpec("s3", s3.endpoint, bucket=name or s3.bucket, prefix=prefix)
    return open_store(spec, S3Credentials(s3.access_key_id, secret or s3.secret_access_key), outside=outside)


async def pieces(body: bytes = BODY, size: int = 10_000) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


async def put(
    store: storage.Store, body: bytes = BODY, *, key: str = KEY, size_bytes: int | None = None
) -> storage.Receipt:
    length = len(body) if size_bytes is None else size_bytes
    return await store.put(key, pieces(body), size_bytes=length, content_type="image/png")


async def read(store: storage.Store, *, key: str = KEY, byte_range: tuple[int, int] | None = None) -> bytes:
    async with store.open_read(key, byte_range) as reading:
        body = b"".join([chunk async for chunk in reading.chunks])
        assert len(body) == reading.size_bytes
        return body


def test_the_examples_in_the_module_are_true() -> None:
    for module in (places, bucket_store):
        assert doctest.testmod(module).failed == 0


# --- both kinds of place ---


async def test_what_is_put_can_be_read(store: storage.Store) -> None:
    receipt = await put(store)
    assert receipt.size_bytes == len(BODY)
    assert await read(store) == BODY
    assert await read(store, byte_range=(10, 19)) == BODY[10:20]
    assert await store.head(KEY) == receipt


async def test_an_empty_object_can_be_put_and_read(store: storage.Store) -> None:
    await put(store, b"")
    assert await read(store) == b""


async def test_putting_the_same_bytes_again_is_a_success(store: storage.Store) -> None:
    assert await put(store) == await put(store)


@pytest.mark.parametrize("other", [BODY[:-1] + b"!", BODY + b"!", b""], ids=["same length", "longer", "empty"])
async def test_other_bytes_under_the_key_are_never_replaced(store: storage.Store, other: bytes) -> None:
    await put(store)
    with pytest.raises(ObjectConflict):
        await put(store, other)
    assert await read(store) == BODY


async def test_two_attempts_at_once_leave_our_bytes_and_none_sees_a_conflict(store: storage.Store) -> None:
    for result in await asyncio.gather(put(store), put(store), return_exceptions=True):
        assert isinstance(result, (storage.Receipt, StoreFault))  # rclone refuses two writers at once with a 500
    await put(store)
    assert await read(store) == BODY


async def test_a_source_that_breaks_off_leaves_no_object_and_says_its_own_name(store: storage.Store) -> None:
    async def breaking() -> AsyncIterator[bytes]:
        yield BODY[:100_000]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await store.put(KEY, breaking(), size_bytes=len(BODY), content_type="image/png")
    assert await store.head(KEY) is None


@pytest.mark.parametrize("size_bytes", [len(BODY) + 1, len(BODY) - 1], ids=["too few", "too many"])
async def test_a_source_of_another_length_leaves_no_object(store: storage.Store, size_bytes: int) -> None:
    with pytest.raises(StoreFault, match="bytes came instead of"):
        await put(store, size_bytes=size_bytes)
    assert await store.head(KEY) is None


async def test_what_is_not_there_is_said_to_be_missing(store: storage.Store) -> None:
    assert await store.head("nothing.png") is None
    with pytest.raises(storage.ObjectMissing):
        await read(store, key="nothing.png")


async def test_a_deleted_object_is_gone_and_can_be_deleted_again(store: storage.Store) -> None:
    await put(store)
    for _ in range(2):
        await store.delete(KEY)
        assert await store.head(KEY) is None


@pytest.mark.parametrize(
    "key", ["", "/a", "a//b", "a/", "../a", "a/../../b", "a/./b", ".", "a\0b", "a\nb", "a\\b", "ü" * 513], ids=ascii
)
async def test_a_key_that_could_leave_the_place_is_refused(store: storage.Store, key: str) -> None:
    with pytest.raises(ValueError, match="object key"):
        await put(store, key=key)
    with pytest.raises(ValueError, match="object key"):
        await store.delete(key)


async def test_a_place_that_works_passes_the_probe_and_is_left_as_it_was(
    store: storage.Store, s3: RunningS3, tmp_path: Path
) -> None:
    await probe(store)
    assert [
        file
        for folder in (s3.folder, tmp_path)
        for file in folder.rglob("*")
        if "probe" in str(file) and file.is_file()
    ] == []


# --- a bucket ---


async def test_a_bucket_keeps_the_content_type_and_the_md5(s3: RunningS3, outside: Outside) -> None:
    receipt = await put(bucket(s3, outside, prefix="kept"))
    assert receipt.content_type == "image/png"
    assert receipt.etag == hashlib.md5(BODY).hexdigest()  # noqa: S324


async def test_a_presigned_link_reads_the_object_without_a_key(s3: RunningS3, outside: Outside) -> None:
    store = bucket(s3, outside, prefix="linked")
    await put(store)
    link = store.presign_get(KEY, seconds=60)
    assert link is not None
    async with outside.exchange("GET", link) as answer:
        assert b"".join([chunk async for chunk in answer.aiter_raw()]) == BODY
    async with outside.exchange("GET", link.replace("X-Amz-Expires=60", "X-Amz-Expires=61")) as answer:
        assert answer.status_code == 403


async def test_a_presigned_link_lives_seven_days_at_most(s3: RunningS3, outside: Outside) -> None:
    link = bucket(s3, outside).presign_get(KEY, seconds=30 * 24 * 3600)
    assert link is not None
    assert httpx.URL(link).params["X-Amz-Expires"] == str(7 * 24 * 3600)


async def test_the_environment_of_the_machine_has_no_say(
    s3: RunningS3, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = "SESSION_TOKEN ENDPOINT_URL ENDPOINT_URL_S3 ENDPOINT ACCESS_KEY_ID SECRET_ACCESS_KEY REGION DEFAULT_REGION"
    for name in names.split():
        monkeypatch.setenv(f"AWS_{name}", "http://127.0.0.1:1")
    for name in ("SKIP_SIGNATURE", "S3_EXPRESS", "REQUEST_PAYER", "UNSIGNED_PAYLOAD", "VIRTUAL_HOSTED_STYLE_REQUEST"):
        monkeypatch.setenv(f"AWS_{name}", "true")
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    store = bucket(s3, outside, prefix="environment")
    await probe(store)
    link = httpx.URL(store.presign_get(KEY, seconds=60) or "")
    assert sorted(link.params) == [
        *("X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-Signature"),
        "X-Amz-SignedHeaders",
    ]


class Loopback(AbstractResolver):
    """A resolver for which every name is this machine."""

    async def resolve(self, host: str, port: int = 0, family: AddressFamily = AF_INET) -> list[ResolveResult]:
        return [ResolveResult(hostname=host, host="127.0.0.1", port=port, family=AF_INET, proto=0, flags=0)]

    async def close(self) -> None:
        """Nothing is held."""


async def test_a_bucket_named_in_the_host_works() -> None:
    with running_s3(path_style=False) as s3:
        async with Outside(wires=Wires(resolver=Loopback())) as outside:
            spec = PlaceSpec("s3", f"http://s3.test:{s3.port}", bucket=s3.bucket, addressing="virtual")
            await probe(open_store(spec, S3Credentials(s3.access_key_id, s3.secret_access_key), outside=outside))


@pytest.mark.parametrize(
    ("changed", "hint"),
    [
        ({"secret": "wrong" * 8}, "SignatureDoesNotMatch: the secret does not belong"),
        ({"name": "no-such-bucket"}, "NoSuchBucket: the bucket does not exist"),
    ],
)
async def test_a_failing_probe_says_what_to_change(
    s3: RunningS3, outside: Outside, changed: dict[str, str], hint: str
) -> None:
    with pytest.raises(StoreRefused, match=f"PUT failed: .* {hint}"):
        await probe(bucket(s3, outside, **changed))


async def test_a_large_body_that_is_refused_says_why(s3: RunningS3, outside: Outside) -> None:
    with pytest.raises(StoreRefused, match="SignatureDoesNotMatch"):
        await put(bucket(s3, outside, secret="wrong" * 8), BODY * 40)


async def test_a_store_that_is_not_there_is_tried_again(outside: Outside) -> None:
    spec = PlaceSpec("s3", f"http://127.0.0.1:{unused_port()}", bucket="b")
    with pytest.raises(StoreFault) as fault:
        await probe(open_store(spec, PAIR, outside=outside))
    assert "Signature" not in str(fault.value)


async def test_a_store_at_metadata_is_refused_even_when_an_operator_names_it(outside: Outside) -> None:
    for host in ("169.254.169.254", "100.100.100.200"):
        with pytest.raises(StoreRefused):
            await probe(open_store(PlaceSpec("s3", f"http://{host}", bucket="b"), PAIR, outside=outside))


def test_a_place_must_be_fully_described(outside: Outside) -> None:
    for spec, pair in ((PlaceSpec("file"), None), (PlaceSpec("s3", bucket="b"), None), (PlaceSpec("s3"), PAIR)):
        with pytest.raises(ValueError, match="needs"):
            open_store(spec, pair, outside=outside)


def test_the_secret_is_not_shown() -> None:
    assert PAIR.secret_access_key not in repr(PAIR)


# --- a store that misbehaves ---


class FakeStore:
    """An S3 without signatures that does what a test tells it, and remembers what it was sent."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.etag: Callable[[bytes], str] = lambda body: hashlib.md5(body).hexdigest()  # noqa: S324
        # The status to answer with instead of doing what was asked, and what happens after a PUT.
        self.instead: Callable[[web.BaseRequest], int | None] = lambda _: None
        self.after_put: Callable[[str], int] = lambda _: 200
        self.location, self.port = "", unused_port()

    def store(self, outside: Outside) -> storage.Store:
        return open_store(PlaceSpec("s3", f"http://127.0.0.1:{self.port}", bucket="b"), PAIR, outside=outside)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.seen.append((request.method, dict(request.headers)))
        body = await request.read()
        if status := self.instead(request):
            return web.Response(status=status, headers={"Location": self.location})
        if request.method == "PUT":
            self.objects[request.path] = body
            return web.Response(status=self.after_put(request.path))
        if request.path not in self.objects:
            return web.Response(status=404)
        body = self.objects[request.path]
        return web.Response(body=body, headers={"ETag": f'"{self.etag(body)}"'})


@pytest.fixture
async def fake() -> AsyncIterator[FakeStore]:
    behaviour = FakeStore()
    server = web.Server(behaviour.answer)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", behaviour.port)
    yield behaviour
    listener.close()
    await server.shutdown()


async def test_a_put_states_its_length_and_asks_not_to_replace(fake: FakeStore, outside: Outside) -> None:
    await put(fake.store(outside))
    headers = next(headers for method, headers in fake.seen if method == "PUT")
    assert headers["Content-Length"] == str(len(BODY))
    assert "Transfer-Encoding" not in headers
    assert headers["If-None-Match"] == "*"
    assert not [name for name in headers if name.lower().startswith("x-amz-")]


async def test_a_store_that_redirects_is_not_followed(fake: FakeStore, outside: Outside) -> None:
    heard: list[object] = []
    canary = await asyncio.start_server(lambda reader, writer: heard.append(writer), "127.0.0.1", 0)
    port = canary.sockets[0].getsockname()[1]
    outside.allow("127.0.0.1", port, "http")
    fake.location, fake.instead = f"http://127.0.0.1:{port}/", lambda _: 307
    store = fake.store(outside)
    async with canary:
        for call in (put(store), read(store), store.delete(KEY), store.head(KEY)):
            with pytest.raises(StoreRefused, match="307, which is not followed"):
                await call
    assert heard == []


async def test_a_lost_answer_to_a_put_is_found_out_by_the_next_attempt(fake: FakeStore, outside: Outside) -> None:
    fake.after_put = lambda _: 500
    with pytest.raises(StoreFault):
        await put(fake.store(outside))
    assert (await put(fake.store(outside))).size_bytes == len(BODY)
    assert [method for method, _ in fake.seen].count("PUT") == 1


@pytest.mark.parametrize("status", [409, 412])
async def test_an_object_that_appeared_meanwhile_is_compared(fake: FakeStore, outside: Outside, status: int) -> None:
    theirs = b"theirs".ljust(len(BODY))

    def appear(request: web.BaseRequest) -> int | None:
        if request.method != "PUT":
            return None
        fake.objects.setdefault(request.path, theirs)
        return status

    fake.instead = appear
    with pytest.raises(ObjectConflict):
        await put(fake.store(outside))
    assert list(fake.objects.values()) == [theirs]


@pytest.mark.parametrize(
    ("altered", "expected"), [(None, StoreFault), (b"!" + BODY[1:], ObjectConflict), (BODY[1:], ObjectConflict)]
)
async def test_a_store_that_drops_or_alters_data_is_not_believed(
    fake: FakeStore, outside: Outside, altered: bytes | None, expected: type[Exception]
) -> None:
    def alter(path: str) -> int:
        del fake.objects[path]
        if altered:
            fake.objects[path] = altered
        return 200

    fake.after_put = alter
    with pytest.raises(expected):
        await put(fake.store(outside))


@pytest.mark.parametrize("etag", ["0" * 32, "0" * 32 + "-2", ""], ids=["of an encrypted object", "of parts", "none"])
async def test_an_etag_that_is_no_md5_of_the_bytes_costs_a_reading_but_no_failure(
    fake: FakeStore, outside: Outside, etag: str
) -> None:
    fake.etag = lambda _: etag
    for _ in range(2):
        assert (await put(fake.store(outside))).size_bytes == len(BODY)
    with pytest.raises(ObjectConflict):
        await put(fake.store(outside), BODY[:-1] + b"!")


async def test_a_key_that_may_not_list_still_delivers(fake: FakeStore, outside: Outside) -> None:
    fake.instead = lambda request: 403 if request.method == "HEAD" and request.path not in fake.objects else None
    assert await put(fake.store(outside))


async def test_a_store_that_knows_no_conditions_is_asked_without_next_time(fake: FakeStore, outside: Outside) -> None:
    fake.instead = lambda request: 501 if "If-None-Match" in request.headers else None
    with pytest.raises(StoreFault):
        await put(fake.store(outside))
    assert await put(fake.store(outside))


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_busy_store_is_tried_again(fake: FakeStore, outside: Outside, status: int) -> None:
    fake.instead = lambda _: status
    with pytest.raises(StoreFault):
        await probe(fake.store(outside))


# --- a folder ---


def folder(root: Path, outside: Outside) -> storage.Store:
    return open_store(PlaceSpec("file", root=str(root)), None, outside=outside)


async def test_a_folder_holds_nothing_but_the_objects(tmp_path: Path, outside: Outside) -> None:
    store = folder(tmp_path, outside)
    await put(store)
    with contextlib.suppress(ObjectConflict):
        await put(store, b"other")
    with contextlib.suppress(StoreFault):
        await put(store, key="short.png", size_bytes=1)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [tmp_path / KEY]


def test_a_folder_has_no_links(tmp_path: Path, outside: Outside) -> None:
    assert folder(tmp_path, outside).presign_get(KEY, seconds=60) is None


async def test_a_folder_that_is_a_file_says_so(tmp_path: Path, outside: Outside) -> None:
    (tmp_path / "root").write_text("")
    with pytest.raises(StoreRefused, match=os.strerror(errno.ENOTDIR)):
        await probe(folder(tmp_path / "root", outside))


async def test_a_full_disk_is_tried_again(tmp_path: Path, outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreFault, match="No space"):
        await put(folder(tmp_path, outside))


async def test_a_slow_attempt_does_not_replace_what_a_quick_one_put_meanwhile(tmp_path: Path, outside: Outside) -> None:
    started, may_go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        started.set()
        await may_go_on.wait()
        yield b"!" + BODY[1:]

    store = folder(tmp_path, outside)
    slow_put = asyncio.create_task(store.put(KEY, slow(), size_bytes=len(BODY), content_type="image/png"))
    await started.wait()
    await put(store)
    may_go_on.set()
    with pytest.raises(ObjectConflict):
        await slow_put
    assert await read(store) == BODY


async def test_a_cancelled_put_leaves_nothing_in_a_folder(tmp_path: Path, outside: Outside) -> None:
    waiting = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield BODY
        waiting.set()
        await asyncio.Event().wait()

    putting = asyncio.create_task(
        folder(tmp_path, outside).put(KEY, endless(), size_bytes=len(BODY) * 2, content_type="image/png")
    )
    await waiting.wait()
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []
