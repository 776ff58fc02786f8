"""Reading the fields of a call's body (pure): what every family asks of them, with the upstream's own complaints.

Knows no model. Every function raises `Problem` 400 for what the upstream refuses.
"""

from __future__ import annotations

from typing import Any

from app.simulator import problems

LINK_STARTS = ("http://", "https://", "oss://", "data:")
MAX_DATA_URI_BYTES = 10_485_760

Json = dict[str, Any]


def read_object(body: Json, name: str) -> Json:
    """Return an object of the body; one that was not given is empty.

    >>> read_object({"parameters": {"n": 1}}, "parameters")
    {'n': 1}
    >>> read_object({}, "parameters")
    {}
    """
    value = body.get(name) or {}
    if not isinstance(value, dict):
        raise problems.unreadable_body()
    return value


def read_content(given: object) -> tuple[str, list[Any]]:
    """Return the one text and the pictures of `input.messages`, which must be a single turn of the user's.

    >>> read_content({"messages": [{"role": "user", "content": [{"text": "a cup"}, {"image": "https://h/1.png"}]}]})
    ('a cup', ['https://h/1.png'])
    """
    messages = given.get("messages") if isinstance(given, dict) else None
    if not isinstance(messages, list) or not messages:
        raise problems.invalid("messages is required")
    if len(messages) != 1:
        raise problems.invalid("messages length only support 1")
    message = messages[0]
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise problems.invalid("content must be a list of objects")
    if message.get("role") != "user":
        raise problems.invalid("role must be user")
    texts = [item["text"] for item in content if "text" in item]
    if len(texts) != 1 or not isinstance(texts[0], str):
        raise problems.invalid("content must contain exactly one text")
    return texts[0], [item["image"] for item in content if "image" in item]


def refuse_images(images: list[Any], *, low: int, high: int) -> None:
    """Accept between `low` and `high` input pictures, each a link or a data URI; they are never fetched."""
    if not low <= len(images) <= high:
        raise problems.invalid(f"the number of input images must be between {low} and {high}")
    for image in images:
        if not isinstance(image, str) or not image.startswith(LINK_STARTS):
            raise problems.invalid("image must be a URL or a data URI")
        if image.startswith("data:") and len(image) > MAX_DATA_URI_BYTES:
            raise problems.invalid(f"Exceeded limit on max bytes per data-uri item: {MAX_DATA_URI_BYTES}")


def whole_number(fields: Json, name: str, *, default: int, low: int, high: int) -> int:
    """Return a whole number from `low` to `high`, or the default where none is given.

    >>> whole_number({}, "n", default=4, low=1, high=4)
    4
    >>> whole_number({"n": 5}, "n", default=4, low=1, high=4)
    Traceback (most recent call last):
    app.simulator.problems.Problem: 400 InvalidParameter: n must be an integer between 1 and 4
    """
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise problems.invalid(f"{name} must be an integer between {low} and {high}")
    return value
