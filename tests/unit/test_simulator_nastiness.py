"""Options, faults and dice: each nastiness has one switch, and nonsense is refused."""

import random
from typing import Any

import pytest

from app.cli.simulator import make_options
from app.simulator import Hostility, Limits, Operation, ProductionRefusedError, SimulatorOptions
from app.simulator.faults import FaultBook, FaultKind, make_fault, roll


@pytest.mark.parametrize("make", [SimulatorOptions, SimulatorOptions.slightly_hostile])
def test_the_simulator_refuses_production(make: Any) -> None:
    with pytest.raises(ProductionRefusedError, match="production"):
        make(environment="production")


def test_the_command_is_hostile_unless_told_otherwise() -> None:
    assert make_options(hostile=True, seed=1, scale=2.0).hostility == Hostility.slight()
    assert make_options(hostile=False, seed=1, scale=2.0).hostility == Hostility()
    with pytest.raises(ProductionRefusedError):
        make_options(hostile=False, seed=None, scale=1.0, environment="production")


@pytest.mark.parametrize("limits", [{"running_tasks": -1}, {"running_tasks": 1.5}, {"creates_per_second": True}])
def test_a_limit_is_a_whole_number(limits: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="whole number"):
        Limits(**limits)


def test_a_fault_is_used_up_and_the_next_one_follows() -> None:
    book = FaultBook()
    book.add(make_fault("query", "429", times=2))
    book.add(make_fault("query", "hang"))
    kinds = [fault and fault.kind for fault in (book.take(Operation.QUERY, "cn-beijing") for _ in range(4))]
    assert kinds == [FaultKind.THROTTLED, FaultKind.THROTTLED, FaultKind.HANG, None]


def test_a_fault_hits_only_its_operation_and_region() -> None:
    book = FaultBook()
    book.add(make_fault("create", "5xx", region="cn-beijing"))
    assert book.take(Operation.QUERY, "cn-beijing") is None
    assert book.take(Operation.CREATE, "ap-southeast-1") is None
    assert book.take(Operation.CREATE, "cn-beijing") is not None


@pytest.mark.parametrize(
    ("operation", "kind", "processed"),
    [("create", "429", False), ("create", "5xx", False), ("create", "lost_answer", True), ("create", "hang", True)],
)
def test_lost_answers_and_hangs_take_effect_unless_told_otherwise(operation: str, kind: str, processed: bool) -> None:
    assert make_fault(operation, kind).processed is processed


@pytest.mark.parametrize(
    ("operation", "kind", "details"),
    [
        ("delete", "429", {}),
        ("other", "429", {}),
        ("create", "fire", {}),
        ("create", "429", {"processed": True}),
        ("create", "lost_answer", {"processed": False}),
        ("create", "5xx", {"status": 418}),
        ("create", "429", {"times": 0}),
        ("create", "429", {"times": "many"}),
        ("create", "429", {"surprise": 1}),
        ("create", "hang", {"seconds": -1}),
    ],
)
def test_a_senseless_fault_is_refused(operation: str, kind: str, details: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        make_fault(operation, kind, **details)


def test_a_calm_simulator_never_rolls_trouble() -> None:
    dice = random.Random(1)
    assert not any(roll(Hostility(), operation, dice=dice) for operation in Operation for _ in range(1000))


def test_slight_hostility_comes_at_its_shares_and_repeats_with_its_seed() -> None:
    def kinds(operation: Operation, seed: int) -> list[FaultKind | None]:
        dice = random.Random(seed)
        rolled = (roll(Hostility.slight(), operation, dice=dice) for _ in range(10_000))
        return [fault.kind if fault else None for fault in rolled]

    queries, creates = kinds(Operation.QUERY, 7), kinds(Operation.CREATE, 7)
    assert queries == kinds(Operation.QUERY, 7)
    assert 0.02 < queries.count(FaultKind.THROTTLED) / 10_000 < 0.04
    assert 0.01 < queries.count(FaultKind.UNAVAILABLE) / 10_000 < 0.03
    assert 0.02 < creates.count(FaultKind.THROTTLED) / 10_000 < 0.04
    assert 0.001 < creates.count(FaultKind.UNAVAILABLE) / 10_000 < 0.01
    assert not any(kinds(Operation.FILE, 7))
