"""Every refusal of the simulated DashScope, each built by a named function with the upstream's own words.

Knows no HTTP framework: a problem is a status, a code and a message.
"""

from __future__ import annotations

from app.simulator.tasks import Failure

RATE_MESSAGE = "Requests rate limit exceeded, please try again later."


class Problem(Exception):
    """A call that the upstream refuses; rendered as `{"code", "message", "request_id"}`."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message


def no_key() -> Problem:
    """Refuse a call without a key."""
    return Problem(401, "InvalidApiKey", "No API-key provided.")


def wrong_key() -> Problem:
    """Refuse a key; a mistyped one and one of another region look alike."""
    return Problem(401, "InvalidApiKey", "Invalid API-key provided.")


def invalid(message: str) -> Problem:
    """Refuse a parameter; the message says which."""
    return Problem(400, "InvalidParameter", message)


def unreadable_body() -> Problem:
    """Refuse a body that is no JSON object."""
    return invalid("Required body invalid, please check the request body format.")


def unknown_model() -> Problem:
    """Refuse a model nobody offers."""
    return invalid("Model not exist.")


def wrong_path() -> Problem:
    """Refuse a model that exists, but not at this service path."""
    return invalid("url error, please check url")


def synchronous_not_supported() -> Problem:
    """Refuse a create without the async header."""
    return Problem(403, "AccessDenied", "current user api does not support synchronous calls")


def asynchronous_not_supported() -> Problem:
    """Refuse the async header at a path that only answers at once."""
    return Problem(403, "AccessDenied", "current user api does not support asynchronous calls")


def interleave_not_streamed() -> Problem:
    """Refuse interleaved output on the synchronous path without the SSE header."""
    return invalid("enable_interleave requires stream output")


def failed(failure: Failure) -> Problem:
    """Answer for work that was begun and has failed."""
    return Problem(failure.status, failure.code, failure.message)


def rate_exceeded() -> Problem:
    """Refuse a call above a rate."""
    return Problem(429, "Throttling.RateQuota", RATE_MESSAGE)


def not_cancelable() -> Problem:
    """Refuse to cancel: the task runs, has ended, or is not there; which of these is not said."""
    return Problem(
        400,
        "UnsupportedOperation",
        "Failed to cancel the task, please confirm if the task is in PENDING status.",
    )


def internal_error() -> Problem:
    """Fail, for no reason given."""
    return Problem(500, "InternalError", "An internal error has occured, please try again later.")


def model_unavailable() -> Problem:
    """Fail because of overload."""
    return Problem(503, "ModelUnavailable", "Model is unavailable, please try again later.")


def not_found() -> Problem:
    """Refuse an unknown path."""
    return Problem(404, "NotFound", "The requested resource does not exist.")
