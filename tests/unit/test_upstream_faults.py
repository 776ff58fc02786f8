"""Every error that the upstream documents, row by row: whose fault, sent again or not, and what stays away."""

import pytest

from app.upstream.faults import (
    ACCOUNT_CODES,
    MODEL_CODES,
    TABLE,
    AtFault,
    Fault,
    Resend,
    fault_of,
    http_status_of,
    judge,
)

CALLER, ACCOUNT, LOAD, UPSTREAM = Fault
NEVER, ONCE, LATER, UNKNOWN = Resend

# status, code, message, whose fault, resend
SECTION_5 = [
    # 5.1
    (400, "InvalidParameter", "num_images_per_prompt must be 1", CALLER, NEVER),
    (400, "InvalidParameter", "messages length only support 1", CALLER, NEVER),
    (400, "InvalidParameter", "Expected format: '<width>*<height>'", CALLER, NEVER),
    (400, "InvalidParameter", "url error, please check url", CALLER, NEVER),
    (400, "InvalidParameter", "Model not exist.", CALLER, NEVER),
    (400, "InvalidParameter", "download image failed", CALLER, NEVER),
    (400, "InvalidParameter", "Exceeded limit on max bytes per data-uri item: 10485760", CALLER, NEVER),
    (400, "InvalidParameter.DataInspection", "Unable to download the media resource", CALLER, ONCE),
    (400, "InvalidParameter.JsonPhrase", "", CALLER, NEVER),
    (400, "InvalidParameter.FileDownload", "", CALLER, NEVER),
    (400, "InvalidParameter.ImageFormat", "", CALLER, NEVER),
    (400, "InvalidURL", "", CALLER, NEVER),
    (400, "InvalidURL.ConnectionRefused", "", CALLER, NEVER),
    (400, "InvalidURL.Timeout", "", CALLER, ONCE),
    (400, "InvalidImage.FileFormat", "", CALLER, NEVER),
    (400, "InvalidImageResolution", "", CALLER, NEVER),
    (400, "InvalidImageFormat", "", CALLER, NEVER),
    (400, "InvalidFile.Resolution", "", CALLER, NEVER),
    (400, "BadRequest.EmptyInput", "", CALLER, NEVER),
    (400, "BadRequest.EmptyParameters", "", CALLER, NEVER),
    (400, "BadRequest.EmptyModel", "", CALLER, NEVER),
    (400, "BadRequest.IllegalInput", "", CALLER, NEVER),
    (400, "BadRequest.UnsupportedFileFormat", "", CALLER, NEVER),
    (400, "BadRequest.TooLarge", "", CALLER, NEVER),
    (400, "BadRequest.ResourceNotExist", "", CALLER, NEVER),
    (400, "BadRequest.InputDownloadFailed", "", CALLER, ONCE),
    (400, "DataInspectionFailed", "Output data may contain inappropriate content.", CALLER, NEVER),
    (400, "data_inspection_failed", "", CALLER, NEVER),
    (400, "IPInfringementSuspect", "", CALLER, NEVER),
    (400, "Arrearage", "Access denied, please make sure your account is in good standing.", ACCOUNT, NEVER),
    (400, "UnsupportedOperation", "Failed to cancel the task", CALLER, NEVER),
    (400, "CustomRoleBlocked", "", CALLER, NEVER),
    (400, "FaqRuleBlocked", "", CALLER, NEVER),
    (400, "APIConnectionError", "", UPSTREAM, UNKNOWN),
    (400, "ClientDisconnect", "", UPSTREAM, UNKNOWN),
    # 5.2
    (401, "InvalidApiKey", "Invalid API-key provided.", ACCOUNT, NEVER),
    (401, "invalid_api_key", "No API-key provided.", ACCOUNT, NEVER),
    (401, "NOT AUTHORIZED", "", ACCOUNT, NEVER),
    (401, "", "invalid access token or token expired", ACCOUNT, NEVER),
    (403, "AccessDenied", "current user api does not support synchronous calls", CALLER, NEVER),
    (403, "AccessDenied", "Current user api does not support asynchronous calls.", CALLER, NEVER),
    (403, "AccessDenied", "Invalid according to Policy: Policy expired.", CALLER, NEVER),
    (403, "AccessDenied", "Access denied.", ACCOUNT, NEVER),
    (403, "AccessDenied.Unpurchased", "", ACCOUNT, NEVER),
    (403, "Model.AccessDenied", "", ACCOUNT, NEVER),
    (403, "App.AccessDenied", "", ACCOUNT, NEVER),
    (403, "Workspace.AccessDenied", "", ACCOUNT, NEVER),
    (403, "AllocationQuota.FreeTierOnly", "", ACCOUNT, NEVER),
    (404, "ModelNotFound", "", CALLER, NEVER),
    (404, "model_not_found", "", CALLER, NEVER),
    (404, "model_not_supported", "", CALLER, NEVER),
    (404, "WorkSpaceNotFound", "", ACCOUNT, NEVER),
    (404, "NotFound", "", CALLER, NEVER),
    # 5.3
    (429, "Throttling", "", LOAD, LATER),
    (429, "Throttling.RateQuota", "Requests rate limit exceeded, please try again later.", LOAD, LATER),
    (429, "LimitRequests", "You exceeded your current requests list.", LOAD, LATER),
    (429, "limit_requests", "", LOAD, LATER),
    (429, "Throttling.BurstRate", "Request rate increased too quickly", LOAD, LATER),
    (429, "limit_burst_rate", "", LOAD, LATER),
    (429, "Throttling.AllocationQuota", "Allocated quota exceeded", LOAD, LATER),
    (429, "insufficient_quota", "You exceeded your current quota", LOAD, LATER),
    (429, "Throttling.Concurrency", "", LOAD, LATER),
    (429, "CommodityNotPurchased", "", ACCOUNT, NEVER),
    (429, "PrepaidBillOverdue", "", ACCOUNT, NEVER),
    (429, "PostpaidBillOverdue", "", ACCOUNT, NEVER),
    # 5.4
    (500, "InternalError", "", UPSTREAM, UNKNOWN),
    (500, "SystemError", "", UPSTREAM, UNKNOWN),
    (500, "ModelServiceFailed", "", UPSTREAM, UNKNOWN),
    (500, "InternalError.FileUpload", "", UPSTREAM, UNKNOWN),
    (500, "InternalError.Upload", "", UPSTREAM, UNKNOWN),
    (500, "RewriteFailed", "", UPSTREAM, UNKNOWN),
    (500, "InternalError.Algo", "An internal error has occured", UPSTREAM, UNKNOWN),
    (500, "InternalError.Timeout", "", UPSTREAM, ONCE),
    (500, "RequestTimeOut", "", UPSTREAM, UNKNOWN),
    (500, "ResponseTimeout", "", UPSTREAM, UNKNOWN),
    (503, "ModelServingError", "", UPSTREAM, LATER),
    (503, "ModelUnavailable", "", UPSTREAM, LATER),
]
# Where the status of the call is not the one that belongs to the code.
OTHER_STATUS = [
    (400, "Throttling.AllocationQuota", "", ACCOUNT, NEVER),
    (500, "ModelServingError", "", UPSTREAM, LATER),
    (400, "InternalError.Algo.InvalidParameter", "Failed to download multimodal content", CALLER, NEVER),
    (500, "InternalError.Algo", "InternalError.Algo.InvalidParameter: Failed to download", CALLER, NEVER),
]


@pytest.mark.parametrize(("status", "code", "message", "fault", "resend"), [*SECTION_5, *OTHER_STATUS])
def test_every_documented_error_is_judged(status: int, code: str, message: str, fault: Fault, resend: Resend) -> None:
    verdict = judge(code, message, status=status)
    assert (verdict.fault, verdict.resend) == (fault, resend)
    assert fault_of(status, code, message) is fault
    assert (verdict.at_fault is not None) == (fault is ACCOUNT)


@pytest.mark.parametrize(
    ("status", "code", "message"), [(status, code, message) for status, code, message, *_ in SECTION_5 if code]
)
def test_an_error_inside_a_task_has_the_status_it_has_as_an_answer(status: int, code: str, message: str) -> None:
    assert http_status_of(code, message) == status


@pytest.mark.parametrize(("status", "code", "message", "fault", "resend"), [row for row in SECTION_5 if row[1]])
def test_an_error_inside_a_task_is_the_same_ones_fault(
    status: int, code: str, message: str, fault: Fault, resend: Resend
) -> None:
    assert judge(code, message).fault is fault


def test_an_error_that_nobody_documented_is_the_upstreams_and_a_500() -> None:
    assert http_status_of("SomethingNew") == http_status_of("") == http_status_of("Dashgate.NotAccepted") == 500
    assert judge("SomethingNew").fault is UPSTREAM


@pytest.mark.parametrize(
    ("status", "fault", "resend"),
    [
        *((400, CALLER, NEVER), (403, CALLER, NEVER), (404, CALLER, NEVER), (413, CALLER, NEVER)),
        *((401, ACCOUNT, NEVER), (429, LOAD, LATER), (500, UPSTREAM, UNKNOWN), (504, UPSTREAM, UNKNOWN)),
    ],
)
def test_an_unknown_code_is_judged_by_its_status(status: int, fault: Fault, resend: Resend) -> None:
    verdict = judge("SomethingNew", "in new words", status=status)
    assert (verdict.fault, verdict.resend, verdict.status) == (fault, resend, status)


@pytest.mark.parametrize(
    ("code", "status", "at_fault"),
    [
        ("InvalidApiKey", 401, AtFault.KEY),
        ("SomethingNew", 401, AtFault.KEY),
        ("InvalidParameter", 401, AtFault.KEY),
        ("Model.AccessDenied", 403, AtFault.KEY_MODEL),
        ("Workspace.AccessDenied", 403, AtFault.KEY_MODEL),
        ("AccessDenied", 403, AtFault.ACCOUNT_MODEL),
        ("AccessDenied.Unpurchased", 403, AtFault.ACCOUNT_MODEL),
        ("AllocationQuota.FreeTierOnly", 403, AtFault.ACCOUNT_MODEL),
        ("Throttling.AllocationQuota", 400, AtFault.ACCOUNT_MODEL),
        ("Arrearage", 400, AtFault.ACCOUNT),
        ("Arrearage", 401, AtFault.ACCOUNT),
        ("WorkSpaceNotFound", 404, AtFault.ACCOUNT),
        ("PostpaidBillOverdue", 429, AtFault.ACCOUNT),
    ],
)
def test_what_stays_away_is_no_more_than_what_is_at_fault(code: str, status: int, at_fault: AtFault) -> None:
    assert judge(code, status=status).at_fault is at_fault


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("InvalidParameter", "url error, please check url!"),
        ("InvalidParameter", "Model not exist."),
        ("ModelNotFound", ""),
        ("NotFound", ""),
        ("CustomRoleBlocked", ""),
    ],
)
def test_what_may_come_from_our_tables_or_switches_alerts_the_operator(code: str, message: str) -> None:
    assert judge(code, message).alerts


def test_a_teams_ordinary_mistakes_alert_nobody() -> None:
    assert [
        code for code in ("InvalidParameter", "DataInspectionFailed", "InvalidURL", "Throttling") if judge(code).alerts
    ] == []


def test_the_codes_of_the_account_are_those_that_any_call_may_bring() -> None:
    assert {"Arrearage", "InvalidApiKey", "PostpaidBillOverdue", "Model.AccessDenied"} <= ACCOUNT_CODES
    assert ACCOUNT_CODES.isdisjoint({"Throttling.AllocationQuota", "InvalidParameter", "ModelNotFound"})
    assert MODEL_CODES < ACCOUNT_CODES
    assert MODEL_CODES.isdisjoint({"Arrearage", "InvalidApiKey", "WorkSpaceNotFound"})


def test_no_line_of_the_table_is_hidden_by_one_before_it() -> None:
    """Each code as it stands is judged by its own line, where the line needs no words or status of its own."""
    hidden = [
        code
        for row in TABLE
        if not row.says and row.only_status is None
        for code in row.codes
        if judge(code.replace("*", "Something")) is not row.verdict
    ]
    assert hidden == []
