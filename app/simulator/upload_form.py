"""The form that carries a file to the temporary store (pure): strict `multipart/form-data`, `file` last.

The real store is lenient in places nobody has listed, so whatever is not plainly right is refused here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# What a form has to carry besides `file`, in the order in which it is asked for.
NEEDED_FIELDS = (
    "OSSAccessKeyId",
    "Signature",
    "policy",
    "key",
    "x-oss-object-acl",
    "x-oss-forbid-overwrite",
    "success_action_status",
)
_CONTENT_TYPE = re.compile(r'multipart/form-data\s*;\s*boundary=(?:"([^"]{1,70})"|([^\s;",]{1,70}))', re.IGNORECASE)
_FIELD_NAME = re.compile(r'form-data\s*;(?:.*;)?\s*name="([^"]+)"', re.IGNORECASE)
_LINE_END = b"\r\n"


class UploadRefusedError(Exception):
    """A file that the store does not take; carries OSS's status, code and message."""

    def __init__(self, status: int, code: str, *, message: str) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class UploadForm:
    """A form that holds together: its text fields in the order of arrival, and the file after them."""

    fields: dict[str, str]
    file: bytes


def read_form(content_type: str, body: bytes) -> UploadForm:
    """Read a form with every needed field and one file at its end.

    Raises: `UploadRefusedError` 400 or, for another content type, 412.
    """
    found = _CONTENT_TYPE.fullmatch(content_type.strip())
    if found is None:
        raise UploadRefusedError(
            412, "PreconditionFailed", message="Bucket POST must be of the enclosure-type multipart/form-data."
        )
    fields: dict[str, str] = {}
    file: bytes | None = None
    for name, value in _parts(body, (found[1] or found[2]).encode()):
        if file is not None:
            raise malformed("The field file must be the last one.")
        if name in fields:
            raise malformed(f"The field {name} must be given once.")
        if name == "file":
            file = value
        else:
            fields[name] = _text(value)
    for name in NEEDED_FIELDS:
        if name not in fields:
            raise invalid_argument(f"Bucket POST must contain a field named '{name}'.")
    if file is None:
        raise UploadRefusedError(
            400,
            "IncorrectNumberOfFilesInPOSTRequest",
            message="POST requires exactly one file upload per request.",
        )
    return UploadForm(fields, file)


def malformed(message: str) -> UploadRefusedError:
    """Refuse a form that does not hold together."""
    return UploadRefusedError(400, "MalformedPOSTRequest", message=message)


def invalid_argument(message: str) -> UploadRefusedError:
    """Refuse a field, or the lack of one."""
    return UploadRefusedError(400, "InvalidArgument", message=message)


def _parts(body: bytes, boundary: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each part. Nothing may stand before the first part or after the last."""
    delimiter = b"--" + boundary
    if not body.startswith(delimiter + _LINE_END):
        raise _not_well_formed()
    begin = len(delimiter) + len(_LINE_END)
    while True:
        end = body.find(_LINE_END + delimiter, begin)
        head, blank_line, content = body[begin : max(end, begin)].partition(_LINE_END * 2)
        if not blank_line:
            raise _not_well_formed()
        yield _field_name(head), content
        after = end + len(_LINE_END) + len(delimiter)
        begin = after + len(_LINE_END)
        if body[after:begin] != _LINE_END:
            break
    if body[after:] not in (b"--", b"--" + _LINE_END):
        raise _not_well_formed()


def _field_name(head: bytes) -> str:
    for line in _text(head).split("\r\n"):
        title, _, value = line.partition(":")
        if title.strip().lower() == "content-disposition":
            found = _FIELD_NAME.match(value.strip())
            if found is not None:
                return found[1]
    raise _not_well_formed()


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise _not_well_formed() from error


def _not_well_formed() -> UploadRefusedError:
    return malformed("The body of your POST request is not well-formed multipart/form-data.")
