"""The upload form: what holds together is read to the byte, everything else is refused."""

import pytest

from app.simulator.upload_form import NEEDED_FIELDS, UploadRefusedError, read_form

CONTENT_TYPE = "multipart/form-data; boundary=b0"
FIELDS = {name: f"value of {name}" for name in NEEDED_FIELDS}


def part(name: str, value: str | bytes, *, more: str = "") -> bytes:
    content = value.encode() if isinstance(value, str) else value
    return f'--b0\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n"


def body(*extra: bytes, fields: dict[str, str] | None = None, end: bytes = b"--b0--\r\n") -> bytes:
    given = FIELDS if fields is None else fields
    return b"".join(part(name, value) for name, value in given.items()) + b"".join(extra) + end


def file_part(content: bytes = b"bytes") -> bytes:
    return part("file", content, more='; filename="cup.png"')


@pytest.mark.parametrize("content", [b"", b"\r\n", b" --b0", b"\x00\xff\r\n\r\n--b1\r\n", b"bytes\r\n--"])
def test_the_file_is_read_to_the_byte(content: bytes) -> None:
    form = read_form(CONTENT_TYPE, body(file_part(content)))
    assert form.file == content
    assert form.fields == FIELDS


def test_values_may_be_empty_or_not_ascii() -> None:
    fields = {**FIELDS, "key": "folder/纸船.png", "policy": ""}
    assert read_form(CONTENT_TYPE, body(file_part(), fields=fields)).fields == fields


def test_a_quoted_boundary_and_more_headers_are_understood() -> None:
    extra = b'--b0\r\nContent-Type: image/png\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n'
    assert read_form('Multipart/Form-Data; boundary="b0"', body(extra)).file == b"x"


def test_further_fields_are_kept() -> None:
    fields = {**FIELDS, "x-oss-content-type": "image/png"}
    assert read_form(CONTENT_TYPE, body(file_part(), fields=fields)).fields == fields


@pytest.mark.parametrize(
    "content_type", ["", "application/json", "multipart/form-data", "multipart/mixed; boundary=b0"]
)
def test_another_content_type_is_refused(content_type: str) -> None:
    with pytest.raises(UploadRefusedError, match="412 PreconditionFailed"):
        read_form(content_type, body(file_part()))


@pytest.mark.parametrize("name", NEEDED_FIELDS)
def test_no_field_may_be_missing(name: str) -> None:
    fields = {other: value for other, value in FIELDS.items() if other != name}
    with pytest.raises(UploadRefusedError, match=f"400 InvalidArgument.*'{name}'"):
        read_form(CONTENT_TYPE, body(file_part(), fields=fields))


def test_a_form_without_a_file_is_refused() -> None:
    with pytest.raises(UploadRefusedError, match="IncorrectNumberOfFilesInPOSTRequest"):
        read_form(CONTENT_TYPE, body())


@pytest.mark.parametrize(
    "malformed",
    [
        b"",
        b"--b0--\r\n",
        b"prose before" + body(file_part()),
        body(file_part()) + b"prose after",
        body(file_part(), end=b""),
        body(file_part(), end=b"--b0"),
        body(file_part(), end=b"--b0 \r\n"),
        body(file_part(), part("late", "x")),
        body(file_part(), file_part()),
        body(part("key", "twice"), file_part()),
        body(part("key2", b"\xff"), file_part()),
        body(b"--b0\r\nContent-Type: image/png\r\n\r\nx\r\n"),
        body(b'--b0\r\nContent-Disposition: form-data; filename="file"\r\n\r\nx\r\n'),
        body(b"--b0\r\nno head\r\n", file_part()),
    ],
)
def test_what_does_not_hold_together_is_refused(malformed: bytes) -> None:
    with pytest.raises(UploadRefusedError, match="400 MalformedPOSTRequest"):
        read_form(CONTENT_TYPE, malformed)
