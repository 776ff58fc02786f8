"""Whose fault an upstream error is (dashscope-api.md 5). Pure."""

from enum import StrEnum


class Fault(StrEnum):
    """`caller`: the team's request. `account`: our key, money, rights. `load`: too much at once. `upstream`: theirs."""

    CALLER = "caller"
    ACCOUNT = "account"
    LOAD = "load"
    UPSTREAM = "upstream"


ACCOUNT_CODES = frozenset(
    {
        "Arrearage",
        "InvalidApiKey",
        "NOT AUTHORIZED",
        "AccessDenied.Unpurchased",
        "Model.AccessDenied",
        "App.AccessDenied",
        "Workspace.AccessDenied",
        "AllocationQuota.FreeTierOnly",
        "WorkSpaceNotFound",
        "CommodityNotPurchased",
        "PrepaidBillOverdue",
        "PostpaidBillOverdue",
    }
)
# Of these, what concerns one model only: the account goes on serving others.
MODEL_CODES = frozenset({"Model.AccessDenied", "AccessDenied.Unpurchased", "AllocationQuota.FreeTierOnly"})
WRONG_CALL = "does not support"  # "current user api does not support (a)synchronous calls": the call's form, not us


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
    """
    if status == 401 or code in ACCOUNT_CODES:
        return Fault.ACCOUNT
    if status == 403 and code == "AccessDenied" and WRONG_CALL not in message:
        return Fault.ACCOUNT
    if status == 429:
        return Fault.LOAD
    return Fault.UPSTREAM if status >= 500 else Fault.CALLER
