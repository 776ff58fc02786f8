"""Streams of events: whatever pieces they come in, the events are the same, and folded they are one answer."""

import json
from typing import Any

import pytest

from app.upstream.results import find_artifacts, find_usage
from app.upstream.streams import (
    DEPTH_MAX,
    MOST_CHOICES,
    MOST_FILES,
    BadStream,
    SseEvent,
    SseParser,
    StreamedAnswer,
    fields_of,
    format_event,
)

URL = "https://h.example/{}.png?Expires=1795400000&Signature=a%2Fb%3D"
STREAM = (
    b'id:1\nevent:result\n:HTTP_STATUS/200\ndata:{"a":1}\n\n'
    b": keep-alive\n\n"
    b'id:2\r\nevent: error\r\n:HTTP_STATUS/400\r\ndata: {"code":"x"}\r\n\r\n'
    b"retry:5\ndata:one\ndata:\xe4\xb8\xa4\n\n"
)
EVENTS = [
    SseEvent("result", '{"a":1}', "1", 200),
    SseEvent("error", '{"code":"x"}', "2", 400),
    SseEvent("", "one\n\u4e24", "", None),
]


def bare(events: list[SseEvent]) -> list[tuple[str, str, str, int | None]]:
    return [(event.event, event.data, event.id, event.status) for event in events]


def parse(stream: bytes, step: int, **bounds: int) -> list[SseEvent]:
    parser = SseParser(**bounds)
    pieces = [stream[at : at + step] for at in range(0, len(stream), step)]
    return [event for piece in pieces for event in parser.feed(piece)] + parser.close()


# --- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 2, 3, 7, 50, 1000])
def test_events_are_the_same_in_whatever_pieces_they_come(step: int) -> None:
    events = parse(STREAM, step)
    assert bare(events) == bare(EVENTS)
    assert b"".join(event.raw for event in events) == STREAM.replace(b": keep-alive\n\n", b"")


def test_an_event_comes_as_soon_as_its_last_byte_does() -> None:
    parser, end = SseParser(), STREAM.index(b"\n\n") + 2
    assert parser.feed(STREAM[: end - 1]) == []
    assert bare(parser.feed(STREAM[end - 1 : end])) == bare(EVENTS[:1])
    assert len(parser.feed(b"data:x\n\ndata:y\n\n")) == 2


@pytest.mark.parametrize("line", [b":HTTP_STATUS/200x", b":HTTP_STATUS/20", b":status/200", b"HTTP_STATUS/200"])
def test_a_comment_that_tells_no_status_tells_none(line: bytes) -> None:
    (event,) = parse(line + b"\ndata:{}\n\n", 1000)
    assert event.status is None


@pytest.mark.parametrize("nothing", [b"", b"\n\n\n", b"\r\n\r\n", b":\n\n: a\n: b\n\n", b":HTTP_STATUS/200\n\n"])
def test_where_nothing_is_said_there_is_no_event(nothing: bytes) -> None:
    assert parse(nothing, 1) == []


def test_bytes_that_are_no_text_break_nothing() -> None:
    (event,) = parse(b"\xef\xbb\xbfdata:\xff\xfe{}\n\n", 1)
    assert event.data.endswith("{}")


def test_the_end_of_a_stream_ends_its_last_event() -> None:
    parser = SseParser()
    assert parser.feed(b'data:{"usage":{}}') == []
    assert [event.data for event in parser.close()] == ['{"usage":{}}']
    assert parser.close() == []


@pytest.mark.parametrize("step", [1, 10, 64, 1000])
@pytest.mark.parametrize(
    "long", [b"data:" + b"x" * 100 + b"\n\n", b"data:" + b"x" * 100, b"data:x\n" * 20, b":\n" * 60]
)
def test_an_event_without_end_breaks_the_stream_but_not_what_came_before(step: int, long: bytes) -> None:
    parser, stream, events = SseParser(event_max_bytes=64), b"data:first\n\n" + long, list[SseEvent]()
    with pytest.raises(BadStream):
        for at in range(0, len(stream) + 2 * step, step):
            events += parser.feed(stream[at : at + step])
    assert [event.data for event in events] == ["first"]
    with pytest.raises(BadStream):
        parser.feed(b"data:later\n\n")
    assert parser.close() == []


def test_an_event_of_just_the_longest_length_is_taken() -> None:
    event = b"data:" + b"x" * 57 + b"\n\n"
    assert len(parse(event * 3, 10, event_max_bytes=64)) == 3
    with pytest.raises(BadStream):
        parse(event, 10, event_max_bytes=63)


@pytest.mark.parametrize("step", [1, 10, 1000])
def test_comments_alone_are_no_stream_when_they_are_too_many(step: int) -> None:
    with pytest.raises(BadStream):
        parse(b": nothing\n\n" * 10 + b"data:late\n\n", step, event_max_bytes=64)
    assert len(parse((b": a\n\n" * 10 + b"data:x\n\n") * 10, step, event_max_bytes=64)) == 10


@pytest.mark.parametrize(
    ("event", "is_plain"),
    [
        (b"id:1\nevent:result\n:HTTP_STATUS/200\ndata:{}\n\n", True),
        (b"data: {}\r\n: a remark\r\nid: 1\r\n\r\n", True),
        (b"event:error\nevent:result\ndata:{}\n\n", False),
        (b"data:{}\ndata:{}\n\n", False),
        (b"status:500\ndata:{}\n\n", False),
        (b":HTTP_STATUS/200\n:HTTP_STATUS/400\ndata:{}\n\n", False),
        (b"data:{\revent:error}\n\n", False),
    ],
)
def test_an_event_is_plain_when_every_parser_reads_the_same_in_it(event: bytes, is_plain: bool) -> None:
    (found,) = parse(event, 1000)
    assert found.is_plain is is_plain


def test_the_data_of_an_event_is_a_json_object_or_nothing() -> None:
    assert fields_of(SseEvent("result", '{"a":[1.5]}')) == {"a": [1.5]}
    assert fields_of(SseEvent("done", "")) == fields_of(SseEvent("done", "[DONE]")) == {}
    deep = "[" * DEPTH_MAX + "]" * DEPTH_MAX
    flat = "[" + ",".join(["[]"] * 1000) + "]"
    assert fields_of(SseEvent("result", f'{{"a":{flat}}}'))
    for nonsense in ("7", "[]", "{", '{"a":NaN}', '{"a":-Infinity}', '{"a":1e999}', f'{{"a":{deep}}}', "[" * 99_999):
        with pytest.raises(BadStream):
            fields_of(SseEvent("result", nonsense))


def test_bytes_that_are_no_text_are_told_from_a_letter_that_looks_like_them() -> None:
    letter, bytes_ = '{"a":"\ufffd"}', b'data:{"a":"\xff"}\n\n'
    assert fields_of(SseEvent("result", letter, raw=letter.encode())) == {"a": "\ufffd"}
    (event,) = parse(bytes_, 1000)
    with pytest.raises(BadStream):
        fields_of(event)


# --- writing -------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_again() -> None:
    written = format_event("result", '{"text":"\u4e24"}', event_id="7") + format_event(
        "error", "a\nb", event_id="8", status=500
    )
    assert bare(parse(written, 1000)) == [("result", '{"text":"\u4e24"}', "7", 200), ("error", "a\nb", "8", 500)]


def test_nothing_in_the_data_can_begin_another_event() -> None:
    for end in ("\n", "\r", "\r\n"):
        (event,) = parse(format_event("result", f"a{end}{end}event:error{end}data:b", event_id="1"), 1000)
        assert event.event == "result"


# --- folding -------------------------------------------------------------------------------------------------------


def said(*content: Any, reason: str = "null", usage: dict[str, Any] | None = None) -> dict[str, Any]:
    choices = [{"message": {"role": "assistant", "content": list(content)}, "finish_reason": reason}]
    output = {"choices": choices, "finished": reason != "null"}
    return {"output": output, "usage": usage or {"image_count": 0, "size": "0*0"}, "request_id": "r-1"}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def image(number: int) -> dict[str, str]:
    return {"type": "image", "image": URL.format(number)}


INTERLEAVED = [
    said(text("First ")),
    said(text("fold")),
    said(image(1), usage={"image_count": 1, "size": "1280*1280"}),
    said(text("Then "), text("turn"), usage={"image_count": 1, "size": "1280*1280"}),
    said(image(2), usage={"image_count": 2, "size": "1280*1280"}),
    said(reason="stop", usage={"image_count": 2, "size": "1280*1280", "output_tokens": 477}),
]


def test_a_stream_folds_into_the_answer_of_a_call_without_one() -> None:
    streamed = StreamedAnswer()
    for event in INTERLEAVED:
        streamed.fold(event)
    content = [text("First fold"), image(1), text("Then turn"), image(2)]
    assert streamed.answer == {
        "output": {
            "choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": content}}],
            "finished": True,
        },
        "usage": {"image_count": 2, "size": "1280*1280", "output_tokens": 477},
        "request_id": "r-1",
    }
    (line,) = find_usage(streamed.answer)
    assert (line.quantity, line.flag) == (2, None)


def test_each_file_of_an_event_is_found_again_in_the_answer() -> None:
    streamed, places = StreamedAnswer(), []
    for event in INTERLEAVED:
        placed = streamed.fold(event)
        assert list(placed) == [artifact.json_path for artifact in find_artifacts(event["output"])]
        places += placed.values()
    assert places == [artifact.json_path for artifact in find_artifacts(streamed.answer["output"])]


def test_after_each_event_the_answer_so_far_can_be_billed() -> None:
    streamed, billed = StreamedAnswer(), []
    for event in INTERLEAVED:
        streamed.fold(event)
        billed += [(int(line.quantity), line.flag) for line in find_usage(streamed.answer)]
    assert billed == [(0, None), (0, None), (1, None), (1, None), (2, None), (2, None)]


def test_a_stream_that_broke_off_is_not_finished_and_keeps_what_it_had() -> None:
    streamed = StreamedAnswer()
    for event in INTERLEAVED[:3]:
        streamed.fold(event)
    streamed.fold({"code": "InternalError", "message": "broken off", "request_id": "r-1"})
    assert not streamed.is_finished
    assert streamed.answer["output"]["finished"] is False
    assert streamed.answer["usage"]["image_count"] == 1
    assert len(find_artifacts(streamed.answer["output"])) == 1


def test_an_image_said_twice_is_one_file() -> None:
    streamed = StreamedAnswer()
    first, again = streamed.fold(said(image(1))), streamed.fold(said(text("x"), image(1), image(2)))
    assert list(first.values()) == list(again.values())[:1]
    assert len(find_artifacts(streamed.answer["output"])) == 2


def test_choices_are_kept_apart() -> None:
    streamed = StreamedAnswer()
    for words in ("a", "b"):
        one, other = (
            said(text(words))["output"]["choices"][0],
            said(image(ord(words)), reason="stop")["output"]["choices"][0],
        )
        streamed.fold({"output": {"choices": [one, other]}})
    contents = [choice["message"]["content"] for choice in streamed.answer["output"]["choices"]]
    assert contents == [[text("ab")], [image(97), image(98)]]
    assert not streamed.is_finished


def test_whoever_changes_an_event_or_an_answer_changes_no_other() -> None:
    streamed, first = StreamedAnswer(), said(text("a"), image(1))
    streamed.fold(first)
    first["output"]["choices"][0]["message"]["content"][1]["image"] = "https://ours/1.png"
    find = streamed.answer
    find["output"]["choices"][0]["message"]["content"].clear()
    streamed.fold(said(text("b")))
    assert streamed.answer["output"]["choices"][0]["message"]["content"] == [text("a"), image(1), text("b")]
    assert first["output"]["choices"][0]["message"]["content"][0] == text("a")


@pytest.mark.parametrize(
    "nonsense",
    [
        *({}, {"output": None}, {"output": []}, {"output": {"choices": 7}}, {"output": {"choices": [None, 7]}}),
        *({"output": {"choices": [{"message": 7, "finish_reason": []}]}}, {"usage": 7, "request_id": 7}),
        {"output": {"choices": [{"message": {"content": [None, 7, {"text": 7}, {"image": 7}, {}]}}]}},
    ],
)
def test_nonsense_in_an_event_breaks_nothing(nonsense: dict[str, Any]) -> None:
    streamed = StreamedAnswer()
    streamed.fold(said(image(1), usage={"image_count": 1}))
    assert streamed.fold(nonsense) == {}
    streamed.fold(said(text("still here")))
    assert len(find_artifacts(streamed.answer["output"])) == 1
    assert json.dumps(streamed.answer)


def test_text_without_a_list_is_text() -> None:
    streamed = StreamedAnswer()
    for words in ("Hel", "lo"):
        streamed.fold({"output": {"choices": [{"message": {"content": words}, "finish_reason": "stop"}]}})
    assert streamed.answer["output"]["choices"][0]["message"]["content"] == [{"text": "Hello"}]


def test_text_without_end_is_not_kept_without_end() -> None:
    streamed = StreamedAnswer()
    for _ in range(50):
        streamed.fold(said(text("x" * 100_000)))
    streamed.fold(said(image(1), usage={"image_count": 1}))
    assert len(json.dumps(streamed.answer)) < 4_001_000
    assert len(find_artifacts(streamed.answer["output"])) == 1


@pytest.mark.parametrize(
    "item", [{"audio": "x" * 100_000}, {"image": 7, "x": "y" * 100_000}, {"text": ["x" * 100_000]}]
)
def test_whatever_else_is_said_is_not_kept_without_end(item: dict[str, Any]) -> None:
    streamed = StreamedAnswer()
    for number in range(50):
        streamed.fold({"output": {f"key {number}": item, **said({**item, "number": number})["output"]}})
    assert len(json.dumps(streamed.answer)) < 4_010_000


def test_an_answer_has_so_many_choices_and_files_and_no_more() -> None:
    with pytest.raises(BadStream):
        StreamedAnswer().fold({"output": {"choices": [{}] * (MOST_CHOICES + 1)}})
    with pytest.raises(BadStream):
        StreamedAnswer().fold({"output": {"results": [{"url": URL.format(1)}] * (MOST_FILES + 1)}})
    streamed = StreamedAnswer()
    for number in range(MOST_FILES):
        streamed.fold(said(image(number)))
    with pytest.raises(BadStream):
        streamed.fold(said(image(MOST_FILES)))


def test_a_reason_that_is_no_word_is_no_end() -> None:
    for reason in ([], {}, 7, True, None, "", "null"):
        streamed = StreamedAnswer()
        streamed.fold({"output": {"choices": [{"finish_reason": reason}]}})
        assert not streamed.is_finished
