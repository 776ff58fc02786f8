"""Scripted errors and garbage: whom they hit, what they may say, and what makes no sense."""

from typing import Any

import pytest

from app.simulator import Operation
from app.simulator.faults import BROKEN_OFF, FAULTY_OPERATIONS, FaultBook, make_fault

REFUSAL = {"status": 403, "code": "Model.AccessDenied"}


@pytest.mark.parametrize("operation", sorted(set(FAULTY_OPERATIONS) - {Operation.OUTCOME}))
def test_every_operation_can_be_refused_or_answered_with_garbage(operation: Operation) -> None:
    book = FaultBook()
    book.add(make_fault(operation, "error", status=400, code="Arrearage", message="pay first"))
    book.add(make_fault(operation, "garbage"))
    error, garbage = book.take(operation, "cn-beijing"), book.take(operation, "cn-beijing")
    assert error is not None and (error.status, error.code, error.message) == (400, "Arrearage", "pay first")
    assert garbage is not None and (garbage.status, garbage.body) == (200, BROKEN_OFF)
    assert not error.processed and not garbage.processed
    assert not book.waiting()


def test_a_fault_hits_only_its_key() -> None:
    book = FaultBook()
    book.add(make_fault("query", "error", status=401, code="InvalidApiKey", key="sk-one"))
    assert book.take(Operation.QUERY, "cn-beijing", key="sk-two") is None
    assert book.take(Operation.QUERY, "cn-beijing") is None
    assert book.take(Operation.QUERY, "cn-beijing", key="sk-one") is not None


def test_a_fault_hits_only_its_key_and_model() -> None:
    book = FaultBook()
    book.add(make_fault("create", "error", key="sk-one", model="m-1", **REFUSAL))
    for key, model in (("sk-one", "m-2"), ("sk-two", "m-1"), ("sk-one", "")):
        assert book.take(Operation.CREATE, "cn-beijing", key=key, model=lambda model=model: model) is None
    assert book.take(Operation.CREATE, "cn-beijing", key="sk-one", model=lambda: "m-1") is not None


def test_the_model_is_looked_for_only_where_a_fault_asks() -> None:
    def read_body() -> str:
        raise AssertionError("nobody asked")

    book = FaultBook()
    book.add(make_fault("create", "error", region="ap-southeast-1", model="m-1", **REFUSAL))
    book.add(make_fault("create", "429"))
    fault = book.take(Operation.CREATE, "cn-beijing", model=read_body)
    assert fault is not None and fault.model is None


@pytest.mark.parametrize("kind", ["error", "garbage"])
def test_a_5xx_and_garbage_may_hide_that_the_request_took_effect(kind: str) -> None:
    assert make_fault("create", kind, status=500, code="InternalError", processed=True).processed


def test_an_outcome_needs_no_status() -> None:
    assert make_fault("outcome", "error", code="InternalError.Algo", times=2).times == 2


@pytest.mark.parametrize(
    ("operation", "kind", "details"),
    [
        ("create", "error", {}),
        ("create", "error", {"code": "Arrearage"}),
        ("create", "error", {"status": 400}),
        ("create", "error", {"status": 200, "code": "Arrearage"}),
        ("create", "error", {"status": 600, "code": "Arrearage"}),
        ("create", "error", {"status": "400", "code": "Arrearage"}),
        ("create", "error", {"status": 400, "code": 7}),
        ("create", "error", {"status": 400, "code": "Arrearage", "processed": True}),
        ("create", "garbage", {"status": 99}),
        ("create", "garbage", {"body": {"a": 1}}),
        ("file", "error", {**REFUSAL, "key": "sk-one"}),
        ("upload", "error", {**REFUSAL, "model": "m-1"}),
        ("query", "error", {**REFUSAL, "model": "m-1"}),
        ("cancel", "error", {**REFUSAL, "model": "m-1"}),
        ("outcome", "429", {}),
        ("outcome", "error", {"code": "InternalError", "processed": True}),
        ("outcome", "error", {}),
    ],
)
def test_a_senseless_script_is_refused(operation: str, kind: str, details: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        make_fault(operation, kind, **details)
