"""Oddities: what the upstream says of a task that no upstream should. Counted, told once, kept on the task's row.

None of them ends a task: states that run backwards, words that nobody knows and "unknown" for a task that is hours old
are taken for "not yet" (outcome.py), and time decides.
"""

from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Any

import structlog

from app.lib.db import transaction
from app.lib.metrics import UPSTREAM_ODDITIES
from app.models.tasks import State
from app.resources import Resources
from app.tasks import store
from app.upstream import answers

log = structlog.get_logger()

WAITING_WORDS = ("PENDING", "SUSPENDED")
# The upstream gives a task up after three hours without a result (InternalError.Timeout): one that is older is stuck.
LONGEST = timedelta(hours=3, minutes=15)


class Oddity(StrEnum):
    """What was odd, as metrics and rows name it."""

    UNKNOWN = "unknown"  # the upstream does not know a task that it took less than its retention ago
    SUSPENDED = "suspended"  # a word of the SDKs that no document explains
    NEW_WORD = "new_word"  # a status that nobody has told us of
    BACKWARDS = "backwards"  # waiting again, after it ran
    OVERDUE = "overdue"  # not ended long after the upstream gives tasks up


async def note_oddity(res: Resources, task: Mapping[str, Any], outcome: answers.Look) -> None:
    """Count what is odd about a look, once for each task; the first of a kind in a day is told to the operator."""
    oddity = find_oddity(outcome, State(task["state"]), age=res.clock.now() - task["submitted_at"])
    if oddity is None or res.oddities.find_fresh((task["id"], oddity)):
        return
    UPSTREAM_ODDITIES.labels(str(oddity)).inc()
    word = outcome.word if isinstance(outcome, answers.Pending) else type(outcome).__name__.upper()
    said = f"{oddity}: {word}" if oddity is Oddity.NEW_WORD else str(oddity)
    if not res.oddities.find_fresh(said):
        log.error("upstream.odd", kind=str(oddity), word=word, task=str(task["id"]))
    async with transaction(res) as session:
        await store.note_oddity(session, task["id"], attempt=task["attempt"], oddity=said)
    res.oddities.put((task["id"], oddity), True)
    res.oddities.put(said, True)


def find_oddity(outcome: answers.Look, state: State, *, age: timedelta) -> Oddity | None:
    """Return what is odd about a look at a task in that state, so long after its receipt.

    >>> young, old = timedelta(minutes=1), timedelta(hours=4)
    >>> find_oddity(answers.Pending("PENDING", "r"), State.RUNNING, age=young)
    <Oddity.BACKWARDS: 'backwards'>
    >>> find_oddity(answers.Pending("PAUSED", "r"), State.PENDING, age=young)
    <Oddity.NEW_WORD: 'new_word'>
    >>> find_oddity(answers.Gone("r"), State.RUNNING, age=young)
    <Oddity.UNKNOWN: 'unknown'>
    >>> [find_oddity(answers.Running("r"), State.RUNNING, age=age) for age in (young, old)]
    [None, <Oddity.OVERDUE: 'overdue'>]
    """
    match outcome:
        case answers.Gone():
            return Oddity.UNKNOWN
        case answers.Pending(word=word) if word not in WAITING_WORDS:
            return Oddity.NEW_WORD
        case answers.Pending(word="SUSPENDED"):
            return Oddity.SUSPENDED
        case answers.Pending() if state is State.RUNNING:
            return Oddity.BACKWARDS
        case answers.Pending() | answers.Running() if age > LONGEST:
            return Oddity.OVERDUE
    return None
