"""How the upstream reads a create of `wan2.6-image` (pure): its rules, its defaults, its silent cuts.

Input pictures are taken as they are and never fetched. Unknown parameters are tolerated: the SDK itself sends one.
"""

from __future__ import annotations

import hashlib
from typing import Any

from app.simulator import problems
from app.simulator.sizes import choose_size
from app.simulator.tasks import Order

MODEL = "wan2.6-image"
SERVICE = "aigc/image-generation/generation"
PROMPT_LENGTH = 2000
MAX_DATA_URI_BYTES = 10_485_760
MAX_SEED = 2**31 - 1


def read_order(body: dict[str, Any]) -> Order:
    """Turn a create's JSON body into an order. Raises: `Problem` 400 for anything the upstream refuses."""
    parameters = body.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise problems.unreadable_body()
    interleave = parameters.get("enable_interleave") or False
    if not isinstance(interleave, bool):
        raise problems.invalid("enable_interleave must be a boolean")
    prompt, images = _read_content(body.get("input"))
    _refuse_images(images, interleave=interleave)
    _whole_number(parameters, "seed", default=0, low=0, high=MAX_SEED)
    width, height = choose_size(parameters.get("size"), interleave=interleave)
    return Order(
        model=MODEL,
        prompt=prompt,
        width=width,
        height=height,
        image_count=_interleaved_count(prompt, parameters) if interleave else _edited_count(parameters),
        interleave=interleave,
    )


def _read_content(given: object) -> tuple[str, list[str]]:
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
    return texts[0][:PROMPT_LENGTH], [item["image"] for item in content if "image" in item]


def _refuse_images(images: list[Any], *, interleave: bool) -> None:
    low, high = (0, 1) if interleave else (1, 4)
    if not low <= len(images) <= high:
        raise problems.invalid(f"the number of input images must be between {low} and {high}")
    for image in images:
        if not isinstance(image, str) or not image.startswith(("http://", "https://", "oss://", "data:")):
            raise problems.invalid("image must be a URL or a data URI")
        if image.startswith("data:") and len(image) > MAX_DATA_URI_BYTES:
            raise problems.invalid(f"Exceeded limit on max bytes per data-uri item: {MAX_DATA_URI_BYTES}")


def _edited_count(parameters: dict[str, Any]) -> int:
    """Without `n`, editing makes, and bills, four pictures."""
    return _whole_number(parameters, "n", default=4, low=1, high=4)


def _interleaved_count(prompt: str, parameters: dict[str, Any]) -> int:
    """`max_images` is only an upper bound: the model decides. Here the prompt's hash does, so that it is repeatable."""
    if parameters.get("n") not in (None, 1):
        raise problems.invalid("num_images_per_prompt must be 1")
    most = _whole_number(parameters, "max_images", default=5, low=1, high=5)
    return 1 + hashlib.sha256(prompt.encode()).digest()[0] % most


def _whole_number(parameters: dict[str, Any], name: str, *, default: int, low: int, high: int) -> int:
    value = parameters.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise problems.invalid(f"{name} must be an integer between {low} and {high}")
    return value
