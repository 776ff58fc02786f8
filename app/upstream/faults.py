"""The upstream's errors: whose fault each is, whether the call may be repeated, what stays away (dashscope-api.md 5).

The table below is section 5 row by row; what it does not know is judged by its HTTP status. Pure.
"""

from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase


class Fault(StrEnum):
    """`caller`: the team's request. `account`: our key, money, rights. `load`: too much at once. `upstream`: theirs."""

    CALLER = "caller"
    ACCOUNT = "account"
    LOAD = "load"
    UPSTREAM = "upstream"


class Resend(StrEnum):
    """Whether the same create may be sent again: `once` more, `later` (nothing was started), or only after evidence,
    because what became of it is `unknown`."""

    NEVER = "never"
    ONCE = "once"
    LATER = "later"
    UNKNOWN = "unknown"


class AtFault(StrEnum):
    """What to leave alone after an error that is the account's: all of it, a model on it, a key, a model by a key."""

    ACCOUNT = "account"
    ACCOUNT_MODEL = "account_model"
    KEY = "key"
    KEY_MODEL = "key_model"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an error means. `status` is the HTTP status that the documentation gives to it."""

    fault: Fault
    resend: Resend
    status: int
    at_fault: AtFault | None = None  # of an account's fault only
    alerts: bool = False  # an operator should look, although the team is told: our tables or switches may be wrong


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: codes, or patterns of codes; perhaps only with one of some words in the message, or only
    with an HTTP status that is not the usual one."""

    codes: tuple[str, ...]
    verdict: Verdict
    says: tuple[str, ...] = ()
    only_status: int | None = None

    def fits(self, code: str, message: str, *, status: int | None) -> bool:
        """Tell whether an error is this line's."""
        if self.only_status is not None and status != self.only_status:
            return False
        if self.says and not any(words in message.lower() for words in self.says):
            return False
        return any(fnmatchcase(code, known) for known in self.codes)


def _caller(status: int, resend: Resend = Resend.NEVER, *, alerts: bool = False) -> Verdict:
    return Verdict(Fault.CALLER, resend, status, alerts=alerts)


def _account(status: int, at_fault: AtFault = AtFault.ACCOUNT) -> Verdict:
    return Verdict(Fault.ACCOUNT, Resend.NEVER, status, at_fault)


def _load(status: int = 429) -> Verdict:
    return Verdict(Fault.LOAD, Resend.LATER, status)


def _upstream(status: int, resend: Resend = Resend.UNKNOWN) -> Verdict:
    return Verdict(Fault.UPSTREAM, resend, status)


# The first line that fits decides: words and special statuses stand before the code alone.
TABLE = (
    # 5.1
    Row(("InvalidParameter",), _caller(400, alerts=True), says=("url error", "model not exist")),
    Row(("InvalidParameter.DataInspection",), _caller(400, Resend.ONCE)),
    Row(("InvalidParameter", "InvalidParameter.*", "invalid_parameter*"), _caller(400)),
    Row(("InvalidURL.Timeout", "BadRequest.InputDownloadFailed"), _caller(400, Resend.ONCE)),
    Row(("InvalidURL", "InvalidURL.*", "InvalidImage*", "InvalidFile*", "BadRequest.*"), _caller(400)),
    Row(("DataInspectionFailed", "data_inspection_failed", "IPInfringementSuspect"), _caller(400)),
    Row(("Arrearage",), _account(400)),
    Row(("UnsupportedOperation",), _caller(400)),
    Row(("CustomRoleBlocked", "FaqRuleBlocked"), _caller(400, alerts=True)),
    Row(("APIConnectionError", "ClientDisconnect"), _upstream(400)),
    Row(("Throttling.AllocationQuota",), _account(400, AtFault.ACCOUNT_MODEL), only_status=400),
    # 5.2
    Row(("InvalidApiKey", "invalid_api_key", "NOT AUTHORIZED"), _account(401, AtFault.KEY)),
    Row(
        ("AccessDenied", "access_denied"),
        _caller(403),
        says=("does not support synchronous calls", "does not support asynchronous calls", "policy expired"),
    ),
    Row(("AccessDenied", "access_denied", "AccessDenied.Unpurchased"), _account(403, AtFault.ACCOUNT_MODEL)),
    Row(("Model.AccessDenied", "App.AccessDenied", "Workspace.AccessDenied"), _account(403, AtFault.KEY_MODEL)),
    Row(("AllocationQuota.FreeTierOnly",), _account(403, AtFault.ACCOUNT_MODEL)),
    Row(("ModelNotFound", "model_not_found", "model_not_supported"), _caller(404, alerts=True)),
    Row(("WorkSpaceNotFound",), _account(404)),
    Row(("NotFound",), _caller(404, alerts=True)),
    # 5.3
    Row(("CommodityNotPurchased", "PrepaidBillOverdue", "PostpaidBillOverdue"), _account(429)),
    Row(("Throttling", "Throttling.*", "LimitRequests", "limit_requests", "limit_burst_rate"), _load()),
    Row(("insufficient_quota",), _load()),
    # 5.4
    Row(("InternalError.Algo.InvalidParameter*",), _caller(400)),
    Row(("InternalError.Algo",), _caller(400), says=("invalidparameter", "failed to download")),
    Row(("InternalError.Timeout",), _upstream(500, Resend.ONCE)),
    Row(("ModelServingError", "ModelUnavailable"), _upstream(503, Resend.LATER)),
    Row(("InternalError", "InternalError.*", "SystemError", "ModelServiceFailed", "RewriteFailed"), _upstream(500)),
    Row(("RequestTimeOut", "ResponseTimeout"), _upstream(500)),
)


def _codes_of(*at_fault: AtFault) -> frozenset[str]:
    """Return the codes that are the account's fault with any status and message."""
    return frozenset(
        code
        for row in TABLE
        if row.verdict.at_fault in at_fault and row.only_status is None and not row.says
        for code in row.codes
    )


ACCOUNT_CODES = _codes_of(*AtFault)
# Of these, what concerns one model only: the account goes on serving others.
MODEL_CODES = _codes_of(AtFault.ACCOUNT_MODEL, AtFault.KEY_MODEL)


def fault_of(status: int, code: str, message: str) -> Fault:
    """Return whose fault a refused call is.

    >>> fault_of(400, "Arrearage", "Access denied, please make sure your account is in good standing.")
    <Fault.ACCOUNT: 'account'>
    >>> fault_of(429, "Throttling.RateQuota", "Requests rate limit exceeded")
    <Fault.LOAD: 'load'>
    >>> fault_of(429, "PostpaidBillOverdue", "")
    <Fault.ACCOUNT: 'account'>
    >>> fault_of(403, "AccessDenied", "current user api does not support synchronous calls")
    <Fault.CALLER: 'caller'>
    >>> fault_of(500, "InternalError", "")
    <Fault.UPSTREAM: 'upstream'>
    >>> fault_of(500, "InternalError.Algo", "InternalError.Algo.InvalidParameter: Failed to download the image")
    <Fault.CALLER: 'caller'>
    """
    return judge(code, message, status=status).fault


def http_status_of(code: str, message: str = "") -> int:
    """Return the HTTP status that belongs to an error inside a finished task; 500 where none is documented.

    >>> [http_status_of(code) for code in ("DataInspectionFailed", "ModelNotFound", "Throttling", "SomethingNew")]
    [400, 404, 429, 500]
    """
    return judge(code, message).status


def judge(code: str, message: str = "", *, status: int | None = None) -> Verdict:
    """Return what an error means; `status` is that of the HTTP answer, None for an error inside a finished task.

    >>> judge("Model.AccessDenied", status=403).at_fault, judge("SomethingNew", status=401).at_fault
    (<AtFault.KEY_MODEL: 'key_model'>, <AtFault.KEY: 'key'>)
    >>> judge("InvalidURL.Timeout", status=400).resend, judge("SomethingNew", status=502).resend
    (<Resend.ONCE: 'once'>, <Resend.UNKNOWN: 'unknown'>)
    """
    known = next((row.verdict for row in TABLE if row.fits(code, message, status=status)), None)
    if status == 401 and (known is None or known.fault is not Fault.ACCOUNT):
        return _account(401, AtFault.KEY)  # in whatever words: this key opens nothing
    return known or _by_status(status)


def _by_status(status: int | None) -> Verdict:
    """Judge an error that no line knows."""
    if status is None:
        return _upstream(500)
    if status == 429:
        return _load()
    return _upstream(status) if status >= 500 else _caller(status)
