"""Where a call goes and when: pure decisions over what they are given."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest

from app.errors import InvalidParameter, UpstreamAccountAtFault
from app.models.tasks import Mode, UpstreamCall
from app.routing.catalogue import Offer, load_catalogue, unlisted_offer
from app.routing.choice import Candidate, Wish, choose, pick
from app.routing.room import REGROWTH_SECONDS, doubtful_occupies_seconds, learn, pace_now, send_slots
from app.routing.ways import Asked, Way, find_way, serves_path

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
OFFER = load_catalogue(None).models["wan2.6-image"]
BEIJING, SINGAPORE, FRANKFURT, NOWHERE = "cn-beijing", "ap-southeast-1", "eu-central-1", "cn-hongkong"
TASK = Asked("aigc/image-generation/generation", is_async=True)
PLAIN = Asked("aigc/multimodal-generation/generation")
STREAM = Asked("aigc/multimodal-generation/generation", streams=True)


def account(name: str, region: str = BEIJING, *, paused_seconds: float | None = None, **more: Any) -> Candidate:
    until = None if paused_seconds is None else NOW + timedelta(seconds=paused_seconds)
    return Candidate(UUID(int=sum(name.encode())), name, region, "main", until, **more)


def chosen(candidates: list[Candidate], allowed: list[str], wanted: str | None = None, **wish: Any) -> str:
    asked = wish.pop("asked", TASK)
    return choose(OFFER, candidates, wish=Wish(allowed, asked, wanted, **wish), now=NOW).candidate.name


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


def test_a_call_that_the_first_region_cannot_take_in_its_form_goes_to_one_that_can() -> None:
    both = [account("a", FRANKFURT), account("b", SINGAPORE)]
    assert chosen(both, [FRANKFURT, SINGAPORE], asked=PLAIN) == "a"
    assert chosen(both, [FRANKFURT, SINGAPORE], asked=STREAM) == "b"


def test_where_no_allowed_region_streams_the_regions_that_do_are_named() -> None:
    with pytest.raises(InvalidParameter, match=r"as a stream; it is offered so in: ap-southeast-1, cn-beijing, us-"):
        chosen([account("a", FRANKFURT)], [FRANKFURT], asked=STREAM)


def test_a_model_that_streams_nowhere_says_so() -> None:
    offer = load_catalogue(None).models["wan2.5-i2i-preview"]
    with pytest.raises(InvalidParameter, match=r"^This model is not offered as a stream\.$"):
        choose(offer, [account("a")], wish=Wish([BEIJING], STREAM), now=NOW)


def test_an_account_that_an_operator_holds_back_takes_nothing() -> None:
    pair = [account("a", takes_calls=False), account("b")]
    assert chosen(pair, [BEIJING]) == "b"
    with pytest.raises(UpstreamAccountAtFault):
        chosen(pair[:1], [BEIJING])


def test_calls_are_shared_by_weight() -> None:
    three = [account("a", weight=1), account("b", weight=2), account("c", weight=5)]
    picked = Counter(chosen(three, [BEIJING], draw=step / 800) for step in range(800))
    assert picked == {"a": 100, "b": 200, "c": 500}


def test_the_share_of_a_paused_account_goes_to_the_others() -> None:
    pair = [account("a", paused_seconds=9, weight=9), account("b")]
    assert {chosen(pair, [BEIJING], draw=step / 10) for step in range(10)} == {"b"}


def test_an_account_without_weight_is_called_only_when_no_other_of_its_region_can() -> None:
    spare, other, far = account("a", weight=0), account("b"), account("c", SINGAPORE)
    assert {chosen([spare, other], [BEIJING], draw=step / 10) for step in range(10)} == {"b"}
    assert chosen([spare, far], [BEIJING, SINGAPORE]) == "a"


@pytest.mark.parametrize("weights", [(1, 1, 1), (0, 0, 0), (3, 0, 1)])
def test_whatever_is_drawn_somebody_is_picked(weights: tuple[int, ...]) -> None:
    some = [account(name, weight=weight) for name, weight in zip("abc", weights, strict=True)]
    for draw in (0.0, 1 / 3, 0.5, 0.9999999999999999):
        assert pick(some, draw) in some
        assert pick(some, draw) == pick(some[::-1], draw)


def test_an_input_that_an_account_holds_pins_the_call_to_it() -> None:
    pair = [account("a"), account("b", weight=0), account("c", SINGAPORE)]
    for draw in (0.0, 0.9):
        assert chosen(pair, [BEIJING, SINGAPORE], pinned_account=pair[1].id, draw=draw) == "b"
        assert chosen(pair, [BEIJING, SINGAPORE], pinned_account=pair[2].id, draw=draw) == "c"


def test_a_pinned_call_goes_nowhere_else() -> None:
    pair = [account("a", paused_seconds=9), account("b")]
    with pytest.raises(UpstreamAccountAtFault):
        chosen(pair, [BEIJING], pinned_account=pair[0].id)
    with pytest.raises(UpstreamAccountAtFault):
        chosen(pair, [BEIJING], pinned_account=UUID(int=7))
    with pytest.raises(InvalidParameter, match="uploaded to a region"):
        chosen([account("a", SINGAPORE)], [BEIJING, SINGAPORE], BEIJING, pinned_account=account("a").id)


# --- which way -----------------------------------------------------------------------------------------------------

BOTH = Offer(path="a/b", sync_path="c/d", regions=OFFER.regions)
ASYNC_ONLY = Offer(path="a/b", regions=OFFER.regions)
SYNC_ONLY = Offer(sync_path="c/d", regions=OFFER.regions)
ASYNC_WAY = Way(Mode.ASYNC, UpstreamCall.ASYNC, "a/b")
WORKER_WAY = Way(Mode.ASYNC, UpstreamCall.SYNC, "c/d")
DURABLE_WAY = Way(Mode.DURABLE, UpstreamCall.ASYNC, "a/b")
RELAY_WAY = Way(Mode.RELAY, UpstreamCall.SYNC, "c/d")


@pytest.mark.parametrize("path", ["a/b", "c/d", "c/d/"])
@pytest.mark.parametrize(
    ("offer", "asked", "durable", "way"),
    [
        (BOTH, {"is_async": True}, True, ASYNC_WAY),
        (BOTH, {"is_async": True}, False, ASYNC_WAY),
        (BOTH, {"is_async": True, "streams": True}, True, ASYNC_WAY),
        (BOTH, {"streams": True}, True, RELAY_WAY),
        (BOTH, {"streams": True}, False, RELAY_WAY),
        (BOTH, {}, True, DURABLE_WAY),
        (BOTH, {}, False, RELAY_WAY),
        (ASYNC_ONLY, {"is_async": True}, False, ASYNC_WAY),
        (ASYNC_ONLY, {"streams": True}, True, None),
        (ASYNC_ONLY, {}, True, DURABLE_WAY),
        (ASYNC_ONLY, {}, False, DURABLE_WAY),
        (SYNC_ONLY, {"is_async": True}, True, WORKER_WAY),
        (SYNC_ONLY, {"streams": True}, True, RELAY_WAY),
        (SYNC_ONLY, {}, True, RELAY_WAY),
        (SYNC_ONLY, {}, False, RELAY_WAY),
    ],
)
def test_the_way_follows_from_what_was_asked_and_what_is_offered(
    path: str, offer: Offer, asked: dict[str, bool], durable: bool, way: Way | None
) -> None:
    assert find_way(offer, BEIJING, asked=Asked(path, **asked), durable=durable) == way
    assert find_way(offer, NOWHERE, asked=Asked(path, **asked), durable=durable) is None


def test_a_region_may_lack_one_of_the_forms() -> None:
    offer = BOTH.model_copy(update={"async_only_in": (FRANKFURT,), "sync_only_in": (SINGAPORE,)})
    assert find_way(offer, FRANKFURT, asked=PLAIN, durable=False) == DURABLE_WAY
    assert find_way(offer, FRANKFURT, asked=STREAM, durable=False) is None
    assert find_way(offer, SINGAPORE, asked=PLAIN, durable=True) == RELAY_WAY
    assert find_way(offer, SINGAPORE, asked=TASK, durable=True) == WORKER_WAY


def test_where_bodies_differ_a_call_stays_on_the_path_it_was_written_for() -> None:
    offer = BOTH.model_copy(update={"bodies_differ": True})
    ways = {
        (path, is_async): find_way(offer, BEIJING, asked=Asked(path, is_async=is_async), durable=True)
        for path in ("a/b/", "c/d/")
        for is_async in (True, False)
    }
    assert ways == {
        ("a/b/", True): ASYNC_WAY,
        ("a/b/", False): DURABLE_WAY,
        ("c/d/", True): WORKER_WAY,
        ("c/d/", False): RELAY_WAY,
    }
    assert find_way(offer, BEIJING, asked=Asked("a/b", streams=True), durable=True) is None


def test_a_model_is_called_at_its_paths_and_no_other() -> None:
    assert [serves_path(BOTH, path) for path in ("a/b", "a/b/", "c/d", "/c/d")] == [True] * 4
    assert [serves_path(BOTH, path) for path in ("", "a", "a/b/c", "A/B")] == [False] * 4
    assert [serves_path(SYNC_ONLY, path) for path in ("a/b", "c/d", "None")] == [False, True, False]


@pytest.mark.parametrize("region", [BEIJING, "a-region-of-tomorrow"])
def test_an_unlisted_model_goes_as_it_was_asked_for_in_every_region(region: str) -> None:
    task, plain = (unlisted_offer("x/y", is_async=is_async) for is_async in (True, False))
    assert find_way(task, region, asked=Asked("x/y", is_async=True), durable=True) == Way(
        Mode.ASYNC, UpstreamCall.ASYNC, "x/y"
    )
    for asked in (Asked("x/y"), Asked("x/y", streams=True)):
        assert find_way(plain, region, asked=asked, durable=True) == Way(Mode.RELAY, UpstreamCall.SYNC, "x/y")


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


# --- the pace ------------------------------------------------------------------------------------------------------


def test_a_pace_that_was_slowed_grows_steadily_and_never_over_the_limit() -> None:
    seen = [pace_now(10, 1, seconds_since=second) for second in range(int(REGROWTH_SECONDS) + 30)]
    assert seen == sorted(seen)
    assert (seen[0], max(seen), seen[-1]) == (1, 10, 10)
    assert max(later - earlier for earlier, later in pairwise(seen)) < 0.2


def test_a_pace_does_not_grow_while_it_is_paused() -> None:
    assert pace_now(10, 1, seconds_since=-40) == 1
