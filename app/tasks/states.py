"""The states of a task, the moves between them, and DashScope's word for each. Pure; exactly design.md 3."""

from app.models.tasks import State, UpstreamCall

S = State

MOVES: dict[State, frozenset[State]] = {
    S.QUEUED: frozenset({S.SUBMITTING, S.FAILED, S.CANCELED, S.EXPIRED}),
    S.SUBMITTING: frozenset(
        {S.QUEUED, S.DOUBTFUL, S.PENDING, S.RUNNING, S.DELIVERING, S.SUCCEEDED, S.FAILED, S.CANCELED, S.EXPIRED}
    ),
    S.DOUBTFUL: frozenset({S.QUEUED, S.PENDING, S.RUNNING, S.DELIVERING, S.SUCCEEDED, S.FAILED, S.CANCELED, S.EXPIRED}),
    S.PENDING: frozenset({S.RUNNING, S.DELIVERING, S.SUCCEEDED, S.FAILED, S.CANCELED, S.EXPIRED}),
    S.RUNNING: frozenset({S.DELIVERING, S.SUCCEEDED, S.FAILED, S.CANCELED, S.EXPIRED}),
    S.DELIVERING: frozenset({S.SUCCEEDED}),
    S.SUCCEEDED: frozenset(),
    S.FAILED: frozenset(),
    S.CANCELED: frozenset(),
    S.EXPIRED: frozenset(),
}

TERMINAL = frozenset(state for state, onward in MOVES.items() if not onward)

UPSTREAM_WORDS: dict[State, str] = {
    S.QUEUED: "PENDING",
    S.SUBMITTING: "PENDING",
    S.DOUBTFUL: "PENDING",
    S.PENDING: "PENDING",
    S.RUNNING: "RUNNING",
    S.DELIVERING: "RUNNING",
    S.SUCCEEDED: "SUCCEEDED",
    S.FAILED: "FAILED",
    S.CANCELED: "CANCELED",
    S.EXPIRED: "FAILED",
}


def is_terminal(state: State) -> bool:
    """Tell whether a state is final.

    >>> is_terminal(State.DELIVERING), is_terminal(State.EXPIRED)
    (False, True)
    """
    return state in TERMINAL


def may_move(here: State, there: State) -> bool:
    """Tell whether a task may go from one state to another.

    >>> may_move(State.SUBMITTING, State.DOUBTFUL)
    True
    >>> may_move(State.DOUBTFUL, State.SUBMITTING)  # nothing is resent on a guess
    False
    >>> may_move(State.DELIVERING, State.FAILED)  # made and billed: delivery never fails a task
    False
    """
    return there in MOVES[here]


def may_reach(there: State) -> list[State]:
    """Return the states from which a task may go to `there`, for a compare-and-set.

    >>> may_reach(State.DELIVERING) == [State.SUBMITTING, State.DOUBTFUL, State.PENDING, State.RUNNING]
    True
    """
    return [here for here, onward in MOVES.items() if there in onward]


def upstream_word(state: State, upstream_call: UpstreamCall) -> str:
    """Return DashScope's word for a state, as clients see it. A sync call on the wire is at work already.

    >>> upstream_word(State.DOUBTFUL, UpstreamCall.ASYNC), upstream_word(State.DELIVERING, UpstreamCall.ASYNC)
    ('PENDING', 'RUNNING')
    >>> upstream_word(State.SUBMITTING, UpstreamCall.ASYNC), upstream_word(State.SUBMITTING, UpstreamCall.SYNC)
    ('PENDING', 'RUNNING')
    """
    if state is State.SUBMITTING and upstream_call is UpstreamCall.SYNC:
        return "RUNNING"
    return UPSTREAM_WORDS[state]


def shown_as(word: str) -> list[tuple[State, UpstreamCall]]:
    """Return what is shown as one of DashScope's words, for filters; nothing for a word that no task of ours has.

    >>> (State.SUBMITTING, UpstreamCall.SYNC) in shown_as("RUNNING"), shown_as("SUSPENDED")
    (True, [])
    """
    return [(state, call) for state in State for call in UpstreamCall if upstream_word(state, call) == word]
