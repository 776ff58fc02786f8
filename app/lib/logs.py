"""Logs: JSON lines to stdout. Owns their form, and the last net against secrets in them.

What is logged is chosen where it is logged: ids, states, codes, counts. Prompts, pictures, keys and signed links never
are; `mask_secrets` is the net below that rule, not a replacement for it.
"""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

_SECRET = re.compile(
    r"(sk-[A-Za-z0-9_.-]{4,}|dg_[0-9a-z]{8}_[A-Za-z0-9_-]{8,}|(?<=[?&])[^\s\"']*(?:Signature|signature)=[^\s\"']*)"
)


def set_up_logs(level: str) -> None:
    """Configure structlog, and send what libraries log through the same form from warning up."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        mask_secrets,
    ]
    number = getattr(logging, level.upper())
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(ensure_ascii=False)],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stdout),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processor=structlog.processors.JSONRenderer(ensure_ascii=False)
        )
    )
    logging.basicConfig(handlers=[handler], level=max(number, logging.WARNING), force=True)


def mask_secrets(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace what looks like a key or a signed query in any text of a log line.

    >>> mask_secrets(None, "", {"event": "x", "url": "https://h/a.png?Expires=1&Signature=abc"})["url"]
    'https://h/a.png?***'
    >>> mask_secrets(None, "", {"event": "called with sk-abcdef123"})["event"]
    'called with ***'
    """
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = _SECRET.sub("***", value)
    return event
