"""Every error has one place in the tree, a message for its reader, and a form in every costume (design.md 7)."""

import json
import re
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from starlette.requests import Request

from app import errors
from app.api.rendering import error_response
from app.errors import DashgateError
from tests.house.source import module

CLASSES = {
    name: found for name, found in vars(errors).items() if isinstance(found, type) and issubclass(found, DashgateError)
}
# What a constructor wants beside a message.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "UpstreamRefused": (400, b'{"code":"InvalidParameter","message":"n must be 1 to 4","request_id":"r"}'),
    "NotReady": ("E01", "no database", "set DASHGATE_DATABASE_URL"),
    "AnswerLost": ("ReadTimeout",),
    "CouldNotFindOut": ("ReadTimeout",),
    "StillRunning": ("0385dc79-5ff8-4d82-bcb6-000000000000",),
}
OURS = sorted(set(CLASSES) - {"UpstreamRefused"})
DASHSCOPE_PATH, PROBLEM_PATH, STORE_PATH = "/api/v1/tasks/x", "/admin/v1/usage", "/uploads/x"
OPENAI_PATHS = ("/v1/images/generations", "/compatible-mode/v1/images/edits", "/compatible-mode/v1/models")


def make(name: str) -> DashgateError:
    return CLASSES[name](*ARGUMENTS.get(name, ()))


def render(error: DashgateError, path: str) -> tuple[int, dict[str, str], Any]:
    """Render an error as the route would; return status, headers and the parsed body."""
    scope = {"type": "http", "method": "GET", "path": path, "headers": [], "dashgate.request_id": "our-request-id"}
    response = error_response(Request(scope), error)
    return response.status_code, dict(response.headers), json.loads(bytes(response.body))


@pytest.mark.parametrize("name", OURS)
def test_an_error_renders_in_dashscopes_shape(name: str) -> None:
    error = make(name)
    status, headers, body = render(error, DASHSCOPE_PATH)
    assert (status, headers["content-type"]) == (error.status, "application/json")
    assert body == {"code": error.code, "message": error.message, "request_id": "our-request-id"}


@pytest.mark.parametrize("name", OURS)
def test_an_error_renders_as_a_problem(name: str) -> None:
    error = make(name)
    status, headers, body = render(error, PROBLEM_PATH)
    assert (status, headers["content-type"]) == (error.status, "application/problem+json")
    assert set(body) == {"type", "title", "status", "detail", "instance"}
    assert (body["status"], body["detail"], body["instance"]) == (error.status, error.message, PROBLEM_PATH)


@pytest.mark.parametrize("path", OPENAI_PATHS)
@pytest.mark.parametrize("name", CLASSES)
def test_an_error_renders_in_openais_shape(name: str, path: str) -> None:
    error = make(name)
    status, headers, body = render(error, path)
    assert (status, headers["content-type"]) == (error.status, "application/json")
    said = body["error"]
    assert (body.keys(), said.keys()) == ({"error", "request_id"}, {"message", "type", "param", "code"})
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", said["code"])
    if name == "UpstreamRefused":
        assert (said["code"], said["message"], body["request_id"]) == ("invalid_parameter", "n must be 1 to 4", "r")
    else:
        assert (said["message"], said["param"], body["request_id"]) == (error.message, None, "our-request-id")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((400, "invalid_request_error"), (401, "authentication_error"), (403, "permission_error")),
        *((404, "invalid_request_error"), (429, "rate_limit_error"), (500, "server_error"), (503, "server_error")),
    ],
)
def test_openais_kind_of_an_error_follows_its_status(status: int, kind: str) -> None:
    for body in (b"{}", b"[]", b"<html>", b"[" * 100_000, b'{"code":7,"message":null}'):
        _, _, said = render(errors.UpstreamRefused(status, body), OPENAI_PATHS[0])
        assert (said["error"]["type"], said["request_id"]) == (kind, "our-request-id")
        assert said["error"]["message"] == "The upstream refused the request."


@pytest.mark.parametrize("name", OURS)
def test_an_error_renders_in_the_words_of_the_object_storage(name: str) -> None:
    error = make(name)
    scope = {
        "type": "http",
        "method": "POST",
        "path": STORE_PATH,
        "headers": [],
        "dashgate.request_id": "our-request-id",
    }
    response = error_response(Request(scope), error)
    assert (response.status_code, response.headers["content-type"]) == (error.status, "application/xml")
    said = ET.fromstring(bytes(response.body))  # noqa: S314 -- our own words
    told = {part.tag: part.text for part in said}
    assert told == {"Code": error.code, "Message": error.message, "RequestId": "our-request-id"}


@pytest.mark.parametrize("path", [DASHSCOPE_PATH, PROBLEM_PATH])
def test_the_upstreams_own_verdict_passes_unchanged(path: str) -> None:
    status, headers, body = render(make("UpstreamRefused"), path)
    assert (status, body) == (400, json.loads(ARGUMENTS["UpstreamRefused"][1]))
    assert headers["content-type"] == "application/json"


@pytest.mark.parametrize("name", CLASSES)
def test_an_error_answer_is_never_cached_and_says_whether_to_retry(name: str) -> None:
    error = make(name)
    _, headers, _ = render(error, DASHSCOPE_PATH)
    assert headers["cache-control"] == "no-store"
    assert headers["x-should-retry"] == ("true" if error.retry == "later" else "false")


@pytest.mark.parametrize("name", CLASSES)
def test_the_docstring_of_an_error_is_its_message(name: str) -> None:
    said = (CLASSES[name].__doc__ or "").strip().splitlines()
    assert said
    assert said[0].endswith(".") or name == "NotReady"  # its number and hint follow
    if name not in ARGUMENTS:
        assert make(name).message == said[0]


@pytest.mark.parametrize("name", CLASSES)
def test_an_error_has_a_status_of_an_error_and_a_code_of_its_form(name: str) -> None:
    error = make(name)
    assert 400 <= error.status <= 599
    assert re.fullmatch(r"[A-Z][A-Za-z]+(\.[A-Z][A-Za-z]+)?", error.code)


def test_the_tree_in_the_docstring_names_every_error_under_its_parent() -> None:
    drawn = {name: parent for name, parent, _ in _tree()}
    actual = {name: found.__mro__[1].__name__ for name, found in CLASSES.items() if found is not DashgateError}
    assert drawn == actual


def test_the_tree_in_the_docstring_is_drawn_once_for_each_error() -> None:
    names = [name for name, _, _ in _tree()]
    assert len(names) == len(set(names))


def test_the_tree_in_the_docstring_tells_each_status_and_code() -> None:
    told = {}
    for name, _, text in _tree():
        if found := re.match(r"(\d{3}) (\S+)$", text):
            told[name] = (int(found[1]), found[2])
    assert told == {name: (make(name).status, make(name).code) for name in told}
    leaves = {name for name in CLASSES if not CLASSES[name].__subclasses__()}
    assert leaves - set(told) == {
        *("UpstreamRefused",),  # carries the upstream's own
        *("NotReady", "CommandRefused"),  # of the command line
        *("NotSent", "AnswerLost", "CouldNotFindOut"),  # steps act on the class; no caller sees them
    }


def test_every_error_is_raised_somewhere() -> None:
    from tests.house.source import elsewhere

    texts = "\n".join(source.text for source in elsewhere("app/errors.py"))
    leaves = [name for name in CLASSES if not CLASSES[name].__subclasses__()]
    assert [name for name in leaves if not re.search(rf"\b{name}\(", texts)] == []


def _tree() -> list[tuple[str, str, str]]:
    """Read the drawing: name, parent and the words beside it."""
    found, parents = [], {-1: "DashgateError"}
    for line in module("app/errors.py").text.splitlines():
        drawn = re.match(r"    ([│ ]*)[├└]── (\w+)\s*(.*)$", line)
        if drawn:
            depth = len(drawn[1]) // 4
            found.append((drawn[2], parents[depth - 1], drawn[3].strip()))
            parents[depth] = drawn[2]
    return found
