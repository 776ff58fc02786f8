"""Forms as streams: what is read in whatever pieces it comes, what is written, and everything that is refused."""

from collections.abc import AsyncIterator

import httpx
import pytest

from app.lib.multipart import (
    Caps,
    Field,
    File,
    Form,
    FormRefused,
    Malformed,
    NotMultipart,
    TooLarge,
    encode_form,
    until_file,
)

TYPE = "multipart/form-data; boundary=b"
CAPS = Caps(file_bytes=100_000)
PICTURE = bytes(range(256)) * 8 + b"\r\n--a\r--b--\r\n--\n--b\r\r\n-" * 3  # what looks like a boundary and is none
FIELDS = [("key", "a/b/cup.png"), ("policy", "eyJ\r\n="), ("empty", ""), ("note", "小船"), ("key", "again")]


async def pieces(body: bytes, size: int = 1_000) -> AsyncIterator[bytes]:
    """Hand a body on as a server does, with an empty piece at its end."""
    for begin in range(0, len(body), size):
        yield body[begin : begin + size]
    yield b""


def part(disposition: str, content: bytes = b"x", *headers: str) -> bytes:
    head = "\r\n".join((f"Content-Disposition: {disposition}", *headers))
    return b"--b\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n"


def form(*parts: bytes, end: bytes = b"--b--\r\n") -> bytes:
    return b"".join(parts) + end


FILE = part('form-data; name="file"; filename="cup.png"', PICTURE, "Content-Type: image/png")
FIELD = part('form-data; name="a"', b"1")


async def read(body: bytes, *, size: int = 1_000, caps: Caps = CAPS, content_type: str = TYPE) -> list[object]:
    """Read a form to its end; a file as its name, file name, type and bytes."""
    found: list[object] = []
    async for one in Form(content_type, pieces(body, size), caps=caps):
        if isinstance(one, File):
            content = b"".join([chunk async for chunk in one.chunks])
            found.append((one.name, one.file_name, one.content_type, content))
        else:
            found.append(one)
    return found


async def written(file: File) -> tuple[str, int | None, bytes]:
    encoded = encode_form(FIELDS, file)
    return encoded.content_type, encoded.length_bytes, b"".join([chunk async for chunk in encoded.body])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64, 1_000, 100_000])
async def test_a_form_reads_the_same_in_whatever_pieces_it_comes(size: int) -> None:
    found = await read(form(FIELD, FILE, FIELD), size=size)
    assert found == [Field("a", "1"), ("file", "cup.png", "image/png", PICTURE), Field("a", "1")]


@pytest.mark.parametrize("size", [1, 1_000, 100_000])
async def test_what_is_written_reads_as_it_was(size: int) -> None:
    content_type, length, body = await written(
        File("file", 'a "cup".png', "image/png", size_bytes=len(PICTURE), chunks=pieces(PICTURE))
    )
    assert length == len(body)
    found = await read(body, size=size, content_type=content_type)
    assert found == [*map(Field._make, FIELDS), ("file", 'a "cup".png', "image/png", PICTURE)]


async def test_a_form_of_another_client_reads_as_it_was_meant() -> None:
    sent = httpx.Request(
        "POST", "http://a.example", data={"a": "1", "b": "小船"}, files={"file": ("小船.png", PICTURE, "image/png")}
    )
    found = await read(sent.read(), content_type=sent.headers["content-type"])
    assert found == [Field("a", "1"), Field("b", "小船"), ("file", "小船.png", "image/png", PICTURE)]


async def test_a_form_with_a_file_of_unknown_size_is_written_without_a_length() -> None:
    content_type, length, body = await written(File("file", "cup.png", "image/png", None, chunks=pieces(PICTURE)))
    assert length is None
    assert (await read(body, content_type=content_type))[-1] == ("file", "cup.png", "image/png", PICTURE)


@pytest.mark.parametrize("size", [1, 40, 100, 1_000, 100_000])
async def test_the_size_of_a_file_that_comes_last_is_known_before_it_is_read(size: int) -> None:
    body = form(FIELD, FILE)
    fields, file = await until_file(Form(TYPE, pieces(body, size), caps=CAPS, length_bytes=len(body)))
    assert fields == [Field("a", "1")]
    assert file.size_bytes == len(PICTURE)


@pytest.mark.parametrize("size", range(1, 150))
async def test_the_size_of_a_file_that_begins_like_a_boundary_is_known_as_well(size: int) -> None:
    body = form(part('form-data; name="file"; filename="cup.png"', b"\r\n--" * 100))
    _, file = await until_file(Form(TYPE, pieces(body, size), caps=CAPS, length_bytes=len(body)))
    assert file.size_bytes == 400


@pytest.mark.parametrize("size", [10, 1_000])
async def test_the_size_of_a_file_is_not_known_where_the_body_states_no_length(size: int) -> None:
    _, file = await until_file(Form(TYPE, pieces(form(FILE), size), caps=CAPS))
    assert file.size_bytes is None


async def test_a_form_is_relayed_while_it_arrives() -> None:
    handed: list[int] = []

    async def arriving(body: bytes) -> AsyncIterator[bytes]:
        for begin in range(0, len(body), 100):
            handed.append(begin)
            yield body[begin : begin + 100]

    body = form(FIELD, FILE)
    _, file = await until_file(Form(TYPE, arriving(body), caps=CAPS, length_bytes=len(body)))
    assert len(handed) < 3
    encoded = encode_form([("key", "ours")], file)
    sent = b""
    async for chunk in encoded.body:
        sent += chunk
        assert len(chunk) <= 1_000
        assert len(handed) * 100 < len(sent) + 600
    assert len(sent) == encoded.length_bytes
    assert (await read(sent, content_type=encoded.content_type))[1] == ("file", "cup.png", "image/png", PICTURE)


@pytest.mark.parametrize("stated", [len(PICTURE) - 1, len(PICTURE) + 1])
async def test_a_form_whose_file_is_not_as_long_as_stated_is_never_ended(stated: int) -> None:
    encoded = encode_form(FIELDS, File("file", "cup.png", "image/png", stated, chunks=pieces(PICTURE)))
    sent = b""
    with pytest.raises(Malformed):
        async for chunk in encoded.body:
            sent += chunk
    assert encoded.length_bytes is not None
    assert len(sent) < encoded.length_bytes


async def test_the_part_after_a_file_that_was_not_read_is_found() -> None:
    found = [one async for one in Form(TYPE, pieces(form(FILE, FIELD), 100), caps=CAPS)]
    assert isinstance(found[0], File)
    assert found[1] == Field("a", "1")


async def test_several_files_are_read_where_several_are_wanted() -> None:
    found = await read(form(FILE, FIELD, FILE), caps=Caps(file_bytes=100_000, files=2))
    assert len(found) == 3
    assert found[0] == found[2] == ("file", "cup.png", "image/png", PICTURE)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\pictures\\cup.png", "cup.png"),
        ("a/b\\c.png", "c.png"),
        ("..", "file"),
        ("", "file"),
        ("小船.png", "小船.png"),
    ],
)
async def test_of_a_files_name_only_the_last_part_is_kept(given: str, kept: str) -> None:
    found = await read(form(part(f'form-data; name="file"; filename="{given}"', b"x")))
    assert found == [("file", kept, "application/octet-stream", b"x")]


async def test_a_form_without_a_line_break_at_its_end_is_a_form() -> None:
    assert await read(form(FIELD, end=b"--b--")) == [Field("a", "1")]


async def test_an_empty_form_has_no_file() -> None:
    assert await read(form()) == []
    with pytest.raises(Malformed):
        await until_file(Form(TYPE, pieces(form()), caps=CAPS))


@pytest.mark.parametrize(
    "content_type",
    [
        *(
            "",
            "application/json",
            "multipart/form-data",
            "multipart/form-data; boundary=",
            "multipart/mixed; boundary=b",
        ),
        *('multipart/form-data; boundary=""', "multipart/form-data; boundary=" + "b" * 71),
        *('multipart/form-data; boundary="b\r\nx"', 'multipart/form-data; boundary="小船"'),
    ],
)
def test_a_body_that_says_it_is_something_else_is_not_read(content_type: str) -> None:
    with pytest.raises(NotMultipart):
        Form(content_type, pieces(form(FIELD)), caps=CAPS)


MALFORMED = {
    "nothing": b"",
    "no boundary at all": b"a=1&b=2" * 100,
    "something before the first boundary": b"hello\r\n" + form(FIELD),
    "a line break before the first boundary": b"\r\n" + form(FIELD),
    "another boundary": form(FIELD).replace(b"--b", b"--c"),
    "cut off in a header": form(FIELD)[:20],
    "cut off in a field": FIELD[:-3],
    "cut off in a file": FILE[:-100],
    "no last boundary": form(FIELD, end=b""),
    "half of the last boundary": form(FIELD, end=b"--b-"),
    "something after the last boundary": form(FIELD, end=b"--b--\r\nmore"),
    "a second form": form(FIELD) * 2,
    "line breaks of a form but for their first half": form(FIELD).replace(b"\r\n", b"\n"),
    "a part without a disposition": b"--b\r\nContent-Type: text/plain\r\n\r\nx\r\n--b--\r\n",
    "a part without a name": form(part("form-data", b"x")),
    "an attachment": form(part('attachment; name="a"', b"x")),
    "a form within a form": form(part('form-data; name="a"', b"x", "Content-Type: multipart/mixed; boundary=c")),
    "an encoded part": form(part('form-data; name="a"', b"eA==", "Content-Transfer-Encoding: base64")),
    "a part that states a wrong length": form(part('form-data; name="a"', b"x", "Content-Length: 2")),
    "a NUL in a name": form(part('form-data; name="a\0"', b"x")),
    "a line break in a name": form(part('form-data; name="a%0D%0Ab"', b"x")),
    "a NUL in a file's name": form(part('form-data; name="a"; filename="a\0.png"', b"x")),
    "a NUL in another header": form(part('form-data; name="a"', b"x", "X-Note: \0")),
    "a file's name as in mails": form(part("form-data; name=\"a\"; filename*=utf-8''a.png", b"x")),
    "two dispositions": form(part('form-data; name="a"', b"x", 'Content-Disposition: form-data; name="b"')),
    "a header on two lines": form(part('form-data; name="a"', b"x", "X-Note: a\r\n b")),
    "a header that is none": form(part('form-data; name="a"', b"x", "hello")),
    "a header that is not UTF-8": b'--b\r\nContent-Disposition: form-data; name="\xff"\r\n\r\nx\r\n--b--\r\n',
    "a value that is not UTF-8": form(part('form-data; name="a"', b"\xff")),
    "a NUL in a value": form(part('form-data; name="a"', b"a\0")),
    "two files": form(FILE, FILE),
}


@pytest.mark.parametrize("size", [1, 17, 100_000])
@pytest.mark.parametrize("name", MALFORMED)
async def test_a_malformed_form_is_refused(name: str, size: int) -> None:
    with pytest.raises(Malformed):
        await read(MALFORMED[name], size=size)


TOO_LARGE = {
    "a file": form(part('form-data; name="file"; filename="a"', b"x" * 1_001)),
    "a field": form(part('form-data; name="a"', b"x" * 101)),
    "too many fields": form(*[FIELD] * 4),
    "a name": form(part(f'form-data; name="{"a" * 5_000}"')),
    "a header that never ends": b"--b\r\nX-Note: " + b"x" * 10_000,
    "too many headers": form(part('form-data; name="a"', b"x", *(f"X-{n}: 1" for n in range(10)))),
}


@pytest.mark.parametrize("size", [1, 17, 100_000])
@pytest.mark.parametrize("name", TOO_LARGE)
async def test_what_is_over_a_cap_is_refused(name: str, size: int) -> None:
    with pytest.raises(TooLarge):
        await read(TOO_LARGE[name], size=size, caps=Caps(file_bytes=1_000, fields=3, field_bytes=100))


async def test_exactly_as_much_as_a_cap_says_is_taken() -> None:
    body = form(*[part('form-data; name="a"', b"x" * 100)] * 3, part('form-data; name="f"; filename="f"', b"x" * 1_000))
    assert len(await read(body, caps=Caps(file_bytes=1_000, fields=3, field_bytes=100))) == 4


async def test_a_cap_is_counted_while_reading() -> None:
    handed = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal handed
        yield FILE[:-2]
        while True:
            handed += 1
            yield b"x" * 1_000

    _, file = await until_file(Form(TYPE, endless(), caps=CAPS))
    with pytest.raises(TooLarge):
        async for _ in file.chunks:
            pass
    assert handed <= 100


@pytest.mark.parametrize("body", [form(FILE, end=b"--b--\r\nmore"), form(FILE) * 2, FILE[:-10]])
async def test_a_file_is_never_whole_when_its_form_does_not_end_as_it_must(body: bytes) -> None:
    _, file = await until_file(Form(TYPE, pieces(body, 100), caps=CAPS))
    passed = b""
    with pytest.raises(Malformed):
        async for chunk in file.chunks:
            passed += chunk
    assert PICTURE.startswith(passed)
    assert passed != PICTURE


async def test_a_refused_form_stays_refused() -> None:
    reading = Form(TYPE, pieces(MALFORMED["a header that is none"]), caps=CAPS)
    for _ in range(2):
        with pytest.raises(FormRefused):
            await anext(reading)


async def test_a_refusal_echoes_nothing() -> None:
    body = form(part('form-data; name="hush"', b"hush\xff", "X-Hush: hush"))
    with pytest.raises(Malformed) as refusal:
        await read(body)
    assert "hush" not in str(refusal.value).lower()
