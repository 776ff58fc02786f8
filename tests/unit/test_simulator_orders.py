"""How the simulator reads the body of a create."""

from typing import Any

import pytest

from app.simulator.problems import Problem
from app.simulator.reading import MAX_DATA_URI_BYTES
from app.simulator.wan26_image import read_order

IMAGE = {"image": "https://assets.example.com/cup.png"}


def body(*content: Any, messages: Any = None, **parameters: Any) -> dict[str, Any]:
    given = messages if messages is not None else [{"role": "user", "content": list(content)}]
    return {"model": "wan2.6-image", "input": {"messages": given}, "parameters": parameters}


def test_editing_makes_four_images_when_nobody_says_how_many() -> None:
    order = read_order(body({"text": "a cup"}, IMAGE))
    assert (order.image_count, order.size, order.interleave) == (4, "1280*1280", False)


def test_parameters_may_be_missing() -> None:
    without = body({"text": "a cup"}, IMAGE)
    del without["parameters"]
    assert read_order(without).image_count == 4


def test_unknown_parameters_are_tolerated() -> None:
    assert read_order(body({"text": "a cup"}, IMAGE, n=1, is_async=True, style="oil")).image_count == 1


def test_a_long_prompt_is_cut_silently() -> None:
    assert read_order(body({"text": "船" * 2500}, IMAGE)).prompt == "船" * 2000


def test_interleaving_decides_the_number_of_images_by_the_prompt() -> None:
    orders = [read_order(body({"text": f"guide {number}"}, enable_interleave=True)) for number in range(60)]
    again = [read_order(body({"text": f"guide {number}"}, enable_interleave=True)) for number in range(60)]
    assert orders == again
    assert {order.image_count for order in orders} == {1, 2, 3, 4, 5}


def test_interleaving_never_makes_more_than_asked() -> None:
    orders = [read_order(body({"text": str(n)}, enable_interleave=True, max_images=2, n=1)) for n in range(30)]
    assert {order.image_count for order in orders} == {1, 2}


@pytest.mark.parametrize("image", ["https://a/b.png", "http://a/b.png", "data:image/png;base64,AAAA", "oss://k/x.png"])
def test_input_images_are_taken_as_they_are(image: str) -> None:
    assert read_order(body({"text": "a cup"}, {"image": image}, n=1)).image_count == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (body(messages=[]), "messages is required"),
        (body(messages="hello"), "messages is required"),
        ({"model": "wan2.6-image"}, "messages is required"),
        (body(messages=[{"role": "user", "content": []}] * 2), "messages length only support 1"),
        (body(messages=[{"role": "user", "content": "a cup"}]), "content must be a list of objects"),
        (body(messages=["a cup"]), "content must be a list of objects"),
        (body(messages=[{"role": "system", "content": []}]), "role must be user"),
        (body(IMAGE), "exactly one text"),
        (body({"text": "one"}, {"text": "two"}, IMAGE), "exactly one text"),
        (body({"text": 7}, IMAGE), "exactly one text"),
        (body({"text": "a cup"}), "between 1 and 4"),
        (body({"text": "a cup"}, *[IMAGE] * 5), "between 1 and 4"),
        (body({"text": "a cup"}, IMAGE, IMAGE, enable_interleave=True), "between 0 and 1"),
        (body({"text": "a cup"}, {"image": "/home/cup.png"}), "a URL or a data URI"),
        (body({"text": "a cup"}, {"image": None}), "a URL or a data URI"),
        (body({"text": "a cup"}, {"image": "data:" + "A" * MAX_DATA_URI_BYTES}), "Exceeded limit on max bytes"),
        (body({"text": "a cup"}, IMAGE, n=0), "n must be an integer between 1 and 4"),
        (body({"text": "a cup"}, IMAGE, n=5), "n must be an integer between 1 and 4"),
        (body({"text": "a cup"}, IMAGE, n="2"), "n must be an integer between 1 and 4"),
        (body({"text": "a cup"}, IMAGE, n=True), "n must be an integer between 1 and 4"),
        (body({"text": "a cup"}, IMAGE, seed=-1), "seed must be an integer"),
        (body({"text": "a cup"}, IMAGE, enable_interleave="yes"), "enable_interleave must be a boolean"),
        (body({"text": "a cup"}, enable_interleave=True, n=2), "num_images_per_prompt must be 1"),
        (body({"text": "a cup"}, enable_interleave=True, max_images=6), "max_images must be an integer between 1"),
        ({**body({"text": "a cup"}, IMAGE), "parameters": [1]}, "Required body invalid"),
    ],
)
def test_what_the_upstream_refuses_is_an_invalid_parameter(given: dict[str, Any], message: str) -> None:
    with pytest.raises(Problem) as refusal:
        read_order(given)
    assert (refusal.value.status, refusal.value.code) == (400, "InvalidParameter")
    assert message in refusal.value.message
