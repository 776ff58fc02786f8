"""Where a call goes and when: pure decisions over what they are given."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import pytest

from app.errors import InvalidParameter, NotReady, UpstreamAccountAtFault
from app.routing.catalogue import load_catalogue, most_units
from app.routing.choice import Candidate, choose
from app.routing.room import doubtful_occupies_seconds, learn, send_slots
from app.tasks.schedule import due_looks

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
OFFER = load_catalogue(None).models["wan2.6-image"]
BEIJING, SINGAPORE, NOWHERE = "cn-beijing", "ap-southeast-1", "cn-hongkong"


def account(name: str, region: str = BEIJING, *, paused_seconds: float | None = None) -> Candidate:
    until = None if paused_seconds is None else NOW + timedelta(seconds=paused_seconds)
    return Candidate(UUID(int=sum(name.encode())), name, region, "main", until)


def chosen(candidates: list[Candidate], allowed: list[str], wanted: str | None = None) -> str:
    return choose(OFFER, candidates, allowed=allowed, wanted=wanted, now=NOW).name


# --- which account -------------------------------------------------------------------------------------------------


def test_the_teams_first_region_is_called_when_it_can() -> None:
    both = [account("a", SINGAPORE), account("b", BEIJING)]
    assert chosen(both, [BEIJING, SINGAPORE]) == "b"
    assert chosen(both, [SINGAPORE, BEIJING]) == "a"


def test_a_region_without_an_account_is_passed_over() -> None:
    assert chosen([account("a", SINGAPORE)], [BEIJING, SINGAPORE]) == "a"


def test_a_region_whose_accounts_are_paused_is_passed_over() -> None:
    assert chosen([account("a", paused_seconds=1), account("b", SINGAPORE)], [BEIJING, SINGAPORE]) == "b"


def test_a_pause_ends_on_its_instant() -> None:
    assert chosen([account("a", paused_seconds=0)], [BEIJING]) == "a"
    with pytest.raises(UpstreamAccountAtFault):
        chosen([account("a", paused_seconds=0.001)], [BEIJING])


def test_among_equal_accounts_the_choice_is_steady() -> None:
    pair = [account("b"), account("a")]
    assert chosen(pair, [BEIJING]) == chosen(pair[::-1], [BEIJING]) == "a"


def test_the_region_asked_for_is_called_or_nothing_is() -> None:
    both = [account("a", BEIJING), account("b", SINGAPORE, paused_seconds=9)]
    assert chosen(both, [BEIJING, SINGAPORE], BEIJING) == "a"
    with pytest.raises(UpstreamAccountAtFault):
        chosen(both, [BEIJING, SINGAPORE], SINGAPORE)


def test_a_region_that_is_not_the_teams_is_no_choice() -> None:
    with pytest.raises(InvalidParameter, match="not one of this team's regions"):
        chosen([account("a"), account("b", SINGAPORE)], [BEIJING], SINGAPORE)


def test_where_the_model_is_not_offered_the_regions_that_offer_it_are_named() -> None:
    with pytest.raises(InvalidParameter, match="ap-southeast-1, cn-beijing"):
        chosen([account("a", NOWHERE)], [NOWHERE])
    with pytest.raises(InvalidParameter, match="ap-southeast-1, cn-beijing"):
        chosen([account("a", NOWHERE), account("b")], [BEIJING, NOWHERE], NOWHERE)


# --- the catalogue -------------------------------------------------------------------------------------------------


def write(folder: Path, text: str) -> Path:
    path = folder / "more.toml"
    path.write_text(text)
    return path


MODEL = '[models."{}"]\npath = "a/b"\nunit = "image"\nmost = [{{ parameter = "n", default = 2 }}]\n'


def test_the_operators_file_adds_and_replaces_models(tmp_path: Path) -> None:
    regions = '[models."{}".regions]\ncn-beijing = {{ rps = 1, running = 1 }}\n'
    text = "".join(MODEL.format(name) + regions.format(name) for name in ("mine", "wan2.6-image"))
    catalogue = load_catalogue(write(tmp_path, text))
    assert {name: catalogue.models[name].path for name in ("mine", "wan2.6-image")} == dict.fromkeys(
        ("mine", "wan2.6-image"), "a/b"
    )
    assert catalogue.find("theirs") is None


@pytest.mark.parametrize(
    "text",
    [
        "not toml [",
        "[models.x]\npath = 7",
        MODEL.format("x"),
        MODEL.format("x") + "[models.x.regions]\na = { rps = 0, running = 1 }",
        MODEL.format("x") + "[models.x.regions]\na = { rps = 1, running = 1, colour = 1 }",
    ],
    ids=["toml", "types", "no regions", "no rate", "unknown word"],
)
def test_a_file_that_cannot_be_used_says_so_at_the_start(tmp_path: Path, text: str) -> None:
    with pytest.raises(NotReady, match="E05"):
        load_catalogue(write(tmp_path, text))


def test_a_missing_file_says_so_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="E05"):
        load_catalogue(tmp_path / "nothing.toml")


@pytest.mark.parametrize("n", [None, 0, -1, 1001, 10**30, 1.0, "2", True, [], {}])
def test_nonsense_in_a_request_counts_as_the_most_a_model_makes_by_itself(n: object) -> None:
    assert most_units(OFFER, {"n": n}) == 4


# --- when ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rps", [0.5, 1, 3, 5, 7, 1000])
@pytest.mark.parametrize("wanted", [0, 1, 2, 50])
@pytest.mark.parametrize("ahead", [None, -10, 0, 0.4, 1, 1.001, 60])
def test_slots_keep_their_distance_and_none_is_far_off(rps: float, wanted: int, ahead: float | None) -> None:
    next_at = None if ahead is None else NOW + timedelta(seconds=ahead)
    slots = send_slots(next_at, NOW, rps=rps, wanted=wanted)
    assert len(slots) <= wanted
    assert all(max(NOW, next_at or NOW) <= slot <= NOW + timedelta(seconds=1) for slot in slots)
    gaps = [(after - before).total_seconds() for before, after in pairwise(slots)]
    assert all(gap == pytest.approx(1 / rps, abs=1e-6) for gap in gaps)


def test_what_was_learned_moves_slowly_towards_what_is_seen() -> None:
    learned = None
    for seen in (10, 20, 20, 20):
        learned = learn(learned, seen)
    assert learned is not None
    assert 10 < learned < 20


@pytest.mark.parametrize(("learned", "seconds"), [(None, 240), (0, 240), (10, 20), (449, 898), (10_000, 900)])
def test_a_doubt_occupies_twice_what_is_usual_and_never_more_than_a_quarter_of_an_hour(
    learned: float | None, seconds: float
) -> None:
    assert doubtful_occupies_seconds(learned) == seconds


def test_with_many_open_tasks_the_looks_go_round() -> None:
    tasks = [f"task {number}" for number in range(25)]
    looked_at: dict[str, float] = {}
    seen = []
    for second in range(3):
        due = due_looks(tasks, looked_at, now=float(second), calls_per_second=10)
        looked_at |= dict.fromkeys(due, float(second))
        seen += due
    assert seen[:25] == tasks
    assert seen[25:] == tasks[:5]


def test_however_slow_the_pace_one_look_is_planned() -> None:
    assert due_looks(["a", "b"], {}, now=0.0, calls_per_second=0.1) == ["a"]
