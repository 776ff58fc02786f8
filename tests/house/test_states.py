"""The moves of a task are exactly those of design.md 3, written here once more from its text."""

import pytest

from app.models.tasks import State, UpstreamCall
from app.tasks import states

OPEN = ("queued", "submitting", "doubtful", "pending", "running")
ENDINGS = ("succeeded", "failed", "canceled", "expired")

# One line per sentence of design.md 3.
SENTENCES: dict[str, set[tuple[str, str]]] = {
    "queued → submitting → pending → running → delivering → succeeded": {
        *(("queued", "submitting"), ("submitting", "pending"), ("pending", "running")),
        *(("running", "delivering"), ("delivering", "succeeded")),
    },
    "submitting | doubtful | pending → running | delivering": {
        (here, there) for here in ("submitting", "doubtful", "pending") for there in ("running", "delivering")
    },
    "an outcome without files goes straight to succeeded": {
        (here, "succeeded") for here in ("submitting", "doubtful", "pending", "running")
    },
    "submitting → queued only when it is certain that nothing was taken": {("submitting", "queued")},
    "submitting → doubtful": {("submitting", "doubtful")},
    "doubtful → pending | queued | failed": {("doubtful", there) for there in ("pending", "queued", "failed")},
    "queued | submitting | doubtful | pending | running → failed | canceled | expired": {
        (here, there) for here in OPEN for there in ("failed", "canceled", "expired")
    },
    "delivering → succeeded and nothing else": {("delivering", "succeeded")},
}
WORDS = {
    **dict.fromkeys(("queued", "submitting", "doubtful", "pending"), "PENDING"),
    **dict.fromkeys(("running", "delivering"), "RUNNING"),
    "succeeded": "SUCCEEDED",
    "failed": "FAILED",
    "canceled": "CANCELED",
    "expired": "FAILED",
}


def test_the_moves_of_a_task_are_exactly_those_of_the_design() -> None:
    moves = {(str(here), str(there)) for here, onward in states.MOVES.items() for there in onward}
    assert moves == set().union(*SENTENCES.values())


def test_every_state_has_its_moves_and_its_word() -> None:
    assert set(states.MOVES) == set(states.UPSTREAM_WORDS) == set(State)


@pytest.mark.parametrize("state", ENDINGS)
def test_nothing_leads_out_of_a_final_state(state: str) -> None:
    assert states.is_terminal(State(state))
    assert [there for there in State if states.may_move(State(state), there)] == []


@pytest.mark.parametrize(("state", "word"), WORDS.items())
def test_a_client_reads_dashscopes_word_for_a_state(state: str, word: str) -> None:
    assert states.upstream_word(State(state), UpstreamCall.ASYNC) == word


def test_a_synchronous_call_on_the_wire_is_running_and_else_as_any_other() -> None:
    words = {str(state): states.upstream_word(state, UpstreamCall.SYNC) for state in State}
    assert words == {**WORDS, "submitting": "RUNNING"}


def test_a_filter_finds_exactly_what_is_shown_as_its_word() -> None:
    words = ("PENDING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELED")
    found = [shown for word in words for shown in states.shown_as(word)]
    assert sorted(found) == sorted((state, call) for state in State for call in UpstreamCall)
    assert states.shown_as("UNKNOWN") == states.shown_as("queued") == []
