"""What a list says about calls whose answer was lost: pure verdicts over rows, and no guess among them."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from app.tasks.evidence import (
    LATE,
    Adopt,
    Missing,
    Offset,
    Sending,
    Shown,
    find_orphans,
    judge,
    offset_of,
)
from app.upstream.answers import TaskRow

START = datetime(2026, 11, 22, 12, tzinfo=UTC)
EXACT = Offset(timedelta(0), timedelta(0))


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def call(number: int = 1, sent: float = 0, lost: float = 0.1, *, key: str = "7", **more: Any) -> Sending:
    """A call that left and was lost at these seconds, given up after thirty."""
    return Sending((UUID(int=number), 1), at(sent), at(lost), at(sent + 30), api_key_id=key, **more)


def row(name: str, made: float | None, request_id: str = "", *, key: str = "7", word: str = "PENDING") -> TaskRow:
    created_at = at(made) if made is not None else None
    return TaskRow(name, word, "wan2.6-image", request_id, key, "", created_at, None, None)


def told(calls: list[Sending], *rows: TaskRow, began: float = 0, **more: Any) -> list[Any]:
    """The verdicts, in short: the adopted row's name, `missing`, `absent`, or the names of the candidates."""
    settings = {"is_exclusive": True, "offset": EXACT, **more}
    shown = Shown(rows, at(began), at(-600), at(700), **settings)
    words: list[Any] = []
    for verdict in judge(calls, shown).values():
        if isinstance(verdict, Adopt):
            words.append(verdict.row.task_id)
        elif isinstance(verdict, Missing):
            words.append("absent" if verdict.is_proof else "missing")
        else:
            words.append([each.task_id for each in verdict.candidates])
    return words


# --- adopted -------------------------------------------------------------------------------------------------------


def test_the_request_id_of_a_5xx_decides_alone() -> None:
    calls = [call(request_id="r")]
    assert told(calls, row("a", 0), row("b", 0, "r"), is_exclusive=False, is_complete=False) == ["b"]


def test_a_row_made_during_the_call_decides_only_where_nobody_else_calls() -> None:
    assert told([call()], row("a", 0.05)) == ["a"]
    assert told([call()], row("a", 0.05), is_exclusive=False) == [["a"]]


def test_a_row_may_be_made_a_moment_after_its_call_was_cut_off_and_no_later() -> None:
    assert told([call()], row("a", 0.1 + LATE.total_seconds())) == ["a"]
    assert told([call()], row("a", 0.2 + LATE.total_seconds())) == [["a"]]


def test_a_list_that_is_not_whole_decides_nothing_by_itself() -> None:
    assert told([call()], row("a", 0.05), is_complete=False) == [["a"]]


def test_a_window_that_does_not_hold_the_whole_call_decides_nothing() -> None:
    shown = Shown([row("a", 0.05)], at(0), at(-600), at(2), is_exclusive=True, offset=EXACT)
    assert not isinstance(judge([call()], shown)[call().name], Adopt)


def test_a_row_of_another_key_is_not_ours() -> None:
    assert told([call()], row("a", 0, key="8")) == [[]]


def test_before_a_receipt_has_told_our_keys_id_nothing_is_adopted() -> None:
    assert told([call(key="")], row("a", 0)) == [["a"]]
    assert told([call(key="")], row("a", 0), keys=frozenset("7")) == [[]]  # that is another key of ours


def test_two_rows_for_one_call_decide_nothing() -> None:
    assert told([call()], row("a", 0.05), row("b", 0.06)) == [["a", "b"]]


def test_one_row_for_two_calls_decides_nothing() -> None:
    assert told([call(), call(2, 0.02, 0.3)], row("a", 0.25)) == [["a"], ["a"]]


def test_a_row_that_only_one_call_can_have_made_is_its_own() -> None:
    assert told([call(), call(2, 0.2, 0.3)], row("a", 0.05), row("b", 0.25)) == ["a", "b"]
    assert told([call(), call(2, 0.2, 0.3)], row("a", 0.05)) == ["a", []]
    assert told([call(), call(2, 0.2, 0.3)], row("b", 0.25)) == [["b"], ["b"]]


def test_a_chain_of_calls_is_told_apart_from_its_beginning() -> None:
    calls = [call(number, number * 0.2, number * 0.2 + 0.1) for number in range(1, 7)]
    rows = [row(f"t-{number}", number * 0.2 + 0.05) for number in range(1, 7)]
    assert told(calls, *rows) == [f"t-{number}" for number in range(1, 7)]
    assert all(isinstance(words, list) for words in told(calls, *rows[1:]))  # the first may have been late


def test_a_call_that_is_on_the_wire_or_was_given_up_may_have_made_it_too() -> None:
    assert told([call(), call(2, 0, 30, is_open=False)], row("a", 0.05)) == [["a"]]


def test_a_row_without_a_time_may_be_anybodys() -> None:
    assert told([call(), call(2, 20, 20.1)], row("a", None)) == [["a"], ["a"]]
    assert told([call(absent_at=at(200))], row("a", None), began=900, is_exclusive=False) == [["a"]]


def test_while_the_clocks_are_unknown_neighbours_are_not_told_apart() -> None:
    calls = [call(), call(2, 10, 10.1)]
    assert told(calls, row("a", 0.05), offset=Offset()) == [["a"], ["a"]]
    assert told(calls, row("a", 0.05)) == ["a", []]


# --- absent --------------------------------------------------------------------------------------------------------


def test_absence_takes_two_lists_late_enough_and_far_enough_apart() -> None:
    assert [told([call()], began=seconds) for seconds in (149, 150)] == [[[]], ["missing"]]
    once = call(absent_at=at(150))
    assert [told([once], began=seconds) for seconds in (209, 210)] == [["missing"], ["absent"]]


def test_any_row_that_could_be_it_keeps_a_call_in_doubt() -> None:
    once = call(absent_at=at(150))
    assert told([once], row("a", 1), began=900, is_exclusive=False) == [["a"]]


@pytest.mark.parametrize("made", [-4.0, 8.0])
def test_a_row_that_is_nearly_in_time_is_not_given_but_no_proof_either(made: float) -> None:
    once = call(absent_at=at(150))
    assert told([once], row("a", made), began=900) == [["a"]]


def test_a_row_that_was_given_to_another_proves_nothing_against_absence() -> None:
    calls = [call(), call(2, 0.2, 0.3, absent_at=at(150))]
    assert told(calls, row("a", 0.05), began=900) == ["a", "absent"]


def test_a_list_that_is_not_whole_proves_nothing() -> None:
    assert told([call(absent_at=at(150))], began=900, is_complete=False) == [[]]


def test_a_window_that_is_not_wide_proves_nothing() -> None:
    once = call(absent_at=at(150))
    shown = Shown([], at(900), at(-60), at(700), offset=EXACT)
    assert not isinstance(judge([once], shown)[once.name], Missing)


def test_a_clock_that_is_far_off_proves_nothing() -> None:
    far = Offset(timedelta(minutes=15), timedelta(minutes=15))
    assert told([call(absent_at=at(150))], began=900, offset=far) == [[]]


# --- echoed prompts, clocks, orphans -------------------------------------------------------------------------------


def test_an_echoed_prompt_decides_where_every_row_that_could_be_it_has_one() -> None:
    rows = (row("a", 0.05, word="SUCCEEDED"), row("b", 0.06, word="SUCCEEDED"))
    mine = call(prompt="x")
    assert told([mine], *rows, is_exclusive=False, echoes={"a": "y", "b": "x"}) == ["b"]
    assert told([mine], *rows, is_exclusive=False, echoes={"b": "x"}) == [["a", "b"]]
    assert told([mine], *rows, is_exclusive=False, echoes={"a": "x", "b": "x"}) == [["a", "b"]]


def test_an_echoed_prompt_that_another_call_may_have_asked_decides_nothing() -> None:
    rows, echoes = (row("a", 0.05, word="SUCCEEDED"),), {"a": "x"}
    for other in ("x", ""):
        calls = [call(prompt="x"), call(2, 0, 0.1, prompt=other)]
        assert told(calls, *rows, is_exclusive=False, echoes=echoes) == [["a"], ["a"]]
    calls = [call(prompt="x"), call(2, 0, 0.1, prompt="z")]
    assert told(calls, *rows, is_exclusive=False, echoes=echoes)[0] == "a"


def test_receipts_tell_how_the_clocks_differ() -> None:
    offset = offset_of([(at(3.1), at(0), at(0.2)), (at(13.3), at(10), at(10.4))])
    assert offset.low < timedelta(seconds=3) < offset.high < timedelta(seconds=3.2)


def test_receipts_that_contradict_each_other_are_all_believed() -> None:
    offset = offset_of([(at(0), at(0), at(0.1)), (at(15), at(10), at(10.1))])
    assert offset.low < timedelta(0) < timedelta(seconds=5) < offset.high


def test_an_orphan_is_old_ours_and_claimed_by_nobody() -> None:
    rows = [row("ours", -400), row("theirs", -400, key="9"), row("claimed", 0.05), row("young", 250)]
    shown = Shown(rows, at(500), at(-600), at(700), offset=EXACT, keys=frozenset("7"))
    assert [one.task_id for one in find_orphans([call()], shown, before=at(500))] == ["ours"]
