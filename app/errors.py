"""Every exception the rooms of this house raise on purpose; a class's docstring is its message.

    DashgateError
    ├── CallerError             the request is at fault: repeating it unchanged is pointless
    │   ├── InvalidApiKey            401 InvalidApiKey
    │   ├── AccessDenied             403 AccessDenied
    │   ├── ModelNotFound            400 ModelNotFound
    │   ├── InvalidParameter         400 InvalidParameter
    │   ├── UnsupportedOperation     400 UnsupportedOperation
    │   ├── NotFound                 404 NotFound
    │   ├── MethodNotAllowed         405 MethodNotAllowed
    │   ├── Gone                     410 Gone
    │   ├── TooLarge                 413 RequestTooLarge
    │   ├── UnsupportedMediaType     415 UnsupportedMediaType
    │   ├── MalformedRequest         400 BadRequest.IllegalInput
    │   ├── HeadTooLarge             431 RequestTooLarge
    │   ├── SlowRequest              408 RequestTimeOut
    │   ├── IdempotencyConflict      409 IdempotencyKeyInUse
    │   ├── IdempotencyMismatch      422 IdempotencyKeyReused
    │   ├── UploadRefused            400 InvalidArgument
    │   └── UpstreamRefused          the upstream's own verdict on the request, passed on unchanged
    ├── OperatorError           our accounts or our set-up are at fault
    │   ├── UpstreamAccountAtFault   503 Dashgate.UpstreamAccount
    │   ├── NotReady                 E0n, with a hint: the process does not start
    │   └── CommandRefused           a command cannot do what it was told
    ├── UpstreamTrouble         a call to the upstream brought no verdict; steps act on the class
    │   ├── NotSent                  no byte left the house: nothing was taken
    │   ├── AnswerLost               bytes may have arrived: nobody knows whether it was taken
    │   └── CouldNotFindOut          a question remained unanswered: ask again later
    └── PassingTrouble          nobody's fault, or ours; trying later helps
        ├── StoreAway                503 ServiceUnavailable
        ├── FileAway                 503 ServiceUnavailable
        ├── Throttled                429 Throttling.RateQuota
        ├── UpstreamAway             503 ServiceUnavailable
        ├── StillRunning             504 RequestTimeOut
        └── InternalTrouble          500 InternalError

`status` and `code` are the answer under /api/v1 (design.md 7); app/api/rendering.py chooses the costume per route.
Tools in `app/lib` raise their own small exceptions, as any library would.
"""

from math import ceil
from typing import ClassVar, Literal

Retry = Literal["never", "later", "unknown"]


class DashgateError(Exception):
    """Something went wrong."""

    status: int = 500
    code: str = "InternalError"
    retry: ClassVar[Retry] = "never"
    retry_after_seconds: int | None = None

    def __init__(self, message: str | None = None) -> None:
        self.message = message or (type(self).__doc__ or "").strip().splitlines()[0]
        super().__init__(self.message)


class CallerError(DashgateError):
    """The request cannot be served as it is."""

    status = 400


class InvalidApiKey(CallerError):
    """Invalid API-key provided."""

    status = 401
    code = "InvalidApiKey"


class AccessDenied(CallerError):
    """Access denied: this API key may not call this model."""

    status = 403
    code = "AccessDenied"


class ModelNotFound(CallerError):
    """Model not exist."""

    code = "ModelNotFound"


class InvalidParameter(CallerError):
    """A parameter is invalid."""

    code = "InvalidParameter"

    def __init__(self, message: str | None = None, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param  # its name, for the costumes that tell it


class UnsupportedOperation(CallerError):
    """This operation is not supported."""

    code = "UnsupportedOperation"


class NotFound(CallerError):
    """Nothing is served at this path."""

    status = 404
    code = "NotFound"


class MethodNotAllowed(CallerError):
    """This path does not take that method."""

    status = 405
    code = "MethodNotAllowed"


class Gone(CallerError):
    """This file is gone."""

    status = 410
    code = "Gone"


class TooLarge(CallerError):
    """The request body is larger than this gateway takes."""

    status = 413
    code = "RequestTooLarge"


class UnsupportedMediaType(CallerError):
    """The body must be application/json, without a content encoding."""

    status = 415
    code = "UnsupportedMediaType"


class MalformedRequest(CallerError):
    """This is no HTTP/1.1 request that can be understood in one way only."""

    code = "BadRequest.IllegalInput"


class HeadTooLarge(CallerError):
    """The target or the headers of this request are longer than this gateway takes."""

    status = 431
    code = "RequestTooLarge"


class SlowRequest(CallerError):
    """The request did not arrive in time."""

    status = 408
    code = "RequestTimeOut"


class IdempotencyConflict(CallerError):
    """The call of this Idempotency-Key is still running; its answer did not come in time."""

    status = 409
    code = "IdempotencyKeyInUse"


class IdempotencyMismatch(CallerError):
    """This Idempotency-Key was used with another request."""

    status = 422
    code = "IdempotencyKeyReused"


class UploadRefused(CallerError):
    """The temporary store does not take this upload."""

    code = "InvalidArgument"

    def __init__(self, message: str | None = None, *, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code or self.code  # in the store's own words, which its clients know


class UpstreamRefused(CallerError):
    """The upstream refused the request."""

    def __init__(self, status: int, body: bytes, *, task_id: str | None = None) -> None:
        super().__init__()
        self.status = status
        self.body = body
        self.task_id = task_id  # for the operator: no team reads such a task


class OperatorError(DashgateError):
    """The operator must act."""

    status = 503


class UpstreamAccountAtFault(OperatorError):
    """The gateway's upstream account cannot take this call now. The operator has been told."""

    code = "Dashgate.UpstreamAccount"


class NotReady(OperatorError):
    """The process cannot start: a check failed."""

    code = "NotReady"

    def __init__(self, number: str, problem: str, hint: str) -> None:
        super().__init__(f"{number} {problem}: {hint}")


class CommandRefused(OperatorError):
    """The command cannot do that."""

    code = "CommandRefused"


class UpstreamTrouble(DashgateError):
    """The upstream gave no verdict."""

    status = 503


class NotSent(UpstreamTrouble):
    """The upstream could not be reached; nothing was sent."""


class AnswerLost(UpstreamTrouble):
    """The upstream's answer was lost."""

    def __init__(self, reason: str, *, request_id: str | None = None) -> None:
        super().__init__(f"The upstream's answer was lost: {reason}")
        self.reason = reason
        self.request_id = request_id  # of a JSON 5xx: evidence for a doubtful task


class CouldNotFindOut(UpstreamTrouble):
    """The upstream did not answer the question."""

    def __init__(self, reason: str, *, throttled: bool = False, account_at_fault: bool = False) -> None:
        super().__init__(f"The upstream did not answer the question: {reason}")
        self.reason = reason
        self.throttled = throttled
        self.account_at_fault = account_at_fault


class PassingTrouble(DashgateError):
    """Try again later."""

    status = 503
    code = "ServiceUnavailable"
    retry: ClassVar[Retry] = "later"
    retry_after_seconds: int | None = 2


class StoreAway(PassingTrouble):
    """The gateway cannot reach its database; nothing was sent upstream. Try again later."""


class FileAway(PassingTrouble):
    """The file cannot be read from its storage now. Try again later."""


class Throttled(PassingTrouble):
    """Requests rate limit exceeded, please try again later."""

    status = 429
    code = "Throttling.RateQuota"
    retry_after_seconds = 1

    def __init__(self, retry_after_seconds: float = 1) -> None:
        super().__init__()
        self.retry_after_seconds = max(1, ceil(retry_after_seconds))


class UpstreamAway(PassingTrouble):
    """The upstream cannot be reached; nothing was sent. Try again later."""


class StillRunning(PassingTrouble):
    """The task has not ended in time; it goes on and can be read."""

    status = 504
    code = "RequestTimeOut"
    retry: ClassVar[Retry] = "never"
    retry_after_seconds = None

    def __init__(self, task_id: str) -> None:
        super().__init__()
        self.task_id = task_id


class InternalTrouble(PassingTrouble):
    """The gateway met an error of its own. It has been recorded."""

    status = 500
    code = "InternalError"
    retry: ClassVar[Retry] = "unknown"
