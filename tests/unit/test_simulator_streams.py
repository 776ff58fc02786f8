"""What a streamed answer says, event by event, and which faults may hit one."""

from __future__ import annotations

from typing import Any

import pytest

from app.simulator.faults import make_fault, roll
from app.simulator.options import Hostility
from app.simulator.problems import Problem
from app.simulator.streaming import error_frame, frame, plan_events
from app.simulator.tasks import Order


def order(prompt: str = "a boat", *, count: int = 2, interleave: bool = True) -> Order:
    shape = "interleaved" if interleave else "choices"
    return Order("wan2.6-image", prompt, 768, 768, count, interleave=interleave, shape=shape)


def test_each_picture_is_announced_once_and_in_order() -> None:
    events = plan_events(order(count=5), "r-1")
    assert [index for event in events for index in event.pictures] == [0, 1, 2, 3, 4]
    assert events[-1].pictures == (4,)


def test_usage_grows_and_ends_at_the_whole() -> None:
    events = plan_events(order(count=3), "r-1")
    usages = [event.data(["LINK"] * len(event.pictures))["usage"] for event in events]
    for name in ("image_count", "output_tokens", "total_tokens"):
        assert [usage[name] for usage in usages] == sorted(usage[name] for usage in usages)
    assert [usage["size"] for usage in usages if not usage["image_count"]] == ["0*0"] * 6
    assert (usages[-1]["image_count"], usages[-1]["output_tokens"], usages[-1]["size"]) == (3, 600, "768*768")


def test_a_lost_part_is_never_announced() -> None:
    events = plan_events(order("[[partial]]", count=3), "r-1")
    assert [index for event in events for index in event.pictures] == [0, 1]
    assert events[-1].data(["LINK"])["output"]["finished"] is True


def test_without_interleaving_there_is_one_event_with_everything() -> None:
    [event] = plan_events(order(count=3, interleave=False), "r-1")
    assert list(event.pictures) == [0, 1, 2]
    body = event.data(["LINK"] * 3)
    assert (len(body["output"]["choices"]), body["usage"]["image_count"], body["request_id"]) == (3, 3, "r-1")


def test_data_is_one_line_of_json_in_its_own_letters() -> None:
    assert frame(3, {"text": "船\n"}) == 'id:3\nevent:result\n:HTTP_STATUS/200\ndata:{"text":"船\\n"}\n\n'.encode()


def test_an_error_event_has_no_space_after_its_colon() -> None:
    content = error_frame(2, Problem(400, "DataInspectionFailed", "no"), request_id="r-1")
    data = b'{"code":"DataInspectionFailed","message":"no","request_id":"r-1"}'
    assert content == b"id:2\nevent:error\n:HTTP_STATUS/400\ndata:" + data + b"\n\n"


@pytest.mark.parametrize("kind", ["break", "error_event", "hang", "lost_answer"])
def test_what_happens_on_the_way_happens_to_a_stream_that_took_effect(kind: str) -> None:
    assert make_fault("stream", kind).processed is True


@pytest.mark.parametrize(
    ("operation", "kind", "details"),
    [
        ("sync", "break", {}),
        ("create", "error_event", {}),
        ("stream", "break", {"processed": False}),
        ("stream", "break", {"after_events": -1}),
        ("stream", "429", {"after_events": 1}),
        ("sync", "hang", {"after_events": 1}),
        ("stream", "error_event", {"status": 200}),
        ("stream", "error_event", {"code": ""}),
    ],
)
def test_a_senseless_fault_of_a_stream_is_refused(operation: str, kind: str, details: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        make_fault(operation, kind, **details)


def test_hostility_hits_calls_and_streams_as_it_hits_creates() -> None:
    class Unlucky:
        def random(self) -> float:
            return 0.0

    faults = [
        roll(Hostility.slight(), make_fault(name, "429").operation, dice=Unlucky())  # type: ignore[arg-type]
        for name in ("create", "sync", "stream")
    ]
    assert [fault and fault.operation.value for fault in faults] == ["create", "sync", "stream"]
