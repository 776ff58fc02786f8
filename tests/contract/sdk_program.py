"""A program of some team's: makes calls with the vendor's unmodified SDK, and tells what the SDK returned.

Runs in a process of its own, by any interpreter that has the SDK, and imports nothing of ours but its cases:
`python sdk_program.py sdk_cases BASE_URL`. Reads a case per line from its input, plays all of them side by side, and
writes a line of JSON for each when it has ended. Knows of no gateway: it is given a base URL and a key, as a team is.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

MOST_AT_ONCE = 40


@dataclass(frozen=True)
class End:
    """Where a case calls: a base URL and a key; and a folder with pictures of its own."""

    base_url: str
    key: str
    folder: Path


def told(value: Any) -> Any:
    """Return what the SDK returned as JSON has it; what it raised, too, is told by its words."""
    if isinstance(value, BaseException):
        words = {name: getattr(value, name, None) for name in ("status_code", "code", "message", "request_id")}
        return {"raised": type(value).__name__, **words, "text": str(value)}
    if isinstance(value, dict):
        return {str(name): told(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [told(part) for part in value]
    if hasattr(value, "model_dump"):
        return told(value.model_dump())
    return value if value is None or isinstance(value, (str, int, float, bool)) else repr(value)


def play(case: Callable[[End], Any], end: End) -> Any:
    """Play one case; whatever it raises is what its caller finds."""
    try:
        return told(case(end))
    except Exception as error:  # noqa: BLE001 - a team's program would see it
        return told(error)


def main() -> None:
    """Play what is asked for until the input ends."""
    cases, base_url = importlib.import_module(sys.argv[1]), sys.argv[2]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the SDK prints is no answer
    writing = Lock()

    def answer(asked: dict[str, Any]) -> None:
        end = End(base_url, asked["key"], Path(asked["folder"]))
        line = json.dumps({"number": asked["number"], "answer": play(getattr(cases, asked["case"]), end)})
        with writing:
            answers.write(f"{line}\n")
            answers.flush()

    with ThreadPoolExecutor(MOST_AT_ONCE) as pool:
        for line in sys.stdin:
            pool.submit(answer, json.loads(line))


if __name__ == "__main__":
    main()
