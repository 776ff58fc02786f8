"""What it means that two answers are the same (pure): design.md, idea 6, and docs/differences.md. The only place.

Ids, times and links are replaced by placeholders wherever they stand; a link's says which bytes lie behind it. Beyond
that only what a row of docs/differences.md allows is made alike, each rule naming its row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DIFFERENCES = Path(__file__).parents[2] / "docs" / "differences.md"

ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}")
LINK = re.compile(r"https?://[^\s\"']+/(?:files|assets)/[^\s\"']+")  # to a result: the upstream's, or ours
INSTANTS = ("gmt_create", "start_time", "end_time")  # in milliseconds, in lists
OF_THE_CALLER = ("api_key_id", "caller_uid", "caller_parent_id")

Json = dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """Makes alike what a row of docs/differences.md lets differ. `row` is the row's first cell."""

    row: str
    apply: Callable[[Json], Json]


def _without_headers(fields: Json) -> Json:
    """An SDK's answer has the HTTP headers as well."""
    return {name: value for name, value in fields.items() if name != "headers"} if "status_code" in fields else fields


def _unknown_model(fields: Json) -> Json:
    if fields.get("code") == "ModelNotFound":
        return _renamed(fields, "ModelNotFound", "InvalidParameter")
    return fields


def _wrong_path(fields: Json) -> Json:
    message = fields.get("message")
    if isinstance(message, str) and "url error, please check url" in message:
        told = r"(url error, please check url): this model is called at \S+( or \S+)?\."
        return {name: _cut(value, told) for name, value in fields.items()}
    return fields


def _list(fields: Json) -> Json:
    if "total" not in fields:
        return {name: f"<{name}>" if name in OF_THE_CALLER else value for name, value in fields.items()}
    return {name: value for name, value in fields.items() if name != "tasks"}


def _metrics(fields: Json) -> Json:
    is_running = fields.get("task_status") == "RUNNING"
    return {name: value for name, value in fields.items() if not (is_running and name == "task_metrics")}


RULES = (
    Rule("headers of answers", _without_headers),
    Rule("unknown model", _unknown_model),
    Rule("a model at the path of another", _wrong_path),
    Rule("a list", _list),
    Rule("a read of a task that runs", _metrics),
)


def links_in(value: Any) -> set[str]:
    """Return every link to a result in an answer."""
    match value:
        case dict():
            return {link for part in value.values() for link in links_in(part)}
        case list():
            return {link for part in value for link in links_in(part)}
        case str():
            return set(LINK.findall(value))
    return set()


def plain(value: Any, files: Mapping[str, str] | None = None) -> Any:
    """Return an answer as it is compared. `files` says of every link which file it leads to.

    >>> plain({"output": {"task_id": "0385dc79-5ff8-4d82-bcb6-000000000000", "end_time": "2026-11-22 10:00:00.100"}})
    {'output': {'task_id': '<id>', 'end_time': '<time>'}}
    >>> plain({"url": "http://h/files/1.png?Expires=1"}, {"http://h/files/1.png?Expires=1": "<picture 0>"})
    {'url': '<picture 0>'}
    >>> plain({"code": "ModelNotFound", "message": "Model not exist."})
    {'code': 'InvalidParameter', 'message': 'Model not exist.'}
    """
    match value:
        case dict():
            for rule in RULES:
                value = rule.apply(value)
            return {name: _instant(name, part) or plain(part, files) for name, part in value.items()}
        case list():
            return [plain(part, files) for part in value]
        case str():
            linkless = LINK.sub(lambda link: (files or {}).get(link[0], link[0]), value)
            return TIME.sub("<time>", ID.sub("<id>", linkless))
    return value


def _instant(name: str, value: Any) -> str | None:
    return "<time>" if name in INSTANTS and isinstance(value, int) else None


def _renamed(value: Any, old: str, new: str) -> Any:
    return _changed(value, lambda text: text.replace(old, new))


def _cut(value: Any, pattern: str) -> Any:
    return _changed(value, lambda text: re.sub(pattern, r"\1", text))


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """Change the words of an error, also where an exception of the SDK's repeats them."""
    match value:
        case dict():
            return {name: _changed(part, change) for name, part in value.items()}
        case str():
            return change(value)
    return value
