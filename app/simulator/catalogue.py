"""Which models there are, at which service path, and who reads their creates. A new family is one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from app.simulator import wan26_image
from app.simulator.tasks import Failure, Order

# A prompt can ask for its own failure, so that a test needs no control port.
_FAILING_WORDS = {
    "[[forbidden]]": Failure("DataInspectionFailed", "Output data may contain inappropriate content."),
    "[[broken]]": Failure("InternalError.Algo", "An error occurred in the algorithm service, please try again later."),
}


@dataclass(frozen=True, slots=True)
class Model:
    """One model: `service` is the path under `/services/`, `read_order` judges a create's body."""

    service: str
    read_order: Callable[[dict[str, Any]], Order]


MODELS = {wan26_image.MODEL: Model(wan26_image.SERVICE, wan26_image.read_order)}


def planned_failure(prompt: str) -> Failure | None:
    """Return how a task with this prompt must fail, or None when it may succeed."""
    return next((failure for word, failure in _FAILING_WORDS.items() if word in prompt), None)
