"""How the upstream reads a call of `wan2.6-image` (pure): its rules, its defaults, its silent cuts.

Input pictures are taken as they are and never fetched. Unknown parameters are tolerated: the SDK itself sends one.
"""

from __future__ import annotations

import hashlib
from typing import Any

from app.simulator import problems
from app.simulator.reading import read_content, read_object, refuse_images, whole_number
from app.simulator.sizes import choose_size
from app.simulator.tasks import IMAGE_GENERATION, Order

MODEL = "wan2.6-image"
PROMPT_LENGTH = 2000
MAX_SEED = 2**31 - 1


def read_order(body: dict[str, Any], *, service: str = IMAGE_GENERATION) -> Order:
    """Turn the JSON body of a call at a service path into an order. Raises: `Problem` 400 for what is refused."""
    parameters = read_object(body, "parameters")
    interleave = parameters.get("enable_interleave") or False
    if not isinstance(interleave, bool):
        raise problems.invalid("enable_interleave must be a boolean")
    prompt, images = read_content(body.get("input"))
    low, high = (0, 1) if interleave else (1, 4)
    refuse_images(images, low=low, high=high)
    whole_number(parameters, "seed", default=0, low=0, high=MAX_SEED)
    prompt = prompt[:PROMPT_LENGTH]
    width, height = choose_size(parameters.get("size"), interleave=interleave)
    return Order(
        model=MODEL,
        prompt=prompt,
        width=width,
        height=height,
        image_count=_interleaved_count(prompt, parameters) if interleave else _edited_count(parameters),
        interleave=interleave,
        service=service,
        shape="interleaved" if interleave else "choices",
        usage="size_and_tokens",
    )


def _edited_count(parameters: dict[str, Any]) -> int:
    """Without `n`, editing makes, and bills, four pictures."""
    return whole_number(parameters, "n", default=4, low=1, high=4)


def _interleaved_count(prompt: str, parameters: dict[str, Any]) -> int:
    """`max_images` is only an upper bound: the model decides. Here the prompt's hash does, so that it is repeatable."""
    if parameters.get("n") not in (None, 1):
        raise problems.invalid("num_images_per_prompt must be 1")
    most = whole_number(parameters, "max_images", default=5, low=1, high=5)
    return 1 + hashlib.sha256(prompt.encode()).digest()[0] % most
